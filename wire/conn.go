package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Conn carries messages over one connection. One goroutine may read while
// many write. Who made the net.Conn keeps its deadlines and its end.
type Conn struct {
	conn   io.ReadWriter
	link   *Link            // or nil
	header [headerSize]byte // of the frame being read

	mu      sync.Mutex // writers
	scratch []byte     // one TLS record: frames begin here, small ones fit
}

// NewConn makes a connection on which nothing has been sent yet. link, if it is
// not nil, is what conn reads from and writes to.
func NewConn(conn io.ReadWriter, link *Link) *Conn {
	return &Conn{conn: conn, link: link, scratch: make([]byte, 0, 16<<10)}
}

// WritePreface sends magic and version.
func (c *Conn) WritePreface() error {
	b := append(make([]byte, 0, prefaceSize), Magic...)
	b = binary.BigEndian.AppendUint16(b, Version)
	_, err := c.conn.Write(append(b, 0, 0))
	return err
}

// ReadPreface reads the other side's magic and version, and returns an error
// that wraps [ErrProtocol] if they are not ours: a [VersionError] if only the
// version differs.
func (c *Conn) ReadPreface() error {
	var b [prefaceSize]byte
	if _, err := io.ReadFull(c.conn, b[:]); err != nil {
		return fmt.Errorf("read preface: %w", err)
	}
	if string(b[:8]) != Magic {
		return fmt.Errorf("read preface: %w: it begins with %q", ErrProtocol, b[:8])
	}
	if v := binary.BigEndian.Uint16(b[8:]); v != Version {
		return fmt.Errorf("read preface: %w", &VersionError{v})
	}
	if b[10] != 0 || b[11] != 0 {
		return fmt.Errorf("read preface: %w: reserved bytes are not zero", ErrProtocol)
	}
	return nil
}

// Read returns the next message. It takes memory for a body only after its
// length was found to be within the limits of its type; only types in want are
// read at all. Errors about bytes wrap [ErrProtocol]; the end of the stream
// between two frames is [io.EOF].
func (c *Conn) Read(want ...Type) (Message, error) {
	if _, err := io.ReadFull(c.conn, c.header[:]); err != nil {
		if errors.Is(err, io.EOF) && err != io.EOF {
			return nil, fmt.Errorf("read frame: %w", err)
		}
		return nil, err
	}
	length, typ, err := parseHeader(c.header[:], want)
	if err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	body, buffer := takeBuffer(length, typ)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		putBuffer(buffer)
		return nil, fmt.Errorf("read %v: %w", typ, noEOF(err))
	}
	sum := crc32.Update(crc32.Checksum(c.header[:8], castagnoli), castagnoli, body)
	if got := binary.BigEndian.Uint32(c.header[8:]); got != sum {
		putBuffer(buffer)
		return nil, fmt.Errorf("read %v: %w: checksum is %08x, want %08x", typ, ErrProtocol, got, sum)
	}
	m, err := kinds[typ].decode(body)
	if err != nil {
		putBuffer(buffer)
		return nil, fmt.Errorf("read %v: %w", typ, err)
	}
	if r, ok := m.(Run); ok {
		r.buffer = buffer
		return r, nil
	}
	return m, nil
}

func parseHeader(h []byte, want []Type) (length int, typ Type, err error) {
	n, typ := binary.BigEndian.Uint32(h), Type(h[4])
	if int(typ) >= len(kinds) || kinds[typ].decode == nil {
		return 0, 0, fmt.Errorf("%w: unknown %v", ErrProtocol, typ)
	}
	ok := len(want) == 0
	for _, w := range want {
		ok = ok || w == typ
	}
	if !ok {
		return 0, 0, fmt.Errorf("%w: unexpected %v", ErrProtocol, typ)
	}
	if k := kinds[typ]; int64(n) < int64(k.min) || int64(n) > int64(k.max) {
		return 0, 0, fmt.Errorf("%w: %v of %d bytes, want %d to %d", ErrProtocol, typ, n, k.min, k.max)
	}
	if h[5]|h[6]|h[7] != 0 {
		return 0, 0, fmt.Errorf("%w: reserved bytes are not zero", ErrProtocol)
	}
	return int(n), typ, nil
}

// noEOF turns the end of the stream inside a frame into what it is.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // a wrapped one says more than the other would
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write sends a message. The payload of a [Run] is neither copied as a whole
// nor kept. After an error the connection is good for nothing.
func (c *Conn) Write(m Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := m.(Run); ok {
		return c.writeRun(r)
	}
	b, err := m.appendBody(append(c.scratch[:0], make([]byte, headerSize)...))
	if err != nil {
		return fmt.Errorf("write %v: %w", m.Type(), err)
	}
	if n, k := len(b)-headerSize, kinds[m.Type()]; n < k.min || n > k.max {
		return fmt.Errorf("write %v: %w: %d bytes, want %d to %d", m.Type(), ErrProtocol, n, k.min, k.max)
	}
	putHeader(b, m.Type(), b[headerSize:], nil)
	return c.write(m.Type(), b)
}

// writeRun sends the headers and the head of the payload as one TLS record and
// the rest from where it lies.
func (c *Conn) writeRun(r Run) error {
	if err := r.Run.Validate(); err != nil {
		return fmt.Errorf("write %v: %w", TypeRun, err)
	}
	b := r.appendHeader(append(c.scratch[:0], make([]byte, headerSize)...))
	putHeader(b, TypeRun, b[headerSize:], r.Run.Payload)
	head := min(cap(b)-len(b), len(r.Run.Payload))
	b = append(b, r.Run.Payload[:head]...)
	if head == len(r.Run.Payload) {
		return c.write(TypeRun, b)
	}
	c.link.Hold()
	if err := c.write(TypeRun, b); err != nil {
		return err
	}
	if err := c.write(TypeRun, r.Run.Payload[head:]); err != nil {
		return err
	}
	if err := c.link.Flush(); err != nil {
		return fmt.Errorf("write %v: %w", TypeRun, err)
	}
	return nil
}

func (c *Conn) write(t Type, b []byte) error {
	if _, err := c.conn.Write(b); err != nil {
		return fmt.Errorf("write %v: %w", t, err)
	}
	return nil
}

// putHeader writes the header of a frame whose body is the two parts.
func putHeader(b []byte, t Type, head, tail []byte) {
	binary.BigEndian.PutUint32(b, uint32(len(head)+len(tail)))
	b[4], b[5], b[6], b[7] = byte(t), 0, 0, 0
	sum := crc32.Update(crc32.Checksum(b[:8], castagnoli), castagnoli, head)
	binary.BigEndian.PutUint32(b[8:], crc32.Update(sum, castagnoli, tail))
}

// Bodies of runs come from two pools: most are either a few blocks or a whole
// MaxRun. Everything else is small and rare.
var smallBuffers, largeBuffers = pool(64 << 10), pool(MaxFrame)

func pool(size int) *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, size); return &b }}
}

func takeBuffer(length int, t Type) (body []byte, buffer *[]byte) {
	if t != TypeRun {
		return make([]byte, length), nil
	}
	p := largeBuffers
	if length <= 64<<10 {
		p = smallBuffers
	}
	buffer = p.Get().(*[]byte)
	return (*buffer)[:length], buffer
}

func putBuffer(buffer *[]byte) {
	switch {
	case buffer == nil:
	case len(*buffer) == MaxFrame:
		largeBuffers.Put(buffer)
	default:
		smallBuffers.Put(buffer)
	}
}

// Free gives the payload's memory back, for the next run that is read. The
// payload must not be used afterwards, by anyone. To forget Free is only waste.
func (r Run) Free() { putBuffer(r.buffer) }
