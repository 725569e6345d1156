// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"

	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

const policyName = "dovetail_balance"

// gRPC finds load balancing policies by name in a registry of the program, and has no other way to
// be given one. What is registered has no state of its own.
func init() { balancer.Register(policyBuilder{}) }

type policyBuilder struct{}

// Name implements balancer.Builder.
func (policyBuilder) Name() string { return policyName }

// Build implements balancer.Builder.
func (policyBuilder) Build(cc balancer.ClientConn, _ balancer.BuildOptions) balancer.Balancer {
	return &policy{cc: cc, conns: map[string]*conn{}}
}

// policy is the balancer of one connection in gRPC's sense: it holds a connection to every
// instance that was picked, and lets a balance.Balancer pick.
type policy struct {
	cc       balancer.ClientConn
	dialer   *Dialer // this and the next are set once, before anything else happens
	balancer *balance.Balancer
	cancel   context.CancelFunc

	mu     sync.Mutex
	conns  map[string]*conn // by address; a new map at every change, for pickers to keep
	known  bool             // the resolver has spoken
	err    error            // the resolver's, while nothing is known
	last   error            // of a connection
	closed bool
}

// conn is the connection to one instance.
type conn struct {
	sub balancer.SubConn
	// state is a connectivity.State. A connection that failed stays in TransientFailure until it
	// is Ready again, so that calls fail instead of waiting for the next failure.
	state atomic.Int32
}

func (c *conn) is(s connectivity.State) bool { return connectivity.State(c.state.Load()) == s }

// connect starts a connection that nobody wanted until now.
func (c *conn) connect() {
	if c.state.CompareAndSwap(int32(connectivity.Idle), int32(connectivity.Connecting)) {
		c.sub.Connect()
	}
}

// UpdateClientConnState implements balancer.Balancer. The resolver speaks once.
func (p *policy) UpdateClientConnState(s balancer.ClientConnState) error {
	if p.dialer != nil {
		return nil
	}
	h, ok := s.ResolverState.Attributes.Value(handover{}).(*handover)
	if !ok {
		return fmt.Errorf("grpckit: policy %s without a grpckit.Dialer", policyName)
	}
	cfg, ok := h.dialer.cfg.Services[h.service]
	if !ok {
		cfg = h.dialer.cfg.Balancer
	}
	hook := cfg.Hooks.Change
	cfg.Hooks.Change = func(c balance.Change) {
		p.change(c)
		if hook != nil {
			hook(c)
		}
	}
	b, err := balance.New(h.dialer.resolver, h.service, cfg)
	if err != nil {
		return err
	}
	p.dialer, p.balancer = h.dialer, b
	h.dialer.mu.Lock()
	h.dialer.policies[p] = true
	h.dialer.mu.Unlock()
	p.mu.Lock()
	p.publish()
	p.mu.Unlock()
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	go func() { _ = b.Run(ctx) }() // until Close
	return nil
}

// change takes a word of the discovery's resolver.
func (p *policy) change(c balance.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.err = c.Err
	if c.Set.Service != "" || c.Err == nil {
		p.known = true
	}
	conns := make(map[string]*conn, len(c.Set.Instances))
	for _, in := range c.Set.Instances {
		if old := p.conns[in.Addr]; old != nil {
			conns[in.Addr] = old
		} else if conns[in.Addr] == nil {
			added, err := p.dial(in.Addr)
			if err != nil {
				return // the connection is being closed
			}
			conns[in.Addr] = added
		}
	}
	for addr, old := range p.conns {
		if conns[addr] == nil {
			old.sub.Shutdown() // calls under way are finished
		}
	}
	p.conns = conns
	p.publish()
}

func (p *policy) dial(addr string) (*conn, error) {
	c := &conn{}
	var err error
	//nolint:staticcheck // deprecated for several addresses only, of which there is one
	c.sub, err = p.cc.NewSubConn([]resolver.Address{{Addr: addr}}, balancer.NewSubConnOptions{
		HealthCheckEnabled: true, // as far as the service config says so
		StateListener:      func(s balancer.SubConnState) { p.heard(c, s) },
	})
	return c, err
}

// heard takes a change of a connection.
func (p *policy) heard(c *conn, s balancer.SubConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || s.ConnectivityState == connectivity.Shutdown {
		return
	}
	switch s.ConnectivityState {
	case connectivity.TransientFailure:
		p.last = s.ConnectionError
		c.state.Store(int32(connectivity.TransientFailure))
	case connectivity.Ready:
		c.state.Store(int32(connectivity.Ready))
	case connectivity.Idle:
		// It was wanted once: it will be again.
		if !c.is(connectivity.TransientFailure) {
			c.state.Store(int32(connectivity.Connecting))
		}
		c.sub.Connect()
	case connectivity.Connecting:
		if !c.is(connectivity.TransientFailure) {
			c.state.Store(int32(connectivity.Connecting))
		}
	}
	p.publish()
}

// publish tells gRPC the state, with a picker that knows it. The mutex is held.
func (p *policy) publish() {
	var ready, connecting, idle int
	for _, c := range p.conns {
		switch connectivity.State(c.state.Load()) {
		case connectivity.Ready:
			ready++
		case connectivity.Connecting:
			connecting++
		case connectivity.Idle:
			idle++
		}
	}
	pick := &picker{p: p, conns: p.conns}
	pick.skip = pick.unusable
	state := connectivity.TransientFailure
	switch {
	case ready > 0:
		state = connectivity.Ready
	case !p.known && p.err == nil:
		state, pick.err = connectivity.Connecting, balancer.ErrNoSubConnAvailable
	case !p.known:
		pick.err = fmt.Errorf("grpckit: %w: %w", balance.ErrNotReady, p.err)
	case connecting > 0:
		state = connectivity.Connecting
	case idle > 0:
		state = connectivity.Idle
	default:
		pick.down = p.last
	}
	p.cc.UpdateState(balancer.State{ConnectivityState: state, Picker: pick})
}

// ResolverError implements balancer.Balancer. Our resolver has none.
func (p *policy) ResolverError(error) {}

// UpdateSubConnState implements balancer.Balancer. It is not called, for each connection has a
// listener of its own.
func (p *policy) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

// ExitIdle implements balancer.Balancer.
func (p *policy) ExitIdle() {
	p.mu.Lock()
	conns := maps.Clone(p.conns)
	p.mu.Unlock()
	for _, c := range conns {
		c.connect()
	}
}

// Close implements balancer.Balancer.
func (p *policy) Close() {
	p.mu.Lock()
	p.closed = true
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		c.sub.Shutdown()
	}
	if p.dialer != nil {
		p.cancel()
		p.dialer.mu.Lock()
		delete(p.dialer.policies, p)
		p.dialer.mu.Unlock()
	}
}

// picker picks as long as the state stays as it is.
type picker struct {
	p     *policy
	conns map[string]*conn
	skip  func(addr string) bool
	err   error // instead of a pick
	down  error // why no instance can be reached; nil while one may be
}

// unusable reports whether there is no connection to the instance, and sees to it that there will be.
func (p *picker) unusable(addr string) bool {
	c := p.conns[addr]
	if c == nil {
		return true
	}
	c.connect()
	return !c.is(connectivity.Ready)
}

// Pick implements balancer.Picker. It does not block: once the resolver has spoken, neither does the
// balancer.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	if p.err != nil {
		return balancer.PickResult{}, p.err
	}
	d := p.p.dialer
	hint := balance.Hint{Skip: p.skip}
	if d.cfg.Key != nil {
		hint.Key = d.cfg.Key(info.Ctx, info.FullMethodName)
	}
	lease, err := p.p.balancer.PickFor(info.Ctx, hint)
	if err != nil {
		return balancer.PickResult{}, err
	}
	c := p.conns[lease.Addr()]
	if c == nil || !c.is(connectivity.Ready) {
		if c == nil || !c.is(connectivity.TransientFailure) || p.down == nil {
			lease.Done(fault.Neutral)
			return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
		}
		// Nobody can be reached. That the balancer hears of it lets calls spill over to other
		// zones and priorities.
		lease.Done(fault.Failure)
		return balancer.PickResult{}, fmt.Errorf("grpckit: no instance can be reached: %w", p.down)
	}
	call := &call{lease: lease}
	if a, ok := info.Ctx.Value(answerKey{}).(*answer); ok {
		a.call.Store(call)
	}
	start := time.Now()
	return balancer.PickResult{SubConn: c.sub, Done: func(done balancer.DoneInfo) {
		call.done(d.outcome(info.Ctx, info.FullMethodName, done.Err, start))
	}}, nil
}

// call is a lease that a stream and its end share.
type call struct {
	mu    sync.Mutex
	lease balance.Lease
}

func (c *call) answered(o fault.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lease.Answered(o)
}

func (c *call) done(o fault.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lease.Done(o)
}

// answer is where a stream finds the call that was picked for it.
type (
	answerKey struct{}
	answer    struct{ call atomic.Pointer[call] }
)

// markAnswers tells the balancer when a stream has its first answer. That is its latency, and not
// the time that it goes on.
func markAnswers(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	a := new(answer)
	stream, err := streamer(context.WithValue(ctx, answerKey{}, a), desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &markedStream{ClientStream: stream, answer: a}, nil
}

type markedStream struct {
	grpc.ClientStream
	answer *answer
	once   sync.Once
}

func (s *markedStream) mark(err error) {
	if err != nil {
		return // the end of the call says more
	}
	s.once.Do(func() {
		if c := s.answer.call.Load(); c != nil {
			c.answered(fault.Success)
		}
	})
}

// Header implements grpc.ClientStream.
func (s *markedStream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	if md != nil {
		s.mark(err)
	}
	return md, err
}

// RecvMsg implements grpc.ClientStream.
func (s *markedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.mark(err)
	return err
}
