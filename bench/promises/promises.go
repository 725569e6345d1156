// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package promises holds our guards and their peers to the same suite, and makes the table of
// who keeps which promise.
package promises

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/resilience/resiliencetest"
)

// Peers lists, for each suite, who is held to it, as the test of this package names them.
var Peers = []struct {
	Suite string
	Names []string
}{
	{"retry", []string{"dovetail", "failsafe", "backoff", "avast", "sethvargo"}},
	{"breaker", []string{"dovetail", "failsafe", "gobreaker"}},
	{"bulkhead", []string{"dovetail", "failsafe", "x-sync"}},
	{"ratelimit", []string{"dovetail", "failsafe", "x-time"}},
	{"keyed", []string{"dovetail"}},
	{"transport", []string{"dovetail", "failsafe", "retryablehttp"}},
}

// Report runs every promise for every peer, each in a process of its own because a broken
// promise may hang, and writes the table as Markdown. It runs in the folder above
// this package.
func Report(ctx context.Context, _, w io.Writer, _ int, _ time.Duration) error {
	tmp, err := os.MkdirTemp("", "promises")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	binary := filepath.Join(tmp, "promises.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, ".")
	build.Dir = "promises"
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	fmt.Fprint(w, "## Who keeps which promise\n\n`+` kept, `-` broken, empty: does not have it. Each promise is a subtest of resiliencetest.\n")
	for _, s := range Peers {
		fmt.Fprintf(w, "\n### %s\n\n| promise | %s |\n|---|%s\n", s.Suite, strings.Join(s.Names, " | "), strings.Repeat(":-:|", len(s.Names)))
		for _, p := range resiliencetest.Promises() {
			if p.Suite != s.Suite {
				continue
			}
			row := []string{p.Text}
			for _, name := range s.Names {
				mark, err := hold(ctx, binary, s.Suite, name, p.Text)
				if err != nil {
					return err
				}
				row = append(row, mark)
			}
			fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		}
	}
	fmt.Fprintln(w)
	return nil
}

// hold runs one promise for one peer.
func hold(ctx context.Context, binary, suite, name, promise string) (mark string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	leaf := regexp.QuoteMeta(strings.ReplaceAll(promise, " ", "_"))
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.timeout=20s", "-test.run=^TestPromises$/^"+suite+"$/^"+name+"$/^"+leaf+"$")
	cmd.Env = append(os.Environ(), "BENCH_PEERS=1")
	out, err := cmd.CombinedOutput()
	ran := strings.Contains(string(out), "=== RUN   TestPromises/"+suite+"/"+name+"/")
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		return "", fmt.Errorf("%s/%s/%s: %w", suite, name, promise, err)
	case err != nil:
		return "-", nil
	case !ran:
		return "", fmt.Errorf("%s/%s/%s: no such subtest", suite, name, promise)
	// In virtual time a skipped subtest is shown as passed.
	case strings.Contains(string(out), "--- SKIP: "), strings.Contains(string(out), ": not supported\n"):
		return "", nil
	}
	return "+", nil
}
