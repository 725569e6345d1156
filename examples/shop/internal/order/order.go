// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package order is the service that takes orders and sees them through: each order is
// a stream of events, and a saga over customer, inventory and payment that ends confirmed, or rejected with
// everything given back.
//
// An accepted order is one transaction of this service's database: the order, the start
// of its saga, the event that tells of it and the stored answer to the request's
// Idempotency-Key commit together or not at all.
package order

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stockpb"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// Limits of one order.
const (
	maxLines    = 50
	maxQuantity = 100
)

// paymentMethods are those of the payment provider; the first is the default.
var paymentMethods = []string{"pm_visa", "pm_declined", "pm_insufficient_funds", "pm_slow", "pm_flaky", "pm_timeout_after_charge"}

// Order states as the shop shows them.
const (
	statusPending    = "pending"
	statusConfirmed  = "confirmed"
	statusDispatched = "dispatched"
	statusRejected   = "rejected"
	statusCancelled  = "cancelled"
)

// Service is the order service.
type Service struct {
	env    platform.Env
	bus    *platform.Bus
	stock  stockpb.StockClient
	orders *orders
	engine *saga.Engine
	once   func(http.Handler) http.Handler
	place  *saga.Definition[placeOrder]
	cancel *saga.Definition[cancelOrder]
	// watchers are told what any instance does to an order. Poll and keep are streamPoll and streamKeep.
	watchers   watchers
	poll, keep time.Duration
	steps      *promkit.Steps
	requests   *promkit.Requests
	took       *prometheus.HistogramVec
}

// Acknowledged payments are what payment has told of them: no part of an order's own history.
const schema = `
CREATE TABLE IF NOT EXISTS orders (
	id TEXT PRIMARY KEY,
	customer_id TEXT NOT NULL,
	status TEXT NOT NULL CHECK (status IN ('pending', 'confirmed', 'dispatched', 'rejected', 'cancelled')),
	reason TEXT NOT NULL DEFAULT '',
	total BIGINT NOT NULL,
	method TEXT NOT NULL,
	lines TEXT NOT NULL,
	version BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS orders_customer ON orders (customer_id, created_at);
CREATE TABLE IF NOT EXISTS acknowledged_payments (
	order_id TEXT PRIMARY KEY,
	revision BIGINT NOT NULL,
	status TEXT NOT NULL
);`

// New prepares the service's database and returns the service.
func New(ctx context.Context, env platform.Env) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	bus, err := platform.NewBus(ctx, env)
	if err != nil {
		return nil, err
	}
	inventory, err := env.Caller.RPC.Conn("inventory")
	if err != nil {
		return nil, err
	}
	s := &Service{
		env: env, bus: bus, poll: streamPoll, keep: streamKeep, stock: stockpb.NewStockClient(inventory), steps: promkit.NewSteps(), requests: promkit.NewRequests(),
		took: platform.Histogram("shop_order_duration_seconds", "Time from the acceptance of an order to its end, by how it ended.", "outcome"),
	}
	for _, outcome := range []string{statusConfirmed, statusRejected, statusCancelled} {
		s.took.WithLabelValues(outcome) // from the first scrape on: a rate needs two
	}
	if s.orders, err = newOrders(ctx, env, bus); err != nil {
		return nil, err
	}
	if s.place, err = s.definePlaceOrder(); err != nil {
		return nil, err
	}
	if s.cancel, err = s.defineCancelOrder(); err != nil {
		return nil, err
	}
	store, err := sagasql.New(env.DB, platform.DialectOf(env.DB), sagasql.Config{})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, err
	}
	if s.engine, err = saga.NewEngine(store, saga.Config{
		Node: env.Instance, Lease: env.Lease, Logger: env.Log,
		Hooks: env.Tracing().Saga(saga.Hooks{
			// From here on everything says which order it is about.
			Starting: func(ctx context.Context, st saga.Starting) {
				env.Tracing().Inject(platform.WithOrder(ctx, strings.TrimPrefix(st.Saga, cancelPrefix)), st.Header)
			},
			StepEnd: func(ctx context.Context, e saga.StepEnd) {
				s.steps.Hook(ctx, e)
				s.tell(e.Saga)
			},
			Ended: func(e saga.Ended) {
				s.ended(e)
				s.tell(e.Saga)
			},
		}),
		// A customer waits: what is down is asked again soon after it may be back.
		Backoff: saga.Backoff{Base: 100 * time.Millisecond, Max: 5 * time.Second},
	}, s.place, s.cancel); err != nil {
		return nil, err
	}
	s.once, err = idempotency.HTTP(bus.Inbox, idempotency.HTTPConfig{
		Required: true,
		Scope:    func(r *http.Request) (string, error) { return platform.IdentityOf(r.Context()).Subject, nil },
		Lease:    s.env.Lease,
		MaxBody:  platform.MaxBody,
		Problem: func(w http.ResponseWriter, _ *http.Request, p idempotency.Problem) {
			platform.WriteProblem(w, keyProblem(p))
		},
		Hooks: idempotency.HTTPHooks{Request: s.requests.Hook},
	})
	return s, err
}

// keyHeader is the header by which a command takes effect once.
const keyHeader = "Idempotency-Key"

// keyProblem says in the shop's words what is wrong with a request's Idempotency-Key.
func keyProblem(p idempotency.Problem) *platform.Error {
	e := &platform.Error{Status: p.Status, Code: "unavailable", Detail: cmp.Or(p.Detail, p.Title)}
	if p.Status < http.StatusInternalServerError && strings.Contains(p.Title, keyHeader) {
		e.Field = keyHeader
	}
	switch p.Status {
	case http.StatusBadRequest:
		e.Code = "bad-request"
	case http.StatusConflict:
		e.Code = "in-progress"
	case http.StatusUnprocessableEntity:
		e.Code = "key-reused"
	case http.StatusRequestEntityTooLarge:
		e.Code = "body-too-large"
	}
	return e
}

// ended counts an order that has come to its end, with the time since it was accepted.
func (s *Service) ended(e saga.Ended) {
	born := kernel.Born(e.Saga)
	if e.Name != s.place.Name() || born.IsZero() {
		return
	}
	outcome := statusRejected
	switch {
	case e.Status == saga.Completed:
		outcome = statusConfirmed
	case e.Cause == saga.CauseCancelled:
		outcome = statusCancelled
	}
	s.took.WithLabelValues(outcome).Observe(max(time.Since(born), 0).Seconds())
}

// Consumers implements [platform.Service]: nobody asked shipping, and payment's answer may have come when nobody was
// here to take it.
func (s *Service) Consumers() []platform.Consumer {
	c := s.bus.On("order", []string{kernel.TopicPaymentChanged, kernel.TopicShipmentDispatched}, s.heard)
	apply := c.Handler
	c.Handler = messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		if err := apply.Handle(ctx, d); err != nil {
			return err
		}
		s.tell(d.Message.Key)
		return nil
	})
	return []platform.Consumer{c}
}

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error {
	return platform.RunAll(ctx, s.bus.Run, s.engine.Run, func(ctx context.Context) error { return s.env.News.Run(ctx, s.watchers.tell) })
}

// Collectors are what the service shows of its blocks, beside what every service does.
func (s *Service) Collectors() []prometheus.Collector {
	return []prometheus.Collector{promkit.Saga("order", s.engine), s.steps, s.requests, s.took, promkit.EventLog("order", s.orders.log)}
}

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	auth := s.env.Auth
	mux := http.NewServeMux()
	mux.Handle("POST /orders", auth.Require(s.once(platform.Handle(s.accept)), platform.RoleCustomer))
	mux.Handle("GET /orders", auth.Require(platform.Handle(s.list), platform.RoleCustomer))
	mux.Handle("GET /orders/{id}", auth.Require(platform.Handle(s.get), platform.RoleCustomer, platform.RoleOperator))
	mux.Handle("GET /orders/{id}/events", auth.Require(platform.Handle(s.events), platform.RoleCustomer, platform.RoleOperator))
	mux.Handle("POST /orders/{id}/cancel", auth.Require(s.once(platform.Handle(s.cancelOrder)), platform.RoleCustomer))
	s.operatorRoutes(mux)
	return mux
}

// view is an order as its customer sees it.
type view struct {
	ID       string       `json:"id"`
	Status   string       `json:"status"`
	Reason   string       `json:"reason,omitempty"`
	Total    kernel.Money `json:"total"`
	Currency string       `json:"currency"`
	Method   string       `json:"payment_method"`
	// Payment is what the payment service has told last, which is known here while that is down.
	Payment    string             `json:"payment_status,omitempty"`
	Items      []kernel.OrderLine `json:"items"`
	CreatedAt  time.Time          `json:"created_at"`
	UpdatedAt  time.Time          `json:"updated_at"`
	customerID string
}

// accept takes an order: 202, and the saga does the rest.
func (s *Service) accept(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var in request
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	lines, total, err := s.price(ctx, &in)
	if err != nil {
		return err
	}
	data := placeOrder{OrderID: kernel.NewID(), CustomerID: platform.IdentityOf(ctx).Subject, Lines: lines, Total: total, Method: in.PaymentMethod}
	answer, err := idempotency.JSON(http.StatusAccepted, map[string]string{"id": data.OrderID, "status": statusPending})
	if err != nil {
		return err
	}
	answer.Header.Set("Location", "/api/orders/"+data.OrderID)
	return s.answerOnce(ctx, w, answer, func(tx *sql.Tx) error { return s.begin(ctx, tx, data) })
}

// begin is the order and the start of its saga.
func (s *Service) begin(ctx context.Context, tx *sql.Tx, d placeOrder) error {
	order := kernel.OrderChanged{OrderID: d.OrderID, CustomerID: d.CustomerID, Total: d.Total, Currency: kernel.Currency, Lines: d.Lines, Method: d.Method}
	if err := s.orders.change(ctx, tx, d.OrderID, place{order}); err != nil {
		return err
	}
	return saga.Start(ctx, s.engine, tx, s.place, d.OrderID, d)
}

// answerOnce runs change and stores the answer to the request's Idempotency-Key in one
// transaction, then answers. A crash anywhere leaves both or neither, so a repeated request
// cannot change anything twice.
func (s *Service) answerOnce(ctx context.Context, w http.ResponseWriter, answer idempotency.Response, change func(tx *sql.Tx) error) error {
	if err := s.bus.InTx(ctx, func(tx *sql.Tx) error {
		if err := change(tx); err != nil {
			return err
		}
		return idempotency.Save(ctx, tx, answer)
	}); err != nil {
		return err
	}
	s.engine.Wake()
	answer.Write(w) // the client may have gone; the stored answer waits for it
	return nil
}

type request struct {
	Items []struct {
		ProductID string `json:"product_id"`
		Quantity  int64  `json:"quantity"`
	} `json:"items"`
	PaymentMethod string `json:"payment_method"`
}

// price checks a request against the catalogue and returns its lines at today's prices.
func (s *Service) price(ctx context.Context, in *request) (lines []kernel.OrderLine, total kernel.Money, err error) {
	if n := len(in.Items); n < 1 || n > maxLines {
		return nil, 0, platform.Invalid("items", "has %d lines, want 1 to %d", n, maxLines)
	}
	if in.PaymentMethod == "" {
		in.PaymentMethod = paymentMethods[0]
	}
	if !slices.Contains(paymentMethods, in.PaymentMethod) {
		return nil, 0, platform.Invalid("payment_method", "is %.60q, want one of %v", in.PaymentMethod, paymentMethods)
	}
	ids := make([]string, len(in.Items))
	for i, item := range in.Items {
		field := fmt.Sprintf("items[%d]", i)
		switch {
		case item.ProductID == "":
			return nil, 0, platform.Invalid(field+".product_id", "is missing")
		case slices.Contains(ids[:i], item.ProductID):
			return nil, 0, platform.Invalid(field+".product_id", "names %.60q a second time, want one line per product", item.ProductID)
		case item.Quantity < 1 || item.Quantity > maxQuantity:
			return nil, 0, platform.Invalid(field+".quantity", "is %d, want 1 to %d", item.Quantity, maxQuantity)
		}
		ids[i] = item.ProductID
	}
	var quote struct {
		Items []struct {
			ID    string       `json:"id"`
			Name  string       `json:"name"`
			Price kernel.Money `json:"price"`
		} `json:"items"`
	}
	if err := s.env.Caller.Do(ctx, http.MethodPost, "http://catalog/internal/quote", nil, map[string]any{"product_ids": ids}, &quote); err != nil {
		return nil, 0, &platform.Error{Status: http.StatusServiceUnavailable, Code: "no-prices", Detail: "the catalogue does not answer; please try again", RetryAfter: time.Second, Err: err}
	}
	for i, item := range in.Items {
		known := false
		for _, p := range quote.Items {
			if p.ID == item.ProductID {
				known = true
				lines = append(lines, kernel.OrderLine{ProductID: p.ID, Name: p.Name, Quantity: item.Quantity, Price: p.Price})
				total += p.Price * kernel.Money(item.Quantity)
			}
		}
		if !known {
			return nil, 0, platform.Invalid(fmt.Sprintf("items[%d].product_id", i), "is %.60q, which is not in the catalogue", item.ProductID)
		}
	}
	return lines, total, nil
}

const selectOrder = `SELECT id, customer_id, status, reason, total, method,
	COALESCE((SELECT p.status FROM acknowledged_payments p WHERE p.order_id = orders.id), ''), lines, created_at, updated_at FROM orders`

func scanOrder(row interface{ Scan(dest ...any) error }) (view, error) {
	v := view{Currency: kernel.Currency}
	var lines string
	var created, updated int64
	if err := row.Scan(&v.ID, &v.customerID, &v.Status, &v.Reason, &v.Total, &v.Method, &v.Payment, &lines, &created, &updated); err != nil {
		return v, err
	}
	v.CreatedAt, v.UpdatedAt = time.UnixMicro(created).UTC(), time.UnixMicro(updated).UTC()
	return v, json.Unmarshal([]byte(lines), &v.Items)
}

// own returns the order of the path, if it is the caller's or the caller is staff.
func (s *Service) own(r *http.Request) (view, error) {
	id := r.PathValue("id")
	v, err := scanOrder(s.env.DB.QueryRowContext(r.Context(), selectOrder+` WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return v, platform.NotFound("order", id)
	}
	if err != nil {
		return v, err
	}
	if who := platform.IdentityOf(r.Context()); who.Role == platform.RoleCustomer && who.Subject != v.customerID {
		return v, platform.NotFound("order", id)
	}
	return v, nil
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) error {
	v, err := s.own(r)
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, v)
}

func (s *Service) list(w http.ResponseWriter, r *http.Request) error {
	orders, err := platform.Collect(r.Context(), s.env.DB, scanOrder, selectOrder+` WHERE customer_id = $1 ORDER BY created_at DESC, id DESC LIMIT 100`,
		platform.IdentityOf(r.Context()).Subject)
	if err != nil {
		return err
	}
	if orders == nil {
		orders = []view{}
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": orders})
}

// cancelOrder asks for an order to end. One that is still pending is undone by its own
// saga; one that has gone too far for that is taken back by a saga of its own.
func (s *Service) cancelOrder(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	v, err := s.own(r)
	if err != nil {
		return err
	}
	takeBack := v.Status == statusConfirmed
	switch v.Status {
	case statusRejected:
		return &platform.Error{Status: http.StatusConflict, Code: "wrong-state", Detail: "the order was rejected; there is nothing to cancel"}
	case statusDispatched:
		return &platform.Error{Status: http.StatusConflict, Code: "wrong-state", Detail: "the order is on its way to you; it cannot be cancelled any more"}
	case statusPending:
		err := s.engine.Cancel(ctx, v.ID, saga.By{Who: platform.IdentityOf(ctx).Subject, Why: cancelledByCustomer})
		if takeBack = errors.Is(err, saga.ErrPastPivot); err != nil && !takeBack {
			return err
		}
	}
	answer, err := idempotency.JSON(http.StatusAccepted, map[string]string{"id": v.ID, "status": v.Status})
	if err != nil {
		return err
	}
	return s.answerOnce(ctx, w, answer, func(tx *sql.Tx) error {
		if !takeBack {
			return nil
		}
		return saga.Start(ctx, s.engine, tx, s.cancel, cancelPrefix+v.ID, cancelOrder{OrderID: v.ID})
	})
}
