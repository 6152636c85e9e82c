package wire

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"rehost/internal/fault"
)

// A wireTap counts what reaches the network.
type wireTap struct {
	net.Conn
	reads, writes int
	sent          []byte
}

func (w *wireTap) Write(p []byte) (int, error) {
	w.writes++
	w.sent = append(w.sent, p...)
	return len(p), nil
}

func (w *wireTap) Read(p []byte) (int, error) {
	w.reads++
	return w.Conn.Read(p)
}

// TestLink_Gathers: records written while a run goes out reach the network in few
// writes, in their order, and none stays behind.
func TestLink_Gathers(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	tap := &wireTap{Conn: near}
	l := NewLink(tap, time.Minute)
	record := make([]byte, 16<<10)
	var want []byte
	write := func(fill byte) {
		t.Helper()
		for i := range record {
			record[i] = fill
		}
		want = append(want, record...)
		if n, err := l.Write(record); n != len(record) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	write(1)
	if tap.writes != 1 {
		t.Errorf("outside Hold: %d writes, want 1", tap.writes)
	}
	l.Hold()
	for i := range 10 {
		write(byte(i + 2))
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if tap.writes != 4 {
		t.Errorf("11 records took %d writes, want 4", tap.writes)
	}
	write(99)
	if tap.writes != 5 || !bytes.Equal(tap.sent, want) {
		t.Errorf("%d writes, want 5; what was sent is right: %v", tap.writes, bytes.Equal(tap.sent, want))
	}
}

// TestLink_Reads: what arrived at once is read at once; silence ends a Read, and
// whoever is told to stop reads nothing more, not even what was read ahead.
func TestLink_Reads(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	tap := &wireTap{Conn: near}
	l := NewLink(tap, 50*time.Millisecond)
	go far.Write([]byte("abc"))
	b := make([]byte, 1)
	for _, want := range "ab" {
		if _, err := l.Read(b); err != nil || b[0] != byte(want) {
			t.Fatalf("Read: %q, %v, want %q", b, err, want)
		}
	}
	if tap.reads != 1 {
		t.Errorf("two Reads of what arrived at once took %d of the connection", tap.reads)
	}
	l.StopReading()
	if n, err := l.Read(b); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("a stopped link read %d bytes, %v", n, err)
	}

	l = NewLink(near, 50*time.Millisecond)
	if _, err := l.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a silent Read: %v, want %v", err, os.ErrDeadlineExceeded)
	}
}

// TestMutants: a link that keeps back what was written, or gives out what was read ahead
// after it was told to stop, is noticed.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"StaysBehind": {File: "link.go", From: "l.held = false\n\treturn l.flush()", To: "l.held = false\n\treturn nil", Tests: "TestLink_Gathers$"},
		"ReadsOn":     {File: "link.go", From: "if stopped {", To: "if stopped && false {", Tests: "TestLink_Reads$"},
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
