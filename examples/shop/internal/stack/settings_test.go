// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestTrustedProxies(t *testing.T) {
	load := func(value string) (Settings, error) {
		return LoadDatabases(func(name string) string {
			return map[string]string{PostgresVar: "postgres://a@127.0.0.1:1/b", TrustedProxiesVar: value}[name]
		})
	}
	got, err := load("10.0.0.0/8, 192.0.2.1,2001:db8::/32")
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/32")}
	if err != nil || !slices.Equal(got.Proxies, want) {
		t.Errorf("proxies are %v, %v; want %v", got.Proxies, err, want)
	}
	for _, wrong := range []string{"10.0.0.0/33", "proxy.example", "10.0.0.0/8;10.1.0.0/16"} {
		if _, err := load(wrong); err == nil || !strings.Contains(err.Error(), TrustedProxiesVar) {
			t.Errorf("%s: %v, want an error that names %s", wrong, err, TrustedProxiesVar)
		}
	}
}
