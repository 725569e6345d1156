// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"context"
	"fmt"
)

// payment is the payment of an order, as payment or its provider knows it.
type payment struct {
	order, status string
	amount        int64
}

func scanPayment(p *payment) []any { return []any{&p.order, &p.status, &p.amount} }

func (p payment) String() string {
	if p.status == "" {
		return "none"
	}
	return fmt.Sprintf("%s %d", p.status, p.amount)
}

// money compares each order with its payment and with the charge at the provider, and then the sums of the three.
func (c *checker) money(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 2, Name: "captured money is that of the confirmed orders, refunded or voided that of the rest; payment and provider agree, charge by charge"}
	payments, err := c.byOrder(ctx, "payment", `SELECT order_id, status, amount FROM payments`)
	if err != nil {
		return i, err
	}
	charges, err := c.byOrder(ctx, "provider", `SELECT key, status, amount FROM charges`)
	if err != nil {
		return i, err
	}
	var captured, refunded sums
	known := make(map[string]bool, len(orders))
	for _, o := range orders {
		known[o.id] = true
		ours, theirs := payments[o.id], charges[o.id]
		want := ""
		switch {
		case o.status == "pending":
			continue
		case o.status == "confirmed", o.status == "dispatched":
			want = "captured"
			captured.orders += o.total
		case o.confirmed: // and cancelled
			want = "refunded"
			refunded.orders += o.total
		}
		if !settled(o, want, ours, theirs) {
			i.unsettled("order %s over %d is %s; payment: %s, provider: %s, want the money %s", o.id, o.total, o.status, ours, theirs, cmp.Or(want, "let go"))
		}
	}
	for id, p := range payments {
		captured.payments += p.in("captured")
		refunded.payments += p.in("refunded")
		if !known[id] {
			i.unsettled("there is a payment of order %s, which does not exist: %s", id, p)
		}
	}
	for id, p := range charges {
		captured.charges += p.in("captured")
		refunded.charges += p.in("refunded")
		if !known[id] {
			i.unsettled("the provider has a charge for order %s, which does not exist: %s", id, p)
		}
	}
	for what, s := range map[string]sums{"captured": captured, "refunded": refunded} {
		if s.payments != s.orders || s.charges != s.orders {
			i.unsettled("%s: orders are worth %d, payment has %d, the provider %d", what, s.orders, s.payments, s.charges)
		}
	}
	i.Checked = fmt.Sprintf("%s, %s, %d captured, %d refunded", things(len(payments), "payment"), things(len(charges), "charge"), captured.payments, refunded.payments)
	return i, nil
}

// sums are what three sides say of the same money.
type sums struct{ orders, payments, charges int64 }

// in is the amount of a payment in that state.
func (p payment) in(status string) int64 {
	if p.status != status {
		return 0
	}
	return p.amount
}

// settled reports whether payment and provider have the money of an order at rest where it belongs: captured or
// refunded, if that is wanted, and else nowhere.
func settled(o order, want string, ours, theirs payment) bool {
	switch {
	case want != "":
		return ours.status == want && theirs.status == want && ours.amount == o.total && theirs.amount == o.total
	case ours.status == "":
		return theirs.status == "" // payment asks nobody before it has written that down
	case ours.amount != o.total:
		return false
	case theirs.status == "voided" && theirs.amount == 0:
		return ours.status == "voided" // before it came: the provider has closed the door
	case theirs.amount != o.total:
		return false
	case ours.status == "voided":
		return theirs.status == "voided" || theirs.status == "declined" // nothing was held
	}
	return ours.status == "declined" && theirs.status == "declined"
}

func (c *checker) byOrder(ctx context.Context, service, query string) (map[string]payment, error) {
	rows, err := collect(ctx, c.db[service], query, scanPayment)
	out := make(map[string]payment, len(rows))
	for _, p := range rows {
		out[p.order] = p
	}
	return out, err
}

// credit compares what is reserved with the reservations, and these with their orders.
func (c *checker) credit(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 4, Name: "credit: what is reserved is that of the orders in flight, within the limit"}
	type account struct {
		customer                      string
		limit, reserved, reservations int64
	}
	accounts, err := collect(ctx, c.db["customer"], `SELECT c.id, c.credit_limit, c.credit_reserved,
		COALESCE((SELECT SUM(r.amount) FROM credit_reservations r WHERE r.customer_id = c.id AND r.status = 'reserved'), 0) FROM customers c`,
		func(a *account) []any { return []any{&a.customer, &a.limit, &a.reserved, &a.reservations} })
	if err != nil {
		return i, err
	}
	for _, a := range accounts {
		if a.reserved != a.reservations || a.reserved > a.limit || a.reserved < 0 {
			i.violated("customer %s: limit %d, reserved %d, reservations %d", a.customer, a.limit, a.reserved, a.reservations)
		}
		if a.reserved != 0 {
			i.unsettled("customer %s: %d are still reserved", a.customer, a.reserved)
		}
	}
	type reservation struct {
		order, customer, status string
		amount                  int64
	}
	rows, err := collect(ctx, c.db["customer"], `SELECT order_id, customer_id, status, amount FROM credit_reservations`, func(r *reservation) []any {
		return []any{&r.order, &r.customer, &r.status, &r.amount}
	})
	if err != nil {
		return i, err
	}
	reservations := make(map[string]reservation, len(rows))
	for _, r := range rows {
		reservations[r.order] = r
	}
	known := make(map[string]bool, len(orders))
	for _, o := range orders {
		known[o.id] = true
		r := reservations[o.id]
		switch {
		case r.status != "" && (r.amount != o.total || r.customer != o.customer):
			i.violated("order %s over %d of customer %s: %d of customer %s are %s", o.id, o.total, o.customer, r.amount, r.customer, r.status)
		case o.status == "pending":
		case o.confirmed && r.status != "settled", !o.confirmed && r.status != "released" && r.status != "":
			i.unsettled("order %s is %s, its credit is %q", o.id, o.status, r.status)
		}
	}
	for _, r := range rows {
		if !known[r.order] {
			i.unsettled("credit of customer %s is %s for order %s, which does not exist", r.customer, r.status, r.order)
		}
	}
	i.Checked = fmt.Sprintf("%s, %s", things(len(accounts), "customer"), things(len(rows), "reservation"))
	return i, nil
}
