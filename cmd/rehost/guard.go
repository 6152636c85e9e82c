package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"rehost/fence"
	"rehost/fence/nft"
)

// FenceFlags say how it is decided who may connect; who may, the security groups do.
type FenceFlags struct {
	ProxyProtocolFrom []peers `help:"Addresses or CIDRs of proxies, whose connections must begin with a PROXY header (version 1 or 2) and count for the address in it. Nobody else's header is believed." placeholder:"ADDRESS"`
	Firewall          string  `help:"Whether the kernel keeps packets away, too: none, or nftables, in a table of its own for each port (rehost-PORT)." default:"none" enum:"none,nftables"`
}

// peers are addresses as flags have them: one, or a CIDR of them.
type peers struct{ netip.Prefix }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *peers) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil && a.Zone() == "" {
		p.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	prefix, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("%.60q is neither an address nor a CIDR", text)
	}
	p.Prefix = prefix
	return nil
}

// options adds what the flags say to the options of a fence around a listener.
func (f FenceFlags) options(l net.Listener, o fence.Options) (fence.Options, error) {
	for _, p := range f.ProxyProtocolFrom {
		o.Proxies = append(o.Proxies, p.Prefix)
	}
	if f.Firewall != "nftables" {
		return o, nil
	}
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return o, err
	}
	table, err := nft.Open(at)
	if err != nil {
		return o, fmt.Errorf("--firewall nftables: %w", err)
	}
	o.Firewall = table
	return o, nil
}

// guarded listens behind a fence that lets this machine itself in.
func (f FenceFlags) guarded(address string, o fence.Options) (*fence.Listener, error) {
	o.Local = true
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	if o, err = f.options(l, o); err == nil {
		err = apart(o.Proxies, l.Addr())
	}
	if err != nil {
		if o.Firewall != nil {
			err = errors.Join(err, o.Firewall.Close())
		}
		return nil, errors.Join(err, l.Close())
	}
	return fence.New(l, o), nil
}

// apart refuses proxies with the addresses that this machine's own programs call
// the API from, which send no header.
func apart(proxies []netip.Prefix, at net.Addr) error {
	rules := fence.NewRules(proxies)
	for _, own := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), at.(*net.TCPAddr).AddrPort().Addr()} {
		if rules.Allows(own) && !own.IsUnspecified() {
			return fmt.Errorf("--proxy-protocol-from has %v, from which this machine's own programs call the API without a header: have the proxy connect from another address, as 127.0.0.2 (source in HAProxy, proxy_bind in nginx)", own)
		}
	}
	return nil
}

// portOf is the port of an address to listen at, 0 if the kernel chooses it or
// the address is none.
func portOf(address string) int {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return 0
	}
	return n
}

// guard keeps the fence around the API as its security group says, until ctx ends.
// What it cannot find out changes nothing.
func (s *served) guard(ctx context.Context) {
	note := s.noteOf("security groups: the fence around the API is not renewed", "security groups: the fence around the API is renewed")
	before := "nothing yet"
	for revision := int64(0); ctx.Err() == nil; {
		allowed, newer, err := s.service.APIReach(ctx, revision)
		if ctx.Err() != nil {
			return
		}
		rules := fence.NewRules(allowed)
		if now := fmt.Sprint(rules.Prefixes()); err == nil && now != before {
			if err = s.listener.Use(rules); err == nil {
				before = now
			}
		}
		note(err)
		revision = newer
		if err != nil {
			revision = 0
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}
