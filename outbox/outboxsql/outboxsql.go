// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outboxsql

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
)

// Dialect is the SQL that the database speaks.
type Dialect = sqldialect.Dialect

// The dialects.
const (
	// Postgres is PostgreSQL 12 or later.
	Postgres = sqldialect.Postgres
	// MySQL is MySQL 8.0 or MariaDB 10.6 and later.
	MySQL = sqldialect.MySQL
	// SQLite is SQLite 3.32 or later.
	SQLite = sqldialect.SQLite
)

// Config configures a [Store]. The zero value is a sound default.
type Config struct {
	// Prefix stands before the names of the tables, such as "billing_", where several
	// outboxes share a database. Lower-case letters, digits and underscores, at most 32.
	Prefix string
	// Shards is the number of shards, and so of relays that can share the work. It becomes part
	// of the tables: every process must say the same, and it can be changed only
	// while the outbox is empty and nobody uses it. Zero means 16; at most 256.
	Shards int
	// Archive has what was published moved to the table outbox_archive, in the step that
	// removes it from the outbox, until Outbox.Prune deletes it: to answer what was said to
	// others, and when. It costs the database about as much again as the outbox itself.
	// False keeps nothing.
	Archive bool
}

const (
	defaultShards = 16
	maxShards     = 256
	// maxRows and maxBytes bound one INSERT, below the databases' limits on parameters and on
	// packets.
	maxRows  = 500
	maxBytes = 4 << 20
	// maxDepth is where Stats stops counting.
	maxDepth = 1_000_000
	// maxTries is how often an operator's transaction is tried.
	maxTries = 10
	// maxPruned bounds one DELETE of old rows, and so what it locks and logs at once.
	maxPruned = 10_000
	// memberKept is how long the heartbeat of a relay that is gone stays in the table.
	memberKept = time.Hour
)

// Store is an outbox in a SQL database. It may be used from many goroutines.
type Store struct {
	db      *sql.DB
	dialect Dialect
	cfg     Config
	// the tables
	message, lease, parked, archive string
	// insertOne is the statement of nearly every Enqueue.
	insertOne string
}

var _ outbox.Store = (*Store)(nil)

// New returns a store on db. Its tables must exist before it is used: see
// [Store.Migrate] and [Schema].
func New(db *sql.DB, d Dialect, cfg Config) (*Store, error) {
	if db == nil {
		return nil, errors.New("outboxsql: DB is nil, want a database")
	}
	return newStore(db, d, cfg)
}

func newStore(db *sql.DB, d Dialect, cfg Config) (*Store, error) {
	if !d.Valid() {
		return nil, fmt.Errorf("outboxsql: Dialect is %v, want Postgres, MySQL or SQLite", d)
	}
	if err := sqldialect.CheckName(cfg.Prefix); err != nil {
		return nil, fmt.Errorf("outboxsql: Config.Prefix %w", err)
	}
	if cfg.Shards < 0 || cfg.Shards > maxShards {
		return nil, fmt.Errorf("outboxsql: Config.Shards is %d, want 0 to %d", cfg.Shards, maxShards)
	}
	if cfg.Shards == 0 {
		cfg.Shards = defaultShards
	}
	name := cfg.Prefix + "outbox_"
	s := &Store{db: db, dialect: d, cfg: cfg, message: name + "message", lease: name + "lease", parked: name + "parked", archive: name + "archive"}
	s.insertOne = s.insert(1)
	return s, nil
}

// Shards implements [outbox.Store].
func (s *Store) Shards() int { return s.cfg.Shards }

// Insert implements [outbox.Store].
func (s *Store) Insert(ctx context.Context, tx outbox.Tx, rows []outbox.Row) error {
	for len(rows) > 0 {
		part := rows[:chunk(rows)]
		rows = rows[len(part):]
		args := make([]any, 0, 8*len(part))
		for _, r := range part {
			m := r.Message
			header := ""
			if len(m.Header) > 0 {
				text, err := json.Marshal(m.Header)
				if err != nil {
					return err
				}
				header = string(text)
			}
			body := m.Body
			if body == nil {
				body = []byte{}
			}
			args = append(args, r.Shard, m.ID, m.Topic, m.Key, m.Type, m.Time.UnixNano(), header, body)
		}
		query := s.insertOne
		if len(part) > 1 {
			query = s.insert(len(part))
		}
		if _, err := tx.ExecContext(ctx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

// insert is the statement for so many rows.
func (s *Store) insert(rows int) string {
	row := "(?, ?, ?, ?, ?, ?, ?, ?, " + s.dialect.Now() + ")"
	return s.dialect.Rebind("INSERT INTO " + s.message + " (shard, message_id, topic, message_key, message_type, happened, header, body, enqueued) VALUES " +
		strings.Repeat(row+", ", rows-1) + row)
}

// chunk returns how many rows fit into one INSERT, at least one.
func chunk(rows []outbox.Row) int {
	bytes := 0
	for i, r := range rows {
		bytes += len(r.Message.Body)
		if i == maxRows || i > 0 && bytes > maxBytes {
			return i
		}
	}
	return len(rows)
}

// Lease implements [outbox.Store].
func (s *Store) Lease(ctx context.Context, r outbox.LeaseRequest) (outbox.LeaseView, error) {
	now, ttl := s.dialect.Now(), r.TTL.Microseconds()
	if r.Leave {
		_, err := s.exec(ctx, "UPDATE "+s.lease+" SET owner = '', expires = 0 WHERE owner = ? AND shard >= 0", r.Relay)
		if err == nil {
			_, err = s.exec(ctx, "DELETE FROM "+s.lease+" WHERE owner = ? AND shard < 0", r.Relay)
		}
		return outbox.LeaseView{}, err
	}
	if len(r.Drop) > 0 {
		if _, err := s.exec(ctx, "UPDATE "+s.lease+" SET owner = '', expires = 0 WHERE owner = ? AND ("+these(r.Drop)+")", r.Relay); err != nil {
			return outbox.LeaseView{}, err
		}
	}
	// A relay is a member by a row with a number below zero. Both it and the leases are
	// renewed here; a lease that has run out is not, because it may be taken at this moment.
	if _, err := s.exec(ctx, "UPDATE "+s.lease+" SET expires = "+now+" + ? WHERE owner = ? AND (expires > "+now+" OR shard < 0)", ttl, r.Relay); err != nil {
		return outbox.LeaseView{}, err
	}
	v, err := s.view(ctx, r.Relay)
	if err != nil {
		return outbox.LeaseView{}, err
	}
	changed := false
	if !v.member {
		if _, err := s.exec(ctx, "DELETE FROM "+s.lease+" WHERE shard < 0 AND expires < "+now+" - ?", memberKept.Microseconds()); err != nil {
			return outbox.LeaseView{}, err
		}
		if _, err := s.exec(ctx, "INSERT INTO "+s.lease+" (shard, owner, epoch, expires) VALUES (?, ?, 0, "+now+" + ?)", -1-rand.Int32N(1<<31-1), r.Relay, ttl); err != nil {
			return outbox.LeaseView{}, err
		}
		changed = true
	}
	if take := min(r.Take, len(v.free)); take > 0 {
		// Relays that take at the same time are likely to take others.
		rand.Shuffle(len(v.free), func(i, j int) { v.free[i], v.free[j] = v.free[j], v.free[i] })
		query := "UPDATE " + s.lease + " SET owner = ?, epoch = epoch + 1, expires = " + now + " + ?" +
			" WHERE shard IN (" + join(v.free[:take]) + ") AND expires <= " + now
		if _, err := s.exec(ctx, query, r.Relay, ttl); err != nil {
			return outbox.LeaseView{}, err
		}
		changed = true
	}
	if changed {
		if v, err = s.view(ctx, r.Relay); err != nil {
			return outbox.LeaseView{}, err
		}
	}
	return v.LeaseView, nil
}

// view is a LeaseView and what it takes to change it.
type view struct {
	outbox.LeaseView
	free   []int64
	member bool
}

func (s *Store) view(ctx context.Context, relay string) (v view, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT shard, owner, epoch, expires - "+s.dialect.Now()+" FROM "+s.lease)
	if err != nil {
		return v, err
	}
	defer rows.Close()
	shards := 0
	for rows.Next() {
		var shard, epoch, left int64
		var owner string
		if err := rows.Scan(&shard, &owner, &epoch, &left); err != nil {
			return v, err
		}
		if shard >= 0 {
			shards++
		}
		switch {
		case shard < 0:
			if left > 0 {
				v.Relays++
				v.member = v.member || owner == relay
			}
		case left <= 0:
			v.free = append(v.free, shard)
		case owner == relay:
			v.Held = append(v.Held, outbox.Lease{Shard: int(shard), Epoch: epoch})
		default:
			if left := time.Duration(left) * time.Microsecond; v.NextExpiry == 0 || left < v.NextExpiry {
				v.NextExpiry = left
			}
		}
	}
	v.Free = len(v.free)
	if err := rows.Err(); err != nil {
		return v, err
	}
	return v, s.checkShards(shards)
}

func (s *Store) checkShards(stored int) error {
	if stored != s.cfg.Shards {
		return fmt.Errorf("outboxsql: Config.Shards is %d, want %d as in table %s", s.cfg.Shards, stored, s.lease)
	}
	return nil
}

// columns are those of a message, in the order of scan.
const columns = "id, shard, message_id, topic, message_key, message_type, happened, header, body"

// Read implements [outbox.Store]. It takes one statement for all shards, and one more for
// each in which keys or topics are to be skipped.
func (s *Store) Read(ctx context.Context, reads []outbox.Read) (rows []outbox.Row, err error) {
	var together []outbox.Read
	for _, r := range reads {
		if len(r.SkipKeys)+len(r.SkipTopics) == 0 {
			together = append(together, r)
		} else if rows, err = s.query(ctx, rows, func(a *arguments) string { return s.first(a, r) }); err != nil {
			return nil, err
		}
	}
	// Some databases limit the number of tables in a statement.
	for part := range slices.Chunk(together, 16) {
		if rows, err = s.query(ctx, rows, func(a *arguments) string { return s.firsts(a, part) }); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(rows, func(a, b outbox.Row) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.ID, b.ID))
	})
	// Shards that share a statement share its limit, the largest.
	left := make(map[int]int, len(reads))
	for _, r := range reads {
		left[r.Shard] = r.Limit
	}
	return slices.DeleteFunc(rows, func(r outbox.Row) bool {
		left[r.Shard]--
		return left[r.Shard] < 0
	}), nil
}

// firsts is a query for the first rows of several shards.
func (s *Store) firsts(a *arguments, reads []outbox.Read) string {
	if s.dialect != Postgres {
		parts := make([]string, len(reads))
		for i, r := range reads {
			parts[i] = fmt.Sprintf("SELECT * FROM (%s) AS r%d", s.first(a, r), i)
		}
		return strings.Join(parts, " UNION ALL ")
	}
	// One text for any number of shards and rows to skip, because drivers prepare statements
	// and keep them by their text. The limit is a parameter too: without its value the server
	// plans for the first tenth of the rows, which only the index gives without sorting. Else
	// a plan made while the table was small could be kept and sort a backlog for each read.
	// OFFSET 0 has the text of each list read once, not for each row.
	var shards, tops []int64
	var skips []string
	limit := 0
	for _, r := range reads {
		ids := slices.Sorted(slices.Values(r.SkipIDs))
		shards = append(shards, int64(r.Shard))
		tops = append(tops, slices.Max(append(ids, 0)))
		skips = append(skips, `"`+array(ids)+`"`)
		limit = max(limit, r.Limit)
	}
	return "SELECT r.* FROM unnest(CAST(" + a.value(array(shards)) + " AS integer[]), CAST(" + a.value(array(tops)) + " AS bigint[]), CAST(" + a.value("{"+strings.Join(skips, ",")+"}") + " AS text[])) AS one (shard, top, list)" +
		" CROSS JOIN LATERAL (SELECT CAST(one.list AS bigint[]) AS ids OFFSET 0) AS skip CROSS JOIN LATERAL (" +
		s.first(a, outbox.Read{Shard: anyShard, Limit: limit}) + ") AS r"
}

// anyShard stands for the shard of the enclosing query.
const anyShard = -1

// first is a query for the first rows of a shard.
func (s *Store) first(a *arguments, r outbox.Read) string {
	shard, age := strconv.Itoa(r.Shard), s.dialect.Now()+" - enqueued AS age"
	if s.dialect == Postgres {
		age = "(SELECT " + s.dialect.Now() + ") - enqueued AS age, m.ctid" // one look at the clock for all rows
	}
	if r.Shard == anyShard {
		shard = "one.shard"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "SELECT %s, %s FROM %s m", columns, age, s.message)
	if s.dialect == MySQL {
		// For ORDER BY with LIMIT it is tempted to walk the primary key through all other shards.
		b.WriteString(" FORCE INDEX (" + s.message + "_order)")
	}
	if len(r.SkipTopics) > 0 {
		// The first row of a skipped topic in each key: what comes after it must wait.
		fmt.Fprintf(&b, " LEFT JOIN (SELECT message_key AS first_key, MIN(id) AS first_id FROM %s WHERE shard = %s AND message_key <> '' AND topic IN %s GROUP BY message_key) f ON first_key = message_key",
			s.message, shard, a.strings(r.SkipTopics))
	}
	b.WriteString(" WHERE m.shard = " + shard)
	limit := strconv.Itoa(r.Limit)
	switch {
	case r.Shard == anyShard:
		// Most rows lie behind those to skip; the others are looked for by bisection, since ALL
		// would compare each of them with each ID.
		b.WriteString(" AND (id > one.top OR skip.ids[width_bucket(id, skip.ids)] IS DISTINCT FROM id)")
	case s.dialect == Postgres:
		b.WriteString(" AND id <> ALL(CAST(" + a.value(array(r.SkipIDs)) + " AS bigint[]))")
	case len(r.SkipIDs) > 0:
		b.WriteString(" AND id NOT IN (" + join(r.SkipIDs) + ")")
	}
	if len(r.SkipTopics) > 0 {
		b.WriteString(" AND topic NOT IN " + a.strings(r.SkipTopics) + " AND (first_id IS NULL OR id < first_id)")
	}
	if len(r.SkipKeys) > 0 {
		b.WriteString(" AND message_key NOT IN " + a.strings(r.SkipKeys))
	}
	if s.dialect == Postgres {
		limit = "CAST(" + a.value(r.Limit) + " AS bigint)"
	}
	fmt.Fprintf(&b, " AND NOT EXISTS (SELECT 1 FROM %s p WHERE p.shard = m.shard AND p.message_key = m.message_key AND p.blocks = 1) ORDER BY id LIMIT %s",
		s.parked, limit)
	return b.String()
}

// query appends the rows of a query with columns and the age.
func (s *Store) query(ctx context.Context, rows []outbox.Row, text func(a *arguments) string) ([]outbox.Row, error) {
	var a arguments
	query := text(&a)
	found, err := s.db.QueryContext(ctx, s.dialect.Rebind(query), a...)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var age int64
	var place string
	more := []any{&age}
	if s.dialect == Postgres {
		more = append(more, &place)
	}
	for found.Next() {
		var r outbox.Row
		if err := scan(found, &r, more...); err != nil {
			return nil, err
		}
		r.Hint = hint(place)
		r.Age = max(0, time.Duration(age)*time.Microsecond)
		rows = append(rows, r)
	}
	return rows, found.Err()
}

// scan reads columns and what follows them.
func scan(rows *sql.Rows, r *outbox.Row, more ...any) error {
	m := new(messaging.Message)
	var happened int64
	var header string
	dest := append([]any{&r.ID, &r.Shard, &m.ID, &m.Topic, &m.Key, &m.Type, &happened, &header, &m.Body}, more...)
	if err := rows.Scan(dest...); err != nil {
		return err
	}
	m.Time = time.Unix(0, happened).UTC()
	if header != "" {
		if err := json.Unmarshal([]byte(header), &m.Header); err != nil {
			return fmt.Errorf("header of row %d: %w", r.ID, err)
		}
	}
	r.Message = m
	return nil
}

// Settle implements [outbox.Store].
func (s *Store) Settle(ctx context.Context, settlements []outbox.Settlement) ([]int, error) {
	if s.dialect == MySQL {
		return s.settleMySQL(ctx, settlements)
	}
	var ids []int64
	for _, t := range settlements {
		ids = append(ids, t.IDs...)
	}
	var removed int
	var err error
	if s.dialect == Postgres {
		removed, err = s.settlePostgres(ctx, settlements, ids)
	} else {
		removed, err = s.settleSQLite(ctx, " WHERE id IN ("+join(ids)+") AND shard IN ("+s.current(settlements)+")")
	}
	if err != nil || removed == len(ids) {
		return nil, err
	}
	// Some rows were not there, or not ours.
	current, err := s.currentShards(ctx, s.db, settlements, "")
	return lost(settlements, current), err
}

// settlePostgres removes rows from where they were read, which takes half of what it takes
// to find them by the index. No row is ever updated, but rewriting the table moves them; what
// is not there any more is found by the index, in the same transaction.
//
// The commit does not wait for the disk: a server that crashes right then has the last
// of these rows again, and they are published twice, as after a crash of the relay.
func (s *Store) settlePostgres(ctx context.Context, settlements []outbox.Settlement, ids []int64) (removed int, err error) {
	tx, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	remove := func(where string) error {
		query := "DELETE FROM " + s.message + " m WHERE " + where + " AND shard + 0 = ANY (ARRAY(" + s.current(settlements) + " FOR SHARE))" +
			" AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'"
		if s.cfg.Archive {
			query = "WITH gone AS (" + query + " RETURNING m.*) " + s.toArchive("gone")
		}
		n, err := s.count(tx.ExecContext(ctx, query))
		removed += n
		return err
	}
	// After a vacuum of the empty table the planner takes it for empty until the next one, and
	// any way through an index for cheap. The sums leave it none but by the places.
	if places := places(settlements); places != "" {
		if err := remove("ctid = ANY ((SELECT CAST('{" + places + "}' AS tid[]))::tid[]) AND id + 0 = ANY (CAST('" + array(ids) + "' AS bigint[]))"); err != nil {
			return 0, err
		}
	}
	if removed < len(ids) {
		var shards []int64
		for _, t := range settlements {
			shards = append(shards, slices.Repeat([]int64{int64(t.Shard)}, len(t.IDs))...)
		}
		// The pairs drive the index; a list of IDs would be looked for in each of the shards.
		// LIMIT keeps the planner from turning that around, and comparing each row with each pair.
		if err := remove("ctid = ANY (ARRAY(SELECT r.ctid" +
			" FROM unnest(CAST('" + array(shards) + "' AS integer[]), CAST('" + array(ids) + "' AS bigint[])) AS d (shard, id)" +
			" CROSS JOIN LATERAL (SELECT f.ctid FROM " + s.message + " f WHERE f.shard = d.shard AND f.id = d.id LIMIT 1) AS r))"); err != nil {
			return 0, err
		}
	}
	return removed, tx.Commit()
}

// hint makes a hint of PostgreSQL's text for the place of a row, "(block,item)". Items count
// from 1, so no hint is zero.
func hint(place string) uint64 {
	block, item, _ := strings.Cut(strings.Trim(place, "()"), ",")
	b, err := strconv.ParseUint(block, 10, 32)
	if err != nil {
		return 0
	}
	i, err := strconv.ParseUint(item, 10, 16)
	if err != nil {
		return 0
	}
	return b<<16 | i
}

// places is the list of the places that are known, as in an array.
func places(settlements []outbox.Settlement) string {
	var b []byte
	for _, t := range settlements {
		for _, h := range t.Hints {
			if h == 0 {
				continue
			}
			if len(b) > 0 {
				b = append(b, ',')
			}
			b = append(b, `"(`...)
			b = strconv.AppendUint(b, h>>16, 10)
			b = append(b, ',')
			b = strconv.AppendUint(b, h&0xffff, 10)
			b = append(b, `)"`...)
		}
	}
	return string(b)
}

// toArchive copies rows of from, a table or a query's name with what follows it.
func (s *Store) toArchive(from string) string {
	return "INSERT INTO " + s.archive + " (" + columns + ", enqueued, published) SELECT " + columns + ", enqueued, " + s.dialect.Now() + " FROM " + from
}

func (s *Store) settleSQLite(ctx context.Context, where string) (removed int, err error) {
	if !s.cfg.Archive {
		return s.count(s.db.ExecContext(ctx, "DELETE FROM "+s.message+where))
	}
	tx, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, s.toArchive(s.message+where)); err != nil {
		return 0, err
	}
	if removed, err = s.count(tx.ExecContext(ctx, "DELETE FROM "+s.message+where)); err != nil {
		return 0, err
	}
	return removed, tx.Commit()
}

// settleMySQL locks the leases, then deletes by primary key. Read committed, because under
// repeatable read the search for a row that is gone locks a gap, into which
// producers want to insert. And a join in this order, because MySQL answers an IN list on a
// small table by a scan, whatever index is forced, and that waits for the rows of open
// transactions.
func (s *Store) settleMySQL(ctx context.Context, settlements []outbox.Settlement) ([]int, error) {
	tx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	current, err := s.currentShards(ctx, tx, settlements, " LOCK IN SHARE MODE")
	if err != nil {
		return nil, err
	}
	var ids []int64
	for _, t := range settlements {
		if slices.Contains(current, t.Shard) {
			ids = append(ids, t.IDs...)
		}
	}
	if len(ids) > 0 {
		list, err := json.Marshal(ids)
		if err != nil {
			return nil, err
		}
		rows := "JSON_TABLE('" + string(list) + "', '$[*]' COLUMNS (id BIGINT PATH '$')) d STRAIGHT_JOIN " +
			s.message + " m FORCE INDEX (PRIMARY) ON m.id = d.id"
		if s.cfg.Archive {
			// The rows first: the list has no other column than the ID.
			if _, err := tx.ExecContext(ctx, s.toArchive("(SELECT m.* FROM "+rows+") gone")); err != nil {
				return nil, err
			}
		}
		if _, err := tx.ExecContext(ctx, "DELETE m FROM "+rows); err != nil {
			return nil, err
		}
	}
	return lost(settlements, current), tx.Commit()
}

// current is a query for those of the settlements' shards whose lease is the current one.
func (s *Store) current(settlements []outbox.Settlement) string {
	leases := make([]outbox.Lease, len(settlements))
	for i, t := range settlements {
		leases[i] = t.Lease
	}
	return "SELECT shard FROM " + s.lease + " WHERE " + these(leases)
}

// these is a condition that is true of certain rows of the table of leases.
func these(leases []outbox.Lease) string {
	parts := make([]string, len(leases))
	for i, l := range leases {
		parts[i] = fmt.Sprintf("shard = %d AND epoch = %d", l.Shard, l.Epoch)
	}
	return strings.Join(parts, " OR ")
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (s *Store) currentShards(ctx context.Context, q querier, settlements []outbox.Settlement, lock string) (shards []int, err error) {
	rows, err := q.QueryContext(ctx, s.current(settlements)+lock)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		shards = append(shards, n)
	}
	return shards, rows.Err()
}

func lost(settlements []outbox.Settlement, current []int) (shards []int) {
	for _, t := range settlements {
		if !slices.Contains(current, t.Shard) {
			shards = append(shards, t.Shard)
		}
	}
	return shards
}

// Park implements [outbox.Store].
func (s *Store) Park(ctx context.Context, l outbox.Lease, p outbox.Parking) (bool, error) {
	tx, err := s.begin(ctx)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	blocks := 0
	if p.Block {
		blocks = 1
	}
	lock := map[Dialect]string{Postgres: " FOR SHARE", MySQL: " LOCK IN SHARE MODE"}[s.dialect]
	query := "INSERT INTO " + s.parked + " (" + columns + ", enqueued, reason, attempts, parked, blocks, discarded, discard_reason)" +
		" SELECT " + columns + ", enqueued, " + s.text("?") + ", " + s.number("?") + ", " + s.dialect.Now() + ", " + s.number("?") + ", 0, ''" +
		" FROM " + s.message + " m WHERE shard = ? AND id = ? AND EXISTS (SELECT 1 FROM " + s.lease + " WHERE shard = ? AND epoch = ?" + lock + ")"
	res, err := tx.ExecContext(ctx, s.dialect.Rebind(query), valid(p.Reason), p.Attempts, blocks, l.Shard, p.ID, l.Shard, l.Epoch)
	if err != nil {
		return false, err
	}
	if n, err := res.RowsAffected(); err != nil {
		return false, err
	} else if n == 0 {
		// The lease or the row is gone.
		current, err := s.currentShards(ctx, tx, []outbox.Settlement{{Lease: l}}, "")
		return err == nil && len(current) == 0, err
	}
	if _, err := tx.ExecContext(ctx, s.dialect.Rebind("DELETE FROM "+s.message+" WHERE shard = ? AND id = ?"), l.Shard, p.ID); err != nil {
		return false, err
	}
	return false, tx.Commit()
}

// text and number give a placeholder in a select list its type, which PostgreSQL cannot
// infer there.
func (s *Store) text(placeholder string) string {
	if s.dialect == Postgres {
		return "CAST(" + placeholder + " AS text)"
	}
	return placeholder
}

func (s *Store) number(placeholder string) string {
	if s.dialect == Postgres {
		return "CAST(" + placeholder + " AS integer)"
	}
	return placeholder
}

// valid makes text of an error that any database takes, of a size for a person.
func valid(reason string) string {
	reason = strings.ReplaceAll(strings.ToValidUTF8(reason, "\uFFFD"), "\x00", "\uFFFD")
	if len(reason) > 4096 {
		reason = strings.ToValidUTF8(reason[:4096], "") + "..."
	}
	return reason
}

// Parked implements [outbox.Store].
func (s *Store) Parked(ctx context.Context, discarded bool, limit int) (list []outbox.Parked, err error) {
	which := "= 0"
	if discarded {
		which = "> 0"
	}
	rows, err := s.db.QueryContext(ctx, s.dialect.Rebind("SELECT "+columns+", reason, attempts, parked, blocks, discarded, discard_reason FROM "+
		s.parked+" WHERE discarded "+which+" ORDER BY id LIMIT ?"), limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r outbox.Row
		var p outbox.Parked
		var since, blocks, gone int64
		if err := scan(rows, &r, &p.Reason, &p.Attempts, &since, &blocks, &gone, &p.DiscardReason); err != nil {
			return nil, err
		}
		p.Message, p.Since, p.Blocks = r.Message, time.UnixMicro(since).UTC(), blocks == 1
		if gone > 0 {
			p.Discarded = time.UnixMicro(gone).UTC()
		}
		list = append(list, p)
	}
	return list, rows.Err()
}

// Retry implements [outbox.Store].
func (s *Store) Retry(ctx context.Context, id string) (int, error) {
	which, args := "discarded = 0", []any(nil)
	if id != "" {
		which, args = which+" AND message_id = ?", []any{id}
	}
	// A write first: it locks the rows against another operator, and has a deferred
	// transaction of SQLite wait for its turn. Its mark holds the next statements to these
	// rows: they may see some that were parked in between. They say again which rows, because to
	// find all that have the mark MySQL would wait for those of another operator.
	mark := "UPDATE " + s.parked + " SET attempts = -1 WHERE " + which
	marked := " FROM " + s.parked + " WHERE attempts = -1 AND " + which
	insert := "INSERT INTO " + s.message + " (" + columns + ", enqueued) SELECT " + columns + ", enqueued" + marked
	return s.decide(ctx, func(tx *sql.Tx) (int, error) {
		for _, query := range []string{mark, insert} {
			if _, err := tx.ExecContext(ctx, s.dialect.Rebind(query), args...); err != nil {
				return 0, err
			}
		}
		return s.count(tx.ExecContext(ctx, s.dialect.Rebind("DELETE"+marked), args...))
	})
}

// Discard implements [outbox.Store].
func (s *Store) Discard(ctx context.Context, id, reason string) (int, error) {
	return s.change(ctx, "UPDATE "+s.parked+" SET discarded = "+s.dialect.Now()+", discard_reason = ?, blocks = 0 WHERE message_id = ? AND discarded = 0", valid(reason), id)
}

// Prune implements [outbox.Store].
func (s *Store) Prune(ctx context.Context, age time.Duration) (int, error) {
	old := s.dialect.Now() + " - " + strconv.FormatInt(age.Microseconds(), 10)
	n, err := s.prune(ctx, s.parked, "id", "discarded > 0 AND discarded <= "+old)
	if err != nil || !s.cfg.Archive {
		return n, err
	}
	archived, err := s.prune(ctx, s.archive, "published, id", "published <= "+old)
	return n + archived, err
}

// prune deletes rows of a table in parts, in the order of its key.
func (s *Store) prune(ctx context.Context, table, key, where string) (n int, err error) {
	first := " WHERE " + where + " ORDER BY " + key + " LIMIT " + strconv.Itoa(maxPruned)
	if s.dialect != MySQL {
		first = " WHERE (" + key + ") IN (SELECT " + key + " FROM " + table + first + ")"
	}
	for {
		part, err := s.change(ctx, "DELETE FROM "+table+first)
		if n += part; err != nil || part < maxPruned {
			return n, err
		}
	}
}

// Stats implements [outbox.Store].
func (s *Store) Stats(ctx context.Context) (st outbox.Stats, err error) {
	// The oldest row of all is the first of its shard.
	firsts := make([]string, s.cfg.Shards)
	for i := range firsts {
		firsts[i] = fmt.Sprintf("SELECT * FROM (SELECT %s - enqueued AS age FROM %s WHERE shard = %d ORDER BY id LIMIT 1) AS r%d", s.dialect.Now(), s.message, i, i)
	}
	query := "SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM " + s.message + " LIMIT " + strconv.Itoa(maxDepth) + ") AS c)," +
		" (SELECT COALESCE(MAX(age), 0) FROM (" + strings.Join(firsts, " UNION ALL ") + ") AS a)," +
		" (SELECT COUNT(*) FROM " + s.parked + " WHERE discarded = 0)"
	var age int64
	err = s.db.QueryRowContext(ctx, query).Scan(&st.Depth, &age, &st.Parked)
	st.OldestAge = max(0, time.Duration(age)*time.Microsecond)
	return st, err
}

// begin opens a transaction in which no statement locks more than the rows it finds.
func (s *Store) begin(ctx context.Context) (*sql.Tx, error) {
	if s.dialect == SQLite {
		return s.db.BeginTx(ctx, nil)
	}
	return s.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
}

// change makes one change in a transaction of begin: under MySQL's repeatable read it would lock
// the gaps into which relays insert.
func (s *Store) change(ctx context.Context, query string, args ...any) (n int, err error) {
	return s.decide(ctx, func(tx *sql.Tx) (int, error) {
		return s.count(tx.ExecContext(ctx, s.dialect.Rebind(query), args...))
	})
}

// decide carries out what an operator wants in a transaction, which begins with a write. Two who
// come to the same rows of MySQL, one by an index and one without, can wait for each other: one is
// rolled back, and begins again.
func (s *Store) decide(ctx context.Context, do func(tx *sql.Tx) (int, error)) (n int, err error) {
	for try := 1; ; try++ {
		n, err = s.decideOnce(ctx, do)
		if err == nil || s.dialect != MySQL || !sqldialect.IsContention(err) || try == maxTries || ctx.Err() != nil {
			return n, err
		}
	}
}

func (s *Store) decideOnce(ctx context.Context, do func(tx *sql.Tx) (int, error)) (int, error) {
	tx, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	n, err := do(tx)
	if err != nil {
		return 0, err
	}
	return n, tx.Commit()
}

func (s *Store) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return s.db.ExecContext(ctx, s.dialect.Rebind(query), args...)
}

func (s *Store) count(res sql.Result, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	return int(n), err
}

// arguments are those of a statement that is being put together.
type arguments []any

// value adds an argument and returns its placeholder.
func (a *arguments) value(v any) string {
	*a = append(*a, v)
	return "?"
}

// strings adds a list and returns it with parentheses.
func (a *arguments) strings(list []string) string {
	for _, s := range list {
		a.value(s)
	}
	return sqldialect.Values(1, len(list))
}

// array returns PostgreSQL's text form of an array, which any driver can pass on.
func array(list []int64) string { return "{" + join(list) + "}" }

func join(list []int64) string {
	var b []byte
	for i, n := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n, 10)
	}
	return string(b)
}
