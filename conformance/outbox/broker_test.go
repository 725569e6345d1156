// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// busy is a broker that takes its time, over several heartbeats and polls of the relay. Until
// it is done it makes transactions on the only connection that there is, which it gets only
// while the relay has none open.
type busy struct {
	db   *sql.DB
	done chan error
}

func (b busy) Publish(ctx context.Context, _ ...*messaging.Message) (err error) {
	defer func() { b.done <- err }()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for range 20 {
		tx, err := b.db.BeginTx(ctx, nil)
		if err != nil {
			return fmt.Errorf("a transaction beside the relay's: %w", err)
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// A transaction that stays open during the broker's work keeps the database from cleaning up,
// holds locks, and costs a connection for as long as the broker hangs.
func TestNoTransactionIsOpenWhileTheBrokerIsWaitedFor(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		db.SetMaxOpenConns(1)
		box, err := outbox.New(open(t, db, name, outboxsql.Config{}), outbox.Config{})
		if err != nil {
			t.Fatal(err)
		}
		b := busy{db: db, done: make(chan error, 100)} // a lost lease has it published again
		start(t, box, b, outbox.RelayConfig{Lease: time.Second, Poll: 10 * time.Millisecond, DrainTimeout: time.Minute})
		if err := box.Enqueue(t.Context(), db, &messaging.Message{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
		box.Wake()
		if err := <-b.done; err != nil {
			t.Error(err)
		}
	})
}
