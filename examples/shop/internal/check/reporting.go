// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// reporting looks for readings of the stream that did not come to the figures that serve, and compares these with
// the order service's own books, which nobody has told reporting.
func (c *checker) reporting(ctx context.Context, orders []order) (Invariant, error) {
	i := Invariant{Number: 7, Name: "reporting, rebuilt from zero, equals what it had, and has counted what happened, each event once"}
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
	builds, err := c.rebuilds(ctx, &i)
	if err != nil {
		return i, err
	}
	i.Checked = fmt.Sprintf("%s placed, %d in revenue, read %s", things(got[0].placed, "order"), got[0].revenue, things(builds, "time"))
	return i, nil
}

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
