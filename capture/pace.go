package capture

import (
	"context"
	"sync"
	"time"
)

// Reading a whole disk must not make the server's own work wait for it. A pacer
// watches how long the disks' writes take, which are never ours, and slows bulk
// reading, that of the first copy and of a rescan, when they take much longer
// than without it. What it costs is time; the rounds of a replica that is up to
// date are not slowed, since late reads make conflicts.
//
// Where there are any, reading pauses for a window every half minute, to see what they take without it.

const (
	paceWindow = 250 * time.Millisecond // of an observation
	paceQuiet  = 30 * time.Second       // between two windows without reading
	paceWrites = 8                      // fewer in a window say nothing
	paceFactor = 4                      // so many times as long is too long
	paceLeast  = 5 * time.Millisecond   // shorter never is
	paceMost   = 50 * time.Millisecond  // longer is, where it is not known what it is without reading
	paceCredit = 20 * time.Millisecond  // of the rate, while nothing is read
	paceFloor  = 4 << 20                // bytes a second that are always read
	paceGrowth = 1.15                   // a window in which nothing was too long
)

// writeTimes are a disk's writes and how long they took, both since the start.
type writeTimes struct {
	writes uint64
	took   time.Duration
}

// A pacer is safe for concurrent use.
type pacer struct {
	look func() ([]writeTimes, error) // at each disk
	now  func() time.Time

	mu    sync.Mutex // guards:
	began time.Time  // of the window; zero before the first
	seen  []writeTimes
	bytes int64           // read in the window
	quiet bool            // nothing is read in the window
	rest  time.Time       // when the next one without reading is due
	alone []time.Duration // what a write took without reading, lately, by disk; 0: unknown
	rate  float64         // bytes a second; 0: no limit
	debt  float64         // bytes read beyond the rate, at owed; below 0 a credit
	owed  time.Time
}

// pace is called after n bytes were read, and returns when the next may be.
func (p *pacer) pace(ctx context.Context, n int64, sleep func(context.Context, time.Duration) error) error {
	if p == nil {
		return nil
	}
	for {
		wait := p.spend(n)
		if wait <= 0 {
			return nil
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		n = 0
	}
}

// spend counts n bytes and answers how long to wait before more are read.
func (p *pacer) spend(n int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.bytes += n
	if now.Sub(p.began) >= paceWindow {
		p.turn(now)
	}
	if p.quiet {
		return p.began.Add(paceWindow).Sub(now)
	}
	if p.rate == 0 {
		p.debt = 0
		return 0
	}
	p.debt = max(-p.rate*paceCredit.Seconds(), p.debt-p.rate*now.Sub(p.owed).Seconds()) + float64(n)
	p.owed = now
	return min(paceWindow, time.Duration(p.debt/p.rate*float64(time.Second)))
}

// turn ends a window, learns from it, and begins the next one.
func (p *pacer) turn(now time.Time) {
	seen, err := p.look()
	if err != nil { // an audit or a read will say why
		p.quiet, p.rate, p.began, p.bytes = false, 0, now, 0
		return
	}
	if p.alone == nil {
		p.alone = make([]time.Duration, len(seen))
	}
	busy := len(p.seen) == len(seen) && p.learn(seen, float64(p.bytes)/now.Sub(p.began).Seconds())
	p.began, p.seen, p.bytes = now, seen, 0
	if p.quiet = busy && now.After(p.rest); p.quiet {
		p.rest = now.Add(paceQuiet)
	}
}

// learn takes what a window showed, in which so many bytes a second were read. It
// reports whether anybody wrote.
func (p *pacer) learn(seen []writeTimes, read float64) (busy bool) {
	slow := false
	for i, s := range seen {
		n := s.writes - p.seen[i].writes
		if n < paceWrites {
			continue
		}
		busy = true
		took := (s.took - p.seen[i].took) / time.Duration(n)
		if p.quiet {
			p.alone[i] = took
			continue
		}
		least := paceMost
		if p.alone[i] > 0 {
			least = max(paceLeast, paceFactor*p.alone[i])
		}
		slow = slow || took > least
	}
	switch {
	case p.quiet:
	case slow && p.rate == 0:
		p.rate = max(paceFloor, read/2)
	case slow:
		p.rate = max(paceFloor, p.rate/2)
	case p.rate > 0 && p.rate > 2*read: // it is not what holds reading back
		p.rate = 0
	case p.rate > 0:
		p.rate *= paceGrowth
	}
	return busy
}

// limit is what bulk reading is held to, in bytes a second; 0 is no limit.
func (p *pacer) limit() float64 {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rate
}
