// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package migrate holds the code of the guides in docs/migrate: the same thing with a peer and
// with dovetail, both run by the tests. See examples/guides for how the guides show it.
package migrate
