package fault

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// ErrImpossible is returned by [Recorder.Judge] for a state that no power cut could
// have left.
var ErrImpossible = errors.New("no power cut could have left this")

// A Verdict is about a state that a power cut could have left.
type Verdict struct {
	At      time.Time     // the first instant at which it could
	Slack   time.Duration // how long it could have been there: how sharply it was looked at
	Flying  int           // sectors that a write, which is there or not, was in flight to then
	Cut     int           // sectors that hold a part of a write, byte for byte
	Sectors int
}

// Judge says whether what disks hold is what a power cut at one instant T would
// have left on all of them together, T not before after (the time that a recovery
// point states) and before before (a moment at which the point was there).
//
// With issued the moment before a write is handed to the kernel, and completed the
// one after it has returned, a state is possible at T if every sector holds either
// the newest write that was completed before T, or the one that was in flight at T
// (issued by then, and not completed). So nothing that was completed is missing,
// nothing is there that was issued later, and a write of many sectors may be torn
// between them. All sectors are held against the same T. Therefore also the order
// between any two writes is kept, on one disk or on two: where B was issued after A
// had completed and B is there, T lies behind the completion of A, and A, or what
// replaced it, is there.
//
// Loop devices do not write a sector at once. So one that is half written counts as
// in flight if each byte is of the write that was in flight at T or of the one
// before it.
//
// It is not judged whether T is the instant at which the tracker's generation
// changed, only whether there is one; between a write's two moments lies more
// than the kernel took for it, and Slack says how much is left to T.
func (r *Recorder) Judge(after, before time.Time, disks []io.ReaderAt) (Verdict, error) {
	if d := drift() - r.drift; d.Abs() > 2*time.Millisecond {
		return Verdict{}, fmt.Errorf("the machine's clock was set by %v while writes were recorded: nothing can be judged", d)
	}
	return r.judge(after.UnixNano(), before.UnixNano(), disks)
}

// A trial narrows down when a state can have been there.
type trial struct {
	lo, hi       int64 // from, and before
	first, last  string
	gaps         [][2]int64 // not from, and before
	flying       [][2]int64
	cut, sectors int
}

func (h *history) judge(after, before int64, disks []io.ReaderAt) (Verdict, error) {
	t := trial{lo: after, hi: before, first: "it says itself that it is not from before " + stamp(after), last: "it was there at " + stamp(before)}
	buf := make([]byte, longestWrite*sectorSize)
	for d, disk := range disks {
		for at := 0; at < len(h.sectors[d]); at += longestWrite {
			n := min(longestWrite, len(h.sectors[d])-at)
			if k, err := disk.ReadAt(buf[:n*sectorSize], int64(at)*sectorSize); k < n*sectorSize {
				return Verdict{}, fmt.Errorf("judge disk %d: %w", d, err)
			}
			if err := h.hear(&t, d, at, buf[:n*sectorSize]); err != nil {
				return Verdict{}, err
			}
		}
	}
	return t.verdict()
}

// hear takes the evidence of some sectors.
func (h *history) hear(t *trial, disk, first int, data []byte) error {
	h.mu[disk].RLock()
	defer h.mu[disk].RUnlock()
	for i := range len(data) / sectorSize {
		if err := t.sector(disk, first+i, h.sectors[disk][first+i], data[i*sectorSize:][:sectorSize]); err != nil {
			return err
		}
	}
	return nil
}

// A stay is when a sector can have held what it holds: from the issue of a write
// to the completion of the next, or, of a write that is cut, while it was in flight.
type stay struct {
	from, to int64
	of       *write
	next     *write // nil: there is none
}

func (t *trial) sector(disk, sector int, list []*write, data []byte) error {
	t.sectors++
	stays, cut, err := staysOf(disk, sector, list, data, t.lo)
	if err != nil {
		return fmt.Errorf("%w: d%d, sector %d %w", ErrImpossible, disk, sector, err)
	}
	if cut {
		t.cut++
	}
	if from := stays[0]; from.from > t.lo {
		t.lo, t.first = from.from, fmt.Sprintf("d%d, sector %d holds %v, issued at %s", disk, sector, from.of, stamp(from.from))
	}
	for i, s := range stays[1:] {
		if end := stays[i].to; end < s.from {
			t.gaps = append(t.gaps, [2]int64{end, s.from})
		}
	}
	if to := stays[len(stays)-1]; to.to < t.hi {
		t.hi, t.last = to.to, fmt.Sprintf("d%d, sector %d holds %v and not %v, completed at %s", disk, sector, to.of, to.next, stamp(to.to))
	}
	for _, w := range slices.Compact([]*write{stays[0].of, stays[0].next}) {
		if w != nil && w.end() > t.lo && w.issued < t.hi {
			t.flying = append(t.flying, [2]int64{w.issued, w.end()})
		}
	}
	return nil
}

// staysOf finds which writes a sector can hold the data of. What was over long
// before lo is not looked for among zeros, except where there is nothing else.
func staysOf(disk, sector int, list []*write, data []byte, lo int64) (stays []stay, cut bool, err error) {
	at := func(i int) stay {
		s := stay{from: list[i].issued, to: never, of: list[i]}
		if i+1 < len(list) {
			s.next, s.to = list[i+1], list[i+1].end()
		}
		return s
	}
	if isZero(data) {
		for i := len(list) - 1; i >= 0; i-- {
			s := at(i)
			if len(stays) > 0 && s.to <= lo {
				break
			}
			if s.of.zeroes() {
				stays = append(stays, s)
			}
		}
		if slices.Reverse(stays); len(stays) > 0 {
			return stays, false, nil
		}
	}
	if l, whole := decode(data); whole {
		i, found := slices.BinarySearchFunc(list, l.number, func(w *write, n uint64) int { return cmp.Compare(w.number, n) })
		if !found || list[i].zeroes() || list[i].label(sector) != l {
			return nil, false, fmt.Errorf("holds write %d/%d of d%d, sector %d, which was never made there", l.writer, l.number, l.disk, l.sector)
		}
		return []stay{at(i)}, false, nil
	}
	for i := len(list) - 1; i > 0 && (len(stays) == 0 || list[i].end() > lo); i-- {
		if mixed(list[i-1], list[i], sector, data) {
			stays = append(stays, stay{from: list[i].issued, to: list[i].end(), of: list[i], next: list[i]})
		}
	}
	if len(stays) == 0 {
		return nil, false, fmt.Errorf("holds what was never written, which begins with %x", data[:48])
	}
	slices.Reverse(stays)
	return stays, true, nil
}

// mixed reports whether each byte is of one of two writes.
func mixed(a, b *write, sector int, data []byte) bool {
	old, young := make([]byte, sectorSize), make([]byte, sectorSize)
	a.encode(sector, old)
	b.encode(sector, young)
	for i, v := range data {
		if v != old[i] && v != young[i] {
			return false
		}
	}
	return true
}

// verdict looks for an instant that fits all evidence.
func (t *trial) verdict() (Verdict, error) {
	at, end := t.lo, t.hi
	slices.SortFunc(t.gaps, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	for _, gap := range t.gaps {
		if gap[0] > at {
			end = min(end, gap[0])
			break
		}
		at = max(at, gap[1])
	}
	if at >= end {
		reason := ""
		if t.lo < t.hi {
			reason = ", and zeros fit no instant in between"
		}
		return Verdict{}, fmt.Errorf("%w: %s; but %s%s", ErrImpossible, t.first, t.last, reason)
	}
	v := Verdict{At: time.Unix(0, at), Slack: time.Duration(end - at), Cut: t.cut, Sectors: t.sectors}
	for _, f := range t.flying {
		if f[0] <= at && at < f[1] {
			v.Flying++
		}
	}
	return v, nil
}

var zeros [sectorSize]byte

func isZero(b []byte) bool { return string(b) == string(zeros[:]) }

func stamp(nanoseconds int64) string {
	return time.Unix(0, nanoseconds).UTC().Format("15:04:05.000000")
}
