// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
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

// deadLetters is a broker that keeps dead letters itself. One that does not hands them over: see
// [Bus.KeepDeadLetter].
type deadLetters interface {
	DeadLetters(ctx context.Context, group string, limit int) ([]messaging.DeadLetter, error)
	Discard(ctx context.Context, dead ...messaging.DeadLetter) error
}

// collectEvery is how often a service looks for dead letters at the broker.
const collectEvery = 2 * time.Second

// collectDeadLetters brings the dead letters of the service's groups from the broker to the
// service's database until ctx ends, so that they are seen and replayed in one way whatever the broker.
// Each is discarded there after it is kept here: another instance may do the same meanwhile.
func (b *Bus) collectDeadLetters(ctx context.Context, env Env, consumers []Consumer) {
	broker, ok := env.Broker.(deadLetters)
	if !ok || len(consumers) == 0 {
		return
	}
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, c := range consumers {
			if err := b.collect(ctx, broker, c.Subscription.Group); err != nil && ctx.Err() == nil {
				env.Log.Warn("dead letters stay at the broker", "group", c.Subscription.Group, "error", err)
			}
		}
	}
}

func (b *Bus) collect(ctx context.Context, broker deadLetters, group string) error {
	for {
		dead, err := broker.DeadLetters(ctx, group, 0)
		if err != nil || len(dead) == 0 {
			return err
		}
		for _, d := range dead {
			if err := b.KeepDeadLetter(ctx, d); err != nil {
				return err
			}
		}
		if err := broker.Discard(ctx, dead...); err != nil {
			return err
		}
	}
}

// replay gives a dead letter to its consumer once more. It is kept until that has worked.
func (b *Bus) replay(w http.ResponseWriter, r *http.Request) error {
	ctx, group, id := r.Context(), r.PathValue("consumer"), r.PathValue("message")
	var text string
	err := b.db.QueryRowContext(ctx, `SELECT message FROM dead_letters WHERE consumer = $1 AND message_id = $2`, group, id).Scan(&text)
	b.mu.Lock()
	handler, ok := b.handlers[group]
	b.mu.Unlock()
	if errors.Is(err, sql.ErrNoRows) || err == nil && !ok {
		return NotFound("dead letter", group+"/"+id)
	}
	if err != nil {
		return err
	}
	m := new(messaging.Message)
	if err := json.Unmarshal([]byte(text), m); err != nil {
		return fmt.Errorf("dead letter %s: %w", id, err)
	}
	// The inbox knows if it was applied after all.
	again := messaging.Chain(handler, messaging.Recover())
	if err := again.Handle(context.WithValue(ctx, replayKey{}, true), &messaging.Delivery{Message: m, Group: group, Attempt: 1, Redelivered: true}); err != nil {
		return &Error{Status: http.StatusConflict, Code: "failed-again", Detail: err.Error()}
	}
	if _, err := b.db.ExecContext(ctx, `DELETE FROM dead_letters WHERE consumer = $1 AND message_id = $2`, group, id); err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, map[string]string{"consumer": group, "message_id": id})
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
	mux.Handle("POST /ops/dead-letters/{consumer}/{message}/replay", auth.Require(Handle(b.replay), RoleOperator))
	mux.Handle("GET /ops/parked", auth.Require(Handle(b.parked), RoleOperator))
	mux.Handle("POST /ops/parked/{service}/{message}/retry", auth.Require(Handle(b.retryParked), RoleOperator))
	mux.Handle("POST /ops/parked/{service}/{message}/discard", auth.Require(Handle(b.discardParked), RoleOperator))
}

// parked lists what the outbox could not publish and has set aside, and what an operator has given up of it.
func (b *Bus) parked(w http.ResponseWriter, r *http.Request) error {
	type view struct {
		Service   string             `json:"service"`
		MessageID string             `json:"message_id"`
		Message   *messaging.Message `json:"message"`
		Reason    string             `json:"reason"`
		Attempts  int                `json:"attempts"`
		Since     time.Time          `json:"since"`
		Blocks    bool               `json:"blocks"`
		Discarded time.Time          `json:"discarded,omitzero"`
		Why       string             `json:"why,omitempty"`
	}
	parked, err := b.outbox.Parked(r.Context())
	if err != nil {
		return err
	}
	discarded, err := b.outbox.Discarded(r.Context())
	if err != nil {
		return err
	}
	views := func(list []outbox.Parked) []view {
		out := make([]view, len(list))
		for i, p := range list {
			out[i] = view{b.service, p.Message.ID, p.Message, p.Reason, p.Attempts, p.Since.UTC(), p.Blocks, p.Discarded.UTC(), p.DiscardReason}
		}
		return out
	}
	return WriteJSON(w, http.StatusOK, map[string]any{"service": b.service, "items": views(parked), "discarded": views(discarded)})
}

// retryParked has a parked message published again.
func (b *Bus) retryParked(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("message")
	err := b.outbox.Retry(r.Context(), id)
	if errors.Is(err, outbox.ErrNotParked) {
		return NotFound("parked message", id)
	}
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, map[string]string{"service": b.service, "message_id": id})
}

// discardParked gives a parked message up. The outbox keeps it with who did so, and why.
func (b *Bus) discardParked(w http.ResponseWriter, r *http.Request) error {
	why, err := Why(w, r)
	if err != nil {
		return err
	}
	id := r.PathValue("message")
	err = b.outbox.Discard(r.Context(), id, fmt.Sprintf("%s (by %s)", why, Who(r.Context())))
	if errors.Is(err, outbox.ErrNotParked) {
		return NotFound("parked message", id)
	}
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, map[string]string{"service": b.service, "message_id": id})
}

// maxWhy is how many bytes an operator's reason may have.
const maxWhy = 2000

// Why reads the reason of an operator's decision, without which there is none.
func Why(w http.ResponseWriter, r *http.Request) (string, error) {
	var in struct {
		Why string `json:"why"`
	}
	if err := Decode(w, r, &in); err != nil {
		return "", err
	}
	if strings.TrimSpace(in.Why) == "" {
		return "", Invalid("why", "is empty, want the reason")
	}
	if len(in.Why) > maxWhy {
		return "", Invalid("why", "has %d bytes, want at most %d", len(in.Why), maxWhy)
	}
	return in.Why, nil
}
