// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outboxtest_test

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
	"github.com/dovetail-go/dovetail/outbox/outboxtest"
)

const which = "OUTBOXTEST_BROKEN"

// broken are stores with one fault each, and the subtest that must find it.
var broken = map[string]struct {
	subtest string
	wrap    func(*outboxmem.Store) outbox.Store
}{
	"nothing is wrong": {"", func(s *outboxmem.Store) outbox.Store { return s }},
	"committed before the commit": {"Insert is part of the transaction", func(s *outboxmem.Store) outbox.Store {
		return autocommit{s}
	}},
	"the header is lost": {"messages come back as they were", func(s *outboxmem.Store) outbox.Store {
		return reader{s, func(_ []outbox.Read, rows []outbox.Row) []outbox.Row {
			for i := range rows {
				m := *rows[i].Message
				m.Header = nil
				rows[i].Message = &m
			}
			return rows
		}}
	}},
	"rows in the wrong order": {"Read returns the first rows in order", func(s *outboxmem.Store) outbox.Store {
		return reader{s, func(_ []outbox.Read, rows []outbox.Row) []outbox.Row { slices.Reverse(rows); return rows }}
	}},
	"rows behind a skipped topic": {"Read leaves out what is to be skipped", func(s *outboxmem.Store) outbox.Store { return topicOnly{s} }},
	"a cursor":                    {"a row committed late is seen", func(s *outboxmem.Store) outbox.Store { return &cursor{Store: s} }},
	"two owners": {"a shard has one owner", func(s *outboxmem.Store) outbox.Store {
		return leaser{s, func(r outbox.LeaseRequest, v outbox.LeaseView) outbox.LeaseView {
			v.Held = nil
			for n := range s.Shards() {
				v.Held = append(v.Held, outbox.Lease{Shard: n, Epoch: 1})
			}
			return v
		}}
	}},
	"drops are ignored": {"leases can be given back", func(s *outboxmem.Store) outbox.Store {
		return request{s, func(r *outbox.LeaseRequest) { r.Drop = nil }}
	}},
	"leases last too long": {"a lease that ran out is free", func(s *outboxmem.Store) outbox.Store {
		return request{s, func(r *outbox.LeaseRequest) { r.TTL = time.Hour }}
	}},
	"believes hints": {"Settle removes rows", func(s *outboxmem.Store) outbox.Store { return believer{s} }},
	"settles nothing": {"Settle removes rows", func(s *outboxmem.Store) outbox.Store {
		return settler{s, func(*outbox.Settlement) bool { return false }}
	}},
	"settles without a fence": {"Settle is fenced", func(s *outboxmem.Store) outbox.Store {
		return settler{s, func(t *outbox.Settlement) bool { t.Epoch = epochOf(s, t.Shard); return true }}
	}},
	"parks nothing": {"Park sets a row aside", func(s *outboxmem.Store) outbox.Store {
		return parker{s, func(*outbox.Lease, *outbox.Parking) bool { return false }}
	}},
	"parks without a fence": {"Settle is fenced", func(s *outboxmem.Store) outbox.Store {
		return parker{s, func(l *outbox.Lease, _ *outbox.Parking) bool { l.Epoch = epochOf(s, l.Shard); return true }}
	}},
	"never blocks": {"a parked row blocks its key", func(s *outboxmem.Store) outbox.Store {
		return parker{s, func(_ *outbox.Lease, p *outbox.Parking) bool { p.Block = false; return true }}
	}},
	"retries nothing":   {"Retry puts a row back", func(s *outboxmem.Store) outbox.Store { return operator{Store: s, retry: true} }},
	"forgets discarded": {"Discard gives a row up", func(s *outboxmem.Store) outbox.Store { return operator{Store: s, discard: true} }},
	"counts nothing":    {"Stats counts what waits", func(s *outboxmem.Store) outbox.Store { return operator{Store: s, stats: true} }},
	"waits for others":  {"an open transaction holds up nobody", func(s *outboxmem.Store) outbox.Store { return &waiter{Store: s} }},
	"loses one in a hundred": {"nothing is lost and keys keep their order", func(s *outboxmem.Store) outbox.Store {
		n := 0
		return reader{s, func(reads []outbox.Read, rows []outbox.Row) []outbox.Row {
			for _, r := range rows {
				if n++; n%100 == 0 {
					_, _ = s.Settle(context.Background(), []outbox.Settlement{{Lease: outbox.Lease{Shard: r.Shard, Epoch: epochOf(s, r.Shard)}, IDs: []int64{r.ID}}})
					return slices.DeleteFunc(rows, func(o outbox.Row) bool { return o.ID == r.ID })
				}
			}
			return rows
		}}
	}},
}

// TestBroken is run by TestSuiteFindsFaults in a process of its own.
func TestBroken(t *testing.T) {
	name := os.Getenv(which)
	if name == "" {
		t.Skip("only with " + which)
	}
	outboxtest.Run(t, func(*testing.T) outboxtest.Subject {
		s := outboxmem.New()
		return outboxtest.Subject{Store: broken[name].wrap(s), Begin: func(context.Context) (outboxtest.Tx, error) { return s.Begin(), nil }}
	})
}

func TestSuiteFindsFaults(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			subtest := broken[name].subtest
			pattern := "^TestBroken$"
			if subtest != "" {
				pattern += "/^" + strings.ReplaceAll(subtest, " ", "_") + "$"
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+pattern, "-test.v")
			cmd.Env = append(os.Environ(), which+"="+name)
			out, err := cmd.CombinedOutput()
			switch {
			case subtest == "" && err != nil:
				t.Errorf("the suite fails on a sound store: %v\n%s", err, out)
			case subtest != "" && err == nil:
				t.Errorf("%q passes, want it to find the fault\n%s", subtest, out)
			case subtest != "" && !strings.Contains(string(out), "--- FAIL: TestBroken/"+strings.ReplaceAll(subtest, " ", "_")):
				t.Errorf("the process failed, but not in %q:\n%s", subtest, out)
			}
		})
	}
}

type autocommit struct{ *outboxmem.Store }

func (s autocommit) Insert(ctx context.Context, _ outbox.Tx, rows []outbox.Row) error {
	tx := s.Begin()
	if err := s.Store.Insert(ctx, tx, rows); err != nil {
		return err
	}
	return tx.Commit()
}

type reader struct {
	*outboxmem.Store
	change func([]outbox.Read, []outbox.Row) []outbox.Row
}

func (s reader) Read(ctx context.Context, reads []outbox.Read) ([]outbox.Row, error) {
	rows, err := s.Store.Read(ctx, reads)
	return s.change(reads, rows), err
}

type believer struct{ *outboxmem.Store }

func (s believer) Read(ctx context.Context, reads []outbox.Read) ([]outbox.Row, error) {
	rows, err := s.Store.Read(ctx, reads)
	for i := range rows {
		rows[i].Hint = uint64(rows[i].ID)
	}
	return rows, err
}

func (s believer) Settle(ctx context.Context, list []outbox.Settlement) ([]int, error) {
	for i := range list {
		for j, h := range list[i].Hints {
			list[i].IDs[j] = int64(h)
		}
	}
	return s.Store.Settle(ctx, list)
}

type topicOnly struct{ *outboxmem.Store }

func (s topicOnly) Read(ctx context.Context, reads []outbox.Read) ([]outbox.Row, error) {
	reads = slices.Clone(reads)
	var topics []string
	for i := range reads {
		topics = append(topics, reads[i].SkipTopics...)
		reads[i].SkipTopics = nil
	}
	rows, err := s.Store.Read(ctx, reads)
	return slices.DeleteFunc(rows, func(r outbox.Row) bool { return slices.Contains(topics, r.Message.Topic) }), err
}

type cursor struct {
	*outboxmem.Store
	seen int64
}

func (s *cursor) Read(ctx context.Context, reads []outbox.Read) ([]outbox.Row, error) {
	rows, err := s.Store.Read(ctx, reads)
	rows = slices.DeleteFunc(rows, func(r outbox.Row) bool { return r.ID <= s.seen })
	for _, r := range rows {
		s.seen = max(s.seen, r.ID)
	}
	return rows, err
}

type leaser struct {
	*outboxmem.Store
	change func(outbox.LeaseRequest, outbox.LeaseView) outbox.LeaseView
}

func (s leaser) Lease(ctx context.Context, r outbox.LeaseRequest) (outbox.LeaseView, error) {
	v, err := s.Store.Lease(ctx, r)
	return s.change(r, v), err
}

type request struct {
	*outboxmem.Store
	change func(*outbox.LeaseRequest)
}

func (s request) Lease(ctx context.Context, r outbox.LeaseRequest) (outbox.LeaseView, error) {
	s.change(&r)
	return s.Store.Lease(ctx, r)
}

type settler struct {
	*outboxmem.Store
	keep func(*outbox.Settlement) bool
}

func (s settler) Settle(ctx context.Context, list []outbox.Settlement) ([]int, error) {
	var kept []outbox.Settlement
	for _, t := range list {
		if s.keep(&t) {
			kept = append(kept, t)
		}
	}
	return s.Store.Settle(ctx, kept)
}

// epochOf tries epochs until one is right.
func epochOf(s *outboxmem.Store, shard int) int64 {
	for epoch := int64(0); ; epoch++ {
		if lost, _ := s.Settle(context.Background(), []outbox.Settlement{{Lease: outbox.Lease{Shard: shard, Epoch: epoch}}}); len(lost) == 0 {
			return epoch
		}
	}
}

type parker struct {
	*outboxmem.Store
	keep func(*outbox.Lease, *outbox.Parking) bool
}

func (s parker) Park(ctx context.Context, l outbox.Lease, p outbox.Parking) (bool, error) {
	if !s.keep(&l, &p) {
		return false, nil
	}
	return s.Store.Park(ctx, l, p)
}

type operator struct {
	*outboxmem.Store
	retry, discard, stats bool
}

func (s operator) Retry(ctx context.Context, id string) (int, error) {
	if s.retry {
		return 1, nil
	}
	return s.Store.Retry(ctx, id)
}

func (s operator) Discard(ctx context.Context, id, reason string) (int, error) {
	n, err := s.Store.Discard(ctx, id, reason)
	if s.discard {
		_, _ = s.Prune(ctx, 0)
	}
	return n, err
}

func (s operator) Stats(ctx context.Context) (outbox.Stats, error) {
	if s.stats {
		return outbox.Stats{}, nil
	}
	return s.Store.Stats(ctx)
}

// waiter keeps a relay waiting for rows of transactions that are open.
type waiter struct {
	*outboxmem.Store
	inserted int
}

func (s *waiter) Insert(ctx context.Context, tx outbox.Tx, rows []outbox.Row) error {
	s.inserted += len(rows)
	return s.Store.Insert(ctx, tx, rows)
}

func (s *waiter) Settle(ctx context.Context, list []outbox.Settlement) ([]int, error) {
	if st, _ := s.Stats(ctx); st.Depth < s.inserted {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.Store.Settle(ctx, list)
}
