package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// keepAlive is how often a client says something, in seconds, so that what
	// translates addresses on the way does not forget it.
	keepAlive = 25

	// dialTimeout is for one connection: WireGuard begins a handshake anew every
	// five seconds.
	dialTimeout = 16 * time.Second

	// doubt is after how long without an answer the keys are doubted: a hub that
	// was started again does not know them.
	doubt = 2 * time.Second

	// renewal is the least time between two handshakes that are asked for, so that
	// connections that wait together do not end each other's.
	renewal = 5 * time.Second
)

// ClientOptions say whom a client goes to, as whom. All but Log must be set.
type ClientOptions struct {
	Key      Key
	Hub      PublicKey
	Endpoint string // host:port of the hub, UDP
	Log      *slog.Logger
}

// A Client is the end of a tunnel that goes to a hub. It is safe for concurrent use.
type Client struct {
	o   ClientOptions
	end *end

	asking  sync.Mutex // held while the hub is looked for; guards:
	renewed time.Time  // when a handshake was last asked for here
}

// A HandshakeError says that the hub does not answer, which it does not to those
// whom it does not know, either.
type HandshakeError struct {
	Endpoint string
	Hub      PublicKey
	Err      error // what is known besides, as that the name is not to be found; or nil
}

func (e *HandshakeError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("no handshake with %s: %v", e.Endpoint, e.Err)
	}
	return fmt.Sprintf("no handshake with %s: wrong key or UDP blocked", e.Endpoint)
}

func (e *HandshakeError) Unwrap() error { return e.Err }

// OpenClient makes a client. Nothing is sent before the first connection. Close it.
func OpenClient(o ClientOptions) (*Client, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if _, _, err := net.SplitHostPort(o.Endpoint); err != nil {
		return nil, fmt.Errorf("open tunnel: endpoint: %w", err)
	}
	e, err := open(o.Key, 0, o.Log)
	if err != nil {
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	c := &Client{o: o, end: e}
	if err := e.wg.IpcSet(fmt.Sprintf("public_key=%s\nallowed_ip=%s/128\n", o.Hub.hex(), o.Hub.Address())); err != nil {
		return nil, errors.Join(fmt.Errorf("open tunnel: %w", err), e.close())
	}
	return c, nil
}

// Close ends all connections. It waits, and may be called again.
func (c *Client) Close() error { return c.end.close() }

// Dial connects to a TCP port of the hub's address inside. The error is a
// [HandshakeError] where there is no hub, or none that knows the client's key.
func (c *Client) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if c.Handshake().IsZero() {
		if err := c.find(ctx); err != nil {
			return nil, err
		}
	}
	doubted := make(chan time.Time, 1)
	timer := time.AfterFunc(doubt, func() { doubted <- c.renew(ctx) })
	conn, err := c.end.dial(ctx, c.o.Hub.Address(), port)
	if err == nil {
		if !timer.Stop() {
			<-doubted
		}
		return conn, nil
	}
	var since time.Time
	if !timer.Stop() {
		since = <-doubted
	}
	if last := c.Handshake(); last.IsZero() || last.Before(since) {
		return nil, &HandshakeError{Endpoint: c.o.Endpoint, Hub: c.o.Hub}
	}
	return nil, fmt.Errorf("connect to port %d through the tunnel to %s: %w", port, c.o.Endpoint, err)
}

// Hub is the public key of the hub.
func (c *Client) Hub() PublicKey { return c.o.Hub }

// Endpoint is where the hub is looked for: host:port, UDP.
func (c *Client) Endpoint() string { return c.o.Endpoint }

// Handshake is when the last one was; zero if there was none.
func (c *Client) Handshake() time.Time { return c.end.sights()[c.o.Hub].Handshake }

// find says where the hub is, if that has changed.
func (c *Client) find(ctx context.Context) error {
	c.asking.Lock()
	defer c.asking.Unlock()
	return c.look(ctx)
}

// renew looks for the hub again and begins a handshake, whatever keys there are.
// It returns when that was done last.
func (c *Client) renew(ctx context.Context) time.Time {
	c.asking.Lock()
	defer c.asking.Unlock()
	if time.Since(c.renewed) < renewal {
		return c.renewed
	}
	c.renewed = time.Now()
	if p := c.end.wg.LookupPeer(device.NoisePublicKey(c.o.Hub)); p != nil && c.look(ctx) == nil {
		p.ExpireCurrentKeypairs()
		_ = p.SendHandshakeInitiation(false) // tried again by itself
	}
	return c.renewed
}

// look says where the hub is. The caller holds asking.
func (c *Client) look(ctx context.Context) error {
	host, service, err := net.SplitHostPort(c.o.Endpoint)
	if err != nil {
		return err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	var port int
	if err == nil {
		port, err = net.DefaultResolver.LookupPort(ctx, "udp", service)
	}
	if err != nil {
		return &HandshakeError{Endpoint: c.o.Endpoint, Hub: c.o.Hub, Err: err}
	}
	now := c.end.sights()[c.o.Hub].Endpoint
	next := 0
	for i, ip := range ips {
		if endpoint(ip, port) == now {
			next = (i + 1) % len(ips) // one that does not answer makes room
		}
	}
	return c.end.wg.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%s\npersistent_keepalive_interval=%d\n", c.o.Hub.hex(), endpoint(ips[next], port), keepAlive))
}

func endpoint(ip netip.Addr, port int) string {
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)).String()
}
