// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// How a standby is.
const (
	alive = iota
	dead  // refuses connections
	hangs // takes them, and never answers
)

// standby makes connections to a copy of a database.
type standby struct {
	driver driver.Driver
	path   string
	state  atomic.Int32
	asked  atomic.Int64 // for connections
}

func (s *standby) Connect(ctx context.Context) (driver.Conn, error) {
	s.asked.Add(1)
	switch s.state.Load() {
	case dead:
		return nil, errors.New("connection refused")
	case hangs:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.driver.Open(s.path)
}

func (s *standby) Driver() driver.Driver { return s.driver }

// TestReplicaThatFails asks for products while the replica is well, dead, back, and hangs. The copy has another name for
// one of them, so that an answer shows where it comes from.
func TestReplicaThatFails(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		db, err := platform.OpenSQLite(filepath.Join(dir, "catalog.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		copied := &standby{driver: db.Driver(), path: filepath.Join(dir, "standby.db")}
		replica := sql.OpenDB(copied)
		defer func() { _ = replica.Close() }()
		replica.SetMaxIdleConns(-1) // each query shows whether the server is there
		broker, err := messagingmem.New(messagingmem.Config{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(t.Context(), platform.Env{Name: "catalog", Instance: "catalog-1", DB: db, Replica: replica, Broker: broker, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), `VACUUM INTO $1`, copied.path); err != nil {
			t.Fatal(err)
		}
		if _, err := replica.ExecContext(t.Context(), `UPDATE listing_2 SET name = 'as it was' WHERE id = 'p-001'`); err != nil {
			t.Fatal(err)
		}
		get := func(path string, out any) int {
			t.Helper()
			w := httptest.NewRecorder()
			mux := http.NewServeMux()
			mux.Handle("GET /products", platform.Handle(s.list))
			mux.Handle("GET /products/{id}", platform.Handle(s.get))
			mux.Handle("GET /categories", platform.Handle(s.categories))
			mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
			if out != nil && json.Unmarshal(w.Body.Bytes(), out) != nil {
				t.Fatalf("GET %s = %d %s", path, w.Code, w.Body)
			}
			return w.Code
		}
		// shows looks at everything that there is to see, and at who is asked for it.
		shows := func(when, name string, asks bool) {
			t.Helper()
			before := copied.asked.Load()
			var one Product
			var list struct{ Items []Product }
			var names struct{ Items []string }
			if code := get("/products/p-001", &one); code != http.StatusOK || one.Name != name {
				t.Errorf("%s the product is %d %q, want %q", when, code, one.Name, name)
			}
			if code := get("/products", &list); code != http.StatusOK || len(list.Items) != PageSize || list.Items[0].Name != name {
				t.Errorf("%s the list is %d %+v, want %d products from %q on", when, code, list.Items, PageSize, name)
			}
			if code := get("/products?q=saw", &list); code != http.StatusOK || len(list.Items) == 0 {
				t.Errorf("%s the search is %d %+v, want some products", when, code, list.Items)
			}
			if code := get("/categories", &names); code != http.StatusOK || len(names.Items) == 0 {
				t.Errorf("%s the categories are %d %q, want some", when, code, names.Items)
			}
			if code := get("/products/none", nil); code != http.StatusNotFound {
				t.Errorf("%s an unknown product is %d, want 404", when, code)
			}
			if asked := copied.asked.Load() - before; (asked > 0) != asks {
				t.Errorf("%s the replica is asked %d times, want some: %v", when, asked, asks)
			}
		}
		const primary = "Dovetail saw, small"
		shows("with a replica", "as it was", true)
		for range 20 {
			get("/products/none", nil)
		}
		shows("after products that there are not", "as it was", true)

		copied.state.Store(dead)
		shows("while the replica is dying", primary, true)
		shows("while the replica is dead", primary, false)
		if state := s.queries.guard.Breaker.State(); state != breaker.Open {
			t.Errorf("the breaker is %v, want it open", state)
		}

		copied.state.Store(alive)
		time.Sleep(2 * replicaRest)
		shows("when the replica is back", "as it was", true)

		copied.state.Store(hangs)
		begin := time.Now()
		shows("while the replica begins to hang", primary, true)
		if took := time.Since(begin); took != 5*replicaWait {
			t.Errorf("five answers while the replica hangs take %v, want %v", took, 5*replicaWait)
		}
		begin = time.Now()
		shows("while the replica hangs", primary, false)
		if took := time.Since(begin); took != 0 {
			t.Errorf("answers without a replica that hangs take %v, want no time", took)
		}
	})
}
