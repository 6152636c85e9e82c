package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"rehost/block"
)

// history of a replica in memory, to be damaged: several sealed segments and,
// unless closed, an unsealed one as a crash leaves it.
func damageable(t *testing.T, seed uint64, closed bool) (*model, *crashFS) {
	t.Helper()
	cfs := newCrashFS(rand.New(rand.NewPCG(seed, 3)))
	m := newModel(t, cfs.rand, cfs)
	if !closed { // all epochs in the unsealed segment
		m.segmentSize = 1 << 30
		m.reopen()
	}
	m.begin()
	for range 14 {
		if err := m.commit(); err != nil {
			t.Fatal(err)
		}
	}
	if closed {
		if err := m.store.Close(); err != nil {
			t.Fatal(err)
		}
		return m, cfs
	}
	if _, _, err := m.stage(m.next); err != nil {
		t.Fatal(err)
	}
	cfs.mu.Lock()
	dead := newCrashFS(cfs.rand) // what is there now, without the writer
	for path, n := range cfs.root {
		c := &inode{dir: n.dir, data: slices.Clone(n.data), durable: slices.Clone(n.data)}
		dead.root[path], dead.old[path] = c, c
	}
	cfs.mu.Unlock()
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	m.fs = dead
	return m, dead
}

// look opens the damaged replica, reads every point and verifies. Wrong data ends
// the test; otherwise the answer is the first error, or how many points there are.
func (m *model) look(t *testing.T) (points int, err error) {
	t.Helper()
	s, err := Open(m.dir, m.keys, Options{fs: m.fs, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Replica(context.Background(), "s-1")
	if err != nil {
		return 0, err
	}
	list := r.Points()
	for i, p := range list {
		if p.Seq != m.order[i] {
			t.Fatalf("point %d is %v, want %v", i, p.Seq, m.order[i])
		}
		if cerr := m.compare(r, p.Seq); cerr != nil && !errors.As(cerr, new(*CorruptError)) {
			t.Fatal(cerr)
		} else if cerr != nil && err == nil {
			err = cerr
		}
	}
	if _, verr := r.Verify(context.Background()); err == nil {
		err = verr
	}
	return len(list), err
}

func segmentPaths(c *crashFS) (paths []string) {
	for path := range c.root {
		if strings.HasSuffix(path, ".seg") {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

func mustCorrupt(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.As(err, new(*CorruptError)) {
		t.Fatalf("%s: got %v, want a CorruptError", what, err)
	}
}

// share is the part of what repeats itself in one goroutine that the race
// detector is shown: it makes everything ten times slower, and there are no races.
var share = map[bool]int{false: 1, true: 10}[raceEnabled]

func TestDamage_FlippedByte(t *testing.T) {
	seed := rand.Uint64()
	m, cfs := damageable(t, seed, true)
	if n, err := m.look(t); err != nil || n != len(m.order) {
		t.Fatalf("seed %d: before: %d points, %v", seed, n, err)
	}
	flips, first := 0, segmentPaths(cfs)[0]
	for path, node := range cfs.root {
		if node.dir || filepath.Base(path) == lockName {
			continue
		}
		for i := 0; i < len(node.data); i++ {
			// All of what is small, of the first segment all that is not a record,
			// and a sample of the rest.
			n := len(node.data)
			tight := n <= align || path == first && (i <= headerSize || i >= n-align && i <= n-align+trailerSize)
			if !tight && cfs.rand.IntN(400) != 0 || cfs.rand.IntN(share) != 0 {
				continue
			}
			flip := byte(1) << cfs.rand.IntN(8)
			node.data[i] ^= flip
			_, err := m.look(t)
			mustCorrupt(t, fmt.Sprintf("seed %d: %s with byte %d flipped by %#x", seed, path, i, flip), err)
			node.data[i] ^= flip
			flips++
		}
	}
	if flips < 600/share {
		t.Fatalf("only %d bytes were flipped", flips)
	}
}

// Before the last sync but one, damage in an unsealed segment is told from a torn
// tail; behind it only what is right or nothing may be seen.
func TestDamage_FlippedByteUnsealed(t *testing.T) {
	seed := rand.Uint64()
	m, cfs := damageable(t, seed, false)
	paths := segmentPaths(cfs)
	last := paths[len(paths)-1]
	node := cfs.root[last]
	s, c := reread(t, m, last)
	if c.sealed || len(c.marks) != len(m.order) {
		t.Fatalf("seed %d: the last segment has %d commits", seed, len(c.marks))
	}
	durable, starts := uint64(align), []uint64{}
	for off := uint64(align); off < c.end; {
		r, err := s.recordAt(off)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, off)
		durable = max(durable, r.durable)
		off += r.size()
	}
	for k := range 200 / share {
		i := cfs.rand.IntN(len(node.data))
		if k%2 == 0 { // at the beginning of a record, which most bytes are not
			i = int(starts[cfs.rand.IntN(len(starts))]) + cfs.rand.IntN(recordSize+tagSize)
		}
		node.data[i] ^= 0x10
		n, err := m.look(t)
		if uint64(i) < durable {
			mustCorrupt(t, fmt.Sprintf("seed %d: byte %d, durable %d", seed, i, durable), err)
		} else if err != nil && !errors.As(err, new(*CorruptError)) || err == nil && n < len(m.order)-1 {
			t.Fatalf("seed %d: byte %d, durable %d: %d points of %d, %v", seed, i, durable, n, len(m.order), err)
		}
		node.data[i] ^= 0x10
	}
}

func reread(t *testing.T, m *model, path string) (*segment, contents) {
	t.Helper()
	number, _ := parseSegmentName(filepath.Base(path))
	s, err := openSegment(m.fs, filepath.Dir(path), "s-1", number, m.r.dataKey, m.r.replica)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.load(false)
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func TestDamage_Truncated(t *testing.T) {
	for _, closed := range []bool{true, false} {
		seed := rand.Uint64()
		m, cfs := damageable(t, seed, closed)
		paths := segmentPaths(cfs)
		for _, path := range paths {
			s, c := reread(t, m, path)
			node := cfs.root[path]
			whole := node.data
			cuts := []uint64{0, 1, align - 1, align}
			for off := uint64(align); off < c.end; {
				r, err := s.recordAt(off)
				if err != nil {
					t.Fatal(err)
				}
				off += r.size()
				cuts = append(cuts, off-1, off)
			}
			for _, cut := range append(cuts, uint64(len(whole))-align, uint64(len(whole))-1) {
				if cut >= uint64(len(whole)) || cfs.rand.IntN(share) != 0 {
					continue
				}
				node.data = whole[:cut:cut]
				_, err := m.look(t)
				if c.sealed || cut < align {
					mustCorrupt(t, fmt.Sprintf("seed %d: %s cut to %d", seed, path, cut), err)
				} else if err != nil { // look has seen that what is left is right
					t.Fatalf("seed %d: unsealed %s cut to %d: %v", seed, path, cut, err)
				}
			}
			node.data = whole
			delete(cfs.root, path)
			if _, err := m.look(t); c.sealed {
				mustCorrupt(t, fmt.Sprintf("seed %d: %s missing", seed, path), err)
			}
			cfs.root[path] = node
		}
	}
}

// Records and whole segments that are moved do not authenticate.
func TestDamage_Moved(t *testing.T) {
	seed := rand.Uint64()
	m, cfs := damageable(t, seed, true)
	type place struct {
		node   *inode
		offset uint64
	}
	bySize := map[uint64][]place{}
	for _, path := range segmentPaths(cfs) {
		s, c := reread(t, m, path)
		for off := uint64(align); off < c.end; {
			r, err := s.recordAt(off)
			if err != nil {
				t.Fatal(err)
			}
			bySize[r.size()] = append(bySize[r.size()], place{cfs.root[path], off})
			off += r.size()
		}
	}
	swap := func(a, b place, n uint64) {
		for i := range n {
			a.node.data[a.offset+i], b.node.data[b.offset+i] = b.node.data[b.offset+i], a.node.data[a.offset+i]
		}
	}
	swaps := 0
	for n, places := range bySize {
		for i := 1; i < len(places); i++ {
			swap(places[i-1], places[i], n)
			_, err := m.look(t)
			mustCorrupt(t, fmt.Sprintf("seed %d: records of %d bytes swapped", seed, n), err)
			swap(places[i-1], places[i], n)
			swaps++
		}
	}
	if swaps < 10 {
		t.Fatalf("only %d swaps", swaps)
	}
	paths := segmentPaths(cfs)
	a, b := paths[0], paths[1]
	cfs.root[a], cfs.root[b] = cfs.root[b], cfs.root[a]
	_, err := m.look(t)
	mustCorrupt(t, "segments swapped", err)
}

// A full file, as another replica has it, is not this replica's.
func TestDamage_OtherReplica(t *testing.T) {
	m, cfs := damageable(t, 5, true)
	s, err := Open(m.dir, m.keys, Options{fs: cfs})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Create(t.Context(), "s-2", testDisks, "")
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.Begin(t.Context(), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), block.Point{Seq: 1, Time: time.Unix(1, 0)}, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{metaName, keyName, "00000001.seg"} {
		mine, theirs := filepath.Join(m.dir, "s-1", name), filepath.Join(m.dir, "s-2", name)
		node := cfs.root[mine]
		cfs.root[mine] = cfs.root[theirs]
		_, err := m.look(t)
		mustCorrupt(t, name, err)
		cfs.root[mine] = node
	}
}

// FuzzRecord: what decodes encodes to the very same bytes.
func FuzzRecord(f *testing.F) {
	for _, r := range []record{
		{kind: kindRun, codec: block.Raw, extent: block.Extent{Disk: 3, Start: 9, Count: 2}, epoch: 5, ordinal: 7, length: 8192, durable: 4096},
		{kind: kindCommit, epoch: 9, ordinal: 3, time: 77, flags: block.Consistent | block.InitialSyncDone, durable: 8192},
		{kind: kindRetract, epoch: 4},
		{kind: kindPad, length: 100},
	} {
		b := make([]byte, recordSize)
		r.encode(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != recordSize {
			return
		}
		r, err := decodeRecord(b, segmentVersion)
		if err != nil {
			return
		}
		again := make([]byte, recordSize)
		if r.encode(again); string(again) != string(b) {
			t.Fatalf("%x decodes and encodes to %x", b, again)
		}
	})
}

// FuzzSegment_Load: whatever a file holds, loading it neither panics nor takes
// for ever, and does not invent records.
func FuzzSegment_Load(f *testing.F) {
	key := make([]byte, dataKeySize)
	h := segmentHeader{number: 1, session: 1, first: 1}
	head, cipher := h.encode(key)
	rec := record{kind: kindRun, codec: block.Zstd, extent: block.Extent{Count: 1}, epoch: 1, length: 9, durable: align}
	body := make([]byte, rec.size())
	cipher.seal(body, rec, nil, []byte("not zstd!"), align)
	f.Add(append(slices.Clone(head), body...))
	c := contents{end: align + rec.size()}
	c.add(located{rec, align})
	c.entries[0].offset = align
	cfs := newCrashFS(rand.New(rand.NewPCG(1, 1)))
	file, _ := cfs.Create("x", false)
	file.WriteAt(append(slices.Clone(head), body...), 0)
	if err := finish(file, cipher, c); err != nil {
		f.Fatal(err)
	}
	f.Add(slices.Clone(cfs.root["x"].data))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfs := newCrashFS(nil)
		cfs.root["d/00000001.seg"] = &inode{data: data}
		s, err := openSegment(cfs, "d", "s", 1, key, hexID{})
		if err != nil {
			return
		}
		for _, mustSeal := range []bool{true, false} {
			c, err := s.load(mustSeal)
			if err != nil && !errors.As(err, new(*CorruptError)) {
				t.Fatalf("got %v, want a CorruptError", err)
			}
			if len(c.entries) > 1 {
				t.Fatalf("%d records of one", len(c.entries))
			}
			if err == nil {
				s.verify(t.Context(), c, &Report{})
			}
		}
	})
}

// FuzzSegment_Replay: a segment that authenticates may still say anything. What
// the records amount to must be the same whether it is sealed or not, and no two
// pieces of a point may overlap.
func FuzzSegment_Replay(f *testing.F) {
	key := make([]byte, dataKeySize)
	h := segmentHeader{number: 1, session: 1, first: 1}
	log := func(list ...record) (b []byte) {
		for _, r := range list {
			var head [recordSize]byte
			r.encode(head[:])
			b = append(b, head[:]...)
		}
		return b
	}
	run := func(epoch block.Seq, ordinal, start, count uint64) record {
		return record{kind: kindRun, extent: block.Extent{Start: start, Count: count}, epoch: epoch, ordinal: ordinal}
	}
	f.Add(log(run(1, 0, 5, 9), run(1, 1, 7, 2), record{kind: kindCommit, epoch: 1, ordinal: 2}, run(2, 0, 0, 1<<32-1),
		record{kind: kindCommit, epoch: 2, ordinal: 1}, record{kind: kindRetract, epoch: 1}, record{kind: kindCommit, epoch: 3}))
	f.Add(log(run(1, 0, 5, 9), run(1, 0, 5, 9), record{kind: kindCommit, epoch: 1, ordinal: 2}))
	f.Fuzz(func(t *testing.T, heads []byte) {
		head, cipher := h.encode(key)
		data, c := slices.Clone(head), contents{end: align}
		for ; len(heads) >= recordSize && len(data) < 64<<10; heads = heads[recordSize:] {
			r, err := decodeRecord(heads, segmentVersion)
			if err != nil || r.length > 2*align || r.durable > uint64(len(data)) {
				continue
			}
			sealed, off := make([]byte, r.size()), uint64(len(data))
			cipher.seal(sealed, r, anySums[:r.sums], anyPayload[:r.length], off)
			data = append(data, sealed...)
			c.add(located{r, off})
			c.end = uint64(len(data))
		}
		var histories []history
		for _, sealed := range []bool{false, true} {
			cfs := newCrashFS(nil)
			cfs.root["d/00000001.seg"] = &inode{data: slices.Clone(data)}
			if sealed {
				file, err := cfs.OpenWrite("d/00000001.seg")
				if err == nil {
					err = finish(file, cipher, c)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s, err := openSegment(cfs, "d", "s", 1, key, hexID{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.load(sealed)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.entries, c.entries) || !slices.Equal(got.marks, c.marks) {
				t.Fatalf("sealed %v: loaded %v, want %v", sealed, got, c)
			}
			var hist history
			if err := got.replay(&hist, s); err != nil && !errors.As(err, new(*CorruptError)) {
				t.Fatalf("got %v, want a CorruptError", err)
			}
			histories = append(histories, hist)
		}
		if !reflect.DeepEqual(histories[0].commits, histories[1].commits) {
			t.Fatalf("unsealed %v, sealed %v", histories[0].commits, histories[1].commits)
		}
		for _, commit := range histories[0].commits {
			for i := 1; i < len(commit.pieces); i++ {
				if a, b := commit.pieces[i-1], commit.pieces[i]; a.disk > b.disk || a.disk == b.disk && a.end() > b.start {
					t.Fatalf("point %v: %v and %v overlap", commit.point.Seq, a, b)
				}
			}
		}
	})
}
