// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
)

// payment is the payment of an order, as payment or its provider knows it.
type payment struct {
	order, status, currency, method string
	amount                          int64
	// of is whose it is: for payment the customer, for the provider the order, by the reference that it was given.
	of string
}

func scanPayment(p *payment) []any {
	return []any{&p.order, &p.status, &p.amount, &p.currency, &p.method, &p.of}
}

func (p payment) String() string {
	if p.status == "" {
		return "none"
	}
	return fmt.Sprintf("%s %d", p.status, p.amount)
}

// never reports whether a charge never came: the provider has closed the door before it, and knows nothing of it.
func (p payment) never() bool { return p.status == "voided" && p.amount == 0 }

// money compares each order with its payment and with the charge at the provider, and then the sums of the three.
func (c *checker) money(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 2, Name: "captured money is that of the confirmed orders, refunded or voided that of the rest; payment and provider agree, charge by charge"}
	payments, err := c.byOrder(ctx, "payment", `SELECT order_id, status, amount, currency, method, customer_id FROM payments`)
	if err != nil {
		return i, err
	}
	charges, err := c.byOrder(ctx, "provider", `SELECT key, status, amount, currency, method, reference FROM charges`)
	if err != nil {
		return i, err
	}
	type news struct {
		order, status string
	}
	rows, err := collect(ctx, c.db["order"], `SELECT order_id, status FROM acknowledged_payments`, func(n *news) []any { return []any{&n.order, &n.status} })
	if err != nil {
		return i, err
	}
	heard := make(map[string]string, len(rows))
	for _, n := range rows {
		heard[n.order] = n.status
	}
	captured, refunded := sums{what: "captured"}, sums{what: "refunded"}
	known := make(map[string]bool, len(orders))
	for _, o := range orders {
		known[o.id] = true
		ours, theirs := payments[o.id], charges[o.id]
		i.another(o, ours, theirs)
		if heard[o.id] != ours.status {
			i.unsettled("order %s has heard that its payment is %q; payment: %s", o.id, heard[o.id], ours)
		}
		want := ""
		switch {
		case o.status == "pending":
			continue
		case o.paid():
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
	for _, id := range slices.Sorted(maps.Keys(payments)) {
		p := payments[id]
		captured.payments += p.in("captured")
		refunded.payments += p.in("refunded")
		if !known[id] {
			i.unsettled("there is a payment of order %s, which does not exist: %s", id, p)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(charges)) {
		p := charges[id]
		captured.charges += p.in("captured")
		refunded.charges += p.in("refunded")
		if !known[id] {
			i.unsettled("the provider has a charge for order %s, which does not exist: %s", id, p)
		}
	}
	for _, s := range []sums{captured, refunded} {
		if s.payments != s.orders || s.charges != s.orders {
			i.unsettled("%s: orders are worth %d, payment has %d, the provider %d", s.what, s.orders, s.payments, s.charges)
		}
	}
	i.Checked = fmt.Sprintf("%s, %s, %v captured, %v refunded", things(len(payments), "payment"), things(len(charges), "charge"), kernel.Money(captured.payments), kernel.Money(refunded.payments))
	return i, nil
}

// sums are what three sides say of the same money.
type sums struct {
	what                      string
	orders, payments, charges int64
}

// another notes what a payment and its charge say of an order that is not so. None of it ever changes.
func (i *Invariant) another(o order, ours, theirs payment) {
	differ := func(who, what, got, want string) {
		if got != want {
			i.violated("order %s: %s has the %s %q, want %q", o.id, who, what, got, want)
		}
	}
	if ours.status != "" {
		differ("payment", "customer", ours.of, o.customer)
		differ("payment", "currency", ours.currency, kernel.Currency)
		differ("payment", "method", ours.method, o.method)
	}
	if theirs.status != "" && !theirs.never() {
		differ("the provider", "reference", theirs.of, o.id)
		differ("the provider", "currency", theirs.currency, kernel.Currency)
		differ("the provider", "method", theirs.method, o.method)
	}
}

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
	case theirs.never():
		return ours.status == "voided"
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
	customers := make(map[string]bool, len(accounts))
	for _, a := range accounts {
		customers[a.customer] = true
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
		if !customers[r.customer] {
			i.unsettled("credit over %d is %s for order %s, its customer %s does not exist", r.amount, r.status, r.order, r.customer)
		}
		if !known[r.order] {
			i.unsettled("credit of customer %s is %s for order %s, which does not exist", r.customer, r.status, r.order)
		}
	}
	i.Checked = fmt.Sprintf("%s, %s", things(len(accounts), "customer"), things(len(rows), "reservation"))
	return i, nil
}
