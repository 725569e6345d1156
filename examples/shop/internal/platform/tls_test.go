// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// secured is a server with the certificate of the service "order".
func secured(t *testing.T, certs *Certificates) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(certs.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host)
	})))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.TLS = certs.Server()
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

// call asks through a wire whose balancer knows one instance.
func call(certs *Certificates, service, addr, path string) (int, error) {
	wire := NewWire(certs)
	defer wire.CloseIdleConnections()
	balancer := roundTripper(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.Host, r.URL.Host = r.URL.Host, addr
		return wire.Below().RoundTrip(r)
	})
	client := &http.Client{Transport: wire.Above(balancer)}
	resp, err := client.Get("http://" + service + path)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	ca := testca.New(t, dir)
	load := func(t *testing.T, cert, key, ca string) *Certificates {
		t.Helper()
		c, err := LoadCertificates(cert, key, ca, quiet())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	orderCert, orderKey := ca.Issue(t, "order", "order")
	gatewayCert, gatewayKey := ca.Issue(t, "gateway", "gateway")
	order := load(t, orderCert, orderKey, ca.File)
	server := secured(t, order)
	addr := server.Listener.Addr().String()

	t.Run("services with certificates of the authority reach each other", func(t *testing.T) {
		if status, err := call(load(t, gatewayCert, gatewayKey, ca.File), "order", addr, "/orders"); status != http.StatusOK {
			t.Errorf("GET = %d, %v; want 200", status, err)
		}
	})
	t.Run("an instance has to be one of the service that was called", func(t *testing.T) {
		_, err := call(load(t, gatewayCert, gatewayKey, ca.File), "payment", addr, "/orders")
		if wrong := (x509.HostnameError{}); !errors.As(err, &wrong) {
			t.Errorf("GET = %v, want that the certificate is not payment's", err)
		}
	})
	t.Run("without a certificate there is health and nothing else", func(t *testing.T) {
		nobody := load(t, "", "", ca.File)
		for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/metrics": 200, "/orders": 403, "/livez/../orders": 403, "/ops/outbox": 403} {
			if status, err := call(nobody, "order", addr, path); status != want {
				t.Errorf("GET %s = %d, %v; want %d", path, status, err, want)
			}
		}
	})
	t.Run("an authority of somebody else is nobody's", func(t *testing.T) {
		other := testca.New(t, t.TempDir())
		cert, key := other.Issue(t, "gateway", "gateway")
		if _, err := call(load(t, cert, key, ca.File), "order", addr, "/readyz"); err == nil {
			t.Error("a client of another authority was let in")
		}
		_, err := call(load(t, gatewayCert, gatewayKey, other.File), "order", addr, "/readyz")
		if unknown := (x509.UnknownAuthorityError{}); !errors.As(err, &unknown) {
			t.Errorf("GET = %v, want that the server's authority is unknown", err)
		}
	})
	t.Run("what cannot be used is said at once, with the file", func(t *testing.T) {
		empty := filepath.Join(t.TempDir(), "empty.pem")
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, files := range [][3]string{{empty, orderKey, ""}, {orderCert, gatewayKey, ""}, {"", "", empty}, {"", "", empty + ".not"}} {
			_, err := LoadCertificates(files[0], files[1], files[2], nil)
			if err == nil || !strings.Contains(err.Error(), dir) && !strings.Contains(err.Error(), empty) {
				t.Errorf("LoadCertificates(%q) = %v, want an error that names a file", files, err)
			}
		}
	})
}

// serial is the number of the certificate that the server shows.
func serial(t *testing.T, addr string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is looked at, not believed
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// later gives a file another date, whatever the file system's clock is.
func later(t *testing.T, path string, by time.Duration) {
	t.Helper()
	at := time.Now().Add(by)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestCertificatesThatChange(t *testing.T) {
	dir := t.TempDir()
	ca := testca.New(t, dir)
	cert, key := ca.Issue(t, "order", "order")
	certs, err := LoadCertificates(cert, key, ca.File, quiet())
	if err != nil {
		t.Fatal(err)
	}
	addr := secured(t, certs).Listener.Addr().String()
	first := serial(t, addr)
	// lookAgain makes the next connection look at the files, without waiting for it.
	lookAgain := func() {
		certs.mu.Lock()
		defer certs.mu.Unlock()
		certs.looked = time.Time{}
	}

	t.Run("broken files leave the old ones in force", func(t *testing.T) {
		if err := os.WriteFile(cert, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		lookAgain()
		if now := serial(t, addr); now != first {
			t.Errorf("serial = %s, want %s as before", now, first)
		}
	})
	t.Run("new files are used by new connections", func(t *testing.T) {
		ca.Issue(t, "order", "order")
		later(t, cert, time.Minute)
		lookAgain()
		if now := serial(t, addr); now == first {
			t.Errorf("serial = %s, want a new one", now)
		}
	})
	t.Run("a new authority is believed, and the old one is not", func(t *testing.T) {
		clientDir := t.TempDir()
		newCA := testca.New(t, clientDir)
		newCert, newKey := newCA.Issue(t, "gateway", "gateway")
		// The file of the authorities holds both for a while, so that everybody can change in turn.
		both, err := os.ReadFile(ca.File)
		if err != nil {
			t.Fatal(err)
		}
		more, err := os.ReadFile(newCA.File)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ca.File, append(both, more...), 0o600); err != nil {
			t.Fatal(err)
		}
		later(t, ca.File, 2*time.Minute)
		lookAgain()
		client, err := LoadCertificates(newCert, newKey, ca.File, quiet())
		if err != nil {
			t.Fatal(err)
		}
		if status, err := call(client, "order", addr, "/orders"); status != http.StatusOK {
			t.Errorf("GET = %d, %v; want 200 with the new authority", status, err)
		}
		if err := os.WriteFile(ca.File, both, 0o600); err != nil {
			t.Fatal(err)
		}
		later(t, ca.File, 3*time.Minute)
		lookAgain()
		if _, err := call(client, "order", addr, "/orders"); err == nil {
			t.Error("a client of an authority that was taken back was let in")
		}
	})
}
