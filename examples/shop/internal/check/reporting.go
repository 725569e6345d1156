// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
)

// reporting looks for readings of the stream that did not come to the figures that serve, and compares these with
// the order service's own books, which nobody has told reporting.
func (c *checker) reporting(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 7, Name: "reporting, rebuilt from zero, equals what it had, and has counted what happened, each event once"}
	got, want, err := c.days(ctx)
	if err != nil {
		return i, err
	}
	var placed, revenue int64
	for _, day := range slices.Sorted(maps.Keys(got)) {
		placed, revenue = placed+got[day].placed, revenue+got[day].revenue
		if got[day] != want[day] {
			i.unsettled("reporting counts %+v on %s, order has %+v", got[day], day, want[day])
		}
		delete(want, day)
	}
	for _, day := range slices.Sorted(maps.Keys(want)) {
		i.unsettled("reporting counts nothing on %s, order has %+v", day, want[day])
	}
	if err := c.sales(ctx, &i, orders); err != nil {
		return i, err
	}
	builds, err := c.rebuilds(ctx, &i)
	if err != nil {
		return i, err
	}
	i.Checked = fmt.Sprintf("%s placed, %v in revenue, read %s", things(placed, "order"), kernel.Money(revenue), things(builds, "time"))
	return i, nil
}

// figures are those of one day.
type figures struct{ placed, confirmed, dispatched, rejected, cancelled, revenue int64 }

// days returns what reporting counts of each day, and what order has.
func (c *checker) days(ctx context.Context) (got, want map[string]figures, err error) {
	type row struct {
		day string
		figures
	}
	fields := func(r *row) []any {
		return []any{&r.day, &r.placed, &r.confirmed, &r.dispatched, &r.rejected, &r.cancelled, &r.revenue}
	}
	rows, err := collect(ctx, c.db["reporting"], `SELECT day, placed, confirmed, dispatched, rejected, cancelled, revenue FROM days`+ofServing, fields)
	if err != nil {
		return nil, nil, err
	}
	got = map[string]figures{}
	for _, r := range rows {
		got[r.day] = r.figures
	}
	// What was confirmed is sold, and no more once it is cancelled.
	rows, err = collect(ctx, c.db["order"], `SELECT CAST(e.happened / 86400000000000 AS TEXT), SUM(CASE WHEN e.event_type = 'order.placed.v1' THEN 1 ELSE 0 END),
		SUM(CASE WHEN e.event_type = 'order.confirmed.v1' THEN 1 ELSE 0 END), SUM(CASE WHEN e.event_type = 'order.dispatched.v1' THEN 1 ELSE 0 END),
		SUM(CASE WHEN e.event_type = 'order.rejected.v1' THEN 1 ELSE 0 END), SUM(CASE WHEN e.event_type = 'order.cancelled.v1' THEN 1 ELSE 0 END),
		COALESCE(SUM(CASE WHEN e.event_type = 'order.confirmed.v1' THEN o.total WHEN e.event_type = 'order.cancelled.v1' AND sold.stream IS NOT NULL THEN -o.total ELSE 0 END), 0)
		FROM eventsource_event e LEFT JOIN orders o ON e.stream = 'order-' || o.id
		LEFT JOIN eventsource_event sold ON sold.stream = e.stream AND sold.event_type = 'order.confirmed.v1' AND e.event_type = 'order.cancelled.v1'
		GROUP BY e.happened / 86400000000000`, fields)
	if err != nil {
		return nil, nil, err
	}
	want = map[string]figures{}
	for _, r := range rows {
		days, err := strconv.ParseInt(r.day, 10, 64)
		if err != nil {
			return nil, nil, err
		}
		want[time.Unix(days*86400, 0).UTC().Format(time.DateOnly)] = r.figures
	}
	return got, want, nil
}

// ofServing selects the figures that serve.
const ofServing = ` WHERE build = (SELECT MAX(build) FROM builds WHERE status = 'serving')`

// rebuilds looks at the times that the stream was read from its beginning, and returns how many they are. One that came
// to other figures than those that serve is a violation until a later one has come to the same.
func (c *checker) rebuilds(ctx context.Context, i *Invariant) (builds int, err error) {
	type build struct {
		number              int64
		status, differences string
	}
	rows, err := collect(ctx, c.db["reporting"], `SELECT build, status, differences FROM builds ORDER BY build`, func(b *build) []any {
		return []any{&b.number, &b.status, &b.differences}
	})
	if err != nil {
		return 0, err
	}
	var serving int64
	for _, b := range rows {
		if b.status == "serving" {
			serving = b.number
		}
	}
	if serving == 0 {
		i.unsettled("no build serves")
	}
	for _, b := range rows {
		if b.status == "different" && b.number > serving {
			i.violated("build %d, read from the beginning, is not what build %d has: %s differ", b.number, serving, b.differences)
		}
	}
	return len(rows), nil
}

// sales compares what reporting has counted by product and by order with what order and inventory have.
func (c *checker) sales(ctx context.Context, i *Invariant, orders []order) error {
	type figure struct {
		of    string
		count int64
	}
	scan := func(f *figure) []any { return []any{&f.of, &f.count} }
	compare := func(what string, got, want map[string]int64) {
		for _, of := range slices.Sorted(maps.Keys(want)) {
			if got[of] != want[of] {
				i.unsettled("reporting counts %d %s of %s, want %d", got[of], what, of, want[of])
			}
		}
		for _, of := range slices.Sorted(maps.Keys(got)) {
			if _, ok := want[of]; !ok && got[of] != 0 {
				i.unsettled("reporting counts %d %s of %s, want none", got[of], what, of)
			}
		}
	}
	read := func(service, query string) (map[string]int64, error) {
		rows, err := collect(ctx, c.db[service], query, scan)
		out := map[string]int64{}
		for _, r := range rows {
			out[r.of] += r.count
		}
		return out, err
	}

	got, err := read("reporting", `SELECT product_id, quantity FROM products`+ofServing)
	if err != nil {
		return err
	}
	want, err := read("inventory", `SELECT product_id, sold FROM stock WHERE sold <> 0`)
	if err != nil {
		return err
	}
	compare("sold pieces", got, want)

	if got, err = read("reporting", `SELECT product_id, revenue FROM products`+ofServing); err != nil {
		return err
	}
	want = map[string]int64{}
	for _, o := range orders {
		if o.paid() {
			for _, l := range o.lines {
				want[l.ProductID] += l.Quantity * int64(l.Price)
			}
		}
	}
	compare("in revenue", got, want)

	if got, err = read("reporting", `SELECT order_id, 1 FROM sold`+ofServing); err != nil {
		return err
	}
	want = map[string]int64{}
	for _, o := range orders {
		if o.paid() {
			want[o.id] = 1
		}
	}
	compare("sales", got, want)
	return nil
}
