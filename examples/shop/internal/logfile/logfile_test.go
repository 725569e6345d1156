// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package logfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.json")
	line := []byte("0123456789\n")
	read := func(path string) []byte {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	f, err := Open(path, 3*int64(len(line)))
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err := f.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if now, before := read(path), read(path+".1"); len(now) != 2*len(line) || len(before) != 3*len(line) {
		t.Errorf("%d bytes and %d before, want 22 and 33", len(now), len(before))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("it goes on after a restart", func(t *testing.T) {
		f, err := Open(path, 3*int64(len(line)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if _, err := f.Write(line); err != nil {
			t.Fatal(err)
		}
		if got := read(path); len(got) != 3*len(line) {
			t.Errorf("%d bytes, want 33", len(got))
		}
	})
	t.Run("lines of many writers stay whole", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log.json")
		f, err := Open(path, 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		var writers sync.WaitGroup
		for w := range 8 {
			writers.Go(func() {
				for range 200 {
					if _, err := f.Write(fmt.Appendf(nil, "%d%d%d%d%d\n", w, w, w, w, w)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		writers.Wait()
		for l := range bytes.Lines(append(read(path+".1"), read(path)...)) {
			if len(l) != 6 || l[0] != l[4] || l[5] != '\n' {
				t.Errorf("line %q, want five digits that are the same", l)
			}
		}
	})
	t.Run("a folder that is not there is an error", func(t *testing.T) {
		if _, err := Open(filepath.Join(t.TempDir(), "no", "log.json"), 10); err == nil {
			t.Error("Open = nil, want an error")
		}
	})
}
