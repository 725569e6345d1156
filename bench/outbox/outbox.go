// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outbox measures the outbox, its relay and the inbox against PostgreSQL and RabbitMQ,
// beside watermill's forwarder, river, and code written by hand for the same job.
//
// It needs DOVETAIL_POSTGRES_DSN and DOVETAIL_RABBITMQ_URL, and leaves nothing behind.
package outbox

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	amqp "github.com/rabbitmq/amqp091-go"

	dovetail "github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// Peers are the modules that are compared with.
var Peers = []string{
	"github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-sql/v4", "github.com/ThreeDotsLabs/watermill-amqp/v3",
	"github.com/riverqueue/river", "github.com/rabbitmq/amqp091-go", "github.com/jackc/pgx/v5",
}

// Report measures all and writes the tables to w, and the curves of growth to
// results/outbox-growth.svg. A round of it takes about a minute whatever each says, since
// servers need time to show what they do.
func Report(ctx context.Context, stdout, w io.Writer, rounds int, _ time.Duration) error {
	fmt.Fprint(w, "## Outbox, relay and inbox\n\nThe ratio of a goal is the median of the rounds' ratios.\n\n")
	dsn, broker := os.Getenv("DOVETAIL_POSTGRES_DSN"), os.Getenv("DOVETAIL_RABBITMQ_URL")
	if dsn == "" || broker == "" {
		fmt.Fprint(w, "Not run: DOVETAIL_POSTGRES_DSN and DOVETAIL_RABBITMQ_URL are not set.\n")
		return nil
	}
	b := &bench{ctx: ctx, stdout: stdout, w: w, rounds: rounds, broker: broker}
	if err := b.open(dsn); err != nil {
		return err
	}
	defer b.close()
	for _, part := range []func() error{b.throughput, b.latency, b.enqueue, b.writers, b.inbox, b.growth} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

type bench struct {
	ctx       context.Context //nolint:containedctx // that of the one call of Report
	stdout, w io.Writer
	rounds    int
	broker    string

	schema string
	dsn    string // with the schema
	pool   *pgxpool.Pool
	db     *sql.DB

	conn      *amqp.Connection
	publisher *rabbitkit.Client
	cleanups  []func()
}

// body is a message of 1 KiB that says when it was sent.
func body(at time.Time) []byte {
	return fmt.Appendf(nil, `{"at":%d,"padding":"%s"}`, at.UnixNano(), strings.Repeat("x", 980))
}

var quiet = slog.New(slog.DiscardHandler)

// open makes a schema of our own.
func (b *bench) open(dsn string) error {
	admin, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	b.schema = "dovetail_bench_" + strings.ToLower(rand.Text()[:8])
	if _, err := admin.ExecContext(b.ctx, "CREATE SCHEMA "+b.schema); err != nil {
		return errors.Join(err, admin.Close())
	}
	b.cleanups = append(b.cleanups, func() {
		_, _ = admin.ExecContext(b.ctx, "DROP SCHEMA "+b.schema+" CASCADE")
		_ = admin.Close()
	})
	u, err := url.Parse(dsn)
	if err != nil {
		return err
	}
	query := u.Query()
	query.Set("search_path", b.schema)
	u.RawQuery = query.Encode()
	b.dsn = u.String()
	if b.pool, err = b.connect(40); err != nil {
		return err
	}
	b.db = stdlib.OpenDBFromPool(b.pool)
	b.cleanups = append(b.cleanups, b.pool.Close, func() { _ = b.db.Close() })
	if b.conn, err = amqp.Dial(b.broker); err != nil {
		return err
	}
	b.cleanups = append(b.cleanups, func() { _ = b.conn.Close() })
	return nil
}

// connect makes a pool on the schema with settings of its own.
func (b *bench) connect(size int32, settings ...string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(b.dsn)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns, cfg.MinConns = size, 1
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		cfg.ConnConfig.RuntimeParams[name] = value
	}
	return pgxpool.NewWithConfig(b.ctx, cfg)
}

func (b *bench) close() {
	for _, f := range slices.Backward(b.cleanups) {
		f()
	}
}

// store makes an outbox with tables of its own.
func (b *bench) store(db *sql.DB, prefix string, cfg dovetail.Config) (*dovetail.Outbox, error) {
	store, err := outboxsql.New(db, outboxsql.Postgres, outboxsql.Config{Prefix: prefix})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(b.ctx); err != nil {
		return nil, err
	}
	return dovetail.New(store, cfg)
}

// ---- measuring

// A measure is a quantity of some cases, one value per round.
type measure struct{ values []float64 }

func (m *measure) add(v float64) { m.values = append(m.values, v) }

// median of the rounds, or 0.
func (m *measure) median() float64 {
	if len(m.values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(m.values))
	return v[len(v)/2]
}

// over is the median of the ratios to another case, round by round: what the machine does
// meanwhile falls on both.
func (m *measure) over(other *measure) float64 {
	ratios := measure{}
	for i := range min(len(m.values), len(other.values)) {
		ratios.add(m.values[i] / other.values[i])
	}
	return ratios.median()
}

// spread is the smallest and the largest value.
func (m *measure) spread() string {
	if len(m.values) == 0 {
		return ""
	}
	return fmt.Sprintf("%s to %s", figure(slices.Min(m.values)), figure(slices.Max(m.values)))
}

func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 1:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// log prints one measurement as benchstat reads it.
func (b *bench) log(group, name string, n int, pairs ...any) {
	fmt.Fprintf(b.stdout, "BenchmarkOutbox/%s/%s\t%d", group, strings.ReplaceAll(name, " ", "_"), n)
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(b.stdout, "\t%.2f %v", pairs[i], pairs[i+1])
	}
	fmt.Fprintln(b.stdout)
}

// goal writes a line of a list of goals.
func (b *bench) goal(what string, ratio float64, reached bool, why string) {
	verdict := "reached"
	if !reached {
		verdict = strings.TrimSpace("**missed** " + why)
	}
	fmt.Fprintf(b.w, "- %s: %.2f, %s\n", what, ratio, verdict)
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// timed returns how long f takes, on the clock and of the processor. What the preparations
// left behind is collected first.
func timed(f func() error) (wall, cpu time.Duration, err error) {
	runtime.GC()
	before, begin := processorTime(), time.Now()
	err = f()
	return time.Since(begin), processorTime() - before, err
}

// background runs f until the returned function is called, which waits for its end.
func (b *bench) background(f func(ctx context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return sync.OnceValue(func() error {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
}

// meanwhile runs f until the benchmark closes.
func (b *bench) meanwhile(f func(ctx context.Context) error) {
	stop := b.background(f)
	b.cleanups = append(b.cleanups, func() { _ = stop() })
}

// until waits for done, which is asked now and then.
func (b *bench) until(every time.Duration, done func() (bool, error)) error {
	for deadline := time.Now().Add(5 * time.Minute); ; {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("outbox: nothing happens any more")
		}
		time.Sleep(every)
	}
}
