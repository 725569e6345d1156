// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/reporting"
	"github.com/dovetail-go/dovetail/messaging"
)

// group is a consumer group and the service that applies for it.
type group struct {
	service, name string
	topics        []string          // patterns
	dead          map[string]string // the reasons of its dead letters, by message
	// since is from when on it hears a topic, in microseconds, if that was not so from the beginning.
	since map[string]int64
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
	var groups []group
	for _, service := range speakers {
		of, err := c.groups(ctx, service)
		if err != nil {
			return i, err
		}
		groups = append(groups, of...)
	}
	events, applications := 0, 0
	listening := map[string]bool{}
	for _, publisher := range speakers {
		type topic struct {
			name   string
			events int
		}
		archived, err := collect(ctx, c.db[publisher], `SELECT topic, COUNT(*) FROM outbox_archive GROUP BY topic ORDER BY topic`, func(t *topic) []any { return []any{&t.name, &t.events} })
		if err != nil {
			return i, err
		}
		topics := listenedTo(publisher)
		for _, t := range archived {
			events += t.events
			if !slices.Contains(topics, t.name) {
				topics = append(topics, t.name)
			}
		}
		for _, g := range groups {
			wanted := g.wants(topics)
			if len(wanted) == 0 {
				continue
			}
			listening[g.name] = true
			n, err := c.follows(ctx, &i, publisher, g, wanted)
			if err != nil {
				return i, fmt.Errorf("%s and %s: %w", publisher, g.name, err)
			}
			applications += n
		}
	}
	i.Checked = fmt.Sprintf("%s of %d days, applied %s by %s", things(events, "event"), platform.PublishedFor/(24*time.Hour), things(applications, "time"), things(len(listening), "group"))
	return i, nil
}

// listenedTo are the topics of a service that somebody names who listens. The first word of a topic is who publishes it.
func listenedTo(publisher string) (topics []string) {
	for _, subscriptions := range assembly.Listeners() {
		for _, s := range subscriptions {
			for _, topic := range s.Topics {
				if of, _, _ := strings.Cut(topic, "."); of == publisher {
					topics = append(topics, topic)
				}
			}
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// wants returns those of some topics that the group listens to.
func (g group) wants(topics []string) (wanted []string) {
	for _, topic := range topics {
		if slices.ContainsFunc(g.topics, func(pattern string) bool { return messaging.Match(pattern, topic) }) {
			wanted = append(wanted, topic)
		}
	}
	return wanted
}

// groups are those of a service, and the readings of the stream that reporting's figures come from.
func (c *checker) groups(ctx context.Context, service string) ([]group, error) {
	subscriptions := slices.Clone(assembly.Listeners()[service])
	if service == "reporting" {
		serving, err := collect(ctx, c.db[service], `SELECT build FROM builds WHERE status = 'serving' ORDER BY build`, func(build *int64) []any { return []any{build} })
		if err != nil {
			return nil, err
		}
		for _, build := range serving {
			subscriptions = append(subscriptions, reporting.Reader(build))
		}
	}
	letters, err := c.deadLetters(ctx, service)
	if err != nil {
		return nil, err
	}
	type beginning struct {
		group, topic string
		since        int64
	}
	late, err := collect(ctx, c.db[service], `SELECT consumer, topic, since FROM hears WHERE since > 0`, func(b *beginning) []any { return []any{&b.group, &b.topic, &b.since} })
	if err != nil {
		return nil, err
	}
	out := make([]group, len(subscriptions))
	for n, s := range subscriptions {
		g := group{service: service, name: s.Group, topics: s.Topics, dead: map[string]string{}, since: map[string]int64{}}
		for _, d := range letters {
			if d.consumer == g.name {
				g.dead[d.message] = d.reason
			}
		}
		for _, b := range late {
			if b.group == g.name {
				g.since[b.topic] = b.since
			}
		}
		out[n] = g
	}
	return out, nil
}

// published reads what a service has published of some topics since the group listens to them, sorted by column. Of what
// was parked it is not known whether somebody has heard it.
func (c *checker) published(ctx context.Context, publisher string, g group, topics []string, column, other string) iter.Seq2[line, error] {
	each, args := make([]string, len(topics)), make([]any, 0, 2*len(topics))
	for n, topic := range topics {
		args = append(args, topic, g.since[topic])
		each[n] = fmt.Sprintf("topic = $%d AND enqueued >= $%d", 2*n+1, 2*n+2)
	}
	db, columns := c.db[publisher], `id, message_key, message_id, topic, enqueued`
	return lines(ctx, db, `SELECT `+column+`, `+other+`, topic, apart FROM (SELECT `+columns+`, 0 AS apart FROM outbox_archive UNION ALL SELECT `+columns+`, 1 FROM outbox_parked) AS published
		WHERE `+strings.Join(each, " OR ")+` ORDER BY `+column+bytewise(db)+`, id`, args...)
}

// remembers reports whether an event, had it been published, would still be on record, and the group listened to its
// topic then.
func (g group) remembers(id, topic string) bool {
	return madeAfter(id, remembered()) && madeAfter(id, time.UnixMicro(g.since[topic]).Add(time.Hour))
}

// madeAfter reports whether an ID was made after a time. One that does not tell is none of the shop's, and was.
func madeAfter(id string, t time.Time) bool {
	born := kernel.Born(id)
	return born.IsZero() || born.After(t)
}

// remembered is since when everything that was published is on record: the archive forgets by the hour.
func remembered() time.Time { return time.Now().Add(-platform.PublishedFor + time.Hour) }

// told compares the history of each order with what its service has published of it. An event's ID is that of its
// message. What an operator has given up stays on record as such.
func (c *checker) told(ctx context.Context, i *Invariant) error {
	db, since := c.db["order"], remembered()
	history := lines(ctx, db, `SELECT REPLACE(stream, 'order-', ''), event_id, event_type, 0 FROM eventsource_event
		WHERE recorded > $1 ORDER BY REPLACE(stream, 'order-', '')`+bytewise(db)+`, version`, since.UnixMicro())
	published := lines(ctx, db, `SELECT message_key, message_id, topic, 0 FROM (SELECT id, message_key, message_id, topic FROM outbox_archive
		UNION ALL SELECT id, message_key, message_id, topic FROM outbox_parked WHERE discarded > 0) AS told ORDER BY message_key`+bytewise(db)+`, id`)
	return along(history, published, func(key string, happened, published []event) {
		known := compare(happened, published, func(e, before event) {
			i.violated("order %s: %s was published after %s, which came later", key, e, before)
		}, func(e event) { i.violated("order %s: %s was published twice", key, e) })
		has := make(map[string]bool, len(happened))
		for _, e := range happened {
			has[e.id] = true
			if !known[e.id] {
				i.unsettled("order %s: %s has not been published", key, e)
			}
		}
		for _, e := range published {
			if !has[e.id] && madeAfter(e.id, since.Add(time.Hour)) {
				i.unsettled("order %s: %s was published and has not happened", key, e)
			}
		}
	})
}

// follows compares what a service has published under some topics with what a group has applied of it, and returns
// how many of these events it has.
func (c *checker) follows(ctx context.Context, i *Invariant, publisher string, g group, topics []string) (applications int, err error) {
	to := c.db[g.service]
	these, names := among(topics)
	applied := lines(ctx, to, `SELECT message_key, message_id, topic, replayed FROM applied WHERE `+these+fmt.Sprintf(` AND consumer = $%d`, len(names)+1)+
		` ORDER BY message_key`+bytewise(to)+`, position`, append(names, g.name)...)
	err = along(c.published(ctx, publisher, g, topics, "message_key", "message_id"), applied, func(key string, published, applied []event) {
		known := compare(published, applied, func(e, before event) {
			i.violated("%s has applied %s of %s after %s, which came later", g.name, e, key, before)
		}, func(e event) { i.violated("%s has applied %s of %s twice", g.name, e, key) })
		told := make(map[string]bool, len(published))
		for _, e := range published {
			told[e.id] = true
			reason, dead := g.dead[e.id]
			switch {
			case known[e.id]:
				applications++
			case e.apart: // parked: for an operator to decide
			case dead:
				i.unsettled("%s has not applied %s of %s, it is a dead letter: %s", g.name, e, key, reason)
			default:
				i.unsettled("%s has not applied %s of %s", g.name, e, key)
			}
		}
		for _, e := range applied {
			if !told[e.id] && g.remembers(e.id, e.topic) {
				i.unsettled("%s has applied %s of %s, which %s has not published", g.name, e, key, publisher)
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

// event is one event on record. One that was parked or replayed is apart: it has no place in the order of the others.
type event struct {
	id, topic string
	apart     bool
}

func (e event) String() string { return e.topic + " " + e.id }

// compare looks whether what is there of a key is there once and in the order of first. It returns what is there.
func compare(first, second []event, disordered func(e, before event), repeated func(e event)) (known map[string]bool) {
	place := make(map[string]int, len(first))
	for n, e := range first {
		if !e.apart {
			place[e.id] = n
		}
	}
	known = make(map[string]bool, len(second))
	last := -1
	for _, e := range second {
		n, ok := place[e.id]
		switch {
		case known[e.id]:
			repeated(e)
		case !ok, e.apart: // too old, or an operator's choice
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

// lines reads rows of key, ID, topic and whether it is apart that are sorted by key. It holds no more than one key's at a time: a
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
			if err := rows.Scan(&key, &e.id, &e.topic, &e.apart); err != nil {
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

// along walks two records that are sorted by key, and hands each key to compare with what both have of it.
func along(first, second iter.Seq2[line, error], compare func(key string, first, second []event)) error {
	next, stop := iter.Pull2(second)
	defer stop()
	other, failed, more := next()
	for l, err := range first {
		for failed == nil && more && other.key < l.key {
			compare(other.key, nil, other.events)
			other, failed, more = next()
		}
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if more && other.key == l.key {
			compare(l.key, l.events, other.events)
			other, failed, more = next()
		} else {
			compare(l.key, l.events, nil)
		}
	}
	for ; failed == nil && more; other, failed, more = next() {
		compare(other.key, nil, other.events)
	}
	return failed
}
