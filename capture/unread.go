package capture

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"rehost/block"
)

// A disk with bad sectors is replicated but for these. The rules are:
//
//   - A granule that cannot be read leaves staged for unread, and stays owed. While
//     there is one, what else was read is committed as progress, and no point is.
//   - It is tried again when it is written to, since that is when a disk puts a
//     good sector in the bad one's place, and otherwise after a delay that grows.
//   - Whoever takes it from todo to read it again takes it from unread too.
//   - A disk that fails all over must not keep the others waiting: after so many
//     failures in a round it is read in longer runs only, and then no more.
//   - What was only read to spare a cut, and is not to be sent, may fail.

// Numbers of a round on a disk that fails.
const (
	fineFailures = 128 // reads that may fail in search of the blocks that do
	maxFailures  = 256 // reads that may fail at all
)

// Delays until what could not be read is tried again grow between these.
const (
	minRetry = time.Second
	maxRetry = 10 * time.Minute
)

// unread is what the engine knows of granules that cannot be read. Of Run's
// goroutine, but for what is guarded.
type unread struct {
	set     *Set // nil: everything can be read
	retryAt time.Time
	delay   time.Duration
	logged  string      // disk and offset
	due     atomic.Bool // it is to be tried at once

	mu       sync.Mutex // guards, while readers run:
	failures []int      // in this round, of each disk
	aside    []piece    // read in vain, still staged
	cause    *DiskError // of the lowest of them
}

// Retry has what could not be read tried again in the next round, as after a disk
// was mended. It may be called at any time.
func (e *Engine) Retry() { e.unread.due.Store(true) }

// begin readies a round: what is due is to be read again.
func (u *unread) begin(e *Engine) {
	u.failures = make([]int, len(e.disks))
	if due := u.due.Swap(false); u.set == nil || !due && e.now().Before(u.retryAt) {
		return
	} else if due {
		u.delay = 0
	}
	u.retryAt = time.Time{}
	e.todo.addAll(u.set)
}

// settle takes what the readers put aside from staged, where an acknowledgement
// would end that it is owed.
func (u *unread) settle(e *Engine) {
	for _, p := range u.aside {
		lo := e.layout.bit(p.disk, p.first)
		e.staged.remove(lo, lo+p.n)
		if u.set == nil {
			u.set = newSet(&e.layout)
		}
		u.set.Add(p.disk, p.first, p.n)
	}
	u.aside = nil
}

// end closes a round, and reports whether everything could be read.
func (u *unread) end(e *Engine) bool {
	if u.set != nil && u.set.count == 0 {
		u.set = nil
	}
	if u.set == nil {
		if u.logged != "" {
			e.log.Info("what could not be read can be read again")
		}
		u.cause, u.delay, u.logged = nil, 0, ""
		e.status.unreadable(nil)
		return true
	}
	if u.retryAt.IsZero() {
		u.delay = min(max(minRetry, 2*u.delay), maxRetry)
		u.retryAt = e.now().Add(u.delay)
	}
	err := u.report(e)
	if at := fmt.Sprint(err.First.Disk, " ", err.First.Offset); at != u.logged { // not at every attempt
		e.log.Warn("a disk cannot be read everywhere; the rest goes on, without points", "err", err)
		u.logged = at
	}
	e.status.unreadable(err)
	return false
}

// report says where the first range is and how much there is.
func (u *unread) report(e *Engine) *UnreadError {
	out := &UnreadError{}
	for lo, ok := u.set.next(0); ok; {
		disk, g := e.layout.disk(lo)
		hi := lo + 1
		for end := e.layout.bit(disk, e.layout.disks[disk].granules); hi < end && u.set.has(hi); {
			hi++
		}
		x := e.layout.extent(disk, g, hi-lo)
		length := min(x.Bytes(), e.disks[disk].Size-x.Offset())
		if out.Ranges == 0 {
			out.First = DiskError{Disk: e.disks[disk].Name, Op: "read", Offset: x.Offset(), Err: u.cause.Err}
			if c := u.cause; c.Disk == out.First.Disk && c.Offset >= x.Offset() && c.Offset < x.Offset()+length {
				out.First = *c
			}
		}
		out.Ranges, out.Bytes = out.Ranges+1, out.Bytes+length
		lo, ok = u.set.next(hi)
	}
	return out
}

// take is asked with the leg's lock held: these granules are read again.
func (u *unread) take(lo, hi uint64) {
	if u.set != nil {
		u.set.remove(lo, hi)
	}
}

// within reports whether there is any of it in [lo, hi).
func (u *unread) within(lo, hi uint64) bool {
	if u.set == nil {
		return false
	}
	bit, ok := u.set.next(lo)
	return ok && bit < hi
}

// hopeless reports whether a disk has failed so often in this round that no more
// is tried.
func (u *unread) hopeless(disk int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failures[disk] >= maxFailures
}

// failed notes a read that failed, and reports whether less at a time is to be
// tried, to find where.
func (u *unread) failed(disk int) (finer bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failures[disk]++
	return u.failures[disk] < fineFailures
}

// putAside notes granules that were not read, because of err where that is not nil.
func (u *unread) putAside(e *Engine, p piece, first, n uint64, err *DiskError) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.aside = append(u.aside, p.without(first, n)...)
	if err != nil && (u.cause == nil || err.Disk != u.cause.Disk || err.Offset < u.cause.Offset) {
		u.cause = err
	}
}

// without are parts of a piece, less its gaps.
func (p piece) without(first, n uint64) (out []piece) {
	end := first + n
	for _, g := range p.gaps {
		if lo, hi := max(first, g.first), min(end, g.first+g.n); lo < hi {
			if lo > first {
				out = append(out, piece{disk: p.disk, first: first, n: lo - first})
			}
			first = hi
		}
	}
	if first < end {
		out = append(out, piece{disk: p.disk, first: first, n: end - first})
	}
	return out
}

// badRead is the error of a read that may succeed elsewhere on the disk; nil
// where another one fails all the same.
func badRead(err error) *DiskError {
	var d *DiskError
	if errors.As(err, &d) && d.Op == "read" && !errors.Is(d, ErrGone) {
		return d
	}
	return nil
}

// locate finds the first block of a granule that cannot be read.
func (e *Engine) locate(p piece, first uint64, err *DiskError, buf []byte) *DiskError {
	x := e.layout.extent(p.disk, first, 1)
	for x.Count > 1 {
		half := block.Extent{Start: x.Start, Count: x.Count / 2}
		switch bad := badRead(e.read(p.disk, half, buf[:half.Bytes()])); bad {
		case nil:
			x.Start, x.Count = half.End(), x.Count-half.Count
		default:
			x, err = half, bad
		}
	}
	at := *err
	at.Offset = x.Offset()
	return &at
}

// An UnreadError says that ranges of the disks cannot be read. The rest is
// replicated, and they are tried again; until then there is no further point.
type UnreadError struct {
	First  DiskError // the first range: its offset, and why
	Ranges int
	Bytes  int64 // of all ranges
}

func (e *UnreadError) Error() string {
	return fmt.Sprintf("%v; in all %d bytes in %d ranges cannot be read, the rest goes on", &e.First, e.Bytes, e.Ranges)
}

// Unwrap returns the [*DiskError] of the first range.
func (e *UnreadError) Unwrap() error { return &e.First }
