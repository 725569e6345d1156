// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stockpb"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

// stepTimeout bounds one attempt at a remote step. It leaves payment the time to wait for a
// provider that does not answer and to look up what became of the charge.
const stepTimeout = 8 * time.Second

const cancelledByCustomer = "cancelled by the customer"

// placeOrder is what the saga of an order knows.
type placeOrder struct {
	OrderID    string             `json:"order_id"`
	CustomerID string             `json:"customer_id"`
	Lines      []kernel.OrderLine `json:"lines"`
	Total      kernel.Money       `json:"total"`
	Method     string             `json:"method"`
}

// definePlaceOrder is the business of an order, step by step. Up to the pivot, everything that
// was done can be undone; from there on everything must be done.
func (s *Service) definePlaceOrder() (*saga.Definition[placeOrder], error) {
	d, err := saga.New("place-order", 1,
		saga.Call("reserve-credit", s.remote("http://customer/internal/credit/reserve", func(d *placeOrder) any {
			return map[string]any{"order_id": d.OrderID, "customer_id": d.CustomerID, "amount": d.Total, "currency": kernel.Currency}
		}), saga.Undo(s.remote("http://customer/internal/credit/release", orderOf)), saga.Timeout[placeOrder](stepTimeout)),

		saga.Call("reserve-stock", func(ctx context.Context, a saga.Attempt, d *placeOrder) error {
			in := &stockpb.ReserveRequest{OrderId: d.OrderID}
			for _, l := range d.Lines {
				in.Lines = append(in.Lines, &stockpb.Line{ProductId: l.ProductID, Quantity: l.Quantity})
			}
			return step(ctx, a, s.stock.Reserve, in)
		}, saga.Undo(func(ctx context.Context, a saga.Attempt, d *placeOrder) error {
			return step(ctx, a, s.stock.Release, &stockpb.OrderRequest{OrderId: d.OrderID})
		}), saga.Timeout[placeOrder](stepTimeout)),

		saga.Call("authorise-payment", s.remote("http://payment/internal/payments/authorise", func(d *placeOrder) any {
			return map[string]any{"order_id": d.OrderID, "customer_id": d.CustomerID, "amount": d.Total, "currency": kernel.Currency, "method": d.Method}
		}), saga.Undo(s.remote("http://payment/internal/payments/void", orderOf)), saga.Timeout[placeOrder](stepTimeout)),

		saga.Pivot(saga.Call("capture-payment", s.remote("http://payment/internal/payments/capture", orderOf), saga.Timeout[placeOrder](stepTimeout))),

		saga.Call("sell-stock", func(ctx context.Context, a saga.Attempt, d *placeOrder) error {
			return step(ctx, a, s.stock.Sell, &stockpb.OrderRequest{OrderId: d.OrderID})
		}, saga.Timeout[placeOrder](stepTimeout)),
		saga.Local("confirm-order", func(ctx context.Context, tx *sql.Tx, _ saga.Attempt, d *placeOrder) error {
			return s.orders.change(ctx, tx, d.OrderID, confirm{})
		}),
		saga.Call("settle-credit", s.remote("http://customer/internal/credit/settle", orderOf), saga.Timeout[placeOrder](stepTimeout)),
	)
	if err != nil {
		return nil, err
	}
	return d.OnEnd(func(ctx context.Context, tx *sql.Tx, end saga.End, d *placeOrder) error {
		if end.Status == saga.Completed {
			return nil // confirm-order has said so
		}
		if end.Cause == saga.CauseCancelled {
			return s.orders.change(ctx, tx, d.OrderID, cancel{end.Reason})
		}
		return s.orders.change(ctx, tx, d.OrderID, reject{end.Reason})
	}), nil
}

func orderOf(d *placeOrder) any { return map[string]string{"order_id": d.OrderID} }

// remote is a step done by another service: a POST that carries the step's key, so that the
// service's barrier recognises a repetition. The other side's 409 is its refusal.
func (s *Service) remote(url string, body func(d *placeOrder) any) func(ctx context.Context, a saga.Attempt, d *placeOrder) error {
	return func(ctx context.Context, a saga.Attempt, d *placeOrder) error { return s.post(ctx, url, a, body(d)) }
}

func (s *Service) post(ctx context.Context, url string, a saga.Attempt, body any) error {
	return refusal(a, s.env.Caller.Do(ctx, http.MethodPost, url, keyOf(a).SetHeader, body, nil))
}

// step is the same by gRPC.
func step[In any](ctx context.Context, a saga.Attempt, call func(context.Context, In, ...grpc.CallOption) (*stockpb.Done, error), in In) error {
	_, err := call(platform.WithStep(ctx, keyOf(a)), in)
	return refusal(a, err)
}

func keyOf(a saga.Attempt) barrier.Key { return barrier.Key{Saga: a.Saga, Step: a.Step, Op: a.Op} }

// refusal tells the saga of a refusal from a failure.
func refusal(a saga.Attempt, err error) error {
	var answer *platform.Error
	if errors.As(err, &answer) && answer.Status == http.StatusConflict && a.Op == saga.OpDo {
		return saga.Refuse(answer.Code)
	}
	return err
}

// cancelOrder is what the saga that takes a confirmed order back knows.
type cancelOrder struct {
	OrderID string `json:"order_id"`
}

// heard takes what other services tell of an order.
func (s *Service) heard(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	switch d.Message.Topic {
	case kernel.TopicPaymentChanged:
		return s.paymentChanged(ctx, tx, d)
	case kernel.TopicShipmentDispatched:
		return s.shipmentDispatched(ctx, tx, d)
	}
	return messaging.Reject(fmt.Errorf("nothing is to be done about %s", d.Message.Topic))
}

// paymentChanged notes how far payment says that it has come. An older state does not take the place of a newer one, in
// whatever order they arrive. It moves no saga: those ask, and are answered.
func (s *Service) paymentChanged(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.PaymentChanged
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO acknowledged_payments (order_id, revision, status) VALUES ($1, $2, $3)
		ON CONFLICT (order_id) DO UPDATE SET revision = excluded.revision, status = excluded.status
		WHERE excluded.revision > acknowledged_payments.revision`, e.OrderID, e.Revision, e.Status)
	return err
}

// shipmentDispatched marks an order whose parcel has left. Shipping has heard of it only because it was
// confirmed, and cancel-order stops the parcel before anything else.
func (s *Service) shipmentDispatched(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.ShipmentDispatched
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	err := s.orders.change(ctx, tx, e.OrderID, dispatch{e.Tracking})
	if errors.Is(err, errNotNow) {
		return messaging.Reject(err)
	}
	return err
}

// defineCancelOrder takes back what place-order has done. It waits for an order that is past
// its pivot but not yet confirmed, and gives up on one whose parcel has left.
func (s *Service) defineCancelOrder() (*saga.Definition[cancelOrder], error) {
	post := func(url string) func(ctx context.Context, a saga.Attempt, d *cancelOrder) error {
		return func(ctx context.Context, a saga.Attempt, d *cancelOrder) error {
			return s.post(ctx, url, a, map[string]string{"order_id": d.OrderID})
		}
	}
	return saga.New("cancel-order", 1,
		saga.Local("await-confirmed", func(ctx context.Context, tx *sql.Tx, _ saga.Attempt, d *cancelOrder) error {
			var status string
			if err := tx.QueryRowContext(ctx, `SELECT status FROM orders WHERE id = $1`, d.OrderID).Scan(&status); err != nil {
				return err
			}
			if status == statusDispatched {
				return saga.Refuse(status)
			}
			if status != statusConfirmed {
				return fmt.Errorf("order %s is %s, want it confirmed first", d.OrderID, status)
			}
			return nil
		}, saga.NoUndo[cancelOrder]()),
		saga.Call("stop-shipment", post("http://shipping/internal/shipments/stop"),
			saga.Undo(post("http://shipping/internal/shipments/resume")), saga.Timeout[cancelOrder](stepTimeout)),
		saga.Pivot(saga.Call("refund-payment", post("http://payment/internal/payments/refund"), saga.Timeout[cancelOrder](stepTimeout))),
		saga.Call("restock", func(ctx context.Context, a saga.Attempt, d *cancelOrder) error {
			return step(ctx, a, s.stock.Restock, &stockpb.OrderRequest{OrderId: d.OrderID})
		}, saga.Timeout[cancelOrder](stepTimeout)),
		saga.Local("mark-cancelled", func(ctx context.Context, tx *sql.Tx, _ saga.Attempt, d *cancelOrder) error {
			return s.orders.change(ctx, tx, d.OrderID, cancel{cancelledByCustomer})
		}),
	)
}

// moment is one line of an order's history as its customer sees it.
type moment struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
}

// history is what became of an order: its own events, and between them the steps of its saga.
func (s *Service) history(ctx context.Context, id string) ([]moment, error) {
	out, err := s.orders.story(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, sagaID := range []string{id, "cancel-" + id} {
		steps, err := s.engine.History(ctx, sagaID)
		if err != nil && !errors.Is(err, saga.ErrNotFound) {
			return nil, err
		}
		for _, e := range steps {
			if e.Step == "" {
				continue
			}
			what := e.Step + " " + e.Outcome
			if e.Op == saga.OpUndo {
				what = "undo " + what
			}
			detail := "" // why an attempt failed, and what an operator wrote, is for operators
			if e.Outcome == "refused" {
				detail = e.Text
			}
			out = append(out, moment{At: e.At.UTC(), What: what, Detail: detail})
		}
	}
	slices.SortStableFunc(out, func(a, b moment) int { return a.At.Compare(b.At) })
	return out, nil
}
