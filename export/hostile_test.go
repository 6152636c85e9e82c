package export_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"rehost/export"
)

// A client that speaks NBD by hand, so that it can misbehave.
type client struct {
	net.Conn
	t *testing.T
}

func dial(t *testing.T, socket string) *client {
	t.Helper()
	nc, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := &client{nc, t}
	hello := c.take(18)
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(hello[16:]) != 3 {
		t.Fatalf("hello: %q", hello)
	}
	c.put(uint32(3))
	return c
}

func (c *client) put(values ...any) {
	var b bytes.Buffer
	for _, v := range values {
		binary.Write(&b, binary.BigEndian, v)
	}
	c.Write(b.Bytes()) // a server that hung up shows when its answer is taken
}

func (c *client) take(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// option sends one and returns the kind of the last reply to it.
func (c *client) option(opt uint32, data []byte) (kind uint32) {
	c.t.Helper()
	c.put([]byte("IHAVEOPT"), opt, uint32(len(data)), data)
	for {
		head := c.take(20)
		kind = binary.BigEndian.Uint32(head[12:])
		c.take(int(binary.BigEndian.Uint32(head[16:])))
		if kind == 1 || kind >= 1<<31 {
			return kind
		}
	}
}

func infoRequest(name string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	return append(append(b, name...), 0, 0)
}

func (c *client) goExport(name string) {
	c.t.Helper()
	if kind := c.option(7, infoRequest(name)); kind != 1 {
		c.t.Fatalf("go: reply %#x", kind)
	}
}

func (c *client) request(flags, kind uint16, cookie, offset uint64, length uint32) {
	c.put(uint32(0x25609513), flags, kind, cookie, offset, length)
}

// simple takes a simple reply without data.
func (c *client) simple(cookie uint64) uint32 {
	c.t.Helper()
	b := c.take(16)
	if binary.BigEndian.Uint32(b) != 0x67446698 || binary.BigEndian.Uint64(b[8:]) != cookie {
		c.t.Fatalf("reply %x", b)
	}
	return binary.BigEndian.Uint32(b[4:])
}

// TestRequests asks for what is not allowed; each is refused, and the
// connection goes on.
func TestRequests(t *testing.T) {
	d := sample()
	_, socket := serve(t, map[string]export.Device{"x": d})
	c := dial(t, socket)
	c.goExport("x")
	size := uint64(d.Size())
	for i, r := range []struct {
		name        string
		flags, kind uint16
		offset      uint64
		length      uint32
		want        uint32
	}{
		{"flush", 0, 3, 0, 0, 0},
		{"cache", 0, 5, 4096, 4096, 0},
		{"trim", 0, 4, 0, 4096, 1},
		{"write zeroes", 0, 6, 0, 4096, 1},
		{"write zeroes, all", 0, 6, 0, 1<<32 - 1, 1},
		{"read behind the end", 0, 0, size, 1, 22},
		{"read over the end", 0, 0, size - 1, 2, 22},
		{"read that wraps", 0, 0, 1<<64 - 1, 2, 22},
		{"read of too much", 0, 0, 0, 33 << 20, 22},
		{"read with unknown flags", 1 << 9, 0, 0, 512, 22},
		{"block status, not negotiated", 0, 7, 0, 512, 22},
		{"unknown command", 0, 99, 0, 512, 22},
		{"resize", 0, 8, 0, 512, 22},
		{"cache behind the end", 0, 5, size, 1, 22},
	} {
		c.request(r.flags, r.kind, uint64(i), r.offset, r.length)
		if got := c.simple(uint64(i)); got != r.want {
			t.Errorf("%s: got error %d, want %d", r.name, got, r.want)
		}
	}
	c.request(0, 1, 77, 0, 4096) // a write, with its data
	c.Write(make([]byte, 4096))
	if got := c.simple(77); got != 1 {
		t.Errorf("write: got error %d", got)
	}
	c.request(0, 0, 78, 5, 100)
	if got := c.simple(78); got != 0 || !bytes.Equal(c.take(100), d.data[5:105]) {
		t.Errorf("read after all this: error %d, or other bytes", got)
	}
}

// TestHostile: whatever a client does, it is cut off, and others are served.
func TestHostile(t *testing.T) {
	d := sample()
	_, socket := serve(t, map[string]export.Device{"x": d})
	for name, attack := range map[string]func(c *client){
		"says nothing":           func(c *client) {},
		"half an option":         func(c *client) { c.put([]byte("IHAVEOPT"), uint32(7), uint32(100), []byte("abc")) },
		"huge option":            func(c *client) { c.put([]byte("IHAVEOPT"), uint32(7), uint32(1<<31)) },
		"wrong magic":            func(c *client) { c.put([]byte("IHAVENOT"), uint32(7), uint32(0)) },
		"options without end":    func(c *client) { c.put(bytes.Repeat([]byte("IHAVEOPT\x00\x00\x00\x63\x00\x00\x00\x00"), 500)) },
		"unknown name, old way":  func(c *client) { c.put([]byte("IHAVEOPT"), uint32(1), uint32(1), []byte("y")) },
		"wrong request magic":    func(c *client) { c.goExport("x"); c.put(make([]byte, 28)) },
		"half a request":         func(c *client) { c.goExport("x"); c.put(uint32(0x25609513)); c.Conn.(*net.UnixConn).CloseWrite() },
		"write of 4 GiB":         func(c *client) { c.goExport("x"); c.request(0, 1, 0, 0, 1<<32-1) },
		"reads, takes no answer": func(c *client) { c.goExport("x"); flood(c); time.Sleep(3 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, socket)
			attack(c)
			if err := drain(c, 15*time.Second); os.IsTimeout(err) {
				t.Error("the connection is still there")
			}
			c = dial(t, socket)
			c.goExport("x")
			c.request(0, 0, 1, 0, 10)
			if got := c.simple(1); got != 0 || !bytes.Equal(c.take(10), d.data[:10]) {
				t.Errorf("another client: error %d, or other bytes", got)
			}
		})
	}
}

// flood asks for more than the socket holds, many times.
func flood(c *client) {
	for i := range uint64(64) {
		c.request(0, 0, i, 0, 8<<20)
	}
}

// FuzzConn sends what the fuzzer finds, from the first byte and behind a
// negotiation; the server has to come to an end with it.
func FuzzConn(f *testing.F) {
	f.Add(false, []byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x07\x00\x00\x00\x01x\x00\x00"))
	f.Add(false, []byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x0a\x00\x00\x00\x09\x00\x00\x00\x01x\xff\xff\xff\xff"))
	f.Add(true, []byte("\x25\x60\x95\x13\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00"))
	f.Fuzz(func(t *testing.T, negotiated bool, data []byte) {
		s := export.New(export.Options{Logger: slog.New(slog.DiscardHandler)})
		defer s.Close()
		if err := s.Add("x", aware{&disk{data: make([]byte, 2<<20)}}); err != nil {
			t.Fatal(err)
		}
		l := &pipeListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		if err := s.Serve(l); err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		l.conns <- theirs
		go func() {
			if negotiated {
				ours.Write(append([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x07"), infoRequest("x")...))
			}
			ours.Write(data)
			ours.Close()
		}()
		drain(ours, 5*time.Second)
		ours.Close()
	})
}

// A pipeListener accepts connections from a channel.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { close(l.done); return nil }
func (l *pipeListener) Addr() net.Addr { return nil }
