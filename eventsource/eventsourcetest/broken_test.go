// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcetest_test

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcetest"
)

const which = "EVENTSOURCETEST_BROKEN"

// broken are stores with one fault each, and the subtest that must find it.
var broken = map[string]struct {
	subtest string
	wrap    func(*eventsourcemem.Store) eventsource.Store
}{
	"nothing is wrong":            {"", func(s *eventsourcemem.Store) eventsource.Store { return s }},
	"committed before the commit": {"Append is part of the transaction", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, autocommit: true} }},
	"the header is lost": {"events come back as they were", func(s *eventsourcemem.Store) eventsource.Store {
		return &faulty{Store: s, change: func(e *eventsource.Recorded) { e.Header = nil }}
	}},
	"versions from zero": {"versions are counted from one", func(s *eventsourcemem.Store) eventsource.Store {
		return &faulty{Store: s, change: func(e *eventsource.Recorded) { e.Version-- }}
	}},
	"expects nothing": {"Append expects a version", func(s *eventsourcemem.Store) eventsource.Store {
		return &faulty{Store: s, want: func(eventsource.Expect) eventsource.Expect { return eventsource.Any }}
	}},
	"the last append wins": {"a lost race is a VersionError", func(s *eventsourcemem.Store) eventsource.Store {
		return &faulty{Store: s, want: func(eventsource.Expect) eventsource.Expect { return eventsource.Any }}
	}},
	"Read does not end": {"Read goes on after a version", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, limit: 1} }},
	"pages overlap":     {"ReadAll has everything once and in order", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, overlap: true} }},
	"no filter":         {"ReadAll selects", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, unfiltered: true} }},
	"no end":            {"End is the last event", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, noEnd: true} }},
	"old snapshots win": {"a snapshot is kept until a later one", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, old: true} }},
	"a gap is passed over": {"an event committed late is not passed over", func(s *eventsourcemem.Store) eventsource.Store {
		return &faulty{Store: s, naive: true}
	}},
	"streams in reverse": {"a stream keeps its order among all", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, reverse: true} }},
	"loses one in fifty": {"many writers lose nothing", func(s *eventsourcemem.Store) eventsource.Store { return &faulty{Store: s, lose: 50} }},
}

// faulty is a store that breaks its contract in one way.
type faulty struct {
	*eventsourcemem.Store
	autocommit, overlap, unfiltered, noEnd, old, naive, reverse bool

	change func(*eventsource.Recorded)
	want   func(eventsource.Expect) eventsource.Expect
	limit  int
	lose   int
	given  int
	until  eventsource.Cursor
}

func (f *faulty) Append(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) error {
	if f.want != nil {
		want = f.want(want)
	}
	if f.autocommit {
		own := f.Begin()
		if err := f.Store.Append(ctx, own, stream, want, events); err != nil {
			return err
		}
		return own.Commit()
	}
	if f.naive {
		// The numbers are those of the append, so what is committed first is above them.
		f.until += eventsource.Cursor(len(events))
	}
	return f.Store.Append(ctx, tx, stream, want, events)
}

func (f *faulty) changed(events []eventsource.Recorded) []eventsource.Recorded {
	if f.change != nil {
		for i := range events {
			f.change(&events[i])
		}
	}
	return events
}

func (f *faulty) Read(ctx context.Context, stream string, after int64, limit int) ([]eventsource.Recorded, error) {
	if f.limit > 0 {
		limit = f.limit
	}
	events, err := f.Store.Read(ctx, stream, after, limit)
	return f.changed(events), err
}

func (f *faulty) ReadAll(ctx context.Context, after eventsource.Cursor, filter eventsource.Filter, limit int) (eventsource.Page, error) {
	if f.unfiltered {
		filter = eventsource.Filter{}
	}
	page, err := f.Store.ReadAll(ctx, after, filter, limit)
	page.Events = f.changed(page.Events)
	switch {
	case f.overlap && len(page.Events) > 0:
		page.Next = page.Events[len(page.Events)-1].Cursor - 1
	case f.naive && !page.More:
		page.Next = max(page.Next, f.until)
	case f.reverse:
		slices.Reverse(page.Events)
		page.Next, page.More = 1<<40, false
	case f.lose > 0:
		page.Events = slices.DeleteFunc(page.Events, func(eventsource.Recorded) bool { f.given++; return f.given%f.lose == 0 })
	}
	return page, err
}

func (f *faulty) End(ctx context.Context, stream string) (int64, eventsource.Cursor, error) {
	if f.noEnd {
		return 0, 0, nil
	}
	return f.Store.End(ctx, stream)
}

func (f *faulty) SaveSnapshot(ctx context.Context, s eventsource.Snapshot) error {
	if f.old {
		if err := f.Store.SaveSnapshot(ctx, eventsource.Snapshot{Stream: s.Stream, Name: s.Name, Schema: s.Schema + "'"}); err != nil {
			return err
		}
	}
	return f.Store.SaveSnapshot(ctx, s)
}

// brokenModels are models with one fault each.
var brokenModels = map[string]struct {
	subtest string
	wrap    func(*eventsourcemem.Models) eventsource.Models[*eventsourcemem.ModelTx]
}{
	"models without a fence": {"Advance is fenced", func(m *eventsourcemem.Models) eventsource.Models[*eventsourcemem.ModelTx] {
		return &unfenced{m}
	}},
	"leases last too long": {"a lease that ran out is free", func(m *eventsourcemem.Models) eventsource.Models[*eventsourcemem.ModelTx] {
		return &lasting{m}
	}},
	"skips leave no trace": {"Skip leaves an event out", func(m *eventsourcemem.Models) eventsource.Models[*eventsourcemem.ModelTx] {
		return &forgetful{m}
	}},
}

type unfenced struct{ *eventsourcemem.Models }

func (u *unfenced) Advance(ctx context.Context, tx *eventsourcemem.ModelTx, id eventsource.ProjectionID, shard int, _ int64, _, to eventsource.Cursor) (bool, error) {
	list, err := u.Shards(ctx, id)
	if err != nil {
		return false, err
	}
	return u.Models.Advance(ctx, tx, id, shard, list[shard].Epoch, list[shard].Cursor, to)
}

type lasting struct{ *eventsourcemem.Models }

func (l *lasting) Lease(ctx context.Context, r eventsource.ProjectionLease) (eventsource.ProjectionView, error) {
	r.TTL = 10 * time.Second
	return l.Models.Lease(ctx, r)
}

func (l *lasting) Shards(ctx context.Context, id eventsource.ProjectionID) ([]eventsource.ProjectionShard, error) {
	list, err := l.Models.Shards(ctx, id)
	for i := range list {
		list[i].Owner = "" // as if it had run out
	}
	return list, err
}

type forgetful struct{ *eventsourcemem.Models }

func (*forgetful) Skipped(context.Context, eventsource.ProjectionID) ([]eventsource.Skipped, error) {
	return nil, nil
}

// TestBroken is run by TestSuiteFindsFaults in a process of its own.
func TestBroken(t *testing.T) {
	name := os.Getenv(which)
	if name == "" {
		t.Skip("only with " + which)
	}
	if b, ok := brokenModels[name]; ok {
		eventsourcetest.RunModels(t, func(*testing.T) eventsource.Models[*eventsourcemem.ModelTx] {
			return b.wrap(eventsourcemem.NewModels())
		})
		return
	}
	eventsourcetest.Run(t, func(*testing.T) eventsourcetest.Subject {
		s := eventsourcemem.New()
		return eventsourcetest.Subject{
			Store: broken[name].wrap(s), Begin: func(context.Context) (eventsource.Transaction, error) { return s.Begin(), nil },
		}
	})
}

func TestSuiteFindsFaults(t *testing.T) {
	subtests := make(map[string]string)
	for name, b := range broken {
		subtests[name] = b.subtest
	}
	for name, b := range brokenModels {
		subtests[name] = b.subtest
	}
	for _, name := range slices.Sorted(maps.Keys(subtests)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			subtest := subtests[name]
			pattern := "^TestBroken$"
			if subtest != "" {
				pattern += "/^" + strings.ReplaceAll(subtest, " ", "_") + "$"
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+pattern, "-test.v")
			cmd.Env = append(os.Environ(), which+"="+name)
			out, err := cmd.CombinedOutput()
			switch {
			case subtest == "" && err != nil:
				t.Errorf("a good store fails: %s", out)
			case subtest != "" && err == nil:
				t.Errorf("%q does not find it: %s", subtest, out)
			case subtest != "" && !strings.Contains(string(out), "--- FAIL: TestBroken/"+strings.ReplaceAll(subtest, " ", "_")):
				t.Errorf("%q does not fail by itself: %s", subtest, out)
			}
		})
	}
}
