// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// echo is a server that sends back what it gets, behind a proxy.
type echo struct {
	t        *testing.T
	proxy    *Proxy
	accepted chan *net.TCPConn // the server's ends
}

func newEcho(t *testing.T) *echo {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{t: t, accepted: make(chan *net.TCPConn, 16)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.accepted <- c.(*net.TCPConn)
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	if e.proxy, err = StartProxy(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = e.proxy.Close()
		_ = l.Close()
	})
	return e
}

func (e *echo) dial() *net.TCPConn {
	e.t.Helper()
	c, err := net.Dial("tcp", e.proxy.Addr())
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.Close() })
	// A test that goes wrong must not hang.
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// say sends a line and returns the echo.
func say(c net.Conn, line string) (string, error) {
	if _, err := c.Write([]byte(line + "\n")); err != nil {
		return "", err
	}
	s, err := bufio.NewReader(c).ReadString('\n')
	return s, err
}

func (e *echo) mustSay(c net.Conn, line string) {
	e.t.Helper()
	if got, err := say(c, line); err != nil || got != line+"\n" {
		e.t.Fatalf("echo of %q = %q, %v, want it back", line, got, err)
	}
}

// silent reads and wants nothing to come for a moment.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	defer func() { _ = c.SetReadDeadline(time.Now().Add(20 * time.Second)) }()
	n, err := c.Read(make([]byte, 100))
	if ne := net.Error(nil); n != 0 || !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("Read = %d, %v, want nothing to come", n, err)
	}
}

func TestProxy(t *testing.T) {
	t.Run("forwards both ways and counts", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.mustSay(c, "hello")
		if up, down, both := e.proxy.Forwarded(ToServer), e.proxy.Forwarded(ToClient), e.proxy.Forwarded(Both); up != 6 || down != 6 || both != 12 {
			t.Errorf("Forwarded = %d, %d, %d, want 6, 6, 12", up, down, both)
		}
		if n := e.proxy.Conns(); n != 1 {
			t.Errorf("Conns = %d, want 1", n)
		}
	})
	t.Run("forwards an orderly end after the last byte", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("ReadAll = %d bytes, %v, want %d", len(got), err, len(data))
		}
		eventually(t, func() bool { return e.proxy.Conns() == 0 }, "the connection is gone")
	})
	t.Run("Cut resets both ends and accepts new connections", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.mustSay(c, "before")
		e.proxy.Cut()
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("Read after Cut = %v, want a reset", err)
		}
		e.mustSay(e.dial(), "after")
	})
	t.Run("Down resets new connections until Heal", func(t *testing.T) {
		e := newEcho(t)
		e.proxy.Down()
		if c, err := net.Dial("tcp", e.proxy.Addr()); err == nil { // the reset may come as early as that
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if got, err := say(c, "x"); err == nil {
				t.Errorf("echo while down = %q, want an error", got)
			}
			_ = c.Close()
		}
		e.proxy.Heal()
		e.mustSay(e.dial(), "up")
	})
	t.Run("CutAfter lets exactly so many bytes arrive", func(t *testing.T) {
		for _, n := range []int64{0, 1, 7} {
			e := newEcho(t)
			c := e.dial()
			e.mustSay(c, "12345")
			e.proxy.CutAfter(ToClient, n)
			_, _ = c.Write([]byte("0123456789"))
			got, err := io.ReadAll(c)
			if err == nil || e.proxy.Forwarded(ToClient) != 6+n {
				t.Errorf("CutAfter(%d): read %q, %v, forwarded %d; want a reset after %d bytes", n, got, err, e.proxy.Forwarded(ToClient)-6, n)
			}
			e.mustSay(e.dial(), "again")
		}
	})
	t.Run("Stall holds one way back and Heal lets it flow on", func(t *testing.T) {
		for _, d := range []Direction{ToServer, ToClient, Both} {
			e := newEcho(t)
			c := e.dial()
			e.proxy.Stall(d)
			if _, err := c.Write([]byte("held\n")); err != nil {
				t.Fatal(err)
			}
			silent(t, c)
			if up := e.proxy.Forwarded(ToServer); (up == 0) != (d&ToServer != 0) {
				t.Errorf("Stall(%d): %d bytes arrived at the server", d, up)
			}
			e.proxy.Heal()
			if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != "held\n" {
				t.Errorf("after Heal read %q, %v, want what was held", got, err)
			}
		}
	})
	t.Run("Stall holds an end back too", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.mustSay(c, "x")
		e.proxy.Stall(ToClient)
		_ = (<-e.accepted).CloseWrite()
		silent(t, c)
		e.proxy.Heal()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("Read after Heal = %v, want EOF", err)
		}
	})
	t.Run("Stall blocks the sender when the buffers are full", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.proxy.Stall(ToServer)
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, err := c.Write(make([]byte, 256<<20))
		if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("Write of 256 MB = %v, want a timeout", err)
		}
		e.proxy.Cut()
	})
	t.Run("Drop swallows one way while the sender goes on", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.proxy.Drop(ToServer)
		if _, err := c.Write([]byte("gone\n")); err != nil {
			t.Fatal(err)
		}
		silent(t, c)
		if up := e.proxy.Forwarded(ToServer); up != 0 {
			t.Errorf("Forwarded = %d, want 0", up)
		}
		e.proxy.Cut()
		e.proxy.Heal()
		e.mustSay(e.dial(), "again")
	})
	t.Run("Delay lets bytes arrive later and in order", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		const by = 50 * time.Millisecond
		e.proxy.Delay(Both, by)
		start := time.Now()
		for range 5 {
			_, _ = c.Write([]byte("ab"))
			time.Sleep(time.Millisecond)
		}
		got := make([]byte, 10)
		_, err := io.ReadFull(c, got)
		if string(got) != "ababababab" || err != nil {
			t.Errorf("read %q, %v, want the bytes in order", got, err)
		}
		if took := time.Since(start); took < 2*by {
			t.Errorf("both ways took %v, want at least %v", took, 2*by)
		}
	})
	t.Run("Throttle bounds the throughput", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.proxy.Throttle(ToServer, 100_000)
		start := time.Now()
		go func() { _, _ = c.Write(make([]byte, 20_000)) }()
		if _, err := io.ReadFull(c, make([]byte, 20_000)); err != nil {
			t.Fatal(err)
		}
		// The last piece is not waited for.
		if took, want := time.Since(start), 180*time.Millisecond-piece; took < want {
			t.Errorf("20 kB at 100 kB/s took %v, want at least %v", took, want)
		}
	})
	t.Run("HalfOpen ToServer: the client's end stays open and hears nothing", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.mustSay(c, "x")
		e.proxy.HalfOpen(ToServer)
		server := <-e.accepted
		eventually(t, func() bool { _, err := server.Write([]byte("x")); return err != nil }, "the server's end is reset")
		if _, err := c.Write([]byte("anybody?\n")); err != nil {
			t.Errorf("Write on the open end = %v, want nil", err)
		}
		silent(t, c)
		e.mustSay(e.dial(), "new")
		e.proxy.Cut()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("Read after Cut = nil, want a reset")
		}
	})
	t.Run("HalfOpen ToClient: the server's end stays open and hears nothing", func(t *testing.T) {
		e := newEcho(t)
		c := e.dial()
		e.mustSay(c, "x")
		server := <-e.accepted
		e.proxy.HalfOpen(ToClient)
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("Read at the client = %v, want a reset", err)
		}
		if _, err := server.Write([]byte("anybody?\n")); err != nil {
			t.Errorf("Write on the open end = %v, want nil", err)
		}
		_ = server.CloseWrite()
		eventually(t, func() bool { return e.proxy.Conns() == 0 }, "the connection is gone with its last end")
	})
	t.Run("an unreachable server resets the client", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		p, err := StartProxy(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = p.Close() }()
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			return // so soon is fine too
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("Read = nil, want an error")
		}
	})
	t.Run("Close leaves no goroutine", func(t *testing.T) {
		before := runtime.NumGoroutine()
		e := newEcho(t)
		for i := range 5 {
			c := e.dial()
			e.mustSay(c, "x")
			switch i {
			case 0:
				e.proxy.HalfOpen(ToServer)
			case 1:
				e.proxy.HalfOpen(ToClient)
			case 2:
				e.proxy.Stall(Both)
				_, _ = c.Write([]byte("held"))
				e.proxy.Heal()
			}
		}
		if err := e.proxy.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
		if _, err := net.Dial("tcp", e.proxy.Addr()); err == nil {
			t.Error("Dial after Close = nil, want an error")
		}
		// The echo server's own goroutines end with their connections; one accepts.
		eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, "goroutines are back to what they were")
	})
}

// eventually waits for cond.
func eventually(t testing.TB, cond func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s in vain until %s", what)
		}
	}
}
