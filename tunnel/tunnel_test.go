package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestKey(t *testing.T) {
	k := NewKey()
	again, err := ParseKey(k.Secret() + "\n")
	if err != nil || again.Public() != k.Public() {
		t.Errorf("read again: %v, %v", again.Public(), err)
	}
	p, err := ParsePublicKey(k.Public().String())
	if err != nil || p != k.Public() {
		t.Errorf("read again: %v, %v", p, err)
	}
	for _, bad := range []string{"", "x", k.Secret()[:40], strings.Repeat("A", 43) + "=", k.Secret() + k.Secret()} {
		if _, err := ParsePublicKey(bad); !errors.Is(err, ErrKey) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, text := range []string{fmt.Sprint(k), fmt.Sprintf("%+v %#v %s %v", k, k, k, &k)} {
		if strings.Contains(text, k.Secret()[:20]) || strings.Contains(text, fmt.Sprintf("%d", k.secret[:4])[1:8]) {
			t.Errorf("the key is shown: %s", text)
		}
	}
}

// TestTunnel: each client has an address of its own, which the hub can rely on,
// and what is sent comes through unharmed.
func TestTunnel(t *testing.T) {
	first, second := NewKey(), NewKey()
	h := newHub(t, Peer{Key: first.Public()}, Peer{Key: second.Public()})
	answer(t, h, 1500)
	for _, key := range []Key{first, second} {
		c := dial(t, newClient(t, key, h.Key(), loopback(h)), 1500)
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != key.Public().Address() {
			t.Errorf("the client is at %v, want %v", got, key.Public().Address())
		}
		if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != h.Key().Address() {
			t.Errorf("the hub is at %v, want %v", got, h.Key().Address())
		}
		echo(t, c, 1<<20, nil)
	}
}

// TestHub_Silent: nobody gets an answer who has no key, whatever is sent.
func TestHub_Silent(t *testing.T) {
	known, strange := NewKey(), NewKey()
	h := newHub(t, Peer{Key: known.Public()})
	answer(t, h, 1500)

	// A stranger that even knows the hub's public key.
	w := newWire(t, h)
	if err := refused(t, newClient(t, strange, h.Key(), w.LocalAddr().String()), 1500); !errors.As(err, new(*HandshakeError)) {
		t.Errorf("a stranger is told %v", err)
	}
	if up, down := w.drain(); len(up) == 0 || len(down) > 0 {
		t.Fatalf("a stranger has sent %d datagrams and got %d", len(up), len(down))
	}

	// The same way, somebody who is known is answered: the silence above was the hub's.
	w = newWire(t, h)
	c := newClient(t, known, h.Key(), w.LocalAddr().String())
	echo(t, dial(t, c, 1500), 1<<10, nil)
	up, down := w.drain()
	if len(down) == 0 {
		t.Fatal("the wire shows no answers")
	}

	// All that was recorded, sent again from elsewhere, and much that never was any.
	s, err := net.Dial("udp4", loopback(h))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	silent := func(what string) {
		t.Helper()
		echo(t, dial(t, c, 1500), 1<<10, nil) // by now the hub has had the time to answer
		s.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if n, err := s.Read(make([]byte, 1500)); err == nil {
			t.Errorf("the hub has answered %s with %d bytes", what, n)
		}
	}
	for _, d := range append(up, down...) {
		s.Write(d)
	}
	silent("what was recorded") // before the flood: in one that would be asked for a cookie, see the threat model
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for n := range 2000 {
		d := make([]byte, r.IntN(1500))
		for i := range d {
			d[i] = byte(r.Uint32())
		}
		if len(d) > 4 { // of the right kind and size, as far as that can be seen
			copy(d, []byte{byte(1 + n%4), 0, 0, 0})
			d = d[:min(len(d), []int{148, 92, 64, 1500}[n%4])]
		}
		s.Write(d)
	}
	silent("a stranger")
}

// TestHub_Replay: a handshake that is sent again opens nothing, nor does it lead
// the hub to think that the client has moved.
func TestHub_Replay(t *testing.T) {
	key := NewKey()
	h := newHub(t, Peer{Key: key.Public()})
	answer(t, h, 1500)
	w := newWire(t, h)
	conn := dial(t, newClient(t, key, h.Key(), w.LocalAddr().String()), 1500)
	echo(t, conn, 1<<10, nil)
	up, _ := w.drain()
	before := h.Sights()[key.Public()]
	s, err := net.Dial("udp4", loopback(h))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, d := range up {
		s.Write(d)
	}
	echo(t, conn, 1<<10, nil)
	if after := h.Sights()[key.Public()]; after.Endpoint != before.Endpoint || after.Handshake != before.Handshake {
		t.Errorf("after a replay the hub sees %v, before %v", after, before)
	}
}

// TestHub_Address: who is let in can be at no address but that of his key, not even
// at one of somebody who is let in, too.
func TestHub_Address(t *testing.T) {
	thief, victim := NewKey(), NewKey()
	h := newHub(t, Peer{Key: thief.Public()}, Peer{Key: victim.Public()})
	answer(t, h, 1500)
	c := newClient(t, thief, h.Key(), loopback(h))
	echo(t, dial(t, c, 1500), 1<<10, nil) // there is a session
	echo(t, dial(t, newClient(t, victim, h.Key(), loopback(h)), 1500), 1<<10, nil)
	for name, address := range map[string]netip.Addr{"of another": victim.Public().Address(), "of the hub": h.Key().Address(), "of nobody": netip.MustParseAddr("fd00::1")} {
		from := tcpip.AddrFrom16(address.As16())
		if err := c.end.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: from.WithPrefix()}, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
		sent := h.Sights()[thief.Public()].Received
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		conn, err := gonet.DialTCPWithBind(ctx, c.end.stack, tcpip.FullAddress{NIC: nic, Addr: from}, at(h.Key().Address(), 1500), ipv6.ProtocolNumber)
		cancel()
		if err == nil {
			conn.Close()
			t.Errorf("somebody is at the address %s", name)
		}
		if h.Sights()[thief.Public()].Received == sent && address != h.Key().Address() { // which a stack does not send to itself
			t.Errorf("nothing was sent from the address %s", name)
		}
		if err := c.end.stack.RemoveAddress(nic, from); err != nil {
			t.Fatal(err)
		}
	}
	echo(t, dial(t, c, 1500), 1<<10, nil)
}

// TestHub_SetPeers: who may come changes at once, in both directions.
func TestHub_SetPeers(t *testing.T) {
	key, other := NewKey(), NewKey()
	all := []Peer{{Key: key.Public()}, {Key: other.Public()}}
	h := newHub(t, all...)
	answer(t, h, 1500)
	answer(t, h, 8443)
	c, bystander := newClient(t, key, h.Key(), loopback(h)), newClient(t, other, h.Key(), loopback(h))
	data, calls, untouched := dial(t, c, 1500), dial(t, c, 8443), dial(t, bystander, 1500)
	for _, conn := range []net.Conn{data, calls, untouched} {
		echo(t, conn, 1<<10, nil)
	}

	set := func(peers ...Peer) {
		t.Helper()
		if err := h.SetPeers(append(peers, all[1])); err != nil {
			t.Fatal(err)
		}
	}
	set(Peer{Key: key.Public(), Ports: []uint16{8443}})
	data.SetReadDeadline(time.Now().Add(patience))
	if _, err := data.Read(make([]byte, 1)); err == nil || errors.As(err, new(interface{ Timeout() bool })) && strings.Contains(err.Error(), "timeout") {
		t.Errorf("what may be no more was not cut: %v", err)
	}
	echo(t, calls, 1<<10, nil)
	conn, err := c.Dial(t.Context(), 1500)
	if err == nil {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err = io.ReadFull(conn, make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("a port that is not allowed answers: %v", err)
		}
		conn.Close()
	}

	set()
	if err := refused(t, c, 8443); !errors.As(err, new(*HandshakeError)) {
		t.Errorf("who was taken out is told %v", err)
	}
	h.mu.Lock()
	left := len(h.peers)
	h.mu.Unlock()
	if left != 1 || h.end.wg.LookupPeer(device.NoisePublicKey(key.Public())) != nil {
		t.Error("who was taken out is still known")
	}
	set(all[0])
	echo(t, dial(t, c, 1500), 1<<10, nil)
	echo(t, untouched, 1<<10, nil)

	if err := h.SetPeers([]Peer{{Key: h.Key()}}); err == nil {
		t.Error("the hub has let itself in")
	}
}

// TestClient_Dial: why there is no tunnel is said.
func TestClient_Dial(t *testing.T) {
	key := NewKey()
	h := newHub(t, Peer{Key: key.Public()})
	answer(t, h, 1500)
	for name, test := range map[string]struct {
		hub      PublicKey
		endpoint string
		port     uint16
		want     string
	}{
		"wrong key of the hub": {NewKey().Public(), loopback(h), 1500, "no handshake with " + loopback(h) + ": wrong key or UDP blocked"},
		"nobody there":         {h.Key(), "127.0.0.1:1", 1500, "wrong key or UDP blocked"},
		"no such name":         {h.Key(), "nowhere.invalid:51820", 1500, "no handshake with nowhere.invalid:51820: lookup"},
		"no such port inside":  {h.Key(), loopback(h), 9, "connect to port 9 through the tunnel"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := refused(t, newClient(t, key, test.hub, test.endpoint), test.port); !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
	if _, err := OpenClient(ClientOptions{Key: key, Hub: h.Key(), Endpoint: "no-port", Log: quiet}); err == nil {
		t.Error("an endpoint without a port was taken")
	}
}

// TestClient_Rekey: keys are replaced while data flows, and nothing is lost.
func TestClient_Rekey(t *testing.T) {
	key := NewKey()
	h := newHub(t, Peer{Key: key.Public()})
	answer(t, h, 1500)
	c := newClient(t, key, h.Key(), loopback(h))
	conn := dial(t, c, 1500)
	hub := c.end.wg.LookupPeer(device.NoisePublicKey(h.Key()))
	var times []time.Time
	echo(t, conn, 4<<20, func(sent int) {
		if sent%(1<<20) == 0 {
			times = append(times, c.Handshake())
			hub.ExpireCurrentKeypairs()
			hub.SendHandshakeInitiation(false)
		}
	})
	if last := c.Handshake(); len(times) != 4 || !last.After(times[0]) {
		t.Errorf("handshakes at %v, the last at %v", times, last)
	}
}

// TestClient_HubRestarts: a hub that has forgotten all keys of sessions is found again.
func TestClient_HubRestarts(t *testing.T) {
	key, secret := NewKey(), NewKey()
	start := func(port uint16) *Hub {
		h, err := OpenHub(secret, port, quiet)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		if err := h.SetPeers([]Peer{{Key: key.Public()}}); err != nil {
			t.Fatal(err)
		}
		answer(t, h, 1500)
		return h
	}
	h := start(0)
	c := newClient(t, key, h.Key(), loopback(h))
	echo(t, dial(t, c, 1500), 1<<10, nil)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	start(h.Port())
	echo(t, dial(t, c, 1500), 1<<10, nil)
}

// TestHub_Flood: garbage costs a bounded amount of memory, and who is known gets
// through afterwards.
func TestHub_Flood(t *testing.T) {
	key := NewKey()
	h := newHub(t, Peer{Key: key.Public()})
	answer(t, h, 1500)
	conn := dial(t, newClient(t, key, h.Key(), loopback(h)), 1500)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	s, err := net.Dial("udp4", loopback(h))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := make([]byte, 148) // looks like an initiation
	for n := range 50000 {
		d[0], d[8], d[9] = 1, byte(n), byte(n>>8)
		s.Write(d)
	}
	if now := runtime.NumGoroutine(); now > goroutines+8 {
		t.Errorf("a flood has made %d goroutines", now-goroutines)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	// The queue of handshakes holds 1024 datagrams in buffers of 64 KiB.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 128<<20 {
		t.Errorf("a flood takes %d MiB", grown>>20)
	}
	echo(t, conn, 1<<16, nil)
}

// TestClose: an end leaves no goroutine and no descriptor, whatever is under way.
func TestClose(t *testing.T) {
	key := NewKey()
	h := newHub(t, Peer{Key: key.Public()})
	l, err := h.Listen(1500)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, key, h.Key(), loopback(h))
	accepted := make(chan error)
	var ours net.Conn
	go func() {
		var err error
		if ours, err = l.Accept(); err == nil {
			_, err = ours.Read(make([]byte, 1))
		}
		accepted <- err
	}()
	theirs := dial(t, c, 1500)
	read := make(chan error)
	go func() {
		_, err := theirs.Read(make([]byte, 1))
		read <- err
	}()
	for range 2 {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-accepted; err == nil {
		t.Error("a connection of a closed hub reads on")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-read; err == nil {
		t.Error("a connection of a closed client reads on")
	}
	if _, err := c.Dial(t.Context(), 1500); err == nil {
		t.Error("a closed client connects")
	}
}
