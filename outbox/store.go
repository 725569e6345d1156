// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Store keeps the messages, the leases of the shards, and what was parked. Applications
// use outboxsql or outboxmem; package outboxtest checks an implementation against this
// contract. A Store may be used from many goroutines and processes.
//
// Rows lie in shards numbered from 0. The relay that holds a shard's lease reads its
// rows, publishes them, and removes them again; each time a lease changes hands its
// epoch grows, and a write under an old epoch changes nothing. Only the store's clock
// counts for leases and ages.
//
// No method keeps anything locked after it has returned, and none needs more than one
// connection at a time. Insert never waits for any other method.
type Store interface {
	// Shards returns the number of shards, which never changes.
	Shards() int

	// Insert adds rows, of which Shard and Message are set, as part of tx. Their IDs grow
	// in the order of the slice, and are larger than those of all rows that were inserted
	// before.
	Insert(ctx context.Context, tx Tx, rows []Row) error

	// Lease renews what the relay holds and returns how things are after that.
	Lease(ctx context.Context, r LeaseRequest) (LeaseView, error)

	// Read returns committed rows of each asked shard, by shard in the order of their IDs:
	// the first Limit rows that are not to be skipped and whose key is not blocked by a
	// parked row. It sees a row if it sees any row that was committed later.
	Read(ctx context.Context, reads []Read) ([]Row, error)

	// Settle removes published rows in one atomic step. A settlement whose lease is not the
	// current one is left out, and its shard returned. A row that is gone already is fine.
	Settle(ctx context.Context, settlements []Settlement) (lost []int, err error)

	// Park sets a row aside, from where Read does not return it. If p.Block, Read does not
	// return later rows of its key either, until it is retried or discarded. It does nothing and
	// returns true if the lease is not the current one, and nothing if the row is gone.
	Park(ctx context.Context, l Lease, p Parking) (lost bool, err error)

	// Parked returns up to limit messages that are parked, or those that are discarded, in the
	// order of their IDs.
	Parked(ctx context.Context, discarded bool, limit int) ([]Parked, error)
	// Retry puts the parked rows with this message ID, or all if it is empty, back to where
	// they were, and returns how many.
	Retry(ctx context.Context, id string) (int, error)
	// Discard marks the parked rows with this message ID as given up, so that they block
	// their keys no more, and returns how many.
	Discard(ctx context.Context, id, reason string) (int, error)
	// Prune deletes the rows that were discarded longer than age ago, and what else the store
	// keeps of rows that were removed longer than that ago. It returns how many.
	Prune(ctx context.Context, age time.Duration) (int, error)

	// Stats counts what waits.
	Stats(ctx context.Context) (Stats, error)
}

// Row is a message in a store.
type Row struct {
	// ID is the row's place in the order of its key.
	ID      int64
	Shard   int
	Message *messaging.Message
	// Age is how long ago the row was inserted.
	Age time.Duration
	// Hint is for the store itself, such as where Read found the row. It comes back with the
	// row's removal. Zero is none.
	Hint uint64
}

// Lease is the right to publish the rows of a shard.
type Lease struct {
	Shard int
	// Epoch is the fencing token: it grows with every change of hands.
	Epoch int64
}

// LeaseRequest is a relay's heartbeat.
type LeaseRequest struct {
	// Relay is unique to one run of one relay.
	Relay string
	// TTL is how long from now leases and membership hold without another request.
	TTL time.Duration
	// Drop are leases to give up, before anything else is done. Those that are not the
	// relay's any more are ignored.
	Drop []Lease
	// Take is how many free shards to take at most.
	Take int
	// Leave gives up everything the relay has, its membership included. The other fields
	// are of no concern then, Relay excepted.
	Leave bool
}

// LeaseView is what a relay sees after its heartbeat.
type LeaseView struct {
	// Held are the relay's leases. All hold for the TTL from the time of the request. One
	// that had run out is not renewed; it is free.
	Held []Lease
	// Relays is how many relays there are, this one included.
	Relays int
	// Free is how many shards nobody holds.
	Free int
	// NextExpiry is when the first lease of another relay will run out if that relay
	// does not renew it. Zero if there are none.
	NextExpiry time.Duration
}

// Read asks for rows of one shard.
type Read struct {
	Shard int
	// Limit is at least 1.
	Limit int
	// SkipIDs, SkipKeys and SkipTopics are rows to leave out: those that the relay
	// holds already, and those that would have to wait anyway. A row whose key has an earlier
	// row of a skipped topic is left out as well.
	SkipIDs    []int64
	SkipKeys   []string
	SkipTopics []string
}

// Settlement is what was published of one shard.
type Settlement struct {
	Lease
	IDs []int64
	// Hints are those of the rows, in the order of the IDs, or nil. They may be out of date.
	Hints []uint64
}

// Parking is why a row is set aside.
type Parking struct {
	ID       int64
	Reason   string
	Attempts int
	// Block keeps later rows of the same key waiting.
	Block bool
}

// Parked is a message that could not be published.
type Parked struct {
	Message *messaging.Message
	// Reason is the last error.
	Reason string
	// Attempts is how often publishing it failed for reasons of its own.
	Attempts int
	// Since is when it was parked, by the store's clock.
	Since time.Time
	// Blocks tells that later messages of its key wait for it.
	Blocks bool
	// Discarded is when and DiscardReason why it was given up; zero if it was not.
	Discarded     time.Time
	DiscardReason string
}

// Stats is what waits in an outbox.
type Stats struct {
	// Depth is the number of messages to be published, counted up to a million; messages
	// behind a parked one of their key are among them, parked ones are not.
	Depth int
	// OldestAge is the age of the oldest of these, zero if there are none.
	OldestAge time.Duration
	// Parked is the number of parked messages.
	Parked int
}
