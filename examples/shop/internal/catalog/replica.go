// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"database/sql"
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/resilience"
)

const (
	// replicaWait is how long a replica may take to answer: half of what the gateway waits for the catalogue.
	replicaWait = time.Second
	// replicaRest is how long a replica that fails is left alone at most.
	replicaRest = 10 * time.Second
)

// reader is where queries go: to a replica, if there is one, and to the database itself while that fails. What a replica
// shows may be a moment old, so the answers of both are as good.
type reader struct {
	db, replica *sql.DB
	guard       *resilience.Policy
}

func newReader(env platform.Env) (*reader, error) {
	b, err := breaker.New(breaker.Config{Name: "replica", OpenMax: replicaRest, Hooks: env.Tracing().Breaker()})
	return &reader{db: env.DB, replica: env.Replica, guard: &resilience.Policy{Breaker: b, Attempt: replicaWait}}, err
}

// read is [platform.Collect] from whichever answers.
func read[T any](ctx context.Context, from *reader, scan func(row interface{ Scan(dest ...any) error }) (T, error), query string, args ...any) ([]T, error) {
	if from.replica == nil {
		return platform.Collect(ctx, from.db, scan, query, args...)
	}
	return resilience.Fallback(ctx, from.guard, func(ctx context.Context) ([]T, error) {
		return platform.Collect(ctx, from.replica, scan, query, args...)
	}, func(ctx context.Context, _ error) ([]T, error) {
		return platform.Collect(ctx, from.db, scan, query, args...)
	})
}

// collectors show the guard of the replica, if there is one.
func (r *reader) collectors() []prometheus.Collector {
	if r.replica == nil {
		return nil
	}
	return []prometheus.Collector{promkit.Policies("sql", 1, maps.All(map[string]*resilience.Policy{"replica": r.guard}))}
}
