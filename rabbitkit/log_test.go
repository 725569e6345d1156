// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// logged is quick with a log.
func logged() rabbitkit.Config {
	cfg := quick
	cfg.Log = rabbitkit.Log{MaxAge: time.Hour}
	return cfg
}

func fromFirst() messaging.Subscription {
	sub := group()
	sub.From = messaging.FromFirst()
	return sub
}

// numbered returns n messages with their number as body.
func numbered(n, bytes int) []*messaging.Message {
	all := make([]*messaging.Message, n)
	for i := range all {
		all[i] = msg("t", "")
		all[i].Body = append(make([]byte, 0, bytes), strconv.Itoa(i)+" "...)[:bytes]
	}
	return all
}

func number(d *messaging.Delivery) int64 {
	n, _, _ := strings.Cut(string(d.Message.Body), " ")
	i, err := strconv.ParseInt(n, 10, 64)
	if err != nil {
		return -1
	}
	return i
}

// A client that is closed in the middle of its work leaves its position as it was saved,
// held by nobody.
func TestTheNextReaderTakesOverFromOneThatDied(t *testing.T) {
	s := open(t, logged())
	sub := fromFirst()
	sub.Concurrency, sub.Prefetch, sub.DrainTimeout = 1, 50, 100*time.Millisecond
	s.declare(t, sub)
	const n = 200
	s.publish(t, numbered(n, 20)...)

	first, err := rabbitkit.New(s.url, func() rabbitkit.Config { c := logged(); c.Exchange = s.exchange; return c }())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []int64
	record := func(d *messaging.Delivery) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, number(d))
		if number(d) != d.Offset {
			t.Errorf("Offset = %d of message %d, want the same", d.Offset, number(d))
		}
	}
	stuck := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- first.Subscribe(context.Background(), sub, messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
			record(d)
			if number(d) == n/2 {
				close(stuck)
				<-ctx.Done()
			}
			return nil
		}))
	}()
	<-stuck
	// As a process that dies: nothing is finished, nothing said.
	closing := make(chan struct{})
	go func() { _ = first.Close(); close(closing) }()
	finished := make(chan struct{})
	s.subscribe(t, sub, func(_ context.Context, d *messaging.Delivery) error {
		record(d)
		if number(d) == n-1 {
			close(finished)
		}
		return nil
	})
	<-finished
	<-closing
	if err := <-done; !errors.Is(err, messaging.ErrClosed) {
		t.Errorf("Subscribe of the closed client = %v, want ErrClosed", err)
	}
	seen := make(map[int64]bool)
	for i, v := range all {
		if i > 0 && v > all[i-1]+1 {
			t.Errorf("message %d came after %d: a gap", v, all[i-1])
		}
		seen[v] = true
	}
	if len(seen) != n {
		t.Errorf("%d different messages were handled, want %d", len(seen), n)
	}
}

func TestALogDeclaredOtherwiseIsAMismatch(t *testing.T) {
	s := open(t, logged())
	s.declare(t, group())
	cfg := logged()
	cfg.Exchange, cfg.Log.MaxAge = s.exchange, 2*time.Hour
	other, err := rabbitkit.New(s.url, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Declare(t.Context(), fromFirst()); !errors.Is(err, messaging.ErrMismatch) || !fault.IsPermanent(err) {
		t.Errorf("Declare = %v, want ErrMismatch, permanent", err)
	}
	if err := other.Publish(t.Context(), msg("t", "")); !errors.Is(err, messaging.ErrMismatch) || !errors.Is(err, messaging.ErrRefused) {
		t.Errorf("Publish = %v, want ErrRefused and ErrMismatch", err)
	}
}

func TestWithALogNoTopicIsUnroutable(t *testing.T) {
	s := open(t, logged())
	m := msg("nobody.listens", "")
	s.publish(t, m)
	sub := fromFirst()
	sub.Topics = []string{"nobody.*"}
	var got counts
	s.subscribe(t, sub, func(_ context.Context, d *messaging.Delivery) error { got.add(d); return nil })
	eventually(t, func() bool { return got.of(m) == 1 }, "a later group has the message")
}

// The queues beside the log are deleted under its reader.
func TestAReaderSurvivesItsQueues(t *testing.T) {
	s := open(t, logged())
	s.declare(t, fromFirst()) // a stream that is being made ends channels that publish to it
	var got counts
	s.subscribe(t, fromFirst(), func(_ context.Context, d *messaging.Delivery) error { got.add(d); return nil })
	m := msg("t", "")
	s.publish(t, m)
	eventually(t, func() bool { return got.of(m) == 1 }, "the first message is handled")
	for _, queue := range []string{".position.g", ".group.g"} {
		s.raw(t, func(ch *amqp.Channel) {
			if _, err := ch.QueueDelete(s.exchange+queue, false, false, false); err != nil {
				t.Fatal(err)
			}
		})
		m := msg("t", "")
		// The broker ends a channel that publishes to a queue at the moment of its end.
		eventually(t, func() bool { return s.Publish(t.Context(), m) == nil }, "a message is confirmed without %s", queue)
		eventually(t, func() bool { return got.of(m) > 0 }, "it is handled without %s", queue)
	}
}

// astray sends the first reader that attaches to a log far beyond its end, from where the
// broker sends nothing: it stands still, while the log has more.
type astray struct{ attached atomic.Int64 }

func (a *astray) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	return &astrayConn{c, a}, err
}

type astrayConn struct {
	net.Conn
	*astray
}

func (c *astrayConn) Write(p []byte) (int, error) {
	spec := []byte("\x0fx-stream-offsetl") // the name after its length, and the type of what follows
	if i := bytes.Index(p, spec); i >= 0 && c.attached.Add(1) == 1 {
		p = slices.Clone(p)
		binary.BigEndian.PutUint64(p[i+len(spec):], 1<<40)
	}
	return c.Conn.Write(p)
}

func TestAReaderThatStandsStillAttachesAgain(t *testing.T) {
	var a astray
	cfg := logged()
	cfg.Dial = a.dial
	s := open(t, cfg)
	s.LookAgainAfter(20 * time.Millisecond)
	sub := fromFirst()
	sub.Concurrency, sub.Prefetch = 2, 50
	s.declare(t, sub)
	const n = 200
	all := numbered(n, 20)
	s.publish(t, all[:n/2]...)

	// What follows is also the life of a reader for which there is nothing: it attaches again
	// and again, which must neither repeat nor lose a message.
	attachTwice := func(ctx context.Context) {
		for enough := a.attached.Load() + 2; a.attached.Load() < enough && ctx.Err() == nil; {
			time.Sleep(5 * time.Millisecond)
		}
	}
	var mu sync.Mutex
	var got []int64
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(got)
	}
	var released atomic.Bool
	s.subscribe(t, sub, func(ctx context.Context, d *messaging.Delivery) error {
		mu.Lock()
		got = append(got, number(d))
		mu.Unlock()
		if number(d) == 0 { // in hand while more than Prefetch others are done
			for count() < n/2 && ctx.Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
			attachTwice(ctx)
			released.Store(true)
		}
		return nil
	})
	again := func() {
		t.Helper()
		enough := a.attached.Load() + 2
		eventually(t, func() bool { return a.attached.Load() >= enough }, "the reader attaches again")
	}
	eventually(t, released.Load, "what the log had is handled")
	again()
	s.publish(t, all[n/2:]...)
	eventually(t, func() bool { return count() >= n }, "what comes later is handled")
	again()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(got)
	for i, v := range got {
		if v != int64(i) || len(got) != n {
			t.Fatalf("messages %v were handled, want each of %d once", got, n)
		}
	}
}
