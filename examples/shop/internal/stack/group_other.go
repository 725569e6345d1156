// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package stack

import (
	"errors"
	"os"
	"syscall"
)

func ownGroup() *syscall.SysProcAttr { return nil }

func signalStop(*os.Process, bool) error { return errors.ErrUnsupported }
