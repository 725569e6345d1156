// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
)

type paymentAPI struct{ db *sql.DB }

func (a *paymentAPI) old(w http.ResponseWriter, r *http.Request) {
	// snippet: idempotency/before
	ctx := r.Context()
	id := r.FormValue("order")
	if _, err := a.db.ExecContext(ctx, "INSERT INTO payments VALUES ($1)", id); err != nil {
		http.Error(w, "try again", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated) // the answer is lost, the client sends it again: two payments
	// end
}

// snippet: idempotency/after
func (a *paymentAPI) pay(w http.ResponseWriter, r *http.Request) {
	answer, err := a.payOnce(r.Context(), r.FormValue("order"))
	if err != nil {
		http.Error(w, "try again", http.StatusInternalServerError)
		return
	}
	answer.Write(w)
}

func (a *paymentAPI) payOnce(ctx context.Context, id string) (answer idempotency.Response, err error) {
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		return answer, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "INSERT INTO payments VALUES ($1)", id); err != nil {
		return answer, err
	}
	if answer, err = idempotency.JSON(http.StatusCreated, map[string]string{"payment": id}); err != nil {
		return answer, err
	}
	if err := idempotency.Save(ctx, tx, answer); err != nil { // last: the payment and its answer
		return answer, err
	}
	return answer, tx.Commit()
}

// end

func (a *paymentAPI) routes(ctx context.Context, dialect idempotencysql.Dialect, principal func(*http.Request) (string, error)) (http.Handler, error) {
	// snippet: idempotency/setup
	store, err := idempotencysql.New(a.db, dialect, idempotencysql.Config{})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, err
	}
	once, err := idempotency.HTTP(store, idempotency.HTTPConfig{
		Scope:    principal, // from a verified token, never from what the client merely says
		Required: true,      // a POST without a key is answered 400
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /payments", once(http.HandlerFunc(a.pay)))
	// end
	return mux, nil
}

func tokenOf(r *http.Request) (string, error) {
	if name := r.Header.Get("X-Customer"); name != "" {
		return name, nil
	}
	return "", errors.New("nobody")
}

// snippet: idempotency/test
func TestAPaymentIsMadeOnce(t *testing.T) {
	db := openDB(t, "CREATE TABLE payments (order_id TEXT)")
	api, err := (&paymentAPI{db}).routes(t.Context(), idempotencysql.SQLite, tokenOf)
	if err != nil {
		t.Fatal(err)
	}
	post := func(key, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("X-Customer", "ada")
		r.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		return w
	}
	first, second := post("k-1", "order=7"), post("k-1", "order=7")
	if first.Code != http.StatusCreated || second.Code != first.Code || second.Body.String() != first.Body.String() {
		t.Errorf("answers %d %s and %d %s, want the same 201", first.Code, first.Body, second.Code, second.Body)
	}
	if w := post("k-1", "order=8"); w.Code != http.StatusUnprocessableEntity {
		t.Errorf("another request under the key: %d, want 422", w.Code)
	}
	if n := count(t, db, "SELECT COUNT(*) FROM payments"); n != 1 {
		t.Errorf("%d payments, want 1", n)
	}
}

// end

func TestPaymentsWithoutKeys(t *testing.T) {
	db := openDB(t, "CREATE TABLE payments (order_id TEXT)")
	for range 2 {
		(&paymentAPI{db}).old(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/payments?order=7", nil))
	}
	if n := count(t, db, "SELECT COUNT(*) FROM payments"); n != 2 {
		t.Errorf("%d payments, want two for one", n)
	}
}
