// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
)

// seen waits for the watch to yield these instances, as ids gives them.
func seen(t *testing.T, r *consulkit.Resolver, service, want string) discovery.Set {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := "nothing"
	for set, err := range r.Watch(ctx, service) {
		if got = fmt.Sprint(ids(set), err); err == nil && ids(set) == want {
			return set
		}
	}
	t.Fatalf("instances of %s = %s, want %q", service, got, want)
	return discovery.Set{}
}

func register(t *testing.T, c *consulkit.Client, cfg consulkit.RegistryConfig, in discovery.Instance) discovery.Lease {
	t.Helper()
	registry := must[*consulkit.Registry](t)(consulkit.NewRegistry(c, cfg))
	lease := must[discovery.Lease](t)(registry.Register(t.Context(), in))
	if err := lease.Renew(t.Context(), discovery.Health{}); err != nil {
		t.Fatal(err)
	}
	return lease
}

func TestRegistration(t *testing.T) {
	t.Parallel()
	a := startAgent(t, false, "")
	c := a.client(t)
	all := resolver(t, c)

	t.Run("tags and filters choose", func(t *testing.T) {
		for id, in := range map[string]discovery.Instance{
			"b1": {Version: "v1", Tags: []string{"blue", "eu"}}, "b2": {Version: "v2", Tags: []string{"blue"}}, "g": {Version: "v2", Tags: []string{"green", "eu"}},
		} {
			in.Service, in.ID, in.Addr = "tagged", id, "10.0.0.1:80"
			register(t, c, consulkit.RegistryConfig{}, in)
		}
		for want, cfg := range map[string]consulkit.ResolverConfig{
			"b1 b2 g": {},
			"b1 b2":   {Tags: []string{"blue"}},
			"b1":      {Tags: []string{"blue", "eu"}},
			"b2 g":    {Filter: `Service.Meta.version == "v2"`},
			"g":       {Tags: []string{"eu"}, Filter: `Service.Meta.version == "v2"`, AllowStale: true, Datacenter: "dc1"},
		} {
			seen(t, must[*consulkit.Resolver](t)(consulkit.NewResolver(c, cfg)), "tagged", want)
		}
	})
	t.Run("a datacentre that does not exist is an error, not an empty set", func(t *testing.T) {
		r := must[*consulkit.Resolver](t)(consulkit.NewResolver(c, consulkit.ResolverConfig{Datacenter: "mars"}))
		for set, err := range r.Watch(t.Context(), "tagged") {
			if err == nil || set.Service != "" {
				t.Errorf("Watch = %v, %v, want the zero Set and an error", set, err)
			}
			break
		}
	})
	t.Run("an HTTP check of the agent takes an instance out and in again", func(t *testing.T) {
		var ill atomic.Bool
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" || ill.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
		t.Cleanup(server.Close)
		lease := register(t, c, consulkit.RegistryConfig{TTL: time.Hour, Checks: consulkit.HTTPCheck("/readyz", 50*time.Millisecond)},
			discovery.Instance{Service: "checked", ID: "x", Addr: server.Listener.Addr().String()})
		seen(t, all, "checked", "x")
		ill.Store(true)
		seen(t, all, "checked", "")
		ill.Store(false)
		seen(t, all, "checked", "x")
		if err := lease.Deregister(t.Context()); err != nil {
			t.Errorf("Deregister = %v", err)
		}
	})
	t.Run("a registration that has taken the place of another is not ended by that one", func(t *testing.T) {
		in := discovery.Instance{Service: "replaced", ID: "x", Addr: "10.0.0.1:80"}
		old := register(t, c, consulkit.RegistryConfig{}, in)
		in.Addr = "10.0.0.2:80"
		register(t, c, consulkit.RegistryConfig{}, in)
		if err := old.Deregister(t.Context()); err != nil {
			t.Errorf("Deregister = %v, want nil", err)
		}
		if set := seen(t, all, "replaced", "x"); set.Instances[0].Addr != in.Addr {
			t.Errorf("address = %s, want %s", set.Instances[0].Addr, in.Addr)
		}
	})
	t.Run("two services may have instances of the same ID at one agent", func(t *testing.T) {
		for _, service := range []string{"public", "admin"} {
			register(t, c, consulkit.RegistryConfig{}, discovery.Instance{Service: service, Addr: "10.0.0.1:80"})
		}
		seen(t, all, "public", "10.0.0.1:80")
		seen(t, all, "admin", "10.0.0.1:80")
	})
	t.Run("what consul or this package cannot keep is refused by name", func(t *testing.T) {
		registry := must[*consulkit.Registry](t)(consulkit.NewRegistry(c, consulkit.RegistryConfig{}))
		for want, in := range map[string]discovery.Instance{
			"Instance.Weight is 70000": {Weight: 70000},
			`Instance.Meta has "zone"`: {Meta: map[string]string{"zone": "a"}},
			"Key":                      {Meta: map[string]string{"a b": "c"}},
		} {
			in.Service, in.Addr = "refused", "10.0.0.1:80"
			if _, err := registry.Register(t.Context(), in); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Register = %v, want %q", err, want)
			}
		}
	})
}

func TestConfigsAreChecked(t *testing.T) {
	t.Parallel()
	c := client(t, "127.0.0.1:1")
	for want, make := range map[string]func() error{
		"Config.HttpClient.Timeout is 1s, want 0": func() error {
			_, err := consulkit.New(&api.Config{HttpClient: &http.Client{Timeout: time.Second}})
			return err
		},
		"ResponseHeaderTimeout is 1s, want 0": func() error {
			_, err := consulkit.New(&api.Config{Transport: &http.Transport{ResponseHeaderTimeout: time.Second}})
			return err
		},
		"consulkit: client is nil": func() error { _, err := consulkit.NewResolver(nil, consulkit.ResolverConfig{}); return err },
		"ResolverConfig.Wait is -1s": func() error {
			_, err := consulkit.NewResolver(c, consulkit.ResolverConfig{Wait: -time.Second})
			return err
		},
		"ResolverConfig.Tags has an empty one": func() error {
			_, err := consulkit.NewResolver(c, consulkit.ResolverConfig{Tags: []string{""}})
			return err
		},
		"RegistryConfig.TTL is -1s": func() error {
			_, err := consulkit.NewRegistry(c, consulkit.RegistryConfig{TTL: -time.Second})
			return err
		},
		"DeregisterAfter is 1s, want at least 1m0s": func() error {
			_, err := consulkit.NewRegistry(c, consulkit.RegistryConfig{DeregisterAfter: time.Second})
			return err
		},
		"LockDelay is 2m0s, want at most 1m": func() error {
			_, err := consulkit.NewElection(c, "a", consulkit.ElectionConfig{LockDelay: 2 * time.Minute})
			return err
		},
	} {
		if err := make(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
}

// TestTLSAndTokens talks to an agent that wants HTTPS and denies everything to strangers.
func TestTLSAndTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := certificate(t, dir)
	a := startAgent(t, false, fmt.Sprintf(`
		tls { defaults { ca_file = %q, cert_file = %q, key_file = %q } }
		acl { enabled = true, default_policy = "deny", tokens { initial_management = "9f1c2d6a-0000-4000-8000-000000000001", agent = "9f1c2d6a-0000-4000-8000-000000000001", default = "9f1c2d6a-0000-4000-8000-000000000002" } }`,
		ca, ca, filepath.Join(dir, "key.pem")))
	connect := func(token string) *consulkit.Client {
		return must[*consulkit.Client](t)(consulkit.New(&api.Config{
			Address: fmt.Sprintf("127.0.0.1:%d", a.https), Scheme: "https", Token: token, TLSConfig: api.TLSConfig{CAFile: ca},
		}))
	}
	manager := connect("9f1c2d6a-0000-4000-8000-000000000001")
	eventually(t, "the agent knows its tokens", func() bool {
		_, _, err := manager.API().ACL().TokenReadSelf(nil)
		return err == nil
	})
	if _, _, err := manager.API().ACL().PolicyCreate(&api.ACLPolicy{Name: "order", Rules: `
		service "order" { policy = "write" }
		node_prefix "" { policy = "read" }`}, nil); err != nil {
		t.Fatal(err)
	}
	token, _, err := manager.API().ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{Name: "order"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}

	own := connect(token.SecretID)
	in := discovery.Instance{Service: "order", ID: "x", Addr: "10.0.0.1:80"}
	lease := register(t, own, consulkit.RegistryConfig{}, in)
	seen(t, resolver(t, own), "order", "x")
	if err := lease.Deregister(t.Context()); err != nil {
		t.Errorf("Deregister = %v, want nil", err)
	}
	seen(t, resolver(t, own), "order", "")

	in.Service = "payment"
	registry := must[*consulkit.Registry](t)(consulkit.NewRegistry(own, consulkit.RegistryConfig{}))
	if _, err := registry.Register(t.Context(), in); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("Register of a service that the token does not allow = %v, want Permission denied", err)
	}
	stranger := must[*consulkit.Client](t)(consulkit.New(&api.Config{Address: fmt.Sprintf("127.0.0.1:%d", a.https), Scheme: "https"}))
	for _, err := range resolver(t, stranger).Watch(t.Context(), "order") {
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("Watch without the CA = %v, want an error about the certificate", err)
		}
		break
	}
}

// certificate writes a self-signed certificate for 127.0.0.1, and returns its path.
func certificate(t *testing.T, dir string) string {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	keyDER := must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key))
	path := filepath.Join(dir, "cert.pem")
	for file, block := range map[string]*pem.Block{path: {Type: "CERTIFICATE", Bytes: der}, filepath.Join(dir, "key.pem"): {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}
