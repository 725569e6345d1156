// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"time"
)

// Store keeps events and snapshots. Applications use eventsourcesql or eventsourcemem;
// package eventsourcetest checks an implementation against this contract. A Store may be
// used from many goroutines and processes.
//
// The order of all events is one in which a reader who asks for what comes after the last
// event it was given meets every committed event, each once, those of one stream by their
// versions.
//
// No method but Append keeps anything locked after it has returned, and none needs more
// than one connection at a time.
type Store interface {
	// Append adds events, at least one, to a stream as part of tx: all of them or, with an
	// error, none. If the stream is not as want says, or a concurrent transaction was
	// first, the error is a [*VersionError], from Append or from the commit. A transaction
	// may append several times, also to one stream.
	Append(ctx context.Context, tx Tx, stream string, want Expect, events []Event) error

	// Read returns up to limit events of a stream whose version is larger than after.
	Read(ctx context.Context, stream string, after int64, limit int) ([]Recorded, error)

	// ReadAll returns events of all streams after a cursor, in order, up to limit.
	ReadAll(ctx context.Context, after Cursor, f Filter, limit int) (Page, error)

	// End returns the version and the cursor of a stream's last event, zeros if there is
	// none.
	End(ctx context.Context, stream string) (version int64, at Cursor, err error)

	// Horizon tells how far readers can see.
	Horizon(ctx context.Context) (Horizon, error)

	// Snapshot returns the snapshot of a stream by name, and whether there is one.
	Snapshot(ctx context.Context, stream, name string) (s Snapshot, ok bool, err error)
	// SaveSnapshot stores a snapshot unless there is one of the same schema and a later version.
	SaveSnapshot(ctx context.Context, s Snapshot) error
}

// Filter selects events. The zero Filter selects all.
type Filter struct {
	// Types are the types to select. Empty means all.
	Types []string
	// Prefix is what the stream's name begins with, such as "order-".
	Prefix string
	// Shard and Shards select the streams whose Bucket modulo Shards is Shard. Zero Shards
	// select all.
	Shard, Shards int
}

// Page is a part of the order of all events.
type Page struct {
	Events []Recorded
	// Next is where to go on: everything up to it that the filter selects has been returned.
	Next Cursor
	// More says that there may be more after Next at this moment.
	More bool
	// Waiting says that events after Next, or numbers for them, exist already and have to
	// wait for an append whose transaction is open.
	Waiting bool
}

// Horizon is how far readers can see.
type Horizon struct {
	// Cursor is the end of what readers see now.
	Cursor Cursor
	// Head is the end of what was ever given out; Cursor comes up to it when the open
	// appends end. Some numbers in between may turn out to be unused.
	Head Cursor
	// Open is how many transactions with an append are open, as far as the store can
	// tell.
	Open int
	// Age is how long the oldest of these transactions has been open, zero if there is
	// none. It is what to alarm on: events behind it are waiting, and nothing is skipped
	// however long it takes.
	Age time.Duration
}

// Snapshot is the state of a stream at a version, so that what came before need not be
// read again. It is only a short cut: losing one loses nothing.
type Snapshot struct {
	Stream string
	// Name tells the states of different deciders over one stream apart.
	Name string
	// Schema names the encoding of State; a snapshot of another schema is of no use.
	Schema string
	// Version is that of the last event in the state.
	Version int64
	State   []byte
}
