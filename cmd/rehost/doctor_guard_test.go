package main

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"rehost/control"
	"rehost/internal/fault"
)

func permission(source string, addresses ...string) control.Permission {
	p := control.Permission{Rule: "sgr-1", Group: "sg-1", GroupName: "office", Source: source}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, netip.MustParsePrefix(a))
	}
	return p
}

// TestPortGuard_Findings: what lets everyone in is found, also in pieces and in a list; what
// lets in networks is not, however large a private one is.
func TestPortGuard_Findings(t *testing.T) {
	for _, c := range []struct {
		guard            *portGuard
		faults, warnings string // what has to be in them; "" for none
	}{
		{nil, "no security group guards it", ""},
		{&portGuard{}, "", ""},
		{&portGuard{Allowed: []control.Permission{permission("192.0.2.0/24", "192.0.2.0/24"), permission("10.0.0.0/8", "10.0.0.0/8"), permission("fc00::/7", "fc00::/7")}}, "", ""},
		{&portGuard{Allowed: []control.Permission{permission("0.0.0.0/0", "0.0.0.0/0")}}, "", "rule sgr-1 of group sg-1 (office) lets in everyone from 0.0.0.0/0"},
		{&portGuard{Allowed: []control.Permission{permission("::/0", "::/0")}}, "", "from ::/0"},
		{&portGuard{Allowed: []control.Permission{permission("128.0.0.0/1", "128.0.0.0/1")}}, "", "from 128.0.0.0/1"},
		{&portGuard{Allowed: []control.Permission{permission("2000::/3", "2000::/3")}}, "", "from 2000::/3"},
		{&portGuard{Allowed: []control.Permission{permission("pl-0123456789abcdef0", "192.0.2.0/24", "0.0.0.0/0")}}, "", "from 0.0.0.0/0"},
		{&portGuard{Proxies: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, "may say in a PROXY header", ""},
		{&portGuard{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32")}}, "", ""},
		{&portGuard{unread: os.ErrNotExist}, "the file of prefix lists is no good", ""},
	} {
		faults, warnings := c.guard.findings(1500)
		for got, want := range map[string]string{"faults: " + strings.Join(faults, "; "): c.faults, "warnings: " + strings.Join(warnings, "; "): c.warnings} {
			if want == "" && !strings.HasSuffix(got, ": ") || !strings.Contains(got, want) {
				t.Errorf("%+v: %s; want %q", c.guard, got, want)
			}
		}
	}
}

// TestGuards: which port is which is read from the command line, as the program itself
// reads it; a port that it does not speak of has no guard.
func TestGuards(t *testing.T) {
	g := guards{apiPort: 8443, started: map[int]started{}}
	for pid, line := range map[int]string{
		1: "rehost serve --data d --listen :8443 --prefix-lists lists --proxy-protocol-from 10.0.0.5,10.1.0.0/16 --firewall=nftables --vpn :51820",
		2: "rehost serve --no-replicator --replication-listen 127.0.0.1:0",
		3: "rehost replicator --endpoint https://x:8443 --address x:1600 --listen :1600",
		4: "qemu-system-x86_64 -m 512 -hda x",
		5: "rehost",
		6: "rehost serve --metrics 127.0.0.1:9090 --replication-listen 127.0.0.1:0",
	} {
		if s, ok := parseStarted(strings.Fields(line), "/somewhere"); ok {
			g.started[pid] = s
		}
	}
	if s := g.started[1]; s.lists != "/somewhere/lists" || len(s.fence.ProxyProtocolFrom) != 2 {
		t.Errorf("%+v", s)
	}
	for _, c := range []struct {
		pid           int
		network       string
		port          uint16
		want, by, how string
	}{
		{1, "tcp", 8443, "the API", byGroups, "nftables"}, {1, "tcp", 1500, "replication", byGroups, "nftables"}, {1, "udp", 51820, "the VPN", byKeys, ""},
		{1, "tcp", 8080, "", "", ""}, {2, "tcp", 1500, "", "", ""}, {2, "udp", 53, "", "", ""}, {3, "tcp", 1600, "replication", byGroups, "none"}, {3, "tcp", 8443, "", "", ""},
		{4, "tcp", 8443, "", "", ""}, {5, "tcp", 8443, "", "", ""}, {6, "tcp", 40000, "replication", byGroups, "none"}, {6, "tcp", 9090, "", "", ""},
	} {
		guard, purpose := g.of(socket{c.network, netip.AddrPortFrom(netip.IPv4Unspecified(), c.port), c.pid, "x"})
		if purpose != c.want || (guard == nil) != (c.want == "") || guard != nil && (guard.By != c.by || guard.Firewall != c.how) {
			t.Errorf("port %d/%s of process %d: %q, %+v", c.port, c.network, c.pid, purpose, guard)
		}
	}
}

// TestDoctorMutants: a port that nothing guards, or that all reach, does not pass unseen.
func TestDoctorMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"UnguardedPasses": {File: "doctor_guard.go", From: `return []string{"no security group guards it"}, nil`, To: "return nil, nil", Tests: "TestPortGuard_Findings$|TestOffered$"},
		"EveryoneIsFew":   {File: "doctor_guard.go", From: "if wide(a) {", To: "if false {", Tests: "TestPortGuard_Findings$"},
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
