package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
)

func newStore(t *testing.T, dir string) *Store {
	t.Helper()
	keys, err := CreateKeyFile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, keys, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fill(e block.Extent, b byte) block.Run {
	return block.Encode(e, bytes.Repeat([]byte{b}, int(e.Bytes())), true)
}

func mustBegin(t *testing.T, r *Replica, generation uint64) *Writer {
	t.Helper()
	w, err := r.Begin(t.Context(), generation, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func put(t *testing.T, w *Writer, seq block.Seq, runs ...block.Run) {
	t.Helper()
	for i, run := range runs {
		if err := w.Append(t.Context(), seq, uint64(i), run); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context(), block.Point{Seq: seq, Time: time.Unix(int64(seq), 0)}, uint64(len(runs)), block.Consistent); err != nil {
		t.Fatal(err)
	}
}

func byteAt(t *testing.T, r *Replica, seq block.Seq, blk uint64) byte {
	t.Helper()
	v, err := r.At(seq)
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.Disk(testDisks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := d.ReadAt(b, int64(blk*block.Size)); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

func want(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestWriter_Fencing(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := newStore(t, dir)
	r, err := s.Create(ctx, "s-1", testDisks, "")
	if err != nil {
		t.Fatal(err)
	}
	e := block.Extent{Disk: 1, Start: 3, Count: 2}
	old := mustBegin(t, r, 5)
	if err := old.Append(ctx, 1, 0, fill(e, 'a')); err != nil {
		t.Fatal(err)
	}
	_, err = r.Begin(ctx, 4, nil)
	want(t, "begin of a lower generation", err, ErrFenced)
	if err := old.Append(ctx, 1, 1, fill(e, 'a')); err != nil {
		t.Fatalf("a refused Begin fences nobody: %v", err)
	}

	w := mustBegin(t, r, 6)
	want(t, "append by the fenced", old.Append(ctx, 1, 2, fill(e, 'b')), ErrFenced)
	want(t, "commit by the fenced", old.Commit(ctx, block.Point{Seq: 1}, 2, 0), ErrFenced)
	want(t, "retract by the fenced", old.Retract(ctx, 0), ErrFenced)
	want(t, "close of the fenced", old.Close(), nil)
	want(t, "commit of another session's runs", w.Commit(ctx, block.Point{Seq: 1}, 2, 0), ErrIncomplete)
	put(t, w, 1, fill(e, 'c'))
	if got := byteAt(t, r, 1, 3); got != 'c' {
		t.Fatalf("got %c, want c", got)
	}

	other, err := Open(dir, s.keys, Options{}) // as another process would
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	r2, err := other.Replica(ctx, "s-1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = r2.Begin(ctx, 9, nil)
	want(t, "begin beside a writer", err, ErrLocked)
	want(t, "delete beside a writer", other.Delete(ctx, "s-1"), ErrLocked)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, "second close", w.Close(), nil)
	want(t, "append after close", w.Append(ctx, 2, 0, fill(e, 'd')), ErrClosed)
	w2 := mustBegin(t, r2, 9)
	put(t, w2, 2, fill(e, 'e'))
	if err := w2.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = r.Begin(ctx, 8, nil)
	want(t, "begin of a generation that another process has passed", err, ErrFenced)
	if err := r.Refresh(); err != nil {
		t.Fatal(err)
	}
	if got := byteAt(t, r, 2, 3); got != 'e' {
		t.Fatalf("got %c, want e", got)
	}
}

func TestWriter_Refuses(t *testing.T) {
	ctx := t.Context()
	r, err := newStore(t, t.TempDir()).Create(ctx, "s-1", testDisks, "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustBegin(t, r, 1)
	defer w.Close()
	put(t, w, 4, fill(block.Extent{Disk: 1, Start: 3, Count: 1}, 'a'))
	one := block.Extent{Disk: 1, Start: 0, Count: 1}
	want(t, "old epoch", w.Append(ctx, 4, 0, fill(one, 1)), ErrCommitted)
	want(t, "old commit", w.Commit(ctx, block.Point{Seq: 4}, 0, 0), ErrCommitted)
	want(t, "unknown disk", w.Append(ctx, 5, 0, fill(block.Extent{Disk: 9, Count: 1}, 1)), ErrNoDisk)
	want(t, "behind the end", w.Append(ctx, 5, 0, fill(block.Extent{Disk: 1, Start: 63, Count: 2}, 1)), block.ErrBadRun)
	want(t, "short payload", w.Append(ctx, 5, 0, block.Run{Extent: one, Codec: block.Raw, Payload: []byte("x")}), block.ErrBadRun)
	want(t, "no runs", w.Commit(ctx, block.Point{Seq: 5}, 1, 0), ErrIncomplete)
	if err := w.Commit(ctx, block.Point{Seq: 5}, 0, 1<<7); err == nil {
		t.Error("unknown flags were taken")
	}
	for range 2 { // the same ordinal
		if err := w.Append(ctx, 5, 3, fill(one, 1)); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "same ordinal", w.Commit(ctx, block.Point{Seq: 5}, 2, 0), ErrIncomplete)
	done, cancel := context.WithCancel(ctx)
	cancel()
	want(t, "cancelled", w.Append(done, 6, 0, fill(one, 1)), context.Canceled)
	want(t, "nothing of this broke it", w.Err(), nil)
	_, err = r.At(5)
	want(t, "no such point", err, ErrNoPoint)
}

// The order of ordinals decides, not the order of arrival.
func TestWriter_Ordinals(t *testing.T) {
	r, err := newStore(t, t.TempDir()).Create(t.Context(), "s-1", testDisks, "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustBegin(t, r, 1)
	for _, n := range []uint64{2, 0, 1} {
		if err := w.Append(t.Context(), 1, n, fill(block.Extent{Disk: 1, Start: n, Count: 5}, 'a'+byte(n))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context(), block.Point{Seq: 1}, 3, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got := ""
		for b := range uint64(8) {
			got += string(rune(byteAt(t, r, 1, b)))
		}
		if got != "abccccc\x00" {
			t.Fatalf("got %q", got)
		}
		if err := errors.Join(w.Close(), r.Refresh()); err != nil { // and again from the index
			t.Fatal(err)
		}
	}
}

func TestWriter_Retract(t *testing.T) {
	r, err := newStore(t, t.TempDir()).Create(t.Context(), "s-1", testDisks, "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustBegin(t, r, 1)
	defer w.Close()
	e := block.Extent{Disk: 1, Start: 3, Count: 1}
	for seq := range block.Seq(3) {
		put(t, w, seq+1, fill(e, 'a'+byte(seq)))
	}
	before, err := r.At(3)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Retract(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if got, ok := r.Latest(); !ok || got.Seq != 1 || byteAt(t, r, 1, 3) != 'a' {
		t.Fatalf("last point is %v", got)
	}
	_, err = r.At(2)
	want(t, "retracted point", err, ErrNoPoint)
	put(t, w, 2, fill(block.Extent{Disk: 1, Start: 9, Count: 1}, 'z'))
	if got := byteAt(t, r, 2, 3); got != 'a' {
		t.Fatalf("got %c, want a", got)
	}
	d, _ := before.Disk(1)
	b := make([]byte, 1)
	if _, err := d.ReadAt(b, 3*block.Size); err != nil || b[0] != 'c' {
		t.Fatalf("a view that was open before: %c, %v", b[0], err)
	}
}

// A session may bring other disks; older points keep theirs.
// TestReplica_Restarted: the agent's machine was restarted, and its disks are
// copied again over the replica that is there. Until that is done the last
// consistent point stays what it was, and stays the one to start from.
func TestReplica_Restarted(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	r, err := s.Create(t.Context(), "s-1", testDisks, "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustBegin(t, r, 1)
	if _, ok := r.Consistent(); ok {
		t.Fatal("an empty replica has a consistent point")
	}
	commit := func(seq block.Seq, flags block.Flags, run block.Run) {
		t.Helper()
		if err := w.Append(t.Context(), seq, 0, run); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context(), block.Point{Seq: seq, Time: time.Unix(int64(seq), 0)}, 1, flags); err != nil {
			t.Fatal(err)
		}
	}
	check := func(seq block.Seq, flags block.Flags, content byte) {
		t.Helper()
		p, ok := r.Consistent()
		if !ok || p.Seq != seq || p.Flags != flags {
			t.Fatalf("newest consistent point: got %v %v %v, want %v %v", p.Seq, p.Flags, ok, seq, flags)
		}
		if got := byteAt(t, r, seq, 5); got != content {
			t.Fatalf("point %v: block 5 begins with %q, want %q", seq, got, content)
		}
	}
	at := func(blk uint64) block.Extent { return block.Extent{Disk: testDisks[0].ID, Start: blk, Count: 1} }
	const whole = block.Consistent | block.InitialSyncDone
	commit(1, whole, fill(at(5), 'a'))
	w = mustBegin(t, r, 2)
	commit(2, 0, block.Run{Extent: block.Extent{Disk: testDisks[0].ID, Start: 4, Count: 3}})
	check(1, whole, 'a')
	if got := byteAt(t, r, 2, 5); got != 0 {
		t.Fatalf("a run of zeros left %q of what was there", got)
	}
	commit(3, 0, fill(at(7), 'c'))
	check(1, whole, 'a')
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, s.keys, Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if r, err = s.Replica(t.Context(), "s-1"); err != nil {
		t.Fatal(err)
	}
	check(1, whole, 'a')
	w = mustBegin(t, r, 3)
	commit(4, whole, fill(at(9), 'd'))
	check(4, whole, 0)
}

// TestHistory_NotConverging: an epoch stays open while the same blocks come
// again and again, not quite in order. What is kept of it follows the blocks, the
// content is that of the highest number, and a number given twice is found.
func TestHistory_NotConverging(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	const blocks, runs = 500, 4 * thinAt
	order := make([]uint64, runs)
	for i := range order {
		order[i] = uint64(i)
	}
	for i := 0; i+4096 <= runs; i += 2048 { // as connections overtake each other
		r.Shuffle(4096, func(a, b int) { order[i+a], order[i+b] = order[i+b], order[i+a] })
	}
	var h history
	h.begin(1)
	extents, most := make([]block.Extent, runs), 0
	for i := range extents {
		start := r.Uint64N(blocks)
		extents[i] = block.Extent{Disk: 1, Start: start, Count: 1 + r.Uint64N(min(8, blocks-start))}
	}
	for _, n := range order {
		h.run(1, indexEntry{extent: extents[n], epoch: 1, ordinal: n, offset: n})
		most = max(most, len(h.staged[1].list))
	}
	if most > thinAt+2*blocks {
		t.Errorf("%d pieces were kept for %d blocks", most, blocks)
	}
	if n := len(h.staged[1].ahead); n != 0 {
		t.Errorf("%d numbers are still waited for", n)
	}
	pieces, err := resolve(h.staged[1], runs)
	if err != nil {
		t.Fatal(err)
	}
	newest := map[uint64]uint64{}
	for n, e := range extents {
		for b := e.Start; b < e.End(); b++ {
			newest[b] = uint64(n)
		}
	}
	for _, p := range pieces {
		for b := p.start; b < p.end(); b++ {
			if want := newest[b]; p.offset != want || extents[want].Start+uint64(p.skip) != p.start {
				t.Fatalf("block %d is of run %d, want %d", b, p.offset, want)
			}
			delete(newest, b)
		}
	}
	if len(newest) > 0 {
		t.Errorf("%d blocks are missing", len(newest))
	}
	h.run(1, indexEntry{extent: extents[0], epoch: 1, ordinal: order[7]})
	_, err = resolve(h.staged[1], runs+1)
	want(t, "a number given twice", err, ErrIncomplete)
}

func TestReplica_Disks(t *testing.T) {
	r, err := newStore(t, t.TempDir()).Create(t.Context(), "s-1", testDisks[:1], "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustBegin(t, r, 1)
	put(t, w, 1, fill(block.Extent{Disk: 1, Start: 63, Count: 1}, 'a'))
	grown := []block.Disk{{ID: 1, Size: 1 << 40}, testDisks[1]}
	w, err = r.Begin(t.Context(), 2, grown)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	put(t, w, 2, fill(block.Extent{Disk: 1, Start: 1<<28 - 1, Count: 1}, 'b'),
		block.Run{Extent: block.Extent{Disk: 1, Start: 0, Count: 1 << 27}, Codec: block.Zero})
	for seq, n := range map[block.Seq]int{1: 1, 2: 2} {
		v, err := r.At(seq)
		if err != nil || len(v.Disks()) != n {
			t.Fatalf("point %v: %v, %v", seq, v.Disks(), err)
		}
	}
	if a, b := byteAt(t, r, 2, 63), byteAt(t, r, 2, 1<<28-1); a != 0 || b != 'b' {
		t.Fatalf("got %q and %q", a, b)
	}
	v, _ := r.At(2)
	d, _ := v.Disk(1)
	if got := d.Extents(); len(got) != 1 || got[0].Start != 1<<28-1 {
		t.Fatalf("got %v", got)
	}
}

// TestWriter_Full fills a small file system. What was acknowledged stays, the
// writer says why it stopped, and with more space it goes on.
func TestWriter_Full(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("SKIPPED: cannot mount a file system of limited size: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := newStore(t, filepath.Join(dir, "store"))
	t.Cleanup(func() { s.Close() })
	r, err := s.Create(t.Context(), "s-1", []block.Disk{{ID: 1, Size: 1 << 30}}, "")
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 64*block.Size)
	rand.NewChaCha8([32]byte{}).Read(noise)
	w := mustBegin(t, r, 1)
	seq := block.Seq(0)
	for err == nil {
		seq++
		e := block.Extent{Disk: 1, Start: uint64(seq) * 64, Count: 64}
		if err = w.Append(t.Context(), seq, 0, block.Encode(e, noise, false)); err == nil {
			err = w.Commit(t.Context(), block.Point{Seq: seq}, 1, 0)
		}
	}
	want(t, "full", err, ErrFull)
	want(t, "full", err, ErrBroken)
	want(t, "full", err, syscall.ENOSPC)
	want(t, "for ever", w.Append(t.Context(), seq+1, 0, fill(block.Extent{Disk: 1, Count: 1}, 1)), ErrBroken)
	w.Close()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	w = mustBegin(t, r, 1)
	last, _ := r.Latest()
	if last.Seq < seq-1 || last.Seq < 10 {
		t.Fatalf("last point is %d, %d was acknowledged", last.Seq, seq-1)
	}
	if _, err := r.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, w, last.Seq+1, fill(block.Extent{Disk: 1, Count: 1}, 'x'))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// A failing sync breaks the writer, even if the next one would work.
func TestWriter_Broken(t *testing.T) {
	m := newModel(t, rand.New(rand.NewPCG(1, 1)), newCrashFS(rand.New(rand.NewPCG(1, 1))))
	m.begin()
	e := block.Extent{Disk: 1, Count: 1}
	put(t, m.w, 1, fill(e, 'a'))
	cfs := m.fs.(*crashFS)
	cfs.mu.Lock()
	cfs.writes, cfs.failWith = 1, syscall.EIO // the write works, its sync does not
	cfs.mu.Unlock()
	if err := m.w.Append(t.Context(), 2, 0, fill(e, 'b')); err != nil {
		t.Fatal(err)
	}
	err := m.w.Commit(t.Context(), block.Point{Seq: 2}, 1, 0)
	want(t, "sync", err, ErrBroken)
	want(t, "sync", err, syscall.EIO)
	cfs.mu.Lock()
	cfs.failWith = nil
	cfs.mu.Unlock()
	want(t, "later", m.w.Commit(t.Context(), block.Point{Seq: 3}, 0, 0), ErrBroken)
	if got, _ := m.r.Latest(); got.Seq != 1 {
		t.Fatalf("last point is %v", got.Seq)
	}
	if errors.Is(err, ErrFull) {
		t.Error("an I/O error is not a full disk")
	}
}

func TestStore_CreateDelete(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := newStore(t, dir)
	for _, id := range []string{"", ".", "..", "../x", "a/b", ".hidden", strings.Repeat("x", 65)} {
		_, err := s.Create(ctx, id, testDisks, "")
		want(t, id, err, ErrBadID)
		want(t, id, s.Delete(ctx, id), ErrBadID)
	}
	_, err := s.Replica(ctx, "s-1")
	want(t, "missing", err, ErrNotFound)
	want(t, "missing", s.Delete(ctx, "s-1"), ErrNotFound)
	r, err := s.Create(ctx, "s-1", testDisks, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Create(ctx, "s-1", testDisks, "")
	want(t, "twice", err, ErrExists)
	w := mustBegin(t, r, 1)
	put(t, w, 1, fill(block.Extent{Disk: 1, Count: 1}, 'a'))
	v, err := r.At(1)
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := s.Replicas(); err != nil || len(ids) != 1 || ids[0] != "s-1" {
		t.Fatalf("got %v, %v", ids, err)
	}
	// The key goes first: a deletion that is cut short behind that leaves nothing
	// to read, and can be ended by another one or by Create.
	key := filepath.Join(dir, "s-1", keyName)
	held, err := os.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	wrapped, _ := os.ReadFile(key)
	if err := s.Delete(ctx, "s-1"); err != nil {
		t.Fatal(err)
	}
	left := make([]byte, len(wrapped))
	if _, err := held.ReadAt(left, 0); err != nil || bytes.Contains(left, []byte("blob")) {
		t.Fatalf("the wrapped key is still there: %q, %v", left, err)
	}
	want(t, "commit after delete", w.Commit(ctx, block.Point{Seq: 2}, 0, 0), ErrFenced)
	d, _ := v.Disk(1)
	if _, err := d.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("a deleted replica can be read")
	}
	if ids, err := s.Replicas(); err != nil || len(ids) != 0 {
		t.Fatalf("got %v, %v", ids, err)
	}
	for range 2 {
		if _, err := s.Create(ctx, "s-1", testDisks, ""); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, _ = Open(dir, s.keys, Options{})
		if err := os.Remove(key); err != nil { // as an interrupted Delete leaves it
			t.Fatal(err)
		}
	}
	s.Close()
}

func TestStore_ReadOnly(t *testing.T) {
	s := newStore(t, t.TempDir())
	if _, err := s.Create(t.Context(), "s-1", testDisks, ""); err != nil {
		t.Fatal(err)
	}
	ro, err := Open(s.dir, s.keys, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	r, err := ro.Replica(t.Context(), "s-1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Begin(t.Context(), 1, nil)
	want(t, "begin", err, ErrReadOnly)
	want(t, "delete", ro.Delete(t.Context(), "s-1"), ErrReadOnly)
	_, err = ro.Create(t.Context(), "s-2", testDisks, "")
	want(t, "create", err, ErrReadOnly)
}

func TestKeyFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			k, err := CreateKeyFile(name)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = k.ID()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("who came at once got other keys: %v", ids)
		}
	}
	k, err := OpenKeyFile(name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, data := t.Context(), bytes.Repeat([]byte{7}, 32)
	wrapped, err := k.Wrap(ctx, "", data, map[string]string{"a": "1"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Unwrap(ctx, wrapped, map[string]string{"a": "1"}); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %x, %v", got, err)
	}
	_, err = k.Unwrap(ctx, wrapped, map[string]string{"a": "2"})
	want(t, "other context", err, ErrKey)
	_, err = k.Wrap(ctx, "file:other", data, nil)
	want(t, "other key", err, ErrKey)
	other, err := CreateKeyFile(name + "2")
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Unwrap(ctx, wrapped, map[string]string{"a": "1"})
	want(t, "other file", err, ErrKey)
	if info, _ := os.Stat(name); info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
	if err := os.Chmod(name, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeyFile(name); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that the group can read: %v", err)
	}
}

func TestView_Restore(t *testing.T) {
	r, err := newStore(t, t.TempDir()).Create(t.Context(), "s-1", []block.Disk{{ID: 0, Size: 1<<34 + 100}}, "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustBegin(t, r, 1)
	defer w.Close()
	put(t, w, 1, fill(block.Extent{Start: 1 << 20, Count: 300 - 45}, 'q'), fill(block.Extent{Start: 1 << 22, Count: 1}, 'e'))
	v, err := r.At(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	paths, err := v.Restore(t.Context(), dir)
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(paths[0], &st); err != nil || st.Size != 1<<34+100 || st.Blocks*512 > 4<<20 {
		t.Fatalf("%d bytes, %d on disk, %v", st.Size, st.Blocks*512, err)
	}
	f, err := os.Open(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 2)
	for off, want := range map[int64]string{0: "\x00\x00", 1<<32 - 1: "\x00q", 1<<32 + 254*4096: "qq", 1 << 34: "ee", 1<<34 + 98: "ee"} {
		if _, err := f.ReadAt(b, off); err != nil || string(b) != want {
			t.Errorf("at %d: %q, %v, want %q", off, b, err, want)
		}
	}
	_, err = v.Restore(t.Context(), dir)
	want(t, "again", err, os.ErrExist)
	if _, err := os.Stat(paths[0]); err != nil {
		t.Error("an image that was there before is gone")
	}
}
