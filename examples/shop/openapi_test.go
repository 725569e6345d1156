// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// TestAnswersAreAsDescribed asks for everything that openapi.yaml describes, and compares each answer with
// its description: status, headers, media type, and every field of the body.
func TestAnswersAreAsDescribed(t *testing.T) {
	nobody := openShop(t).stocked()
	customer := nobody.newcomer()
	admin := nobody.as("admin@shop.example", "dovetail-admin")
	operator := nobody.as("operator@shop.example", "dovetail-operator")

	served := nobody.send("GET", "/openapi.yaml", nil, nil)
	nobody.want(http.StatusOK, served, nil)
	doc, err := openapi3.NewLoader().LoadFromData(served.body)
	if err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}

	line := lineItem{"product_id": "p-001", "quantity": 1}
	newOrder := map[string]any{"items": []lineItem{line}, "payment_method": "pm_visa"}
	confirmed, rejected := customer.place("", line), customer.place("pm_declined", line)
	customer.ends(confirmed, "confirmed")
	customer.ends(rejected, "rejected")
	taken := map[string]string{"name": "Ada", "email": "ada@shop.example", "password": "a-password"}

	var seen []string
	for _, ask := range []struct {
		who    *api
		method string
		path   string
		key    string // the Idempotency-Key
		body   any
		status int
	}{
		{nobody, "POST", "/api/customers", "", map[string]string{"name": "Una", "email": "una@shop.example", "password": "a-password"}, 201},
		{nobody, "POST", "/api/customers", "", taken, 409},
		{nobody, "POST", "/api/customers", "", map[string]string{"name": "", "email": "", "password": ""}, 422},
		{nobody, "POST", "/api/customers", "", "{", 400},
		{nobody, "POST", "/api/sessions", "", map[string]string{"email": "ada@shop.example", "password": "dovetail-ada"}, 200},
		{nobody, "POST", "/api/sessions", "", map[string]string{"email": "ada@shop.example", "password": "wrong"}, 401},
		{nobody, "GET", "/api/sign-in", "", nil, 200},
		{nobody, "POST", "/api/sign-in", "", nil, 404}, // TestSignInByAnotherIssuer has one
		{nobody, "POST", "/api/sign-in/session", "", map[string]string{"code": "a", "state": "b"}, 404},
		{customer, "GET", "/api/me", "", nil, 200},
		{nobody, "GET", "/api/me", "", nil, 401},
		{customer, "GET", "/api/me/orders", "", nil, 200},
		{operator, "GET", "/api/me/orders", "", nil, 403},
		{customer, "GET", "/api/me/mails", "", nil, 200},
		{nobody, "GET", "/api/products?q=saw&category=Hand+tools&page=1", "", nil, 200},
		{nobody, "GET", "/api/products?page=x", "", nil, 422},
		{nobody, "GET", "/api/products/p-001", "", nil, 200},
		{nobody, "GET", "/api/products/p-999", "", nil, 404},
		{nobody, "GET", "/api/products/p-001/stock", "", nil, 200},
		{nobody, "GET", "/api/products/p-999/stock", "", nil, 404},
		{admin, "POST", "/api/products", "", map[string]any{"name": "Router plane", "category": "Hand tools", "price": 8900, "stock": 3}, 201},
		{admin, "POST", "/api/products", "", map[string]any{"name": "Router plane"}, 422},
		{customer, "POST", "/api/products", "", map[string]any{}, 403},
		{admin, "PATCH", "/api/products/p-001", "", map[string]any{"price": 3500}, 200},
		{admin, "PATCH", "/api/products/p-999", "", map[string]any{"price": 3500}, 404},
		{nobody, "GET", "/api/categories", "", nil, 200},
		{customer, "POST", "/api/orders", "described", newOrder, 202},
		{customer, "POST", "/api/orders", "described", newOrder, 202}, // a replay
		{customer, "POST", "/api/orders", "described", map[string]any{"items": []lineItem{}}, 422},
		{customer, "POST", "/api/orders", "empty", map[string]any{"items": []lineItem{}}, 422},
		{customer, "POST", "/api/orders", "", newOrder, 400},
		{nobody, "POST", "/api/orders", "described", newOrder, 401},
		{customer, "GET", "/api/orders/" + confirmed, "", nil, 200},
		{customer, "GET", "/api/orders/" + rejected, "", nil, 200},
		{operator, "GET", "/api/orders/" + rejected, "", nil, 200},
		{customer, "GET", "/api/orders/none", "", nil, 404},
		{customer, "GET", "/api/orders/" + rejected + "/events", "", nil, 200},
		{customer, "POST", "/api/orders/" + confirmed + "/cancel", "described", nil, 202},
		{customer, "POST", "/api/orders/" + rejected + "/cancel", "described", nil, 409},
		{customer, "POST", "/api/orders/none/cancel", "described", nil, 404},
		{operator, "GET", "/ops/api/sagas?status=compensated", "", nil, 200},
		{operator, "GET", "/ops/api/sagas?status=odd", "", nil, 422},
		{customer, "GET", "/ops/api/sagas", "", nil, 403},
		{operator, "GET", "/ops/api/sagas/" + rejected, "", nil, 200},
		{operator, "GET", "/ops/api/sagas/none", "", nil, 404},
		{operator, "POST", "/ops/api/sagas/" + rejected + "/retry", "", map[string]string{"why": "to see"}, 409},
		{operator, "POST", "/ops/api/sagas/" + rejected + "/retry", "", map[string]string{"why": ""}, 422},
		{operator, "POST", "/ops/api/sagas/none/skip", "", map[string]string{"why": "to see"}, 404},
		{operator, "POST", "/ops/api/sagas/" + confirmed + "/cancel", "", map[string]string{"why": "to see"}, 409},
		{customer, "POST", "/ops/api/sagas/" + confirmed + "/cancel", "", map[string]string{"why": "to see"}, 403},
		{operator, "GET", "/ops/api/events?order=" + confirmed, "", nil, 200},
		{operator, "GET", "/ops/api/traces?order=" + confirmed, "", nil, 200},
		{operator, "GET", "/ops/api/parked", "", nil, 200},
		{operator, "POST", "/ops/api/parked/order/none/retry", "", nil, 404},
		{operator, "POST", "/ops/api/parked/order/none/discard", "", map[string]string{"why": "to see"}, 404},
		{operator, "POST", "/ops/api/parked/order/none/discard", "", map[string]string{"why": " "}, 422},
		{customer, "POST", "/ops/api/parked/order/none/discard", "", map[string]string{"why": "to see"}, 403},
		{operator, "POST", "/ops/api/payments/" + rejected + "/tell", "", nil, 200},
		{operator, "POST", "/ops/api/payments/none/tell", "", nil, 404},
		{customer, "POST", "/ops/api/payments/" + rejected + "/tell", "", nil, 403},
		{operator, "GET", "/ops/api/traffic", "", nil, 200},
		{customer, "GET", "/ops/api/live", "", nil, 403}, // the pages' tests watch it
		{operator, "GET", "/ops/api/mails", "", nil, 200},
		{operator, "GET", "/ops/api/reporting", "", nil, 200},
		{operator, "POST", "/ops/api/reporting/rebuild", "", nil, 202},
		{operator, "GET", "/ops/api/outbox", "", nil, 200},
		{operator, "GET", "/ops/api/dead-letters", "", nil, 200},
		{operator, "POST", "/ops/api/dead-letters/catalog/none/replay", "", nil, 404},
		{operator, "POST", "/ops/api/dead-letters/nobody/none/replay", "", nil, 404},
		{customer, "POST", "/ops/api/dead-letters/catalog/none/replay", "", nil, 403},
		{operator, "GET", "/ops/api/breakers", "", nil, 200},
		{operator, "GET", "/ops/api/chaos", "", nil, 200},
		{customer, "GET", "/ops/api/chaos", "", nil, 403},
		{operator, "POST", "/ops/api/chaos", "", map[string]any{"kind": "latency", "service": "shipping", "amount": 5, "seconds": 60}, 201},
		{operator, "POST", "/ops/api/chaos", "", map[string]any{"kind": "provider-declining", "seconds": 0.001}, 201},
		{operator, "POST", "/ops/api/chaos", "", map[string]any{"kind": "odd"}, 422},
		{operator, "GET", "/ops/api/chaos", "", nil, 200},
		{operator, "DELETE", "/ops/api/chaos/none", "", nil, 404},
		{operator, "DELETE", "/ops/api/chaos", "", nil, 204},
		{operator, "GET", "/ops/api/invariants", "", nil, 200},
		{operator, "GET", "/ops/api/load", "", nil, 200},
		{operator, "PUT", "/ops/api/load", "", map[string]any{"rate": 0}, 200},
		{operator, "PUT", "/ops/api/load", "", map[string]any{"rate": -1}, 422},
		{operator, "GET", "/ops/api/services", "", nil, 200},
		{nobody, "GET", "/.well-known/openid-configuration", "", nil, 200},
		{nobody, "GET", "/.well-known/jwks.json", "", nil, 200},
		{nobody, "GET", "/openapi.yaml", "", nil, 200},
		{nobody, "GET", "/livez", "", nil, 200},
		{nobody, "GET", "/readyz", "", nil, 200},
		{nobody, "GET", "/metrics", "", nil, 200},
	} {
		header := http.Header{}
		if ask.key != "" {
			header = ask.who.key(ask.key)
		}
		got := ask.who.send(ask.method, ask.path, header, ask.body)
		if got.status != ask.status {
			t.Errorf("%s %s = %d, want %d; body: %s", ask.method, ask.path, got.status, ask.status, got.body)
			continue
		}
		req, err := http.NewRequestWithContext(t.Context(), ask.method, ask.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		route, params, err := router.FindRoute(req)
		if err != nil {
			t.Errorf("%s %s: %v", ask.method, ask.path, err)
			continue
		}
		seen = append(seen, route.Operation.OperationID)
		err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route},
			Status:                 got.status,
			Header:                 got.header,
			Body:                   io.NopCloser(bytes.NewReader(got.body)),
			Options:                &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
		})
		if err != nil {
			t.Errorf("%s %s answers %d otherwise than described: %v", ask.method, ask.path, got.status, err)
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if !slices.Contains(seen, op.OperationID) {
				t.Errorf("nobody asks for %s %s", method, path)
			}
		}
	}
}
