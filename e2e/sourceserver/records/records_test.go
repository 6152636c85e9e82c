package records_test

import (
	"bytes"
	"testing"

	"rehost/e2e/sourceserver/records"
)

// A ring in memory.
type ring []byte

func (r ring) WriteAt(p []byte, off int64) (int, error) { return copy(r[off:], p), nil }

var run = [16]byte{1, 2, 3}

func logOf(t *testing.T, last uint64) ring {
	t.Helper()
	r := make(ring, records.Slots*records.SlotSize)
	from := uint64(1)
	if last > records.Slots {
		from = last - records.Slots + 1
	}
	for n := from; n <= last; n++ {
		if err := records.New(run, n).WriteTo(r); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func verify(t *testing.T, r ring) records.Report {
	t.Helper()
	rep, err := records.Verify(bytes.NewReader(r))
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestVerify(t *testing.T) {
	for _, last := range []uint64{0, 1, 300, records.Slots - 1, records.Slots, records.Slots + 1, 3*records.Slots + 17} {
		rep := verify(t, logOf(t, last))
		if !rep.OK() || rep.Last != last || rep.Torn || uint64(rep.Count) != min(last, records.Slots) {
			t.Errorf("last %d: got %+v", last, rep)
		}
	}
}

// TestVerify_Damage makes one change each and asserts exactly what is seen.
func TestVerify_Damage(t *testing.T) {
	slot := func(n uint64) int { return int(n%records.Slots) * records.SlotSize }
	for name, c := range map[string]struct {
		last     uint64
		damage   func(r ring)
		gaps     uint64
		bad      int
		torn     bool
		wantLast uint64
	}{
		"flipped byte":   {300, func(r ring) { r[slot(120)+100] ^= 1 }, 1, 1, false, 300},
		"zeroed":         {300, func(r ring) { clear(r[slot(120):][:records.SlotSize]) }, 1, 0, false, 300},
		"beginning lost": {300, func(r ring) { clear(r[slot(1):][:records.SlotSize]) }, 1, 0, false, 300},
		"torn tail":      {300, func(r ring) { r[slot(300)+500] ^= 1 }, 0, 0, true, 299},
		"torn tail, ring went round": {9000, func(r ring) { r[slot(9000)+500] ^= 1 },
			0, 0, true, 8999},
		"old content of one slot": {2 * records.Slots, func(r ring) { records.New(run, records.Slots-5).WriteTo(r) },
			1, 1, false, 2 * records.Slots},
		"a record in another's slot": {300, func(r ring) { copy(r[slot(7):], r[slot(8):][:records.SlotSize]) },
			1, 1, false, 300},
		"garbage behind the end": {300, func(r ring) { r[slot(400)] = 9 }, 0, 1, false, 300},
	} {
		r := logOf(t, c.last)
		c.damage(r)
		rep := verify(t, r)
		if rep.Gaps != c.gaps || rep.Bad != c.bad || rep.Torn != c.torn || rep.Last != c.wantLast {
			t.Errorf("%s: got %+v, want %+v", name, rep, c)
		}
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		a, b uint64
		ok   bool
	}{{300, 300, true}, {300, 299, true}, {300, 298, false}, {299, 300, false}, {0, 0, true}, {0, 1, false}} {
		v, err := records.Judge(bytes.NewReader(logOf(t, c.a)), bytes.NewReader(logOf(t, c.b)))
		if err != nil || v.OK != c.ok || v.Ahead != (c.b > c.a) {
			t.Errorf("%d, %d: got %+v, %v", c.a, c.b, v, err)
		}
	}
}
