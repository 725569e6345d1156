// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package inventory is the service that counts pieces: available, reserved for an order, sold.
// Whatever happens, the three add up to what came in.
package inventory

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stockpb"
	"github.com/dovetail-go/dovetail/messaging"
)

// Service is the inventory service.
type Service struct {
	env platform.Env
	bus *platform.Bus
}

const schema = `
CREATE TABLE IF NOT EXISTS stock (
	product_id TEXT PRIMARY KEY,
	initial BIGINT NOT NULL,
	available BIGINT NOT NULL CHECK (available >= 0),
	reserved BIGINT NOT NULL DEFAULT 0 CHECK (reserved >= 0),
	sold BIGINT NOT NULL DEFAULT 0 CHECK (sold >= 0),
	revision BIGINT NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS reservations (
	order_id TEXT NOT NULL,
	product_id TEXT NOT NULL REFERENCES stock (product_id),
	quantity BIGINT NOT NULL CHECK (quantity > 0),
	status TEXT NOT NULL CHECK (status IN ('reserved', 'released', 'sold', 'restocked')),
	PRIMARY KEY (order_id, product_id)
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
	return &Service{env: env, bus: bus}, nil
}

// Consumers implements [platform.Service].
func (s *Service) Consumers() []platform.Consumer {
	return []platform.Consumer{s.bus.On("inventory", []string{kernel.TopicProductChanged}, s.productChanged)}
}

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error { return s.bus.Run(ctx) }

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Handler implements [platform.Service]. What there is, is asked by gRPC.
func (s *Service) Handler() http.Handler { return http.NotFoundHandler() }

// RPC serves stock.proto.
func (s *Service) RPC(server *grpc.Server) { stockpb.RegisterStockServer(server, stock{service: s}) }

// stock is the service as others call it.
type stock struct {
	stockpb.UnimplementedStockServer
	service *Service
}

// Availability implements stockpb.StockServer.
func (st stock) Availability(ctx context.Context, in *stockpb.AvailabilityRequest) (*stockpb.AvailabilityReply, error) {
	out := &stockpb.AvailabilityReply{ProductId: in.GetProductId()}
	err := st.service.env.DB.QueryRowContext(ctx, `SELECT available, revision FROM stock WHERE product_id = $1`, in.GetProductId()).
		Scan(&out.Available, &out.Revision)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, platform.NotFound("product", in.GetProductId())
	}
	return out, err
}

// Reserve implements stockpb.StockServer.
func (st stock) Reserve(ctx context.Context, in *stockpb.ReserveRequest) (*stockpb.Done, error) {
	lines := make([]line, len(in.GetLines()))
	for i, l := range in.GetLines() {
		if l.GetQuantity() <= 0 {
			return nil, platform.Invalid(fmt.Sprintf("lines[%d].quantity", i), "is %d, want 1 or more", l.GetQuantity())
		}
		lines[i] = line{l.GetProductId(), l.GetQuantity()}
	}
	return st.step(ctx, func(tx *sql.Tx) error { return st.service.reserve(ctx, tx, in.GetOrderId(), lines) })
}

// Release implements stockpb.StockServer.
func (st stock) Release(ctx context.Context, in *stockpb.OrderRequest) (*stockpb.Done, error) {
	return st.move(ctx, in, "reserved", "released", "reserved = reserved - $1, available = available + $1")
}

// Sell implements stockpb.StockServer.
func (st stock) Sell(ctx context.Context, in *stockpb.OrderRequest) (*stockpb.Done, error) {
	return st.move(ctx, in, "reserved", "sold", "reserved = reserved - $1, sold = sold + $1")
}

// Restock implements stockpb.StockServer.
func (st stock) Restock(ctx context.Context, in *stockpb.OrderRequest) (*stockpb.Done, error) {
	return st.move(ctx, in, "sold", "restocked", "sold = sold - $1, available = available + $1")
}

func (st stock) move(ctx context.Context, in *stockpb.OrderRequest, from, to, change string) (*stockpb.Done, error) {
	return st.step(ctx, func(tx *sql.Tx) error { return st.service.move(ctx, tx, in.GetOrderId(), from, to, change) })
}

func (st stock) step(ctx context.Context, fn func(tx *sql.Tx) error) (*stockpb.Done, error) {
	if err := platform.Step(ctx, st.service.bus, fn); err != nil {
		return nil, err
	}
	return &stockpb.Done{}, nil
}

// productChanged takes a new product into stock.
func (s *Service) productChanged(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.ProductChanged
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	res, err := tx.ExecContext(ctx, `INSERT INTO stock (product_id, initial, available) VALUES ($1, $2, $2) ON CONFLICT (product_id) DO NOTHING`,
		e.ProductID, e.InitialStock)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err // known already: a change of name or price
	}
	return s.bus.Emit(ctx, tx, kernel.StockChanged{ProductID: e.ProductID, Revision: 1, Available: e.InitialStock})
}

// line is how much of one product an order takes.
type line struct {
	ProductID string
	Quantity  int64
}

// reserve sets pieces aside for an order: all of them or none.
func (s *Service) reserve(ctx context.Context, tx *sql.Tx, orderID string, lines []line) error {
	// Always in the same order, so that two orders cannot wait for each other's rows.
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.ProductID, b.ProductID) })
	var changes []kernel.Event
	for _, l := range lines {
		e := kernel.StockChanged{ProductID: l.ProductID}
		err := tx.QueryRowContext(ctx, `UPDATE stock SET available = available - $1, reserved = reserved + $1, revision = revision + 1
			WHERE product_id = $2 AND available >= $1 RETURNING available, revision`, l.Quantity, l.ProductID).Scan(&e.Available, &e.Revision)
		if errors.Is(err, sql.ErrNoRows) {
			return s.cannotReserve(ctx, tx, l)
		}
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO reservations (order_id, product_id, quantity, status) VALUES ($1, $2, $3, 'reserved')`,
			orderID, l.ProductID, l.Quantity); err != nil {
			return err
		}
		changes = append(changes, e)
	}
	return s.bus.Emit(ctx, tx, changes...)
}

// cannotReserve tells a product that is out of stock from one that this service has
// not heard of yet: the event is on its way, so the caller should try again.
func (s *Service) cannotReserve(ctx context.Context, tx *sql.Tx, l line) error {
	var available int64
	err := tx.QueryRowContext(ctx, `SELECT available FROM stock WHERE product_id = $1`, l.ProductID).Scan(&available)
	if errors.Is(err, sql.ErrNoRows) {
		return &platform.Error{Status: http.StatusServiceUnavailable, Code: "unknown-stock", Detail: "product " + l.ProductID + " is not in stock's books yet", RetryAfter: time.Second}
	}
	if err != nil {
		return err
	}
	return platform.Refused("out-of-stock", fmt.Sprintf("product %s: %d available, want %d", l.ProductID, available, l.Quantity))
}

// move brings an order's pieces from one state to the next; change is how the stock's
// counters follow. An order without pieces in the first state is left as it is.
func (s *Service) move(ctx context.Context, tx *sql.Tx, orderID, from, to, change string) error {
	lines, err := platform.Collect(ctx, tx, func(row interface{ Scan(dest ...any) error }) (l line, err error) {
		err = row.Scan(&l.ProductID, &l.Quantity)
		return l, err
	}, `UPDATE reservations SET status = $1 WHERE order_id = $2 AND status = $3 RETURNING product_id, quantity`, to, orderID, from)
	if err != nil {
		return err
	}
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.ProductID, b.ProductID) })
	var changes []kernel.Event
	for _, l := range lines {
		e := kernel.StockChanged{ProductID: l.ProductID}
		if err := tx.QueryRowContext(ctx, `UPDATE stock SET `+change+`, revision = revision + 1 WHERE product_id = $2 RETURNING available, revision`,
			l.Quantity, l.ProductID).Scan(&e.Available, &e.Revision); err != nil {
			return err
		}
		if to != "sold" { // which changes nothing for those who want to buy
			changes = append(changes, e)
		}
	}
	return s.bus.Emit(ctx, tx, changes...)
}
