package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
)

// A Device is a disk at one point in time: what it reads does not change while
// it is exported. Reads may run concurrently. ReadAt obeys [io.ReaderAt].
type Device interface {
	io.ReaderAt
	Size() int64
}

// An Extenter is a [Device] that knows where it holds nothing but zeros, so
// that clients need not read there.
type Extenter interface {
	// NextExtent describes the extent that begins at off, which is within the
	// device: it goes to end, which is behind off, and zero tells that every byte
	// of it is zero. An extent that is not zero may still hold zeros.
	NextExtent(off int64) (end int64, zero bool, err error)
}

// Sentinels that callers branch on.
var (
	// ErrExists: an export of that name is being served.
	ErrExists = errors.New("export exists")
	// ErrClosed: the server was closed.
	ErrClosed = errors.New("export server is closed")
	// ErrInUse: another server listens on the socket.
	ErrInUse = errors.New("socket is in use by another server")
)

// Options of a [Server]. The zero value is ready for use.
type Options struct {
	Logger           *slog.Logger  // default: slog.Default
	MaxConns         int           // connections at a time; default 256
	HandshakeTimeout time.Duration // for the whole negotiation; default 10 s
	WriteTimeout     time.Duration // for one chunk of a reply to be taken; default 2 min
	ReplyMemory      int64         // bytes of replies in preparation, all connections together; default 256 MiB
}

// A Server serves any number of named devices on any number of listeners. Its
// methods may be called concurrently.
//
//	serving --Close--> closed
type Server struct {
	opts   Options
	log    *slog.Logger
	memory *semaphore.Weighted // of replies being prepared
	ctx    context.Context     // ends with Close
	cancel context.CancelFunc

	mu        sync.Mutex
	closed    bool
	exports   map[string]*exported
	listeners map[net.Listener]bool
	conns     map[*conn]bool

	wg sync.WaitGroup // listeners and connections
}

// An exported device, and who uses it.
type exported struct {
	name   string
	device Device
	size   int64

	// Guarded by Server.mu.
	conns   map[*conn]bool
	drained chan struct{} // closed when the export was removed and the last connection left it
	removed bool
}

// New makes a server without exports or listeners. It must be closed.
func New(opts Options) *Server {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	defaultTo(&opts.MaxConns, 256)
	defaultTo(&opts.HandshakeTimeout, 10*time.Second)
	defaultTo(&opts.WriteTimeout, 2*time.Minute)
	defaultTo(&opts.ReplyMemory, 256<<20)
	opts.ReplyMemory = max(opts.ReplyMemory, maxRequest)
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		opts: opts, log: opts.Logger, ctx: ctx, cancel: cancel,
		memory:    semaphore.NewWeighted(opts.ReplyMemory),
		exports:   map[string]*exported{},
		listeners: map[net.Listener]bool{},
		conns:     map[*conn]bool{},
	}
}

func defaultTo[T int | int64 | time.Duration](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
}

// Add serves device under name, at once. The size is asked once, here. A name
// has at most 4096 bytes; the empty name is the default export.
func (s *Server) Add(name string, device Device) error {
	size := device.Size()
	if len(name) > maxName || size < 0 {
		return fmt.Errorf("export %.64q: name of %d bytes, size %d", name, len(name), size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("export %q: %w", name, ErrClosed)
	}
	if s.exports[name] != nil {
		return fmt.Errorf("export %q: %w", name, ErrExists)
	}
	s.exports[name] = &exported{name: name, device: device, size: size, conns: map[*conn]bool{}, drained: make(chan struct{})}
	return nil
}

// Remove stops serving name, ends the connections that use it and waits until
// the device is no longer read. Removing what is not there does nothing.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	e := s.exports[name]
	if e == nil {
		s.mu.Unlock()
		return
	}
	delete(s.exports, name)
	e.removed = true
	for c := range e.conns {
		c.nc.Close()
	}
	if len(e.conns) == 0 {
		close(e.drained)
	}
	s.mu.Unlock()
	<-e.drained
}

// Names lists the exports in order.
func (s *Server) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.exports))
	for name := range s.exports {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// acquire finds the export and notes that c uses it, until release.
func (s *Server) acquire(name string, c *conn) *exported {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.exports[name]
	if e != nil {
		e.conns[c] = true
	}
	return e
}

func (s *Server) release(e *exported, c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(e.conns, c)
	if e.removed && len(e.conns) == 0 {
		close(e.drained)
	}
}

// ListenUnix begins to serve on a unix socket at path, open to the owner alone:
// the socket has mode 0600, and its directory, made where it is missing, must be
// 0700. A socket that a dead server left there is replaced.
func (s *Server) ListenUnix(path string) error {
	l, err := listenUnix(path)
	if err != nil {
		return fmt.Errorf("export on %s: %w", path, err)
	}
	return s.Serve(l)
}

func listenUnix(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	switch fi, err := os.Stat(dir); {
	case err != nil:
		return nil, err
	case fi.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("directory %s has mode %v, which lets others in; make it 0700", dir, fi.Mode().Perm())
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("a file that is no socket stands in the way")
		}
		nc, err := net.Dial("unix", path)
		if err == nil {
			nc.Close()
			return nil, ErrInUse
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil { // until here the directory keeps others out
		l.Close()
		return nil, err
	}
	return l, nil
}

// Serve begins to accept connections from l, which belongs to the server from
// now on, and returns at once.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.Close()
		return ErrClosed
	}
	s.listeners[l] = true
	s.wg.Go(func() { s.accept(l) })
	return nil
}

func (s *Server) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("accept NBD connection", "err", err) // out of descriptors, most likely: it passes
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.start(nc)
	}
}

func (s *Server) start(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= s.opts.MaxConns {
		nc.Close()
		return
	}
	c := newConn(s, nc)
	s.conns[c] = true
	s.wg.Go(func() {
		if err := c.serve(); err != nil && s.ctx.Err() == nil {
			s.log.Debug("NBD connection ended", "export", c.exportName(), "err", err)
		}
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// Close ends all listeners and connections and waits until no device is read
// any more. It may be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.cancel()
	var errs []error
	for l := range s.listeners {
		errs = append(errs, l.Close())
		delete(s.listeners, l)
	}
	for c := range s.conns {
		c.nc.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(errs...)
}
