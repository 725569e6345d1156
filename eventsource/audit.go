// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"iter"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// AuditQuery selects entries of the audit listing. Zero fields select everything.
type AuditQuery struct {
	// Stream is one stream. Without it the whole log is read, from its begin.
	Stream string
	// After is where to go on in the whole log.
	After Cursor
	// Types are the types of events.
	Types []string
	// Actor, Correlation and Causation are compared with the events' metadata.
	Actor, Correlation, Causation string
	// Since and Until bound the time at which an event was recorded; Until is outside.
	Since, Until time.Time
}

// AuditEntry is who did what when. It has no content, so that it can be shown to people who
// may not see that.
type AuditEntry struct {
	Cursor                        Cursor
	Stream                        string
	Version                       int64
	ID, Type                      string
	Actor, Correlation, Causation string
	// Trace is the ID of the trace, empty if there is none.
	Trace string
	// Time is when it happened, Recorded when it was appended by the store's clock.
	Time, Recorded time.Time
}

// Audit yields who did what when, in order. Apart from Stream and Types the conditions are
// checked here, not by an index: an audit of the whole log reads the whole log.
func (l *Log) Audit(ctx context.Context, q AuditQuery) iter.Seq2[AuditEntry, error] {
	return func(yield func(AuditEntry, error) bool) {
		events := l.All(ctx, q.After, Filter{Types: q.Types})
		if q.Stream != "" {
			events = l.Read(ctx, q.Stream, 0)
		}
		for e, err := range events {
			if err != nil {
				yield(AuditEntry{}, err)
				return
			}
			if entry := entryOf(e); q.selects(entry) && !yield(entry, nil) {
				return
			}
		}
	}
}

func entryOf(e Recorded) AuditEntry {
	entry := AuditEntry{
		Cursor: e.Cursor, Stream: e.Stream, Version: e.Version, ID: e.ID, Type: e.Type, Time: e.Time, Recorded: e.Recorded,
		Actor: e.Header[HeaderActor], Correlation: e.Header[HeaderCorrelation], Causation: e.Header[HeaderCausation],
	}
	if t, ok := messaging.TraceFrom(e.Header); ok {
		entry.Trace = t.TraceID.String()
	}
	return entry
}

func (q AuditQuery) selects(e AuditEntry) bool {
	for _, c := range [][2]string{{q.Actor, e.Actor}, {q.Correlation, e.Correlation}, {q.Causation, e.Causation}} {
		if c[0] != "" && c[0] != c[1] {
			return false
		}
	}
	found := len(q.Types) == 0 || q.Stream == "" // All has filtered them
	for _, t := range q.Types {
		found = found || t == e.Type
	}
	switch {
	case !found, !q.Since.IsZero() && e.Recorded.Before(q.Since), !q.Until.IsZero() && !e.Recorded.Before(q.Until):
		return false
	}
	return q.Stream == "" || e.Cursor == 0 || e.Cursor > q.After
}
