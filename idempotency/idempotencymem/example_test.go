// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencymem_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/messaging"
)

// A handler under test: what fails is delivered again, what succeeds is not.
func Example() {
	store := idempotencymem.New()
	db := store.OpenDB()
	defer db.Close()

	attempts := 0
	handler := idempotency.Consumer(db, store, func(context.Context, *sql.Tx, *messaging.Delivery) error {
		if attempts++; attempts == 1 {
			return errors.New("database is starting")
		}
		return nil
	})

	d := &messaging.Delivery{Group: "mail", Message: &messaging.Message{ID: "order-1"}, Attempt: 1}
	for range 4 {
		fmt.Println(handler.Handle(context.Background(), d), attempts)
	}
	// Output:
	// database is starting 1
	// <nil> 2
	// <nil> 2
	// <nil> 2
}
