package receive_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rehost/block"
	"rehost/ca"
	"rehost/receive"
	"rehost/wire"
)

// journal is a log that counts its lines.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) lines() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.b.String(), "\n")
}

// gone waits for the other side to close.
func gone(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
}

func TestServer_GarbageOnThePort(t *testing.T) {
	var log journal
	x := newSite(t, func(c *receive.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	r := seeded(t)
	inputs := [][]byte{[]byte("GET / HTTP/1.0\r\n\r\n"), []byte(wire.Magic), {}, {0x16, 3, 1, 0xff, 0xff}, bytes.Repeat([]byte{0x16, 3, 3, 0x40, 0}, 4000)}
	for range 20 {
		b := make([]byte, r.IntN(5000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		inputs = append(inputs, b)
	}
	for _, b := range inputs {
		c := must(net.Dial("tcp", x.address))
		c.Write(b)
		c.(*net.TCPConn).CloseWrite()
		gone(t, c)
		c.Close()
	}
	for range 200 { // the line comes after the end of the connection
		if log.lines() == len(inputs) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := log.lines(); n != len(inputs) {
		t.Errorf("%d connections made %d lines in the log", len(inputs), n)
	}
	x.dial()
}

// raw makes an authenticated connection on which anything can be said.
func (x *site) raw() *tls.Conn {
	c := must(tls.Dial("tcp", x.address, x.config().TLS))
	x.t.Cleanup(func() { c.Close() })
	return c
}

// greeted is raw, after prefaces and a HELLO as connection 0 of one.
func (x *site) greeted() (*tls.Conn, *wire.Conn) {
	c := x.raw()
	w := wire.NewConn(c, nil)
	h := wire.Hello{Server: agentID, Session: strings.Repeat("ab", 16), Count: 1, Disks: disks}
	if err := errors.Join(w.WritePreface(), w.ReadPreface(), w.Write(h)); err != nil {
		x.t.Fatal(err)
	}
	if m, err := w.Read(); err != nil || m.Type() != wire.TypeWelcome {
		x.t.Fatalf("got %v, %v", m, err)
	}
	return c, w
}

func TestServer_GarbageFromAnAgent(t *testing.T) {
	x := newSite(t)
	header := func(n uint32, typ byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, n)
		return append(b, typ, 0, 0, 0, 1, 2, 3, 4)
	}
	zero := block.Run{Extent: block.Extent{Disk: 1, Count: 1}}
	for name, say := range map[string]func(c *tls.Conn, w *wire.Conn){
		"huge length":      func(c *tls.Conn, w *wire.Conn) { c.Write(header(1<<32-1, 3)) },
		"checksum":         func(c *tls.Conn, w *wire.Conn) { c.Write(append(header(8, 6), make([]byte, 8)...)) },
		"unknown type":     func(c *tls.Conn, w *wire.Conn) { c.Write(header(0, 77)) },
		"server's message": func(c *tls.Conn, w *wire.Conn) { w.Write(wire.Ack{Epoch: 1}) },
		"second HELLO": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Hello{Server: agentID, Session: strings.Repeat("ab", 16), Count: 1})
		},
		"unknown disk": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Run{Epoch: 1, Run: block.Run{Extent: block.Extent{Disk: 2, Count: 1}}})
		},
		"behind the end": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Run{Epoch: 1, Run: block.Run{Extent: block.Extent{Disk: 1, Start: 1000, Count: 100}}})
		},
		"epoch 0":                       func(c *tls.Conn, w *wire.Conn) { w.Write(wire.Run{Epoch: 0, Run: zero}) },
		"all numbers used up, by a run": func(c *tls.Conn, w *wire.Conn) { w.Write(wire.Run{Epoch: 1<<64 - 1, Run: zero}) },
		"all numbers used up, by a commit": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Commit{Point: block.Point{Seq: 1<<64 - 1, Time: time.Unix(1, 0)}})
		},
		"one number twice": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Run{Epoch: 1, Run: zero})
			w.Write(wire.Run{Epoch: 1, Run: zero})
			w.Write(wire.Commit{Point: block.Point{Seq: 1, Time: time.Unix(1, 0)}, Runs: 2})
		},
		"three open epochs": func(c *tls.Conn, w *wire.Conn) {
			for e := range block.Seq(3) {
				w.Write(wire.Run{Epoch: e + 1, Run: zero})
			}
		},
		"hashes of no point": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Hashes{Point: 1, Extent: block.Extent{Disk: 1, Count: 1}, Hashes: make([]block.Hash, 1)})
		},
		"hashes of no disk": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Hashes{Point: 1, Extent: block.Extent{Disk: 2, Count: 1}, Hashes: make([]block.Hash, 1)})
		},
		"hashes behind the end": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Hashes{Point: 1, Extent: block.Extent{Disk: 1, Start: 1020, Count: 16}, Hashes: make([]block.Hash, 1)})
		},
		"fewer than sent": func(c *tls.Conn, w *wire.Conn) {
			w.Write(wire.Run{Epoch: 1, Run: zero})
			w.Write(wire.Run{Epoch: 1, Ordinal: 1, Run: zero})
			w.Write(wire.Commit{Point: block.Point{Seq: 1, Time: time.Unix(1, 0)}, Runs: 1})
		},
	} {
		c, w := x.greeted()
		say(c, w)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		m, err := w.Read(wire.TypeError)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantCode(t, m.(error), wire.Protocol)
		c.Close()
	}
	// A frame that ends in the middle is a network's fault: nothing is said.
	c, _ := x.greeted()
	c.Write(header(1000, 3)[:7])
	c.Close()
	if points := must(x.store.Replica(t.Context(), agentID)).Points(); len(points) != 0 {
		t.Errorf("garbage made points: %v", points)
	}
	x.dial()
}

// A deaf connection's other side reads nothing any more, once told: what is
// written to it waits for ever, or for the deadline.
type deaf struct {
	net.Conn
	from    *atomic.Bool
	expired chan struct{}
	once    sync.Once
}

func (d *deaf) Write(b []byte) (int, error) {
	if d.from.Load() {
		<-d.expired
		return 0, os.ErrDeadlineExceeded
	}
	return d.Conn.Write(b)
}

func (d *deaf) SetWriteDeadline(t time.Time) error {
	if d.from.Load() {
		d.once.Do(func() { close(d.expired) })
	}
	return d.Conn.SetWriteDeadline(t)
}

func (d *deaf) Close() error {
	d.once.Do(func() { close(d.expired) })
	return d.Conn.Close()
}

type deafListener struct {
	net.Listener
	from *atomic.Bool
	n    int
}

func (l *deafListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if l.n++; err != nil || l.n > 1 {
		return c, err
	}
	return &deaf{Conn: c, from: l.from, expired: make(chan struct{})}, nil
}

// TestServer_DeafAgent asks, and does not take the answer. A new session of the
// source server must not wait for it for ever.
func TestServer_DeafAgent(t *testing.T) {
	x := newSite(t, func(c *receive.Config) { c.Store = nowhere{}; c.AdmitTimeout = 5 * time.Second })
	from := new(atomic.Bool)
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	done := make(chan error, 1)
	go func() { done <- x.server.Serve(&deafListener{Listener: l, from: from}) }()
	defer func() {
		if err := errors.Join(x.server.Close(), <-done); err != nil {
			t.Error(err)
		}
	}()
	x.address = l.Addr().String()
	c, w := x.greeted()
	defer c.Close() // without the deadline this is what lets the test end
	from.Store(true)
	if err := w.Write(wire.Retract{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // or the session ends before it answers, which proves nothing
	s, err := wire.Dial(t.Context(), x.config())
	if err != nil {
		t.Fatalf("the session after it: %v", err)
	}
	s.Close()
}

func TestServer_AnotherVersion(t *testing.T) {
	x := newSite(t)
	c := x.raw()
	c.Write([]byte{'R', 'E', 'H', 'O', 'S', 'T', '\r', '\n', 0, wire.Version + 1, 0, 0})
	got, err := io.ReadAll(c)
	if want := wire.Magic + string([]byte{0, wire.Version, 0, 0}); string(got) != want {
		t.Errorf("got %q, %v, want the server's own preface and the end", got, err)
	}
	c = x.raw()
	c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if got, _ := io.ReadAll(c); len(got) != 0 {
		t.Errorf("whoever speaks something else heard %q", got)
	}
}

// TestServer_SlowHandshakes has strangers hold connections open: they must be
// let go in time, and may not be more than allowed.
func TestServer_SlowHandshakes(t *testing.T) {
	x := newSite(t, func(c *receive.Config) { c.HandshakeTimeout = 400 * time.Millisecond; c.HandshakesPerAddress = 8 })
	var conns []net.Conn
	for i := range 40 {
		c := must(net.Dial("tcp", x.address))
		defer c.Close()
		conns = append(conns, c)
		c.Write([]byte{0x16, 3, 1, 2}[:i%5])
	}
	quiet := x.config().TLS // and some who are through TLS and then say nothing
	begin := time.Now()
	for _, c := range conns {
		gone(t, c)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %v to get rid of them", took)
	}
	c := must(tls.Dial("tcp", x.address, quiet))
	defer c.Close()
	gone(t, c)
	x.dial()
}

func TestServer_TooManyConnections(t *testing.T) {
	x := newSite(t, func(c *receive.Config) { c.ConnectionsPerServer = 4 })
	x.dial()
	_, err := wire.Dial(t.Context(), x.config())
	wantCode(t, err, wire.Busy)
}

// TestServer_ForeignSession: an agent cannot join another one's session.
func TestServer_ForeignSession(t *testing.T) {
	x := newSite(t)
	_, w := x.greeted()
	key := ca.Fixed(x.agent(otherID))
	c := must(tls.Dial("tcp", x.address, ca.Endpoint{Root: x.ca.Root(), Certificate: key}.ClientConfig(name)))
	defer c.Close()
	thief := wire.NewConn(c, nil)
	h := wire.Hello{Server: otherID, Session: strings.Repeat("ab", 16), Index: 1, Count: 2}
	if err := errors.Join(thief.WritePreface(), thief.ReadPreface(), thief.Write(h)); err != nil {
		t.Fatal(err)
	}
	m, err := thief.Read()
	if err != nil {
		t.Fatal(err)
	}
	refused, ok := m.(error)
	if !ok {
		t.Fatalf("got %v", m)
	}
	wantCode(t, refused, wire.Protocol)
	if err := w.Write(wire.Commit{Point: block.Point{Seq: 1, Time: time.Unix(1, 0)}}); err != nil {
		t.Fatal(err)
	}
	if m, err := w.Read(wire.TypeAck); err != nil {
		t.Errorf("got %v, %v", m, err)
	}
}
