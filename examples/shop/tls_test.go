// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
)

// TestStackByTLS runs the stack with certificates: an order goes through every service, by HTTP and by gRPC, and
// none of them answers who has no certificate.
func TestStackByTLS(t *testing.T) {
	dir := t.TempDir()
	ca := testca.New(t, dir)
	everybody := []string{"gateway", "provider", "customer", "catalog", "inventory", "payment", "shipping", "notification", "reporting", "order"}
	settings := stackSettings(t)
	settings = maps.Clone(settings)
	settings[stack.TLSCertVar], settings[stack.TLSKeyVar] = ca.Issue(t, "services", everybody...) // one for all: they have one environment
	settings[stack.TLSCAVar] = ca.File
	settings[stack.PublicTLSCertVar], settings[stack.PublicTLSKeyVar] = ca.Issue(t, "public", "127.0.0.1")
	shop := openStackWith(t, nil, settings)
	if !strings.HasPrefix(shop.url, "https://") {
		t.Errorf("the shop is at %s, want https", shop.url)
	}

	authorities, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authorities)
	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
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

	consul, err := consulapi.NewClient(&consulapi.Config{Address: settings[stack.ConsulVar]})
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
			stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: service, MinVersion: tls.VersionTLS12}}}
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
