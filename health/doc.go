// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package health tells an orchestrator and a load balancer how a process is, and starts and
// drains it in order.
//
//	checks, err := health.New(health.Config{})
//	err = checks.Add("database", db.PingContext, health.CheckConfig{})
//	mux.Handle("GET /livez", checks.Livez())
//	mux.Handle("GET /readyz", checks.Readyz())
//
//	process, err := health.NewLifecycle(health.LifecycleConfig{Checks: checks},
//		health.Stage{Name: "database", Stop: func(context.Context) error { return db.Close() }},
//		health.Stage{Name: "outbox", Run: relay.Run},
//		health.Server("http", server, listener),
//		health.Stage{Name: "registration", Run: announcement.Run, Announce: true},
//	)
//	err = process.Run(ctx) // until ctx is done, then the drain
//
// # Liveness and readiness
//
// /livez asks: would a restart help? It fails only for checks with CheckConfig.Liveness, of
// which most programs have none. A database that is away is no reason to restart every
// process that uses it.
//
// /readyz asks: should new work come here? It fails when a check fails, before the
// start has completed, and from the first moment of the drain.
//
// # The drain
//
// A [Lifecycle] starts its stages in order and ends them in this one: readiness fails; the
// stages that announce the process are stopped (deregistration); the settle time passes, in
// which callers notice and calls still on their way are served; the others are stopped in
// reverse order of their start, so that each still finds what it needs. With the order of
// the example that is: stop intake and finish, flush the outbox, close the database. Each
// stage has a timeout of its own, and one that fails does not keep the others from
// being stopped.
//
// # Guarantees
//
//   - A check runs once at a time, however many ask, and not more often than its TTL. One
//     that ignores its timeout is reported failing, and is not started a second time while
//     it hangs.
//   - Handlers answer within the longest timeout of their checks, or when the request ends.
//   - Lifecycle.Run returns when every stage has stopped or has used up its time, with all
//     their errors.
//
// # Caveats
//
// The handlers are for the inside: details name what a process depends on. Leave
// Config.Details off, or do not route them, where strangers can ask.
//
// The package does not handle signals: pass a context of signal.NotifyContext. Let the
// orchestrator wait longer than the settle time and all stop timeouts together.
package health
