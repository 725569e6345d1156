// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/load"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// ran is how a command ended that ran in this process.
type ran struct {
	code     int
	out, err string
}

func shopWith(t *testing.T, args ...string) ran {
	t.Helper()
	for _, name := range []string{listenVar, advertiseVar, instanceVar, logVar} {
		t.Setenv(name, "") // as a newcomer has them
	}
	var out, errs bytes.Buffer
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err := cmd.ExecuteContext(t.Context())
	if err != nil {
		errs.WriteString(err.Error())
	}
	return ran{exitCode(err), out.String(), errs.String()}
}

// noSettings hides those of this machine.
func noSettings(t *testing.T) {
	t.Helper()
	for _, line := range os.Environ() {
		if name, _, _ := strings.Cut(line, "="); strings.HasPrefix(name, "SHOP_") {
			t.Setenv(name, "")
		}
	}
}

// TestExitCodes holds every command to its promise: 0 all is well, 1 something is wrong, 2 it was not understood. What is
// not understood says how to learn more.
func TestExitCodes(t *testing.T) {
	noSettings(t)
	nothing := "http://" + freeAddr(t) // where nobody listens
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	empty := t.TempDir()
	text := filepath.Join(empty, "text")
	if err := os.WriteFile(text, []byte("this is no report"), 0o600); err != nil {
		t.Fatal(err)
	}
	object := filepath.Join(empty, "object")
	if err := os.WriteFile(object, []byte(`{"findings": []}`), 0o600); err != nil {
		t.Fatal(err)
	}
	onServers := t.TempDir()
	if err := os.WriteFile(filepath.Join(onServers, envFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		says string // on standard output or error
	}{
		{"--help", 0, "shop doctor"},
		{"--nope", 2, "--nope"},
		{"nope", 2, "nope"},
		{"--listen nowhere", 2, "host:port"},
		{"--listen 127.0.0.1:seventy", 2, "host:port"},
		{"--instances order=2", 2, "--stack"},
		{"lode", 2, "perhaps load"},
		{"--instances order=2 --stack --packing 1s", 2, "--packing"},
		{"--packing -1s", 2, "0 or more"},
		{"--env-file " + text, 2, "--stack"},
		{"--data=", 2, "want a folder"},
		{"help", 0, "shop doctor"},
		{"help load", 0, "Ctrl-C"},
		{"help lode", 2, "lode"},
		{"help load extra", 2, "extra"},
		{"--log xml", 2, "text or json"},
		{"--data " + text, 1, text},
		{"--data " + empty + " --listen " + stranger.Listener.Addr().String(), 1, "in use; choose another address with --listen"},

		{"up --help", 0, `"event": "open"`},
		{"up --nope", 2, "--nope"},
		{"up extra", 2, "extra"},
		{"up --instances till=2", 2, "till"},
		{"up --instances order=0", 2, "1 to 20"},
		{"up --instances order", 2, "order"},
		{"up --listen nowhere", 2, "host:port"},
		{"up --env-file " + text, 1, "NAME=value"},
		{"up --listen 127.0.0.1:0 --data " + empty, 1, stack.ServiceTokenVar},
		{"up --listen 127.0.0.1:0 --data " + empty, 1, "make stack"},

		{"run --help", 0, "SIGTERM"},
		{"run", 2, "1 arg"},
		{"run till", 2, "inventory"},
		{"run order extra", 2, "1 arg"},
		{"run order --listen nowhere", 2, "host:port"},
		{"run order", 1, stack.PostgresVar},

		{"health --help", 0, "readyz"},
		{"health --listen nowhere", 2, "host:port"},
		{"health a b", 2, "at most 1"},
		{"health till", 2, "inventory"},
		{"health --timeout 0", 2, "more than 0"},
		{"health --listen " + strings.TrimPrefix(nothing, "http://"), 1, "refused"},
		{"health --listen " + stranger.Listener.Addr().String(), 1, "not ready"},

		{"lambda --help", 0, "Lambda"},
		{"lambda --nope", 2, "--nope"},
		{"lambda", 2, "1 arg"},
		{"lambda till", 2, "inventory"},
		{"lambda order", 1, stack.PostgresVar},

		{"load --help", 0, "Ctrl-C"},
		{"load --orders none", 2, "none"},
		{"load --orders 0", 2, "1 or more"},
		{"load --concurrency 5000", 2, "1 to 1000"},
		{"load --addr shop.example", 2, "URL"},
		{"load --addr http://shop.example/?a=b", 2, "URL"},
		{"load --patience 0", 2, "more than 0"},
		{"load --patience -1s", 2, "more than 0"},
		{"load --report " + empty + "/none/load.json --addr " + nothing, 1, "no such file"},
		{"load --patience 100ms --addr " + nothing, 1, "waiting for the shop at " + nothing},
		{"load --patience 100ms --addr " + stranger.URL, 1, "404"},

		{"check --help", 0, "invariant"},
		{"check --nope", 2, "--nope"},
		{"check --data " + empty, 1, "not the data folder of a shop"},
		{"check --load " + text, 1, "want a report"},
		{"check --load " + object, 1, "want a report"},
		{"check --wait -1s", 2, "0 or more"},
		{"check --env-file " + text, 2, "--stack"},
		{"check --data=", 2, "want a folder"},
		{"check --load " + empty + "/none", 1, "no such file"},
		{"check --data " + onServers, 1, "--stack"},
		{"check --stack --data " + empty, 1, stack.PostgresVar},

		{"chaos --help", 0, "seed"},
		{"chaos --kinds fire", 2, "fire"},
		{"chaos --for 1ms", 2, "1s or more"},
		{"chaos --operator stranger@shop.example --data " + empty, 2, stack.OperatorPasswordVar},
		{"chaos --addr shop.example --data " + empty, 2, "URL"},
		{"chaos --patience 0", 2, "more than 0"},
		{"chaos --patience 100ms --data " + empty + " --addr " + nothing, 1, "waiting for the shop at " + nothing + ", for 100ms at most"},
		{"chaos --patience 100ms --data " + empty + " --addr " + stranger.URL, 1, "404"},

		{"doctor --help", 0, `"findings"`},
		{"doctor --nope", 2, "--nope"},
		{"doctor --timeout 0", 2, "more than 0"},
		{"doctor --listen nowhere", 2, "host:port"},
		{"doctor --data=", 2, "want a folder"},
		{"doctor --instances order=2", 2, "--stack"},
		{"doctor --timeout 2m --listen 127.0.0.1:0 --data " + empty + "/new", 0, "can be made"},
		{"doctor --listen 127.0.0.1:0 --data " + text, 1, "FAIL  data-folder"},

		{"completion --help", 0, "fish"},
		{"completion", 2, "1 arg"},
		{"completion powershell", 0, "Register-ArgumentCompleter"},
		{"completion bash", 0, "__start_shop"},
		{"completion nope", 2, "nope"},
		{"completion bash extra", 2, "1 arg"},
		{"completion --nope", 2, "--nope"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := shopWith(t, strings.Fields(tt.args)...)
			if got.code != tt.code {
				t.Errorf("exit code %d, want %d; it said %s%s", got.code, tt.code, got.out, got.err)
			}
			if !strings.Contains(got.out+got.err, tt.says) {
				t.Errorf("said %s%s, want %q in it", got.out, got.err, tt.says)
			}
			if tt.code == 2 && !strings.Contains(got.err, "--help") {
				t.Errorf("said %s, want where to look", got.err)
			}
			if strings.ContainsAny(got.out+got.err, "\r\x1b") {
				t.Errorf("said %q, want no control characters where there is no terminal", got.out+got.err)
			}
		})
	}
}

// TestHelpTeaches holds every command to an explanation and an example.
func TestHelpTeaches(t *testing.T) {
	for _, cmd := range append(command().Commands(), command()) {
		if cmd.Long == "" || cmd.Example == "" || cmd.Short == "" {
			t.Errorf("shop %s --help teaches nothing: it wants Short, Long and Example", cmd.Name())
		}
		for line := range strings.Lines(cmd.Example) {
			if strings.Contains(line, "\t") {
				t.Errorf("shop %s: example %q is indented by tabs", cmd.Name(), line)
			}
		}
	}
}

// TestInterruptedLoadReports presses Ctrl-C in the middle of a load: it says what it has done.
func TestInterruptedLoadReports(t *testing.T) {
	shop := openShop(t)
	report := filepath.Join(t.TempDir(), "load.json")
	cmd := exec.Command(buildShop(t), "load", "--addr", shop.url, "--orders", "1000000", "--concurrency", "2", "--report", report)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	operator := shop.as("operator@shop.example", "dovetail-operator")
	eventually(t, func() error { // somebody has ordered
		var list struct{ Items []struct{ ID string } }
		operator.want(http.StatusOK, operator.send("GET", "/ops/api/sagas?status=completed", nil, nil), &list)
		if len(list.Items) == 0 {
			return errNotYet
		}
		return nil
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitWrong {
		t.Errorf("exit code %d, want %d", code, exitWrong)
	}
	if !strings.Contains(out.String(), "orders accepted in") || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("said %q and %q, want the report, and that it was interrupted", &out, &errs)
	}
	if strings.ContainsAny(out.String()+errs.String(), "\r\x1b") {
		t.Errorf("said %q and %q, want no control characters in a pipe", &out, &errs)
	}
	var r load.Report
	text, err := os.ReadFile(report)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	ended := 0
	for _, n := range r.Ended {
		ended += n
	}
	if err != nil || len(r.Accepted) == 0 || ended+len(r.Left)+len(r.Unfinished) != len(r.Accepted) {
		t.Errorf("report %s (%v), want orders, each of them ended or left", text, err)
	}
}

var errNotYet = errorString("not yet")

type errorString string

func (e errorString) Error() string { return string(e) }

// TestOpenTells reads the line of JSON by which a program learns that the shop is open, and who may sign in.
func TestOpenTells(t *testing.T) {
	cmd := exec.Command(buildShop(t), "--json", "--data", t.TempDir(), "--listen", "127.0.0.1:0")
	said := tells(t, cmd)
	var open struct {
		Event, URL string
		ReadyIn    int64 `json:"ready_in_ms"`
		Accounts   []struct{ Email, Password, Role string }
	}
	err := said.Decode(&open)
	if err != nil || open.Event != "open" || open.ReadyIn < 1 || len(open.Accounts) != len(embedded.DemoAccounts) {
		t.Errorf("said %+v (%v), want where it is, after how long, and the demo accounts", open, err)
	}
	for _, a := range open.Accounts { // who they say they are
		if got := (&api{t, open.URL, ""}).as(a.Email, a.Password).account(); got.Role != a.Role {
			t.Errorf("%s is %q, want %q", a.Email, got.Role, a.Role)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var rest json.RawMessage
	if err := said.Decode(&rest); !errors.Is(err, io.EOF) {
		t.Errorf("said %s too (%v), want one line", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v, want exit code 0", err)
	}
}

// TestVerbsAgainstAShop runs each command against a shop that is well, and one that is not.
func TestVerbsAgainstAShop(t *testing.T) {
	noSettings(t)
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: 100 * time.Millisecond}).stocked()
	report := filepath.Join(data, "load.json")

	t.Run("load", func(t *testing.T) {
		got := shopWith(t, "load", "--addr", shop.url+"/", "--orders", "20", "--concurrency", "4", "--json", "--report", report)
		var r load.Report
		if err := json.Unmarshal([]byte(got.out), &r); err != nil || got.code != 0 || len(r.Accepted) == 0 || got.err != "" || strings.Contains(got.out, "null") {
			t.Errorf("exit code %d, said %s and %s (%v); want the report alone", got.code, got.out, got.err, err)
		}
	})
	t.Run("check", func(t *testing.T) {
		got := shopWith(t, "check", "--data", data, "--load", report, "--wait", "2m")
		if got.code != 0 || strings.Count(got.out, "ok  ") != 8 {
			t.Errorf("exit code %d, said %s%s; want 8 times ok", got.code, got.out, got.err)
		}
	})
	t.Run("chaos", func(t *testing.T) {
		got := shopWith(t, "chaos", "--addr", shop.url, "--data", data, "--for", "1s", "--kinds", chaos.Latency, "--seed", "7", "--json")
		var r chaos.StormReport
		if err := json.Unmarshal([]byte(got.out), &r); err != nil || got.code != 0 || r.Seed != 7 || !r.OK() || got.err != "" {
			t.Errorf("exit code %d, said %s and %s (%v); want the report alone", got.code, got.out, got.err, err)
		}
	})
	t.Run("chaos tells of a fault when it begins", func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		said, out := io.Pipe()
		cmd := command()
		cmd.SetArgs([]string{"chaos", "--addr", shop.url, "--data", data, "--for", "20m", "--kinds", chaos.Latency})
		cmd.SetOut(out)
		cmd.SetErr(t.Output())
		ended := make(chan error, 1)
		go func() {
			ended <- cmd.ExecuteContext(ctx)
			_ = out.Close()
		}()
		var told []string
		for lines := bufio.NewScanner(said); lines.Scan(); {
			told = append(told, lines.Text())
			interrupt() // long before it would end
		}
		if err := <-ended; exitCode(err) != exitWrong || !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v, want that it was interrupted", err)
		}
		last := len(told) - 1
		if last < 1 || !strings.Contains(told[0], chaos.Latency) || !strings.HasPrefix(told[last], strconv.Itoa(last)+" faults in ") || strings.Contains(told[last], " in 1200 s") {
			t.Errorf("said %q, want each fault once, and what it was in all, for as long as it was", told)
		}
	})
	t.Run("health", func(t *testing.T) {
		if got := shopWith(t, "health", "--listen", strings.TrimPrefix(shop.url, "http://")); got.code != 0 {
			t.Errorf("exit code %d, said %s; want 0", got.code, got.err)
		}
	})
	t.Run("doctor", func(t *testing.T) { testDoctorBesideAShop(t, shop, data) })
	t.Run("the token of the services is for the owner alone", func(t *testing.T) {
		info, err := os.Stat(filepath.Join(data, "service.token"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
		}
	})
	t.Run("check finds something", func(t *testing.T) {
		harm(t, filepath.Join(data, "inventory.db"), `UPDATE stock SET available = available - 1 WHERE product_id = 'p-050'`)
		got := shopWith(t, "check", "--data", data, "--wait", "0s", "--json")
		var all []struct {
			Number     int
			OK         bool
			Violations []string
		}
		if err := json.Unmarshal([]byte(got.out), &all); err != nil || got.code != 1 || len(all) != 8 || len(all[2].Violations) == 0 || all[2].OK || !all[0].OK || strings.Contains(got.out, "null") {
			t.Errorf("exit code %d, said %s%s (%v); want 1 and what is wrong with the stock", got.code, got.out, got.err, err)
		}
	})
	t.Run("on a terminal it shows what it waits for", func(t *testing.T) {
		terminal, err := exec.LookPath("script")
		if err != nil {
			testserver.Missing(t, "%v: it is in the package bsdutils", err)
		}
		cmd := exec.CommandContext(t.Context(), terminal, "--quiet", "--return", "--command", buildShop(t)+" check --wait 3s --data "+data, "/dev/null")
		cmd.Env = append(os.Environ(), "TERM=xterm", "COLUMNS=200")
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != exitWrong {
			t.Errorf("it ended with %v, want exit code %d", err, exitWrong)
		}
		if !bytes.Contains(out, []byte(" of 8 do not hold yet: ")) || !bytes.Contains(out, []byte("FAIL 3.")) {
			t.Errorf("said %q, want what it waits for, and then the result", out)
		}
	})
}
