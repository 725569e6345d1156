// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// fakeShop is a shop in memory that is asked without a network, so that time can be virtual. It keeps its promise
// about Idempotency-Keys unless it forgets.
type fakeShop struct {
	mux     *http.ServeMux
	before  func(n int, key string) error // may refuse, or lose the answer of, the n-th attempt to order with a key
	forgets bool                          // it makes another order for the same key
	becomes func(order int) string        // the status of an order once it has been asked for twice

	mu       sync.Mutex
	attempts map[string]int       // by key
	bodies   map[string]string    // by key
	ids      map[string]string    // by key
	asked    map[string]int       // by ID
	number   map[string]int       // by ID
	wait     map[string]time.Time // by key: not before
	early    int                  // attempts that came before they were let
	hasty    int                  // cancellations of orders that are pending
	regrets  map[string]int       // cancellations of others, by what these had become
}

var errLost = errors.New("the answer is lost")

func newFakeShop() *fakeShop {
	s := &fakeShop{
		mux: http.NewServeMux(), before: func(int, string) error { return nil }, becomes: func(int) string { return "confirmed" },
		attempts: map[string]int{}, bodies: map[string]string{}, ids: map[string]string{}, asked: map[string]int{}, number: map[string]int{}, wait: map[string]time.Time{},
		regrets: map[string]int{},
	}
	answer := func(pattern string, status int, body any) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { _ = platform.WriteJSON(w, status, body) })
	}
	answer("GET /api/products", 200, map[string]any{"items": []map[string]string{{"id": "p-1"}, {"id": "p-2"}}})
	answer("GET /api/products/{id}", 200, map[string]string{})
	answer("POST /api/customers", 201, map[string]string{"id": "c"})
	answer("POST /api/sessions", 200, map[string]string{"token": "t"})
	s.mux.Handle("POST /api/orders/{id}/cancel", platform.Handle(s.cancel))
	s.mux.Handle("POST /api/orders", platform.Handle(s.order))
	s.mux.Handle("GET /api/orders/{id}", platform.Handle(s.look))
	return s
}

func (s *fakeShop) order(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	key := r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.wait[key]) {
		s.early++
	}
	s.attempts[key]++
	if was, known := s.bodies[key]; known && was != string(body) {
		return platform.Refused("other-body", "the key was used for something else")
	}
	s.bodies[key] = string(body)
	err = s.before(s.attempts[key], key)
	if tooFast := (*platform.Error)(nil); errors.As(err, &tooFast) && tooFast.RetryAfter > 0 {
		s.wait[key] = time.Now().Add(tooFast.RetryAfter)
	}
	if err != nil && !errors.Is(err, errLost) {
		return err
	}
	if s.ids[key] == "" || s.forgets {
		id := fmt.Sprintf("o-%d", len(s.number))
		s.ids[key], s.number[id] = id, len(s.number)
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return platform.WriteJSON(w, http.StatusAccepted, map[string]string{"id": s.ids[key], "status": "pending"})
}

func (s *fakeShop) look(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.PathValue("id")
	status := "pending"
	if s.asked[id]++; s.asked[id] > 1 {
		status = s.becomes(s.number[id])
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]string{"status": status})
}

// cancel notes what it is asked for, and refuses half of it.
func (s *fakeShop) cancel(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.PathValue("id")
	if s.asked[id] > 1 {
		s.regrets[s.becomes(s.number[id])]++
	} else {
		s.hasty++
	}
	if s.number[id]%2 == 0 {
		return platform.Refused("too-late", "the parcel has left")
	}
	return platform.WriteJSON(w, http.StatusAccepted, map[string]string{})
}

// RoundTrip implements [http.RoundTripper].
func (s *fakeShop) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	defer func() {
		if recover() != nil {
			resp, err = nil, io.ErrUnexpectedEOF
		}
	}()
	w := httptest.NewRecorder()
	s.mux.ServeHTTP(w, r)
	return w.Result(), nil
}

func (s *fakeShop) drive(t *testing.T, ctx context.Context, orders int, progress func()) (*Report, error) {
	t.Helper()
	cfg := Config{URL: "http://shop.example", Orders: orders, Concurrency: 4, Patience: time.Minute, Progress: progress}
	told := newTally()
	d, err := newDriver(cfg.URL, cfg.Concurrency, cfg.Patience, told)
	if err != nil {
		t.Fatal(err)
	}
	d.client.Transport = s
	return run(ctx, cfg, d, told)
}

// balanced checks that what the report says of answers adds up, and that it is what the shop knows.
func (s *fakeShop) balanced(t *testing.T, r *Report, orders int) {
	t.Helper()
	sum := func(counts map[string]int) (n int) {
		for _, m := range counts {
			n += m
		}
		return n
	}
	if n := len(r.Accepted) + sum(r.Refused); n != orders {
		t.Errorf("%d accepted and %v refused, want %d together", len(r.Accepted), r.Refused, orders)
	}
	if n := sum(r.Ended) + len(r.Unfinished) + len(r.Left); n != len(r.Accepted) {
		t.Errorf("ended %v, unfinished %v, left %v; want %d together, as were accepted", r.Ended, r.Unfinished, r.Left, len(r.Accepted))
	}
	if got, want := slices.Sorted(slices.Values(r.Accepted)), slices.Sorted(maps.Keys(s.number)); !slices.Equal(got, want) {
		t.Errorf("%d accepted, %d orders in the shop; want the same", len(got), len(want))
	}
}

func TestEveryAnswerIsAccountedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		refuse := 0
		s.before = func(n int, _ string) error {
			if refuse++; n == 1 && refuse%10 == 0 {
				return platform.Invalid("items", "are not there")
			}
			return nil
		}
		s.becomes = func(order int) string {
			return []string{"confirmed", "rejected", "cancelled", "dispatched"}[order%4]
		}
		ended := 0
		var mu sync.Mutex
		r, err := s.drive(t, t.Context(), 400, func() { mu.Lock(); ended++; mu.Unlock() })
		if err != nil || !r.OK() {
			t.Fatalf("run = %v, unfinished %v, mismatches %v; want none", err, r.Unfinished, r.Mismatches)
		}
		s.balanced(t, r, 400)
		if r.Refused["invalid-input"] == 0 || len(r.Ended) != 4 || r.Repeats == 0 || ended != 400 {
			t.Errorf("refused %v, ended %v, %d sent twice, progress %d; want some refused, four ends, some repeats and 400", r.Refused, r.Ended, r.Repeats, ended)
		}
	})
}

func TestSomeCancelAndSomeRegret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		s.becomes = func(order int) string { return []string{"confirmed", "confirmed", "rejected", "dispatched"}[order%4] }
		r, err := s.drive(t, t.Context(), 2000, nil)
		if err != nil || !r.OK() {
			t.Fatalf("run = %v, unfinished %v, mismatches %v; want none", err, r.Unfinished, r.Mismatches)
		}
		s.balanced(t, r, 2000)
		if s.hasty == 0 || s.regrets["confirmed"] == 0 || len(s.regrets) != 1 {
			t.Errorf("%d cancelled at once, %v later; want some of each, and later only confirmed ones", s.hasty, s.regrets)
		}
	})
}

func TestLostAnswersAreAskedForWithTheSameKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		s.before = func(n int, _ string) error {
			switch n {
			case 1:
				return errLost
			case 2:
				return &platform.Error{Status: http.StatusRequestTimeout, Code: "busy", Detail: "busy"}
			}
			return nil
		}
		r, err := s.drive(t, t.Context(), 100, nil)
		if err != nil || !r.OK() {
			t.Fatalf("run = %v, unfinished %v, mismatches %v; want none", err, r.Unfinished, r.Mismatches)
		}
		s.balanced(t, r, 100) // one order for each key, and no body but the first
		if len(s.attempts) != 100 || r.Retries != 200 {
			t.Errorf("%d keys, %d retries; want 100 and 200", len(s.attempts), r.Retries)
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		s.before = func(n int, _ string) error {
			if n == 1 {
				return &platform.Error{Status: http.StatusTooManyRequests, Code: "too-many-requests", Detail: "slow down", RetryAfter: 7 * time.Second}
			}
			return nil
		}
		r, err := s.drive(t, t.Context(), 40, nil)
		if err != nil || !r.OK() {
			t.Fatalf("run = %v, want nil", err)
		}
		s.balanced(t, r, 40)
		if s.early != 0 || r.Retries != 40 {
			t.Errorf("%d attempts came before their time, %d retries; want 0 and 40", s.early, r.Retries)
		}
	})
}

func TestAnotherAnswerIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		s.forgets = true
		r, err := s.drive(t, t.Context(), 400, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.OK() || len(r.Mismatches) != r.Repeats {
			t.Errorf("%d mismatches in %d repeats, OK %v; want all of them and false", len(r.Mismatches), r.Repeats, r.OK())
		}
	})
}

func TestAnOrderThatDoesNotEndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		s.becomes = func(order int) string {
			if order == 3 {
				return "pending"
			}
			return "confirmed"
		}
		r, err := s.drive(t, t.Context(), 20, nil)
		if err != nil || r.OK() || !slices.Equal(r.Unfinished, []string{"o-3"}) {
			t.Errorf("run = %v, unfinished %v; want o-3", err, r.Unfinished)
		}
		s.balanced(t, r, 20)
	})
}

func TestInterruptedRunReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		s.becomes = func(order int) string {
			if order >= 10 {
				return "pending"
			}
			return "confirmed"
		}
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Second, stop) // by then four customers wait for ends that do not come
		r, err := s.drive(t, ctx, 1000, nil)
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "interrupted") || r == nil {
			t.Fatalf("run = %v, report %v; want one, and that it was interrupted", err, r)
		}
		if r.Ended["confirmed"] != 10 || len(r.Left) != 4 || len(r.Accepted) != 14 {
			t.Errorf("ended %v, left %v of %d; want 10 and 4 of 14", r.Ended, r.Left, len(r.Accepted))
		}
		if text, err := json.Marshal(r); err != nil || !strings.Contains(string(text), `"left":["o-10"`) {
			t.Errorf("JSON %s (%v), want the orders that are left", text, err)
		}
	})
}

func TestWaitsForAShopThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeShop()
		open := time.Now().Add(10 * time.Second)
		d, err := newDriver("http://shop.example", 1, time.Minute, newTally())
		if err != nil {
			t.Fatal(err)
		}
		d.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if time.Now().Before(open) {
				return nil, errors.New("connection refused")
			}
			return s.RoundTrip(r)
		})
		var told []error
		r, err := run(t.Context(), Config{Orders: 1, Concurrency: 1, Waiting: func(err error) { told = append(told, err) }}, d, d.told.(*tally))
		if err != nil || len(r.Accepted) != 1 || len(told) != 1 || !strings.Contains(told[0].Error(), "refused") {
			t.Errorf("run = %v, told %v; want one order, and to be told once why it waits", err, told)
		}
	})
}

type roundTripper func(r *http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
