package fault

import (
	"net"
	"sync"
	"testing"
	"time"
)

// A Proxy stands between a client and a server on loopback and is a bad network
// when it is told to be. All methods may be called concurrently.
type Proxy struct {
	Address string // where clients connect to

	to       string
	listener net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex // guards:
	conns map[net.Conn]bool
	delay time.Duration
	left  int64         // bytes that each direction of a connection may still carry; below 0: any number
	held  chan struct{} // nothing passes before it is closed; nil: all does
	over  bool
}

// Between makes a proxy to an address, which closes with the test.
func Between(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: l.Addr().String(), to: to, listener: l, conns: map[net.Conn]bool{}, left: -1}
	p.done.Go(p.serve)
	t.Cleanup(func() {
		p.mu.Lock()
		p.over = true
		p.mu.Unlock()
		_ = l.Close()
		p.Heal()
		p.Cut()
		p.done.Wait()
	})
	return p
}

func (p *Proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.done.Go(func() { p.join(client) })
	}
}

func (p *Proxy) join(client net.Conn) {
	defer p.forget(client)
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer p.forget(server)
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	over := p.over
	p.mu.Unlock()
	if over {
		return
	}
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{client: server, server: client} {
		both.Go(func() {
			p.carry(from, to)
			_ = from.Close() // and with it the other direction
			_ = to.Close()
		})
	}
	both.Wait()
}

func (p *Proxy) forget(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// carry brings bytes from one side to the other until one of them is gone or the
// network has enough.
func (p *Proxy) carry(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	carried := int64(0)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		delay, left, held := p.delay, p.left, p.held
		p.mu.Unlock()
		if held != nil {
			<-held
		}
		time.Sleep(delay)
		if left >= 0 && carried+int64(n) > left {
			_, _ = to.Write(buf[:max(0, left-carried)])
			return
		}
		if left >= 0 {
			carried += int64(n)
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// Cut ends every connection; the next ones are carried.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// Delay makes whatever passes late, until [Proxy.Heal].
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Hold lets nothing pass, and nobody know, until [Proxy.Heal].
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// Truncate ends each connection after so many bytes in one direction, in the middle
// of whatever that is, until [Proxy.Heal].
func (p *Proxy) Truncate(after int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = after
}

// Heal makes the network a good one again.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
	p.delay, p.left = 0, -1
}
