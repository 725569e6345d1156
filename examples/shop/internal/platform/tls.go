// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Certificates are files of PEM by which a process shows who it is and knows others. They are looked at again
// with new connections, so that what replaces a certificate before it expires need not restart the process;
// while the new files make no sense the old ones stay in force.
type Certificates struct {
	cert, key, ca string
	log           *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	stamp   string
	current identity
}

type identity struct {
	own   *tls.Certificate // nil without a certificate of one's own
	roots *x509.CertPool   // nil for those of the system
}

// lookEvery bounds how often the files are looked at.
const lookEvery = time.Second

// LoadCertificates reads a certificate with its chain and key, and the certificates of the authorities that
// others are to be signed by. Cert and key may both be empty, for who has none, and so may ca, for the authorities of the
// system. The error names the file. Log may be nil for slog.Default().
func LoadCertificates(cert, key, ca string, log *slog.Logger) (*Certificates, error) {
	if log == nil {
		log = slog.Default()
	}
	c := &Certificates{cert: cert, key: key, ca: ca, log: log}
	var err error
	if c.stamp, err = c.stat(); err != nil {
		return nil, err
	}
	c.looked = time.Now()
	c.current, err = c.read()
	return c, err
}

// stat tells one state of the files from another.
func (c *Certificates) stat() (stamp string, err error) {
	for _, path := range []string{c.cert, c.key, c.ca} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		stamp += fmt.Sprint(info.ModTime().UnixNano(), " ", info.Size(), "\n")
	}
	return stamp, nil
}

func (c *Certificates) read() (id identity, err error) {
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return id, fmt.Errorf("%s, %s: %w", c.cert, c.key, err)
		}
		id.own = &pair
	}
	if c.ca != "" {
		text, err := os.ReadFile(c.ca)
		if err != nil {
			return id, err
		}
		id.roots = x509.NewCertPool()
		if !id.roots.AppendCertsFromPEM(text) {
			return id, fmt.Errorf("%s: has no certificate in it", c.ca)
		}
	}
	return id, nil
}

// now returns what the files say.
func (c *Certificates) now() identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < lookEvery {
		return c.current
	}
	c.looked = time.Now()
	stamp, err := c.stat()
	if err == nil && stamp == c.stamp {
		return c.current
	}
	var id identity
	if err == nil {
		id, err = c.read()
	}
	if err != nil {
		c.log.Warn("the certificates have changed and cannot be used; the old ones stay", "error", err)
		return c.current
	}
	c.stamp, c.current = stamp, id
	c.log.Info("the certificates have changed and are in use", "file", c.cert)
	return id
}

// protocols a server speaks: gRPC and HTTP/2 on the same port as HTTP/1.1.
var protocols = []string{"h2", "http/1.1"}

// Server returns the configuration of a listener. With authorities, a client's certificate is asked for and has
// to be theirs if there is one; see [Certificates.Require].
func (c *Certificates) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := c.now()
			if id.own == nil {
				return nil, errors.New("platform: a listener without a certificate")
			}
			cfg := &tls.Config{
				MinVersion: tls.VersionTLS12, NextProtos: protocols, Certificates: []tls.Certificate{*id.own},
				SessionTicketsDisabled: true, // every connection is held to the authorities of its time
			}
			if id.roots != nil {
				cfg.ClientCAs, cfg.ClientAuth = id.roots, tls.VerifyClientCertIfGiven
			}
			return cfg, nil
		},
	}
}

// Client returns the configuration of connections to a server of that name, or address, which it has to prove.
func (c *Certificates) Client(server string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: server,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if id := c.now(); id.own != nil {
				return id.own, nil
			}
			return new(tls.Certificate), nil
		},
		// The package's own check has its authorities fixed: this one makes the same check with those of now.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies
		VerifyConnection: func(s tls.ConnectionState) error {
			opts := x509.VerifyOptions{DNSName: server, Roots: c.now().roots, Intermediates: x509.NewCertPool()}
			for _, cert := range s.PeerCertificates[1:] {
				opts.Intermediates.AddCert(cert)
			}
			_, err := s.PeerCertificates[0].Verify(opts)
			return err
		},
	}
}

// Credentials are those of gRPC connections to a service. Without certificates they are none.
func (c *Certificates) Credentials(service string) credentials.TransportCredentials {
	if c == nil {
		return insecure.NewCredentials() // services are on one private network
	}
	return credentials.NewTLS(c.Client(service))
}

// Require lets requests pass that came with a certificate of the authorities. Those that ask how the service is
// have none: they come from the machine's own supervisor and the registry. Without authorities, or certificates
// at all, everybody may pass.
func (c *Certificates) Require(next http.Handler) http.Handler {
	if c == nil || c.ca == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.TLS != nil && len(r.TLS.VerifiedChains) > 0:
		case r.Method == http.MethodGet && (r.URL.Path == "/livez" || r.URL.Path == "/readyz" || r.URL.Path == "/metrics"):
		default:
			WriteProblem(w, &Error{Status: http.StatusForbidden, Code: "no-certificate", Detail: "this is for services with a certificate"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Beside returns the configuration of connections to who shows the certificate in these files, by whatever name: it is for
// a process of the same machine, which is known by them.
func Beside(cert, key string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies
		VerifyConnection: func(state tls.ConnectionState) error {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err == nil && !bytes.Equal(state.PeerCertificates[0].Raw, pair.Certificate[0]) {
				err = fmt.Errorf("what answers shows another certificate than that of %s", cert)
			}
			return err
		},
	}
}

// Wire makes HTTP calls to instances by TLS, each held to the name of the service that it is an instance of. A balancer
// is put in between: it calls [Wire.Below] with an address, and is called through [Wire.Above] with a name.
type Wire struct {
	certs *Certificates
	base  *http.Transport

	mu       sync.Mutex
	services map[string]*http.Transport
}

// NewWire returns the way by the certificates. Nil certificates leave everything as it is, for networks that are
// private already.
func NewWire(certs *Certificates) *Wire {
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.Proxy, base.MaxIdleConns, base.MaxIdleConnsPerHost = nil, 0, 128
	return &Wire{certs: certs, base: base, services: map[string]*http.Transport{}}
}

// Below is what the balancer calls.
func (w *Wire) Below() http.RoundTripper {
	if w.certs == nil {
		return w.base
	}
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		service, ok := r.Context().Value(serviceKey{}).(string)
		if !ok {
			return nil, errors.New("platform: a call to an instance of nothing")
		}
		secure := r.Clone(r.Context())
		secure.URL.Scheme = "https"
		return w.to(service).RoundTrip(secure)
	})
}

// Above is what calls the balancer.
func (w *Wire) Above(balancer http.RoundTripper) http.RoundTripper {
	if w.certs == nil {
		return balancer
	}
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		return balancer.RoundTrip(r.WithContext(context.WithValue(r.Context(), serviceKey{}, r.URL.Host)))
	})
}

// to returns the transport of the connections to one service: none of them is used for another.
func (w *Wire) to(service string) *http.Transport {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, ok := w.services[service]
	if !ok {
		t = w.base.Clone()
		t.TLSClientConfig = w.certs.Client(service)
		t.ForceAttemptHTTP2 = false // one connection for all calls would be one thing that can break
		w.services[service] = t
	}
	return t
}

// CloseIdleConnections closes the connections that nobody uses.
func (w *Wire) CloseIdleConnections() {
	w.base.CloseIdleConnections()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.services {
		t.CloseIdleConnections()
	}
}

type serviceKey struct{}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
