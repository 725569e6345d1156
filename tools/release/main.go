// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command release checks that the modules of this repository can be released and
// used: it holds their go.mod files to the rules of docs/decisions/002, packs each
// releasable module as a module proxy would serve it, and then is a user: fresh
// modules outside the workspace that get the packed modules and run their examples.
//
//	go run ./release -root ..          everything (make release-check)
//	go run ./release -root .. -rules   only the rules
//
// Nothing is published, and the user's module cache never sees the trial version.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

func main() {
	root := flag.String("root", "..", "the repository")
	rules := flag.Bool("rules", false, "only check the go.mod files")
	keep := flag.Bool("keep", false, "keep the packed modules and the trial programs, and say where they are")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *root, *rules, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release-check:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string, rules, keep bool) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	modules, err := find(ctx, root)
	if err != nil {
		return err
	}
	if err := check(modules); err != nil {
		return err
	}
	fmt.Printf("release-check: the go.mod files of %d modules keep the rules, %d of them are released\n", len(modules), len(released(modules)))
	if rules {
		return nil
	}

	work, err := os.MkdirTemp("", "dovetail-release-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Println("release-check: working in", work)
	} else {
		defer removeAll(work)
	}
	// A version that no earlier run had, so that nothing stale can answer.
	version := "v0.99.0-check." + time.Now().UTC().Format("20060102150405")
	proxy := filepath.Join(work, "proxy")
	for _, m := range released(modules) {
		files, bytes, err := pack(m, modules, proxy, version)
		if err != nil {
			return fmt.Errorf("pack %s: %w", m.path(), err)
		}
		fmt.Printf("release-check: packed %s: %d files, %d KB\n", m.path(), files, bytes>>10)
	}

	user, err := newUser(ctx, work, proxy, modules[0].path(), version)
	if err != nil {
		return err
	}
	if err := user.leaf(ctx); err != nil {
		return err
	}
	if err := user.blocks(ctx, root); err != nil {
		return err
	}
	kits := 0
	for _, m := range released(modules)[1:] {
		if err := user.kit(ctx, m); err != nil {
			return err
		}
		kits++
	}
	if kits == 0 {
		fmt.Println("release-check: there is no kit to try")
	}
	fmt.Println("release-check: passed")
	return nil
}
