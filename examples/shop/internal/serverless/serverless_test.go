// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package serverless

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// seen is what the handler of the tests says that it was asked.
type seen struct {
	Method, Path, Query, Host, Remote, Body string
	Header                                  http.Header
	Cookies                                 []string
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s := seen{Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Host: r.Host, Remote: r.RemoteAddr, Body: string(body), Header: r.Header}
	for _, c := range r.Cookies() {
		s.Cookies = append(s.Cookies, c.Name+"="+c.Value)
	}
	w.Header().Add("Set-Cookie", "a=1; Secure")
	w.Header().Add("Set-Cookie", "b=2; Secure")
	w.Header().Add("Vary", "Accept")
	w.Header().Add("Vary", "Cookie")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	w.Header().Set("Too", "late")
	_ = json.NewEncoder(w).Encode(s)
}

// answered is any of the answers.
type answered struct {
	StatusCode        int
	StatusDescription string
	Headers           map[string]string
	MultiValueHeaders http.Header
	Cookies           []string
	Body              string
	IsBase64Encoded   bool
}

func (a answered) seen(t *testing.T) (s seen) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.Body), &s); err != nil {
		t.Fatalf("body = %q: %v", a.Body, err)
	}
	return s
}

func invoke(t *testing.T, f *Function, ctx context.Context, event string) (a answered) { //nolint:revive // t comes first in tests
	t.Helper()
	out, err := f.Invoke(ctx, []byte(event))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

func function(t *testing.T, h http.HandlerFunc) *Function {
	t.Helper()
	f, err := New(h, Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const v2 = `{"version":"2.0","routeKey":"$default","rawPath":"/live/orders/a%2Fb","rawQueryString":"q=a%20b&q=c","cookies":["s=1","t=2"],
	"headers":{"host":"abc.execute-api.eu-west-1.amazonaws.com","content-type":"text/plain","accept":"a,b"},
	"requestContext":{"stage":"live","domainName":"abc.execute-api.eu-west-1.amazonaws.com","http":{"method":"POST","path":"/live/orders/a%2Fb","sourceIp":"192.0.2.7"}},
	"body":"aGVsbG8=","isBase64Encoded":true}`

const v1 = `{"resource":"/{proxy+}","path":"/orders/7","httpMethod":"PUT","headers":{"Host":"shop.example","Accept":"b"},
	"multiValueHeaders":{"Host":["shop.example"],"Accept":["a","b"],"Cookie":["s=1; t=2"]},
	"queryStringParameters":{"q":"c"},"multiValueQueryStringParameters":{"q":["a b","c"]},
	"requestContext":{"stage":"live","path":"/live/orders/7","identity":{"sourceIp":"2001:db8::1"}},"body":"hello","isBase64Encoded":false}`

const alb = `{"requestContext":{"elb":{"targetGroupArn":"arn"}},"httpMethod":"GET","path":"/orders/7","queryStringParameters":{"q":"a%20b"},
	"headers":{"host":"shop.example","x-forwarded-for":"203.0.113.9, 192.0.2.7","cookie":"s=1; t=2"},"body":"","isBase64Encoded":false}`

func TestEvents(t *testing.T) {
	f := function(t, echo)
	t.Run("HTTP API", func(t *testing.T) {
		a := invoke(t, f, t.Context(), v2)
		s := a.seen(t)
		if s.Method != "POST" || s.Path != "/orders/a%2Fb" || s.Query != "q=a%20b&q=c" || s.Host != "abc.execute-api.eu-west-1.amazonaws.com" || s.Remote != "192.0.2.7:0" || s.Body != "hello" {
			t.Errorf("request = %+v", s)
		}
		if !slices.Equal(s.Cookies, []string{"s=1", "t=2"}) || s.Header.Get("Content-Type") != "text/plain" {
			t.Errorf("cookies %v, header %v", s.Cookies, s.Header)
		}
		if a.StatusCode != 201 || !slices.Equal(a.Cookies, []string{"a=1; Secure", "b=2; Secure"}) || a.Headers["Vary"] != "Accept, Cookie" || a.Headers["Too"] != "" || a.Headers["Set-Cookie"] != "" {
			t.Errorf("answer = %+v", a)
		}
	})
	t.Run("HTTP API at a domain of its own has paths without the stage", func(t *testing.T) {
		event := strings.ReplaceAll(v2, "abc.execute-api.eu-west-1.amazonaws.com", "shop.example")
		if s := invoke(t, f, t.Context(), event).seen(t); s.Path != "/live/orders/a%2Fb" {
			t.Errorf("path = %s, want it as it was", s.Path)
		}
	})
	t.Run("REST API", func(t *testing.T) {
		a := invoke(t, f, t.Context(), v1)
		s := a.seen(t)
		if s.Method != "PUT" || s.Path != "/orders/7" || s.Query != "q=a+b&q=c" || s.Host != "shop.example" || s.Remote != "[2001:db8::1]:0" || s.Body != "hello" {
			t.Errorf("request = %+v", s)
		}
		if !slices.Equal(s.Header.Values("Accept"), []string{"a", "b"}) || !slices.Equal(s.Cookies, []string{"s=1", "t=2"}) {
			t.Errorf("cookies %v, header %v", s.Cookies, s.Header)
		}
		if a.StatusCode != 201 || len(a.MultiValueHeaders.Values("Set-Cookie")) != 2 || !slices.Equal(a.MultiValueHeaders.Values("Vary"), []string{"Accept", "Cookie"}) {
			t.Errorf("answer = %+v", a)
		}
	})
	t.Run("load balancer", func(t *testing.T) {
		a := invoke(t, f, t.Context(), alb)
		s := a.seen(t)
		if s.Method != "GET" || s.Query != "q=a%20b" || s.Host != "shop.example" || !slices.Equal(s.Cookies, []string{"s=1", "t=2"}) {
			t.Errorf("request = %+v", s)
		}
		if s.Remote != "192.0.2.7:0" {
			t.Errorf("remote address = %s, want the one that the load balancer saw, not the client's word", s.Remote)
		}
		cookies := 0
		for name := range a.Headers {
			if strings.EqualFold(name, "Set-Cookie") {
				cookies++
			}
		}
		if a.StatusCode != 201 || a.StatusDescription != "201 Created" || cookies != 2 || a.MultiValueHeaders != nil {
			t.Errorf("answer = %+v", a)
		}
	})
	t.Run("load balancer with multi-value headers", func(t *testing.T) {
		event := strings.Replace(alb, `"headers":{"host":"shop.example","x-forwarded-for":"203.0.113.9, 192.0.2.7","cookie":"s=1; t=2"}`,
			`"multiValueHeaders":{"host":["shop.example"],"x-forwarded-for":["203.0.113.9, 192.0.2.7"]},"multiValueQueryStringParameters":{"q":["a%20b","c"]}`, 1)
		a := invoke(t, f, t.Context(), event)
		if s := a.seen(t); s.Query != "q=a%20b&q=c" || s.Remote != "192.0.2.7:0" {
			t.Errorf("request = %+v", s)
		}
		if len(a.MultiValueHeaders.Values("Set-Cookie")) != 2 || a.Headers != nil {
			t.Errorf("answer = %+v", a)
		}
	})
	t.Run("hostile cases", func(t *testing.T) {
		const api = `abc.execute-api.eu-west-1.amazonaws.com`
		rest := strings.Replace(v1, `"requestContext":{`, `"requestContext":{"domainName":"`+api+`",`, 1)
		whole := strings.Replace(rest, `"path":"/orders/7","httpMethod"`, `"path":"/live/orders/7","httpMethod"`, 1)
		for _, tt := range []struct {
			name, event string
			got         func(s seen) string
			want        string
		}{
			{"the stage of a REST API is not in its path", rest, func(s seen) string { return s.Path }, "/orders/7"},
			{"a path that begins as the stage does", strings.ReplaceAll(rest, "/orders/7", "/live/7"), func(s seen) string { return s.Path }, "/live/7"},
			{"payload 1.0 of an HTTP API has the stage in its path", whole, func(s seen) string { return s.Path }, "/orders/7"},
			{"payload 1.0 at a domain of its own has not", strings.ReplaceAll(whole, api, "shop.example"), func(s seen) string { return s.Path }, "/live/orders/7"},
			{"the stage alone", strings.Replace(v2, `"rawPath":"/live/orders/a%2Fb"`, `"rawPath":"/live"`, 1), func(s seen) string { return s.Path }, "/"},
			{"a path that only begins as the stage does", strings.Replace(v2, `"rawPath":"/live/orders/a%2Fb"`, `"rawPath":"/lively"`, 1), func(s seen) string { return s.Path }, "/lively"},
			{"a path that was decoded", strings.Replace(v2, `/orders/a%2Fb","rawQ`, `/orders/50% off","rawQ`, 1), func(s seen) string { return s.Path }, "/orders/50%25%20off"},
			{
				"a header in two ways of writing", strings.Replace(v1, `"Accept":["a","b"]`, `"accept":["b"],"Accept":["a"],"ACCEPT":["c"]`, 1),
				func(s seen) string { return strings.Join(s.Header.Values("Accept"), " ") }, "c a b",
			},
			{
				"single headers in two ways of writing", strings.Replace(alb, `"cookie"`, `"X-A":"1","x-a":"2","cookie"`, 1),
				func(s seen) string { return strings.Join(s.Header.Values("X-A"), " ") }, "1 2",
			},
			{"a header that only the single ones have", strings.Replace(v1, `"Accept":"b"`, `"Accept":"b","X-A":"1"`, 1), func(s seen) string { return s.Header.Get("X-A") }, "1"},
			{"a load balancer that adds ports", strings.Replace(alb, "192.0.2.7", "192.0.2.7:4711", 1), func(s seen) string { return s.Remote }, "192.0.2.7:4711"},
			{"and to IPv6", strings.Replace(alb, "192.0.2.7", "[2001:db8::1]:4711", 1), func(s seen) string { return s.Remote }, "[2001:db8::1]:4711"},
			{"an address that is none", strings.Replace(alb, "192.0.2.7", "unknown", 1), func(s seen) string { return s.Remote }, ""},
			{"a health check of a load balancer has no address", strings.Replace(alb, `"x-forwarded-for":"203.0.113.9, 192.0.2.7",`, "", 1), func(s seen) string { return s.Remote + s.Path }, "/orders/7"},
			{"no body at all", strings.Replace(v2, `"body":"aGVsbG8=",`, "", 1), func(s seen) string { return s.Body }, ""},
			{"a body that is null", strings.Replace(v1, `"body":"hello"`, `"body":null`, 1), func(s seen) string { return s.Body }, ""},
			{"no cookies", strings.Replace(v2, `"cookies":["s=1","t=2"],`, "", 1), func(s seen) string { return strings.Join(s.Cookies, " ") }, ""},
		} {
			for range 10 { // the order of maps is a matter of chance
				if got := tt.got(invoke(t, f, t.Context(), tt.event).seen(t)); got != tt.want {
					t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
					break
				}
			}
		}
	})
	t.Run("what is no request is refused", func(t *testing.T) {
		for event, want := range map[string]int{
			strings.Replace(v2, "aGVsbG8=", "not base64!", 1): 400,
			strings.Replace(v2, `"POST"`, `"P OST"`, 1):       400,
			strings.Replace(alb, `"/orders/7"`, `""`, 1):      400,
			strings.Replace(alb, `"/orders/7"`, `"*"`, 1):     400,
		} {
			if a := invoke(t, f, t.Context(), event); a.StatusCode != want {
				t.Errorf("answer to %s = %+v, want %d", event, a, want)
			}
		}
	})
	t.Run("what is no event is an error", func(t *testing.T) {
		for _, event := range []string{`{"Records":[]}`, `null`, `[]`, `{`, `"x"`} {
			if out, err := f.Invoke(t.Context(), []byte(event)); err == nil {
				t.Errorf("Invoke(%s) = %s, want an error", event, out)
			}
		}
	})
}

func TestBodies(t *testing.T) {
	t.Run("what is not text comes in base64", func(t *testing.T) {
		zipped := new(bytes.Buffer)
		z := gzip.NewWriter(zipped)
		_, _ = z.Write([]byte("text"))
		_ = z.Close()
		for name, body := range map[string][]byte{"image": {0x89, 'P', 'N', 'G', 0xff}, "gzip": zipped.Bytes()} {
			a := invoke(t, function(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }), t.Context(), v2)
			got, err := base64.StdEncoding.DecodeString(a.Body)
			if err != nil || !a.IsBase64Encoded || !bytes.Equal(got, body) {
				t.Errorf("%s: answer = %+v (%v)", name, a, err)
			}
		}
	})
	t.Run("what says nothing of its kind is looked at", func(t *testing.T) {
		a := invoke(t, function(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }), t.Context(), v2)
		if a.StatusCode != 200 || a.Headers["Content-Type"] != "text/html; charset=utf-8" || a.IsBase64Encoded {
			t.Errorf("answer = %+v", a)
		}
	})
	t.Run("what has no body has none", func(t *testing.T) {
		write := func(status int) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "text")
			}
		}
		for _, tt := range []struct {
			event  string
			status int
		}{{strings.Replace(v2, `"POST"`, `"HEAD"`, 1), 200}, {v2, 204}, {v2, 304}} {
			if a := invoke(t, function(t, write(tt.status)), t.Context(), tt.event); a.StatusCode != tt.status || a.Body != "" {
				t.Errorf("answer = %+v, want %d without a body", a, tt.status)
			}
		}
	})
	t.Run("a handler that says nothing says 200", func(t *testing.T) {
		if a := invoke(t, function(t, func(http.ResponseWriter, *http.Request) {}), t.Context(), v2); a.StatusCode != 200 || a.Body != "" {
			t.Errorf("answer = %+v", a)
		}
	})
	t.Run("more than Lambda takes is an error, not a broken answer", func(t *testing.T) {
		for size, want := range map[int]int{MaxAnswer: 200, MaxAnswer + 1: 500} {
			a := invoke(t, function(t, func(w http.ResponseWriter, _ *http.Request) {
				part := bytes.Repeat([]byte("x"), 1<<10)
				for left := size; left > 0; left -= len(part) {
					if _, err := w.Write(part[:min(left, len(part))]); err != nil {
						return
					}
				}
			}), t.Context(), v2)
			if a.StatusCode != want {
				t.Errorf("%d bytes: status %d, want %d", size, a.StatusCode, want)
			}
		}
	})
	t.Run("a panic is 500", func(t *testing.T) {
		if a := invoke(t, function(t, func(http.ResponseWriter, *http.Request) { panic("no") }), t.Context(), v2); a.StatusCode != 500 || strings.Contains(a.Body, "no") {
			t.Errorf("answer = %+v", a)
		}
	})
}

func TestDeadline(t *testing.T) {
	t.Run("who takes too long is answered for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			begin := time.Now()
			stopped := make(chan struct{})
			a := invoke(t, function(t, func(_ http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				close(stopped)
			}), ctx, v2)
			if took := time.Since(begin); a.StatusCode != 504 || took != 2500*time.Millisecond {
				t.Errorf("answer = %+v after %v, want 504 half a second before the deadline", a, took)
			}
			<-stopped // it is told that nobody waits
		})
	})
	t.Run("who does not listen either", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			begin := time.Now()
			a := invoke(t, function(t, func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) }), ctx, v2)
			if took := time.Since(begin); a.StatusCode != 504 || took != 2750*time.Millisecond {
				t.Errorf("answer = %+v after %v, want 504 before the deadline", a, took)
			}
			time.Sleep(time.Minute) // until it is gone
		})
	})
	t.Run("a stream that is not told is cut off, and sent as far as it got", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			a := invoke(t, function(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "id: 1\n\n")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				panic(http.ErrAbortHandler) // as a proxy does
			}), ctx, v2)
			if a.StatusCode != 200 || a.Body != "id: 1\n\n" {
				t.Errorf("answer = %+v, want the first event", a)
			}
		})
	})
	t.Run("a stream is sent as far as it got", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			type key struct{}
			f, err := New(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				tick := time.NewTicker(600 * time.Millisecond)
				defer tick.Stop()
				for n := 1; ; n++ {
					select {
					case <-r.Context().Value(key{}).(<-chan struct{}):
						return
					case <-tick.C:
						fmt.Fprintf(w, "id: %d\n\n", n)
						if err := http.NewResponseController(w).Flush(); err != nil {
							panic(err)
						}
					}
				}
			}), Config{Draining: func(ctx context.Context, done <-chan struct{}) context.Context {
				return context.WithValue(ctx, key{}, done)
			}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if a := invoke(t, f, ctx, v2); a.StatusCode != 200 || a.Body != "id: 1\n\nid: 2\n\nid: 3\n\n" {
				t.Errorf("answer = %+v, want the events of the first 2 seconds", a)
			}
		})
	})
}

func TestNew(t *testing.T) {
	if _, err := New(nil, Config{}); err == nil {
		t.Error("New(nil) = nil, want an error")
	}
	if _, err := New(http.NotFoundHandler(), Config{Margin: -1}); err == nil || !strings.Contains(err.Error(), "Margin") {
		t.Errorf("New = %v, want an error that names Margin", err)
	}
}

// FuzzInvoke looks for events that make it panic, or answer with something that is no answer.
func FuzzInvoke(f *testing.F) {
	for _, event := range []string{v1, v2, alb} {
		f.Add([]byte(event))
	}
	fn, err := New(http.HandlerFunc(echo), Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, event []byte) {
		out, err := fn.Invoke(t.Context(), event)
		if err != nil {
			return
		}
		var a answered
		if err := json.Unmarshal(out, &a); err != nil || a.StatusCode < 200 || a.StatusCode > 599 {
			t.Errorf("Invoke(%q) = %s (%v)", event, out, err)
		}
		if len(slices.Collect(maps.Keys(a.Headers)))+len(a.MultiValueHeaders) == 0 {
			t.Errorf("Invoke(%q) = %s, want headers", event, out)
		}
	})
}
