// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencysql

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
)

// Begin implements [idempotency.Store].
func (s *Store) Begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	if err := cmd.Validate(); err != nil {
		return idempotency.Claim{}, err
	}
	if cmd.Lease == 0 {
		cmd.Lease = s.cfg.Lease
	}
	if cmd.Retention == 0 {
		cmd.Retention = s.cfg.Retention
	}
	if cmd.Fingerprint == nil {
		cmd.Fingerprint = []byte{}
	}
	bounded, cancel := s.wait(ctx)
	defer cancel()
	c, err := s.begin(bounded, cmd)
	if err != nil {
		return idempotency.Claim{}, fmt.Errorf("idempotencysql: begin %q: %w", cmd.Key.ID, err)
	}
	return c, nil
}

// begin looks before it writes: an INSERT first would wait, on MySQL for the lock of a
// transaction that completes the key, on SQLite for any writer.
func (s *Store) begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	c := idempotency.Claim{Key: cmd.Key, Lease: cmd.Lease}
	for {
		row, err := s.look(ctx, cmd.Key)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			c.Token = rand.Text()
			n, err := affected(ctx, s.db, s.sql.insert, cmd.Key.Scope, cmd.Key.ID, c.Token, cmd.Fingerprint,
				cmd.Lease.Microseconds(), cmd.Retention.Microseconds(), []byte{})
			if err != nil || n == 1 {
				return c, err
			}
			continue // somebody else inserted it meanwhile
		case err != nil:
			return c, err
		case row.remembered() && !bytes.Equal(row.fingerprint, cmd.Fingerprint):
			return c, idempotency.ErrMismatch
		case row.remembered() && row.done:
			c.Done, c.Result = true, row.result
			return c, nil
		case row.remembered() && row.lease > 0:
			return c, idempotency.ErrInProgress
		}
		c.Token = rand.Text()
		return c, s.take(ctx, cmd, row.token, c.Token)
	}
}

// take gives the key to a new owner if it still belongs to nobody. It does not wait for a
// transaction that completes the key: a wait that was given up may go on in the server,
// and take the key for somebody who has gone.
func (s *Store) take(ctx context.Context, cmd idempotency.Command, from, to string) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var one int
	err = tx.QueryRowContext(ctx, s.sql.lock, cmd.Key.Scope, cmd.Key.ID, from).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return idempotency.ErrInProgress // or it has just ended, which the caller will find out
	}
	if err != nil {
		return contended(err)
	}
	if _, err := tx.ExecContext(ctx, s.sql.take, to, cmd.Fingerprint, cmd.Lease.Microseconds(), cmd.Retention.Microseconds(), []byte{},
		cmd.Key.Scope, cmd.Key.ID, from); err != nil {
		return contended(err)
	}
	return tx.Commit()
}

// row is a command as the table has it.
type row struct {
	token       string
	fingerprint []byte
	done        bool
	result      []byte
	lease       int64 // microseconds left
	expires     int64 // microseconds left
}

// remembered reports whether the retention or the lease keeps the command.
func (r row) remembered() bool { return r.expires > 0 || !r.done && r.lease > 0 }

func (s *Store) look(ctx context.Context, k idempotency.Key) (r row, err error) {
	var done int
	err = s.db.QueryRowContext(ctx, s.sql.look, k.Scope, k.ID).Scan(&r.token, &r.fingerprint, &done, &r.result, &r.lease, &r.expires)
	r.done = done == 1
	return r, err
}

// Extend implements [idempotency.Store].
func (s *Store) Extend(ctx context.Context, c idempotency.Claim) error {
	n, err := affected(ctx, s.db, s.sql.extend, c.Lease.Microseconds(), c.Key.Scope, c.Key.ID, c.Token)
	return fenced("extend", c, n, err)
}

// Complete implements [idempotency.Store].
func (s *Store) Complete(ctx context.Context, c idempotency.Claim, result []byte) error {
	n, err := affected(ctx, s.db, s.sql.complete, nonNil(result), c.Key.Scope, c.Key.ID, c.Token)
	if err == nil && n == 0 {
		var done int
		err = s.db.QueryRowContext(ctx, s.sql.completed, c.Key.Scope, c.Key.ID, c.Token).Scan(&done)
		if errors.Is(err, sql.ErrNoRows) {
			err = nil
		}
		n = int64(done) // by this claim, earlier
	}
	return fenced("complete", c, n, err)
}

// Release implements [idempotency.Store].
func (s *Store) Release(ctx context.Context, c idempotency.Claim) error {
	_, err := s.db.ExecContext(ctx, s.sql.release, c.Key.Scope, c.Key.ID, c.Token)
	return fenced("release", c, 1, err)
}

// CompleteTx implements [idempotency.TxStore].
func (s *Store) CompleteTx(ctx context.Context, tx idempotency.Tx, c idempotency.Claim, result []byte) error {
	n, err := affected(ctx, tx, s.sql.completeTx, nonNil(result), c.Key.Scope, c.Key.ID, c.Token)
	return fenced("complete", c, n, err)
}

// fenced returns the error of a write by the owner of a claim that changed n rows.
func fenced(what string, c idempotency.Claim, n int64, err error) error {
	if err == nil && n == 0 {
		err = idempotency.ErrLeaseLost
	}
	if err != nil {
		return fmt.Errorf("idempotencysql: %s %q: %w", what, c.Key.ID, err)
	}
	return nil
}

// nonNil keeps an empty result from becoming NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

const (
	pruneBatch    = "1000"
	pruneInterval = time.Hour
)

// Prune forgets the marks of messages that were handled longer than olderThan ago, and
// the commands whose retention is over, by the database's clock, a thousand rows at a
// time. It returns how many there were. See Config.MarkRetention for what olderThan must
// outlast.
func (s *Store) Prune(ctx context.Context, olderThan time.Duration) (int64, error) {
	if olderThan <= 0 {
		return 0, fmt.Errorf("idempotencysql: olderThan is %v, want longer than any redelivery", olderThan)
	}
	marks, err := s.prune(ctx, s.sql.pruneMarks, olderThan.Microseconds())
	if err != nil {
		return marks, err
	}
	keys, err := s.prune(ctx, s.sql.pruneKeys)
	return marks + keys, err
}

func (s *Store) prune(ctx context.Context, query string, args ...any) (total int64, err error) {
	for {
		n, err := affected(ctx, s.db, query, args...)
		if err != nil {
			return total, fmt.Errorf("idempotencysql: prune: %w", err)
		}
		if total += n; n == 0 {
			return total, nil
		}
	}
}

// Run prunes now and every hour until ctx ends, then returns nil. Any number of replicas
// may do so.
func (s *Store) Run(ctx context.Context) error {
	ticker := time.NewTicker(pruneInterval)
	defer ticker.Stop()
	for {
		if err := s.pruneConfigured(ctx); err != nil && ctx.Err() == nil {
			logger := s.cfg.Logger
			if logger == nil {
				logger = slog.Default()
			}
			logger.ErrorContext(ctx, "idempotencysql: not pruned", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (s *Store) pruneConfigured(ctx context.Context) error {
	if s.cfg.MarkRetention > 0 {
		_, err := s.Prune(ctx, s.cfg.MarkRetention)
		return err
	}
	_, err := s.prune(ctx, s.sql.pruneKeys)
	return err
}
