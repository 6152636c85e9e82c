package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// The TCP ports inside, whatever those outside are.
const (
	APIPort         = 8443
	ReplicationPort = 1500
)

// A Peer is who may come to a [Hub].
type Peer struct {
	Key   PublicKey
	Ports []uint16 // that it may connect to, inside; nil: all that are listened on
}

// A Hub is the end of a tunnel that others come to. It is safe for concurrent use.
type Hub struct {
	end  *end
	key  PublicKey
	port uint16
	log  *slog.Logger

	mu        sync.Mutex // guards:
	peers     map[PublicKey]Peer
	addresses map[netip.Addr]PublicKey
	listeners []*listener
}

// OpenHub opens the UDP port, on all addresses of the machine as WireGuard does;
// 0 is any. Nobody may come before [Hub.SetPeers]. Close it.
func OpenHub(key Key, port uint16, log *slog.Logger) (*Hub, error) {
	e, err := open(key, port, log)
	if err != nil {
		return nil, err
	}
	return &Hub{end: e, key: key.Public(), port: e.port(), log: log, peers: map[PublicKey]Peer{}, addresses: map[netip.Addr]PublicKey{}}, nil
}

// Key is the hub's public key, which clients have to know.
func (h *Hub) Key() PublicKey { return h.key }

// Port is the UDP port.
func (h *Hub) Port() uint16 { return h.port }

// Close ends all connections and frees the port. It waits, and may be called again.
func (h *Hub) Close() error {
	h.mu.Lock()
	listeners := slices.Clone(h.listeners)
	h.mu.Unlock()
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, h.end.close())...)
}

// SetPeers says who may come from now on. Who may no more is gone when it
// returns: its connections are closed, its key opens nothing and is not answered.
// Where somebody may connect to less than before, what is too much is closed.
// An error tells of those who cannot be let in; the others are.
func (h *Hub) SetPeers(peers []Peer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	want, addresses, errs := map[PublicKey]Peer{}, map[netip.Addr]PublicKey{}, []error(nil)
	for _, p := range peers {
		other, taken := addresses[p.Key.Address()]
		switch {
		case p.Key == h.key:
			errs = append(errs, fmt.Errorf("let in %s: it is the hub's own key", p.Key))
		case taken && other != p.Key: // somebody has searched long for this
			errs = append(errs, fmt.Errorf("let in %s: its address is that of %s", p.Key, other))
		case taken && want[p.Key].Ports == nil: // it may do all already
		default:
			want[p.Key], addresses[p.Key.Address()] = p, p.Key
		}
	}
	for key := range h.peers {
		if _, stays := want[key]; !stays {
			h.end.wg.RemovePeer(device.NoisePublicKey(key))
		}
	}
	var news strings.Builder
	for key := range want {
		if _, known := h.peers[key]; !known {
			fmt.Fprintf(&news, "public_key=%s\nallowed_ip=%s/128\n", key.hex(), key.Address())
		}
	}
	h.peers, h.addresses = want, addresses
	h.end.cutOff(h.allows)
	if news.Len() > 0 {
		errs = append(errs, h.end.wg.IpcSet(news.String()))
	}
	return errors.Join(errs...)
}

// Sights are what the hub has seen of those who may come.
func (h *Hub) Sights() map[PublicKey]Sight { return h.end.sights() }

// Listen listens on a TCP port of the hub's address inside. Close the listener
// before the hub, or let the hub do it.
func (h *Hub) Listen(port uint16) (net.Listener, error) {
	l := &listener{hub: h, port: port, done: make(chan struct{})}
	inner, err := h.end.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, &l.queue)
	if err == nil {
		if err = inner.Bind(at(h.key.Address(), port)); err == nil {
			err = inner.Listen(backlog)
		}
		if err != nil {
			inner.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on port %d in the tunnel: %v", port, err)
	}
	l.inner = inner
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listeners = append(h.listeners, l)
	return l, nil
}

// backlog is how many connections may wait for being accepted.
const backlog = 1024

// A listener is on one port of a hub.
type listener struct {
	inner tcpip.Endpoint
	queue waiter.Queue
	hub   *Hub
	port  uint16
	once  sync.Once
	done  chan struct{}
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.queue.EventRegister(&entry)
	defer l.queue.EventUnregister(&entry)
	for {
		var from tcpip.FullAddress
		inner, queue, err := l.inner.Accept(&from)
		switch err.(type) {
		case nil:
			if c, err := l.admit(gonet.NewTCPConn(queue, inner), inner, netip.AddrFrom16(from.Addr.As16())); err == nil {
				return c, nil
			}
		case *tcpip.ErrWouldBlock:
			select {
			case <-ready:
			case <-l.done:
				return nil, net.ErrClosed
			}
		default:
			return nil, net.ErrClosed
		}
	}
}

// admit takes a connection of who may connect here, under the lock under which
// it is said who may: nobody slips through.
func (l *listener) admit(c net.Conn, inner tcpip.Endpoint, from netip.Addr) (net.Conn, error) {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	if !l.hub.allows(from, l.port) {
		inner.Abort()
		return nil, net.ErrClosed
	}
	return l.hub.end.track(&tracked{Conn: c, end: l.hub.end, peer: from, port: l.port, abort: inner.Abort})
}

// allows is whether the holder of an address may connect. The caller holds mu.
func (h *Hub) allows(address netip.Addr, port uint16) bool {
	key, known := h.addresses[address]
	return known && (h.peers[key].Ports == nil || slices.Contains(h.peers[key].Ports, port))
}

// Close implements [net.Listener]. It may be called again.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.inner.Close()
		l.hub.mu.Lock()
		defer l.hub.mu.Unlock()
		l.hub.listeners = slices.DeleteFunc(l.hub.listeners, func(o *listener) bool { return o == l })
	})
	return nil
}

// Addr implements [net.Listener].
func (l *listener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.hub.key.Address(), l.port))
}
