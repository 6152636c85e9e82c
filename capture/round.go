package capture

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"rehost/block"
)

// Numbers of a round.
const (
	batchBlocks = 16 * block.MaxRun // what a reader takes at once where much is to be read
	gapBlocks   = 3                 // unchanged blocks read and sent rather than cutting a run
	hotBlocks   = 8                 // longest run among recently hot blocks
	heatMax     = 1 << 16           // hot granules remembered
	heatLife    = 8                 // commits after which a granule is no longer hot

)

// A patience is how long a round that will not settle goes on: so long at least, and
// so many times what cutting its instant took.
type patience struct{ least, worth time.Duration }

var usualPatience = patience{250 * time.Millisecond, 8}

// An epoch is what goes to the sink under one number.
type epoch struct {
	sink     Sink
	comparer Comparer // the sink, if it is one
	point    block.Point
	runs     atomic.Uint64 // put so far
	bytes    atomic.Int64  // payload put so far
	still    *still        // while file systems are frozen
	hopeless time.Time     // a round with a conflict does not go on behind this
}

// A piece is what a reader takes: granules one behind the other.
type piece struct {
	disk     int
	first, n uint64
	foreign  bool    // the replica may hold it already
	gaps     []piece // of it, read only to spare a cut
}

// round cuts an instant T and reads everything that may differ from the replica
// at T. It reports whether the epoch is the state at T. The order of its steps
// is the whole proof: docs/capture.md.
//
// Whatever is read stands in staged until the epoch is committed; after an error
// the caller folds it back.
func (e *Engine) round(ctx context.Context, ep *epoch) (settled bool, err error) {
	skipped, err := e.tracker.Skipped() // before the flip: whatever comes after it counts
	if err != nil {
		return false, err
	}
	if err := e.tracker.Prepare(); err != nil {
		return false, err
	}
	ep.point.Time = e.now()
	e.tracker.Flip()
	e.tracker.Pending(e.todo)
	if err := e.tracker.Changed(e.todo); err != nil {
		return false, err
	}
	e.conflicts.Store(0)
	e.unread.begin(e)
	e.status.beginRound(e)
	if ep.still != nil {
		ep.still.weigh(e)
	}
	began := e.now()
	ep.hopeless = began.Add(max(e.patience.least, e.patience.worth*began.Sub(ep.point.Time)))
	for e.todo.count > 0 {
		if err := e.drain(ctx, ep); err != nil {
			return false, err
		}
		if e.givenUp = e.todo.count > 0 && e.inVain(ep); e.givenUp {
			break
		}
		if e.todo.count > 0 { // only while the first copy or a rescan is under way
			if err := e.commit(ctx, ep, 0); err != nil {
				return false, err
			}
		}
	}
	e.brake.last = e.brake.speed.since(e.now().Sub(began)) + int64(e.todo.count)<<e.layout.shift*block.Size
	if n, err := e.tracker.Skipped(); err != nil {
		return false, err
	} else if n != skipped { // a write that nobody saw begin may have been read
		e.conflicts.Add(1)
	}
	readable := e.unread.end(e)
	if n := e.conflicts.Load(); n > 0 || !readable {
		e.status.conflicted(n)
		return false, nil
	}
	return e.tracker.Settle(ctx)
}

// inVain reports whether the round has lasted long and will not settle. Reading the
// rest of it would be reading for the replica alone; and while more is written than
// can be read, all of that would be read once more behind the next instant. So that
// is cut at once, the rest is read then, and once the load falls one look at what is
// marked is enough.
func (e *Engine) inVain(ep *epoch) bool {
	return e.synced && e.foreign == nil && ep.still == nil && e.conflicts.Load() > 0 && e.now().After(ep.hopeless)
}

// drain reads and puts what is to be read, by several readers: all of it, or,
// during the first copy and a rescan, so much that committing it as progress is
// worth while.
func (e *Engine) drain(ctx context.Context, ep *epoch) error {
	l := &leg{e: e, ep: ep, room: ^uint64(0)}
	if e.givenUp { // goes on where the one before ended, lest none ever gets to the end of the disks
		l.from = e.reached
	} else {
		l.hot = e.hotPieces()
	}
	if e.foreign != nil && e.foreign.count == 0 {
		e.foreign = nil
	}
	progress := e.progress
	if e.foreign != nil {
		progress = min(progress, rescanProgress)
	}
	if l.bulk = !e.synced || e.foreign != nil || e.compare != nil; !e.synced || e.foreign != nil {
		l.room = max(1, uint64(progress)/block.Size>>e.layout.shift)
	}
	defer func() { e.unread.settle(e); e.reached = l.from }()
	if e.workers <= 1 {
		return e.reader(ctx, ep, l, e.buffers[0])
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range min(e.workers, int(min(e.todo.count, 1<<20))) {
		g.Go(func() error { return e.reader(ctx, ep, l, e.buffers[i]) })
	}
	return g.Wait()
}

// A leg hands the set to be read out to readers, piece by piece.
type leg struct {
	e    *Engine
	ep   *epoch
	bulk bool // whole disks are read: that waits for whoever uses them

	mu   sync.Mutex // guards todo and staged of the engine while the leg lasts, and:
	hot  []piece
	from uint64 // first bit not yet looked at
	room uint64 // granules that may still be taken
}

// take moves the next piece from todo to staged. Recently hot blocks come
// first: the sooner after T they are read, the likelier nobody wrote them since.
func (l *leg) take() (p piece, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.e.inVain(l.ep) {
		return p, false
	}
	if len(l.hot) > 0 {
		p, l.hot = l.hot[0], l.hot[1:]
	} else if p, ok = l.cold(); !ok {
		return p, false
	}
	lo := l.e.layout.bit(p.disk, p.first)
	l.e.todo.remove(lo, lo+p.n)
	if l.e.foreign != nil {
		l.e.foreign.remove(lo, lo+p.n)
	}
	l.e.unread.take(lo, lo+p.n)
	l.e.staged.Add(p.disk, p.first, p.n)
	l.room -= min(l.room, p.n)
	return p, true
}

func (l *leg) cold() (piece, bool) {
	set, lay := l.e.todo, &l.e.layout
	lo, ok := set.next(l.from)
	if !ok && l.from > 0 { // where the last leg ended was not the end
		lo, ok = set.next(0)
	}
	if !ok || l.room == 0 {
		return piece{}, false
	}
	disk, first := lay.disk(lo)
	end := lay.bit(disk, lay.disks[disk].granules)
	most, gap := min(uint64(batchBlocks)>>lay.shift, l.room), uint64(gapBlocks)>>lay.shift
	hi, foreign := lo+1, l.e.isForeign(lo)
	if chunk := max(1, l.e.chunk>>lay.shift); foreign && first%chunk != 0 {
		most = min(most, chunk-first%chunk) // so that the next is compared in chunks that have a hash there
	}
	var gaps []piece
	for hi < end && hi-lo < most {
		if set.has(hi) {
			if l.e.isForeign(hi) != foreign {
				break
			}
			hi++
			continue
		}
		next, ok := set.next(hi)
		if foreign || !ok || next-hi > gap || next >= end || l.e.unread.within(hi, next) {
			break
		}
		gaps = append(gaps, piece{disk: disk, first: first + hi - lo, n: next - hi})
		hi = next
	}
	l.from = hi
	return piece{disk, first, hi - lo, foreign, gaps}, true
}

// hotPieces are the parts of todo that conflicted lately.
func (e *Engine) hotPieces() (out []piece) {
	bits := make([]uint64, 0, len(e.heat))
	for b := range e.heat {
		if e.todo.has(b) {
			bits = append(bits, b)
		}
	}
	slices.Sort(bits)
	most := max(1, uint64(hotBlocks)>>e.layout.shift)
	for _, b := range bits {
		disk, g := e.layout.disk(b)
		if n := len(out); n > 0 && out[n-1].disk == disk && out[n-1].first+out[n-1].n == g && out[n-1].n < most {
			out[n-1].n++
			continue
		}
		out = append(out, piece{disk: disk, first: g, n: 1})
	}
	return out
}

func (e *Engine) reader(ctx context.Context, ep *epoch, l *leg, buf []byte) error {
	for {
		if ep.still == nil { // programs do not wait for a pause
			if err := e.waitResumed(ctx); err != nil {
				return err
			}
		}
		p, ok := l.take()
		if !ok {
			return nil
		}
		carry := e.copyPiece
		if p.foreign {
			carry = e.comparePiece
		}
		if err := carry(ctx, ep, p, buf); err != nil {
			return err
		}
		if l.bulk {
			if err := e.pacer.pace(ctx, e.layout.extent(p.disk, p.first, p.n).Bytes(), e.sleep); err != nil {
				return err
			}
			if err := e.cpu.wait(ctx, e.sleep); err != nil {
				return err
			}
		}
	}
}

// readRun reads granules of one run and asks, after the read, whether it came too
// late.
func (e *Engine) readRun(disk int, first, n uint64, buf []byte) ([]byte, error) {
	x := e.layout.extent(disk, first, n)
	data := buf[:x.Bytes()]
	began := e.now()
	if err := e.read(disk, x, data); err != nil {
		return nil, err
	}
	e.brake.speed.add(x.Bytes(), e.now().Sub(began))
	if e.tracker.Conflict(disk, first, n) {
		e.conflict(disk, first, n)
	}
	return data, nil
}

// copyPiece reads a piece run by run and puts it. Zeros one behind the other become
// one run. Where a read fails less is read at a time, and what cannot be read is
// put aside.
func (e *Engine) copyPiece(ctx context.Context, ep *epoch, p piece, buf []byte) error {
	var zeros block.Extent
	flush := func() error {
		if zeros.Count == 0 {
			return nil
		}
		run := block.Run{Extent: zeros, Codec: block.Zero}
		zeros.Count = 0
		return e.put(ctx, ep, run)
	}
	scratch := e.codec.scratch.Get().(*[]byte)
	defer e.codec.scratch.Put(scratch)
	longest := uint64(block.MaxRun) >> e.layout.shift
	most := longest
	for p.n > 0 {
		n := min(p.n, most-p.first%most) // chunks of the disk stay whole, which gives them hashes
		if e.unread.hopeless(p.disk) {
			e.unread.putAside(e, p, p.first, p.n, nil)
			break
		}
		x := e.layout.extent(p.disk, p.first, n)
		x.Disk = e.disks[p.disk].ID
		data, err := e.readRun(p.disk, p.first, n, buf)
		if bad := badRead(err); bad != nil {
			switch finer := e.unread.failed(p.disk); {
			case finer && n > 1:
				most = n / 2
				continue
			case finer:
				bad = e.locate(p, p.first, bad, buf)
			}
			e.unread.putAside(e, p, p.first, n, bad)
			p.first, p.n = p.first+n, p.n-n
			continue
		}
		if err != nil {
			return err
		}
		most = min(2*most, longest)
		e.status.read(p.disk, x.Bytes())
		switch {
		case ep.still != nil && ep.still.keep(p.disk, p.first, n, data):
		case e.compare == nil || !e.compare.same(p.disk, p.first, n, data):
			run := e.codec.encode(x, data, *scratch)
			switch {
			case run.Codec != block.Zero:
				if err := flush(); err != nil {
					return err
				}
				if err := e.put(ctx, ep, run); err != nil {
					return err
				}
			case zeros.Count == 0:
				zeros = x
			case zeros.End() == x.Start:
				zeros.Count += x.Count
			default: // same content in between
				if err := flush(); err != nil {
					return err
				}
				zeros = x
			}
		}
		p.first, p.n = p.first+n, p.n-n
	}
	return flush()
}

func (e *Engine) put(ctx context.Context, ep *epoch, run block.Run) error {
	ordinal := ep.runs.Add(1) - 1
	began := e.now()
	if err := ep.sink.Put(ctx, ep.point.Seq, ordinal, run); err != nil {
		return err
	}
	e.codec.sent(len(run.Payload), e.now().Sub(began))
	ep.bytes.Add(int64(len(run.Payload)))
	e.status.sent(len(run.Payload))
	return nil
}

// conflict counts a run that was read too late and remembers where it was hot.
func (e *Engine) conflict(disk int, first, n uint64) {
	e.conflicts.Add(1)
	e.heatMu.Lock()
	defer e.heatMu.Unlock()
	for g := first; g < first+n && len(e.heat) < heatMax; g++ {
		if n == 1 || e.tracker.Conflict(disk, g, 1) {
			e.heat[e.layout.bit(disk, g)] = heatLife
		}
	}
}

func (e *Engine) cool() {
	for b, life := range e.heat {
		if life <= 1 {
			delete(e.heat, b)
		} else {
			e.heat[b] = life - 1
		}
	}
}

// lag is how old the newest consistent point is.
func lag(now, point time.Time) time.Duration {
	if point.IsZero() {
		return 0
	}
	return max(0, now.Sub(point))
}
