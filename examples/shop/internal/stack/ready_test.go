// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dovetail-go/dovetail/discovery"
)

// renewals is a registry, and the lease of it, that remembers what it was told last.
type renewals struct{ told []discovery.Health }

func (r *renewals) Register(context.Context, discovery.Instance) (discovery.Lease, error) {
	return r, nil
}

func (r *renewals) Renew(_ context.Context, h discovery.Health) error {
	r.told = append(r.told, h)
	return nil
}

func (r *renewals) Maintenance(context.Context, bool, string) error { return nil }

func (r *renewals) Deregister(context.Context) error { return nil }

func TestOwnLook(t *testing.T) {
	for name, serve := range map[string]func(http.Handler) *httptest.Server{"plain": httptest.NewServer, "by TLS": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			var status atomic.Int32
			status.Store(http.StatusOK)
			server := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/readyz" {
					t.Errorf("asked for %s, want /readyz", r.URL.Path)
				}
				w.WriteHeader(int(status.Load()))
				_, _ = w.Write([]byte("the database does not answer\n"))
			}))
			defer server.Close()
			s := Settings{Name: "shop"}
			if server.TLS != nil {
				s.TLSCert = "cert"
			}
			registry := &renewals{}
			lease, err := introspection{registry, s.readiness}.Register(t.Context(), discovery.Instance{Service: "shop-order", Addr: server.Listener.Addr().String()})
			if err != nil {
				t.Fatal(err)
			}
			// renewed is what the registry is told by a renewal of who believes to be well.
			renewed := func() discovery.Health {
				t.Helper()
				if err := lease.Renew(t.Context(), discovery.Health{}); err != nil {
					t.Fatal(err)
				}
				return registry.told[len(registry.told)-1]
			}
			if got := renewed(); got.Failing {
				t.Errorf("told %+v of a ready instance, want it passing", got)
			}
			status.Store(http.StatusServiceUnavailable)
			if got := renewed(); !got.Failing || !strings.Contains(got.Note, "503") || !strings.Contains(got.Note, "the database does not answer") {
				t.Errorf("told %+v of an instance that is not ready, want it failing and why", got)
			}
			status.Store(http.StatusOK)
			if got := renewed(); got.Failing {
				t.Errorf("told %+v of an instance that is ready again, want it passing", got)
			}
			server.Close()
			if got := renewed(); !got.Failing {
				t.Errorf("told %+v of an instance that takes no connections, want it failing", got)
			}
		})
	}
}

// An instance that is asked and does not answer has its renewal all the same.
func TestOwnLookAtWhoHangs(t *testing.T) {
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer server.Close()
	defer close(hang)
	registry := &renewals{}
	lease, err := introspection{registry, Settings{Name: "shop"}.readiness}.Register(t.Context(), discovery.Instance{Service: "shop-order", Addr: server.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Renew(t.Context(), discovery.Health{}); err != nil || len(registry.told) != 1 || !registry.told[0].Failing {
		t.Errorf("Renew = %v and told %+v, want it failing", err, registry.told)
	}
}
