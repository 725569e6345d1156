// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencysql_test

import (
	"context"
	"database/sql"
	"log"
	"net/http"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
)

// One store is the inbox of a service's consumers and remembers the answers of its API.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://localhost/orders") // import _ "github.com/jackc/pgx/v5/stdlib"
	if err != nil {
		log.Fatal(err)
	}
	store, err := idempotencysql.New(db, idempotencysql.Postgres, idempotencysql.Config{})
	if err != nil {
		log.Fatal(err)
	}
	if err := store.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	go func() { _ = store.Run(ctx) }() // forgets what is old

	handler := idempotency.Consumer(db, store, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		_, err := tx.ExecContext(ctx, "UPDATE stock SET sold = sold + 1 WHERE product = $1", d.Message.Key)
		return err
	})
	protect, err := idempotency.HTTP(store, idempotency.HTTPConfig{
		Scope:    func(r *http.Request) (string, error) { return r.Header.Get("X-Customer"), nil }, // from a verified token
		Required: true,
	})
	if err != nil {
		log.Fatal(err)
	}

	_ = handler // for a messaging.Subscriber
	http.Handle("POST /orders", protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(r.Context(), nil)
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		defer tx.Rollback()
		// tx.ExecContext(r.Context(), "INSERT INTO orders ...")
		answer := idempotency.Response{Status: http.StatusCreated, Header: http.Header{"Location": {"/orders/1"}}}
		if err := idempotency.Save(r.Context(), tx, answer); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		if err := tx.Commit(); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		answer.Write(w)
	})))
}
