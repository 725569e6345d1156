// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package customer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

type reservation struct {
	OrderID    string       `json:"order_id"`
	CustomerID string       `json:"customer_id"`
	Amount     kernel.Money `json:"amount"`
	// Currency is the shop's. Empty, as an older order service leaves it, means that too.
	Currency string `json:"currency"`
}

// reserveCredit holds the order's amount against the customer's limit. The check and the
// change are one statement, so that two orders at once cannot both take the last of it.
func (s *Service) reserveCredit(ctx context.Context, tx *sql.Tx, in reservation) error {
	if in.Currency != "" && in.Currency != kernel.Currency {
		return platform.Refused("currency", fmt.Sprintf("credit is in %s, not in %.3q", kernel.Currency, in.Currency))
	}
	res, err := tx.ExecContext(ctx, `UPDATE customers SET credit_reserved = credit_reserved + $1
		WHERE id = $2 AND credit_reserved + $1 <= credit_limit`, in.Amount, in.CustomerID)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return platform.Refused("credit-limit", fmt.Sprintf("%v more would exceed the credit limit", in.Amount))
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO credit_reservations (order_id, customer_id, amount, status) VALUES ($1, $2, $3, 'reserved')`,
		in.OrderID, in.CustomerID, in.Amount)
	return err
}

// endReservation frees what an order held. Settled and released give back the
// same credit; the status tells why.
func (s *Service) endReservation(status string) func(ctx context.Context, tx *sql.Tx, in orderRef) error {
	return func(ctx context.Context, tx *sql.Tx, in orderRef) error {
		var customer string
		var amount kernel.Money
		err := tx.QueryRowContext(ctx, `UPDATE credit_reservations SET status = $1
			WHERE order_id = $2 AND status = 'reserved' RETURNING customer_id, amount`, status, in.OrderID).Scan(&customer, &amount)
		if errors.Is(err, sql.ErrNoRows) {
			return nil // never reserved: there is nothing to give back
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE customers SET credit_reserved = credit_reserved - $1 WHERE id = $2`, amount, customer)
		return err
	}
}

type orderRef struct {
	OrderID string `json:"order_id"`
}
