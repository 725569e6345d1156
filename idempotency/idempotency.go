// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/fault"
)

var (
	// ErrInProgress means that the same message or command is being handled by somebody
	// else right now, and whether that ends well is not known yet. Nothing was done.
	// For package fault it is neutral and may be tried again after a second.
	ErrInProgress = fault.Judged(errors.New("idempotency: in progress elsewhere"),
		fault.Verdict{Outcome: fault.Neutral, Retry: true, After: time.Second})
	// ErrMismatch means that the key belongs to a command with another fingerprint.
	// Nothing was done, and trying again cannot help.
	ErrMismatch = fault.Permanent(errors.New("idempotency: key belongs to another request"))
	// ErrLeaseLost means that the claim is no longer its owner's: the lease ran out and
	// another took the key, or the key was released. Nothing was stored. For package
	// fault it is neutral and may be tried again after a second, which finds the new
	// owner's result.
	ErrLeaseLost = fault.Judged(errors.New("idempotency: lease lost"),
		fault.Verdict{Outcome: fault.Neutral, Retry: true, After: time.Second})
)

const (
	// DefaultLease is the lease of a [Command] where neither it nor the store's
	// configuration names one.
	DefaultLease = 30 * time.Second
	// DefaultRetention is the retention of a [Command] where neither it nor the store's
	// configuration names one.
	DefaultRetention = 24 * time.Hour
)

// maxName bounds every name that a store keeps, in bytes: it is what the IETF draft's
// implementations take as a key, and what every database can index.
const maxName = 255

// Key names one command.
type Key struct {
	// Scope keeps the IDs of different callers and operations apart, since callers choose
	// their IDs: "alice POST /orders". It may be empty where one part of one program
	// makes all the IDs. At most 255 bytes of UTF-8.
	Scope string
	// ID is what the caller calls the command. 1 to 255 bytes of UTF-8.
	ID string
}

// Command is what a caller asks a [Store] to begin.
type Command struct {
	// Key names the command.
	Key Key
	// Fingerprint tells commands under one key apart, such as a SHA-256 of the request: a
	// repetition has the same one. Empty if the key alone says everything. At most 255
	// bytes.
	Fingerprint []byte
	// Lease is how long the claim stays with an owner that shows no sign of life. Zero
	// leaves it to the store, which means [DefaultLease].
	Lease time.Duration
	// Retention is how long the store remembers the command, counted from Begin. Zero
	// leaves it to the store, which means [DefaultRetention].
	Retention time.Duration
}

// Validate returns nil if every store may take c, and otherwise an error that names the
// field, its value and what is wanted. Stores call it first in Begin.
func (c Command) Validate() error {
	if c.Key.Scope != "" {
		if err := checkName("Key.Scope", c.Key.Scope); err != nil {
			return err
		}
	}
	if err := checkName("Key.ID", c.Key.ID); err != nil {
		return err
	}
	switch {
	case len(c.Fingerprint) > maxName:
		return fault.Permanent(fmt.Errorf("idempotency: Command.Fingerprint has %d bytes, want at most %d, such as a SHA-256", len(c.Fingerprint), maxName))
	case c.Lease < 0:
		return fault.Permanent(fmt.Errorf("idempotency: Command.Lease is %v, want 0 or more", c.Lease))
	case c.Retention < 0:
		return fault.Permanent(fmt.Errorf("idempotency: Command.Retention is %v, want 0 or more", c.Retention))
	}
	return nil
}

// checkName holds a name to what every store keeps byte by byte. A database would refuse
// the rest, and on PostgreSQL that ends the caller's transaction.
func checkName(field, s string) error {
	if s == "" || len(s) > maxName {
		return fault.Permanent(fmt.Errorf("idempotency: %s has %d bytes, want 1 to %d", field, len(s), maxName))
	}
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return fault.Permanent(fmt.Errorf("idempotency: %s is %q, want UTF-8 text without NUL", field, s))
	}
	return nil
}

// Claim is what [Store].Begin found: either the command is the caller's to run, or it
// is done.
type Claim struct {
	// Key is the command's.
	Key Key
	// Lease is the one in effect: the owner calls Extend well before it has passed.
	Lease time.Duration
	// Token is the fencing token, unlike that of every other claim ever made; the store
	// takes a write only from the claim that it gave the key to last. Empty if Done.
	Token string
	// Done is true if the command was completed before: Result is what was stored, and
	// there is nothing to run.
	Done bool
	// Result is what Complete stored.
	Result []byte
}

// Store remembers commands and their results. [HTTP] and [Do] are its users; most
// programs only pass one from its maker to them.
//
// Each method is atomic and visible to every user of the same store when it returns;
// all may be called from many goroutines and processes at once. Time is the store's
// own. An error that is none of this package's leaves open whether the call took
// effect; each may be repeated.
//
// A claim is lost when another Begin took its key, not when its lease has passed: until
// then its owner may still extend, complete and release it.
type Store interface {
	// Begin claims the key of cmd for the caller. Exactly one of many callers gets it:
	//
	//   - a key that is unknown, released, or forgotten after its retention, is claimed;
	//   - a key with another fingerprint is [ErrMismatch], whatever its state;
	//   - a completed key is returned as Done, with its result;
	//   - a key whose claim was begun or extended less than its lease ago is
	//     [ErrInProgress];
	//   - a key whose lease has passed is claimed from its owner, who has lost it.
	//
	// An invalid command is an error and claims nothing.
	Begin(ctx context.Context, cmd Command) (Claim, error)
	// Extend starts the claim's lease anew. It is [ErrLeaseLost] if the claim was lost,
	// released or completed.
	Extend(ctx context.Context, c Claim) error
	// Complete stores result for the rest of the retention and ends the claim. If this
	// claim has completed before, the earlier result stays and Complete returns nil. It
	// is [ErrLeaseLost] if the claim was lost or released.
	Complete(ctx context.Context, c Claim, result []byte) error
	// Release frees the key as if it had never been begun. If the claim was lost,
	// released or completed, Release does nothing and returns nil.
	Release(ctx context.Context, c Claim) error
}

// TxStore is a [Store] that can also complete a command in the caller's own
// transaction. [Save] needs one.
type TxStore interface {
	Store
	// CompleteTx stores result as Complete does, if and when tx commits: the result and
	// whatever else the transaction did become visible together or not at all. From then
	// until the transaction has ended nobody can take the key, whatever its lease says.
	// A later CompleteTx of the same claim replaces the result. It is [ErrLeaseLost] if
	// the claim was lost or released; the transaction stays usable, but its owner must
	// roll it back.
	CompleteTx(ctx context.Context, tx Tx, c Claim, result []byte) error
}
