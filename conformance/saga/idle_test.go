// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
)

// counter counts what is sent to the server, also by a transaction's begin and end.
type counter struct{ n atomic.Int64 }

// TraceQueryStart implements [pgx.QueryTracer].
func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// An engine without work sends at most one statement a second to its database, its heartbeat included.
func TestIdleEngineSendsAtMostOneStatementASecond(t *testing.T) {
	db := testdb.Open(t, "postgres")
	store(t, db, "postgres")
	cfg, err := pgx.ParseConfig(os.Getenv("DOVETAIL_POSTGRES_DSN"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["search_path"] = databaseName(t, db, "postgres")
	sent := new(counter)
	cfg.Tracer = sent
	watched := stdlib.OpenDB(*cfg)
	defer watched.Close()
	e, err := saga.NewEngine(store(t, watched, "postgres"), saga.Config{}, saga.Must(saga.New("x", 1, saga.Call("a", func(context.Context, saga.Attempt, *int) error { return nil }, saga.NoUndo[int]()))))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	time.Sleep(2 * time.Second) // it finds its place
	from, began := sent.n.Load(), time.Now()
	time.Sleep(8 * time.Second)
	n, took := sent.n.Load()-from, time.Since(began)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	t.Logf("%d statements in %v", n, took.Round(time.Millisecond))
	if n == 0 || float64(n) > took.Seconds()+1 {
		t.Errorf("an idle engine sent %d statements in %v, want one a second at most", n, took)
	}
}
