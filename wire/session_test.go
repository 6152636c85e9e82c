package wire

import (
	"errors"
	"io"
	"net"
	"testing"

	"rehost/block"
)

// TestSession_FailedSendsNothing: a connection that was idle when the session failed,
// and is not closed yet, is not written to any more.
func TestSession_FailedSendsNothing(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go io.Copy(io.Discard, far) // ends with it
	why := errors.New("refused")
	for range 100 { // the select behind Put may take either
		s := &Session{idle: make(chan *clientConn, 1), done: make(chan struct{}), err: why}
		close(s.done)
		s.idle <- &clientConn{Conn: NewConn(near), raw: near, end: make(chan struct{})}
		run := block.Run{Extent: block.Extent{Count: 1}, Codec: block.Zero}
		if err := s.Put(t.Context(), 1, 0, run); !errors.Is(err, why) {
			t.Fatalf("got %v", err)
		}
	}
}
