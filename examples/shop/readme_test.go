// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
)

// goRun is how documents call the shop.
const goRun = "go run ./examples/shop"

// TestReadme runs the commands that the documents show for a shop in one process, one after the other as a reader does, in a
// folder of the reader's. Only where the shop listens, how much there is and how long it takes is said otherwise.
func TestReadme(t *testing.T) {
	noSettings(t)
	shown := documents.Of(t)
	prometheus := program(t, "prometheus")
	buildShop(t) // here, where its source is
	folder := t.TempDir()
	if err := os.CopyFS(filepath.Join(folder, "examples", "shop", observability), os.DirFS(observability)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(folder)

	var p *process
	shop := &api{t: t}
	open := func() {
		p = startShop(t, "shop-data", "127.0.0.1:0", "--packing", "100ms")
		_, shop.url, _ = strings.Cut(p.expect("The shop is open"), ": ")
	}
	otherwise := func(verb string) []string {
		return map[string][]string{
			"load":   {"--addr", shop.url, "--orders", "20"},
			"chaos":  {"--addr", shop.url, "--for", "1s", "--kinds", chaos.Latency},
			"check":  {"--wait", "2m"},
			"doctor": {"--listen", strings.TrimPrefix(shop.url, "http://"), "--timeout", "2m"},
		}[verb]
	}
	ran := map[string]bool{} // what several documents show
	var meanwhile []func() error
	for _, s := range shown {
		args := strings.Fields(strings.TrimPrefix(s.Text, goRun))
		switch {
		case s.Block.Lang == "mermaid":
			shop.as("operator@shop.example", "dovetail-operator").hasPlan(s.Block.Lines)
		case ran[s.Text]:
		case s.Text == goRun:
			open()
			shop.stocked()
		case args[0] == "kill":
			if out, err := exec.CommandContext(t.Context(), "sh", "-c", s.Text).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s: %v: %s", s.Block, s.Text, err, out)
			}
			if err := p.ended(); err == nil || err.Error() != "signal: killed" {
				t.Errorf("%v: %s: the shop ended with %v, want it killed", s.Block, s.Text, err)
			}
			open()
		case args[0] == "prometheus":
			m := startPrometheus(t, append([]string{prometheus}, args[1:]...)...)
			// The storm is still to come.
			m.disturbed = true
			meanwhile = append(meanwhile, func() error { // it has read its rules, and knows whom to ask
				var out struct {
					Data struct{ ActiveTargets, Groups []any }
				}
				err := errors.Join(m.get("/api/v1/targets", &out), m.get("/api/v1/rules", &out))
				if want := len(assembly.Backends) + 1; err == nil && (len(out.Data.ActiveTargets) != want || len(out.Data.Groups) == 0) {
					err = fmt.Errorf("it has %d targets and %d groups of rules, want %d and some", len(out.Data.ActiveTargets), len(out.Data.Groups), want)
				}
				return err
			})
		case otherwise(args[0]) != nil:
			run := func(try func() error) {
				if err := try(); err != nil {
					t.Error(err)
				}
			}
			if args[0] == "doctor" {
				run = func(try func() error) { eventually(t, try) } // what was broken on purpose takes a moment to recover
			}
			run(func() error {
				if got := shopWith(t, append(args, otherwise(args[0])...)...); got.code != 0 {
					return fmt.Errorf("%v: %s: exit code %d, said %s%s", s.Block, s.Text, got.code, got.out, got.err)
				}
				return nil
			})
		default:
			t.Errorf("%v: nothing runs %s", s.Block, s.Text)
		}
		ran[s.Text] = true
	}
	for _, try := range meanwhile {
		eventually(t, try)
	}
	if err := p.end(syscall.SIGINT); err != nil {
		t.Errorf("told to end, the shop ended with %v, want exit code 0", err)
	}
}

// hasPlan compares the flow chart of an order with the steps of its saga, and their order; what is in braces is the pivot.
func (a *api) hasPlan(chart []string) {
	a.t.Helper()
	var list struct{ Items []struct{ ID string } }
	a.want(http.StatusOK, a.send("GET", "/ops/api/sagas?name=place-order", nil, nil), &list)
	if len(list.Items) == 0 {
		a.t.Fatal("there are no sagas of orders")
	}
	var saga struct {
		Steps []struct {
			Name, Undo string
			Pivot      bool
		}
	}
	a.want(http.StatusOK, a.send("GET", "/ops/api/sagas/"+list.Items[0].ID, nil, nil), &saga)
	plan := []string{"[POST /api/orders]"}
	var undone []string
	for _, s := range saga.Steps {
		name := "[" + strings.ReplaceAll(s.Name, "-", " ") + "]"
		if s.Pivot {
			name = "{{" + name[1:len(name)-1] + "}}"
		}
		plan = append(plan, name)
		if what := s.Name[strings.LastIndex(s.Name, "-")+1:]; s.Undo != "" && !slices.Contains(undone, what) {
			undone = append(undone, what)
		}
	}
	var drawn [][]string
	for _, line := range chart {
		drawn = append(drawn, regexp.MustCompile(`\[[^\]]+\]|\{\{[^}]+\}\}`).FindAllString(line, -1))
	}
	if len(drawn) != 3 || !slices.Equal(drawn[1], plan) {
		a.t.Errorf("drawn is %q, want the steps %q", drawn, plan)
		return
	}
	// The way back from a refused payment: what was done before it, the last first.
	want := []string{}
	for _, what := range slices.Backward(undone) {
		if what != "payment" {
			want = append(want, "[release "+what+"]")
		}
	}
	if got := drawn[2]; !slices.Equal(got, append(want, "[rejected]")) {
		a.t.Errorf("the way back is drawn as %q, want %q", got, append(want, "[rejected]"))
	}
}

// TestLongerRuns holds the commands that the shop's README has for longer runs of its tests to those tests: they are there, and read the
// variables. To run them is for make test, with as much as it has time for.
func TestLongerRuns(t *testing.T) {
	var code strings.Builder
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file != "readme_test.go" {
			code.Write(text)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range documents.Of(t) {
		line, filter, _ := strings.Cut(s.Text, " | ")
		settings, args, ok := strings.Cut(line, "go test ./examples/shop ")
		if !ok {
			t.Errorf("%v: nothing runs %s", s.Block, s.Text)
			continue
		}
		// The test binary has go test's flags with a prefix. It only lists what it would run.
		var flags []string
		for _, word := range strings.Fields(args) {
			flags = append(flags, strings.Replace(strings.Replace(word, "-", "-test.", 1), "-test.run", "-test.list", 1))
		}
		out, err := exec.CommandContext(t.Context(), self, flags...).CombinedOutput()
		if err != nil || !regexp.MustCompile(`(?m)^Test`).Match(out) {
			t.Errorf("%v: %s: it would run %q (%v), want tests", s.Block, s.Text, out, err)
		}
		for _, setting := range strings.Fields(settings) {
			name, value, _ := strings.Cut(setting, "=")
			if !strings.Contains(code.String(), `"`+name+`"`) {
				t.Errorf("%v: no test reads %s", s.Block, name)
			}
			_, wrong := strconv.Atoi(value)
			if strings.HasSuffix(name, "_FOR") {
				_, wrong = time.ParseDuration(value)
			}
			if wrong != nil && !strings.HasPrefix(value, "$PWD/") {
				t.Errorf("%v: %s is %s: %v", s.Block, name, value, wrong)
			}
		}
		if filter == "" {
			continue
		}
		logs := strings.Join(regexp.MustCompile(`(?m)^.*Logf\(.*$`).FindAllString(code.String(), -1), "\n")
		for _, word := range strings.Split(strings.Trim(strings.TrimPrefix(filter, "grep -E "), "'"), "|") {
			if !strings.Contains(logs, word) {
				t.Errorf("%v: no test logs %q, for which %s looks", s.Block, word, filter)
			}
		}
	}
}
