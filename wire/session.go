package wire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"rehost/block"
)

// Defaults of a [Config].
const (
	DefaultConnections = 4
	DefaultKeepAlive   = 5 * time.Second

	// DeadAfter keepalive intervals without a byte, the other side is gone.
	DeadAfter = 3

	// lastWords is how long the end of a session waits for the ERROR that may
	// explain why writing failed.
	lastWords = 2 * time.Second

	// goodbye is how long Close tries to tell the server.
	goodbye = time.Second
)

// A Config says how an agent connects to its replication server.
type Config struct {
	Address     string        // host:port
	TLS         *tls.Config   // from ca.Endpoint's ClientConfig, which names the server
	Server      string        // id of the source server, as in the agent's certificate
	Disks       []block.Disk  // of the source server
	Generation  uint64        // of the last session that the agent knows of, if any
	Version     string        // of the agent
	Connections int           // default 4, at most [MaxConnections]
	KeepAlive   time.Duration // between signs of life, default 5 s; three of them without one end the session

	// DialContext makes the TCP connections; default [net.Dialer].
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Session is an agent's connections to its replication server, through which
// epochs go. Once anything fails, everything fails with the same error: a
// [RefusedError] if the server said why, otherwise the network's. Nothing that
// Commit did not return nil for counts then; dial a new Session and start from
// its Last. Safe for concurrent use.
//
//	Dial -> open --any error--> failed
//	          |                   |
//	          +------ Close ------+--> closed
type Session struct {
	welcome Welcome
	conns   []*clientConn
	idle    chan *clientConn // those that no Put is writing to
	answers chan Message     // to the one Commit or Retract under way

	done    chan struct{} // closed with the first error
	running sync.WaitGroup

	asking chan struct{} // held by the one Commit or Retract under way
	limit  limiter

	mu        sync.Mutex
	err       error       // why done is closed
	last      block.Point // what the server has acknowledged
	questions map[uint16]chan Differ
	question  uint16 // the number of the one before
}

type clientConn struct {
	*Conn
	raw net.Conn // closing it ends reads and writes at once; never blocks
	tls *tls.Conn
	end chan struct{} // closed when nothing more will be read
}

// Dial opens a session. It returns when the server has accepted it as the
// source server's newest, over all connections.
func Dial(ctx context.Context, config Config) (*Session, error) {
	if config.Connections == 0 {
		config.Connections = DefaultConnections
	}
	if config.KeepAlive == 0 {
		config.KeepAlive = DefaultKeepAlive
	}
	if config.DialContext == nil {
		config.DialContext = new(net.Dialer).DialContext
	}
	var id [16]byte
	rand.Read(id[:]) // never fails
	hello := Hello{
		Server: config.Server, Session: hex.EncodeToString(id[:]), Count: config.Connections,
		Generation: config.Generation, Disks: config.Disks, Version: config.Version,
	}
	if err := hello.Validate(); err != nil {
		return nil, fmt.Errorf("dial %s: %w", config.Address, err)
	}
	s := &Session{
		idle:    make(chan *clientConn, config.Connections),
		answers: make(chan Message, 1),
		done:    make(chan struct{}),
		asking:  make(chan struct{}, 1), questions: map[uint16]chan Differ{},
	}
	if err := s.connect(ctx, config, hello); err != nil {
		for _, c := range s.conns {
			c.raw.Close()
		}
		return nil, fmt.Errorf("dial %s: %w", config.Address, err)
	}
	for i, c := range s.conns {
		s.running.Go(func() { s.read(c, i == 0) })
		s.running.Go(func() { s.keepAlive(c, config.KeepAlive) })
		s.idle <- c
	}
	return s, nil
}

// connect opens connection 0, which makes the session, and then the others.
func (s *Session) connect(ctx context.Context, config Config, hello Hello) error {
	first, welcome, err := open(ctx, config, hello)
	if err != nil {
		return err
	}
	s.welcome, s.last, s.conns = welcome, welcome.Last, []*clientConn{first}
	hello.Disks = nil
	type result struct {
		conn *clientConn
		err  error
	}
	results := make(chan result)
	for i := 1; i < config.Connections; i++ {
		go func(hello Hello) {
			hello.Index = i
			c, _, err := open(ctx, config, hello)
			results <- result{c, err}
		}(hello)
	}
	var errs []error
	for range config.Connections - 1 {
		if r := <-results; r.err != nil {
			errs = append(errs, r.err)
		} else {
			s.conns = append(s.conns, r.conn)
		}
	}
	return errors.Join(errs...)
}

func open(ctx context.Context, config Config, hello Hello) (_ *clientConn, w Welcome, err error) {
	raw, err := config.DialContext(ctx, "tcp", config.Address)
	if err != nil {
		return nil, w, err
	}
	// The server may take its time over admission, but not for ever.
	ctx, cancel := context.WithTimeout(ctx, 6*HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer func() {
		if !stop() && err != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		if err != nil {
			raw.Close()
		}
	}()
	link := NewLink(raw, DeadAfter*config.KeepAlive)
	tc := tls.Client(link, config.TLS)
	c := &clientConn{Conn: NewConn(tc, link), raw: raw, tls: tc, end: make(chan struct{})}
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, w, err
	}
	if err := c.WritePreface(); err != nil {
		return nil, w, err
	}
	if err := c.ReadPreface(); err != nil {
		return nil, w, err
	}
	if err := c.Write(hello); err != nil {
		return nil, w, err
	}
	for {
		m, err := c.Read(TypeWelcome, TypeError, TypeAlive)
		if err != nil {
			return nil, w, err
		}
		switch m := m.(type) {
		case Welcome:
			return c, m, nil
		case *RefusedError:
			return nil, w, m
		}
	}
}

// Generation is the session's, given by the server.
func (s *Session) Generation() uint64 { return s.welcome.Generation }

// Decodes reports whether the server knows a codec.
func (s *Session) Decodes(codec block.Codec) bool {
	return codec <= block.Zstd || slices.Contains(s.welcome.Codecs, codec.String())
}

// Last is the last point that the server has acknowledged, in this session or
// before it; its Seq is 0 if there is none.
func (s *Session) Last() block.Point {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Done is closed when the session has failed or was closed: [Session.Err] says why.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why the session ended, or nil while it has not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// SetBandwidth limits what Put sends to so many bytes a second on average, from
// now on; 0 is no limit.
func (s *Session) SetBandwidth(bytesPerSecond int64) { s.limit.set(bytesPerSecond) }

// Put sends one run of an epoch. It returns when the run is with the operating
// system, which says nothing about the server: that is Commit's. The payload
// is not copied, and neither kept nor changed after Put returned. Cancelling
// ctx while bytes are on their way ends the session.
func (s *Session) Put(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	if err := run.Validate(); err != nil {
		return fmt.Errorf("put %v of epoch %v: %w", run.Extent, epoch, err)
	}
	m := Run{Epoch: epoch, Ordinal: ordinal, Run: run}
	if err := s.limit.wait(ctx, s.done, int(m.Size())); err != nil {
		return s.failure("put", err)
	}
	return s.send(ctx, "put", m)
}

// send writes a message to any connection that is idle.
func (s *Session) send(ctx context.Context, verb string, m Message) error {
	var c *clientConn
	select {
	case c = <-s.idle:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", verb, context.Cause(ctx))
	case <-s.done:
		return s.failure(verb, ErrClosed)
	}
	if s.Err() != nil { // and a connection that was idle, and may not be closed yet
		return s.failure(verb, ErrClosed)
	}
	stop := context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })
	err := c.Write(m)
	stop()
	if err != nil {
		s.writeFailed(c, err)
		return s.failure(verb, err)
	}
	s.idle <- c
	return nil
}

// Compare asks which chunks of an extent have another hash at a point that the
// server has: at most [MaxHashes] chunks of [block.ChunkBlocks]. Many may be
// called at once. Cancelling ctx ends the session.
func (s *Session) Compare(ctx context.Context, point block.Seq, extent block.Extent, hashes []block.Hash) (differ []bool, err error) {
	answer := make(chan Differ, 1)
	number := s.open(answer)
	defer s.close(number)
	h := Hashes{Point: point, Extent: extent, Question: number, Hashes: hashes}
	if err := h.Validate(); err != nil {
		return nil, fmt.Errorf("compare %v with point %v: %w", extent, point, err)
	}
	if err := s.limit.wait(ctx, s.done, headerSize+hashesHeader+len(hashes)*hashSize); err != nil {
		return nil, s.failure("compare", err)
	}
	if err := s.send(ctx, "compare", h); err != nil {
		return nil, err
	}
	select {
	case d := <-answer:
		if len(d.Differ) != len(hashes) {
			s.fail(fmt.Errorf("%w: %d answers about %d hashes", ErrProtocol, len(d.Differ), len(hashes)))
			return nil, s.failure("compare", ErrClosed)
		}
		return d.Differ, nil
	case <-ctx.Done(): // an answer that comes later must not meet another question of the same number
		s.fail(context.Cause(ctx))
		return nil, s.failure("compare", ErrClosed)
	case <-s.done:
		return nil, s.failure("compare", ErrClosed)
	}
}

// open gives a question a number that no other open one has.
func (s *Session) open(answer chan Differ) uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		s.question++
		if s.questions[s.question] == nil {
			s.questions[s.question] = answer
			return s.question
		}
	}
}

func (s *Session) close(question uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.questions, question)
}

// answered hands an answer to who asked.
func (s *Session) answered(d Differ) {
	s.mu.Lock()
	answer := s.questions[d.Question]
	delete(s.questions, d.Question)
	s.mu.Unlock()
	if answer == nil {
		s.fail(fmt.Errorf("%w: an answer to question %d, which nobody asked", ErrProtocol, d.Question))
		return
	}
	answer <- d // it has room for one
}

// Commit completes an epoch of so many runs, all of whose Puts have returned,
// and returns nil once the server says that it is durable. One Commit or
// Retract runs at a time. After an error it may have taken place or not.
func (s *Session) Commit(ctx context.Context, point block.Point, runs uint64, flags block.Flags) error {
	return s.ask(ctx, "commit", Commit{Point: point, Runs: runs, Flags: flags}, Ack{point.Seq}, point)
}

// Retract withdraws every point after an epoch and returns nil once that is
// durable. Last is then a point at or before it, of which only Seq is known.
func (s *Session) Retract(ctx context.Context, after block.Seq) error {
	point := s.Last()
	if point.Seq > after {
		point = block.Point{Seq: after}
	}
	return s.ask(ctx, "retract", Retract{after}, Retracted{after}, point)
}

func (s *Session) ask(ctx context.Context, verb string, question, want Message, last block.Point) error {
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", verb, context.Cause(ctx))
	case <-s.done:
		return s.failure(verb, ErrClosed)
	}
	stop := context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })
	defer stop()
	if err := s.conns[0].Write(question); err != nil {
		s.writeFailed(s.conns[0], err)
		return s.failure(verb, err)
	}
	select {
	case got := <-s.answers:
		if got != want {
			s.fail(fmt.Errorf("%w: want %v %v, got %v %v", ErrProtocol, want.Type(), want, got.Type(), got))
			return s.failure(verb, ErrClosed)
		}
		s.mu.Lock()
		s.last = last
		s.mu.Unlock()
		return nil
	case <-s.done:
		return s.failure(verb, ErrClosed)
	}
}

// Close ends the session and waits for its goroutines. What was not committed
// is gone. It may be called twice.
func (s *Session) Close() error {
	s.fail(ErrClosed)
	s.running.Wait()
	return nil
}

// Abort ends the session with err at once, as if its connections had broken: for
// one that is not to be trusted any more. It does not wait; Close is still due.
func (s *Session) Abort(err error) { s.fail(err) }

// fail ends the session with err, unless it has ended.
func (s *Session) fail(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
		close(s.done)
	}
	s.mu.Unlock()
	if !first {
		return
	}
	for _, c := range s.conns {
		if err == ErrClosed { //nolint:errorlint // Close ends it so, and the server is told that this is wanted
			c.raw.SetWriteDeadline(time.Now().Add(goodbye))
			c.tls.Close()
		}
		c.raw.Close()
	}
}

// writeFailed ends the session after a failed write. The server may have said
// why before it stopped listening, so its last words are awaited.
func (s *Session) writeFailed(c *clientConn, err error) {
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case <-c.end: // the reader has ended the session
	case <-s.done:
	case <-timer.C:
	}
	s.fail(err)
}

// failure is the session's error, or other if it has none, with a verb in front.
func (s *Session) failure(verb string, other error) error {
	if err := s.Err(); err != nil {
		other = err
	}
	return fmt.Errorf("%s: %w", verb, other)
}

// read takes what the server sends on one connection, until it ends.
func (s *Session) read(c *clientConn, control bool) {
	defer close(c.end)
	want := []Type{TypeError, TypeAlive, TypeDiffer}
	if control {
		want = append(want, TypeAck, TypeRetracted)
	}
	for {
		m, err := c.Read(want...)
		if err != nil {
			s.fail(fmt.Errorf("lost the replication server: %w", noEOF(err)))
			return
		}
		switch m := m.(type) {
		case Alive:
		case Differ:
			s.answered(m)
		case *RefusedError:
			s.fail(m)
			return
		default:
			select {
			case s.answers <- m:
			default:
				s.fail(fmt.Errorf("%w: %v that nobody asked for", ErrProtocol, m.Type()))
				return
			}
		}
	}
}

func (s *Session) keepAlive(c *clientConn, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
			if err := c.Write(Alive{}); err != nil {
				s.writeFailed(c, err)
				return
			}
		}
	}
}
