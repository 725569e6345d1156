// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Direction is a way through a Proxy.
type Direction uint8

const (
	// ToServer is from the clients to the server.
	ToServer Direction = 1 << iota
	// ToClient is from the server to the clients.
	ToClient
	// Both is ToServer and ToClient.
	Both = ToServer | ToClient
)

// Proxy forwards TCP connections to a server and breaks them on demand. Faults act on
// the connections that exist and on those made later, until [Proxy.Heal]; several can
// act at a time. All methods may be called at any time from any goroutine.
type Proxy struct {
	target             string
	listener           net.Listener
	toServer, toClient way
	wg                 sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{}
	down  bool
}

// StartProxy listens on a free port of 127.0.0.1 and forwards to target, a host:port.
// Close ends it.
func StartProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // listening locally does not wait
	if err != nil {
		return nil, fmt.Errorf("messagingtest: proxy: %w", err)
	}
	p := &Proxy{target: target, listener: l, conns: make(map[*conn]struct{})}
	p.toServer.changed = make(chan struct{})
	p.toClient.changed = make(chan struct{})
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is the host:port to connect to instead of the server's.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close resets all connections and ends the proxy.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.Down()
	p.wg.Wait()
	return err
}

// Conns returns how many connections there are.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Forwarded returns how many bytes arrived by way of d so far.
func (p *Proxy) Forwarded(d Direction) int64 {
	var n int64
	for _, w := range p.ways(d) {
		n += w.forwarded.Load()
	}
	return n
}

// Cut resets every connection at both ends. New ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.reset()
	}
}

// Down resets every connection, and each new one, until Heal.
func (p *Proxy) Down() {
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
	p.Cut()
}

// CutAfter resets a connection when n more bytes arrived by way of d, all connections
// together: between two frames, or in the middle of one. It happens once.
func (p *Proxy) CutAfter(d Direction, n int64) {
	p.set(d, func(f *faults) { f.cut, f.left = true, n })
}

// Stall holds the bytes of d back, as a network does that loses every packet: the
// connections stay, nothing arrives, and senders block when all buffers are full. After
// Heal the bytes flow on.
func (p *Proxy) Stall(d Direction) { p.set(d, func(f *faults) { f.stall = true }) }

// Drop swallows the bytes of d, while their sender believes that they arrived. The
// streams are broken then: Cut them before Heal.
func (p *Proxy) Drop(d Direction) { p.set(d, func(f *faults) { f.drop = true }) }

// Delay lets the bytes of d arrive later, in order. It takes no throughput away, as long
// as some 4 MB on the way suffice for it.
func (p *Proxy) Delay(d Direction, by time.Duration) { p.set(d, func(f *faults) { f.delay = by }) }

// Throttle bounds the throughput of d, for each connection by itself.
func (p *Proxy) Throttle(d Direction, bytesPerSecond int) {
	p.set(d, func(f *faults) { f.rate = max(bytesPerSecond, 1) })
}

// HalfOpen makes the present connections half-open: one end is reset and knows that it
// is over; the other stays open and hears nothing more, as after the crash of a host or
// a forgotten entry in a NAT. ToServer leaves the client's end open, which can go on
// sending to nobody; ToClient leaves the server's. New connections work.
func (p *Proxy) HalfOpen(d Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.halve(d)
	}
}

// Heal ends all faults. What was dropped, cut or half-open stays so.
func (p *Proxy) Heal() {
	p.mu.Lock()
	p.down = false
	p.mu.Unlock()
	p.set(Both, func(f *faults) { *f = faults{} })
}

func (p *Proxy) ways(d Direction) []*way {
	var ws []*way
	if d&ToServer != 0 {
		ws = append(ws, &p.toServer)
	}
	if d&ToClient != 0 {
		ws = append(ws, &p.toClient)
	}
	return ws
}

func (p *Proxy) set(d Direction, change func(*faults)) {
	for _, w := range p.ways(d) {
		w.mu.Lock()
		change(&w.faults)
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // only Close ends it
		}
		p.wg.Go(func() { p.connect(client.(*net.TCPConn)) })
	}
}

func (p *Proxy) connect(client *net.TCPConn) {
	server, err := net.DialTimeout("tcp", p.target, 10*time.Second) //nolint:noctx // bounded, and local
	if err != nil {
		abort(client)
		return
	}
	c := &conn{client: client, server: server.(*net.TCPConn), over: make(chan struct{})}
	p.mu.Lock()
	down := p.down
	if !down {
		p.conns[c] = struct{}{}
	}
	p.mu.Unlock()
	if down {
		abort(c.client)
		abort(c.server)
		return
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { c.pump(&p.toServer, ToServer, c.client, c.server) })
	pumps.Go(func() { c.pump(&p.toClient, ToClient, c.server, c.client) })
	pumps.Wait()
	_ = c.client.Close()
	_ = c.server.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// abort closes a connection by a reset instead of an orderly end.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// way is one direction of all connections.
type way struct {
	forwarded atomic.Int64

	mu      sync.Mutex
	faults  faults
	changed chan struct{} // closed at every change of faults
}

// faults is what is done to the bytes of one way. The zero value does nothing.
type faults struct {
	stall bool
	drop  bool
	delay time.Duration
	rate  int  // bytes per second, if not 0
	cut   bool // when left is used up
	left  int64
}

// grant says what may be written of n bytes that were read at a given time.
type grant struct {
	n     int             // how many bytes go now
	drop  bool            // they go nowhere
	cut   bool            // the connection ends after them
	pause time.Duration   // after them, for the throttle
	again <-chan struct{} // if not nil, nothing goes now: ask again when it is closed,
	wait  time.Duration   // or after this time, if positive
}

// piece is the time that a throttled write stands for.
const piece = 20 * time.Millisecond

func (w *way) ask(n int, read time.Time) grant {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := &w.faults
	if f.stall {
		return grant{again: w.changed}
	}
	if wait := f.delay - time.Since(read); wait > 0 {
		return grant{wait: wait, again: w.changed}
	}
	if f.drop {
		return grant{n: n, drop: true}
	}
	g := grant{n: n}
	if f.rate > 0 {
		g.n = min(n, max(1, int(int64(f.rate)*int64(piece)/int64(time.Second))))
		g.pause = time.Duration(int64(g.n) * int64(time.Second) / int64(f.rate))
	}
	if f.cut {
		g.n = int(min(int64(g.n), f.left))
		f.left -= int64(g.n)
		g.cut = f.left == 0
		f.cut = !g.cut
	}
	return g
}

// conn is one connection through the proxy.
type conn struct {
	client, server *net.TCPConn
	over           chan struct{} // closed by reset
	once           sync.Once
	half           atomic.Uint32 // the Direction whose sender is all that is left, if not 0
}

// reset ends both connections at once.
func (c *conn) reset() {
	c.once.Do(func() {
		close(c.over)
		abort(c.client)
		abort(c.server)
	})
}

// halve resets the receiver of d. The sender of d stays.
func (c *conn) halve(d Direction) {
	if !c.half.CompareAndSwap(0, uint32(d)) {
		return
	}
	if d == ToServer {
		abort(c.server)
	} else {
		abort(c.client)
	}
}

// chunk is what one read returned.
type chunk struct {
	data []byte
	at   time.Time
	err  error // the last one: io.EOF or a failure
}

// pump moves bytes from src to dst until one of them ends.
func (c *conn) pump(w *way, d Direction, src, dst *net.TCPConn) {
	const size, most = 16 << 10, 256 // 4 MB on the way
	chunks := make(chan chunk, most)
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() {
		for {
			buf := make([]byte, size)
			n, err := src.Read(buf)
			select {
			case chunks <- chunk{buf[:n], time.Now(), err}:
			case <-c.over:
				return
			}
			if err != nil {
				return
			}
		}
	})
	for {
		var ch chunk
		select {
		case ch = <-chunks:
		case <-c.over:
			return
		}
		if !c.write(w, d, dst, ch) {
			return
		}
	}
}

// write passes one chunk on and reports whether there may be more.
func (c *conn) write(w *way, d Direction, dst *net.TCPConn, ch chunk) bool {
	for data := ch.data; len(data) > 0 || ch.err != nil; {
		g := w.ask(len(data), ch.at)
		if g.again != nil {
			if !c.sleep(g.wait, g.again) {
				return false
			}
			continue
		}
		if len(data) == 0 {
			if !g.drop {
				c.end(d, dst, ch.err)
			}
			return false
		}
		if !g.drop && g.n > 0 && c.half.Load() == 0 {
			w.forwarded.Add(int64(g.n)) // before anybody can have seen them
			if _, err := dst.Write(data[:g.n]); err != nil && c.half.Load() == 0 {
				c.reset()
				return false
			}
		}
		data = data[g.n:]
		if g.cut {
			c.reset()
			return false
		}
		if g.pause > 0 && !c.sleep(g.pause, nil) {
			return false
		}
	}
	return true
}

// end passes on that the sender of d has ended with err.
func (c *conn) end(d Direction, dst *net.TCPConn, err error) {
	switch half := Direction(c.half.Load()); {
	case half == d, half == 0 && !errors.Is(err, io.EOF):
		// The end that was left has ended too; or one end broke off.
		c.reset()
	case half == 0:
		_ = dst.CloseWrite()
	}
}

// sleep waits for d, if positive, or until again is closed. It reports false if the
// connection ended.
func (c *conn) sleep(d time.Duration, again <-chan struct{}) bool {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-timer:
	case <-again:
	case <-c.over:
		return false
	}
	return true
}
