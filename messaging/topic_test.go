// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"slices"
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"a", []string{"a"}, []string{"b", "a.a", "aa", ""}},
		{"a.b", []string{"a.b"}, []string{"a", "a.b.c", "a.c"}},
		{"*", []string{"a"}, []string{"a.b"}},
		{"a.*", []string{"a.b"}, []string{"a", "a.b.c", "b.b"}},
		{"*.b.*", []string{"a.b.c"}, []string{"a.b", "b.c", "a.a.b.c"}},
		{"#", []string{"a", "a.b", "a.b.c", ""}, nil},
		{"a.#", []string{"a", "a.b", "a.b.c"}, []string{"b", "b.a"}},
		{"#.a", []string{"a", "b.a", "a.a", "a.b.a"}, []string{"a.b"}},
		{"a.#.b", []string{"a.b", "a.x.b", "a.b.b", "a.x.y.b"}, []string{"a", "b", "a.b.x"}},
		{"#.a.#", []string{"a", "x.a", "a.x", "x.a.x", "a.a"}, []string{"x", "x.y"}},
		{"*.#", []string{"a", "a.b"}, nil},
		{"#.*", []string{"a", "a.b", "a.b.c"}, nil},
		{"#.*.#.*", []string{"a.b", "a.b.c"}, []string{"a"}},
		{"#.#", []string{"a", "a.b"}, nil},
		{"#.b.*.#.c", []string{"b.x.c", "a.b.x.c", "b.b.x.y.c"}, []string{"b.c", "b.x"}},
	} {
		for _, topic := range c.yes {
			if !Match(c.pattern, topic) {
				t.Errorf("Match(%q, %q) = false, want true", c.pattern, topic)
			}
		}
		for _, topic := range c.no {
			if Match(c.pattern, topic) {
				t.Errorf("Match(%q, %q) = true, want false", c.pattern, topic)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { Match("#.b.*.#.c", "a.b.b.b.x.y.c") }); n != 0 {
		t.Errorf("Match allocates %v times, want 0", n)
	}
}

// naive is the definition, word by word.
func naive(pattern, topic []string) bool {
	switch {
	case len(pattern) == 0:
		return len(topic) == 0
	case pattern[0] == "#":
		return naive(pattern[1:], topic) || len(topic) > 0 && naive(pattern, topic[1:])
	case len(topic) == 0:
		return false
	}
	return (pattern[0] == "*" || pattern[0] == topic[0]) && naive(pattern[1:], topic[1:])
}

func FuzzMatch(f *testing.F) {
	f.Add("#.a.*.b", "a.b.a.c.b")
	f.Add("*.#.*", "a")
	f.Add("", "")
	f.Add("a.", ".a")
	f.Fuzz(func(t *testing.T, pattern, topic string) {
		// A few letters, so that words are often equal.
		few := func(s string) string {
			return strings.Map(func(r rune) rune { return []rune("ab.*#.")[r%6] }, s)
		}
		pattern, topic = few(pattern), strings.NewReplacer("*", "a", "#", "b").Replace(few(topic))
		if len(pattern) > 24 || len(topic) > 24 {
			return // the definition is exponential
		}
		want := naive(strings.Split(pattern, "."), strings.Split(topic, "."))
		if got := Match(pattern, topic); got != want {
			t.Errorf("Match(%q, %q) = %t, want %t", pattern, topic, got, want)
		}
	})
}

func FuzzValidate(f *testing.F) {
	f.Add("order.placed", "order.#")
	f.Add("a..b", "a*")
	f.Fuzz(func(t *testing.T, topic, pattern string) {
		if validTopic("t", topic) == nil {
			if !Match(topic, topic) || !Match("#", topic) || slices.Contains(strings.Split(topic, "."), "") {
				t.Errorf("%q is valid but does not match itself", topic)
			}
		}
		if validPattern("p", pattern) == nil {
			concrete := strings.NewReplacer("*", "x", "#", "x").Replace(pattern)
			if !Match(pattern, concrete) {
				t.Errorf("Match(%q, %q) = false, want true", pattern, concrete)
			}
		}
	})
}
