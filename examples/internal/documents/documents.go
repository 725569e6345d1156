// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package documents is what README.md, CONTRIBUTING.md and the guides show in fenced blocks, and which test runs it.
//
// A block of Go is a piece of a test: see package guides. Everything else is given to a test in the table of this package,
// the blocks for a shell line by line, and that test asks for it with [Of]. So whoever shows something new is told
// by the tests to have it run.
package documents

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Block is a fenced block of Markdown.
type Block struct {
	File       string // from the repository's root, with slashes
	First      int    // index of the first line after the fence
	Lang, Name string // the words behind the fence
	Lines      []string
}

func (b Block) String() string { return fmt.Sprintf("%s:%d", b.File, b.First) }

// Root returns the repository's root, above the working directory.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for ; err == nil && filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
	}
	t.Fatalf("not in the repository (%v)", err)
	return ""
}

// Files returns the names of all Markdown below root that is the project's own, sorted.
func Files(t testing.TB, root string) (names []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, entry fs.DirEntry, err error) error {
		switch base := path.Base(name); {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (base[0] == '.' || base == "node_modules" || base == "vendor" || base == "testdata"):
			return fs.SkipDir
		case path.Ext(name) == ".md":
			names = append(names, name)
		}
		return nil
	})
	if err != nil || len(names) == 0 {
		t.Fatalf("found %v (%v), want the documents", names, err)
	}
	return names
}

// fence is the line that begins or ends a block.
var fence = regexp.MustCompile("^(`{3,}|~{3,})\\s*([^`\\s]*)\\s*([^`]*)$")

// Blocks returns the fenced blocks in the lines of a file.
func Blocks(t testing.TB, file string, lines []string) (found []Block) {
	t.Helper()
	open := ""
	for i, line := range lines {
		m := fence.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case open == "" && m != nil:
			open = m[1]
			found = append(found, Block{File: file, First: i + 1, Lang: m[2], Name: strings.TrimSpace(m[3])})
		case open != "" && m != nil && m[1] == open && m[2] == "":
			open = ""
		case open != "":
			last := &found[len(found)-1]
			last.Lines = append(last.Lines, line)
		}
	}
	if open != "" {
		t.Errorf("%v: the block does not end", found[len(found)-1])
	}
	return found
}

// Snippet is a part of a block that a test runs: a command line, or all of it.
type Snippet struct {
	// Text is a line of a block for a shell without its comment, and of another block "LANGUAGE of FILE".
	Text  string
	Block Block
}

func (b Block) snippets() (all []Snippet) {
	switch b.Lang {
	case "go":
		return nil // package guides holds it to the code
	case "sh":
		for _, line := range b.Lines {
			if line, _, _ = strings.Cut(" "+line, " #"); strings.TrimSpace(line) != "" {
				all = append(all, Snippet{strings.TrimSpace(line), b})
			}
		}
		return all
	}
	return []Snippet{{b.Lang + " of " + b.File, b}}
}

// shown are all snippets in the order of the documents.
func shown(t testing.TB) (all []Snippet) {
	t.Helper()
	root := Root(t)
	for _, name := range Files(t, root) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range Blocks(t, name, strings.Split(string(text), "\n")) {
			all = append(all, b.snippets()...)
		}
	}
	return all
}

// tests are those that a snippet is given to.
func tests(text string) []string { return strings.Split(runs[text], ", ") }

// Of returns the snippets that are given to this test, in the order of the documents and as often as they show them. It has to
// be asked in the folder of the test, and the test has to fail for a snippet that it does not know.
func Of(t testing.TB) (given []Snippet) {
	t.Helper()
	root := Root(t)
	dir, err := os.Getwd()
	if err == nil {
		dir, err = filepath.Rel(root, dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shown(t) {
		if slices.Contains(tests(s.Text), filepath.ToSlash(dir)+" "+t.Name()) {
			given = append(given, s)
		}
	}
	if len(given) == 0 {
		t.Fatal("no document shows anything that is given to this test")
	}
	return given
}
