package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"rehost/block"
)

// A Replica is the disks of one source server, at every committed epoch. All
// methods may be called concurrently.
type Replica struct {
	store   *Store
	id, dir string
	replica hexID
	dataKey []byte

	beginMu sync.Mutex // serialises Begin, Refresh and close
	writer  *Writer
	lock    io.Closer // held from Begin until the writer is closed
	closed  bool

	mu       sync.RWMutex
	meta     metadata
	hist     history
	segments map[uint32]*segment
	unsealed *contents // of the last segment, where it is not sealed; nil beside a writer of this process
}

// A RecoveryPoint is a committed epoch.
type RecoveryPoint struct {
	block.Point
	Flags block.Flags
}

// Consistent reports whether the point equals what a power cut would have left:
// whether machines may be started from it.
func (p RecoveryPoint) Consistent() bool { return p.Flags.Has(block.Consistent) }

func openReplica(ctx context.Context, s *Store, id string) (*Replica, error) {
	r := &Replica{store: s, id: id, dir: filepath.Join(s.dir, id), segments: map[uint32]*segment{}}
	var err error
	if r.replica, r.dataKey, err = readKey(ctx, s.opts.fs, r.dir, id, s.keys); err != nil {
		return nil, err
	}
	if err := r.load(); err != nil {
		return nil, errors.Join(err, r.closeSegments())
	}
	return r, nil
}

// replaced reports whether another process has deleted the replica, and perhaps
// made a new one of the same name. What cannot be read says nothing.
func (r *Replica) replaced() bool {
	buf, err := readAll(r.store.opts.fs, filepath.Join(r.dir, keyName), maxMeta)
	if err != nil {
		return isNotExist(err)
	}
	doc, err := unmarshal[keyDocument](buf)
	return err == nil && doc.Replica != r.replica
}

// ID is the source server's id.
func (r *Replica) ID() string { return r.id }

// Disks are the disks that the source server has now.
func (r *Replica) Disks() []block.Disk {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Clone(r.meta.disksAt(r.meta.Session))
}

// Created is when the replica was made.
func (r *Replica) Created() time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.meta.Created
}

// Generation is the one of the last Begin; 0 if there was none.
func (r *Replica) Generation() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.meta.Generation
}

// Points lists the recovery points, oldest first.
func (r *Replica) Points() []RecoveryPoint {
	commits := r.committed()
	points := make([]RecoveryPoint, len(commits))
	for i, c := range commits {
		points[i] = RecoveryPoint{c.point, c.flags}
	}
	return points
}

// Consistent is the newest recovery point that machines may be started from, if
// there is one. Epochs of a copy under way behind it do not hide it.
func (r *Replica) Consistent() (RecoveryPoint, bool) {
	for _, c := range slices.Backward(r.committed()) {
		if p := (RecoveryPoint{c.point, c.flags}); p.Consistent() {
			return p, true
		}
	}
	return RecoveryPoint{}, false
}

// Latest is the newest committed epoch, consistent or not, if there is one.
func (r *Replica) Latest() (RecoveryPoint, bool) {
	commits := r.committed()
	if len(commits) == 0 {
		return RecoveryPoint{}, false
	}
	c := commits[len(commits)-1]
	return RecoveryPoint{c.point, c.flags}, true
}

// committed is safe to read without the lock: commits are added behind it or to
// a copy.
func (r *Replica) committed() []committed {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.hist.commits
}

// Refresh makes a replica that another process writes show its newer points.
// Beside a writer of this process it does nothing, as none is missing.
func (r *Replica) Refresh() error {
	r.beginMu.Lock()
	defer r.beginMu.Unlock()
	if r.closed {
		return fmt.Errorf("refresh replica %s: %w", r.id, ErrClosed)
	}
	if r.writer != nil {
		return nil
	}
	if err := r.load(); err != nil {
		return fmt.Errorf("refresh replica %s: %w", r.id, err)
	}
	return nil
}

// errChanged says that the log was changed by its writer while it was read.
var errChanged = errors.New("log keeps changing while it is read")

// load reads the log. Beside a live writer it may have to begin again.
func (r *Replica) load() (err error) {
	for range 8 {
		if err = r.loadOnce(); err == nil || !errors.Is(err, errChanged) && !isNotExist(err) {
			return err
		}
	}
	return err
}

func (r *Replica) loadOnce() error {
	fsys := r.store.opts.fs
	meta, err := readMeta(fsys, r.dir, filepath.Join(r.id, metaName), r.dataKey)
	if err != nil {
		return err
	}
	if meta.Replica != r.replica || meta.Server != r.id {
		return corrupt(filepath.Join(r.id, metaName), 0, "metadata is of another replica")
	}
	numbers, err := r.list(meta)
	if err != nil {
		return err
	}
	var hist history
	var unsealed *contents
	segments := map[uint32]*segment{}
	generation := uint64(0)
	for _, n := range numbers {
		s, err := openSegment(fsys, r.dir, r.id, n, r.dataKey, r.replica)
		if err != nil {
			return err
		}
		c, err := s.load(n <= meta.Sealed || n < uint64(len(numbers)))
		if err := errors.Join(err, s.release()); err != nil {
			return err
		}
		switch h := s.header; {
		case h.session > meta.Session:
			return errChanged
		case h.session < hist.session || h.generation < generation:
			return corrupt(s.object, 0, "segment is older than the one before it")
		}
		generation = s.header.generation
		if err := c.replay(&hist, s); err != nil {
			return err
		}
		if !c.sealed {
			unsealed = &c
		}
		segments[uint32(n)] = s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, old := range r.segments {
		if s := segments[n]; s != nil && s.header.id == old.header.id {
			segments[n] = old // views hold it, and perhaps its open file
		} else if err := old.close(); err != nil {
			return err
		}
	}
	r.meta, r.hist, r.segments, r.unsealed = meta, hist, segments, unsealed
	return nil
}

// list returns the numbers of the segments, which must leave none out.
func (r *Replica) list(meta metadata) ([]uint64, error) {
	names, err := r.store.opts.fs.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := parseSegmentName(name); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for i := range max(uint64(len(numbers)), meta.Sealed) {
		if i >= uint64(len(numbers)) || numbers[i] != i+1 {
			// A new writer may have removed what an older one left uncommitted.
			if now, err := readMeta(r.store.opts.fs, r.dir, metaName, r.dataKey); err == nil && now.Sealed != meta.Sealed {
				return nil, errChanged
			}
			return nil, corrupt(filepath.Join(r.id, segmentName(i+1)), 0, "segment is missing")
		}
	}
	return numbers, nil
}

func (r *Replica) setMeta(m metadata) error {
	if err := writeMeta(r.store.opts.fs, r.dir, r.dataKey, m); err != nil {
		return classify(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.meta = m
	return nil
}

// Begin starts a session of the agent's generation: it makes the generation and
// the disks (unless nil) durable, drops what earlier sessions left uncommitted and
// fences their writers. Where the generation is lower than that of an earlier
// session the answer is [ErrFenced]; where another process writes it is
// [ErrLocked]. The Writer must be closed.
func (r *Replica) Begin(ctx context.Context, generation uint64, disks []block.Disk) (*Writer, error) {
	r.beginMu.Lock()
	defer r.beginMu.Unlock()
	w, err := r.begin(ctx, generation, disks)
	if err != nil {
		if r.writer == nil {
			r.unlock()
		}
		return nil, fmt.Errorf("begin generation %d of replica %s: %w", generation, r.id, classify(err))
	}
	return w, nil
}

func (r *Replica) begin(ctx context.Context, generation uint64, disks []block.Disk) (*Writer, error) {
	switch err := checkDisks(disks); {
	case r.closed:
		return nil, ErrClosed
	case r.store.opts.ReadOnly:
		return nil, ErrReadOnly
	case err != nil || ctx.Err() != nil:
		return nil, errors.Join(err, ctx.Err())
	}
	if r.lock == nil {
		lock, err := r.store.opts.fs.Lock(filepath.Join(r.dir, lockName))
		if err != nil {
			return nil, err
		}
		r.lock = lock
	}
	if generation < r.Generation() {
		return nil, fmt.Errorf("%w: generation %d has begun", ErrFenced, r.Generation())
	}
	if r.writer != nil {
		if err := r.writer.stop(ErrFenced); err != nil {
			r.store.opts.Logger.Warn("stop fenced writer", "replica", r.id, "err", err)
		}
		r.writer = nil
	}
	// What is on disk counts, not what an earlier writer believed; and another
	// process may have written since this one read.
	if err := r.load(); err != nil {
		return nil, err
	}
	meta := r.meta
	if generation < meta.Generation {
		return nil, fmt.Errorf("%w: generation %d has begun", ErrFenced, meta.Generation)
	}
	if err := r.recover(); err != nil {
		return nil, err
	}
	meta = r.meta
	meta.Generation, meta.Session = generation, meta.Session+1
	if disks != nil && !slices.Equal(disks, meta.disksAt(meta.Session)) {
		meta.Disks = append(slices.Clone(meta.Disks), diskTable{meta.Session, slices.Clone(disks)})
	}
	if err := r.setMeta(meta); err != nil {
		return nil, err
	}
	r.writer = newWriter(r)
	return r.writer, nil
}

// recover settles what a writer that is gone has left: segments without a commit
// behind the last one that has any are removed, and that one is sealed at its
// last commit. It is never written again: its key has been used for the records
// of the torn tail.
func (r *Replica) recover() error {
	fsys := r.store.opts.fs
	names, err := fsys.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, tmpSuffix) {
			if err := fsys.Remove(filepath.Join(r.dir, name)); err != nil {
				return err
			}
		}
	}
	for n := uint32(len(r.segments)); n > 0; n-- {
		s := r.segments[n]
		c := r.unsealed
		if c == nil {
			loaded, err := s.load(true)
			if err != nil {
				return err
			}
			c = &loaded
		}
		switch {
		case len(c.marks) == 0:
			if err := r.discard(s); err != nil {
				return err
			}
			r.unsealed = nil
		case !c.sealed:
			r.store.opts.Logger.Info("seal segment of a writer that is gone", "segment", s.object, "bytes", c.end, "points", len(c.marks))
			return r.seal(s, *c)
		default:
			return nil
		}
	}
	return nil
}

// discard removes the last segment, which holds no committed epoch.
func (r *Replica) discard(s *segment) error {
	r.store.opts.Logger.Info("remove uncommitted segment", "segment", s.object)
	if n := s.header.number; r.meta.Sealed >= n {
		meta := r.meta
		meta.Sealed = n - 1
		if err := r.setMeta(meta); err != nil {
			return err
		}
	}
	r.mu.Lock()
	delete(r.segments, uint32(s.header.number))
	r.mu.Unlock()
	if err := errors.Join(s.close(), s.fs.Remove(s.path)); err != nil {
		return err
	}
	return s.fs.SyncDir(r.dir)
}

// seal makes s end behind its last mark, with an index and a trailer.
func (r *Replica) seal(s *segment, c contents) error {
	c.trim()
	f, err := s.fs.OpenWrite(s.path)
	if err != nil {
		return err
	}
	if err := errors.Join(finish(f, s.cipher, c), f.Close()); err != nil {
		return fmt.Errorf("seal %s: %w", s.object, err)
	}
	r.unsealed = nil
	return r.setSealed(s.header.number)
}

func (r *Replica) setSealed(number uint64) error {
	r.mu.RLock()
	meta := r.meta
	r.mu.RUnlock()
	meta.Sealed = number
	return r.setMeta(meta)
}

func (r *Replica) unlock() {
	if r.lock != nil {
		r.lock.Close()
		r.lock = nil
	}
}

// writing reports whether this process holds the lock.
func (r *Replica) writing() bool {
	r.beginMu.Lock()
	defer r.beginMu.Unlock()
	return r.lock != nil
}

// ended is called by a writer's Close.
func (r *Replica) ended(w *Writer, reason error) error {
	r.beginMu.Lock()
	defer r.beginMu.Unlock()
	err := w.stop(reason)
	if r.writer == w {
		r.writer = nil
		r.unlock()
	}
	return err
}

func (r *Replica) close(reason error) error {
	r.beginMu.Lock()
	defer r.beginMu.Unlock()
	r.closed = true
	var err error
	if r.writer != nil {
		err = r.writer.stop(reason)
		r.writer = nil
	}
	r.unlock()
	return errors.Join(err, r.closeSegments())
}

func (r *Replica) closeSegments() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, s := range r.segments {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}
