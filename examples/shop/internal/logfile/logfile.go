// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package logfile is a log on disk that cannot fill it: a file, and the one before it.
package logfile

import (
	"os"
	"sync"
)

// File is appended to until it would grow beyond its size; then it is renamed to the same name with .1, in place of
// the one before, and begun anew. It is safe for concurrent use, and for one process.
type File struct {
	path string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

// Open opens the file at path, and creates it if need be. Its owner and the group may read it.
func Open(path string, maxBytes int64) (*File, error) {
	l := &File{path: path, max: maxBytes}
	err := l.open()
	return l, err
}

func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640) //nolint:gosec // whoever ships it is in the group
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write appends p, whole, to one file.
func (l *File) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		if err := l.turn(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// turn begins a new file. If that cannot be, the old one stays.
func (l *File) turn() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return err
	}
	old := l.f
	if err := l.open(); err != nil {
		return err
	}
	return old.Close()
}

// Close closes the file.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
