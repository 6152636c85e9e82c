package capture

import (
	"context"

	"rehost/block"
)

// After a reboot, or whenever the marks are lost, the engine begins with
// everything to be read; but the replica has most of it. A rescan reads it and
// sends hashes, and then only what differs. The rules are:
//
//   - A granule is foreign while the replica may hold it rightly and this engine
//     has sent nothing for it: so what the replica holds is what it held at base.
//   - Whoever takes a foreign granule from todo takes it from foreign too, before
//     it is read: compared at most once. What is written after that is sent, and
//     never compared with base, which it is no longer.
//   - The read for the hash is a read like any other: taken before, conflict asked
//     after. What differs is read again, and asked about again.
//   - An epoch that is folded back is sent, not compared: it may have been
//     committed, if only its answer was lost.

// rescanProgress bounds what is sent in vain when a session is lost in a rescan,
// in bytes of disk: what was found to be the same is only remembered with a commit.
const rescanProgress = 1 << 30

// Rescan has all disks compared with the replica, or sent again to a sink that cannot
// compare. Run must not be running: it begins with the next session, and an engine
// that goes on after this one does not forget it.
func (e *Engine) Rescan() {
	all := newSet(&e.layout)
	for i, p := range e.layout.disks {
		all.Add(i, 0, p.granules)
	}
	e.again(all)
	e.foreign, e.halfway = nil, true
	e.keep()
}

// expect makes everything that is to be read foreign, but for what this epoch has
// sent already: the replica is at base.
func (e *Engine) expect(base block.Seq) {
	if e.foreign, e.base = nil, base; base == 0 {
		return
	}
	e.foreign = newSet(&e.layout)
	e.foreign.addAll(e.todo)
	e.foreign.removeAll(e.staged)
	e.log.Info("comparing the disks with the replica", "point", base)
}

// comparable drops what cannot be compared through this sink: base must be there
// still.
func (e *Engine) comparable(sink Sink, last block.Seq) Comparer {
	c, ok := sink.(Comparer)
	if !ok || last < e.base {
		e.foreign = nil
	}
	return c
}

// isForeign is asked with the leg's lock held.
func (e *Engine) isForeign(bit uint64) bool { return e.foreign != nil && e.foreign.has(bit) }

// comparePiece reads a piece that the replica may hold already, and sends what of
// it differs there.
func (e *Engine) comparePiece(ctx context.Context, ep *epoch, p piece, buf []byte) error {
	whole := e.layout.extent(p.disk, p.first, p.n)
	whole.Disk = e.disks[p.disk].ID
	e.status.compared(p.disk, whole.Bytes())
	if e.unread.hopeless(p.disk) {
		return e.copyPiece(ctx, ep, p, buf)
	}
	hashes := make([]block.Hash, 0, whole.Count/e.chunk+1)
	most := uint64(block.MaxRun) >> e.layout.shift
	for q := p; q.n > 0; {
		n := min(q.n, most)
		data, err := e.readRun(q.disk, q.first, n, buf)
		if badRead(err) != nil { // found out where, and the rest of the piece sent
			e.unread.failed(p.disk)
			e.unsent(p)
			return e.copyPiece(ctx, ep, p, buf)
		}
		if err != nil {
			return err
		}
		hashes = block.AppendHashes(hashes, data, int(e.chunk))
		if e.compare != nil {
			e.compare.same(q.disk, q.first, n, data) // the other side has it, or is sent it below
		}
		q.first, q.n = q.first+n, q.n-n
	}
	differ, err := ep.comparer.Compare(ctx, e.base, whole, hashes)
	if err != nil {
		return err
	}
	sent := int64(0)
	for _, d := range e.differing(p, whole, differ) {
		e.unsent(d)
		sent += e.layout.extent(d.disk, d.first, d.n).Bytes()
		if err := e.copyPiece(ctx, ep, d, buf); err != nil {
			return err
		}
	}
	e.status.read(p.disk, whole.Bytes()-sent)
	return nil
}

// unsent has a piece sent, whatever a comparing tracker thinks was sent of it.
func (e *Engine) unsent(p piece) {
	if e.compare != nil {
		lost := newSet(&e.layout)
		lost.Add(p.disk, p.first, p.n)
		e.compare.forget(lost)
	}
}

// differing are the parts of a piece with chunks that differ, in whole granules.
func (e *Engine) differing(p piece, whole block.Extent, differ []bool) (out []piece) {
	for i, is := range differ {
		if !is {
			continue
		}
		from := uint64(i) * e.chunk // blocks from the beginning
		to := min(from+e.chunk, whole.Count)
		first, end := p.first+from>>e.layout.shift, p.first+(to+1<<e.layout.shift-1)>>e.layout.shift
		if n := len(out); n > 0 && out[n-1].first+out[n-1].n >= first {
			out[n-1].n = end - out[n-1].first
			continue
		}
		out = append(out, piece{disk: p.disk, first: first, n: end - first})
	}
	return out
}
