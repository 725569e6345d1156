// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

func TestMessageValidate(t *testing.T) {
	good := Message{
		ID: "1", Topic: "order.placed", Key: "ä", Type: "order.placed.v1", Time: time.Now(),
		Header: Header{"traceparent": "00", "x": "line\nline"}, Body: []byte{0xff},
	}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate = %v, want nil", err)
	}
	if err := (&Message{ID: "1", Topic: "t"}).Validate(); err != nil {
		t.Errorf("Validate of the least message = %v, want nil", err)
	}
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		change func(*Message)
		want   string
	}{
		{func(m *Message) { m.ID = "" }, "Message.ID is empty"},
		{func(m *Message) { m.ID = long }, "Message.ID has 256 bytes"},
		{func(m *Message) { m.ID = "a\x00" }, `Message.ID is "a\x00"`},
		{func(m *Message) { m.Topic = "" }, `Message.Topic is ""`},
		{func(m *Message) { m.Topic = "a..b" }, `Message.Topic is "a..b"`},
		{func(m *Message) { m.Topic = ".a" }, `Message.Topic is ".a"`},
		{func(m *Message) { m.Topic = "a b" }, `Message.Topic is "a b"`},
		{func(m *Message) { m.Topic = "a.*" }, `Message.Topic is "a.*"`},
		{func(m *Message) { m.Topic = "a.b#" }, `Message.Topic is "a.b#"`},
		{func(m *Message) { m.Topic = long }, "Message.Topic is"},
		{func(m *Message) { m.Key = "\xff" }, `Message.Key is "\xff"`},
		{func(m *Message) { m.Key = long }, "Message.Key has 256 bytes"},
		{func(m *Message) { m.Type = "\n" }, `Message.Type is "\n"`},
		{func(m *Message) { m.Header = Header{"": "v"} }, "Message.Header has an empty name"},
		{func(m *Message) { m.Header = Header{"a\r": "v"} }, "Message.Header name is"},
		{func(m *Message) { m.Header = Header{"a": "\xff"} }, `Message.Header["a"] is`},
	} {
		m := good
		c.change(&m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), "messaging: "+c.want) {
			t.Errorf("Validate = %v, want %q", err, c.want)
		}
	}
	if err := (*Message)(nil).Validate(); err == nil {
		t.Error("Validate of nil = nil, want an error")
	}
}

func TestMessageClone(t *testing.T) {
	m := &Message{ID: "1", Header: Header{"a": "1"}, Body: []byte("b")}
	c := m.Clone()
	c.ID, c.Header["a"], c.Body[0] = "2", "2", 'x'
	if m.ID != "1" || m.Header["a"] != "1" || m.Body[0] != 'b' {
		t.Errorf("the original changed with its clone: %+v", m)
	}
}

func TestHeaderIsACarrier(t *testing.T) {
	var none Header
	if none.Get("a") != "" || len(none.Keys()) != 0 {
		t.Error("a nil Header does not read as empty")
	}
	h := Header{}
	h.Set("b", "2")
	h.Set("a", "1")
	if h.Get("b") != "2" || !slices.Equal(h.Keys(), []string{"a", "b"}) {
		t.Errorf("Get(b) = %q, Keys = %v, want 2, [a b]", h.Get("b"), h.Keys())
	}
}

func TestNewID(t *testing.T) {
	t.Run("is a UUID version 7 of now", func(t *testing.T) {
		before := time.Now().UnixMilli()
		id := NewID()
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) {
			t.Errorf("NewID = %q, want a UUID version 7", id)
		}
		var ms int64
		for _, c := range strings.ReplaceAll(id, "-", "")[:12] {
			ms = ms<<4 | int64(strings.IndexRune("0123456789abcdef", c))
		}
		if after := time.Now().UnixMilli(); ms < before-1000 || ms > after+1000 {
			t.Errorf("NewID has the time %d, want about %d", ms, after)
		}
	})
	t.Run("is unique and in order", func(t *testing.T) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		seen := make(map[string]bool)
		for range 4 {
			wg.Go(func() {
				ids := make([]string, 5000)
				for i := range ids {
					ids[i] = NewID()
				}
				if !slices.IsSorted(ids) {
					t.Error("IDs of one goroutine are not in order")
				}
				mu.Lock()
				defer mu.Unlock()
				for _, id := range ids {
					if seen[id] {
						t.Errorf("NewID = %s twice", id)
					}
					seen[id] = true
				}
			})
		}
		wg.Wait()
	})
	t.Run("follows a clock that is set back", func(t *testing.T) {
		now := NewID()
		synctest.Test(t, func(t *testing.T) { // where it is the year 2000
			a, b := NewID(), NewID()
			if a >= now || b <= a {
				t.Errorf("NewID = %s, %s, want them before %s and in order", a, b, now)
			}
		})
	})
}

func TestPublishError(t *testing.T) {
	blocked := Failed{Index: 1, ID: "b", Err: ErrBlocked}
	unknown := Failed{Index: 2, ID: "c", Err: ErrUnknown}
	refused := Failed{Index: 3, ID: "d", Err: fault.Permanent(ErrRefused)}
	unroutable := Failed{Index: 4, ID: "e", Err: ErrUnroutable}
	later := Failed{Index: 5, ID: "f", Err: fault.RetryAfter(ErrRefused, time.Second)}
	ctx := t.Context()
	for _, c := range []struct {
		name   string
		failed []Failed
		want   fault.Verdict
	}{
		{"one", []Failed{unknown}, fault.Verdict{Outcome: fault.Failure, Retry: true, Unknown: true}},
		{"unknown wins", []Failed{refused, blocked, unknown}, fault.Verdict{Outcome: fault.Failure, Retry: true, Unknown: true}},
		{"all permanent", []Failed{refused, refused}, fault.Verdict{Outcome: fault.Neutral}},
		{"neutral", []Failed{refused, unroutable}, fault.Verdict{Outcome: fault.Neutral, Retry: true}},
		{"the longest delay", []Failed{later, blocked}, fault.Verdict{Outcome: fault.Failure, Retry: true, After: time.Second}},
	} {
		err := error(&PublishError{Failed: c.failed})
		if got := fault.Judge(ctx, err); got != c.want {
			t.Errorf("%s: Judge = %+v, want %+v", c.name, got, c.want)
		}
		for _, f := range c.failed {
			if !errors.Is(err, f.Err) {
				t.Errorf("%s: errors.Is(%v) = false, want true", c.name, f.Err)
			}
		}
	}
	err := &PublishError{Failed: []Failed{blocked, unknown, refused, unroutable}}
	want := `messaging: 4 not confirmed; message 1 (id "b"): messaging: blocked`
	if s := err.Error(); !strings.HasPrefix(s, want) || !strings.HasSuffix(s, "; ...") || strings.Contains(s, `"e"`) {
		t.Errorf("Error = %q, want %q... and three messages at most", s, want)
	}
}

func TestSentinels(t *testing.T) {
	for _, c := range []struct {
		err                error
		permanent, unknown bool
	}{
		{ErrUnroutable, false, false},
		{ErrRefused, false, false},
		{ErrBlocked, false, false},
		{ErrUnknown, false, true},
		{ErrMismatch, true, false},
		{ErrUnsupported, true, false},
	} {
		if fault.IsPermanent(c.err) != c.permanent || fault.IsUnknown(c.err) != c.unknown {
			t.Errorf("%v: permanent %t, unknown %t, want %t, %t", c.err, fault.IsPermanent(c.err), fault.IsUnknown(c.err), c.permanent, c.unknown)
		}
	}
}

func TestInvalid(t *testing.T) {
	good := &Message{ID: "1", Topic: "t"}
	if err := Invalid([]*Message{good, good}); err != nil {
		t.Errorf("Invalid = %v, want nil", err)
	}
	var pe *PublishError
	if err := Invalid([]*Message{good, nil, {ID: "3"}}); !errors.As(err, &pe) || len(pe.Failed) != 3 {
		t.Fatalf("Invalid = %v, want all 3 messages named", err)
	}
	for i, want := range []struct {
		id        string
		permanent bool
		text      string
	}{
		{"1", false, "message 1 of the same call is invalid"},
		{"", true, "Message is nil"},
		{"3", true, "Message.Topic"},
	} {
		f := pe.Failed[i]
		if f.Index != i || f.ID != want.id || !errors.Is(f.Err, ErrRefused) || fault.IsPermanent(f.Err) != want.permanent || !strings.Contains(f.Err.Error(), want.text) {
			t.Errorf("Failed[%d] = %+v, want ID %q, ErrRefused, permanent %t, %q", i, f, want.id, want.permanent, want.text)
		}
	}
}

func TestCodec(t *testing.T) {
	type order struct{ Total int }
	t.Run("Encode fills what is missing", func(t *testing.T) {
		h := Header{"a": "1"}
		m, err := Encode(JSON, Message{Topic: "order", Type: "order.v1", Header: h}, order{7})
		if err != nil || string(m.Body) != `{"Total":7}` || m.ID == "" || m.Time.IsZero() || m.Header["content-type"] != "application/json" || m.Header["a"] != "1" {
			t.Errorf("Encode = %+v, %v, want body, ID, time and content type", m, err)
		}
		if len(h) != 1 {
			t.Errorf("Encode changed its argument's header to %v", h)
		}
		was := Message{ID: "1", Topic: "order", Time: time.Unix(1, 0), Header: Header{"content-type": "x"}}
		m, err = Encode(JSON, was, order{7})
		if err != nil || m.ID != "1" || !m.Time.Equal(was.Time) || m.Header["content-type"] != "x" {
			t.Errorf("Encode = %+v, %v, want what was there kept", m, err)
		}
	})
	t.Run("Encode refuses what does not encode or validate", func(t *testing.T) {
		if m, err := Encode(JSON, Message{Topic: "t", Type: "x.v1"}, func() {}); m != nil || err == nil || !strings.Contains(err.Error(), `func() does not encode as body of type "x.v1"`) {
			t.Errorf("Encode = %v, %v, want an error that names both types", m, err)
		}
		if m, err := Encode(JSON, Message{}, 1); m != nil || err == nil {
			t.Errorf("Encode = %v, %v, want an error", m, err)
		}
	})
	t.Run("Typed decodes", func(t *testing.T) {
		var got order
		h := Typed(JSON, func(_ context.Context, o order, d *Delivery) error { got = o; return nil })
		if err := h.Handle(t.Context(), &Delivery{Message: &Message{Body: []byte(`{"Total":7,"New":1}`)}}); err != nil || got.Total != 7 {
			t.Errorf("Handle = %v, got %+v, want nil, 7", err, got)
		}
	})
	t.Run("Typed rejects a body that does not decode and names the types", func(t *testing.T) {
		h := Typed(JSON, func(context.Context, order, *Delivery) error { t.Error("called"); return nil })
		err := h.Handle(t.Context(), &Delivery{Message: &Message{Type: "order.v1", Body: []byte(`[`)}})
		d := Decide(t.Context(), err, 1, Subscription{})
		if d.Action != DeadLettered || !strings.Contains(d.Reason, `"order.v1"`) || !strings.Contains(d.Reason, "messaging.order") {
			t.Errorf("Decide = %+v, want a dead letter with both types in the reason", d)
		}
	})
}
