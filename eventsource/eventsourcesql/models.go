// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcesql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// Models keeps the checkpoints and leases of projections in the database of their read
// models. It may be used from many goroutines.
type Models struct {
	db      *sql.DB
	dialect Dialect
	cfg     Config
	// the tables
	shard, owner, active, skipped string
}

var _ eventsource.Models[*sql.Tx] = (*Models)(nil)

// NewModels returns models on db, the database of the read models: that of the events or
// another, of the same dialect or another. Its tables must exist before it is used: see
// [Models.Migrate] and [ModelsSchema].
func NewModels(db *sql.DB, d Dialect, cfg Config) (*Models, error) {
	if db == nil {
		return nil, errors.New("eventsourcesql: DB is nil, want a database")
	}
	return newModels(db, d, cfg)
}

func newModels(db *sql.DB, d Dialect, cfg Config) (*Models, error) {
	if err := check(d, cfg); err != nil {
		return nil, err
	}
	p := cfg.Prefix + "eventsource_"
	return &Models{db: db, dialect: d, cfg: cfg, shard: p + "shard", owner: p + "owner", active: p + "active", skipped: p + "skipped"}, nil
}

// ours selects the rows of a projection.
const ours = " WHERE projection = ? AND revision = ?"

// Begin implements [eventsource.Models].
func (m *Models) Begin(ctx context.Context) (*sql.Tx, error) { return m.db.BeginTx(ctx, nil) }

// exec executes one statement.
func (m *Models) exec(ctx context.Context, query string, args ...any) (int64, error) {
	if m.dialect != MySQL {
		return affected(m.db.ExecContext(ctx, m.dialect.Rebind(query), args...))
	}
	tx, err := m.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	n, err := affected(tx.ExecContext(ctx, m.dialect.Rebind(query), args...))
	if err != nil {
		return 0, err
	}
	return n, tx.Commit()
}

// begin begins a transaction of our own. Under another isolation level MySQL's statements wait
// also for the rows that they look at and leave alone: those of shards with an open batch.
func (m *Models) begin(ctx context.Context) (*sql.Tx, error) {
	if m.dialect == MySQL {
		return m.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	}
	return m.db.BeginTx(ctx, nil)
}

// Lease implements [eventsource.Models].
func (m *Models) Lease(ctx context.Context, r eventsource.ProjectionLease) (v eventsource.ProjectionView, err error) {
	now, ttl, id := m.dialect.Now(), r.TTL.Microseconds(), r.ID
	if r.Leave {
		_, err := m.exec(ctx, "UPDATE "+m.shard+" SET owner = '', expires = 0"+ours+" AND owner = ?", id.Name, id.Revision, r.Owner)
		if err == nil {
			_, err = m.exec(ctx, "DELETE FROM "+m.owner+ours+" AND owner = ?", id.Name, id.Revision, r.Owner)
		}
		return v, err
	}
	for _, shard := range r.Drop {
		if _, err := m.exec(ctx, "UPDATE "+m.shard+" SET owner = '', expires = 0"+ours+" AND shard = ? AND owner = ?", id.Name, id.Revision, shard, r.Owner); err != nil {
			return v, err
		}
	}
	// A lease that has run out is not renewed, because it may be taken at this moment.
	if _, err := m.exec(ctx, "UPDATE "+m.shard+" SET expires = "+now+" + ?"+ours+" AND owner = ? AND expires > "+now, ttl, id.Name, id.Revision, r.Owner); err != nil {
		return v, err
	}
	if err := m.join(ctx, r); err != nil {
		return v, err
	}
	shards, err := m.Shards(ctx, id)
	if err == nil && len(shards) == 0 {
		if err = m.create(ctx, id, r.Shards); err == nil {
			shards, err = m.Shards(ctx, id)
		}
	}
	if err != nil {
		return v, err
	}
	if len(shards) != r.Shards {
		return v, fmt.Errorf("eventsourcesql: projection %v has %d shards, want %d as in table %s", id, r.Shards, len(shards), m.shard)
	}
	if r.Take > 0 {
		if shards, err = m.take(ctx, r, shards); err != nil {
			return v, err
		}
	}
	for _, s := range shards {
		switch s.Owner {
		case r.Owner:
			v.Held = append(v.Held, s)
		case "":
			v.Free++
		}
	}
	err = m.db.QueryRowContext(ctx, m.dialect.Rebind("SELECT COUNT(*) FROM "+m.owner+ours+" AND expires > "+now), id.Name, id.Revision).Scan(&v.Owners)
	return v, err
}

// join makes the owner known to the others for the time of the lease.
func (m *Models) join(ctx context.Context, r eventsource.ProjectionLease) error {
	now, ttl, id := m.dialect.Now(), r.TTL.Microseconds(), r.ID
	n, err := m.exec(ctx, "UPDATE "+m.owner+" SET expires = "+now+" + ?"+ours+" AND owner = ?", ttl, id.Name, id.Revision, r.Owner)
	if err != nil || n > 0 {
		return err
	}
	if _, err := m.exec(ctx, "DELETE FROM "+m.owner+ours+" AND expires < "+now, id.Name, id.Revision); err != nil {
		return err
	}
	_, err = m.exec(ctx, "INSERT INTO "+m.owner+" (projection, revision, owner, expires) VALUES (?, ?, ?, "+now+" + ?) "+
		m.dialect.OnConflictDoNothing("projection, revision, owner"), id.Name, id.Revision, r.Owner, ttl)
	return err
}

// create makes the shards of a projection; several projectors may do it at once.
func (m *Models) create(ctx context.Context, id eventsource.ProjectionID, shards int) error {
	rows, args := make([]string, shards), make([]any, 0, 2*shards)
	for i := range rows {
		rows[i] = "(?, ?, " + strconv.Itoa(i) + ", 0, 0, '', 0, 0, '', '', '', 0, 0)"
		args = append(args, id.Name, id.Revision)
	}
	_, err := m.exec(ctx, "INSERT INTO "+m.shard+" (projection, revision, shard, position, epoch, owner, expires, "+parkedColumns+") VALUES "+
		strings.Join(rows, ", ")+" "+m.dialect.OnConflictDoNothing("projection, revision, shard"), args...)
	return err
}

// take takes free shards, others than a projector is likely to take that does so at the same time.
func (m *Models) take(ctx context.Context, r eventsource.ProjectionLease, shards []eventsource.ProjectionShard) ([]eventsource.ProjectionShard, error) {
	var free []int64
	for _, s := range shards {
		if s.Owner == "" {
			free = append(free, int64(s.Shard))
		}
	}
	rand.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	err := m.takeFree(ctx, r, free[:min(r.Take, len(free))])
	if err != nil {
		return nil, err
	}
	return m.Shards(ctx, r.ID)
}

// takeFree takes those of the given shards that are still free, but for those whose former owner
// has a batch open, in which it may have been stopped: a projector that waited for that could
// not renew its other leases. SQLite has one writer, for whom everybody waits.
func (m *Models) takeFree(ctx context.Context, r eventsource.ProjectionLease, free []int64) error {
	tx, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	now, id := m.dialect.Now(), r.ID
	which := func() string { return ours + " AND shard IN (" + list(free) + ") AND expires <= " + now }
	if len(free) > 0 && m.dialect != SQLite {
		if free, err = numbers(ctx, tx, m.dialect.Rebind("SELECT shard FROM "+m.shard+which()+" FOR UPDATE SKIP LOCKED"), id.Name, id.Revision); err != nil {
			return err
		}
	}
	if len(free) == 0 {
		return nil
	}
	query := "UPDATE " + m.shard + " SET owner = ?, epoch = epoch + 1, expires = " + now + " + ?" + which()
	if _, err := tx.ExecContext(ctx, m.dialect.Rebind(query), r.Owner, r.TTL.Microseconds(), id.Name, id.Revision); err != nil {
		return err
	}
	return tx.Commit()
}

func list(numbers []int64) string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatInt(n, 10)
	}
	return strings.Join(texts, ", ")
}

// expected is the condition of everything that a worker writes.
const expected = ours + " AND shard = ? AND epoch = ? AND position = ? AND stopped = 0"

// Advance implements [eventsource.Models].
func (m *Models) Advance(ctx context.Context, tx *sql.Tx, id eventsource.ProjectionID, shard int, epoch int64, from, to eventsource.Cursor) (bool, error) {
	n, err := affected(tx.ExecContext(ctx, m.dialect.Rebind("UPDATE "+m.shard+" SET position = ?"+expected), int64(to), id.Name, id.Revision, shard, epoch, int64(from)))
	return n == 1, err
}

// Park implements [eventsource.Models].
func (m *Models) Park(ctx context.Context, epoch int64, from eventsource.Cursor, p eventsource.Parked) (bool, error) {
	n, err := m.exec(ctx, "UPDATE "+m.shard+" SET stopped = ?, event_id = ?, stream = ?, reason = ?, attempts = ?, since = "+m.dialect.Now()+expected,
		int64(p.At), p.Event, p.Stream, valid(p.Reason), p.Attempts, p.ID.Name, p.ID.Revision, p.Shard, epoch, int64(from))
	return n == 1, err
}

// valid makes text of an error that any database takes, of a size for a person.
func valid(reason string) string {
	reason = strings.ReplaceAll(strings.ToValidUTF8(reason, "\uFFFD"), "\x00", "\uFFFD")
	if len(reason) > 4096 {
		reason = strings.ToValidUTF8(reason[:4096], "") + "..."
	}
	return reason
}

// Retry implements [eventsource.Models].
func (m *Models) Retry(ctx context.Context, id eventsource.ProjectionID, at eventsource.Cursor) (bool, error) {
	if at <= 0 {
		return false, nil
	}
	n, err := m.exec(ctx, "UPDATE "+m.shard+" SET stopped = 0"+ours+" AND stopped = ?", id.Name, id.Revision, int64(at))
	return n == 1, err
}

// Skip implements [eventsource.Models].
func (m *Models) Skip(ctx context.Context, id eventsource.ProjectionID, at eventsource.Cursor, reason string) (bool, error) {
	if at <= 0 {
		return false, nil
	}
	tx, err := m.db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	because := "?"
	if m.dialect == Postgres {
		because = "CAST(? AS text)" // a type that it cannot infer in a select list
	}
	n, err := affected(tx.ExecContext(ctx, m.dialect.Rebind("INSERT INTO "+m.skipped+" (projection, revision, shard, "+parkedColumns+", because, skipped)"+
		" SELECT projection, revision, shard, "+parkedColumns+", "+because+", "+m.dialect.Now()+" FROM "+m.shard+ours+" AND stopped = ?"),
		valid(reason), id.Name, id.Revision, int64(at)))
	if sqldialect.IsDuplicate(err) { // another operator was first
		return false, nil
	}
	if err != nil || n == 0 {
		return false, err
	}
	n, err = affected(tx.ExecContext(ctx, m.dialect.Rebind("UPDATE "+m.shard+" SET position = stopped, stopped = 0"+ours+" AND stopped = ?"), id.Name, id.Revision, int64(at)))
	if err != nil || n == 0 {
		return false, err
	}
	return true, tx.Commit()
}

// parkedColumns are those that say where and why a shard has stopped.
const parkedColumns = "stopped, event_id, stream, reason, attempts, since"

// Skipped implements [eventsource.Models].
func (m *Models) Skipped(ctx context.Context, id eventsource.ProjectionID) (list []eventsource.Skipped, err error) {
	rows, err := m.db.QueryContext(ctx, m.dialect.Rebind("SELECT shard, "+parkedColumns+", because, skipped FROM "+m.skipped+ours+" ORDER BY stopped"), id.Name, id.Revision)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		s := eventsource.Skipped{Parked: eventsource.Parked{ID: id}}
		var since, when int64
		if err := rows.Scan(&s.Shard, &s.At, &s.Event, &s.Stream, &s.Reason, &s.Attempts, &since, &s.Because, &when); err != nil {
			return nil, err
		}
		s.Since, s.When = time.UnixMicro(since).UTC(), time.UnixMicro(when).UTC()
		list = append(list, s)
	}
	return list, rows.Err()
}

// Shards implements [eventsource.Models].
func (m *Models) Shards(ctx context.Context, id eventsource.ProjectionID) (list []eventsource.ProjectionShard, err error) {
	rows, err := m.db.QueryContext(ctx, m.dialect.Rebind("SELECT shard, position, epoch, owner, CASE WHEN expires > "+m.dialect.Now()+" THEN 1 ELSE 0 END, "+parkedColumns+
		" FROM "+m.shard+ours+" ORDER BY shard"), id.Name, id.Revision)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s eventsource.ProjectionShard
		p := eventsource.Parked{ID: id}
		var held int
		var since int64
		if err := rows.Scan(&s.Shard, &s.Cursor, &s.Epoch, &s.Owner, &held, &p.At, &p.Event, &p.Stream, &p.Reason, &p.Attempts, &since); err != nil {
			return nil, err
		}
		if held == 0 {
			s.Owner = ""
		}
		if p.At > 0 {
			p.Shard, p.Since = s.Shard, time.UnixMicro(since).UTC()
			s.Parked = &p
		}
		list = append(list, s)
	}
	return list, rows.Err()
}

// Active implements [eventsource.Models].
func (m *Models) Active(ctx context.Context, name string) (revision int, err error) {
	err = m.db.QueryRowContext(ctx, m.dialect.Rebind("SELECT revision FROM "+m.active+" WHERE projection = ?"), name).Scan(&revision)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return revision, err
}

// Activate implements [eventsource.Models].
func (m *Models) Activate(ctx context.Context, id eventsource.ProjectionID, force bool) (bool, error) {
	n, err := m.exec(ctx, "INSERT INTO "+m.active+" (projection, revision) VALUES (?, ?) "+m.dialect.OnConflictDoNothing("projection"), id.Name, id.Revision)
	if err != nil || n > 0 {
		return n > 0, err
	}
	older := "<"
	if force {
		older = "<>"
	}
	n, err = m.exec(ctx, "UPDATE "+m.active+" SET revision = ? WHERE projection = ? AND revision "+older+" ?", id.Revision, id.Name, id.Revision)
	return n > 0, err
}

// Remove implements [eventsource.Models].
func (m *Models) Remove(ctx context.Context, id eventsource.ProjectionID) error {
	for _, table := range []string{m.shard, m.owner, m.skipped} {
		if _, err := m.exec(ctx, "DELETE FROM "+table+ours, id.Name, id.Revision); err != nil {
			return err
		}
	}
	return nil
}
