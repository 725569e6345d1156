// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"time"
)

var errNoService = errors.New("discovery: service is empty, want a name")

// Instance is one running copy of a service. It is a value: never change the Tags and
// Meta of one that a resolver handed out.
type Instance struct {
	// ID is unique within the service and stable while the instance lives. Empty
	// means Addr.
	ID string `json:"id,omitempty"`
	// Service is the name under which callers ask for it.
	Service string `json:"service,omitempty"`
	// Addr is where it listens, as host:port.
	Addr string `json:"addr"`
	// Zone is where it runs, such as "eu-central-1a". Empty is a zone unknown, which
	// is nobody's own.
	Zone string `json:"zone,omitempty"`
	// Version is the version of its software.
	Version string `json:"version,omitempty"`
	// Weight is its share relative to the others. Zero means 1.
	Weight int `json:"weight,omitempty"`
	// Priority orders groups of instances: those with a higher number are used only
	// when those with a lower number cannot take the load (RFC 2782).
	Priority int `json:"priority,omitempty"`
	// Tags are labels to select by.
	Tags []string `json:"tags,omitempty"`
	// Meta is whatever else callers should know.
	Meta map[string]string `json:"meta,omitempty"`
}

// Validate reports the first field that is wrong, by name.
func (in Instance) Validate() error {
	if in.Service == "" {
		return errors.New("discovery: Instance.Service is empty, want a name")
	}
	host, port, err := net.SplitHostPort(in.Addr)
	if err != nil || host == "" {
		return fmt.Errorf("discovery: Instance.Addr is %q, want host:port", in.Addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("discovery: Instance.Addr is %q, want a port from 1 to 65535", in.Addr)
	}
	if in.Weight < 0 {
		return fmt.Errorf("discovery: Instance.Weight is %d, want 0 or more", in.Weight)
	}
	if in.Priority < 0 {
		return fmt.Errorf("discovery: Instance.Priority is %d, want 0 or more", in.Priority)
	}
	return nil
}

// Set is what a resolver knows about one service at one moment. It is immutable:
// it may be kept and shared, and must not be changed.
type Set struct {
	// Service is the name that was asked for.
	Service string
	// Instances are sorted by ID. None means that the service has no instances, which
	// is a fact and not an error.
	Instances []Instance
	// Revision grows with each change, within one watch.
	Revision uint64
	// At is when the source last vouched for these instances.
	At time.Time
	// Stale is true when the source cannot be asked at present: these are the last
	// instances known, as of At.
	Stale bool
}

// NewSet returns the set of the given instances, checked, copied and sorted by ID, with
// empty fields filled (ID from Addr, Service). Two instances with one ID are an error.
func NewSet(service string, instances []Instance) (Set, error) {
	if service == "" {
		return Set{}, errNoService
	}
	all := make([]Instance, len(instances))
	for i, in := range instances {
		in.ID = cmp.Or(in.ID, in.Addr)
		in.Service = cmp.Or(in.Service, service)
		if in.Service != service {
			return Set{}, fmt.Errorf("discovery: Instance.Service is %q, want %q", in.Service, service)
		}
		if err := in.Validate(); err != nil {
			return Set{}, err
		}
		in.Tags = slices.Clone(in.Tags)
		in.Meta = maps.Clone(in.Meta)
		all[i] = in
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
	for i := 1; i < len(all); i++ {
		if all[i].ID == all[i-1].ID {
			return Set{}, fmt.Errorf("discovery: two instances of %q have ID %q, want one", service, all[i].ID)
		}
	}
	return Set{Service: service, Instances: all, At: time.Now()}, nil
}

// Age is for how long nobody has vouched for the set: zero unless it is stale.
func (s Set) Age() time.Duration {
	if !s.Stale {
		return 0
	}
	return time.Since(s.At)
}

// Same reports whether s and o name the same service with the same instances,
// whatever their revision and age.
func (s Set) Same(o Set) bool {
	return s.Service == o.Service && slices.EqualFunc(s.Instances, o.Instances, func(a, b Instance) bool {
		return reflect.DeepEqual(a, b)
	})
}

// Resolver answers which instances serve a name.
//
// Watch yields the present set as soon as it is known, and then each change. An empty
// set says that the service has no instances. An error says something else: that the
// source cannot be asked at present. The set beside the error is the last one known, with
// Stale true, or the zero Set where nothing is known; the caller goes on with what it
// has. The watch goes on after an error: the resolver tries again by itself, paced and
// with jitter, and yields a set when the source is back.
//
// The sequence ends when ctx is done or the loop is left, and at no other time. Nothing needs to
// be closed: what Watch started has ended when the loop ends. Each use of the
// sequence is a watch of its own. Watch may be called from many goroutines.
//
// Package discoverytest checks an implementation against these sentences.
type Resolver interface {
	Watch(ctx context.Context, service string) iter.Seq2[Set, error]
}
