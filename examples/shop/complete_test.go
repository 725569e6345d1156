// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// typed are what people type, and what the shell must offer, or not, for the last word.
var typed = []struct {
	words []string
	want  []string
	not   []string
}{
	{[]string{""}, []string{"chaos", "check", "doctor", "load", "run", "up"}, []string{"provider"}},
	{[]string{"d"}, []string{"doctor"}, []string{"load"}},
	{[]string{"load", "--o"}, []string{"--orders"}, []string{"--patience"}},
	{[]string{"run", "in"}, []string{"inventory"}, nil},
	{[]string{"lambda", ""}, []string{"gateway", "order", "provider"}, nil},
	{[]string{"health", "ga"}, []string{"gateway"}, nil},
	{[]string{"health", "order", ""}, nil, []string{"order", "gateway"}},
	{[]string{"completion", ""}, []string{"bash", "fish", "zsh"}, nil},
	{[]string{"up", "--instances", "pa"}, []string{"payment="}, nil},
	{[]string{"chaos", "--kinds", "kill,p"}, []string{"kill,pause", "kill,provider-down"}, []string{"kill,kill"}},
	{[]string{"doctor", "--log", ""}, []string{"text", "json"}, nil},
}

// How each shell is made to complete words without a terminal: it loads the script, really, and calls what the script
// has set up for the command. What the shell's own packages would add is a stub.
var shells = map[string]func(script string, words []string) string{
	"bash": func(script string, words []string) string {
		return fmt.Sprintf(`
_get_comp_words_by_ref() { # of bash-completion; quoting and colons are not what is tested here
	cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
}
__ltrim_colon_completions() { :; }
compopt() { :; }
source %s
complete -p shop >/dev/null || exit 9
COMP_WORDS=(shop %s) COMP_CWORD=%d COMP_TYPE=9
COMP_LINE="${COMP_WORDS[*]}" COMP_POINT=${#COMP_LINE}
__start_shop
printf '%%s\n' "${COMPREPLY[@]}"`, script, quoted(words), len(words))
	},
	"zsh": func(script string, words []string) string {
		return fmt.Sprintf(`
compdef() { registered=$*; }
_describe() { print -rl -- "${completions[@]}"; return 0; }
source %s
[[ $registered == "_shop shop" ]] || exit 9
words=(shop %s) CURRENT=%d
_shop`, script, quoted(words), len(words)+1)
	},
	"fish": func(script string, words []string) string {
		return fmt.Sprintf("source %s\ncomplete -C '%s'", script, "shop "+strings.Join(words, " "))
	},
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = "'" + w + "'"
	}
	return strings.Join(out, " ")
}

// TestCompletion loads the generated scripts into the shells and types. Shells that are not installed are skipped, but under make test.
func TestCompletion(t *testing.T) {
	bin := t.TempDir()
	if err := os.Symlink(buildShop(t), filepath.Join(bin, "shop")); err != nil {
		t.Fatal(err)
	}
	for name, program := range shells {
		t.Run(name, func(t *testing.T) {
			shell, err := exec.LookPath(name)
			if err != nil {
				testserver.Missing(t, "%s is not installed: scripts/apt-install %[1]s", name)
			}
			var script bytes.Buffer
			cmd := command()
			cmd.SetArgs([]string{"completion", name})
			cmd.SetOut(&script)
			if err := cmd.ExecuteContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(path, script.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			plain := map[string][]string{"bash": {"--norc", "--noprofile"}, "zsh": {"-f"}, "fish": {"--no-config"}}[name]
			for _, tt := range typed {
				run := exec.CommandContext(t.Context(), shell, append(slices.Clone(plain), "-c", program(path, tt.words))...)
				run.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+bin)
				run.Dir = t.TempDir()
				out, err := run.CombinedOutput()
				if err != nil {
					t.Fatalf("shop %s: %v: %s", strings.Join(tt.words, " "), err, out)
				}
				var offered []string
				for line := range strings.Lines(string(out)) {
					word := strings.TrimSpace(line)
					if i := strings.IndexAny(word, "\t("); i >= 0 { // a description follows
						word = strings.TrimSpace(word[:i])
					}
					if name == "zsh" { // there a colon separates them
						word, _, _ = strings.Cut(word, ":")
					}
					offered = append(offered, word)
				}
				for _, w := range tt.want {
					if !slices.Contains(offered, w) {
						t.Errorf("shop %s offers %q, want %s", strings.Join(tt.words, " "), offered, w)
					}
				}
				for _, w := range tt.not {
					if slices.Contains(offered, w) {
						t.Errorf("shop %s offers %s, want it not to", strings.Join(tt.words, " "), w)
					}
				}
			}
		})
	}
}
