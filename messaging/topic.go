// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Match reports whether topic is matched by pattern, as a topic exchange of AMQP 0-9-1
// would: both are words separated by dots, where a * in the pattern stands for exactly
// one word and a # for any number of words, zero included.
func Match(pattern, topic string) bool {
	// The usual greedy walk with one point to return to: the last # and how far it has
	// swallowed. It is linear in practice and never worse than the product of the lengths.
	p, t := cursor{rest: pattern}, cursor{rest: topic}
	var hash, swallowed cursor
	backtrack := false
	for !t.end {
		word, after := t.next()
		pw, pafter := p.next()
		switch {
		case !p.end && pw == "#":
			backtrack, hash, swallowed = true, pafter, t
			p = pafter
		case !p.end && (pw == "*" || pw == word):
			p, t = pafter, after
		case backtrack:
			_, swallowed = swallowed.next()
			p, t = hash, swallowed
		default:
			return false
		}
	}
	for !p.end {
		w, after := p.next()
		if w != "#" {
			return false
		}
		p = after
	}
	return true
}

// cursor walks the words of a topic without cutting it up.
type cursor struct {
	rest string
	end  bool
}

// next returns the word at c and the cursor behind it.
func (c cursor) next() (word string, after cursor) {
	if c.end {
		return "", c
	}
	if i := strings.IndexByte(c.rest, '.'); i >= 0 {
		return c.rest[:i], cursor{rest: c.rest[i+1:]}
	}
	return c.rest, cursor{end: true}
}

// validTopic holds a topic to non-empty words separated by dots. Letters, digits, - and
// _ are portable to every broker; other visible characters are left to the broker.
func validTopic(field, s string) error {
	if strings.IndexByte(s, '*') >= 0 || strings.IndexByte(s, '#') >= 0 {
		return fmt.Errorf("messaging: %s is %.80q, want no wildcards in a topic", field, s)
	}
	return validPattern(field, s)
}

// validPattern holds a pattern to non-empty words separated by dots, where * and # stand alone.
func validPattern(field, s string) error {
	bad := s == "" || len(s) > maxText || !utf8.ValidString(s) ||
		strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
	for word := range strings.SplitSeq(s, ".") {
		if word == "" || len(word) > 1 && strings.ContainsAny(word, "*#") {
			bad = true
		}
	}
	if bad {
		return fmt.Errorf("messaging: %s is %.80q, want words separated by dots, at most %d bytes, without spaces", field, s, maxText)
	}
	return nil
}
