// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Header is the name of the HTTP header that carries a [Key].
const Header = "Saga-Key"

// Key names one operation of one step of one saga. It is the same for every attempt.
type Key struct {
	// Saga is the saga's ID, at most 200 bytes.
	Saga string
	// Step is the step's name, at most 100 bytes.
	Step string
	// Op is "do" or "undo".
	Op string
}

// KeyOf returns the key of these parts, so that an orchestrator can write
// barrier.KeyOf(attempt.Parts()).
func KeyOf(saga, step, op string) Key { return Key{saga, step, op} }

// ParseKey is the reverse of [Key.String].
func ParseKey(s string) (Key, error) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return Key{}, fmt.Errorf("barrier: key %q has %d parts, want <saga>/<step>/<op>", s, len(parts))
	}
	for i := range parts {
		var err error
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return Key{}, fmt.Errorf("barrier: key %q: %w", s, err)
		}
	}
	k := Key{parts[0], parts[1], parts[2]}
	if problem := k.check(); problem != "" {
		return Key{}, fmt.Errorf("barrier: %s", problem)
	}
	return k, nil
}

// KeyFromHeader reads the key from the header [Header] of a request. A missing or
// malformed one is an error that may be shown to the caller.
func KeyFromHeader(h http.Header) (Key, error) {
	values := h.Values(Header)
	if len(values) != 1 {
		return Key{}, fmt.Errorf("barrier: %d headers %s, want 1", len(values), Header)
	}
	return ParseKey(values[0])
}

// SetHeader writes the key into the header [Header] of a request.
func (k Key) SetHeader(h http.Header) { h.Set(Header, k.String()) }

// String returns "<saga>/<step>/<op>", each part path-escaped: the same text as the
// Key method of a saga's attempt.
func (k Key) String() string {
	return url.PathEscape(k.Saga) + "/" + url.PathEscape(k.Step) + "/" + url.PathEscape(k.Op)
}

// check returns what is wrong with the key.
func (k Key) check() string {
	switch {
	case k.Saga == "" || len(k.Saga) > 200:
		return fmt.Sprintf("Key.Saga has %d bytes, want 1 to 200", len(k.Saga))
	case k.Step == "" || len(k.Step) > 100:
		return fmt.Sprintf("Key.Step has %d bytes, want 1 to 100", len(k.Step))
	case k.Op != "do" && k.Op != "undo":
		return fmt.Sprintf("Key.Op is %q, want do or undo", k.Op)
	}
	for _, s := range []string{k.Saga, k.Step} {
		// A database must compare it as we do: some ignore spaces at the end, some refuse
		// what is not UTF-8.
		if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) || strings.Trim(s, " ") != s {
			return fmt.Sprintf("Key part %q, want UTF-8 without control characters and without spaces around it", s)
		}
	}
	return ""
}
