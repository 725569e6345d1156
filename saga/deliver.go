// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/messaging"
)

// Deliver brings the saga what its [Await] step of this name waits for, as a part of
// the caller's transaction, or in a transaction of its own if tx is nil. The value is
// stored as JSON. It may come before the saga waits or even exists; it is kept with the
// saga, or, if there never is one, for as long as Prune lets it.
//
// The first delivery counts: for any other first is false, and nothing changes, so a
// second decision does not override the first. A delivery to a saga that no longer
// waits has no effect. Tx must be a transaction, not a *sql.DB. Call [Engine.Wake] after
// its commit.
func (e *Engine) Deliver(ctx context.Context, tx Tx, id, step string, value any) (first bool, err error) {
	data, err := encode(value)
	if err != nil {
		return false, fmt.Errorf("saga %s: deliver to %s: %w", id, step, err)
	}
	return e.signal(ctx, tx, Signal{Saga: id, Step: step, Op: OpDo, Data: data})
}

func (e *Engine) signal(ctx context.Context, tx Tx, s Signal) (first bool, err error) {
	if problem := checkKey(s.Saga); problem != "" {
		return false, fmt.Errorf("saga: deliver: id %s", problem)
	}
	if problem := checkName(s.Step); problem != "" {
		return false, fmt.Errorf("saga %s: deliver: step %s", s.Saga, problem)
	}
	first, err = e.store.Deliver(ctx, tx, s)
	if err != nil {
		return false, fmt.Errorf("saga %s: deliver to %s: %w", s.Saga, s.Step, err)
	}
	if tx == nil {
		e.Wake()
	}
	return first, nil
}

// Reply returns a participant's answer to the command of a [Send]: a message for the
// topic that the command asks for, with the command's key. The value is encoded as JSON.
// Publish it through the participant's own outbox, in the transaction that has done what
// was asked, and again when the command comes again.
func Reply(command *messaging.Message, value any) (*messaging.Message, error) {
	body, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("saga: reply: %w", err)
	}
	key, topic := command.Header[HeaderKey], command.Header[HeaderReplyTo]
	if key == "" || topic == "" {
		return nil, fmt.Errorf("saga: reply: message %s has the headers %s %q and %s %q, want both", command.ID, HeaderKey, key, HeaderReplyTo, topic)
	}
	return &messaging.Message{
		ID: messaging.NewID(), Topic: topic, Key: command.Key, Type: "saga.reply", Time: time.Now(),
		Header: messaging.Header{HeaderKey: key}, Body: body,
	}, nil
}

// Replies returns the handler of the topic Config.ReplyTo. It acknowledges a reply when
// it is stored, one that comes twice or too late as well. What is no reply is rejected.
func (e *Engine) Replies() messaging.Handler {
	return messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		saga, step, op, err := parseKey(d.Message.Header[HeaderKey])
		if err != nil {
			return messaging.Reject(fmt.Errorf("saga: message %s: header %s: %w", d.Message.ID, HeaderKey, err))
		}
		if !json.Valid(d.Message.Body) || !utf8.Valid(d.Message.Body) {
			return messaging.Reject(fmt.Errorf("saga: message %s: the body is not JSON in UTF-8", d.Message.ID))
		}
		_, err = e.signal(ctx, nil, Signal{Saga: saga, Step: step, Op: op, Data: d.Message.Body})
		return err
	})
}

// parseKey is the reverse of Attempt.Key.
func parseKey(s string) (saga, step, op string, err error) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return "", "", "", fmt.Errorf("%q has %d parts, want <saga>/<step>/<op>", s, len(parts))
	}
	if saga, err = url.PathUnescape(parts[0]); err != nil {
		return "", "", "", err
	}
	if step, err = url.PathUnescape(parts[1]); err != nil {
		return "", "", "", err
	}
	op = parts[2]
	if saga == "" || step == "" || op != OpDo && op != OpUndo {
		return "", "", "", errors.New("want <saga>/<step>/do or <saga>/<step>/undo")
	}
	return saga, step, op, nil
}

// Correlate makes msg a consequence of cause: it takes over the headers
// [HeaderCorrelation], or begins with the cause's ID, and [HeaderCausation] becomes the
// cause's ID. For sagas without an orchestrator, in which each service listens to the
// events of others, it shows which events belong together. It returns msg.
func Correlate(cause, msg *messaging.Message) *messaging.Message {
	header := messaging.Header{}
	for name, value := range msg.Header {
		header[name] = value
	}
	header[HeaderCausation] = cause.ID
	if header[HeaderCorrelation] = cause.Header[HeaderCorrelation]; header[HeaderCorrelation] == "" {
		header[HeaderCorrelation] = cause.ID
	}
	msg.Header = header
	return msg
}

// Headers of [Correlate].
const (
	// HeaderCorrelation carries the ID of the message that began it all.
	HeaderCorrelation = "Correlation-ID"
	// HeaderCausation carries the ID of the message that this one is a consequence of.
	HeaderCausation = "Causation-ID"
)
