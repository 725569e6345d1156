// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package doctor

import (
	"errors"
	"os"
	"syscall"
)

// openFiles is the limit of this process, which is the shop's if it is started in the same way: Go raises
// the soft limit to the hard one.
func openFiles() (uint64, error) {
	var l syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	return l.Cur, err
}

func freeSpace(dir string) (uint64, error) {
	var s syscall.Statfs_t
	err := syscall.Statfs(dir, &s)
	return s.Bavail * uint64(s.Bsize), err //nolint:unconvert // the types differ between systems
}

func isInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// locks tries whether a lock on a file keeps another out, as two shops on the same data need it.
func locks(path string) error {
	one, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = one.Close() }()
	if err := syscall.Flock(int(one.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
	other, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = other.Close() }()
	if syscall.Flock(int(other.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		return errors.New("two hold one lock")
	}
	return nil
}
