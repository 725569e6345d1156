// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
)

// short lets sessions be so short that a test can wait for their end.
const short = `session_ttl_min = "200ms"`

var quiet = slog.New(slog.DiscardHandler)

// throne watches that nobody leads twice, and that tokens grow.
type throne struct {
	mu     sync.Mutex
	holder string
	tokens []uint64
	faults []string
}

func (th *throne) sit(name string, token uint64) {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.holder != "" {
		th.faults = append(th.faults, name+" leads while "+th.holder+" does")
	}
	th.holder = name
	if n := len(th.tokens); n > 0 && token <= th.tokens[n-1] {
		th.faults = append(th.faults, fmt.Sprintf("token %d after %d", token, th.tokens[n-1]))
	}
	th.tokens = append(th.tokens, token)
}

func (th *throne) rise(name string) {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.holder == name {
		th.holder = ""
	}
}

func (th *throne) who() (string, int) {
	th.mu.Lock()
	defer th.mu.Unlock()
	return th.holder, len(th.tokens)
}

func (th *throne) check(t *testing.T) {
	t.Helper()
	th.mu.Lock()
	defer th.mu.Unlock()
	for _, f := range th.faults {
		t.Error(f)
	}
}

func (th *throne) lead(name string) func(context.Context, consulkit.Term) error {
	return func(ctx context.Context, term consulkit.Term) error {
		th.sit(name, term.Token)
		<-ctx.Done()
		th.rise(name)
		return ctx.Err()
	}
}

func TestElection(t *testing.T) {
	t.Parallel()
	a := startAgent(t, true, short)
	c := a.client(t)
	kv := c.API().KV()
	const long, brief = 20 * time.Second, 2 * time.Second
	election := func(t *testing.T, c *consulkit.Client, key, name string, ttl, delay time.Duration) *consulkit.Election {
		t.Helper()
		return must[*consulkit.Election](t)(consulkit.NewElection(c, key, consulkit.ElectionConfig{Name: name, TTL: ttl, LockDelay: delay, Logger: quiet}))
	}
	candidate := func(t *testing.T, th *throne, key, name string, ttl time.Duration) (stop func()) {
		t.Helper()
		e := election(t, c, key, name, ttl, -1)
		return background(t, func(ctx context.Context) error { return e.Run(ctx, th.lead(name)) })
	}

	t.Run("one of many leads, and when it resigns another follows under a higher token", func(t *testing.T) {
		th := new(throne)
		stops := map[string]func(){}
		for i := range 5 {
			name := fmt.Sprintf("c%d", i)
			stops[name] = candidate(t, th, "many", name, long)
		}
		for terms := range 5 {
			var leader string
			eventually(t, "somebody leads", func() bool {
				var n int
				leader, n = th.who()
				return leader != "" && n == terms+1
			})
			if name, ok, err := election(t, c, "many", "", 0, 0).Leader(t.Context()); err != nil || !ok || name != leader {
				t.Errorf("Leader = %q, %v, %v, want %q", name, ok, err, leader)
			}
			stops[leader]()
		}
		if _, ok, err := election(t, c, "many", "", 0, 0).Leader(t.Context()); err != nil || ok {
			t.Errorf("Leader after the last one's end = %v, %v, want none", ok, err)
		}
		th.check(t)
	})
	t.Run("tokens grow although the key is deleted", func(t *testing.T) {
		th := new(throne)
		candidate(t, th, "deleted", "a", long)
		for terms := range 3 {
			eventually(t, "it leads", func() bool { leader, n := th.who(); return leader == "a" && n == terms+1 })
			if _, err := kv.Delete("deleted", nil); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "it leads again", func() bool { leader, n := th.who(); return leader == "a" && n == 4 })
		th.check(t)
	})
	t.Run("a leader whose session is destroyed is deposed", func(t *testing.T) {
		var cause error
		done := make(chan struct{})
		e := election(t, c, "destroyed", "a", long, -1)
		var once sync.Once
		background(t, func(ctx context.Context) error {
			return e.Run(ctx, func(ctx context.Context, _ consulkit.Term) error {
				<-ctx.Done()
				once.Do(func() { cause = context.Cause(ctx); close(done) })
				return nil
			})
		})
		var session string
		eventually(t, "it leads", func() bool {
			pair, _, err := kv.Get("destroyed", nil)
			if err == nil && pair != nil {
				session = pair.Session
			}
			return session != ""
		})
		if _, err := c.API().Session().Destroy(session, nil); err != nil {
			t.Fatal(err)
		}
		<-done
		if !errors.Is(cause, consulkit.ErrDeposed) {
			t.Errorf("cause = %v, want ErrDeposed", cause)
		}
	})
	t.Run("a leader that is cut off is deposed before another one can lead, which waits for the lock delay", func(t *testing.T) {
		proxy := must[*messagingtest.Proxy](t)(messagingtest.StartProxy(a.addr()))
		t.Cleanup(func() { _ = proxy.Close() })
		th := new(throne)
		cut := election(t, client(t, proxy.Addr()), "cut", "cut", brief, time.Second)
		background(t, func(ctx context.Context) error { return cut.Run(ctx, th.lead("cut")) })
		eventually(t, "it leads", func() bool { leader, _ := th.who(); return leader == "cut" })
		candidate(t, th, "cut", "other", brief)
		proxy.Stall(messagingtest.Both)
		eventually(t, "the other one leads", func() bool { leader, _ := th.who(); return leader == "other" })
		th.check(t) // and at no time both
		proxy.Cut()
		proxy.Heal()
	})
	t.Run("the leader's own end is the end of Run, and it resigns", func(t *testing.T) {
		want := errors.New("no disk")
		for _, want := range []error{want, nil} {
			e := election(t, c, "own", "a", long, time.Minute)
			if err := e.Run(t.Context(), func(context.Context, consulkit.Term) error { return want }); !errors.Is(err, want) {
				t.Errorf("Run = %v, want %v", err, want)
			}
		}
	})
	t.Run("a panic resigns", func(t *testing.T) {
		e := election(t, c, "panic", "a", long, time.Minute)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = e.Run(t.Context(), func(context.Context, consulkit.Term) error { panic("oh") })
		}()
		if _, ok, err := e.Leader(t.Context()); ok || err != nil {
			t.Errorf("Leader = %v, %v, want none", ok, err)
		}
	})
	t.Run("a transaction with the guard of an old term is refused", func(t *testing.T) {
		var terms []consulkit.Term
		for range 2 {
			_ = election(t, c, "guard", "a", long, -1).Run(t.Context(), func(_ context.Context, term consulkit.Term) error {
				terms = append(terms, term)
				for _, old := range terms {
					ok, _, _, err := kv.Txn(api.KVTxnOps{old.Guard(), {Verb: api.KVSet, Key: "guarded", Value: []byte("x")}}, nil)
					if current := old == term; err != nil || ok != current {
						t.Errorf("transaction of term %d in term %d = %v, %v, want %v", old.Token, term.Token, ok, err, current)
					}
				}
				return nil
			})
		}
		if len(terms) != 2 {
			t.Errorf("%d terms, want 2", len(terms))
		}
	})
	t.Run("candidates survive consul's restart", func(t *testing.T) {
		th := new(throne)
		for _, name := range []string{"a", "b"} {
			candidate(t, th, "restart", name, brief)
		}
		eventually(t, "somebody leads", func() bool { leader, _ := th.who(); return leader != "" })
		a.kill(t)
		eventually(t, "nobody leads any more", func() bool { leader, _ := th.who(); return leader == "" })
		a.start(t)
		eventually(t, "somebody leads again", func() bool { leader, _ := th.who(); return leader != "" })
		th.check(t)
	})
}
