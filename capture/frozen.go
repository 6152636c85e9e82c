package capture

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Where programs write faster than the disks can be read no round settles. After a
// while file systems are frozen for one round: docs/capture.md. A freeze proves
// nothing here: the round is a point by the same tests as any other, so that a
// freezer that does nothing, or too little, costs time and no truth.

// DefaultFreezeAfter is the default of [Options]' FreezeAfter.
const DefaultFreezeAfter = time.Minute

const (
	freezeMost  = 2 * time.Second  // asked of the freezer
	syncWithin  = 10 * time.Second // before it
	heldMost    = 32 << 20
	approaches  = 4       // rounds in which what a sync has written is read, before a freeze
	slowestRead = 1 << 20 // bytes a second, taken for as long as nothing was measured
)

// A Freezer keeps programs from writing to the file systems on some disks, for a
// moment. freeze.Client is one. It is used by one goroutine.
type Freezer interface {
	// Prepare finds the file systems on the disks of these numbers (unix.Mkdev), and
	// syncs them.
	Prepare(ctx context.Context, disks []uint64) error
	// Freeze returns once nothing writes to them. After granted, at the latest, that
	// ends by itself, counted from when Freeze was called.
	Freeze(ctx context.Context, most time.Duration) (granted time.Duration, err error)
	// Thaw ends what was begun, whatever that is, and says for how long programs were
	// kept waiting. The error says that this had ended before.
	Thaw() (frozen time.Duration, err error)
}

// A brake is what the engine knows about freezing.
type brake struct {
	freezer Freezer       // nil: nothing is ever frozen
	after   time.Duration // without a point
	most    time.Duration
	room    int64     // bytes read under a freeze that are kept to be sent after it
	at      time.Time // not before
	speed   speed     // of reading
	last    int64     // bytes that the last round read
}

// A speed is how fast it goes lately. A round weighs half as much as the next one.
type speed struct {
	read   float64 // bytes
	spent  float64 // seconds of rounds
	single float64 // seconds of reads, those at the same time one after the other

	bytes, nanos atomic.Int64 // of reads, to come
}

// add says that n bytes were read at once. Safe for concurrent use.
func (s *speed) add(n int64, took time.Duration) {
	s.bytes.Add(n)
	s.nanos.Add(int64(took))
}

// since adds what was read since it was last called.
func (s *speed) since(d time.Duration) (n int64) {
	if n = s.bytes.Swap(0); n > 0 {
		s.read, s.spent, s.single = s.read/2+float64(n), s.spent/2+d.Seconds(), s.single/2+time.Duration(s.nanos.Swap(0)).Seconds()
	}
	return n
}

// takes is how long reading n bytes takes, and sending those that there is no room
// for. Rounds wait for the network too, and reads for each other: the faster of the
// two is slower than the disks.
func (s *speed) takes(n, room int64) time.Duration {
	round, read := float64(slowestRead), float64(slowestRead)
	if s.read > 0 && s.spent > 0 {
		round, read = s.read/s.spent, s.read/s.spent
	}
	if s.read > 0 && s.single > 0 {
		read = max(read, s.read/s.single)
	}
	return time.Duration((float64(min(n, room))/read + float64(max(0, n-room))/round) * float64(time.Second))
}

func (b *brake) takes(n int64) time.Duration { return b.speed.takes(n, b.room) }

// putOff lets no freeze be due before so long from now.
func (b *brake) putOff(now time.Time) { b.at = now.Add(b.after) }

// attempt is a round, and one under a freeze where that is due and the first did not
// settle.
func (e *Engine) attempt(ctx context.Context, ep *epoch) (settled bool, err error) {
	began, bulk := e.now(), !e.synced || e.foreign != nil
	settled, err = e.round(ctx, ep)
	if err == nil && !bulk {
		e.status.lasted(e.now().Sub(began))
	}
	if settled || err != nil || e.brake.freezer == nil || e.compare != nil || !e.synced || e.foreign != nil || e.unread.set != nil || e.now().Before(e.brake.at) {
		return settled, err
	}
	if t := e.brake.takes(e.brake.last); t > e.brake.most {
		e.status.cannotFreeze(tooMuch(e.brake.last, t, e.brake.most).Error())
		return false, nil
	}
	e.brake.putOff(e.now())
	settled, err = e.standstill(ctx, ep)
	if _, e2 := e.brake.freezer.Thaw(); e2 != nil && err == nil {
		e.log.Warn("a freeze has not ended as it should", "err", e2)
	}
	return settled, err
}

func tooMuch(n int64, t, most time.Duration) error {
	return fmt.Errorf("%d MiB are left, which takes about %v to read, and file systems are frozen for %v at most", n>>20, t.Round(100*time.Millisecond), most)
}

// standstill is a round under a freeze. What keeps file systems from being frozen is
// no error of the engine: it is said, and data goes on to flow.
func (e *Engine) standstill(ctx context.Context, ep *epoch) (settled bool, err error) {
	b := &e.brake
	brief, cancel := context.WithTimeoutCause(ctx, syncWithin, fmt.Errorf("syncing them takes longer than %v", syncWithin)) // data is to go on to flow
	defer cancel()
	if err := b.freezer.Prepare(brief, e.numbers()); err != nil {
		return false, e.unfrozen(ctx, err)
	}
	for range approaches {
		if settled, err := e.round(ctx, ep); settled || err != nil {
			return settled, err
		}
		if b.takes(b.last) <= b.most/2 {
			break
		}
	}
	if t := b.takes(b.last); t > b.most {
		return false, e.unfrozen(ctx, tooMuch(b.last, t, b.most))
	}
	began := e.now()
	granted, err := b.freezer.Freeze(ctx, b.most)
	if err != nil {
		return false, e.unfrozen(ctx, err)
	}
	s := &still{began: began, until: began.Add(min(granted, b.most)), thaw: b.freezer.Thaw, room: b.room}
	ep.still = s
	settled, err = e.round(ctx, ep)
	ep.still = nil
	s.end(e)
	if err != nil { // perhaps not the session's: it must be read again
		for _, r := range s.runs {
			e.todo.Add(r.disk, r.first, r.n)
		}
		return false, err
	}
	e.log.Info("file systems were frozen", "for", s.frozen, "point", settled, "err", s.err)
	if !settled && !s.tooMuch {
		e.status.cannotFreeze(fmt.Sprintf("they were, for %v, and the disks were written to nevertheless", s.frozen.Round(time.Millisecond)))
	}
	return settled, e.release(ctx, ep, s)
}

// unfrozen says why nothing is frozen; only that ctx ended is an error.
func (e *Engine) unfrozen(ctx context.Context, why error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e.status.cannotFreeze(why.Error())
	e.log.Warn("writes outrun the reads, and file systems are not frozen", "because", why)
	return nil
}

// numbers are the devices of the disks.
func (e *Engine) numbers() (out []uint64) {
	for _, s := range e.sources {
		out = append(out, unix.Mkdev(s.major, s.minor))
	}
	return out
}

// A still is a freeze that lasts: what is read while it does is kept, as far as there
// is room, and sent when it is over. Nothing is logged meanwhile: who takes the log
// may be waiting to write it.
type still struct {
	began, until time.Time
	thaw         func() (time.Duration, error)
	room         int64
	tooMuch      bool

	over   bool
	frozen time.Duration
	err    error

	mu   sync.Mutex // guards room and, while there are readers:
	runs []heldRun
}

// A heldRun was read and is to be sent.
type heldRun struct {
	disk     int
	first, n uint64
	data     []byte
}

// weigh ends the freeze where reading what is left would last longer.
func (s *still) weigh(e *Engine) {
	left := int64(0)
	for i := range e.disks {
		left += e.left(i)
	}
	if t := e.brake.takes(left); e.now().Add(t).After(s.until) {
		s.tooMuch = true
		s.end(e)
		e.status.cannotFreeze(tooMuch(left, t, e.brake.most).Error())
	}
}

// keep takes a run unless the freeze is over or there is no room for it.
func (s *still) keep(disk int, first, n uint64, data []byte) bool {
	if s.over {
		return false
	}
	s.mu.Lock()
	fits := int64(len(data)) <= s.room
	if fits {
		s.room -= int64(len(data))
	}
	s.mu.Unlock()
	if !fits {
		return false
	}
	r := heldRun{disk, first, n, slices.Clone(data)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = append(s.runs, r)
	return true
}

// end thaws, if that has not been done.
func (s *still) end(e *Engine) {
	if s.over {
		return
	}
	s.over = true
	if s.frozen, s.err = s.thaw(); s.err != nil {
		s.frozen = max(s.frozen, min(e.now().Sub(s.began), s.until.Sub(s.began)))
	}
	e.status.froze(s.frozen)
}

// release sends what was kept. Its ordinals come after those of all that was read
// before, as they must.
func (e *Engine) release(ctx context.Context, ep *epoch, s *still) error {
	send := func(ctx context.Context, r heldRun) error {
		x := e.layout.extent(r.disk, r.first, r.n)
		x.Disk = e.disks[r.disk].ID
		scratch := e.codec.scratch.Get().(*[]byte)
		defer e.codec.scratch.Put(scratch)
		return e.put(ctx, ep, e.codec.encode(x, r.data, *scratch))
	}
	if e.workers <= 1 {
		for _, r := range s.runs {
			if err := send(ctx, r); err != nil {
				return err
			}
		}
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(e.workers)
	for _, r := range s.runs {
		g.Go(func() error { return send(ctx, r) })
	}
	return g.Wait()
}
