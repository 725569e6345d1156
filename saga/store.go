// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// ErrLost is returned by [Store.SaveTx] for a change that came too late: the saga has
// another owner, or has moved on.
var ErrLost = errors.New("saga: lost the race")

// Store keeps sagas. sagasql and sagamem implement it; sagatest checks an
// implementation. Users of sagas do not call it.
//
// All times are the store's own: callers pass durations. Every method may be called
// from many goroutines and from many processes at once. After an error it is
// unknown whether a write took place, unless stated otherwise.
type Store interface {
	// Start inserts a running saga as a part of tx, on which it calls nothing but
	// ExecContext. If the ID exists with the same name and input, it does nothing; with
	// others it returns ErrConflict. It must not end tx, nor leave it broken.
	Start(ctx context.Context, tx Tx, s Beginning) error
	// Begin does the same with several sagas in a transaction of its own, and returns what has
	// become of each. An ID comes at most once with an Owner.
	Begin(ctx context.Context, sagas []Beginning) ([]Begun, error)

	// Beat extends the lease of a node, or begins it.
	Beat(ctx context.Context, node string, lease time.Duration) error
	// Leave ends the lease and frees the node's sagas.
	Leave(ctx context.Context, node string) error

	// Claim gives the node up to Limit sagas that are due, oldest first: those without an
	// owner and those whose owner has no lease. It raises their epoch. Two calls never
	// return the same epoch of a saga.
	Claim(ctx context.Context, c Claim) ([]Record, error)
	// Owned returns the sagas that the node owns, for a node that does not know what a
	// failed Claim gave it.
	Owned(ctx context.Context, node string) ([]Record, error)

	// Save makes those changes whose saga still has the epoch and revision they name, each
	// with its history entries, and returns the indices of the others. All of it commits
	// together.
	Save(ctx context.Context, changes []Change) (lost []int, err error)
	// SaveTx calls fn with a transaction and makes the change that fn returns in the same
	// transaction. It returns ErrLost, with everything rolled back, for a change that is
	// too late, and fn's own error with everything rolled back. It may call fn again
	// after a failure that rolled back. The transaction is nil if the store has none.
	SaveTx(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) (Change, error)) error

	// Deliver keeps a signal as a part of tx, on which it calls nothing but ExecContext, or
	// in a transaction of its own if tx is nil, and reports whether it was the first for its
	// saga, step and operation; others are dropped. A first one raises the saga's Signals and
	// makes it due, if it exists and has neither ended nor is parked.
	Deliver(ctx context.Context, tx Tx, s Signal) (first bool, err error)
	// Signals returns what was delivered to a saga, whether it exists or not.
	Signals(ctx context.Context, id string) ([]Signal, error)

	// Lock makes the saga the holder of a key as a part of tx, and returns the holder: another
	// saga if the key was taken. Then the saga is noted as waiting for it. It waits for
	// transactions in progress that take or free the key. Tx is nil if the store has none.
	Lock(ctx context.Context, tx *sql.Tx, key, id string) (holder string, err error)
	// Unlock frees the saga's keys as a part of tx, forgets that it waits for any, and raises
	// the Signals of some that wait for them and makes those due. It is called once at least
	// for a saga that has called Lock.
	Unlock(ctx context.Context, tx *sql.Tx, id string) error

	// Load returns one saga, or ErrNotFound.
	Load(ctx context.Context, id string) (Record, error)
	// List returns the sagas that f selects, newest first.
	List(ctx context.Context, f Filter) ([]Record, error)
	// Count counts the sagas that have not ended.
	Count(ctx context.Context) (Counts, error)
	// History returns the entries of a saga, oldest first.
	History(ctx context.Context, id string) ([]Entry, error)
	// Archive moves up to limit sagas that ended longer ago than age to the archive, with their
	// history, and returns how many. It leaves those whose Root exists and has not ended, and
	// drops the signals of those it moves. A saga is moved wholly or not at all, and once if many
	// call Archive at the same time. From then on it does not change; Load, History and Start
	// treat it as before, List by Filter.Archived. Start keeps to that against an Archive in
	// progress: Claim never returns a saga that is archived already.
	Archive(ctx context.Context, age time.Duration, limit int) (int, error)
	// Prune deletes up to limit sagas that ended longer ago than age, archived or not, with
	// their history and signals, and returns how many. It leaves those whose Root exists and has
	// not ended. It also deletes signals that old for sagas that do not exist.
	Prune(ctx context.Context, age time.Duration, limit int) (int, error)
}

// Counts is how many sagas have not ended.
type Counts struct {
	// Running and Compensating are how many have that status.
	Running, Compensating int
	// Stuck is how many of them need an operator.
	Stuck int
	// Oldest is how long ago the oldest of them was started.
	Oldest time.Duration
}

// Signal is something from outside that a saga waits for: a reply, an event, or the
// end of a child.
type Signal struct {
	// Saga, Step and Op name what waits for it.
	Saga, Step, Op string
	// Data is JSON.
	Data []byte
}

// Beginning is a saga to be started.
type Beginning struct {
	// ID is the saga's ID.
	ID string
	// Name and Version are those of the definition.
	Name    string
	Version int
	// Step is the name of the first step.
	Step string
	// Data is the user's value as JSON.
	Data []byte
	// Input identifies the input: a repeated start must bring the same.
	Input string
	// Deadline is how long the saga may take to its pivot, zero for ever.
	Deadline time.Duration
	// Notes are the engine's own, as in Record.
	Notes []byte
	// Header comes back in [Instance.Header]. Empty is none.
	Header messaging.Header
	// Root is the ID of the saga that stands above this one and all its parents, empty if
	// there is none. It may have this one undone as long as it has not ended.
	Root string
	// Waits is true if something may be delivered to the saga. Then Signals counts what was
	// delivered before, and a delivery in progress waits for tx, or tx for it.
	Waits bool
	// Owner is the node that owns the saga from the start, as if it had claimed it. Empty is
	// none; a saga that Waits has none.
	Owner string
}

// Begun is what has become of a [Beginning].
type Begun struct {
	// Record is the saga if it is new and has an owner, else nil.
	Record *Record
	// Err is ErrConflict, or nil.
	Err error
}

// Claim is what a node asks for.
type Claim struct {
	// Node becomes the owner.
	Node string
	// Limit is how many sagas it takes at most.
	Limit int
	// Definitions are those that the node can run. Others are claimed only when they have
	// been due for longer than Foreign.
	Definitions []DefinitionKey
	Foreign     time.Duration
}

// DefinitionKey names one version of a definition.
type DefinitionKey struct {
	Name    string
	Version int
}

// Record is a saga with what only engine and store need.
type Record struct {
	Instance
	// Revision grows with every change.
	Revision int64
	// Takeovers counts how often it was claimed from a node that had died, since the last change.
	Takeovers int
	// Signals counts what was delivered to it.
	Signals int64
	// Notes are the engine's own, as JSON. Empty is none.
	Notes []byte
	// Now is the store's clock when the record was read.
	Now time.Time
}

// Change is the next state of a saga, to be written if nobody else was faster.
type Change struct {
	ID string
	// Epoch and Revision are what the saga must still have.
	Epoch, Revision int64

	// The new values.
	Status  Status
	Step    string
	Attempt int
	Reason  string
	Stuck   string
	Parked  bool
	Cancel  string
	Data    []byte
	Notes   []byte
	// Version is the definition's new version, zero to leave it.
	Version int

	// Entries are added to the history, with N counted from Revision+1. The new revision
	// is that of the last entry, and Revision+1 if there is none.
	Entries []Entry
	// Due tells when the saga may be claimed next.
	Due Due
	// After is the delay of DueAfter, and the longest of DueWait, where zero is none.
	After time.Duration
	// Signals is what DueWait has seen.
	Signals int64
	// Release gives up the ownership.
	Release bool
}

// NewRevision returns the revision of the saga after the change.
func (c Change) NewRevision() int64 { return c.Revision + int64(max(1, len(c.Entries))) }

// Due tells when a saga may be claimed next.
type Due uint8

const (
	// DueKeep leaves it as it is.
	DueKeep Due = iota
	// DueAfter sets it to a delay from now.
	DueAfter
	// DueNever is for sagas that have ended or are parked.
	DueNever
	// DueWait is for sagas that wait: due at the next signal, at once if there was one that
	// the change has not seen, or after a delay.
	DueWait
)
