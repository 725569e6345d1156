// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package gateway is the one entry to the shop: it finds the services by discovery,
// turns away who may not enter, puts answers of several services together, and serves
// the pages.
package gateway

import (
	"cmp"
	"context"
	_ "embed" // for the interface description
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stockpb"
	"github.com/dovetail-go/dovetail/gateway"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
)

//go:embed openapi.yaml
var openAPI []byte

// Service is the gateway.
type Service struct {
	env      platform.Env
	services []string
	// quota is per customer, entries per address for who has still to show who they are, limit per address for all, and shed
	// for the gateway as a whole.
	quota, entries platform.Quota
	shown          []prometheus.Collector // of the guards
	limit, shed    func(http.Handler) http.Handler
	// door is the room of those who come in: a password takes more work than anything else, and is no reason to have none
	// for whoever is in already.
	door func(http.Handler) http.Handler
	// catalogue answers from memory.
	catalogue *catalogue
	// invariants are nil where nobody controls the whole shop.
	invariants *invariants
	// exchange has the shop's tokens for those of the other issuer.
	exchange *cache.Cache[string]
	console  *console
}

// Limits of who asks: an address may be a whole office, a customer is one person.
var (
	addressLimit  = ratelimit.Limit{Rate: 2000, Burst: 4000}
	customerLimit = ratelimit.Limit{Rate: 100, Burst: 200}
	// A whole office comes in at nine, but nobody there has thousands of passwords to try.
	entryLimit = ratelimit.Limit{Rate: 20, Burst: 600}
)

// How many may come in at once, and for how long the others of an office wait.
const (
	doorRoom = 16
	doorWait = 5 * time.Second
)

// New returns the gateway of the named services, whose consumers are these groups.
func New(env platform.Env, services, groups []string) (*Service, error) {
	addresses, err := env.Quota("address", addressLimit)
	if err != nil {
		return nil, err
	}
	quota, err := env.Quota("customer", customerLimit)
	if err != nil {
		return nil, err
	}
	entries, err := env.Quota("entry", entryLimit)
	if err != nil {
		return nil, err
	}
	// Requests differ a thousandfold in what they take: a sign-in is slow by design. With few of them at
	// once, that difference is no sign of load.
	adaptive, err := resilience.NewAdaptive(resilience.AdaptiveConfig{Name: "gateway", Min: 64, Hooks: env.Tracing().Adaptive()})
	if err != nil {
		return nil, err
	}
	guarded := func(w http.ResponseWriter, _ *http.Request, refusal resiliencehttp.Refusal) {
		platform.WriteProblem(w, tooMuch(refusal.Status, refusal.RetryAfter))
	}
	limit, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{
		RateLimit: func(r *http.Request) ratelimit.Result { return addresses.Allow(r.Context(), address(r)) },
		Exempt: func(r *http.Request) bool {
			return !strings.HasPrefix(r.URL.Path, "/api/") && !strings.HasPrefix(r.URL.Path, "/ops/api/")
		},
		Refuse: guarded,
	})
	if err != nil {
		return nil, err
	}
	shed, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{Shed: &resilience.Policy{Adaptive: adaptive}, Exempt: exempt, Refuse: guarded})
	if err != nil {
		return nil, err
	}
	entrance, err := bulkhead.New(doorRoom, bulkhead.Config{Name: "door", Queue: entryLimit.Burst, Wait: doorWait, Hooks: env.Tracing().Bulkhead()})
	if err != nil {
		return nil, err
	}
	door, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{Shed: &resilience.Policy{Bulkhead: entrance}, Refuse: guarded})
	if err != nil {
		return nil, err
	}
	shown := append(platform.QuotaCollectors(map[string]platform.Quota{"address": addresses, "customer": quota, "entry": entries}), promkit.AdaptiveLimits(adaptive), promkit.Bulkheads(entrance))
	products, err := newCatalogue(env)
	if err != nil {
		return nil, err
	}
	exchange, err := newExchange()
	s := &Service{env: env, services: services, quota: quota, entries: entries, exchange: exchange, shown: shown, limit: limit, shed: shed, door: door, catalogue: products, console: newConsole(env, services, groups)}
	if env.Control != nil {
		s.invariants = newInvariants(env.Control)
	}
	return s, err
}

// exempt is what says nothing about load: a page costs nothing, a stream takes as long as somebody
// watches, operators must see most when there is too much to do, and who comes in waits at the door.
func exempt(r *http.Request) bool {
	switch r.URL.Path {
	case "/api/customers", "/api/sessions", "/api/sign-in", "/api/sign-in/session":
		return true
	}
	watching := strings.HasPrefix(r.URL.Path, "/api/orders/") && strings.HasSuffix(r.URL.Path, "/events")
	return watching || !strings.HasPrefix(r.URL.Path, "/api/")
}

func tooMuch(status int, after time.Duration) *platform.Error {
	e := &platform.Error{Status: status, Code: "overloaded", Detail: "the shop has too much to do; please try again", RetryAfter: max(after, time.Second)}
	if status == http.StatusTooManyRequests {
		e.Code, e.Detail = "too-many-requests", "these are too many requests from one place; please slow down"
	}
	return e
}

// metered lets a customer through at the pace of one.
func (s *Service) metered(next http.Handler) http.Handler {
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if result := s.quota.Allow(r.Context(), platform.IdentityOf(r.Context()).Subject); !result.OK {
			return tooMuch(http.StatusTooManyRequests, result.RetryAfter)
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// entering lets those through who have still to show who they are, at the pace of one address: guessing passwords of
// many accounts is as slow as guessing those of one. They have a room of their own.
func (s *Service) entering(next http.Handler) http.Handler {
	next = s.door(next)
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if result := s.entries.Allow(r.Context(), address(r)); !result.OK {
			return tooMuch(http.StatusTooManyRequests, result.RetryAfter)
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// Collectors are what the service shows of its blocks, beside what every service does.
func (s *Service) Collectors() []prometheus.Collector {
	all := append(slices.Clip(s.shown), promkit.Caches(s.catalogue.answers, s.exchange))
	if s.invariants != nil {
		all = append(all, s.invariants)
	}
	return all
}

// Consumers implements [platform.Service].
func (s *Service) Consumers() []platform.Consumer { return nil }

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error {
	work := []func(context.Context) error{s.catalogue.listen, s.console.run}
	if s.invariants != nil {
		work = append(work, s.invariants.run, s.console.desk)
	}
	return platform.RunAll(ctx, work...)
}

// Public marks the service that anybody can reach.
func (s *Service) Public() {}

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.Handle(r.pattern, platform.Routed(r.who(r.to)))
	}
	return s.identified(s.limit(sameOrigin().Handler(gateway.StrictPath(legible(received(s.shed(otelkit.Routes(mux))))))))
}

// sameOrigin refuses changes that another site has a browser ask for. None of them would work: sessions are no
// cookies. That is one reason; the next person to add a cookie has two.
func sameOrigin() *http.CrossOriginProtection {
	p := http.NewCrossOriginProtection()
	p.SetDenyHandler(platform.Handle(func(http.ResponseWriter, *http.Request) error {
		return &platform.Error{Status: http.StatusForbidden, Code: "cross-origin", Detail: "a page of another site asks for a change; only the shop's own may"}
	}))
	return p
}

// route is what the gateway does with the requests of one pattern, and from whom it takes them.
type route struct {
	pattern string
	who     func(http.Handler) http.Handler
	to      http.Handler
}

// routes is everything that the gateway answers. Those with a method are described in openapi.yaml; a
// test compares the two.
func (s *Service) routes() []route {
	anyone := func(h http.Handler) http.Handler { return h }
	roles := func(roles ...string) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler { return s.exchanged(s.env.Auth.Require(s.metered(h), roles...)) }
	}
	customer, admin, operator := roles(platform.RoleCustomer), roles(platform.RoleAdmin), roles(platform.RoleOperator)
	person := roles(platform.RoleCustomer, platform.RoleAdmin, platform.RoleOperator)

	all := []route{
		{"POST /api/customers", s.entering, s.proxy("customer", "/api")},
		{"POST /api/sessions", s.entering, s.proxy("customer", "/api")},
		{"GET /api/sign-in", anyone, s.proxy("customer", "/api")},
		{"POST /api/sign-in", s.entering, s.proxy("customer", "/api")},
		{"POST /api/sign-in/session", s.entering, s.proxy("customer", "/api")},
		{"GET /.well-known/openid-configuration", anyone, s.proxy("customer", "")},
		{"GET /.well-known/jwks.json", anyone, s.proxy("customer", "")},
		{"GET /api/me", person, s.proxy("customer", "/api")},
		{"GET /api/me/orders", customer, s.proxy("order", "/api/me")},
		{"GET /api/me/mails", customer, s.proxy("notification", "/api/me")},
		{"GET /api/products", anyone, platform.Handle(s.catalogue.list)},
		{"GET /api/products/{id}", anyone, platform.Handle(s.catalogue.product)},
		{"GET /api/products/{id}/stock", anyone, platform.Handle(s.stock)},
		{"GET /api/categories", anyone, platform.Handle(s.catalogue.categories)},
		{"POST /api/products", admin, s.proxy("catalog", "/api")},
		{"PATCH /api/products/{id}", admin, s.proxy("catalog", "/api")},
		{"POST /api/orders", customer, s.proxy("order", "/api")},
		{"GET /api/orders/{id}", person, s.orderPage()},
		{"GET /api/orders/{id}/events", person, s.proxy("order", "/api")},
		{"POST /api/orders/{id}/cancel", customer, s.proxy("order", "/api")},
		{"GET /ops/api/sagas", operator, s.proxy("order", "/ops/api", "/ops")},
		{"GET /ops/api/sagas/{id}", operator, s.proxy("order", "/ops/api", "/ops")},
		{"POST /ops/api/sagas/{id}/retry", operator, s.proxy("order", "/ops/api", "/ops")},
		{"POST /ops/api/sagas/{id}/skip", operator, s.proxy("order", "/ops/api", "/ops")},
		{"POST /ops/api/sagas/{id}/cancel", operator, s.proxy("order", "/ops/api", "/ops")},
		{"GET /ops/api/events", operator, s.proxy("order", "/ops/api", "/ops")},
		{"GET /ops/api/mails", operator, s.proxy("notification", "/ops/api")},
		{"GET /ops/api/reporting", operator, s.proxy("reporting", "/ops/api", "/ops")},
		{"POST /ops/api/reporting/rebuild", operator, s.proxy("reporting", "/ops/api", "/ops")},
		{"GET /ops/api/traces", operator, platform.Handle(s.traces)},
		{"GET /ops/api/outbox", operator, platform.Handle(s.everywhere("/ops/outbox"))},
		{"GET /ops/api/breakers", operator, platform.Handle(s.everywhere("/ops/breakers"))},
		{"GET /ops/api/dead-letters", operator, platform.Handle(s.everywhere("/ops/dead-letters"))},
		{"POST /ops/api/dead-letters/{consumer}/{message}/replay", operator, s.owner("consumer")},
		{"GET /ops/api/parked", operator, platform.Handle(s.everywhere("/ops/parked"))},
		{"POST /ops/api/parked/{service}/{message}/retry", operator, s.owner("service")},
		{"POST /ops/api/parked/{service}/{message}/discard", operator, s.owner("service")},
		{"POST /ops/api/payments/{order}/tell", operator, s.proxy("payment", "/ops/api", "/ops")},
		{"GET /ops/api/traffic", operator, platform.Handle(s.console.now)},
		{"GET /ops/api/live", operator, platform.Handle(s.console.live)},
		{"GET /ops/api/chaos", operator, s.control()},
		{"POST /ops/api/chaos", operator, s.control()},
		{"DELETE /ops/api/chaos", operator, s.control()},
		{"DELETE /ops/api/chaos/{id}", operator, s.control()},
		{"GET /ops/api/invariants", operator, s.control()},
		{"GET /ops/api/load", operator, s.control()},
		{"PUT /ops/api/load", operator, s.control()},
		{"GET /ops/api/services", operator, platform.Handle(s.health)},
		{"GET /openapi.yaml", anyone, static("application/yaml", openAPI)},
	}
	none := unknown(all)
	return append(all, route{"/api/", anyone, none}, route{"/ops/api/", anyone, none}, route{"/", anyone, pages()})
}

// proxy passes a request on to a service, its path without the prefix, or with another
// prefix in its place.
func (s *Service) proxy(service, prefix string, replacement ...string) http.Handler {
	h, err := gateway.Proxy(service, s.env.Caller.Client.Transport, gateway.ProxyConfig{
		StripPrefix: prefix,
		AddPrefix:   strings.Join(replacement, ""),
		MaxBody:     platform.MaxBody,
		Drop:        []string{"Dovetail-*", "Saga-*"}, // what services tell each other
		Response: func(answer *http.Response) error {
			answer.Header.Del("X-Content-Type-Options") // every answer has it already
			return nil
		},
		Refuse: refuse,
		Logger: s.env.Log,
	})
	if err != nil {
		panic(err) // the table of routes is part of this program
	}
	return h
}

// refuse answers where no service did, in the words of the shop: it knows one answer for a service
// that cannot be had, whatever the reason.
func refuse(w http.ResponseWriter, _ *http.Request, p gateway.Problem, err error) {
	e := &platform.Error{Status: p.Status, Code: "bad-request", Detail: p.Detail, Err: err}
	switch {
	case p.Status == http.StatusRequestEntityTooLarge:
		e.Code = "body-too-large"
	case p.Status >= http.StatusInternalServerError:
		if seconds, err := strconv.Atoi(w.Header().Get("Retry-After")); err == nil { // what the service itself said
			p.RetryAfter = time.Duration(seconds) * time.Second
		}
		e = unavailable(p, err)
	}
	platform.WriteProblem(w, e)
}

// away is the answer when a call to a service ended with err.
func away(ctx context.Context, service string, err error) *platform.Error {
	return unavailable(gateway.ProblemOf(ctx, service, err), err)
}

// unavailable tells which service it is that cannot be had, which is no secret, and when to come back.
func unavailable(p gateway.Problem, err error) *platform.Error {
	after := max(p.RetryAfter+time.Second-1, time.Second).Truncate(time.Second)
	return &platform.Error{
		Status: http.StatusServiceUnavailable, Code: "unavailable", RetryAfter: after, Err: err,
		Detail: fmt.Sprintf("%s; please try again in %.0f s", cmp.Or(p.Detail, "the shop did not answer"), after.Seconds()),
	}
}

// stock answers by HTTP what inventory answers by gRPC: the state of this moment, where the catalog has
// what it was told last.
func (s *Service) stock(w http.ResponseWriter, r *http.Request) error {
	conn, err := s.env.Caller.RPC.Conn("inventory")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), partBudget)
	defer cancel()
	out, err := stockpb.NewStockClient(conn).Availability(ctx, &stockpb.AvailabilityRequest{ProductId: r.PathValue("id")})
	var answer *platform.Error
	switch {
	case errors.As(err, &answer):
		return answer
	case err != nil:
		return away(r.Context(), "inventory", err)
	}
	return platform.WriteJSON(w, http.StatusOK, struct {
		ProductID string `json:"product_id"`
		Available int64  `json:"available"`
		Revision  int64  `json:"revision"`
	}{out.GetProductId(), out.GetAvailable(), out.GetRevision()})
}

// owner passes a request on to the service that this part of its path names, or whose consumer it names.
func (s *Service) owner(part string) http.Handler {
	to := map[string]http.Handler{}
	for _, service := range s.services {
		to[service] = s.proxy(service, "/ops/api", "/ops")
	}
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		service := serviceOf(r.PathValue(part))
		if to[service] == nil {
			return platform.NotFound(part, r.PathValue(part))
		}
		to[service].ServeHTTP(w, r)
		return nil
	})
}

// control passes on what concerns the shop as a whole to whoever runs it.
func (s *Service) control() http.Handler {
	if s.env.Control != nil {
		return s.env.Control
	}
	return platform.Handle(func(http.ResponseWriter, *http.Request) error {
		return &platform.Error{Status: http.StatusNotFound, Code: "no-control", Detail: "this shop is not run by shop or shop up: nobody here controls all of it"}
	})
}

var requestID = regexp.MustCompile(`^[A-Za-z0-9_-]{8,64}$`)

// identified gives every request an ID, the client's own if that is sound: all services log by it.
func (s *Service) identified(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if !requestID.MatchString(id) {
			id = kernel.NewID()
			r.Header.Set("X-Request-Id", id)
		}
		h := w.Header()
		h.Set("X-Request-Id", id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		if r.TLS != nil { // who ends TLS before the shop says it there
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		next.ServeHTTP(w, r)
	})
}

func static(contentType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(body)
	})
}
