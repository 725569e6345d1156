// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package bulkhead_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/internal/modeltest"
)

type op struct {
	Kind string
	N    int
	D    time.Duration
}

func randomOp(r *rand.Rand) op {
	switch n := r.IntN(100); {
	case n < 50:
		return op{Kind: "acquire", N: r.IntN(3)}
	case n < 75:
		return op{Kind: "release", N: r.IntN(100)}
	case n < 83:
		return op{Kind: "cancel", N: r.IntN(100)}
	case n < 95:
		return op{Kind: "sleep", D: time.Duration(r.Int64N(int64(time.Second)))}
	}
	return op{Kind: "resize", N: 1 + r.IntN(5)}
}

// modelCall is a call in the reference, which keeps one plain list of waiters.
type modelCall struct {
	*waiter
	priority int
	since    time.Time
	state    string // waiting, running, refused, cancelled, done
}

type model struct {
	max, queue int
	wait       time.Duration
	lifo       bool
	calls      []*modelCall // in order of arrival
}

func (m *model) in(state string) (out []*modelCall) {
	for _, c := range m.calls {
		if c.state == state {
			out = append(out, c)
		}
	}
	return out
}

func (m *model) acquire(c *modelCall) {
	waiting := m.in("waiting")
	c.state = "waiting"
	m.calls = append(m.calls, c)
	switch {
	case len(waiting) == 0 && len(m.in("running")) < m.max:
		c.state = "running"
	case len(waiting) < m.queue:
	case len(waiting) == 0:
		c.state = "refused"
	default:
		loser := waiting[0] // of the lowest priority the newest, or in LIFO the oldest
		for _, w := range waiting[1:] {
			if w.priority < loser.priority || w.priority == loser.priority && !m.lifo {
				loser = w
			}
		}
		if c.priority > loser.priority || c.priority == loser.priority && m.lifo {
			loser.state = "refused"
		} else {
			c.state = "refused"
		}
	}
}

func (m *model) grant() {
	for {
		waiting := m.in("waiting")
		if len(waiting) == 0 || len(m.in("running")) >= m.max {
			return
		}
		first := waiting[0]
		for _, w := range waiting[1:] {
			if w.priority > first.priority || w.priority == first.priority && m.lifo {
				first = w
			}
		}
		first.state = "running"
	}
}

func (m *model) expire() {
	for _, c := range m.in("waiting") {
		if m.wait > 0 && time.Since(c.since) >= m.wait {
			c.state = "refused"
		}
	}
}

func (c *modelCall) seen() string {
	switch {
	case c.state == "done":
		return "done"
	case !c.ended():
		return "waiting"
	case c.err == nil:
		return "running"
	case c.err == context.Canceled:
		return "cancelled"
	}
	return "refused"
}

func TestModel(t *testing.T) {
	for _, cfg := range []bulkhead.Config{
		{},
		{Queue: 1},
		{Queue: 4, Wait: time.Second},
		{Queue: 5, LIFO: true},
		{Queue: 5, Priority: byPriority},
		{Queue: 3, Priority: byPriority, LIFO: true, Wait: 2 * time.Second},
	} {
		t.Run(fmt.Sprintf("queue %d, wait %v, LIFO %v, priorities %v", cfg.Queue, cfg.Wait, cfg.LIFO, cfg.Priority != nil), func(t *testing.T) {
			modeltest.Run(t, 60, 120, randomOp, func(t *testing.T, ops []op) error { return runModel(t, cfg, ops) })
		})
	}
}

func runModel(t *testing.T, cfg bulkhead.Config, ops []op) error {
	b := newBulkhead(t, 2, cfg)
	m := &model{max: 2, queue: cfg.Queue, wait: cfg.Wait, lifo: cfg.LIFO}
	defer func() {
		for _, c := range m.calls {
			c.cancel()
		}
		synctest.Wait()
	}()
	for i, o := range ops {
		switch o.Kind {
		case "acquire":
			c := &modelCall{since: time.Now()}
			if cfg.Priority != nil {
				c.priority = o.N
			}
			m.acquire(c)
			c.waiter = wait(t, b, fmt.Sprint(i), o.N)
		case "release":
			if running := m.in("running"); len(running) > 0 {
				c := running[o.N%len(running)]
				c.state = "done"
				m.grant()
				c.permit.Release()
			}
		case "cancel":
			if waiting := m.in("waiting"); len(waiting) > 0 {
				c := waiting[o.N%len(waiting)]
				c.state = "cancelled"
				c.cancel()
			}
		case "sleep":
			time.Sleep(o.D)
			m.expire()
		case "resize":
			m.max = o.N
			m.grant()
			if err := b.Resize(o.N); err != nil {
				return err
			}
		}
		synctest.Wait()
		for _, c := range m.calls {
			if c.seen() != c.state {
				return fmt.Errorf("step %d: call %s is %s, want %s", i, c.name, c.seen(), c.state)
			}
		}
		if s := b.Stats(); s.Waiting != len(m.in("waiting")) || s.InFlight != len(m.in("running")) || s.Max != m.max {
			return fmt.Errorf("step %d: Stats = %+v, want %d running, %d waiting", i, s, len(m.in("running")), len(m.in("waiting")))
		}
		m.calls = slices.DeleteFunc(m.calls, func(c *modelCall) bool { return c.state == "done" })
	}
	return nil
}
