// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
)

// lookEvery is the time between two looks at whether an instance is ready, and how long one may take.
const lookEvery = 2 * time.Second

// readiness is where an instance says whether it is ready. What its listener shows is the gateway's certificate for
// people, or the one between services.
func (s Settings) readiness(in discovery.Instance) (url string) {
	secure := s.TLSCert != ""
	if in.Service == s.Name+"-"+assembly.Gateway {
		secure = s.PublicTLSCert != ""
	}
	return readyURL(in.Addr, secure)
}

func readyURL(addr string, secure bool) string {
	if secure {
		return "https://" + addr + "/readyz"
	}
	return "http://" + addr + "/readyz"
}

// looks is how the agent sees for itself whether an instance is ready. It has no certificate of ours and
// knows none: whoever can answer in an instance's place has its address already.
func (s Settings) looks(in discovery.Instance) api.AgentServiceChecks {
	checks := consulkit.HTTPCheck("/readyz", lookEvery)(in)
	for _, c := range checks {
		c.HTTP = s.readiness(in)
		c.TLSSkipVerify = strings.HasPrefix(c.HTTP, "https://")
	}
	return checks
}

// CheckReady asks the service at addr, which speaks TLS if it is secure, whether it is ready. It looks at no
// certificate, and is for addresses of this machine.
func CheckReady(ctx context.Context, addr string, secure bool) error {
	return askReady(ctx, readyURL(addr, secure))
}

func askReady(ctx context.Context, url string) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // whether it takes connections is part of the question
		// It never leaves the machine, and its certificate is for another name.
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, //nolint:gosec // see above
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("not ready: %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// introspection registers instances that look at themselves as the agent would: a renewal says whether the instance was
// ready just before. One that hangs as a whole renews nothing, and is seen until its lease ends.
type introspection struct {
	discovery.Registry
	readiness func(discovery.Instance) (url string)
}

// Register implements [discovery.Registry].
func (i introspection) Register(ctx context.Context, in discovery.Instance) (discovery.Lease, error) {
	lease, err := i.Registry.Register(ctx, in)
	if err != nil {
		return nil, err
	}
	return ownLook{lease, i.readiness(in)}, nil
}

type ownLook struct {
	discovery.Lease
	url string
}

// Renew implements [discovery.Lease].
func (l ownLook) Renew(ctx context.Context, h discovery.Health) error {
	look, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	if err := askReady(look, l.url); err != nil {
		h = discovery.Health{Failing: true, Note: err.Error()}
	}
	return l.Lease.Renew(ctx, h)
}
