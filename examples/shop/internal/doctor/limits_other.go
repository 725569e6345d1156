// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin

package doctor

import (
	"errors"
	"strings"
)

func openFiles() (uint64, error) { return 0, errors.ErrUnsupported }

func freeSpace(string) (uint64, error) { return 0, errors.ErrUnsupported }

func isInUse(err error) bool {
	return strings.Contains(err.Error(), "in use") || strings.Contains(err.Error(), "Only one usage")
}

func locks(string) error { return nil }
