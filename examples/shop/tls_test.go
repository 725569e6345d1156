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
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

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
