package fence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// version2 is a header by the document's figure.
func version2(command, family byte, body ...byte) string {
	return string(append(binary.BigEndian.AppendUint16(append(bytes.Clone(signature2), command, family), uint16(len(body))), body...))
}

var (
	from4 = []byte{192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x34, 0x05, 0xdc}
	from6 = append(append(append(netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("2001:db8::2").AsSlice()...), 0, 7), 0, 8)
)

// TestReadHeader: who it is, for headers as the document has them, and that none of
// the bytes behind is read; and everything else refused, whatever it claims.
func TestReadHeader(t *testing.T) {
	mapped := append(append(append(netip.MustParseAddr("::ffff:192.0.2.1").AsSlice(), netip.MustParseAddr("::").AsSlice()...), 0, 7), 0, 8)
	for header, want := range map[string]string{
		"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1500\r\n":                        "192.0.2.1:56324",
		"PROXY TCP6 2001:db8::1 2001:db8::2 7 8\r\n":                              "[2001:db8::1]:7",
		"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 7 8\r\n":                    "192.0.2.1:7",
		version2(commandProxy, familyTCP4, from4...):                              "192.0.2.1:4660",
		version2(commandProxy, familyTCP6, from6...):                              "[2001:db8::1]:7",
		version2(commandProxy, familyTCP6, mapped...):                             "192.0.2.1:7",
		version2(commandProxy, familyTCP4, append(from4, 3, 0, 4, 1, 2, 3, 4)...): "192.0.2.1:4660", // with a checksum behind it
		version2(commandLocal, 0):                                                 "invalid AddrPort",
		version2(commandLocal, familyTCP4, from4...):                              "invalid AddrPort",
	} {
		r := strings.NewReader(header + "\x16\x03\x01")
		got, err := readHeader(r)
		if err != nil || got.String() != want {
			t.Errorf("%q: got %v, %v", header, got, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "\x16\x03\x01" {
			t.Errorf("%q: %q is left", header, rest)
		}
		for n := range len(header) - 1 {
			if got, err := readHeader(strings.NewReader(header[:n])); err == nil {
				t.Errorf("%q: got %v", header[:n], got)
			}
		}
	}
	for _, header := range []string{
		"PROXY UNKNOWN\r\n", "PROXY UNKNOWN 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
		"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", "PROXY TCP4 192.0.2.1\x00 192.0.2.2 1 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n" + strings.Repeat("x", 200), "PROXY " + strings.Repeat("1", 5000), "proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
		"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00", "GET / HTTP/1.1\r\n\r\n",
		version2(commandProxy, 0), version2(commandProxy, 0x12, from4...), version2(commandProxy, 0x31, make([]byte, 216)...),
		version2(commandProxy, familyTCP6, from4...), version2(commandProxy, familyTCP4, from4[:11]...), version2(0x22, familyTCP4, from4...),
		version2(0x11, familyTCP4, from4...), version2(commandProxy, familyTCP4, make([]byte, maxVersion2+1)...),
	} {
		if got, err := readHeader(strings.NewReader(header)); !errors.Is(err, ErrHeader) {
			t.Errorf("%.60q: got %v, %v", header, got, err)
		}
	}
}

// FuzzReadHeader: whatever comes, at most a header is read, and no address without one.
func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.1 56324 1500\r\n"))
	f.Add([]byte(version2(commandProxy, familyTCP6, from6...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		got, err := readHeader(r)
		if n := len(b) - r.Len(); n > len(signature2)+4+maxVersion2 {
			t.Errorf("%d bytes read", n)
		}
		if err != nil && got.IsValid() && got.Addr().Is4In6() {
			t.Errorf("got %v", got)
		}
	})
}

// TestListener_Proxy: a header counts from a listed peer, and from nobody else.
func TestListener_Proxy(t *testing.T) {
	const header = "PROXY TCP4 192.0.2.1 127.0.0.1 1 1500\r\n"
	g := open(t, "tcp4", "127.0.0.1:0", Options{Proxies: prefixes("127.0.0.9/32"), HeaderTimeout: time.Minute})
	g.use(allow("192.0.2.0/24", "127.0.0.2/32", "127.0.0.3/32"))
	c := g.dial("127.0.0.9", header+"hello\n")
	if got := said(c); got != "192.0.2.1" || said(c) != "hello" {
		t.Errorf("through the proxy: %q", got)
	}
	six := g.dial("127.0.0.9", version2(commandProxy, familyTCP6, from6...))
	if got := said(six); got != "" {
		t.Errorf("somebody else through the proxy: %q", got)
	}
	d := g.dial("127.0.0.2", header)
	if got := said(d); got != "127.0.0.2" || said(d)+"\n" != header {
		t.Errorf("a header from somebody else is not what it said: %q", got)
	}
	if got := said(g.dial("127.0.0.4", header)); got != "" { // not allowed, and says that it is somebody who is
		t.Errorf("a header of a stranger: %q", got)
	}
	if got := said(g.dial("127.0.0.9", version2(commandLocal, 0))); got != "" {
		t.Errorf("the proxy itself is not allowed: %q", got)
	}
	if got := said(g.dial("127.0.0.9", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00")); got != "" {
		t.Errorf("TLS without a header: %q", got)
	}
	// One that says nothing keeps nobody else waiting.
	silent := g.dial("127.0.0.9", "")
	if got := said(g.dial("127.0.0.9", header)); got != "192.0.2.1" {
		t.Errorf("beside a silent one: %q", got)
	}
	g.use(allow("127.0.0.2/32"))
	if echoes(c) {
		t.Error("what came through the proxy is not cut")
	}
	if !echoes(d) {
		t.Error("what is allowed is cut")
	}
	g.use(allow("0.0.0.0/0"))
	if got := said(g.dial("127.0.0.9", version2(commandLocal, 0))); got != "127.0.0.9" {
		t.Errorf("the proxy itself is allowed: %q", got)
	}
	io.WriteString(silent, header)
	if got := said(silent); got != "192.0.2.1" {
		t.Errorf("one that was slow: %q", got)
	}
	g.dial("127.0.0.9", "PROXY") // whoever has begun is not waited for at the end
}

// TestListener_SlowProxy: there is a time for the header, and a number of those that wait.
func TestListener_SlowProxy(t *testing.T) {
	g := open(t, "tcp4", "127.0.0.1:0", Options{Proxies: prefixes("127.0.0.9/32"), HeaderTimeout: 50 * time.Millisecond})
	g.use(allow("0.0.0.0/0"))
	c := g.dial("127.0.0.9", "PROXY TC")
	if got := said(c); got != "" {
		t.Errorf("got %q", got)
	}
	many := open(t, "tcp4", "127.0.0.1:0", Options{Proxies: prefixes("127.0.0.9/32"), HeaderTimeout: time.Hour})
	many.use(allow("0.0.0.0/0"))
	for range maxArriving {
		many.dial("127.0.0.9", "")
	}
	if got := said(many.dial("127.0.0.9", "")); got != "" {
		t.Errorf("one too many is told %q", got)
	}
}
