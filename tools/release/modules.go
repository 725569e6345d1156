// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
)

// goVersion is the go line of every module: the oldest Go that users may have.
const goVersion = "1.26.0"

// Modules in these directories are never released (docs/decisions/002).
var unreleased = []string{"bench", "chaos", "conformance", "examples", "tools"}

// mod is one module of the repository.
type mod struct {
	dir   string // absolute
	rel   string // relative to the repository, with slashes; "." is the root module
	file  *modfile.File
	sum   string   // the text of its go.sum
	files []string // its files, relative to dir, with slashes
	// license is the repository's, for modules that have none of their own.
	license string
}

func (m *mod) path() string { return m.file.Module.Mod.Path }

func (m *mod) released() bool {
	first, _, _ := strings.Cut(m.rel, "/")
	return !slices.Contains(unreleased, first)
}

func released(modules []*mod) []*mod {
	return slices.DeleteFunc(slices.Clone(modules), func(m *mod) bool { return !m.released() })
}

// find reads the modules of a repository, the root first. Their files are those
// that git has or would add: what a clone has, and what a proxy would pack.
func find(ctx context.Context, root string) ([]*mod, error) {
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	var names []string
	for name := range strings.SplitSeq(string(out), "\x00") {
		info, err := os.Lstat(filepath.Join(root, name))
		if name == "" || err != nil || !info.Mode().IsRegular() {
			continue // deleted but not committed, or a link, which proxies leave out
		}
		if slices.Contains(strings.Split(name, "/"), "testdata") && path.Base(name) == "go.mod" {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	names = slices.Compact(names)

	var modules []*mod
	for _, name := range names {
		if path.Base(name) != "go.mod" || strings.HasPrefix(path.Dir(name), "tools/") {
			continue // those below tools only build servers
		}
		m := &mod{rel: path.Dir(name), dir: filepath.Join(root, path.Dir(name))}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, err
		}
		if m.file, err = modfile.Parse(name, text, nil); err != nil {
			return nil, err
		}
		if m.file.Module == nil {
			return nil, fmt.Errorf("%s has no module line", name)
		}
		sum, err := os.ReadFile(filepath.Join(m.dir, "go.sum"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		m.sum = string(sum)
		m.license = filepath.Join(root, "LICENSE")
		modules = append(modules, m)
	}
	slices.SortFunc(modules, func(a, b *mod) int { return cmp.Compare(a.rel, b.rel) })
	if len(modules) == 0 || modules[0].rel != "." {
		return nil, fmt.Errorf("no go.mod in %s", root)
	}
	for _, name := range names {
		owner := modules[0]
		for _, m := range modules[1:] {
			if strings.HasPrefix(name, m.rel+"/") && len(m.rel) > len(owner.rel) {
				owner = m
			}
		}
		if owner.rel != "." {
			name = strings.TrimPrefix(name, owner.rel+"/")
		}
		owner.files = append(owner.files, name)
	}
	return modules, nil
}

// check holds the go.mod files to the rules and reports all that they break.
func check(modules []*mod) error {
	var problems []error
	bad := func(m *mod, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", path.Join(m.rel, "go.mod"), fmt.Sprintf(format, args...)))
	}
	root := modules[0]
	ours := map[string]*mod{}
	for _, m := range modules {
		ours[m.path()] = m
	}
	if len(root.file.Require) > 0 {
		bad(root, "requires %s; users of one block want one module in their graph", root.file.Require[0].Mod)
	}
	version := "" // of our own modules, the same in all go.mod files
	for _, m := range modules {
		if want := path.Join(root.path(), m.rel); m.rel != "." && m.path() != want {
			bad(m, "module %s, want %s", m.path(), want)
		}
		if m.file.Go == nil || m.file.Go.Version != goVersion {
			bad(m, "the go line is not %s", goVersion)
		}
		if m.file.Toolchain != nil {
			bad(m, "has a toolchain line; users choose their own")
		}
		if strings.Contains(m.sum, root.path()+" ") || strings.Contains(m.sum, root.path()+"/") {
			bad(m, "go.sum has lines for our own modules, whose content changes until they are released")
		}
		for _, r := range m.file.Require {
			if r.Mod.Path != root.path() && !strings.HasPrefix(r.Mod.Path, root.path()+"/") {
				continue
			}
			if version == "" {
				version = r.Mod.Version
			}
			if r.Mod.Version != version {
				bad(m, "requires %s, others require %s; all modules have one version", r.Mod, version)
			}
			switch other := ours[r.Mod.Path]; {
			case other == nil:
				bad(m, "requires %s, which is not here", r.Mod.Path)
			case m.released() && !other.released():
				bad(m, "requires %s, which is never released", r.Mod.Path)
			}
		}
		if !m.released() {
			continue
		}
		for _, r := range m.file.Replace {
			bad(m, "replaces %s; replace lines of a dependency are ignored, so users would build something else", r.Old.Path)
		}
		for _, e := range m.file.Exclude {
			bad(m, "excludes %s; exclude lines of a dependency are ignored", e.Mod)
		}
		if len(m.file.Tool) > 0 {
			bad(m, "has tool lines; tools belong to the tools module")
		}
	}
	return errors.Join(problems...)
}

// trial is the go.mod of m with our own modules required at version.
func trial(m *mod, modules []*mod, version string) ([]byte, error) {
	text, err := m.file.Format()
	if err != nil {
		return nil, err
	}
	f, err := modfile.Parse("go.mod", bytes.Clone(text), nil)
	if err != nil {
		return nil, err
	}
	for _, other := range modules {
		for _, r := range f.Require {
			if r.Mod.Path == other.path() {
				if err := f.AddRequire(other.path(), version); err != nil {
					return nil, err
				}
				break
			}
		}
	}
	return f.Format()
}
