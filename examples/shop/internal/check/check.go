// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package check verifies what must be true of the shop's data whatever happened to its
// processes: it reads every service's database, which no service may, and compares.
package check

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// Invariant is one thing that must be true, and whether it is.
type Invariant struct {
	// Number is that of the invariant in the shop's README.
	Number int
	// Name says what must be true.
	Name string
	// Checked says how much was looked at.
	Checked string
	// Violations are what is not so. None means that the invariant holds.
	Violations []string
	// unfinished is what is not so yet: a violation if it stays that way.
	unfinished []string
}

// OK reports whether the invariant holds.
func (i Invariant) OK() bool { return len(i.Violations) == 0 }

// maxViolations bounds how many violations of one invariant are spelled out.
const maxViolations = 10

// violated notes what can never be right, whatever is under way.
func (i *Invariant) violated(format string, args ...any) {
	i.Violations = note(i.Violations, format, args...)
}

// unsettled notes what is wrong only of a shop at rest: of another it is on its way, or was read from one
// database before and from the next after a change.
func (i *Invariant) unsettled(format string, args ...any) {
	i.unfinished = note(i.unfinished, format, args...)
}

func note(notes []string, format string, args ...any) []string {
	switch len(notes) {
	case maxViolations:
		return append(notes, "and more")
	case maxViolations + 1:
		return notes
	}
	return append(notes, fmt.Sprintf(format, args...))
}

// things is a number of things, as people say it.
func things[N int | int64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// atRest is the invariant of a shop at rest: what is not finished never will be.
func (i Invariant) atRest() Invariant {
	i.Violations = append(slices.Clip(i.Violations), i.unfinished...)
	i.unfinished = nil
	return i
}

// Files opens the databases of the embedded shop in a data folder.
func Files(data string) func(service string) (*sql.DB, error) {
	return func(service string) (*sql.DB, error) {
		path := filepath.Join(data, service+".db")
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%s is not the data folder of a shop: %w", data, err)
		}
		return platform.OpenSQLiteReadOnly(path)
	}
}

// Run checks the databases that open opens, one per service. It waits up to patience for the shop to come
// to rest: no order pending, no saga running, nothing in an outbox. What is not at rest then is a violation.
//
// Accepted, if any, are orders that somebody was promised; each must be there. Waiting, if not nil, is called with what was
// found each time that the shop was not at rest.
func Run(ctx context.Context, open func(service string) (*sql.DB, error), accepted []string, patience time.Duration, waiting func([]Invariant)) ([]Invariant, error) {
	c, err := newChecker(open)
	if err != nil {
		return nil, err
	}
	defer c.close()
	deadline := time.Now().Add(patience)
	for {
		invariants, err := c.check(ctx, accepted)
		if err != nil {
			return nil, fmt.Errorf("check: %w%s", err, hint(err))
		}
		for i := range invariants {
			invariants[i] = invariants[i].atRest()
		}
		if !slices.ContainsFunc(invariants, func(i Invariant) bool { return !i.OK() }) || time.Now().After(deadline) {
			return invariants, nil
		}
		if waiting != nil {
			waiting(invariants)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("check: interrupted while it waited for the shop to come to rest: %w", context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// hint says what to do about tables that are not as this program makes them.
func hint(err error) string {
	for _, missing := range []string{"no such table", "no such column", "SQLSTATE 42P01", "SQLSTATE 42703"} {
		if strings.Contains(err.Error(), missing) {
			return ": the data is an older shop's; start the shop on it once"
		}
	}
	return ""
}

type checker struct{ db map[string]*sql.DB }

func newChecker(open func(service string) (*sql.DB, error)) (*checker, error) {
	c := &checker{db: map[string]*sql.DB{}}
	for _, name := range assembly.Backends {
		db, err := open(name)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("check: %w", err)
		}
		db.SetMaxOpenConns(2) // two records of one service are read side by side
		c.db[name] = db
	}
	return c, nil
}

func (c *checker) close() {
	for _, db := range c.db {
		_ = db.Close()
	}
}

// order is an order as its own service knows it.
type order struct {
	id, customer, status, method string
	total                        int64
	version                      int
	confirmed                    bool // at some time
	lines                        []kernel.OrderLine
}

// paid reports whether the order's money is the shop's.
func (o order) paid() bool { return o.status == "confirmed" || o.status == "dispatched" }

func (c *checker) check(ctx context.Context, accepted []string) ([]Invariant, error) {
	orders, err := platform.Collect(ctx, c.db["order"], func(row interface{ Scan(dest ...any) error }) (o order, err error) {
		var lines string
		if err := row.Scan(&o.id, &o.customer, &o.status, &o.method, &o.total, &o.version, &o.confirmed, &lines); err != nil {
			return o, err
		}
		if err := json.Unmarshal([]byte(lines), &o.lines); err != nil {
			return o, fmt.Errorf("lines of order %s: %w", o.id, err)
		}
		return o, nil
	}, `SELECT id, customer_id, status, method, total, version,
		EXISTS (SELECT 1 FROM eventsource_event WHERE stream = 'order-' || id AND event_type = 'order.confirmed.v1'), lines FROM orders`)
	if err != nil {
		return nil, err
	}
	var out []Invariant
	for _, verify := range []func(ctx context.Context, orders []order) (Invariant, error){
		func(ctx context.Context, orders []order) (Invariant, error) { return c.terminal(ctx, orders, accepted) },
		c.money, c.stock, c.credit, c.mails, c.applied, c.reporting, c.messages,
	} {
		i, err := verify(ctx, orders)
		if err != nil {
			return nil, fmt.Errorf("invariant %d: %w", i.Number, err)
		}
		out = append(out, i)
	}
	return out, nil
}

func (c *checker) terminal(ctx context.Context, orders []order, accepted []string) (Invariant, error) {
	i := Invariant{Number: 1, Name: "every accepted order reaches exactly one terminal state"}
	known := map[string]bool{}
	states := map[string]int{}
	for _, o := range orders {
		known[o.id] = true
		states[o.status]++
		if o.status == "pending" {
			i.unsettled("order %s is still pending", o.id)
		}
	}
	for _, id := range accepted {
		if !known[id] {
			i.violated("order %s was accepted and does not exist", id)
		}
	}
	for _, verify := range []func(context.Context, *Invariant, []order) error{c.shipments, c.histories, c.sagas} {
		if err := verify(ctx, &i, orders); err != nil {
			return i, err
		}
	}
	i.Checked = things(len(orders), "order")
	if len(orders) > 0 {
		i.Checked += " (" + counts(states) + ")"
	}
	if len(accepted) > 0 {
		i.Checked += fmt.Sprintf(", %d promised", len(accepted))
	}
	return i, nil
}

// mailedByEvent are topics that notification did not hear from the shop's first day on: of these only the last week's
// mails can be told to be complete.
const mailedByEvent = `('order.dispatched', 'payment.changed')`

// mails counts those of all time by what customers and orders are on record, which has no place for an event's ID, and
// compares those of the last week with the events themselves.
func (c *checker) mails(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 5, Name: "one mail per event per customer"}
	type repeated struct {
		event, customer string
		times           int64
	}
	twice, err := collect(ctx, c.db["notification"], `SELECT event_id, customer_id, COUNT(*) FROM mails GROUP BY event_id, customer_id HAVING COUNT(*) > 1 ORDER BY event_id, customer_id`,
		func(m *repeated) []any { return []any{&m.event, &m.customer, &m.times} })
	if err != nil {
		return i, err
	}
	for _, m := range twice {
		i.violated("event %s was mailed %d times to customer %s", m.event, m.times, m.customer)
	}
	written, err := c.addressed(ctx, &i)
	if err != nil {
		return i, err
	}
	mails, err := c.perCustomer(ctx, "notification", `SELECT customer_id, COUNT(*) FROM mails WHERE customer_id <> '' AND topic NOT IN `+mailedByEvent+` GROUP BY customer_id`)
	if err != nil {
		return i, err
	}
	want, err := c.perCustomer(ctx, "order", `SELECT o.customer_id, COUNT(*) FROM eventsource_event e JOIN orders o ON e.stream = 'order-' || o.id GROUP BY o.customer_id`)
	if err != nil {
		return i, err
	}
	registered, err := c.perCustomer(ctx, "customer", `SELECT id, 1 FROM customers`)
	if err != nil {
		return i, err
	}
	for id := range registered {
		want[id]++ // the welcome
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		switch n := want[id]; {
		case mails[id] > n: // they were counted before what they are about
			i.violated("customer %s has %d mails, want %d", id, mails[id], n)
		case mails[id] < n:
			i.unsettled("customer %s has %d mails, want %d", id, mails[id], n)
		}
	}
	events, err := c.letters(ctx, &i, orders)
	if err != nil {
		return i, err
	}
	i.Checked = fmt.Sprintf("%s to %s, one about each of %s of %d days", things(written, "mail"), things(len(registered), "customer"), things(events, "event"), platform.PublishedFor/(24*time.Hour))
	return i, nil
}

// addressed looks whether mails went to the addresses of whom they are for, which never change, and returns how many
// mails there are. It does not say which addresses: who looks at it need not know them.
func (c *checker) addressed(ctx context.Context, i *Invariant) (mails int64, err error) {
	type to struct {
		customer, address string
		mails             int64
	}
	written, err := collect(ctx, c.db["notification"], `SELECT customer_id, recipient, COUNT(*) FROM mails WHERE customer_id <> '' GROUP BY customer_id, recipient ORDER BY customer_id, recipient`,
		func(t *to) []any { return []any{&t.customer, &t.address, &t.mails} })
	if err != nil {
		return 0, err
	}
	customers, err := collect(ctx, c.db["customer"], `SELECT id, email FROM customers`, func(t *to) []any { return []any{&t.customer, &t.address} })
	if err != nil {
		return 0, err
	}
	addresses := make(map[string]string, len(customers))
	for _, t := range customers {
		addresses[t.customer] = t.address
	}
	for _, t := range written {
		mails += t.mails
		switch address, ok := addresses[t.customer]; {
		case !ok:
			i.violated("%s went to customer %s, who does not exist", things(t.mails, "mail"), t.customer)
		case address != t.address:
			i.violated("%s for customer %s went to an address that is not theirs", things(t.mails, "mail"), t.customer)
		}
	}
	return mails, nil
}

// letters compares what was published in the last week with the mails about it: each event of a customer's has one, and
// that customer has it. It returns how many events these are.
func (c *checker) letters(ctx context.Context, i *Invariant, orders []order) (events int, err error) {
	owner := make(map[string]string, len(orders))
	for _, o := range orders {
		owner[o.id] = o.customer
	}
	groups, err := c.groups(ctx, "notification")
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		if g.name == "notification.products" {
			continue // what concerns products concerns no customer
		}
		for _, publisher := range speakers {
			topics := g.wants(listenedTo(publisher))
			if len(topics) == 0 {
				continue
			}
			to := c.db["notification"]
			these, names := among(append(topics, "")) // or of before topics were kept
			written := lines(ctx, to, `SELECT event_id, customer_id, topic, 0 FROM mails WHERE `+these+` ORDER BY event_id`+bytewise(to), names...)
			if err := along(c.published(ctx, publisher, g, topics, "message_id", "message_key"), written, func(id string, published, written []event) {
				if len(published) == 0 {
					for _, mail := range written {
						if mail.topic != "" && g.remembers(id, mail.topic) {
							i.unsettled("customer %s has a mail about %s %s, which %s has not published", mail.id, mail.topic, id, publisher)
						}
					}
					return
				}
				e := published[0]
				if !e.apart {
					events++
				}
				customer := e.id
				if e.topic != kernel.TopicCustomerRegistered {
					customer = owner[e.id]
				}
				if customer == "" { // placed since the orders were read
					i.unsettled("%s %s is of no order", e.topic, id)
					return
				}
				if len(written) == 0 && !e.apart {
					i.unsettled("customer %s has no mail about %s %s", customer, e.topic, id)
				}
				for _, mail := range written {
					if mail.id != customer {
						i.violated("customer %s has the mail about %s %s, which is customer %s's", mail.id, e.topic, id, customer)
					}
				}
			}); err != nil {
				return 0, err
			}
		}
	}
	return events, nil
}

func (c *checker) perCustomer(ctx context.Context, service, query string) (map[string]int64, error) {
	type count struct {
		customer string
		n        int64
	}
	rows, err := collect(ctx, c.db[service], query, func(c *count) []any { return []any{&c.customer, &c.n} })
	out := map[string]int64{}
	for _, r := range rows {
		out[r.customer] = r.n
	}
	return out, err
}

func (c *checker) messages(ctx context.Context, _ []order) (Invariant, error) {
	i := Invariant{Number: 8, Name: "no dead letter without a reason; nothing left between outbox and inbox"}
	dead := 0
	for _, name := range speakers {
		store, err := outboxsql.New(c.db[name], platform.DialectOf(c.db[name]), outboxsql.Config{})
		if err != nil {
			return i, err
		}
		box, err := outbox.New(store, outbox.Config{})
		if err != nil {
			return i, err
		}
		stats, err := box.Stats(ctx)
		if err != nil {
			return i, err
		}
		if stats.Depth != 0 {
			i.unsettled("%s has %s in its outbox", name, things(stats.Depth, "message"))
		}
		if err := c.parked(ctx, &i, name); err != nil {
			return i, err
		}
		letters, err := c.deadLetters(ctx, name)
		if err != nil {
			return i, err
		}
		dead += len(letters)
		for _, d := range letters {
			if strings.TrimSpace(d.reason) == "" {
				i.violated("%s: message %s is a dead letter of %s without a reason", name, d.message, d.consumer)
			}
		}
	}
	i.Checked = fmt.Sprintf("%d outboxes, %s", len(speakers), things(dead, "dead letter"))
	return i, nil
}

// parked looks for what a service could not publish: nobody has decided about it, or has given it up and not said why.
func (c *checker) parked(ctx context.Context, i *Invariant, service string) error {
	type message struct {
		id, topic, key, reason, because string
		discarded                       bool
	}
	rows, err := collect(ctx, c.db[service], `SELECT message_id, topic, message_key, reason, discard_reason, discarded > 0 FROM outbox_parked
		WHERE discarded = 0 OR TRIM(discard_reason) = '' ORDER BY id`, func(m *message) []any {
		return []any{&m.id, &m.topic, &m.key, &m.reason, &m.because, &m.discarded}
	})
	if err != nil {
		return err
	}
	for _, m := range rows {
		if m.discarded {
			i.violated("%s has given up %s %s of %s without a reason", service, m.topic, m.id, m.key)
		} else {
			i.violated("%s has %s %s of %s parked in its outbox: %s", service, m.topic, m.id, m.key, m.reason)
		}
	}
	return nil
}

// speakers are the services with an outbox: all but the provider, which is somebody else's.
var speakers = slices.DeleteFunc(slices.Clone(assembly.Backends), func(name string) bool { return name == "provider" })

type deadLetter struct{ consumer, message, reason string }

func (c *checker) deadLetters(ctx context.Context, service string) ([]deadLetter, error) {
	return collect(ctx, c.db[service], `SELECT consumer, message_id, reason FROM dead_letters ORDER BY consumer, message_id`, func(d *deadLetter) []any {
		return []any{&d.consumer, &d.message, &d.reason}
	})
}

// collect reads rows into values; fields names where each column goes.
func collect[T any](ctx context.Context, db *sql.DB, query string, fields func(*T) []any) ([]T, error) {
	return platform.Collect(ctx, db, func(row interface{ Scan(dest ...any) error }) (v T, err error) {
		err = row.Scan(fields(&v)...)
		return v, err
	}, query)
}

func counts(m map[string]int) string {
	s := ""
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if s != "" {
			s += ", "
		}
		s += fmt.Sprintf("%d %s", m[k], k)
	}
	return s
}
