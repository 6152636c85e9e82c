package block

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// An Extent is Count consecutive blocks of one disk, from block Start.
type Extent struct {
	Disk         DiskID
	Start, Count uint64
}

// End is the first block behind the extent.
func (e Extent) End() uint64 { return e.Start + e.Count }

// Offset is where the extent begins on its disk, in bytes.
func (e Extent) Offset() int64 { return int64(e.Start * Size) }

// Bytes is the extent's length in bytes.
func (e Extent) Bytes() int64 { return int64(e.Count * Size) }

// String returns disk:start+count, in blocks.
func (e Extent) String() string { return fmt.Sprintf("%s:%d+%d", e.Disk, e.Start, e.Count) }

func (e Extent) compare(o Extent) int {
	return cmp.Or(cmp.Compare(e.Disk, o.Disk), cmp.Compare(e.Start, o.Start))
}

// Extents is a set of blocks: extents in order of disk and start, none empty,
// none touching the next. The zero value is the empty set. Operations return
// new sets and leave their operands as they were.
type Extents []Extent

// NewExtents makes a set of extents given in any order, overlapping or not.
func NewExtents(list ...Extent) Extents {
	list = slices.DeleteFunc(slices.Clone(list), func(e Extent) bool { return e.Count == 0 })
	slices.SortFunc(list, Extent.compare)
	out := list[:0]
	for _, e := range list {
		if n := len(out); n > 0 && out[n-1].Disk == e.Disk && out[n-1].End() >= e.Start {
			out[n-1].Count = max(out[n-1].End(), e.End()) - out[n-1].Start
			continue
		}
		out = append(out, e)
	}
	return Extents(out)
}

// Blocks is the number of blocks in the set.
func (s Extents) Blocks() (n uint64) {
	for _, e := range s {
		n += e.Count
	}
	return n
}

// Bytes is the number of bytes in the set.
func (s Extents) Bytes() int64 { return int64(s.Blocks() * Size) }

// Union is the set of blocks in s or in o.
func (s Extents) Union(o Extents) Extents {
	return NewExtents(append(slices.Clone([]Extent(s)), o...)...)
}

// Intersect is the set of blocks in both s and o.
func (s Extents) Intersect(o Extents) Extents {
	var out Extents
	for i, j := 0, 0; i < len(s) && j < len(o); {
		a, b := s[i], o[j]
		if lo, hi := max(a.Start, b.Start), min(a.End(), b.End()); a.Disk == b.Disk && lo < hi {
			out = append(out, Extent{a.Disk, lo, hi - lo})
		}
		if a.Disk < b.Disk || a.Disk == b.Disk && a.End() <= b.End() {
			i++
		} else {
			j++
		}
	}
	return out
}

// Subtract is the set of blocks in s and not in o.
func (s Extents) Subtract(o Extents) Extents {
	var out Extents
	j := 0
	for _, e := range s {
		for j < len(o) && (o[j].Disk < e.Disk || o[j].Disk == e.Disk && o[j].End() <= e.Start) {
			j++
		}
		for k := j; k < len(o) && o[k].Disk == e.Disk && o[k].Start < e.End(); k++ {
			if o[k].Start > e.Start {
				out = append(out, Extent{e.Disk, e.Start, o[k].Start - e.Start})
			}
			end := min(o[k].End(), e.End())
			e.Count, e.Start = e.End()-end, end
		}
		if e.Count > 0 {
			out = append(out, e)
		}
	}
	return out
}

// Contains reports whether block b of disk d is in the set.
func (s Extents) Contains(d DiskID, b uint64) bool {
	i := sort.Search(len(s), func(i int) bool { return s[i].Disk > d || s[i].Disk == d && s[i].End() > b })
	return i < len(s) && s[i].Disk == d && s[i].Start <= b
}

// Split cuts the set into extents of at most n blocks, in order.
func (s Extents) Split(n uint64) []Extent {
	var out []Extent
	for _, e := range s {
		for e.Count > n {
			out = append(out, Extent{e.Disk, e.Start, n})
			e.Start, e.Count = e.Start+n, e.Count-n
		}
		out = append(out, e)
	}
	return out
}
