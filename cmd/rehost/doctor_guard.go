package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"rehost/control"
	"rehost/fence/nft"
)

// A portGuard is what decides who gets in where a port is open.
type portGuard struct {
	By       string               `json:"by"`                // securityGroups, or keys of the VPN
	Allowed  []control.Permission `json:"allowed,omitempty"` // rules, with the addresses that each lets in now; none lets nobody in
	Local    bool                 `json:"local,omitempty"`   // this machine itself gets in, whatever the rules say
	Proxies  []netip.Prefix       `json:"proxies,omitempty"` // whose PROXY header is believed
	Firewall string               `json:"firewall,omitempty"`

	unread error // the file of prefix lists, which the service has read before
}

// The values of portGuard.By.
const (
	byGroups = "securityGroups"
	byKeys   = "vpnKeys"
)

// guards are what the running processes of a directory go by.
type guards struct {
	apiPort int
	reach   control.Reach
	started map[int]started // by process
	unread  error           // the file of prefix lists
}

// A started is what the command line of a process of this program says of who
// reaches it.
type started struct {
	serves, replicates bool
	replicationPort    int  // 0 if the kernel has chosen it
	vpn                bool // which has the only UDP port
	metrics            string
	lists              string
	fence              FenceFlags
}

// findGuards reads what the processes go by, from where they read it themselves:
// their command line, the database, and the file of prefix lists.
func findGuards(ctx context.Context, data string, pids []int) (g guards, err error) {
	g.started = map[int]started{}
	var lists []control.PrefixList
	for _, pid := range pids {
		s, ok := startedWith(pid)
		if !ok {
			continue // a machine that it has launched
		}
		g.started[pid] = s
		if s.lists != "" {
			lists, g.unread = (&listFile{path: s.lists}).read()
		}
	}
	if text, err := os.ReadFile(filepath.Join(data, endpointFile)); err == nil {
		if u, err := url.Parse(strings.TrimSpace(string(text))); err == nil {
			g.apiPort, _ = strconv.Atoi(u.Port()) // the service has written it
		}
	}
	replicator := ""
	if pair, err := openPair(filepath.Join(data, "replicator.pem"), nil); err == nil {
		replicator = pair.id
	} else if !errors.Is(err, fs.ErrNotExist) {
		return g, err
	}
	db, err := openDatabase(ctx, data)
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	g.reach, err = db.Reach(ctx, lists, g.apiPort, replicator)
	return g, err
}

// startedWith reads the command line of a process.
func startedWith(pid int) (s started, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return s, false
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return s, false
	}
	return parseStarted(strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), dir)
}

// parseStarted reads a command line as the process itself has; not ok of another program.
func parseStarted(args []string, dir string) (s started, ok bool) {
	var cli CLI
	parser, err := newParser(&cli, io.Discard, io.Discard, func(int) {})
	if err != nil {
		return s, false
	}
	cmd, err := parser.Parse(args[1:])
	if err != nil {
		return s, false
	}
	switch c := cli.Serve; cmd.Command() {
	case "serve":
		s = started{serves: true, replicates: !c.NoReplicator, replicationPort: portOf(c.ReplicationListen), vpn: c.VPN != "", metrics: c.Metrics, lists: c.PrefixLists, fence: c.FenceFlags}
	case "replicator":
		s = started{replicates: true, replicationPort: portOf(cli.Replicator.Listen), fence: cli.Replicator.FenceFlags}
	default:
		return s, false
	}
	if s.lists != "" && !filepath.IsAbs(s.lists) {
		s.lists = filepath.Join(dir, s.lists)
	}
	return s, true
}

// of is what guards a socket, and what that is; nil if nothing does.
func (g guards) of(s socket) (guard *portGuard, purpose string) {
	p, ok := g.started[s.pid]
	port := int(s.address.Port())
	switch {
	case !ok:
		return nil, ""
	case s.network == "udp" && p.vpn:
		return &portGuard{By: byKeys}, "the VPN"
	case s.network == "udp":
		return nil, ""
	case p.serves && port == g.apiPort:
		guard, purpose = &portGuard{Allowed: g.reach.API, Local: true}, "the API"
	case p.replicates && (port == p.replicationPort || p.replicationPort == 0 && port != portOf(p.metrics)):
		guard, purpose = &portGuard{Allowed: g.reach.Replication}, "replication"
	default:
		return nil, ""
	}
	guard.By, guard.Firewall, guard.unread = byGroups, p.fence.Firewall, g.unread
	for _, peer := range p.fence.ProxyProtocolFrom {
		guard.Proxies = append(guard.Proxies, peer.Prefix)
	}
	return guard, purpose
}

// findings holds what guards a port that is open beyond this machine against the rules.
func (g *portGuard) findings(port uint16) (faults, warnings []string) {
	if g == nil {
		return []string{"no security group guards it"}, nil
	}
	if g.unread != nil {
		faults = append(faults, fmt.Sprintf("the file of prefix lists is no good, so the service goes by what it held before, which is not shown here: %v", g.unread))
	}
	for _, p := range g.Proxies {
		if wide(p) {
			faults = append(faults, fmt.Sprintf("whoever connects from %v may say in a PROXY header that it is somebody else: name the proxies alone (--proxy-protocol-from)", p))
		}
	}
	for _, rule := range g.Allowed {
		for _, a := range rule.Addresses {
			if wide(a) {
				warnings = append(warnings, fmt.Sprintf("rule %s of group %s (%s) lets in everyone from %v", rule.Rule, rule.Group, rule.GroupName, a))
			}
		}
	}
	if g.Firewall == "nftables" {
		there, err := nft.Exists(port)
		switch {
		case err != nil:
			warnings = append(warnings, fmt.Sprintf("whether nftables keeps packets away cannot be seen: %v", err))
		case !there:
			warnings = append(warnings, "the kernel does not keep packets away, though --firewall nftables says so: the service is not initialized yet, or its log says why")
		}
	}
	return faults, warnings
}

// wide is whether a prefix stands for a good part of the internet, as 0.0.0.0/0 and
// ::/0 do, but so do two halves of them, and 2000::/3.
func wide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 16 && !p.Addr().IsPrivate() && !p.Addr().IsLinkLocalUnicast()
}

// lines say who gets in.
func (g *portGuard) lines() (out []string) {
	if g == nil {
		return nil
	}
	if g.By == byKeys {
		return []string{"lets in agents and invitations with a key, and answers nobody else"}
	}
	for _, p := range g.Allowed {
		out = append(out, fmt.Sprintf("lets in %s, by rule %s of group %s (%s)", whom(p), p.Rule, p.Group, p.GroupName))
	}
	if len(g.Allowed) == 0 {
		out = append(out, "lets in nobody: no security group has a rule for it")
	}
	if g.Local {
		out = append(out, "lets in this machine itself, whatever the rules say")
	}
	for _, p := range g.Proxies {
		out = append(out, fmt.Sprintf("believes the PROXY header of %v", p))
	}
	if g.Firewall == "nftables" {
		return append(out, "nftables drops the packets of everybody else")
	}
	return append(out, "resets the connections of everybody else; nftables is off")
}

// mostShown is how many addresses of a rule are printed: a prefix list may have thousands.
const mostShown = 8

// whom a rule lets in, in words.
func whom(p control.Permission) string {
	if len(p.Addresses) == 0 {
		return fmt.Sprintf("nobody (%s stands for no address)", p.Source)
	}
	var texts []string
	for _, a := range p.Addresses[:min(len(p.Addresses), mostShown)] {
		texts = append(texts, a.String())
	}
	text := strings.Join(texts, ", ")
	if more := len(p.Addresses) - mostShown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if text != p.Source {
		text += " (" + p.Source + ")"
	}
	return text
}
