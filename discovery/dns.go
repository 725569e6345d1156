// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Lookup is the part of *net.Resolver that [DNS] uses.
type Lookup interface {
	// LookupSRV returns the SRV records of name; service and proto are empty.
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
	// LookupNetIP returns the addresses of host; network is ip, ip4 or ip6.
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// DNSConfig configures a [DNS]. The zero DNSConfig looks up SRV records.
type DNSConfig struct {
	// Port selects A and AAAA records, with this port for every address. Zero selects
	// SRV records, which carry their own.
	Port int
	// Network is "ip4" or "ip6" to use addresses of one family only, where hosts with
	// both would count twice. Empty means both. SRV records take no notice of it.
	Network string
	// Server is the host:port of the server to ask, such as the 127.0.0.1:8600 of a Consul
	// agent. It is also asked for the targets of SRV records, whose addresses become
	// the instances, as perhaps nobody else knows them. Empty means the servers of the system's
	// configuration.
	Server string
	// Every is the longest time between two lookups. Records that live shorter are looked
	// up again when their time is over, but not within a second. Zero means 10 seconds.
	Every time.Duration
	// Timeout bounds one lookup. Zero means 5 seconds.
	Timeout time.Duration
	// Lookup makes the lookups, every Every, as it does not tell for how long records live.
	// Nil means Go's own resolver; use net.DefaultResolver for that of the system.
	Lookup Lookup
}

// DNS is a resolver that asks the domain name system again and again.
//
// Of SRV records (RFC 2782) it takes target, port, weight and priority: balance uses a
// higher priority number only when the lower ones cannot take the load. A name that does not
// exist, or has no such records, is an empty set; a server that does not answer is an error.
type DNS struct {
	name string
	cfg  DNSConfig
}

var _ Resolver = (*DNS)(nil)

// NewDNS returns a resolver that looks up name, in which {service} stands for the service:
//
//	_http._tcp.{service}.prod.svc.cluster.local.   SRV records in Kubernetes
//	{service}.service.consul.                      SRV records of Consul
//	{service}.prod.svc.cluster.local.              addresses, with DNSConfig.Port
//
// End the name with a dot to skip the search domains.
func NewDNS(name string, cfg DNSConfig) (*DNS, error) {
	if name == "" {
		return nil, errors.New("discovery: name is empty, want a domain name")
	}
	if cfg.Port < 0 || cfg.Port > 65535 {
		return nil, fmt.Errorf("discovery: DNSConfig.Port is %d, want 0 to 65535", cfg.Port)
	}
	switch cfg.Network {
	case "":
		cfg.Network = "ip"
	case "ip4", "ip6":
	default:
		return nil, fmt.Errorf("discovery: DNSConfig.Network is %q, want ip4, ip6 or nothing", cfg.Network)
	}
	if cfg.Every < 0 {
		return nil, fmt.Errorf("discovery: DNSConfig.Every is %v, want 0 or more", cfg.Every)
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("discovery: DNSConfig.Timeout is %v, want 0 or more", cfg.Timeout)
	}
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	switch {
	case cfg.Lookup != nil && cfg.Server != "":
		return nil, errors.New("discovery: DNSConfig has both Server and Lookup, want one")
	case cfg.Server != "":
		if host, _, err := net.SplitHostPort(cfg.Server); err != nil || host == "" {
			return nil, fmt.Errorf("discovery: DNSConfig.Server is %q, want host:port", cfg.Server)
		}
		fallthrough
	case cfg.Lookup == nil:
		cfg.Lookup = listeningResolver(cfg.Server)
	}
	return &DNS{name, cfg}, nil
}

// Watch implements [Resolver].
func (d *DNS) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		feed := NewFeed(yield)
		if service == "" {
			feed.refuse(ctx, errNoService)
			return
		}
		soon := min(time.Second, d.cfg.Every)
		retry := soon
		for pause := time.Duration(0); ctx.Err() == nil && (pause == 0 || sleep(ctx, pause)); {
			set, live, err := d.lookup(ctx, service)
			if ctx.Err() != nil {
				return
			}
			var goOn bool
			if err != nil {
				// Ask again soon, then ever more slowly.
				pause, retry = retry, min(2*retry, d.cfg.Every)
				goOn = feed.Fail(fmt.Errorf("discovery: dns: %w", err))
			} else {
				pause, retry = min(max(live, soon), d.cfg.Every), soon
				goOn = feed.Set(set)
			}
			if !goOn {
				return
			}
		}
	}
}

// lookup returns the present set, and for how long it is good.
func (d *DNS) lookup(ctx context.Context, service string) (Set, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	life := &lifetime{least: d.cfg.Every}
	ctx = context.WithValue(ctx, lifetimeKey{}, life)
	name := strings.ReplaceAll(d.name, "{service}", service)
	var instances []Instance
	var err error
	if d.cfg.Port > 0 {
		var addrs []netip.Addr
		addrs, err = d.cfg.Lookup.LookupNetIP(ctx, d.cfg.Network, name)
		instances = fromAddrs(addrs, d.cfg.Port)
	} else {
		var records []*net.SRV
		_, records, err = d.cfg.Lookup.LookupSRV(ctx, "", "", name)
		instances = fromSRV(records)
	}
	if err != nil && !notFound(err) && len(instances) == 0 {
		return Set{}, 0, err
	}
	// LookupSRV returns an error beside the good records when others are malformed.
	if d.cfg.Server != "" && d.cfg.Port == 0 {
		if instances, err = d.addresses(ctx, instances); err != nil {
			return Set{}, 0, err
		}
	}
	set, err := NewSet(service, instances)
	return set, life.get(), err
}

func notFound(err error) bool {
	dnsErr, ok := errors.AsType[*net.DNSError](err)
	return ok && dnsErr.IsNotFound
}

// addresses puts the addresses of each target in its place. A target without an address is none.
func (d *DNS) addresses(ctx context.Context, targets []Instance) ([]Instance, error) {
	var all []Instance
	seen := map[string]bool{}
	for _, target := range targets {
		host, portText, err := net.SplitHostPort(target.Addr)
		if err != nil {
			return nil, err
		}
		port, err := strconv.Atoi(portText)
		if err != nil {
			return nil, err
		}
		addrs, err := d.cfg.Lookup.LookupNetIP(ctx, d.cfg.Network, host+".")
		if err != nil && !notFound(err) {
			return nil, err
		}
		for _, in := range fromAddrs(addrs, port) {
			if seen[in.Addr] {
				continue
			}
			seen[in.Addr] = true
			in.Priority = target.Priority
			if target.Weight > 0 {
				in.Weight = max(target.Weight/len(addrs), 1)
			}
			all = append(all, in)
		}
	}
	return all, nil
}

func fromAddrs(addrs []netip.Addr, port int) []Instance {
	seen := make(map[netip.AddrPort]bool, len(addrs))
	var instances []Instance
	for _, addr := range addrs {
		at := netip.AddrPortFrom(addr.Unmap(), uint16(port))
		if at.IsValid() && !seen[at] {
			seen[at] = true
			instances = append(instances, Instance{Addr: at.String()})
		}
	}
	return instances
}

// fromSRV turns SRV records into instances. A target of "." says that the service is not
// offered here (RFC 2782), so it is no instance.
func fromSRV(records []*net.SRV) []Instance {
	weighted := false
	for _, r := range records {
		weighted = weighted || r.Weight > 0
	}
	seen := make(map[string]bool, len(records))
	var instances []Instance
	for _, r := range records {
		host := strings.TrimSuffix(r.Target, ".")
		addr := net.JoinHostPort(host, strconv.Itoa(int(r.Port)))
		if host == "" || r.Port == 0 || seen[addr] {
			continue
		}
		seen[addr] = true
		in := Instance{Addr: addr, Priority: int(r.Priority)}
		if weighted {
			// Beside others, weight 0 means a very small chance, not none and not the default.
			in.Weight = max(100*int(r.Weight), 1)
		}
		instances = append(instances, in)
	}
	return instances
}
