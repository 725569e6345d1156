// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/messaging"
)

// live is what a stream has told.
type live struct {
	moment
	view
}

// watched opens the live history of an order at an instance. It ends with the test.
func (s *Service) watched(t *testing.T, order string) <-chan live {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("GET /orders/{id}/events", platform.Handle(s.events))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop) // before the server is closed, which waits for its streams
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/orders/"+order+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan live, 1000)
	go func() {
		defer func() { _ = resp.Body.Close() }()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var l live
				_ = json.Unmarshal([]byte(data), &l.moment)
				_ = json.Unmarshal([]byte(data), &l.view)
				told <- l
			}
		}
	}()
	return told
}

// tells waits until a stream has told what is wanted.
func tells(t *testing.T, told <-chan live, what string, wanted func(live) bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case l := <-told:
			if wanted(l) {
				return
			}
		case <-deadline:
			t.Fatalf("the stream does not tell %s", what)
		}
	}
}

func placedMoment(l live) bool { return l.What == kernel.TopicOrderPlaced }

// TestLiveAcrossInstances watches an order at one instance while another one works on it. Nobody looks by
// themselves within the test: what the stream tells, it was told.
func TestLiveAcrossInstances(t *testing.T) {
	dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
	if dsn == "" {
		testserver.Missing(t, "DOVETAIL_POSTGRES_DSN is not set: run scripts/services up postgres && eval \"$(scripts/services env)\"")
	}
	schema := "live" + strings.ReplaceAll(messaging.NewID(), "-", "")
	instance := func(name string) *Service {
		db, err := platform.OpenPostgres(t.Context(), dsn, schema)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		s := alone(t, db, name)
		s.poll, s.keep = 24*time.Hour, 24*time.Hour
		if s.env.News, err = platform.NewNews(db, dsn, schema, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	works, shows := instance("order-1"), instance("order-2")
	t.Cleanup(func() { // before the pools are closed
		if _, err := works.env.DB.ExecContext(context.Background(), "DROP SCHEMA "+pgx.Identifier{schema}.Sanitize()+" CASCADE"); err != nil {
			t.Error(err)
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- shows.env.News.Run(ctx, shows.watchers.tell) }() // and no saga: those are the other's
	defer func() {
		stop()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Errorf("Run = %v", err)
			}
		}
	}()

	order := works.accepts(t)
	told := shows.watched(t, order)
	tells(t, told, "that the order was placed", placedMoment)
	go func() { ended <- works.Run(ctx) }()
	// What is told before the other listens is lost, but nobody answers here, so the step fails again and again.
	tells(t, told, "the step that failed", func(l live) bool { return strings.HasPrefix(l.What, "reserve-credit ") })

	m, err := kernel.NewMessage("payment", kernel.PaymentChanged{OrderID: order, Revision: 1, Status: "authorised", Amount: 100, Currency: kernel.Currency})
	if err != nil {
		t.Fatal(err)
	}
	if err := works.Consumers()[0].Handler.Handle(t.Context(), &messaging.Delivery{Message: m, Group: "order", Attempt: 1}); err != nil {
		t.Fatal(err)
	}
	tells(t, told, "that the payment is authorised", func(l live) bool { return l.Payment == "authorised" })
}

// TestLiveWithoutWord changes an order without a word to anybody: the stream tells it, because it looks.
func TestLiveWithoutWord(t *testing.T) {
	s := alone(t, file(t), "order-1")
	s.poll = 10 * time.Millisecond
	order := s.accepts(t)
	told := s.watched(t, order)
	tells(t, told, "that the order was placed", placedMoment)
	if err := platform.InTx(t.Context(), s.env.DB, func(tx *sql.Tx) error { return s.orders.change(t.Context(), tx, order, confirm{}) }); err != nil {
		t.Fatal(err)
	}
	tells(t, told, "that the order is confirmed", func(l live) bool { return l.Status == statusConfirmed })
}
