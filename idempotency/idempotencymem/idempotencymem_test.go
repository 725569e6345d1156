// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencymem_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/idempotency/idempotencytest"
)

func open(t *testing.T) (*idempotencymem.Store, idempotencytest.Begin) {
	s := idempotencymem.New()
	db := s.OpenDB()
	t.Cleanup(func() { db.Close() })
	return s, func(ctx context.Context) (idempotencytest.Tx, error) { return db.BeginTx(ctx, nil) }
}

func TestInbox(t *testing.T) {
	idempotencytest.RunInbox(t, func(t *testing.T) (idempotency.Inbox, idempotencytest.Begin) { return open(t) })
}

func TestStore(t *testing.T) {
	idempotencytest.RunStore(t, func(*testing.T) idempotency.Store { return idempotencymem.New() })
}

func TestTxStore(t *testing.T) {
	idempotencytest.RunTxStore(t, func(t *testing.T) (idempotency.TxStore, idempotencytest.Begin) { return open(t) })
}

func TestConsumer(t *testing.T) {
	idempotencytest.RunConsumer(t, func(t *testing.T) (*sql.DB, idempotency.Inbox) {
		s := idempotencymem.New()
		db := s.OpenDB()
		t.Cleanup(func() { db.Close() })
		db.SetMaxOpenConns(1)
		return db, s
	})
}
