package main

import (
	"crypto/sha256"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Connections to the API cost memory before anybody has proven anything. So
// there is a limit for those who have not, and a lower one for each address,
// that one stranger cannot keep everyone else out. A connection counts so until
// TLS has verified a certificate of this service on it: agents keep one or two
// open each, and ten thousand of them may share an address.
const (
	maxConnections    = 16384 // all of them
	maxStrangers      = 4096  // without a certificate
	maxPerCertificate = 64    // more count as strangers: one agent cannot have them all
)

// A limiter closes connections beyond the limits as they come.
type limiter struct {
	net.Listener
	total, strangers, each int

	// Guarded by mu.
	mu      sync.Mutex
	open    int                // all connections
	unknown int                // those that have shown no certificate
	from    map[netip.Addr]int // the same, of each address
	of      map[[32]byte]int   // those that have shown one, of each certificate
}

func limit(l net.Listener, total, strangers, each int) *limiter {
	return &limiter{Listener: l, total: total, strangers: strangers, each: each, from: map[netip.Addr]int{}, of: map[[32]byte]int{}}
}

// Accept implements [net.Listener].
func (l *limiter) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := siteOf(c)
		if l.admit(peer) {
			return &limited{Conn: c, limiter: l, peer: peer}, nil
		}
		c.Close()
	}
}

// siteOf is the address that a connection counts for; of IPv6 its /64, of which
// whoever has an address has all.
func siteOf(c net.Conn) netip.Addr {
	t, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := t.AddrPort().Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

func (l *limiter) admit(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.total || l.unknown >= l.strangers || l.from[peer] >= l.each {
		return false
	}
	l.open++
	l.unknown++
	l.from[peer]++
	return true
}

// forget takes one off the strangers. The caller holds the lock.
func (l *limiter) forget(peer netip.Addr) {
	l.unknown--
	if l.from[peer]--; l.from[peer] == 0 {
		delete(l.from, peer)
	}
}

// A limited is a connection that counts until it is closed.
type limited struct {
	net.Conn
	limiter *limiter
	peer    netip.Addr

	// Guarded by limiter.mu.
	certificate *[32]byte // nil: a stranger's
	closed      bool
}

// Close implements [net.Conn].
func (c *limited) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (c *limited) leave() {
	l := c.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	l.open--
	if c.certificate == nil {
		l.forget(c.peer)
	} else if l.of[*c.certificate]--; l.of[*c.certificate] == 0 {
		delete(l.of, *c.certificate)
	}
}

// proven makes the connection one of the holder of a certificate, unless that
// one has enough.
func (c *limited) proven(certificate [32]byte) {
	l := c.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed || c.certificate != nil || l.of[certificate] >= maxPerCertificate {
		return
	}
	l.forget(c.peer)
	l.of[certificate]++
	c.certificate = &certificate
}

// noteCertificate is for [http.Server.ConnState]: a connection is active when
// its TLS handshake is over and a request begins.
func noteCertificate(c net.Conn, state http.ConnState) {
	t, ok := c.(*tls.Conn)
	if !ok || state != http.StateActive {
		return
	}
	raw, ok := t.NetConn().(*limited)
	if chains := t.ConnectionState().VerifiedChains; ok && len(chains) > 0 {
		raw.proven(sha256.Sum256(chains[0][0].Raw))
	}
}
