// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// origin is a catalogue that counts who asks it.
type origin struct {
	asked atomic.Int64
	price atomic.Int64
	down  atomic.Bool
}

func (o *origin) RoundTrip(r *http.Request) (*http.Response, error) {
	o.asked.Add(1)
	w := httptest.NewRecorder()
	switch {
	case o.down.Load():
		return nil, fmt.Errorf("connection refused")
	case r.URL.Path == "/products/none":
		platform.Handle(func(http.ResponseWriter, *http.Request) error { return platform.NotFound("product", "none") }).ServeHTTP(w, r)
	case r.URL.Query().Get("page") == "x":
		platform.Handle(func(http.ResponseWriter, *http.Request) error { return platform.Invalid("page", "is %q", "x") }).ServeHTTP(w, r)
	default:
		price := o.price.Load()           // what it is when the question arrives,
		time.Sleep(10 * time.Millisecond) // not when the answer leaves
		_ = platform.WriteJSON(w, http.StatusOK, map[string]int64{"price": price})
	}
	return w.Result(), nil
}

func open(t *testing.T, o *origin, broker platform.Broker) http.Handler {
	t.Helper()
	env := platform.Env{Name: "gateway", Instance: "gateway-1", Broker: broker, Caller: &platform.Caller{Client: &http.Client{Transport: o}}, Log: slog.New(slog.DiscardHandler)}
	c, err := newCatalogue(env)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /api/products", platform.Handle(c.list))
	mux.Handle("GET /api/products/{id}", platform.Handle(c.product))
	if broker != nil {
		go func() { _ = c.listen(t.Context()) }()
	}
	return mux
}

func get(t *testing.T, h http.Handler, path string) (status int, price int64, header http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	var body struct{ Price int64 }
	_ = json.Unmarshal(w.Body.Bytes(), &body)
	return w.Code, body.Price, w.Header()
}

func TestManyReadersOfAColdProductAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		h := open(t, o, nil)
		var readers sync.WaitGroup
		for range 1000 {
			readers.Go(func() {
				if status, _, _ := get(t, h, "/api/products/p-1"); status != http.StatusOK {
					t.Errorf("status = %d, want 200", status)
				}
			})
		}
		readers.Wait()
		if n := o.asked.Load(); n != 1 {
			t.Errorf("the catalogue was asked %d times, want once", n)
		}
	})
}

func TestAnOldAnswerIsBetterThanNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		o.price.Store(7)
		h := open(t, o, nil)
		get(t, h, "/api/products/p-1")
		o.down.Store(true)
		time.Sleep(time.Minute)
		status, price, header := get(t, h, "/api/products/p-1")
		if status != http.StatusOK || price != 7 || header.Get("Age") != "60" || header.Get("Cache-Status") != "shop; hit; detail=stale" {
			t.Errorf("while the catalogue is down: %d, price %d, %v; want the old answer, 60 s old", status, price, header)
		}
		if status, _, _ := get(t, h, "/api/products/p-2"); status != http.StatusServiceUnavailable {
			t.Errorf("never asked for before: %d, want 503", status)
		}
		time.Sleep(catalogueStale)
		if status, _, header := get(t, h, "/api/products/p-1"); status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
			t.Errorf("older than the limit: %d, want 503 with Retry-After", status)
		}
		o.down.Store(false)
		time.Sleep(time.Second)
		if status, _, _ := get(t, h, "/api/products/p-1"); status != http.StatusOK {
			t.Errorf("after its return: %d, want 200", status)
		}
	})
}

func TestAnswersThatAreNo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		h := open(t, o, nil)
		for range 3 {
			if status, _, _ := get(t, h, "/api/products/none"); status != http.StatusNotFound {
				t.Errorf("unknown product: %d, want 404", status)
			}
		}
		if n := o.asked.Load(); n != 1 {
			t.Errorf("the catalogue was asked %d times for what it does not have, want once", n)
		}
		if status, _, _ := get(t, h, "/api/products?page=x"); status != http.StatusUnprocessableEntity {
			t.Errorf("bad page: %d, want 422", status)
		}
	})
}

// TestAChangedPriceShows changes a price between the event and the answer of a slow catalogue: what was
// asked before is not kept.
func TestAChangedPriceShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker, err := messagingmem.New(messagingmem.Config{DropUnroutable: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		o := &origin{}
		o.price.Store(1)
		h := open(t, o, broker)
		synctest.Wait()

		slow := make(chan struct{})
		go func() {
			defer close(slow)
			get(t, h, "/api/products/p-1")
		}()
		synctest.Wait() // the catalogue has said 1 and the answer is on its way
		o.price.Store(2)
		m, err := kernel.NewMessage("catalog", kernel.ProductChanged{ProductID: "p-1"})
		if err != nil {
			t.Fatal(err)
		}
		if err := broker.Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, price, _ := get(t, h, "/api/products/p-1"); price != 2 {
			t.Errorf("price after the event = %d, want 2", price)
		}
		<-slow
		if _, price, _ := get(t, h, "/api/products/p-1"); price != 2 {
			t.Errorf("price after the slow answer = %d, want 2", price)
		}
	})
}
