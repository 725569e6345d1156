// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package barrier_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

func TestKeyTravelsInAHeader(t *testing.T) {
	for _, k := range []barrier.Key{
		{Saga: "order-17", Step: "pay", Op: "do"},
		{Saga: "a/b%2F ü", Step: "it's 100% \"odd\"", Op: "undo"},
		{Saga: "\u00a0order-17\u2003", Step: "pay\u00a0", Op: "do"}, // spaces that no database ignores, which a saga may have
	} {
		h := http.Header{}
		k.SetHeader(h)
		got, err := barrier.KeyFromHeader(h)
		if err != nil || got != k {
			t.Errorf("KeyFromHeader(%q) = %+v, %v, want %+v", h.Get(barrier.Header), got, err, k)
		}
		a := saga.Attempt{Saga: k.Saga, Step: k.Step, Op: k.Op, Number: 2}
		if a.Key() != k.String() || barrier.KeyOf(a.Parts()) != k {
			t.Errorf("saga.Attempt.Key = %q, barrier.Key = %q, want the same", a.Key(), k)
		}
	}
}

func TestKeyFromHeaderRefuses(t *testing.T) {
	for _, c := range []struct {
		values []string
		want   string
	}{
		{nil, "barrier: 0 headers Saga-Key, want 1"},
		{[]string{"a/b/do", "a/b/do"}, "barrier: 2 headers Saga-Key, want 1"},
		{[]string{""}, `barrier: key "" has 1 parts, want <saga>/<step>/<op>`},
		{[]string{"a/b/c/do"}, `barrier: key "a/b/c/do" has 4 parts`},
		{[]string{"/b/do"}, "barrier: Key.Saga has 0 bytes, want 1 to 200"},
		{[]string{"a//do"}, "barrier: Key.Step has 0 bytes, want 1 to 100"},
		{[]string{"a/b/redo"}, `barrier: Key.Op is "redo", want do or undo`},
		{[]string{"a/%zz/do"}, `barrier: key "a/%zz/do": invalid URL escape`},
		{[]string{"a%20/b/do"}, `barrier: Key part "a ", want UTF-8`},
		{[]string{"a/b%00/do"}, `barrier: Key part "b\x00", want UTF-8`},
		{[]string{"a/%ff/do"}, `barrier: Key part "\xff", want UTF-8`},
		{[]string{strings.Repeat("a", 201) + "/b/do"}, "barrier: Key.Saga has 201 bytes"},
		{[]string{"a/" + strings.Repeat("b", 101) + "/do"}, "barrier: Key.Step has 101 bytes"},
	} {
		_, err := barrier.KeyFromHeader(http.Header{barrier.Header: c.values})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("KeyFromHeader(%q) = %v, want %q", c.values, err, c.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		dialect barrier.Dialect
		cfg     barrier.Config
		want    string
	}{
		{0, barrier.Config{}, "barrier: dialect is sqldialect.Dialect(0), want Postgres, MySQL or SQLite"},
		{barrier.SQLite, barrier.Config{Prefix: "Billing"}, `barrier: Config.Prefix is "Billing", want`},
		{barrier.SQLite, barrier.Config{Retention: -1}, "barrier: Config.Retention is -1ns, want 0 or more"},
	} {
		if b, err := barrier.New(c.dialect, c.cfg); b != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New(%v, %+v) = %v, %v, want %q", c.dialect, c.cfg, b, err, c.want)
		}
	}
}

func TestSchema(t *testing.T) {
	for _, d := range []barrier.Dialect{barrier.Postgres, barrier.MySQL, barrier.SQLite} {
		b, err := barrier.New(d, barrier.Config{Prefix: "billing_"})
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Schema(); !strings.Contains(got, "CREATE TABLE billing_saga_barrier (") || strings.ReplaceAll(got, "billing_", "") != barrier.Schema(d) {
			t.Errorf("%v: Schema with a prefix =\n%s\nand without\n%s", d, got, barrier.Schema(d))
		}
	}
	if got := barrier.Schema(0); got != "" {
		t.Errorf("Schema(0) = %q, want nothing", got)
	}
}

// brokenTx fails at the nth statement, or does not know how many rows it affected.
type brokenTx struct{ left int }

func (tx *brokenTx) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	if tx.left--; tx.left < 0 {
		return nil, errors.New("connection reset")
	}
	return driverResult(0), nil
}

type driverResult int64

func (driverResult) LastInsertId() (int64, error)   { return 0, nil }
func (r driverResult) RowsAffected() (int64, error) { return int64(r), nil }

func TestAnErrorOfTheDatabaseNeverRunsTheFunction(t *testing.T) {
	b, err := barrier.New(barrier.Postgres, barrier.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"do", "undo"} {
		for n := range 2 {
			ran, err := b.Do(t.Context(), &brokenTx{n}, barrier.Key{Saga: "s", Step: "a", Op: op}, func() error {
				t.Errorf("the function ran")
				return nil
			})
			if ran || err == nil || !strings.Contains(err.Error(), "connection reset") {
				t.Errorf("Do %s with the error at statement %d = %v, %v, want false and the error", op, n+1, ran, err)
			}
		}
	}
	if _, err := b.Do(t.Context(), &brokenTx{9}, barrier.Key{}, nil); err == nil {
		t.Errorf("Do with an empty key = nil, want an error")
	}
	if _, err := b.Bar(t.Context(), nil, barrier.Key{}); err == nil {
		t.Errorf("Bar with an empty key = nil, want an error")
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("order-17/pay/do")
	f.Add("a%2Fb/%C3%BC/undo")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := barrier.ParseKey(s)
		if err != nil {
			return
		}
		again, err := barrier.ParseKey(k.String())
		if err != nil || again != k {
			t.Errorf("ParseKey(%q) = %+v; its text gives %+v, %v", s, k, again, err)
		}
	})
}

// A participant reads the key from the request and passes it to the barrier.
func ExampleKeyFromHeader() {
	participant := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := barrier.KeyFromHeader(r.Header)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Println(key.Saga, key.Step, key.Op)
	})

	// The orchestrator's step sends it: barrier.KeyOf(attempt.Parts()).SetHeader(r.Header)
	r := httptest.NewRequest(http.MethodPost, "/payments", nil)
	barrier.Key{Saga: "order-17", Step: "authorise payment", Op: "do"}.SetHeader(r.Header)
	fmt.Println(r.Header.Get(barrier.Header))
	participant.ServeHTTP(httptest.NewRecorder(), r)
	// Output:
	// order-17/authorise%20payment/do
	// order-17 authorise payment do
}
