// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Tracked lists the files that git has or would add, relative to dir. Without
// git, or outside a clone, it returns an error.
func Tracked(ctx context.Context, dir string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("deptest: git ls-files in %s: %w", dir, err)
	}
	var names []string
	for name := range strings.SplitSeq(string(out), "\x00") {
		if name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// Mentions complains about every line of the named files, relative to dir, that
// one of the patterns matches; the map's values say why not. Binary files and
// names that are gone are left out.
func Mentions(dir string, names []string, patterns map[*regexp.Regexp]string) ([]string, error) {
	var problems []string
	for _, name := range names {
		full := filepath.Join(dir, filepath.FromSlash(name))
		info, err := os.Lstat(full)
		if err != nil || !info.Mode().IsRegular() {
			continue // deleted but not yet committed, or a link
		}
		text, err := os.ReadFile(full)
		if err != nil {
			return nil, err
		}
		if bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 {
			continue
		}
		for pattern, why := range patterns {
			if !pattern.Match(text) {
				continue
			}
			line := 0
			for s := range bytes.Lines(text) {
				if line++; pattern.Match(s) {
					problems = append(problems, fmt.Sprintf("%s:%d: %q: %s", name, line, pattern.Find(s), why))
				}
			}
		}
	}
	return problems, nil
}
