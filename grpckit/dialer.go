// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"

	// The client's side of health checks, which the service config switches on.
	_ "google.golang.org/grpc/health"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// scheme is that of the targets of a Dialer's connections.
const scheme = "dovetail"

// DialerConfig configures a [Dialer]. The zero DialerConfig is a sound default.
type DialerConfig struct {
	// Balancer configures the balancer of every service.
	Balancer balance.Config
	// Services configures the balancers of single services otherwise, by name.
	Services map[string]balance.Config
	// Key gives the key for balance.ConsistentHash: of the call's context, and its method as
	// /package.Service/Method. Nil means none.
	Key func(ctx context.Context, method string) string
	// Health asks every instance by the gRPC health checking protocol, and makes no calls to
	// one that says it is not serving: it leaves before its connections do. An instance
	// without a health service counts as serving.
	Health bool
	// Outcome says what the error of a call, nil included, tells about the instance. Nil means [Outcome].
	Outcome func(method string, err error) fault.Outcome
	// SlowAfter is the time from which a call that its deadline cuts off is a failure of the
	// instance; a shorter one was perhaps given too little time. Zero means 1 second,
	// negative never.
	SlowAfter time.Duration
}

// Dialer makes connections to services, whose calls are spread over the instances by
// package balance. It is safe for concurrent use.
type Dialer struct {
	resolver discovery.Resolver
	cfg      DialerConfig

	mu       sync.Mutex
	policies map[*policy]bool // those of open connections
}

// NewDialer returns a dialer that finds instances with the resolver.
func NewDialer(r discovery.Resolver, cfg DialerConfig) (*Dialer, error) {
	if _, err := balance.New(r, "any", cfg.Balancer); err != nil {
		return nil, err
	}
	for service, c := range cfg.Services {
		if _, err := balance.New(r, service, c); err != nil {
			return nil, fmt.Errorf("grpckit: DialerConfig.Services[%q]: %w", service, err)
		}
	}
	if cfg.Outcome == nil {
		cfg.Outcome = func(_ string, err error) fault.Outcome { return Outcome(err) }
	}
	cfg.SlowAfter = cmp.Or(cfg.SlowAfter, time.Second)
	return &Dialer{resolver: r, cfg: cfg, policies: map[*policy]bool{}}, nil
}

// Dial returns a connection to the service: to all of its instances, each connected when it is first
// picked. Transport credentials have to be among the options, as for grpc.NewClient; the
// service's name is the authority, and so the name that TLS expects. No proxy is used.
//
// The instances are watched from the first call, or Connect, until Close, and while the connection
// is in use: after grpc.WithIdleTimeout without calls, half an hour by default, what is
// known of them is forgotten.
func (d *Dialer) Dial(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if service == "" {
		return nil, errors.New("grpckit: service is empty, want a name")
	}
	return grpc.NewClient(scheme+":///"+url.PathEscape(service), append([]grpc.DialOption{
		grpc.WithResolvers(builder{d}),
		grpc.WithNoProxy(),
		grpc.WithChainStreamInterceptor(markAnswers),
	}, opts...)...)
}

// View returns the state of every service with a connection that is in use, sorted by name.
func (d *Dialer) View() []balance.View {
	d.mu.Lock()
	views := make([]balance.View, 0, len(d.policies))
	for p := range d.policies {
		views = append(views, p.balancer.View())
	}
	d.mu.Unlock()
	slices.SortFunc(views, func(x, y balance.View) int { return cmp.Compare(x.Service, y.Service) })
	return views
}

// outcome judges a call that began at start.
func (d *Dialer) outcome(ctx context.Context, method string, err error, start time.Time) fault.Outcome {
	if err != nil && ctx.Err() != nil {
		slow := d.cfg.SlowAfter > 0 && time.Since(start) >= d.cfg.SlowAfter
		if slow && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fault.Failure
		}
		return fault.Neutral
	}
	return d.cfg.Outcome(method, err)
}

// Outcome is the default of DialerConfig.Outcome. Unavailable, Internal, Unknown, DataLoss and
// DeadlineExceeded are failures of the instance; ResourceExhausted, Canceled and Unimplemented
// say nothing about it; everything else is an answer, and so a success.
func Outcome(err error) fault.Outcome {
	switch codeOf(err) {
	case codes.Unavailable, codes.Internal, codes.Unknown, codes.DataLoss, codes.DeadlineExceeded:
		return fault.Failure
	case codes.ResourceExhausted, codes.Canceled, codes.Unimplemented:
		return fault.Neutral
	}
	return fault.Success
}

// builder is the resolver that gRPC asks. It hands over the dialer, and leaves the instances to the
// policy, which needs more than their addresses.
type builder struct{ dialer *Dialer }

// Scheme implements resolver.Builder.
func (builder) Scheme() string { return scheme }

// Build implements resolver.Builder.
func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	config := `{"loadBalancingConfig":[{"` + policyName + `":{}}]}`
	if b.dialer.cfg.Health {
		config = `{"loadBalancingConfig":[{"` + policyName + `":{}}],"healthCheckConfig":{"serviceName":""}}`
	}
	return nothing{}, cc.UpdateState(resolver.State{
		Attributes:    attributes.New(handover{}, &handover{b.dialer, target.Endpoint()}),
		ServiceConfig: cc.ParseServiceConfig(config),
	})
}

// handover is what the policy gets from the resolver.
type handover struct {
	dialer  *Dialer
	service string
}

type nothing struct{}

func (nothing) ResolveNow(resolver.ResolveNowOptions) {}
func (nothing) Close()                                {}
