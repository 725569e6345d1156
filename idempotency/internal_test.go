// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"bytes"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

func TestRecordRoundTrip(t *testing.T) {
	for _, want := range []record{
		{Response: Response{Status: 200}},
		{Response: Response{Status: 204}},
		{Response: Response{Status: 201, Header: http.Header{"Location": {"/orders/1"}, "X-Many": {"a", "b"}}, Body: []byte(`{"id":1}`)}},
		{Response: Response{Status: 200, Body: []byte("\r\n\r\n\x00\xff")}},
		{Response: Response{Status: 200, Header: http.Header{"X-Latin": {"caf\xe9"}, "X-Empty": {""}}}},
		{Response: Response{Status: 599, Header: http.Header{"X": {"y"}}}, omitted: true},
	} {
		got, err := decodeRecord(want.encode())
		if err != nil {
			t.Errorf("decode(%q) = %v", want.encode(), err)
			continue
		}
		if got.Status != want.Status || got.omitted != want.omitted || !bytes.Equal(got.Body, want.Body) ||
			len(got.Header)+len(want.Header) > 0 && !reflect.DeepEqual(got.Header, want.Header) {
			t.Errorf("decode(%q) = %+v, want %+v", want.encode(), got, want)
		}
	}
}

func TestRecordOfAnotherFormat(t *testing.T) {
	for _, in := range []string{"", "dovetail/1 200 false", "dovetail/2 200 false\r\n\r\n", "dovetail/1 99 false\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "dovetail/1 200 false\r\nno colon\r\n\r\n"} {
		if got, err := decodeRecord([]byte(in)); err == nil {
			t.Errorf("decode(%q) = %+v, want an error", in, got)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(record{Response: Response{Status: 201, Header: http.Header{"Location": {"/orders/1"}}, Body: []byte("x")}}.encode())
	f.Add([]byte("dovetail/1 200 true\r\nA: b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := decodeRecord(in)
		if err != nil {
			return
		}
		again, err := decodeRecord(r.encode())
		if err != nil || again.Status != r.Status || again.omitted != r.omitted || !bytes.Equal(again.Body, r.Body) {
			t.Fatalf("decode(%q) = %+v, encoded and decoded again %+v, %v", in, r, again, err)
		}
	})
}

// The parts of a scope cannot be moved about to make two requests share one.
func TestScopeIsUnambiguous(t *testing.T) {
	seen := map[string]string{}
	for _, c := range []struct{ principal, method, url string }{
		{"u", "POST", "/a"}, {"u POST /a", "POST", "/b"}, {"u", "POST", "/a%20POST%20/b"}, {"u POST", "POST", "/a"},
		{"u", "PUT", "/a"}, {"", "POST", "/a"}, {"U", "POST", "/a"}, {"u", "POST", "/a/"}, {"u", "POST", "/a%2F"},
		{"u\x00", "POST", "/a"}, {"\xff", "POST", "/a"}, {strings.Repeat("u", 300), "POST", "/a"}, {strings.Repeat("u", 301), "POST", "/a"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, c.url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		s := scope(c.principal, r)
		if other, ok := seen[s]; ok {
			t.Errorf("scope of %+v = %q, the same as of %s", c, s, other)
		}
		seen[s] = c.principal + "|" + c.method + "|" + c.url
		if err := (Command{Key: Key{s, "k"}}).Validate(); err != nil {
			t.Errorf("scope of %+v = %q, which no store takes: %v", c, s, err)
		}
	}
}

func TestFingerprintCoversTheRequest(t *testing.T) {
	seen := map[string]int{}
	for i, c := range []struct{ method, url, contentType, body string }{
		{"POST", "/a", "", ""}, {"PUT", "/a", "", ""}, {"POST", "/b", "", ""}, {"POST", "/a?x=1", "", ""}, {"POST", "/a?x=2", "", ""},
		{"POST", "/a", "text/plain", ""}, {"POST", "/a", "", "text/plain"}, {"POST", "/a", "", "x"}, {"POST", "/ax", "", ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, c.url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", c.contentType)
		f := string(fingerprint(r, []byte(c.body)))
		if other, ok := seen[f]; ok {
			t.Errorf("requests %d and %d have the same fingerprint", other, i)
		}
		seen[f] = i
	}
}
