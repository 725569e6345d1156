// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
)

type profile struct {
	ID, Name       string
	CreditLimit    int64 `json:"credit_limit"`
	CreditReserved int64 `json:"credit_reserved"`
}

type product struct {
	ID, Name, Category, Currency string
	Price, Available             int64
}

func (a *api) product(id string) (p product) {
	a.t.Helper()
	a.want(http.StatusOK, a.send("GET", "/api/products/"+id, nil, nil), &p)
	return p
}

func (a *api) me() (p profile) {
	a.t.Helper()
	a.want(http.StatusOK, a.send("GET", "/api/me", nil, nil), &p)
	return p
}

// hasMails tells whether the customer has mails about just these things. What several services have told comes in any order.
func (a *api) hasMails(subjects ...string) error {
	a.t.Helper()
	var mails struct{ Items []struct{ Subject string } }
	a.want(http.StatusOK, a.send("GET", "/api/me/mails", nil, nil), &mails)
	var got []string
	for _, m := range mails.Items {
		got = append(got, m.Subject)
	}
	slices.Sort(got)
	slices.Sort(subjects)
	if !slices.Equal(got, subjects) {
		return fmt.Errorf("mails = %q, want %q", got, subjects)
	}
	return nil
}

// stocked waits until inventory has heard of the seeded catalogue. A busy machine may answer 503 in between.
func (a *api) stocked() *api {
	a.t.Helper()
	eventuallyWithin(a.t, 5*time.Minute, func() error {
		for page := 1; page != 0; {
			var list struct {
				Items []struct {
					ID        string
					Available int64
				}
				Next int
			}
			answer := a.send("GET", fmt.Sprintf("/api/products?page=%d", page), nil, nil)
			if answer.status == http.StatusServiceUnavailable {
				return fmt.Errorf("page %d of the products: %s", page, answer.body)
			}
			a.want(http.StatusOK, answer, &list)
			for _, p := range list.Items {
				if p.Available != 1000 {
					return fmt.Errorf("product %s: available = %d, want 1000", p.ID, p.Available)
				}
			}
			page = list.Next
		}
		return nil
	})
	return a
}

func TestOrder(t *testing.T) { testOrder(t, openShop(t).stocked()) }

// testOrder holds for every way to run the shop.
func testOrder(t *testing.T, shop *api) {

	t.Run("an order is confirmed: money captured, stock sold, credit free, mail written", func(t *testing.T) {
		a := shop.newcomer()
		before := a.product("p-001")
		id := a.place("", lineItem{"product_id": "p-001", "quantity": 2})
		page := a.ends(id, "confirmed")
		if page.Total != 2*before.Price || page.Payment == nil || page.Payment.Status != "captured" || page.Payment.Amount != page.Total {
			t.Errorf("order = %+v, payment %+v, want %d captured", page, page.Payment, 2*before.Price)
		}
		eventually(t, func() error {
			if got := a.product("p-001").Available; got != before.Available-2 {
				return fmt.Errorf("available = %d, want %d", got, before.Available-2)
			}
			if me := a.me(); me.CreditReserved != 0 {
				return fmt.Errorf("credit reserved = %d, want 0", me.CreditReserved)
			}
			return a.hasMails("Welcome to the shop", "We have received your order", "Your payment is authorised", "Your receipt", "Your order is confirmed")
		})
	})

	for _, tt := range []struct{ method, reason string }{{"pm_declined", "declined"}, {"pm_insufficient_funds", "insufficient-funds"}} {
		t.Run(tt.method+" ends rejected with credit and stock given back", func(t *testing.T) {
			a := shop.newcomer()
			before := a.product("p-002")
			id := a.place(tt.method, lineItem{"product_id": "p-002", "quantity": 3})
			page := a.ends(id, "rejected")
			if page.Reason != tt.reason {
				t.Errorf("reason = %q, want %q", page.Reason, tt.reason)
			}
			if me := a.me(); me.CreditReserved != 0 {
				t.Errorf("credit reserved = %d, want 0", me.CreditReserved)
			}
			eventually(t, func() error {
				if got := a.product("p-002").Available; got != before.Available {
					return fmt.Errorf("available = %d, want %d", got, before.Available)
				}
				return nil
			})
		})
	}

	for _, method := range []string{"pm_slow", "pm_flaky", "pm_timeout_after_charge"} {
		t.Run(method+" is confirmed in the end, charged once", func(t *testing.T) {
			t.Parallel()
			a := shop.newcomer()
			page := a.ends(a.place(method, lineItem{"product_id": "p-003", "quantity": 1}), "confirmed")
			if page.Payment == nil || page.Payment.Status != "captured" || page.Payment.Amount != page.Total {
				t.Errorf("payment = %+v, want %d captured", page.Payment, page.Total)
			}
		})
	}

	t.Run("more than the credit limit is rejected", func(t *testing.T) {
		a := shop.newcomer()
		page := a.ends(a.place("", lineItem{"product_id": "p-004", "quantity": 100}), "rejected")
		if page.Reason != "credit-limit" {
			t.Errorf("reason = %q, want credit-limit", page.Reason)
		}
	})

	t.Run("the history tells what happened, in order", func(t *testing.T) {
		a := shop.newcomer()
		id := a.place("", lineItem{"product_id": "p-005", "quantity": 1})
		a.ends(id, "confirmed")
		var history struct{ Items []struct{ What string } }
		a.want(http.StatusOK, a.send("GET", "/api/orders/"+id+"/events", nil, nil), &history)
		var what []string
		for _, m := range history.Items {
			what = append(what, m.What)
		}
		got := strings.Join(what, "; ")
		for _, want := range []string{"order.placed", "reserve-credit done", "reserve-stock done", "authorise-payment done", "capture-payment done", "order.confirmed"} {
			at := strings.Index(got, want)
			if at < 0 {
				t.Fatalf("history = %q, want %q after what came before", strings.Join(what, "; "), want)
			}
			got = got[at:]
		}
	})
}

func TestIdempotencyKey(t *testing.T) { testIdempotencyKey(t, openShop(t).stocked()) }

// testIdempotencyKey holds for every way to run the shop.
func testIdempotencyKey(t *testing.T, shop *api) {
	a := shop.newcomer()
	order := map[string]any{"items": []lineItem{{"product_id": "p-010", "quantity": 1}}}

	t.Run("the same key twice gives one order and the same response", func(t *testing.T) {
		key := a.key(kernel.NewID())
		first, second := a.send("POST", "/api/orders", key, order), a.send("POST", "/api/orders", key, order)
		a.want(http.StatusAccepted, first, nil)
		a.want(http.StatusAccepted, second, nil)
		if string(first.body) != string(second.body) || first.header.Get("Location") != second.header.Get("Location") {
			t.Errorf("answers = %s and %s, want the same", first.body, second.body)
		}
		var mine struct{ Items []struct{ ID string } }
		a.want(http.StatusOK, a.send("GET", "/api/me/orders", nil, nil), &mine)
		if len(mine.Items) != 1 {
			t.Errorf("%d orders, want 1", len(mine.Items))
		}
	})
	t.Run("another payload under the key is 422", func(t *testing.T) {
		key := a.key(kernel.NewID())
		a.want(http.StatusAccepted, a.send("POST", "/api/orders", key, order), nil)
		other := map[string]any{"items": []lineItem{{"product_id": "p-010", "quantity": 2}}}
		a.wantProblem(422, "key-reused", "Idempotency-Key", a.send("POST", "/api/orders", key, other))
	})
	t.Run("the same key of another customer is another order", func(t *testing.T) {
		key := a.key(kernel.NewID())
		mine, theirs := a.send("POST", "/api/orders", key, order), shop.newcomer().send("POST", "/api/orders", key, order)
		a.want(http.StatusAccepted, mine, nil)
		a.want(http.StatusAccepted, theirs, nil)
		if string(mine.body) == string(theirs.body) {
			t.Errorf("both answers = %s, want two orders", mine.body)
		}
	})
	t.Run("no key is 400, and neither is one that cannot be read", func(t *testing.T) {
		a.wantProblem(400, "bad-request", "Idempotency-Key", a.send("POST", "/api/orders", nil, order))
		a.wantProblem(400, "bad-request", "Idempotency-Key", a.send("POST", "/api/orders", a.key("two words"), order))
	})
	t.Run("a cancellation repeated with its key is answered the same", func(t *testing.T) {
		id := a.place("", lineItem{"product_id": "p-010", "quantity": 1})
		a.ends(id, "confirmed")
		key := a.key(kernel.NewID())
		first := a.send("POST", "/api/orders/"+id+"/cancel", key, nil)
		a.want(http.StatusAccepted, first, nil)
		page := a.ends(id, "cancelled")
		if page.Payment == nil || page.Payment.Status != "refunded" {
			t.Errorf("payment = %+v, want it refunded", page.Payment)
		}
		if second := a.send("POST", "/api/orders/"+id+"/cancel", key, nil); string(second.body) != string(first.body) {
			t.Errorf("answers = %s and %s, want the same", first.body, second.body)
		}
	})
	t.Run("an order cancelled while it is pending ends cancelled, nothing charged", func(t *testing.T) {
		id := a.place("pm_slow", lineItem{"product_id": "p-010", "quantity": 1})
		a.want(http.StatusAccepted, a.send("POST", "/api/orders/"+id+"/cancel", a.key(kernel.NewID()), nil), nil)
		page := a.ends(id, "cancelled")
		if page.Payment != nil && page.Payment.Status != "voided" && page.Payment.Status != "refunded" {
			t.Errorf("payment = %+v, want none, voided or refunded", page.Payment)
		}
	})
}

func TestBadInput(t *testing.T) { testBadInput(t, openShop(t)) }

// testBadInput holds for every way to run the shop: what a database cannot take is no accident of ours.
func testBadInput(t *testing.T, shop *api) {
	a := shop.newcomer()
	order := func(items ...lineItem) map[string]any { return map[string]any{"items": items} }
	good := lineItem{"product_id": "p-001", "quantity": 1}

	for _, tt := range []struct {
		name   string
		status int
		code   string
		field  string
		body   any
	}{
		{"unknown product", 422, "invalid-input", "items[1].product_id", order(good, lineItem{"product_id": "p-999", "quantity": 1})},
		{"quantity zero", 422, "invalid-input", "items[0].quantity", order(lineItem{"product_id": "p-001", "quantity": 0})},
		{"quantity too large", 422, "invalid-input", "items[0].quantity", order(lineItem{"product_id": "p-001", "quantity": 101})},
		{"a product twice", 422, "invalid-input", "items[1].product_id", order(good, good)},
		{"no product", 422, "invalid-input", "items[0].product_id", order(lineItem{"quantity": 1})},
		{"no items", 422, "invalid-input", "items", order()},
		{"unknown payment method", 422, "invalid-input", "payment_method", map[string]any{"items": []lineItem{good}, "payment_method": "gold"}},
		{"unknown field", 422, "invalid-input", "colour", map[string]any{"items": []lineItem{good}, "colour": "red"}},
		{"wrong type", 422, "invalid-input", "items[0].quantity", `{"items":[{"product_id":"p-001","quantity":"two"}]}`},
		{"a text with a NUL character", 422, "invalid-input", "items[0].product_id", order(lineItem{"product_id": "p-\x00", "quantity": 1})},
		{"no JSON", 400, "malformed-json", "", `{"items":`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a.wantProblem(tt.status, tt.code, tt.field, a.send("POST", "/api/orders", a.key(kernel.NewID()), tt.body))
		})
	}
	t.Run("a body over 1 MiB is 413", func(t *testing.T) {
		large := `{"items":"` + strings.Repeat("x", 1<<20) + `"}`
		for _, path := range []string{"/api/orders", "/api/orders/none/cancel", "/api/customers", "/api/sessions"} {
			a.wantProblem(413, "body-too-large", "", a.send("POST", path, a.key(kernel.NewID()), large))
		}
	})
	t.Run("sign-up", func(t *testing.T) {
		shop.wantProblem(422, "invalid-input", "email", shop.send("POST", "/api/customers", nil, map[string]string{"name": "A", "email": "nowhere", "password": "a-password"}))
		shop.wantProblem(422, "invalid-input", "password", shop.send("POST", "/api/customers", nil, map[string]string{"name": "A", "email": "a@shop.example", "password": "short"}))
		shop.wantProblem(422, "invalid-input", "name", shop.send("POST", "/api/customers", nil, map[string]string{"name": " ", "email": "a@shop.example", "password": "a-password"}))
		shop.wantProblem(422, "invalid-input", "name", shop.send("POST", "/api/customers", nil, map[string]string{"name": "A\x00", "email": "a@shop.example", "password": "a-password"}))
		taken := kernel.NewID() + "@shop.example"
		shop.want(http.StatusCreated, shop.send("POST", "/api/customers", nil, map[string]string{"name": "A", "email": taken, "password": "a-password"}), nil)
		shop.wantProblem(409, "email-taken", "email", shop.send("POST", "/api/customers", nil, map[string]string{"name": "A", "email": strings.ToUpper(taken), "password": "a-password"}))
	})
	t.Run("sign-in", func(t *testing.T) {
		shop.wantProblem(422, "invalid-input", "email", shop.send("POST", "/api/sessions", nil, map[string]string{"email": " ", "password": "dovetail-ada"}))
		shop.wantProblem(422, "invalid-input", "password", shop.send("POST", "/api/sessions", nil, map[string]string{"email": "ada@shop.example"}))
	})
	t.Run("listing", func(t *testing.T) {
		shop.wantProblem(422, "invalid-input", "page", shop.send("GET", "/api/products?page=0", nil, nil))
		shop.wantProblem(422, "invalid-input", "category", shop.send("GET", "/api/products?category=%00", nil, nil))
		shop.wantProblem(400, "bad-request", "", shop.send("GET", "/api/products/%ff", nil, nil))
	})
	t.Run("an order that is none is 404", func(t *testing.T) {
		a.wantProblem(404, "not-found", "", a.send("GET", "/api/orders/none", nil, nil))
		a.wantProblem(404, "not-found", "", a.send("GET", "/api/orders/none/events", nil, nil))
		a.wantProblem(404, "not-found", "", a.send("POST", "/api/orders/none/cancel", a.key(kernel.NewID()), nil))
	})
}

func TestWhoMayWhat(t *testing.T) {
	shop := openShop(t).stocked()
	ada, admin, operator := shop.ada(), shop.as("admin@shop.example", "dovetail-admin"), shop.as("operator@shop.example", "dovetail-operator")
	order := map[string]any{"items": []lineItem{{"product_id": "p-001", "quantity": 1}}}

	t.Run("no token is 401", func(t *testing.T) {
		shop.wantProblem(401, "not-signed-in", "", shop.send("POST", "/api/orders", shop.key("some-key-1"), order))
	})
	t.Run("a forged token is 401", func(t *testing.T) {
		forged := &api{t, shop.url, ada.token[:len(ada.token)-4] + "AAAA"}
		forged.wantProblem(401, "bad-token", "", forged.send("GET", "/api/me", nil, nil))
	})
	t.Run("a wrong password and an unknown address are the same 401", func(t *testing.T) {
		wrong := shop.send("POST", "/api/sessions", nil, map[string]string{"email": "ada@shop.example", "password": "wrong-password"})
		nobody := shop.send("POST", "/api/sessions", nil, map[string]string{"email": "nobody@shop.example", "password": "wrong-password"})
		shop.wantProblem(401, "bad-credentials", "", wrong)
		if string(wrong.body) != string(nobody.body) {
			t.Errorf("answers = %s and %s, want the same", wrong.body, nobody.body)
		}
	})
	t.Run("a stranger's order is 404, and so is its history and its payment", func(t *testing.T) {
		id := ada.place("", lineItem{"product_id": "p-001", "quantity": 1})
		stranger := shop.newcomer()
		stranger.wantProblem(404, "not-found", "", stranger.send("GET", "/api/orders/"+id, nil, nil))
		stranger.wantProblem(404, "not-found", "", stranger.send("GET", "/api/orders/"+id+"/events", nil, nil))
		stranger.wantProblem(404, "not-found", "", stranger.send("POST", "/api/orders/"+id+"/cancel", stranger.key("some-key-2"), nil))
		ada.ends(id, "confirmed")
	})
	t.Run("only staff writes products", func(t *testing.T) {
		draft := map[string]any{"name": "Router plane", "category": "Hand tools", "price": 12_000, "stock": 5}
		ada.wantProblem(403, "forbidden", "", ada.send("POST", "/api/products", nil, draft))
		var created struct{ ID string }
		admin.want(http.StatusCreated, admin.send("POST", "/api/products", nil, draft), &created)
		eventually(t, func() error {
			if p := admin.product(created.ID); p.Available != 5 {
				return fmt.Errorf("available = %d, want 5", p.Available)
			}
			return nil
		})
		admin.want(http.StatusOK, admin.send("PATCH", "/api/products/"+created.ID, nil, map[string]any{"price": 11_000}), nil)
		changed := time.Now()
		eventually(t, func() error { // the answer before may be kept for a moment
			if p := admin.product(created.ID); p.Price != 11_000 || p.Name != "Router plane" {
				return fmt.Errorf("product = %+v, want the new price and the old name", p)
			}
			return nil
		})
		t.Logf("the new price shows after %v", time.Since(changed))
		admin.wantProblem(422, "invalid-input", "price", admin.send("PATCH", "/api/products/"+created.ID, nil, map[string]any{"price": 0}))
	})
	t.Run("nobody reaches a service's inside through the gateway", func(t *testing.T) {
		for _, path := range []string{"/internal/credit/reserve", "/api/internal/quote", "/api/orders/../internal/quote"} {
			if got := ada.send("POST", path, nil, `{}`); got.status < 400 || got.status == 500 {
				t.Errorf("POST %s = %d, want it refused", path, got.status)
			}
		}
	})
	t.Run("operators see sagas, outboxes, dead letters and services; customers do not", func(t *testing.T) {
		for _, path := range []string{"/ops/api/sagas", "/ops/api/outbox", "/ops/api/dead-letters", "/ops/api/services", "/ops/api/mails"} {
			var list struct{ Items []map[string]any }
			operator.want(http.StatusOK, operator.send("GET", path, nil, nil), &list)
			ada.wantProblem(403, "forbidden", "", ada.send("GET", path, nil, nil))
		}
		var services struct {
			Items []struct {
				Service   string
				Ready     bool
				Instances []struct{ Instance, Addr string }
			}
		}
		operator.want(http.StatusOK, operator.send("GET", "/ops/api/services", nil, nil), &services)
		for _, s := range services.Items {
			if !s.Ready || len(s.Instances) != 1 || !strings.HasPrefix(s.Instances[0].Instance, s.Service) || s.Instances[0].Addr == "" {
				t.Errorf("%+v, want it ready, with the one instance that it has here", s)
			}
		}
	})
	t.Run("every answer has a request ID and the security headers", func(t *testing.T) {
		got := shop.send("GET", "/api/products", http.Header{"X-Request-Id": {"my-request-1"}}, nil)
		for name, want := range map[string]string{"X-Request-Id": "my-request-1", "X-Content-Type-Options": "nosniff"} {
			if got.header.Get(name) != want {
				t.Errorf("%s = %q, want %q", name, got.header.Get(name), want)
			}
		}
	})
}

func TestCatalogue(t *testing.T) {
	shop := openShop(t)
	type listing struct {
		Items []product
		Next  int
	}
	t.Run("at least 200 products between 100 and 20,000, each page once", func(t *testing.T) {
		seen := map[string]bool{}
		for page := 1; page != 0; {
			var out listing
			shop.want(http.StatusOK, shop.send("GET", fmt.Sprintf("/api/products?page=%d", page), nil, nil), &out)
			for _, p := range out.Items {
				if seen[p.ID] || p.Price < 100 || p.Price > 20_000 || p.Currency != "EUR" {
					t.Errorf("product %+v: want it once, 100 to 20000 EUR", p)
				}
				seen[p.ID] = true
			}
			page = out.Next
		}
		if len(seen) < 200 {
			t.Errorf("%d products, want at least 200", len(seen))
		}
	})
	t.Run("search finds every word, in any case, and takes wildcards as they are", func(t *testing.T) {
		for q, want := range map[string]bool{"q=DOVETAIL+saw": true, "q=saw+fine": true, "q=dove+SA": true, "q=tools%2C+vetail": false, "q=%25": false, "q=%22+OR+%2A": false, "q=sawdust": false, "category=Timber": true, "category=None": false} {
			var out listing
			shop.want(http.StatusOK, shop.send("GET", "/api/products?"+q, nil, nil), &out)
			if (len(out.Items) > 0) != want {
				t.Errorf("%s found %d products, want some: %v", q, len(out.Items), want)
			}
		}
	})
	t.Run("unknown product is 404", func(t *testing.T) {
		shop.wantProblem(404, "not-found", "", shop.send("GET", "/api/products/none", nil, nil))
		shop.wantProblem(404, "not-found", "", shop.send("GET", "/api/products/none/stock", nil, nil))
	})
	t.Run("stock is what inventory has, by gRPC", func(t *testing.T) {
		shop.stocked()
		var out listing
		shop.want(http.StatusOK, shop.send("GET", "/api/products", nil, nil), &out)
		for _, p := range out.Items[:3] {
			var stock struct {
				ProductID string `json:"product_id"`
				Available int64
				Revision  int64
			}
			shop.want(http.StatusOK, shop.send("GET", "/api/products/"+p.ID+"/stock", nil, nil), &stock)
			if stock.ProductID != p.ID || stock.Available <= 0 || stock.Revision < 1 {
				t.Errorf("stock of %s = %+v, want some", p.ID, stock)
			}
		}
	})
}
