// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// TestFollows compares what one service has published with what a group of another has applied, in either database.
func TestFollows(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		dir := t.TempDir()
		testFollows(t, func(service string) (*sql.DB, error) { return platform.OpenSQLite(filepath.Join(dir, service+".db")) })
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
		if dsn == "" {
			testserver.Missing(t, "DOVETAIL_POSTGRES_DSN is not set: run scripts/services up postgres && eval \"$(scripts/services env)\"")
		}
		unique := strings.ReplaceAll(messaging.NewID(), "-", "")
		testFollows(t, func(service string) (*sql.DB, error) {
			schema := service + "_" + unique
			db, err := platform.OpenPostgres(t.Context(), dsn, schema)
			if err == nil {
				t.Cleanup(func() {
					_, _ = db.ExecContext(context.WithoutCancel(t.Context()), "DROP SCHEMA "+schema+" CASCADE")
				})
			}
			return db, err
		})
	})
}

func testFollows(t *testing.T, open func(service string) (*sql.DB, error)) {
	t.Helper()
	c := &checker{db: map[string]*sql.DB{}}
	for _, service := range []string{"payment", "order"} {
		db, err := open(service)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		broker, err := messagingmem.New(messagingmem.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := platform.NewBus(t.Context(), platform.Env{Name: service, Instance: service, DB: db, Broker: broker, Log: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(2)
		c.db[service] = db
	}
	do := func(service, statement string, args ...any) {
		t.Helper()
		if _, err := c.db[service].ExecContext(t.Context(), statement, args...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	// IDs of this moment, and of when the archive has forgotten what was published.
	id := func(name string, age time.Duration) string {
		ms := time.Now().Add(-age).UnixMilli()
		return fmt.Sprintf("%08x-%04x-7000-8000-%012x", ms>>16, ms&0xffff, name)
	}
	place := 0
	publish := func(table, key, message string, enqueued int64) {
		place++
		extra, values := "published", "1"
		if table == "outbox_parked" {
			extra, values = "reason, attempts, parked, blocks, discarded, discard_reason", "'refused', 1, 1, 0, 1, 'nobody wants it'"
		}
		do("payment", `INSERT INTO `+table+` (id, shard, message_id, topic, message_key, message_type, happened, header, body, enqueued, `+extra+`)
			VALUES ($1, 0, $2, 'payment.changed', $3, 't', 1, '', '', $4, `+values+`)`, place, message, key, enqueued)
	}
	apply := func(key, message string) {
		place++
		do("order", `INSERT INTO applied (consumer, message_key, position, message_id, topic, replayed, at) VALUES ('order', $1, $2, $3, 'payment.changed', 0, 1)`, key, place, message)
	}
	now := time.Now().UnixMicro()
	a, b, given, early, lost, ghost, old, late := id("a", 0), id("b", 0), id("g", 0), id("e", 0), id("l", 0), id("x", 0), id("o", platform.PublishedFor), "made by hand"
	publish("outbox_archive", "k-1", a, now)
	publish("outbox_parked", "k-1", given, now)
	publish("outbox_archive", "k-1", b, now)
	publish("outbox_archive", "k-2", early, 1) // before the group listened
	publish("outbox_archive", "k-3", lost, now)
	publish("outbox_parked", "k-4", id("h", 0), now) // and perhaps nobody has heard it
	apply("k-0", ghost)
	apply("k-1", old)
	apply("k-1", given) // the broker had it although it did not say so
	apply("k-1", b)
	apply("k-1", a)
	apply("k-9", late)

	g := group{service: "order", name: "order", topics: []string{kernel.TopicPaymentChanged}, since: map[string]int64{kernel.TopicPaymentChanged: 2}}
	var i Invariant
	applications, err := c.follows(t.Context(), &i, "payment", g, []string{kernel.TopicPaymentChanged})
	if err != nil {
		t.Fatal(err)
	}
	i = i.atRest()
	want := []string{
		"order has applied payment.changed " + a + " of k-1 after payment.changed " + b + ", which came later",
		"order has applied payment.changed " + ghost + " of k-0, which payment has not published",
		"order has not applied payment.changed " + lost + " of k-3",
		"order has applied payment.changed " + late + " of k-9, which payment has not published",
	}
	if !slices.Equal(i.Violations, want) {
		t.Errorf("violations are\n%s\nwant\n%s", strings.Join(i.Violations, "\n"), strings.Join(want, "\n"))
	}
	if applications != 3 {
		t.Errorf("%d events are applied, want 3", applications)
	}

	// A group that has begun to listen just now may have heard what was published shortly before.
	g.since[kernel.TopicPaymentChanged] = time.Now().Add(time.Minute).UnixMicro()
	i = Invariant{}
	if _, err := c.follows(t.Context(), &i, "payment", g, []string{kernel.TopicPaymentChanged}); err != nil {
		t.Fatal(err)
	}
	if got := i.atRest().Violations; !slices.Equal(got, want[3:]) {
		t.Errorf("of a group that has begun to listen the violations are %q, want %q", got, want[3:])
	}
}
