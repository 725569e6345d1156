// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/discoverytest"
)

// fakeDNS answers from a table.
type fakeDNS struct {
	mu    sync.Mutex
	srv   map[string][]*net.SRV
	addrs map[string][]netip.Addr
	err   error
	some  bool // the error concerns some records only
	asked []time.Time
}

func (f *fakeDNS) LookupSRV(_ context.Context, _, _, name string) (string, []*net.SRV, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, time.Now())
	switch {
	case f.err != nil && !f.some:
		return "", nil, f.err
	case f.err == nil && len(f.srv[name]) == 0:
		return "", nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return name, f.srv[name], f.err
}

func (f *fakeDNS) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var addrs []netip.Addr
	for _, addr := range f.addrs[host] {
		if network == "ip" || addr.Unmap().Is4() == (network == "ip4") {
			addrs = append(addrs, addr)
		}
	}
	return addrs, f.err
}

func (f *fakeDNS) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func srv(target string, port, priority, weight uint16) *net.SRV {
	return &net.SRV{Target: target, Port: port, Priority: priority, Weight: weight}
}

func newDNS(t testing.TB, name string, cfg discovery.DNSConfig) *discovery.DNS {
	t.Helper()
	d, err := discovery.NewDNS(name, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDNS(t *testing.T) {
	t.Parallel()
	discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
		fake := &fakeDNS{srv: map[string][]*net.SRV{}}
		return discoverytest.Source{
			Resolver: newDNS(t, "{service}.", discovery.DNSConfig{Lookup: fake, Every: 10 * time.Millisecond}),
			Put: func(t *testing.T, service string, instances ...discovery.Instance) {
				var records []*net.SRV
				for _, in := range instances {
					addr := netip.MustParseAddrPort(in.Addr)
					records = append(records, srv(addr.Addr().String()+".", addr.Port(), 0, 0))
				}
				fake.set(func() { fake.srv[service+"."] = records })
			},
			Outage: func(_ *testing.T, on bool) {
				fake.set(func() {
					fake.err = nil
					if on {
						fake.err = &net.DNSError{Err: "server misbehaving", IsTemporary: true}
					}
				})
			},
		}
	})
	t.Run("addresses get the port of the configuration", func(t *testing.T) {
		fake := &fakeDNS{addrs: map[string][]netip.Addr{"order.prod.": {
			netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.1"),
		}}}
		wantWord(t, follow(t, newDNS(t, "{service}.prod.", discovery.DNSConfig{Lookup: fake, Port: 8080})), "10.0.0.1:8080 10.0.0.2:8080 [fd00::1]:8080")
		wantWord(t, follow(t, newDNS(t, "{service}.prod.", discovery.DNSConfig{Lookup: fake, Port: 8080, Network: "ip6"})), "[fd00::1]:8080")
	})
	t.Run("good records beside malformed ones are used", func(t *testing.T) {
		fake := &fakeDNS{srv: map[string][]*net.SRV{"order": {srv("a.", 1, 0, 0)}}, some: true, err: &net.DNSError{Err: "malformed", Name: "order"}}
		wantWord(t, follow(t, newDNS(t, "{service}", discovery.DNSConfig{Lookup: fake})), "a:1")
	})
	t.Run("it asks again every Every, and after errors soon and then more slowly", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fake := &fakeDNS{srv: map[string][]*net.SRV{"order": {srv("a.", 1, 0, 0)}}}
			words := follow(t, newDNS(t, "{service}", discovery.DNSConfig{Lookup: fake, Every: 10 * time.Second}))
			wantWord(t, words, "a:1")
			fake.set(func() { fake.err = errors.New("no answer") })
			wantWord(t, words, "a:1 stale error")
			time.Sleep(time.Minute)
			fake.mu.Lock()
			defer fake.mu.Unlock()
			// The pauses vary by a tenth.
			for i, want := range []time.Duration{10 * time.Second, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 10 * time.Second} {
				got := fake.asked[i+1].Sub(fake.asked[i])
				if got < want*9/10 || got > want*11/10 {
					t.Errorf("pause %d = %v, want about %v", i, got, want)
				}
			}
		})
	})
}

// TestDNSServer holds the assumptions about Go's resolver to a real one, with a server that
// speaks just enough of the protocol.
func TestDNSServer(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string][][]byte{}
	answers["srv.example."] = [][]byte{srvData(1, 10, 8080, "a", "example"), srvData(2, 0, 8081, "b", "example")}
	answers["addr.example."] = [][]byte{{10, 0, 0, 1}}
	answers["a.example."] = [][]byte{{10, 0, 0, 2}, {10, 0, 0, 3}}
	answers["b.example."] = [][]byte{{10, 0, 0, 4}}
	answers["lost.example."] = [][]byte{srvData(1, 1, 80, "missing", "example"), srvData(1, 1, 81, "b", "example")}
	answers["halfbroken.example."] = [][]byte{srvData(1, 1, 80, "broken", "example")}
	answers["here-not.example."] = [][]byte{srvData(0, 0, 0)}
	served := make(chan struct{})
	go func() { defer close(served); serveDNS(conn, 1, func(name string) [][]byte { return answers[name] }) }()
	t.Cleanup(func() { _ = conn.Close(); <-served })
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	for _, tt := range []struct {
		name string
		cfg  discovery.DNSConfig
		want string
	}{
		{"srv.example.", discovery.DNSConfig{}, "a.example:8080 b.example:8081"},
		{"addr.example.", discovery.DNSConfig{Port: 80}, "10.0.0.1:80"},
		{"missing.example.", discovery.DNSConfig{}, ""},
		{"missing.example.", discovery.DNSConfig{Port: 80}, ""},
		{"here-not.example.", discovery.DNSConfig{}, ""},
		{"broken.example.", discovery.DNSConfig{}, "unknown error"},
		{"broken.example.", discovery.DNSConfig{Port: 80}, "unknown error"},
		// A server of one's choice is asked for the targets too.
		{"srv.example.", discovery.DNSConfig{Server: conn.LocalAddr().String()}, "10.0.0.2:8080 10.0.0.3:8080 10.0.0.4:8081"},
		{"addr.example.", discovery.DNSConfig{Server: conn.LocalAddr().String(), Port: 80}, "10.0.0.1:80"},
		{"lost.example.", discovery.DNSConfig{Server: conn.LocalAddr().String()}, "10.0.0.4:81"},
		{"halfbroken.example.", discovery.DNSConfig{Server: conn.LocalAddr().String()}, "unknown error"},
	} {
		t.Run(fmt.Sprintf("%s %d by itself %v", tt.name, tt.cfg.Port, tt.cfg.Server != ""), func(t *testing.T) {
			if tt.cfg.Server == "" {
				tt.cfg.Lookup = resolver
			}
			got := wantWord(t, follow(t, newDNS(t, tt.name, tt.cfg)), tt.want)
			if len(got.set.Instances) == 2 {
				if in := got.set.Instances[0]; in.Priority != 1 || in.Weight != 1000 {
					t.Errorf("instance = %+v, want priority 1 and weight 10 (times 100)", in)
				}
			}
		})
	}
}

// TestDNSTimeToLive changes what a server says: it is asked again when the records' time is over, and
// not only after Every; and after Every where the records live longer.
func TestDNSTimeToLive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		ttl   uint32
		every time.Duration
	}{
		{"records that live for a second", 1, time.Hour},
		{"records that live for a day", 86400, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var last atomic.Uint32
			last.Store(1)
			served := make(chan struct{})
			go func() {
				defer close(served)
				serveDNS(conn, tt.ttl, func(string) [][]byte { return [][]byte{{10, 0, 0, byte(last.Load())}} })
			}()
			t.Cleanup(func() { _ = conn.Close(); <-served })
			watch := follow(t, newDNS(t, "addr.example.", discovery.DNSConfig{Server: conn.LocalAddr().String(), Port: 80, Every: tt.every}))
			wantWord(t, watch, "10.0.0.1:80")
			last.Store(2)
			wantWord(t, watch, "10.0.0.2:80")
		})
	}
}

func srvData(priority, weight, port uint16, target ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, priority)
	b = binary.BigEndian.AppendUint16(b, weight)
	b = binary.BigEndian.AppendUint16(b, port)
	for _, label := range target {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

// serveDNS answers queries over UDP (RFC 1035): data by name, else NXDOMAIN; for broken.* SERVFAIL.
// Records live for ttl seconds.
func serveDNS(conn net.PacketConn, ttl uint32, answers func(name string) [][]byte) {
	const typeA, typeSRV = 1, 33
	buf := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		query := buf[:n]
		end, name := 12, ""
		for end < n && query[end] != 0 {
			size := int(query[end])
			name += string(query[end+1:end+1+size]) + "."
			end += 1 + size
		}
		kind := binary.BigEndian.Uint16(query[end+1:])
		question := query[12 : end+5]
		var records [][]byte
		known := answers(name)
		for _, data := range known {
			if (kind == typeA) == (len(data) == 4) && (kind == typeA || kind == typeSRV) {
				records = append(records, data)
			}
		}
		code := uint16(0)
		if strings.HasPrefix(name, "broken.") {
			code = 2
		} else if known == nil {
			code = 3
		}
		reply := append([]byte(nil), query[:2]...)
		reply = binary.BigEndian.AppendUint16(reply, 0x8180|code)
		for _, count := range []uint16{1, uint16(len(records)), 0, 0} {
			reply = binary.BigEndian.AppendUint16(reply, count)
		}
		reply = append(reply, question...)
		for _, data := range records {
			reply = append(reply, 0xc0, 12) // the name of the question
			reply = binary.BigEndian.AppendUint16(reply, kind)
			reply = append(reply, 0, 1) // class IN
			reply = binary.BigEndian.AppendUint32(reply, ttl)
			reply = binary.BigEndian.AppendUint16(reply, uint16(len(data)))
			reply = append(reply, data...)
		}
		_, _ = conn.WriteTo(reply, from)
	}
}

// SRV records of a Consul agent on its own port.
func ExampleDNS() {
	resolver, err := discovery.NewDNS("{service}.service.consul.", discovery.DNSConfig{Server: "127.0.0.1:8600"})
	fmt.Println(resolver != nil, err)
	// Output: true <nil>
}
