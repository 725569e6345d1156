// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/messaging"
)

// TestNews tells more at once than one notification carries: others hear each of it, who tells hears nothing, and a
// listener whose connection is ended hears again.
func TestNews(t *testing.T) {
	dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
	if dsn == "" {
		testserver.Missing(t, "DOVETAIL_POSTGRES_DSN is not set: run scripts/services up postgres && eval \"$(scripts/services env)\"")
	}
	channel := "news" + strings.ReplaceAll(messaging.NewID(), "-", "")
	db, err := openPostgres(dsn, channel, nil) // the schema need not exist
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	open := func(heard func(key string)) *News {
		n, err := NewNews(db, dsn, channel, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- n.Run(ctx, heard) }()
		return n
	}
	heard, own := make(chan string, 10_000), make(chan string, 10_000)
	open(func(key string) { heard <- key })
	here := open(func(key string) { own <- key })
	defer func() {
		stop()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("Run = %v", err)
			}
		}
	}()
	until := func(what string, tell func() (done bool)) {
		t.Helper()
		deadline := time.Now().Add(2 * time.Minute)
		for !tell() {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not heard", what)
			}
		}
	}
	hello := func() bool { // what is told before the other listens is lost
		here.Tell("hello")
		select {
		case <-heard:
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	}

	until("the first word", hello)
	want := map[string]bool{}
	for i := range 1000 {
		want[fmt.Sprintf("%s-%d", channel, i)] = true
	}
	for key := range want {
		here.Tell(key)
	}
	until("all of it", func() bool {
		select {
		case key := <-heard:
			delete(want, key)
		case <-time.After(time.Second):
		}
		return len(want) == 0
	})

	if _, err := db.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE 'LISTEN%'`, channel); err != nil {
		t.Fatal(err)
	}
	for len(heard) > 0 {
		<-heard
	}
	until("a word after the connection was lost", hello)
	if len(own) > 0 {
		t.Errorf("who tells hears %q itself, want nothing", <-own)
	}

	var nobody *News
	nobody.Tell("x")
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if err := nobody.Run(stopped, nil); err != nil {
		t.Errorf("Run of no news = %v", err)
	}
	if _, err := NewNews(db, dsn, strings.Repeat("x", 64), nil); err == nil {
		t.Error("a channel of 64 bytes is taken, want it refused: PostgreSQL would cut it off")
	}
}
