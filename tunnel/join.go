package tunnel

import (
	"context"
	"io"
	"net"
	"sync"
)

// Join copies in both directions until one has ended, or ctx ends; then both
// connections are closed. TLS has nothing to say that way once the other is over.
func Join(ctx context.Context, a, b net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			defer cancel()
			_, _ = io.Copy(way[1], way[0]) // both ends see how it ended
		})
	}
	both.Wait()
}
