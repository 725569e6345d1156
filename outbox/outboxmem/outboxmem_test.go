// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outboxmem_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
	"github.com/dovetail-go/dovetail/outbox/outboxtest"
)

func TestStore(t *testing.T) {
	outboxtest.Run(t, func(*testing.T) outboxtest.Subject {
		store := outboxmem.New()
		return outboxtest.Subject{Store: store, Begin: func(context.Context) (outboxtest.Tx, error) { return store.Begin(), nil }}
	})
}

func TestTx(t *testing.T) {
	store := outboxmem.New()
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	message := func() *messaging.Message { return &messaging.Message{Topic: "t"} }
	t.Run("has no SQL", func(t *testing.T) {
		if _, err := store.Begin().ExecContext(t.Context(), "DELETE FROM everything"); err == nil {
			t.Error("ExecContext = nil, want an error")
		}
	})
	t.Run("ends once", func(t *testing.T) {
		tx := store.Begin()
		if err := tx.Commit(); err != nil {
			t.Errorf("Commit = %v, want nil", err)
		}
		for name, err := range map[string]error{
			"Commit": tx.Commit(), "Rollback": tx.Rollback(), "Enqueue": box.Enqueue(t.Context(), tx, message()),
		} {
			if !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("%s after the end = %v, want ErrTxDone", name, err)
			}
		}
	})
	t.Run("belongs to its store", func(t *testing.T) {
		for _, tx := range []outbox.Tx{outboxmem.New().Begin(), (*sql.Tx)(nil), (*outboxmem.Tx)(nil)} {
			if err := box.Enqueue(t.Context(), tx, message()); err == nil {
				t.Errorf("Enqueue with a strange %T = nil, want an error", tx)
			}
		}
	})
	t.Run("keeps its own copy of what may change", func(t *testing.T) {
		m := &messaging.Message{Topic: "t", Header: messaging.Header{"a": "1"}}
		tx := store.Begin()
		if err := errors.Join(box.Enqueue(t.Context(), tx, m), tx.Commit()); err != nil {
			t.Fatal(err)
		}
		m.Topic, m.Header["a"] = "changed", "2"
		for shard := range outboxmem.Shards {
			rows, err := store.Read(t.Context(), []outbox.Read{{Shard: shard, Limit: 10}})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rows {
				if r.Message.Topic != "t" || r.Message.Header["a"] != "1" {
					t.Errorf("stored = %+v, want it as it was enqueued", r.Message)
				}
			}
		}
	})
}
