// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// adder is the sum of its commands; it refuses to exceed 100.
func adder() eventsource.Decider[int, int, deposited] {
	return eventsource.Decider[int, int, deposited]{
		Zero: func() int { return 0 },
		Decide: func(sum, n int) ([]deposited, error) {
			switch {
			case n == 0:
				return nil, nil
			case sum+n > 100:
				return nil, errFunds
			}
			return []deposited{{n}}, nil
		},
		Evolve: func(sum int, e deposited) int { return sum + e.Amount },
	}
}

type fixture struct {
	store *eventsourcemem.Store
	log   *eventsource.Log
	repo  *eventsource.Repository[int, int, deposited]
	begun int
	// onBegin is called before each transaction, atCommit may replace its commit.
	onBegin  func(n int)
	atCommit func(n int, tx *eventsourcemem.Tx) error
}

type fixtureTx struct {
	*eventsourcemem.Tx
	f *fixture
	n int
}

func (t fixtureTx) Commit() error {
	if t.f.atCommit != nil {
		return t.f.atCommit(t.n, t.Tx)
	}
	return t.Tx.Commit()
}

// unwrap is a store that knows the fixture's transactions.
type unwrap struct{ *eventsourcemem.Store }

func (u unwrap) Append(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) error {
	if t, ok := tx.(fixtureTx); ok {
		tx = t.Tx
	}
	return u.Store.Append(ctx, tx, stream, want, events)
}

func newFixture(t *testing.T, logCfg eventsource.Config, cfg eventsource.RepositoryConfig) *fixture {
	t.Helper()
	f := &fixture{store: eventsourcemem.New()}
	f.log = newLog(t, unwrap{f.store}, logCfg)
	if cfg.Backoff == (messaging.Backoff{}) {
		cfg.Backoff = messaging.Backoff{Base: time.Microsecond, Max: time.Microsecond}
	}
	repo, err := eventsource.NewRepository(f.log, func(context.Context) (eventsource.Transaction, error) {
		f.begun++
		if f.onBegin != nil {
			f.onBegin(f.begun)
		}
		return fixtureTx{f.store.Begin(), f, f.begun}, nil
	}, codec(), adder(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.repo = repo
	return f
}

// add commits an event behind the repository's back.
func (f *fixture) add(t *testing.T, amount int) {
	t.Helper()
	e, err := codec().Encode(t.Context(), deposited{amount})
	if err != nil {
		t.Fatal(err)
	}
	tx := f.store.Begin()
	if err := errors.Join(f.log.Append(t.Context(), tx, "s", eventsource.Any, e), tx.Commit()); err != nil {
		t.Fatal(err)
	}
}

func TestNewRepository(t *testing.T) {
	l := newLog(t, eventsourcemem.New(), eventsource.Config{})
	begin := func(context.Context) (eventsource.Transaction, error) { return nil, errDown }
	half := adder()
	half.Evolve = nil
	for want, open := range map[string]func() error{
		"Log is nil": func() error {
			_, err := eventsource.NewRepository(nil, begin, codec(), adder(), eventsource.RepositoryConfig{})
			return err
		},
		"begin is nil": func() error {
			_, err := eventsource.NewRepository(l, nil, codec(), adder(), eventsource.RepositoryConfig{})
			return err
		},
		"Codec is nil": func() error {
			_, err := eventsource.NewRepository(l, begin, nil, adder(), eventsource.RepositoryConfig{})
			return err
		},
		"Decider lacks": func() error {
			_, err := eventsource.NewRepository(l, begin, codec(), half, eventsource.RepositoryConfig{})
			return err
		},
		"Attempts is -1": func() error {
			_, err := eventsource.NewRepository(l, begin, codec(), adder(), eventsource.RepositoryConfig{Attempts: -1})
			return err
		},
		"SnapshotEvery is -1": func() error {
			_, err := eventsource.NewRepository(l, begin, codec(), adder(), eventsource.RepositoryConfig{SnapshotEvery: -1})
			return err
		},
	} {
		if err := open(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewRepository = %v, want an error with %q", err, want)
		}
	}
}

func TestDo(t *testing.T) {
	t.Run("loads, decides, appends", func(t *testing.T) {
		f := newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{})
		for i, want := range []int{30, 60, 90} {
			if st, err := f.repo.Do(t.Context(), "s", 30); err != nil || st.Value != want || st.Version != int64(i+1) || st.Stream != "s" {
				t.Errorf("Do = %+v, %v, want %d", st, err, want)
			}
		}
		if st, err := f.repo.Do(t.Context(), "s", 30); err != errFunds || st.Value != 90 { //nolint:errorlint // as it is
			t.Errorf("Do = %+v, %v, want the refusal as it is", st, err)
		}
		begun := f.begun
		if st, err := f.repo.Do(t.Context(), "s", 0); err != nil || st.Value != 90 || f.begun != begun {
			t.Errorf("Do with nothing to do = %+v, %v in %d transactions, want none", st, err, f.begun-begun)
		}
	})
	t.Run("decides anew after a lost race", func(t *testing.T) {
		f := newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{})
		f.onBegin = func(n int) {
			if n <= 3 {
				f.add(t, 25)
			}
		}
		if st, err := f.repo.Do(t.Context(), "s", 20); err != nil || st.Value != 95 || st.Version != 4 || f.begun != 4 {
			t.Errorf("Do = %+v, %v after %d attempts, want 95 after 4", st, err, f.begun)
		}
		f.begun = 0
		f.onBegin = func(n int) { f.add(t, 5) }
		if _, err := f.repo.Do(t.Context(), "s", 1); !errors.Is(err, errFunds) {
			t.Errorf("Do = %v, want a refusal on the state as it became", err)
		}
	})
	t.Run("gives up after the attempts", func(t *testing.T) {
		f := newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{Attempts: 3})
		f.onBegin = func(int) { f.add(t, 1) }
		var lost *eventsource.VersionError
		if _, err := f.repo.Do(t.Context(), "s", 20); !errors.As(err, &lost) || f.begun != 3 {
			t.Errorf("Do = %v after %d attempts, want a VersionError after 3", err, f.begun)
		}
	})
	t.Run("what else belongs to it commits with it", func(t *testing.T) {
		f := newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{})
		if _, err := f.repo.Do(t.Context(), "s", 20, func(context.Context, eventsource.Tx) error { return errDown }); !errors.Is(err, errDown) {
			t.Errorf("Do = %v, want the function's error", err)
		}
		if v, _, _ := f.log.End(t.Context(), "s"); v != 0 {
			t.Errorf("End = %d, want nothing committed", v)
		}
	})
	t.Run("a commit whose answer was lost", func(t *testing.T) {
		var f *fixture
		for name, c := range map[string]struct {
			commit func(n int, tx *eventsourcemem.Tx) error
			want   int
			ok     bool
		}{
			"happened": {func(_ int, tx *eventsourcemem.Tx) error { return errors.Join(tx.Commit(), errDown) }, 20, true},
			"happened, and others after it": {func(n int, tx *eventsourcemem.Tx) error {
				err := tx.Commit()
				f.add(t, 20)
				f.add(t, 20)
				return errors.Join(err, errDown)
			}, 60, true},
			"may still come":  {func(_ int, tx *eventsourcemem.Tx) error { return errors.Join(tx.Rollback(), errDown) }, 0, false},
			"lost its race":   {func(n int, tx *eventsourcemem.Tx) error { return lostOnce(n, tx) }, 20, true},
			"refused a while": {func(n int, tx *eventsourcemem.Tx) error { return busyOnce(n, tx) }, 20, true},
		} {
			f = newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{})
			f.atCommit = c.commit
			st, err := f.repo.Do(t.Context(), "s", 20)
			if (err == nil) != c.ok || c.ok && st.Value != c.want || !c.ok && !fault.IsUnknown(err) {
				t.Errorf("%s: Do = %+v, %v, want %d", name, st, err, c.want)
			}
			if v, _, _ := f.log.End(t.Context(), "s"); int(v)*20 != c.want {
				t.Errorf("%s: %d events, want %d", name, v, c.want/20)
			}
		}
	})
	t.Run("a commit of no events whose answer was lost", func(t *testing.T) {
		f := newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{Attempts: 3})
		calls := 0
		also := func(context.Context, eventsource.Tx) error { calls++; return nil }
		f.atCommit = func(_ int, tx *eventsourcemem.Tx) error { return errors.Join(tx.Commit(), errDown) }
		if _, err := f.repo.Do(t.Context(), "s", 0, also); !fault.IsUnknown(err) || !errors.Is(err, errDown) || calls != 1 {
			t.Errorf("Do = %v after %d calls, want an unknown outcome after 1", err, calls)
		}
		f.atCommit = func(_ int, tx *eventsourcemem.Tx) error {
			err := tx.Commit()
			f.add(t, 1) // says nothing about a commit that had no events
			return errors.Join(err, errDown)
		}
		if _, err := f.repo.Do(t.Context(), "s", 0, also); !fault.IsUnknown(err) || calls != 2 {
			t.Errorf("Do beside another's event = %v after %d calls, want an unknown outcome after 1 more", err, calls)
		}
		calls = 1
		f.begun, f.atCommit = 0, busyOnce
		if _, err := f.repo.Do(t.Context(), "s", 0, also); err != nil || calls != 3 {
			t.Errorf("Do after a commit that lost its race = %v after %d calls, want nil after 3", err, calls)
		}
		f.atCommit = func(_ int, tx *eventsourcemem.Tx) error {
			return errors.Join(tx.Rollback(), errors.New("database is locked"))
		}
		if _, err := f.repo.Do(t.Context(), "s", 0, also); !errors.Is(err, eventsource.ErrVersion) || calls != 6 {
			t.Errorf("Do = %v after %d calls, want a VersionError after 3 more", err, calls)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		store := eventsourcemem.New()
		l := newLog(t, store, eventsource.Config{})
		free := adder()
		free.Decide = func(_, n int) ([]deposited, error) { return []deposited{{n}}, nil }
		repo, err := eventsource.NewRepository(l, func(context.Context) (eventsource.Transaction, error) { return store.Begin(), nil }, codec(), free,
			eventsource.RepositoryConfig{Attempts: 100_000, Backoff: messaging.Backoff{Base: time.Microsecond, Max: time.Millisecond}})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 20 {
					if _, err := repo.Do(t.Context(), "s", 1); err != nil {
						t.Errorf("Do = %v", err)
					}
				}
			})
		}
		wg.Wait()
		if st, err := repo.Load(t.Context(), "s"); err != nil || st.Value != 320 || st.Version != 320 {
			t.Errorf("Load = %+v, %v, want 320", st, err)
		}
	})
}

func lostOnce(n int, tx *eventsourcemem.Tx) error {
	if n == 1 {
		return errors.Join(tx.Rollback(), &eventsource.VersionError{Stream: "s"})
	}
	return tx.Commit()
}

func busyOnce(n int, tx *eventsourcemem.Tx) error {
	if n == 1 {
		return errors.Join(tx.Rollback(), errors.New("database is locked"))
	}
	return tx.Commit()
}

func TestPlan(t *testing.T) {
	f := newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{})
	p, err := f.repo.Plan(t.Context(), "s", 40)
	if err != nil || len(p.Events) != 1 || p.Before.Version != 0 {
		t.Fatalf("Plan = %+v, %v, want one event", p, err)
	}
	tx := f.store.Begin()
	if err := errors.Join(p.Append(t.Context(), tx), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // After may be asked for again
		if st := p.After(); st.Value != 40 || st.Version != 1 {
			t.Errorf("After = %+v, want 40 at 1", st)
		}
	}
	if err := p.Append(t.Context(), f.store.Begin()); !errors.Is(err, eventsource.ErrVersion) {
		t.Errorf("Append again = %v, want a VersionError", err)
	}
	if _, err := f.repo.Plan(t.Context(), "s", 61); !errors.Is(err, errFunds) {
		t.Errorf("Plan = %v, want the refusal", err)
	}
}

func TestSnapshots(t *testing.T) {
	var loaded []eventsource.Loaded
	var failed []error
	logCfg := eventsource.Config{Hooks: eventsource.Hooks{
		Loaded:         func(l eventsource.Loaded) { loaded = append(loaded, l) },
		SnapshotFailed: func(s eventsource.SnapshotFailed) { failed = append(failed, s.Err) },
	}}
	f := newFixture(t, logCfg, eventsource.RepositoryConfig{SnapshotEvery: 5})
	for range 12 {
		if _, err := f.repo.Do(t.Context(), "s", 1); err != nil {
			t.Fatal(err)
		}
	}
	load := func(repo *eventsource.Repository[int, int, deposited]) string {
		t.Helper()
		st, err := repo.Load(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(st.Value, " at ", st.Version, " from ", loaded[len(loaded)-1].Snapshot)
	}
	if got := load(f.repo); got != "12 at 12 from 10" {
		t.Errorf("Load = %s, want 12 at 12 from 10", got)
	}
	// Several events may pass over the multiple.
	many := adder()
	many.Decide = func(_, n int) ([]deposited, error) { return make([]deposited, n), nil }
	leaps, err := eventsource.NewRepository(f.log, func(context.Context) (eventsource.Transaction, error) { return f.store.Begin(), nil }, codec(), many,
		eventsource.RepositoryConfig{SnapshotEvery: 5, SnapshotName: "leaps"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ events, from int }{{1, 0}, {4, 17}, {1, 17}} {
		if _, err := leaps.Do(t.Context(), "s", c.events); err != nil {
			t.Fatal(err)
		}
		if got := load(leaps); !strings.HasSuffix(got, fmt.Sprint(" from ", c.from)) {
			t.Errorf("Load after %d more events = %s, want it from %d", c.events, got, c.from)
		}
	}
	other, err := eventsource.NewRepository(f.log, func(context.Context) (eventsource.Transaction, error) { return f.store.Begin(), nil }, codec(), adder(),
		eventsource.RepositoryConfig{SnapshotEvery: 5, SnapshotSchema: "2"})
	if err != nil {
		t.Fatal(err)
	}
	if got := load(other); got != "12 at 18 from 0" {
		t.Errorf("Load with another schema = %s, want it from the begin", got)
	}
	if err := f.store.SaveSnapshot(t.Context(), eventsource.Snapshot{Stream: "s", Name: "state", Schema: "1", Version: 11, State: []byte("{broken")}); err != nil {
		t.Fatal(err)
	}
	if got := load(f.repo); got != "12 at 18 from 0" || len(failed) != 1 {
		t.Errorf("Load with a broken snapshot = %s, %v, want it from the begin and told", got, failed)
	}
}

// gappy is a store that has lost an event.
type gappy struct{ *eventsourcemem.Store }

func (g gappy) Read(ctx context.Context, stream string, after int64, limit int) ([]eventsource.Recorded, error) {
	events, err := g.Store.Read(ctx, stream, after, limit)
	return slices.DeleteFunc(events, func(e eventsource.Recorded) bool { return e.Version == 2 }), err
}

func TestLoadRefusesAGap(t *testing.T) {
	f := newFixture(t, eventsource.Config{}, eventsource.RepositoryConfig{})
	for range 3 {
		f.add(t, 1)
	}
	repo, err := eventsource.NewRepository(newLog(t, gappy{f.store}, eventsource.Config{}), func(context.Context) (eventsource.Transaction, error) { return f.store.Begin(), nil },
		codec(), adder(), eventsource.RepositoryConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := repo.Load(t.Context(), "s"); err == nil || !strings.Contains(err.Error(), "goes on with version 3 after 1") {
		t.Errorf("Load of a stream with a gap = %+v, %v, want an error", st, err)
	}
}
