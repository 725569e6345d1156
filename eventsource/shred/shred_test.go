// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package shred_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/eventsource/shred"
)

const secret = "Ada King, Countess of Lovelace"

func newVault(t *testing.T, keys shred.Keys, cfg shred.Config) *shred.Vault {
	t.Helper()
	v, err := shred.NewVault(keys, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

type address struct{ Street, City string }

// nested has personal values everywhere a value can be.
type nested struct {
	Plain    string
	Direct   shred.Personal[string]
	Struct   shred.Personal[address]
	Pointer  *shred.Personal[string]
	List     []shred.Personal[int]
	Array    [1]shred.Personal[string]
	Map      map[string]shred.Personal[string]
	Any      any
	Inner    struct{ Deep shred.Personal[string] }
	Empty    shred.Personal[string]
	Nothing  *nested
	unseen   string
	Picture  []byte
	embedded // its exported fields are ours
}

type embedded struct{ Below shred.Personal[string] }

func sample() *nested {
	p := shred.New("ada", secret)
	n := &nested{
		Plain: "plain", Direct: p, Struct: shred.New("ada", address{"St James's Square", "London"}), Pointer: &p,
		List: []shred.Personal[int]{shred.New("ada", 36), shred.New("bob", 7)}, Array: [1]shred.Personal[string]{p},
		Map: map[string]shred.Personal[string]{"a": p, "b": shred.New("bob", "Bob")}, Any: struct{ Name shred.Personal[string] }{p}, Picture: []byte{1, 2},
		unseen: "x", embedded: embedded{p},
	}
	n.Inner.Deep = p
	return n
}

func TestSealAndOpen(t *testing.T) {
	v := newVault(t, shred.NewMemory(), shred.Config{Masters: [][]byte{bytes.Repeat([]byte{7}, 32)}})
	n := sample()
	if err := v.Seal(t.Context(), n); err != nil {
		t.Fatalf("Seal = %v", err)
	}
	text, err := json.Marshal(n)
	if err != nil {
		t.Fatalf("Marshal = %v", err)
	}
	for _, s := range []string{"Ada", "Lovelace", "London", "Bob"} {
		if strings.Contains(string(text), s) {
			t.Errorf("the sealed text contains %q: %s", s, text)
		}
	}
	read := func() *nested {
		t.Helper()
		back := &nested{Any: &struct{ Name shred.Personal[string] }{}}
		if err := json.Unmarshal(text, back); err != nil {
			t.Fatalf("Unmarshal = %v", err)
		}
		if _, ok := back.Direct.Get(); ok {
			t.Error("Get before Open = true, want false")
		}
		if err := v.Open(t.Context(), back); err != nil {
			t.Fatalf("Open = %v", err)
		}
		return back
	}
	values := func(n *nested) string {
		age, _ := n.List[0].Get()
		return fmt.Sprint(n.Direct.Or("-"), n.Struct.Or(address{}), n.Pointer.Or("-"), age, n.List[1].Or(-1), n.Array[0].Or("-"), n.Map["a"].Or("-"), n.Map["b"].Or("-"),
			n.Any.(*struct{ Name shred.Personal[string] }).Name.Or("-"), n.Inner.Deep.Or("-"), n.Empty.Or("-"), n.Below.Or("-"))
	}
	want := fmt.Sprint(secret, address{"St James's Square", "London"}, secret, 36, 7, secret, secret, "Bob", secret, secret, "-", secret)
	if got := values(read()); got != want {
		t.Errorf("after Open = %s, want %s", got, want)
	}
	if err := v.Forget(t.Context(), "ada", "asked"); err != nil {
		t.Fatalf("Forget = %v", err)
	}
	forgotten := read()
	if got, want := values(forgotten), fmt.Sprint("-", address{}, "-", 0, 7, "-", "-", "Bob", "-", "-", "-", "-"); got != want || forgotten.Plain != "plain" {
		t.Errorf("after Forget = %s, want %s", got, want)
	}
	t.Run("what cannot be read is kept as it is", func(t *testing.T) {
		if err := v.Seal(t.Context(), forgotten); err != nil {
			t.Fatal(err)
		}
		if again, err := json.Marshal(forgotten); err != nil || !bytes.Equal(again, text) {
			t.Errorf("Marshal = %s, %v, want %s", again, err, text)
		}
	})
	t.Run("a subject that comes back has another key", func(t *testing.T) {
		back := shred.New("ada", "again")
		if err := v.Seal(t.Context(), &back); err != nil {
			t.Fatal(err)
		}
		if n := read(); n.Direct.Or("-") != "-" {
			t.Errorf("the old value = %q, want it closed", n.Direct.Or("-"))
		}
	})
	list, err := v.Forgotten(t.Context())
	if err != nil || len(list) != 1 || list[0].Subject != "ada" || list[0].Reason != "asked" || list[0].At.IsZero() {
		t.Errorf("Forgotten = %+v, %v, want ada", list, err)
	}
}

func TestNeverInTheClear(t *testing.T) {
	p := shred.New("ada", secret)
	if text, err := json.Marshal(struct{ P shred.Personal[string] }{p}); !errors.Is(err, shred.ErrNotSealed) {
		t.Errorf("Marshal of an unsealed value = %s, %v, want ErrNotSealed", text, err)
	} else if strings.Contains(err.Error(), "Lovelace") {
		t.Errorf("the error tells the secret: %v", err)
	}
	if v, err := p.Value(); !errors.Is(err, shred.ErrNotSealed) {
		t.Errorf("Value = %v, %v, want ErrNotSealed", v, err)
	}
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	log.Info("x", "p", p, "pointer", &p, "in", struct{ P shred.Personal[string] }{p})
	fmt.Fprintf(&b, "%v %+v %#v %s %q %x %d", p, &p, p, p, p, p, []shred.Personal[string]{p})
	if strings.Contains(b.String(), "Ada") || strings.Contains(b.String(), "416461") {
		t.Errorf("printed: %s", b.String())
	}
	keys := shred.NewMemory()
	master := bytes.Repeat([]byte{9}, 32)
	if err := newVault(t, keys, shred.Config{Masters: [][]byte{master}}).Seal(t.Context(), &p); err != nil {
		t.Fatal(err)
	}
	k, _, _ := keys.Find(t.Context(), "ada")
	if len(k.Secret) <= 32 {
		t.Errorf("the stored key has %d bytes, want it wrapped", len(k.Secret))
	}
}

func TestMasters(t *testing.T) {
	old, young := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	keys := shred.NewMemory()
	p := shred.New("ada", secret)
	if err := newVault(t, keys, shred.Config{Masters: [][]byte{old}}).Seal(t.Context(), &p); err != nil {
		t.Fatal(err)
	}
	text, _ := p.Value()
	for _, c := range []struct {
		masters [][]byte
		ok      bool
	}{{[][]byte{young, old}, true}, {[][]byte{young}, false}} {
		var back shred.Personal[string]
		if err := back.Scan(text); err != nil {
			t.Fatal(err)
		}
		err := newVault(t, keys, shred.Config{Masters: c.masters}).Open(t.Context(), &back)
		if (err == nil) != c.ok || back.Or("-") == secret != c.ok {
			t.Errorf("Open with %d masters = %q, %v, want ok %v", len(c.masters), back.Or("-"), err, c.ok)
		}
	}
	if _, err := shred.NewVault(keys, shred.Config{Masters: [][]byte{{1, 2}}}); err == nil || !strings.Contains(err.Error(), "Masters[0] has 2 bytes") {
		t.Errorf("NewVault = %v, want an error about the master", err)
	}
	if _, err := shred.NewVault(nil, shred.Config{}); err == nil {
		t.Error("NewVault without keys = nil, want an error")
	}
}

func TestTampering(t *testing.T) {
	v := newVault(t, shred.NewMemory(), shred.Config{})
	ada, bob := shred.New("ada", secret), shred.New("bob", "Bob")
	for _, p := range []*shred.Personal[string]{&ada, &bob} {
		if err := v.Seal(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	type form struct {
		Subject string `json:"subject"`
		Key     string `json:"key"`
		Data    []byte `json:"data"`
	}
	var a, b form
	for p, f := range map[*shred.Personal[string]]*form{&ada: &a, &bob: &b} {
		text, _ := p.Value()
		if err := json.Unmarshal([]byte(text.(string)), f); err != nil {
			t.Fatal(err)
		}
	}
	flipped := append([]byte(nil), a.Data...)
	flipped[len(flipped)-1] ^= 1
	for what, f := range map[string]form{
		"another's data": {a.Subject, a.Key, b.Data}, "a flipped bit": {a.Subject, a.Key, flipped}, "no data": {a.Subject, a.Key, nil},
	} {
		text, _ := json.Marshal(f)
		var p shred.Personal[string]
		if err := p.Scan(text); err != nil {
			t.Fatal(err)
		}
		if err := v.Open(t.Context(), &p); err == nil || strings.Contains(err.Error(), "Lovelace") {
			t.Errorf("Open of %s = %v, want an error", what, err)
		}
	}
	for _, text := range []any{"{}", "7", `"x"`, "{", 7, `{"subject":"a"}`} {
		var p shred.Personal[string]
		if err := p.Scan(text); err == nil {
			t.Errorf("Scan(%v) = nil, want an error", text)
		}
	}
	var p shred.Personal[string]
	if err := p.Scan(nil); err != nil || !p.IsZero() {
		t.Errorf("Scan(nil) = %v, want the zero value", err)
	}
	empty := shred.New("", "x")
	if err := v.Seal(t.Context(), &empty); err == nil {
		t.Error("Seal without a subject = nil, want an error")
	}
	if err := v.Seal(t.Context(), nested{}); err == nil {
		t.Error("Seal of no pointer = nil, want an error")
	}
	if err := v.Forget(t.Context(), "ada", ""); err == nil {
		t.Error("Forget without a reason = nil, want an error")
	}
}

// counting counts the look-ups.
type counting struct {
	*shred.Memory
	finds int
}

func (c *counting) Find(ctx context.Context, subject string) (shred.Key, bool, error) {
	c.finds++
	return c.Memory.Find(ctx, subject)
}

func TestCache(t *testing.T) {
	for _, c := range []struct {
		cache time.Duration
		want  int
	}{{time.Hour, 1}, {-1, 10}} {
		keys := &counting{Memory: shred.NewMemory()}
		v := newVault(t, keys, shred.Config{Cache: c.cache})
		for range 10 {
			p := shred.New("ada", secret)
			if err := v.Seal(t.Context(), &p); err != nil {
				t.Fatal(err)
			}
		}
		if keys.finds != c.want {
			t.Errorf("with Cache %v: %d look-ups, want %d", c.cache, keys.finds, c.want)
		}
	}
}
