// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/zip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// repository writes files, as a clone has them, and finds their modules.
func repository(t *testing.T, files map[string]string) []*mod {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "git", "-C", dir, "init", "-q").CombinedOutput(); err != nil {
		t.Fatalf("git init: %v\n%s", err, out)
	}
	modules, err := find(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return modules
}

const (
	root = "module example.com/house\n\ngo 1.26.0\n"
	kit  = "module example.com/house/dbkit\n\ngo 1.26.0\n\nrequire (\n\texample.com/house v0.1.0\n\texample.org/db v1.2.3\n)\n"
)

func TestGoodModulesKeepTheRules(t *testing.T) {
	modules := repository(t, map[string]string{
		"go.mod":                       root,
		"dbkit/go.mod":                 kit,
		"examples/go.mod":              "module example.com/house/examples\n\ngo 1.26.0\n\nrequire example.com/house/dbkit v0.1.0\n\nreplace example.org/db => ../db\n",
		"tools/consul/go.mod":          "module example.com/house/tools/consul\n\ngo 1.24.0\n",
		"house/testdata/broken/go.mod": "module nothing\n",
	})
	if err := check(modules); err != nil {
		t.Error(err)
	}
	var paths []string
	for _, m := range released(modules) {
		paths = append(paths, m.path())
	}
	if want := []string{"example.com/house", "example.com/house/dbkit"}; !slices.Equal(paths, want) {
		t.Errorf("released = %q, want %q", paths, want)
	}
}

func TestBrokenRules(t *testing.T) {
	for name, test := range map[string]struct {
		file, text string
		want       string
	}{
		"a replace line":             {"dbkit/go.mod", kit + "\nreplace example.com/house => ../\n", "replaces example.com/house"},
		"an exclude line":            {"dbkit/go.mod", kit + "\nexclude example.org/db v1.2.4\n", "excludes example.org/db"},
		"a tool line":                {"dbkit/go.mod", kit + "\ntool example.org/db/cmd\n", "has tool lines"},
		"a toolchain line":           {"dbkit/go.mod", kit + "\ntoolchain go1.26.1\n", "has a toolchain line"},
		"another go line":            {"dbkit/go.mod", strings.Replace(kit, "1.26.0", "1.26.1", 1), "the go line is not 1.26.0"},
		"another path":               {"dbkit/go.mod", strings.Replace(kit, "house/dbkit", "dbkit", 1), "want example.com/house/dbkit"},
		"an unreleased module":       {"dbkit/go.mod", kit + "\nrequire example.com/house/examples v0.1.0\n", "which is never released"},
		"a module that is not here":  {"dbkit/go.mod", kit + "\nrequire example.com/house/gone v0.1.0\n", "which is not here"},
		"a version out of step":      {"examples/go.mod", "module example.com/house/examples\n\ngo 1.26.0\n\nrequire example.com/house v0.2.0\n", "all modules have one version"},
		"a requirement of the root":  {"go.mod", root + "\nrequire example.org/assert v1.0.0\n", "one module in their graph"},
		"a checksum of ours":         {"dbkit/go.sum", "example.com/house v0.1.0 h1:AAAA=\n", "go.sum has lines for our own modules"},
		"a checksum of another kit":  {"dbkit/go.sum", "example.com/house/otherkit v0.1.0 h1:AAAA=\n", "go.sum has lines for our own modules"},
		"a module without a go line": {"dbkit/go.mod", "module example.com/house/dbkit\n", "the go line is not 1.26.0"},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{
				"go.mod":          root,
				"dbkit/go.mod":    kit,
				"examples/go.mod": "module example.com/house/examples\n\ngo 1.26.0\n",
			}
			files[test.file] = test.text
			err := check(repository(t, files))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("check = %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestPackHoldsWhatAProxyWouldServe(t *testing.T) {
	modules := repository(t, map[string]string{
		"go.mod":          root,
		"LICENSE":         "free",
		".gitignore":      "/data\n",
		"data/secret":     "not to be packed",
		"fault/fault.go":  "package fault\n",
		"dbkit/go.mod":    kit,
		"dbkit/db.go":     "package dbkit\n",
		"dbkit/go.sum":    "example.org/db v1.2.3 h1:AAAA=\n",
		"examples/go.mod": "module example.com/house/examples\n\ngo 1.26.0\n",
		"examples/x.go":   "package x\n",
	})
	proxy := t.TempDir()
	const version = "v0.99.0-check.1"
	want := map[string][]string{
		"example.com/house":       {".gitignore", "LICENSE", "fault/fault.go", "go.mod"},
		"example.com/house/dbkit": {"LICENSE", "db.go", "go.mod", "go.sum"},
	}
	for _, m := range released(modules) {
		if _, _, err := pack(m, modules, proxy, version); err != nil {
			t.Fatal(err)
		}
		base := filepath.Join(proxy, m.path(), "@v", version)
		packed, err := zip.OpenReader(base + ".zip")
		if err != nil {
			t.Fatal(err)
		}
		defer packed.Close()
		var names []string
		for _, f := range packed.File {
			name := strings.TrimPrefix(f.Name, m.path()+"@"+version+"/")
			names = append(names, name)
			if name != "go.mod" {
				continue
			}
			inside := read(t, f)
			beside, err := os.ReadFile(base + ".mod")
			if err != nil {
				t.Fatal(err)
			}
			if inside != string(beside) {
				t.Errorf("%s: go.mod in the zip differs from the one beside it", m.path())
			}
			if m.rel == "dbkit" && !strings.Contains(inside, "example.com/house "+version) {
				t.Errorf("dbkit does not require the root at the trial version:\n%s", inside)
			}
		}
		slices.Sort(names)
		if !slices.Equal(names, want[m.path()]) {
			t.Errorf("%s packs %q, want %q", m.path(), names, want[m.path()])
		}
	}
}

func read(t *testing.T, f *zip.File) string {
	t.Helper()
	r, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestPlayableExampleIsAWholeProgram(t *testing.T) {
	dir := t.TempDir()
	const text = `package x_test

import "fmt"

func Example_silent() { fmt.Println(0) }

func Example() {
	fmt.Println(1)
	// Output: 1
}
`
	if err := os.WriteFile(filepath.Join(dir, "example_test.go"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	example, program, err := playable(dir)
	if err != nil {
		t.Fatal(err)
	}
	if example == nil || example.Output != "1\n" || !strings.Contains(string(program), "package main") {
		t.Errorf("playable = %+v\n%s", example, program)
	}
}
