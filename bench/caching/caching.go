// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package caching measures what a cache hit costs, ours and its peers', and what becomes of those who
// wait for a load whose first caller gives up.
package caching

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	rediscache "github.com/go-redis/cache/v9"
	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/dovetail-go/dovetail/bench/internal/run"
	"github.com/dovetail-go/dovetail/cache"
)

// Peers are the modules that are compared with.
var Peers = []string{"github.com/go-redis/cache/v9", "github.com/maypok86/otter/v2", "github.com/dgraph-io/ristretto/v2", "golang.org/x/sync"}

// Report measures hits and then counts who fails when a leader gives up.
func Report(ctx context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	s, closeAll, err := suite(ctx)
	if err != nil {
		return err
	}
	defer closeAll()
	results, err := s.Run(stdout, rounds, each)
	if err != nil {
		return err
	}
	s.Report(w, results)
	return leaders(ctx, w)
}

// product is the value that is kept.
type product struct {
	ID    int
	Name  string
	Price int64
}

// kept is how many keys each cache holds; all fit.
const kept = 4096

var names = func() (names [kept]string) {
	for i := range names {
		names[i] = fmt.Sprintf("product:%08d", i)
	}
	return names
}()

func load(_ context.Context, key string) (product, error) {
	return product{len(key), key, 350}, nil
}

// getter returns the value of a key that is there.
type getter func(key string) (product, error)

func suite(ctx context.Context) (run.Suite, func(), error) {
	s := run.Suite{Title: "Cache, in one process"}
	ours, err := cache.New("products", cache.Config[product]{Size: 2 * kept, TTL: time.Hour})
	if err != nil {
		return s, nil, err
	}
	ot, err := otter.New(&otter.Options[string, product]{MaximumSize: 2 * kept, ExpiryCalculator: otter.ExpiryWriting[string, product](time.Hour)})
	if err != nil {
		return s, nil, err
	}
	ri, err := ristretto.NewCache(&ristretto.Config[string, product]{NumCounters: 20 * kept, MaxCost: 2 * kept, BufferItems: 64, IgnoreInternalCost: true})
	if err != nil {
		return s, nil, err
	}
	re := rediscache.New(&rediscache.Options{LocalCache: rediscache.NewTinyLFU(2*kept, time.Hour)})
	group := &singleflight.Group{}
	loader := otter.LoaderFunc[string, product](load)

	cases := []struct {
		name string
		get  getter
	}{
		{"dovetail", func(key string) (product, error) { return ours.Get(ctx, key, load) }},
		{"otter", func(key string) (product, error) { return ot.Get(ctx, key, loader) }},
		{"ristretto, Get alone", func(key string) (product, error) {
			p, ok := ri.Get(key)
			if !ok {
				return load(ctx, key)
			}
			return p, nil
		}},
		{"go-redis/cache, local", func(key string) (p product, err error) {
			err = re.Once(&rediscache.Item{Ctx: ctx, Key: key, Value: &p, TTL: time.Hour, Do: func(i *rediscache.Item) (any, error) { return load(ctx, i.Key) }})
			return p, err
		}},
		{"singleflight, no cache", func(key string) (product, error) {
			v, err, _ := group.Do(key, func() (any, error) { return load(ctx, key) })
			return v.(product), err
		}},
	}
	for _, name := range names {
		p, _ := load(ctx, name)
		ri.SetWithTTL(name, p, 1, time.Hour)
	}
	ri.Wait()
	for _, c := range cases {
		for _, name := range names {
			if p, err := c.get(name); err != nil || p.Name != name {
				return s, nil, errors.Join(err, fmt.Errorf("%s: get(%s) = %v, want that product", c.name, name, p))
			}
		}
	}
	for _, c := range cases {
		s.Cases = append(s.Cases, run.Case{Group: "Hit", Name: c.name, Bench: func(b *testing.B) {
			i := 0
			for b.Loop() {
				if _, err := c.get(names[i%kept]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		}})
	}
	for _, c := range cases {
		s.Cases = append(s.Cases, run.Case{Group: "Hit on all processors, half of them of one key", Name: c.name, Bench: func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					n := 0
					if i%2 == 0 {
						n = i % kept
					}
					if _, err := c.get(names[n]); err != nil {
						b.Fail()
					}
				}
			})
		}})
	}
	const why = "the clock, which tells the age and the time to refresh, is about half of a hit"
	for _, group := range []string{"Hit", "Hit on all processors, half of them of one key"} {
		s.Goals = append(s.Goals,
			run.Goal{What: group + ": <= 1.5x otter's", Group: group, Ours: "dovetail", Theirs: "otter", Most: 1.5, Why: why},
			run.Goal{What: group + ": <= 1/3 of go-redis/cache's", Group: group, Ours: "dovetail", Theirs: "go-redis/cache, local", Most: 1. / 3},
		)
	}
	return s, func() { ri.Close(); ot.StopAllGoroutines() }, nil
}

const (
	waiting  = 99
	deadline = 20 * time.Millisecond
	takes    = 200 * time.Millisecond
)

// leaders has one caller begin a load and give up after 20 ms, while 99 others with time enough wait for
// the same key.
func leaders(ctx context.Context, w io.Writer) error {
	// A load listens to its context, as a query of a database does.
	var loads atomic.Int64
	slow := func(ctx context.Context, key string) (product, error) {
		loads.Add(1)
		select {
		case <-time.After(takes):
			return load(ctx, key)
		case <-ctx.Done():
			return product{}, ctx.Err()
		}
	}
	ours, err := cache.New("products", cache.Config[product]{})
	if err != nil {
		return err
	}
	ot, err := otter.New(&otter.Options[string, product]{MaximumSize: kept})
	if err != nil {
		return err
	}
	defer ot.StopAllGoroutines()
	re := rediscache.New(&rediscache.Options{LocalCache: rediscache.NewTinyLFU(kept, time.Hour)})
	group := &singleflight.Group{}

	fmt.Fprintf(w, "### A leader that gives up\n\nA load takes %v. Its first caller gives up after %v, while %d others wait who have time. "+
		"The last column is how long one more caller with a deadline of %v waits.\n\n| | of %d fail | loads | returns after |\n| --- | ---: | ---: | ---: |\n", takes, deadline, waiting, deadline, waiting)
	for _, c := range []struct {
		name string
		get  func(ctx context.Context, key string) error
	}{
		{"dovetail", func(ctx context.Context, key string) error { _, err := ours.Get(ctx, key, slow); return err }},
		{"otter", func(ctx context.Context, key string) error {
			_, err := ot.Get(ctx, key, otter.LoaderFunc[string, product](slow))
			return err
		}},
		{"go-redis/cache, local", func(ctx context.Context, key string) error {
			var p product
			return re.Once(&rediscache.Item{Ctx: ctx, Key: key, Value: &p, TTL: time.Hour, Do: func(i *rediscache.Item) (any, error) { return slow(ctx, i.Key) }})
		}},
		{"singleflight", func(ctx context.Context, key string) error {
			_, err, _ := group.Do(key, func() (any, error) { return slow(ctx, key) })
			return err
		}},
	} {
		loads.Store(0)
		var failed atomic.Int64
		var wg sync.WaitGroup
		short, cancel := context.WithTimeout(ctx, deadline)
		wg.Go(func() { _ = c.get(short, "k") })
		for loads.Load() == 0 {
			time.Sleep(time.Millisecond / 4)
		}
		for range waiting {
			wg.Go(func() {
				if c.get(ctx, "k") != nil {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
		cancel()
		all := loads.Load()

		// The other way round: somebody else leads, and the one who waits has little time.
		wg.Go(func() { _ = c.get(ctx, "other") })
		for loads.Load() == all {
			time.Sleep(time.Millisecond / 4)
		}
		short, cancel = context.WithTimeout(ctx, deadline)
		began := time.Now()
		_ = c.get(short, "other")
		late := time.Since(began)
		wg.Wait()
		cancel()
		fmt.Fprintf(w, "| %s | %d | %d | %d ms |\n", c.name, failed.Load(), all, late.Milliseconds())
	}
	return nil
}
