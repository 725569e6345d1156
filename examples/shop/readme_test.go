// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
)

// commandsOf are the lines of a document's shell blocks that run the shop, without their comments.
func commandsOf(t *testing.T, path string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	shell := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "```") {
			shell = strings.TrimSpace(line) == "```sh"
		}
		line, _, _ = strings.Cut(line, " #")
		if args, ok := strings.CutPrefix(strings.TrimSpace(line), "go run ./examples/shop"); ok && shell {
			all = append(all, strings.TrimSpace(args))
		}
	}
	return all
}

// TestReadme runs the commands that both READMEs show, one after the other as a reader does, in a folder of the reader's
// and beside a shop that is open there. Only where the shop listens, how much there is and how long it takes is said otherwise.
func TestReadme(t *testing.T) {
	noSettings(t)
	lines := append(commandsOf(t, filepath.Join("..", "..", "README.md")), commandsOf(t, "README.md")...)
	t.Chdir(t.TempDir())
	shop := openShopWith(t, embedded.Config{Data: "shop-data", Packing: 100 * time.Millisecond}).stocked()
	otherwise := map[string][]string{
		"load":   {"--addr", shop.url, "--orders", "20"},
		"chaos":  {"--addr", shop.url, "--for", "1s", "--kinds", chaos.Latency},
		"check":  {"--wait", "2m"},
		"doctor": {"--listen", strings.TrimPrefix(shop.url, "http://"), "--timeout", "2m"},
	}
	ran := map[string]bool{} // lines, which both may show, and commands
	for _, line := range lines {
		args := strings.Fields(line)
		if len(args) == 0 || ran[line] || strings.HasPrefix(args[0], "-") { // the shop itself, of which there is one; and that on real servers
			continue
		}
		more, known := otherwise[args[0]]
		if !known {
			t.Errorf("shop %s: nothing runs it", line)
			continue
		}
		ran[line], ran[args[0]] = true, true
		t.Run(line, func(t *testing.T) {
			run := func(t *testing.T, try func() error) {
				if err := try(); err != nil {
					t.Error(err)
				}
			}
			if args[0] == "doctor" {
				run = eventually // what was broken on purpose takes a moment to recover
			}
			run(t, func() error {
				if got := shopWith(t, append(args, more...)...); got.code != 0 {
					return fmt.Errorf("exit code %d, said %s%s", got.code, got.out, got.err)
				}
				return nil
			})
		})
	}
	for verb := range otherwise {
		if !ran[verb] {
			t.Errorf("no README shows shop %s", verb)
		}
	}
}
