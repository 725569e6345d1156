// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package cachetest checks implementations of [cache.Store], and has one in memory for tests of
// programs whose caches share a store.
//
//	func TestStore(t *testing.T) {
//		cachetest.RunStore(t, func(t *testing.T) cache.Store { return openStore(t) })
//	}
package cachetest
