// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcesql

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
)

// The order in PostgreSQL is that of a sequence, whose numbers are not committed in their
// order. A reader that goes past a number which is still to be committed loses its event;
// one that waits for all writers of the server (the usual way out: a transaction
// ID below the oldest that runs) is held up by a report in another database.
//
// So each append takes a lock before it takes numbers: a shared advisory lock, for
// which nobody ever waits, whose key says how far the sequence was. A reader reads, in
// this order,
//
//  1. how far the sequence is, S;
//  2. the keys of all the append locks that are held, and their least, F;
//  3. the events up to the smaller of S and F.
//
// A number up to S was taken before step 1, so its append had its lock by then. If step 2
// sees that lock, F is below the number. If not, the transaction ended before, since locks
// are released after a transaction's rows are visible, and step 3, in a snapshot of its
// own, sees its events or they were rolled back. Prepared transactions keep their
// locks, a rollback to a savepoint gives up lock and rows together.
//
// The key must not depend on the order of the events of one stream; that order is safe
// because an append that continues a version has seen that version committed, or wrote it
// itself, before it takes its numbers.

// floorBits is how many bits of a lock's key are the sequence's number, enough for
// 20,000 events a second in 28 years. Above them is a tag of the table.
const floorBits = 44

// tag is the part of the lock's key that tells the logs of one database apart.
func (s *Store) tag() string {
	return "(262144 + CAST(CAST('" + s.event + "' AS regclass) AS oid)::bigint % 262144)"
}

// reached is how far the sequence is at this moment, whatever snapshot the statement has.
func (s *Store) reached() string {
	return "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM " + s.event + "_position)"
}

func (s *Store) insertPostgres(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) (n int64, err error) {
	// The bucket is a parameter as well: drivers prepare statements and keep them by their text.
	args := []any{stream, eventsource.Bucket(stream)}
	for _, e := range events {
		if args, err = row(args, e); err != nil {
			return 0, err
		}
	}
	var b strings.Builder
	b.WriteString("WITH held AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared(" + s.tag() + " << " + strconv.Itoa(floorBits) + " | " + s.reached() + "))," +
		" base AS MATERIALIZED (SELECT COALESCE(MAX(version), 0) AS version FROM " + s.event + " WHERE stream = $1)" +
		" INSERT INTO " + s.event + insertColumns +
		"SELECT $1, $2::integer, base.version + e.n, e.a, e.b, e.c, e.d, e.e, " + s.dialect.Now() +
		// The numbers are taken for the rows of this join, so after the lock.
		" FROM held CROSS JOIN base CROSS JOIN (VALUES ")
	for i := range events {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteByte('(')
		b.WriteString(strconv.Itoa(i + 1))
		for j, kind := range [...]string{"text", "text", "bigint", "text", "bytea"} {
			b.WriteString(", $")
			b.WriteString(strconv.Itoa(3 + 5*i + j))
			if i == 0 {
				b.WriteString("::" + kind)
			}
		}
		b.WriteByte(')')
	}
	b.WriteString(") AS e (n, a, b, c, d, e) WHERE ")
	switch v, exact := want.Version(); {
	case exact:
		args = append(args, v)
		b.WriteString("base.version = $" + strconv.Itoa(len(args)) + "::bigint")
	default:
		b.WriteString(condition(want, "base.version"))
	}
	if len(events) > 1 {
		b.WriteString(" ORDER BY e.n")
	}
	return affected(tx.ExecContext(ctx, b.String(), args...))
}

// horizonPostgres looks at the sequence, then at the locks, in one statement: the second part
// refers to the first, so it is evaluated after it. The age takes a look at each holder's
// session.
func (s *Store) horizonPostgres(ctx context.Context, age bool) (h eventsource.Horizon, err error) {
	oldest, join := "0", ""
	if age {
		oldest = "COALESCE(MAX(CAST(extract(epoch FROM clock_timestamp() - COALESCE(a.xact_start, p.prepared)) * 1000000 AS bigint)), 0)"
		join = " LEFT JOIN pg_stat_get_activity(f.pid) AS a ON f.pid IS NOT NULL" +
			" LEFT JOIN pg_prepared_xacts AS p ON f.pid IS NULL AND f.virtualtransaction = '-1/' || p.transaction::text"
	}
	const key = "(classid::bigint << 32 | objid::bigint)"
	var head, floor, open, micros int64
	err = s.db.QueryRowContext(ctx, "WITH s AS MATERIALIZED (SELECT "+s.reached()+" AS head, "+s.tag()+" AS tag)"+
		" SELECT s.head, l.floor, l.open, l.age FROM s CROSS JOIN LATERAL (SELECT COALESCE(MIN(f.floor), s.head) AS floor, COUNT(*) AS open, "+oldest+" AS age"+
		" FROM (SELECT pid, virtualtransaction, "+key+" & "+strconv.FormatInt(1<<floorBits-1, 10)+" AS floor"+
		" FROM pg_locks WHERE s.head >= 0 AND locktype = 'advisory' AND objsubid = 1 AND mode = 'ShareLock' AND granted"+
		" AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"+
		" AND "+key+" >> "+strconv.Itoa(floorBits)+" = s.tag) AS f"+join+") AS l").
		Scan(&head, &floor, &open, &micros)
	if err != nil {
		return h, err
	}
	h.Head, h.Cursor = eventsource.Cursor(head), eventsource.Cursor(min(head, floor))
	h.Open, h.Age = int(open), time.Duration(micros)*time.Microsecond
	for {
		known := s.settled.Load()
		if known >= int64(h.Cursor) || s.settled.CompareAndSwap(known, int64(h.Cursor)) {
			return h, nil
		}
	}
}
