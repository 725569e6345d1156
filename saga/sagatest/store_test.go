// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

// failing returns the sentences that a store does not keep.
func failing(t *testing.T, open func() saga.Store) []string {
	t.Helper()
	var sentences []string
	for _, c := range slices.Concat(storeChecks, waitChecks) {
		if c.needsTx {
			continue
		}
		r := &recorder{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() {
				if v := recover(); v != nil && v != errFatal {
					r.failed = true
				}
			}()
			c.run(&storeTest{r, Setup{Store: open()}})
		}()
		<-done
		if r.failed {
			sentences = append(sentences, c.sentence)
		}
	}
	return sentences
}

// recorder stands in for the test of a check.
type recorder struct {
	testing.TB
	failed bool
}

var errFatal = fmt.Errorf("fatal")

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; panic(errFatal) }

// broken is a store that breaks one promise.
type broken struct {
	*sagamem.Store
	what string
}

func (b broken) Save(ctx context.Context, changes []saga.Change) ([]int, error) {
	changes = slices.Clone(changes)
	for i := range changes {
		c := &changes[i]
		switch rec, err := b.Load(ctx, c.ID); {
		case err != nil:
		case b.what == "no fencing":
			c.Epoch, c.Revision = rec.Epoch, rec.Revision
		case b.what == "lost wake-up" && c.Due == saga.DueWait:
			c.Signals = rec.Signals
		case b.what == "no history":
			c.Entries = nil
		}
	}
	return b.Store.Save(ctx, changes)
}

func (b broken) SaveTx(ctx context.Context, fn func(context.Context, *sql.Tx) (saga.Change, error)) error {
	if b.what == "swallowed errors" {
		_ = b.Store.SaveTx(ctx, fn)
		return nil
	}
	return b.Store.SaveTx(ctx, fn)
}

func (b broken) Claim(ctx context.Context, c saga.Claim) ([]saga.Record, error) {
	if b.what == "any definition" {
		c.Foreign = 0
	}
	return b.Store.Claim(ctx, c)
}

func (b broken) Lock(ctx context.Context, tx *sql.Tx, key, id string) (string, error) {
	if b.what == "no locks" {
		return id, nil
	}
	return b.Store.Lock(ctx, tx, key, id)
}

func (b broken) Deliver(ctx context.Context, tx saga.Tx, g saga.Signal) (bool, error) {
	first, err := b.Store.Deliver(ctx, tx, g)
	return first || b.what == "every signal is the first", err
}

func (b broken) Start(ctx context.Context, tx saga.Tx, s saga.Beginning) error {
	if b.what == "no header" {
		s.Header = nil
	}
	return b.Store.Start(ctx, tx, s)
}

func (b broken) Archive(ctx context.Context, age time.Duration, limit int) (int, error) {
	if b.what == "archive ignores age" {
		age = -time.Hour
	}
	if b.what == "archive deletes" {
		return b.Store.Prune(ctx, age, limit)
	}
	return b.Store.Archive(ctx, age, limit)
}

func (b broken) Begin(ctx context.Context, list []saga.Beginning) ([]saga.Begun, error) {
	begun, err := b.Store.Begin(ctx, list)
	for i := range begun {
		if b.what == "begin gives what exists" && begun[i].Record == nil && begun[i].Err == nil {
			rec, _ := b.Load(ctx, list[i].ID)
			begun[i].Record = &rec
		}
	}
	return begun, err
}

func (b broken) Prune(ctx context.Context, age time.Duration, limit int) (int, error) {
	if b.what == "prune ignores age" {
		age = -time.Hour
	}
	return b.Store.Prune(ctx, age, limit)
}

func TestTheStoreChecksCanFail(t *testing.T) {
	for what, want := range map[string]string{
		"":                          "",
		"no fencing":                "save refuses another epoch another revision and an unknown saga",
		"lost wake-up":              "a signal that a wait has not seen makes it due at once",
		"no header":                 "the header of the start comes back with every record",
		"no history":                "the history is in order and numbered by revision",
		"swallowed errors":          "a cancelled context ends a call with an error",
		"any definition":            "a claim leaves foreign definitions to others for a while",
		"no locks":                  "a key has one holder at a time and its end wakes those who wait",
		"every signal is the first": "the first signal of a step and operation counts",
		"archive ignores age":       "archive moves what ended long ago and it is still found",
		"archive deletes":           "a start of an archived saga is as that of any other",
		"begin gives what exists":   "begin treats what exists as start does",
		"prune ignores age":         "prune deletes what ended long ago with its history",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			got := failing(t, func() saga.Store { return broken{sagamem.New(), what} })
			if want == "" && len(got) > 0 || want != "" && !slices.Contains(got, want) {
				t.Errorf("a store with %q fails %q, want %q", what, got, want)
			}
		})
	}
}
