package fence

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long something may take that has to come.
var patience = 30 * time.Second

func init() {
	if fault.IsMutant() {
		patience = 3 * time.Second
	}
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func allow(texts ...string) *Rules { return NewRules(prefixes(texts...)) }

// A gate is a listener on loopback, of which everything is said back.
type gate struct {
	*Listener
	t       *testing.T
	address string
	served  sync.WaitGroup
}

func open(t *testing.T, network, address string, o Options) *gate {
	t.Helper()
	inner, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("SKIPPED: no %s here: %v", address, err)
	}
	g := &gate{Listener: New(inner, o), t: t, address: inner.Addr().String()}
	g.served.Go(func() {
		for {
			c, err := g.Accept()
			if err != nil {
				return
			}
			g.served.Go(func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", addressOf(c.RemoteAddr()).Addr()) // who it is, as the server sees it
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		g.Close()
		g.Use(nil) // whoever is still connected goes
		g.served.Wait()
	})
	return g
}

func (g *gate) use(r *Rules) {
	g.t.Helper()
	if err := g.Use(r); err != nil {
		g.t.Fatal(err)
	}
}

// dial connects from an address of loopback and says first.
func (g *gate) dial(from, first string) net.Conn {
	g.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.Dial("tcp", g.address)
	if errors.Is(err, syscall.ECONNRESET) { // refused before connect has returned
		c, _ = net.Pipe()
		c.Close()
		return c
	}
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, first) // whoever is not let in may find this reset
	return c
}

// said is what comes before the end of a line, or of the connection.
func said(c net.Conn) string {
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := io.ReadFull(c, b); err != nil || b[0] == '\n' {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return string(line) + " and then nothing, for too long"
			}
			return string(line)
		}
	}
}

// echoes is whether somebody is still there.
func echoes(c net.Conn) bool {
	_, err := io.WriteString(c, "there?\n")
	return err == nil && said(c) == "there?"
}

// TestListener: before there are rules everybody waits; then those get in whom they allow;
// and when others come, who is not allowed any more is cut, and who is stays.
func TestListener(t *testing.T) {
	g := open(t, "tcp4", "127.0.0.1:0", Options{})
	early, stranger := g.dial("127.0.0.2", ""), g.dial("127.0.0.4", "")
	early.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := early.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("before there are rules: %v", err)
	}
	early.SetReadDeadline(time.Now().Add(patience))
	g.use(allow("127.0.0.2/32", "127.0.0.3/32"))
	if said(early) != "127.0.0.2" || said(stranger) != "" {
		t.Error("who has waited is not treated like anybody else")
	}
	a, b := g.dial("127.0.0.2", ""), g.dial("127.0.0.3", "")
	if said(a) != "127.0.0.2" || said(b) != "127.0.0.3" {
		t.Fatal("not let in")
	}
	if got := said(g.dial("127.0.0.4", "")); got != "" {
		t.Errorf("a stranger is told %q", got)
	}
	g.use(allow("127.0.0.3/32"))
	if echoes(a) {
		t.Error("a connection goes on that is not allowed any more")
	}
	if !echoes(b) {
		t.Error("a connection is cut that is allowed")
	}
	if got := said(g.dial("127.0.0.2", "")); got != "" {
		t.Errorf("after it was cut it is told %q", got)
	}
	g.use(allow("127.0.0.0/8"))
	if said(g.dial("127.0.0.2", "")) != "127.0.0.2" {
		t.Error("not let in again")
	}
	g.use(nil)
	if echoes(b) {
		t.Error("a connection goes on though nobody is allowed")
	}
	if err := errors.Join(g.Close(), g.Close()); err != nil {
		t.Error(err)
	}
}

// TestListener_Mapped: a socket for both families shows IPv4 as addresses of IPv6.
func TestListener_Mapped(t *testing.T) {
	g := open(t, "tcp", "[::]:0", Options{})
	_, port, _ := net.SplitHostPort(g.address)
	g.address = net.JoinHostPort("127.0.0.1", port)
	g.use(allow("127.0.0.2/32"))
	if got := said(g.dial("127.0.0.2", "")); got != "127.0.0.2" {
		t.Errorf("got %q", got)
	}
	g.use(allow("::ffff:127.0.0.3/128"))
	if got := said(g.dial("127.0.0.3", "")); got != "127.0.0.3" {
		t.Errorf("a rule for a mapped address: got %q", got)
	}
	if got := said(g.dial("127.0.0.2", "")); got != "" {
		t.Errorf("got %q", got)
	}
	g.use(allow("::/0")) // all of IPv6 is nothing of IPv4
	if got := said(g.dial("127.0.0.2", "")); got != "" {
		t.Errorf("got %q", got)
	}
}

// TestListener_Local: nobody locks this machine out of its own service.
func TestListener_Local(t *testing.T) {
	g := open(t, "tcp4", "127.0.0.1:0", Options{Local: true, Proxies: prefixes("127.0.0.9/32")})
	g.use(allow())
	if got := said(g.dial("127.0.0.2", "")); got != "127.0.0.2" {
		t.Errorf("from loopback: got %q", got)
	}
	if got := said(g.dial("127.0.0.9", "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n")); got != "" {
		t.Errorf("a proxy says that it is for somebody on loopback, which may be its own: got %q", got)
	}
}

// TestListener_Churn changes the rules while connections come and go. Whatever
// the order, when it is over nobody is connected who is not allowed.
func TestListener_Churn(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := open(t, "tcp4", "127.0.0.1:0", Options{})
	only := []*Rules{allow("127.0.0.2/32"), allow("127.0.0.3/32"), allow("127.0.0.2/31"), allow()}
	var all sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	for _, from := range []string{"127.0.0.2", "127.0.0.3"} {
		all.Go(func() {
			for range 100 {
				c := g.dial(from, "")
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
		})
	}
	all.Go(func() {
		for rnd := rand.New(rand.NewPCG(seed, 0)); ; {
			g.Use(only[rnd.IntN(len(only))])
			mu.Lock()
			n := len(conns)
			mu.Unlock()
			if n == 200 {
				return
			}
		}
	})
	all.Wait()
	g.use(only[1])
	for _, c := range conns {
		if who := addressOf(c.LocalAddr()).Addr(); who == netip.MustParseAddr("127.0.0.2") && strings.Contains(said(c)+fmt.Sprint(echoes(c)), "true") {
			t.Fatalf("%v is connected", who)
		}
	}
}

// A wall is a firewall that remembers.
type wall struct {
	allowed [][]netip.Prefix
	closed  int
	err     error
}

func (w *wall) Allow(p []netip.Prefix) error { w.allowed = append(w.allowed, p); return w.err }
func (w *wall) Close() error                 { w.closed++; return nil }

// TestListener_Firewall: it gets what the listener allows, and the proxies, since
// their packets have to come through; what it cannot do the listener still does.
func TestListener_Firewall(t *testing.T) {
	w := &wall{}
	g := open(t, "tcp4", "127.0.0.1:0", Options{Firewall: w, Proxies: prefixes("198.51.100.7/32")})
	g.use(allow("192.0.2.0/24", "192.0.2.7/32"))
	if want := prefixes("192.0.2.0/24", "198.51.100.7/32"); len(w.allowed) != 1 || !slices.Equal(w.allowed[0], want) {
		t.Errorf("got %v", w.allowed)
	}
	w.err = errors.New("no permission")
	if err := g.Use(allow("127.0.0.2/32")); !errors.Is(err, w.err) {
		t.Errorf("got %v", err)
	}
	if said(g.dial("127.0.0.2", "")) == "" || said(g.dial("127.0.0.3", "")) != "" {
		t.Error("without the firewall the listener does not do its part")
	}
	if g.Close(); w.closed != 1 {
		t.Errorf("closed %d times", w.closed)
	}
}

// TestRules compares with a look at every prefix.
func TestRules(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	address := func() netip.Addr { // few of them, so that they meet
		a := [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: byte(rnd.IntN(16))}
		if rnd.IntN(2) == 0 {
			a = [16]byte{0: 0x20, 15: byte(rnd.IntN(16))}
		}
		if out := netip.AddrFrom16(a); rnd.IntN(2) == 0 {
			return out.Unmap()
		} else {
			return out
		}
	}
	for range 2000 {
		var some []netip.Prefix
		for range rnd.IntN(6) {
			a := address()
			some = append(some, netip.PrefixFrom(a, a.BitLen()-rnd.IntN(6)))
		}
		r := NewRules(some)
		for range 20 {
			a := address()
			want := slices.ContainsFunc(some, func(p netip.Prefix) bool { return plain(p).Contains(a.Unmap()) })
			if got := r.Allows(a); got != want {
				t.Fatalf("%v allow %v: got %v, want %v", some, a, got, want)
			}
		}
		if again := NewRules(r.Prefixes()); !slices.Equal(again.Prefixes(), r.Prefixes()) {
			t.Fatalf("%v is not the one form of %v", r.Prefixes(), some)
		}
	}
	for _, test := range []struct {
		rules []string
		a     string
		want  bool
	}{
		{[]string{"0.0.0.0/0"}, "255.255.255.255", true},
		{[]string{"0.0.0.0/0"}, "::ffff:1.2.3.4", true},
		{[]string{"0.0.0.0/0"}, "2001:db8::1", false},
		{[]string{"::/0"}, "1.2.3.4", false},
		{[]string{"::/0"}, "2001:db8::1", true},
		{[]string{"192.0.2.9/24"}, "192.0.2.1", true},
		{[]string{"fe80::/10"}, "fe80::1%eth0", true},
		{[]string{"::ffff:192.0.2.0/120"}, "192.0.2.77", true},
		{[]string{"::ffff:0.0.0.0/96"}, "192.0.2.77", true},
		{nil, "192.0.2.1", false},
	} {
		if got := allow(test.rules...).Allows(netip.MustParseAddr(test.a)); got != test.want {
			t.Errorf("%v allow %s: got %v", test.rules, test.a, got)
		}
	}
	var none *Rules
	if none.Allows(netip.MustParseAddr("127.0.0.1")) || allow("0.0.0.0/0", "::/0").Allows(netip.Addr{}) {
		t.Error("somebody is allowed whom nothing allows")
	}
}

// TestMutants: what this package is for, left out, is noticed.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"OpenOnesNotCut":      {File: "listener.go", From: "cut = append(cut, c)", To: "", Tests: "TestListener$"},
		"MappedNotNormalised": {File: "rules.go", From: "a = a.Unmap().WithZone", To: "a = a.WithZone", Tests: "TestRules$"},
		"HeaderFromAnyone":    {File: "listener.go", From: "if !l.proxies.Allows(peer.Addr()) {", To: "if false {", Tests: "TestListener_Proxy$"},
		"ProxiedIsLocal":      {File: "listener.go", From: "l.enter(raw, source, false)", To: "l.enter(raw, source, isLocal(raw))", Tests: "TestListener_Local$"},
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
