// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package payment

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

// environment is that of a payment service with a database and a broker of its own.
func environment(t *testing.T, caller *platform.Caller) platform.Env {
	t.Helper()
	db, err := platform.OpenSQLite(filepath.Join(t.TempDir(), "payment.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	broker, err := messagingmem.New(messagingmem.Config{})
	if err != nil {
		t.Fatal(err)
	}
	auth, err := platform.NewAuth("http://shop.example", "http://shop.example/keys", "secret", http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	return platform.Env{Name: "payment", DB: db, Broker: broker, Auth: auth, Log: slog.New(slog.DiscardHandler), Caller: caller}
}

// TestFinishedForNobody has who asks for an authorisation go away while the provider thinks: the payment is authorised
// nevertheless, and says so. Asked again, it knows.
func TestFinishedForNobody(t *testing.T) {
	var asked atomic.Int64
	thinking, think := make(chan struct{}), make(chan struct{})
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server would see that nobody waits
		if asked.Add(1) == 1 {
			close(thinking)
			select {
			case <-think:
			case <-r.Context().Done():
			}
		}
		_, _ = w.Write([]byte("{}"))
	}))
	defer provider.Close()

	env := environment(t, &platform.Caller{Client: http.DefaultClient})
	broker := env.Broker
	hears := platform.Group("order", kernel.TopicPaymentChanged)
	if err := broker.Declare(t.Context(), hears); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), env, Config{Provider: provider.URL})
	if err != nil {
		t.Fatal(err)
	}
	s.provider.Timeout = time.Minute // the provider thinks as long as it likes
	told := make(chan kernel.PaymentChanged, 10)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- platform.RunAll(ctx, s.Run, func(ctx context.Context) error {
			return broker.Subscribe(ctx, hears, messaging.Typed(messaging.JSON, func(_ context.Context, e kernel.PaymentChanged, _ *messaging.Delivery) error {
				told <- e
				return nil
			}))
		})
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	}()
	alone := make(chan struct{}) // closed when the service knows that nobody waits for its first answer
	var requests atomic.Int64
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			context.AfterFunc(r.Context(), func() { close(alone) })
		}
		s.Handler().ServeHTTP(w, r)
	}))
	defer service.Close()
	ask := func(ctx context.Context, step string) error {
		body, err := json.Marshal(request{OrderID: "o-1", CustomerID: "c-1", Amount: 1999, Currency: kernel.Currency, Method: "pm_visa"})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, service.URL+"/internal/payments/"+step, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer secret")
		req.Header.Set("Content-Type", "application/json")
		barrier.Key{Saga: "o-1", Step: step, Op: "do"}.SetHeader(req.Header)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			t.Errorf("%s = %s %s, want 200", step, resp.Status, text)
		}
		return nil
	}

	heard := func(want kernel.PaymentChanged) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Errorf("told %+v, want %+v", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nothing is told, want %+v", want)
		}
	}

	waits, leave := context.WithCancel(t.Context())
	go func() {
		<-thinking
		leave()
		<-alone
		close(think)
	}()
	if err := ask(waits, "authorise"); err == nil {
		t.Fatal("there was an answer, want that nobody waited for it")
	}
	heard(kernel.PaymentChanged{OrderID: "o-1", Revision: 1, Status: "authorised", Amount: 1999, Currency: "EUR", CustomerID: "c-1"})
	for _, step := range []string{"authorise", "capture", "capture", "refund"} {
		if err := ask(t.Context(), step); err != nil {
			t.Fatal(err)
		}
	}
	heard(kernel.PaymentChanged{OrderID: "o-1", Revision: 2, Status: "captured", Amount: 1999, Currency: "EUR", CustomerID: "c-1"})
	heard(kernel.PaymentChanged{OrderID: "o-1", Revision: 3, Status: "refunded", Amount: 1999, Currency: "EUR", CustomerID: "c-1"})
	if n := asked.Load(); n != 3 {
		t.Errorf("the provider was asked %d times, want once for each change", n)
	}
}

// TestOlderDatabase opens a database whose payments were never counted: the next change of one is its first.
func TestOlderDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "payment.db")
	const older = `CREATE TABLE payments (order_id TEXT PRIMARY KEY, customer_id TEXT NOT NULL, amount BIGINT NOT NULL, currency TEXT NOT NULL,
		method TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', updated_at BIGINT NOT NULL);
INSERT INTO payments VALUES ('o-1', 'c-1', 1999, 'EUR', 'pm_visa', 'authorised', '', 1)`
	for start := range 2 { // the second finds the column
		db, err := platform.OpenSQLite(path)
		if err != nil {
			t.Fatal(err)
		}
		if start == 0 {
			if err := platform.CreateTables(t.Context(), db, older); err != nil {
				t.Fatal(err)
			}
		}
		broker, err := messagingmem.New(messagingmem.Config{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(t.Context(), platform.Env{Name: "payment", DB: db, Broker: broker, Log: slog.New(slog.DiscardHandler), Caller: &platform.Caller{}}, Config{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.move(t.Context(), "o-1", "captured", "", "authorised")
		if err != nil || p.Revision != 1 || p.Status != "captured" {
			t.Errorf("move = %+v, %v; want it captured and revision 1", p, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTellAgain tells of a payment again as it is, and of none that is about to tell of itself.
func TestTellAgain(t *testing.T) {
	env := environment(t, &platform.Caller{Client: http.DefaultClient})
	s, err := New(t.Context(), env, Config{})
	if err != nil {
		t.Fatal(err)
	}
	tell := func(order, status string) (code string) {
		t.Helper()
		if status != "" {
			if _, err := env.DB.ExecContext(t.Context(), `INSERT INTO payments (order_id, customer_id, amount, currency, method, status, revision, updated_at)
				VALUES ($1, 'c-1', 1999, 'EUR', 'pm_visa', $2, 2, 1)`, order, status); err != nil {
				t.Fatal(err)
			}
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/ops/payments/"+order+"/tell", nil)
		r.SetPathValue("order", order)
		var refused *platform.Error
		if err := s.tellAgain(httptest.NewRecorder(), r); errors.As(err, &refused) {
			return refused.Code
		} else if err != nil {
			t.Fatal(err)
		}
		return ""
	}
	for status, want := range map[string]string{"": "not-found", "authorising": "wrong-state", "voiding": "wrong-state", "captured": "", "declined": ""} {
		order := "o-" + status
		if code := tell(order, status); code != want {
			t.Errorf("of a payment that is %q it tells with %q, want %q", status, code, want)
		}
		var body string
		err := env.DB.QueryRowContext(t.Context(), `SELECT CAST(body AS TEXT) FROM outbox_message WHERE message_key = $1`, order).Scan(&body)
		if want != "" {
			if !errors.Is(err, sql.ErrNoRows) {
				t.Errorf("of a payment that is %q it tells %s, %v; want nothing told", status, body, err)
			}
			continue
		}
		wants := fmt.Sprintf(`{"order_id":"%s","revision":3,"status":"%s","amount":1999,"currency":"EUR","customer_id":"c-1"}`, order, status)
		if err != nil || body != wants {
			t.Errorf("it tells %s, %v; want %s", body, err, wants)
		}
	}
}
