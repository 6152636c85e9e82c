package capture

import (
	"sync"
	"time"

	"github.com/klauspost/compress"

	"rehost/block"
)

// How much is spent on making a run smaller is measured, not guessed. A reader
// reads, compresses and puts one run after the other, so what counts is the time
// that the last two take together. One run in 64 is compressed at the level beside
// the one in use, too: the same content at both says what the dearer level costs
// and what it saves, and how long a byte takes to put, waiting for the link or the
// throttle included, says what the saving is worth. Where the processor is limited
// its time counts for more.
//
// What does not compress is found by a look at a few blocks of it, and not tried.
// What does is never sent as it is, however fast the link: the replica keeps it as
// it came.

const (
	codecProbe  = 64      // one run in so many is compressed at two levels
	codecFirst  = 4       // comparisons of two levels that are made at once
	codecMemory = .875    // of what was seen before, at each comparison
	codecWorth  = .03     // of the time, which a change has to save
	codecRecent = 4 << 20 // bytes put, of which about the last count
	codecSample = 4       // blocks of a run that are looked at
	codecFit    = .1      // of compress.Estimate: noise has less than .06, what compresses much more
)

// An effort is what came of compressing or putting, as sums that fade.
type effort struct{ ns, bytes float64 }

func (e *effort) add(d time.Duration, bytes int, memory float64) {
	e.ns, e.bytes = memory*e.ns+float64(d), memory*e.bytes+float64(bytes)
}

// A duel is two levels that have met at the same content.
type duel struct {
	met       int
	low, high effort
}

// A codec chooses levels. Safe for concurrent use.
type codec struct {
	now      func() time.Time
	compress func(level block.Level, x block.Extent, data, scratch []byte) block.Run // block.EncodeAt
	scratch  sync.Pool                                                               // of *[]byte

	mu     sync.Mutex // guards:
	level  block.Level
	least  block.Level // which the other side knows
	turn   uint64
	duels  [block.Strong]duel // by the lower level
	puts   effort
	weight float64 // of processor time, against time on the link
}

func newCodec(now func() time.Time) *codec {
	c := &codec{now: now, compress: block.EncodeAt, level: block.Light, least: block.Quick, weight: 1}
	c.scratch.New = func() any { b := make([]byte, block.MaxEncoded); return &b }
	return c
}

// encode makes the run of an extent. Its payload may alias data or scratch, which
// has room for a whole run.
func (c *codec) encode(x block.Extent, data, scratch []byte) block.Run {
	if !compresses(data) {
		return c.compress(block.Plain, x, data, nil)
	}
	level, rival := c.choose()
	run, took := c.timed(level, x, data, scratch)
	if rival == level || run.Codec == block.Zero {
		return run
	}
	other, otherTook := c.timed(rival, x, data, nil)
	c.compare(level, effort{float64(took), float64(len(run.Payload))}, rival, effort{float64(otherTook), float64(len(other.Payload))})
	if len(other.Payload) < len(run.Payload) {
		return other
	}
	return run
}

func (c *codec) timed(level block.Level, x block.Extent, data, scratch []byte) (block.Run, time.Duration) {
	began := c.now()
	run := c.compress(level, x, data, scratch)
	return run, c.now().Sub(began)
}

// compresses looks at some blocks, those in the middle of equal parts.
func compresses(data []byte) bool {
	blocks := len(data) / block.Size
	n := min(blocks, codecSample)
	for i := range n {
		at := (2*i + 1) * blocks / (2 * n) * block.Size
		if compress.Estimate(data[at:at+block.Size]) >= codecFit {
			return true
		}
	}
	return false
}

// choose returns the level for the next run, and one to compare it with, which is
// the same most of the time.
func (c *codec) choose() (level, rival block.Level) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.move()
	c.turn++
	up, down := c.level < block.Strong, c.level > c.least
	switch odd := c.turn/codecProbe%2 == 1; {
	case up && c.duels[c.level].met < codecFirst:
		return c.level, c.level + 1
	case down && c.duels[c.level-1].met < codecFirst:
		return c.level, c.level - 1
	case c.turn%codecProbe != 0:
		return c.level, c.level
	case up && (odd || !down):
		return c.level, c.level + 1
	case down:
		return c.level, c.level - 1
	}
	return c.level, c.level
}

// compare takes down what two levels made of the same content.
func (c *codec) compare(a block.Level, of effort, b block.Level, other effort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a > b {
		a, of, other = b, other, of
	}
	d := &c.duels[a]
	d.met++
	d.low.add(time.Duration(of.ns), int(of.bytes), codecMemory)
	d.high.add(time.Duration(other.ns), int(other.bytes), codecMemory)
}

// move goes to the level beside if that is better by now. The caller holds mu.
func (c *codec) move() {
	if c.level < block.Strong && c.gain(c.level) > codecWorth {
		c.level++
	} else if c.level > c.least && c.gain(c.level-1) < -codecWorth {
		c.level--
	}
}

// gain is what part of the time the level above low saves, below 0 costs. The
// caller holds mu.
func (c *codec) gain(low block.Level) float64 {
	d := &c.duels[low]
	if d.met < codecFirst || c.puts.bytes == 0 {
		return 0
	}
	byteTakes := c.puts.ns / c.puts.bytes
	all := c.weight*d.low.ns + byteTakes*d.low.bytes
	if all == 0 {
		return 0
	}
	return (byteTakes*(d.low.bytes-d.high.bytes) - c.weight*(d.high.ns-d.low.ns)) / all
}

// sent says how long it took to put so many bytes of payload.
func (c *codec) sent(n int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	memory := 1.0
	if c.puts.bytes > codecRecent {
		memory = .5
	}
	c.puts.add(took, n, memory)
}

// meet begins with another side, which knows S2 or not, behind another link.
func (c *codec) meet(knowsS2 bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.puts = effort{}
	if c.least = block.Light; knowsS2 {
		c.least = block.Quick
	}
	c.level = max(c.level, c.least)
}

// weigh says how much more an hour of processor costs than one on the link.
func (c *codec) weigh(w float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.weight = w
}

// current is the level in use.
func (c *codec) current() block.Level {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.level
}
