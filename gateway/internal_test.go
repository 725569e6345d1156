// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"testing"
)

func FuzzForwarded(f *testing.F) {
	f.Add("10.0.0.1:80", "1.1.1.1, 192.0.2.1", "https", "shop.example")
	f.Add("10.0.0.1", "[fd00::1%eth0]:80,unknown,,10.0.0.2", "HTTP", "a,b")
	f.Add("@", "10.0.0.1", "", "")
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	f.Fuzz(func(t *testing.T, remote, way, proto, host string) {
		in := httptest.NewRequest(http.MethodGet, "http://shop.example/", nil)
		in.RemoteAddr = remote
		in.Header.Set("X-Forwarded-For", way)
		in.Header.Set("X-Forwarded-Proto", proto)
		in.Header.Set("X-Forwarded-Host", host)
		out := in.Clone(t.Context())
		setForwarded(in, out, trusted)
		if got := out.Header.Get("X-Forwarded-Proto"); got != "http" && got != "https" {
			t.Errorf("X-Forwarded-Proto = %q", got)
		}
		if got := out.Header.Get("X-Forwarded-Host"); got != "shop.example" && (got != host || strings.ContainsAny(got, ", \r\n")) {
			t.Errorf("X-Forwarded-Host = %q", got)
		}
		peer := parseAddr(remote)
		got := out.Header.Get("X-Forwarded-For")
		if !peer.IsValid() {
			if got != "" {
				t.Errorf("X-Forwarded-For = %q without a peer", got)
			}
			return
		}
		// The way is one of addresses that ends at the peer, and all but the first are trusted.
		hops := strings.Split(got, ", ")
		for i, hop := range hops {
			addr, err := netip.ParseAddr(hop)
			if err != nil {
				t.Fatalf("hop %q of %q: %v", hop, got, err)
			}
			if i > 0 && !isTrusted(addr, trusted) {
				t.Errorf("hop %q of %q is not trusted, and those before it are believed", hop, got)
			}
		}
		if hops[len(hops)-1] != peer.String() {
			t.Errorf("X-Forwarded-For = %q, want it to end at %v", got, peer)
		}
	})
}

func FuzzPath(f *testing.F) {
	for _, p := range []string{"/a/b", "/a/%2e%2e/b", "/a/..;/b", "//a", "/a%2Fb", "/a%5c..", "*", ""} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil || checkPath(u, false) != nil {
			return
		}
		// What passes means the same to everybody: nothing is left to clean, decoded or not.
		for _, p := range []string{u.Path, u.EscapedPath()} {
			if clean := path.Clean(p); clean != p && clean+"/" != p {
				t.Errorf("%q passes, and %q would be cleaned to %q", raw, p, clean)
			}
		}
		if strings.Count(u.Path, "/") != strings.Count(u.EscapedPath(), "/") {
			t.Errorf("%q passes with a slash that is encoded", raw)
		}
	})
}
