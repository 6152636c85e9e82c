package capture

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/zeebo/blake3"
)

// compareShift makes a granule as long as the longest run: 1 MiB, for one hash.
const compareShift = 8

// A compareTracker is a [Tracker] without the kernel's help: every round reads
// everything and sends what differs from what was sent. Its round is a point at
// T if no write was in flight or issued between T and the round's end: then
// nothing on the disks changed, and all of it was read as it was at T.
type compareTracker struct {
	layout  *layout
	sources []*source
	sysfs   string
	reason  string
	drain   time.Duration // a write's way from being in flight to being counted

	base []diskstats // at the flip
	err  error
	// hash of each granule as last sent, by bit of the layout; readers touch
	// different ones. Zero: unknown.
	sent [][32]byte
}

func newCompareTracker(sysfs string, sources []*source, l *layout, reason string) (*compareTracker, error) {
	t := &compareTracker{layout: l, sources: sources, sysfs: sysfs, reason: reason, drain: 20 * time.Millisecond, sent: make([][32]byte, l.words*64)}
	for _, s := range sources {
		on, err := fields(sysBlock(sysfs, s.major, s.minor)+"/queue/iostats", 1)
		if err != nil {
			return nil, &DiskError{Disk: s.disk.Name, Op: "open", Err: err}
		}
		if on[0] != 1 {
			return nil, &DiskError{Disk: s.disk.Name, Op: "open", Err: fmt.Errorf("%w: without tracking its I/O statistics are needed: echo 1 > /sys/block/.../queue/iostats", ErrNotSupported)}
		}
	}
	return t, nil
}

// Method returns [Compare], and why the kernel does not track.
func (t *compareTracker) Method() (Method, string) { return Compare, t.reason }

// Skipped is never: statistics miss nothing.
func (t *compareTracker) Skipped() (uint64, error) { return 0, nil }

func (t *compareTracker) Prepare() error { return nil }

func (t *compareTracker) Flip() { t.base, t.err = t.stats() }

func (t *compareTracker) stats() (out []diskstats, err error) {
	for _, s := range t.sources {
		st, e := readDiskstats(sysBlock(t.sysfs, s.major, s.minor))
		if e != nil {
			err = errors.Join(err, &DiskError{Disk: s.disk.Name, Op: "audit", Err: e})
		}
		out = append(out, st)
	}
	return out, err
}

func (t *compareTracker) Pending(*Set) {}

func (t *compareTracker) Changed(into *Set) error {
	for i, p := range t.layout.disks {
		into.Add(i, 0, p.granules)
	}
	return t.err
}

func (t *compareTracker) Conflict(int, uint64, uint64) bool { return false }

// Settle looks for writes since the flip. First at what is in flight, then, after
// a moment, at what is completed: a write that is in neither had been completed
// and counted before the flip, or is issued after the last read.
func (t *compareTracker) Settle(ctx context.Context) (bool, error) {
	now, err := t.stats()
	if err != nil {
		return false, err
	}
	if err := sleep(ctx, t.drain); err != nil {
		return false, err
	}
	later, err := t.stats()
	if err != nil {
		return false, err
	}
	for i, b := range t.base {
		if b.inFlight+now[i].inFlight+later[i].inFlight != 0 || now[i].writes != b.writes || later[i].writes != b.writes {
			return false, nil
		}
	}
	return true, nil
}

func (t *compareTracker) same(disk int, first, n uint64, data []byte) bool {
	h := blake3.Sum256(data) // n is 1: a granule is the longest run
	p := &t.sent[t.layout.bit(disk, first)]
	if *p == h {
		return true
	}
	*p = h
	return false
}

func (t *compareTracker) forget(lost *Set) {
	for w, v := range lost.words {
		for ; v != 0; v &= v - 1 {
			t.sent[w*64+bits.TrailingZeros64(v)] = [32]byte{}
		}
	}
}

func (t *compareTracker) Close() error { return nil }
