// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/dovetail-go/dovetail/kafkakit"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
)

// fake starts a broker of the test's own. It keeps everything in memory.
func fake(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	k, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(100 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// config is one for tests: quick, and silent.
func config() kafkakit.Config {
	return kafkakit.Config{
		Topic: "test", Partitions: 8, Logger: slog.New(slog.DiscardHandler),
		CommitEvery: 20 * time.Millisecond, SessionTimeout: 2 * time.Second, RebalanceTimeout: 500 * time.Millisecond, Timeout: time.Second,
	}
}

func open(t testing.TB, k *kfake.Cluster, cfg kafkakit.Config) *kafkakit.Client {
	t.Helper()
	c, err := kafkakit.New(k.ListenAddrs(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestConformance runs against franz-go's fake broker, through a proxy that breaks the connections.
func TestConformance(t *testing.T) {
	messagingtest.Run(t, messagingtest.Harness{
		Open:        harness,
		Parallel:    true,
		Unit:        200 * time.Millisecond,
		Ordered:     true,
		Log:         true,
		Temporary:   true,
		TimeStep:    time.Millisecond,
		Partitioned: true,
	})
}

func harness(t *testing.T, _ messagingtest.Options) *messagingtest.Client {
	k := fake(t)
	p, err := messagingtest.StartProxy(k.ListenAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	cfg := config()
	cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, p.Addr())
	}
	c := open(t, k, cfg)
	var mu sync.Mutex
	var fault *kfake.FaultHandle
	return &messagingtest.Client{
		Publisher: c, Subscriber: c, Declarer: c, Replay: c.Replay, Proxy: p,
		DeadLetters: func(ctx context.Context, group string) ([]messaging.DeadLetter, error) {
			return c.DeadLetters(ctx, group, 0)
		},
		RefuseDeadLetters: func(refuse bool) {
			mu.Lock()
			defer mu.Unlock()
			if refuse {
				fault = k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "test.dead.g", Err: kerr.PolicyViolation, Count: -1})
			} else {
				fault.Remove()
			}
		},
	}
}
