// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/messaging"
)

// A consumer that may get a message twice and counts it once.
func ExampleConsumer() {
	store := idempotencymem.New() // with a real database: idempotencysql.New(db, ...)
	db := store.OpenDB()
	defer db.Close()

	mails := 0
	handler := idempotency.Consumer(db, store, func(_ context.Context, _ *sql.Tx, d *messaging.Delivery) error {
		mails++ // with a real database: tx.ExecContext(ctx, "INSERT INTO mail ...")
		fmt.Println("mail about", d.Message.ID)
		return nil
	})

	ctx := context.Background()
	for _, id := range []string{"order-1", "order-2", "order-1", "order-2", "order-3"} {
		d := &messaging.Delivery{Group: "mail", Message: &messaging.Message{ID: id}, Attempt: 1}
		if err := handler.Handle(ctx, d); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println(mails, "mails")
	// Output:
	// mail about order-1
	// mail about order-2
	// mail about order-3
	// 3 mails
}

// A message that fails leaves its neighbours in the batch alone.
func ExampleBatchConsumer() {
	store := idempotencymem.New()
	db := store.OpenDB()
	defer db.Close()

	handle := idempotency.BatchConsumer(db, store, func(_ context.Context, _ *sql.Tx, d *messaging.Delivery) error {
		if len(d.Message.Body) == 0 {
			return messaging.Reject(errors.New("no body"))
		}
		return nil
	})

	var batch []*messaging.Delivery
	for id, body := range []string{"a", "", "c"} {
		m := &messaging.Message{ID: fmt.Sprint(id), Body: []byte(body)}
		batch = append(batch, &messaging.Delivery{Group: "stock", Message: m, Attempt: 1})
	}
	for i, err := range handle(context.Background(), batch) {
		fmt.Println(batch[i].Message.ID, err)
	}
	// Output:
	// 0 <nil>
	// 1 no body
	// 2 <nil>
}

// An API whose client repeats a request because it saw no answer.
func ExampleHTTP() {
	store := idempotencymem.New()
	protect, err := idempotency.HTTP(store, idempotency.HTTPConfig{
		Scope:    func(r *http.Request) (string, error) { return r.Header.Get("X-Customer"), nil }, // from a verified token
		Required: true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	orders := 0
	api := protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		orders++
		w.Header().Set("Location", fmt.Sprintf("/orders/%d", orders))
		w.WriteHeader(http.StatusCreated)
	}))

	send := func(key, body string) {
		r := httptest.NewRequest(http.MethodPost, "/orders", strings.NewReader(body))
		r.Header.Set("X-Customer", "alice")
		if key != "" {
			r.Header.Set(idempotency.HeaderKey, key)
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		fmt.Printf("%d location %q replayed %q\n", w.Code, w.Header().Get("Location"), w.Header().Get(idempotency.HeaderReplayed))
	}
	send(`"7e3c"`, "two apples")
	send(`"7e3c"`, "two apples")
	send(`"7e3c"`, "three apples")
	send("", "two apples")
	fmt.Println(orders, "order")
	// Output:
	// 201 location "/orders/1" replayed ""
	// 201 location "/orders/1" replayed "true"
	// 422 location "" replayed ""
	// 400 location "" replayed ""
	// 1 order
}

// A handler that commits its effect and its answer together: it may crash anywhere.
func ExampleSave() {
	store := idempotencymem.New()
	db := store.OpenDB()
	defer db.Close()
	protect, err := idempotency.HTTP(store, idempotency.HTTPConfig{Scope: idempotency.AnyClient})
	if err != nil {
		fmt.Println(err)
		return
	}

	place := func(ctx context.Context) (resp idempotency.Response, err error) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return resp, err
		}
		defer tx.Rollback()
		// tx.ExecContext(ctx, "INSERT INTO orders ...")
		if resp, err = idempotency.JSON(http.StatusCreated, map[string]int{"id": 7}); err != nil {
			return resp, err
		}
		if err := idempotency.Save(ctx, tx, resp); err != nil {
			return resp, err
		}
		return resp, tx.Commit()
	}
	crash := true
	api := protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := place(r.Context())
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		if crash {
			panic("power cut")
		}
		resp.Write(w)
	}))

	send := func() {
		defer func() {
			if v := recover(); v != nil {
				fmt.Println(v)
			}
		}()
		r := httptest.NewRequest(http.MethodPost, "/orders", http.NoBody)
		r.Header.Set(idempotency.HeaderKey, `"7e3c"`)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		body, _ := io.ReadAll(w.Body)
		fmt.Println(w.Code, string(body))
	}
	send()
	crash = false
	send()
	// Output:
	// power cut
	// 201 {"id":7}
}

// A job that is started by several schedulers and runs once.
func ExampleDo() {
	store := idempotencymem.New()
	report := func(context.Context) (string, error) {
		fmt.Println("working")
		return "42 orders", nil
	}
	for range 3 {
		key := idempotency.Key{Scope: "daily-report", ID: "2026-03-14"}
		text, err := idempotency.Do(context.Background(), store, key, nil, report)
		fmt.Println(text, err)
	}
	// Output:
	// working
	// 42 orders <nil>
	// 42 orders <nil>
	// 42 orders <nil>
}
