// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package sagas measures sagas of three steps on PostgreSQL, beside SQL by hand and beside
// engines of durable workflows.
//
// It needs DOVETAIL_POSTGRES_DSN, and leaves nothing behind.
package sagas

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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cschleiden/go-workflows/backend"
	wfpostgres "github.com/cschleiden/go-workflows/backend/postgres"
	"github.com/cschleiden/go-workflows/client"
	"github.com/cschleiden/go-workflows/worker"
	"github.com/cschleiden/go-workflows/workflow"
	"github.com/dbos-inc/dbos-transact-golang/dbos"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// Peers are the modules that are compared with.
var Peers = []string{"github.com/dbos-inc/dbos-transact-golang", "github.com/cschleiden/go-workflows", "github.com/jackc/pgx/v5"}

// A contestant runs one saga of three empty steps from its start to its durable end.
type contestant struct {
	name string
	run  func(ctx context.Context, id string) error
}

// Report measures how many sagas each contestant ends in a second and writes the tables to w.
func Report(ctx context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	fmt.Fprint(w, "## Sagas\n\n")
	dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
	if dsn == "" {
		fmt.Fprint(w, "Not run: DOVETAIL_POSTGRES_DSN is not set.\n")
		return nil
	}
	name := "dovetail_bench_" + strings.ToLower(rand.Text()[:8])
	admin, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return err
	}
	defer func() { _, _ = admin.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+name+" WITH (FORCE)") }()
	u, err := url.Parse(dsn)
	if err != nil {
		return err
	}
	u.Path = "/" + name
	ctx, stop := context.WithCancel(ctx)
	b := &bench{ctx: ctx, dsn: u.String(), stdout: stdout, w: w, rounds: rounds, each: max(each, 2*time.Second)}
	defer func() {
		stop()
		b.close()
	}()
	return b.report()
}

type bench struct {
	ctx       context.Context
	dsn       string
	stdout, w io.Writer
	rounds    int
	each      time.Duration
	cleanups  []func()
	running   sync.WaitGroup
	n         atomic.Int64
}

func (b *bench) close() {
	b.running.Wait()
	for _, fn := range slices.Backward(b.cleanups) {
		fn()
	}
}

func (b *bench) open(connections int) (*sql.DB, error) {
	db, err := sql.Open("pgx", b.dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	b.cleanups = append(b.cleanups, func() { _ = db.Close() })
	return db, nil
}

func (b *bench) report() error {
	floor, err := b.floor(16)
	if err != nil {
		return err
	}
	ours, err := b.ours(16, 16, 16)
	if err != nil {
		return err
	}
	grouped, err := b.ours(128, 4, 2)
	if err != nil {
		return err
	}
	transact, err := b.dbos()
	if err != nil {
		return err
	}
	workflows, err := b.workflows()
	if err != nil {
		return err
	}
	type column struct {
		title    string
		inFlight int
		by       []contestant
	}
	columns := []column{
		{"1 in flight", 1, []contestant{floor, ours, transact, workflows}},
		{"16 in flight", 16, []contestant{floor, ours, transact, workflows}},
		{"128 in flight, ours on 4 connections", 128, []contestant{grouped, transact}},
	}
	figures := map[string][]float64{}
	before, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(before), " ")
	for range b.rounds {
		for _, c := range columns {
			for _, who := range c.by {
				rate, err := b.measure(c.inFlight, who)
				if err != nil {
					return fmt.Errorf("%s: %w", who.name, err)
				}
				key := c.title + "/" + who.name
				figures[key] = append(figures[key], rate)
				fmt.Fprintf(b.stdout, "BenchmarkSagas/%s\t1\t%.1f sagas/s\n", strings.ReplaceAll(key, " ", "_"), rate)
			}
		}
	}
	median := func(title, name string) float64 {
		v := slices.Sorted(slices.Values(figures[title+"/"+name]))
		return v[len(v)/2]
	}
	fmt.Fprintf(b.w, "Sagas a second from start to durable end, three empty steps each. The floor is an insert and three updates by hand, "+
		"each in its own transaction, on as many connections as sagas are in flight. Dovetail starts each saga in a transaction of the engine's own (Start without one). Peers run three steps (DBOS) or activities (go-workflows, polling every 10 ms); "+
		"neither compensates. dtm is a server with a protocol of its own and was not run. Everything shares one machine with PostgreSQL, whose commits reach the disk; the load before was %s. "+
		"A machine that others keep busy favours many connections over group commits on few.\n\n"+
		"| | sagas in flight | sagas/s | lowest to highest |\n| --- | ---: | ---: | ---: |\n", load)
	for _, c := range columns {
		for _, who := range c.by {
			v := figures[c.title+"/"+who.name]
			fmt.Fprintf(b.w, "| %s | %s | %.0f | %.0f to %.0f |\n", who.name, strings.TrimSuffix(c.title, " in flight"), median(c.title, who.name), slices.Min(v), slices.Max(v))
		}
	}
	fmt.Fprintln(b.w)
	goal := func(what string, got, want float64) {
		reached := "reached"
		if got < want {
			reached = "not reached"
		}
		fmt.Fprintf(b.w, "- %s: %s (%.2f)\n", what, reached, got)
	}
	for _, c := range columns[:2] {
		o := median(c.title, ours.name)
		goal(c.title+": at least 0.7 of the floor", o/median(c.title, floor.name), 0.7)
		goal(c.title+": at least 2.5 times DBOS", o/median(c.title, transact.name), 2.5)
		goal(c.title+": at least 20 times go-workflows", o/median(c.title, workflows.name), 20)
	}
	o := median(columns[2].title, grouped.name)
	goal("128 in flight on 4 connections: at least 2.5 times the floor at 16", o/median(columns[1].title, floor.name), 2.5)
	goal("128 in flight on 4 connections: at least 10 times DBOS", o/median(columns[2].title, transact.name), 10)
	fmt.Fprint(b.w, "\nWhat a saga costs: its start, which also gives it to the node, and each step with its history are one statement each, "+
		"which commits by itself at 1 in flight and together with those of others beyond; one read makes sure that the ID is not in the archive. "+
		"The floor has four statements, without a history, a fence, or an index on what is due. "+
		"Where a goal is missed, that is the price of the second row of each step and its index entry, and of the processor: "+
		"two cores run PostgreSQL, the contestants and the commits, of which sixteen connections get sixteen shares and a group commit's two get two. "+
		"So at 16 in flight dovetail has 16 connections and as many Config.Writers, like the floor; at 128 it has 4 and 2.\n")
	return nil
}

// measure returns how many sagas a second end when so many are in flight.
func (b *bench) measure(inFlight int, who contestant) (float64, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	var ended atomic.Int64
	errs := make([]error, inFlight)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range inFlight {
		wg.Go(func() {
			for time.Since(begin) < b.each && errs[i] == nil {
				errs[i] = who.run(ctx, fmt.Sprintf("saga-%d", b.n.Add(1)))
				ended.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(ended.Load()) / time.Since(begin).Seconds(), errors.Join(errs...)
}

func (b *bench) floor(connections int) (contestant, error) {
	db, err := b.open(connections)
	if err != nil {
		return contestant{}, err
	}
	_, err = db.ExecContext(b.ctx, "CREATE TABLE floor (id TEXT PRIMARY KEY, step INTEGER NOT NULL, data TEXT NOT NULL) WITH (fillfactor = 70)")
	return contestant{"SQL by hand (floor)", func(ctx context.Context, id string) error {
		if _, err := db.ExecContext(ctx, "INSERT INTO floor (id, step, data) VALUES ($1, 0, $2)", id, `{"n":1}`); err != nil {
			return err
		}
		for step := range 3 {
			if _, err := db.ExecContext(ctx, "UPDATE floor SET step = $1, data = $2 WHERE id = $3 AND step = $4", step+1, `{"n":1}`, id, step); err != nil {
				return err
			}
		}
		return nil
	}}, err
}

type data struct{ N int }

func (b *bench) ours(concurrency, connections, writers int) (contestant, error) {
	db, err := b.open(connections)
	if err != nil {
		return contestant{}, err
	}
	store, err := sagasql.New(db, sagasql.Postgres, sagasql.Config{Prefix: fmt.Sprintf("c%d_", concurrency)})
	if err != nil {
		return contestant{}, err
	}
	if err := store.Migrate(b.ctx); err != nil {
		return contestant{}, err
	}
	nothing := func(context.Context, saga.Attempt, *data) error { return nil }
	step := func(name string) saga.Step[data] { return saga.Call(name, nothing, saga.Undo(nothing)) }
	def := saga.Must(saga.New("three", 1, step("a"), step("b"), step("c")))
	engine, err := saga.NewEngine(store, saga.Config{Concurrency: concurrency, Writers: writers, Logger: slog.New(slog.DiscardHandler)}, def)
	if err != nil {
		return contestant{}, err
	}
	b.running.Go(func() { _ = engine.Run(b.ctx) })
	return contestant{"dovetail", func(ctx context.Context, id string) error {
		if err := saga.Start(ctx, engine, nil, def, id, data{N: 1}); err != nil {
			return err
		}
		in, err := engine.Wait(ctx, id)
		if err == nil && in.Status != saga.Completed {
			err = fmt.Errorf("%s is %v", id, in.Status)
		}
		return err
	}}, nil
}

func threeSteps(ctx dbos.Context, _ string) (string, error) {
	for range 3 {
		if _, err := dbos.RunAsStep(ctx, func(context.Context) (string, error) { return "", nil }); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (b *bench) dbos() (contestant, error) {
	ctx, err := dbos.NewContext(b.ctx, dbos.Config{AppName: "bench", DatabaseURL: b.dsn, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return contestant{}, err
	}
	dbos.RegisterWorkflow(ctx, threeSteps)
	if err := dbos.Launch(ctx); err != nil {
		return contestant{}, err
	}
	b.cleanups = append(b.cleanups, func() { _ = dbos.Shutdown(ctx, 5*time.Second) })
	return contestant{"DBOS", func(_ context.Context, id string) error {
		handle, err := dbos.RunWorkflow(ctx, threeSteps, "", dbos.WithWorkflowID(id))
		if err != nil {
			return err
		}
		_, err = handle.GetResult()
		return err
	}}, nil
}

func activity(context.Context) (int, error) { return 1, nil }

func threeActivities(ctx workflow.Context) (int, error) {
	for range 3 {
		if _, err := workflow.ExecuteActivity[int](ctx, workflow.DefaultActivityOptions, activity).Get(ctx); err != nil {
			return 0, err
		}
	}
	return 3, nil
}

func (b *bench) workflows() (contestant, error) {
	db, err := b.open(16)
	if err != nil {
		return contestant{}, err
	}
	be := wfpostgres.NewPostgresBackendWithDB(db, wfpostgres.WithApplyMigrations(true),
		wfpostgres.WithBackendOptions(backend.WithLogger(slog.New(slog.DiscardHandler))))
	options := worker.DefaultOptions
	options.WorkflowPollers, options.ActivityPollers = 4, 4
	options.WorkflowPollingInterval, options.ActivityPollingInterval = 10*time.Millisecond, 10*time.Millisecond
	w := worker.New(be, &options)
	if err := errors.Join(w.RegisterWorkflow(threeActivities), w.RegisterActivity(activity)); err != nil {
		return contestant{}, err
	}
	if err := w.Start(b.ctx); err != nil {
		return contestant{}, err
	}
	b.cleanups = append(b.cleanups, func() { _ = w.WaitForCompletion() })
	c := client.New(be)
	return contestant{"go-workflows", func(ctx context.Context, id string) error {
		instance, err := c.CreateWorkflowInstance(ctx, client.WorkflowInstanceOptions{InstanceID: id}, threeActivities)
		if err != nil {
			return err
		}
		_, err = client.GetWorkflowResult[int](ctx, c, instance, time.Minute)
		return err
	}}, nil
}
