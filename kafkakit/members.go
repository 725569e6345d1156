// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"context"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The group gives partitions to its members and takes them away. It never does so between a poll and
// the end of takeIn, and never two of the functions below run at the same time.

// assigned begins with partitions that have become ours.
func (sub *subscription) assigned(m map[string][]int32) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for topic, partitions := range m {
		for _, n := range partitions {
			at := place{topic, n}
			sub.parts[at] = &part{place: at, waiting: map[*entry]*time.Timer{}, next: -1, saved: -1, closing: sub.stopping}
			sub.c.partitions.Add(1)
		}
	}
}

// revoked gives partitions to others: when the handlers that run have ended, with everything committed
// that is finished, so that nothing is handled twice. A handler that takes longer than
// Config.RebalanceTimeout is not waited for; what it decides then goes nowhere.
func (sub *subscription) revoked(ctx context.Context, m map[string][]int32) {
	parts := sub.taken(m)
	late := false
	timer := time.AfterFunc(sub.c.cfg.RebalanceTimeout, func() {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		late = true
		sub.change.Broadcast()
	})
	defer timer.Stop()
	sub.mu.Lock()
	for _, p := range parts {
		sub.purge(p)
	}
	running := func() (n int) {
		for _, p := range parts {
			n += p.running
		}
		return n
	}
	for running() > 0 && !late {
		sub.change.Wait()
	}
	if n := running(); n > 0 {
		sub.c.logger().LogAttrs(ctx, slog.LevelWarn, "partitions given away while handlers run", slog.String("group", sub.s.Group), slog.Int("handlers", n))
	}
	sub.mu.Unlock()
	sub.save(ctx)
	sub.shut(parts)
}

// lost gives up partitions that are another's already.
func (sub *subscription) lost(ctx context.Context, m map[string][]int32) {
	parts := sub.taken(m)
	if len(parts) > 0 {
		sub.c.logger().LogAttrs(ctx, slog.LevelWarn, "partitions lost", slog.String("group", sub.s.Group), slog.Int("partitions", len(parts)))
	}
	sub.shut(parts)
}

// taken returns our parts among m.
func (sub *subscription) taken(m map[string][]int32) (parts []*part) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for topic, partitions := range m {
		for _, n := range partitions {
			if p := sub.parts[place{topic, n}]; p != nil {
				parts = append(parts, p)
			}
		}
	}
	return parts
}

// shut closes parts for good.
func (sub *subscription) shut(parts []*part) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for _, p := range parts {
		sub.purge(p)
		p.closed = true
		delete(sub.parts, p.place)
		sub.c.partitions.Add(-1)
	}
}

// save commits, for each partition of ours, the end of what is finished from the oldest on.
func (sub *subscription) save(ctx context.Context) {
	sub.saving.Lock()
	defer sub.saving.Unlock()
	offsets := map[string]map[int32]kgo.EpochOffset{}
	saved := map[*part]int64{}
	sub.mu.Lock()
	for at, p := range sub.parts {
		if p.next > p.saved {
			if offsets[at.topic] == nil {
				offsets[at.topic] = map[int32]kgo.EpochOffset{}
			}
			offsets[at.topic][at.partition] = kgo.EpochOffset{Epoch: p.epoch, Offset: p.next}
			saved[p] = p.next
		}
	}
	sub.mu.Unlock()
	if len(saved) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sub.c.cfg.Timeout)
	defer cancel()
	var failed error
	refused := map[place]bool{}
	sub.kgo.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if failed = err; err != nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					failed = err
					refused[place{t.Topic, p.Partition}] = true
				}
			}
		}
	})
	if failed != nil && ctx.Err() == nil {
		// What is finished is handled again by whoever has the partition next, unless the next
		// commit succeeds.
		sub.c.logger().LogAttrs(ctx, slog.LevelWarn, "progress not saved", slog.String("group", sub.s.Group), slog.Any("error", failed))
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for p, next := range saved {
		if (failed == nil || len(refused) > 0) && !refused[p.place] {
			p.saved = max(p.saved, next)
		}
	}
}

// drain lets the handlers that run finish, and forgets the rest.
func (sub *subscription) drain(cancel context.CancelCauseFunc) {
	sub.mu.Lock()
	sub.stopping = true
	for _, p := range sub.parts {
		sub.purge(p)
	}
	sub.change.Broadcast()
	sub.mu.Unlock()
	t := time.NewTimer(sub.s.DrainTimeout)
	defer t.Stop()
	select {
	case <-sub.done:
	case <-t.C:
		cancel(errDrained)
		<-sub.done
	}
}
