// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package shipping is the service that packs and sends. Nobody tells it to: it hears that an
// order is confirmed, sends the parcel when it is packed, and says so. Order, notification and
// reporting hear of that without shipping knowing them. This is choreography: each part is one
// transaction with an inbox on one side and an outbox on the other.
package shipping

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/otelkit"
)

// Config is how the warehouse works.
type Config struct {
	// Packing is how long a parcel takes from the confirmed order to the carrier. Zero means 15
	// seconds, which leaves a customer time to change their mind; negative no time.
	Packing time.Duration
}

// Service is the shipping service.
type Service struct {
	env     platform.Env
	bus     *platform.Bus
	packing time.Duration
	news    chan struct{}
}

// A shipment whose customer is unknown was stopped, or asked to go on, before this service heard
// of its order. What a parcel is part of is kept while it is being packed, so that its way out belongs to the trace of
// its order, whatever happens to this process in between. Recipients is this service's own copy of what is written on
// the parcels: it need not ask anybody who that customer is, and packs while customer is down.
const schema = `
CREATE TABLE IF NOT EXISTS shipments (
	order_id TEXT PRIMARY KEY,
	customer_id TEXT NOT NULL,
	status TEXT NOT NULL CHECK (status IN ('packing', 'dispatched', 'stopped')),
	tracking TEXT NOT NULL DEFAULT '',
	due_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS shipments_due ON shipments (status, due_at);
CREATE TABLE IF NOT EXISTS shipment_traces (
	order_id TEXT PRIMARY KEY,
	header TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS recipients (
	customer_id TEXT PRIMARY KEY,
	name TEXT NOT NULL
);`

// New prepares the service's database and returns the service.
func New(ctx context.Context, env platform.Env, cfg Config) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	bus, err := platform.NewBus(ctx, env)
	if err != nil {
		return nil, err
	}
	if cfg.Packing == 0 {
		cfg.Packing = 15 * time.Second
	}
	return &Service{env: env, bus: bus, packing: max(cfg.Packing, 0), news: make(chan struct{}, 1)}, nil
}

// Consumers implements [platform.Service].
func (s *Service) Consumers() []platform.Consumer {
	return []platform.Consumer{
		s.bus.On("shipping.customers", []string{kernel.TopicCustomerRegistered}, s.customerRegistered),
		s.bus.On("shipping", []string{kernel.TopicOrderConfirmed}, s.orderConfirmed),
	}
}

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error { return platform.RunAll(ctx, s.bus.Run, s.dispatch) }

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	auth := s.env.Auth
	mux := http.NewServeMux()
	mux.Handle("GET /shipments/{id}", auth.Require(platform.Handle(s.get), platform.RoleCustomer, platform.RoleOperator))
	mux.Handle("POST /internal/shipments/stop", auth.Require(platform.Participant(s.bus, s.stop)))
	mux.Handle("POST /internal/shipments/resume", auth.Require(platform.Participant(s.bus, s.resume)))
	return mux
}

func (s *Service) customerRegistered(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.CustomerRegistered
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO recipients (customer_id, name) VALUES ($1, $2) ON CONFLICT (customer_id) DO UPDATE SET name = excluded.name`, e.CustomerID, e.Name)
	return err
}

func (s *Service) orderConfirmed(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.OrderChanged
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	now := time.Now()
	_, err := tx.ExecContext(ctx, `INSERT INTO shipments (order_id, customer_id, status, due_at, updated_at) VALUES ($1, $2, 'packing', $3, $4)
		ON CONFLICT (order_id) DO UPDATE SET customer_id = excluded.customer_id`,
		e.OrderID, e.CustomerID, now.Add(s.packing).UnixMicro(), now.UnixMicro())
	if err != nil {
		return err
	}
	header, err := json.Marshal(d.Message.Header)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO shipment_traces (order_id, header) VALUES ($1, $2) ON CONFLICT (order_id) DO NOTHING`, e.OrderID, string(header))
	s.look()
	return err
}

type orderRef struct {
	OrderID string `json:"order_id"`
}

// stop keeps a parcel back. One that has left cannot be stopped, and the caller learns it.
func (s *Service) stop(ctx context.Context, tx *sql.Tx, in orderRef) error {
	// A parcel that this service has not heard of must not leave either when the news arrives.
	res, err := tx.ExecContext(ctx, `INSERT INTO shipments (order_id, customer_id, status, due_at, updated_at) VALUES ($1, '', 'stopped', 0, $2)
		ON CONFLICT (order_id) DO UPDATE SET status = 'stopped', updated_at = excluded.updated_at WHERE shipments.status <> 'dispatched'`,
		in.OrderID, time.Now().UnixMicro())
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 0 {
		return err
	}
	return platform.Refused("dispatched", "the parcel of order "+in.OrderID+" has left")
}

// resume lets a parcel go that was stopped.
func (s *Service) resume(ctx context.Context, tx *sql.Tx, in orderRef) error {
	now := time.Now().UnixMicro()
	_, err := tx.ExecContext(ctx, `UPDATE shipments SET status = 'packing', due_at = $1, updated_at = $1 WHERE order_id = $2 AND status = 'stopped'`, now, in.OrderID)
	s.look()
	return err
}

type view struct {
	OrderID string `json:"order_id"`
	Status  string `json:"status"`
	// Recipient is empty while the news of the customer is still on its way.
	Recipient string    `json:"recipient,omitempty"`
	Tracking  string    `json:"tracking,omitempty"`
	UpdatedAt time.Time `json:"updated_at"`
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) error {
	v := view{OrderID: r.PathValue("id")}
	var customer string
	var at int64
	err := s.env.DB.QueryRowContext(r.Context(), `SELECT customer_id, COALESCE((SELECT name FROM recipients r WHERE r.customer_id = shipments.customer_id), ''),
		status, tracking, updated_at FROM shipments WHERE order_id = $1 AND customer_id <> ''`, v.OrderID).
		Scan(&customer, &v.Recipient, &v.Status, &v.Tracking, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return platform.NotFound("shipment", v.OrderID)
	}
	if err != nil {
		return err
	}
	if who := platform.IdentityOf(r.Context()); who.Role == platform.RoleCustomer && who.Subject != customer {
		return platform.NotFound("shipment", v.OrderID)
	}
	v.UpdatedAt = time.UnixMicro(at).UTC()
	return platform.WriteJSON(w, http.StatusOK, v)
}

// rest is how long the warehouse looks away when nothing is due: news wake it, and parcels that
// are being packed.
const rest = 500 * time.Millisecond

// look has dispatch look again now.
func (s *Service) look() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// dispatch hands parcels that are packed to the carrier until ctx ends. Several instances may
// do so at once.
func (s *Service) dispatch(ctx context.Context) error {
	for {
		if err := s.dispatchDue(ctx); err != nil && ctx.Err() == nil {
			s.env.Log.WarnContext(ctx, "parcels wait: they cannot be dispatched", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.news:
		case <-time.After(rest):
		}
	}
}

// batch bounds how many parcels are read at once.
const batch = 100

func (s *Service) dispatchDue(ctx context.Context) error {
	for {
		type parcel struct{ order, customer, header string }
		due, err := platform.Collect(ctx, s.env.DB, func(row interface{ Scan(dest ...any) error }) (p parcel, err error) {
			err = row.Scan(&p.order, &p.customer, &p.header)
			return p, err
		}, `SELECT order_id, customer_id, COALESCE((SELECT header FROM shipment_traces t WHERE t.order_id = shipments.order_id), '{}') FROM shipments WHERE status = 'packing' AND customer_id <> '' AND due_at <= $1 ORDER BY due_at LIMIT $2`,
			time.Now().UnixMicro(), batch)
		if err != nil {
			return err
		}
		for _, p := range due {
			var header messaging.Header
			if err := json.Unmarshal([]byte(p.header), &header); err != nil {
				return err
			}
			kit := s.env.Tracing()
			_, err := otelkit.Do(kit.Extract(ctx, header), kit, "dispatch parcel", func(ctx context.Context) (struct{}, error) {
				return struct{}{}, s.bus.InTx(ctx, func(tx *sql.Tx) error { return s.send(ctx, tx, p.order, p.customer) })
			})
			if err != nil {
				return err
			}
		}
		if len(due) < batch {
			return nil
		}
	}
}

// send dispatches one parcel, unless it was stopped, or another instance has sent it.
func (s *Service) send(ctx context.Context, tx *sql.Tx, order, customer string) error {
	tracking := "DV" + strings.ToUpper(strings.ReplaceAll(order, "-", ""))
	res, err := tx.ExecContext(ctx, `UPDATE shipments SET status = 'dispatched', tracking = $1, updated_at = $2 WHERE order_id = $3 AND status = 'packing'`,
		tracking, time.Now().UnixMicro(), order)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM shipment_traces WHERE order_id = $1`, order); err != nil {
		return err
	}
	return s.bus.Emit(ctx, tx, kernel.ShipmentDispatched{OrderID: order, CustomerID: customer, Tracking: tracking})
}
