// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"net/http"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/retry"
)

// Guarded is the way from one service to the others, with guards of its own for each of
// them: what is broken is left alone until it has recovered, what may be repeated is, within a
// budget, and one slow service cannot take every goroutine of this one.
type Guarded struct {
	*resiliencehttp.Transport
	calls tallies
}

// NewGuarded returns the guarded way through base. Concurrent bounds the calls to one service that
// are under way at once; zero does not, for who passes streams on. Each attempt is told to t.
func NewGuarded(base http.RoundTripper, concurrent int, t *Telemetry) (*Guarded, error) {
	if _, err := guards("any", concurrent, t); err != nil {
		return nil, err
	}
	transport, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{
		Base:      t.Client(base),
		Propagate: true,
		Guards: func(service string) resiliencehttp.Guards {
			p, err := guards(service, concurrent, t)
			if err != nil {
				panic(err) // the same configuration was good a moment ago
			}
			return resiliencehttp.Guards{Policy: p}
		},
	})
	return &Guarded{Transport: transport}, err
}

// Balancing is how calls are spread over a service's instances, by either protocol. A service that has none for a moment, as
// when all are replaced at once, keeps those that it had.
func (t *Telemetry) Balancing() balance.Config {
	return balance.Config{KeepOnEmpty: 10 * time.Second, Hooks: t.kit().Balance()}
}

// guards are those of the calls to one service, by either protocol.
func guards(service string, concurrent int, t *Telemetry) (*resilience.Policy, error) {
	p := new(resilience.Policy)
	var err, all error
	// Only what is idempotent is repeated here: the steps of sagas are repeated by the saga.
	p.Retry, all = retry.New(retry.Config{Name: service, Hooks: t.kit().Retry()})
	p.Breaker, err = breaker.New(breaker.Config{Name: service, FailureRate: 0.5, MinCalls: 10, OpenMax: 5 * time.Second, Hooks: t.kit().Breaker()})
	all = errors.Join(all, err)
	if concurrent > 0 {
		p.Bulkhead, err = bulkhead.New(concurrent, bulkhead.Config{Name: service, Queue: 4 * concurrent, Wait: 2 * time.Second, Hooks: t.kit().Bulkhead()})
		all = errors.Join(all, err)
	}
	return p, all
}

// breakerView is what an operator sees of the breaker to one service: calls and failures in its
// window, how often it opened and what it refused since the start.
type breakerView struct {
	Service  string `json:"service"`
	To       string `json:"to"`
	State    string `json:"state"`
	Calls    int64  `json:"calls"`
	Failures int64  `json:"failures"`
	Opened   uint64 `json:"opened"`
	Refused  uint64 `json:"refused"`
}

// operate adds what an operator asks of any service that calls others.
func (c *Caller) operate(mux *http.ServeMux, env Env) {
	mux.Handle("GET /ops/breakers", env.Auth.Require(Handle(func(w http.ResponseWriter, _ *http.Request) error {
		return WriteJSON(w, http.StatusOK, map[string]any{"service": env.Name, "items": c.breakers(env.Name)})
	}), RoleOperator))
}

// breakers describes the breakers to all services that were called so far.
func (c *Caller) breakers(service string) []breakerView {
	out := []breakerView{}
	add := func(to string, p *resilience.Policy) {
		s := p.Breaker.Stats()
		out = append(out, breakerView{service, to, s.State.String(), s.Calls, s.Failures, s.Opened, s.Rejected})
	}
	for host, guards := range c.Guards.Hosts() {
		add(host, guards.Policy)
	}
	for to, p := range c.RPC.policies() {
		add(to, p)
	}
	return out
}
