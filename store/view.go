package store

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"rehost/block"
)

// A View is all disks of a replica at one recovery point. It does not change,
// whatever is committed or retracted later; it may be used until the store is
// closed or the replica deleted. All methods may be called concurrently.
type View struct {
	r        *Replica
	point    RecoveryPoint
	disks    []block.Disk
	segments map[uint32]*segment
	pieces   []piece // in order of disk and block, none overlapping
	cache    runCache
}

// At opens the recovery point seq; [ErrNoPoint] if there is none, or it was
// retracted.
func (r *Replica) At(seq block.Seq) (*View, error) {
	r.mu.RLock()
	commits, segments, meta := r.hist.commits, make(map[uint32]*segment, len(r.segments)), r.meta
	for n, s := range r.segments {
		segments[n] = s
	}
	r.mu.RUnlock()
	i, ok := slices.BinarySearchFunc(commits, seq, func(c committed, seq block.Seq) int {
		return cmp.Compare(c.point.Seq, seq)
	})
	if !ok {
		return nil, fmt.Errorf("open point %v of replica %s: %w", seq, r.id, ErrNoPoint)
	}
	n := 0
	for _, c := range commits[:i+1] {
		n += len(c.pieces)
	}
	pieces := make([]piece, 0, n)
	for _, c := range commits[:i+1] {
		pieces = append(pieces, c.pieces...)
	}
	c := commits[i]
	v := &View{r: r, point: RecoveryPoint{c.point, c.flags}, disks: meta.disksAt(c.session), segments: segments, pieces: flatten(pieces)}
	v.cache.init()
	return v, nil
}

// Point is the point the view shows.
func (v *View) Point() RecoveryPoint { return v.point }

// Disks are the disks that the server had at the point.
func (v *View) Disks() []block.Disk { return slices.Clone(v.disks) }

// Disk opens one of them; [ErrNoDisk] if the server did not have it.
func (v *View) Disk(id block.DiskID) (*Device, error) {
	for _, d := range v.disks {
		if d.ID == id {
			lo := sort.Search(len(v.pieces), func(i int) bool { return v.pieces[i].disk >= id })
			hi := sort.Search(len(v.pieces), func(i int) bool { return v.pieces[i].disk > id })
			return &Device{v: v, disk: d, pieces: v.pieces[lo:hi]}, nil
		}
	}
	return nil, fmt.Errorf("open %v at point %v of replica %s: %w", id, v.point.Seq, v.r.id, ErrNoDisk)
}

// A Device is one disk of a [View]. Blocks that were never written are zero. All
// methods may be called concurrently.
type Device struct {
	v      *View
	disk   block.Disk
	pieces []piece
}

// Size is the length of the disk in bytes.
func (d *Device) Size() int64 { return d.disk.Size }

// Disk describes the disk.
func (d *Device) Disk() block.Disk { return d.disk }

// Extents lists the blocks that hold content; all others are zero.
func (d *Device) Extents() block.Extents {
	var out block.Extents
	blocks := d.disk.Blocks()
	for _, p := range d.pieces {
		end := min(p.end(), blocks)
		if p.zero || p.start >= end {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End() == p.start {
			out[n-1].Count = end - out[n-1].Start
			continue
		}
		out = append(out, block.Extent{Disk: d.disk.ID, Start: p.start, Count: end - p.start})
	}
	return out
}

// ReadAt implements [io.ReaderAt]. Damaged data is a [CorruptError], never
// returned.
func (d *Device) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %v at %d: negative offset", d.disk.ID, off)
	}
	if off >= d.disk.Size {
		return 0, io.EOF
	}
	var eof error
	if rest := d.disk.Size - off; int64(len(b)) > rest {
		b, eof = b[:rest], io.EOF
	}
	clear(b)
	end := uint64(off) + uint64(len(b))
	i := sort.Search(len(d.pieces), func(i int) bool { return d.pieces[i].end()*block.Size > uint64(off) })
	for ; i < len(d.pieces) && d.pieces[i].start*block.Size < end; i++ {
		p := d.pieces[i]
		if p.zero {
			continue
		}
		lo, hi := max(p.start*block.Size, uint64(off)), min(p.end()*block.Size, end)
		data, err := d.v.cache.get(runKey{p.seg, p.offset}, func() ([]byte, error) { return d.v.decode(p) })
		if err != nil {
			return 0, fmt.Errorf("read %v at %d, point %v of replica %s: %w", d.disk.ID, off, d.v.point.Seq, d.v.r.id, err)
		}
		skip := uint64(p.skip)*block.Size + lo - p.start*block.Size
		if skip+hi-lo > uint64(len(data)) {
			return 0, corrupt(d.v.segments[p.seg].object, p.offset, "run is shorter than the index says")
		}
		copy(b[lo-uint64(off):hi-uint64(off)], data[skip:])
	}
	return len(b), eof
}

// decode reads the whole run that p is a part of.
func (v *View) decode(p piece) ([]byte, error) {
	s := v.segments[p.seg]
	rec, body, err := s.readRecord(p, storedSize(p.sums, p.length))
	if err != nil {
		return nil, err
	}
	run, err := s.openBody(rec, body, p.offset)
	if err != nil {
		return nil, err
	}
	return s.decodeRun(run, p.offset)
}

// readRecord reads the first size bytes of the record that p is a part of: its
// header, and so much of what follows.
func (s *segment) readRecord(p piece, size uint64) (rec record, body []byte, err error) {
	b := make([]byte, size)
	if err := s.readFull(b, p.offset); err != nil {
		return rec, nil, err
	}
	if rec, err = s.cipher.openHeader(b, p.offset); err != nil {
		return rec, nil, corrupt(s.object, p.offset, "record: %w", err)
	}
	if rec.kind != kindRun || rec.length != p.length || rec.sums != p.sums || rec.extent.Disk != p.disk || rec.extent.Start+uint64(p.skip) != p.start {
		return rec, nil, corrupt(s.object, p.offset, "record is not the one in the index")
	}
	return rec, b[recordSize+tagSize:], nil
}

// decodeRun decodes the run of the record at offset.
func (s *segment) decodeRun(run block.Run, offset uint64) ([]byte, error) {
	if run.Codec == block.Zero || run.Codec == block.Raw {
		return run.Payload, nil // zeros have none, and may be many
	}
	data := make([]byte, run.Extent.Bytes())
	if err := run.Decode(data); err != nil {
		return nil, corrupt(s.object, offset, "%w", err)
	}
	return data, nil
}

// Restore writes the view's disks to dir as sparse raw images named d0.raw,
// d1.raw, ..., which must not exist, and returns their paths. What is there when
// it fails or ctx is cancelled is removed.
func (v *View) Restore(ctx context.Context, dir string) (paths []string, err error) {
	defer func() {
		if err != nil {
			for _, p := range paths {
				err = errors.Join(err, os.Remove(p))
			}
			paths = nil
		}
	}()
	for _, disk := range v.disks {
		d, err := v.Disk(disk.ID)
		if err != nil {
			return paths, err
		}
		path := filepath.Join(dir, disk.ID.String()+".raw")
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return paths, err
		}
		paths = append(paths, path)
		if err := errors.Join(d.copyTo(ctx, f), f.Close()); err != nil {
			return paths, fmt.Errorf("restore %s: %w", path, err)
		}
	}
	return paths, osFS{}.SyncDir(dir)
}

func (d *Device) copyTo(ctx context.Context, f *os.File) error {
	if err := f.Truncate(d.disk.Size); err != nil {
		return err
	}
	buf := make([]byte, block.MaxRun*block.Size)
	for _, e := range d.Extents().Split(block.MaxRun) {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := d.ReadAt(buf[:e.Bytes()], e.Offset())
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := f.WriteAt(buf[:n], e.Offset()); err != nil {
			return err
		}
	}
	return f.Sync()
}

// runCache keeps the runs that were decoded last: readers come back for the rest
// of a run, and many at once for the same one.
type runCache struct {
	mu    sync.Mutex
	runs  map[runKey]*list.Element
	order *list.List // most recent first
	bytes int
}

const cachedBytes = 16 << 20

type runKey struct {
	seg    uint32
	offset uint64
}

type cachedRun struct {
	key  runKey
	once sync.Once
	data []byte
	err  error
	size int // of data, once it is counted; guarded by the cache's lock
}

func (c *runCache) init() { c.runs, c.order = map[runKey]*list.Element{}, list.New() }

func (c *runCache) get(key runKey, decode func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	e := c.runs[key]
	if e == nil {
		e = c.order.PushFront(&cachedRun{key: key, err: errors.New("decoder panicked")})
		c.runs[key] = e
	}
	c.order.MoveToFront(e)
	c.mu.Unlock()
	run := e.Value.(*cachedRun)
	run.once.Do(func() {
		run.data, run.err = decode()
		c.decoded(run)
	})
	return run.data, run.err
}

// decoded counts a run, and drops the oldest; errors are not kept.
func (c *runCache) decoded(run *cachedRun) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if run.err != nil {
		c.drop(run)
		return
	}
	run.size = len(run.data)
	c.bytes += run.size
	for e := c.order.Back(); e != nil && c.bytes > cachedBytes; {
		old, prev := e.Value.(*cachedRun), e.Prev()
		if old != run && old.size > 0 { // the others are being decoded
			c.drop(old)
		}
		e = prev
	}
}

func (c *runCache) drop(run *cachedRun) {
	c.order.Remove(c.runs[run.key])
	delete(c.runs, run.key)
	c.bytes -= run.size
}

var _ io.ReaderAt = (*Device)(nil)
