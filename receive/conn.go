package receive

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"rehost/ca"
	"rehost/wire"
)

const (
	// lastWords is how long the end of a connection tries to be heard.
	lastWords = 2 * time.Second

	// lingerBytes is how much of what is under way is thrown away meanwhile:
	// closing with bytes unread would reset the connection, and the ERROR with it.
	lingerBytes = 64 << 20
)

// A conn is one connection of an agent.
type conn struct {
	*wire.Conn
	raw net.Conn
	in  *wire.Link
	tls *tls.Conn

	greeted bool // both prefaces agree: the other side understands frames
}

func newConn(raw net.Conn, config Config) *conn {
	in := wire.NewLink(raw, wire.DeadAfter*config.KeepAlive)
	tc := tls.Server(in, config.Endpoint.ServerConfig(ca.SourceServer))
	return &conn{Conn: wire.NewConn(tc, in), raw: raw, in: in, tls: tc}
}

// greet goes from the first byte to the HELLO, and checks that it speaks of the
// one whose certificate it is.
func (c *conn) greet(ctx context.Context) (h wire.Hello, err error) {
	if err := c.tls.HandshakeContext(ctx); err != nil {
		return h, fmt.Errorf("TLS handshake: %w", err)
	}
	name, err := peerName(c)
	if err != nil {
		return h, err
	}
	err = c.ReadPreface()
	var version *wire.VersionError
	if err == nil || errors.As(err, &version) { // whoever speaks the language hears which version we speak
		err = errors.Join(err, c.WritePreface())
	}
	if err != nil {
		return h, fmt.Errorf("greet %s: %w", name, err)
	}
	c.greeted = true
	m, err := c.Read(wire.TypeHello)
	if err != nil {
		return h, fmt.Errorf("greet %s: %w", name, err)
	}
	h = m.(wire.Hello)
	if h.Server != name.ID {
		return h, &wire.RefusedError{Code: wire.UnknownServer,
			Message: fmt.Sprintf("the certificate is of %s, but HELLO says %q", name.ID, h.Server),
			Hint:    "install the agent again on this machine"}
	}
	return h, nil
}

func (c *conn) certificate() *x509.Certificate { return c.tls.ConnectionState().PeerCertificates[0] }

// keepAlive sends signs of life until stop, which waits and may be called twice.
func (c *conn) keepAlive(every time.Duration) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				if c.Write(wire.Alive{}) != nil {
					return // reading will say why
				}
			}
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() {
			c.raw.SetWriteDeadline(time.Now().Add(lastWords))
			close(quit)
		})
		<-done
	}
}

// finish says why the connection ends, if there is something to say, and ends it.
func (c *conn) finish(problem *wire.RefusedError) {
	defer c.raw.Close()
	if problem == nil || !c.greeted {
		return
	}
	c.raw.SetWriteDeadline(time.Now().Add(lastWords))
	if c.Write(problem) != nil || c.tls.CloseWrite() != nil {
		return
	}
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // where that fails, what is read next ends
	}
	c.raw.SetReadDeadline(time.Now().Add(lastWords))
	_, _ = io.CopyN(io.Discard, c.raw, lingerBytes)
}
