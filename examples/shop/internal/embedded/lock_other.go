// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package embedded

// lock does nothing where there is no flock.
func lock(string) (unlock func(), err error) { return func() {}, nil }

// held does not know where there is no flock.
func held(string) (bool, error) { return false, nil }
