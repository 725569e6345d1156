// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
)

// pieces are numbers of pieces by product.
type pieces map[string]int64

func (p pieces) String() string {
	if len(p) == 0 {
		return "none"
	}
	var out []string
	for _, product := range slices.Sorted(maps.Keys(p)) {
		out = append(out, fmt.Sprintf("%d of %s", p[product], product))
	}
	return strings.Join(out, ", ")
}

func ordered(lines []kernel.OrderLine) pieces {
	out := pieces{}
	for _, l := range lines {
		out[l.ProductID] += l.Quantity
	}
	return out
}

// stock compares each product's figures with each other, with its reservations and with what the catalogue shows, and
// the reservations with their orders.
func (c *checker) stock(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 3, Name: "stock: initial = available + reserved + sold, never negative, sold as ordered"}
	type figures struct {
		product                            string
		initial, available, reserved, sold int64
		// promised and gone are what the reservations come to.
		promised, gone int64
	}
	// One statement: all of it is of one moment.
	rows, err := collect(ctx, c.db["inventory"], `SELECT s.product_id, s.initial, s.available, s.reserved, s.sold, COALESCE(r.promised, 0), COALESCE(r.gone, 0) FROM stock s LEFT JOIN
		(SELECT product_id, SUM(CASE WHEN status = 'reserved' THEN quantity ELSE 0 END) AS promised, SUM(CASE WHEN status = 'sold' THEN quantity ELSE 0 END) AS gone
		FROM reservations GROUP BY product_id) r ON r.product_id = s.product_id ORDER BY s.product_id`, func(f *figures) []any {
		return []any{&f.product, &f.initial, &f.available, &f.reserved, &f.sold, &f.promised, &f.gone}
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
		if s.reserved != s.promised || s.sold != s.gone {
			i.violated("product %s: reserved %d, sold %d; its reservations come to %d and %d", s.product, s.reserved, s.sold, s.promised, s.gone)
		}
		if s.reserved != 0 {
			i.unsettled("product %s: %d pieces are still reserved", s.product, s.reserved)
		}
	}
	if err := c.reservations(ctx, &i, orders); err != nil {
		return i, err
	}
	listed, err := collect(ctx, c.db["catalog"], `SELECT product_id, available FROM availability ORDER BY product_id`, func(f *figures) []any { return []any{&f.product, &f.available} })
	if err != nil {
		return i, err
	}
	shown := pieces{}
	for _, s := range listed {
		shown[s.product] = s.available
	}
	for _, s := range rows {
		if n, ok := shown[s.product]; !ok || n != s.available {
			i.unsettled("product %s: %d available, the catalogue shows %d", s.product, s.available, n)
		}
		delete(shown, s.product)
	}
	for _, product := range slices.Sorted(maps.Keys(shown)) {
		i.unsettled("product %s: the catalogue shows %d, inventory does not have it", product, shown[product])
	}
	i.Checked = fmt.Sprintf("%s, %s sold", things(len(rows), "product"), things(sold, "piece"))
	return i, nil
}

// reservations compares them with their orders: all pieces of an order are reserved, or none.
func (c *checker) reservations(ctx context.Context, i *Invariant, orders []order) error {
	type reservation struct {
		order, product, status string
		quantity               int64
	}
	rows, err := collect(ctx, c.db["inventory"], `SELECT order_id, product_id, status, quantity FROM reservations ORDER BY order_id, product_id`, func(r *reservation) []any {
		return []any{&r.order, &r.product, &r.status, &r.quantity}
	})
	if err != nil {
		return err
	}
	states, reserved := map[string]string{}, map[string]pieces{}
	for _, r := range rows {
		switch states[r.order] {
		case "":
			states[r.order], reserved[r.order] = r.status, pieces{}
		case r.status:
		default:
			i.violated("order %s: its pieces are both %s and %s", r.order, states[r.order], r.status)
		}
		reserved[r.order][r.product] += r.quantity
	}
	want := map[string][]string{"confirmed": {"sold"}, "dispatched": {"sold"}, "rejected": {"", "released"}, "cancelled": {"", "released", "restocked"}}
	for _, o := range orders {
		if o.status != "pending" && !slices.Contains(want[o.status], states[o.id]) {
			i.unsettled("order %s is %s, its pieces are %q", o.id, o.status, states[o.id])
		}
		if got, want := reserved[o.id], ordered(o.lines); got != nil && !maps.Equal(got, want) {
			i.violated("order %s is of %s; reserved were %s", o.id, want, got)
		}
		delete(states, o.id)
	}
	for _, id := range slices.Sorted(maps.Keys(states)) {
		i.unsettled("%s are %s for order %s, which does not exist", reserved[id], states[id], id)
	}
	return nil
}
