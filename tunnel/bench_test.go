package tunnel

import (
	"io"
	"testing"
)

// BenchmarkTransfer is one stream through a tunnel on this machine.
func BenchmarkTransfer(b *testing.B) {
	key := NewKey()
	h := newHub(b, Peer{Key: key.Public()})
	l, err := h.Listen(1500)
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	c := dial(b, newClient(b, key, h.Key(), loopback(h)), 1500)
	chunk := make([]byte, 1<<20)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}
