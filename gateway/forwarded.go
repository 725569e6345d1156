// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// ClientIP returns the address of the client: the peer of the connection or, while that is one of
// the trusted proxies, the one that it names in X-Forwarded-For. It is the zero Addr
// where the peer has none, as on a Unix socket.
func ClientIP(r *http.Request, trusted []netip.Prefix) netip.Addr {
	chain := forwardedFor(parseAddr(r.RemoteAddr), r.Header.Values("X-Forwarded-For"), trusted)
	return chain[0]
}

// forwardedFor returns the believable part of a request's way: the client first, then
// proxies, the peer of the connection last. From the right, each trusted proxy vouches for the
// address before it; what lies beyond the first that is not trusted may be invented.
func forwardedFor(peer netip.Addr, header []string, trusted []netip.Prefix) []netip.Addr {
	chain := []netip.Addr{peer}
	claimed := strings.Split(strings.Join(header, ","), ",")
	for _, text := range slices.Backward(claimed) {
		if !isTrusted(chain[len(chain)-1], trusted) {
			break
		}
		addr := parseAddr(strings.TrimSpace(text))
		if !addr.IsValid() {
			break
		}
		chain = append(chain, addr)
	}
	slices.Reverse(chain)
	return chain
}

func isTrusted(addr netip.Addr, trusted []netip.Prefix) bool {
	return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// parseAddr reads an address with or without a port. It returns the zero Addr for anything else.
func parseAddr(text string) netip.Addr {
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	text = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("") // as prefixes compare
}

// setForwarded replaces what the request says about its way by what is known of it.
func setForwarded(in *http.Request, out *http.Request, trusted []netip.Prefix) {
	for name := range out.Header {
		if strings.HasPrefix(name, "X-Forwarded-") || name == "X-Real-Ip" || name == "Forwarded" {
			delete(out.Header, name)
		}
	}
	peer := parseAddr(in.RemoteAddr)
	if peer.IsValid() {
		client := peer.String()
		way := client
		if isTrusted(peer, trusted) {
			chain := forwardedFor(peer, in.Header.Values("X-Forwarded-For"), trusted)
			client, way = chain[0].String(), join(chain)
		}
		out.Header["X-Forwarded-For"] = []string{way}
		// For those who choose an instance by the client, such as balance.ClientIP.
		out.RemoteAddr = net.JoinHostPort(client, "0")
	}
	proto, host := "http", in.Host
	if in.TLS != nil {
		proto = "https"
	}
	if isTrusted(peer, trusted) {
		if p := in.Header.Get("X-Forwarded-Proto"); p == "http" || p == "https" {
			proto = p
		}
		if h := in.Header.Get("X-Forwarded-Host"); validHost(h) {
			host = h
		}
	}
	values := []string{proto, host} // one allocation for both
	out.Header["X-Forwarded-Proto"], out.Header["X-Forwarded-Host"] = values[:1:1], values[1:]
}

func join(chain []netip.Addr) string {
	way := make([]string, len(chain))
	for i, addr := range chain {
		way[i] = addr.String()
	}
	return strings.Join(way, ", ")
}

// validHost reports whether h looks like one host, with or without a port.
func validHost(h string) bool {
	return h != "" && !strings.ContainsFunc(h, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`,/\?#@"<>`, c)
	})
}
