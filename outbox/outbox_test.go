// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

func newBox(t *testing.T, store outbox.Store, cfg outbox.Config) *outbox.Outbox {
	t.Helper()
	box, err := outbox.New(store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// stored returns all messages that a relay would see, of all shards.
func stored(t *testing.T, store outbox.Store) (list []*messaging.Message) {
	t.Helper()
	for shard := range store.Shards() {
		rows, err := store.Read(t.Context(), []outbox.Read{{Shard: shard, Limit: 1000}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			list = append(list, r.Message)
		}
	}
	return list
}

func TestNew(t *testing.T) {
	if _, err := outbox.New(nil, outbox.Config{}); err == nil {
		t.Error("New without a store = nil, want an error")
	}
}

func TestEnqueue(t *testing.T) {
	t.Run("sets an empty ID and a zero time", func(t *testing.T) {
		store := outboxmem.New()
		box, tx := newBox(t, store, outbox.Config{}), store.Begin()
		empty, full := &messaging.Message{Topic: "a"}, &messaging.Message{Topic: "b", ID: "mine", Time: time.Unix(1, 0)}
		if err := errors.Join(box.Enqueue(t.Context(), tx, empty, full), tx.Commit()); err != nil {
			t.Fatal(err)
		}
		if empty.ID == "" || time.Since(empty.Time) > time.Minute {
			t.Errorf("ID, Time = %q, %v, want a new one and now", empty.ID, empty.Time)
		}
		if full.ID != "mine" || !full.Time.Equal(time.Unix(1, 0)) {
			t.Errorf("ID, Time = %q, %v, want them as they were", full.ID, full.Time)
		}
		if got := len(stored(t, store)); got != 2 {
			t.Errorf("%d messages stored, want 2", got)
		}
	})
	t.Run("injects the trace into a copy of the header", func(t *testing.T) {
		type key struct{}
		store := outboxmem.New()
		box := newBox(t, store, outbox.Config{Inject: func(ctx context.Context, h messaging.Header) {
			h.Set("traceparent", ctx.Value(key{}).(string))
		}})
		shared := messaging.Header{"tenant": "a"}
		tx := store.Begin()
		ctx := context.WithValue(t.Context(), key{}, "trace")
		err := box.Enqueue(ctx, tx, &messaging.Message{Topic: "a", Header: shared}, &messaging.Message{Topic: "b"})
		if err := errors.Join(err, tx.Commit()); err != nil {
			t.Fatal(err)
		}
		for _, m := range stored(t, store) {
			if m.Header["traceparent"] != "trace" {
				t.Errorf("header of %s = %v, want the trace in it", m.Topic, m.Header)
			}
			if m.Topic == "a" && m.Header["tenant"] != "a" {
				t.Errorf("header = %v, want what was there too", m.Header)
			}
		}
		if len(shared) != 1 {
			t.Errorf("the caller's header = %v, want it unchanged", shared)
		}
	})
	t.Run("refuses what no broker takes and writes nothing", func(t *testing.T) {
		store := outboxmem.New()
		box := newBox(t, store, outbox.Config{MaxBody: 10})
		good := func() *messaging.Message { return &messaging.Message{Topic: "t"} }
		for name, bad := range map[string]*messaging.Message{
			"Message is nil":        nil,
			"Message.Topic":         {},
			"Message.ID has 300":    {Topic: "t", ID: strings.Repeat("x", 300)},
			"Message.Key has 256":   {Topic: "t", Key: strings.Repeat("x", 256)},
			"Message.Type":          {Topic: "t", Type: "a\x00b"},
			`Message.Header["h"]`:   {Topic: "t", Header: messaging.Header{"h": "\xff"}},
			"Message.Body has 11":   {Topic: "t", Body: make([]byte, 11)},
			"Message.Time is in":    {Topic: "t", Time: time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)},
			"the year 1, want 1678": {Topic: "t", Time: time.Date(1, 2, 1, 0, 0, 0, 0, time.UTC)},
		} {
			tx := store.Begin()
			err := box.Enqueue(t.Context(), tx, good(), bad, good())
			if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "message 1") {
				t.Errorf("Enqueue = %v, want an error with %q and the position", err, name)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		if got := stored(t, store); len(got) > 0 {
			t.Errorf("%d messages stored, want none", len(got))
		}
	})
	t.Run("takes any body where there is no limit", func(t *testing.T) {
		store := outboxmem.New()
		box := newBox(t, store, outbox.Config{MaxBody: -1})
		if err := box.Enqueue(t.Context(), store.Begin(), &messaging.Message{Topic: "t", Body: make([]byte, 2<<20)}); err != nil {
			t.Errorf("Enqueue = %v, want nil", err)
		}
	})
	t.Run("needs a transaction and no message", func(t *testing.T) {
		box := newBox(t, outboxmem.New(), outbox.Config{})
		if err := box.Enqueue(t.Context(), nil, &messaging.Message{Topic: "t"}); err == nil {
			t.Error("Enqueue without a transaction = nil, want an error")
		}
		if err := box.Enqueue(t.Context(), nil); err != nil {
			t.Errorf("Enqueue of nothing = %v, want nil", err)
		}
	})
}

func TestShardOf(t *testing.T) {
	t.Run("never changes", func(t *testing.T) {
		for key, want := range map[string]int{"order-1": 5, "order-2": 11, "Köln": 6, "x": 5} {
			if got := outbox.ShardOf(&messaging.Message{Key: key}, 16); got != want {
				t.Errorf("shard of %q = %d, want %d: rows that are stored are in it", key, got, want)
			}
		}
	})
	t.Run("spreads keys that are alike", func(t *testing.T) {
		for _, shards := range []int{2, 16, 40} {
			count := make([]int, shards)
			for i := range 100 * shards {
				count[outbox.ShardOf(&messaging.Message{Key: fmt.Sprintf("customer-%d", i)}, shards)]++
			}
			for n, got := range count {
				if got < 60 || got > 140 {
					t.Errorf("shard %d of %d has %d of %d keys, want about 100", n, shards, got, 100*shards)
				}
			}
		}
	})
	t.Run("spreads messages without a key", func(t *testing.T) {
		count := make(map[int]int)
		for range 1000 {
			count[outbox.ShardOf(&messaging.Message{ID: messaging.NewID()}, 16)]++
		}
		if len(count) != 16 {
			t.Errorf("1000 messages lie in %d of 16 shards, want all", len(count))
		}
	})
}

// Somebody's variable that was never set must not put everything back.
func TestRetryOfNoIDIsNotRetryAll(t *testing.T) {
	store := outboxmem.New()
	box, tx := newBox(t, store, outbox.Config{}), store.Begin()
	if err := errors.Join(box.Enqueue(t.Context(), tx, &messaging.Message{ID: "a", Topic: "t"}), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	view, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Minute, Take: store.Shards()})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range view.Held {
		if _, err := store.Park(t.Context(), l, outbox.Parking{ID: 1, Reason: "no"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := box.Retry(t.Context(), ""); !errors.Is(err, outbox.ErrNotParked) {
		t.Errorf("Retry of no ID = %v, want ErrNotParked", err)
	}
	if list, err := box.Parked(t.Context()); len(list) != 1 || err != nil {
		t.Errorf("Parked = %v, %v, want the message", list, err)
	}
}

func TestOperatorErrors(t *testing.T) {
	store := outboxmem.New()
	box := newBox(t, store, outbox.Config{})
	if err := box.Retry(t.Context(), "nobody"); !errors.Is(err, outbox.ErrNotParked) {
		t.Errorf("Retry = %v, want ErrNotParked", err)
	}
	if err := box.Discard(t.Context(), "nobody", "reason"); !errors.Is(err, outbox.ErrNotParked) {
		t.Errorf("Discard = %v, want ErrNotParked", err)
	}
	if err := box.Discard(t.Context(), "nobody", ""); err == nil || errors.Is(err, outbox.ErrNotParked) {
		t.Errorf("Discard without a reason = %v, want an error about the reason", err)
	}
	if _, err := box.Prune(t.Context(), -1); err == nil {
		t.Error("Prune of a negative age = nil, want an error")
	}
	if n, err := box.RetryAll(t.Context()); n != 0 || err != nil {
		t.Errorf("RetryAll = %d, %v, want 0, nil", n, err)
	}
}
