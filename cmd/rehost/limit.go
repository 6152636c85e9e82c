package main

import (
	"net"
	"net/netip"
	"sync"
)

// Connections to the API cost memory before anybody has proven anything. So
// there is a limit, and a lower one for each address, so that one stranger
// cannot keep everyone else out.
const (
	maxConnections        = 4096
	maxConnectionsPerPeer = 512 // agents behind one address use one or two each
)

// A limiter closes connections beyond the limits as they come.
type limiter struct {
	net.Listener
	total, each int

	mu   sync.Mutex
	open int                // guarded by mu
	from map[netip.Addr]int // guarded by mu
}

func limit(l net.Listener, total, each int) *limiter {
	return &limiter{Listener: l, total: total, each: each, from: map[netip.Addr]int{}}
}

// Accept implements [net.Listener].
func (l *limiter) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := addressOf(c)
		if l.admit(peer) {
			return &limited{Conn: c, leave: sync.OnceFunc(func() { l.leave(peer) })}, nil
		}
		c.Close()
	}
}

func addressOf(c net.Conn) netip.Addr {
	if t, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (l *limiter) admit(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == l.total || l.from[peer] == l.each {
		return false
	}
	l.open++
	l.from[peer]++
	return true
}

func (l *limiter) leave(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[peer]--; l.from[peer] == 0 {
		delete(l.from, peer)
	}
}

type limited struct {
	net.Conn
	leave func()
}

// Close implements [net.Conn].
func (c *limited) Close() error {
	c.leave()
	return c.Conn.Close()
}
