// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package load drives a shop as many customers would: they browse, order, pay in every
// way the provider knows, change their minds, and press the button twice. It keeps at it
// through outages: a request that brought no answer is repeated with the same Idempotency-Key.
package load

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/retry"
)

// Config says how much to drive.
type Config struct {
	// URL is the gateway's, without a slash at the end.
	URL string
	// Orders is how many orders are placed in all.
	Orders int
	// Concurrency is how many customers are busy at once.
	Concurrency int
	// Patience is how long an order may take to its end, and a request to get its answer,
	// through every outage. Zero means 2 minutes.
	Patience time.Duration
	// Progress, if not nil, is called from many goroutines when an order has ended.
	Progress func()
	// Waiting, if not nil, is called once, with the reason, if the shop does not answer at the very beginning.
	Waiting func(err error)
}

// Report is what happened.
type Report struct {
	// Accepted are the orders that the shop answered with 202, by ID.
	Accepted []string `json:"accepted"`
	// Ended counts the accepted orders by the state they ended in.
	Ended map[string]int `json:"ended"`
	// Unfinished are accepted orders that did not end in time.
	Unfinished []string `json:"unfinished"`
	// Left are accepted orders whose end nobody waited for, because the run was cut short.
	Left []string `json:"left"`
	// Refused counts requests answered with a final no, by problem code.
	Refused map[string]int `json:"refused"`
	// Repeats counts orders sent again although they had been answered.
	Repeats int `json:"repeats"`
	// Mismatches are repeats that brought another answer than the first time.
	Mismatches []string `json:"mismatches"`
	// Retries counts the requests that had to be made again.
	Retries int64 `json:"retries"`
	// Accept is how long it took until an order was accepted, Finish until it had ended.
	Accept Latency `json:"accept"`
	Finish Latency `json:"finish"`
	// Elapsed is how long all of it took.
	Elapsed time.Duration `json:"elapsed_ns"`
}

// Latency is a distribution of times.
type Latency struct {
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

// OK reports whether every order was accepted or refused, ended, and answered the same twice.
func (r *Report) OK() bool { return len(r.Unfinished) == 0 && len(r.Mismatches) == 0 }

// mix is how customers pay, by weight.
var mix = []struct {
	method string
	weight int
}{
	{"pm_visa", 860}, {"pm_declined", 50}, {"pm_insufficient_funds", 40}, {"pm_flaky", 30}, {"pm_slow", 10}, {"pm_timeout_after_charge", 10},
}

// Shares of orders that are sent twice, that are cancelled as soon as they were accepted, and of the confirmed ones
// those that are cancelled then: they have been paid, and are refunded unless the parcel has left.
const (
	repeatShare = 0.05
	cancelShare = 0.03
	regretShare = 0.03
)

// driver is what customers have in common: the shop, and how patient they are.
type driver struct {
	url      string
	client   *http.Client
	patience time.Duration
	retrier  *retry.Retrier
	retries  atomic.Int64
	products []string
	waiting  func(err error) // nil once the shop has answered
	// slowest is the longest pause between two looks at an order.
	slowest time.Duration
	told    listener
}

// listener is told what becomes of orders, by many goroutines.
type listener interface {
	accepted(id string, took time.Duration)
	refused(code string)
	repeated(mismatch string) // empty if the answer was the same
	ended(id, status string, took time.Duration)
	unfinished(id string)
}

// newDriver returns what drives the shop at url by up to so many customers at once.
func newDriver(url string, concurrency int, patience time.Duration, told listener) (*driver, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, concurrency
	d := &driver{url: url, client: &http.Client{Transport: transport, Timeout: 15 * time.Second}, patience: patience, slowest: 250 * time.Millisecond, told: told}
	var err error
	d.retrier, err = retry.New(retry.Config{
		Attempts: -1, Base: 50 * time.Millisecond, Max: time.Second, Elapsed: patience, Budget: retry.Unlimited,
		Hooks: retry.Hooks{Retry: func(r retry.Retrying) {
			if d.retries.Add(1) == 1 && d.waiting != nil {
				d.waiting(r.Err)
			}
		}},
	})
	return d, err
}

func (d *driver) close() { d.client.CloseIdleConnections() }

// tally makes the report of a run.
type tally struct {
	mu             sync.Mutex
	report         Report
	open           map[string]bool // accepted and not ended
	accept, finish []time.Duration
}

func newTally() *tally {
	return &tally{report: Report{
		Accepted: []string{}, Ended: map[string]int{}, Unfinished: []string{}, Refused: map[string]int{}, Mismatches: []string{},
	}, open: map[string]bool{}}
}

func (t *tally) accepted(id string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Accepted = append(t.report.Accepted, id)
	t.open[id] = true
	t.accept = append(t.accept, took)
}

func (t *tally) refused(code string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Refused[code]++
}

func (t *tally) repeated(mismatch string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Repeats++
	if mismatch != "" {
		t.report.Mismatches = append(t.report.Mismatches, mismatch)
	}
}

func (t *tally) ended(id, status string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, id)
	t.report.Ended[status]++
	t.finish = append(t.finish, took)
}

func (t *tally) unfinished(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, id)
	t.report.Unfinished = append(t.report.Unfinished, id)
}

// Run places cfg.Orders orders and waits for the end of each. If it is cut short, by ctx or because the shop does not
// answer for all the patience, it returns an error and the report of what was done until then.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Orders < 1 {
		return nil, fmt.Errorf("load: Config.Orders is %d, want 1 or more", cfg.Orders)
	}
	if cfg.Concurrency < 1 || cfg.Concurrency > 1000 {
		return nil, fmt.Errorf("load: Config.Concurrency is %d, want 1 to 1000", cfg.Concurrency)
	}
	if cfg.Patience == 0 {
		cfg.Patience = 2 * time.Minute
	}
	t := newTally()
	d, err := newDriver(cfg.URL, cfg.Concurrency, cfg.Patience, t)
	if err != nil {
		return nil, err
	}
	return run(ctx, cfg, d, t)
}

func run(ctx context.Context, cfg Config, d *driver, t *tally) (*Report, error) {
	defer d.close()
	start := time.Now()
	d.waiting = cfg.Waiting
	if err := d.findProducts(ctx); err != nil {
		return nil, fmt.Errorf("load: %s: %w", cfg.URL, err)
	}
	d.waiting = nil
	g, gctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for i := range cfg.Concurrency {
		g.Go(func() error {
			c, err := d.signUp(gctx, i)
			if err != nil {
				return fmt.Errorf("load: customer %d: %w", i, err)
			}
			for int(next.Add(1)) <= cfg.Orders {
				if err := d.shop(gctx, c); err != nil {
					return fmt.Errorf("load: customer %d: %w", i, err)
				}
				if cfg.Progress != nil {
					cfg.Progress()
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("load: interrupted: %w", context.Cause(ctx))
	}
	t.report.Left = slices.AppendSeq([]string{}, maps.Keys(t.open))
	slices.Sort(t.report.Left)
	t.report.Elapsed = time.Since(start)
	t.report.Retries = d.retries.Load()
	t.report.Accept, t.report.Finish = latency(t.accept), latency(t.finish)
	return &t.report, err
}

// call makes a request as often as it takes to get an answer.
func (d *driver) call(ctx context.Context, c *customer, method, path string, key string, in, out any) error {
	return d.retrier.Do(ctx, func(ctx context.Context) error {
		return (&platform.Caller{Client: d.client, Token: c.token}).Do(ctx, method, d.url+path, func(h http.Header) {
			if key != "" {
				h.Set("Idempotency-Key", key)
			}
			if c.token == "" {
				h.Del("Authorization")
			}
		}, in, out)
	})
}

func (d *driver) findProducts(ctx context.Context) error {
	for page := 1; page != 0; {
		var out struct {
			Items []struct{ ID string }
			Next  int
		}
		if err := d.call(ctx, &customer{}, http.MethodGet, fmt.Sprintf("/api/products?page=%d", page), "", nil, &out); err != nil {
			return err
		}
		for _, p := range out.Items {
			d.products = append(d.products, p.ID)
		}
		page = out.Next
	}
	if len(d.products) == 0 {
		return errors.New("the catalogue is empty")
	}
	return nil
}

// customer is one busy customer.
type customer struct {
	token string
	since time.Time
}

// signUp makes a new customer. Cut off by an outage it may have worked without an answer, so
// an address that is taken is as good.
func (d *driver) signUp(ctx context.Context, i int) (*customer, error) {
	email, password := fmt.Sprintf("load-%s-%d@shop.example", kernel.NewID(), i), "load-password"
	err := d.call(ctx, &customer{}, http.MethodPost, "/api/customers", "", map[string]string{"name": fmt.Sprintf("Customer %d", i), "email": email, "password": password}, nil)
	if code := refusal(err); err != nil && code != "email-taken" {
		return nil, err
	}
	var session struct{ Token string }
	err = d.call(ctx, &customer{}, http.MethodPost, "/api/sessions", "", map[string]string{"email": email, "password": password}, &session)
	return &customer{token: session.Token, since: time.Now()}, err
}

type item struct {
	ProductID string `json:"product_id"`
	Quantity  int    `json:"quantity"`
}

type basket struct {
	Items         []item `json:"items"`
	PaymentMethod string `json:"payment_method"`
}

type accepted struct{ ID, Status string }

// shop is one visit: look around, order, sometimes twice, sometimes to cancel, wait for the end, and sometimes
// regret it.
func (d *driver) shop(ctx context.Context, c *customer) error {
	if err := d.call(ctx, c, http.MethodGet, "/api/products/"+d.products[rand.IntN(len(d.products))], "", nil, nil); err != nil {
		return err
	}
	order, key := d.fill(), kernel.NewID()
	start := time.Now()
	var first accepted
	err := d.call(ctx, c, http.MethodPost, "/api/orders", key, order, &first)
	if code := refusal(err); code != "" {
		d.told.refused(code)
		return nil
	}
	if err != nil {
		return err
	}
	d.told.accepted(first.ID, time.Since(start))
	if rand.Float64() < repeatShare {
		if err := d.repeat(ctx, c, key, order, first); err != nil {
			return err
		}
	}
	if rand.Float64() < cancelShare {
		if err := d.cancel(ctx, c, first.ID); err != nil {
			return err
		}
	}
	status, err := d.await(ctx, c, first.ID, start)
	if err == nil && status == "confirmed" && rand.Float64() < regretShare {
		err = d.cancel(ctx, c, first.ID)
	}
	return err
}

// cancel asks for an order's cancellation, which may come too late.
func (d *driver) cancel(ctx context.Context, c *customer, id string) error {
	err := d.call(ctx, c, http.MethodPost, "/api/orders/"+id+"/cancel", kernel.NewID(), nil, nil)
	if refusal(err) != "" {
		return nil
	}
	return err
}

func (d *driver) fill() basket {
	b := basket{}
	for _, i := range rand.Perm(len(d.products))[:1+rand.IntN(min(3, len(d.products)))] {
		b.Items = append(b.Items, item{d.products[i], 1 + rand.IntN(2)})
	}
	at := rand.IntN(1000)
	for _, m := range mix {
		if at -= m.weight; at < 0 {
			b.PaymentMethod = m.method
			break
		}
	}
	return b
}

func (d *driver) repeat(ctx context.Context, c *customer, key string, order basket, first accepted) error {
	var again accepted
	if err := d.call(ctx, c, http.MethodPost, "/api/orders", key, order, &again); err != nil {
		return err
	}
	mismatch := ""
	if again != first {
		mismatch = fmt.Sprintf("key %s: first %s, then %s", key, first.ID, again.ID)
	}
	d.told.repeated(mismatch)
	return nil
}

// await polls an order until it has ended. Cancellation may still follow a confirmation; the
// report counts what was seen first, and that is returned.
func (d *driver) await(ctx context.Context, c *customer, id string, start time.Time) (status string, err error) {
	deadline := time.Now().Add(d.patience)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, d.slowest) {
		var order struct{ Status string }
		if err := d.call(ctx, c, http.MethodGet, "/api/orders/"+id, "", nil, &order); err != nil {
			return "", err
		}
		switch order.Status {
		case "confirmed", "rejected", "cancelled", "dispatched":
			d.told.ended(id, order.Status, time.Since(start))
			return order.Status, nil
		}
		if time.Now().After(deadline) {
			d.told.unfinished(id)
			return "", nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(wait):
		}
	}
}

// refusal returns the problem code of a final no, or "" for anything else.
func refusal(err error) string {
	var e *platform.Error
	if errors.As(err, &e) && e.Status >= 400 && e.Status < 500 && e.Status != http.StatusUnauthorized {
		return e.Code
	}
	return ""
}

func latency(all []time.Duration) Latency {
	if len(all) == 0 {
		return Latency{}
	}
	slices.Sort(all)
	return Latency{P50: all[len(all)/2], P99: all[len(all)*99/100], Max: all[len(all)-1]}
}
