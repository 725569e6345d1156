// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lock keeps a second shop away from the same data: each would hold the other's messages in
// its own memory. The lock ends with the process, however that ends; the file has the process's number.
func lock(data string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(data, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for tries := 1; ; tries++ {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			if err := sign(f); err != nil {
				_ = f.Close()
				return nil, err
			}
			return func() { _ = f.Close() }, nil
		}
		if tries == looks {
			by, _ := io.ReadAll(f)
			_ = f.Close()
			return nil, fmt.Errorf("data folder %s: another shop runs on it, process %s", data, bytes.TrimSpace(by))
		}
		time.Sleep(10 * time.Millisecond) // it may be one that only looks; see held
	}
}

// sign writes who holds a lock into its file.
func sign(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}

// looks is how often the lock is tried, against those who hold it for a moment to look at it.
const looks = 20

// held reports whether a shop runs on the data. It makes nothing, and takes the lock for a moment with others who look.
func held(data string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(data, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
