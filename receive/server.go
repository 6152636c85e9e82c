package receive

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"rehost/ca"
	"rehost/store"
	"rehost/wire"
)

// A Server is the listener on port 1500. Make it with [New].
type Server struct {
	config Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	running sync.WaitGroup // Serve calls and connections; added to under mu, while not closed

	mu         sync.Mutex
	closed     bool
	listeners  map[net.Listener]struct{}
	handshakes int                // connections that have not yet said HELLO
	addresses  map[netip.Addr]int // the same, of each address
	peers      map[string]*peer   // source servers with a connection
}

// A peer is a source server as the listener sees it.
type peer struct {
	admitting chan struct{} // held while a session is being admitted

	// Guarded by Server.mu.
	connections int
	session     *session // the newest; nil if none, or it has ended
}

// New makes a server that listens nowhere yet.
func New(config Config) *Server {
	s := &Server{
		config: config.withDefaults(), listeners: map[net.Listener]struct{}{},
		addresses: map[netip.Addr]int{}, peers: map[string]*peer{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve takes connections from l until Close, which makes it return nil, or
// until l fails for good. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if !s.begin(func() { s.listeners[l] = struct{}{} }) {
		return nil
	}
	defer s.end(func() { delete(s.listeners, l) })
	wait := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			s.start(conn)
		case s.ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		default: // out of descriptors, most likely: it passes, but not at once
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.config.Logger.Error("accept", "err", err, "retry", wait)
			select {
			case <-time.After(wait):
			case <-s.ctx.Done():
				return nil
			}
		}
	}
}

// begin counts one more thing that Close waits for, unless it is too late.
func (s *Server) begin(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	f()
	return true
}

func (s *Server) end(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	s.running.Done()
}

// Close stops listening, ends all sessions with [wire.Shutdown] and waits until
// everything is done and told to the Controller. Commits under way finish. It
// may be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.cancel() // first: it tells Serve why its listener ends
	for l := range s.listeners {
		l.Close()
	}
	for _, p := range s.peers {
		if p.session != nil {
			p.session.fail(&wire.RefusedError{Code: wire.Shutdown, Message: "the replication server is going away", Hint: "the agent tries again by itself"})
		}
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// start gives a new connection its goroutine, if it may have one.
func (s *Server) start(conn net.Conn) {
	address := addressOf(conn)
	log := s.config.Logger.With("address", address)
	s.mu.Lock()
	full := s.handshakes >= s.config.Handshakes || s.addresses[address.Addr()] >= s.config.HandshakesPerAddress
	ok := !full && !s.closed
	if ok {
		s.running.Add(1)
		s.handshakes++
		s.addresses[address.Addr()]++
	}
	s.mu.Unlock()
	if !ok {
		if full {
			log.Warn("close connection: too many handshakes under way")
		}
		conn.Close()
		return
	}
	go func() {
		defer s.running.Done()
		s.handle(conn, address)
	}()
}

func (s *Server) handshakeOver(address netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handshakes--
	if s.addresses[address.Addr()]--; s.addresses[address.Addr()] == 0 {
		delete(s.addresses, address.Addr())
	}
}

func addressOf(conn net.Conn) netip.AddrPort {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// handle is the life of one connection.
func (s *Server) handle(raw net.Conn, address netip.AddrPort) {
	defer raw.Close()
	log := s.config.Logger.With("address", address)
	c, hello, err := s.greet(raw)
	s.handshakeOver(address)
	if err != nil {
		if s.ctx.Err() == nil {
			log.Warn("close connection", "err", err)
		}
		return
	}
	agent := Agent{Server: hello.Server, Session: hello.Session, Address: address}
	log = log.With("server", agent.Server, "session", agent.Session, "connection", hello.Index)
	stop := c.keepAlive(s.config.KeepAlive)
	defer stop()
	p, err := s.enter(agent)
	if err == nil {
		defer s.leave(agent.Server, p)
		if hello.Index == 0 {
			err = s.lead(c, p, agent, hello, log)
		} else {
			err = s.follow(c, p, hello)
		}
	}
	stop()
	c.finish(refusal(err))
	if hello.Index == 0 || p == nil {
		log.Info("session is over", "cause", err)
	}
}

// greet makes the connection's TLS, checks its preface and reads its HELLO, all
// in the time there is for it.
func (s *Server) greet(raw net.Conn) (*conn, wire.Hello, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.config.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	c := newConn(raw, s.config)
	hello, err := c.greet(ctx)
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no HELLO within %v: %w", s.config.HandshakeTimeout, err)
		}
		c.finish(refusal(err))
		return nil, hello, err
	}
	if !stop() {
		return nil, hello, context.Cause(ctx)
	}
	return c, hello, nil
}

// enter counts a connection of a source server.
func (s *Server) enter(a Agent) (*peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[a.Server]
	if p == nil {
		p = &peer{admitting: make(chan struct{}, 1)}
		s.peers[a.Server] = p
	}
	if p.connections >= s.config.ConnectionsPerServer {
		return nil, &wire.RefusedError{Code: wire.Busy, Message: fmt.Sprintf("this source server has %d connections already", p.connections), Hint: "wait, or use fewer"}
	}
	p.connections++
	return p, nil
}

func (s *Server) leave(server string, p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.connections--; p.connections == 0 {
		delete(s.peers, server)
	}
}

// lead admits a session and carries it on its connection 0.
func (s *Server) lead(c *conn, p *peer, agent Agent, hello wire.Hello, log logger) error {
	x, err := s.admit(p, agent, hello, log)
	if err != nil {
		return err
	}
	err = x.serve(c, hello)
	x.fail(err)
	return x.finish(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if p.session == x {
			p.session = nil
		}
	})
}

// follow adds a connection to the session that its HELLO names.
func (s *Server) follow(c *conn, p *peer, hello wire.Hello) error {
	s.mu.Lock()
	x := p.session
	ok := x != nil && x.agent.Session == hello.Session && x.join(hello)
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: connection %d of %d belongs to no session", wire.ErrProtocol, hello.Index, hello.Count)
	}
	defer x.followers.Done()
	x.fail(x.serve(c, hello))
	return x.cause()
}

// admit asks the Controller, ends the session before this one and begins to
// write. One admission of a source server runs at a time.
func (s *Server) admit(p *peer, agent Agent, hello wire.Hello, log logger) (_ *session, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.config.AdmitTimeout)
	defer cancel()
	select {
	case p.admitting <- struct{}{}:
		defer func() { <-p.admitting }()
	case <-ctx.Done():
		return nil, &wire.RefusedError{Code: wire.Busy, Message: "another session of this source server is being admitted", Hint: "the agent tries again by itself"}
	}
	controller := s.config.Controller
	if err := controller.Authenticated(ctx, agent); err != nil {
		log.Warn("controller refused the agent", "err", err)
		return nil, controllerRefusal(err)
	}
	grant, err := controller.Connected(ctx, agent, hello)
	if err != nil {
		log.Warn("controller refused the session", "err", err)
		return nil, controllerRefusal(err)
	}
	agent.Generation = grant.Generation
	defer func() {
		if err != nil {
			s.tell(func(ctx context.Context) { controller.Disconnected(ctx, agent, err) })
		}
	}()
	if err := compareDisks(grant.Disks, hello.Disks); err != nil {
		return nil, err
	}
	if err := s.replace(ctx, p, grant.Generation); err != nil {
		return nil, err
	}
	writer, last, err := s.config.Store.Begin(ctx, agent.Server, grant.Generation, grant.Disks)
	if err != nil {
		log.Error("begin to write the replica", "err", err)
		problem := storeRefusal(err)
		if problem.Code != wire.Fenced {
			s.tell(func(ctx context.Context) { controller.Unhealthy(ctx, agent, problem) })
		}
		return nil, problem
	}
	x := newSession(s, agent, hello, grant.Disks, writer, last, log)
	s.mu.Lock()
	p.session = x
	closed := s.closed
	s.mu.Unlock()
	if closed { // Close has not seen it
		x.fail(&wire.RefusedError{Code: wire.Shutdown, Message: "the replication server is going away"})
	}
	log.Info("session begins", "generation", grant.Generation, "last", last.Seq)
	return x, nil
}

// replace ends the session that a new one of this generation takes over from,
// and waits until it has let go of the replica.
func (s *Server) replace(ctx context.Context, p *peer, generation uint64) error {
	s.mu.Lock()
	old := p.session
	s.mu.Unlock()
	if old == nil {
		return nil
	}
	fenced := storeRefusal(store.ErrFenced)
	if generation < old.agent.Generation {
		return fenced
	}
	old.fail(fenced)
	select {
	case <-old.ended:
		return nil
	case <-ctx.Done():
		return &wire.RefusedError{Code: wire.Busy, Message: "the session before this one does not end", Hint: "the replication server's storage may hang; the agent tries again by itself"}
	}
}

// tell gives a call that only informs the Controller the time it may take.
func (s *Server) tell(f func(ctx context.Context)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 10*time.Second)
	defer cancel()
	f(ctx)
}

// peerName is the name of the other side, which must be an agent's.
func peerName(c *conn) (ca.Name, error) {
	name, err := ca.PeerName(c.tls.ConnectionState().PeerCertificates[0])
	if err == nil && name.Role != ca.SourceServer {
		err = fmt.Errorf("%w: %s is no agent", ca.ErrName, name)
	}
	return name, err
}
