package capture

import (
	"math/bits"
	"sync/atomic"

	"rehost/block"
)

// A layout places the granules of all disks in one row of bits, each disk from
// a word of its own. The kernel's dirty bitmap has the same layout.
type layout struct {
	shift uint // a granule is 2^shift blocks
	disks []place
	words int
}

type place struct {
	word0    int
	granules uint64
	blocks   uint64
}

func newLayout(disks []block.Disk, shift uint) layout {
	l := layout{shift: shift}
	for _, d := range disks {
		g := (d.Blocks() + 1<<shift - 1) >> shift
		l.disks = append(l.disks, place{word0: l.words, granules: g, blocks: d.Blocks()})
		l.words += int((g + 63) / 64)
	}
	return l
}

// disk finds the disk that a bit of the row belongs to, and the granule there.
func (l *layout) disk(bit uint64) (disk int, granule uint64) {
	for disk = len(l.disks) - 1; disk > 0 && uint64(l.disks[disk].word0)*64 > bit; disk-- {
	}
	return disk, bit - uint64(l.disks[disk].word0)*64
}

func (l *layout) bit(disk int, granule uint64) uint64 {
	return uint64(l.disks[disk].word0)*64 + granule
}

// extent is the blocks of n granules, cut at the disk's end. Its Disk is left
// to the caller, who knows the id.
func (l *layout) extent(disk int, granule, n uint64) block.Extent {
	start := granule << l.shift
	return block.Extent{Start: start, Count: min(n<<l.shift, l.disks[disk].blocks-start)}
}

// A Set is a set of granules of all disks: a bit each, and a bit for each word
// that is not empty, so that a small set in a large space is found fast. Its
// memory does not depend on what is in it.
type Set struct {
	layout *layout
	words  []uint64
	some   []uint64
	count  uint64 // granules

	// owed, if there is any, is memory that outlives this process: what is added to
	// the set stands there first. Removing leaves it; see settle.
	owed []uint64
}

func newSet(l *layout) *Set {
	return &Set{layout: l, words: make([]uint64, l.words), some: make([]uint64, (l.words+63)/64)}
}

// addWord adds the granules of one word.
func (s *Set) addWord(w int, v uint64) {
	if v == 0 || w >= len(s.words) {
		return
	}
	if s.owed != nil && v&^s.owed[w] != 0 { // atomic for its order: before whatever the caller does next
		atomic.StoreUint64(&s.owed[w], s.owed[w]|v)
	}
	s.count += uint64(bits.OnesCount64(v &^ s.words[w]))
	s.words[w] |= v
	s.some[w/64] |= 1 << (w % 64)
}

func (s *Set) removeWord(w int, v uint64) {
	s.count -= uint64(bits.OnesCount64(v & s.words[w]))
	if s.words[w] &^= v; s.words[w] == 0 {
		s.some[w/64] &^= 1 << (w % 64)
	}
}

// eachWord calls f with the mask of every word that bits [lo, hi) touch.
func eachWord(lo, hi uint64, f func(w int, mask uint64)) {
	for lo < hi {
		w, end := lo/64, min(hi, (lo/64+1)*64)
		f(int(w), ^uint64(0)<<(lo%64)&(^uint64(0)>>(63-(end-1)%64)))
		lo = end
	}
}

// Add adds n granules of a disk; what lies beyond its end is left out.
func (s *Set) Add(disk int, first, n uint64) {
	p := s.layout.disks[disk]
	first = min(first, p.granules)
	lo := s.layout.bit(disk, first)
	eachWord(lo, lo+min(n, p.granules-first), s.addWord)
}

// removeDisk removes every granule of a disk that a range of bytes touches.
func (s *Set) removeDisk(disk int, from, to int64) {
	p, granule := s.layout.disks[disk], int64(block.Size)<<s.layout.shift
	first, end := min(uint64(from/granule), p.granules), min(uint64((to+granule-1)/granule), p.granules)
	s.remove(s.layout.bit(disk, first), s.layout.bit(disk, end))
}

func (s *Set) remove(lo, hi uint64) { eachWord(lo, hi, s.removeWord) }

// addAll adds another set of the same layout.
func (s *Set) addAll(o *Set) {
	for i, v := range o.some {
		for ; v != 0; v &= v - 1 {
			w := i*64 + bits.TrailingZeros64(v)
			s.addWord(w, o.words[w])
		}
	}
}

// removeAll removes what is in another set of the same layout.
func (s *Set) removeAll(o *Set) {
	for i, v := range o.some {
		for ; v != 0; v &= v - 1 {
			w := i*64 + bits.TrailingZeros64(v)
			s.removeWord(w, o.words[w])
		}
	}
}

func (s *Set) clear() {
	for i, v := range s.some {
		for ; v != 0; v &= v - 1 {
			s.words[i*64+bits.TrailingZeros64(v)] = 0
		}
		s.some[i] = 0
	}
	s.count = 0
}

// settle empties the set: its granules are no longer owed, but for those in one
// of left, which may be nil.
func (s *Set) settle(left ...*Set) {
	for i, v := range s.some {
		for ; v != 0 && s.owed != nil; v &= v - 1 {
			w := i*64 + bits.TrailingZeros64(v)
			owed := uint64(0)
			for _, l := range left {
				if l != nil {
					owed |= l.words[w]
				}
			}
			atomic.StoreUint64(&s.owed[w], owed)
		}
	}
	s.clear()
}

// forgo removes what is in another set of the same layout, and no longer owes it:
// bit by bit, since other granules of the same words stay owed.
func (s *Set) forgo(o *Set) {
	for i, v := range o.some {
		for ; v != 0; v &= v - 1 {
			w := i*64 + bits.TrailingZeros64(v)
			if s.owed != nil {
				atomic.StoreUint64(&s.owed[w], s.owed[w]&^o.words[w])
			}
			s.removeWord(w, o.words[w])
		}
	}
}

func (s *Set) has(bit uint64) bool { return s.words[bit/64]>>(bit%64)&1 != 0 }

// next is the first bit of the set at or behind from.
func (s *Set) next(from uint64) (bit uint64, ok bool) {
	w := int(from / 64)
	if w >= len(s.words) {
		return 0, false
	}
	if v := s.words[w] >> (from % 64); v != 0 {
		return from + uint64(bits.TrailingZeros64(v)), true
	}
	w++
	for i := w / 64; i < len(s.some); i++ {
		v := s.some[i]
		if i == w/64 {
			v &= ^uint64(0) << (w % 64)
		}
		if v != 0 {
			w = i*64 + bits.TrailingZeros64(v)
			return uint64(w)*64 + uint64(bits.TrailingZeros64(s.words[w])), true
		}
	}
	return 0, false
}

// countDisk is the number of granules of one disk in the set.
func (s *Set) countDisk(disk int) (n uint64) {
	p := s.layout.disks[disk]
	end := p.word0 + int((p.granules+63)/64)
	for w := p.word0; w < end; {
		if w%64 == 0 && s.some[w/64] == 0 {
			w += 64
			continue
		}
		n += uint64(bits.OnesCount64(s.words[w]))
		w++
	}
	return n
}

// countBesides is the number of granules of one disk in the set and not in another.
func (s *Set) countBesides(disk int, o *Set) (n uint64) {
	p := s.layout.disks[disk]
	for w := p.word0; w < p.word0+int((p.granules+63)/64); w++ {
		n += uint64(bits.OnesCount64(s.words[w] &^ o.words[w]))
	}
	return n
}
