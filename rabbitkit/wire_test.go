// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

func TestNew(t *testing.T) {
	for field, cfg := range map[string]Config{
		"Exchange":          {Exchange: "a.b"},
		"Window":            {Window: -1},
		"DeliveryLimit":     {DeliveryLimit: -1},
		"Heartbeat":         {Heartbeat: time.Millisecond},
		"Timeout":           {Timeout: -1},
		"MaxReconnectDelay": {MaxReconnectDelay: -1},
		"Log.MaxAge":        {Log: Log{MaxAge: time.Millisecond}},
		"Log.MaxBytes":      {Log: Log{MaxBytes: -1}},
		"Log.MaxBytes is 1": {Log: Log{MaxBytes: 1, SegmentBytes: 1}},
		"Log.SegmentBytes":  {Log: Log{SegmentBytes: 1}},
	} {
		if _, err := New("amqp://127.0.0.1:1", cfg); err == nil || !strings.Contains(err.Error(), "Config."+field) {
			t.Errorf("New = %v, want an error that names Config.%s", err, field)
		}
	}
	if _, err := New("amqp://user:secret@host:port/", Config{}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("New with a bad URL = %v, want an error without the password", err)
	}
}

func TestDialMakesTheConnection(t *testing.T) {
	cut := errors.New("cut")
	var asked string
	c, err := New("amqp://127.0.0.1:1", Config{
		Logger: slog.New(slog.DiscardHandler),
		Dial: func(_ context.Context, network, addr string) (net.Conn, error) {
			asked = network + " " + addr
			return nil, cut
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Check(t.Context()); !errors.Is(err, cut) || asked != "tcp 127.0.0.1:1" {
		t.Errorf("Check = %v after Dial(%s), want its error, and tcp 127.0.0.1:1", err, asked)
	}
}

func TestSubscriptionsThatCannotBe(t *testing.T) {
	c, err := New("amqp://127.0.0.1:1", Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h := messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil })
	s := messaging.Subscription{Group: "g", Topics: []string{"t"}, From: messaging.FromFirst()}
	if err := c.Subscribe(t.Context(), s, h); !errors.Is(err, messaging.ErrUnsupported) {
		t.Errorf("Subscribe from the first = %v, want ErrUnsupported", err)
	}
	s.From, s.Prefetch = messaging.Start{}, maxPrefetch+1
	if err := c.Subscribe(t.Context(), s, h); err == nil || !strings.Contains(err.Error(), "Subscription.Prefetch") {
		t.Errorf("Subscribe = %v, want an error that names Subscription.Prefetch", err)
	}
}

func TestNobodyListens(t *testing.T) {
	c, err := New("amqp://127.0.0.1:1", Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = c.Publish(ctx, &messaging.Message{ID: "1", Topic: "t"})
	if !errors.Is(err, messaging.ErrBlocked) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, messaging.ErrUnknown) {
		t.Errorf("Publish = %v, want ErrBlocked and context.DeadlineExceeded, not ErrUnknown", err)
	}
	var op *net.OpError
	if err := c.Check(t.Context()); !errors.As(err, &op) {
		t.Errorf("Check = %v, want the error of the dial", err)
	}
}

func TestRung(t *testing.T) {
	for d, want := range map[time.Duration]int{
		0: 0, time.Millisecond: 0, firstRung: 0, firstRung + 1: 1, 4 * firstRung: 1, 4*firstRung + 1: 2,
		5 * time.Minute: 6, 1000 * time.Hour: lastRung,
	} {
		if got := rung(d); got != want {
			t.Errorf("rung(%v) = %d, want %d", d, got, want)
		}
	}
}

func TestPositionsOnlyGrow(t *testing.T) {
	// In the order of their worth: whichever comes first, the last one is kept.
	all := []position{{Time: time.Unix(7, 0)}, {}, {Next: 1}, {Next: 1000}}
	for i, p := range all {
		for j, q := range all {
			if got := p.before(q); got != (i < j) {
				t.Errorf("%+v before %+v = %t, want %t", p, q, got, i < j)
			}
		}
	}
	ten := &tenure{first: 1, done: position{Next: 100}, offsets: []int64{98, 99, 100, 101, 105}}
	for _, c := range []struct {
		low  uint64
		want int64
	}{{0, 100}, {2, 100}, {3, 101}, {3, 101}, {5, 106}} {
		if ten.moved(c.low); ten.position().Next != c.want {
			t.Errorf("after tag %d the position is %d, want %d", c.low, ten.position().Next, c.want)
		}
	}
}

func TestMultipleAckOnlyOverAFinishedPrefix(t *testing.T) {
	for _, c := range []struct {
		batch   []uint64
		low     uint64
		upTo    uint64
		singles []uint64
	}{
		{[]uint64{1, 2, 3}, 3, 3, nil},
		{[]uint64{3, 1}, 1, 1, []uint64{3}},
		{[]uint64{5, 7}, 2, 0, []uint64{5, 7}},
		// 1 finishes last; 2 and 3 were acknowledged already.
		{[]uint64{1}, 3, 1, nil},
	} {
		upTo, singles := prefix(c.batch, c.low)
		if upTo != c.upTo || !slices.Equal(singles, c.singles) {
			t.Errorf("prefix(%v, %d) = %d, %v, want %d, %v", c.batch, c.low, upTo, singles, c.upTo, c.singles)
		}
	}
}

func TestWire(t *testing.T) {
	m := &messaging.Message{
		ID: "1", Topic: "a.b", Key: "k", Type: "t", Time: time.Date(2024, 2, 29, 1, 2, 3, 4, time.UTC), Body: []byte("body"),
		Header: messaging.Header{"CC": "a", "BCC": "b", "x-death": "c", "x-dovetail-key": "d", "x-dovetail-h-x": "e", "x-request-id": "f",
			"content-type": strings.Repeat("long", 100), "empty": ""},
	}
	p, err := encode(m, maxHeaders)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Headers.Validate(); err != nil {
		t.Fatal(err)
	}
	if p.DeliveryMode != amqp.Persistent {
		t.Errorf("DeliveryMode = %d, want persistent", p.DeliveryMode)
	}
	for _, name := range []string{"CC", "BCC", "x-death"} {
		if _, ok := p.Headers[name]; ok {
			t.Errorf("header %q travels under its own name, which means something to the broker", name)
		}
	}
	r := decode(&amqp.Delivery{Headers: p.Headers, ContentType: p.ContentType, MessageId: p.MessageId, Type: p.Type, Timestamp: p.Timestamp, RoutingKey: "a.b", Body: p.Body})
	if !maps.Equal(r.msg.Header, m.Header) || r.msg.Key != "k" || !r.msg.Time.Equal(m.Time) || r.msg.Topic != "a.b" || r.attempt != 1 || r.again {
		t.Errorf("decode(encode(m)) = %+v, want %+v", r.msg, m)
	}
	for name, bad := range map[string]*messaging.Message{
		"Header":      {ID: "1", Topic: "t", Header: messaging.Header{"a": strings.Repeat("x", maxHeaders)}},
		"Header name": {ID: "1", Topic: "t", Header: messaging.Header{own + strings.Repeat("x", 240): ""}},
		"Body":        {ID: "1", Topic: "t", Body: make([]byte, maxBody+1)},
	} {
		if _, err := encode(bad, maxHeaders); !errors.Is(err, messaging.ErrRefused) || !fault.IsPermanent(err) || !strings.Contains(err.Error(), "Message."+name) {
			t.Errorf("encode = %v, want ErrRefused, permanent, that names Message.%s", err, name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("x-death", "v", int64(3))
	f.Add(headerAttempt, "-1", int64(0))
	f.Add(headerTime, "no time", int64(0))
	f.Fuzz(func(t *testing.T, name, value string, n int64) {
		r := decode(&amqp.Delivery{Headers: amqp.Table{name: value, "n": n, "x-death": []any{amqp.Table{"reason": value, "count": value}}}})
		if r.attempt < 1 {
			t.Errorf("attempt = %d, want at least 1", r.attempt)
		}
	})
}

func TestALogHasTwoFilesAtLeast(t *testing.T) {
	for _, c := range []struct {
		log  Log
		want int64
	}{
		{Log{MaxAge: time.Hour}, 64 << 20},
		{Log{MaxBytes: 1 << 30}, 64 << 20},
		{Log{MaxBytes: 10 << 20}, 5 << 20},
		{Log{MaxBytes: 10 << 20, SegmentBytes: 1 << 20}, 1 << 20},
	} {
		if got := c.log.args()["x-stream-max-segment-size-bytes"]; got != c.want {
			t.Errorf("a file of %+v has %v bytes, want %d", c.log, got, c.want)
		}
	}
}

// A message fails whose session has just been lost, and nothing of that session was purged yet: what
// it delivered behind that message, or was about to, must not overtake it.
func TestAFailureOfALostSessionHoldsItsKey(t *testing.T) {
	lost, next := &session{ch: &amqp.Channel{}}, &session{ch: &amqp.Channel{}}
	sub := &subscription{
		s: messaging.Subscription{Ordered: true}, hctx: t.Context(),
		lanes: make(map[string]*lane), waiting: make(map[*entry]*time.Timer), attempts: make(map[string]int),
	}
	sub.wake = sync.NewCond(&sub.mu)
	of := func(id string, ses *session) *entry {
		return &entry{received: received{msg: &messaging.Message{ID: id, Key: "k"}, attempt: 1}, ses: ses}
	}
	sub.offer(of("1", lost))
	sub.offer(of("2", lost))
	failed := sub.next()
	lost.over = true
	sub.retryHere(failed, messaging.Decision{Action: messaging.Retried, Attempt: 2})
	sub.offer(of("3", lost)) // was on its way
	sub.offer(of("1", next)) // again
	if e := sub.next(); e.msg.ID != "1" || e.ses != next {
		t.Errorf("message %s is next, want 1 again", e.msg.ID)
	}
}

func TestAKeyHasOneChannel(t *testing.T) {
	c, err := New("amqp://localhost", Config{Channels: 3})
	if err != nil {
		t.Fatal(err)
	}
	keyed, keyless := make(map[*pipe]bool), make(map[*pipe]bool)
	for i := range 1000 {
		key := strconv.Itoa(i)
		p := c.pub.pipe(key)
		if c.pub.pipe(key) != p {
			t.Errorf("key %q has two channels, want one", key)
		}
		keyed[p] = true
		keyless[c.pub.pipe("")] = true
	}
	if len(keyed) != 3 || len(keyless) != 3 {
		t.Errorf("1000 keys share %d channels, and as many messages without %d, want 3", len(keyed), len(keyless))
	}
}

func TestSock(t *testing.T) {
	pair := func(t *testing.T) (*sock, net.Conn) {
		a, b := net.Pipe()
		t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
		return &sock{Conn: a, timeout: time.Minute}, b
	}
	t.Run("corked writes arrive as one, in order", func(t *testing.T) {
		s, other := pair(t)
		first, second := s.cork(), s.cork()
		for _, p := range []string{"a", "b", "c"} {
			if _, err := s.Write([]byte(p)); err != nil {
				t.Fatalf("Write = %v, want nil", err)
			}
		}
		first.release() // would wait for the other end to read, were it to write
		first.release()
		go second.release()
		buf := make([]byte, 10)
		if n, err := other.Read(buf); err != nil || string(buf[:n]) != "abc" {
			t.Errorf("Read = %q, %v, want abc", buf[:n], err)
		}
	})
	t.Run("more than the cork holds goes on", func(t *testing.T) {
		s, other := pair(t)
		_ = s.cork()
		go func() {
			_, _ = s.Write(make([]byte, 10))
			_, _ = s.Write(make([]byte, corkSize))
			_, _ = s.Write(make([]byte, corkSize+1))
			_ = s.Close()
		}()
		if b, err := io.ReadAll(other); err != nil || len(b) != 10+corkSize+corkSize+1 {
			t.Errorf("ReadAll = %d bytes, %v, want %d", len(b), err, 10+corkSize+corkSize+1)
		}
	})
	t.Run("a write to one who does not read ends", func(t *testing.T) {
		s, _ := pair(t)
		s.timeout = 10 * time.Millisecond
		if _, err := s.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write = %v, want os.ErrDeadlineExceeded", err)
		}
	})
}

func TestHandshakeError(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{&amqp.Error{Code: amqp.AccessRefused, Server: true}, ErrCredentials},
		{&amqp.Error{Code: amqp.NotAllowed, Server: true}, ErrVhost},
		{amqp.ErrCredentials, nil}, // a guess: the connection was lost
		{amqp.ErrVhost, nil},
		{errors.New("refused"), nil},
	} {
		err := handshakeError(c.err)
		if c.want == nil && fault.IsPermanent(err) || c.want != nil && !errors.Is(err, c.want) || !errors.Is(err, c.err) {
			t.Errorf("handshakeError(%v) = %v, want %v", c.err, err, c.want)
		}
	}
}
