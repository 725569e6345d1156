// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/idempotency"
)

func TestParseKey(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`"8e03978e-40d5-43e8-bc93-6894a57f9324"`, "8e03978e-40d5-43e8-bc93-6894a57f9324"},
		{`8e03978e-40d5-43e8-bc93-6894a57f9324`, "8e03978e-40d5-43e8-bc93-6894a57f9324"},
		{" \tabc\t ", "abc"},
		{` "abc" `, "abc"},
		{`"a b"`, "a b"},
		{`" "`, " "},
		{`"a\"b"`, `a"b`},
		{`"a\\b"`, `a\b`},
		{`"a,b;c"`, "a,b;c"},
		{"dGVzdA==", "dGVzdA=="},
		{"a/b+c:d@e(f)'g", "a/b+c:d@e(f)'g"},
		{strings.Repeat("x", 255), strings.Repeat("x", 255)},
		{`"` + strings.Repeat(`\"`, 255) + `"`, strings.Repeat(`"`, 255)},
	} {
		if got, err := idempotency.ParseKey(c.in); err != nil || got != c.want {
			t.Errorf("ParseKey(%.40q) = %.40q, %v, want %.40q", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{
		"", " ", `""`, `"`, `"abc`, `abc"`, `"abc"x`, `"abc";p=1`, `"abc", "def"`, `"a"b"`, `"a\`, `"a\n"`, "\"a\tb\"",
		"a b", "a,b", "a;b", `a\b`, "a\tb", "a\x00b", "ä", "\"ä\"", "\x7f", "\"\x7f\"", "\xff",
		strings.Repeat("x", 256), `"` + strings.Repeat("x", 256) + `"`,
	} {
		if got, err := idempotency.ParseKey(in); err == nil {
			t.Errorf("ParseKey(%.40q) = %.40q, want an error", in, got)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, seed := range []string{`"a"`, "a", `"\\\""`, `"a`, "", "a,b", `"a";b=c`, "ä"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		key, err := idempotency.ParseKey(in)
		if err != nil {
			return
		}
		if len(key) < 1 || len(key) > 255 {
			t.Fatalf("ParseKey(%q) has %d characters", in, len(key))
		}
		for _, c := range []byte(key) {
			if c < ' ' || c > '~' {
				t.Fatalf("ParseKey(%q) = %q, which is not printable ASCII", in, key)
			}
		}
		if err := (idempotency.Command{Key: idempotency.Key{ID: key}}).Validate(); err != nil {
			t.Fatalf("ParseKey(%q) = %q, which no store takes: %v", in, key, err)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		if again, err := idempotency.ParseKey(quoted); err != nil || again != key {
			t.Fatalf("ParseKey(%q) = %q, %v, want %q", quoted, again, err, key)
		}
	})
}
