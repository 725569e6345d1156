// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package reporting

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/journal"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// TestRebuild reads the stream twice and has the second reading take the place of the first; then
// again after somebody has changed the figures behind the service's back. Of readings that are over the log keeps nothing.
func TestRebuild(t *testing.T) {
	dir := t.TempDir()
	stream, err := platform.OpenSQLite(filepath.Join(dir, "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	next, err := messagingmem.New(messagingmem.Config{})
	if err != nil {
		t.Fatal(err)
	}
	log, err := journal.Open(t.Context(), stream, next, func(_ context.Context, d messaging.DeadLetter) error {
		t.Errorf("dead letter: %s", d.Reason)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	db, err := platform.OpenSQLite(filepath.Join(dir, "reporting.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := New(t.Context(), platform.Env{Name: "reporting", DB: db, Broker: log, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.rest = time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	}()

	tell := func(what, order string, pieces int64) {
		t.Helper()
		m, err := kernel.NewMessage("order", kernel.OrderChanged{
			What: what, OrderID: order, Total: kernel.Money(100 * pieces), Lines: []kernel.OrderLine{{ProductID: "p1", Name: "Pen", Quantity: pieces, Price: 100}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := log.Publish(t.Context(), m); err != nil && !errors.Is(err, messaging.ErrUnroutable) {
			t.Fatal(err)
		}
	}
	for _, e := range []struct {
		what, order string
		pieces      int64
	}{
		{kernel.TopicOrderPlaced, "a", 2}, {kernel.TopicOrderPlaced, "b", 3}, {kernel.TopicOrderPlaced, "c", 5}, {kernel.TopicOrderPlaced, "d", 1},
		{kernel.TopicOrderConfirmed, "a", 2}, {kernel.TopicOrderConfirmed, "b", 3}, {kernel.TopicOrderRejected, "c", 5},
		{kernel.TopicOrderCancelled, "b", 3}, {kernel.TopicOrderCancelled, "d", 1}, {kernel.TopicOrderDispatched, "a", 2},
	} {
		tell(e.what, e.order, e.pieces)
	}
	serving := func(number int64, applied int64) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			builds, err := s.builds(t.Context(), `status = 'serving'`)
			if err != nil {
				t.Fatal(err)
			}
			if len(builds) == 1 && builds[0].Build == number && builds[0].Applied == applied {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("builds that serve: %+v, want build %d with %d events", builds, number, applied)
			}
		}
		var d day
		if err := db.QueryRowContext(t.Context(), `SELECT placed, confirmed, dispatched, rejected, cancelled, revenue FROM days WHERE build = $1`, number).
			Scan(&d.Placed, &d.Confirmed, &d.Dispatched, &d.Rejected, &d.Cancelled, &d.Revenue); err != nil {
			t.Fatal(err)
		}
		if want := (day{Placed: 4, Confirmed: 2, Dispatched: 1, Rejected: 1, Cancelled: 2, Revenue: 200}); d != want {
			t.Errorf("figures of build %d = %+v, want %+v", number, d, want)
		}
	}
	rebuild := func() {
		t.Helper()
		if err := s.rebuild(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", "/", nil)); err != nil {
			t.Fatal(err)
		}
	}
	onlyReader := func(want string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			names, err := platform.Collect(t.Context(), stream, func(row interface{ Scan(dest ...any) error }) (name string, err error) {
				err = row.Scan(&name)
				return name, err
			}, `SELECT name FROM readers`)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Equal(names, []string{want}) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the log has the places of %q, want that of %s", names, want)
			}
		}
	}
	serving(1, 10)
	onlyReader("reporting.1")
	rebuild()
	serving(2, 10)
	onlyReader("reporting.2")

	if _, err := db.ExecContext(t.Context(), `UPDATE products SET quantity = 7`); err != nil {
		t.Fatal(err)
	}
	rebuild()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		builds, err := s.builds(t.Context(), `status = 'different'`)
		if err != nil {
			t.Fatal(err)
		}
		if len(builds) == 1 && builds[0].Build == 3 && builds[0].Differences != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("builds with differences: %+v, want build 3", builds)
		}
	}
	serving(2, 10)
	onlyReader("reporting.2")
}
