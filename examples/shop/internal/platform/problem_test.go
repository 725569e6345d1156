// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestDecode gives bodies that are not what is wanted. Who sent them need not know Go to understand the answer.
func TestDecode(t *testing.T) {
	type line struct {
		Product  string `json:"product"`
		Quantity int64  `json:"quantity"`
	}
	type body struct {
		Name   *string         `json:"name"`
		Lines  []line          `json:"lines"`
		Where  struct{ X int } `json:"where"`
		Gift   bool            `json:"gift"`
		Weight float64         `json:"weight"`
	}
	for _, tt := range []struct {
		body, field, detail string
		status              int
	}{
		{`{"name":1}`, "name", "is a number, want a string", 422},
		{`{"name":[]}`, "name", "is a list, want a string", 422},
		{`{"lines":"x"}`, "lines", "is a string, want a list", 422},
		{`{"lines":[{"quantity":1.5}]}`, "lines[0].quantity", "is the number 1.5, want a whole number of up to 18 digits", 422},
		{`{"lines":[{"quantity":99999999999999999999}]}`, "lines[0].quantity", "is the number 99999999999999999999, want a whole number of up to 18 digits", 422},
		{` {"gift":true, "where":{"X":1}, "lines": [ {"product":"a", "quantity":1}, {"quantity": "2"} ]}`, "lines[1].quantity", "is a string, want a whole number of up to 18 digits", 422},
		{`{"lines":[{}, [1], 2]}`, "lines[1]", "is a list, want an object", 422},
		{`{"Lines":[{"Product":{}}]}`, "Lines[0].Product", "is an object, want a string", 422},
		{`{"where":true}`, "where", "is true or false, want an object", 422},
		{`{"gift":{}}`, "gift", "is an object, want true or false", 422},
		{`{"weight":"1"}`, "weight", "is a string, want a number", 422},
		{`[]`, "", "is a list, want an object", 422},
		{`{"colour":"red"}`, "colour", "is not a known field", 422},
		{`{"name":"a\u0000"}`, "name", "has a NUL character in it", 422},
		{`{"lines":[{"product":"a"},{"product":"\u0000"}]}`, "lines[1].product", "has a NUL character in it", 422},
		{`{"gift":true,"name":"a","gift":false}`, "gift", "is there twice in one object, want it once", 400},
		{`{"name":"a","Name":"b"}`, "Name", "is there twice in one object, want it once", 400},
		{`{"gift":true,"gi\u0066t":false}`, "gift", "is there twice in one object, want it once", 400},
		{`{"lines":[{"product":"a"},{"product":"b","quantity":1,"quantity":2}]}`, "lines[1].quantity", "is there twice in one object, want it once", 400},
		{`{"lines":[],"where":{"X":1,"ſ":2,"x":3}}`, "ſ", "is not a known field", 422},
		{`{"where":{"X":1,"x":3}}`, "where.x", "is there twice in one object, want it once", 400},
		{`{"where":{"X":1},"lines":[{"product":"a","quantity":1},{"product":"a","quantity":1}],"name":"product","gift":true}`, "", "", 0},
		{`{"name":`, "", "the body is not complete, valid JSON", 400},
		{``, "", "the body is not complete, valid JSON", 400},
		{"{\"name\":\"\xff\"}", "", "the body is not UTF-8", 400},
		{`{}` + strings.Repeat(" ", MaxBody), "", "want at most 1048576 bytes", 413},
		{`{} {}`, "", "want one JSON value and nothing after it", 400},
		{`{"name":"` + strings.Repeat("x", MaxBody) + `"}`, "", "want at most 1048576 bytes", 413},
		{`{"name":"a","lines":[{"product":"p","quantity":1}]}`, "", "", 0},
	} {
		t.Run(tt.body[:min(len(tt.body), 40)], func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(tt.body))
			r.Header.Set("Content-Type", "application/json; charset=utf-8")
			var got Error
			var e *Error
			if err := Decode(httptest.NewRecorder(), r, new(body)); errors.As(err, &e) {
				got = *e
			} else if err != nil {
				t.Fatal(err)
			}
			if got.Status != tt.status || got.Field != tt.field || got.Detail != tt.detail {
				t.Errorf("Decode = %+v, want %d about %q: %s", got, tt.status, tt.field, tt.detail)
			}
		})
	}
	t.Run("another media type", func(t *testing.T) {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(`{}`))
		r.Header.Set("Content-Type", "text/plain")
		var e *Error
		if err := Decode(httptest.NewRecorder(), r, new(body)); !errors.As(err, &e) || e.Status != http.StatusUnsupportedMediaType {
			t.Errorf("Decode = %v, want 415", err)
		}
	})
}

func BenchmarkRepeated(b *testing.B) {
	body := []byte(`{"items":[{"product_id":"p-001","quantity":1},{"product_id":"p-002","quantity":2}],"payment_method":"pm_visa"}`)
	for b.Loop() {
		if key, found := repeated(body); found {
			b.Fatalf("%s is there twice", key)
		}
	}
}

func TestLine(t *testing.T) {
	for s, want := range map[string]bool{
		"Ada": true, "O'Brien, Größe 5": true, "日本": true, "\U0001F469\u200d\U0001F680": true, "می\u200cخواهم": true,
		"": false, " ": false, "\u200b": false, "a\nb": false, "a\x00": false, "a\u2028b": false, "\u202egnp.exe": false, "a\u0085": false,
	} {
		if got := Line(s); got != want {
			t.Errorf("Line(%+q) = %v, want %v", s, got, want)
		}
	}
}

func TestWriteJSONIsNotKept(t *testing.T) {
	w := httptest.NewRecorder()
	if err := WriteJSON(w, 200, 1); err != nil || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("WriteJSON = %v with %v, want no-store", err, w.Header())
	}
	w = httptest.NewRecorder()
	w.Header().Set("Cache-Control", "max-age=300")
	if err := WriteJSON(w, 200, 1); err != nil || w.Header().Get("Cache-Control") != "max-age=300" {
		t.Errorf("WriteJSON = %v with %v, want what was said before", err, w.Header())
	}
}
