// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/discovery"
)

// The metadata under which the fields of an instance are kept that Consul does not have.
// Zone and version are plain names, because others write them too.
const (
	metaID       = "dovetail-id"
	metaPriority = "dovetail-priority"
	metaZone     = "zone"
	metaVersion  = "version"
)

// RegistryConfig configures a [Registry]. The zero RegistryConfig is a sound default.
type RegistryConfig struct {
	// TTL is how long an instance is seen after its last renewal. Zero means 15 seconds.
	TTL time.Duration
	// DeregisterAfter is how long after that the agent forgets it. Consul's least is 1 minute,
	// and it looks every 30 seconds. Zero means 10 minutes, negative never.
	DeregisterAfter time.Duration
	// Checks returns checks that the agent makes, beside the renewals: an instance is seen
	// while all pass. Nil means none. See [HTTPCheck].
	Checks func(discovery.Instance) api.AgentServiceChecks
}

// Registry registers instances with the agent. Its leases are TTL checks: a renewal is one
// request to the agent, which passes on to the servers only what has changed. Zone, version, ID
// and priority are kept as metadata. It is safe for concurrent use.
type Registry struct {
	client *Client
	cfg    RegistryConfig
}

var _ discovery.Registry = (*Registry)(nil)

// NewRegistry returns a registry that registers with the client's agent, which should be the one on
// the same machine: its loss is then the machine's.
func NewRegistry(c *Client, cfg RegistryConfig) (*Registry, error) {
	if c == nil {
		return nil, errors.New("consulkit: client is nil, want one")
	}
	if cfg.TTL < 0 {
		return nil, fmt.Errorf("consulkit: RegistryConfig.TTL is %v, want 0 or more", cfg.TTL)
	}
	if cfg.DeregisterAfter > 0 && cfg.DeregisterAfter < time.Minute {
		return nil, fmt.Errorf("consulkit: RegistryConfig.DeregisterAfter is %v, want at least %v", cfg.DeregisterAfter, time.Minute)
	}
	cfg.TTL = cmp.Or(cfg.TTL, 15*time.Second)
	cfg.DeregisterAfter = cmp.Or(cfg.DeregisterAfter, 10*time.Minute)
	return &Registry{c, cfg}, nil
}

// HTTPCheck returns, for RegistryConfig.Checks, a check that wants a 2xx answer to GET path from the
// instance. The agent makes it at the given interval, which is the time it may take too. Until
// the first one the instance's own renewals vouch for it.
func HTTPCheck(path string, every time.Duration) func(discovery.Instance) api.AgentServiceChecks {
	return func(in discovery.Instance) api.AgentServiceChecks {
		return api.AgentServiceChecks{{
			Name: "GET " + path, HTTP: "http://" + in.Addr + path, Interval: every.String(), Timeout: every.String(),
			Status: api.HealthPassing,
		}}
	}
}

// Register implements discovery.Registry. Consul wants services to have names that can be
// parts of domain names, a weight of at most 65535, and at most 64 entries of metadata with keys
// of letters, digits, - and _.
func (r *Registry) Register(ctx context.Context, in discovery.Instance) (discovery.Lease, error) {
	in.ID = cmp.Or(in.ID, in.Addr)
	registration, err := r.registration(in)
	if err != nil {
		return nil, err
	}
	l := &lease{client: r.client, service: in.Service, id: in.ID, serviceID: registration.ID, ttl: r.cfg.TTL, renewed: time.Now()}
	// A check of its own for each registration: when another one takes its place, this lease
	// gets to know it, and cannot take the other one away.
	l.checkID = "renewals:" + registration.ID + ":" + rand.Text()
	ttl := &api.AgentServiceCheck{CheckID: l.checkID, Name: "renewals", TTL: r.cfg.TTL.String(), Status: api.HealthCritical}
	if r.cfg.DeregisterAfter > 0 {
		ttl.DeregisterCriticalServiceAfter = r.cfg.DeregisterAfter.String()
	}
	registration.Checks = api.AgentServiceChecks{ttl}
	if r.cfg.Checks != nil {
		registration.Checks = append(registration.Checks, r.cfg.Checks(in)...)
	}
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	if err := r.client.api.Agent().ServiceRegisterOpts(registration, opts); err != nil {
		return nil, fmt.Errorf("consulkit: register %s of %s: %w", in.ID, in.Service, err)
	}
	return l, nil
}

// registration returns what the agent is told about the instance.
func (r *Registry) registration(in discovery.Instance) (*api.AgentServiceRegistration, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	const most = 65535
	if in.Weight > most {
		return nil, fmt.Errorf("consulkit: Instance.Weight is %d, want at most %d", in.Weight, most)
	}
	host, portText, err := net.SplitHostPort(in.Addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, err
	}
	meta := maps.Clone(in.Meta)
	if meta == nil {
		meta = map[string]string{}
	}
	priority := ""
	if in.Priority > 0 {
		priority = strconv.Itoa(in.Priority)
	}
	for _, own := range []struct{ key, value string }{{metaID, in.ID}, {metaPriority, priority}, {metaZone, in.Zone}, {metaVersion, in.Version}} {
		if _, taken := meta[own.key]; taken {
			return nil, fmt.Errorf("consulkit: Instance.Meta has %q, want that name left to the field of the instance", own.key)
		}
		if own.value != "" {
			meta[own.key] = own.value
		}
	}
	weight := max(in.Weight, 1)
	return &api.AgentServiceRegistration{
		// IDs of instances are unique within a service only, those of Consul within an agent.
		ID: in.Service + ":" + in.ID, Name: in.Service, Address: host, Port: port, Tags: in.Tags, Meta: meta,
		Weights: &api.AgentWeights{Passing: weight, Warning: weight},
	}, nil
}

// lease is one registration with the agent.
type lease struct {
	client                          *Client
	service, id, serviceID, checkID string
	ttl                             time.Duration
	renewed                         time.Time
}

// Renew implements discovery.Lease.
func (l *lease) Renew(ctx context.Context, h discovery.Health) error {
	// Consul would take a late renewal. But in the meantime the instance was not seen, which its
	// owner should know.
	if time.Since(l.renewed) > l.ttl {
		return l.lost(errors.New("not renewed in time"))
	}
	status := api.HealthPassing
	if h.Failing {
		status = api.HealthCritical
	}
	start := time.Now()
	if err := l.update(ctx, h.Note, status); err != nil {
		return err
	}
	l.renewed = start
	return nil
}

func (l *lease) update(ctx context.Context, note, status string) error {
	err := l.client.api.Agent().UpdateTTLOpts(l.checkID, note, status, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err == nil:
		return nil
	case unknown(err):
		return l.lost(err)
	}
	return fmt.Errorf("consulkit: renew %s of %s: %w", l.id, l.service, err)
}

func (l *lease) lost(why error) error {
	return fmt.Errorf("consulkit: %s of %s: %w: %w", l.id, l.service, discovery.ErrLeaseLost, why)
}

// Maintenance implements discovery.Lease.
func (l *lease) Maintenance(ctx context.Context, on bool, reason string) error {
	agent, opts := l.client.api.Agent(), (&api.QueryOptions{}).WithContext(ctx)
	var err error
	if on {
		err = agent.EnableServiceMaintenanceOpts(l.serviceID, reason, opts)
	} else {
		err = agent.DisableServiceMaintenanceOpts(l.serviceID, opts)
	}
	switch {
	case err == nil:
		return nil
	case unknown(err):
		return l.lost(err)
	}
	return fmt.Errorf("consulkit: maintenance of %s of %s: %w", l.id, l.service, err)
}

// Deregister implements discovery.Lease. The instance goes out of the sets first, which an
// agent remembers that is lost between the two steps. A registration that has taken the place
// of this one stays.
func (l *lease) Deregister(ctx context.Context) error {
	err := l.update(ctx, "deregistered", api.HealthCritical)
	if errors.Is(err, discovery.ErrLeaseLost) {
		return nil
	}
	if err == nil {
		err = l.Maintenance(ctx, true, "deregistered")
	}
	if err == nil {
		err = l.client.api.Agent().ServiceDeregisterOpts(l.serviceID, (&api.QueryOptions{}).WithContext(ctx))
	}
	if err == nil || unknown(err) || errors.Is(err, discovery.ErrLeaseLost) {
		return nil
	}
	return fmt.Errorf("consulkit: deregister %s of %s: %w", l.id, l.service, err)
}
