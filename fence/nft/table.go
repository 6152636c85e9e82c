package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"rehost/fence"
)

// A Table is table inet rehost-PORT: one chain that drops what comes for a TCP port
// from elsewhere than the addresses in its two sets. What comes over the loopback
// device passes, for the listener to decide. It implements [fence.Firewall], and its
// methods may be called concurrently.
//
// After a crash the table stays, and with it the port closed to those who were not
// allowed before; the next program that opens it replaces it.
type Table struct {
	address netip.Addr // that the port is of; unspecified: of all
	port    uint16
	name    string

	mu     sync.Mutex
	closed bool // guarded by mu
}

var _ fence.Firewall = (*Table)(nil)

// priority puts the chain a little before those that distributions make for their
// firewalls, so that these still see what it accepts.
const priority = nftables.ChainPriority(-10)

// Open makes sure that the kernel lets this program have a table for the port.
// There is none before the first [Table.Allow].
func Open(at netip.AddrPort) (*Table, error) {
	t := &Table{address: at.Addr().Unmap().WithZone(""), port: at.Port(), name: tableName(at.Port())}
	c, err := nftables.New()
	if err == nil {
		_, err = c.ListTablesOfFamily(nftables.TableFamilyINet)
	}
	if err == nil { // which any program may ask; changing something is another matter
		c.AddTable(t.table())
		c.DelTable(t.table())
		err = c.Flush()
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("nftables for port %d: %w: it needs CAP_NET_ADMIN", t.port, err)
	case err != nil:
		return nil, fmt.Errorf("nftables for port %d: %w: has this kernel nf_tables?", t.port, err)
	}
	return t, nil
}

// Exists is whether the kernel has a table for the port now, whoever has made it.
func Exists(port uint16) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName(port) }), err
}

func tableName(port uint16) string { return fmt.Sprintf("rehost-%d", port) }

func (t *Table) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: t.name}
}

// replace begins a transaction after which the table is another one.
func (t *Table) replace() (*nftables.Conn, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	c.AddTable(t.table()) // if there is none there is none to delete
	c.DelTable(t.table())
	return c, nil
}

// Allow implements [fence.Firewall].
func (t *Table) Allow(prefixes []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return os.ErrClosed
	}
	c, err := t.replace()
	if err == nil {
		if err = t.fill(c, prefixes); err == nil {
			err = c.Flush()
		}
	}
	if err != nil {
		return fmt.Errorf("nftables for port %d: %w", t.port, err)
	}
	return nil
}

// Close implements [fence.Firewall].
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	c, err := t.replace()
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("nftables for port %d: remove the table: %w", t.port, err)
	}
	return nil
}

// A family is where one has what.
type family struct {
	number byte
	key    nftables.SetDatatype
	set    string
	size   uint32 // bytes of an address
	source uint32 // offset in the header
	target uint32 // of the destination
}

var families = []family{
	{number: unix.NFPROTO_IPV4, key: nftables.TypeIPAddr, set: "allowed4", size: 4, source: 12, target: 16},
	{number: unix.NFPROTO_IPV6, key: nftables.TypeIP6Addr, set: "allowed6", size: 16, source: 8, target: 24},
}

// maxBatch is how many elements go into a message: its length has 16 bits.
const maxBatch = 500

func (t *Table) fill(c *nftables.Conn, prefixes []netip.Prefix) error {
	table := c.AddTable(t.table())
	accept, at := nftables.ChainPolicyAccept, priority
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: &at, Policy: &accept})
	loopback := make([]byte, unix.IFNAMSIZ)
	copy(loopback, "lo")
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(is(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, loopback), &expr.Verdict{Kind: expr.VerdictAccept})})
	for _, f := range families {
		if !t.address.IsUnspecified() && t.address.BitLen() != int(8*f.size) {
			continue // nothing of this family comes to that address
		}
		set := &nftables.Set{Table: table, Name: f.set, KeyType: f.key, Interval: true}
		elements := intervals(prefixes, int(8*f.size))
		first := elements[:min(maxBatch, len(elements))]
		if err := c.AddSet(set, first); err != nil {
			return err
		}
		for rest := elements[len(first):]; len(rest) > 0; {
			n := min(maxBatch, len(rest))
			if err := c.SetAddElements(set, rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
		}
		match := t.towards(f)
		from := append(match, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.source, Len: f.size},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}, &expr.Verdict{Kind: expr.VerdictAccept})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: from})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(t.towards(f), &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	return nil
}

// towards matches what comes for the port in a family.
func (t *Table) towards(f family) []expr.Any {
	out := is(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, []byte{f.number})
	out = append(out, is(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, []byte{unix.IPPROTO_TCP})...)
	out = append(out, is(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, binaryutil.BigEndian.PutUint16(t.port))...)
	if !t.address.IsUnspecified() {
		out = append(out, is(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.target, Len: f.size}, t.address.AsSlice())...)
	}
	return out
}

// is loads something into register 1 and compares it.
func is(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// intervals are the elements of a set of the prefixes with addresses of so many
// bits. Each begins with its first address and ends before the next one that is not
// in it; of two that meet one is made, and one that reaches the last address has no end.
func intervals(prefixes []netip.Prefix, bits int) []nftables.SetElement {
	var out []nftables.SetElement
	open := false // the last of out begins, and has no end yet
	var end netip.Addr
	for _, p := range prefixes { // sorted and disjoint, as fence.Firewall has them
		if p.Addr().BitLen() != bits {
			continue
		}
		if open && p.Addr() != end {
			out, open = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true}), false
		}
		if !open {
			out, open = append(out, nftables.SetElement{Key: p.Addr().AsSlice()}), true
		}
		if end = after(p); !end.IsValid() {
			return out
		}
	}
	if open {
		out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return out
}

// after is the address behind the last of a prefix, the zero address if there is none.
func after(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	host := p.Addr().BitLen() - p.Bits()
	high, low := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	if host < 64 {
		low |= 1<<host - 1
	} else {
		low = ^uint64(0)
		high |= 1<<(host-64) - 1
	}
	binary.BigEndian.PutUint64(b[:8], high)
	binary.BigEndian.PutUint64(b[8:], low)
	last := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		last = last.Unmap()
	}
	return last.Next()
}
