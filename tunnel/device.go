package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// nic is the number of the one network interface of a stack.
const nic = 1

// An end is one end of a tunnel: WireGuard on a UDP port, and a TCP stack on it.
type end struct {
	key   Key
	wg    *device.Device
	stack *stack.Stack
	link  *link

	mu     sync.Mutex // guards:
	conns  map[*tracked]struct{}
	closed bool
}

// open makes an end that listens on the UDP port, of all addresses of the
// machine as WireGuard does; 0 is any.
func open(key Key, port uint16, log *slog.Logger) (*end, error) {
	e := &end{key: key, link: newLink(), conns: map[*tracked]struct{}{}}
	e.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := e.configure(); err != nil {
		e.link.cut()
		e.stack.Destroy()
		return nil, err
	}
	e.wg = device.NewDevice(plug{e.link}, socket{conn.NewDefaultBind()}, &device.Logger{
		Verbosef: func(string, ...any) {},
		Errorf:   func(format string, args ...any) { log.Warn("WireGuard: " + fmt.Sprintf(format, args...)) },
	})
	err := e.wg.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", key.hex(), port))
	if err == nil {
		err = e.wg.Up()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open UDP port %d: %w", port, err), e.close())
	}
	return e, nil
}

func (e *end) configure() error {
	// Selective acknowledgements are off in this stack if nobody asks for them.
	// RACK is not used, since losses were seen to stop a stream for good with it
	// (https://github.com/google/gvisor/issues/9778).
	sack, recovery := tcpip.TCPSACKEnabled(true), tcpip.TCPRecovery(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &recovery} {
		if err := e.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set up TCP: %v", err)
		}
	}
	if err := e.stack.CreateNIC(nic, e.link); err != nil {
		return fmt.Errorf("set up TCP: %v", err)
	}
	address := tcpip.AddrFrom16(e.key.Public().Address().As16())
	if err := e.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: address.WithPrefix()}, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("set up TCP: %v", err)
	}
	e.stack.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nic})
	return nil
}

// close ends everything and waits. It may be called again.
func (e *end) close() error {
	e.mu.Lock()
	closed := e.closed
	e.closed = true
	e.mu.Unlock()
	if closed {
		return nil
	}
	e.cutOff(func(netip.Addr, uint16) bool { return false })
	e.wg.Close() // and with it the link
	<-e.wg.Wait()
	e.stack.Destroy()
	e.link.cut() // what the stack has said last
	return nil
}

// port is the UDP port.
func (e *end) port() (port uint16) {
	e.look(func(key, value string) {
		if n, err := strconv.ParseUint(value, 10, 16); key == "listen_port" && err == nil {
			port = uint16(n)
		}
	})
	return port
}

// look goes through what WireGuard says of itself and its peers, line by line.
func (e *end) look(see func(key, value string)) {
	text, err := e.wg.IpcGet()
	if err != nil {
		return // closed
	}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), "="); ok {
			see(key, value)
		}
	}
}

// A Sight is a peer as WireGuard has seen it since the end was opened, or the peer
// let in.
type Sight struct {
	Endpoint       string    // where it was heard last, "" if never
	Handshake      time.Time // of the last one; zero if there was none
	Received, Sent int64     // bytes, of the UDP datagrams' contents
}

// sights are those of all peers.
func (e *end) sights() map[PublicKey]Sight {
	all, of := map[PublicKey]Sight{}, PublicKey{}
	e.look(func(key, value string) {
		s := all[of]
		switch key {
		case "public_key":
			var n device.NoisePublicKey
			_ = n.FromHex(value) // of WireGuard itself
			of = PublicKey(n)
			s = Sight{}
		case "endpoint":
			s.Endpoint = value
		case "rx_bytes":
			s.Received, _ = strconv.ParseInt(value, 10, 64)
		case "tx_bytes":
			s.Sent, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_sec":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && n > 0 {
				s.Handshake = time.Unix(n, 0)
			}
		case "last_handshake_time_nsec":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && !s.Handshake.IsZero() {
				s.Handshake = s.Handshake.Add(time.Duration(n))
			}
		}
		if of != (PublicKey{}) {
			all[of] = s
		}
	})
	return all
}

func at(address netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom16(address.As16()), Port: port}
}

func (e *end) dial(ctx context.Context, address netip.Addr, port uint16) (net.Conn, error) {
	c, err := gonet.DialContextTCP(ctx, e.stack, at(address, port), ipv6.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	return e.track(&tracked{Conn: c, end: e, abort: func() { c.Close() }})
}

// A tracked connection is known to its end, which ends it when its peer goes.
type tracked struct {
	net.Conn
	end   *end
	peer  netip.Addr // that has come
	port  uint16     // that it has come to
	abort func()     // closes it without telling the other side
	once  sync.Once
}

func (e *end) track(t *tracked) (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		t.abort()
		return nil, net.ErrClosed
	}
	e.conns[t] = struct{}{}
	return t, nil
}

// Close implements [net.Conn].
func (t *tracked) Close() (err error) {
	t.once.Do(func() {
		t.forget()
		err = t.Conn.Close()
	})
	return err
}

func (t *tracked) forget() {
	t.end.mu.Lock()
	delete(t.end.conns, t)
	t.end.mu.Unlock()
}

// cutOff ends the connections that do not stay.
func (e *end) cutOff(stays func(peer netip.Addr, port uint16) bool) {
	e.mu.Lock()
	var gone []*tracked
	for t := range e.conns {
		if !stays(t.peer, t.port) {
			gone = append(gone, t)
		}
	}
	e.mu.Unlock()
	for _, t := range gone {
		t.once.Do(func() {
			t.forget()
			t.abort()
		})
	}
}
