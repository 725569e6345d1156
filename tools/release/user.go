// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/doc"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A user has a machine on which dovetail exists only as the packed modules.
type user struct {
	work    string
	env     []string
	module  string // our root module
	version string // the trial version
}

// newUser points the go command at the packed modules first, then at what is
// downloaded already, then at the proxy of whoever runs this. A module cache of
// its own keeps the trial version out of everybody else's.
func newUser(ctx context.Context, work, proxy, module, version string) (*user, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOPROXY", "GOMODCACHE", "GONOSUMDB", "GOSUMDB", "GOCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	lines := strings.Split(string(out), "\n")
	upstream, cache, nosum, sumdb, build := lines[0], lines[1], lines[2], lines[3], lines[4]
	owner := path.Dir(module)
	if nosum != "" {
		owner += "," + nosum
	}
	env := append(os.Environ(),
		"GOWORK=off",
		"GOFLAGS=-mod=mod -modcacherw -trimpath", // trimpath: compiled packages are found again by the next run
		"GOPROXY=file://"+filepath.ToSlash(proxy)+",file://"+filepath.ToSlash(filepath.Join(cache, "cache", "download"))+","+upstream,
		"GOSUMDB="+sumdb,
		"GONOSUMDB="+owner,
		// Not "none": any value makes the go command look for a nested module without a
		// proxy first, where it finds the root module in its cache and gives up.
		"GOENV=off", "GOPRIVATE=", "GONOPROXY=",
		"GOCACHE="+build,
		"GOMODCACHE="+filepath.Join(work, "modcache"),
		"GOTOOLCHAIN=local",
		"DOVETAIL_REQUIRE_SERVICES=", // an example that needs a server may go without here
	)
	return &user{work: work, env: env, module: module, version: version}, nil
}

// start makes a fresh module and returns its directory.
func (u *user) start(ctx context.Context, name string) (string, error) {
	dir := filepath.Join(u.work, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	_, err := u.run(ctx, dir, "mod", "init", "example.com/"+name)
	return dir, err
}

// run runs the go command and returns what it printed to its standard output.
func (u *user) run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = dir, u.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// leaf imports one leaf block: its user's graph has one module more than before,
// and its build nothing that is not the standard library or ours.
func (u *user) leaf(ctx context.Context) error {
	dir, err := u.start(ctx, "leaf")
	if err != nil {
		return err
	}
	program := fmt.Sprintf("package main\n\nimport _ %q\n\nfunc main() {}\n", u.module+"/fault")
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"get", u.module + "/fault@" + u.version}, {"mod", "tidy"}, {"build", "-o", os.DevNull, "."}} {
		if _, err := u.run(ctx, dir, args...); err != nil {
			return err
		}
	}
	graph, err := u.run(ctx, dir, "list", "-m", "all")
	if err != nil {
		return err
	}
	if want := "example.com/leaf\n" + u.module + " " + u.version + "\n"; graph != want {
		return fmt.Errorf("go list -m all in a program that imports fault:\n%swant\n%s", graph, want)
	}
	deps, err := u.run(ctx, dir, "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	if err != nil {
		return err
	}
	for _, p := range strings.Fields(deps) {
		if p != "example.com/leaf" && !strings.HasPrefix(p, u.module+"/") {
			return fmt.Errorf("a program that imports fault is linked with %s", p)
		}
	}
	fmt.Printf("release-check: a program that imports fault has one module in its graph and %d packages of ours\n", len(strings.Fields(deps))-1)
	return nil
}

// blocks gets the root module, runs the examples of all blocks where the module
// cache has them, and some as the programs that a reader would copy.
func (u *user) blocks(ctx context.Context, root string) error {
	dir, err := u.start(ctx, "blocks")
	if err != nil {
		return err
	}
	if _, err := u.run(ctx, dir, "get", u.module+"@"+u.version); err != nil {
		return err
	}
	ran, err := u.examples(ctx, dir, u.module)
	if err != nil {
		return err
	}
	fmt.Printf("release-check: the examples of %d packages of the blocks pass from the module cache\n", ran)
	copied := 0
	for _, block := range []string{"fault", "messaging", "outbox", "idempotency", "saga"} {
		ran, err := u.copied(ctx, dir, filepath.Join(root, block), block)
		if err != nil {
			return err
		}
		if ran {
			copied++
		}
	}
	if copied < 2 {
		return errors.New("fewer than two blocks have an example that is a whole program with its output")
	}
	return nil
}

// kit gets a module with a third-party dependency beside a block, builds all its
// packages and runs its examples.
func (u *user) kit(ctx context.Context, m *mod) error {
	dir, err := u.start(ctx, path.Base(m.rel))
	if err != nil {
		return err
	}
	if _, err := u.run(ctx, dir, "get", m.path()+"@"+u.version, u.module+"/fault@"+u.version); err != nil {
		return err
	}
	if _, err := u.run(ctx, dir, "build", m.path()+"/..."); err != nil {
		return err
	}
	ran, err := u.examples(ctx, dir, m.path())
	if err != nil {
		return err
	}
	graph, err := u.run(ctx, dir, "list", "-m", m.path(), u.module)
	if err != nil {
		return err
	}
	for line := range strings.Lines(graph) {
		if !strings.HasSuffix(strings.TrimSpace(line), " "+u.version) {
			return fmt.Errorf("%s was resolved to %swant %s", m.path(), line, u.version)
		}
	}
	fmt.Printf("release-check: %s builds and the examples of %d packages pass from the module cache\n", m.rel, ran)
	_, err = u.copied(ctx, dir, m.dir, m.rel)
	return err
}

// examples runs the examples of a module's packages from the module cache and
// returns how many packages have any that passed.
func (u *user) examples(ctx context.Context, dir, module string) (int, error) {
	out, err := u.run(ctx, dir, "test", "-count=1", "-v", "-run", "^Example", module+"/...")
	if err != nil {
		return 0, err
	}
	ran, passed := 0, false
	for line := range strings.Lines(out) {
		switch {
		case strings.HasPrefix(line, "--- PASS: Example"):
			passed = true
		case strings.HasPrefix(line, "ok "):
			if passed {
				ran++
			}
			passed = false
		}
	}
	return ran, nil
}

// copied runs a package's first self-contained example as a main program of the
// user's, as someone does who copies it from the documentation. It reports whether
// there is one.
func (u *user) copied(ctx context.Context, dir, source, name string) (bool, error) {
	example, program, err := playable(source)
	if err != nil || example == nil {
		return false, err
	}
	target := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
	if err := os.MkdirAll(target, 0o755); err != nil {
		return false, err
	}
	if err := os.WriteFile(filepath.Join(target, "main.go"), program, 0o644); err != nil {
		return false, err
	}
	got, err := u.run(ctx, dir, "run", "./"+filepath.Base(target))
	if err != nil {
		return false, err
	}
	want := example.Output
	if example.Unordered {
		got, want = sorted(got), sorted(want)
	}
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		return false, fmt.Errorf("example %s of %s, copied into a program, prints:\n%s\nwant:\n%s", example.Name, name, got, want)
	}
	fmt.Printf("release-check: Example%s of %s, copied into a program, prints what it says\n", example.Name, name)
	return true, nil
}

func sorted(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// playable returns the first example of a package that is a program on its own.
func playable(dir string) (*doc.Example, []byte, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	for _, example := range doc.Examples(files...) {
		if example.Play == nil || example.Output == "" {
			continue
		}
		var program bytes.Buffer
		if err := format.Node(&program, fset, example.Play); err != nil {
			return nil, nil, err
		}
		return example, program.Bytes(), nil
	}
	return nil, nil, nil
}

// removeAll also removes directories that were made read-only.
func removeAll(dir string) {
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chmod(name, 0o755)
	})
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, "release-check:", err)
	}
}
