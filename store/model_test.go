package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/block"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		writeForEver()
		return
	}
	goleak.VerifyTestMain(m)
}

var testDisks = []block.Disk{
	{ID: 1, Name: "/dev/sda", Size: 64 * block.Size, Boot: true},
	{ID: 7, Name: "/dev/sdb", Size: 40*block.Size - 1000},
}

// image is what the oracle believes the disks hold.
type image map[block.DiskID][]byte

func blank(disks []block.Disk) image {
	m := image{}
	for _, d := range disks {
		m[d.ID] = make([]byte, d.Blocks()*block.Size)
	}
	return m
}

func (m image) clone() image {
	n := maps.Clone(m)
	for id, b := range n {
		n[id] = bytes.Clone(b)
	}
	return n
}

// A model drives a replica and knows what each acknowledged point must hold.
type model struct {
	t           testing.TB
	rand        *rand.Rand
	keys        Keyring
	fs          fileSystem // nil: the real one
	dir         string
	store       *Store
	r           *Replica
	w           *Writer
	gen         uint64
	next        block.Seq
	points      map[block.Seq]image // acknowledged
	order       []block.Seq
	segmentSize int64
	maybe       *attempt // what a call that returned an error, or never did, may have done
}

// An attempt is a commit or a retraction that was not acknowledged.
type attempt struct {
	seq   block.Seq
	image image // nil: a retraction
}

func newModel(t testing.TB, r *rand.Rand, fsys fileSystem) *model {
	m := &model{t: t, rand: r, fs: fsys, dir: filepath.Join(t.TempDir(), "store"), points: map[block.Seq]image{}, segmentSize: 24 << 10}
	keys, err := CreateKeyFile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	m.keys = keys
	m.open()
	if m.r, err = m.store.Create(t.Context(), "s-1", testDisks, ""); err != nil {
		t.Fatal(err)
	}
	m.next = 1
	return m
}

func (m *model) open() {
	m.t.Helper()
	var err error
	if m.store, err = Open(m.dir, m.keys, Options{fs: m.fs, SegmentSize: m.segmentSize, chunkSize: 37 * block.Size}); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { m.store.Close() })
}

func (m *model) reopen() {
	m.t.Helper()
	m.w = nil
	m.open()
	var err error
	if m.r, err = m.store.Replica(m.t.Context(), "s-1"); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) begin() {
	m.t.Helper()
	m.gen += m.rand.Uint64N(3)
	w, err := m.r.Begin(context.Background(), m.gen, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	m.w = w
}

func (m *model) current() image {
	if len(m.order) == 0 {
		return blank(testDisks)
	}
	return m.points[m.order[len(m.order)-1]]
}

// step does one random thing. An error of the file system ends it.
func (m *model) step() error {
	ctx := context.Background()
	if m.w == nil {
		m.begin()
	}
	switch n := m.rand.IntN(20); {
	case n == 0 && m.w.Err() == nil: // a new session, the old one left or closed
		if m.rand.IntN(2) == 0 {
			if err := m.w.Close(); err != nil {
				return err
			}
		}
		w, err := m.r.Begin(ctx, m.gen, nil)
		m.w = w
		return err
	case n == 1 && len(m.order) > 0:
		after := m.order[m.rand.IntN(len(m.order))]
		if m.rand.IntN(8) == 0 {
			after = 0
		}
		m.maybe = &attempt{seq: after}
		if err := m.w.Retract(ctx, after); err != nil {
			return err
		}
		m.maybe = nil
		m.retracted(after)
		return nil
	case n < 5: // an epoch that is staged and left
		_, _, err := m.stage(m.next)
		return err
	default:
		return m.commit()
	}
}

func (m *model) retracted(after block.Seq) {
	m.order = slices.DeleteFunc(m.order, func(s block.Seq) bool { return s > after })
	if m.next = after + 1; m.rand.IntN(2) == 0 {
		m.next += 3
	}
	// The staged epochs stay staged, so that the next one gets a new number.
	m.fresh()
}

// fresh begins a session, in which nothing is staged.
func (m *model) fresh() {
	m.t.Helper()
	w, err := m.r.Begin(context.Background(), m.gen, nil)
	if err != nil {
		m.w = nil
		return
	}
	m.w = w
}

func (m *model) commit() error {
	seq := m.next
	// Whatever an earlier step staged for this epoch has to be out of the way.
	if m.w.hist.staged[seq] != nil {
		m.fresh()
		if m.w == nil {
			return errors.New("no session")
		}
	}
	img, runs, err := m.stage(seq)
	if err != nil {
		return err
	}
	if err := m.w.Commit(context.Background(), block.Point{Seq: seq, Time: time.Unix(int64(seq), 0)}, runs+1, 0); !errors.Is(err, ErrIncomplete) {
		if errors.Is(err, ErrBroken) {
			return err
		}
		m.t.Fatalf("commit of too few runs: got %v, want %v", err, ErrIncomplete)
	}
	m.maybe = &attempt{seq, img}
	if err := m.w.Commit(context.Background(), block.Point{Seq: seq, Time: time.Unix(int64(seq), 0)}, runs, block.Consistent|block.InitialSyncDone); err != nil {
		return err
	}
	m.maybe = nil
	m.committed(seq, img)
	return nil
}

func (m *model) committed(seq block.Seq, img image) {
	m.points[seq] = img
	m.order = append(m.order, seq)
	m.next = seq + 1 + block.Seq(m.rand.IntN(2))
}

// stage appends random runs, in an order that is not that of their ordinals and
// by several goroutines.
func (m *model) stage(seq block.Seq) (image, uint64, error) {
	img := m.current().clone()
	n := m.rand.IntN(6)
	runs := make([]block.Run, n)
	for i := range runs {
		d := testDisks[m.rand.IntN(len(testDisks))]
		start, longest := m.rand.Uint64N(d.Blocks()), uint64(12)
		if m.rand.IntN(6) == 0 { // whole chunks, which have hashes
			start, longest = start&^7, 34
		}
		e := block.Extent{Disk: d.ID, Start: start, Count: 1 + m.rand.Uint64N(min(longest, d.Blocks()-start))}
		data := make([]byte, e.Bytes())
		switch m.rand.IntN(3) {
		case 0:
			for j := range data {
				data[j] = byte(m.rand.Uint32())
			}
		case 1:
			copy(data, fmt.Sprintf("epoch %v run %d", seq, i))
		}
		runs[i] = block.Encode(e, data, true)
		copy(img[d.ID][e.Offset():], data)
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for _, i := range m.rand.Perm(n) {
		wg.Go(func() { errs[i] = m.w.Append(context.Background(), seq, uint64(i), runs[i]) })
	}
	wg.Wait()
	return img, uint64(n), errors.Join(errs...)
}

// check compares what the replica shows with what was acknowledged. It takes an
// unacknowledged attempt as done if the replica shows it.
func (m *model) check(r *Replica) error {
	var got []block.Seq
	for _, p := range r.Points() {
		got = append(got, p.Seq)
	}
	if a := m.maybe; a != nil {
		done := slices.Clone(m.order)
		if a.image != nil {
			done = append(done, a.seq)
		} else {
			done = slices.DeleteFunc(done, func(s block.Seq) bool { return s > a.seq })
		}
		if slices.Equal(got, done) {
			if a.image != nil {
				m.points[a.seq] = a.image
			}
			m.order = done
		}
		m.maybe = nil
		if n := len(m.order); n > 0 {
			m.next = max(m.next, m.order[n-1]+1)
		}
	}
	if !slices.Equal(got, m.order) {
		return fmt.Errorf("points are %v, want %v", got, m.order)
	}
	for _, seq := range got {
		if len(got) > 6 && m.rand.IntN(len(got)) > 6 && seq != got[len(got)-1] {
			continue
		}
		if err := m.compare(r, seq); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) compare(r *Replica, seq block.Seq) error {
	v, err := r.At(seq)
	if err != nil {
		return err
	}
	for _, disk := range testDisks {
		d, err := v.Disk(disk.ID)
		if err != nil {
			return err
		}
		want := m.points[seq][disk.ID]
		b := make([]byte, disk.Size)
		if _, err := d.ReadAt(b, 0); err != nil {
			return err
		}
		if !bytes.Equal(b, want[:disk.Size]) {
			i := 0
			for b[i] == want[i] {
				i++
			}
			return fmt.Errorf("%v at point %v differs at %d", disk.ID, seq, i)
		}
		off := m.rand.Int64N(disk.Size)
		part := make([]byte, 1+m.rand.IntN(3*block.Size))
		n, _ := d.ReadAt(part, off)
		if !bytes.Equal(part[:n], want[off:off+int64(n)]) || n < len(part) && off+int64(n) != disk.Size {
			return fmt.Errorf("%v at point %v: read of %d at %d differs", disk.ID, seq, len(part), off)
		}
		chunks := block.Extent{Disk: disk.ID, Count: disk.Blocks()}
		if m.rand.IntN(2) == 0 {
			chunks.Start = m.rand.Uint64N(disk.Blocks())
			chunks.Count = 1 + m.rand.Uint64N(disk.Blocks()-chunks.Start)
		}
		hashes, err := v.AppendHashes(nil, chunks)
		if err != nil {
			return err
		}
		seen := bytes.Clone(want)
		clear(seen[disk.Size:])
		if !slices.Equal(hashes, block.AppendHashes(nil, seen[chunks.Offset():][:chunks.Bytes()], block.ChunkBlocks)) {
			return fmt.Errorf("%v at point %v: hashes of %v are not those of its content", disk.ID, seq, chunks)
		}
		extents := d.Extents()
		for i := range disk.Blocks() {
			blk := want[i*block.Size : (i+1)*block.Size]
			if !block.IsZero(blk) && !extents.Contains(disk.ID, i) {
				return fmt.Errorf("%v at point %v: block %d has content and is not listed", disk.ID, seq, i)
			}
		}
	}
	return nil
}

// TestReplica_Model does random things to a replica and compares every so often,
// through the live replica, a read-only one beside it, and a reopened one.
func TestReplica_Model(t *testing.T) {
	for range 4 {
		seed := rand.Uint64()
		m := newModel(t, rand.New(rand.NewPCG(seed, 1)), nil)
		ro, err := Open(m.dir, m.keys, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		beside, err := ro.Replica(t.Context(), "s-1")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 60 {
			if err := m.step(); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, i, err)
			}
			if i%10 == 9 {
				if err := beside.Refresh(); err != nil {
					t.Fatalf("seed %d step %d: beside the writer: %v", seed, i, err)
				}
				if err := errors.Join(m.check(m.r), m.check(beside)); err != nil {
					t.Fatalf("seed %d step %d: %v", seed, i, err)
				}
			}
			if i%25 == 24 {
				if err := m.store.Close(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				m.reopen()
			}
		}
		if err := m.check(m.r); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if _, err := m.r.Verify(t.Context()); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := errors.Join(m.store.Close(), ro.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// crashes runs a model on a file system that loses power n times, and returns
// the first violation.
func crashes(t testing.TB, seed uint64, n int, prepare func(*crashFS)) error {
	r := rand.New(rand.NewPCG(seed, 2))
	cfs := newCrashFS(r)
	m := newModel(t, r, cfs)
	for range n {
		if prepare != nil {
			prepare(cfs)
		}
		// Power fails between two writes or syncs of some operation: from there on
		// they fail, which freezes what is on disk.
		cfs.writes, cfs.failWith = r.IntN(60), errors.New("power is off")
		for {
			if m.w == nil {
				w, err := m.r.Begin(context.Background(), m.gen, nil)
				if err != nil {
					break
				}
				m.w = w
			}
			if err := m.step(); err != nil || m.w == nil {
				break
			}
		}
		m.store.Close()
		cfs.mu.Lock()
		cfs.failWith = nil
		cfs.mu.Unlock()
		cfs = cfs.crash()
		m.fs = cfs
		m.w = nil
		m.open()
		var err error
		if m.r, err = m.store.Replica(context.Background(), "s-1"); err != nil {
			return err
		}
		if err := m.check(m.r); err != nil {
			return err
		}
		if r.IntN(2) == 0 { // what recovery shows must outlive it
			if m.w, err = m.r.Begin(context.Background(), m.gen, nil); err != nil {
				return err
			}
			if err := m.check(m.r); err != nil {
				return err
			}
		}
		if _, err := m.r.Verify(context.Background()); err != nil {
			return err
		}
	}
	return m.store.Close()
}

func TestReplica_Crash(t *testing.T) {
	for range 1 + 59/share {
		seed := rand.Uint64()
		if err := crashes(t, seed, 8, nil); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestReplica_CrashWithoutSync shows that the test above can fail.
func TestReplica_CrashWithoutSync(t *testing.T) {
	for range 40 {
		if err := crashes(t, rand.Uint64(), 8, func(c *crashFS) { c.skipSync = true }); err != nil {
			t.Logf("found: %v", err)
			return
		}
	}
	t.Fatal("a store that never syncs passed the crash test")
}

// TestFlatten compares with painting blocks one piece after the other.
func TestFlatten(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 4))
	for range 3000 {
		list := make([]piece, r.IntN(30))
		var painted [3][80]int // 1 + which piece
		for i := range list {
			p := piece{disk: block.DiskID(r.IntN(3)), start: r.Uint64N(60), count: 1 + r.Uint32N(20), offset: uint64(i)}
			list[i] = p
			for b := p.start; b < p.end(); b++ {
				painted[p.disk][b] = i + 1
			}
		}
		flat := flatten(list)
		for i, p := range flat {
			if i > 0 && (p.disk < flat[i-1].disk || p.disk == flat[i-1].disk && p.start < flat[i-1].end()) {
				t.Fatalf("seed %d: %v overlaps or is out of order", seed, p)
			}
			for b := p.start; b < p.end(); b++ {
				if painted[p.disk][b] != int(p.offset)+1 || list[p.offset].start+uint64(p.skip) != p.start {
					t.Fatalf("seed %d: block %d is of piece %d, want %d", seed, b, p.offset, painted[p.disk][b]-1)
				}
				painted[p.disk][b] = 0
			}
		}
		if painted != [3][80]int{} {
			t.Fatalf("seed %d: blocks are missing", seed)
		}
	}
}
