// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/dovetail-go/dovetail/messaging"
)

// Checker accounts for every message between publishers and handlers: what was lost,
// what came twice, what overtook another of its key. It is for concurrent use, through
// any number of reconnections and restarts.
//
//	check := messagingtest.NewChecker(orders, mails) // the subscriptions of the run
//	pub = check.Publisher(pub)
//	go sub.Subscribe(ctx, orders, check.Handler(orders, h))
//	// ... publish, break things, wait until check.Done() ...
//	if err := check.Report().Err(); err != nil {
type Checker struct {
	subs []messaging.Subscription

	mu     sync.Mutex
	sent   map[string]*sentMessage
	lastOf map[string]int // the number of messages sent, by key
	groups map[string]*checkedGroup
}

// sentMessage is what the publishers know of a message.
type sentMessage struct {
	topic, key string
	nth        int  // of its key, by the first time it was sent
	confirmed  bool // once at least
	open       int  // tries that are under way or ended in an unknown outcome
}

// refused reports whether the message was certainly never taken.
func (s *sentMessage) refused() bool { return !s.confirmed && s.open == 0 }

// matches reports whether the message is for the group of sub.
func (s *sentMessage) matches(sub messaging.Subscription) bool {
	return slices.ContainsFunc(sub.Topics, func(p string) bool { return messaging.Match(p, s.topic) })
}

type checkedGroup struct {
	handled    map[string]int // by ID
	newest     map[string]int // the largest nth handled, by key
	duplicates int
	inversions []string
	strangers  []string
}

// NewChecker returns a checker that expects each message in every group of subs that it
// matches, and in its order per key where the group is Ordered.
//
// For that order to be known, the messages of one key must be published one after
// another.
func NewChecker(subs ...messaging.Subscription) *Checker {
	c := &Checker{subs: subs, sent: make(map[string]*sentMessage), lastOf: make(map[string]int), groups: make(map[string]*checkedGroup)}
	for _, s := range subs {
		c.groups[s.Group] = &checkedGroup{handled: make(map[string]int), newest: make(map[string]int)}
	}
	return c
}

// Publisher returns p, accounted for.
func (c *Checker) Publisher(p messaging.Publisher) messaging.Publisher {
	return &checkedPublisher{c, p}
}

type checkedPublisher struct {
	c *Checker
	p messaging.Publisher
}

func (p *checkedPublisher) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	for _, m := range msgs {
		p.c.sending(m)
	}
	err := p.p.Publish(ctx, msgs...)
	results := make([]error, len(msgs))
	if pe := (*messaging.PublishError)(nil); errors.As(err, &pe) {
		for _, f := range pe.Failed {
			results[f.Index] = f.Err
		}
	} else if err != nil {
		for i := range results {
			results[i] = err
		}
	}
	for i, m := range msgs {
		p.c.published(m.ID, results[i])
	}
	return err
}

func (c *Checker) sending(m *messaging.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sent[m.ID]
	if s == nil {
		c.lastOf[m.Key]++
		s = &sentMessage{topic: m.Topic, key: m.Key, nth: c.lastOf[m.Key]}
		c.sent[m.ID] = s
	}
	s.open++
}

func (c *Checker) published(id string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sent[id]
	notTaken := errors.Is(err, messaging.ErrRefused) || errors.Is(err, messaging.ErrBlocked) || errors.Is(err, messaging.ErrUnroutable)
	switch {
	case err == nil:
		s.confirmed = true
	case notTaken && !errors.Is(err, messaging.ErrUnknown):
		s.open--
	}
}

// Handler returns h, accounted for, as the handler of s. A message that h rejects, drops
// or gives up on is accounted for too, not lost.
func (c *Checker) Handler(s messaging.Subscription, h messaging.Handler) messaging.Handler {
	return messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		err := h.Handle(ctx, d)
		if messaging.Decide(ctx, err, d.Attempt, s).Action != messaging.Retried {
			c.handled(s.Group, d.Message)
		}
		return err
	})
}

func (c *Checker) handled(group string, m *messaging.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[group]
	g.handled[m.ID]++
	if g.handled[m.ID] > 1 {
		// A repetition is not out of order: who recognises duplicates does not see it.
		g.duplicates++
		return
	}
	s := c.sent[m.ID]
	if s == nil {
		g.strangers = append(g.strangers, m.ID)
		return
	}
	if s.key == "" {
		return
	}
	if newest := g.newest[s.key]; s.nth < newest {
		g.inversions = append(g.inversions, fmt.Sprintf("%s (key %q: number %d after number %d)", m.ID, s.key, s.nth, newest))
	} else {
		g.newest[s.key] = s.nth
	}
}

// Done reports whether every confirmed message was handled by each of its groups.
func (c *Checker) Done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.sent {
		for _, sub := range c.subs {
			if s.confirmed && s.matches(sub) && c.groups[sub.Group].handled[id] == 0 {
				return false
			}
		}
	}
	return true
}

// Report is the account of a run.
type Report struct {
	// Sent is how many different messages were given to Publish. Each of them is now
	// confirmed, of unknown outcome, or refused.
	Sent, Confirmed, Unknown, Refused int
	// Groups are in the order of NewChecker.
	Groups []GroupReport
}

// GroupReport is the account of one group.
type GroupReport struct {
	Group string
	// Ordered is what the subscription asks for.
	Ordered bool
	// Handled is how many different messages were.
	Handled int
	// Duplicates is how many times a message was handled again.
	Duplicates int
	// Lost are the messages that were confirmed and never handled.
	Lost []string
	// Inversions are the messages first handled after a later one of their key.
	Inversions []string
	// Strangers are the messages handled that were never sent, or do not match.
	Strangers []string
	// Ghosts are the messages handled although their publisher was told that they were
	// not taken.
	Ghosts []string
}

// Report returns the account so far.
func (c *Checker) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := Report{Sent: len(c.sent)}
	for _, s := range c.sent {
		switch {
		case s.confirmed:
			r.Confirmed++
		case s.refused():
			r.Refused++
		default:
			r.Unknown++
		}
	}
	for _, sub := range c.subs {
		g := c.groups[sub.Group]
		gr := GroupReport{
			Group: sub.Group, Ordered: sub.Ordered, Handled: len(g.handled), Duplicates: g.duplicates,
			Inversions: slices.Clone(g.inversions), Strangers: slices.Clone(g.strangers),
		}
		for id, s := range c.sent {
			matches, handled := s.matches(sub), g.handled[id] > 0
			switch {
			case matches && s.confirmed && !handled:
				gr.Lost = append(gr.Lost, id)
			case matches && s.refused() && handled:
				gr.Ghosts = append(gr.Ghosts, id)
			case !matches && handled:
				gr.Strangers = append(gr.Strangers, id)
			}
		}
		slices.Sort(gr.Lost)
		slices.Sort(gr.Ghosts)
		r.Groups = append(r.Groups, gr)
	}
	return r
}

// Err returns what breaks the contract, or nil: lost messages, strangers, ghosts, and in
// ordered groups inversions. Duplicates do not.
func (r Report) Err() error {
	var errs []error
	add := func(group, what string, ids []string) {
		if len(ids) > 0 {
			errs = append(errs, fmt.Errorf("messagingtest: group %q: %d %s: %s", group, len(ids), what, some(ids)))
		}
	}
	for _, g := range r.Groups {
		add(g.Group, "lost", g.Lost)
		add(g.Group, "never sent to it", g.Strangers)
		add(g.Group, "handled though refused", g.Ghosts)
		if g.Ordered {
			add(g.Group, "out of order", g.Inversions)
		}
	}
	return errors.Join(errs...)
}

// String returns the account as a few lines of text.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sent %d: confirmed %d, unknown %d, refused %d\n", r.Sent, r.Confirmed, r.Unknown, r.Refused)
	for _, g := range r.Groups {
		fmt.Fprintf(&b, "group %s: handled %d, duplicates %d, lost %d, inversions %d, strangers %d, ghosts %d\n",
			g.Group, g.Handled, g.Duplicates, len(g.Lost), len(g.Inversions), len(g.Strangers), len(g.Ghosts))
	}
	return b.String()
}

// some returns the first of many names.
func some(ids []string) string {
	const most = 5
	if len(ids) <= most {
		return strings.Join(ids, ", ")
	}
	return strings.Join(ids[:most], ", ") + ", ..."
}
