// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNotParked means that no shard of the projection is parked at the given event.
var ErrNotParked = errors.New("eventsource: no shard is parked there")

// ProjectionID names one build of a read model.
type ProjectionID struct {
	Name string
	// Revision is 1, 2 and so on. A new revision is built from the first event into tables of
	// its own, while the old one serves.
	Revision int
}

// String returns "orders/2".
func (id ProjectionID) String() string { return fmt.Sprintf("%s/%d", id.Name, id.Revision) }

// ModelTx is a transaction in the read model's database. A [*sql.Tx] fits.
type ModelTx interface {
	// Commit makes everything last that was done in it.
	Commit() error
	// Rollback undoes it. After Commit it does nothing but return an error.
	Rollback() error
}

// Models keeps the checkpoints and leases of projections in the database of their read
// models, which may be another one than that of the events. Applications use
// eventsourcesql's or eventsourcemem's; package eventsourcetest checks an implementation
// against this contract. It may be used from many goroutines and processes.
//
// A shard's checkpoint is the cursor up to which its events are in the read model. It has an
// epoch that grows with each change of owner. Only the database's clock counts.
type Models[T ModelTx] interface {
	// Begin begins a transaction for a batch.
	Begin(ctx context.Context) (T, error)

	// Lease renews what the owner holds and returns how things are after that. At its first
	// call for a projection it makes the shards, at the zero Cursor. Where transactions can be
	// open side by side, it does not wait for the open batch of another owner, nor take its shard.
	Lease(ctx context.Context, r ProjectionLease) (ProjectionView, error)

	// Advance moves a shard's checkpoint in tx, if it is exactly at from, under this
	// epoch, and not parked. It returns false if it is not: then the caller rolls back. What
	// it compares is locked until the end of tx.
	Advance(ctx context.Context, tx T, id ProjectionID, shard int, epoch int64, from, to Cursor) (bool, error)

	// Park stops a shard before an event, under the same condition with from as its
	// checkpoint. It returns false if that does not hold.
	Park(ctx context.Context, epoch int64, from Cursor, p Parked) (bool, error)
	// Retry lets the shard that is parked at this event go on with it, and returns false if
	// there is none.
	Retry(ctx context.Context, id ProjectionID, at Cursor) (bool, error)
	// Skip lets the shard that is parked at this event go on after it and records the
	// reason. It returns false if there is none.
	Skip(ctx context.Context, id ProjectionID, at Cursor, reason string) (bool, error)
	// Skipped returns the events that were skipped, by cursor.
	Skipped(ctx context.Context, id ProjectionID) ([]Skipped, error)

	// Shards returns the shards of a projection by number, none if it was never leased.
	Shards(ctx context.Context, id ProjectionID) ([]ProjectionShard, error)

	// Active returns the revision that serves, zero if none was activated.
	Active(ctx context.Context, name string) (int, error)
	// Activate makes a revision the one that serves, if it is larger than the present
	// one or force is set. It returns whether it did.
	Activate(ctx context.Context, id ProjectionID, force bool) (bool, error)
	// Remove forgets the checkpoints of a projection. Its read model is the caller's.
	Remove(ctx context.Context, id ProjectionID) error
}

// ProjectionLease is a projector's heartbeat.
type ProjectionLease struct {
	ID ProjectionID
	// Shards is how many the projection has; another number than is stored is an error.
	Shards int
	// Owner is unique to one run of one projector.
	Owner string
	// TTL is how long from now leases and membership hold without another request.
	TTL time.Duration
	// Drop are shards to give up, before anything else is done.
	Drop []int
	// Take is how many free shards to take at most.
	Take int
	// Leave gives up everything, membership included.
	Leave bool
}

// ProjectionView is what a projector sees after its heartbeat.
type ProjectionView struct {
	// Held are the owner's shards.
	Held []ProjectionShard
	// Owners is how many projectors there are, this one included.
	Owners int
	// Free is how many shards nobody holds.
	Free int
}

// ProjectionShard is the state of a shard.
type ProjectionShard struct {
	Shard int
	// Epoch is the fencing token: it grows with every change of hands.
	Epoch  int64
	Cursor Cursor
	// Owner holds the shard, empty if nobody does.
	Owner string
	// Parked is where and why it has stopped, nil if it has not.
	Parked *Parked
}

// Parked is a shard that has stopped before an event that cannot be applied.
type Parked struct {
	ID     ProjectionID
	Shard  int
	At     Cursor
	Event  string // its ID
	Stream string
	// Reason is the last error.
	Reason string
	// Attempts is how often it was tried.
	Attempts int
	// Since is when it was parked, by the database's clock.
	Since time.Time
}

// Skipped is an event that an operator gave up.
type Skipped struct {
	Parked
	// Because is the operator's reason.
	Because string
	When    time.Time
}

// Projection builds a read model from events.
type Projection[T ModelTx] struct {
	// Name says what the read model is, such as "orders".
	Name string
	// Revision is the build. Raise it when Handle or the read model's tables change: the
	// new one is built beside the old. Zero means 1.
	Revision int
	// Filter selects the events, by Types and Prefix; [Codec.Types] are those that a codec
	// can read. Shard and Shards are set by the projector.
	Filter Filter
	// Shards is into how many parts the streams are divided, each applied in order by one
	// worker at a time. It cannot be changed for a revision. Zero means 1; at most Buckets.
	Shards int
	// Handle writes a batch, at least one event, into the read model by tx, in which the
	// checkpoint moves too. It has no side effects but those of tx, because a batch may be
	// rolled back and is then handled again, whole or in parts, and because a rebuild
	// handles everything again: messages belong to the append ([Publish]).
	Handle func(ctx context.Context, tx T, batch []Recorded) error
}

// Typed returns a Handle that decodes each event, upcasters included, and calls fn for each
// value, in order. A value that is no E is passed over; a type that the codec does not
// know is an error, so filter by [Codec.Types].
func Typed[T ModelTx, E any](c *Codec, fn func(ctx context.Context, tx T, value E, e Recorded) error) func(ctx context.Context, tx T, batch []Recorded) error {
	return func(ctx context.Context, tx T, batch []Recorded) error {
		for _, e := range batch {
			values, err := c.Decode(ctx, e.Event)
			if err != nil {
				return err
			}
			for _, v := range values {
				if value, ok := v.(E); ok {
					if err := fn(ctx, tx, value, e); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
}
