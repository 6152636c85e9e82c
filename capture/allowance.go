package capture

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// An allowance holds the process to so many processors on average, by having bulk
// work wait: the first copy, a rescan, comparing. All that the process does is on
// the account, but the rounds of a replica that is up to date never wait, since a
// late read is a conflict and another round: they rest longer between points, up
// to Options.Idle. What the kernel does for others while they write, and the loop
// or RAID threads behind a disk, is on nobody's account here.
//
// The zero value gives everything. Safe for concurrent use.
type allowance struct {
	used func() time.Duration // processor time of this process, since its start
	now  func() time.Time

	mu    sync.Mutex // guards:
	cores float64    // 0: no limit
	debt  float64    // processor seconds taken beyond what was given; below 0 a credit
	seen  time.Duration
	at    time.Time // when that was so
}

const (
	allowanceCredit = 250 * time.Millisecond // what is not taken lasts so long
	allowanceLook   = 250 * time.Millisecond // a limit that changed is seen by then
)

// set changes the limit. What was taken under another one is forgotten.
func (a *allowance) set(cores float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cores = max(0, cores); cores != a.cores {
		a.cores, a.debt, a.seen, a.at = cores, 0, a.used(), a.now()
	}
}

func (a *allowance) limit() float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cores
}

// owed is how long nothing more should be done.
func (a *allowance) owed() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cores == 0 {
		return 0
	}
	now, used := a.now(), a.used()
	a.debt += (used - a.seen).Seconds() - a.cores*now.Sub(a.at).Seconds()
	a.debt = max(a.debt, -a.cores*allowanceCredit.Seconds())
	a.seen, a.at = used, now
	return max(0, time.Duration(a.debt/a.cores*float64(time.Second)))
}

// wait returns when bulk work may go on.
func (a *allowance) wait(ctx context.Context, sleep func(context.Context, time.Duration) error) error {
	for owed := a.owed(); owed > 0; owed = a.owed() {
		if err := sleep(ctx, min(owed, allowanceLook)); err != nil {
			return err
		}
	}
	return nil
}

// processTime is the processor time of all threads of this process, in the kernel
// and outside.
func processTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0 // every kernel that runs this has the clock
	}
	return time.Duration(t.Nano())
}
