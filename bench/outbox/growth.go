// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"errors"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging"
	dovetail "github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// A curve is what a message costs as something grows.
type curve struct {
	name  string
	at    []int
	costs []measure
}

// growth measures what a message costs beside ever more rows and keys. The most rows are a
// million, or DOVETAIL_BENCH_ROWS: ten million take five minutes and 4 GB of the database's disk.
func (b *bench) growth() error {
	most := 1_000_000
	if v := os.Getenv("DOVETAIL_BENCH_ROWS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 10_000 {
			return fmt.Errorf("outbox: DOVETAIL_BENCH_ROWS is %q, want a number of at least 10000", v)
		}
		most = n
	}
	var rows []int
	for n := 1000; n < most; n *= 10 {
		rows = append(rows, n)
	}
	rows = append(rows, most)
	keys := []int{1, 10, 100, 1000, 10_000, 100_000}
	curves := []*curve{
		{name: "relay, beside so many rows that wait", at: rows},
		{name: "relay with Archive, beside so many archived rows", at: rows},
		{name: "inbox, beside so many marks of 1000 groups", at: rows},
		{name: "relay, of so many keys", at: keys},
	}
	for i, measured := range []func(c *curve) error{b.backlog, b.archive, b.history, b.keys} {
		if err := measured(curves[i]); err != nil {
			return fmt.Errorf("%s: %w", curves[i].name, err)
		}
	}
	fmt.Fprint(b.w, "### Growth\n\nWhat a message costs, in µs on the clock, with a publisher that costs nothing: of 5,000 messages the relay's share, in batches of 100 the inbox's, each batch of another of the groups. "+
		"The first row of a shard is found by its index, and so is a mark; what was published is appended to the archive. A single key goes one message at a time: at most one of a key is in flight.\n\n"+
		"![growth](outbox-growth.svg)\n\n")
	for _, c := range curves {
		fmt.Fprintf(b.w, "| %s | µs/msg ", c.name)
	}
	fmt.Fprint(b.w, "|\n|")
	for range curves {
		fmt.Fprint(b.w, " ---: | ---: |")
	}
	fmt.Fprintln(b.w)
	for i := range max(len(rows), len(keys)) {
		fmt.Fprint(b.w, "|")
		for _, c := range curves {
			if i < len(c.at) {
				fmt.Fprintf(b.w, " %d | %s |", c.at[i], figure(c.costs[i].median()))
			} else {
				fmt.Fprint(b.w, " | |")
			}
		}
		fmt.Fprintln(b.w)
	}
	fmt.Fprintln(b.w)
	for _, c := range curves[:3] {
		ratio := c.costs[len(c.at)-1].over(&c.costs[0])
		b.goal(fmt.Sprintf("%s: %d cost at most twice what %d cost", c.name, most, rows[0]), ratio, ratio <= 2, "")
	}
	fmt.Fprintln(b.w)
	return plotted(curves, filepath.Join("results", "outbox-growth.svg"))
}

// nowhere takes every message.
type nowhere struct{}

func (nowhere) Publish(context.Context, ...*messaging.Message) error { return nil }

// groups is how many consumers have marks in the inbox.
const groups = 1000

// rowsOf selects so many rows of an outbox, to be inserted with further columns.
func rowsOf(n int) string {
	return "i % 16, 'm' || i, 'bench.order', 'k' || i % 10000, '', 0, '', decode(repeat('00', 100), 'hex'), 0 FROM generate_series(1, " + strconv.Itoa(n) + ") i"
}

const rowColumns = "shard, message_id, topic, message_key, message_type, happened, header, body, enqueued"

// relayed is how many messages of a backlog are measured in a round. The relay then has more
// in memory, and on their way.
const relayed, ahead = 5000, 3000

// backlog measures a relay of which only the first messages matter. Every size has tables
// of its own, and the sizes take turns.
func (b *bench) backlog(c *curve) error {
	return b.relaying("growth_backlog", c, false, func(prefix string, size int) []string {
		return []string{"INSERT INTO " + prefix + "outbox_message (" + rowColumns + ") SELECT " + rowsOf(size+b.rounds*(relayed+ahead))}
	})
}

// archive measures a relay that moves what it has published to an archive.
func (b *bench) archive(c *curve) error {
	return b.relaying("growth_archive", c, true, func(prefix string, size int) []string {
		return []string{
			"INSERT INTO " + prefix + "outbox_message (" + rowColumns + ") SELECT " + rowsOf(b.rounds*(relayed+ahead)),
			"INSERT INTO " + prefix + "outbox_archive (id, published, " + rowColumns + ") SELECT -i, i, " + rowsOf(size),
		}
	})
}

// relaying measures a relay on tables that are filled for each size of a curve.
func (b *bench) relaying(group string, c *curve, archive bool, fill func(prefix string, size int) []string) error {
	boxes := make([]*dovetail.Outbox, len(c.at))
	var tables []string
	for i, size := range c.at {
		prefix := group + strconv.Itoa(size) + "_"
		store, err := outboxsql.New(b.db, outboxsql.Postgres, outboxsql.Config{Prefix: prefix, Archive: archive})
		if err != nil {
			return err
		}
		if err := store.Migrate(b.ctx); err != nil {
			return err
		}
		if boxes[i], err = dovetail.New(store, dovetail.Config{}); err != nil {
			return err
		}
		mine := prefix + "outbox_message, " + prefix + "outbox_archive"
		tables = append(tables, mine)
		if err := b.exec(append(fill(prefix, size), "VACUUM ANALYZE "+mine)...); err != nil {
			return err
		}
	}
	err := b.turns(group, c, func(i int) (float64, int, error) {
		wall, _, err := b.confirmed(boxes[i], nowhere{}, relayed, false)
		return float64(wall.Nanoseconds()), relayed, err
	})
	return errors.Join(err, b.exec("DROP TABLE "+strings.Join(tables, ", ")))
}

// exec executes statements one by one.
func (b *bench) exec(statements ...string) error {
	for _, s := range statements {
		if _, err := b.db.ExecContext(b.ctx, s); err != nil {
			return fmt.Errorf("%.60s: %w", s, err)
		}
	}
	return nil
}

// turns measures the sizes of a curve by turns. What one returns is how many nanoseconds
// how many messages took.
func (b *bench) turns(group string, c *curve, one func(i int) (float64, int, error)) error {
	c.costs = make([]measure, len(c.at))
	for range b.rounds {
		for i, size := range c.at {
			ns, n, err := one(i)
			if err != nil {
				return err
			}
			c.costs[i].add(ns / 1000 / float64(n))
			b.log(group, strconv.Itoa(size), n, ns/float64(n), "ns/op")
		}
	}
	return nil
}

// history measures the inbox beside the marks of former messages, whose IDs grow as those
// of messaging.NewID do.
func (b *bench) history(c *curve) error {
	const n = 5000
	stores := make([]idempotency.Inbox, len(c.at))
	var tables []string
	for i, size := range c.at {
		prefix := "history" + strconv.Itoa(size) + "_"
		store, err := b.marks(prefix)
		if err != nil {
			return err
		}
		stores[i] = store
		mine := prefix + "idempotency_inbox"
		tables = append(tables, mine)
		if err := b.exec(
			"INSERT INTO "+mine+" (consumer, id, batch, seen_at) SELECT 'group' || i % "+strconv.Itoa(groups)+", lpad(i::text, 36, '0'), 0, i FROM generate_series(1, "+strconv.Itoa(size)+") i",
			"VACUUM ANALYZE "+mine,
		); err != nil {
			return err
		}
	}
	batches := 0
	err := b.turns("growth_inbox", c, func(i int) (float64, int, error) {
		begin := time.Now()
		for range n / 100 {
			batches++
			// A prime number of groups further, so that they are not neighbours in the index.
			if err := b.once(stores[i], "group"+strconv.Itoa(batches*7919%groups)); err != nil {
				return 0, 0, err
			}
		}
		return float64(time.Since(begin).Nanoseconds()), n, nil
	})
	return errors.Join(err, b.exec("DROP TABLE "+strings.Join(tables, ", ")))
}

// once marks a hundred messages of a group in a transaction.
func (b *bench) once(inbox idempotency.Inbox, group string) error {
	tx, err := b.db.BeginTx(b.ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = messaging.NewID()
	}
	if _, err := inbox.OnceMany(b.ctx, tx, group, ids); err != nil {
		return err
	}
	return tx.Commit()
}

// keys measures a relay of messages of so many keys.
func (b *bench) keys(c *curve) error {
	return b.turns("growth_keys", c, func(i int) (float64, int, error) {
		size := c.at[i]
		n := max(5000, size)
		box, err := b.store(b.db, "keys_", dovetail.Config{})
		if err != nil {
			return 0, 0, err
		}
		msgs := make([]*messaging.Message, 0, 500)
		for i := range n {
			msgs = append(msgs, &messaging.Message{Topic: topic, Key: strconv.Itoa(i % size), Body: make([]byte, 100)})
			if len(msgs) == cap(msgs) || i == n-1 {
				if err := box.Enqueue(b.ctx, b.db, msgs...); err != nil {
					return 0, 0, err
				}
				msgs = msgs[:0]
			}
		}
		wall, _, err := b.confirmed(box, nowhere{}, n, true)
		return float64(wall.Nanoseconds()), n, err
	})
}

// plotted draws the curves, the size on a logarithmic axis.
func plotted(curves []*curve, name string) error {
	p := plot.New()
	p.Title.Text = "Cost of a message as rows and keys grow"
	p.X.Label.Text, p.Y.Label.Text = "rows or keys", "µs per message"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{}
	p.Y.Min = 0
	p.Legend.Top = true
	colours := []color.RGBA{{R: 31, G: 119, B: 180, A: 255}, {R: 214, G: 39, B: 40, A: 255}, {R: 44, G: 160, B: 44, A: 255}, {R: 148, G: 103, B: 189, A: 255}}
	for i, c := range curves {
		points := make(plotter.XYs, len(c.at))
		for k := range c.at {
			points[k].X, points[k].Y = float64(c.at[k]), c.costs[k].median()
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = colours[i], colours[i], draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(c.name, line, dots)
	}
	return p.Save(20*vg.Centimeter, 11*vg.Centimeter, name)
}
