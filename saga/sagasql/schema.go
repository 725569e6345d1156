// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"context"
	"strings"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// Schema returns the tables of a [Store] with the zero [Config] as SQL text, for a migration
// tool. It is empty for an unknown dialect.
func Schema(d Dialect) string {
	if !d.Valid() {
		return ""
	}
	return (&Store{dialect: d, block: block}).Schema()
}

// Schema returns the store's tables as SQL text, for a migration tool. [Store.Migrate]
// recognises what it made.
func (s *Store) Schema() string {
	return sqldialect.Schema(s.dialect, s.block, steps(s.dialect, s.block))
}

// Migrate creates the tables, or brings them up to date. Many replicas may call it at
// every start. It needs one connection.
func (s *Store) Migrate(ctx context.Context) error {
	return sqldialect.Migrate(ctx, s.db, s.dialect, s.block, steps(s.dialect, s.block))
}

// steps are the migrations; released ones never change.
//
// wake_at is null for sagas that have ended or are parked, so that the index behind
// the search for due sagas holds only those that can become due. It does not
// change from step to step, so that PostgreSQL updates in place (HOT).
func steps(d Dialect, block string) []string {
	text, room := "TEXT", ""
	switch d {
	case MySQL:
		text = "LONGTEXT"
	case Postgres:
		room = " WITH (fillfactor = 70)" // for updates in place
	}
	first := `
CREATE TABLE {b}_instance (
  id VARCHAR(200) NOT NULL PRIMARY KEY,
  name VARCHAR(100) NOT NULL,
  version INTEGER NOT NULL,
  status SMALLINT NOT NULL,
  step VARCHAR(100) NOT NULL,
  attempt INTEGER NOT NULL,
  reason {text} NOT NULL,
  cancel {text} NOT NULL,
  stuck {text} NOT NULL,
  stuck_at BIGINT NULL,
  parked SMALLINT NOT NULL,
  data {text} NOT NULL,
  input VARCHAR(64) NOT NULL,
  starts BIGINT NOT NULL,
  owner VARCHAR(120) NOT NULL,
  epoch BIGINT NOT NULL,
  revision BIGINT NOT NULL,
  takeovers INTEGER NOT NULL,
  wake_at BIGINT NULL,
  deadline BIGINT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
){options}{room};
CREATE INDEX {b}_instance_wake ON {b}_instance (wake_at){sparse_wake};
CREATE INDEX {b}_instance_status ON {b}_instance (status, created_at, id);
CREATE INDEX {b}_instance_stuck ON {b}_instance (stuck_at){sparse_stuck};
CREATE TABLE {b}_history (
  saga_id VARCHAR(200) NOT NULL,
  n BIGINT NOT NULL,
  at BIGINT NOT NULL,
  step VARCHAR(100) NOT NULL,
  op VARCHAR(20) NOT NULL,
  attempt INTEGER NOT NULL,
  outcome VARCHAR(20) NOT NULL,
  detail {text} NOT NULL,
  took BIGINT NOT NULL,
  node VARCHAR(120) NOT NULL,
  PRIMARY KEY (saga_id, n)
){options};
CREATE TABLE {b}_node (
  id VARCHAR(120) NOT NULL PRIMARY KEY,
  expires_at BIGINT NOT NULL
){options};
`
	sparseWake, sparseStuck := " WHERE wake_at IS NOT NULL", " WHERE stuck_at IS NOT NULL"
	if d == MySQL {
		sparseWake, sparseStuck = "", "" // it has no partial indexes
	}
	second := `
ALTER TABLE {b}_instance ADD COLUMN signals BIGINT NOT NULL DEFAULT 0;
ALTER TABLE {b}_instance ADD COLUMN notes {text} NULL;
CREATE TABLE {b}_signal (
  saga_id VARCHAR(200) NOT NULL,
  step VARCHAR(100) NOT NULL,
  op VARCHAR(4) NOT NULL,
  data {text} NOT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (saga_id, step, op)
){options};
CREATE INDEX {b}_signal_at ON {b}_signal (at);
CREATE TABLE {b}_lock (
  name VARCHAR(200) NOT NULL PRIMARY KEY,
  saga_id VARCHAR(200) NOT NULL,
  asked BIGINT NOT NULL
){options};
CREATE INDEX {b}_lock_saga ON {b}_lock (saga_id);
CREATE TABLE {b}_lock_wait (
  name VARCHAR(200) NOT NULL,
  saga_id VARCHAR(200) NOT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (name, saga_id)
){options};
CREATE INDEX {b}_lock_wait_saga ON {b}_lock_wait (saga_id);
`
	names := strings.NewReplacer("{b}", block, "{text}", text, "{options}", d.TableOptions(), "{room}", room,
		"{sparse_wake}", sparseWake, "{sparse_stuck}", sparseStuck)
	third := `
ALTER TABLE {b}_instance ADD COLUMN header {text} NULL;
`
	fourth := `
ALTER TABLE {b}_history ADD COLUMN who VARCHAR(200) NULL;
`
	fifth := `
ALTER TABLE {b}_instance ADD COLUMN root VARCHAR(200) NULL;
CREATE TABLE {b}_archive (
  id VARCHAR(200) NOT NULL PRIMARY KEY,
  name VARCHAR(100) NOT NULL,
  version INTEGER NOT NULL,
  status SMALLINT NOT NULL,
  reason {text} NOT NULL,
  data {text} NOT NULL,
  input VARCHAR(64) NOT NULL,
  starts BIGINT NOT NULL,
  epoch BIGINT NOT NULL,
  revision BIGINT NOT NULL,
  deadline BIGINT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  archived_at BIGINT NOT NULL,
  signals BIGINT NOT NULL,
  notes {text} NULL,
  header {text} NULL
){options};
CREATE INDEX {b}_archive_status ON {b}_archive (status, created_at, id);
CREATE TABLE {b}_archive_history (
  saga_id VARCHAR(200) NOT NULL,
  n BIGINT NOT NULL,
  at BIGINT NOT NULL,
  step VARCHAR(100) NOT NULL,
  op VARCHAR(20) NOT NULL,
  attempt INTEGER NOT NULL,
  outcome VARCHAR(20) NOT NULL,
  detail {text} NOT NULL,
  took BIGINT NOT NULL,
  node VARCHAR(120) NOT NULL,
  who VARCHAR(200) NULL,
  PRIMARY KEY (saga_id, n)
){options};
`
	list := []string{first, second, third, fourth, fifth}
	for i := range list {
		list[i] = names.Replace(list[i])
	}
	return list
}
