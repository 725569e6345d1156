// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The group gives partitions to its members and takes them away. It never does so between a poll and
// the end of takeIn, and never two of the functions below run at the same time.

// assigned begins with partitions that have become ours.
func (sub *subscription) assigned(ctx context.Context, m map[string][]int32) {
	if len(m) == 0 {
		return
	}
	// What the member before us finished behind what it committed.
	committed, err := sub.c.adm.FetchOffsets(ctx, sub.c.consumerGroup(sub.s.Group))
	if err != nil && ctx.Err() == nil {
		sub.c.logger().LogAttrs(ctx, slog.LevelWarn, "what is finished already is not known and is handled again", slog.String("group", sub.s.Group), slog.Any("error", err))
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for topic, partitions := range m {
		for _, n := range partitions {
			p := &part{place: place{topic, n}, waiting: map[*entry]*time.Timer{}, next: -1, closing: sub.stopping}
			if o, ok := committed.Lookup(topic, n); ok && o.Err == nil {
				p.skip = decodeFinished(o.At, o.Metadata)
			}
			sub.parts[p.place] = p
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

// save commits, for each partition of ours, the end of what is finished from the oldest on, and what is
// finished behind that.
func (sub *subscription) save(ctx context.Context) {
	sub.saving.Lock()
	defer sub.saving.Unlock()
	offsets := map[string]map[int32]kgo.EpochOffset{}
	notes := map[place]string{}
	var saved []*part
	sub.mu.Lock()
	for at, p := range sub.parts {
		if !p.dirty {
			continue
		}
		p.dirty = false
		saved = append(saved, p)
		next := p.next
		if next < 0 {
			next = p.slots[0].offset // nothing is finished from the oldest on
		}
		if offsets[at.topic] == nil {
			offsets[at.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[at.topic][at.partition] = kgo.EpochOffset{Epoch: p.epoch, Offset: next}
		notes[at] = encodeFinished(next, p.finished())
	}
	sub.mu.Unlock()
	if len(saved) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sub.c.cfg.Timeout)
	defer cancel()
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i, t := range req.Topics {
			for j, p := range t.Partitions {
				note := notes[place{t.Topic, p.Partition}]
				req.Topics[i].Partitions[j].Metadata = &note
			}
		}
		return nil
	})
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
	if failed == nil {
		return
	}
	if ctx.Err() == nil {
		// What is finished is handled again by whoever has the partition next, unless the next
		// commit succeeds.
		sub.c.logger().LogAttrs(ctx, slog.LevelWarn, "progress not saved", slog.String("group", sub.s.Group), slog.Any("error", failed))
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for _, p := range saved {
		if len(refused) == 0 || refused[p.place] {
			p.dirty = true
		}
	}
}

// finished returns the offsets that are finished behind one that is not, those of members before us
// included that we have not come to yet. The subscription is locked.
func (p *part) finished() (offsets []int64) {
	for _, s := range p.slots {
		if s.finished {
			offsets = append(offsets, s.offset)
		}
	}
	for o := range p.skip {
		offsets = append(offsets, o)
	}
	slices.Sort(offsets)
	return offsets
}

// A commit has room for a note of 4 KiB by default (offset.metadata.max.bytes). Ours has the distances
// between the finished offsets, in a base64 of variable-length integers. What does not go in is handled
// again, should it come to that.
const (
	noteMark = "dovetail1:"
	noteRoom = 2900 // bytes before base64
)

func encodeFinished(next int64, offsets []int64) string {
	if len(offsets) == 0 {
		return ""
	}
	var b []byte
	at := next
	for _, o := range offsets {
		more := binary.AppendUvarint(b, uint64(o-at))
		if len(more) > noteRoom {
			break
		}
		b, at = more, o
	}
	return noteMark + base64.RawStdEncoding.EncodeToString(b)
}

// decodeFinished returns nothing for a note of somebody else.
func decodeFinished(next int64, note string) map[int64]bool {
	text, ok := strings.CutPrefix(note, noteMark)
	b, err := base64.RawStdEncoding.DecodeString(text)
	if !ok || err != nil {
		return nil
	}
	offsets := map[int64]bool{}
	for at := next; len(b) > 0; {
		d, n := binary.Uvarint(b)
		if n <= 0 || d > math.MaxInt32 {
			return nil
		}
		b, at = b[n:], at+int64(d)
		offsets[at] = true
	}
	return offsets
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
