package store

import (
	"cmp"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"rehost/block"
)

// alignedBuffer returns n zero bytes that O_DIRECT accepts as a buffer.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+align)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (align - 1)
	return b[skip : int(skip)+n : int(skip)+n]
}

// A chunk is a batch of whole records that is written at once: aligned in memory
// and in its file, its end filled up by a pad record.
//
//	open (records are placed) -> closed (its pad is placed) -> written
//
// A record is encrypted into its place by whoever appends it; the chunk is
// written when it is closed and the last of them is done.
type chunk struct {
	seg     *segmentWriter
	base    uint64 // offset in the file
	buf     []byte
	used    int
	pending atomic.Int32 // who must be done before it may be written; the writer is one while it is open
}

// place returns where a record of size bytes goes. The caller has its pending.
func (c *chunk) place(size uint64) (dst []byte, offset uint64) {
	dst, offset = c.buf[c.used:c.used+int(size)], c.base+uint64(c.used)
	c.used += int(size)
	return dst, offset
}

// pad fills the chunk up to the alignment.
func (c *chunk) pad() {
	gap := int(alignUp(uint64(c.used))) - c.used
	if gap == 0 {
		return
	}
	bare := int(storedSize(0, 0))
	length := gap - bare - tagSize
	if length <= 0 && gap != bare {
		gap += align
		length += align
	}
	length = max(length, 0)
	dst, offset := c.place(uint64(gap))
	c.seg.cipher.seal(dst, record{kind: kindPad, length: uint32(length), durable: c.seg.durable.Load()}, nil, anyPayload[:length], offset)
}

// A segmentWriter is the segment that a [Writer] appends to.
type segmentWriter struct {
	header segmentHeader
	cipher *segmentCipher
	file   file

	// Guarded by Writer.mu.
	open      *chunk
	contents  contents
	allocated uint64

	closed  atomic.Uint64 // end of the last closed chunk
	durable atomic.Uint64 // all before it is durable
	syncMu  sync.Mutex    // one sync at a time; whoever waits may find it done

	io struct {
		sync.Mutex
		sync.Cond
		outstanding []uint64 // bases of chunks not yet written
		err         error
	}
}

func newSegmentWriter(h segmentHeader, c *segmentCipher, f file) *segmentWriter {
	s := &segmentWriter{header: h, cipher: c, file: f, contents: contents{end: align}}
	s.io.L = &s.io.Mutex
	s.closed.Store(align)
	s.durable.Store(align)
	return s
}

// begin adds a chunk at the end of the segment.
func (s *segmentWriter) begin(buf []byte) {
	c := &chunk{seg: s, base: s.contents.end, buf: buf}
	c.pending.Store(1)
	s.io.Lock()
	s.io.outstanding = append(s.io.outstanding, c.base)
	s.io.Unlock()
	s.open = c
}

// write writes a chunk that nobody changes any more.
func (s *segmentWriter) write(c *chunk) error {
	_, err := s.file.WriteAt(c.buf[:c.used], int64(c.base))
	s.io.Lock()
	defer s.io.Unlock()
	s.io.outstanding = slices.DeleteFunc(s.io.outstanding, func(base uint64) bool { return base == c.base })
	s.io.err = cmp.Or(s.io.err, err)
	s.io.Broadcast()
	return err
}

// sync makes all before end durable, and what else has been closed by then.
func (s *segmentWriter) sync(end uint64) error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if s.durable.Load() >= end {
		return nil
	}
	target := s.closed.Load()
	s.io.Lock()
	for s.io.err == nil && slices.ContainsFunc(s.io.outstanding, func(base uint64) bool { return base < target }) {
		s.io.Wait()
	}
	err := s.io.err
	s.io.Unlock()
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		return err
	}
	s.durable.Store(target)
	return nil
}

// finish seals a segment with contents c, whatever the file holds behind them.
func finish(f file, cipher *segmentCipher, c contents) error {
	t := trailer{end: c.end, index: alignUp(c.end), entries: uint64(len(c.entries)), marks: uint64(len(c.marks))}
	rand.Read(t.salt[:])
	t.length = t.entries*indexEntrySize + t.marks*indexMarkSize
	if err := t.validate(); err != nil {
		return err
	}
	entries := slices.Clone(c.entries)
	slices.SortFunc(entries, indexEntry.compare)
	plain := make([]byte, 0, t.length)
	for i, e := range entries {
		if i == 0 {
			t.first = e.epoch
		}
		t.first, t.last = min(t.first, e.epoch), max(t.last, e.epoch)
		plain = e.append(plain)
	}
	for _, m := range c.marks {
		plain = m.append(plain)
	}
	// The sync in between keeps the index from landing among records that were
	// to be cut off, where it would look like damage.
	for _, step := range []func() error{
		func() error { return f.Truncate(int64(c.end)) },
		func() error { return f.Truncate(int64(t.index)) }, // zeros up to the index
		f.Sync,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt(cipher.encodeIndex(t, plain), int64(t.index)); err != nil {
		return err
	}
	return f.Sync()
}

// compare is the order of an index: by disk and block.
func (e indexEntry) compare(o indexEntry) int {
	return cmp.Or(cmp.Compare(e.extent.Disk, o.extent.Disk), cmp.Compare(e.extent.Start, o.extent.Start),
		cmp.Compare(e.epoch, o.epoch), cmp.Compare(e.ordinal, o.ordinal), cmp.Compare(e.offset, o.offset))
}

// chunkBuffers lets writers that come and go share their buffers.
type chunkBuffers struct {
	tokens chan []byte // nil where the buffer is yet to be made
	size   int
}

func newChunkBuffers(n, size int) *chunkBuffers {
	b := &chunkBuffers{tokens: make(chan []byte, n), size: size + 2*align}
	for range n {
		b.tokens <- nil
	}
	return b
}

func (b *chunkBuffers) get() []byte {
	if buf := <-b.tokens; buf != nil {
		return buf
	}
	return alignedBuffer(b.size)
}

func (b *chunkBuffers) put(buf []byte) { b.tokens <- buf }

// entryOf is the index entry of a run record.
func entryOf(epoch block.Seq, ordinal uint64, run block.Run, offset uint64) indexEntry {
	return indexEntry{extent: run.Extent, codec: run.Codec, epoch: epoch, ordinal: ordinal, offset: offset, length: uint32(len(run.Payload)), sums: uint8(len(run.Sums))}
}
