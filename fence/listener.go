package fence

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Firewall keeps packets away from a port in the kernel, beside a [Listener].
type Firewall interface {
	// Allow lets the addresses in these prefixes reach the port and nobody else,
	// instead of those from before, at once. They are sorted and disjoint.
	Allow(prefixes []netip.Prefix) error
	// Close leaves the port as open as it was without the firewall. It may be
	// called twice.
	Close() error
}

// Options of a [Listener]. The zero value is no proxies and no exceptions.
type Options struct {
	// Proxies are the peers whose connections must begin with a PROXY header,
	// version 1 or 2, and count for the address in it. A header from anybody
	// else is never read as one.
	Proxies []netip.Prefix
	// Local lets this machine in whatever the rules say: whoever connects from
	// loopback, or from the very address that it connects to. What comes through
	// a proxy is not local.
	Local bool
	// Firewall, if not nil, gets all rules too. The listener closes it.
	Firewall Firewall
	// Logger hears of connections that are cut, and of those refused at most
	// every ten seconds; nil discards.
	Logger *slog.Logger
	// HeaderTimeout is how long a proxy may take for its header; 0 means 5 s.
	HeaderTimeout time.Duration
}

// maxArriving is how many connections of proxies may be without their header at
// a time: more are closed.
const maxArriving = 256

// refusedEvery is how often refused connections are logged: strangers cause them.
const refusedEvery = 10 * time.Second

// A Listener lets connections through that its rules allow; before the first
// [Listener.Use] they wait. What it refuses is reset without a word. It
// implements [net.Listener], and its methods may be called concurrently.
type Listener struct {
	inner   net.Listener
	options Options
	proxies *Rules
	log     *slog.Logger

	accepted chan net.Conn
	failed   chan error
	done     chan struct{}
	ruled    chan struct{} // closed by the first Use
	rule     func()        // closes it
	close    func() error
	running  sync.WaitGroup // run, and the readers of headers

	use sync.Mutex // held while rules are put in force: one after another

	mu       sync.Mutex
	rules    *Rules                // guarded by mu
	open     map[*conn]struct{}    // guarded by mu: let through and not closed
	arriving map[net.Conn]struct{} // guarded by mu: of proxies, without a header yet
	refused  int                   // guarded by mu: since they were logged
	said     time.Time             // guarded by mu: when that was
}

// New makes a listener in front of inner, which is its own from now on.
func New(inner net.Listener, o Options) *Listener {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.HeaderTimeout == 0 {
		o.HeaderTimeout = 5 * time.Second
	}
	l := &Listener{inner: inner, options: o, proxies: NewRules(o.Proxies), log: o.Logger, accepted: make(chan net.Conn), failed: make(chan error),
		done: make(chan struct{}), ruled: make(chan struct{}), open: map[*conn]struct{}{}, arriving: map[net.Conn]struct{}{}}
	l.rule = sync.OnceFunc(func() { close(l.ruled) })
	l.close = sync.OnceValue(l.shut)
	l.running.Go(l.run)
	return l
}

// Use puts rules in force: for connections to come, and for those that are open,
// of which it cuts the ones that are not allowed any more. The error is that of
// the firewall only; the rules hold in the listener in any case.
func (l *Listener) Use(r *Rules) error {
	l.use.Lock()
	defer l.use.Unlock()
	var cut []*conn
	l.mu.Lock()
	l.rules = r
	for c := range l.open {
		if !l.allows(c.address, c.local) {
			cut = append(cut, c)
		}
	}
	l.mu.Unlock()
	l.rule()
	for _, c := range cut {
		c.reset()
	}
	if len(cut) > 0 {
		l.log.Info("cut connections that are not allowed any more", "port", l.Addr(), "count", len(cut))
	}
	if l.options.Firewall == nil {
		return nil
	}
	select {
	case <-l.done:
		return nil // and the firewall is gone
	default:
	}
	return l.options.Firewall.Allow(NewRules(slices.Concat(r.Prefixes(), l.proxies.Prefixes())).Prefixes())
}

// allows is whether an address may be connected. The caller holds mu.
func (l *Listener) allows(a netip.Addr, local bool) bool {
	return local && l.options.Local || l.rules.Allows(a)
}

// Accept implements [net.Listener].
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case err := <-l.failed:
		return nil, err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Addr implements [net.Listener].
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close implements [net.Listener]: connections that were let through stay open. It
// may be called twice.
func (l *Listener) Close() error { return l.close() }

func (l *Listener) shut() error {
	close(l.done)
	err := l.inner.Close()
	l.mu.Lock()
	for c := range l.arriving {
		c.Close()
	}
	l.mu.Unlock()
	l.running.Wait()
	if l.options.Firewall != nil {
		err = errors.Join(err, l.options.Firewall.Close())
	}
	return err
}

// run takes connections as they come, once there are rules.
func (l *Listener) run() {
	select {
	case <-l.ruled:
	case <-l.done:
		return
	}
	for {
		raw, err := l.inner.Accept()
		if err == nil {
			l.arrive(raw)
			continue
		}
		select {
		case l.failed <- err: // whoever accepts waits before it asks again
		case <-l.done:
			return
		}
	}
}

// arrive finds out whose connection it is, a proxy's in a goroutine of its own.
func (l *Listener) arrive(raw net.Conn) {
	peer := addressOf(raw.RemoteAddr())
	if !l.proxies.Allows(peer.Addr()) {
		l.enter(raw, peer, isLocal(raw))
		return
	}
	l.mu.Lock()
	select {
	case <-l.done:
		l.mu.Unlock()
		raw.Close()
		return
	default:
	}
	full := len(l.arriving) >= maxArriving
	if !full {
		l.arriving[raw] = struct{}{}
	}
	l.mu.Unlock()
	if full {
		l.refuse(raw, peer, "too many connections of proxies without a header")
		return
	}
	l.running.Go(func() {
		source, err := l.header(raw)
		l.mu.Lock()
		delete(l.arriving, raw)
		l.mu.Unlock()
		switch {
		case err != nil:
			l.refuse(raw, peer, err.Error())
		case source.IsValid():
			l.enter(raw, source, false)
		default: // the proxy itself looks whether somebody is there
			l.enter(raw, peer, isLocal(raw))
		}
	})
}

// header reads the PROXY header in the time that there is for it.
func (l *Listener) header(raw net.Conn) (netip.AddrPort, error) {
	if err := raw.SetReadDeadline(time.Now().Add(l.options.HeaderTimeout)); err != nil {
		return netip.AddrPort{}, err
	}
	source, err := readHeader(raw)
	return source, errors.Join(err, raw.SetReadDeadline(time.Time{}))
}

// enter lets a connection through if it is allowed.
func (l *Listener) enter(raw net.Conn, from netip.AddrPort, local bool) {
	c := &conn{Conn: raw, listener: l, from: net.TCPAddrFromAddrPort(from), address: from.Addr(), local: local}
	l.mu.Lock()
	ok := l.allows(c.address, local)
	if ok { // under the same lock as the question: the next rules find it
		l.open[c] = struct{}{}
	}
	l.mu.Unlock()
	if !ok {
		l.refuse(raw, from, "its address is not allowed")
		return
	}
	select {
	case l.accepted <- c:
	case <-l.done:
		c.Close()
	}
}

// refuse resets a connection on which nothing was said.
func (l *Listener) refuse(raw net.Conn, from netip.AddrPort, why string) {
	abort(raw)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused++
	if now := time.Now(); now.Sub(l.said) >= refusedEvery {
		l.log.Warn("refused connections", "port", l.Addr(), "count", l.refused, "last", from, "why", why)
		l.refused, l.said = 0, now
	}
}

// abort closes a connection without a word, and without waiting for what is
// still on its way.
func abort(raw net.Conn) {
	if t, ok := raw.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0) // it is closed in any case
	}
	raw.Close()
}

// addressOf is the zero address for what is not TCP: nothing allows it.
func addressOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// isLocal: nobody else can connect from such an address, since the kernel drops
// packets that come from outside and say that they are its own.
func isLocal(raw net.Conn) bool {
	peer := addressOf(raw.RemoteAddr()).Addr()
	return peer.IsLoopback() || peer.IsValid() && peer == addressOf(raw.LocalAddr()).Addr()
}

// A conn is a connection that was let through.
type conn struct {
	net.Conn
	listener *Listener
	from     *net.TCPAddr // behind a proxy, that in its header
	address  netip.Addr   // the same
	local    bool
}

// RemoteAddr implements [net.Conn]: who connects, also through a proxy.
func (c *conn) RemoteAddr() net.Addr { return c.from }

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.forget()
	return c.Conn.Close()
}

func (c *conn) reset() {
	c.forget()
	abort(c.Conn)
}

func (c *conn) forget() {
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
}
