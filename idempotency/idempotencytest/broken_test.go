// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencytest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/idempotency/idempotencytest"
)

// brokenEnv selects one of the broken implementations, in a process of its own: a
// failing suite fails the test that it runs in.
const brokenEnv = "DOVETAIL_IDEMPOTENCYTEST_BROKEN"

var broken = map[string]struct {
	run  func(t *testing.T)
	must []string // sentences that must fail
}{
	"inbox that marks outside of the transaction": {
		run: func(t *testing.T) {
			idempotencytest.RunInbox(t, func(t *testing.T) (idempotency.Inbox, idempotencytest.Begin) {
				db, in := openOutside(t)
				return in, beginner(db)
			})
		},
		must: []string{"a mark that was rolled back never was", "OnceMany that was rolled back never was", "a twin learns that the open transaction was rolled back"},
	},
	"inbox that says first to everybody": {
		run: func(t *testing.T) {
			idempotencytest.RunInbox(t, func(t *testing.T) (idempotency.Inbox, idempotencytest.Begin) {
				db, s := open(t)
				return alwaysFirst{s}, beginner(db)
			})
		},
		must: []string{"a message whose mark was committed is not first again", "of many transactions at the same moment one is first", "OnceMany answers every position", "a duplicate leaves the transaction usable"},
	},
	"consumer on an inbox that marks outside of the transaction": {
		run: func(t *testing.T) {
			idempotencytest.RunConsumer(t, func(t *testing.T) (*sql.DB, idempotency.Inbox) { return openOutside(t) })
		},
		must: []string{"a handler that returns an error leaves nothing and is called again: error", "a handler that panics leaves nothing, and the panic goes on", "a failing message does not take its neighbours along: panic"},
	},
	"consumer on an inbox that says first to everybody": {
		run: func(t *testing.T) {
			idempotencytest.RunConsumer(t, func(t *testing.T) (*sql.DB, idempotency.Inbox) {
				db, s := open(t)
				return db, alwaysFirst{s}
			})
		},
		must: []string{"a message takes effect once, however often it is delivered", "a batch takes effect once, however often it is delivered"},
	},
	"store without fencing": {
		run: func(t *testing.T) {
			idempotencytest.RunStore(t, func(*testing.T) idempotency.Store { return &unfenced{keys: map[idempotency.Key]*row{}} })
		},
		must: []string{
			"an owner that lost its lease cannot overwrite the new owner's result", "an owner that lost its lease cannot touch the new owner's claim",
			"a released claim does not touch the next one", "of many owners of one key, one after the other, the last one's result stands",
			"another fingerprint is a mismatch while in progress",
		},
	},
	"store that completes outside of the transaction": {
		run: func(t *testing.T) {
			idempotencytest.RunTxStore(t, func(t *testing.T) (idempotency.TxStore, idempotencytest.Begin) {
				db, s := open(t)
				return completesOutside{s}, beginner(db)
			})
		},
		must: []string{"a result is not there when its transaction was rolled back", "a rolled back result leaves a key that can be released", "nobody takes the key from an open transaction that rolls back"},
	},
}

func TestSuitesCanFail(t *testing.T) {
	if name := os.Getenv(brokenEnv); name != "" {
		broken[name].run(t)
		return
	}
	for name, b := range broken {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuitesCanFail$", "-test.v", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("the suite passes")
			}
			for _, sentence := range b.must {
				line := "--- FAIL: TestSuitesCanFail/" + strings.ReplaceAll(sentence, " ", "_") + " "
				if !strings.Contains(string(out), line) {
					t.Errorf("%q does not fail", sentence)
				}
			}
			if !bytes.Contains(out, []byte("--- PASS: TestSuitesCanFail/")) {
				t.Error("nothing passes: the implementation is broken otherwise than meant")
			}
			if t.Failed() {
				t.Logf("output:\n%s", out)
			}
		})
	}
}

func open(t *testing.T) (*sql.DB, *idempotencymem.Store) {
	s := idempotencymem.New()
	db := s.OpenDB()
	t.Cleanup(func() { db.Close() })
	return db, s
}

func openOutside(t *testing.T) (*sql.DB, outside) {
	db, s := open(t)
	return db, outside{s, db}
}

func beginner(db *sql.DB) idempotencytest.Begin {
	return func(ctx context.Context) (idempotencytest.Tx, error) { return db.BeginTx(ctx, nil) }
}

// outside marks at once, whatever becomes of the transaction.
type outside struct {
	*idempotencymem.Store
	db *sql.DB
}

func (o outside) Once(ctx context.Context, _ idempotency.Tx, consumer, id string) (bool, error) {
	return o.Store.Once(ctx, o.db, consumer, id)
}

func (o outside) OnceMany(ctx context.Context, _ idempotency.Tx, consumer string, ids []string) ([]bool, error) {
	return o.Store.OnceMany(ctx, o.db, consumer, ids)
}

func (o outside) Forget(ctx context.Context, _ idempotency.Tx, consumer string, ids ...string) error {
	return o.Store.Forget(ctx, o.db, consumer, ids...)
}

// alwaysFirst forgets at once.
type alwaysFirst struct{ *idempotencymem.Store }

func (a alwaysFirst) Once(ctx context.Context, tx idempotency.Tx, consumer, id string) (bool, error) {
	if strings.HasPrefix(consumer, "effect") { // how the suite sees effects
		return a.Store.Once(ctx, tx, consumer, id)
	}
	return true, idempotency.ValidateMark(consumer, id)
}

func (a alwaysFirst) OnceMany(_ context.Context, _ idempotency.Tx, consumer string, ids []string) ([]bool, error) {
	first := make([]bool, len(ids))
	for i, id := range ids {
		if err := idempotency.ValidateMark(consumer, id); err != nil {
			return nil, err
		}
		first[i] = true
	}
	return first, nil
}

// completesOutside completes at once, whatever becomes of the transaction.
type completesOutside struct{ *idempotencymem.Store }

func (c completesOutside) CompleteTx(ctx context.Context, _ idempotency.Tx, claim idempotency.Claim, result []byte) error {
	return c.Complete(ctx, claim, result)
}

// unfenced is what one writes first: a lease, but its owner is not asked who it is.
type unfenced struct {
	mu   sync.Mutex
	keys map[idempotency.Key]*row
}

type row struct {
	until   time.Time
	expires time.Time
	done    bool
	result  []byte
}

func (u *unfenced) Begin(_ context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	if err := cmd.Validate(); err != nil {
		return idempotency.Claim{}, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if r := u.keys[cmd.Key]; r != nil {
		if r.done && time.Now().Before(r.expires) {
			return idempotency.Claim{Key: cmd.Key, Done: true, Result: bytes.Clone(r.result)}, nil
		}
		if time.Now().Before(r.until) {
			return idempotency.Claim{}, idempotency.ErrInProgress
		}
	}
	u.keys[cmd.Key] = &row{until: time.Now().Add(cmd.Lease), expires: time.Now().Add(cmd.Retention)}
	return idempotency.Claim{Key: cmd.Key, Lease: cmd.Lease, Token: rand.Text()}, nil
}

func (u *unfenced) Extend(_ context.Context, c idempotency.Claim) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r := u.keys[c.Key]; r != nil {
		r.until = time.Now().Add(c.Lease)
	}
	return nil
}

func (u *unfenced) Complete(_ context.Context, c idempotency.Claim, result []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := u.keys[c.Key]
	if r == nil {
		r = &row{expires: time.Now().Add(time.Hour)}
		u.keys[c.Key] = r
	}
	r.done, r.result = true, bytes.Clone(result)
	return nil
}

func (u *unfenced) Release(_ context.Context, c idempotency.Claim) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.keys, c.Key)
	return nil
}
