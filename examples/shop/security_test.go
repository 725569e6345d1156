// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stockpb"
)

// described calls do for each operation of openapi.yaml. In its path the parameters have a value that nothing has.
func described(shop *api, do func(method, path string, op *openapi3.Operation)) {
	shop.t.Helper()
	served := shop.send("GET", "/openapi.yaml", nil, nil)
	shop.want(http.StatusOK, served, nil)
	doc, err := openapi3.NewLoader().LoadFromData(served.body)
	if err != nil {
		shop.t.Fatal(err)
	}
	parameter := regexp.MustCompile(`\{\w+\}`)
	n := 0
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			do(method, parameter.ReplaceAllString(path, "none"), op)
			n++
		}
	}
	if n < 30 {
		shop.t.Errorf("%d operations, want all of them", n)
	}
}

// TestEveryRouteIsGuarded asks for everything that openapi.yaml describes in the name of somebody who may not.
func TestEveryRouteIsGuarded(t *testing.T) {
	shop := openShop(t).stocked()
	staff := map[string]*api{
		"customer": shop.newcomer(),
		"admin":    shop.as("admin@shop.example", "dovetail-admin"),
		"operator": shop.as("operator@shop.example", "dovetail-operator"),
	}
	// maySend returns somebody who gets past the check of roles.
	maySend := func(path string) *api {
		switch {
		case strings.HasPrefix(path, "/ops/"):
			return staff["operator"]
		case strings.HasPrefix(path, "/api/products"):
			return staff["admin"]
		}
		return staff["customer"]
	}
	large := `{"name":"` + strings.Repeat("x", platform.MaxBody) + `"}`
	described(shop, func(method, path string, op *openapi3.Operation) {
		var body any
		if op.RequestBody != nil {
			body = "{}"
		}
		ask := func(who *api, header http.Header, body any) answer { return who.send(method, path, header, body) }
		name := method + " " + path
		refused := func(what string, got answer, status int, code string) {
			t.Helper()
			if got.status != status || !strings.Contains(string(got.body), code) {
				t.Errorf("%s %s: %d %s, want %d %s", name, what, got.status, got.body, status, code)
			}
		}
		if op.Security != nil && len(*op.Security) > 0 {
			refused("by nobody", ask(shop, nil, body), http.StatusUnauthorized, "not-signed-in")
			forged := &api{t, shop.url, staff["operator"].token + "x"}
			refused("by a forger", ask(forged, nil, body), http.StatusUnauthorized, "bad-token")
		}
		if strings.HasPrefix(path, "/ops/") {
			refused("by a customer", ask(staff["customer"], nil, body), http.StatusForbidden, "forbidden")
			refused("by the admin", ask(staff["admin"], nil, body), http.StatusForbidden, "forbidden")
		}
		if method == http.MethodGet {
			return
		}
		for what, header := range map[string]http.Header{
			"from another site":            {"Sec-Fetch-Site": {"cross-site"}},
			"from a neighbour of the site": {"Sec-Fetch-Site": {"same-site"}},
			"from another origin":          {"Origin": {"https://elsewhere.example"}},
		} {
			refused(what, ask(maySend(path), header, body), http.StatusForbidden, "cross-origin")
		}
		if op.RequestBody != nil {
			got := ask(maySend(path), http.Header{"Idempotency-Key": {"a-key-of-this-test"}}, large)
			if got.status != http.StatusNotFound { // what is not there may be said before the body is read
				refused("with a body beyond 1 MiB", got, http.StatusRequestEntityTooLarge, "body-too-large")
			}
		}
	})
}

// TestEveryServiceChecksForItself goes around the gateway: nobody, a stranger and the operator ask each service for what is
// not theirs.
func TestEveryServiceChecksForItself(t *testing.T) {
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: time.Millisecond}).stocked()
	owner, stranger, operator := shop.newcomer(), shop.newcomer(), shop.as("operator@shop.example", "dovetail-operator")
	order := owner.place("", lineItem{"product_id": "p-001", "quantity": 1})
	owner.ends(order, "dispatched") // so that everybody has been asked by somebody
	var services struct {
		Items []struct {
			Service   string
			Instances []struct{ Addr string }
		}
	}
	operator.want(http.StatusOK, operator.send("GET", "/ops/api/services", nil, nil), &services)
	at := map[string]string{}
	for _, s := range services.Items {
		for _, in := range s.Instances {
			at[s.Service] = in.Addr
		}
	}
	people := map[string]*api{"nobody": shop, "a stranger": stranger, "the owner": owner, "the operator": operator}
	const internal, theirs, operators = "internal", "theirs", "operators"
	for _, ask := range []struct{ service, method, path, whose string }{
		{"customer", "POST", "/internal/sessions", internal},
		{"customer", "POST", "/internal/credit/reserve", internal},
		{"customer", "POST", "/internal/credit/release", internal},
		{"customer", "POST", "/internal/credit/settle", internal},
		{"catalog", "POST", "/internal/quote", internal},
		{"payment", "POST", "/internal/payments/authorise", internal},
		{"payment", "POST", "/internal/payments/void", internal},
		{"payment", "POST", "/internal/payments/capture", internal},
		{"payment", "POST", "/internal/payments/refund", internal},
		{"payment", "GET", "/payments/" + order, theirs},
		{"shipping", "POST", "/internal/shipments/stop", internal},
		{"shipping", "POST", "/internal/shipments/resume", internal},
		{"shipping", "GET", "/shipments/" + order, theirs},
		{"order", "GET", "/orders/" + order, theirs},
		{"order", "GET", "/orders/" + order + "/events", theirs},
		{"order", "GET", "/ops/sagas", operators},
		{"order", "GET", "/ops/sagas/" + order, operators},
		{"order", "POST", "/ops/sagas/" + order + "/retry", operators},
		{"order", "POST", "/ops/sagas/" + order + "/skip", operators},
		{"order", "POST", "/ops/sagas/" + order + "/cancel", operators},
		{"order", "GET", "/ops/events", operators},
		{"order", "GET", "/ops/dead-letters", operators},
		{"order", "POST", "/ops/dead-letters/order/none/replay", operators},
		{"order", "GET", "/ops/parked", operators},
		{"order", "POST", "/ops/parked/order/none/retry", operators},
		{"order", "POST", "/ops/parked/order/none/discard", operators},
		{"order", "GET", "/ops/outbox", operators},
		{"order", "GET", "/ops/breakers", operators},
		{"order", "GET", "/ops/spans", operators},
		{"order", "GET", "/ops/traffic", operators},
		{"reporting", "GET", "/ops/reporting", operators},
		{"reporting", "POST", "/ops/reporting/rebuild", operators},
	} {
		if at[ask.service] == "" {
			t.Fatalf("nobody knows where %s is", ask.service)
		}
		by := func(who string) int {
			var body any
			if ask.method == http.MethodPost {
				body = struct{}{}
			}
			return (&api{t, "http://" + at[ask.service], people[who].token}).send(ask.method, ask.path, nil, body).status
		}
		wanted := map[string]int{"nobody": http.StatusUnauthorized, "a stranger": http.StatusForbidden}
		switch ask.whose {
		case internal:
			wanted["the operator"] = http.StatusForbidden
		case theirs:
			wanted["a stranger"], wanted["the owner"] = http.StatusNotFound, http.StatusOK
		}
		for who, want := range wanted {
			if got := by(who); got != want {
				t.Errorf("%s answers %d to %s %s by %s, want %d", ask.service, got, ask.method, ask.path, who, want)
			}
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+at["inventory"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for name, who := range people {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+who.token)
		if _, err := stockpb.NewStockClient(conn).Availability(ctx, &stockpb.AvailabilityRequest{ProductId: "p-001"}); status.Code(err) != codes.Unauthenticated && status.Code(err) != codes.PermissionDenied {
			t.Errorf("inventory answers %v to %s, want a refusal", err, name)
		}
	}
}

// TestEveryAnswerIsProtected looks at the headers that a browser obeys.
func TestEveryAnswerIsProtected(t *testing.T) {
	shop := openShop(t)
	for _, path := range []string{"/", "/products/p-001", "/basket", "/sign-in", "/ops", "/ops/sagas", "/assets/shop.css", "/api/products", "/api/me", "/openapi.yaml", "/nowhere"} {
		got := shop.send("GET", path, nil, nil)
		for name, want := range map[string]string{
			"Content-Security-Policy":    "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
			"X-Content-Type-Options":     "nosniff",
			"Referrer-Policy":            "same-origin",
			"Cross-Origin-Opener-Policy": "same-origin",
			"Strict-Transport-Security":  "", // it would be a lie without TLS
		} {
			if have := got.header.Get(name); have != want {
				t.Errorf("GET %s: %s = %q, want %q", path, name, have, want)
			}
		}
		if cookies := got.header.Values("Set-Cookie"); len(cookies) > 0 {
			t.Errorf("GET %s sets cookies %q, want none", path, cookies)
		}
	}
}

// TestPersonalAnswersAreNotKept looks for what a cache would need to give one person's answer to another.
func TestPersonalAnswersAreNotKept(t *testing.T) {
	shop := openShop(t).stocked()
	ada := shop.newcomer()
	order := ada.place("", lineItem{"product_id": "p-001", "quantity": 1})
	operator := shop.as("operator@shop.example", "dovetail-operator")
	for _, ask := range []struct {
		who          *api
		method, path string
		body         any
	}{
		{shop, "POST", "/api/sessions", map[string]string{"email": "ada@shop.example", "password": "dovetail-ada"}},
		{shop, "POST", "/api/sessions", map[string]string{"email": "ada@shop.example", "password": "wrong"}},
		{shop, "GET", "/api/me", nil},
		{ada, "GET", "/api/me", nil},
		{ada, "GET", "/api/me/orders", nil},
		{ada, "GET", "/api/me/mails", nil},
		{ada, "GET", "/api/orders/" + order, nil},
		{ada, "GET", "/api/orders/" + order + "/events", nil},
		{operator, "GET", "/api/orders/" + order, nil},
		{operator, "GET", "/ops/api/sagas", nil},
		{operator, "GET", "/ops/api/mails", nil},
		{operator, "GET", "/ops/api/services", nil},
		{operator, "GET", "/ops/api/invariants", nil},
	} {
		got := ask.who.send(ask.method, ask.path, nil, ask.body)
		for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} {
			if have := got.header.Values(name); len(have) != 1 || have[0] != want {
				t.Errorf("%s %s = %d with %s %q, want %q once", ask.method, ask.path, got.status, name, have, want)
			}
		}
	}
}

// TestOnlyThePasswordIsThePassword signs in with what bcrypt, which reads 72 bytes, takes for the same.
func TestOnlyThePasswordIsThePassword(t *testing.T) {
	shop := openShop(t)
	password := strings.Repeat("x", 72)
	shop.want(http.StatusCreated, shop.send("POST", "/api/customers", nil, map[string]string{"name": "Eve", "email": "eve@shop.example", "password": password}), nil)
	for guess, status := range map[string]int{password: http.StatusOK, password + "x": http.StatusUnauthorized, password[:71]: http.StatusUnauthorized} {
		got := shop.send("POST", "/api/sessions", nil, map[string]string{"email": "eve@shop.example", "password": guess})
		if got.status != status {
			t.Errorf("%d bytes: %d %s, want %d", len(guess), got.status, got.body, status)
		}
	}
}

// shelf keeps what is written.
type shelf struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shelf) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// TestSecretsStayOutOfTheLog does what is done with passwords and tokens, right and wrong, and reads the whole log.
func TestSecretsStayOutOfTheLog(t *testing.T) {
	log := &shelf{}
	shop := openShopWith(t, embedded.Config{
		Data: t.TempDir(), Packing: time.Millisecond,
		Log: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}).stocked()
	const password, guess = "correct-horse-battery", "wrong-donkey-battery"
	shop.want(http.StatusCreated, shop.send("POST", "/api/customers", nil, map[string]string{"name": "Eve", "email": "eve@shop.example", "password": password}), nil)
	eve := shop.as("eve@shop.example", password)
	shop.want(http.StatusUnauthorized, shop.send("POST", "/api/sessions", nil, map[string]string{"email": "eve@shop.example", "password": guess}), nil)
	shop.want(http.StatusUnprocessableEntity, shop.send("POST", "/api/customers", nil, map[string]string{"name": "", "email": "x", "password": password}), nil)
	shop.want(http.StatusConflict, shop.send("POST", "/api/customers", nil, map[string]string{"name": "Eve", "email": "eve@shop.example", "password": password}), nil)
	shop.want(http.StatusBadRequest, shop.send("POST", "/api/sessions", nil, `{"password":"`+password+`"`), nil)
	eve.ends(eve.place("pm_visa", lineItem{"product_id": "p-001", "quantity": 1}), "dispatched")
	forged := &api{t, shop.url, eve.token + "x"}
	shop.want(http.StatusUnauthorized, forged.send("GET", "/api/me", nil, nil), nil)
	shop.want(http.StatusNotFound, eve.send("GET", "/api/orders/none", nil, nil), nil)

	log.mu.Lock()
	defer log.mu.Unlock()
	text := log.b.String()
	if !strings.Contains(text, `"/api/me"`) {
		t.Fatalf("the log of %d bytes does not tell of the requests", len(text))
	}
	signature := eve.token[strings.LastIndexByte(eve.token, '.')+1:]
	for what, secret := range map[string]string{"a password": password, "a guess": guess, "a token": signature, "a header": "Bearer "} {
		if at := strings.Index(text, secret); at >= 0 {
			t.Errorf("the log has %s: …%s…", what, text[max(0, at-200):min(len(text), at+50)])
		}
	}
}
