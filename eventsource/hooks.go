// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import "time"

// Hooks tell what happens, for metrics and traces. Every field may be nil. They are called
// outside locks, in the goroutine that does the work.
type Hooks struct {
	// Appended is called when events were written into a transaction, which may still be
	// rolled back.
	Appended func(Appended)
	// Conflicted is called when an append lost its race.
	Conflicted func(Conflicted)
	// Loaded is called when a [Repository] has loaded a state.
	Loaded func(Loaded)
	// SnapshotFailed is called when a snapshot could not be written or read, which slows the
	// next load down and has no other effect.
	SnapshotFailed func(SnapshotFailed)
}

// Appended are events that were written.
type Appended struct {
	Stream string
	Events []Event
	Took   time.Duration
}

// Conflicted is a lost race.
type Conflicted struct {
	Stream string
	Want   Expect
}

// Loaded is how a state was loaded.
type Loaded struct {
	Stream string
	// Version is what it is at, Snapshot the version of the snapshot it began from, zero without.
	Version, Snapshot int64
	Took              time.Duration
}

// SnapshotFailed is a snapshot that could not be used.
type SnapshotFailed struct {
	Stream string
	Err    error
}

// ProjectorHooks tell what a [Projector] does, for metrics and traces. Every field may be
// nil. They are called outside locks and hold up the shard they are about.
type ProjectorHooks struct {
	// Applied is called when a batch has been committed.
	Applied func(Applied)
	// Failed is called when a batch, or a single event, could not be applied.
	Failed func(ApplyFailed)
	// Parked is called when a shard has stopped at an event.
	Parked func(Parked)
	// Leased is called when the projector gets a shard or loses one.
	Leased func(Leased)
}

// Applied is a batch that was committed.
type Applied struct {
	ID     ProjectionID
	Shard  int
	Events int
	// Cursor is the new checkpoint.
	Cursor Cursor
	// Lag is the age of the batch's last event.
	Lag  time.Duration
	Took time.Duration
}

// ApplyFailed is a batch that was rolled back.
type ApplyFailed struct {
	ID     ProjectionID
	Shard  int
	Events int
	Err    error
	// Attempt counts the failures of a single event, zero for a larger batch or if
	// the failure does not count.
	Attempt int
}

// Leased is a change of a shard's lease.
type Leased struct {
	ID    ProjectionID
	Shard int
	Held  bool
}
