// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache

import "time"

// Hooks tell what a cache does. Every field may be nil. They are called from many
// goroutines, outside locks, and hold up their caller. A hit calls none.
type Hooks struct {
	// Loaded is called after every load.
	Loaded func(Loaded)
	// Stale is called when a value is served that is no longer fresh.
	Stale func(Stale)
	// Fenced is called when the result of a load was not stored, because its key was invalidated
	// meanwhile.
	Fenced func(Fenced)
	// StoreFailed is called when the store could not be asked or did not answer.
	StoreFailed func(StoreFailed)
}

// Loaded is one load that has ended.
type Loaded struct {
	Cache, Key string
	// Early says that it was a refresh while the value was still fresh.
	Early bool
	Took  time.Duration
	// Err is that of the load, a [*PanicError] if it panicked.
	Err error
}

// Stale is a value that was served although it is no longer fresh.
type Stale struct {
	Cache, Key string
	// Age is how long ago it was loaded.
	Age time.Duration
	// Err is why there was no newer one. It is nil while another process is loading it.
	Err error
}

// Fenced is a load whose result was not stored.
type Fenced struct {
	Cache, Key string
}

// StoreFailed is one operation on the store that failed.
type StoreFailed struct {
	Cache, Key string
	// Op is "take", "put", "release" or "delete".
	Op  string
	Err error
}
