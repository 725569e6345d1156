// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discoverytest_test

import (
	"context"
	"iter"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/discoverymem"
	"github.com/dovetail-go/dovetail/discovery/discoverytest"
)

// The broken implementations below fail on purpose: the test runs itself as another process
// with this variable set, and looks at what it reports.
const brokenEnv = "DOVETAIL_DISCOVERYTEST_BROKEN"

// kratosLike has two faults seen in the field: the empty set is never yielded, and errors are
// kept back.
type kratosLike struct{ discovery.Resolver }

func (r kratosLike) Watch(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		for set, err := range r.Resolver.Watch(ctx, service) {
			if err != nil || len(set.Instances) == 0 {
				continue
			}
			if !yield(set, nil) {
				return
			}
		}
	}
}

// leaky leaves a goroutine behind at each watch.
type leaky struct{ discovery.Resolver }

func (r leaky) Watch(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
	go func() { select {} }()
	return r.Resolver.Watch(ctx, service)
}

// forgetful has leases that never notice anything.
type forgetful struct{ discovery.Registry }

type forgetfulLease struct{ discovery.Lease }

func (r forgetful) Register(ctx context.Context, in discovery.Instance) (discovery.Lease, error) {
	l, err := r.Registry.Register(ctx, in)
	return forgetfulLease{l}, err
}

func (l forgetfulLease) Renew(ctx context.Context, h discovery.Health) error {
	_ = l.Lease.Renew(ctx, discovery.Health{})
	return nil
}

func source(t *testing.T, wrap func(discovery.Resolver) discovery.Resolver) discoverytest.Source {
	static, err := discovery.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	return discoverytest.Source{
		Resolver: wrap(static),
		Within:   200 * time.Millisecond,
		Put: func(t *testing.T, service string, instances ...discovery.Instance) {
			if err := static.Set(service, instances...); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestBroken(t *testing.T) {
	switch os.Getenv(brokenEnv) {
	case "":
	case "kratosLike":
		discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
			return source(t, func(r discovery.Resolver) discovery.Resolver { return kratosLike{r} })
		})
		return
	case "leaky":
		discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
			return source(t, func(r discovery.Resolver) discovery.Resolver { return leaky{r} })
		})
		return
	case "forgetful":
		discoverytest.Registry(t, func(t *testing.T) discoverytest.Registered {
			registry, err := discoverymem.New(discoverymem.Config{TTL: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			return discoverytest.Registered{
				Registry: forgetful{registry}, Resolver: registry, TTL: 50 * time.Millisecond, Within: 200 * time.Millisecond,
				Forget: func(*testing.T) { registry.Forget() },
			}
		})
		return
	}
	for broken, want := range map[string][]string{
		"kratosLike": {
			"a_service_without_instances_is_an_empty_set_and_no_error",
			"the_end_of_the_last_instance_is_an_empty_set",
			"an_empty_service_name_is_an_error",
		},
		"leaky": {"a_watch_leaves_no_goroutine_behind"},
		"forgetful": {
			"a_failing_instance_is_not_seen_until_it_passes_again",
			"a_registry_that_lost_its_state_says_so_at_the_next_renewal,_and_takes_the_instance_anew",
			"an_instance_that_is_not_renewed_is_gone_after_the_time_to_live",
		},
	} {
		t.Run(broken, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBroken$")
			cmd.Env = append(os.Environ(), brokenEnv+"="+broken)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the suite passes, want it to fail")
			}
			for _, sentence := range want {
				if !strings.Contains(string(out), "--- FAIL: TestBroken/"+sentence) {
					t.Errorf("the suite does not fail %q:\n%s", sentence, out)
				}
			}
		})
	}
}
