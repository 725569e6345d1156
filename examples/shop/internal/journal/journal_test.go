// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package journal_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/journal"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

func open(t *testing.T, path string) (*journal.Log, func() []messaging.DeadLetter) {
	t.Helper()
	db, err := platform.OpenSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	next, err := messagingmem.New(messagingmem.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var dead []messaging.DeadLetter
	log, err := journal.Open(t.Context(), db, next, func(_ context.Context, d messaging.DeadLetter) error {
		mu.Lock()
		defer mu.Unlock()
		dead = append(dead, d)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return log, func() []messaging.DeadLetter {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(dead)
	}
}

func message(n int) *messaging.Message {
	return &messaging.Message{ID: fmt.Sprintf("m%03d", n), Topic: "order.placed", Key: fmt.Sprintf("k%d", n%7), Body: []byte(fmt.Sprint(n))}
}

func publish(t *testing.T, log *journal.Log, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := log.Publish(t.Context(), message(n), &messaging.Message{ID: fmt.Sprintf("other%d", n), Topic: "stock.changed"}); err != nil && !errors.Is(err, messaging.ErrUnroutable) {
			t.Fatal(err)
		}
	}
}

// reader collects what a group reads, and checks the order within each key.
type reader struct {
	mu   sync.Mutex
	ids  []string
	last map[string]int64
}

func (r *reader) Handle(_ context.Context, d *messaging.Delivery) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d.Offset <= r.last[d.Message.Key] {
		return messaging.Reject(fmt.Errorf("offset %d after %d", d.Offset, r.last[d.Message.Key]))
	}
	r.last[d.Message.Key] = d.Offset
	r.ids = append(r.ids, d.Message.ID)
	return nil
}

func (r *reader) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ids)
}

var fromFirst = messaging.Subscription{
	Group: "late", Topics: []string{"order.*"}, From: messaging.FromFirst(),
	Backoff: messaging.Backoff{Base: time.Millisecond, Max: time.Millisecond}, MaxDeliveries: 3,
}

// read runs a group until done says so.
func read(t *testing.T, log *journal.Log, h messaging.Handler, done func() bool) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	ended := make(chan error, 1)
	go func() { ended <- log.Subscribe(ctx, fromFirst, h) }()
	for !done() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	timedOut := ctx.Err()
	stop()
	if err := <-ended; err != nil || timedOut != nil {
		t.Fatalf("Subscribe = %v, timed out: %v", err, timedOut)
	}
}

func TestANewGroupReadsEverythingFromTheBeginning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	log, _ := open(t, path)
	publish(t, log, 0, 50)
	publish(t, log, 40, 50) // once more: their confirmation was lost
	r := &reader{last: map[string]int64{}}
	read(t, log, r, func() bool { return r.len() >= 50 })

	// After a restart the group goes on where it was.
	log, dead := open(t, path)
	publish(t, log, 50, 80)
	read(t, log, r, func() bool { return r.len() >= 80 })
	if len(r.ids) != 80 || len(dead()) != 0 {
		t.Errorf("the group has %d messages and %d dead letters, want 80 and none", len(r.ids), len(dead()))
	}
}

func TestAGroupThatIsRemovedReadsEverythingAgain(t *testing.T) {
	log, _ := open(t, filepath.Join(t.TempDir(), "journal.db"))
	publish(t, log, 0, 20)
	for range 2 {
		r := &reader{last: map[string]int64{}}
		read(t, log, r, func() bool { return r.len() == 20 })
		for range 2 { // one that there is not is no error
			if err := log.Remove(t.Context(), fromFirst.Group); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAFailingMessageIsRetriedAndThenSetAside(t *testing.T) {
	log, dead := open(t, filepath.Join(t.TempDir(), "journal.db"))
	publish(t, log, 0, 10)
	var mu sync.Mutex
	attempts := map[string]int{}
	read(t, log, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		attempts[d.Message.ID]++
		switch d.Message.ID {
		case "m003":
			return errors.New("never")
		case "m004":
			if d.Attempt == 1 {
				runtime.Goexit()
			}
			if d.Attempt == 2 {
				panic("once")
			}
		}
		return nil
	}), func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(attempts) == 10 && attempts["m004"] == 3 && len(dead()) == 1
	})
	if attempts["m003"] != 3 || dead()[0].Message.ID != "m003" || dead()[0].Reason == "" {
		t.Errorf("m003 was tried %d times, dead letters %v, want 3 and m003 with a reason", attempts["m003"], dead())
	}
}
