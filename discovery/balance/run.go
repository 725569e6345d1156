// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
)

// word is a word of the resolver.
type word struct {
	set discovery.Set
	err error
}

// Run follows the resolver, ejects and returns instances, and probes them, until ctx is done; then it
// returns nil. Picks go on after that with the instances known last. It may run once.
func (b *Balancer) Run(ctx context.Context) error {
	if !b.state.CompareAndSwap(idle, running) {
		return errors.New("balance: Balancer.Run may run once only")
	}
	var helpers sync.WaitGroup
	defer helpers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	words := make(chan word)
	helpers.Go(func() { b.follow(ctx, words) })
	if b.cfg.Probe.Check != nil {
		helpers.Go(func() { b.probe(ctx) })
	}
	heard := false
	defer func() {
		b.state.Store(ended)
		if !heard {
			close(b.firstWord)
		}
	}()

	interval := int64(b.cfg.Outlier.Interval)
	compareAt := b.now() + interval
	timer := time.NewTimer(b.cfg.Outlier.Interval)
	defer timer.Stop()
	for {
		var got *word
		select {
		case <-ctx.Done():
			return nil
		case w := <-words:
			got = &w
		case <-b.changed:
		case <-timer.C:
		}
		now := b.now()
		var events []func()
		b.mu.Lock()
		dirty := false
		if got != nil {
			dirty = b.learn(*got, now)
		}
		expired := b.emptyAt != 0 && now >= b.emptyAt
		if expired {
			b.apply(b.empty, now)
		}
		if e := (Change{b.set, b.err}); (got != nil || expired) && b.cfg.Hooks.Change != nil {
			events = append(events, func() { b.cfg.Hooks.Change(e) })
		}
		if now >= compareAt {
			b.compare(now)
			compareAt = now + interval
		}
		changed := b.review(now)
		warming := b.warming(now)
		if dirty || expired || changed || warming {
			events = append(events, b.rebuild(now)...)
		}
		wake := min(compareAt, b.nextReturn())
		if b.emptyAt != 0 {
			wake = min(wake, b.emptyAt)
		}
		if warming {
			wake = min(wake, now+int64(b.cfg.SlowStart)/20)
		}
		b.mu.Unlock()
		if got != nil && !heard {
			heard = true
			close(b.firstWord)
		}
		for _, event := range events {
			event()
		}
		timer.Reset(time.Duration(max(wake-b.now(), 1)))
	}
}

// nextReturn is when the next ejection ends.
func (b *Balancer) nextReturn() int64 {
	next := int64(math.MaxInt64)
	for _, n := range b.nodes {
		if n.out {
			next = min(next, n.until)
		}
	}
	return next
}

// warming reports whether the weights change now because of a slow start, and ends those that
// are complete.
func (b *Balancer) warming(now int64) bool {
	changes := false
	for _, n := range b.nodes {
		if n.warming {
			changes = true
			n.warming = now-n.warmFrom < int64(b.cfg.SlowStart)
		}
	}
	return changes
}

// follow sends the words of the resolver. A watch should end with ctx only; one that ends earlier is
// begun again.
func (b *Balancer) follow(ctx context.Context, words chan<- word) {
	for {
		for set, err := range b.resolver.Watch(ctx, b.service) {
			select {
			case words <- word{set, err}:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(time.Second/2 + rand.N(time.Second)):
		case <-ctx.Done():
			return
		}
	}
}

// learn takes a word of the resolver, and reports whether the instances have changed.
func (b *Balancer) learn(w word, now int64) (changed bool) {
	b.err = w.err
	switch {
	case w.set.Service == "": // nothing but an error: the set that is known goes on
		if b.set.Service != "" && !b.set.Stale {
			b.set.Stale, b.set.At = true, time.Now()
		}
	case len(w.set.Instances) == 0 && len(b.nodes) > 0 && b.cfg.KeepOnEmpty > 0:
		if b.emptyAt == 0 {
			b.emptyAt = now + int64(b.cfg.KeepOnEmpty)
		}
		b.empty = w.set
	case b.set.Same(w.set):
		b.set, b.emptyAt = w.set, 0
	default:
		b.apply(w.set, now)
		return true
	}
	return false
}

// apply makes the nodes those of the set. What is known of an instance stays with it while its ID and
// its address are the same.
func (b *Balancer) apply(set discovery.Set, now int64) {
	known := b.set.Service != ""
	b.set, b.emptyAt = set, 0
	latency, heard := 0.0, 0
	for _, n := range b.nodes {
		if l, ok := n.typical(now); ok {
			latency += l
			heard++
		}
	}
	nodes := make(map[string]*node, len(set.Instances))
	for _, in := range set.Instances {
		if old := b.nodes[in.ID]; old != nil && old.info.Load().Addr == in.Addr {
			old.info.Store(&in)
			nodes[in.ID] = old
			continue
		}
		n := &node{all: b.inflight, decay: b.decay, since: now}
		n.info.Store(&in)
		n.seen.Store(now)
		if heard > 0 {
			// A newcomer is taken for an average instance, not for an infinitely fast one.
			n.latency.Store(math.Float64bits(latency / float64(heard)))
		}
		n.warming, n.warmFrom = known && b.cfg.SlowStart > 0, now
		nodes[in.ID] = n
	}
	b.nodes = nodes
}
