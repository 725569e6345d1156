// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

func busOn(t *testing.T, db *sql.DB) *Bus {
	t.Helper()
	broker, err := messagingmem.New(messagingmem.Config{DropUnroutable: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewBus(t.Context(), Env{Name: "stock", DB: db, Broker: broker, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func message(id, key string) *messaging.Message {
	return &messaging.Message{ID: id, Topic: "stock.changed", Key: key, Type: "stock.changed.v1", Time: time.Now(), Body: []byte("{}")}
}

// TestApplied hands messages to a consumer and reads what is then on record.
func TestApplied(t *testing.T) {
	db, err := OpenSQLite(filepath.Join(t.TempDir(), "stock.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	b := busOn(t, db)
	broken := true
	handler := b.On("stock", []string{"stock.*"}, func(_ context.Context, _ *sql.Tx, d *messaging.Delivery) error {
		if d.Message.ID == "a2" && broken {
			return messaging.Reject(errors.New("broken"))
		}
		return nil
	}).Handler
	recorded := func() (out []string) {
		t.Helper()
		out, err := Collect(t.Context(), db, func(row interface{ Scan(dest ...any) error }) (s string, err error) {
			err = row.Scan(&s)
			return s, err
		}, `SELECT consumer || ' ' || message_key || position || ': ' || message_id || CASE replayed WHEN 1 THEN ', replayed' ELSE '' END FROM applied ORDER BY message_key, position`)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, id := range []string{"a1", "b1", "a1", "a2", "a3"} { // a1 comes twice
		err := handler.Handle(t.Context(), &messaging.Delivery{Message: message(id, id[:1]), Group: "stock", Attempt: 1})
		if (err != nil) != (id == "a2") {
			t.Fatalf("%s: %v", id, err)
		}
	}
	if got, want := recorded(), []string{"stock a1: a1", "stock a2: a3", "stock b1: b1"}; !slices.Equal(got, want) {
		t.Errorf("on record is %v, want %v", got, want)
	}

	t.Run("what an operator replays is on record as such", func(t *testing.T) {
		if err := b.KeepDeadLetter(t.Context(), messaging.DeadLetter{Delivery: messaging.Delivery{Message: message("a2", "a"), Group: "stock", Attempt: 1}, Reason: "broken", At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		broken = false
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.SetPathValue("consumer", "stock")
		r.SetPathValue("message", "a2")
		if err := b.replay(httptest.NewRecorder(), r); err != nil {
			t.Fatal(err)
		}
		if got, want := recorded(), []string{"stock a1: a1", "stock a2: a3", "stock a3: a2, replayed", "stock b1: b1"}; !slices.Equal(got, want) {
			t.Errorf("on record is %v, want %v", got, want)
		}
	})
	t.Run("what is published stays in the archive, and both are pruned by age", func(t *testing.T) {
		archived := func() (n int) {
			t.Helper()
			if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM outbox_archive`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		if err := b.InTx(ctx, func(tx *sql.Tx) error { return b.outbox.Enqueue(ctx, tx, message("c1", "c")) }); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); archived() != 1; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d messages in the archive, want 1", archived())
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if err := b.prune(t.Context(), time.Hour, time.Hour); err != nil || archived() != 1 || len(recorded()) != 4 {
			t.Errorf("after an hour's pruning (%v) there are %d and %d, want 1 and 4", err, archived(), len(recorded()))
		}
		if err := b.prune(t.Context(), 0, -time.Hour); err != nil || archived() != 0 || len(recorded()) != 0 {
			t.Errorf("after pruning all (%v) there are %d and %d, want none", err, archived(), len(recorded()))
		}
	})
}

// TestAppliedOneByOne has a broker that breaks its promise hand out two messages of a key at once: the second is not
// applied beside the first, nor before it.
func TestAppliedOneByOne(t *testing.T) {
	dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
	if dsn == "" {
		testserver.Missing(t, "DOVETAIL_POSTGRES_DSN is not set: run scripts/services up postgres && eval \"$(scripts/services env)\"")
	}
	schema := "applied" + strings.ToLower(rand.Text())
	db, err := OpenPostgres(t.Context(), dsn, schema)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	defer func() {
		if _, err := db.ExecContext(context.WithoutCancel(t.Context()), "DROP SCHEMA "+schema+" CASCADE"); err != nil {
			t.Error(err)
		}
	}()
	b := busOn(t, db)
	first, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Rollback() }()
	if err := b.Applied(t.Context(), first, &messaging.Delivery{Message: message("a1", "a"), Group: "stock"}); err != nil {
		t.Fatal(err)
	}
	handler := b.On("stock", []string{"stock.*"}, func(context.Context, *sql.Tx, *messaging.Delivery) error { return nil }).Handler
	handle := func(id, key string) error {
		return handler.Handle(t.Context(), &messaging.Delivery{Message: message(id, key), Group: "stock", Attempt: 1})
	}
	if err := handle("b1", "b"); err != nil {
		t.Errorf("a message of another key: %v, want it applied", err)
	}
	second := make(chan error, 1)
	go func() { second <- handle("a2", "a") }()
	eventually := time.Now().Add(time.Minute)
	for waits := 0; waits == 0; time.Sleep(5 * time.Millisecond) {
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'`, schema).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(eventually) {
			t.Fatal("the second message of a key does not wait for the first")
		}
	}
	if err := first.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err == nil {
		t.Error("a second message of a key = nil while the first was applied, want an error, so that it comes again")
	}
	if err := handle("a2", "a"); err != nil {
		t.Errorf("delivered again: %v, want it applied", err)
	}
}

// TestHear begins a service on a new database, and newer versions of it, which hear more, on the same one.
func TestHear(t *testing.T) {
	onBoth(t, func(t *testing.T, db *sql.DB) {
		b := busOn(t, db)
		heard := func(group string, topics ...string) Consumer {
			return Consumer{Subscription: Group(group, topics...)}
		}
		// since is when each topic began to be heard: at the beginning, or later.
		since := func(consumers ...Consumer) (out []string) {
			t.Helper()
			if err := b.hear(t.Context(), consumers); err != nil {
				t.Fatal(err)
			}
			out, err := Collect(t.Context(), db, func(row interface{ Scan(dest ...any) error }) (s string, err error) {
				err = row.Scan(&s)
				return s, err
			}, `SELECT consumer || ' ' || topic || CASE WHEN since = 0 THEN '' WHEN since > $1 THEN ' later' ELSE ' too early' END FROM hears ORDER BY consumer, topic`,
				time.Now().UnixMicro())
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		stock, more := heard("stock", "stock.changed"), heard("stock", "stock.changed", "stock.counted")
		if got, want := since(stock), []string{"stock stock.changed"}; !slices.Equal(got, want) {
			t.Errorf("a new database: %q, want %q", got, want)
		}
		handler := b.On("stock", []string{"stock.*"}, func(context.Context, *sql.Tx, *messaging.Delivery) error { return nil }).Handler
		if err := handler.Handle(t.Context(), &messaging.Delivery{Message: message("a1", "a"), Group: "stock", Attempt: 1}); err != nil {
			t.Fatal(err)
		}
		want := []string{"goods goods.changed later", "stock stock.changed", "stock stock.counted later"}
		for _, when := range []string{"a newer version", "the same once more"} {
			if got := since(more, heard("goods", "goods.changed")); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		if _, err := db.ExecContext(t.Context(), `DELETE FROM hears`); err != nil {
			t.Fatal(err)
		}
		if got := since(more); !slices.Equal(got, want[1:]) {
			t.Errorf("a database of before there was the record: %q, want %q", got, want[1:])
		}
	})
}
