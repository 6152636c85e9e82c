package fence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// The header of the PROXY protocol, as proxies send it before anything else:
// https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
//
// Not one byte behind it is read, since that is the beginning of TLS. What does
// not name an address of TCP is refused, though the document lets it through as
// the proxy's own: nobody knows who that is.

// ErrHeader says that a listed proxy has sent something else than a PROXY header.
var ErrHeader = errors.New("no PROXY header of a TCP connection")

const (
	maxVersion1 = 107     // bytes, with the end of the line
	maxVersion2 = 4 << 10 // bytes of addresses and whatever proxies add
)

var signature2 = []byte("\r\n\r\n\x00\r\nQUIT\n")

// readHeader reads a header of either version and returns the source. The zero
// address is that of the proxy itself, which only asks whether somebody listens.
func readHeader(r io.Reader) (netip.AddrPort, error) {
	first := make([]byte, len(signature2)) // no header is shorter
	if _, err := io.ReadFull(r, first); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read PROXY header: %w", err)
	}
	switch {
	case bytes.Equal(first, signature2):
		return readVersion2(r)
	case bytes.HasPrefix(first, []byte("PROXY ")):
		return readVersion1(r, first)
	}
	return netip.AddrPort{}, ErrHeader
}

// readVersion1 reads the rest of a line byte by byte.
func readVersion1(r io.Reader, line []byte) (netip.AddrPort, error) {
	for !bytes.HasSuffix(line, []byte("\r\n")) {
		if len(line) >= maxVersion1 {
			return netip.AddrPort{}, fmt.Errorf("%w: the line does not end", ErrHeader)
		}
		var next [1]byte
		if _, err := io.ReadFull(r, next[:]); err != nil {
			return netip.AddrPort{}, fmt.Errorf("read PROXY header: %w", err)
		}
		line = append(line, next[0])
	}
	words := strings.Split(string(line[:len(line)-2]), " ")
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return netip.AddrPort{}, ErrHeader
	}
	source, err := version1Address(words[1], words[2], words[4])
	if err == nil {
		_, err = version1Address(words[1], words[3], words[5])
	}
	return source, err
}

func version1Address(family, address, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" || a.Is4() != (family == "TCP4") {
		return netip.AddrPort{}, fmt.Errorf("%w: an address is none of %s", ErrHeader, family)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, fmt.Errorf("%w: a port is none", ErrHeader)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// Of version 2: the version with the command, and the family with the protocol.
const (
	commandLocal = 0x20
	commandProxy = 0x21
	familyTCP4   = 0x11
	familyTCP6   = 0x21
)

func readVersion2(r io.Reader) (source netip.AddrPort, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return source, fmt.Errorf("read PROXY header: %w", err)
	}
	size := int(binary.BigEndian.Uint16(head[2:]))
	if size > maxVersion2 {
		return source, fmt.Errorf("%w: %d bytes of addresses", ErrHeader, size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return source, fmt.Errorf("read PROXY header: %w", err)
	}
	switch {
	case head[0] == commandLocal:
		return source, nil
	case head[0] != commandProxy:
		return source, fmt.Errorf("%w: command %#x", ErrHeader, head[0])
	case head[1] == familyTCP4 && size >= 12:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:])), nil
	case head[1] == familyTCP6 && size >= 36:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(body)).Unmap(), binary.BigEndian.Uint16(body[32:])), nil
	}
	return source, fmt.Errorf("%w: family %#x with %d bytes of addresses", ErrHeader, head[1], size)
}
