// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
)

type fetcher func(ctx context.Context, currency string) (float64, error)

type oldRates struct{ fetch fetcher }

// snippet: breaker/before
func (r *oldRates) Rate(ctx context.Context, currency string) (float64, error) {
	return r.fetch(ctx, currency)
}

// end

// snippet: breaker/after
type Rates struct {
	fetch   fetcher
	breaker *breaker.Breaker
}

func NewRates(fetch fetcher) (*Rates, error) {
	b, err := breaker.New(breaker.Config{Name: "rates", FailureRate: 0.5})
	if err != nil {
		return nil, err
	}
	return &Rates{fetch: fetch, breaker: b}, nil
}

func (r *Rates) Rate(ctx context.Context, currency string) (float64, error) {
	return breaker.Do(ctx, r.breaker, func(ctx context.Context) (float64, error) {
		return r.fetch(ctx, currency)
	})
}

// end

// snippet: breaker/judge
// An error that is an answer says nothing about the dependency's health.
var errUnknownCurrency = fault.Permanent(errors.New("unknown currency"))

// end

func writeRate(w http.ResponseWriter, rate float64, err error) {
	// snippet: breaker/refused
	var refused *fault.Rejection
	switch {
	case errors.As(err, &refused): // no call was made
		w.Header().Set("Retry-After", fmt.Sprint(int(refused.RetryAfter.Seconds())+1))
		http.Error(w, "rates are not available", http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, "no rate", http.StatusBadGateway)
	default:
		fmt.Fprint(w, rate)
	}
	// end
}

// snippet: breaker/test
func TestRatesStopAskingABrokenSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // virtual time: the test takes no second
		calls, broken := 0, true
		rates, err := NewRates(func(context.Context, string) (float64, error) {
			if calls++; broken {
				return 0, errors.New("out")
			}
			return 1.09, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err = rates.Rate(t.Context(), "USD"); err == nil {
				t.Fatal("Rate = nil, want an error")
			}
		}
		if !errors.Is(err, breaker.ErrOpen) || calls != 20 { // MinCalls
			t.Errorf("after 100 failures: %v and %d calls, want ErrOpen and 20", err, calls)
		}

		broken = false
		time.Sleep(2 * time.Second) // longer than OpenFor and its jitter
		if rate, err := rates.Rate(t.Context(), "USD"); rate != 1.09 || err != nil {
			t.Errorf("Rate = %v, %v when the source is back", rate, err)
		}
		if s := rates.breaker.State(); s != breaker.Closed {
			t.Errorf("the breaker is %v after a probe that went well", s)
		}
	})
}

// end

func TestAnswersDoNotOpenTheBreaker(t *testing.T) {
	rates, err := NewRates(func(context.Context, string) (float64, error) { return 0, errUnknownCurrency })
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		_, err = rates.Rate(t.Context(), "XXX")
	}
	if !errors.Is(err, errUnknownCurrency) {
		t.Errorf("Rate = %v, want the answer", err)
	}
	old := &oldRates{fetch: func(context.Context, string) (float64, error) { return 2, nil }}
	w := httptest.NewRecorder()
	rate, err := old.Rate(t.Context(), "USD")
	writeRate(w, rate, err)
	if w.Code != http.StatusOK || w.Body.String() != "2" {
		t.Errorf("answered %d %s", w.Code, w.Body.String())
	}
	w = httptest.NewRecorder()
	writeRate(w, 0, &fault.Rejection{Err: breaker.ErrOpen, RetryAfter: 1500 * time.Millisecond})
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "2" {
		t.Errorf("answered %d %v", w.Code, w.Header())
	}
}
