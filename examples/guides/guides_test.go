// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
)

var update = flag.Bool("update", false, "write the snippets of the code into the Markdown")

// root is the repository's root, seen from here.
const root = "../.."

// snippets returns the marked pieces of code by name, without the indentation that they share.
func snippets(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != root && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "node_modules" || entry.Name() == "testdata"):
			return fs.SkipDir
		case !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		open := ""
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\r\n")
			marker := strings.TrimSpace(line)
			switch title, begins := strings.CutPrefix(marker, "// snippet: "); {
			case begins && open != "":
				t.Errorf("%s: snippet %s begins within %s", name, title, open)
			case begins && found[title] != nil:
				t.Errorf("%s: there is another snippet %s", name, title)
			case begins:
				open, found[title] = title, []string{}
			case open != "" && marker == "// end":
				found[open] = dedent(found[open])
				open = ""
			case open != "":
				found[open] = append(found[open], line)
			}
		}
		if open != "" {
			t.Errorf("%s: snippet %s does not // end", name, open)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// dedent takes off the tabs that all lines begin with, and empty lines at both ends.
func dedent(lines []string) []string {
	shared := -1
	for _, line := range lines {
		if tabs := len(line) - len(strings.TrimLeft(line, "\t")); line != "" && (shared < 0 || tabs < shared) {
			shared = tabs
		}
	}
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = line[min(len(line), max(shared, 0)):]
	}
	for len(out) > 0 && out[0] == "" {
		out = out[1:]
	}
	for len(out) > 0 && out[len(out)-1] == "" {
		out = out[:len(out)-1]
	}
	return out
}

// Whoever copies from a guide gets what was compiled and run.
func TestSnippetsAreTheCode(t *testing.T) {
	code := snippets(t)
	shown := map[string]bool{}
	for _, name := range documents.Files(t, root) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		found := documents.Blocks(t, name, lines)
		for _, b := range slices.Backward(found) { // an update moves only what is behind it
			if b.Lang != "go" {
				continue
			}
			want, ok := code[b.Name]
			switch {
			case b.Name == "":
				t.Errorf("%v: a block of Go names no snippet: put its code between // snippet: NAME and // end into a test, and write ```go NAME", b)
			case !ok:
				t.Errorf("%v: no test has the snippet %s", b, b.Name)
			case slices.Equal(b.Lines, want):
			case *update:
				lines = slices.Replace(lines, b.First, b.First+len(b.Lines), want...)
			default:
				t.Errorf("%v: the snippet %s is now\n%s\nto take it over: go test ./examples/guides -run Snippets -update", b, b.Name, strings.Join(want, "\n"))
			}
			shown[b.Name] = true
		}
		if after := strings.Join(lines, "\n"); *update && after != string(text) {
			if err := os.WriteFile(filepath.Join(root, name), []byte(after), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s is up to date now", name)
		}
	}
	for name := range code {
		if !shown[name] {
			t.Errorf("no guide shows the snippet %s", name)
		}
	}
}
