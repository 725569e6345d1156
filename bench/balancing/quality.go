// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balancing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	kerrors "github.com/go-kratos/kratos/v2/errors"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/p2c"

	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// Ten instances of four workers each, under calls that come whether or not the earlier ones have
// ended. A call takes 5 to 15 ms.
const (
	instances = 10
	workers   = 4
	perSecond = 1000
	lasting   = 4 * time.Second
)

// world is what is wrong with the first instance.
type world struct {
	name string
	took func(ill bool, healthy time.Duration) time.Duration
	fail bool
}

var worlds = []world{
	{"all well", func(_ bool, d time.Duration) time.Duration { return d }, false},
	{"one of ten 10x slow", func(ill bool, d time.Duration) time.Duration {
		if ill {
			return 10 * d
		}
		return d
	}, false},
	{"one of ten fails in 0.2 ms", func(ill bool, d time.Duration) time.Duration {
		if ill {
			return 200 * time.Microsecond
		}
		return d
	}, true},
}

// A way to balance: it returns the index of an instance, and what to tell at the end.
type way struct {
	name string
	make func(ctx context.Context) (func() (int, func(failed bool)), error)
}

func oursAs(name string, cfg balance.Config) way {
	return way{name, func(ctx context.Context) (func() (int, func(bool)), error) {
		b, err := ours(ctx, cfg, instances)
		if err != nil {
			return nil, err
		}
		index := map[string]int{}
		for i, in := range many(instances) {
			index[in.Addr] = i
		}
		return func() (int, func(bool)) {
			lease, err := b.Pick(ctx)
			if err != nil {
				panic(err)
			}
			return index[lease.Addr()], func(failed bool) {
				if failed {
					lease.Done(fault.Failure)
				} else {
					lease.Done(fault.Success)
				}
			}
		}, nil
	}}
}

func kratosAs(name string, failure error) way {
	return way{name, func(ctx context.Context) (func() (int, func(bool)), error) {
		s := kratos(p2c.NewBuilder(), instances)
		index := map[string]int{}
		for i, in := range many(instances) {
			index[in.Addr] = i
		}
		return func() (int, func(bool)) {
			node, done, err := s.Select(ctx)
			if err != nil {
				panic(err)
			}
			return index[node.Address()], func(failed bool) {
				var info selector.DoneInfo
				if failed {
					info.Err = failure
				}
				done(ctx, info)
			}
		}, nil
	}}
}

// outcome is what callers felt.
type outcome struct {
	errors   float64
	p50, p99 time.Duration
	share    float64 // of the ill one
}

func play(ctx context.Context, w world, by way) (outcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pick, err := by.make(ctx)
	if err != nil {
		return outcome{}, err
	}
	var queues [instances]chan struct{}
	for i := range queues {
		queues[i] = make(chan struct{}, workers)
	}
	var (
		mu        sync.Mutex
		latencies []time.Duration
		failures  int
		ill       int
		calls     sync.WaitGroup
	)
	call := func() {
		start := time.Now()
		i, done := pick()
		queues[i] <- struct{}{}
		time.Sleep(w.took(i == 0, 5*time.Millisecond+rand.N(10*time.Millisecond)))
		<-queues[i]
		failed := w.fail && i == 0
		done(failed)
		took := time.Since(start)
		mu.Lock()
		defer mu.Unlock()
		latencies = append(latencies, took)
		if failed {
			failures++
		}
		if i == 0 {
			ill++
		}
	}
	for start, made := time.Now(), 0; time.Since(start) < lasting; time.Sleep(time.Millisecond) {
		for due := int(time.Since(start).Seconds() * perSecond); made < due; made++ {
			calls.Go(call)
		}
	}
	calls.Wait()
	slices.Sort(latencies)
	n := len(latencies)
	return outcome{float64(failures) / float64(n), latencies[n/2], latencies[n*99/100], float64(ill) / float64(n)}, nil
}

// quality plays every world with every way to balance, in at most three rounds.
func quality(ctx context.Context, stdout, w io.Writer, rounds int) error {
	rounds = min(rounds, 3)
	off := balance.Outlier{Off: true}
	ways := []way{
		oursAs("dovetail, the default (PeakEWMA, ejection)", balance.Config{}),
		oursAs("dovetail LeastRequests, ejection", balance.Config{Picker: balance.LeastRequests{}}),
		oursAs("dovetail RoundRobin, ejection", balance.Config{Picker: balance.RoundRobin{}}),
		oursAs("least requests of two, nothing else (as in gRPC)", balance.Config{Picker: balance.LeastRequests{}, Outlier: off}),
		oursAs("round robin, nothing else", balance.Config{Picker: balance.RoundRobin{}, Outlier: off}),
		kratosAs("kratos p2c, failures are 500", kerrors.New(500, "internal", "")),
		kratosAs("kratos p2c, failures are 503", kerrors.New(503, "unavailable", "")),
		kratosAs("kratos p2c, failures are other errors", errors.New("reset")),
	}
	results := map[string][]outcome{}
	for range rounds {
		for _, world := range worlds {
			for _, way := range ways {
				o, err := play(ctx, world, way)
				if err != nil {
					return err
				}
				key := world.name + "/" + way.name
				results[key] = append(results[key], o)
				fmt.Fprintf(stdout, "BenchmarkQuality/%s\t1\t%.4f error-share\t%d p50-ns\t%d p99-ns\t%.4f ill-share\n", key, o.errors, o.p50.Nanoseconds(), o.p99.Nanoseconds(), o.share)
			}
		}
	}
	median := func(world, way string) outcome {
		all := results[world+"/"+way]
		slices.SortFunc(all, func(a, b outcome) int { return int(a.p99 - b.p99) })
		o := all[len(all)/2]
		slices.SortFunc(all, func(a, b outcome) int {
			if a.errors < b.errors {
				return -1
			}
			return 1
		})
		o.errors = all[len(all)/2].errors
		return o
	}
	fmt.Fprintf(w, "### Quality\n\nTen instances with %d workers each, %d calls per second for %v whether or not the earlier ones have ended, 5 to 15 ms each; medians of %d rounds. The clock decides here, on whatever else the machine does.\n", workers, perSecond, lasting, rounds)
	for _, world := range worlds {
		fmt.Fprintf(w, "\n| %s | errors | p50 | p99 | share of the first instance |\n| --- | ---: | ---: | ---: | ---: |\n", world.name)
		for _, way := range ways {
			o := median(world.name, way.name)
			fmt.Fprintf(w, "| %s | %.2f %% | %.1f ms | %.1f ms | %.1f %% |\n", way.name, 100*o.errors, ms(o.p50), ms(o.p99), 100*o.share)
		}
	}
	def := ways[0].name
	well, slow, fast := median(worlds[0].name, def), median(worlds[1].name, def), median(worlds[2].name, def)
	fmt.Fprint(w, "\n| goal | measured | |\n| --- | ---: | --- |\n")
	fmt.Fprintf(w, "| one of ten fails fast: at most 0.5 %% errors | %.2f %% | %s |\n", 100*fast.errors, verdict(fast.errors <= 0.005))
	fmt.Fprintf(w, "| one of ten 10x slow: p99 within 1.5x of healthy | %.2fx | %s |\n", float64(slow.p99)/float64(well.p99), verdict(float64(slow.p99) <= 1.5*float64(well.p99)))
	fmt.Fprintln(w)
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func verdict(reached bool) string {
	if reached {
		return "reached"
	}
	return "**missed**"
}
