// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/discovery"
)

// ResolverConfig configures a [Resolver]. The zero ResolverConfig is a sound default.
type ResolverConfig struct {
	// Datacenter is the one to ask. Empty means the client's, or the agent's own.
	Datacenter string
	// Tags must all be on an instance. None means that tags do not matter.
	Tags []string
	// Filter is an expression that an instance must meet, such as
	// Service.Meta.version == "v2". Empty means none. See
	// https://developer.hashicorp.com/consul/api-docs/features/filtering.
	Filter string
	// Warning takes instances too of which a check is in the state warning, with their
	// weight for warnings.
	Warning bool
	// AllowStale lets any server answer, not the leader alone: watches then go on while there
	// is no leader, and may lag behind by some milliseconds.
	AllowStale bool
	// Wait is the longest time that one query waits for a change. Zero means 1 minute.
	Wait time.Duration
	// Settle is for how long after an outage a set is held back that lacks instances known
	// before. An agent or server that comes back does not know all at once: registrations
	// that it lost are made again within a second or two, and its checks begin as
	// critical. Zero means 10 seconds, negative not at all.
	Settle time.Duration
	// Logger receives what is wrong with single instances. Nil means slog.Default().
	Logger *slog.Logger
}

// Resolver follows the healthy instances of services in Consul's catalog: those of which every
// check passes, the node's included. Each watch is one blocking query at a time. It is safe for
// concurrent use.
type Resolver struct {
	client *Client
	cfg    ResolverConfig
}

var _ discovery.Resolver = (*Resolver)(nil)

// NewResolver returns a resolver that asks the client's agent.
func NewResolver(c *Client, cfg ResolverConfig) (*Resolver, error) {
	if c == nil {
		return nil, errors.New("consulkit: client is nil, want one")
	}
	if err := checkWait("ResolverConfig.Wait", cfg.Wait); err != nil {
		return nil, err
	}
	if slices.Contains(cfg.Tags, "") {
		return nil, errors.New("consulkit: ResolverConfig.Tags has an empty one, want names")
	}
	cfg.Tags = slices.Clone(cfg.Tags)
	cfg.Wait = cmp.Or(cfg.Wait, time.Minute)
	cfg.Settle = cmp.Or(cfg.Settle, 10*time.Second)
	return &Resolver{c, cfg}, nil
}

// Watch implements discovery.Resolver.
func (r *Resolver) Watch(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		feed := discovery.NewFeed(yield)
		if service == "" {
			if feed.Fail(errors.New("consulkit: service is empty, want a name")) {
				<-ctx.Done()
			}
			return
		}
		var (
			queries poll
			last    discovery.Set // the one yielded last
			outage  bool
			settled time.Time // the time from which the answers are believed whatever they lack
			entries []*api.ServiceEntry
		)
		base := api.QueryOptions{Datacenter: r.cfg.Datacenter, Filter: r.cfg.Filter, AllowStale: r.cfg.AllowStale}
		ask := func(opts *api.QueryOptions) (meta *api.QueryMeta, err error) {
			entries, meta, err = r.client.api.Health().ServiceMultipleTags(service, r.cfg.Tags, !r.cfg.Warning, opts)
			return meta, err
		}
		for held := false; ; {
			wait := r.cfg.Wait
			if held {
				wait = min(wait, max(time.Until(settled), time.Millisecond))
			}
			reset, err := queries.next(ctx, wait, base, ask)
			if ctx.Err() != nil {
				return
			}
			var set discovery.Set
			if err == nil {
				set, err = discovery.NewSet(service, r.instances(service, entries))
			}
			if err != nil {
				outage, held = true, false
				if !feed.Fail(fmt.Errorf("consulkit: instances of %s: %w", service, err)) {
					return
				}
				continue
			}
			if outage || reset {
				outage, settled = false, time.Now().Add(r.cfg.Settle)
			}
			if held = lacks(set, last) && time.Now().Before(settled); held {
				continue
			}
			last = set
			if !feed.Set(set) {
				return
			}
		}
	}
}

// lacks reports whether an instance of the old set is not in the new one.
func lacks(set, old discovery.Set) bool {
	return slices.ContainsFunc(old.Instances, func(in discovery.Instance) bool {
		_, found := slices.BinarySearchFunc(set.Instances, in.ID, func(x discovery.Instance, id string) int { return cmp.Compare(x.ID, id) })
		return !found
	})
}

// instances returns the instances of the answer that can be called.
func (r *Resolver) instances(service string, entries []*api.ServiceEntry) []discovery.Instance {
	all := make([]discovery.Instance, 0, len(entries))
	taken := map[string]bool{}
	for _, e := range entries {
		status := e.Checks.AggregatedStatus()
		if status != api.HealthPassing && (!r.cfg.Warning || status != api.HealthWarning) {
			continue
		}
		in := instance(e, status)
		if in.ID == "" || taken[in.ID] {
			// Consul's own IDs are unique on their node only.
			in.ID = e.Node.Node + "/" + e.Service.ID
		}
		// One that somebody registered without a port must not hide the others.
		if err := in.Validate(); err != nil || taken[in.ID] {
			cmp.Or(r.cfg.Logger, slog.Default()).Warn("instance left out", "service", service, "instance", in.ID, "node", e.Node.Node, "error", err)
			continue
		}
		taken[in.ID] = true
		all = append(all, in)
	}
	return all
}

// instance returns the instance that e describes, without an ID if it was not registered by a [Registry].
func instance(e *api.ServiceEntry, status string) discovery.Instance {
	s := e.Service
	in := discovery.Instance{
		ID: s.Meta[metaID], Service: s.Service, Addr: net.JoinHostPort(cmp.Or(s.Address, e.Node.Address), strconv.Itoa(s.Port)),
		Zone: s.Meta[metaZone], Version: s.Meta[metaVersion], Weight: s.Weights.Passing,
	}
	if status == api.HealthWarning {
		in.Weight = s.Weights.Warning
	}
	if in.Zone == "" {
		switch {
		case s.Locality != nil:
			in.Zone = s.Locality.Zone
		case e.Node.Locality != nil:
			in.Zone = e.Node.Locality.Zone
		}
	}
	if priority, err := strconv.Atoi(s.Meta[metaPriority]); err == nil {
		in.Priority = max(priority, 0)
	}
	if len(s.Tags) > 0 {
		in.Tags = s.Tags
	}
	for key, value := range s.Meta {
		switch key {
		case metaID, metaPriority, metaZone, metaVersion:
		default:
			if in.Meta == nil {
				in.Meta = map[string]string{}
			}
			in.Meta[key] = value
		}
	}
	return in
}
