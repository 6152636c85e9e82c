package tunnel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// patience is for what has to happen, on a machine that has much else to do.
var patience = 2 * time.Minute

func init() {
	if fault.IsMutant() {
		patience = 20 * time.Second
	}
}

// newHub opens a hub on a free port that lets those in.
func newHub(t testing.TB, peers ...Peer) *Hub {
	t.Helper()
	h, err := OpenHub(NewKey(), 0, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if err := h.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	return h
}

func newClient(t testing.TB, key Key, hub PublicKey, endpoint string) *Client {
	t.Helper()
	c, err := OpenClient(ClientOptions{Key: key, Hub: hub, Endpoint: endpoint, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func loopback(h *Hub) string { return fmt.Sprintf("127.0.0.1:%d", h.Port()) }

// answer has the hub listen on a port, and send what comes back to where it came from.
func answer(t testing.TB, h *Hub, port uint16) {
	t.Helper()
	l, err := h.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
}

func dial(t testing.TB, c *Client, port uint16) net.Conn {
	t.Helper()
	// A starved machine may need more than one attempt.
	for end := time.Now().Add(patience); ; {
		conn, err := c.Dial(t.Context(), port)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// echo sends n random bytes and takes them back; between is called after every
// piece of them.
func echo(t testing.TB, c net.Conn, n int, between func(sent int)) {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	defer c.SetDeadline(time.Time{})
	var seed [32]byte
	source := rand.NewChaCha8(seed)
	sent := sha256.New()
	failed := make(chan error, 1)
	go func() {
		piece := make([]byte, 64<<10)
		for done := 0; done < n; done += len(piece) {
			piece = piece[:min(len(piece), n-done)]
			source.Read(piece)
			sent.Write(piece)
			if _, err := c.Write(piece); err != nil {
				failed <- err
				return
			}
			if between != nil {
				between(done + len(piece))
			}
		}
		failed <- nil
	}()
	got := sha256.New()
	_, err := io.CopyN(got, c, int64(n))
	if err := errors.Join(err, <-failed); err != nil {
		t.Fatal(err)
	}
	if string(got.Sum(nil)) != string(sent.Sum(nil)) {
		t.Fatal("what came back is not what was sent")
	}
}

// refused dials with little patience, since nothing is to come, and returns why.
func refused(t testing.TB, c *Client, port uint16) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	conn, err := c.Dial(ctx, port)
	if err == nil {
		conn.Close()
		t.Fatal("connected, and should not have")
	}
	return err
}

// A wire carries datagrams between a client and a hub, and keeps them.
type wire struct {
	net.PacketConn
	seen chan datagram // of both directions; what nobody takes is let go
	done chan struct{}
}

type datagram struct {
	up   bool // from the client to the hub
	data []byte
}

// newWire puts itself before a hub.
func newWire(t testing.TB, h *Hub) *wire {
	t.Helper()
	outside, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inside, err := net.Dial("udp4", loopback(h))
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{PacketConn: outside, seen: make(chan datagram, 1000), done: make(chan struct{})}
	client := make(chan net.Addr, 1)
	down := make(chan struct{})
	note := func(d datagram) {
		select {
		case w.seen <- d:
		default:
		}
	}
	go func() {
		defer close(w.done)
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := outside.ReadFrom(buffer)
			if err != nil {
				return
			}
			select {
			case client <- from:
			default:
			}
			note(datagram{true, append([]byte(nil), buffer[:n]...)})
			inside.Write(buffer[:n])
		}
	}()
	go func() {
		defer close(down)
		var to net.Addr
		buffer := make([]byte, 1<<16)
		for {
			n, err := inside.Read(buffer)
			if err != nil {
				return
			}
			if to == nil {
				to = <-client
			}
			note(datagram{false, append([]byte(nil), buffer[:n]...)})
			outside.WriteTo(buffer[:n], to)
		}
	}()
	t.Cleanup(func() {
		outside.Close()
		inside.Close()
		<-w.done
		<-down
	})
	return w
}

// count is how many datagrams went each way, of those that have been seen so far.
func (w *wire) drain() (up, down [][]byte) {
	for {
		select {
		case d := <-w.seen:
			if d.up {
				up = append(up, d.data)
			} else {
				down = append(down, d.data)
			}
		default:
			return up, down
		}
	}
}
