// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/retry"
)

// Storm is a series of random faults in a running shop.
type Storm struct {
	// URL is the gateway's, without a slash at the end.
	URL string
	// Email and Passwords are an operator's; the first password that is right will do.
	Email     string
	Passwords []string
	// For is how long it lasts. Every fault is over by then.
	For time.Duration
	// Kinds are the kinds of faults. None means all of them.
	Kinds []string
	// Seed decides what happens and when: the same seed, in a shop with the same instances, is the same storm.
	Seed uint64
	// Patience is how long to wait at the very beginning for a shop that does not answer. Zero means a minute.
	Patience time.Duration
	// Waiting, if not nil, is called once, with the reason, if the shop does not answer at the very beginning.
	Waiting func(err error)
	// Struck, if not nil, is told of each fault when it has begun, or could not.
	Struck func(Strike)
}

// Strike is one fault of a storm.
type Strike struct {
	// At is when it begins, in seconds from the beginning of the storm.
	At float64 `json:"at"`
	Request
	// Error says why it did not begin, if it did not.
	Error string `json:"error,omitempty"`
}

// String returns it in a line for people.
func (s Strike) String() string {
	out := fmt.Sprintf("%7.1f s  %-18s", s.At, s.Kind)
	if s.Service != "" {
		out += " " + s.Service
	}
	for _, k := range all {
		if k.Kind == s.Kind && k.Amount != nil {
			out += fmt.Sprintf(" %d %s", s.Amount, k.Amount.Unit)
		}
	}
	out += fmt.Sprintf(" for %.1f s", s.Seconds)
	if s.Error != "" {
		out += "  DID NOT BEGIN: " + s.Error
	}
	return out
}

// StormReport is what a storm did.
type StormReport struct {
	Seed uint64 `json:"seed"`
	// Seconds is how long it lasted.
	Seconds float64  `json:"seconds"`
	Strikes []Strike `json:"strikes"`
	// Kinds counts the faults that began, by kind.
	Kinds map[string]int `json:"kinds"`
	// Left are faults of this storm that are still in force although they should not be.
	Left []string `json:"left"`
}

// OK reports whether every fault began and ended.
func (r *StormReport) OK() bool {
	return len(r.Left) == 0 && !slices.ContainsFunc(r.Strikes, func(s Strike) bool { return s.Error != "" })
}

const (
	// shortestGap and longestGap are between the beginnings of two faults, unless the storm is short: then
	// there is time for each kind once.
	shortestGap, longestGap = 1500 * time.Millisecond, 5 * time.Second
	// calm is the part of a storm at its end in which nothing new begins.
	calm = 0.1
	// patience is how long a shop that was there may be away: on a machine that is busy with the storm it takes a
	// while to come back. Nobody waits longer than impatience for one that has not been seen yet, or for the end.
	patience, impatience = 5 * time.Minute, time.Minute
)

// strength bounds what a storm does of each kind: how much, and for how many seconds.
var strength = map[string]struct {
	least, most       int
	shortest, longest float64
}{
	Latency:           {50, 1500, 3, 15},
	Errors:            {10, 60, 3, 15},
	Pause:             {0, 0, 2, 8},
	Kill:              {0, 0, 1, 6},
	ProviderDown:      {0, 0, 3, 10},
	ProviderSlow:      {200, 4000, 3, 12},
	ProviderDeclining: {0, 0, 2, 8},
	BrokerCut:         {0, 0, 3, 12},
	Duplicate:         {20, 100, 5, 20},
	Reorder:           {20, 100, 5, 20},
}

// plan lays down a storm.
func plan(seed uint64, length time.Duration, kinds []Kind, instances []string) []Strike {
	random := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // nothing here is a secret
	end := length.Seconds() * (1 - calm)
	gap := min(longestGap.Seconds(), end/float64(len(kinds)+1))
	var out []Strike
	var deck []Kind
	for at := gap / 2; at < end; at += min(shortestGap.Seconds(), gap) + random.Float64()*max(gap-shortestGap.Seconds(), 0) {
		if len(deck) == 0 { // each kind once before any comes again
			deck = slices.Clone(kinds)
			random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		kind := deck[0]
		deck = deck[1:]
		limits := strength[kind.Kind]
		s := Strike{At: round(at), Request: Request{Kind: kind.Kind}}
		if limits.most > 0 {
			s.Amount = limits.least + random.IntN(limits.most-limits.least+1)
		}
		if kind.Target == atService {
			s.Service = target(random, kind.Services[random.IntN(len(kind.Services))], instances)
		}
		seconds := limits.shortest + random.Float64()*(limits.longest-limits.shortest)
		s.Seconds = round(max(min(seconds, length.Seconds()-at-0.1), 0.1))
		out = append(out, s)
	}
	return out
}

// target is a service, or as often one of its instances where it has several.
func target(random *rand.Rand, service string, instances []string) string {
	var own []string
	for _, name := range instances {
		if strings.HasPrefix(name, service+"-") {
			own = append(own, name)
		}
	}
	if len(own) < 2 || random.IntN(2) == 0 {
		return service
	}
	return own[random.IntN(len(own))]
}

func round(seconds float64) float64 { return float64(int(seconds*10)) / 10 }

// Rage lets the storm loose on the shop and waits for its end. If ctx ends before, so do the faults that are in force.
func (s Storm) Rage(ctx context.Context) (*StormReport, error) {
	for _, k := range s.Kinds {
		if !slices.Contains(Names(), k) {
			return nil, fmt.Errorf("there is no fault %q, want some of %s", k, strings.Join(Names(), ", "))
		}
	}
	c := &client{
		url: s.URL, email: s.Email, passwords: s.Passwords, patience: cmp.Or(s.Patience, impatience), waiting: s.Waiting,
		http: &http.Client{Timeout: 10 * time.Second},
	}
	defer c.http.CloseIdleConnections()
	if err := c.signIn(ctx); err != nil {
		return nil, err
	}
	var shop struct {
		Kinds     []Kind
		Instances []string
	}
	if err := c.call(ctx, http.MethodGet, "", nil, &shop); err != nil {
		return nil, err
	}
	c.patience, c.waiting = patience, nil
	if len(s.Kinds) > 0 {
		shop.Kinds = slices.DeleteFunc(shop.Kinds, func(k Kind) bool { return !slices.Contains(s.Kinds, k.Kind) })
	}
	report := &StormReport{Seed: s.Seed, Seconds: s.For.Seconds(), Strikes: []Strike{}, Kinds: map[string]int{}, Left: []string{}}
	begin := time.Now()
	err := s.strike(ctx, c, plan(s.Seed, s.For, shop.Kinds, shop.Instances), report)
	if err == nil {
		err = sleepUntil(ctx, begin.Add(s.For))
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", context.Cause(ctx))
		report.Seconds = round(time.Since(begin).Seconds())
	}
	// Also when it was called off.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), impatience)
	defer cancel()
	return report, errors.Join(err, c.clear(after, report))
}

func (s Storm) strike(ctx context.Context, c *client, strikes []Strike, report *StormReport) error {
	begin := time.Now()
	for _, strike := range strikes {
		if err := sleepUntil(ctx, begin.Add(time.Duration(strike.At*float64(time.Second)))); err != nil {
			return err
		}
		// What was held up, by a gateway that stood still, is not made up for at the end.
		if late := time.Since(begin).Seconds() + strike.Seconds; late > s.For.Seconds() {
			strike.Seconds = round(strike.Seconds - (late - s.For.Seconds()))
		}
		strike.Seconds = max(strike.Seconds, 0.1)
		strike.ID = kernel.NewID() // so that it begins once, however often one has to ask
		if err := c.call(ctx, http.MethodPost, "", strike.Request, nil); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			strike.Error = err.Error()
		} else {
			report.Kinds[strike.Kind]++
		}
		report.Strikes = append(report.Strikes, strike)
		if s.Struck != nil {
			s.Struck(strike)
		}
	}
	return nil
}

func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(t)):
		return nil
	}
}

// client is an operator at the desk.
type client struct {
	url, email string
	passwords  []string
	http       *http.Client
	patience   time.Duration
	waiting    func(err error) // nil once it was told
	token      string
}

// try repeats what brought no answer for as long as the client has patience.
func (c *client) try(ctx context.Context, fn func(ctx context.Context) error) error {
	again := retry.Hooks{Retry: func(r retry.Retrying) {
		if c.waiting != nil {
			c.waiting(r.Err)
			c.waiting = nil
		}
	}}
	r, err := retry.New(retry.Config{Attempts: -1, Base: 100 * time.Millisecond, Max: time.Second, Elapsed: c.patience, Budget: retry.Unlimited, Hooks: again})
	if err != nil {
		return err
	}
	return r.Do(ctx, fn)
}

func (c *client) signIn(ctx context.Context) error {
	var err error
	for _, password := range c.passwords {
		var session struct{ Token string }
		err = c.try(ctx, func(ctx context.Context) error {
			return c.do(ctx, http.MethodPost, "/api/sessions", map[string]string{"email": c.email, "password": password}, &session)
		})
		if err == nil {
			c.token = session.Token
			return nil
		}
		if refused := (*platform.Error)(nil); !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
			break // another password is no better
		}
	}
	return fmt.Errorf("sign in as %s: %w", c.email, err)
}

func (c *client) call(ctx context.Context, method, id string, in, out any) error {
	path := "/ops/api/chaos"
	if id != "" {
		path += "/" + id
	}
	return c.try(ctx, func(ctx context.Context) error { return c.do(ctx, method, path, in, out) })
}

func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	return (&platform.Caller{Client: c.http, Token: c.token}).Do(ctx, method, c.url+path, func(h http.Header) {
		if c.token == "" {
			h.Del("Authorization")
		}
	}, in, out)
}

// clear ends what is left of the storm, and reports it.
func (c *client) clear(ctx context.Context, report *StormReport) error {
	var now struct{ Faults []Fault }
	if err := c.call(ctx, http.MethodGet, "", nil, &now); err != nil {
		return err
	}
	for _, f := range now.Faults {
		if !slices.ContainsFunc(report.Strikes, func(s Strike) bool { return s.ID == f.ID }) {
			continue // somebody else's
		}
		if time.Now().After(f.EndsAt.Add(10 * time.Second)) {
			report.Left = append(report.Left, f.Kind+" "+f.Service)
		}
		var gone *platform.Error
		if err := c.call(ctx, http.MethodDelete, f.ID, nil, nil); err != nil && !(errors.As(err, &gone) && gone.Status == http.StatusNotFound) {
			return err
		}
	}
	return nil
}
