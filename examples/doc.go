// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package examples is a module of programs to read and to copy from: one small one per block,
// and the shop, which is all of them together.
package examples
