// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/eventsource"
)

type (
	placed  struct{ Total int }
	shipped struct{ To string }
)

func TestNewCodec(t *testing.T) {
	up := func(e eventsource.Encoded) ([]eventsource.Encoded, error) { return nil, nil }
	for want, entries := range map[string][]eventsource.Entry{
		`type "a" is given to`:                   {eventsource.Type[placed]("a"), eventsource.Type[shipped]("a")},
		`placed is called "a" and "b"`:           {eventsource.Type[placed]("a"), eventsource.Type[placed]("b")},
		`"a" has an upcaster and is also`:        {eventsource.Type[placed]("a"), eventsource.Rename("a", "b")},
		`type "a" has two upcasters`:             {eventsource.Upcast("a", up), eventsource.Upcast("a", up)},
		`upcaster of "a" is nil`:                 {eventsource.Upcast("a", nil)},
		"type of event is empty":                 {eventsource.Type[placed]("")},
		`type "a" is given to *eventsource_test`: {eventsource.Type[*placed]("a")},
		"Format is nil":                          {eventsource.Format(nil)},
		"Sealer is nil":                          {eventsource.Seal(nil)},
	} {
		if _, err := eventsource.NewCodec(entries...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewCodec = %v, want an error with %q", err, want)
		}
	}
}

func TestCodec(t *testing.T) {
	broken := errors.New("broken")
	c, err := eventsource.NewCodec(
		eventsource.Type[placed]("order.placed.v3"),
		eventsource.Type[shipped]("order.shipped.v1"),
		eventsource.Rename("order.created.v1", "order.placed.v2"),
		eventsource.Upcast("order.placed.v2", func(e eventsource.Encoded) ([]eventsource.Encoded, error) {
			return []eventsource.Encoded{{Type: "order.placed.v3", Data: []byte(strings.ReplaceAll(string(e.Data), "Sum", "Total"))}}, nil
		}),
		eventsource.Upcast("order.done.v1", func(eventsource.Encoded) ([]eventsource.Encoded, error) {
			return []eventsource.Encoded{{Type: "order.created.v1", Data: []byte(`{"Sum":5}`)}, {Type: "order.shipped.v1", Data: []byte(`{"To":"x"}`)}}, nil
		}),
		eventsource.Upcast("order.noise.v1", func(eventsource.Encoded) ([]eventsource.Encoded, error) { return nil, nil }),
		eventsource.Upcast("order.broken.v1", func(eventsource.Encoded) ([]eventsource.Encoded, error) { return nil, broken }),
		eventsource.Rename("loop.a", "loop.b"), eventsource.Rename("loop.b", "loop.a"),
		eventsource.Rename("order.lost.v1", "order.nowhere.v1"),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{placed{7}, &placed{7}} {
		e, err := c.Encode(t.Context(), v)
		if err != nil || e.Type != "order.placed.v3" || string(e.Data) != `{"Total":7}` {
			t.Errorf("Encode(%T) = %+v, %v", v, e, err)
		}
	}
	for _, v := range []any{7, nil} {
		if _, err := c.Encode(t.Context(), v); !errors.Is(err, eventsource.ErrUnknownType) {
			t.Errorf("Encode(%v) = %v, want ErrUnknownType", v, err)
		}
	}
	for _, d := range []struct{ name, data, want, err string }{
		{"order.placed.v3", `{"Total":1}`, "[{1}]", ""},
		{"order.placed.v2", `{"Sum":2}`, "[{2}]", ""},
		{"order.created.v1", `{"Sum":3}`, "[{3}]", ""},
		{"order.done.v1", "", "[{5} {x}]", ""},
		{"order.noise.v1", "", "[]", ""},
		{"order.other.v1", "", "", "unknown type"},
		{"order.lost.v1", "", "", "unknown type of event: \"order.nowhere.v1\""},
		{"order.broken.v1", "", "", "broken"},
		{"loop.a", "", "", "lead to each other"},
		{"order.placed.v3", "{", "", "does not decode"},
	} {
		values, err := c.Decode(t.Context(), eventsource.Event{Type: d.name, Data: []byte(d.data)})
		if d.err == "" && (err != nil || fmt.Sprint(values) != d.want) || d.err != "" && (err == nil || !strings.Contains(err.Error(), d.err)) {
			t.Errorf("Decode(%s) = %v, %v, want %s %s", d.name, values, err, d.want, d.err)
		}
	}
	if types := c.Types(); !slices.IsSorted(types) || len(types) != 10 || !slices.Contains(types, "order.done.v1") || !slices.Contains(types, "order.shipped.v1") {
		t.Errorf("Types = %q, want all that can be read", types)
	}
}
