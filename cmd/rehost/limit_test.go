package main

import (
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// TestLimiter: one address cannot take every place, and a place that is given
// back can be taken again.
func TestLimiter(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limit(inner, 3, 3, 2)
	defer l.Close()
	accepted := make(chan net.Conn, 8)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused := func(c net.Conn) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("a connection beyond the limit is open: %v", err)
		}
	}
	dial("127.0.0.1")
	first := <-accepted
	dial("127.0.0.1")
	<-accepted
	refused(dial("127.0.0.1"))
	dial("127.0.0.2")
	other := <-accepted
	refused(dial("127.0.0.3")) // all places are taken
	first.Close()
	first.Close() // counts once
	dial("127.0.0.3")
	(<-accepted).Close()
	other.Close()
}

// TestLimiter_Certificates: who has shown a certificate leaves the place among
// the strangers of its address to the next; but only so often.
func TestLimiter_Certificates(t *testing.T) {
	l := limit(nil, 200, 150, 2)
	var open []*limited
	enter := func(address net.IP) *limited {
		a, b := net.Pipe()
		t.Cleanup(func() { b.Close() })
		c := &limited{Conn: addressed{a, &net.TCPAddr{IP: address}}, limiter: l}
		if c.peer = siteOf(c.Conn); !l.admit(c.peer) {
			a.Close()
			return nil
		}
		open = append(open, c)
		return c
	}
	nat := net.IPv4(192, 0, 2, 1)
	for n := range 100 { // a fleet behind one address
		c := enter(nat)
		if c == nil {
			t.Fatalf("agent %d is kept out", n)
		}
		c.proven([32]byte{byte(n)})
		c.proven([32]byte{byte(n)}) // counts once
	}
	for enter(nat) != nil {
	}
	if len(open) != 102 {
		t.Errorf("%d strangers of one address, want 2", len(open)-100)
	}
	open[len(open)-1].Close()
	open[len(open)-2].Close()
	thief, kept := [32]byte{255}, 0
	for range 80 { // one certificate, many connections
		c := enter(nat)
		if c == nil {
			break
		}
		if c.proven(thief); c.certificate != nil {
			kept++
		}
	}
	if kept != maxPerCertificate {
		t.Errorf("one certificate has %d connections, want %d", kept, maxPerCertificate)
	}
	for i := range 4 { // addresses of one site of IPv6
		if c := enter(net.ParseIP("2001:db8::" + string(rune('1'+i)))); (c == nil) != (i >= 2) {
			t.Errorf("address %d of one /64: admitted %v", i, c != nil)
		}
	}
	for _, c := range open {
		c.Close()
		c.Close()
	}
	if l.open != 0 || l.unknown != 0 || len(l.from) != 0 || len(l.of) != 0 {
		t.Errorf("after all are closed: %d open, %d unknown, %v, %v", l.open, l.unknown, l.from, l.of)
	}
}

// addressed is a connection from an address.
type addressed struct {
	net.Conn
	from net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.from }

// TestLimiter_TLS takes an agent's certificate through a real handshake.
func TestLimiter_TLS(t *testing.T) {
	s := startAPI(t, apiTimeouts, 1)
	agent := s.client(s.agent())
	for n := range 5 {
		c, err := tls.Dial("tcp", s.address, agent)
		if err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
		defer c.Close()
		if got := ask(c); got != http.StatusOK {
			t.Fatalf("connection %d: status %d", n, got)
		}
	}
	stranger, err := tls.Dial("tcp", s.address, s.client())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if got := ask(stranger); got != http.StatusOK {
		t.Fatalf("the first stranger: status %d", got)
	}
	if _, err := tls.Dial("tcp", s.address, s.client()); err == nil {
		t.Error("a second stranger of the address has a connection")
	}
}
