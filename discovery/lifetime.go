// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// Go's resolver does not tell for how long the records live that it returns. But it lets us make
// its connections, and so read along.

// lifetime is the shortest time to live among the answers to one lookup.
type lifetime struct {
	mu    sync.Mutex
	least time.Duration
}

type lifetimeKey struct{} // of the *lifetime in a lookup's context

func (l *lifetime) get() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.least
}

// hear takes the message of a server into account.
func (l *lifetime) hear(msg []byte) {
	if ttl, ok := timeToLive(msg); ok {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.least = min(l.least, ttl)
	}
}

// listeningResolver returns a resolver that asks the server, or those of the system's configuration
// if it is empty, and fills in the lifetime of the lookup's context.
func listeningResolver(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if server != "" {
			address = server
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		life, ok := ctx.Value(lifetimeKey{}).(*lifetime)
		if !ok {
			return conn, nil
		}
		if udp, ok := conn.(*net.UDPConn); ok {
			return &packetListener{udp, life}, nil
		}
		return &streamListener{Conn: conn, life: life}, nil
	}}
}

// packetListener reads along what comes in datagrams. That it is a net.PacketConn too tells the
// resolver that it is not a stream.
type packetListener struct {
	*net.UDPConn
	life *lifetime
}

func (c *packetListener) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	c.life.hear(p[:max(n, 0)])
	return n, err
}

// streamListener reads along what comes over TCP: messages with their length before them.
type streamListener struct {
	net.Conn
	life *lifetime
	msg  []byte
}

func (c *streamListener) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.msg = append(c.msg, p[:max(n, 0)]...)
	for len(c.msg) >= 2 {
		end := 2 + int(binary.BigEndian.Uint16(c.msg))
		if len(c.msg) < end {
			break
		}
		c.life.hear(c.msg[2:end])
		c.msg = c.msg[end:]
	}
	return n, err
}

// timeToLive returns the shortest time to live of the answers in a message of the domain name
// system (RFC 1035, section 4); if there are none, for how long that may be believed (RFC 2308,
// section 5).
func timeToLive(msg []byte) (least time.Duration, ok bool) {
	const (
		header    = 12
		truncated = 1 << 9 // comes again over TCP
		typeSOA   = 6
	)
	if len(msg) < header || binary.BigEndian.Uint16(msg[2:])&truncated != 0 {
		return 0, false
	}
	count := func(i int) int { return int(binary.BigEndian.Uint16(msg[i:])) }
	questions, answers, authorities := count(4), count(6), count(8)
	rest := msg[header:]
	for range questions {
		if rest, ok = afterName(rest, 4); !ok {
			return 0, false
		}
	}
	for i := range answers + authorities {
		start := rest
		if rest, ok = afterName(start, 10); !ok { // type, class, time to live, length of the data
			return 0, false
		}
		fixed := start[len(start)-len(rest)-10:]
		size := int(binary.BigEndian.Uint16(fixed[8:]))
		if len(rest) < size {
			return 0, false
		}
		data := rest[:size]
		rest = rest[size:]
		ttl := seconds(fixed[4:])
		switch {
		case i >= answers:
			if answers > 0 || binary.BigEndian.Uint16(fixed) != typeSOA || size < 4 {
				continue
			}
			return min(ttl, seconds(data[size-4:])), true
		case i == 0 || ttl < least:
			least = ttl
		}
	}
	return least, answers > 0
}

// seconds reads a time. One with the highest bit set counts as zero (RFC 2181, section 8).
func seconds(b []byte) time.Duration {
	n := binary.BigEndian.Uint32(b)
	if n > 1<<31-1 {
		n = 0
	}
	return time.Duration(n) * time.Second
}

// afterName returns what follows a name and so many more bytes.
func afterName(b []byte, more int) ([]byte, bool) {
	for len(b) > 0 {
		size := int(b[0])
		skip := 1 + size
		end := size == 0
		if size >= 0xc0 { // the rest of the name stands elsewhere
			skip, end = 2, true
		}
		if len(b) < skip {
			return nil, false
		}
		b = b[skip:]
		if end {
			break
		}
		if len(b) == 0 {
			return nil, false
		}
	}
	if len(b) < more {
		return nil, false
	}
	return b[more:], true
}
