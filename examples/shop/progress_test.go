// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// TestProgressOnATerminal runs a load where standard error is a terminal: a bar goes to its end, and the report has lines of its
// own after it.
func TestProgressOnATerminal(t *testing.T) {
	terminal, err := exec.LookPath("script")
	if err != nil {
		testserver.Missing(t, "%v: it is in the package bsdutils", err)
	}
	noSettings(t)
	shop := openShop(t).stocked()
	cmd := exec.CommandContext(t.Context(), terminal, "--quiet", "--return", "--command", buildShop(t)+" load --orders 20 --concurrency 4 --addr "+shop.url, "/dev/null")
	cmd.Env = append(os.Environ(), "TERM=xterm", "COLUMNS=200")
	out, err := cmd.CombinedOutput()
	bar, report, found := strings.Cut(string(out), "(20/20, ")
	if err != nil || !found || !strings.Contains(bar, "orders 100% |") || strings.Contains(bar, "accepted") {
		t.Errorf("it ended with %v and said %q, want a bar that goes to 20 of 20", err, out)
	}
	if _, lines, _ := strings.Cut(report, "\n"); !strings.Contains(lines, "orders accepted in ") {
		t.Errorf("after the bar it said %q, want a report on lines of its own", report)
	}
}
