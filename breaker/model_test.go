// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/internal/modeltest"
)

// op is one operation of the model test.
type op struct {
	Kind string
	N    int // which pending call, mode or configuration
	D    time.Duration
}

var modelConfigs = []breaker.Config{
	{Consecutive: 3},
	{Consecutive: 2, Probes: 3, ProbeTimeout: 5 * time.Second, OpenFor: 2 * time.Second, OpenMax: 10 * time.Second},
	{FailureRate: 0.5, MinCalls: 4},
	{FailureRate: 0.3, MinCalls: 6, Window: 3 * time.Second, Probes: 2},
	{FailureRate: 0.4, Calls: 8},
	{SlowRate: 0.4, SlowAfter: 700 * time.Millisecond, MinCalls: 3, Consecutive: 4},
	{SlowRate: 0.5, FailureRate: 0.6, Calls: 5, Probes: 2},
}

func randomOp(r *rand.Rand) op {
	switch n := r.IntN(1000); {
	case n < 400:
		return op{Kind: "acquire"}
	case n < 560:
		return op{Kind: "success", N: r.IntN(100)}
	case n < 740:
		return op{Kind: "failure", N: r.IntN(100)}
	case n < 780:
		return op{Kind: "neutral", N: r.IntN(100)}
	case n < 820:
		return op{Kind: "expired", N: r.IntN(100)}
	case n < 970:
		return op{Kind: "sleep", D: time.Duration(r.Int64N(int64(time.Second) << r.IntN(6)))}
	case n < 980:
		return op{Kind: "force", N: r.IntN(4)}
	case n < 985:
		return op{Kind: "reset"}
	}
	return op{Kind: "reconfigure", N: r.IntN(len(modelConfigs))}
}

// model is the reference: everything is a slice, nothing is fast.
type model struct {
	cfg     breaker.Config
	base    time.Time
	mode    breaker.Mode
	state   breaker.State // as last changed
	gen     int
	since   time.Duration
	until   time.Duration
	fails   int
	timed   int
	window  []sample
	probes  []*modelCall
	passed  int
	streak  int
	openFor time.Duration
	opened  uint64
	refused uint64
}

type sample struct {
	at           time.Duration
	failed, slow bool
}

type modelCall struct {
	gen   int // -1: not counted
	start time.Duration
	timed bool
	probe bool
	until time.Duration // of a probe's lease
}

func (m *model) now() time.Duration { return time.Since(m.base) }

// with sets the configuration with the documented defaults.
func (m *model) with(c breaker.Config) {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.Consecutive == 0 {
		c.Consecutive = 5
		if c.FailureRate > 0 || c.SlowRate > 0 {
			c.Consecutive = math.MaxInt
		}
	}
	if c.MinCalls == 0 {
		c.MinCalls = min(20, c.Calls)
	}
	def(&c.SlowAfter, time.Second)
	def(&c.Window, 10*time.Second)
	def(&c.OpenFor, time.Second)
	def(&c.OpenMax, time.Minute)
	def(&c.ProbeTimeout, 30*time.Second)
	c.Probes = max(c.Probes, 1)
	m.cfg = c
}

func (m *model) rated() bool { return m.cfg.FailureRate > 0 || m.cfg.SlowRate > 0 }

func (m *model) enter(s breaker.State) {
	m.state, m.since = s, m.now()
	m.gen++
	m.fails, m.timed, m.window, m.probes, m.passed = 0, 0, nil, nil, 0
}

func (m *model) seen() breaker.State {
	switch {
	case m.mode == breaker.ForcedOpen:
		return breaker.Open
	case m.mode == breaker.Disabled:
		return breaker.Closed
	case m.state == breaker.Open && m.now() >= m.until:
		return breaker.HalfOpen
	}
	return m.state
}

func (m *model) acquire() (c *modelCall, admitted bool) {
	c = &modelCall{gen: -1, start: m.now()}
	if m.mode == breaker.Disabled {
		return c, true
	}
	switch m.seen() {
	case breaker.Closed:
		c.gen, c.timed = m.gen, m.timed > 0 || m.cfg.SlowRate > 0
		return c, true
	case breaker.HalfOpen:
		if m.state == breaker.Open {
			m.enter(breaker.HalfOpen)
		}
		m.probes = slices.DeleteFunc(m.probes, func(p *modelCall) bool { return m.now() >= p.until })
		if len(m.probes) < m.cfg.Probes {
			c.gen, c.timed, c.probe, c.until = m.gen, true, true, m.now()+m.cfg.ProbeTimeout
			m.probes = append(m.probes, c)
			return c, true
		}
	}
	m.refused++
	return c, m.mode == breaker.Shadow
}

// done reports whether the breaker opened by it.
func (m *model) done(c *modelCall, kind string) (opens bool) {
	if c.gen < 0 {
		return false
	}
	took := m.now() - c.start
	if kind == "expired" {
		switch {
		case !c.timed:
			if c.gen == m.gen {
				m.timed = 64
			}
			return false
		case took >= m.cfg.SlowAfter:
			kind = "failure"
		default:
			kind = "neutral"
		}
	}
	slow := c.timed && took >= m.cfg.SlowAfter && m.cfg.SlowRate > 0
	if c.gen != m.gen {
		return false
	}
	if c.probe {
		at := slices.Index(m.probes, c)
		if at < 0 || m.now() >= c.until {
			return false
		}
		m.probes = slices.Delete(m.probes, at, at+1)
		switch {
		case kind == "failure", kind == "success" && slow:
			return true
		case kind == "success":
			if m.passed++; m.passed >= m.cfg.Probes {
				m.enter(breaker.Closed)
			}
		}
		return false
	}
	if kind == "neutral" {
		return false
	}
	failed := kind == "failure"
	if m.rated() {
		m.window = append(m.window, sample{m.now(), failed, slow})
	}
	if failed {
		m.fails++
	} else {
		m.fails = 0
		if c.timed && m.timed > 0 {
			m.timed--
		}
	}
	if failed && m.fails >= m.cfg.Consecutive {
		return true
	}
	if !failed && !slow || !m.rated() {
		return false
	}
	calls, failures, slows := m.counts()
	return calls >= m.cfg.MinCalls &&
		(m.cfg.FailureRate > 0 && float64(failures)/float64(calls) >= m.cfg.FailureRate ||
			m.cfg.SlowRate > 0 && float64(slows)/float64(calls) >= m.cfg.SlowRate)
}

// opens changes to open; the jittered time is the breaker's own, checked for its bounds.
func (m *model) opens(actual time.Duration) error {
	if m.state == breaker.Closed && m.now()-m.since >= m.openFor {
		m.streak = 0
	} else {
		m.streak++
	}
	m.openFor = m.cfg.OpenMax
	if m.streak < 20 {
		m.openFor = min(m.openFor, m.cfg.OpenFor<<m.streak)
	}
	if actual < m.openFor || actual > m.openFor+m.openFor/2 {
		return fmt.Errorf("open for %v, want %v and up to half of it more", actual, m.openFor)
	}
	m.enter(breaker.Open)
	m.until = m.now() + actual
	m.opened++
	return nil
}

func (m *model) tick(at time.Duration) time.Duration { return at / (m.cfg.Window / 10) }

func (m *model) counts() (calls, failures, slow int) {
	if m.cfg.Calls > 0 {
		m.window = m.window[max(0, len(m.window)-m.cfg.Calls):]
	}
	for _, s := range m.window {
		if m.cfg.Calls == 0 && m.tick(m.now())-m.tick(s.at) >= 10 {
			continue
		}
		calls++
		if s.failed {
			failures++
		}
		if s.slow {
			slow++
		}
	}
	return calls, failures, slow
}

func (m *model) reconfigure(c breaker.Config) {
	old := m.cfg
	keep := m.rated() && m.state == breaker.Closed && m.mode != breaker.ForcedOpen && m.mode != breaker.Disabled
	m.counts() // trims
	if keep && old.Calls == 0 {
		// Results are known by their bucket only, and count as of its end.
		m.window = slices.DeleteFunc(m.window, func(s sample) bool { return m.tick(m.now())-m.tick(s.at) >= 10 })
		for i := range m.window {
			m.window[i].at = min((m.tick(m.window[i].at)+1)*(m.cfg.Window/10)-1, m.now())
		}
	}
	m.with(c)
	if !keep || !m.rated() || (old.Calls > 0) != (m.cfg.Calls > 0) {
		m.window = nil
	}
	if old.SlowRate > 0 || m.cfg.SlowRate > 0 {
		m.timed = 0
	}
	m.probes = slices.DeleteFunc(m.probes, func(p *modelCall) bool { return m.now() >= p.until })
	m.probes = m.probes[max(0, len(m.probes)-m.cfg.Probes):]
}

func (m *model) force(mode breaker.Mode) {
	counting := func(mode breaker.Mode) bool { return mode == breaker.Auto || mode == breaker.Shadow }
	if mode == m.mode {
		return
	}
	if !counting(mode) || !counting(m.mode) {
		m.enter(breaker.Closed)
	}
	m.mode = mode
}

func TestModel(t *testing.T) {
	gone, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	for i, cfg := range modelConfigs {
		t.Run(fmt.Sprintf("configuration %d", i), func(t *testing.T) { runModel(t, cfg, gone) })
	}
}

func runModel(t *testing.T, cfg breaker.Config, gone context.Context) {
	modeltest.Run(t, 200, 250, randomOp, func(t *testing.T, ops []op) error {
		b := newBreaker(t, cfg)
		m := &model{base: time.Now().Add(-1)}
		m.with(cfg)
		m.enter(breaker.Closed)
		m.since = m.now()
		type pending struct {
			breaker.Ticket
			*modelCall
		}
		var calls []pending
		for i, o := range ops {
			switch o.Kind {
			case "acquire":
				ticket, err := b.Acquire(t.Context())
				c, admitted := m.acquire()
				if (err == nil) != admitted {
					return fmt.Errorf("step %d: Acquire = %v, want admitted %v", i, err, admitted)
				}
				if admitted {
					calls = append(calls, pending{ticket, c})
				}
			case "success", "failure", "neutral", "expired":
				if len(calls) == 0 {
					continue
				}
				at := o.N % len(calls)
				c := calls[at]
				calls = slices.Delete(calls, at, at+1)
				opens := m.done(c.modelCall, o.Kind)
				switch o.Kind {
				case "success":
					c.Done(t.Context(), nil)
				case "failure":
					c.Done(t.Context(), errDown)
				case "neutral":
					c.Settle(t.Context(), fault.Verdict{Outcome: fault.Neutral})
				case "expired":
					c.Done(gone, context.DeadlineExceeded)
				}
				if opens {
					if err := m.opens(b.Stats().RetryAfter); err != nil {
						return fmt.Errorf("step %d: %w", i, err)
					}
				}
			case "sleep":
				time.Sleep(o.D)
			case "force":
				b.Force(breaker.Mode(o.N))
				m.force(breaker.Mode(o.N))
			case "reset":
				b.Reset()
				m.streak, m.openFor = 0, 0
				m.enter(breaker.Closed)
			case "reconfigure":
				if err := b.Reconfigure(modelConfigs[o.N]); err != nil {
					return err
				}
				m.reconfigure(modelConfigs[o.N])
			}
			s := b.Stats()
			n, failures, slow := m.counts()
			live := 0
			for _, p := range m.probes {
				if m.now() < p.until {
					live++
				}
			}
			want := breaker.Stats{State: m.seen(), Mode: m.mode, Consecutive: m.fails, Calls: int64(n), Failures: int64(failures), Slow: int64(slow),
				Probes: live, Opened: m.opened, Rejected: m.refused, RetryAfter: s.RetryAfter}
			if s != want {
				return fmt.Errorf("step %d: Stats\n     = %+v\nwant   %+v", i, s, want)
			}
		}
		return nil
	})
}
