// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package dovetail_test

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dovetail-go/dovetail/internal/deptest"
)

// The blocks from the ground up. Each may import fault, internal packages, and
// what stands in its own line; every name there stands above its line, so arrows
// run down only. Tests and examples may use any block.
var blocks = []struct {
	name string
	may  []string
}{
	{name: "fault"},
	{name: "retry"},
	{name: "breaker"},
	{name: "bulkhead"},
	{name: "ratelimit", may: []string{"breaker"}}, // around the shared store
	{name: "resilience", may: []string{"retry", "breaker", "bulkhead", "ratelimit"}},
	{name: "messaging"},
	{name: "outbox", may: []string{"messaging"}},
	{name: "idempotency", may: []string{"messaging"}},
	{name: "saga", may: []string{"messaging", "outbox"}},
	{name: "eventsource", may: []string{"messaging", "outbox"}},
	{name: "discovery"},
	{name: "gateway", may: []string{"resilience", "discovery"}},
	{name: "cache", may: []string{"messaging", "breaker"}}, // around the shared store
	{name: "health"},
}

// Modules that users never require: they may use anything, and nothing may use them.
var unreleased = []string{"bench", "chaos", "conformance", "examples", "tools"}

// What no file may say. The patterns are written so that they do not match themselves.
var (
	machine = map[*regexp.Regexp]string{
		regexp.MustCompile(`/root[/]`):                       "a path of one machine",
		regexp.MustCompile("(^|[\\s\"'`(=:])/(home|work)/."): "a path of one machine",
		regexp.MustCompile(`\.\./shared`):                    "a path outside the repository",
	}
	unfinished = map[*regexp.Regexp]string{
		regexp.MustCompile(`\b(TODO|FIXME)\b[:( ]`):           "an unfinished mark; write an issue instead",
		regexp.MustCompile(`^(<{7}|>{7}) `):                   "a conflict of a merge",
		regexp.MustCompile(`(?i)not (yet )?implemented[ ]*"`): "a stub",
	}
)

var load = sync.OnceValues(func() (*deptest.Repo, error) { return deptest.Load(".") })

// repository is the parsed source. In the module cache, where only the root
// module's files are, the rules of the repository have nothing to hold on to.
func repository(t *testing.T) *deptest.Repo {
	t.Helper()
	if _, err := os.Stat("tools/go.mod"); err != nil {
		t.Skip("not in the repository")
	}
	repo, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// "a user who wants breaker gets one module": tests of a package leak into the
// go.sum of whoever uses it, so they count too.
func TestRootImportsOnlyTheStandardLibrary(t *testing.T) {
	root := repository(t).Root()
	for _, p := range root.Packages {
		report(t, p.Imports(func(_ *deptest.File, imported string) string {
			switch {
			case deptest.Standard(imported), deptest.Within(imported, "golang.org/x/sync"):
				return ""
			case deptest.Within(imported, root.Path) && !nested(t, imported):
				return ""
			}
			return "the root module imports " + imported + ", want only the standard library and itself"
		}))
	}
}

// nested reports whether an import path of ours lies in a nested module.
func nested(t *testing.T, imported string) bool {
	t.Helper()
	for _, m := range repository(t).Modules[1:] {
		if deptest.Within(imported, m.Path) {
			return true
		}
	}
	return false
}

func TestArrowsBetweenBlocksRunDown(t *testing.T) {
	root := repository(t).Root()
	may := map[string][]string{}
	for _, b := range blocks {
		for _, name := range b.may {
			if _, above := may[name]; !above {
				t.Errorf("house_test.go: %s may import %s, which does not stand above it", b.name, name)
			}
		}
		may[b.name] = b.may
	}
	for _, p := range root.Packages {
		if p.Dir == "." {
			continue
		}
		block := first(p.Dir)
		allowed, known := may[block]
		if !known && block != "internal" {
			t.Errorf("%s: block %s is not in the list in house_test.go; add it and what it may import", p.Dir, block)
			continue
		}
		report(t, p.Imports(func(f *deptest.File, imported string) string {
			other := first(strings.TrimPrefix(strings.TrimPrefix(imported, root.Path), "/"))
			switch {
			case f.Test || !deptest.Within(imported, root.Path) || other == block:
				return ""
			case block == "fault":
				return "fault imports " + other + ", want nothing: it is the ground floor"
			case other == "fault", other == "internal" && block != "internal", slices.Contains(allowed, other):
				return ""
			}
			return block + " imports " + other + "; house_test.go says what it may import"
		}))
	}
}

// first is the first element of a slash-separated path.
func first(name string) string {
	name, _, _ = strings.Cut(name, "/")
	return name
}

func TestKitsStandAlone(t *testing.T) {
	repo := repository(t)
	for _, m := range repo.Modules[1:] {
		if slices.Contains(unreleased, first(m.Dir)) {
			continue
		}
		if !strings.HasSuffix(m.Dir, "kit") || strings.Contains(m.Dir, "/") {
			t.Errorf("%s: a released module is called <dependency>kit and lies in the root", m.Dir)
		}
		for _, p := range m.Packages {
			report(t, p.Imports(func(_ *deptest.File, imported string) string {
				if !deptest.Within(imported, repo.Root().Path) || deptest.Within(imported, m.Path) || !nested(t, imported) {
					return ""
				}
				return m.Dir + " imports " + imported + ", want only blocks and one client library"
			}))
		}
	}
}

func TestEveryPackageHasOnePackageComment(t *testing.T) {
	for _, m := range repository(t).Modules {
		for _, p := range m.Packages {
			report(t, p.PackageDoc())
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, m := range repository(t).Modules {
		if slices.Contains(unreleased, first(m.Dir)) {
			continue
		}
		for _, p := range m.Packages {
			if p.Name != "main" && !internal(p) {
				report(t, p.Undocumented())
			}
		}
	}
}

func internal(p *deptest.Package) bool {
	return slices.Contains(strings.Split(p.Dir, "/"), "internal")
}

// A conformance suite is shown by the packages that run it. An example on a SQL
// database needs a driver, which the root module's tests do without: it has to
// compile, and conformance/ runs the same calls.
func TestEveryBlockHasARunnableExample(t *testing.T) {
	for _, p := range repository(t).Root().Packages {
		if p.Name == "main" || internal(p) || strings.HasSuffix(path.Base(p.Dir), "test") || !p.Exports() {
			continue
		}
		switch some, run := p.Examples(); {
		case !some:
			t.Errorf("%s: package %s has no Example", p.Dir, p.Name)
		case !run && !strings.HasSuffix(path.Base(p.Dir), "sql"):
			t.Errorf("%s: package %s has no Example with an // Output: comment", p.Dir, p.Name)
		}
	}
}

func TestFilesSayNothingTheyShouldNot(t *testing.T) {
	repository(t)
	names, err := deptest.Tracked(t.Context(), ".")
	if err != nil {
		t.Skip(err)
	}
	problems, err := deptest.Mentions(".", names, machine)
	if err != nil {
		t.Fatal(err)
	}
	report(t, problems)
	// Code of others that we carry, or that is generated, may have its own unfinished marks.
	ours := slices.DeleteFunc(names, func(name string) bool {
		switch path.Ext(name) {
		case ".go", ".md", ".sql", ".proto", ".yml", ".yaml", ".sh", "":
			return strings.Contains(name, "/vendor/") || strings.HasSuffix(name, ".pb.go")
		}
		return true
	})
	if problems, err = deptest.Mentions(".", ours, unfinished); err != nil {
		t.Fatal(err)
	}
	report(t, problems)
}

// link is a link in Markdown to a file of the repository; fence is a block of code, which has none.
var (
	link  = regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`)
	fence = regexp.MustCompile("(?s)\n```.*?\n```\n")
)

func TestLinksLeadSomewhere(t *testing.T) {
	repository(t)
	names, err := deptest.Tracked(t.Context(), ".")
	if err != nil {
		t.Skip(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		part := strings.HasPrefix(name, "bench/results/")                                        // of bench/README.md
		if path.Ext(name) != ".md" || strings.Contains(name, "/vendor/") || part || err != nil { // an error: deleted and not yet committed
			continue
		}
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
			if _, err := os.Stat(path.Join(path.Dir(name), m[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", name, m[1])
			}
		}
	}
}

// A module outside the workspace is built against released versions of the
// others, and nobody notices that it no longer fits.
func TestWorkspaceHoldsEveryModule(t *testing.T) {
	repo := repository(t)
	text, err := os.ReadFile("go.work")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range repo.Modules {
		dir := "./" + m.Dir
		if m.Dir == "." {
			dir = "."
		}
		use := regexp.MustCompile(`(?m)^(use )?\s*` + regexp.QuoteMeta(dir) + `\s*$`)
		alone := first(m.Dir) == "tools" || first(m.Dir) == "bench"
		switch found := use.Match(text); {
		case found && alone:
			t.Errorf("go.work uses %s, whose dependencies would decide the versions of all others (docs/decisions/001)", dir)
		case !found && !alone:
			t.Errorf("go.work does not use %s", dir)
		}
	}
}
