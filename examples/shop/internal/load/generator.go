// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// MaxRate is the largest rate of a [Generator], in orders per second.
const MaxRate = 200

// Counts are what a [Generator] has done since it was made.
type Counts struct {
	// Rate is how many orders it is to place a second.
	Rate float64 `json:"rate"`
	// Placed are the orders that were sent, Accepted those that the shop took.
	Placed   int64 `json:"placed"`
	Accepted int64 `json:"accepted"`
	// Confirmed and Refused are the orders that have ended: as they should, or rejected, cancelled, or
	// refused at once.
	Confirmed int64 `json:"confirmed"`
	Refused   int64 `json:"refused"`
	// Failed are those that brought no answer, or did not end, for all the patience.
	Failed int64 `json:"failed"`
	// Retries are the requests that had to be made again.
	Retries int64 `json:"retries"`
	// InFlight are the customers who wait for something at present.
	InFlight int64 `json:"in_flight"`
}

const (
	// crowd is how many customers there are at most. When all of them wait for the end of an order, nobody is
	// left to place another: the rate is not reached, and the shop is not buried.
	crowd = 200
	// longPatience is for outages that last as long as somebody likes to watch them.
	longPatience = 15 * time.Minute
	// customerFor is how long a customer keeps coming: tokens do not last for ever.
	customerFor = 20 * time.Minute
)

// Generator drives a shop at a steady rate that can be changed, until it is told to stop. It is for use by many
// goroutines.
type Generator struct {
	url string
	log *slog.Logger

	changed chan struct{} // has room for one
	mu      sync.Mutex
	counts  Counts
	idle    []*customer
	people  int
	driver  *driver
}

// NewGenerator returns a generator at rest for the shop at url, which has no slash at the end.
func NewGenerator(url string, log *slog.Logger) (*Generator, error) {
	g := &Generator{url: url, log: log, changed: make(chan struct{}, 1)}
	var err error
	if g.driver, err = newDriver(url, crowd, longPatience, g); err != nil {
		return nil, err
	}
	g.driver.slowest = time.Second
	return g, nil
}

// UseTLS says how an https URL is to be verified; nil is by the system's authorities. It must come before Run.
func (g *Generator) UseTLS(cfg *tls.Config) {
	g.driver.client.Transport.(*http.Transport).TLSClientConfig = cfg
}

// SetRate makes it place so many orders a second, 0 to [MaxRate].
func (g *Generator) SetRate(rate float64) {
	g.mu.Lock()
	g.counts.Rate = min(max(rate, 0), MaxRate)
	g.mu.Unlock()
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// Counts returns what was done so far.
func (g *Generator) Counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.counts
	c.Retries = g.driver.retries.Load()
	return c
}

// Run drives the shop until ctx ends. It may be called once.
func (g *Generator) Run(ctx context.Context) error {
	defer g.driver.close()
	var visits sync.WaitGroup
	defer visits.Wait()
	var next time.Time
	for ctx.Err() == nil {
		rate := g.Counts().Rate
		if rate == 0 {
			next = time.Time{}
			select {
			case <-ctx.Done():
			case <-g.changed:
			}
			continue
		}
		now := time.Now()
		if next.IsZero() || now.Sub(next) > time.Second { // what was missed is not made up for
			next = now
		}
		if wait := next.Sub(now); wait > 0 {
			select {
			case <-ctx.Done():
			case <-g.changed:
				next = time.Time{}
			case <-time.After(wait):
			}
			continue
		}
		next = next.Add(time.Duration(float64(time.Second) / rate))
		if c := g.somebody(); c != nil {
			visits.Go(func() { g.visit(ctx, c) })
		}
	}
	return nil
}

// somebody returns a customer who has time, nil if there is none.
func (g *Generator) somebody() *customer {
	g.mu.Lock()
	defer g.mu.Unlock()
	var c *customer
	switch n := len(g.idle); {
	case n > 0:
		c = g.idle[n-1]
		g.idle = g.idle[:n-1]
	case g.people < crowd:
		g.people++
		c = new(customer)
	default:
		return nil
	}
	g.counts.InFlight++
	return c
}

func (g *Generator) visit(ctx context.Context, c *customer) {
	err := g.shop(ctx, c)
	g.mu.Lock()
	g.counts.InFlight--
	if err == nil {
		g.idle = append(g.idle, c)
	} else {
		g.people-- // whoever comes next signs up anew
	}
	failed := err != nil && ctx.Err() == nil
	if failed {
		g.counts.Failed++
	}
	g.mu.Unlock()
	if failed {
		g.log.WarnContext(ctx, "a customer of the load gave up", "error", err)
	}
}

func (g *Generator) shop(ctx context.Context, c *customer) error {
	if time.Since(c.since) > customerFor {
		known, err := g.driver.signUp(ctx, 0)
		if err != nil {
			return err
		}
		*c = *known
	}
	if err := g.products(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	g.counts.Placed++
	g.mu.Unlock()
	return g.driver.shop(ctx, c)
}

// products finds out once what there is to buy.
func (g *Generator) products(ctx context.Context) error {
	g.mu.Lock()
	known := len(g.driver.products) > 0
	g.mu.Unlock()
	if known {
		return nil
	}
	found := &driver{url: g.driver.url, client: g.driver.client, retrier: g.driver.retrier}
	if err := found.findProducts(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.driver.products) == 0 {
		g.driver.products = found.products
	}
	return nil
}

func (g *Generator) accepted(string, time.Duration) { g.count(func(c *Counts) { c.Accepted++ }) }
func (g *Generator) refused(string)                 { g.count(func(c *Counts) { c.Refused++ }) }
func (g *Generator) unfinished(string)              { g.count(func(c *Counts) { c.Failed++ }) }

func (g *Generator) repeated(mismatch string) {
	if mismatch != "" {
		g.log.Error("a repeated order was answered differently", "what", mismatch)
	}
}

func (g *Generator) ended(_, status string, _ time.Duration) {
	g.count(func(c *Counts) {
		if status == "confirmed" || status == "dispatched" {
			c.Confirmed++
		} else {
			c.Refused++
		}
	})
}

func (g *Generator) count(change func(c *Counts)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.counts)
}
