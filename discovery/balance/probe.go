// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
)

// Probe is an active health check. An instance that fails it is left out until it passes, under
// the rules of [Outlier] for the share of those left out.
type Probe struct {
	// Check returns an error if the instance should not be used. Nil means no probes. See
	// [HTTPCheck].
	Check func(ctx context.Context, in discovery.Instance) error
	// Every is the time between two probes of an instance. Zero means 5 seconds.
	Every time.Duration
	// Timeout bounds one probe. Zero means 1 second.
	Timeout time.Duration
	// Failures is the number of failures in a row that leaves an instance out. Zero means 2.
	Failures int
}

func (p Probe) withDefaults() Probe {
	p.Every = cmp.Or(p.Every, 5*time.Second)
	p.Timeout = cmp.Or(p.Timeout, time.Second)
	p.Failures = max(cmp.Or(p.Failures, 2), 1)
	return p
}

// HTTPCheck returns a check for [Probe] that wants a 2xx answer to GET path. A nil client
// means http.DefaultClient.
func HTTPCheck(client *http.Client, path string) func(context.Context, discovery.Instance) error {
	client = cmp.Or(client, http.DefaultClient)
	return func(ctx context.Context, in discovery.Instance) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+in.Addr+path, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("balance: probe of %s: status %d, want 2xx", in.Addr, resp.StatusCode)
		}
		return nil
	}
}

// probe checks all instances, again and again, until ctx is done.
func (b *Balancer) probe(ctx context.Context) {
	cfg := &b.cfg.Probe
	for {
		b.mu.Lock()
		nodes := make([]*node, 0, len(b.nodes))
		for _, n := range b.nodes {
			nodes = append(nodes, n)
		}
		b.mu.Unlock()
		var probes sync.WaitGroup
		atOnce := make(chan struct{}, 16)
		for _, n := range nodes {
			atOnce <- struct{}{}
			probes.Go(func() {
				defer func() { <-atOnce }()
				ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
				defer cancel()
				n.probed(cfg.Check(ctx, *n.info.Load()), cfg.Failures, b.now())
			})
		}
		probes.Wait()
		select {
		case b.changed <- struct{}{}:
		default:
		}
		timer := time.NewTimer(cfg.Every - cfg.Every/10 + rand.N(cfg.Every/5+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// probed takes the result of a probe.
func (n *node) probed(err error, failures int, now int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.probe++
		if n.probe >= failures && n.suspect == "" {
			n.suspect, n.since = reasonProbe, now
		}
		return
	}
	n.probe = 0
	if n.suspect == reasonProbe {
		n.suspect, n.since = "", now
	}
}
