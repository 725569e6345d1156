// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package deptest reads all Go source of this repository and checks what its
// packages import, document and show by example. The rules themselves are in
// house_test.go in the root; here is how they are checked.
//
// Source is parsed and not built: one run covers every module, needs nothing
// installed, and takes about a second.
package deptest

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Repo is the source of a repository of several modules.
type Repo struct {
	Modules []*Module // the root module first, then by path
}

// Module is one go.mod and the packages below it that no other go.mod takes over.
type Module struct {
	Path     string // import path
	Dir      string // relative to the repository, with slashes; "." is the root module
	Packages []*Package
}

// Package is one directory of Go files, tests included.
type Package struct {
	Path  string // import path
	Dir   string // relative to the repository, with slashes
	Name  string // without _test; empty where a directory holds only external tests
	Files []*File
}

// File is one parsed file.
type File struct {
	Name string // relative to the repository, with slashes
	Test bool   // a _test.go file
	AST  *ast.File

	fset *token.FileSet
}

// Load parses the repository at dir. Directories that the go command ignores
// (testdata, vendor, a leading dot or underscore) and node_modules are left out.
func Load(dir string) (*Repo, error) {
	repo := new(Repo)
	packages := map[string]*Package{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		switch {
		case d.IsDir():
			if base := d.Name(); rel != "." && (base == "testdata" || base == "vendor" || base == "node_modules" || strings.ContainsAny(base[:1], "._")) {
				return fs.SkipDir
			}
		case d.Name() == "go.mod":
			m, err := readModule(name, path.Dir(rel))
			if err != nil {
				return err
			}
			repo.Modules = append(repo.Modules, m)
		case strings.HasSuffix(rel, ".go"):
			fset := token.NewFileSet()
			tree, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			p := packages[path.Dir(rel)]
			if p == nil {
				p = &Package{Dir: path.Dir(rel)}
				packages[p.Dir] = p
			}
			f := &File{Name: rel, Test: strings.HasSuffix(rel, "_test.go"), AST: tree, fset: fset}
			p.Files = append(p.Files, f)
			if !f.Test || !strings.HasSuffix(tree.Name.Name, "_test") {
				p.Name = tree.Name.Name
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(repo.Modules, func(a, b *Module) int { return cmp.Compare(a.Dir, b.Dir) })
	if len(repo.Modules) == 0 || repo.Modules[0].Dir != "." {
		return nil, fmt.Errorf("deptest: no go.mod in %s", dir)
	}
	for _, p := range packages {
		m := repo.moduleOf(p.Dir)
		p.Path = path.Join(m.Path, strings.TrimPrefix(p.Dir, m.Dir))
		if m.Dir == "." {
			p.Path = path.Join(m.Path, p.Dir)
		}
		m.Packages = append(m.Packages, p)
	}
	for _, m := range repo.Modules {
		slices.SortFunc(m.Packages, func(a, b *Package) int { return cmp.Compare(a.Dir, b.Dir) })
	}
	return repo, nil
}

func readModule(name, dir string) (*Module, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "module "); ok {
			return &Module{Path: strings.TrimSpace(rest), Dir: dir}, nil
		}
	}
	return nil, errors.New("deptest: no module line in " + name)
}

// moduleOf returns the module with the deepest directory above dir.
func (r *Repo) moduleOf(dir string) *Module {
	best := r.Modules[0]
	for _, m := range r.Modules[1:] {
		if within(dir, m.Dir) && len(m.Dir) > len(best.Dir) {
			best = m
		}
	}
	return best
}

// Root is the module in the repository's root.
func (r *Repo) Root() *Module { return r.Modules[0] }

// Imports calls yield with every import of the package's files and collects what
// it complains about, each with the place of the import.
func (p *Package) Imports(complain func(f *File, imported string) string) []string {
	var problems []string
	for _, f := range p.Files {
		for _, spec := range f.AST.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				continue // the parser has accepted it; the compiler will not
			}
			if text := complain(f, imported); text != "" {
				problems = append(problems, f.at(spec.Pos())+text)
			}
		}
	}
	return problems
}

// Standard reports whether an import path belongs to the standard library: its
// first element has no dot.
func Standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}

// Within reports whether an import path is a module's or package's own or below it.
func Within(imported, parent string) bool { return within(imported, parent) }

func within(name, parent string) bool {
	return name == parent || strings.HasPrefix(name, parent+"/")
}

// at is the place of a problem, as editors and terminals make it a link.
func (f *File) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d: ", f.Name, f.fset.Position(pos).Line)
}
