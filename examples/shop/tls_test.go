// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// TestStackByTLS runs the stack with certificates, on a RabbitMQ and a Consul that speak TLS only: an order goes through
// every service, by HTTP, by gRPC and by events, and none of them answers who has no certificate. PostgreSQL and Redis by TLS have
// tests of their own, in package stack.
func TestStackByTLS(t *testing.T) {
	dir := t.TempDir()
	ca := testca.New(t, dir)
	everybody := []string{"gateway", "provider", "customer", "catalog", "inventory", "payment", "shipping", "notification", "reporting", "order"}
	settings := stackSettings(t)
	settings = maps.Clone(settings)
	settings[stack.TLSCertVar], settings[stack.TLSKeyVar] = ca.Issue(t, "services", everybody...) // one for all: they have one environment
	settings[stack.TLSCAVar] = ca.File
	settings[stack.PublicTLSCertVar], settings[stack.PublicTLSKeyVar] = ca.Issue(t, "public", "127.0.0.1")
	settings[stack.RabbitMQVar], settings[stack.ConsulVar] = testserver.RabbitMQ(t, ca), testserver.Consul(t, ca)
	settings[stack.ServersCAVar] = ca.File
	t.Run("servers that cannot show who they are", func(t *testing.T) { testStrangeServers(t, settings) })
	shop := openStackWith(t, nil, settings)
	if !strings.HasPrefix(shop.url, "https://") {
		t.Errorf("the shop is at %s, want https", shop.url)
	}

	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.Client()}}
	defer browser.CloseIdleConnections()
	token := ""
	ask := func(method, path string, in, out any) error {
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(t.Context(), method, shop.url+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "one-order")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := browser.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		answer, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode >= http.StatusBadRequest {
			return fmt.Errorf("%s %s = %d %s (%w)", method, path, resp.StatusCode, answer, err)
		}
		return json.Unmarshal(answer, out)
	}
	t.Run("an order goes through all of them", func(t *testing.T) {
		var session struct{ Token string }
		var customer, order struct{ ID, Status string }
		eventually(t, func() error {
			return ask("POST", "/api/customers", map[string]string{"name": "A", "email": "a@shop.example", "password": "a-password"}, &customer)
		})
		if err := ask("POST", "/api/sessions", map[string]string{"email": "a@shop.example", "password": "a-password"}, &session); err != nil {
			t.Fatal(err)
		}
		token = session.Token
		eventually(t, func() error {
			return ask("POST", "/api/orders", map[string]any{"items": []lineItem{{"product_id": "p-001", "quantity": 1}}}, &order)
		})
		eventually(t, func() error {
			if err := ask("GET", "/api/orders/"+order.ID, nil, &order); err != nil {
				return err
			}
			if order.Status != "confirmed" && order.Status != "dispatched" {
				return fmt.Errorf("the order is %s, want it confirmed", order.Status)
			}
			return nil
		})
	})

	consul, err := consulapi.NewClient(&consulapi.Config{Address: settings[stack.ConsulVar], TLSConfig: consulapi.TLSConfig{CAFile: ca.File}})
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range everybody[1:] {
		t.Run(service+" wants a certificate", func(t *testing.T) {
			entries, _, err := consul.Health().Service(settings[stack.NameVar]+"-"+service, "", true, nil)
			if err != nil || len(entries) == 0 {
				t.Fatalf("it is not in the registry, or not healthy: %v", err)
			}
			addr := fmt.Sprintf("%s:%d", entries[0].Service.Address, entries[0].Service.Port)
			if resp, err := http.Get("http://" + addr + "/livez"); err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					t.Error("it answers without TLS")
				}
			}
			asService := ca.Client()
			asService.ServerName = service
			stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: asService}}
			defer stranger.CloseIdleConnections()
			for path, want := range map[string]int{"/livez": http.StatusOK, "/ops/outbox": http.StatusForbidden} {
				resp, err := stranger.Get("https://" + addr + path)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("GET %s without a certificate = %d, want %d", path, resp.StatusCode, want)
				}
			}
		})
	}
}

// testStrangeServers starts a service that knows other authorities than those of its servers, or its servers by another
// name: it does not run, and says which of them it is.
func testStrangeServers(t *testing.T, settings map[string]string) {
	addresses := filepath.Join(t.TempDir(), "services.json")
	if err := os.WriteFile(addresses, []byte(`{"services": {}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	other := testca.New(t, t.TempDir()).File
	byName := func(url string) string { return strings.Replace(url, "127.0.0.1", "localhost", 1) }
	for _, tt := range []struct {
		name, variable, says string
		change               map[string]string
	}{
		{"Consul of another authority", stack.ConsulVar, "unknown authority", map[string]string{stack.ServersCAVar: other}},
		{"Consul by another name", stack.ConsulVar, "localhost", map[string]string{stack.ConsulVar: byName(settings[stack.ConsulVar])}},
		{"Consul without TLS", stack.ConsulVar, "HTTPS", map[string]string{stack.ConsulVar: strings.TrimPrefix(settings[stack.ConsulVar], "https://")}},
		{"RabbitMQ of another authority", stack.RabbitMQVar, "unknown authority", map[string]string{stack.ConsulVar: "", stack.DiscoveryFileVar: addresses, stack.ServersCAVar: other}},
		{"RabbitMQ by another name", stack.RabbitMQVar, "localhost", map[string]string{stack.RabbitMQVar: byName(settings[stack.RabbitMQVar])}},
		{"RabbitMQ without TLS", stack.RabbitMQVar, "", map[string]string{stack.RabbitMQVar: strings.Replace(settings[stack.RabbitMQVar], "amqps", "amqp", 1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), buildShop(t), "run", "order")
			for name, value := range settings {
				if _, changed := tt.change[name]; !changed {
					cmd.Env = append(cmd.Env, name+"="+value)
				}
			}
			for name, value := range tt.change {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			cmd.Env = append(cmd.Env, stack.PublicURLVar+"=https://shop.example")
			out, err := cmd.CombinedOutput()
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("it ended with %v, want exit code 1; it said %s", err, out)
			}
			if said := string(out); !strings.Contains(said, tt.variable+": ") || !strings.Contains(said, tt.says) {
				t.Errorf("it said %q, want %s, and %q", said, tt.variable, tt.says)
			}
		})
	}
}

// TestEmbeddedByTLS runs the shop in one process with a certificate for people: the browser is told to keep to TLS, and what
// a sign-in needs is in a cookie that only TLS carries.
func TestEmbeddedByTLS(t *testing.T) {
	ca := testca.New(t, t.TempDir())
	cert, key := ca.Issue(t, "public", "127.0.0.1")
	trusting(t, ca)
	guild := openIssuer(t)
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: 24 * time.Hour, Issuer: guild.config(), TLSCert: cert, TLSKey: key}).stocked()
	if !strings.HasPrefix(shop.url, "https://127.0.0.1:") {
		t.Fatalf("the shop is at %s, want https", shop.url)
	}
	hsts := func(path string, answer answer) {
		t.Helper()
		seconds, found := strings.CutPrefix(answer.header.Get("Strict-Transport-Security"), "max-age=")
		if n, err := strconv.Atoi(seconds); !found || err != nil || n < 180*24*60*60 {
			t.Errorf("%s: Strict-Transport-Security: %q, want half a year or more", path, answer.header.Get("Strict-Transport-Security"))
		}
	}
	t.Run("every answer keeps the browser to TLS", func(t *testing.T) {
		for _, path := range []string{"/", "/api/products", "/api/me", "/openapi.yaml", "/no-such-page"} {
			hsts(path, shop.send("GET", path, nil, nil))
		}
	})
	t.Run("without TLS it does not: who ends it before the shop says so there", func(t *testing.T) {
		plain := openShop(t)
		if got := plain.send("GET", "/", nil, nil).header.Get("Strict-Transport-Security"); got != "" {
			t.Errorf("Strict-Transport-Security: %q, want none", got)
		}
	})
	t.Run("it answers nobody without TLS", func(t *testing.T) {
		resp, err := http.Get(strings.Replace(shop.url, "https", "http", 1) + "/livez")
		if err != nil {
			return
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("GET /livez = %d, want 400", resp.StatusCode)
		}
	})
	t.Run("the cookie of a sign-in is this host's alone, and TLS's", func(t *testing.T) {
		shop := shop.seenBy(t)
		s := shop.leaves(guild, user())
		if c := s.cookie; c.Name != "__Host-sign-in" || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
			t.Errorf("cookie = %s, want __Host-sign-in; Path=/; HttpOnly; Secure; SameSite=Lax, and no Domain", c)
		}
		renamed := s
		renamed.cookie = &http.Cookie{Name: "sign-in", Value: s.cookie.Value}
		shop.wantProblem(401, "sign-in-failed", "", shop.comesBack(renamed))
		got := shop.comesBack(s)
		hsts("/api/sign-in/session", got)
		var session struct{ Token string }
		shop.want(http.StatusOK, got, &session)
		if c := (&http.Response{Header: got.header}).Cookies(); len(c) != 1 || c[0].Name != "__Host-sign-in" || c[0].MaxAge >= 0 || !c[0].Secure {
			t.Errorf("cookies = %v, want the same one taken back, by its own rules", c)
		}
		a := &api{t, shop.url, session.Token}
		a.ends(a.place("", lineItem{"product_id": "p-001", "quantity": 1}), "confirmed")
	})
	t.Run("the console sees all services, the gateway too", func(t *testing.T) {
		operator := shop.seenBy(t).as("operator@shop.example", "dovetail-operator")
		eventually(t, func() error {
			var list struct {
				Items []struct {
					Service string
					Ready   bool
				}
			}
			operator.want(http.StatusOK, operator.send("GET", "/ops/api/services", nil, nil), &list)
			for _, s := range list.Items {
				if !s.Ready {
					return fmt.Errorf("%s is not ready", s.Service)
				}
			}
			if len(list.Items) < len(assembly.Backends) {
				return fmt.Errorf("services = %+v, want all", list.Items)
			}
			return nil
		})
	})
	t.Run("the console's own load reaches it", func(t *testing.T) {
		operator := shop.seenBy(t).as("operator@shop.example", "dovetail-operator")
		operator.want(http.StatusOK, operator.send("PUT", "/ops/api/load", nil, map[string]any{"rate": 5}), nil)
		eventually(t, func() error {
			var load struct{ Accepted int }
			operator.want(http.StatusOK, operator.send("GET", "/ops/api/load", nil, nil), &load)
			if load.Accepted == 0 {
				return errNotYet
			}
			return nil
		})
		operator.want(http.StatusOK, operator.send("PUT", "/ops/api/load", nil, map[string]any{"rate": 0}), nil)
	})
	t.Run("doctor and health ask by TLS", func(t *testing.T) {
		noSettings(t)
		t.Setenv(stack.PublicTLSCertVar, cert)
		t.Setenv(stack.PublicTLSKeyVar, key)
		addr := strings.TrimPrefix(shop.url, "https://")
		eventually(t, func() error { // its breakers and its orders have come to rest
			if got := shopWith(t, "doctor", "--timeout", "2m", "--data", data, "--listen", addr); got.code != 0 || !strings.Contains(got.out, "a shop answers at "+shop.url) {
				return fmt.Errorf("doctor: exit code %d, said %s%s", got.code, got.out, got.err)
			}
			return nil
		})
		if got := shopWith(t, "health", "gateway", "--listen", addr, "--timeout", "1m"); got.code != 0 {
			t.Errorf("health: exit code %d, said %s", got.code, got.err)
		}
	})
	t.Run("a certificate without its key is refused", func(t *testing.T) {
		noSettings(t)
		t.Setenv(stack.PublicTLSCertVar, cert)
		if got := shopWith(t, "--data", t.TempDir(), "--listen", "127.0.0.1:0"); got.code != exitWrong || !strings.Contains(got.err, stack.PublicTLSKeyVar) {
			t.Errorf("exit code %d, said %s; want %d and %s", got.code, got.err, exitWrong, stack.PublicTLSKeyVar)
		}
	})
}

// trusting has the test's own requests take the certificates of an authority.
func trusting(t *testing.T, ca *testca.CA) {
	t.Helper()
	before := http.DefaultClient
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.Client()}}
	http.DefaultClient = client
	t.Cleanup(func() {
		http.DefaultClient = before
		client.CloseIdleConnections()
	})
}
