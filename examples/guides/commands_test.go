// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"archive/zip"
	"bytes"
	"errors"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
)

// shell runs a script in a folder.
func shell(t *testing.T, dir, script string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

const module = "github.com/dovetail-go/dovetail"

// publish puts the root module, as it is here, into a folder that the go command takes for a module proxy.
func publish(t *testing.T, proxy, version string) {
	t.Helper()
	var packed bytes.Buffer
	w := zip.NewWriter(&packed)
	var goMod []byte
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			_, other := os.Stat(filepath.Join(name, "go.mod"))
			if rel != "." && (other == nil || strings.HasPrefix(entry.Name(), ".")) {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || filepath.Ext(name) != ".go" && rel != "go.mod" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if rel == "go.mod" {
			goMod = text
		}
		f, err := w.Create(module + "@" + version + "/" + filepath.ToSlash(rel))
		if err != nil {
			return err
		}
		_, err = f.Write(text)
		return err
	})
	dir := filepath.Join(proxy, module, "@v")
	if err := errors.Join(err, w.Close(), os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(dir, "list"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"list":            append(list, version+"\n"...),
		version + ".info": []byte(`{"Version": "` + version + `", "Time": "2026-01-02T03:04:05Z"}`),
		version + ".mod":  goMod,
		version + ".zip":  packed.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGet is somebody with a module of their own, who gets the library, uses it, and raises it when there is a new version.
func TestGet(t *testing.T) {
	dir, proxy := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	requires := func(want string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err != nil || !strings.Contains(string(text), want+"\n") {
			t.Errorf("go.mod is %s (%v), want %s in it", text, err, want)
		}
	}
	const before, after = "v0.98.0", "v0.99.0"
	publish(t, proxy, before)
	write("go.mod", "module example.com/user\n\ngo 1.26.0\n")
	env := []string{
		"GOPROXY=file://" + proxy, "GOMODCACHE=" + t.TempDir(), "GOFLAGS=-modcacherw -trimpath", "GOWORK=off",
		"GOENV=off", "GOSUMDB=off", "GOPRIVATE=", "GONOPROXY=", "GOTOOLCHAIN=local",
	}
	for _, s := range documents.Of(t) {
		switch s.Text {
		case "go get " + module:
			shell(t, dir, s.Text, env...)
			requires("require " + module + " " + before + " // indirect")
			write("user_test.go", `package user

import (
	"errors"
	"testing"

	"`+module+`/fault"
)

func TestUser(t *testing.T) {
	if err := fault.Permanent(errors.New("no")); !fault.IsPermanent(err) {
		t.Error(err)
	}
}
`)
			publish(t, proxy, after)
		case "go get " + module + "@latest":
			shell(t, dir, s.Text, env...)
			requires("require " + module + " " + after + " // indirect")
		case "go mod tidy":
			shell(t, dir, s.Text, env...)
			requires("require " + module + " " + after)
		case "go test ./...":
			if s.Block.File == "CONTRIBUTING.md" { // it is of this repository; all of it is what make test does
				shell(t, filepath.Join(root, "fault"), s.Text)
			} else if out := shell(t, dir, s.Text+" -v", env...); !strings.Contains(out, "--- PASS: TestUser") {
				t.Errorf("%s: %s, want its test to be run", s.Text, out)
			}
		default:
			t.Errorf("%v: nothing runs %s", s.Block, s.Text)
		}
	}
}

// TestServers starts, asks and stops servers with scripts of its own, so that nobody else's are stopped: of the five
// the one that is quickest.
func TestServers(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
			t.Fatal(err)
		}
		t.Skipf("%v: scripts/services up redis installs it", err)
	}
	clone := t.TempDir()
	if err := os.CopyFS(filepath.Join(clone, "scripts"), os.DirFS(filepath.Join(root, "scripts"))); err != nil {
		t.Fatal(err)
	}
	var script []string
	for _, s := range documents.Of(t) {
		switch s.Text {
		case "scripts/services up":
			script = append(script, s.Text+" redis")
		case "scripts/services down":
			script = append(script, s.Text+" --purge")
		case `eval "$(scripts/services env)"`:
			if s.Block.File == "CONTRIBUTING.md" { // elsewhere they have been started before
				script = append(script, s.Text, `[[ $DOVETAIL_REDIS_URL =~ redis://:(.*)@(.*):(.*)/ ]]`,
					`REDISCLI_AUTH=${BASH_REMATCH[1]} redis-cli -h "${BASH_REMATCH[2]}" -p "${BASH_REMATCH[3]}" ping`)
			}
		default:
			t.Errorf("%v: nothing runs %s", s.Block, s.Text)
		}
	}
	const own = "unset DOVETAIL_REDIS_URL DOVETAIL_PORT_BASE\n" // of whoever runs this test
	defer shell(t, clone, "scripts/services down --purge")      // if it fails in between
	if out := shell(t, clone, own+strings.Join(script, "\n")); !strings.Contains(out, "\nPONG\n") {
		t.Errorf("%s: %s, want an answer", script, out)
	}
	if _, err := os.Lstat(filepath.Join(clone, ".services")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left of the servers: %v", err)
	}
}

// TestMakeTest: what runs this test is the line itself. Here it is only looked at.
func TestMakeTest(t *testing.T) {
	for _, s := range documents.Of(t) {
		if s.Text != "make test" {
			t.Fatalf("%v: nothing runs %s", s.Block, s.Text)
		}
		gate, err := os.ReadFile(filepath.Join(root, ".ci", "run"))
		if err != nil || !slices.Contains(strings.Split(string(gate), "\n"), s.Text) {
			t.Errorf(".ci/run is %s (%v), want it to run %s", gate, err, s.Text)
		}
		if out := shell(t, root, "unset MAKEFLAGS MFLAGS MAKELEVEL\nmake -n "+strings.TrimPrefix(s.Text, "make ")); out != "scripts/test\n" {
			t.Errorf("%s does %s, want scripts/test", s.Text, out)
		}
	}
}

// TestDrawings finds what drawings name. An arrow is an import: of the package, or of its tests where it knows the other by an
// interface only.
func TestDrawings(t *testing.T) {
	for _, s := range documents.Of(t) {
		switch s.Block.File {
		case "README.md":
			for _, line := range s.Block.Lines {
				names, _, _ := strings.Cut(strings.TrimSpace(line), "   ")
				below := ""
				for _, name := range strings.Fields(names) {
					if name == "^" || name == "<-" {
						continue
					}
					dir := filepath.Join(root, name)
					if name == "balance" {
						dir = filepath.Join(root, "discovery", name)
					}
					imported := imports(t, dir)
					if strings.Contains(names, "<-") && below != "" && !slices.ContainsFunc(imported, func(i string) bool { return i == module+"/"+below || i == module+"/discovery/"+below }) {
						t.Errorf("%v: %s imports %v, want %s among them", s.Block, name, imported, below)
					}
					below = name
				}
			}
		case "CONTRIBUTING.md":
			dir := ""
			for _, line := range s.Block.Lines {
				name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
				if dir == "" {
					dir, name = name, ""
				}
				if _, err := os.Stat(filepath.Join(root, dir, name)); err != nil {
					t.Errorf("%v: %v", s.Block, err)
				}
			}
		default:
			t.Errorf("%v: nobody looks at this drawing", s.Block)
		}
	}
}

// imports are those of a folder's package and its tests.
func imports(t *testing.T, dir string) (all []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s is no package (%v)", dir, err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			all = append(all, strings.Trim(spec.Path.Value, `"`))
		}
	}
	return all
}
