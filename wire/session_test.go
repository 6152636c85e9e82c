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
		s.idle <- &clientConn{Conn: NewConn(near, nil), raw: near, end: make(chan struct{})}
		run := block.Run{Extent: block.Extent{Count: 1}, Codec: block.Zero}
		if err := s.Put(t.Context(), 1, 0, run); !errors.Is(err, why) {
			t.Fatalf("got %v", err)
		}
	}
}

// TestSession_Decodes: to a server from before there were more codecs nothing is
// sent that it does not know.
func TestSession_Decodes(t *testing.T) {
	for _, c := range []struct {
		says  []string
		codec block.Codec
		want  bool
	}{
		{nil, block.Zero, true}, {nil, block.Raw, true}, {nil, block.Zstd, true}, {nil, block.S2, false},
		{[]string{"zero", "raw", "zstd"}, block.S2, false}, {[]string{"zero", "raw", "zstd", "s2"}, block.S2, true},
	} {
		s := &Session{welcome: Welcome{Codecs: c.says}}
		if got := s.Decodes(c.codec); got != c.want {
			t.Errorf("%v, of a server that says %q: %v, want %v", c.codec, c.says, got, c.want)
		}
	}
}
