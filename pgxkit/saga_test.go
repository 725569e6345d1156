// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package pgxkit_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/pgxkit"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// A saga that is started in one process is taken up at once by the engine of another one,
// whose next poll is an hour away.
func TestListenerWakesEngines(t *testing.T) {
	cfg := config(t)
	pool, db := connect(t, cfg)
	s, err := sagasql.New(db, sagasql.Postgres, sagasql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	type data struct{}
	done := make(chan string, 1)
	def := saga.Must(saga.New("x", 1, saga.Pivot(saga.Call("only", func(_ context.Context, a saga.Attempt, _ *data) error {
		done <- a.Saga
		return nil
	}))))
	channel := pgxkit.ListenerConfig{Channel: cfg.ConnConfig.RuntimeParams["search_path"]}
	here, there := listen(t, cfg, channel), listen(t, cfg, channel)
	starter, err := saga.NewEngine(s, saga.Config{Notifier: here, Logger: quiet}, def)
	if err != nil {
		t.Fatal(err)
	}
	runner, err := saga.NewEngine(s, saga.Config{Notifier: there, Poll: time.Hour, Logger: quiet}, def)
	if err != nil {
		t.Fatal(err)
	}
	var woken atomic.Int64
	unsubscribe := there.Subscribe(func() { woken.Add(1) })
	defer unsubscribe()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = runner.Run(ctx)
	}()
	eventually(t, "the engine listens, and has looked once", func() bool { return woken.Load() > 0 && runner.Stats().Polls > 0 })
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := saga.Start(t.Context(), starter, pgxkit.Tx(tx), def, "s", data{}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	starter.Wake()
	select {
	case id := <-done:
		if id != "s" {
			t.Errorf("worked on %q, want s", id)
		}
	case <-time.After(time.Minute):
		t.Error("not taken up, and the next poll is an hour away")
	}
	cancel()
	<-ended
}
