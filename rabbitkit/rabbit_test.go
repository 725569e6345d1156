// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// broker returns the URL of the server to test with.
func broker(t testing.TB) string {
	t.Helper()
	u := os.Getenv("DOVETAIL_RABBITMQ_URL")
	if u != "" {
		return u
	}
	const how = `DOVETAIL_RABBITMQ_URL is not set; run: scripts/services up rabbitmq && eval "$(scripts/services env)"`
	if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
		t.Fatal(how + ", and DOVETAIL_REQUIRE_SERVICES=1")
	}
	t.Skip(how)
	return ""
}

// setup is one test's own part of the broker, behind a proxy.
type setup struct {
	*rabbitkit.Client
	url      string // directly
	exchange string
	proxy    *messagingtest.Proxy
	other    *rabbitkit.Client // directly, for looking and cleaning up

	mu     sync.Mutex
	groups []string
}

// open returns a client through a proxy. What it declares is deleted at the end.
func open(t testing.TB, cfg rabbitkit.Config) *setup {
	t.Helper()
	s := &setup{url: broker(t), exchange: fmt.Sprintf("t%d", time.Now().UnixNano())}
	u, err := url.Parse(s.url)
	if err != nil {
		t.Fatal("DOVETAIL_RABBITMQ_URL is not a URL")
	}
	if s.proxy, err = messagingtest.StartProxy(u.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.proxy.Close() })
	cfg.Exchange = s.exchange
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if s.other, err = rabbitkit.New(s.url, cfg); err != nil {
		t.Fatal(err)
	}
	u.Host = s.proxy.Addr()
	if s.Client, err = rabbitkit.New(u.String(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.proxy.Heal()
		_ = s.Client.Close()
		for _, g := range s.groups {
			if err := s.other.Remove(context.Background(), g); err != nil {
				t.Errorf("Remove(%q) = %v, want nil", g, err)
			}
		}
		s.raw(t, func(ch *amqp.Channel) {
			_ = ch.ExchangeDelete(s.exchange, false, false)
			_, _ = ch.QueueDelete(s.exchange+".log", false, false, false)
		})
		_ = s.other.Close()
	})
	return s
}

func (s *setup) note(subs ...messaging.Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range subs {
		if !slices.Contains(s.groups, sub.Group) {
			s.groups = append(s.groups, sub.Group)
		}
	}
}

// Declare and Subscribe note the groups.
func (s *setup) Declare(ctx context.Context, subs ...messaging.Subscription) error {
	s.note(subs...)
	return s.Client.Declare(ctx, subs...)
}

func (s *setup) Subscribe(ctx context.Context, sub messaging.Subscription, h messaging.Handler) error {
	s.note(sub)
	return s.Client.Subscribe(ctx, sub, h)
}

// raw runs fn with a channel of amqp091 itself.
func (s *setup) raw(t testing.TB, fn func(ch *amqp.Channel)) {
	t.Helper()
	c, err := amqp.Dial(s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	fn(ch)
}

func eventually(t testing.TB, cond func() bool, format string, args ...any) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until "+format, args...)
		}
	}
}

func msg(topic, key string) *messaging.Message {
	id := messaging.NewID()
	return &messaging.Message{ID: id, Topic: topic, Key: key, Time: time.Now(), Body: []byte(id)}
}

func TestConformance(t *testing.T) {
	broker(t)
	messagingtest.Run(t, messagingtest.Harness{
		Open: func(t *testing.T, o messagingtest.Options) *messagingtest.Client {
			cfg := rabbitkit.Config{Heartbeat: 2 * time.Second, MaxReconnectDelay: 300 * time.Millisecond}
			if o.Log {
				cfg.Log.MaxAge = time.Hour
			}
			// Without a queue for dead letters there is nowhere to put them.
			var refused atomic.Bool
			var s *setup
			cfg.Hooks.Delivered = func(messaging.Delivered) {
				if refused.Load() {
					s.raw(t, func(ch *amqp.Channel) { _, _ = ch.QueueDelete(s.exchange+".dead.g", false, false, false) })
				}
			}
			s = open(t, cfg)
			return &messagingtest.Client{
				Publisher: s, Subscriber: s, Declarer: s,
				DeadLetters: func(ctx context.Context, group string) ([]messaging.DeadLetter, error) {
					return s.other.DeadLetters(ctx, group, 100)
				},
				Replay: s.Replay,
				RefuseDeadLetters: func(refuse bool) {
					refused.Store(refuse)
					if refuse {
						return
					}
					if err := s.other.Declare(t.Context(), messaging.Subscription{Group: "g", Topics: []string{"t"}}); err != nil {
						t.Errorf("Declare = %v, want nil", err)
					}
				},
				Proxy: s.proxy,
			}
		},
		Parallel:   true,
		Ordered:    true,
		Temporary:  true,
		Unroutable: true,
		Log:        true,
		TimeStep:   2 * time.Second, // AMQP knows seconds only
	})
}
