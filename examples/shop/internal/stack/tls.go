// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// certificates are those by which services know each other. Nil if they trust their network.
func (s Settings) certificates(log *slog.Logger) (*platform.Certificates, error) {
	if s.TLSCert == "" {
		return nil, nil
	}
	c, err := platform.LoadCertificates(s.TLSCert, s.TLSKey, s.TLSCA, log)
	if err != nil {
		return nil, fmt.Errorf("%s, %s, %s: %w", TLSCertVar, TLSKeyVar, TLSCAVar, err)
	}
	return c, nil
}

// front are the certificates that a service's listener shows: the gateway's is for people, who have none
// themselves. Nil means plain HTTP.
func (s Settings) front(service string, between *platform.Certificates, log *slog.Logger) (*platform.Certificates, error) {
	if service != assembly.Gateway {
		return between, nil
	}
	if s.PublicTLSCert == "" {
		return nil, nil
	}
	c, err := platform.LoadCertificates(s.PublicTLSCert, s.PublicTLSKey, "", log)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", PublicTLSCertVar, PublicTLSKeyVar, err)
	}
	return c, nil
}

// ownGateway is the configuration of connections to the gateway by another name than people's. Nil if it speaks plain HTTP.
func (s Settings) ownGateway() *tls.Config {
	if s.PublicTLSCert == "" {
		return nil
	}
	return platform.Beside(s.PublicTLSCert, s.PublicTLSKey)
}

// server is the configuration of connections to a server of the stack by TLS, nil where the system's
// authorities will do.
func (s Settings) server(rawURL string, log *slog.Logger) (*tls.Config, error) {
	if s.ServersCA == "" {
		return nil, nil
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("cannot be read")
	}
	c, err := platform.LoadCertificates("", "", s.ServersCA, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ServersCAVar, err)
	}
	return c.Client(u.Hostname()), nil
}

// consul is the configuration of the agent's client.
func (s Settings) consul() *api.Config {
	cfg := &api.Config{Address: s.Consul}
	if strings.HasPrefix(s.Consul, "https://") {
		cfg.TLSConfig.CAFile = s.ServersCA
	}
	return cfg
}

// byDNS reads a name of DiscoveryDNS: with a port there are addresses to look up, without one there are SRV
// records.
func byDNS(name string) (*discovery.DNS, error) {
	if !strings.Contains(name, "{service}") {
		return nil, errors.New("has no {service} in it")
	}
	var cfg discovery.DNSConfig
	if host, port, err := net.SplitHostPort(name); err == nil {
		if cfg.Port, err = strconv.Atoi(port); err != nil || cfg.Port < 1 || cfg.Port > 65535 {
			return nil, errors.New("has a port that is none")
		}
		name = host
	}
	cfg.Every = 2 * time.Second // an instance that is replaced is nobody's for that long
	return discovery.NewDNS(name, cfg)
}
