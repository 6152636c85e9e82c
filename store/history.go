package store

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"rehost/block"
)

// A piece is a part of a run record: where its blocks stand on their disk, and
// the record that holds their content. Kept small, as there may be millions.
type piece struct {
	start  uint64 // first block
	offset uint64 // of the record, in its segment
	count  uint32 // blocks
	skip   uint32 // blocks of the record in front of the piece
	seg    uint32 // number of the segment
	length uint32 // of the record's payload
	disk   block.DiskID
	sums   uint8 // of the record
	zero   bool
}

func (p piece) end() uint64 { return p.start + uint64(p.count) }

// cut returns the part of p that covers blocks from lo up to hi.
func (p piece) cut(lo, hi uint64) piece {
	p.skip += uint32(lo - p.start)
	p.start, p.count = lo, uint32(hi-lo)
	return p
}

// staged is a run of an epoch that is not committed, or what later runs of the
// epoch have left of it.
type staged struct {
	ordinal uint64
	piece   piece
}

// thinAt is how many staged runs are kept before hidden ones are looked for.
const thinAt = 1 << 16

// An openEpoch is one that is not committed. A load that the agent's reads do not
// keep up with keeps it open for hours, in which the same blocks come again and
// again: what they hide is dropped, so that memory follows the blocks that
// changed and not the runs that came.
type openEpoch struct {
	runs  uint64              // that came
	next  uint64              // all below this number have come,
	ahead map[uint64]struct{} // and these above it
	twice bool                // two have the number again
	again uint64
	list  []staged
	full  int // length of list at which it is thinned
}

func (o *openEpoch) add(s staged) {
	o.runs++
	o.count(s.ordinal)
	if len(o.list) >= max(o.full, thinAt) {
		o.list = thin(o.list)
		o.full = 2 * len(o.list)
	}
	o.list = append(o.list, s)
}

// count finds numbers that were given twice.
func (o *openEpoch) count(ordinal uint64) {
	if _, there := o.ahead[ordinal]; there || ordinal < o.next {
		o.twice, o.again = true, ordinal
		return
	}
	if ordinal > o.next {
		if o.ahead == nil {
			o.ahead = map[uint64]struct{}{}
		}
		o.ahead[ordinal] = struct{}{}
		return
	}
	for there := true; there; _, there = o.ahead[o.next] {
		delete(o.ahead, o.next)
		o.next++
	}
}

// thin drops what is hidden by runs of higher numbers.
func thin(list []staged) []staged {
	pieces, from := overlay(inOrder(list))
	out := make([]staged, len(pieces))
	for i, p := range pieces {
		out[i] = staged{list[from[i]].ordinal, p}
	}
	return out
}

// inOrder sorts runs by their numbers.
func inOrder(list []staged) []piece {
	slices.SortFunc(list, func(a, b staged) int { return cmp.Compare(a.ordinal, b.ordinal) })
	pieces := make([]piece, len(list))
	for i, s := range list {
		pieces[i] = s.piece
	}
	return pieces
}

// committed is a recovery point and what its epoch changed: pieces in order of
// disk and block, none overlapping.
type committed struct {
	point   block.Point
	flags   block.Flags
	session uint64
	pieces  []piece
}

// A history is what the log of a replica amounts to, replayed record by record.
type history struct {
	commits []committed // in order of their epochs
	session uint64      // the one that wrote what is staged
	staged  map[block.Seq]*openEpoch
}

// begin tells that what follows was written by session. What an earlier one left
// uncommitted will never be committed.
func (h *history) begin(session uint64) {
	if session != h.session || h.staged == nil {
		h.session, h.staged = session, map[block.Seq]*openEpoch{}
	}
}

func (h *history) run(seg uint64, e indexEntry) {
	o := h.staged[e.epoch]
	if o == nil {
		o = &openEpoch{}
		h.staged[e.epoch] = o
	}
	o.add(staged{e.ordinal, piece{
		start: e.extent.Start, count: uint32(e.extent.Count), disk: e.extent.Disk,
		seg: uint32(seg), offset: e.offset, length: e.length, sums: e.sums, zero: e.codec == block.Zero,
	}})
}

// last is the epoch of the last point.
func (h *history) last() block.Seq {
	if len(h.commits) == 0 {
		return 0
	}
	return h.commits[len(h.commits)-1].point.Seq
}

// commit makes the staged runs of m's epoch a recovery point.
func (h *history) commit(m indexMark) error {
	if m.epoch <= h.last() {
		return fmt.Errorf("commit %v after %v: %w", m.epoch, h.last(), ErrCommitted)
	}
	c, err := h.settle(m)
	if err == nil {
		h.commits = append(h.commits, c)
	}
	return err
}

// settle takes the runs of m's epoch from the staged ones, and forgets those of
// earlier epochs.
func (h *history) settle(m indexMark) (committed, error) {
	pieces, err := resolve(h.staged[m.epoch], m.runs)
	if err != nil {
		return committed{}, fmt.Errorf("commit %v: %w", m.epoch, err)
	}
	h.forget(m.epoch)
	return committed{m.point(), m.flags, h.session, pieces}, nil
}

func (h *history) forget(upTo block.Seq) {
	for seq := range h.staged {
		if seq <= upTo {
			delete(h.staged, seq)
		}
	}
}

// retract withdraws every point after the given one.
func (h *history) retract(after block.Seq) {
	n := sort.Search(len(h.commits), func(i int) bool { return h.commits[i].point.Seq > after })
	h.commits = slices.Clip(h.commits[:n]) // clipped: readers may hold the longer list
}

// resolve checks that runs of an epoch are all there, and settles which of them
// holds each block: of two, the one with the higher ordinal.
func resolve(o *openEpoch, runs uint64) ([]piece, error) {
	if o == nil {
		o = &openEpoch{}
	}
	if o.runs != runs {
		return nil, fmt.Errorf("%w: %d runs of %d", ErrIncomplete, o.runs, runs)
	}
	if o.twice {
		return nil, fmt.Errorf("%w: two runs are number %d", ErrIncomplete, o.again)
	}
	return flatten(inOrder(o.list)), nil
}

// flatten returns the pieces that are seen when each of list hides what stands
// before it in the list: in order of disk and block, none overlapping.
func flatten(list []piece) []piece {
	out, _ := overlay(list)
	return slices.Clip(out)
}

// overlay is flatten, and says which of list each piece was cut from.
func overlay(list []piece) (out []piece, origin []int32) {
	order := make([]int32, len(list))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(list[a].disk, list[b].disk), cmp.Compare(list[a].start, list[b].start))
	})
	out, origin = make([]piece, 0, len(list)), make([]int32, 0, len(list))
	var active topmost // pieces that begin at or before pos and may cover it
	var disk block.DiskID
	var pos uint64
	from := int32(-1) // what the last piece of out was cut from
	for len(order) > 0 || len(active) > 0 {
		if len(active) == 0 {
			disk, pos, from = list[order[0]].disk, list[order[0]].start, -1
		}
		for len(order) > 0 && list[order[0]].disk == disk && list[order[0]].start <= pos {
			active.push(order[0])
			order = order[1:]
		}
		top := active[0]
		until := list[top].end()
		if until <= pos {
			active.pop()
			continue
		}
		if len(order) > 0 && list[order[0]].disk == disk {
			until = min(until, list[order[0]].start)
		}
		if top == from {
			out[len(out)-1].count += uint32(until - pos)
		} else {
			out, origin = append(out, list[top].cut(pos, until)), append(origin, top)
		}
		pos, from = until, top
	}
	return out, origin
}

// topmost is a heap of positions in a list, the last one first. It is not
// container/heap's, which allocates for each position: there are millions.
type topmost []int32

func (t *topmost) push(x int32) {
	h := append(*t, x)
	for i := len(h) - 1; i > 0 && h[i] > h[(i-1)/2]; i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
	*t = h
}

func (t *topmost) pop() {
	h := *t
	n := len(h) - 1
	h[0] = h[n]
	h = h[:n]
	for i := 0; 2*i+1 < n; {
		child := 2*i + 1
		if child+1 < n && h[child+1] > h[child] {
			child++
		}
		if h[i] >= h[child] {
			break
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
	*t = h
}
