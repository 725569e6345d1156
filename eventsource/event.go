// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/messaging"
)

// The names of an event's metadata, beside traceparent and tracestate of W3C Trace Context.
// They are those of CloudEvents as package messaging writes them: the extensions
// "correlation" and "auth context".
const (
	// HeaderCorrelation names the business operation that everything about it shares.
	HeaderCorrelation = "ce-correlationid"
	// HeaderCausation is the ID of the event or message that caused this one.
	HeaderCausation = "ce-causationid"
	// HeaderActor is who did it, as an opaque ID: it is not encrypted.
	HeaderActor = "ce-authid"
)

// Tx is the caller's transaction: a [*sql.Tx], or whatever else can execute a statement
// in one. A [*sql.DB] fits too, for events without another change to go with them.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Event is something that happened, to be appended to a stream.
type Event struct {
	// ID is unique over all events. Append sets an empty one to [messaging.NewID].
	ID string
	// Type names the schema of Data with its version, such as "order.placed.v1".
	Type string
	// Time is when it happened. Append sets a zero one to now.
	Time time.Time
	// Header is the metadata: trace context, correlation, causation, actor.
	Header messaging.Header
	// Data is the encoded content. It must not be changed once it was appended.
	Data []byte
}

// Recorded is an event in its place.
type Recorded struct {
	Event
	// Stream is what the event happened to, such as "order-42".
	Stream string
	// Version is its place in the stream: 1, 2, 3 and so on without a gap.
	Version int64
	// Cursor is its place in the order of all streams. Zero says that this place is not
	// decided yet, which only MySQL's [Log.Read] can return.
	Cursor Cursor
	// Recorded is when it was appended, by the store's clock.
	Recorded time.Time
}

// Cursor is a place in the order of all events. It grows, with gaps; the zero Cursor is
// before the first event. Cursors of different logs have nothing to do with each other.
type Cursor int64

// Expect is what an Append expects of the stream's version. The zero Expect is Any.
type Expect struct {
	kind    expectation
	version int64
}

type expectation uint8

const (
	expectAny expectation = iota
	expectNone
	expectExists
	expectAt
)

var (
	// Any appends to whatever is there. Appends with Any to one stream wait for each other.
	Any = Expect{kind: expectAny}
	// None expects that the stream has no events yet. It is the same as At(0).
	None = Expect{kind: expectNone}
	// Exists expects at least one event. Like Any, it waits for others.
	Exists = Expect{kind: expectExists}
)

// At expects that the last event of the stream is number n.
func At(n int64) Expect {
	if n == 0 {
		return None
	}
	return Expect{kind: expectAt, version: n}
}

// Version returns the version that is expected and whether there is a certain one: 0 for
// None, n for At(n).
func (e Expect) Version() (n int64, exact bool) {
	return e.version, e.kind == expectNone || e.kind == expectAt
}

// String returns "any", "none", "exists" or "at 7".
func (e Expect) String() string {
	switch e.kind {
	case expectNone:
		return "none"
	case expectExists:
		return "exists"
	case expectAt:
		return fmt.Sprintf("at %d", e.version)
	}
	return "any"
}

// ErrVersion is what every [*VersionError] unwraps to.
var ErrVersion = errors.New("eventsource: the stream is not at the expected version")

// VersionError says that a stream was not where an Append expected it, or that another
// transaction got there first. The caller's transaction must be rolled back: some
// databases have ended it already. Load again, decide again, append again.
type VersionError struct {
	Stream string
	Want   Expect
	// Err is what the driver said, nil if the stream was seen to be elsewhere.
	Err error
}

// Error names the stream and what was expected.
func (e *VersionError) Error() string {
	s := fmt.Sprintf("eventsource: stream %q is not at the expected version (%v)", e.Stream, e.Want)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns [ErrVersion] and the driver's error.
func (e *VersionError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrVersion}
	}
	return []error{ErrVersion, e.Err}
}

// Buckets is how many buckets streams are hashed into.
const Buckets = 1024

// Bucket returns the bucket of a stream, from 0 to Buckets-1. It never changes: it is
// stored beside each event, and a shard of n is the streams whose bucket modulo n is its number.
func Bucket(stream string) int {
	f := fnv.New64a()
	f.Write([]byte(stream))
	// FNV alone puts short names that differ in a digit into few buckets. This is the
	// finalizer of MurmurHash3 (Appleby, public domain).
	h := f.Sum64()
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return int(h % Buckets)
}

// maxText bounds names, as messaging does, so that every event can become a message.
const maxText = 255

func checkText(field, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty, want a name", field)
	case len(s) > maxText:
		return fmt.Errorf("%s has %d bytes, want at most %d", field, len(s), maxText)
	case !utf8.ValidString(s), contains(s, unicode.IsControl):
		return fmt.Errorf("%s is %q, want UTF-8 text without control characters", field, s)
	case s[len(s)-1] == ' ':
		// MySQL compares without regard to spaces at the end.
		return fmt.Errorf("%s is %q, want no space at the end", field, s)
	}
	return nil
}

func contains(s string, f func(rune) bool) bool {
	for _, r := range s {
		if f(r) {
			return true
		}
	}
	return false
}
