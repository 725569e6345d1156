// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

// A shard that is read along with others while it has plenty of rows is not taken for one whose topic
// is slow: then the read would pass over all its rows, find none, and the shard would rest until the
// next poll.
func TestABacklogNeedsNoPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 40_000
		store := outboxmem.New()
		box, err := outbox.New(store, outbox.Config{})
		if err != nil {
			t.Fatal(err)
		}
		tx := store.Begin()
		for i := range n {
			if err := box.Enqueue(t.Context(), tx, &messaging.Message{Topic: "t", Key: strconv.Itoa(i % 10_000)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		const poll = time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		begun, all := time.Now(), make(chan time.Duration, 1)
		var confirmed atomic.Int64
		relay, err := outbox.NewRelay(box, slowish{}, outbox.RelayConfig{
			Poll: poll, Logger: slog.New(slog.DiscardHandler), Hooks: outbox.Hooks{Confirmed: func(outbox.Confirmed) {
				if confirmed.Add(1) == n {
					all <- time.Since(begun)
				}
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- relay.Run(ctx) }()
		if took := <-all; took >= poll {
			t.Errorf("%d messages took %v, and there is a poll each %v", n, took, poll)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// slowish takes a moment for each message, not the same for all.
type slowish struct{}

func (slowish) Publish(_ context.Context, msgs ...*messaging.Message) error {
	n, _ := strconv.Atoi(msgs[0].Key)
	time.Sleep(time.Duration(1+n%7) * time.Millisecond)
	return nil
}
