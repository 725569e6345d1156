// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp

import (
	"context"
	"math"
	"math/big"
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"0":                                0,
		"1":                                time.Second,
		"0120":                             2 * time.Minute,
		"86400":                            24 * time.Hour,
		"9223372036":                       9223372036 * time.Second,
		"9223372037":                       math.MaxInt64,
		"9300000000":                       math.MaxInt64,
		"99999999999999999999":             math.MaxInt64,
		"Sat, 21 Nov 2026 12:00:05 GMT":    5 * time.Second,
		"Saturday, 21-Nov-26 12:00:05 GMT": 5 * time.Second,
		"Sat Nov 21 12:00:05 2026":         5 * time.Second,
		"Sat, 21 Nov 2026 11:00:00 GMT":    0,
		"Fri, 31 Dec 9999 23:59:59 GMT":    math.MaxInt64,
		"Mon, 01 Jan 0001 00:00:00 GMT":    0,
	} {
		if got, ok := ParseRetryAfter(value, now); got != want || !ok {
			t.Errorf("ParseRetryAfter(%q) = %v, %v, want %v, true", value, got, ok, want)
		}
	}
	for _, value := range []string{"", " ", "-1", "+1", "1.5", "1s", "1, 2", "1e3", "soon", "0x10", "１", "Sat, 21 Nov 2026"} {
		if got, ok := ParseRetryAfter(value, now); got != 0 || ok {
			t.Errorf("ParseRetryAfter(%q) = %v, %v, want 0, false", value, got, ok)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"0", "120", "9300000000", "99999999999999999999", "-1", "Sat, 21 Nov 2026 12:00:05 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Sat Nov 21 12:00:05 2026"} {
		f.Add(s, int64(1795262400))
	}
	number := regexp.MustCompile(`^[0-9]+$`)
	f.Fuzz(func(t *testing.T, value string, unix int64) {
		now := time.Unix(unix%(1<<40), 0)
		got, ok := ParseRetryAfter(value, now)
		if got < 0 || !ok && got != 0 {
			t.Fatalf("ParseRetryAfter(%q) = %v, %v", value, got, ok)
		}
		if number.MatchString(value) {
			n, _ := new(big.Int).SetString(value, 10)
			if n.Mul(n, big.NewInt(int64(time.Second))); !n.IsInt64() {
				n.SetInt64(math.MaxInt64)
			}
			if !ok || int64(got) != n.Int64() {
				t.Fatalf("ParseRetryAfter(%q) = %v, %v, want %v", value, got, ok, time.Duration(n.Int64()))
			}
			return
		}
		date, err := http.ParseTime(value)
		if ok != (err == nil) {
			t.Fatalf("ParseRetryAfter(%q) = %v, %v, ParseTime = %v", value, got, ok, err)
		}
		if ok && now.Add(got).Before(date) && got != math.MaxInt64 {
			t.Fatalf("ParseRetryAfter(%q) = %v, which is before the date", value, got)
		}
	})
}

func FuzzPropagated(f *testing.F) {
	f.Add("2", "sheddable")
	f.Add("-1", "critical-plus")
	f.Add("99999999999999999999", "x")
	f.Fuzz(func(t *testing.T, attempt, criticality string) {
		h := http.Header{}
		h.Set(AttemptHeader, attempt)
		h.Set(CriticalityHeader, criticality)
		ctx := propagated(context.Background(), h)
		if retry.Attempt(ctx) < 1 {
			t.Fatalf("Attempt = %d", retry.Attempt(ctx))
		}
		if c := resilience.CriticalityOf(ctx); c < resilience.Sheddable || c > resilience.CriticalPlus {
			t.Fatalf("CriticalityOf = %v", c)
		}
		// What is understood survives the next hop.
		next := http.Header{}
		propagate(ctx, next)
		again := propagated(context.Background(), next)
		if retry.Attempt(again) != retry.Attempt(ctx) || resilience.CriticalityOf(again) != resilience.CriticalityOf(ctx) {
			t.Fatalf("%v became %v", h, next)
		}
	})
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "1", 1: "1", time.Second: "1", time.Second + 1: "2", math.MaxInt64: "9223372037", -5: "1"} {
		if got := seconds(d); got != want {
			t.Errorf("seconds(%v) = %s, want %s", d, got, want)
		}
	}
}
