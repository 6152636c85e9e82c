package nft

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"rehost/fence"
)

// TestIntervals: beginnings and ends of what a set has, for prefixes at every edge.
func TestIntervals(t *testing.T) {
	for _, test := range []struct{ prefixes, four string }{
		{"", ""},
		{"0.0.0.0/0", "00000000-"},
		{"192.0.2.7/32", "c0000207-c0000208"},
		{"192.0.2.0/24 198.51.100.0/24", "c0000200-c0000300 c6336400-c6336500"},
		{"10.0.0.0/9 10.128.0.0/9", "0a000000-0b000000"},
		{"10.0.0.0/8 11.0.0.0/8 13.0.0.0/8", "0a000000-0c000000 0d000000-0e000000"},
		{"255.255.255.255/32", "ffffffff-"},
		{"0.0.0.0/1 128.0.0.0/1", "00000000-"},
		{"2001:db8::/32", ""},
	} {
		var prefixes []netip.Prefix
		for _, text := range strings.Fields(test.prefixes) {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		got := ""
		for _, e := range intervals(fence.NewRules(prefixes).Prefixes(), 32) {
			if e.IntervalEnd {
				got += hex.EncodeToString(e.Key)
			} else {
				got += " " + hex.EncodeToString(e.Key) + "-"
			}
		}
		if strings.TrimSpace(got) != test.four {
			t.Errorf("%s: got %s, want %s", test.prefixes, got, test.four)
		}
	}
	for text, want := range map[string]string{"::/0": "invalid IP", "2001:db8::/32": "2001:db9::", "2001:db8::/64": "2001:db8:0:1::", "::/64": "0:0:0:1::",
		"2001:db8::ffff:ffff:ffff:ffff/128": "2001:db8:0:1::", "::/65": "::8000:0:0:0", "8000::/1": "invalid IP", "0.0.0.0/1": "128.0.0.0"} {
		if got := after(netip.MustParsePrefix(text)); got.String() != want {
			t.Errorf("after %s: %v, want %s", text, got, want)
		}
	}
}
