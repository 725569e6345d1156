// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package check verifies what must be true of the shop's data whatever happened to its
// processes: it reads every service's database, which no service may, and compares.
package check

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// Invariant is one thing that must be true, and whether it is.
type Invariant struct {
	// Number is that of the invariant in the shop's README.
	Number int `json:"number"`
	// Name says what must be true.
	Name string `json:"name"`
	// Checked says how much was looked at.
	Checked string `json:"checked"`
	// Violations are what is not so. None means that the invariant holds.
	Violations []string `json:"violations"`
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
// Accepted, if any, are orders that somebody was promised; each must be there.
func Run(ctx context.Context, open func(service string) (*sql.DB, error), accepted []string, patience time.Duration) ([]Invariant, error) {
	c, err := newChecker(open)
	if err != nil {
		return nil, err
	}
	defer c.close()
	deadline := time.Now().Add(patience)
	for {
		invariants, err := c.check(ctx, accepted)
		if err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
		for i := range invariants {
			invariants[i] = invariants[i].atRest()
		}
		if !slices.ContainsFunc(invariants, func(i Invariant) bool { return !i.OK() }) || time.Now().After(deadline) {
			return invariants, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

type checker struct{ db map[string]*sql.DB }

func newChecker(open func(service string) (*sql.DB, error)) (*checker, error) {
	c := &checker{db: map[string]*sql.DB{}}
	names := assembly.Backends
	for i := 0; i < len(names); i++ {
		db, err := open(names[i])
		if err != nil {
			c.close()
			return nil, fmt.Errorf("check: %w", err)
		}
		c.db[names[i]] = db
		if names[i] == "order" && platform.DialectOf(db) == platform.SQLite {
			names = append(slices.Clip(names), "journal") // the stack's is in its broker
		}
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
	id, customer, status string
	total                int64
}

// payment is the payment of an order, as payment or its provider knows it.
type payment struct {
	order, status string
	amount        int64
}

func (c *checker) check(ctx context.Context, accepted []string) ([]Invariant, error) {
	orders, err := collect(ctx, c.db["order"], `SELECT id, customer_id, status, total FROM orders`, func(o *order) []any {
		return []any{&o.id, &o.customer, &o.status, &o.total}
	})
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
	if err := c.shipments(ctx, &i, orders); err != nil {
		return i, err
	}
	// A history has one end: rejected, or dispatched or cancelled, either after confirmed.
	ends, err := collect(ctx, c.db["order"], `SELECT stream, SUM(CASE WHEN event_type = 'order.confirmed.v1' THEN 1 ELSE 0 END),
		SUM(CASE WHEN event_type = 'order.rejected.v1' THEN 1 ELSE 0 END), SUM(CASE WHEN event_type = 'order.cancelled.v1' THEN 1 ELSE 0 END),
		SUM(CASE WHEN event_type = 'order.dispatched.v1' THEN 1 ELSE 0 END), COUNT(*) FROM eventsource_event GROUP BY stream`,
		func(e *history) []any {
			return []any{&e.order, &e.confirmed, &e.rejected, &e.cancelled, &e.dispatched, &e.events}
		})
	if err != nil {
		return i, err
	}
	rows, err := collect(ctx, c.db["order"], `SELECT id, status, version FROM orders`, func(r *row) []any { return []any{&r.order, &r.status, &r.version} })
	if err != nil {
		return i, err
	}
	if len(rows) != len(ends) {
		i.unsettled("there are %d orders and %d streams of events", len(rows), len(ends))
	}
	shown := map[string]row{}
	for _, r := range rows {
		shown[r.order] = r
	}
	for _, e := range ends {
		e.order = strings.TrimPrefix(e.order, "order-")
		if r := shown[e.order]; r.status != e.status() || r.version != e.events {
			i.unsettled("order %s is shown as %q after %d events, it has %d that say %s", e.order, r.status, r.version, e.events, e.status())
		}
		if e.confirmed > 1 || e.rejected+e.cancelled+e.dispatched > 1 || e.rejected == 1 && e.confirmed > 0 || e.dispatched > e.confirmed {
			i.violated("order %s has a contradictory history: confirmed %d, dispatched %d, rejected %d, cancelled %d times", e.order, e.confirmed, e.dispatched, e.rejected, e.cancelled)
		}
	}
	i.Checked = fmt.Sprintf("%d orders (%s), %d promised", len(orders), counts(states), len(accepted))
	return i, nil
}

type history struct {
	order                          string
	confirmed, rejected, cancelled int
	dispatched, events             int
}

// status is what the events add up to.
func (h history) status() string {
	switch {
	case h.rejected > 0:
		return "rejected"
	case h.cancelled > 0:
		return "cancelled"
	case h.dispatched > 0:
		return "dispatched"
	case h.confirmed > 0:
		return "confirmed"
	}
	return "pending"
}

// row is an order as people see it.
type row struct {
	order, status string
	version       int
}

// shipments compares orders with their parcels. A confirmed order is at rest as long as its parcel
// is being packed.
func (c *checker) shipments(ctx context.Context, i *Invariant, orders []order) error {
	type shipment struct {
		order, status string
		due           int64
	}
	rows, err := collect(ctx, c.db["shipping"], `SELECT order_id, status, due_at FROM shipments`, func(s *shipment) []any {
		return []any{&s.order, &s.status, &s.due}
	})
	if err != nil {
		return err
	}
	parcels := map[string]shipment{}
	for _, s := range rows {
		parcels[s.order] = s
	}
	now := time.Now().UnixMicro()
	for _, o := range orders {
		p := parcels[o.id]
		ok := false
		switch o.status {
		case "confirmed":
			ok = p.status == "packing" && p.due > now
		case "dispatched":
			ok = p.status == "dispatched"
		case "cancelled":
			ok = p.status == "" || p.status == "stopped"
		default: // pending, rejected
			ok = p.status == ""
		}
		switch {
		case ok:
		case o.status == "rejected", o.status == "dispatched": // nothing can come between
			i.violated("order %s is %s, its parcel is %q", o.id, o.status, p.status)
		default:
			i.unsettled("order %s is %s, its parcel is %q", o.id, o.status, p.status)
		}
	}
	return nil
}

func (c *checker) money(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 2, Name: "captured money is that of the confirmed orders; payment and provider agree, charge by charge"}
	payments, err := collect(ctx, c.db["payment"], `SELECT order_id, status, amount FROM payments`, scanPayment)
	if err != nil {
		return i, err
	}
	charges, err := collect(ctx, c.db["provider"], `SELECT key, status, amount FROM charges`, scanPayment)
	if err != nil {
		return i, err
	}
	ours, theirs := map[string]payment{}, map[string]payment{}
	for _, p := range payments {
		ours[p.order] = p
	}
	for _, p := range charges {
		theirs[p.order] = p
	}
	var captured, wanted int64
	known := map[string]bool{}
	for _, o := range orders {
		known[o.id] = true
		p, charge := ours[o.id], theirs[o.id]
		switch {
		case o.status == "confirmed", o.status == "dispatched":
			wanted += o.total
			if p.status != "captured" || p.amount != o.total || charge.status != "captured" || charge.amount != o.total {
				i.unsettled("order %s over %d is to be paid; payment: %s %d, provider: %s %d", o.id, o.total, p.status, p.amount, charge.status, charge.amount)
			}
		case o.status == "pending":
		case slices.Contains([]string{"captured", "authorised", "authorising", "voiding"}, p.status), slices.Contains([]string{"captured", "authorised"}, charge.status):
			i.unsettled("order %s is %s; payment: %s, provider: %s, want the money given back", o.id, o.status, p.status, charge.status)
		}
	}
	for _, p := range payments {
		if p.status == "captured" {
			captured += p.amount
		}
		if theirs := theirs[p.order]; settled(p.status) && theirs.status != p.status && (theirs.status != "" || p.status != "voided") {
			i.unsettled("payment of order %s is %s here and %q at the provider", p.order, p.status, theirs.status)
		}
	}
	for _, charge := range charges {
		if !known[charge.order] {
			i.unsettled("the provider has a charge for order %s, which does not exist", charge.order)
		}
		if p := ours[charge.order]; p.amount != charge.amount && charge.status != "voided" {
			i.unsettled("order %s: the provider has a charge of %d, payment one of %d", charge.order, charge.amount, p.amount)
		}
	}
	if captured != wanted {
		i.unsettled("captured %d, confirmed orders are worth %d", captured, wanted)
	}
	i.Checked = fmt.Sprintf("%d payments, %d charges, %d captured", len(payments), len(charges), captured)
	return i, nil
}

func settled(status string) bool {
	return slices.Contains([]string{"captured", "voided", "refunded", "declined"}, status)
}

func scanPayment(p *payment) []any { return []any{&p.order, &p.status, &p.amount} }

type stock struct {
	product                            string
	initial, available, reserved, sold int64
}

func (c *checker) stock(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 3, Name: "stock: initial = available + reserved + sold, never negative, sold as ordered"}
	rows, err := collect(ctx, c.db["inventory"], `SELECT product_id, initial, available, reserved, sold FROM stock`, func(s *stock) []any {
		return []any{&s.product, &s.initial, &s.available, &s.reserved, &s.sold}
	})
	if err != nil {
		return i, err
	}
	var sold int64
	for _, s := range rows {
		sold += s.sold
		if s.initial != s.available+s.reserved+s.sold || s.available < 0 || s.reserved < 0 || s.sold < 0 {
			i.violated("product %s: initial %d, available %d, reserved %d, sold %d", s.product, s.initial, s.available, s.reserved, s.sold)
		}
		if s.reserved != 0 {
			i.unsettled("product %s: %d pieces are still reserved", s.product, s.reserved)
		}
	}
	reservations, err := collect(ctx, c.db["inventory"], `SELECT order_id, status FROM reservations GROUP BY order_id, status`, scanState)
	if err != nil {
		return i, err
	}
	want := map[string][]string{"confirmed": {"sold"}, "dispatched": {"sold"}, "rejected": {"", "released"}, "cancelled": {"", "released", "restocked"}}
	states := map[string]string{}
	for _, r := range reservations {
		if states[r.order] != "" {
			i.violated("order %s: its pieces are both %s and %s", r.order, states[r.order], r.status)
		}
		states[r.order] = r.status
	}
	for _, o := range orders {
		if o.status != "pending" && !slices.Contains(want[o.status], states[o.id]) {
			i.unsettled("order %s is %s, its pieces are %q", o.id, o.status, states[o.id])
		}
	}
	listed, err := collect(ctx, c.db["catalog"], `SELECT product_id, available FROM availability`, func(s *stock) []any { return []any{&s.product, &s.available} })
	if err != nil {
		return i, err
	}
	shown := map[string]int64{}
	for _, s := range listed {
		shown[s.product] = s.available
	}
	for _, s := range rows {
		if shown[s.product] != s.available {
			i.unsettled("product %s: %d available, the catalogue shows %d", s.product, s.available, shown[s.product])
		}
	}
	i.Checked = fmt.Sprintf("%d products, %d pieces sold", len(rows), sold)
	return i, nil
}

type account struct {
	customer                      string
	limit, reserved, reservations int64
}

func (c *checker) credit(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 4, Name: "credit: what is reserved is that of the orders in flight, within the limit"}
	rows, err := collect(ctx, c.db["customer"], `SELECT c.id, c.credit_limit, c.credit_reserved,
		COALESCE((SELECT SUM(r.amount) FROM credit_reservations r WHERE r.customer_id = c.id AND r.status = 'reserved'), 0) FROM customers c`,
		func(a *account) []any { return []any{&a.customer, &a.limit, &a.reserved, &a.reservations} })
	if err != nil {
		return i, err
	}
	for _, a := range rows {
		if a.reserved != a.reservations || a.reserved > a.limit || a.reserved < 0 {
			i.violated("customer %s: limit %d, reserved %d, reservations %d", a.customer, a.limit, a.reserved, a.reservations)
		}
		if a.reserved != 0 {
			i.unsettled("customer %s: %d are still reserved", a.customer, a.reserved)
		}
	}
	reservations, err := collect(ctx, c.db["customer"], `SELECT order_id, status FROM credit_reservations`, scanState)
	if err != nil {
		return i, err
	}
	states := map[string]string{}
	for _, r := range reservations {
		states[r.order] = r.status
	}
	for _, o := range orders {
		if (o.status == "confirmed" || o.status == "dispatched") && states[o.id] != "settled" || o.status == "rejected" && states[o.id] == "settled" {
			i.unsettled("order %s is %s, its credit is %q", o.id, o.status, states[o.id])
		}
	}
	i.Checked = fmt.Sprintf("%d customers, %d reservations", len(rows), len(reservations))
	return i, nil
}

func (c *checker) mails(ctx context.Context, _ []order) (Invariant, error) {
	i := Invariant{Number: 5, Name: "one mail per event per customer"}
	type repeated struct {
		event, customer string
		times           int64
	}
	twice, err := collect(ctx, c.db["notification"], `SELECT event_id, customer_id, COUNT(*) FROM mails GROUP BY event_id, customer_id HAVING COUNT(*) > 1`,
		func(m *repeated) []any { return []any{&m.event, &m.customer, &m.times} })
	if err != nil {
		return i, err
	}
	for _, m := range twice {
		i.violated("event %s was mailed %d times to customer %s", m.event, m.times, m.customer)
	}
	mails, err := c.perCustomer(ctx, "notification", `SELECT customer_id, COUNT(*) FROM mails GROUP BY customer_id`)
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
	var total int64
	for id := range registered {
		want[id]++ // the welcome
	}
	for id, n := range want {
		total += mails[id]
		switch {
		case mails[id] > n: // they were counted before what they are about
			i.violated("customer %s has %d mails, want %d", id, mails[id], n)
		case mails[id] < n:
			i.unsettled("customer %s has %d mails, want %d", id, mails[id], n)
		}
	}
	i.Checked = fmt.Sprintf("%d mails to %d customers", total, len(registered))
	return i, nil
}

// applied compares what was published with what each group has marked as applied. Marks are kept
// for days; the look back is shorter.
func (c *checker) applied(ctx context.Context, _ []order) (Invariant, error) {
	i := Invariant{Number: 6, Name: "every event published is applied once by every group, those of an order in order"}
	type event struct{ id, topic string }
	scan := func(e *event) []any { return []any{&e.id, &e.topic} }
	since := time.Now().Add(-24 * time.Hour).UnixMicro()
	var events []event
	var err error
	if journal := c.db["journal"]; journal != nil {
		events, err = collect(ctx, journal, fmt.Sprintf(`SELECT id, topic FROM messages WHERE at > %d`, since), scan)
	} else {
		// On servers there is no table of everything; the order service's events are their messages too.
		events, err = collect(ctx, c.db["order"], fmt.Sprintf(`SELECT event_id, REPLACE(event_type, '.v1', '') FROM eventsource_event WHERE recorded > %d`, since), scan)
	}
	if err != nil {
		return i, err
	}
	if err := c.inOrder(ctx, &i, since); err != nil {
		return i, err
	}
	groups := 0
	for service, listeners := range assembly.Listeners() {
		type mark struct{ group, id string }
		marks, err := collect(ctx, c.db[service], `SELECT consumer, id FROM idempotency_inbox UNION ALL SELECT consumer, message_id FROM dead_letters`,
			func(m *mark) []any { return []any{&m.group, &m.id} })
		if err != nil {
			return i, err
		}
		marked := map[mark]bool{}
		for _, m := range marks {
			marked[m] = true
		}
		for _, l := range listeners {
			groups++
			for _, e := range events {
				if slices.Contains(l.Topics, e.topic) && !marked[mark{l.Group, e.id}] {
					i.unsettled("%s has not applied event %s of %s", l.Group, e.id, e.topic)
				}
			}
		}
	}
	i.Checked = fmt.Sprintf("%d events, %d groups", len(events), groups)
	return i, nil
}

// inOrder compares the order in which the events of each order were published with that in which they happened. The
// stack's log is in its broker, where nobody who checks databases looks.
func (c *checker) inOrder(ctx context.Context, i *Invariant, since int64) error {
	if c.db["journal"] == nil {
		return nil
	}
	type place struct {
		id string
		at int64
	}
	published, err := collect(ctx, c.db["journal"], fmt.Sprintf(`SELECT id, position FROM messages WHERE at > %d`, since), func(p *place) []any { return []any{&p.id, &p.at} })
	if err != nil {
		return err
	}
	places := map[string]int64{}
	for _, p := range published {
		places[p.id] = p.at
	}
	type event struct{ stream, id string }
	events, err := collect(ctx, c.db["order"], fmt.Sprintf(`SELECT stream, event_id FROM eventsource_event WHERE recorded > %d ORDER BY stream, version`, since), func(e *event) []any { return []any{&e.stream, &e.id} })
	if err != nil {
		return err
	}
	last := event{}
	for _, e := range events {
		// One that is not there yet is on its way, or too old to be kept.
		if e.stream == last.stream && places[e.id] != 0 && places[e.id] < places[last.id] {
			i.violated("%s: event %s was published before event %s, which came first", e.stream, e.id, last.id)
		}
		if places[e.id] != 0 {
			last = e
		}
	}
	return nil
}

// reporting compares the figures that were read from the stream with the order service's own
// books, which nobody has told reporting.
func (c *checker) reporting(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 7, Name: "reporting has counted what happened, each event once"}
	type figures struct{ placed, confirmed, dispatched, rejected, cancelled, revenue int64 }
	scan := func(f *figures) []any {
		return []any{&f.placed, &f.confirmed, &f.dispatched, &f.rejected, &f.cancelled, &f.revenue}
	}
	got, err := collect(ctx, c.db["reporting"], `SELECT COALESCE(SUM(placed), 0), COALESCE(SUM(confirmed), 0), COALESCE(SUM(dispatched), 0),
		COALESCE(SUM(rejected), 0), COALESCE(SUM(cancelled), 0), COALESCE(SUM(revenue), 0)
		FROM days WHERE build = (SELECT MAX(build) FROM builds WHERE status = 'serving')`, scan)
	if err != nil {
		return i, err
	}
	want, err := collect(ctx, c.db["order"], `SELECT COALESCE(SUM(CASE WHEN event_type = 'order.placed.v1' THEN 1 ELSE 0 END), 0), COALESCE(SUM(CASE WHEN event_type = 'order.confirmed.v1' THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN event_type = 'order.dispatched.v1' THEN 1 ELSE 0 END), 0), COALESCE(SUM(CASE WHEN event_type = 'order.rejected.v1' THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN event_type = 'order.cancelled.v1' THEN 1 ELSE 0 END), 0), 0 FROM eventsource_event`, scan)
	if err != nil {
		return i, err
	}
	for _, o := range orders {
		if o.status == "confirmed" || o.status == "dispatched" {
			want[0].revenue += o.total
		}
	}
	if got[0] != want[0] {
		i.unsettled("reporting counts %+v, order has %+v", got[0], want[0])
	}
	if err := c.sales(ctx, &i, orders); err != nil {
		return i, err
	}
	i.Checked = fmt.Sprintf("%d orders placed, %d in revenue", got[0].placed, got[0].revenue)
	return i, nil
}

// sales compares what reporting has counted by day, by product and by order with what order and inventory have.
func (c *checker) sales(ctx context.Context, i *Invariant, orders []order) error {
	const serving = ` WHERE build = (SELECT MAX(build) FROM builds WHERE status = 'serving')`
	type figure struct {
		of    string
		count int64
	}
	scan := func(f *figure) []any { return []any{&f.of, &f.count} }
	compare := func(what string, got, want map[string]int64) {
		for of := range want {
			if got[of] != want[of] {
				i.unsettled("reporting counts %d %s of %s, want %d", got[of], what, of, want[of])
			}
		}
		for of, n := range got {
			if _, ok := want[of]; !ok && n != 0 {
				i.unsettled("reporting counts %d %s of %s, want none", n, what, of)
			}
		}
	}
	figures := func(service, query string) (map[string]int64, error) {
		rows, err := collect(ctx, c.db[service], query, scan)
		out := map[string]int64{}
		for _, r := range rows {
			out[r.of] += r.count
		}
		return out, err
	}

	got, err := figures("reporting", `SELECT day, placed + confirmed + dispatched + rejected + cancelled FROM days`+serving)
	if err != nil {
		return err
	}
	numbers, err := figures("order", `SELECT CAST(happened / 86400000000000 AS TEXT), COUNT(*) FROM eventsource_event GROUP BY happened / 86400000000000`)
	if err != nil {
		return err
	}
	want := map[string]int64{}
	for number, n := range numbers {
		days, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return err
		}
		want[time.Unix(days*86400, 0).UTC().Format(time.DateOnly)] = n
	}
	compare("events", got, want)

	if got, err = figures("reporting", `SELECT product_id, quantity FROM products`+serving); err != nil {
		return err
	}
	if want, err = figures("inventory", `SELECT product_id, sold FROM stock WHERE sold <> 0`); err != nil {
		return err
	}
	compare("sold pieces", got, want)

	if got, err = figures("reporting", `SELECT order_id, 1 FROM sold`+serving); err != nil {
		return err
	}
	want = map[string]int64{}
	for _, o := range orders {
		if o.status == "confirmed" || o.status == "dispatched" {
			want[o.id] = 1
		}
	}
	compare("sales", got, want)
	return nil
}

// state is what one service says of an order.
type state struct{ order, status string }

func scanState(s *state) []any { return []any{&s.order, &s.status} }

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
		if stats.Parked != 0 {
			i.violated("%s has %d parked messages in its outbox", name, stats.Parked)
		}
		if stats.Depth != 0 {
			i.unsettled("%s has %d messages in its outbox", name, stats.Depth)
		}
		letters, err := collect(ctx, c.db[name], `SELECT consumer, message_id, reason FROM dead_letters`, func(d *deadLetter) []any {
			return []any{&d.consumer, &d.message, &d.reason}
		})
		if err != nil {
			return i, err
		}
		dead += len(letters)
		for _, d := range letters {
			if d.reason == "" {
				i.violated("%s: message %s is a dead letter of %s without a reason", name, d.message, d.consumer)
			}
		}
	}
	i.Checked = fmt.Sprintf("%d outboxes, %d dead letters", len(speakers), dead)
	return i, nil
}

// speakers are the services with an outbox: all but the provider, which is somebody else's.
var speakers = slices.DeleteFunc(slices.Clone(assembly.Backends), func(name string) bool { return name == "provider" })

type deadLetter struct{ consumer, message, reason string }

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
