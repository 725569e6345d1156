// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// Harm is what is done to one instance of a service on purpose, to see what the others make of
// it. The zero Harm is none.
type Harm struct {
	// Latency is how much later every request is served.
	Latency time.Duration `json:"latency_ns,omitempty"`
	// Errors is how many requests fail, in percent. Of those that change something, half are served and
	// only the answer is lost.
	Errors int `json:"errors,omitempty"`
	// Paused stops everything, as if the process were stopped: requests hang, nothing is consumed and
	// no worker gets further than its next statement.
	Paused bool `json:"paused,omitempty"`
	// Cut takes the broker away, in both directions.
	Cut bool `json:"cut,omitempty"`
	// Duplicate is how many deliveries come twice, Reorder how many are overtaken by those of other
	// keys or come back later, in percent.
	Duplicate int `json:"duplicate,omitempty"`
	Reorder   int `json:"reorder,omitempty"`
	// Down, Declining and Delay are moods of the payment provider, which nobody else has.
	Down      bool          `json:"down,omitempty"`
	Declining bool          `json:"declining,omitempty"`
	Delay     time.Duration `json:"delay_ns,omitempty"`
}

// Gate stands between one instance of a service and everything around it: who controls the gate
// decides what gets through. A nil Gate lets everything through and cannot be changed.
//
// One gate belongs to one life of a service: see [Gate.Kill].
type Gate struct {
	life context.Context // ends with Kill
	kill context.CancelFunc

	mu      sync.Mutex
	harm    Harm
	changed chan struct{} // closed when harm changes
	conns   map[net.Conn]struct{}
}

// ErrKilled is why a service ended that was killed through its gate.
var ErrKilled = errors.New("killed on purpose")

// ErrCut is why a connection cannot be made while the broker is cut off.
var ErrCut = errors.New("the broker is cut off on purpose")

// NewGate returns a gate that lets everything through.
func NewGate() *Gate {
	life, kill := context.WithCancel(context.Background())
	return &Gate{life: life, kill: kill, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
}

// Set changes what is done, at once: what waits at the gate goes on if it may.
func (g *Gate) Set(h Harm) {
	g.mu.Lock()
	if h == g.harm {
		g.mu.Unlock()
		return
	}
	g.harm = h
	close(g.changed)
	g.changed = make(chan struct{})
	var cut []net.Conn
	if h.Cut {
		for c := range g.conns {
			cut = append(cut, c)
		}
	}
	g.mu.Unlock()
	for _, c := range cut {
		_ = c.Close()
	}
}

// Kill ends this life of the service as SIGKILL ends a process: [Serve] cuts every connection and
// returns, statements fail and transactions do not commit, nothing is flushed and nothing acknowledged.
func (g *Gate) Kill() { g.kill() }

// killed ends when the service does by Kill. Nil, and so never, for a nil gate.
func (g *Gate) killed() <-chan struct{} {
	if g == nil {
		return nil
	}
	return g.life.Done()
}

// now returns what is done at present. The channel is closed when that changes.
func (g *Gate) now() (Harm, <-chan struct{}) {
	if g == nil {
		return Harm{}, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.harm, g.changed
}

// Harm returns what is done at present.
func (g *Gate) Harm() Harm {
	h, _ := g.now()
	return h
}

// wait returns when the harm is not so any more, with an error if the service is killed or the caller
// waits no longer.
func (g *Gate) wait(ctx context.Context, so func(Harm) bool) error {
	for {
		h, changed := g.now()
		select {
		case <-g.killed():
			return ErrKilled
		default:
		}
		if !so(h) {
			return nil
		}
		select {
		case <-changed:
		case <-g.killed():
			return ErrKilled
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func paused(h Harm) bool { return h.Paused }

// alive returns ctx with its end brought forward to the killing of the service.
func (g *Gate) alive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(g.life, cancel)
	return ctx, func() { stop(); cancel() }
}

func hit(percent int) bool { return percent > 0 && rand.IntN(100) < percent }

// awake makes every request wait while the service is paused.
func (g *Gate) awake(next http.Handler) http.Handler {
	if g == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.wait(r.Context(), paused) != nil {
			panic(http.ErrAbortHandler) // nobody waits, or nobody is there
		}
		next.ServeHTTP(w, r)
	})
}

// requests lets latency and errors have their way with the requests to a service. The operator's own get
// through, so that there is a way to end it.
func (g *Gate) requests(next http.Handler) http.Handler {
	if g == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := g.Harm()
		if h == (Harm{}) || strings.HasPrefix(r.URL.Path, "/ops") {
			next.ServeHTTP(w, r)
			return
		}
		if h.Latency > 0 {
			select {
			case <-time.After(h.Latency):
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}
		if !hit(h.Errors) {
			next.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodGet || hit(50) {
			WriteProblem(w, &Error{Status: http.StatusServiceUnavailable, Code: "chaos", Detail: "this request fails on purpose"})
			return
		}
		// The hard case for who called: it happened, and nobody says so.
		next.ServeHTTP(lostAnswer{http.Header{}}, r)
		panic(http.ErrAbortHandler)
	})
}

// lostAnswer takes an answer and keeps it from everybody.
type lostAnswer struct{ header http.Header }

func (l lostAnswer) Header() http.Header       { return l.header }
func (lostAnswer) Write(b []byte) (int, error) { return len(b), nil }
func (lostAnswer) WriteHeader(int)             {}
func (lostAnswer) Flush()                      {}

// Dial makes a connection that the gate can cut, for a client of the broker.
func (g *Gate) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil || g == nil {
		return conn, err
	}
	c := &cuttable{Conn: conn, gate: g}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.harm.Cut {
		_ = conn.Close()
		return nil, ErrCut
	}
	g.conns[c] = struct{}{}
	return c, nil
}

// cuttable is a connection that its gate knows.
type cuttable struct {
	net.Conn
	gate *Gate
}

func (c *cuttable) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

// Broker is next behind the gate: deliveries are repeated and overtaken, as the contract of
// [messaging.Handler] says that they may be. A broker in this process, which has no connection to cut, is
// also cut off and outlived here.
func (g *Gate) Broker(next Broker, inProcess bool) Broker {
	if g == nil {
		return next
	}
	b := &gatedBroker{Broker: next, gate: g, inProcess: inProcess}
	if keeper, ok := next.(deadLetters); ok {
		return struct {
			*gatedBroker
			deadLetters
		}{b, keeper}
	}
	return b
}

type gatedBroker struct {
	Broker
	gate      *Gate
	inProcess bool
}

func cut(h Harm) bool { return h.Cut || h.Paused }

// Publish implements [messaging.Publisher].
func (b *gatedBroker) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	if !b.inProcess {
		return b.Broker.Publish(ctx, msgs...)
	}
	ctx, cancel := b.gate.alive(ctx)
	defer cancel()
	_ = b.gate.wait(ctx, cut) // a context that has ended is for the broker to answer
	return b.Broker.Publish(ctx, msgs...)
}

// PublishAsync implements [messaging.AsyncPublisher] where the broker behind does. In this process there is
// a gate to wait at, which Publish does.
func (b *gatedBroker) PublishAsync(ctx context.Context, m *messaging.Message, done func(err error)) bool {
	async, ok := b.Broker.(messaging.AsyncPublisher)
	return ok && !b.inProcess && async.PublishAsync(ctx, m, done)
}

// Subscribe implements [messaging.Subscriber].
func (b *gatedBroker) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	line := &line{gate: b.gate, next: h, inProcess: b.inProcess, ended: ctx, done: make(chan struct{})}
	return b.Broker.Subscribe(ctx, s, line)
}

// line is the way from the broker to one handler.
type line struct {
	gate      *Gate
	next      messaging.Handler
	inProcess bool
	ended     context.Context // the subscription's

	mu   sync.Mutex
	done chan struct{} // closed when a delivery has been handled
}

// notNow sends a delivery back without an attempt used up: it comes again.
func notNow(err error) error {
	return &fault.Rejection{By: "gate", RetryAfter: 50 * time.Millisecond, Err: err}
}

// Handle implements [messaging.Handler].
func (l *line) Handle(ctx context.Context, d *messaging.Delivery) error {
	if !l.inProcess {
		return l.unsettled(ctx, d)
	}
	// No longer than the subscription: a drain must not wait for what is cut off.
	if err := l.gate.wait(l.ended, cut); err != nil {
		return notNow(err)
	}
	run, cancel := l.gate.alive(ctx)
	defer cancel()
	err := l.unsettled(run, d)
	if dead := l.gate.life.Err() != nil; dead || l.gate.Harm().Cut {
		return notNow(errors.Join(ErrCut, err)) // whatever came of it, the acknowledgement does not get through
	}
	return err
}

// overtakenBy is how long a delivery that is to be overtaken waits for that.
const overtakenBy = 250 * time.Millisecond

// unsettled hands a delivery on, perhaps late and perhaps twice. One that is held back holds back its own
// key, as far as the subscription is ordered: that is the broker's promise, and only other keys overtake.
func (l *line) unsettled(ctx context.Context, d *messaging.Delivery) error {
	h := l.gate.Harm()
	if hit(h.Reorder) {
		if hit(50) {
			return notNow(errors.New("sent back on purpose"))
		}
		l.mu.Lock()
		done := l.done
		l.mu.Unlock()
		select {
		case <-done:
		case <-time.After(overtakenBy):
		case <-ctx.Done():
		case <-l.ended.Done():
		}
	}
	err := l.next.Handle(ctx, d)
	l.mu.Lock()
	close(l.done)
	l.done = make(chan struct{})
	l.mu.Unlock()
	if err == nil && hit(h.Duplicate) {
		again := *d
		again.Redelivered = true
		err = l.next.Handle(ctx, &again)
	}
	return err
}
