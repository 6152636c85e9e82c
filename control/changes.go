package control

import (
	"context"
	"sync"
	"time"
)

// changes counts what replication servers have to know at once, as that a
// certificate does not count any more, and wakes those that wait for it. It is
// safe for concurrent use.
type changes struct {
	mu       sync.Mutex
	revision int64         // guarded by mu; of this process: another one begins elsewhere
	next     chan struct{} // guarded by mu; closed by the next change
	over     bool          // guarded by mu: nobody is to wait any more
}

func newChanges(started time.Time) *changes {
	return &changes{revision: started.UnixNano(), next: make(chan struct{})}
}

// now is what there is.
func (c *changes) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.revision
}

// happened is called after something has become durable.
func (c *changes) happened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision++
	close(c.next)
	c.next = make(chan struct{})
}

// end lets everybody go who waits, and nobody wait any more: in this order, or
// who came in between would be left waiting.
func (c *changes) end() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.happened()
}

// wait returns when there is something newer than revision, or when ctx ends.
func (c *changes) wait(ctx context.Context, revision int64) {
	c.mu.Lock()
	next, waits := c.next, revision == c.revision && !c.over
	c.mu.Unlock()
	if !waits {
		return
	}
	select {
	case <-next:
	case <-ctx.Done():
	}
}
