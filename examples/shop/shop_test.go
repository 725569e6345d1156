// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
)

// binary is the shop built as a program of its own, so that tests can kill it: the very one of the image. It has no race
// detector, which would make each of its dozens of starts many times slower: the shops that run inside the
// tests have it.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "shop")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "shop")
	if err := buildImage(path); err != nil {
		_ = os.RemoveAll(dir)
		return "", err
	}
	return path, nil
})

func buildShop(t *testing.T) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	built.Store(true)
	return path
}

var built atomic.Bool

func TestMain(m *testing.M) {
	code := m.Run()
	if built.Load() {
		path, _ := binary()
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// api speaks to a running shop as one person.
type api struct {
	t     *testing.T
	url   string
	token string
}

// openShop runs a shop in this process until the test ends. Its parcels take a day to pack.
func openShop(t *testing.T) *api {
	return openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: 24 * time.Hour})
}

func openShopWith(t *testing.T, cfg embedded.Config) *api {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	go func() {
		cfg.Listen, cfg.PasswordCost, cfg.Ready = "127.0.0.1:0", bcrypt.MinCost, func(url string) { ready <- url }
		ended <- embedded.Run(ctx, cfg)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the shop ended with %v, want nil", err)
		}
	})
	select {
	case url := <-ready:
		return &api{t: t, url: url}
	case err := <-ended:
		ended <- nil
		t.Fatalf("the shop did not open: %v", err)
		return nil
	}
}

// seenBy returns the same shop for a subtest.
func (a *api) seenBy(t *testing.T) *api { return &api{t, a.url, a.token} }

// as returns the same shop seen by another person.
func (a *api) as(email, password string) *api {
	a.t.Helper()
	var session struct{ Token string }
	a.want(http.StatusOK, a.send("POST", "/api/sessions", nil, map[string]string{"email": email, "password": password}), &session)
	return &api{a.t, a.url, session.Token}
}

func (a *api) ada() *api { return a.as("ada@shop.example", "dovetail-ada") }

// newcomer signs a new customer up and in.
func (a *api) newcomer() *api {
	a.t.Helper()
	email := kernel.NewID() + "@shop.example"
	a.want(http.StatusCreated, a.send("POST", "/api/customers", nil, map[string]string{"name": "New", "email": email, "password": "a-password"}), nil)
	return a.as(email, "a-password")
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// send makes a request; body may be nil, a string sent as it is, or a value sent as JSON.
func (a *api) send(method, path string, header http.Header, body any) answer {
	a.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			a.t.Fatal(err)
		}
		r = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, r)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if body != nil && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, got}
}

// want checks the status and decodes the body into out, unless that is nil.
func (a *api) want(status int, got answer, out any) {
	a.t.Helper()
	if got.status != status {
		a.t.Fatalf("status = %d, want %d; body: %s", got.status, status, got.body)
	}
	if out != nil {
		if err := json.Unmarshal(got.body, out); err != nil {
			a.t.Fatalf("body %s: %v", got.body, err)
		}
	}
}

// wantProblem checks that an answer is a problem with this status, code and field.
func (a *api) wantProblem(status int, code, field string, got answer) {
	a.t.Helper()
	var p struct{ Type, Title, Detail, Field string }
	a.want(status, got, &p)
	if ct := got.header.Get("Content-Type"); ct != "application/problem+json" {
		a.t.Errorf("Content-Type = %q, want application/problem+json", ct)
	}
	if p.Field != field || p.Detail == "" || !strings.HasSuffix(p.Type, code) {
		a.t.Errorf("problem = %+v, want type …%s, field %q and a detail", p, code, field)
	}
}

type lineItem map[string]any

func (a *api) key(key string) http.Header { return http.Header{"Idempotency-Key": {key}} }

// place orders and returns the order's ID.
func (a *api) place(method string, items ...lineItem) string {
	a.t.Helper()
	got := a.send("POST", "/api/orders", a.key(kernel.NewID()), map[string]any{"items": items, "payment_method": method})
	var out struct{ ID, Status string }
	a.want(http.StatusAccepted, got, &out)
	if out.Status != "pending" || got.header.Get("Location") != "/api/orders/"+out.ID {
		a.t.Errorf("accepted = %+v, Location %q, want pending and the order's URL", out, got.header.Get("Location"))
	}
	return out.ID
}

type orderPage struct {
	Status, Reason string
	Total          int64
	Payment        *struct {
		Status string
		Amount int64
	}
	Shipment *struct{ Status, Tracking, Recipient string }
	Partial  []string
}

// ends polls an order until it has the wanted status; confirmed is also one that has gone on from
// there. A busy machine may answer 503 in between, or without the payment.
func (a *api) ends(id, status string) orderPage {
	a.t.Helper()
	var page orderPage
	eventually(a.t, func() error {
		answer := a.send("GET", "/api/orders/"+id, nil, nil)
		if answer.status == http.StatusServiceUnavailable {
			return fmt.Errorf("order %s: %s", id, answer.body)
		}
		page = orderPage{}
		a.want(http.StatusOK, answer, &page)
		if page.Status != status && (status != "confirmed" || page.Status != "dispatched") {
			return fmt.Errorf("order %s is %s (%s), want %s", id, page.Status, page.Reason, status)
		}
		if slices.Contains(page.Partial, "payment") {
			return fmt.Errorf("order %s is %s, and payment does not answer", id, page.Status)
		}
		return nil
	})
	return page
}

// tells starts a program and returns what it says on its standard output in JSON.
func tells(t *testing.T, cmd *exec.Cmd) *json.Decoder {
	t.Helper()
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return json.NewDecoder(out)
}

// eventually tries until it works or a minute has passed.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	eventuallyWithin(t, time.Minute, try)
}

func eventuallyWithin(t *testing.T, patience time.Duration, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
