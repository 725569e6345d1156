// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging"
	dovetail "github.com/dovetail-go/dovetail/outbox"
)

// A curve is what a message costs as something grows.
type curve struct {
	name  string
	at    []int
	costs []measure
}

// growth measures what a message costs beside ever more rows and keys. The most rows are a
// million, or DOVETAIL_BENCH_ROWS.
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
		{name: "inbox, beside so many marks", at: rows},
		{name: "relay, of so many keys", at: keys},
	}
	for i, measured := range []func(c *curve) error{b.backlog, b.history, b.keys} {
		if err := measured(curves[i]); err != nil {
			return fmt.Errorf("%s: %w", curves[i].name, err)
		}
	}
	fmt.Fprint(b.w, "### Growth\n\nWhat a message costs, in µs on the clock, with a publisher that costs nothing: of 5,000 messages the relay's share, in batches of 100 the inbox's. "+
		"The first row of a shard is found by its index, and so is a mark. A single key goes one message at a time: at most one of a key is in flight.\n\n"+
		"![growth](results/outbox-growth.svg)\n\n")
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
	for _, c := range curves[:2] {
		first, last := c.costs[0].median(), c.costs[len(c.at)-1].median()
		b.goal(fmt.Sprintf("%s: %d cost at most twice what %d cost", c.name, most, rows[0]), last/first, last <= 2*first, "")
	}
	fmt.Fprintln(b.w)
	return draw3(curves, filepath.Join("results", "outbox-growth.svg"))
}

// nowhere takes every message.
type nowhere struct{}

func (nowhere) Publish(context.Context, ...*messaging.Message) error { return nil }

// backlog measures a relay of which only the first messages matter.
func (b *bench) backlog(c *curve) error {
	const n = 5000
	for _, size := range c.at {
		box, err := b.store(b.db, "backlog_", dovetail.Config{})
		if err != nil {
			return err
		}
		m := measure{}
		if _, err := b.db.ExecContext(b.ctx, `INSERT INTO backlog_outbox_message (shard, message_id, topic, message_key, message_type, happened, header, body, enqueued)
			SELECT i % 16, 'm' || i, 'bench.order', 'k' || i % 10000, '', 0, '', decode(repeat('00', 100), 'hex'), 0 FROM generate_series(1, `+strconv.Itoa(size+b.rounds*(n+3000))+`) i`); err != nil {
			return err
		}
		if _, err := b.db.ExecContext(b.ctx, "ANALYZE backlog_outbox_message"); err != nil {
			return err
		}
		for range b.rounds {
			wall, _, err := b.confirmed(box, nowhere{}, n, false)
			if err != nil {
				return err
			}
			m.add(float64(wall.Nanoseconds()) / 1000 / n)
			b.log("growth_backlog", strconv.Itoa(size), n, float64(wall.Nanoseconds())/n, "ns/op")
		}
		c.costs = append(c.costs, m)
		if _, err := b.db.ExecContext(b.ctx, "TRUNCATE backlog_outbox_message"); err != nil {
			return err
		}
	}
	return nil
}

// history measures the inbox beside the marks of former messages.
func (b *bench) history(c *curve) error {
	const n = 5000
	store, err := b.marks("history_")
	if err != nil {
		return err
	}
	have := 0
	for _, size := range c.at {
		if _, err := b.db.ExecContext(b.ctx, `INSERT INTO history_idempotency_inbox (consumer, id, batch, seen_at) SELECT 'old', gen_random_uuid()::text, 0, 0 FROM generate_series(1, `+strconv.Itoa(size-have)+`)`); err != nil {
			return err
		}
		have = size
		m := measure{}
		for range b.rounds {
			begin := time.Now()
			for range n / 100 {
				if err := b.once(store); err != nil {
					return err
				}
			}
			took := time.Since(begin)
			m.add(float64(took.Nanoseconds()) / 1000 / n)
			b.log("growth_inbox", strconv.Itoa(size), n, float64(took.Nanoseconds())/n, "ns/op")
		}
		c.costs = append(c.costs, m)
	}
	return nil
}

// once marks a hundred messages in a transaction.
func (b *bench) once(inbox idempotency.Inbox) error {
	tx, err := b.db.BeginTx(b.ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = messaging.NewID()
	}
	if _, err := inbox.OnceMany(b.ctx, tx, "bench", ids); err != nil {
		return err
	}
	return tx.Commit()
}

// keys measures a relay of messages of so many keys.
func (b *bench) keys(c *curve) error {
	for _, size := range c.at {
		n := max(5000, size)
		m := measure{}
		for range b.rounds {
			box, err := b.store(b.db, "keys_", dovetail.Config{})
			if err != nil {
				return err
			}
			msgs := make([]*messaging.Message, 0, 500)
			for i := range n {
				msgs = append(msgs, &messaging.Message{Topic: topic, Key: strconv.Itoa(i % size), Body: make([]byte, 100)})
				if len(msgs) == cap(msgs) || i == n-1 {
					if err := box.Enqueue(b.ctx, b.db, msgs...); err != nil {
						return err
					}
					msgs = msgs[:0]
				}
			}
			wall, _, err := b.confirmed(box, nowhere{}, n, true)
			if err != nil {
				return err
			}
			m.add(float64(wall.Nanoseconds()) / 1000 / float64(n))
			b.log("growth_keys", strconv.Itoa(size), n, float64(wall.Nanoseconds())/float64(n), "ns/op")
		}
		c.costs = append(c.costs, m)
	}
	return nil
}

// draw3 plots the curves, the size on a logarithmic axis.
func draw3(curves []*curve, name string) error {
	p := plot.New()
	p.Title.Text = "Cost of a message as rows and keys grow"
	p.X.Label.Text, p.Y.Label.Text = "rows or keys", "µs per message"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{}
	p.Y.Min = 0
	p.Legend.Top = true
	colours := []color.RGBA{{R: 31, G: 119, B: 180, A: 255}, {R: 214, G: 39, B: 40, A: 255}, {R: 44, G: 160, B: 44, A: 255}}
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
