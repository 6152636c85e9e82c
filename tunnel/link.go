package tunnel

import (
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// mtu is the least that IPv6 allows, so that a packet and what WireGuard adds
	// (80 bytes at most) fit through whatever is found on the way.
	mtu = 1280

	// queued is how many packets may wait for being encrypted. Who sends more waits.
	queued = 512
)

// A link is a cable from a TCP stack to WireGuard. To the stack it is a network
// interface, to WireGuard the TUN device of one.
type link struct {
	*channel.Endpoint // what comes in goes through it, what goes out does not

	out    chan *stack.PacketBuffer
	events chan tun.Event
	done   chan struct{}
	once   sync.Once
}

func newLink() *link {
	l := &link{Endpoint: channel.New(0, mtu, ""), out: make(chan *stack.PacketBuffer, queued), events: make(chan tun.Event, 1), done: make(chan struct{})}
	l.LinkEPCapabilities = stack.CapabilityRXChecksumOffload // WireGuard has verified more than a checksum does
	l.SupportedGSOKind = stack.GVisorGSOSupported
	l.events <- tun.EventUp
	return l
}

// WritePackets implements [stack.LinkEndpoint]. It waits while WireGuard has
// enough to do: dropping would only make TCP send it again.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for n, p := range pkts.AsSlice() {
		p = p.Clone() // TCP changes headers of what it sends again
		select {
		case l.out <- p:
		case <-l.done:
			p.DecRef()
			return n, &tcpip.ErrClosedForSend{}
		}
	}
	return pkts.Len(), nil
}

// Read implements [tun.Device]: it waits for a packet and takes those behind it along.
func (l *link) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	var p *stack.PacketBuffer
	select {
	case p = <-l.out:
	case <-l.done:
		return 0, os.ErrClosed
	}
	for {
		size := 0
		for _, part := range p.AsSlices() {
			size += copy(bufs[n][offset+size:], part)
		}
		p.DecRef()
		sizes[n] = size
		if n++; n == len(bufs) {
			return n, nil
		}
		select {
		case p = <-l.out:
		default:
			return n, nil
		}
	}
}

// Write implements [tun.Device].
func (l *link) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		if len(b) <= offset || b[offset]>>4 != 6 {
			continue // nothing else is spoken here
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[offset:])})
		l.InjectInbound(header.IPv6ProtocolNumber, p)
		p.DecRef()
	}
	return len(bufs), nil
}

// cut ends the link for both sides. It may be called again.
func (l *link) cut() {
	l.once.Do(func() {
		close(l.done)
		close(l.events)
	})
	for {
		select {
		case p := <-l.out:
			p.DecRef()
		default:
			return
		}
	}
}

// A plug is a link as WireGuard sees it: [stack.LinkEndpoint] and [tun.Device]
// disagree on what MTU and Close return.
type plug struct{ *link }

// Close implements [tun.Device].
func (p plug) Close() error { p.cut(); return nil }

// MTU implements [tun.Device].
func (p plug) MTU() (int, error) { return mtu, nil }

// Name implements [tun.Device].
func (p plug) Name() (string, error) { return "rehost", nil }

// File implements [tun.Device]: there is none.
func (p plug) File() *os.File { return nil }

// Events implements [tun.Device].
func (p plug) Events() <-chan tun.Event { return p.events }

// BatchSize implements [tun.Device].
func (p plug) BatchSize() int { return conn.IdealBatchSize }
