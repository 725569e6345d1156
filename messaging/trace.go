// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// The headers of W3C Trace Context.
const (
	traceParent = "traceparent"
	traceState  = "tracestate"
)

// TraceContext is the position in a distributed trace that a message carries, by W3C
// Trace Context (https://www.w3.org/TR/trace-context/).
type TraceContext struct {
	TraceID TraceID
	SpanID  SpanID
	// Flags are the trace flags; bit 0 says that the trace is sampled.
	Flags byte
	// State is the tracestate header, vendors' own data, passed on as it came.
	State string
}

// TraceID identifies a trace. The zero TraceID is invalid.
type TraceID [16]byte

// String returns 32 hexadecimal digits.
func (id TraceID) String() string { return hex.EncodeToString(id[:]) }

// SpanID identifies a span in a trace. The zero SpanID is invalid.
type SpanID [8]byte

// String returns 16 hexadecimal digits.
func (id SpanID) String() string { return hex.EncodeToString(id[:]) }

// NewTrace returns the root of a new, sampled trace.
func NewTrace() TraceContext {
	var t TraceContext
	_, _ = rand.Read(t.TraceID[:]) // documented never to fail
	_, _ = rand.Read(t.SpanID[:])
	t.Flags = 1
	return t
}

// Child returns t with a new span ID: the context to send on.
func (t TraceContext) Child() TraceContext {
	_, _ = rand.Read(t.SpanID[:])
	return t
}

// TraceFrom returns the trace context in h and whether there is a valid one. A
// tracestate that is not valid is left out.
func TraceFrom(h Header) (TraceContext, bool) {
	var t TraceContext
	s := h[traceParent]
	// version "-" trace-id "-" parent-id "-" flags; a later version may append to it.
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return t, false
	}
	var version, flags [1]byte
	if !fromHex(version[:], s[:2]) || !fromHex(t.TraceID[:], s[3:35]) ||
		!fromHex(t.SpanID[:], s[36:52]) || !fromHex(flags[:], s[53:55]) {
		return TraceContext{}, false
	}
	switch {
	case version[0] == 0xff,
		version[0] == 0 && len(s) != 55,
		len(s) > 55 && s[55] != '-',
		t.TraceID == TraceID{},
		t.SpanID == SpanID{}:
		return TraceContext{}, false
	}
	// Of the flags only the sampled bit of version 00 is known; the others are not ours to set.
	t.Flags = flags[0] & 1
	if validState(h[traceState]) {
		t.State = h[traceState]
	}
	return t, true
}

// fromHex decodes lower-case hexadecimal digits, the only ones that the standard allows.
func fromHex(dst []byte, s string) bool {
	if s != strings.ToLower(s) {
		return false
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

// Inject sets traceparent and tracestate in h, which must not be nil. An invalid t, such
// as the zero one, removes them.
func (t TraceContext) Inject(h Header) {
	if t.TraceID == (TraceID{}) || t.SpanID == (SpanID{}) {
		delete(h, traceParent)
		delete(h, traceState)
		return
	}
	h[traceParent] = t.String()
	if t.State != "" {
		h[traceState] = t.State
	} else {
		delete(h, traceState)
	}
}

// String returns t as a traceparent header of version 00.
func (t TraceContext) String() string {
	return "00-" + t.TraceID.String() + "-" + t.SpanID.String() + "-" + hex.EncodeToString([]byte{t.Flags})
}

// validState checks a tracestate: at most 32 members, each key=value with the alphabet
// of the standard, no key twice.
func validState(s string) bool {
	if s == "" {
		return false
	}
	seen := make(map[string]bool)
	for member := range strings.SplitSeq(s, ",") {
		member = strings.Trim(member, " \t")
		if member == "" {
			continue
		}
		key, value, ok := strings.Cut(member, "=")
		if !ok || !validStateKey(key) || !validStateValue(value) || seen[key] || len(seen) == 32 {
			return false
		}
		seen[key] = true
	}
	return len(seen) > 0
}

// validStateKey allows name and tenant@system: a lower-case letter, or a digit for a
// tenant, then lower-case letters, digits and _-*/.
func validStateKey(key string) bool {
	name, system, multi := strings.Cut(key, "@")
	part := func(s string, most int, digit bool) bool {
		if s == "" || len(s) > most {
			return false
		}
		for i := range len(s) {
			c := s[i]
			switch {
			case 'a' <= c && c <= 'z':
			case '0' <= c && c <= '9':
				if i == 0 && !digit {
					return false
				}
			case strings.IndexByte("_-*/", c) >= 0 && i > 0:
			default:
				return false
			}
		}
		return true
	}
	if multi {
		return part(name, 241, true) && part(system, 14, false)
	}
	return part(name, 256, false)
}

// validStateValue allows 1 to 256 printable ASCII characters except , and =.
func validStateValue(v string) bool {
	if v == "" || len(v) > 256 || v[len(v)-1] == ' ' {
		return false
	}
	for i := range len(v) {
		if c := v[i]; c < 0x20 || c > 0x7e || c == ',' || c == '=' {
			return false
		}
	}
	return true
}
