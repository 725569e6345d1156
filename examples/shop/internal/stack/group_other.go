// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package stack

import "syscall"

func ownGroup() *syscall.SysProcAttr { return nil }
