package fault

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"sync"
	"sync/atomic"
)

// A sector is what a disk writes whole or not at all. A written one is
//
//	offset  size  field
//	     0     8  magic "RHSECTOR"
//	     8     8  disk
//	    16     8  sector
//	    24     8  writer
//	    32     8  number of the write among the writer's, from 1
//	    40     8  when it was issued, in nanoseconds since 1970
//	    48   460  of the write and the sector alone
//	   508     4  CRC-32C of all before
//
// with integers in little-endian order.
const (
	sectorSize  = 512
	sectorMagic = "RHSECTOR"
	sectorSum   = sectorSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A kind is what a write does; all but the first leave zeros, or touch nothing.
type kind int

const (
	kindWrite   kind = iota
	kindDiscard      // BLKDISCARD
	kindPunch        // zeros that need not be kept
	kindZero         // zeros that are kept
	kindFlush
	kinds
)

func (k kind) String() string {
	return [...]string{"write", "discard", "punch", "zeros", "flush"}[k]
}

const (
	always = math.MinInt64 // before everything
	never  = math.MaxInt64
)

// A write changes sectors of a disk between two moments of the wall's clock.
type write struct {
	kind         kind
	writer       int
	number       uint64
	disk         int
	first, count int          // sectors
	issued       int64        // not after the kernel had it
	completed    atomic.Int64 // not before the kernel was done with it; 0 while it may not be
}

func (w *write) String() string {
	if w.number == 0 {
		return "what was there before"
	}
	return fmt.Sprintf("%v %d/%d of d%d:%d+%d", w.kind, w.writer, w.number, w.disk, w.first, w.count)
}

// end is when it was over.
func (w *write) end() int64 {
	if at := w.completed.Load(); at != 0 {
		return at
	}
	return never
}

func (w *write) zeroes() bool { return w.kind != kindWrite }

// encode is what one of its sectors holds afterwards.
func (w *write) encode(sector int, b []byte) {
	if w.zeroes() {
		clear(b)
		return
	}
	copy(b, sectorMagic)
	word := uint64(sector)<<32 ^ w.number<<8 ^ uint64(w.writer)
	for at := 48; at < sectorSize; at += 8 {
		word = word*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(b[at:], word)
	}
	l := w.label(sector)
	for i, v := range []int{l.disk, l.sector, l.writer, int(l.number), int(l.issued)} {
		binary.LittleEndian.PutUint64(b[8+8*i:], uint64(v))
	}
	binary.LittleEndian.PutUint32(b[sectorSum:], crc32.Checksum(b[:sectorSum], castagnoli))
}

// A label is what a written sector says of itself.
type label struct {
	disk, sector, writer int
	number               uint64
	issued               int64
}

func (w *write) label(sector int) label { return label{w.disk, sector, w.writer, w.number, w.issued} }

// decode reads a written sector; ok is false for one that is not whole.
func decode(b []byte) (l label, ok bool) {
	if string(b[:8]) != sectorMagic || crc32.Checksum(b[:sectorSum], castagnoli) != binary.LittleEndian.Uint32(b[sectorSum:]) {
		return l, false
	}
	at := func(i int) int { return int(binary.LittleEndian.Uint64(b[8+8*i:])) }
	return label{at(0), at(1), at(2), uint64(at(3)), int64(at(4))}, true
}

// A history is every write to every sector, in order.
type history struct {
	mu      []sync.RWMutex // of each disk, guards:
	sectors [][][]*write   // of each disk and sector, oldest first; one is not issued before the one before it is over
}

// newHistory is of disks of so many sectors, which hold zeros.
func newHistory(sizes []int64) history {
	h := history{mu: make([]sync.RWMutex, len(sizes))}
	before := &write{kind: kindZero, issued: always}
	before.completed.Store(always)
	for _, n := range sizes {
		list := make([][]*write, n)
		for i := range list {
			list[i] = []*write{before}
		}
		h.sectors = append(h.sectors, list)
	}
	return h
}

// begin adds a write that is about to be issued.
func (h *history) begin(w *write) {
	h.mu[w.disk].Lock()
	defer h.mu[w.disk].Unlock()
	for i := w.first; i < w.first+w.count; i++ {
		h.sectors[w.disk][i] = append(h.sectors[w.disk][i], w)
	}
}
