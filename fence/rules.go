package fence

import (
	"net/netip"
	"slices"
)

// Rules say which addresses may connect. They are never changed, and safe for
// concurrent use; nil lets nobody in.
type Rules struct {
	allowed []netip.Prefix // sorted, disjoint
}

// NewRules makes rules that allow all addresses in the prefixes. Of IPv4, a
// prefix of the addresses mapped into IPv6 (::ffff:192.0.2.0/120) is the same as
// the plain one; the zone of an address does not count.
func NewRules(prefixes []netip.Prefix) *Rules {
	r := new(Rules)
	all := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if p = plain(p); p.IsValid() {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	for _, p := range all {
		if n := len(r.allowed); n == 0 || !r.allowed[n-1].Overlaps(p) { // of two that overlap, the later is inside the earlier
			r.allowed = append(r.allowed, p)
		}
	}
	return r
}

// plain is a prefix in the one form that there is of it; the zero prefix if it is none.
func plain(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// Allows is whether the address may connect.
func (r *Rules) Allows(a netip.Addr) bool {
	if r == nil {
		return false
	}
	a = a.Unmap().WithZone("")
	i, found := slices.BinarySearchFunc(r.allowed, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if !found {
		i-- // the last that begins before it
	}
	return i >= 0 && r.allowed[i].Contains(a)
}

// Prefixes are what the rules allow: sorted, none twice and none inside another.
// They are not the caller's to change.
func (r *Rules) Prefixes() []netip.Prefix {
	if r == nil {
		return nil
	}
	return r.allowed
}
