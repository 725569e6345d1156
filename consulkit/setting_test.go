// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/consulkit"
)

// threshold is what the tests keep in a key.
type threshold struct {
	Consecutive int `json:"consecutive"`
}

func (s *threshold) Validate() error {
	if s.Consecutive == 13 {
		return fmt.Errorf("consecutive is %d, want a number without bad luck", s.Consecutive)
	}
	return nil
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		found := true
		for _, part := range parts {
			found = found && strings.Contains(line, part)
		}
		if found {
			return true
		}
	}
	return false
}

func put(t *testing.T, c *consulkit.Client, key, value string) {
	t.Helper()
	if _, err := c.API().KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
		t.Fatal(err)
	}
}

// background runs fn until the test ends or stop is called.
func background(t *testing.T, fn func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- fn(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// opensAfter counts the failures that it takes to open the breaker.
func opensAfter(b *breaker.Breaker) int {
	b.Reset()
	for n := range 100 {
		if errors.Is(b.Do(context.Background(), func(context.Context) error { return errors.New("away") }), breaker.ErrOpen) {
			return n
		}
	}
	return 100
}

// TestSetting changes the threshold of a breaker at work.
func TestSetting(t *testing.T) {
	t.Parallel()
	a := startAgent(t, true, "")
	c := a.client(t)
	b := must[*breaker.Breaker](t)(breaker.New(breaker.Config{}))
	apply := func(s threshold) error {
		return b.Reconfigure(breaker.Config{Consecutive: s.Consecutive, SlowRate: float64(s.Consecutive / 100)})
	}
	start := func(t *testing.T, key string, cfg consulkit.SettingConfig[threshold]) (*consulkit.Setting[threshold], *lines) {
		log := new(lines)
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		s := must[*consulkit.Setting[threshold]](t)(consulkit.NewSetting(c, key, apply, cfg))
		background(t, s.Run)
		<-s.Read()
		return s, log
	}
	wantOpens := func(t *testing.T, want int) {
		t.Helper()
		eventually(t, fmt.Sprintf("the breaker opens after %d failures", want), func() bool { return opensAfter(b) == want })
	}

	t.Run("a key that does not exist changes nothing", func(t *testing.T) {
		s, _ := start(t, "none", consulkit.SettingConfig[threshold]{})
		if value, ok := s.Value(); ok || opensAfter(b) != 5 {
			t.Errorf("Value = %v, %v, and the breaker opens after %d, want none and 5", value, ok, opensAfter(b))
		}
	})
	t.Run("a value is applied, and each new one", func(t *testing.T) {
		put(t, c, "a", `{"consecutive": 3}`)
		s, log := start(t, "a", consulkit.SettingConfig[threshold]{})
		wantOpens(t, 3)
		put(t, c, "a", `{"consecutive": 7}`)
		wantOpens(t, 7)
		if value, ok := s.Value(); !ok || value.Consecutive != 7 {
			t.Errorf("Value = %v, %v, want 7", value, ok)
		}
		if !log.has("setting applied", "key=a") {
			t.Errorf("log = %s, want that the setting was applied", log.text.String())
		}
	})
	t.Run("a value that is wrong is refused, and the one before stays", func(t *testing.T) {
		put(t, c, "b", `{"consecutive": 4}`)
		s, log := start(t, "b", consulkit.SettingConfig[threshold]{})
		wantOpens(t, 4)
		for value, reason := range map[string]string{
			`{"consecutive": `:            "unexpected EOF",
			`{"consecutiv": 9}`:           "consecutiv",
			`{"consecutive": "9"}`:        "cannot unmarshal string",
			`{"consecutive": 9} {}`:       "text after the end",
			`{"consecutive": 13}`:         "without bad luck",
			`{"consecutive": 900}`:        "SlowRate is 9",
			``:                            "EOF",
			`{"consecutive": 9, "x": {}}`: `unknown field`,
		} {
			before := s.State().Refused
			put(t, c, "b", value)
			eventually(t, fmt.Sprintf("%q is refused with %q", value, reason), func() bool {
				err := s.State().Refused
				return err != before && err != nil && strings.Contains(err.Error(), reason)
			})
			if got := opensAfter(b); got != 4 {
				t.Errorf("after %q the breaker opens after %d failures, want 4", value, got)
			}
		}
		if !log.has("level=ERROR", "setting refused, the old value stays", "key=b", "without bad luck") {
			t.Errorf("log = %s, want the refusal with its reason", log.text.String())
		}
		put(t, c, "b", `{"consecutive": 6}`)
		wantOpens(t, 6)
		if err := s.State().Refused; err != nil {
			t.Errorf("Refused = %v after a good value, want nil", err)
		}
	})
	t.Run("after the key's end the value stays, or the default applies", func(t *testing.T) {
		put(t, c, "c", `{"consecutive": 8}`)
		s, log := start(t, "c", consulkit.SettingConfig[threshold]{})
		wantOpens(t, 8)
		_, _ = c.API().KV().Delete("c", nil)
		eventually(t, "the end is noticed", func() bool { return log.has("setting deleted, the old value stays") })
		if got := opensAfter(b); got != 8 {
			t.Errorf("the breaker opens after %d failures, want 8", got)
		}
		put(t, c, "d", `{"consecutive": 9}`)
		start(t, "d", consulkit.SettingConfig[threshold]{Default: &threshold{Consecutive: 2}})
		wantOpens(t, 9)
		_, _ = c.API().KV().Delete("d", nil)
		wantOpens(t, 2)
		if value, _ := s.Value(); value.Consecutive != 8 {
			t.Errorf("Value = %v, want 8", value)
		}
	})
	t.Run("while consul is away the value stays, and a change is seen when it is back", func(t *testing.T) {
		put(t, c, "e", `{"consecutive": 3}`)
		s, _ := start(t, "e", consulkit.SettingConfig[threshold]{})
		wantOpens(t, 3)
		a.kill(t)
		eventually(t, "the outage is noticed", func() bool { return s.State().Unreachable != nil })
		if got := opensAfter(b); got != 3 {
			t.Errorf("the breaker opens after %d failures, want 3", got)
		}
		a.start(t)
		put(t, c, "e", `{"consecutive": 4}`)
		wantOpens(t, 4)
		eventually(t, "the outage is over", func() bool { return s.State().Unreachable == nil })
	})
}

func TestSettingIsChecked(t *testing.T) {
	t.Parallel()
	c := client(t, "127.0.0.1:1")
	apply := func(int) error { return nil }
	for want, make := range map[string]func() error{
		"client is nil": func() error {
			_, err := consulkit.NewSetting(nil, "a", apply, consulkit.SettingConfig[int]{})
			return err
		},
		`key is ""`: func() error { _, err := consulkit.NewSetting(c, "", apply, consulkit.SettingConfig[int]{}); return err },
		`key is "/a"`: func() error {
			_, err := consulkit.NewSetting(c, "/a", apply, consulkit.SettingConfig[int]{})
			return err
		},
		"apply is nil": func() error { _, err := consulkit.NewSetting(c, "a", nil, consulkit.SettingConfig[int]{}); return err },
		"Wait is 11m0s, want 0 to 10m": func() error {
			_, err := consulkit.NewSetting(c, "a", apply, consulkit.SettingConfig[int]{Wait: 11 * 60e9})
			return err
		},
	} {
		if err := make(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewSetting = %v, want %q", err, want)
		}
	}
}
