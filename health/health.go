// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// ErrNotReady says that the process does not take work: it is starting or draining.
var ErrNotReady = errors.New("health: not ready")

// Config configures [Checks]. The zero Config is a sound default.
type Config struct {
	// Details makes the handlers answer with the result of each check, as JSON. By default
	// they say no more than "ok" or "failing".
	Details bool
	// Change is called when the result of a check becomes another, outside locks. It may
	// be nil.
	Change func(Result)
}

// CheckConfig configures one check. The zero CheckConfig is a sound default.
type CheckConfig struct {
	// Timeout bounds one run of the check. Zero means 1 second.
	Timeout time.Duration
	// TTL is how long a result is given out again without running the check. Zero means 1
	// second, negative not at all.
	TTL time.Duration
	// Liveness makes the check count for /livez too: only a restart can help.
	Liveness bool
	// Optional makes the check show up in the details without failing anything.
	Optional bool
}

// Result is the result of one check.
type Result struct {
	// Name is that of the check.
	Name string
	// Err is nil if it passed.
	Err error
	// At is when it ended, and Took how long it ran.
	At   time.Time
	Took time.Duration
	// Optional is true when it does not count.
	Optional bool
}

// Checks are the health checks of one process.
type Checks struct {
	cfg Config

	mu     sync.Mutex
	checks []*check
	closed error // why no work is taken at present
}

// New returns checks that pass, until some are added.
func New(cfg Config) (*Checks, error) { return &Checks{cfg: cfg}, nil }

// Add adds a check. It should be quick, and harmless to call often; it returns an error
// if what it checks is unwell. Names are unique.
func (c *Checks) Add(name string, fn func(context.Context) error, cfg CheckConfig) error {
	if name == "" {
		return errors.New("health: name is empty, want one")
	}
	if fn == nil {
		return fmt.Errorf("health: check %q is nil, want a func", name)
	}
	if cfg.Timeout < 0 {
		return fmt.Errorf("health: CheckConfig.Timeout of %q is %v, want 0 or more", name, cfg.Timeout)
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Second)
	cfg.TTL = cmp.Or(cfg.TTL, time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.checks, func(k *check) bool { return k.name == name }) {
		return fmt.Errorf("health: there is a check %q already, want another name", name)
	}
	c.checks = append(c.checks, &check{name: name, fn: fn, cfg: cfg, changed: c.cfg.Change})
	return nil
}

// SetReady makes /readyz fail for the given reason, or pass again with nil. A
// [Lifecycle] does it by itself.
func (c *Checks) SetReady(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = reason
}

// Ready returns the results of all checks, in the order of their addition, and nil if the
// process should get work.
func (c *Checks) Ready(ctx context.Context) ([]Result, error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	results, err := c.run(ctx, func(*check) bool { return true })
	return results, errors.Join(closed, err)
}

// Live returns the results of the checks for liveness, and nil if the process should go on.
func (c *Checks) Live(ctx context.Context) ([]Result, error) {
	return c.run(ctx, func(k *check) bool { return k.cfg.Liveness })
}

func (c *Checks) run(ctx context.Context, want func(*check) bool) ([]Result, error) {
	c.mu.Lock()
	var checks []*check
	for _, k := range c.checks {
		if want(k) {
			checks = append(checks, k)
		}
	}
	c.mu.Unlock()
	results := make([]Result, len(checks))
	var all sync.WaitGroup
	for i, k := range checks {
		all.Go(func() { results[i] = k.result(ctx) })
	}
	all.Wait()
	var errs []error
	for _, r := range results {
		if r.Err != nil && !r.Optional {
			errs = append(errs, fmt.Errorf("%s: %w", r.Name, r.Err))
		}
	}
	return results, errors.Join(errs...)
}

// check is one check and its last result.
type check struct {
	name    string
	fn      func(context.Context) error
	cfg     CheckConfig
	changed func(Result)

	mu      sync.Mutex
	last    Result
	known   bool
	hangs   bool          // the present run has used up its time, and goes on
	running chan struct{} // closed when last is new; nil while nothing runs
}

// result returns the last result if it is fresh enough, else that of the run that is under way, else
// that of a new one.
func (k *check) result(ctx context.Context) Result {
	k.mu.Lock()
	if k.hangs || k.known && k.running == nil && time.Since(k.last.At) < k.cfg.TTL {
		defer k.mu.Unlock()
		return k.last
	}
	running := k.running
	if running == nil {
		running = make(chan struct{})
		k.running = running
		// Not the request's context: others wait for the same run.
		go k.run(context.WithoutCancel(ctx))
	}
	k.mu.Unlock()
	select {
	case <-running:
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.last
	case <-ctx.Done():
		return Result{Name: k.name, Err: context.Cause(ctx), At: time.Now(), Optional: k.cfg.Optional}
	}
}

// run runs the check once.
func (k *check) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	start := time.Now()
	ended := make(chan struct{})
	err := errors.New("health: the check ended its goroutine")
	go func() {
		defer close(ended)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("health: the check panicked: %v", p)
			}
		}()
		err = k.fn(ctx)
	}()
	select {
	case <-ended:
		k.finish(start, err, false)
	case <-ctx.Done():
		k.finish(start, fmt.Errorf("health: no result within %v", k.cfg.Timeout), true)
		<-ended // a second one would hang as well
		k.mu.Lock()
		k.hangs = false
		k.mu.Unlock()
	}
}

// finish publishes the result of a run.
func (k *check) finish(start time.Time, err error, hangs bool) {
	now := time.Now()
	k.mu.Lock()
	changed := !k.known || (k.last.Err == nil) != (err == nil)
	k.last = Result{Name: k.name, Err: err, At: now, Took: now.Sub(start), Optional: k.cfg.Optional}
	k.known, k.hangs = true, hangs
	close(k.running)
	k.running = nil
	result := k.last
	k.mu.Unlock()
	if changed && k.changed != nil {
		k.changed(result)
	}
}

// Livez returns the handler for /livez: 200 if the process should go on, else 503.
func (c *Checks) Livez() http.Handler { return c.handler(c.Live) }

// Readyz returns the handler for /readyz: 200 if the process should get work, else 503.
func (c *Checks) Readyz() http.Handler { return c.handler(c.Ready) }

func (c *Checks) handler(ask func(context.Context) ([]Result, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		results, err := ask(r.Context())
		status, code := "ok", http.StatusOK
		if err != nil {
			status, code = "failing", http.StatusServiceUnavailable
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !c.cfg.Details {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(code)
			_, _ = fmt.Fprintln(w, status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(report(status, err, results))
	})
}

// details is the JSON form of the results.
type details struct {
	Status string            `json:"status"`
	Error  string            `json:"error,omitempty"`
	Checks map[string]detail `json:"checks"`
}

type detail struct {
	Status   string    `json:"status"`
	Error    string    `json:"error,omitempty"`
	At       time.Time `json:"at"`
	TookMS   float64   `json:"took_ms"`
	Optional bool      `json:"optional,omitempty"`
}

func report(status string, err error, results []Result) details {
	d := details{Status: status, Checks: make(map[string]detail, len(results))}
	if err != nil {
		d.Error = err.Error()
	}
	for _, r := range results {
		one := detail{Status: "ok", At: r.At, TookMS: float64(r.Took.Microseconds()) / 1000, Optional: r.Optional}
		if r.Err != nil {
			one.Status, one.Error = "failing", r.Err.Error()
		}
		d.Checks[r.Name] = one
	}
	return d
}
