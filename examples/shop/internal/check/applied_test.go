// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	events := func(ids ...string) (out []event) {
		for _, id := range ids {
			e := event{id: id, topic: "t"}
			if id[0] == '*' {
				e = event{id: id[1:], topic: "t", apart: true}
			}
			out = append(out, e)
		}
		return out
	}
	for _, tt := range []struct {
		name          string
		first, second []event
		want          []string
	}{
		{"the same", events("a", "b", "c"), events("a", "b", "c"), nil},
		{"some are not there yet", events("a", "b", "c"), events("a", "c"), nil},
		{"some are older than the first record", events("b", "c"), events("a", "b", "c"), nil},
		{"two are the other way round", events("a", "b", "c"), events("a", "c", "b"), []string{"b after c"}},
		{"one comes last of all", events("a", "b", "c"), events("b", "c", "a"), []string{"a after c"}},
		{"one is there twice", events("a", "b"), events("a", "b", "a"), []string{"a twice"}},
		{"an old one is there twice", events("b"), events("a", "b", "a"), []string{"a twice"}},
		{"one was replayed when it was too late", events("a", "b", "c"), events("b", "c", "*a"), nil},
		{"one was parked, and may have been heard at any time", events("a", "*b", "c"), events("b", "a", "c"), nil},
		{"one was replayed although it had been applied", events("a", "b"), events("a", "b", "*a"), []string{"a twice"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			known := compare(tt.first, tt.second,
				func(e, before event) { got = append(got, e.id+" after "+before.id) },
				func(e event) { got = append(got, e.id+" twice") })
			if !slices.Equal(got, tt.want) {
				t.Errorf("compare says %v, want %v", got, tt.want)
			}
			for _, e := range tt.second {
				if !known[e.id] {
					t.Errorf("%s is not known, want it known", e.id)
				}
			}
		})
	}
}

func TestAlong(t *testing.T) {
	record := func(keys ...string) iter.Seq2[line, error] {
		return func(yield func(line, error) bool) {
			for _, key := range keys {
				if key == "!" {
					yield(line{}, errors.New("broken"))
					return
				}
				if !yield(line{key, []event{{id: key}}}, nil) {
					return
				}
			}
		}
	}
	for _, tt := range []struct {
		first, second iter.Seq2[line, error]
		want          string
		err           bool
	}{
		{record("a", "b", "c"), record("a", "b", "c"), "a+a b+b c+c", false},
		{record("a", "c", "e"), record("b", "c", "d", "f"), "a b+b c+c d+d e f+f", false},
		{record("", "a"), record("", "a"), "+ a+a", false},
		{record("", "a"), record("a"), " a+a", false},
		{record("a", "b"), record(), "a b", false},
		{record(), record("a", "b"), "a+a b+b", false},
		{record(), record("a", "!"), "a+a", true},
		{record("a", "!"), record("a"), "a+a", true},
		{record("a", "b"), record("a", "!"), "a+a", true},
		{record("a"), record("!"), "", true},
	} {
		var got []string
		err := along(tt.first, tt.second, func(key string, _, second []event) {
			for _, e := range second {
				key += "+" + e.id
			}
			got = append(got, key)
		})
		if text := strings.Join(got, " "); text != tt.want || (err != nil) != tt.err {
			t.Errorf("along = %q, %v; want %q and an error %v", text, err, tt.want, tt.err)
		}
	}
}

func TestThings(t *testing.T) {
	for n, want := range map[int]string{0: "0 orders", 1: "1 order", 2: "2 orders"} {
		if got := things(n, "order"); got != want {
			t.Errorf("things(%d) = %q, want %q", n, got, want)
		}
	}
}
