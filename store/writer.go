package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"rehost/block"
)

const (
	writersInFlight = 4        // chunks written at once
	chunksInMemory  = 6        // written, or being filled
	allocateStep    = 64 << 20 // bytes by which a segment's file grows
	entriesASegment = 1 << 20  // index entries, after which it is sealed
)

// A Writer appends the epochs of one session. Append, Commit and Retract may be
// called by many goroutines; Close waits for them.
//
//	open -> fenced, by a later Begin or by Delete      (ErrFenced)
//	     -> broken, by an error of a write or a sync   (ErrBroken)
//	     -> closed                                     (ErrClosed)
//
// No state leads back: each keeps answering its error.
type Writer struct {
	r       *Replica
	session uint64
	disks   map[block.DiskID]block.Disk

	life    sync.RWMutex // held for reading by every operation
	stopped bool         // guarded by life
	ready   chan *chunk
	buffers *chunkBuffers
	wg      sync.WaitGroup // of those who write chunks

	errMu sync.Mutex
	err   error

	// mu orders the log: offsets are given out under it, short as it is held.
	// Only the change of segments makes others wait.
	mu     sync.Mutex
	seg    *segmentWriter // nil until there is something to write
	number uint64         // of the last segment
	hist   history        // what is staged
	last   block.Seq      // epoch of the last commit, durable or not

	pubMu   sync.Mutex // taken behind mu
	waiting []published
}

// published is a change of what readers see, to be made once it is durable.
type published struct {
	seg   *segmentWriter
	end   uint64
	apply func(h *history)
}

func newWriter(r *Replica) *Writer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	w := &Writer{
		r: r, session: r.meta.Session, disks: map[block.DiskID]block.Disk{},
		ready:   make(chan *chunk, chunksInMemory),
		buffers: newChunkBuffers(chunksInMemory, r.store.opts.chunkSize),
		number:  uint64(len(r.segments)), last: r.hist.last(),
	}
	w.hist.begin(w.session)
	for _, d := range r.meta.disksAt(w.session) {
		w.disks[d.ID] = d
	}
	for range writersInFlight {
		w.wg.Go(w.writeChunks)
	}
	return w
}

func (w *Writer) writeChunks() {
	for c := range w.ready {
		if err := c.seg.write(c); err != nil {
			_ = w.fail(err) // whoever appends or commits next is told
		}
		w.buffers.put(c.buf)
	}
}

// done is called by everyone who was to change the chunk.
func (w *Writer) done(c *chunk) {
	if c.pending.Add(-1) == 0 {
		w.ready <- c // has room for all chunks there are
	}
}

// fail breaks the writer, unless something else has stopped it before, and
// returns what it answers from now on.
func (w *Writer) fail(cause error) error {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	if w.err == nil {
		w.err = fmt.Errorf("%w: %w", ErrBroken, classify(cause))
	}
	return w.err
}

// Err is what the writer answers to everything; nil while it works.
func (w *Writer) Err() error {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	return w.err
}

// Append stages a run of an epoch. Of two runs of one epoch that hold the same
// block, the one with the higher ordinal counts. Nothing is visible or promised
// before Commit. The payload is read until Append returns.
func (w *Writer) Append(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	w.life.RLock()
	defer w.life.RUnlock()
	if err := w.append(ctx, epoch, ordinal, run); err != nil {
		return fmt.Errorf("append run %d of epoch %v to replica %s: %w", ordinal, epoch, w.r.id, err)
	}
	return nil
}

func (w *Writer) append(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	if err := errors.Join(run.Validate(), ctx.Err()); err != nil {
		return err
	}
	disk, ok := w.disks[run.Extent.Disk]
	if !ok {
		return fmt.Errorf("%v: %w", run.Extent.Disk, ErrNoDisk)
	}
	if run.Extent.End() > disk.Blocks() {
		return fmt.Errorf("%w: %v is behind the end of a disk of %d blocks", block.ErrBadRun, run.Extent, disk.Blocks())
	}
	c, rec, dst, offset, err := w.reserve(epoch, ordinal, run)
	if err != nil {
		return err
	}
	c.seg.cipher.seal(dst, rec, run.Sums, run.Payload, offset)
	w.done(c)
	return nil
}

// reserve gives a run its place in the log. The caller must fill it and be done
// with the chunk.
func (w *Writer) reserve(epoch block.Seq, ordinal uint64, run block.Run) (c *chunk, rec record, dst []byte, offset uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.Err(); err != nil {
		return nil, rec, nil, 0, err
	}
	if epoch <= w.last {
		return nil, rec, nil, 0, fmt.Errorf("%w, %v", ErrCommitted, w.last)
	}
	rec = record{kind: kindRun, codec: run.Codec, extent: run.Extent, epoch: epoch, ordinal: ordinal, length: uint32(len(run.Payload)), sums: uint8(len(run.Sums))}
	if c, err = w.room(rec.size(), epoch); err != nil {
		return nil, rec, nil, 0, w.fail(err)
	}
	rec.durable = c.seg.durable.Load()
	dst, offset = c.place(rec.size())
	c.pending.Add(1)
	e := entryOf(epoch, ordinal, run, offset)
	c.seg.contents.entries = append(c.seg.contents.entries, e)
	w.hist.run(c.seg.header.number, e)
	return c, rec, dst, offset, nil
}

// room returns an open chunk that has room for size bytes.
func (w *Writer) room(size uint64, epoch block.Seq) (*chunk, error) {
	if w.seg != nil && w.seg.open != nil {
		if w.seg.open.used+int(size) <= w.r.store.opts.chunkSize {
			return w.seg.open, nil
		}
		w.closeChunk()
	}
	if s := w.seg; s != nil && (s.contents.end >= uint64(w.r.store.opts.SegmentSize) || len(s.contents.entries) >= entriesASegment) {
		if err := w.sealSegment(); err != nil {
			return nil, err
		}
	}
	if w.seg == nil {
		if err := w.newSegment(epoch); err != nil {
			return nil, err
		}
	}
	s := w.seg
	if err := w.allocate(s); err != nil {
		return nil, err
	}
	s.begin(w.buffers.get())
	return s.open, nil
}

// allocate makes the file have room for another chunk, and rather for many: that
// keeps metadata out of most syncs.
func (w *Writer) allocate(s *segmentWriter) error {
	need := s.contents.end + uint64(w.r.store.opts.chunkSize) + 2*align
	if need <= s.allocated {
		return nil
	}
	ahead := max(need, min(s.allocated+allocateStep, uint64(w.r.store.opts.SegmentSize)))
	if err := s.file.Allocate(int64(ahead)); err == nil {
		s.allocated = ahead
		return nil
	}
	s.allocated = need
	return s.file.Allocate(int64(need))
}

func (w *Writer) closeChunk() {
	s := w.seg
	c := s.open
	c.pad()
	s.open = nil
	s.contents.end = c.base + uint64(c.used)
	s.closed.Store(s.contents.end)
	w.done(c)
}

// newSegment makes the file of the next segment. It gets its name with its
// header durable, so that a named segment always has one.
func (w *Writer) newSegment(epoch block.Seq) error {
	fsys, number := w.r.store.opts.fs, w.number+1
	h := segmentHeader{id: newID(), replica: w.r.replica, number: number, session: w.session, generation: w.r.Generation(), first: epoch}
	head, cipher := h.encode(w.r.dataKey)
	path := filepath.Join(w.r.dir, segmentName(number))
	f, err := fsys.Create(path+tmpSuffix, true)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { _, err := f.WriteAt(head, 0); return err },
		f.Sync,
		func() error { return fsys.Rename(path+tmpSuffix, path) },
		func() error { return fsys.SyncDir(w.r.dir) },
	} {
		if err := step(); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	w.number, w.seg = number, newSegmentWriter(h, cipher, f)
	s := &segment{fs: fsys, path: path, object: filepath.Join(w.r.id, segmentName(number)), header: h, cipher: cipher}
	w.r.mu.Lock()
	w.r.segments[uint32(number)] = s
	w.r.mu.Unlock()
	return nil
}

// sealSegment ends the current segment, whose chunks are closed.
func (w *Writer) sealSegment() error {
	s := w.seg
	if err := s.sync(s.contents.end); err != nil {
		return err
	}
	w.publish()
	w.seg = nil
	if err := errors.Join(finish(s.file, s.cipher, s.contents), s.file.Close()); err != nil {
		return err
	}
	return w.r.setSealed(s.header.number)
}

// Commit makes an epoch a recovery point. Runs is the number of runs that were
// appended for it: when they are not all there, the answer is [ErrIncomplete] and
// nothing has changed. When Commit returns nil the point and everything before
// it is durable. After any other error the point may or may not exist.
func (w *Writer) Commit(ctx context.Context, point block.Point, runs uint64, flags block.Flags) error {
	w.life.RLock()
	defer w.life.RUnlock()
	m := indexMark{kind: kindCommit, flags: flags, epoch: point.Seq, runs: runs, time: point.Time.UnixNano()}
	if err := w.log(ctx, m); err != nil {
		return fmt.Errorf("commit epoch %v of replica %s: %w", point.Seq, w.r.id, err)
	}
	return nil
}

// Retract withdraws every recovery point after the given one (all, if it is 0),
// durably when it returns nil: blocks are again what they were. Epochs that are
// staged stay so.
func (w *Writer) Retract(ctx context.Context, after block.Seq) error {
	w.life.RLock()
	defer w.life.RUnlock()
	if err := w.log(ctx, indexMark{kind: kindRetract, epoch: after}); err != nil {
		return fmt.Errorf("retract what is after epoch %v of replica %s: %w", after, w.r.id, err)
	}
	return nil
}

// log appends a mark, makes it durable and then visible.
func (w *Writer) log(ctx context.Context, m indexMark) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, end, err := w.appendMark(m)
	if err != nil {
		return err
	}
	if err := s.sync(end); err != nil {
		return w.fail(err)
	}
	w.publish()
	return nil
}

// appendMark puts m into the log; all before end must be durable for it to count.
func (w *Writer) appendMark(m indexMark) (s *segmentWriter, end uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.Err(); err != nil {
		return nil, 0, err
	}
	rec := m.record()
	if err := rec.validate(); err != nil {
		return nil, 0, err
	}
	apply := func(h *history) { h.retract(m.epoch) }
	if m.kind == kindCommit {
		if m.epoch <= w.last {
			return nil, 0, fmt.Errorf("%w, %v", ErrCommitted, w.last)
		}
		c, err := w.hist.settle(m)
		if err != nil {
			return nil, 0, err
		}
		apply = func(h *history) { h.commits = append(h.commits, c) }
	}
	c, err := w.room(rec.size(), m.epoch)
	if err != nil {
		return nil, 0, w.fail(err)
	}
	s = c.seg
	rec.durable = s.durable.Load()
	dst, offset := c.place(rec.size())
	s.cipher.seal(dst, rec, nil, nil, offset)
	m.offset = offset
	s.contents.marks = append(s.contents.marks, m)
	w.closeChunk()
	s.contents.markEnd = s.contents.end
	if m.kind == kindCommit || m.epoch < w.last {
		w.last = m.epoch
	}
	w.pubMu.Lock()
	w.waiting = append(w.waiting, published{s, s.contents.end, apply})
	w.pubMu.Unlock()
	return s, s.contents.end, nil
}

// publish shows readers what has become durable, in order.
func (w *Writer) publish() {
	w.pubMu.Lock()
	defer w.pubMu.Unlock()
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	for len(w.waiting) > 0 && w.waiting[0].seg.durable.Load() >= w.waiting[0].end {
		w.waiting[0].apply(&w.r.hist)
		w.waiting = w.waiting[1:]
	}
}

// Close drops what is not committed, seals the segment and lets another process
// write the replica. It waits for calls under way and may be called twice.
func (w *Writer) Close() error {
	if err := w.r.ended(w, ErrClosed); err != nil {
		return fmt.Errorf("close writer of replica %s: %w", w.r.id, err)
	}
	return nil
}

// stop ends the writer; from then on it answers reason.
func (w *Writer) stop(reason error) error {
	w.life.Lock()
	defer w.life.Unlock()
	if w.stopped {
		return nil
	}
	w.stopped = true
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seg != nil && w.seg.open != nil {
		w.closeChunk()
	}
	close(w.ready)
	w.wg.Wait()
	w.errMu.Lock()
	broken := w.err
	w.err = errors.Join(reason, broken)
	w.errMu.Unlock()
	s := w.seg
	w.seg = nil
	switch {
	case s == nil:
		return nil
	case broken != nil:
		return s.file.Close() // the next Begin finds out what is there
	case len(s.contents.marks) == 0:
		return s.file.Close() // the next Begin removes it
	}
	s.contents.trim()
	if err := errors.Join(finish(s.file, s.cipher, s.contents), s.file.Close()); err != nil {
		return classify(err)
	}
	return w.r.setSealed(s.header.number)
}
