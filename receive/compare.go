package receive

import (
	"fmt"
	"sync"

	"rehost/block"
	"rehost/wire"
)

// A base is a point that an agent compares its disks with. It is opened once.
type base struct {
	open func() (View, error)
}

// maxBases is how many points a session may compare with: the last one before
// it, and those that it goes back to.
const maxBases = 16

// compare answers which chunks differ from a point. What is asked on one
// connection is read by it alone, so that the connections of a session are also
// the bound of what it can make the server do at once.
func (x *session) compare(c *conn, h wire.Hashes) error {
	if d, ok := x.disks[h.Extent.Disk]; !ok || h.Extent.End() > d.Blocks() {
		return fmt.Errorf("%w: hashes of %v, which is on no disk of this source server", wire.ErrProtocol, h.Extent)
	}
	view, err := x.base(h.Point)
	if err != nil {
		return err
	}
	var hashes [wire.MaxHashes]block.Hash
	got, err := view.AppendHashes(hashes[:0], h.Extent)
	if err != nil {
		return &storeError{err}
	}
	differ := make([]bool, len(got))
	for i := range got {
		differ[i] = got[i] != h.Hashes[i]
	}
	return c.Write(wire.Differ{Question: h.Question, Differ: differ})
}

// base opens a committed point.
func (x *session) base(point block.Seq) (View, error) {
	x.mu.Lock()
	b := x.bases[point]
	if b == nil {
		if point > x.committed || len(x.bases) == maxBases {
			x.mu.Unlock()
			return nil, fmt.Errorf("%w: hashes compared with point %v, which is not there", wire.ErrProtocol, point)
		}
		b = &base{open: sync.OnceValues(func() (View, error) { return x.server.config.Store.At(x.ctx, x.agent.Server, point) })}
		x.bases[point] = b
	}
	x.mu.Unlock()
	v, err := b.open()
	if err != nil {
		return nil, &storeError{err}
	}
	return v, nil
}
