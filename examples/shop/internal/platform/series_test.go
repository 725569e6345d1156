// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/dovetail-go/dovetail/examples/shop/internal/gateway"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/notification"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
)

// customers is how many a test sends, the default or what DOVETAIL_SERIES says.
func customers(t *testing.T, n int) int {
	t.Helper()
	text := os.Getenv("DOVETAIL_SERIES")
	if text == "" {
		return n
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("DOVETAIL_SERIES: %v", err)
	}
	return n
}

// shop is the world around the gateway: it answers every call, and has the keys of the tokens.
type shop struct {
	keys []byte
	sign jose.Signer
}

func newShop(t *testing.T) *shop {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := jose.JSONWebKey{Key: private, KeyID: "k", Algorithm: string(jose.ES256), Use: "sig"}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &shop{keys, signer}
}

func (s *shop) token(t *testing.T, subject string) string {
	t.Helper()
	now := time.Now()
	token, err := jwt.Signed(s.sign).Claims(jwt.Claims{
		Issuer: "http://shop", Subject: subject, Audience: jwt.Audience{platform.Audience}, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Hour)),
	}).Claims(map[string]any{"role": platform.RoleCustomer}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// RoundTrip answers for every service.
func (s *shop) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	body := []byte(`{"id":"x"}`)
	if r.URL.Path == "/.well-known/jwks.json" {
		body = s.keys
	}
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}, nil
}

// series counts what a scrape of h has.
func series(t *testing.T, h http.Handler) int {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("GET /metrics = %d: %s", w.Code, w.Body)
	}
	return count(w.Body)
}

func count(scrape io.Reader) (n int) {
	for lines := bufio.NewScanner(scrape); lines.Scan(); {
		if line := lines.Text(); line != "" && line[0] != '#' {
			n++
		}
	}
	return n
}

// TestSeriesOfTheGatewayStayBounded sends 100,000 customers through the gateway, each from an address of their own, for products,
// orders, keys and paths that nobody else asks for; 5,000 of them order, with a token of their own.
func TestSeriesOfTheGatewayStayBounded(t *testing.T) {
	world := newShop(t)
	auth, err := platform.NewAuth("http://shop", "http://customer/.well-known/jwks.json", "service-token", &http.Client{Transport: world})
	if err != nil {
		t.Fatal(err)
	}
	guards, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Base: world})
	if err != nil {
		t.Fatal(err)
	}
	guarded := &platform.Guarded{Transport: guards}
	env := platform.Env{
		Name: "gateway", Instance: "gateway-1", Auth: auth, Log: slog.New(slog.DiscardHandler),
		Caller: &platform.Caller{Client: &http.Client{Transport: guarded}, Guards: guarded, Token: "service-token"},
	}
	service, err := gateway.New(env, []string{"customer", "order", "catalog", "notification"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := platform.Routes(t.Context(), env, service)
	visit := func(i int) {
		who, id := fmt.Sprintf("customer-%d", i), fmt.Sprintf("id-%d", i)
		// Of all that a customer does, one thing each: who they are is different every time.
		method, path, body := http.MethodGet, "", io.Reader(nil)
		switch i % 5 {
		case 0:
			path = "/api/products/" + id
		case 1:
			path = "/api/orders/" + id
		case 2:
			method, path, body = http.MethodPost, "/api/orders", bytes.NewReader([]byte(`{"items":[]}`))
		case 3:
			path = "/" + id + "/wp-login.php?x=" + who
		case 4:
			method, path = fmt.Sprintf("M%d", i), "/api/me"
		}
		r := httptest.NewRequestWithContext(t.Context(), method, path, body)
		r.RemoteAddr = fmt.Sprintf("10.%d.%d.%d:1", i>>16&255, i>>8&255, i&255)
		r.Header.Set("Idempotency-Key", id)
		r.Header.Set("User-Agent", who)
		r.Header.Set("X-Request-Id", "request-"+id)
		if i%20 == 2 { // to sign and verify takes longer than all the rest
			r.Header.Set("Authorization", "Bearer "+world.token(t, who))
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	for i := range 500 {
		visit(i)
	}
	before, n := series(t, h), customers(t, 100_000)
	var next atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				visit(int(i))
			}
		})
	}
	all.Wait()
	// The runtime's own may come and go, and a request that is turned away is another status: a few, whatever n is.
	if after := series(t, h); after > before+50 {
		t.Errorf("%d series after 500 customers, %d after %d; want about as many", before, after, n)
	} else {
		t.Logf("%d series after 500 customers, %d after %d", before, after, n)
	}
}

// delivering is a broker that has one event of each customer for whoever subscribes.
type delivering struct {
	n    int
	done chan error
}

func (d *delivering) Publish(context.Context, ...*messaging.Message) error { return nil }

func (d *delivering) Declare(context.Context, ...messaging.Subscription) error { return nil }

func (d *delivering) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	if s.Group == "notification.customers" {
		var err error
		for i := 0; i < d.n && err == nil && ctx.Err() == nil; i++ {
			var m *messaging.Message
			id := fmt.Sprintf("customer-%d", i)
			if m, err = kernel.NewMessage("customer", kernel.CustomerRegistered{CustomerID: id, Name: id, Email: id + "@shop.example"}); err != nil {
				break
			}
			if i%100 == 99 { // one in a hundred can never be read, and comes twice
				m.Body = []byte("{")
				_ = h.Handle(ctx, &messaging.Delivery{Message: m, Group: s.Group, Attempt: 1})
				continue
			}
			for attempt := range 1 + i%2 { // every other comes twice
				if err = h.Handle(ctx, &messaging.Delivery{Message: m, Group: s.Group, Attempt: 1 + attempt}); err != nil {
					break
				}
			}
		}
		d.done <- err
	}
	<-ctx.Done()
	return nil
}

// TestSeriesOfAConsumerStayBounded gives a service the events of 2,000 customers; DOVETAIL_SERIES=100000 those of as many.
func TestSeriesOfAConsumerStayBounded(t *testing.T) {
	run := func(n int) int {
		db, err := platform.OpenSQLite(filepath.Join(t.TempDir(), "notification.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		auth, err := platform.NewAuth("http://shop", "http://customer/.well-known/jwks.json", "service-token", &http.Client{Transport: newShop(t)})
		if err != nil {
			t.Fatal(err)
		}
		broker := &delivering{n: n, done: make(chan error, 1)}
		env := platform.Env{
			Name: "notification", Instance: "notification-1", DB: db, Broker: broker, Auth: auth, Log: slog.New(slog.DiscardHandler),
			Caller: &platform.Caller{Client: http.DefaultClient, Token: "service-token"},
		}
		service, err := notification.New(t.Context(), env)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- platform.Serve(ctx, env, service, ln) }()
		defer func() {
			stop()
			if err := <-ended; err != nil {
				t.Errorf("Serve = %v, want nil", err)
			}
		}()
		if err := <-broker.done; err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		return count(resp.Body)
	}
	n := customers(t, 2000)
	few, many := run(200), run(n)
	if many > few+20 {
		t.Errorf("%d series after 200 customers, %d after %d; want about as many", few, many, n)
	} else {
		t.Logf("%d series after 200 customers, %d after %d", few, many, n)
	}
}
