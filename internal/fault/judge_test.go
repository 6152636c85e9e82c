package fault

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

const (
	madeDisks   = 2
	madeSectors = 96
)

// A made is a history out of thin air, which ends at a known moment.
type made struct {
	history
	rnd *rand.Rand
	end int64
}

// make lets writers that own every fourth sector, or a run in the second half, write
// one behind the other, in time that nobody has to wait for.
func newMade(seed uint64) *made {
	m := &made{history: newHistory([]int64{madeSectors, madeSectors}), rnd: rand.New(rand.NewPCG(seed, 1))}
	for id := range recordWriters {
		now := int64(1000) + m.rnd.Int64N(100)
		for n := range 120 {
			w := &write{writer: id, number: uint64(n + 1), disk: m.rnd.IntN(madeDisks), issued: now, count: 1}
			if w.first = m.rnd.IntN(madeSectors/2/recordWriters)*recordWriters + id; m.rnd.IntN(2) == 0 {
				own := madeSectors / 2 / recordWriters
				w.count = 1 + m.rnd.IntN(own)
				w.first = madeSectors/2 + id*own + m.rnd.IntN(own-w.count+1)
			}
			if m.rnd.IntN(4) == 0 {
				w.kind = kindDiscard
			}
			now += 1 + m.rnd.Int64N(50)
			w.completed.Store(now)
			m.begin(w)
			now += 1 + m.rnd.Int64N(20)
			m.end = max(m.end, now)
		}
	}
	return m
}

// A state is which write each sector of each disk holds, by its place in history.
type state [madeDisks][madeSectors]int

// at is what a power cut leaves: of what is in flight any part.
func (m *made) at(t int64) (s state) {
	for d := range madeDisks {
		for i, list := range m.sectors[d] {
			for s[d][i]+1 < len(list) && list[s[d][i]+1].end() <= t {
				s[d][i]++
			}
			if next := s[d][i] + 1; next < len(list) && list[next].issued <= t && m.rnd.IntN(2) == 0 {
				s[d][i]++
			}
		}
	}
	return s
}

// holds reports what write a sector has in a state.
func (m *made) holds(s *state, d, i int) *write { return m.sectors[d][i][s[d][i]] }

func (m *made) disks(s state) (out []*bytes.Reader) {
	for d := range madeDisks {
		b := make([]byte, madeSectors*sectorSize)
		for i := range madeSectors {
			m.holds(&s, d, i).encode(i, b[i*sectorSize:][:sectorSize])
		}
		out = append(out, bytes.NewReader(b))
	}
	return out
}

func readers(list []*bytes.Reader) (out []io.ReaderAt) {
	for _, r := range list {
		out = append(out, r)
	}
	return out
}

// TestJudge_Legal: whatever a power cut leaves is taken for what it is.
func TestJudge_Legal(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	flying := 0
	for n := range uint64(16) {
		m := newMade(seed + n)
		for range 50 {
			at := 900 + m.rnd.Int64N(m.end-800)
			v, err := m.judge(at-m.rnd.Int64N(20), at+1+m.rnd.Int64N(20), readers(m.disks(m.at(at))))
			if err != nil {
				t.Fatalf("seed %d: the state at %d: %v", seed+n, at, err)
			}
			flying += v.Flying
		}
	}
	if flying < 400 {
		t.Errorf("only %d sectors were in flight: nothing is shown", flying)
	}
}

// TestJudge_Impossible breaks a legal state in one place; each must be seen,
// whenever the broken state is not by chance a legal one of another instant.
func TestJudge_Impossible(t *testing.T) {
	// Each changes s, the state at t, and says what it did, if it found where to.
	mutations := map[string]func(m *made, s *state, t int64) bool{
		"a sector is older": func(m *made, s *state, t int64) bool {
			d, i := m.rnd.IntN(madeDisks), m.rnd.IntN(madeSectors)
			if w := m.holds(s, d, i); s[d][i] == 0 || w.end() > t || w.zeroes() && m.sectors[d][i][s[d][i]-1].zeroes() {
				return false
			}
			s[d][i]--
			return true
		},
		"a sector is from the future": func(m *made, s *state, t int64) bool {
			d, i := m.rnd.IntN(madeDisks), m.rnd.IntN(madeSectors)
			list := m.sectors[d][i]
			// Issued after something had completed that is still missing.
			if next := s[d][i] + 1; next >= len(list) || list[next].issued <= t+25 || list[next].zeroes() && list[next-1].zeroes() {
				return false
			}
			s[d][i]++
			return true
		},
		"a discard is lost": func(m *made, s *state, t int64) bool {
			d, i := m.rnd.IntN(madeDisks), m.rnd.IntN(madeSectors)
			if w := m.holds(s, d, i); s[d][i] == 0 || w.kind != kindDiscard || w.end() > t || m.sectors[d][i][s[d][i]-1].zeroes() {
				return false
			}
			s[d][i]--
			return true
		},
		"a write on A is missing that one on B came after": func(m *made, s *state, t int64) bool {
			i, j := m.rnd.IntN(madeSectors), m.rnd.IntN(madeSectors)
			a, b := m.holds(s, 0, i), m.holds(s, 1, j)
			if s[0][i] == 0 || s[1][j] == 0 || a.zeroes() || a.end() > b.issued {
				return false
			}
			s[0][i]--
			return true
		},
		"the half of it is from later": func(m *made, s *state, t int64) bool {
			later := m.at(t + 200)
			s[1] = later[1]
			return m.at(t + 200)[0] != s[0] // or nothing happened on the other half
		},
	}
	for name, mutate := range mutations {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			seed := rand.Uint64()
			made, caught := 0, 0
			for n := uint64(0); made < 150 && n < 1000; n++ {
				m := newMade(seed + n)
				for range 100 {
					at := 1100 + m.rnd.Int64N(m.end-1600)
					s := m.at(at)
					if !mutate(m, &s, at) {
						continue
					}
					made++
					// The bounds are as wide as they may be: the state alone must show it.
					_, err := m.judge(0, m.end, readers(m.disks(s)))
					if errors.Is(err, ErrImpossible) {
						caught++
						continue
					}
					if want := m.possible(&s); err != nil || !want {
						t.Fatalf("seed %d at %d: got %v, though the state is possible: %v", seed+n, at, err, want)
					}
				}
			}
			t.Logf("%d of %d were impossible, and seen", caught, made)
			if made < 150 || caught < made/2 {
				t.Errorf("seed %d: only %d of %d were seen", seed, caught, made)
			}
		})
	}
}

// possible asks the same as the judge, instant by instant.
func (m *made) possible(s *state) bool {
	for t := range m.end {
		if m.possibleAt(s, t) {
			return true
		}
	}
	return false
}

func (m *made) possibleAt(s *state, t int64) bool {
	for d := range madeDisks {
		for i, list := range m.sectors[d] {
			fits := false
			for k, w := range list {
				same := k == s[d][i] || w.zeroes() && m.holds(s, d, i).zeroes()
				fits = fits || same && w.issued <= t && (k+1 == len(list) || t < list[k+1].end())
			}
			if !fits {
				return false
			}
		}
	}
	return true
}

// TestJudge_Bounds: a point that is older than it says, or newer than when it was
// seen, is none.
func TestJudge_Bounds(t *testing.T) {
	m := newMade(rand.Uint64())
	for range 100 {
		at := 1100 + m.rnd.Int64N(m.end-1600)
		disks := m.disks(m.at(at))
		for name, bounds := range map[string][2]int64{"older than it says": {at + 150, m.end}, "newer than when it was seen": {0, at - 150}} {
			if _, err := m.judge(bounds[0], bounds[1], readers(disks)); !errors.Is(err, ErrImpossible) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestJudge_Foreign: what was never written there is not taken for anything.
func TestJudge_Foreign(t *testing.T) {
	m := newMade(rand.Uint64())
	good := m.at(m.end)
	whole := func() (b []byte, i int) {
		b = make([]byte, madeSectors*sectorSize)
		if _, err := m.disks(good)[0].ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		for i = 0; m.holds(&good, 0, i).zeroes(); i++ {
		}
		return b, i * sectorSize
	}
	for name, spoil := range map[string]func(b []byte, at int){
		"a bit is wrong":             func(b []byte, at int) { b[at+100] ^= 4 },
		"another sector":             func(b []byte, at int) { copy(b[at+sectorSize:], b[at:at+sectorSize]) },
		"the same of another sector": func(b []byte, at int) { m.holds(&good, 0, at/sectorSize).encode(at/sectorSize+1, b[at:][:sectorSize]) },
		"the same of another writer": func(b []byte, at int) {
			w := m.holds(&good, 0, at/sectorSize)
			(&write{number: w.number, writer: w.writer + 1, issued: w.issued}).encode(at/sectorSize, b[at:][:sectorSize])
		},
		"noise": func(b []byte, at int) { b[at] = 'X' },
		"never issued": func(b []byte, at int) {
			(&write{number: 1e6, first: at / sectorSize, count: 1}).encode(at/sectorSize, b[at:])
		},
		"a part of the others": func(b []byte, at int) { clear(b[at+sectorSize/2:][:sectorSize/4]) },
	} {
		b, at := whole()
		spoil(b, at)
		if _, err := m.judge(m.end, m.end+1, []io.ReaderAt{bytes.NewReader(b), m.disks(good)[1]}); !errors.Is(err, ErrImpossible) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJudge_Cut: a sector of which a part is of the write in flight is possible
// while it is in flight, and at no other time.
func TestJudge_Cut(t *testing.T) {
	h := newHistory([]int64{1})
	first := &write{number: 1, count: 1, issued: 10}
	first.completed.Store(20)
	second := &write{number: 2, count: 1, issued: 30}
	second.completed.Store(40)
	h.begin(first)
	h.begin(second)
	b, young := make([]byte, sectorSize), make([]byte, sectorSize)
	first.encode(0, b)
	second.encode(0, young)
	copy(b[300:], young[300:])
	for _, c := range []struct {
		after, before int64
		ok            bool
	}{{0, 100, true}, {35, 36, true}, {0, 30, false}, {40, 100, false}} {
		v, err := h.judge(c.after, c.before, []io.ReaderAt{bytes.NewReader(b)})
		if c.ok != (err == nil) || c.ok && v.Cut != 1 {
			t.Errorf("between %d and %d: %+v, %v", c.after, c.before, v, err)
		}
	}
}
