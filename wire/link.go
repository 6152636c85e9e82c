package wire

import (
	"bufio"
	"net"
	"sync"
	"time"
)

// linkBuffer is four TLS records.
const linkBuffer = 64 << 10

// A Link is what lies under TLS. TLS reads and writes a record of 16 KiB at a
// time, and each would cost a system call and a wake-up of the other side: a Link
// reads ahead, and gathers what is written between Hold and Flush. Its Read fails
// when nothing arrives for a time, and another goroutine can tell it to stop
// reading. Safe for one goroutine that reads and many that write. The methods
// Hold and Flush of a nil Link do nothing.
type Link struct {
	net.Conn
	in *bufio.Reader

	readMu  sync.Mutex
	limit   time.Duration
	stopped bool

	writeMu sync.Mutex
	held    bool
	out     []byte // written while held, and not sent yet
}

// NewLink makes a link of conn, whose read deadline it sets from now on. Its Read
// fails with [os.ErrDeadlineExceeded] when nothing arrived for so long as limit says.
func NewLink(conn net.Conn, limit time.Duration) *Link {
	l := &Link{Conn: conn, limit: limit}
	l.in = bufio.NewReaderSize(within{l}, linkBuffer)
	return l
}

// Read returns what has arrived, or waits for it within the limit.
func (l *Link) Read(p []byte) (int, error) {
	l.readMu.Lock()
	stopped := l.stopped
	l.readMu.Unlock()
	if stopped { // and what was read ahead is not wanted either
		return 0, net.ErrClosed
	}
	return l.in.Read(p)
}

// within is the connection's Read under the link's limit.
type within struct{ *Link }

func (w within) Read(p []byte) (int, error) {
	if err := w.arm(); err != nil {
		return 0, err
	}
	return w.Conn.Read(p)
}

func (l *Link) arm() error {
	l.readMu.Lock()
	defer l.readMu.Unlock()
	if l.stopped {
		return net.ErrClosed
	}
	return l.SetReadDeadline(time.Now().Add(l.limit))
}

// StopReading ends the Read under way and all later ones. Writes go on.
func (l *Link) StopReading() {
	l.readMu.Lock()
	defer l.readMu.Unlock()
	l.stopped = true
	l.SetReadDeadline(time.Unix(1, 0))
}

// Hold lets what is written be gathered until Flush.
func (l *Link) Hold() {
	if l == nil {
		return
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.held = true
}

// Write sends p, or gathers it.
func (l *Link) Write(p []byte) (int, error) {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if !l.held {
		return l.Conn.Write(p)
	}
	if len(l.out)+len(p) > linkBuffer {
		if err := l.flush(); err != nil {
			return 0, err
		}
	}
	l.out = append(l.out, p...)
	return len(p), nil
}

// Flush sends what was gathered, and ends Hold.
func (l *Link) Flush() error {
	if l == nil {
		return nil
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.held = false
	return l.flush()
}

// flush is called with writeMu held.
func (l *Link) flush() error {
	if len(l.out) == 0 {
		return nil
	}
	_, err := l.Conn.Write(l.out)
	l.out = l.out[:0]
	return err
}
