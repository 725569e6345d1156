// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

const deadLetterSchema = `
CREATE TABLE IF NOT EXISTS dead_letters (
	consumer TEXT NOT NULL,
	message_id TEXT NOT NULL,
	message TEXT NOT NULL,
	reason TEXT NOT NULL,
	attempts BIGINT NOT NULL,
	at BIGINT NOT NULL,
	PRIMARY KEY (consumer, message_id)
);`

// KeepDeadLetter stores a message that this service's consumer could not handle, with the
// reason, until an operator decides. Only then may the broker forget it.
func (b *Bus) KeepDeadLetter(ctx context.Context, dead messaging.DeadLetter) error {
	message, err := json.Marshal(dead.Message)
	if err != nil {
		return err
	}
	_, err = b.db.ExecContext(ctx, `INSERT INTO dead_letters (consumer, message_id, message, reason, attempts, at) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (consumer, message_id) DO UPDATE SET reason = excluded.reason, attempts = excluded.attempts, at = excluded.at`,
		dead.Group, dead.Message.ID, string(message), dead.Reason, dead.Attempt, dead.At.UnixMicro())
	if err != nil {
		return fmt.Errorf("%s: keep dead letter: %w", b.service, err)
	}
	return nil
}

// deadLetterView is a dead letter as an operator sees it.
type deadLetterView struct {
	Consumer  string          `json:"consumer"`
	MessageID string          `json:"message_id"`
	Message   json.RawMessage `json:"message"`
	Reason    string          `json:"reason"`
	Attempts  int64           `json:"attempts"`
	At        time.Time       `json:"at"`
}

// operate adds what an operator asks of any service that speaks or listens.
func (b *Bus) operate(mux *http.ServeMux, auth *Auth) {
	mux.Handle("GET /ops/outbox", auth.Require(Handle(func(w http.ResponseWriter, r *http.Request) error {
		stats, err := b.outbox.Stats(r.Context())
		if err != nil {
			return err
		}
		return WriteJSON(w, http.StatusOK, map[string]any{
			"service": b.service, "waiting": stats.Depth, "parked": stats.Parked, "oldest_seconds": stats.OldestAge.Seconds(),
		})
	}), RoleOperator))
	mux.Handle("GET /ops/dead-letters", auth.Require(Handle(func(w http.ResponseWriter, r *http.Request) error {
		dead, err := Collect(r.Context(), b.db, func(row interface{ Scan(dest ...any) error }) (v deadLetterView, err error) {
			var message string
			var at int64
			err = row.Scan(&v.Consumer, &v.MessageID, &message, &v.Reason, &v.Attempts, &at)
			v.Message, v.At = json.RawMessage(message), time.UnixMicro(at).UTC()
			return v, err
		}, `SELECT consumer, message_id, message, reason, attempts, at FROM dead_letters ORDER BY at DESC LIMIT 100`)
		if err != nil {
			return err
		}
		if dead == nil {
			dead = []deadLetterView{}
		}
		return WriteJSON(w, http.StatusOK, map[string]any{"service": b.service, "items": dead})
	}), RoleOperator))
}
