// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestProgramsPrintWhatTheySay runs every small program and compares what it prints with the comment
// at its end, as the go command does with example functions.
func TestProgramsPrintWhatTheySay(t *testing.T) {
	t.Parallel()
	programs, err := filepath.Glob("*/main.go")
	if err != nil || len(programs) < 2 {
		t.Fatalf("found %v (%v), want the programs", programs, err)
	}
	for _, file := range programs {
		dir := filepath.Dir(file)
		if dir == "shop" {
			continue // has tests of its own
		}
		t.Run(dir, func(t *testing.T) {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, comment, ok := strings.Cut(string(source), "\n// Output:\n")
			if !ok {
				t.Fatal("there is no // Output: at the end")
			}
			var want []string
			for line := range strings.Lines(comment) {
				want = append(want, strings.TrimSpace(strings.TrimPrefix(line, "//")))
			}
			got, err := exec.CommandContext(t.Context(), "go", "run", "./"+dir).CombinedOutput()
			if err != nil {
				t.Fatalf("go run ./%s: %v\n%s", dir, err, got)
			}
			if text := strings.TrimSpace(string(got)); text != strings.Join(want, "\n") {
				t.Errorf("it prints\n%s\nwant\n%s", text, strings.Join(want, "\n"))
			}
		})
	}
}
