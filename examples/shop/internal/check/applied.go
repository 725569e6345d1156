// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/reporting"
	"github.com/dovetail-go/dovetail/messaging"
)

// group is a consumer group and the service that applies for it.
type group struct {
	service, name string
	topics        []string // patterns
	dead          map[string]string
	heard         heard
}

// applied compares three records of the last week, key by key: the orders' histories with what their service has
// published, and what each service has published with what each group that wants it has applied.
//
// A dead letter is not applied, whatever its reason: an operator mends and replays it. What was replayed is not
// expected to be in order.
func (c *checker) applied(ctx context.Context, _ []order) (Invariant, error) {
	i := Invariant{Number: 6, Name: "every event published is applied once by every group, those of a key in order"}
	if err := c.told(ctx, &i); err != nil {
		return i, err
	}
	groups, err := c.groups(ctx)
	if err != nil {
		return i, err
	}
	events, applications := 0, 0
	heard := map[string]bool{}
	for _, publisher := range speakers {
		type topic struct {
			name   string
			events int
		}
		topics, err := collect(ctx, c.db[publisher], `SELECT topic, COUNT(*) FROM outbox_archive GROUP BY topic`, func(t *topic) []any { return []any{&t.name, &t.events} })
		if err != nil {
			return i, err
		}
		for _, t := range topics {
			events += t.events
		}
		for _, g := range groups {
			var wanted []string
			for _, t := range topics {
				if matches(g.topics, t.name) {
					wanted = append(wanted, t.name)
				}
			}
			if len(wanted) == 0 {
				continue
			}
			heard[g.name] = true
			n, err := c.follows(ctx, &i, publisher, g, wanted)
			if err != nil {
				return i, fmt.Errorf("%s and %s: %w", publisher, g.name, err)
			}
			applications += n
		}
	}
	i.Checked = fmt.Sprintf("%s of %d days, applied %s by %s", things(events, "event"), platform.PublishedFor/(24*time.Hour), things(applications, "time"), things(len(heard), "group"))
	return i, nil
}

func matches(patterns []string, topic string) bool {
	for _, p := range patterns {
		if messaging.Match(p, topic) {
			return true
		}
	}
	return false
}

// groups are all groups of the shop, and the readings of the stream that reporting's figures come from.
func (c *checker) groups(ctx context.Context) (out []group, err error) {
	for service, listeners := range assembly.Listeners() {
		for _, l := range listeners {
			out = append(out, group{service: service, name: l.Group, topics: l.Topics})
		}
	}
	serving, err := collect(ctx, c.db["reporting"], `SELECT build FROM builds WHERE status = 'serving'`, func(build *int64) []any { return []any{build} })
	if err != nil {
		return nil, err
	}
	for _, build := range serving {
		r := reporting.Reader(build)
		out = append(out, group{service: "reporting", name: r.Group, topics: r.Topics})
	}
	for n := range out {
		letters, err := collect(ctx, c.db[out[n].service], `SELECT consumer, message_id, reason FROM dead_letters`, func(d *deadLetter) []any {
			return []any{&d.consumer, &d.message, &d.reason}
		})
		if err != nil {
			return nil, err
		}
		if out[n].heard, err = c.heard(ctx, out[n].service); err != nil {
			return nil, err
		}
		out[n].dead = map[string]string{}
		for _, d := range letters {
			if d.consumer == out[n].name {
				out[n].dead[d.message] = d.reason
			}
		}
	}
	return out, nil
}

// heard is since when the groups of a service hear a topic that they did not hear from the beginning.
type heard map[[2]string]int64

func (c *checker) heard(ctx context.Context, service string) (heard, error) {
	type row struct {
		group, topic string
		since        int64
	}
	rows, err := collect(ctx, c.db[service], `SELECT consumer, topic, since FROM hears WHERE since > 0`, func(r *row) []any { return []any{&r.group, &r.topic, &r.since} })
	out := heard{}
	for _, r := range rows {
		out[[2]string{r.group, r.topic}] = r.since
	}
	return out, err
}

// since is what selects the messages of some topics in an archive that a group should have heard, and its arguments.
func (h heard) since(group string, topics []string) (where string, args []any) {
	each := make([]string, len(topics))
	for n, topic := range topics {
		args = append(args, topic, h[[2]string{group, topic}])
		each[n] = fmt.Sprintf("topic = $%d AND enqueued >= $%d", 2*n+1, 2*n+2)
	}
	return "(" + strings.Join(each, " OR ") + ")", args
}

// told compares the history of each order with what its service has published of it. An event's ID is that of its
// message. What an operator has given up stays on record as such.
func (c *checker) told(ctx context.Context, i *Invariant) error {
	db := c.db["order"]
	// The archive forgets by the hour.
	since := time.Now().Add(-platform.PublishedFor + time.Hour).UnixMicro()
	history := lines(ctx, db, `SELECT REPLACE(stream, 'order-', ''), event_id, event_type, 0 FROM eventsource_event
		WHERE recorded > $1 ORDER BY REPLACE(stream, 'order-', '')`+bytewise(db)+`, version`, since)
	published := lines(ctx, db, `SELECT message_key, message_id, topic, 0 FROM (SELECT id, message_key, message_id, topic FROM outbox_archive
		UNION ALL SELECT id, message_key, message_id, topic FROM outbox_parked WHERE discarded > 0) AS told ORDER BY message_key`+bytewise(db)+`, id`)
	return along(history, published, func(key string, happened, published []event) {
		known := compare(happened, published, func(e, before event) {
			i.violated("order %s: %s was published after %s, which came later", key, e, before)
		}, func(e event) { i.violated("order %s: %s was published twice", key, e) })
		for _, e := range happened {
			if !known[e.id] {
				i.unsettled("order %s: %s has not been published", key, e)
			}
		}
	})
}

// follows compares what a service has published under some topics with what a group has applied of it, and returns
// how many of these events it has.
func (c *checker) follows(ctx context.Context, i *Invariant, publisher string, g group, topics []string) (applications int, err error) {
	from, to := c.db[publisher], c.db[g.service]
	where, args := g.heard.since(g.name, topics)
	published := lines(ctx, from, `SELECT message_key, message_id, topic, 0 FROM outbox_archive WHERE `+where+` ORDER BY message_key`+bytewise(from)+`, id`, args...)
	these, names := among(topics)
	applied := lines(ctx, to, `SELECT message_key, message_id, topic, replayed FROM applied WHERE `+these+fmt.Sprintf(` AND consumer = $%d`, len(names)+1)+
		` ORDER BY message_key`+bytewise(to)+`, position`, append(names, g.name)...)
	err = along(published, applied, func(key string, published, applied []event) {
		known := compare(published, applied, func(e, before event) {
			i.violated("%s has applied %s of %s after %s, which came later", g.name, e, key, before)
		}, func(e event) { i.violated("%s has applied %s of %s twice", g.name, e, key) })
		for _, e := range published {
			reason, dead := g.dead[e.id]
			switch {
			case known[e.id]:
				applications++
			case dead:
				i.unsettled("%s has not applied %s of %s, it is a dead letter: %s", g.name, e, key, reason)
			default:
				i.unsettled("%s has not applied %s of %s", g.name, e, key)
			}
		}
	})
	return applications, err
}

// among is what selects the messages of some topics, and its arguments.
func among(topics []string) (where string, args []any) {
	each := make([]string, len(topics))
	for n, topic := range topics {
		args, each[n] = append(args, topic), fmt.Sprintf("$%d", n+1)
	}
	return "topic IN (" + strings.Join(each, ", ") + ")", args
}

// event is one event on record.
type event struct {
	id, topic string
	replayed  bool
}

func (e event) String() string { return e.topic + " " + e.id }

// compare looks whether what is there of a key is there once and in the order of first. It returns what is there.
func compare(first, second []event, disordered func(e, before event), repeated func(e event)) (known map[string]bool) {
	place := make(map[string]int, len(first))
	for n, e := range first {
		place[e.id] = n
	}
	known = make(map[string]bool, len(second))
	last := -1
	for _, e := range second {
		n, ok := place[e.id]
		switch {
		case known[e.id]:
			repeated(e)
		case !ok, e.replayed: // too old, or an operator's choice
		case n < last:
			disordered(e, first[last])
		default:
			last = n
		}
		known[e.id] = true
	}
	return known
}

// line is what is on record of one key, in its order.
type line struct {
	key    string
	events []event
}

// lines reads rows of key, ID, topic and replayed that are sorted by key. It holds no more than one key's at a time: a
// shop may have sold much in a week.
func lines(ctx context.Context, db *sql.DB, query string, args ...any) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		rows, err := db.QueryContext(ctx, query, args...)
		if err != nil {
			yield(line{}, err)
			return
		}
		defer func() { _ = rows.Close() }()
		var l line
		for rows.Next() {
			var key string
			var e event
			if err := rows.Scan(&key, &e.id, &e.topic, &e.replayed); err != nil {
				yield(line{}, err)
				return
			}
			if len(l.events) > 0 && key != l.key {
				if !yield(l, nil) {
					return
				}
				l.events = nil
			}
			l.key, l.events = key, append(l.events, e)
		}
		if err := rows.Err(); err != nil {
			yield(line{}, err)
		} else if len(l.events) > 0 {
			yield(l, nil)
		}
	}
}

// bytewise sorts text as Go compares it.
func bytewise(db *sql.DB) string {
	if platform.DialectOf(db) == platform.Postgres {
		return ` COLLATE "C"`
	}
	return ` COLLATE BINARY`
}

// along walks two records that are sorted by key, and hands each key of the first to compare with what both have of it.
func along(first, second iter.Seq2[line, error], compare func(key string, first, second []event)) error {
	next, stop := iter.Pull2(second)
	defer stop()
	other, failed, more := next()
	for l, err := range first {
		for failed == nil && more && other.key < l.key {
			other, failed, more = next()
		}
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if more && other.key == l.key {
			compare(l.key, l.events, other.events)
		} else {
			compare(l.key, l.events, nil)
		}
	}
	return nil
}
