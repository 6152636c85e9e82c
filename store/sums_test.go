package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"rehost/block"
)

// sumsDisk has eight whole chunks and a short one.
var sumsDisk = block.Disk{ID: 1, Name: "/dev/sda", Size: (8*block.ChunkBlocks + 3) * block.Size, Boot: true}

// noise makes the run of e with content that nothing compresses, and keeps it.
func noise(r *rand.Rand, content []byte, e block.Extent) block.Run {
	data := content[e.Offset():][:e.Bytes()]
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return block.Encode(e, bytes.Clone(data), true)
}

// TestView_Hashes: what is whole as it came is known without being read, and a
// chunk of which one block was written since is not taken for what it was.
func TestView_Hashes(t *testing.T) {
	cfs := newCrashFS(rand.New(rand.NewPCG(1, 1)))
	m := newModel(t, cfs.rand, cfs)
	if err := m.store.Delete(t.Context(), "s-1"); err != nil {
		t.Fatal(err)
	}
	r, err := m.store.Create(t.Context(), "s-1", []block.Disk{sumsDisk}, "")
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, sumsDisk.Size)
	w := mustBegin(t, r, 1)
	put(t, w, 1, // chunks 0, 1, 3 whole in runs; 2 in two runs; 4 never written; 5 and 6 zeros; 7 and 8 in one run
		noise(m.rand, content, block.Extent{Disk: 1, Start: 0, Count: 36}),
		noise(m.rand, content, block.Extent{Disk: 1, Start: 36, Count: 28}),
		block.Run{Extent: block.Extent{Disk: 1, Start: 80, Count: 32}},
		noise(m.rand, content, block.Extent{Disk: 1, Start: 7 * 16, Count: 19}))
	first := bytes.Clone(content)
	put(t, w, 2, noise(m.rand, content, block.Extent{Disk: 1, Start: 5, Count: 1}))
	all := block.Extent{Disk: 1, Count: sumsDisk.Blocks()}
	look := func(when string, seq block.Seq, content []byte) []bool {
		t.Helper()
		v, err := r.At(seq)
		if err != nil {
			t.Fatal(err)
		}
		hashes, err := v.AppendHashes(nil, all)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if !slices.Equal(hashes, block.AppendHashes(nil, content, block.ChunkBlocks)) {
			t.Errorf("%s: hashes are not those of the content at point %v", when, seq)
		}
		d, err := v.Disk(1)
		if err != nil {
			t.Fatal(err)
		}
		known := make([]bool, 9)
		for i := range known {
			chunk := block.Extent{Disk: 1, Start: uint64(i) * 16, Count: min(16, all.Count-uint64(i)*16)}
			if _, known[i], err = d.sum(chunk, new(sums)); err != nil {
				t.Fatal(err)
			}
		}
		return known
	}
	for _, when := range []string{"while it is written", "when it is sealed"} {
		if got, want := look(when, 1, first), []bool{true, true, false, true, true, true, true, true, false}; !slices.Equal(got, want) {
			t.Errorf("%s: known at point 1: %v, want %v", when, got, want)
		}
		if got, want := look(when, 2, content), []bool{false, true, false, true, true, true, true, true, false}; !slices.Equal(got, want) {
			t.Errorf("%s: known at point 2: %v, want %v", when, got, want)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	v, err := r.At(2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.AppendHashes(nil, block.Extent{Disk: 2, Count: 1}); !errors.Is(err, ErrNoDisk) {
		t.Errorf("hashes of a disk that is not there: got %v, want %v", err, ErrNoDisk)
	}
}

// TestVerify_Sums: content that is not what the source hashed is found, though
// every tag is right.
func TestVerify_Sums(t *testing.T) {
	s := newStore(t, t.TempDir())
	r, err := s.Create(t.Context(), "s-1", []block.Disk{sumsDisk}, "")
	if err != nil {
		t.Fatal(err)
	}
	run := fill(block.Extent{Disk: 1, Start: 3, Count: 60}, 'x')
	run.Sums[1][7] ^= 1
	w := mustBegin(t, r, 1)
	put(t, w, 1, run)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = r.Verify(t.Context())
	mustCorrupt(t, "a run whose hash is of something else", err)
	run.Sums = run.Sums[:1]
	w = mustBegin(t, r, 1)
	defer w.Close()
	want(t, "a run without all its hashes", w.Append(t.Context(), 2, 0, run), block.ErrBadRun)
}

// TestSegment_Version1: what was written before runs had hashes is read, found
// whole, and goes on to be written.
func TestSegment_Version1(t *testing.T) {
	s := newStore(t, t.TempDir())
	r, err := s.Create(t.Context(), "s-1", []block.Disk{sumsDisk}, "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustBegin(t, r, 1)
	run := fill(block.Extent{Disk: 1, Start: 0, Count: 64}, 'x')
	put(t, w, 1, run)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The segment again, as the version before wrote it.
	old := r.segments[1].header
	old.version, old.id = 1, newID()
	head, cipher := old.encode(r.dataKey)
	c := contents{end: align}
	var body []byte
	for _, rec := range []record{
		{kind: kindRun, codec: run.Codec, extent: run.Extent, epoch: 1, length: uint32(len(run.Payload))},
		indexMark{kind: kindCommit, flags: block.Consistent, epoch: 1, runs: 1, time: time.Unix(1, 0).UnixNano()}.record(),
	} {
		sealed := make([]byte, rec.size())
		cipher.seal(sealed, rec, nil, run.Payload[:rec.length], c.end)
		c.add(located{rec, c.end})
		c.end += rec.size()
		body = append(body, sealed...)
	}
	if err := os.Remove(filepath.Join(r.dir, segmentName(1))); err != nil {
		t.Fatal(err)
	}
	f, err := osFS{}.Create(filepath.Join(r.dir, segmentName(1)), false)
	if err != nil {
		t.Fatal(err)
	}
	for off, b := range map[int64][]byte{0: head, align: body} {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(finish(f, cipher, c), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	w = mustBegin(t, r, 1)
	defer w.Close()
	put(t, w, 2, fill(block.Extent{Disk: 1, Start: 16, Count: 16}, 'y'))
	content := make([]byte, sumsDisk.Size)
	copy(content, bytes.Repeat([]byte{'x'}, 64*block.Size))
	copy(content[16*block.Size:], bytes.Repeat([]byte{'y'}, 16*block.Size))
	v, err := r.At(2)
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := v.AppendHashes(nil, block.Extent{Disk: 1, Count: sumsDisk.Blocks()})
	if err != nil || !slices.Equal(hashes, block.AppendHashes(nil, content, block.ChunkBlocks)) {
		t.Errorf("hashes are not those of the content: %v", err)
	}
}
