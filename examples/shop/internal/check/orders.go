// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// follow is what may happen to an order next. What nothing may follow is an end.
var follow = map[string][]string{
	"":          {"placed"},
	"placed":    {"confirmed", "rejected", "cancelled"},
	"confirmed": {"dispatched", "cancelled"},
}

// histories compares each order as people see it with its history.
func (c *checker) histories(ctx context.Context, i *Invariant, orders []order) error {
	shown := make(map[string]order, len(orders))
	for _, o := range orders {
		shown[o.id] = o
	}
	// Of an event its version stands for its ID.
	for l, err := range lines(ctx, c.db["order"], `SELECT REPLACE(stream, 'order-', ''), CAST(version AS TEXT), event_type, 0 FROM eventsource_event ORDER BY stream, version`) {
		if err != nil {
			return err
		}
		var happened []string
		last, contradictory := "", false
		for n, e := range l.events {
			what, _, _ := strings.Cut(strings.TrimPrefix(e.topic, "order."), ".")
			contradictory = contradictory || !slices.Contains(follow[last], what)
			happened, last = append(happened, what), what
			if e.id != strconv.Itoa(n+1) {
				i.violated("order %s: its history has version %s in place %d", l.key, e.id, n+1)
			}
		}
		if contradictory {
			i.violated("order %s has a contradictory history: %s", l.key, strings.Join(happened, ", "))
		}
		status := last
		if status == "placed" {
			status = "pending"
		}
		switch o, ok := shown[l.key]; {
		case !ok:
			i.unsettled("order %s has a history, %s, and does not exist", l.key, strings.Join(happened, ", "))
		case o.status != status || o.version != len(happened):
			i.unsettled("order %s is shown as %q after %d events, its history has %d: %s", l.key, o.status, o.version, len(happened), strings.Join(happened, ", "))
		}
		delete(shown, l.key)
	}
	for _, o := range orders {
		if _, left := shown[o.id]; left {
			i.violated("order %s is %s and has no history", o.id, o.status)
		}
	}
	return nil
}

// sagas looks for those that have not come to their end: the order may have, and something is still to be done about it.
func (c *checker) sagas(ctx context.Context, i *Invariant, _ []order) error {
	db := c.db["order"]
	store, err := sagasql.New(db, platform.DialectOf(db), sagasql.Config{})
	if err != nil {
		return err
	}
	for _, status := range []saga.Status{saga.Running, saga.Compensating} {
		records, err := store.List(ctx, saga.Filter{Status: status, Limit: maxViolations + 1})
		if err != nil {
			return err
		}
		for _, r := range records {
			why := ""
			if r.Stuck != "" {
				why = ", and needs an operator: " + r.Stuck
			}
			i.unsettled("saga %s of %s is still %s at %s%s", r.ID, r.Name, r.Status, r.Step, why)
		}
	}
	return nil
}

// shipments compares orders with their parcels. A confirmed order is at rest as long as its parcel
// is being packed.
func (c *checker) shipments(ctx context.Context, i *Invariant, orders []order) error {
	type shipment struct {
		order, customer, status string
		due                     int64
	}
	rows, err := collect(ctx, c.db["shipping"], `SELECT order_id, customer_id, status, due_at FROM shipments`, func(s *shipment) []any {
		return []any{&s.order, &s.customer, &s.status, &s.due}
	})
	if err != nil {
		return err
	}
	parcels := map[string]shipment{}
	for _, s := range rows {
		parcels[s.order] = s
	}
	now := time.Now().UnixMicro()
	known := make(map[string]bool, len(orders))
	for _, o := range orders {
		known[o.id] = true
		p := parcels[o.id]
		if p.status != "" && p.customer != o.customer {
			i.violated("order %s is of customer %s, its parcel of customer %s", o.id, o.customer, p.customer)
		}
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
	for _, s := range rows {
		if !known[s.order] {
			i.unsettled("there is a parcel for order %s, which does not exist: %s", s.order, s.status)
		}
	}
	return nil
}
