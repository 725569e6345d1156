// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package payment

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/resilience"
)

// sluggish is a payment provider that takes its time.
type sluggish struct {
	// takes says how long the nth call of a method takes, from 1.
	takes func(method string, n int) time.Duration

	mu    sync.Mutex
	calls map[string]int
}

func (s *sluggish) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.calls[r.Method]++
	n := s.calls[r.Method]
	s.mu.Unlock()
	select {
	case <-time.After(s.takes(r.Method, n)):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	w := httptest.NewRecorder()
	_ = platform.WriteJSON(w, http.StatusOK, charge{Status: "authorised"})
	return w.Result(), nil
}

func (s *sluggish) open(t *testing.T) *Provider {
	t.Helper()
	s.calls = map[string]int{}
	reads, err := resilience.NewHedge(resilience.HedgeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return &Provider{URL: "http://provider", Caller: &platform.Caller{Client: &http.Client{Transport: s}}, Reads: reads}
}

func TestLateReadIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sluggish{takes: func(_ string, n int) time.Duration {
			if n == 1 {
				return time.Minute
			}
			return 10 * time.Millisecond
		}}
		p, begin := s.open(t), time.Now()
		got, err := p.lookUp(t.Context(), "o-1")
		if err != nil || got.Status != "authorised" {
			t.Fatalf("lookUp = %+v, %v, want it authorised", got, err)
		}
		if s.calls["GET"] != 2 {
			t.Errorf("%d reads, want 2", s.calls["GET"])
		}
		if took := time.Since(begin); took != 110*time.Millisecond {
			t.Errorf("it took %v, want the first delay and then 10ms", took)
		}
	})
}

func TestReadInTimeIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sluggish{takes: func(string, int) time.Duration { return 10 * time.Millisecond }}
		p := s.open(t)
		for range 50 {
			if _, err := p.lookUp(t.Context(), "o-1"); err != nil {
				t.Fatal(err)
			}
		}
		if s.calls["GET"] != 50 {
			t.Errorf("%d reads, want 50", s.calls["GET"])
		}
	})
}

// TestNothingThatMovesMoneyIsHedged has the provider take nearly as long as it may, and longer.
func TestNothingThatMovesMoneyIsHedged(t *testing.T) {
	authorise := func(ctx context.Context, p *Provider) error {
		_, err := p.Authorise(ctx, payment{OrderID: "o-1", Amount: 100, Method: "pm_slow"})
		return err
	}
	for name, ask := range map[string]func(ctx context.Context, p *Provider) error{
		"authorise": authorise,
		"capture":   func(ctx context.Context, p *Provider) error { return p.Capture(ctx, "o-1") },
		"void":      func(ctx context.Context, p *Provider) error { return p.Void(ctx, "o-1") },
		"refund":    func(ctx context.Context, p *Provider) error { return p.Refund(ctx, "o-1") },
	} {
		t.Run(name+" is slow", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sluggish{takes: func(string, int) time.Duration { return 2900 * time.Millisecond }}
				if err := ask(t.Context(), s.open(t)); err != nil {
					t.Fatal(err)
				}
				if s.calls["POST"] != 1 || s.calls["GET"] != 0 {
					t.Errorf("%v, want one POST", s.calls)
				}
			})
		})
	}
	t.Run("authorise is never answered, and looked up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &sluggish{takes: func(method string, n int) time.Duration {
				if method == http.MethodPost || n == 1 {
					return time.Hour
				}
				return 0
			}}
			if err := authorise(t.Context(), s.open(t)); err != nil {
				t.Fatal(err)
			}
			if s.calls["POST"] != 1 || s.calls["GET"] != 2 {
				t.Errorf("%v, want one POST, and two GETs since the first is late", s.calls)
			}
		})
	})
}

// TestProviderIsAStranger looks at what the provider is told of who asks.
func TestProviderIsAStranger(t *testing.T) {
	var told []string
	caller := &platform.Caller{Token: "the-service-token", Client: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		told = append(told, r.Header.Get("Authorization"))
		w := httptest.NewRecorder()
		_ = platform.WriteJSON(w, http.StatusOK, struct{}{})
		return w.Result(), nil
	})}}
	s, err := New(t.Context(), environment(t, caller), Config{Provider: "http://provider"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.provider.Authorise(t.Context(), payment{OrderID: "o"}); err != nil {
		t.Fatal(err)
	}
	if err := s.provider.Capture(t.Context(), "o"); err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || len(told[0]) < 40 || told[0] != told[1] || strings.Contains(told[0], "the-service-token") {
		t.Errorf("the provider is told %q, want a key of its own each time", told)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
