// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencytest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
)

// RunInbox checks an inbox against the contract of [idempotency.Inbox]. open returns an
// empty one, and how to begin a transaction on its database.
func RunInbox(t *testing.T, open func(t *testing.T) (idempotency.Inbox, Begin)) {
	run := func(name string, fn func(t *testing.T, s inbox)) {
		t.Run(name, func(t *testing.T) {
			in, b := open(t)
			fn(t, inbox{in, b})
		})
	}

	run("the first transaction to mark a message is first", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		s.wantOnce(t, tx, "mail", "m1", true)
		commit(t, tx)
	})
	run("a message whose mark was committed is not first again", func(t *testing.T, s inbox) {
		s.commitOnce(t, "mail", "m1", true)
		s.commitOnce(t, "mail", "m1", false)
		s.commitOnce(t, "mail", "m2", true)
	})
	run("a mark that was rolled back never was", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		s.wantOnce(t, tx, "mail", "m1", true)
		rollback(t, tx)
		s.commitOnce(t, "mail", "m1", true)
	})
	run("a message is first only once in its own transaction", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		s.wantOnce(t, tx, "mail", "m1", true)
		s.wantOnce(t, tx, "mail", "m1", false)
		commit(t, tx)
	})
	run("consumers do not know of each other", func(t *testing.T, s inbox) {
		s.commitOnce(t, "mail", "m1", true)
		s.commitOnce(t, "stock", "m1", true)
		s.commitOnce(t, "mail", "m1", false)
	})
	run("names are compared byte by byte", func(t *testing.T, s inbox) {
		for _, id := range []string{"a", "A", "a ", " a", "ä", "a\u0308", "ß", "ss", "a\t", "%", "_", `\`, "'", "?", "$1", "İ", "i"} {
			s.commitOnce(t, "mail", id, true)
			s.commitOnce(t, id, "m1", true)
		}
	})
	run("names of 255 bytes are kept whole", func(t *testing.T, s inbox) {
		long := strings.Repeat("x", 253)
		for _, end := range []string{"aa", "ab", "é"} {
			s.commitOnce(t, "mail", long+end, true)
			s.commitOnce(t, long+end, "m1", true)
		}
		s.commitOnce(t, "mail", long+"ab", false)
	})
	run("an invalid name is an error and leaves the transaction usable", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		for _, bad := range []string{"", strings.Repeat("x", 256), "\xff", "a\x00b"} {
			if _, err := s.in.Once(t.Context(), tx, "mail", bad); !fault.IsPermanent(err) {
				t.Errorf("Once(%.10q) = %v, want a permanent error", bad, err)
			}
			if _, err := s.in.Once(t.Context(), tx, bad, "m1"); !fault.IsPermanent(err) {
				t.Errorf("Once as consumer %.10q = %v, want a permanent error", bad, err)
			}
			if _, err := s.in.OnceMany(t.Context(), tx, "mail", []string{"m0", bad}); !fault.IsPermanent(err) {
				t.Errorf("OnceMany(m0, %.10q) = %v, want a permanent error", bad, err)
			}
		}
		s.wantOnce(t, tx, "mail", "m0", true)
		commit(t, tx)
	})
	run("a duplicate leaves the transaction usable", func(t *testing.T, s inbox) {
		s.commitOnce(t, "mail", "m1", true)
		tx := begin(t, s.begin)
		s.wantOnce(t, tx, "mail", "m1", false)
		s.wantMany(t, tx, []string{"m1", "m1"}, []bool{false, false})
		s.wantOnce(t, tx, "mail", "m2", true)
		commit(t, tx)
		s.commitOnce(t, "mail", "m2", false)
	})
	run("of many transactions at the same moment one is first", func(t *testing.T, s inbox) {
		const n = 16
		var firsts atomic.Int64
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				first := false
				if err := inTx(t.Context(), s.begin, func(tx Tx) (err error) {
					first, err = s.in.Once(t.Context(), tx, "mail", "m1")
					return err
				}); err != nil {
					t.Errorf("Once among many = %v", err)
				}
				if first {
					firsts.Add(1)
				}
			})
		}
		wg.Wait()
		if got := firsts.Load(); got != 1 {
			t.Errorf("%d transactions of %d were first, want 1", got, n)
		}
	})
	for _, how := range []string{"committed", "rolled back"} {
		run("a twin learns that the open transaction was "+how, func(t *testing.T, s inbox) {
			tx := begin(t, s.begin)
			s.wantOnce(t, tx, "mail", "m1", true)
			type answer struct {
				first bool
				err   error
			}
			twin := make(chan answer, 1)
			go func() {
				var a answer
				a.err = inTx(t.Context(), s.begin, func(tx Tx) (err error) {
					a.first, err = s.in.Once(t.Context(), tx, "mail", "m1")
					return err
				})
				twin <- a
			}()
			select {
			case a := <-twin:
				t.Fatalf("Once = %v, %v while its twin is open, want it to wait", a.first, a.err)
			case <-time.After(100 * time.Millisecond): // most of the broken ones answer by now
			}
			if how == "committed" {
				commit(t, tx)
			} else {
				rollback(t, tx)
			}
			select {
			case a := <-twin:
				if want := how == "rolled back"; a.err != nil || a.first != want {
					t.Errorf("Once = %v, %v after its twin was %s, want %v", a.first, a.err, how, want)
				}
			case <-time.After(patience):
				t.Errorf("Once still waits %v after its twin was %s", patience, how)
			}
		})
	}
	run("waiting for a twin ends", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		s.wantOnce(t, tx, "mail", "m1", true)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err := tryTx(ctx, s.begin, func(tx Tx) error {
			first, err := s.in.Once(ctx, tx, "mail", "m1")
			if err == nil {
				t.Errorf("Once = %v while its twin is open, want an error in the end", first)
			}
			return err
		})
		if err == nil {
			t.Error("a transaction with the mark of another open one has committed")
		}
		commit(t, tx)
		s.commitOnce(t, "mail", "m1", false)
	})

	run("OnceMany answers every position", func(t *testing.T, s inbox) {
		s.commitOnce(t, "mail", "m2", true)
		tx := begin(t, s.begin)
		s.wantMany(t, tx, []string{"m1", "m2", "m3", "m1", "m3"}, []bool{true, false, true, false, false})
		s.wantMany(t, tx, []string{"m3", "m4"}, []bool{false, true})
		commit(t, tx)
		s.commitOnce(t, "mail", "m1", false)
		s.commitOnce(t, "mail", "m3", false)
	})
	run("OnceMany of nothing is nothing", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		s.wantMany(t, tx, nil, []bool{})
		commit(t, tx)
	})
	run("OnceMany takes thousands", func(t *testing.T, s inbox) {
		all := ids("m", 3000)
		tx := begin(t, s.begin)
		s.wantMany(t, tx, all, slices.Repeat([]bool{true}, len(all)))
		commit(t, tx)
		tx = begin(t, s.begin)
		s.wantMany(t, tx, append(all, "new"), append(slices.Repeat([]bool{false}, len(all)), true))
		commit(t, tx)
	})
	run("OnceMany that was rolled back never was", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		s.wantMany(t, tx, []string{"m1", "m2"}, []bool{true, true})
		rollback(t, tx)
		tx = begin(t, s.begin)
		s.wantMany(t, tx, []string{"m2", "m1"}, []bool{true, true})
		commit(t, tx)
	})
	run("OnceMany agrees with a set, whatever the mixture", func(t *testing.T, s inbox) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		known := map[string]bool{}
		for range 25 {
			batch := make([]string, rng.IntN(60))
			want := make([]bool, len(batch))
			seen := map[string]bool{}
			for i := range batch {
				id := fmt.Sprint(rng.IntN(300))
				batch[i], want[i] = id, !known[id] && !seen[id]
				seen[id] = true
			}
			tx := begin(t, s.begin)
			s.wantMany(t, tx, batch, want)
			if rng.IntN(4) == 0 {
				rollback(t, tx)
				continue
			}
			commit(t, tx)
			for id := range seen {
				known[id] = true
			}
		}
	})
	run("of many overlapping batches each message is first once", func(t *testing.T, s inbox) {
		all := ids("m", 64)
		firsts := make([]atomic.Int64, len(all))
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(w), 0))
				order := rng.Perm(len(all)) // every order, so that they meet head on
				batch := make([]string, len(all))
				for i, k := range order {
					batch[i] = all[k]
				}
				var first []bool
				if err := inTx(t.Context(), s.begin, func(tx Tx) (err error) {
					first, err = s.in.OnceMany(t.Context(), tx, "mail", batch)
					return err
				}); err != nil {
					t.Errorf("OnceMany among many = %v", err)
					return
				}
				for i, k := range order {
					if first[i] {
						firsts[k].Add(1)
					}
				}
			})
		}
		wg.Wait()
		for k := range firsts {
			if got := firsts[k].Load(); got != 1 {
				t.Errorf("%s was first %d times, want 1", all[k], got)
			}
		}
	})

	run("a message that was forgotten is first again", func(t *testing.T, s inbox) {
		s.commitOnce(t, "mail", "m1", true)
		s.commitOnce(t, "mail", "m2", true)
		s.commitOnce(t, "stock", "m1", true)
		tx := begin(t, s.begin)
		s.forget(t, tx, "m1", "unknown")
		commit(t, tx)
		s.commitOnce(t, "mail", "m1", true)
		s.commitOnce(t, "mail", "m2", false)
		s.commitOnce(t, "stock", "m1", false)
	})
	run("forgetting that was rolled back never was", func(t *testing.T, s inbox) {
		s.commitOnce(t, "mail", "m1", true)
		tx := begin(t, s.begin)
		s.forget(t, tx, "m1")
		s.wantOnce(t, tx, "mail", "m1", true)
		rollback(t, tx)
		s.commitOnce(t, "mail", "m1", false)
	})
	run("a mark is forgotten in the transaction that made it", func(t *testing.T, s inbox) {
		tx := begin(t, s.begin)
		s.wantMany(t, tx, []string{"m1", "m2"}, []bool{true, true})
		s.forget(t, tx, "m1")
		commit(t, tx)
		s.commitOnce(t, "mail", "m1", true)
		s.commitOnce(t, "mail", "m2", false)
	})
	run("forgetting nothing, or thousands, is fine", func(t *testing.T, s inbox) {
		all := ids("m", 3000)
		tx := begin(t, s.begin)
		s.forget(t, tx)
		s.wantMany(t, tx, all, slices.Repeat([]bool{true}, len(all)))
		s.forget(t, tx, all...)
		s.wantOnce(t, tx, "mail", all[2999], true)
		commit(t, tx)
	})
}

// inbox is what RunInbox tests.
type inbox struct {
	in    idempotency.Inbox
	begin Begin
}

func (s inbox) wantOnce(t *testing.T, tx Tx, consumer, id string, want bool) {
	t.Helper()
	first, err := s.in.Once(t.Context(), tx, consumer, id)
	if err != nil || first != want {
		t.Fatalf("Once(%.20q, %.20q) = %v, %v, want %v", consumer, id, first, err, want)
	}
}

func (s inbox) commitOnce(t *testing.T, consumer, id string, want bool) {
	t.Helper()
	tx := begin(t, s.begin)
	s.wantOnce(t, tx, consumer, id, want)
	commit(t, tx)
}

func (s inbox) wantMany(t *testing.T, tx Tx, batch []string, want []bool) {
	t.Helper()
	first, err := s.in.OnceMany(t.Context(), tx, "mail", batch)
	if err != nil {
		t.Fatalf("OnceMany of %d = %v", len(batch), err)
	}
	if len(first) != len(want) {
		t.Fatalf("OnceMany of %d has %d answers, want %d", len(batch), len(first), len(want))
	}
	for i := range want {
		if first[i] != want[i] {
			t.Fatalf("OnceMany of %d: position %d, %q, = %v, want %v", len(batch), i, batch[i], first[i], want[i])
		}
	}
}

func (s inbox) forget(t *testing.T, tx Tx, list ...string) {
	t.Helper()
	if err := s.in.Forget(t.Context(), tx, "mail", list...); err != nil {
		t.Fatalf("Forget of %d = %v", len(list), err)
	}
}
