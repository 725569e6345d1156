// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

func fails(err error) Handler {
	return HandlerFunc(func(context.Context, *Delivery) error { return err })
}

var panics = HandlerFunc(func(context.Context, *Delivery) error { panic(errTest) })

func TestRecover(t *testing.T) {
	var p *PanicError
	err := Recover()(panics).Handle(t.Context(), &Delivery{})
	if !errors.As(err, &p) || !errors.Is(err, errTest) || !strings.Contains(string(p.Stack), "middleware_test.go") {
		t.Errorf("Handle = %v, want a PanicError with value and stack", err)
	}
	if err := Recover()(fails(errTest)).Handle(t.Context(), &Delivery{}); !errors.Is(err, errTest) {
		t.Errorf("Handle = %v, want the handler's error", err)
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waits := HandlerFunc(func(ctx context.Context, _ *Delivery) error { <-ctx.Done(); return ctx.Err() })
		start := time.Now()
		err := Timeout(time.Minute)(waits).Handle(t.Context(), &Delivery{})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("Handle = %v after %v, want DeadlineExceeded after a minute", err, time.Since(start))
		}
		if d := Decide(t.Context(), err, 1, Subscription{}); d.Action != Retried || d.Attempt != 2 {
			t.Errorf("Decide = %+v, want a retry that counts", d)
		}
		none := HandlerFunc(func(ctx context.Context, _ *Delivery) error {
			if _, ok := ctx.Deadline(); ok {
				t.Error("Timeout(0) sets a deadline")
			}
			return nil
		})
		if err := Timeout(0)(none).Handle(context.Background(), &Delivery{}); err != nil {
			t.Errorf("Handle = %v, want nil", err)
		}
	})
}

type guard func(ctx context.Context, fn func(context.Context) error) error

func (g guard) Do(ctx context.Context, fn func(context.Context) error) error { return g(ctx, fn) }

func TestGuard(t *testing.T) {
	open := guard(func(ctx context.Context, fn func(context.Context) error) error { return fn(ctx) })
	if err := Guard(open)(fails(errTest)).Handle(t.Context(), &Delivery{}); !errors.Is(err, errTest) {
		t.Errorf("Handle = %v, want the handler's error", err)
	}
	shut := guard(func(context.Context, func(context.Context) error) error {
		return &fault.Rejection{By: "breaker", RetryAfter: time.Minute, Err: errTest}
	})
	err := Guard(shut)(panics).Handle(t.Context(), &Delivery{})
	if d := Decide(t.Context(), err, 16, Subscription{}); d.Action != Retried || d.Attempt != 16 || d.Delay != time.Minute {
		t.Errorf("Decide = %+v, want a retry after a minute that does not count", d)
	}
}

func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got Handled
		d := &Delivery{}
		o := Observe(func(_ context.Context, h Handled) { got = h })
		slow := HandlerFunc(func(context.Context, *Delivery) error { time.Sleep(time.Second); return errTest })
		if err := o(slow).Handle(t.Context(), d); !errors.Is(err, errTest) || !errors.Is(got.Err, errTest) || got.Took != time.Second || got.Delivery != d {
			t.Errorf("Handle = %v, observed %+v, want the error after a second", err, got)
		}
		err := o(panics).Handle(t.Context(), d)
		if p := (*PanicError)(nil); !errors.As(err, &p) || !errors.Is(got.Err, p) {
			t.Errorf("Handle = %v, observed %v, want the same PanicError", err, got.Err)
		}
	})
}

func TestLogging(t *testing.T) {
	var out bytes.Buffer
	l := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d := &Delivery{
		Group: "mails", Attempt: 2,
		Message: &Message{
			ID: "id-1", Topic: "order.placed", Type: "order.placed.v1", Key: "secret-key", Body: []byte("secret-body"),
			Header: Header{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x": "secret-header"},
		},
	}
	_ = Logging(l)(fails(nil)).Handle(t.Context(), d)
	_ = Logging(l)(fails(errTest)).Handle(t.Context(), d)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, wants := range [][]string{
		{"level=DEBUG", `msg="message handled"`, "group=mails", "topic=order.placed", "message_type=order.placed.v1", "message_id=id-1", "attempt=2", "took=", "trace_id=0af7651916cd43dd8448eb211c80319c"},
		{"level=WARN", `msg="message not handled"`, "error=no"},
	} {
		for _, want := range wants {
			if !strings.Contains(lines[i], want) {
				t.Errorf("line %d = %q, want %q in it", i, lines[i], want)
			}
		}
	}
	if strings.Contains(out.String(), "secret") {
		t.Errorf("the log tells keys, bodies or headers: %s", out.String())
	}

	before := slog.Default()
	defer slog.SetDefault(before)
	var late bytes.Buffer
	h := Logging(nil)(fails(errTest))
	slog.SetDefault(slog.New(slog.NewTextHandler(&late, nil)))
	_ = h.Handle(t.Context(), d)
	if late.Len() == 0 {
		t.Error("a nil logger does not log to slog.Default() of the moment")
	}
}

func TestDeadLetterOnTheWire(t *testing.T) {
	dl := NewDeadLetter(
		&Delivery{Group: "g", Attempt: 3, Message: &Message{ID: "1", Topic: "t", Header: Header{"a": "1"}, Body: []byte("b")}},
		Decide(t.Context(), &PanicError{Value: "boom", Stack: bytes.Repeat([]byte("stack "), 5000)}, 16, Subscription{}))
	if len(dl.Stack) == 0 || dl.Reason == "" || dl.At.IsZero() {
		t.Fatalf("NewDeadLetter = %+v, want stack, reason and time", dl)
	}
	m := dl.Encode()
	if err := m.Validate(); err != nil || m.ID != "1" || m.Topic != "t" {
		t.Errorf("Encode = %+v, %v, want the message, valid", m, err)
	}
	if len(dl.Message.Header) != 1 {
		t.Errorf("Encode changed the message's header: %v", dl.Message.Header)
	}
	got, err := DecodeDeadLetter(m)
	if err != nil || got.Group != "g" || got.Attempt != 3 || got.Reason != dl.Reason || !got.At.Equal(dl.At) || !bytes.HasPrefix(dl.Stack, got.Stack) || len(got.Stack) != maxStack {
		t.Errorf("DecodeDeadLetter = %+v, %v, want what was encoded", got, err)
	}
	if len(got.Message.Header) != 1 || got.Message.Header["a"] != "1" {
		t.Errorf("the decoded message has the header %v, want the original one", got.Message.Header)
	}
	bare := DeadLetter{Delivery: Delivery{Group: "g", Attempt: 1, Message: &Message{ID: "1", Topic: "t"}}}
	if got, err := DecodeDeadLetter(bare.Encode()); err != nil || got.Stack != nil || got.Reason != "" {
		t.Errorf("DecodeDeadLetter = %+v, %v, want no stack", got, err)
	}
	for name, change := range map[string]func(Header){
		"dead-letter-group":    func(h Header) { delete(h, "dead-letter-group") },
		"dead-letter-attempts": func(h Header) { h["dead-letter-attempts"] = "0" },
		"dead-letter-time":     func(h Header) { h["dead-letter-time"] = "yesterday" },
	} {
		m := dl.Encode()
		change(m.Header)
		if _, err := DecodeDeadLetter(m); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("DecodeDeadLetter = %v, want an error that names %s", err, name)
		}
	}
}

func FuzzDecodeDeadLetter(f *testing.F) {
	f.Add("g", "1", "2024-01-01T00:00:00Z", "why", "stack")
	f.Add("", "-1", "", "", "\xff")
	f.Add("g", "1", "0000-01-01T00:00:00+23:59", "", "")
	f.Fuzz(func(t *testing.T, group, attempts, at, reason, stack string) {
		m := &Message{ID: "1", Topic: "t", Header: Header{
			"dead-letter-group": group, "dead-letter-attempts": attempts, "dead-letter-time": at, "dead-letter-reason": reason, "dead-letter-stack": stack, "x": "kept",
		}}
		dl, err := DecodeDeadLetter(m)
		if err != nil {
			return
		}
		again, err := DecodeDeadLetter(dl.Encode())
		if err != nil || again.Group != dl.Group || again.Attempt != dl.Attempt || again.Reason != dl.Reason || !again.At.Equal(dl.At) {
			t.Errorf("second round = %+v, %v, want %+v", again, err, dl)
		}
		if len(dl.Message.Header) != 1 {
			t.Errorf("Header = %v, want only the message's own", dl.Message.Header)
		}
	})
}

func TestTrace(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tc, ok := TraceFrom(Header{"traceparent": parent, "tracestate": "rojo=00f067aa0ba902b7, congo@t61rcwkgmze=x"})
	if !ok || tc.TraceID.String() != "0af7651916cd43dd8448eb211c80319c" || tc.SpanID.String() != "b7ad6b7169203331" || tc.Flags != 1 || tc.String() != parent {
		t.Errorf("TraceFrom = %+v, %t, want the IDs of %s", tc, ok, parent)
	}
	h := Header{}
	tc.Inject(h)
	if h["traceparent"] != parent || h["tracestate"] != "rojo=00f067aa0ba902b7, congo@t61rcwkgmze=x" {
		t.Errorf("Inject = %v, want both headers back", h)
	}
	child := tc.Child()
	if child.TraceID != tc.TraceID || child.SpanID == tc.SpanID || child.State != tc.State {
		t.Errorf("Child = %+v, want another span of %+v", child, tc)
	}
	TraceContext{TraceID: tc.TraceID, SpanID: tc.SpanID}.Inject(h)
	if h["traceparent"] != strings.TrimSuffix(parent, "1")+"0" || len(h) != 1 {
		t.Errorf("Inject without state = %v, want tracestate gone", h)
	}
	TraceContext{}.Inject(h)
	if len(h) != 0 {
		t.Errorf("Inject of the zero context = %v, want no headers", h)
	}
	root := NewTrace()
	h = Header{}
	root.Inject(h)
	if got, ok := TraceFrom(h); !ok || got != root || got.Flags != 1 {
		t.Errorf("TraceFrom = %+v, %t, want the new root %+v", got, ok, root)
	}
	for _, good := range []string{
		parent,
		"cc" + parent[2:],               // a later version
		"cc" + parent[2:] + "-whatever", // that has more to say
		parent[:53] + "ff",              // unknown flags
	} {
		if tc, ok := TraceFrom(Header{"traceparent": good}); !ok || tc.Flags != 1 {
			t.Errorf("TraceFrom(%q) = %+v, %t, want it valid and sampled", good, tc, ok)
		}
	}
	for _, bad := range []string{
		"", "00", parent[:54], parent + "-x", parent + "0",
		"ff" + parent[2:], "cc" + parent[2:] + "x", "0x" + parent[2:],
		strings.ToUpper(parent), "00-" + strings.Repeat("0", 32) + parent[35:], parent[:36] + strings.Repeat("0", 16) + parent[52:],
		strings.Replace(parent, "-", "_", 1), parent[:53] + "0g", " " + parent,
	} {
		if tc, ok := TraceFrom(Header{"traceparent": bad}); ok || tc != (TraceContext{}) {
			t.Errorf("TraceFrom(%q) = %+v, %t, want nothing", bad, tc, ok)
		}
	}
	var many []string
	for i := range 33 {
		many = append(many, string(rune('a'+i%26))+strings.Repeat("x", i/26)+"=1")
	}
	for state, want := range map[string]bool{
		"a=1": true, "a=1,b=2": true, "a=1,,b=2": true, " a=1\t,\tb=2 ": true, "0t@v=1": true, "a_-*/9=!~ x": true,
		strings.Join(many[:32], ","): true, strings.Join(many, ","): false,
		"a": false, "a=": false, "=1": false, "A=1": false, "0=1": false, "a=1=2": false, "a=1,a=2": false,
		"a@=1": false, "a@0=1": false, "a@b@c=1": false, "a=\x01": false, "a=ä": false, ",": false,
		strings.Repeat("a", 257) + "=1": false, "a=" + strings.Repeat("a", 257): false, strings.Repeat("a", 242) + "@b=1": false,
	} {
		if tc, _ := TraceFrom(Header{"traceparent": parent, "tracestate": state}); (tc.State != "") != want {
			t.Errorf("tracestate %.40q is kept: %t, want %t", state, tc.State != "", want)
		}
	}
}

func FuzzTrace(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1,b@c=2")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", ",,")
	f.Fuzz(func(t *testing.T, parent, state string) {
		tc, ok := TraceFrom(Header{"traceparent": parent, "tracestate": state})
		if !ok {
			if tc != (TraceContext{}) {
				t.Errorf("TraceFrom(%q) = %+v, false, want the zero context", parent, tc)
			}
			return
		}
		h := Header{}
		tc.Inject(h)
		if again, ok := TraceFrom(h); !ok || again != tc {
			t.Errorf("second round of %q = %+v, %t, want %+v", parent, again, ok, tc)
		}
		if !slices.Contains([]int{1, 2}, len(h)) || len(h["traceparent"]) != 55 {
			t.Errorf("Inject = %v", h)
		}
	})
}
