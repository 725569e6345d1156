// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcesql

import (
	"context"
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// Schema returns the tables of a [Store] with the zero [Config] as SQL text, for a
// migration tool. [Store.Schema] is the same for a store with another.
func Schema(d Dialect) string {
	s, err := newStore(nil, d, Config{})
	if err != nil {
		return ""
	}
	return s.Schema()
}

// Schema returns the store's tables as SQL text, for a migration tool.
func (s *Store) Schema() string {
	return sqldialect.Schema(s.dialect, s.cfg.Prefix+"eventsource", s.steps())
}

// Migrate creates the store's tables, or brings those of an older version up to date. It
// may run at every start of many replicas at once, and costs a query when there is nothing
// to do.
func (s *Store) Migrate(ctx context.Context) error {
	if err := sqldialect.Migrate(ctx, s.db, s.dialect, s.cfg.Prefix+"eventsource", s.steps()); err != nil {
		return fmt.Errorf("eventsourcesql: %w", err)
	}
	return nil
}

// types are the column types of the dialects.
var types = map[Dialect][]string{
	// Names compare byte by byte, as they do in Go.
	Postgres: {"{name}", `TEXT COLLATE "C"`, "{text}", "TEXT", "{bytes}", "BYTEA"},
	MySQL:    {"{name}", "VARCHAR(255)", "{text}", "MEDIUMTEXT", "{bytes}", "LONGBLOB"},
	SQLite:   {"{name}", "TEXT", "{text}", "TEXT", "{bytes}", "BLOB"},
}

// steps are the versions of the tables, which are never changed once released.
func (s *Store) steps() []string {
	const event = `
	stream {name} NOT NULL,
	version BIGINT NOT NULL,
	bucket INTEGER NOT NULL,
	event_id {name} NOT NULL,
	event_type {name} NOT NULL,
	happened BIGINT NOT NULL,
	recorded BIGINT NOT NULL,
	header {text} NOT NULL,
	data {bytes} NOT NULL,
	`
	step := map[Dialect]string{
		Postgres: `CREATE SEQUENCE {p}event_position;
CREATE TABLE {p}event (
	position BIGINT NOT NULL DEFAULT nextval('{p}event_position') PRIMARY KEY,` + event + `UNIQUE (stream, version)
);
ALTER SEQUENCE {p}event_position OWNED BY {p}event.position;
`,
		// position is the place that the sequencer gives, id the order of the inserts.
		MySQL: `CREATE TABLE {p}event (
	id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	position BIGINT NULL,` + event + `UNIQUE KEY {p}event_stream (stream, version),
	UNIQUE KEY {p}event_position (position),
	CHECK (version > 0)
){o};
CREATE TABLE {p}sequencer (
	id INTEGER NOT NULL PRIMARY KEY,
	last BIGINT NOT NULL
){o};
INSERT INTO {p}sequencer (id, last) VALUES (1, 0);
CREATE TABLE {p}turn (
	id INTEGER NOT NULL PRIMARY KEY,
	taken BIGINT NOT NULL
){o};
INSERT INTO {p}turn (id, taken) VALUES ` + turnRows() + `;
`,
		SQLite: `CREATE TABLE {p}event (
	position INTEGER PRIMARY KEY AUTOINCREMENT,` + event + `UNIQUE (stream, version)
);
`,
	}[s.dialect]
	step += `CREATE TABLE {p}snapshot (
	stream {name} NOT NULL,
	name {name} NOT NULL,
	state_schema {name} NOT NULL,
	version BIGINT NOT NULL,
	state {bytes} NOT NULL,
	taken BIGINT NOT NULL,
	PRIMARY KEY (stream, name)
){o};
`
	return []string{fill(step, s.dialect, s.cfg.Prefix)}
}

// fill replaces the gaps in a step.
func fill(step string, d Dialect, prefix string) string {
	return strings.NewReplacer(append([]string{"{p}", prefix + "eventsource_", "{o}", d.TableOptions()}, types[d]...)...).Replace(step)
}

func turnRows() string {
	rows := make([]string, turns)
	for i := range rows {
		rows[i] = fmt.Sprintf("(%d, 0)", i)
	}
	return strings.Join(rows, ", ")
}

// ModelsSchema returns the tables of [Models] with the zero [Config] as SQL text, for a
// migration tool.
func ModelsSchema(d Dialect) string {
	m, err := newModels(nil, d, Config{})
	if err != nil {
		return ""
	}
	return m.Schema()
}

// Schema returns the tables as SQL text, for a migration tool.
func (m *Models) Schema() string {
	return sqldialect.Schema(m.dialect, m.cfg.Prefix+"eventsource_models", m.steps())
}

// Migrate creates the tables, or brings those of an older version up to date, as
// [Store.Migrate] does.
func (m *Models) Migrate(ctx context.Context) error {
	if err := sqldialect.Migrate(ctx, m.db, m.dialect, m.cfg.Prefix+"eventsource_models", m.steps()); err != nil {
		return fmt.Errorf("eventsourcesql: %w", err)
	}
	return nil
}

func (m *Models) steps() []string {
	const parked = `
	stopped BIGINT NOT NULL,
	event_id {name} NOT NULL,
	stream {name} NOT NULL,
	reason {text} NOT NULL,
	attempts INTEGER NOT NULL,
	since BIGINT NOT NULL,`
	return []string{fill(`CREATE TABLE {p}shard (
	projection {name} NOT NULL,
	revision INTEGER NOT NULL,
	shard INTEGER NOT NULL,
	position BIGINT NOT NULL,
	epoch BIGINT NOT NULL,
	owner {name} NOT NULL,
	expires BIGINT NOT NULL,`+parked+`
	PRIMARY KEY (projection, revision, shard)
){o};
CREATE TABLE {p}owner (
	projection {name} NOT NULL,
	revision INTEGER NOT NULL,
	owner VARCHAR(64) NOT NULL,
	expires BIGINT NOT NULL,
	PRIMARY KEY (projection, revision, owner)
){o};
CREATE TABLE {p}active (
	projection {name} NOT NULL PRIMARY KEY,
	revision INTEGER NOT NULL
){o};
CREATE TABLE {p}skipped (
	projection {name} NOT NULL,
	revision INTEGER NOT NULL,
	shard INTEGER NOT NULL,`+parked+`
	because {text} NOT NULL,
	skipped BIGINT NOT NULL,
	PRIMARY KEY (projection, revision, stopped)
){o};
`, m.dialect, m.cfg.Prefix)}
}
