// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the snippets of the code into the Markdown")

// root is the repository's root, seen from here.
const root = "../.."

// block is a fenced block of Markdown.
type block struct {
	file       string
	first      int // index of the first line after the fence
	lang, name string
	lines      []string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.file, b.first) }

// guides returns the Markdown that is held to account: READMEs, and everything in docs/.
func guides(t *testing.T) []string {
	t.Helper()
	names := []string{"README.md", "CONTRIBUTING.md", "examples/shop/README.md"}
	err := fs.WalkDir(os.DirFS(root), "docs", func(name string, _ fs.DirEntry, err error) error {
		if filepath.Ext(name) == ".md" {
			names = append(names, name)
		}
		return err
	})
	if err != nil || len(names) < 4 {
		t.Fatalf("found %v (%v), want README.md and the guides", names, err)
	}
	return names
}

// fence is the line that begins or ends a block.
var fence = regexp.MustCompile("^(`{3,})\\s*([^`\\s]*)\\s*([^`]*)$")

// blocks returns the fenced blocks in the lines of a file.
func blocks(t *testing.T, file string, lines []string) (found []block) {
	t.Helper()
	open := ""
	for i, line := range lines {
		m := fence.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case open == "" && m != nil:
			open = m[1]
			found = append(found, block{file: file, first: i + 1, lang: m[2], name: strings.TrimSpace(m[3])})
		case open != "" && m != nil && m[1] == open && m[2] == "":
			open = ""
		case open != "":
			last := &found[len(found)-1]
			last.lines = append(last.lines, line)
		}
	}
	if open != "" {
		t.Errorf("%v: the block does not end", found[len(found)-1])
	}
	return found
}

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
	for _, name := range guides(t) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		found := blocks(t, name, lines)
		for _, b := range slices.Backward(found) { // an update moves only what is behind it
			if b.lang != "go" {
				continue
			}
			want, ok := code[b.name]
			switch {
			case b.name == "":
				t.Errorf("%v: a block of Go names no snippet: put its code between // snippet: NAME and // end into a test, and write ```go NAME", b)
			case !ok:
				t.Errorf("%v: no test has the snippet %s", b, b.name)
			case slices.Equal(b.lines, want):
			case *update:
				lines = slices.Replace(lines, b.first, b.first+len(b.lines), want...)
			default:
				t.Errorf("%v: the snippet %s is now\n%s\nto take it over: go test ./examples/guides -run Snippets -update", b, b.name, strings.Join(want, "\n"))
			}
			shown[b.name] = true
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

// Commands of others, whose flags are not checked.
var foreign = []string{"cat", "cd", "cp", "curl", "docker", "eval", "export", "git", "grep", "jq", "kill", "kubectl", "mkdir", "mysql", "pkill", "promtool", "psql", "rabbitmqctl", "redis-cli", "sqlite3"}

// Every command of ours that a guide tells to run exists: the targets of make, the scripts, the
// packages that go is told of, and shop's commands with their flags. Whether it does what the
// guide says is for the tests of each.
func TestCommandsExist(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	help := shopHelp(t)
	checked := 0
	for _, name := range guides(t) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks(t, name, strings.Split(string(text), "\n")) {
			if b.lang != "sh" && b.lang != "bash" && b.lang != "shell" {
				continue
			}
			for _, words := range commands(b.lines) {
				checked++
				if problem := command(words, string(makefile), help); problem != "" {
					t.Errorf("%v: %s: %s", b, strings.Join(words, " "), problem)
				}
			}
		}
	}
	if checked == 0 {
		t.Error("no guide has a command")
	}
}

// commands splits the lines of a script into commands of words: comments, assignments before a
// command and quoted text are taken off, which is enough for what guides show.
func commands(lines []string) (found [][]string) {
	text := regexp.MustCompile(`(?s)'[^']*'|"[^"]*"`).ReplaceAllString(strings.Join(lines, "\n"), "QUOTED")
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(" "+strings.TrimSpace(line), " #")
		for _, part := range regexp.MustCompile(`&&|\|\||[|;&]`).Split(line, -1) {
			words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(part), "$ "))
			for len(words) > 0 && regexp.MustCompile(`^[A-Za-z_]+=`).MatchString(words[0]) {
				words = words[1:]
			}
			if len(words) > 0 {
				found = append(found, words)
			}
		}
	}
	return found
}

// command says what is wrong with a command, empty if nothing is.
func command(words []string, makefile string, help func(sub string) string) string {
	switch {
	case slices.Contains(foreign, words[0]):
		return ""
	case words[0] == "make":
		for _, word := range words[1:] {
			if !strings.Contains(word, "=") && !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(word)+`:`).MatchString(makefile) {
				return "make has no target " + word
			}
		}
		return ""
	case strings.HasPrefix(words[0], "scripts/"):
		return missing(words[0])
	case words[0] == "shop":
		return shopFlags(words[1:], help)
	case words[0] != "go" || len(words) < 2:
		return "what is this? Name it in guides_test.go if it is a command of others"
	case words[1] == "run" && len(words) > 2 && words[2] == "./examples/shop":
		return shopFlags(words[3:], help)
	case !slices.Contains([]string{"build", "doc", "get", "install", "mod", "run", "test", "vet", "work"}, words[1]):
		return "go has no command " + words[1]
	}
	for _, word := range words[2:] { // packages, of this repository
		dir, ours := strings.CutPrefix(word, "github.com/dovetail-go/dovetail")
		if dir, local := strings.CutPrefix(word, "./"); local && dir != "..." {
			if problem := missing(strings.TrimSuffix(dir, "/...")); problem != "" {
				return problem
			}
		}
		dir, _, _ = strings.Cut(dir, "@")
		if ours && missing("./"+dir) != "" {
			return missing("./" + dir)
		}
	}
	return ""
}

func missing(name string) string {
	if _, err := os.Stat(filepath.Join(root, name)); err != nil {
		return "there is no " + name
	}
	return ""
}

// shopFlags checks the arguments of shop against what its --help says.
func shopFlags(words []string, help func(sub string) string) string {
	text := help("")
	if len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		if !regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(words[0]) + ` `).MatchString(text) {
			return "shop has no command " + words[0]
		}
		text = help(words[0])
	}
	for _, word := range words {
		name, _, _ := strings.Cut(word, "=")
		if strings.HasPrefix(name, "-") && !regexp.MustCompile(`(?m)^ .*`+regexp.QuoteMeta(name)+`\b`).MatchString(text) {
			return "its --help has no " + name
		}
	}
	return ""
}

// shopHelp builds the shop, and returns a function that tells its help.
func shopHelp(t *testing.T) func(sub string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "shop")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", binary, "../shop").CombinedOutput(); err != nil {
		t.Fatalf("go build ../shop: %v\n%s", err, out)
	}
	known := map[string]string{}
	return func(sub string) string {
		if _, ok := known[sub]; !ok {
			args := []string{"--help"}
			if sub != "" {
				args = []string{sub, "--help"}
			}
			out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("shop %v: %v\n%s", args, err, out)
			}
			known[sub] = string(out)
		}
		return known[sub]
	}
}

// The checks themselves can fail.
func TestChecksOfCommandsCanFail(t *testing.T) {
	help := func(string) string { return "Commands:\n  load   drive it\n\nFlags:\n      --orders int   how many\n" }
	for line, fine := range map[string]bool{
		"make test":                                  true,
		"make tea":                                   false,
		"scripts/services up redis":                  true,
		"scripts/nothing":                            false,
		"go run ./examples/shop load --orders=5":     true,
		"go run ./examples/shop load --order 5":      false,
		"go run ./examples/shop lode":                false,
		"X=1 go test ./retry/...":                    true,
		"go test ./retries":                          false,
		"go get github.com/dovetail-go/dovetail":     true,
		"go get github.com/dovetail-go/dovetail/nix": false,
		"curl -s localhost | jq . # and so on":       true,
		"frobnicate":                                 false,
	} {
		problem := ""
		for _, words := range commands([]string{line}) {
			problem += command(words, "test: ## all\n", help)
		}
		if (problem == "") != fine {
			t.Errorf("%s: the check says %q, want fine = %v", line, problem, fine)
		}
	}
}
