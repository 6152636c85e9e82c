package capture

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"rehost/block"
)

// TestSet_Model compares every operation with the same one on a plain map, for
// disks whose ends lie within a word, at its end, and behind a summary word.
func TestSet_Model(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	disks := []block.Disk{{Size: 100*block.Size + 1}, {Size: 64 * block.Size}, {Size: 9000 * block.Size}}
	l := newLayout(disks, 0)
	s, o := newSet(&l), newSet(&l)
	want, other := map[uint64]bool{}, map[uint64]bool{}
	random := func() (disk int, first, n uint64) {
		disk = r.IntN(len(disks))
		return disk, r.Uint64N(l.disks[disk].granules + 2), r.Uint64N(200)
	}
	for step := range 4000 {
		disk, first, n := random()
		switch r.IntN(8) {
		case 0, 1, 2:
			s.Add(disk, first, n)
			for g := first; g < min(first+n, l.disks[disk].granules); g++ {
				want[l.bit(disk, g)] = true
			}
		case 3, 4:
			lo := l.bit(disk, min(first, l.disks[disk].granules))
			hi := l.bit(disk, min(first+n, l.disks[disk].granules))
			s.remove(lo, hi)
			for b := lo; b < hi; b++ {
				delete(want, b)
			}
		case 5:
			o.Add(disk, first, n)
			for g := first; g < min(first+n, l.disks[disk].granules); g++ {
				other[l.bit(disk, g)] = true
			}
		case 6:
			s.addAll(o)
			for b := range other {
				want[b] = true
			}
		case 7:
			if r.IntN(20) == 0 {
				s.clear()
				clear(want)
			}
		}
		if s.count != uint64(len(want)) {
			t.Fatalf("seed %d, step %d: count %d, want %d", seed, step, s.count, len(want))
		}
		perDisk := make([]uint64, len(disks))
		for b := range want {
			d, g := l.disk(b)
			if !s.has(b) || l.bit(d, g) != b || g >= l.disks[d].granules {
				t.Fatalf("seed %d, step %d: bit %d is missing or belongs to %d/%d", seed, step, b, d, g)
			}
			perDisk[d]++
		}
		seen := 0
		for b, ok := s.next(0); ok; b, ok = s.next(b + 1) {
			if seen++; !want[b] {
				t.Fatalf("seed %d, step %d: next finds %d", seed, step, b)
			}
		}
		if seen != len(want) {
			t.Fatalf("seed %d, step %d: next finds %d bits, want %d", seed, step, seen, len(want))
		}
		for d, n := range perDisk {
			if got := s.countDisk(d); got != n {
				t.Fatalf("seed %d, step %d: disk %d has %d, want %d", seed, step, d, got, n)
			}
		}
	}
}

// TestSet_Forgo: what is given up is neither in the set nor owed any more, and what
// shares words with it is both.
func TestSet_Forgo(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLayout([]block.Disk{{Size: 1000 * block.Size}, {Size: 77 * block.Size}}, 0)
	s, free := newSet(&l), newSet(&l)
	s.owed = make([]uint64, l.words)
	for d, p := range l.disks {
		for g := range p.granules {
			if r.IntN(2) == 0 {
				s.Add(d, g, 1)
			}
			if r.IntN(2) == 0 {
				free.Add(d, g, 1)
			}
		}
	}
	staged := uint64(r.IntN(1000)) // owed, but read already
	s.Add(0, staged, 1)
	s.remove(staged, staged+1)
	before := slices.Clone(s.words)
	owed := slices.Clone(s.owed)
	s.forgo(free)
	n := uint64(0)
	for w := range before {
		if s.words[w] != before[w]&^free.words[w] || s.owed[w] != owed[w]&^free.words[w] {
			t.Fatalf("seed %d: word %d: %b of %b without %b; owed %b of %b", seed, w, s.words[w], before[w], free.words[w], s.owed[w], owed[w])
		}
		n += uint64(bits.OnesCount64(s.words[w]))
	}
	if s.count != n {
		t.Fatalf("seed %d: count %d, want %d", seed, s.count, n)
	}
}

// TestKernelShift keeps a server's bitmap in bounds, whatever its disks.
func TestKernelShift(t *testing.T) {
	for size, want := range map[int64]uint{1 << 30: 0, 1 << 40: 0, 2 << 40: 1, 16 << 40: 4, 64 << 40: 6} {
		disks := []block.Disk{{Size: size}}
		if got := kernelShift(disks); got != want {
			t.Errorf("%d GiB: shift %d, want %d", size>>30, got, want)
		}
	}
}

// BenchmarkSet_Owed is what it costs a round to owe what it takes: 4,096 words, one
// bit of each, which is far more than a round usually has.
func BenchmarkSet_Owed(b *testing.B) {
	l := newLayout([]block.Disk{{Size: 64 << 30}}, 0)
	for name, owed := range map[string][]uint64{"not pinned": nil, "pinned": make([]uint64, l.words)} {
		b.Run(name, func(b *testing.B) {
			s, rest := newSet(&l), newSet(&l)
			s.owed = owed
			for b.Loop() {
				for w := range 4096 {
					s.addWord(w*64, 1)
				}
				s.settle(rest)
			}
		})
	}
}
