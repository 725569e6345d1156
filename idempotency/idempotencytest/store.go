// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
)

// Durations by the store's clock. A lease that must not end during a test is long; one
// that must is short.
const (
	longLease  = time.Hour
	shortLease = 150 * time.Millisecond
)

// RunStore checks a store against the contract of [idempotency.Store]. open returns an
// empty one.
func RunStore(t *testing.T, open func(t *testing.T) idempotency.Store) {
	run := func(name string, fn func(t *testing.T, s store)) {
		t.Run(name, func(t *testing.T) { fn(t, store{open(t)}) })
	}

	run("an unknown key is claimed", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		if c.Key != key("k1") || c.Lease != longLease || c.Done || c.Result != nil {
			t.Errorf("Begin = %+v, want a claim on k1 with the lease of the command", c)
		}
	})
	run("a command that names no lease gets one", func(t *testing.T, s store) {
		if c := s.claim(t, idempotency.Command{Key: key("k1")}); c.Lease <= 0 {
			t.Errorf("Begin: the lease is %v, want the store's", c.Lease)
		}
	})
	run("a claimed key is in progress, for another second", func(t *testing.T, s store) {
		s.claim(t, command("k1"))
		_, err := s.Begin(t.Context(), command("k1"))
		wantErr(t, "Begin again", err, idempotency.ErrInProgress)
		if v := fault.Judge(t.Context(), err); !v.Retry || v.After <= 0 {
			t.Errorf("Begin again: verdict is %+v, want a retry after a while", v)
		}
	})
	run("a completed key is done, with its result byte by byte", func(t *testing.T, s store) {
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		for name, result := range map[string][]byte{
			"bytes": all, "empty": {}, "nil": nil, "large": bytes.Repeat(all, 4096),
		} {
			c := s.claim(t, command(name))
			s.complete(t, c, result)
			s.wantDone(t, command(name), result)
			s.wantDone(t, command(name), result)
		}
	})
	run("a stored result is not the caller's slice", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		result := []byte("one")
		s.complete(t, c, result)
		result[0] = 'x'
		s.wantDone(t, command("k1"), []byte("one"))
		done, _ := s.Begin(t.Context(), command("k1"))
		done.Result[0] = 'x'
		s.wantDone(t, command("k1"), []byte("one"))
	})
	run("keys differ by scope and ID, byte by byte", func(t *testing.T, s store) {
		for _, k := range []idempotency.Key{
			{ID: "k"}, {ID: "K"}, {ID: "k "}, {ID: " k"}, {ID: "ä"}, {ID: "a\u0308"}, {Scope: "s", ID: "k"}, {Scope: "S", ID: "k"},
			{Scope: "s ", ID: "k"}, {Scope: "sk", ID: "k"}, {Scope: "s", ID: "kk"}, {Scope: "k", ID: "s"}, {Scope: ":", ID: ":"}, {Scope: "::", ID: ":"}, {Scope: ":", ID: "::"},
			{Scope: strings.Repeat("s", 255), ID: strings.Repeat("k", 255)}, {Scope: strings.Repeat("s", 255), ID: strings.Repeat("k", 254) + "x"},
			{Scope: "alice POST /orders", ID: "k'"}, {Scope: "{x}", ID: "?$1%_"},
		} {
			cmd := command("")
			cmd.Key = k
			c := s.claim(t, cmd)
			s.complete(t, c, []byte(k.Scope+"/"+k.ID))
			s.wantDone(t, cmd, []byte(k.Scope+"/"+k.ID))
		}
	})
	run("an invalid command is an error and claims nothing", func(t *testing.T, s store) {
		for name, change := range map[string]func(*idempotency.Command){
			"no ID":                 func(c *idempotency.Command) { c.Key.ID = "" },
			"long ID":               func(c *idempotency.Command) { c.Key.ID = strings.Repeat("x", 256) },
			"ID is not UTF-8":       func(c *idempotency.Command) { c.Key.ID = "\xff" },
			"NUL in the ID":         func(c *idempotency.Command) { c.Key.ID = "a\x00" },
			"long scope":            func(c *idempotency.Command) { c.Key.Scope = strings.Repeat("x", 256) },
			"scope is not UTF-8":    func(c *idempotency.Command) { c.Key.Scope = "\xff" },
			"long fingerprint":      func(c *idempotency.Command) { c.Fingerprint = make([]byte, 256) },
			"negative lease":        func(c *idempotency.Command) { c.Lease = -1 },
			"negative retention":    func(c *idempotency.Command) { c.Retention = -1 },
			"NUL in the scope":      func(c *idempotency.Command) { c.Key.Scope = "\x00" },
			"ID and lease are both": func(c *idempotency.Command) { c.Key.ID, c.Lease = "", -1 },
		} {
			cmd := command("k1")
			change(&cmd)
			if c, err := s.Begin(t.Context(), cmd); !fault.IsPermanent(err) || c.Token != "" {
				t.Errorf("%s: Begin = %+v, %v, want a permanent error", name, c, err)
			}
		}
		s.claim(t, command("k1"))
	})

	run("another fingerprint is a mismatch while in progress", func(t *testing.T, s store) {
		s.claim(t, command("k1"))
		_, err := s.Begin(t.Context(), other("k1"))
		wantErr(t, "Begin with another fingerprint", err, idempotency.ErrMismatch)
		if !fault.IsPermanent(err) {
			t.Errorf("Begin with another fingerprint = %v, want it permanent", err)
		}
	})
	run("another fingerprint is a mismatch when done", func(t *testing.T, s store) {
		s.complete(t, s.claim(t, command("k1")), []byte("one"))
		_, err := s.Begin(t.Context(), other("k1"))
		wantErr(t, "Begin with another fingerprint", err, idempotency.ErrMismatch)
		s.wantDone(t, command("k1"), []byte("one"))
	})
	run("another fingerprint is a mismatch after the lease", func(t *testing.T, s store) {
		s.lapse(t, "k1")
		_, err := s.Begin(t.Context(), other("k1"))
		wantErr(t, "Begin with another fingerprint", err, idempotency.ErrMismatch)
	})
	run("no fingerprint is a fingerprint", func(t *testing.T, s store) {
		cmd := command("k1")
		cmd.Fingerprint = nil
		s.complete(t, s.claim(t, cmd), []byte("one"))
		s.wantDone(t, cmd, []byte("one"))
		cmd.Fingerprint = []byte{}
		s.wantDone(t, cmd, []byte("one"))
		_, err := s.Begin(t.Context(), other("k1"))
		wantErr(t, "Begin with a fingerprint", err, idempotency.ErrMismatch)
	})

	run("a released key is claimed, with any fingerprint", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		s.release(t, c)
		again := s.claim(t, other("k1"))
		if again.Token == c.Token {
			t.Errorf("Begin after Release has the token %q again", c.Token)
		}
	})
	run("a released claim stores nothing", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		s.release(t, c)
		wantErr(t, "Complete after Release", s.Complete(t.Context(), c, []byte("one")), idempotency.ErrLeaseLost)
		wantErr(t, "Extend after Release", s.Extend(t.Context(), c), idempotency.ErrLeaseLost)
		s.release(t, c)
		s.claim(t, command("k1"))
	})
	run("a released claim does not touch the next one", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		s.release(t, c)
		next := s.claim(t, command("k1"))
		wantErr(t, "Complete after Release", s.Complete(t.Context(), c, []byte("old")), idempotency.ErrLeaseLost)
		wantErr(t, "Extend after Release", s.Extend(t.Context(), c), idempotency.ErrLeaseLost)
		s.release(t, c)
		s.wantInProgress(t, "k1")
		s.complete(t, next, []byte("new"))
		s.wantDone(t, command("k1"), []byte("new"))
	})
	run("a completed claim is over", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		s.complete(t, c, []byte("one"))
		wantErr(t, "Extend after Complete", s.Extend(t.Context(), c), idempotency.ErrLeaseLost)
		s.release(t, c)
		s.wantDone(t, command("k1"), []byte("one"))
	})
	run("completing again keeps the first result", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		s.complete(t, c, []byte("one"))
		s.complete(t, c, []byte("two"))
		s.wantDone(t, command("k1"), []byte("one"))
	})

	run("a key whose lease has passed is claimed", func(t *testing.T, s store) {
		old := s.lapse(t, "k1")
		c := s.claim(t, command("k1"))
		if c.Token == old.Token {
			t.Errorf("the new claim has the token %q of the old one", old.Token)
		}
		s.wantInProgress(t, "k1")
	})
	run("an owner that lost its lease cannot touch the new owner's claim", func(t *testing.T, s store) {
		old := s.lapse(t, "k1")
		c := s.claim(t, command("k1"))
		wantErr(t, "Extend by the old owner", s.Extend(t.Context(), old), idempotency.ErrLeaseLost)
		wantErr(t, "Complete by the old owner", s.Complete(t.Context(), old, []byte("old")), idempotency.ErrLeaseLost)
		s.release(t, old)
		s.wantInProgress(t, "k1")
		s.complete(t, c, []byte("new"))
	})
	run("an owner that lost its lease cannot overwrite the new owner's result", func(t *testing.T, s store) {
		old := s.lapse(t, "k1")
		s.complete(t, s.claim(t, command("k1")), []byte("new"))
		wantErr(t, "Complete by the old owner", s.Complete(t.Context(), old, []byte("old")), idempotency.ErrLeaseLost)
		wantErr(t, "Extend by the old owner", s.Extend(t.Context(), old), idempotency.ErrLeaseLost)
		s.release(t, old)
		s.wantDone(t, command("k1"), []byte("new"))
	})
	run("an owner whose key nobody took may go on after its lease", func(t *testing.T, s store) {
		old := s.lapse(t, "k1")
		if err := s.Extend(t.Context(), old); err != nil {
			t.Fatalf("Extend after the lease = %v", err)
		}
		old = s.lapse(t, "k2")
		s.complete(t, old, []byte("late"))
		s.wantDone(t, command("k2"), []byte("late"))
		old = s.lapse(t, "k3")
		s.release(t, old)
		s.claim(t, other("k3"))
	})
	run("an extended claim outlives its lease, and its retention", func(t *testing.T, s store) {
		kept, brief := command("kept"), command("brief")
		kept.Lease, brief.Lease, brief.Retention = 2*time.Second, 2*time.Second, time.Millisecond
		claims := []idempotency.Claim{s.claim(t, kept), s.claim(t, brief)}
		for end := time.Now().Add(kept.Lease + kept.Lease/2); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			for _, c := range claims {
				if err := s.Extend(t.Context(), c); err != nil {
					t.Fatalf("Extend(%q) = %v", c.Key.ID, err)
				}
				s.wantInProgress(t, c.Key.ID)
			}
		}
		s.complete(t, claims[0], []byte("one"))
		s.wantDone(t, kept, []byte("one"))
	})

	run("of many callers at the same moment one gets the key", func(t *testing.T, s store) {
		s.wantOneClaim(t, "k1")
	})
	run("of many callers after the lease one gets the key", func(t *testing.T, s store) {
		old := s.lapse(t, "k1")
		c := s.wantOneClaim(t, "k1")
		wantErr(t, "Complete by the old owner", s.Complete(t.Context(), old, []byte("old")), idempotency.ErrLeaseLost)
		s.complete(t, c, []byte("new"))
	})
	run("of many owners of one key, one after the other, the last one's result stands", func(t *testing.T, s store) {
		var claims []idempotency.Claim
		for range 5 {
			claims = append(claims, s.lapse(t, "k1"))
		}
		var wg sync.WaitGroup
		for i, c := range claims {
			wg.Go(func() {
				err := s.Complete(t.Context(), c, []byte{byte(i)})
				if want := i == len(claims)-1; (err == nil) != want || err != nil && !errors.Is(err, idempotency.ErrLeaseLost) {
					t.Errorf("Complete by owner %d of %d = %v", i+1, len(claims), err)
				}
			})
		}
		wg.Wait()
		s.wantDone(t, command("k1"), []byte{byte(len(claims) - 1)})
	})
	run("an extension races with a new owner: one of them has the key", func(t *testing.T, s store) {
		for range 10 {
			old := s.lapse(t, "k1")
			var extended error
			var next idempotency.Claim
			var begun error
			var wg sync.WaitGroup
			wg.Go(func() { extended = s.Extend(t.Context(), old) })
			wg.Go(func() { next, begun = s.Begin(t.Context(), command("k1")) })
			wg.Wait()
			switch {
			case extended == nil && errors.Is(begun, idempotency.ErrInProgress):
				s.release(t, old)
			case errors.Is(extended, idempotency.ErrLeaseLost) && begun == nil:
				s.release(t, next)
			default:
				t.Fatalf("Extend = %v and Begin = %v, want one of them to have the key", extended, begun)
			}
		}
	})

	run("a store agrees with a model, whatever the sequence", func(t *testing.T, s store) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		m := model{keys: map[string]*modelKey{}}
		for i := range 300 {
			m.step(t, s, rng, i)
		}
	})

	run("a done key is forgotten after its retention", func(t *testing.T, s store) {
		cmd := command("k1")
		cmd.Retention = shortLease
		s.complete(t, s.claim(t, cmd), []byte("one"))
		eventually(t, "another command gets the key", func() bool {
			_, err := s.Begin(t.Context(), other("k1"))
			return err == nil
		})
	})
	run("a key that is leased is not forgotten after its retention", func(t *testing.T, s store) {
		cmd := command("k1")
		cmd.Retention = time.Millisecond
		s.claim(t, cmd)
		time.Sleep(20 * time.Millisecond) // the retention is over, by any clock
		s.wantInProgress(t, "k1")
	})
	run("a context that has ended is an error", func(t *testing.T, s store) {
		c := s.claim(t, command("k1"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Begin(ctx, command("k2")); err == nil {
			t.Error("Begin = nil")
		}
		if err := s.Extend(ctx, c); err == nil {
			t.Error("Extend = nil")
		}
		if err := s.Complete(ctx, c, nil); err == nil {
			t.Error("Complete = nil")
		}
		if err := s.Release(ctx, c); err == nil {
			t.Error("Release = nil")
		}
		s.wantInProgress(t, "k1")
	})
}

// RunTxStore checks a store against the contract of [idempotency.TxStore], on top of
// [RunStore]. open returns an empty one, and how to begin a transaction on its database.
func RunTxStore(t *testing.T, open func(t *testing.T) (idempotency.TxStore, Begin)) {
	run := func(name string, fn func(t *testing.T, s store, tx idempotency.TxStore, b Begin)) {
		t.Run(name, func(t *testing.T) {
			s, b := open(t)
			fn(t, store{s}, s, b)
		})
	}
	ok := func(t *testing.T, what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s = %v", what, err)
		}
	}

	run("a result is there when its transaction has committed", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		tx := begin(t, b)
		ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, c, []byte("\x00one")))
		commit(t, tx)
		s.wantDone(t, command("k1"), []byte("\x00one"))
	})
	run("a result is not there when its transaction was rolled back", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		tx := begin(t, b)
		ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, c, []byte("one")))
		rollback(t, tx)
		s.wantInProgress(t, "k1")
		s.complete(t, c, []byte("two"))
		s.wantDone(t, command("k1"), []byte("two"))
	})
	run("a rolled back result leaves a key that can be released", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		tx := begin(t, b)
		ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, c, []byte("one")))
		rollback(t, tx)
		s.release(t, c)
		s.claim(t, other("k1"))
	})
	run("a later result in the same transaction replaces the earlier one", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		tx := begin(t, b)
		for _, result := range []string{"one", "two", "two"} {
			ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, c, []byte(result)))
		}
		commit(t, tx)
		s.wantDone(t, command("k1"), []byte("two"))
	})
	run("a transaction can be tried again", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		tx := begin(t, b)
		ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, c, []byte("one")))
		rollback(t, tx)
		tx = begin(t, b)
		ok(t, "CompleteTx again", st.CompleteTx(t.Context(), tx, c, []byte("two")))
		commit(t, tx)
		s.wantDone(t, command("k1"), []byte("two"))
	})
	run("a committed result is neither completed over nor released", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		tx := begin(t, b)
		ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, c, []byte("one")))
		commit(t, tx)
		s.complete(t, c, []byte("two"))
		s.release(t, c)
		s.wantDone(t, command("k1"), []byte("one"))
	})
	run("a lost claim stores nothing and leaves the transaction usable", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		old := s.lapse(t, "k1")
		c := s.claim(t, command("k1"))
		mine := s.claim(t, command("k2"))
		tx := begin(t, b)
		wantErr(t, "CompleteTx by the old owner", st.CompleteTx(t.Context(), tx, old, []byte("old")), idempotency.ErrLeaseLost)
		ok(t, "CompleteTx of another key", st.CompleteTx(t.Context(), tx, mine, []byte("mine")))
		commit(t, tx)
		s.wantDone(t, command("k2"), []byte("mine"))
		s.complete(t, c, []byte("new"))
		s.wantDone(t, command("k1"), []byte("new"))
	})
	run("a released claim stores nothing", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		s.release(t, c)
		tx := begin(t, b)
		wantErr(t, "CompleteTx after Release", st.CompleteTx(t.Context(), tx, c, []byte("one")), idempotency.ErrLeaseLost)
		commit(t, tx)
		s.claim(t, command("k1"))
	})
	for _, how := range []string{"commits", "rolls back"} {
		run("nobody takes the key from an open transaction that "+how, func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
			old := s.lapse(t, "k1")
			tx := begin(t, b)
			ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, old, []byte("one")))
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if c, err := s.Begin(ctx, command("k1")); err == nil {
				t.Fatalf("Begin = %+v while the transaction is open, want an error", c)
			}
			if how == "commits" {
				commit(t, tx)
				s.wantDone(t, command("k1"), []byte("one"))
				return
			}
			rollback(t, tx)
			s.claim(t, command("k1"))
		})
	}
	run("an open transaction hides its result and its key is in progress", func(t *testing.T, s store, st idempotency.TxStore, b Begin) {
		c := s.claim(t, command("k1"))
		tx := begin(t, b)
		ok(t, "CompleteTx", st.CompleteTx(t.Context(), tx, c, []byte("one")))
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		// A pool of one connection cannot even look.
		if _, err := s.Begin(ctx, command("k1")); !errors.Is(err, idempotency.ErrInProgress) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Begin while the transaction is open = %v, want %v", err, idempotency.ErrInProgress)
		}
		commit(t, tx)
		s.wantDone(t, command("k1"), []byte("one"))
	})
}

// store is what RunStore tests.
type store struct{ idempotency.Store }

func key(id string) idempotency.Key { return idempotency.Key{Scope: "test", ID: id} }

// command is the first command under a key, other another one.
func command(id string) idempotency.Command {
	return idempotency.Command{Key: key(id), Fingerprint: []byte("\x00first"), Lease: longLease, Retention: longLease}
}

func other(id string) idempotency.Command {
	cmd := command(id)
	cmd.Fingerprint = []byte("\x00other")
	return cmd
}

func (s store) claim(t *testing.T, cmd idempotency.Command) idempotency.Claim {
	t.Helper()
	c, err := s.Begin(t.Context(), cmd)
	if err != nil || c.Done || c.Token == "" {
		t.Fatalf("Begin(%.20q) = %+v, %v, want a claim", cmd.Key.ID, c, err)
	}
	return c
}

// lapse claims the key and returns when the lease has passed, by the clock of the test:
// a store whose clock runs another speed would fail.
func (s store) lapse(t *testing.T, id string) (c idempotency.Claim) {
	t.Helper()
	cmd := command(id)
	cmd.Lease = shortLease
	eventually(t, "a lease ends", func() bool {
		var err error
		if c, err = s.Begin(t.Context(), cmd); err != nil && !errors.Is(err, idempotency.ErrInProgress) {
			t.Fatalf("Begin(%q) = %v, want a claim", id, err)
		}
		return err == nil
	})
	time.Sleep(shortLease + 20*time.Millisecond) // nothing can be polled without taking the key
	return c
}

func (s store) complete(t *testing.T, c idempotency.Claim, result []byte) {
	t.Helper()
	if err := s.Complete(t.Context(), c, result); err != nil {
		t.Fatalf("Complete(%.20q) = %v", c.Key.ID, err)
	}
}

func (s store) release(t *testing.T, c idempotency.Claim) {
	t.Helper()
	if err := s.Release(t.Context(), c); err != nil {
		t.Fatalf("Release(%.20q) = %v", c.Key.ID, err)
	}
}

func (s store) wantDone(t *testing.T, cmd idempotency.Command, want []byte) {
	t.Helper()
	c, err := s.Begin(t.Context(), cmd)
	if err != nil || !c.Done || c.Token != "" || c.Key != cmd.Key {
		t.Fatalf("Begin(%.20q) = %+v, %v, want it done", cmd.Key.ID, c, err)
	}
	if !bytes.Equal(c.Result, want) {
		t.Fatalf("Begin(%.20q): the result is %.40q, want %.40q", cmd.Key.ID, c.Result, want)
	}
}

func (s store) wantInProgress(t *testing.T, id string) {
	t.Helper()
	c, err := s.Begin(t.Context(), command(id))
	if !errors.Is(err, idempotency.ErrInProgress) {
		t.Fatalf("Begin(%q) = %+v, %v, want %v", id, c, err, idempotency.ErrInProgress)
	}
}

// wantOneClaim begins the same command many times at once.
func (s store) wantOneClaim(t *testing.T, id string) (won idempotency.Claim) {
	t.Helper()
	const n = 16
	claims := make([]idempotency.Claim, n)
	errs := make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			claims[i], errs[i] = s.Begin(t.Context(), command(id))
		})
	}
	close(start)
	wg.Wait()
	winners := 0
	for i, err := range errs {
		switch {
		case err == nil && claims[i].Token != "" && !claims[i].Done:
			winners++
			won = claims[i]
		case !errors.Is(err, idempotency.ErrInProgress):
			t.Errorf("Begin among many = %+v, %v, want a claim or %v", claims[i], err, idempotency.ErrInProgress)
		}
	}
	if winners != 1 {
		t.Fatalf("%d callers of %d have the key, want 1", winners, n)
	}
	return won
}

// model is what a store must be like. Half of its leases have passed as soon as they
// begin.
type model struct {
	keys   map[string]*modelKey
	claims []idempotency.Claim // all that were ever given out
	done   int                 // completed keys, which are left alone in the end
}

type modelKey struct {
	token       string // of the owner, empty if the key is free
	fingerprint string
	lapsed      bool
	done        bool
	result      string
}

// key returns one of the two that are in use.
func (m *model) key(rng *rand.Rand) (string, *modelKey) {
	id := fmt.Sprintf("k%d", m.done/2*2+rng.IntN(2))
	if m.keys[id] == nil {
		m.keys[id] = &modelKey{}
	}
	return id, m.keys[id]
}

// step does a random thing to both and compares.
func (m *model) step(t *testing.T, s store, rng *rand.Rand, i int) {
	t.Helper()
	if len(m.claims) == 0 || rng.IntN(2) == 0 {
		m.begin(t, s, rng, i)
		return
	}
	// One of the last few claims: the owner, or somebody who was.
	c := m.claims[len(m.claims)-1-rng.IntN(min(len(m.claims), 4))]
	k := m.keys[c.Key.ID]
	owner := k.token == c.Token
	var what string
	var got, want error
	switch rng.IntN(4) {
	case 0, 1:
		what, got = "Extend", s.Extend(t.Context(), c)
		if !owner || k.done {
			want = idempotency.ErrLeaseLost
		}
		m.pass(c)
	case 2:
		result := fmt.Sprint("result ", i)
		what, got = "Complete", s.Complete(t.Context(), c, []byte(result))
		if !owner {
			want = idempotency.ErrLeaseLost
		} else if !k.done {
			k.done, k.result = true, result
			m.done++
		}
	case 3:
		what, got = "Release", s.Release(t.Context(), c)
		if owner && !k.done {
			*k = modelKey{}
		}
	}
	if !errors.Is(got, want) {
		t.Fatalf("step %d: %s(%s) of claim %q = %v, want %v", i, what, c.Key.ID, c.Token, got, want)
	}
}

func (m *model) begin(t *testing.T, s store, rng *rand.Rand, i int) {
	t.Helper()
	id, k := m.key(rng)
	cmd := command(id)
	if rng.IntN(6) == 0 {
		cmd = other(id)
	}
	if rng.IntN(2) == 0 {
		cmd.Lease = time.Microsecond
	}
	c, err := s.Begin(t.Context(), cmd)
	var want error
	switch {
	case k.token != "" && k.fingerprint != string(cmd.Fingerprint):
		want = idempotency.ErrMismatch
	case k.done:
		if !c.Done || string(c.Result) != k.result {
			t.Fatalf("step %d: Begin(%s) = %+v, %v, want it done with %q", i, id, c, err, k.result)
		}
	case k.token != "" && !k.lapsed:
		want = idempotency.ErrInProgress
	default:
		if c.Done || c.Token == "" {
			t.Fatalf("step %d: Begin(%s) = %+v, %v, want a claim", i, id, c, err)
		}
		*k = modelKey{token: c.Token, fingerprint: string(cmd.Fingerprint), lapsed: cmd.Lease == time.Microsecond}
		m.claims = append(m.claims, c)
		m.pass(c)
	}
	if !errors.Is(err, want) {
		t.Fatalf("step %d: Begin(%s) = %+v, %v, want %v", i, id, c, err, want)
	}
}

// pass lets a short lease pass, by clocks that count milliseconds too.
func (m *model) pass(c idempotency.Claim) {
	if c.Lease == time.Microsecond {
		time.Sleep(2 * time.Millisecond)
	}
}
