// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cachetest_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/cache/cachetest"
)

func TestStore(t *testing.T) {
	cachetest.RunStore(t, func(*testing.T) cache.Store { return cachetest.NewStore() })
}

// brokenEnv selects one of the broken implementations, in a process of its own: a failing suite
// fails the test that it runs in.
const brokenEnv = "DOVETAIL_CACHETEST_BROKEN"

var broken = map[string]struct {
	store func(*cachetest.Store) cache.Store
	must  []string
}{
	"puts without asking for the lease": {
		func(s *cachetest.Store) cache.Store { return unfenced{s} },
		[]string{
			"without the lease nothing is put", "a lease is for one put", "a load that began before a delete puts nothing",
			"a lease that ran out is given to another, and its first owner puts nothing",
		},
	},
	"gives everybody the lease": {
		func(s *cachetest.Store) cache.Store { return generous{s} },
		[]string{"of many callers at once one gets the lease", "while one has the lease others are told how long at most"},
	},
	"deletes for every event": {
		func(s *cachetest.Store) cache.Store { return forgetful{s} },
		[]string{"a second delete for the same event leaves what was loaded since"},
	},
	"never gives a lease early": {
		func(s *cachetest.Store) cache.Store { return late{s} },
		[]string{"a fresh value gives the lease to one who asks early enough"},
	},
}

// unfenced is a plain SET.
type unfenced struct{ *cachetest.Store }

func (u unfenced) Put(ctx context.Context, key, token string, it cache.Item) (bool, error) {
	if ok, err := u.Store.Put(ctx, key, token, it); ok || err != nil {
		return ok, err
	}
	_ = u.Delete(ctx, "", key)
	h, _ := u.Take(ctx, key, cache.Ask{Lease: 1})
	return u.Store.Put(ctx, key, h.Token, it)
}

type generous struct{ *cachetest.Store }

func (g generous) Take(ctx context.Context, key string, ask cache.Ask) (cache.Held, error) {
	ask.Lease = 0
	return g.Store.Take(ctx, key, ask)
}

type forgetful struct{ *cachetest.Store }

func (f forgetful) Delete(ctx context.Context, _ string, keys ...string) error {
	return f.Store.Delete(ctx, "", keys...)
}

type late struct{ *cachetest.Store }

func (l late) Take(ctx context.Context, key string, ask cache.Ask) (cache.Held, error) {
	ask.Early = 0
	return l.Store.Take(ctx, key, ask)
}

func TestSuiteCanFail(t *testing.T) {
	if name := os.Getenv(brokenEnv); name != "" {
		cachetest.RunStore(t, func(*testing.T) cache.Store { return broken[name].store(cachetest.NewStore()) })
		return
	}
	for name, b := range broken {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuiteCanFail$", "-test.v", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("the suite passes")
			}
			for _, sentence := range b.must {
				if !strings.Contains(string(out), "--- FAIL: TestSuiteCanFail/"+strings.ReplaceAll(sentence, " ", "_")+" ") {
					t.Errorf("%q does not fail", sentence)
				}
			}
			if !bytes.Contains(out, []byte("--- PASS: TestSuiteCanFail/")) {
				t.Error("nothing passes: the implementation is broken otherwise than meant")
			}
			if t.Failed() {
				t.Logf("output:\n%s", out)
			}
		})
	}
}
