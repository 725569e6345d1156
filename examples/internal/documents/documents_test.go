// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package documents

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Whoever shows something new has it run by a test.
func TestEverySnippetIsRun(t *testing.T) {
	unused := map[string]bool{}
	for text := range runs {
		unused[text] = true
	}
	for _, s := range shown(t) {
		if runs[s.Text] == "" {
			t.Errorf("%v: no test runs %q: have one ask for it with documents.Of, and name it in the table", s.Block, s.Text)
		}
		delete(unused, s.Text)
	}
	for text := range unused {
		t.Errorf("no document shows %q any more: take it out of the table, and out of %s", text, runs[text])
	}
	asks := map[string][]string{}
	for text := range runs {
		for _, test := range tests(text) {
			dir, name, _ := strings.Cut(test, " ")
			if asks[dir] == nil {
				asks[dir] = asking(t, filepath.Join(Root(t), dir))
			}
			if !slices.Contains(asks[dir], name) {
				t.Errorf("%s: no function of this name has documents.Of(t)", test)
			}
		}
	}
}

// asking are the tests in a folder that call Of.
func asking(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no tests: %v", dir, err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Of" {
						if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "documents" {
							names = append(names, f.Name.Name)
						}
					}
				}
				return true
			})
		}
	}
	return names
}

func TestBlocks(t *testing.T) {
	text := []string{
		"# Title", "```sh", "make test   # all of it", "# only words", "", "X='a b' go vet", "```",
		"  ````text name of it", "```", "inside", "````", "```go pkg/name", "code()", "```", "~~~", "plain", "~~~",
	}
	var got []string
	for _, b := range Blocks(t, "a.md", text) {
		for _, s := range b.snippets() {
			got = append(got, b.String()+" "+s.Text)
		}
	}
	want := []string{"a.md:2 make test", "a.md:2 X='a b' go vet", "a.md:8 text of a.md", "a.md:15  of a.md"}
	if !slices.Equal(got, want) {
		t.Errorf("snippets are %q, want %q", got, want)
	}
}
