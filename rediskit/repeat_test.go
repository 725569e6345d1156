// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/rediskit"
)

// go-redis sends a command again when the connection breaks before its answer, which may be
// after its effect: the second time must find what the first one did, and say so.
func TestCommandsThatTheClientRepeats(t *testing.T) {
	srv := newServer(t)
	proxy, err := messagingtest.StartProxy(srv.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	var connected atomic.Int64
	c := redis.NewClient(&redis.Options{
		Addr: proxy.Addr(), ReadTimeout: time.Minute, WriteTimeout: time.Minute, DialTimeout: time.Minute, // a slow machine loses no answer
		OnConnect: func(context.Context, *redis.Conn) error { connected.Add(1); return nil },
	})
	t.Cleanup(func() { _ = c.Close() })
	// repeated has the answer to call lost after its first byte.
	repeated := func(t *testing.T, call func()) {
		t.Helper()
		if err := c.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		before := connected.Load()
		proxy.CutAfter(messagingtest.ToClient, 1)
		call()
		if n := connected.Load() - before; n != 1 {
			t.Errorf("the client has connected %d times, want once for its second attempt", n)
		}
	}

	commands, err := rediskit.NewCommands(c, rediskit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(t *testing.T, id string) (idempotency.Claim, error) {
		t.Helper()
		return commands.Begin(t.Context(), idempotency.Command{Key: idempotency.Key{ID: id}})
	}
	// The server knows each script before its answer is lost: else it would be that of a
	// command that has done nothing.
	for _, id := range []string{"known", "known too"} {
		claim, err := begin(t, id)
		if err != nil {
			t.Fatal(err)
		}
		end := commands.Release
		if id == "known" {
			end = func(ctx context.Context, c idempotency.Claim) error { return commands.Complete(ctx, c, nil) }
		}
		if err := errors.Join(commands.Extend(t.Context(), claim), end(t.Context(), claim)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a key that was claimed is its claimer's", func(t *testing.T) {
		var claim idempotency.Claim
		repeated(t, func() { claim, err = begin(t, "begin") })
		if err != nil || claim.Done {
			t.Fatalf("Begin = %+v, %v, want the claim", claim, err)
		}
		if err := commands.Extend(t.Context(), claim); err != nil {
			t.Errorf("Extend = %v, want nil", err)
		}
		if _, err := begin(t, "begin"); !errors.Is(err, idempotency.ErrInProgress) {
			t.Errorf("Begin by another = %v, want %v", err, idempotency.ErrInProgress)
		}
	})
	t.Run("a claim that was extended, completed or released is", func(t *testing.T) {
		claim, err := begin(t, "complete")
		if err != nil {
			t.Fatal(err)
		}
		repeated(t, func() { err = commands.Extend(t.Context(), claim) })
		if err != nil {
			t.Errorf("Extend = %v, want nil", err)
		}
		repeated(t, func() { err = commands.Complete(t.Context(), claim, []byte("one")) })
		if err != nil {
			t.Errorf("Complete = %v, want nil", err)
		}
		if again, err := begin(t, "complete"); err != nil || !again.Done || string(again.Result) != "one" {
			t.Errorf("Begin = %+v, %v, want it done with the result", again, err)
		}
		if claim, err = begin(t, "release"); err != nil {
			t.Fatal(err)
		}
		repeated(t, func() { err = commands.Release(t.Context(), claim) })
		if err != nil {
			t.Errorf("Release = %v, want nil", err)
		}
		if _, err := begin(t, "release"); err != nil {
			t.Errorf("Begin after Release = %v, want the claim", err)
		}
	})

	values, err := rediskit.NewCache(c, rediskit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ask := cache.Ask{Lease: time.Minute}
	item := cache.Item{Value: []byte("v"), Fresh: time.Hour}
	take := func(t *testing.T, key string) cache.Held {
		t.Helper()
		h, err := values.Take(t.Context(), key, ask)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	known := take(t, "known")
	if _, err := values.Put(t.Context(), "known", known.Token, item); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(values.Release(t.Context(), "known", known.Token), values.Delete(t.Context(), "", "known")); err != nil {
		t.Fatal(err)
	}
	t.Run("a lease to load is its taker's, and the value is stored", func(t *testing.T) {
		var h cache.Held
		repeated(t, func() { h = take(t, "put") })
		if h.Token == "" {
			t.Fatalf("Take = %+v, want the lease", h)
		}
		if other := take(t, "put"); other.Token != "" || other.Busy <= 0 {
			t.Errorf("Take by another = %+v, want it busy", other)
		}
		stored := false
		repeated(t, func() { stored, err = values.Put(t.Context(), "put", h.Token, item) })
		if err != nil || !stored {
			t.Errorf("Put = %v, %v, want it stored", stored, err)
		}
		if h := take(t, "put"); !h.Found || string(h.Value) != "v" {
			t.Errorf("Take = %+v, want the value", h)
		}
		repeated(t, func() { err = values.Delete(t.Context(), "event", "put") })
		if err != nil {
			t.Errorf("Delete = %v, want nil", err)
		}
		if stored, err := values.Put(t.Context(), "put", h.Token, item); err != nil || stored {
			t.Errorf("Put after Delete = %v, %v, want it not stored", stored, err)
		}
	})
	t.Run("a lease that was given back is free", func(t *testing.T) {
		h := take(t, "release")
		repeated(t, func() { err = values.Release(t.Context(), "release", h.Token) })
		if h := take(t, "release"); err != nil || h.Token == "" {
			t.Errorf("Take after Release = %+v, %v, want the lease", h, err)
		}
	})

	t.Run("tokens are taken again: stricter, never laxer", func(t *testing.T) {
		b, err := rediskit.NewBuckets(c, rediskit.Config{})
		if err != nil {
			t.Fatal(err)
		}
		slow := complete(t, ratelimit.Limit{Rate: 1, Per: time.Hour, Burst: 10})
		if _, _, err := b.Take(t.Context(), "known", 1, 1, slow); err != nil {
			t.Fatal(err)
		}
		var taken int
		var r ratelimit.Result
		repeated(t, func() { taken, r, err = b.Take(t.Context(), "k", 3, 3, slow) })
		if err != nil || taken != 3 || r.Remaining != 4 {
			t.Errorf("Take = %d, %+v, %v, want 3 taken and 4 of 10 left", taken, r, err)
		}
	})
}
