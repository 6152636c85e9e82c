package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"rehost/block"
)

// Defaults of [Options].
const (
	DefaultPause    = 50 * time.Millisecond
	DefaultIdle     = time.Second
	DefaultDeadline = time.Minute
	DefaultProgress = 4 << 30
)

// maxCompareRest bounds the rest after a comparison, which otherwise is as long
// as the comparison was.
const maxCompareRest = 10 * time.Minute

// Options say what to capture and how.
type Options struct {
	Disks []block.Disk // Name and Size as [Discover] gives them; ID as the service does

	NoEBPF   bool          // compare, even where the kernel could track
	CopyFree bool          // copy also what no file system has in use
	Readers  int           // reading at once; 0: twice the CPUs, at least 4, at most 16
	Pause    time.Duration // between an epoch and the next while there are changes; 0: DefaultPause
	Idle     time.Duration // the longest pause, without changes; 0: DefaultIdle
	Deadline time.Duration // without a point for so long a load counts as too heavy; 0: DefaultDeadline
	Progress int64         // bytes of the first copy made durable at a time; 0: DefaultProgress
	Log      *slog.Logger  // nil: none

	Freezer     Freezer       // of file systems, for a round where none settles; nil: they are never frozen
	FreezeAfter time.Duration // without a point for so long; 0: DefaultFreezeAfter

	// Pins is a directory in a BPF file system in which tracking outlives this
	// process: an engine that is opened there later, for the same disks and the same
	// Replica, goes on where this one was, however it ended. "": it does not.
	Pins    string
	Replica string // whose replica the sinks are

	sysfs string // /sys
	shift uint   // the finest granularity, in powers of two of a block
}

// An Engine follows disks from the moment it is opened and replicates them to
// one sink after another. What it knows to be changed outlives a sink.
//
// Status, Pause, Resume, Retry, SetBandwidth and SetCPULimit may be called at any
// time; Run and Rescan by one goroutine at a time.
type Engine struct {
	disks   []block.Disk
	sources []*source
	layout  layout
	tracker Tracker
	compare comparer // the tracker, if it is one
	keeper  keeper   // the tracker, if its memory outlives this process
	codec   *codec
	pacer   *pacer  // of bulk reading; nil: it is not held back
	survey  *survey // of free space; nil: there is none
	cpu     *allowance
	brake   brake
	workers int
	buffers [][]byte
	log     *slog.Logger

	pause, idle, deadline time.Duration
	progress              int64

	chunk uint64 // blocks of a hash

	// Where the model comes in.
	read  func(disk int, x block.Extent, buf []byte) error
	free  func(ctx context.Context, into *Set) ([]FreeArea, error) // nil: everything is copied
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) error

	// Of Run's goroutine; a leg hands todo and staged out to its readers.
	todo    *Set          // to be read
	staged  *Set          // read since the last commit
	doubt   *Set          // committed since the last clean audit
	foreign *Set          // not sent by this engine, and perhaps as it was at base; nil: nothing is
	base    block.Seq     // the point that the replica was at
	synced  bool          // every block has been committed once
	halfway bool          // an engine before this one was comparing
	started bool          // Run was called
	suspect bool          // points after clean are to be withdrawn, and may not have been
	clean   block.Seq     // the last point under a clean audit
	acked   block.Seq     // the last epoch known to be on the other side
	asked   block.Seq     // the last epoch that a Commit was tried for
	whole   bool          // and that was a consistent point
	next    time.Duration // the next pause

	conflicts atomic.Int64
	patience  patience
	givenUp   bool       // the last round, with something left to read
	reached   uint64     // the bit that it got to
	heatMu    sync.Mutex // guards heat while readers run
	heat      map[uint64]uint8
	unread    unread

	mu        sync.Mutex // guards:
	bandwidth int64      // bytes a second; 0 is no limit
	limiter   Limiter    // the running sink, if it is one
	resume    chan struct{}

	status status
}

// Open opens the disks and starts to track them. Where the kernel cannot track,
// the disks are compared instead, and the status says why.
func Open(ctx context.Context, o Options) (_ *Engine, err error) {
	if len(o.Disks) == 0 {
		return nil, fmt.Errorf("open engine: no disks given: %w", ErrBadDevice)
	}
	var sources []*source
	defer func() {
		if err != nil {
			err = errors.Join(err, closeSources(sources))
		}
	}()
	for _, d := range o.Disks {
		s, err := openSource(d)
		if errors.Is(err, ErrGone) { // as for Run
			return nil, errors.Join(err, Unpin(o.Pins))
		}
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	if o.sysfs == "" {
		o.sysfs = "/sys"
	}
	tracker, l, err := chooseTracker(ctx, o, sources)
	if err != nil {
		return nil, err
	}
	e := newEngine(o, l, tracker)
	e.sources, e.status.devices = sources, sources
	e.read = func(disk int, x block.Extent, buf []byte) error { return sources[disk].read(x, buf) }
	e.pacer = &pacer{now: e.now, look: func() (out []writeTimes, err error) {
		for _, s := range sources {
			w, e := readWriteTimes(sysBlock(o.sysfs, s.major, s.minor))
			out, err = append(out, w), errors.Join(err, e)
		}
		return out, err
	}}
	if !o.CopyFree && e.compare == nil { // a map is worth nothing to who does not see what is written after it
		e.survey = newSurvey(System{Sysfs: o.sysfs}.roots(), sources, &e.layout, e.log)
		e.free = e.survey.free
	}
	method, reason := tracker.Method()
	e.log.Info("tracking disks", "method", method, "reason", reason, "disks", len(sources), "keeps", e.Status().Keeps)
	return e, nil
}

// chooseTracker prefers the kernel's marks, and compares where there can be none.
// Two engines never track with the same pins.
func chooseTracker(ctx context.Context, o Options, sources []*source) (Tracker, layout, error) {
	reason := "asked for"
	if !o.NoEBPF {
		l := newLayout(o.Disks, max(o.shift, kernelShift(o.Disks)))
		t, err := newKernelTracker(ctx, o, sources, &l)
		if err == nil {
			return t, l, nil
		}
		if ctx.Err() != nil {
			return nil, l, context.Cause(ctx)
		}
		if errors.Is(err, ErrPinned) {
			return nil, l, err
		}
		reason = err.Error()
	}
	if err := Unpin(o.Pins); err != nil {
		if errors.Is(err, ErrPinned) {
			return nil, layout{}, err
		}
		reason += "; " + err.Error() // what stays is not gone on with: it will not fit
	}
	l := newLayout(o.Disks, compareShift)
	t, err := newCompareTracker(o.sysfs, sources, &l, reason)
	return t, l, err
}

func newEngine(o Options, l layout, t Tracker) *Engine {
	e := &Engine{
		disks: o.Disks, layout: l, tracker: t, log: o.Log,
		patience: usualPatience, workers: o.Readers, pause: o.Pause, idle: o.Idle, deadline: o.Deadline, progress: o.Progress,
		chunk: block.ChunkBlocks, now: time.Now, sleep: sleep, heat: map[uint64]uint8{},
		cpu:   &allowance{used: processTime, now: time.Now},
		brake: brake{freezer: o.Freezer, after: o.FreezeAfter, most: freezeMost, room: heldMost},
	}
	e.codec = newCodec(func() time.Time { return e.now() })
	e.compare, _ = t.(comparer)
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.workers == 0 {
		e.workers = min(max(4, 2*runtime.GOMAXPROCS(0)), 16)
	}
	for d, v := range map[*time.Duration]time.Duration{&e.pause: DefaultPause, &e.idle: DefaultIdle, &e.deadline: DefaultDeadline, &e.brake.after: DefaultFreezeAfter} {
		if *d == 0 {
			*d = v
		}
	}
	if e.progress == 0 {
		e.progress = DefaultProgress
	}
	e.idle = max(e.idle, e.pause)
	for range e.workers {
		e.buffers = append(e.buffers, newBuffer())
	}
	e.todo, e.staged, e.doubt = newSet(&e.layout), newSet(&e.layout), newSet(&e.layout)
	e.status.init(e)
	if e.restore() {
		return e
	}
	for i, p := range e.layout.disks {
		e.todo.Add(i, 0, p.granules)
	}
	return e
}

// Run replicates to one sink until ctx ends or something fails: the error of the
// sink, a [*DiskError], or ctx's cause. last is the sink's last committed epoch.
// Afterwards Run may be called with another sink and goes on from what this one
// has acknowledged; a sink whose last epoch does not fit gets everything again. After
// [ErrGone] all disks are compared with the replica, as by [Engine.Rescan].
func (e *Engine) Run(ctx context.Context, sink Sink, last block.Seq) (err error) {
	defer func() {
		e.fold()
		if errors.Is(err, ErrGone) { // what was done to it meanwhile, nobody here saw
			e.Rescan()
		}
		e.status.ended(err)
	}()
	e.attach(sink)
	defer e.attach(nil)
	ep := &epoch{sink: sink}
	ep.point.Seq = last + 1
	e.status.began()
	if err := e.meet(ctx, last); err != nil {
		return err
	}
	ep.comparer = e.comparable(sink, last)
	e.next = e.pause
	e.brake.putOff(e.now())
	if e.suspect {
		if err := e.mistrust(ctx, ep, &AuditError{Disk: -1, Reason: "an audit failed, and the points in doubt could not be withdrawn then"}); err != nil {
			return err
		}
	}
	for {
		asleep := e.now()
		if err := e.waitResumed(ctx); err != nil {
			return err
		}
		if err := e.checkSizes(); err != nil {
			return err
		}
		began := e.now()
		e.brake.at = e.brake.at.Add(began.Sub(asleep)) // a pause is no load
		settled, err := e.attempt(ctx, ep)
		var audit *AuditError
		switch {
		case errors.As(err, &audit):
			if err := e.mistrust(ctx, ep, audit); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case e.unread.set != nil:
			if ep.runs.Load() > 0 {
				err = e.commit(ctx, ep, 0)
			} else {
				e.next = min(2*e.next, e.idle)
			}
			if err != nil {
				return err
			}
		case !settled:
			if e.compare == nil {
				continue // at once: every moment spent is one more conflict
			}
			e.status.disturbed()
		default:
			if err := e.commit(ctx, ep, block.Consistent|block.InitialSyncDone); err != nil {
				return err
			}
			e.cool()
		}
		if e.compare != nil { // reading everything all the time would wear the disks' users out
			e.next = max(e.next, min(e.now().Sub(began), maxCompareRest))
		}
		if owed := min(e.cpu.owed(), e.idle); owed > 0 {
			if err := e.sleep(ctx, owed); err != nil {
				return err
			}
		}
		if err := e.rest(ctx); err != nil {
			return err
		}
	}
}

// meet compares what the other side has with what it acknowledged. Usually that
// is the same, or one epoch more, whose answer was lost. If it has fewer, the
// missing ones are sent again: those since the last clean audit are known block
// by block; otherwise, and where it has epochs that are not ours, it is another
// replica, and everything is.
func (e *Engine) meet(ctx context.Context, last block.Seq) error {
	switch {
	case !e.started: // earlier points are not this engine's to doubt
		if err := e.leaveOut(ctx); err != nil {
			return err
		}
		e.started, e.clean = true, last
		e.expect(last)
	case last == e.acked:
	case last > e.acked && last == e.asked:
		if e.whole && !e.synced {
			e.synced = true
			e.status.complete()
		}
	case last >= e.clean && last < e.acked && last > 0:
		e.log.Warn("the replica has fewer epochs than it acknowledged; sending them again", "last", last, "acknowledged", e.acked)
		e.again(e.doubt)
	default:
		e.log.Warn("the replica is not the one that was replicated to; sending everything again", "last", last, "acknowledged", e.acked)
		all := newSet(&e.layout)
		for i, p := range e.layout.disks {
			all.Add(i, 0, p.granules)
		}
		e.again(all)
		if err := e.leaveOut(ctx); err != nil {
			return err
		}
		e.synced, e.clean = false, last
		e.doubt.clear()
		e.expect(last)
		e.status.restarted()
	}
	if e.halfway { // at the last point the replica holds what it holds, whoever sent it
		e.halfway = false
		if e.foreign == nil {
			e.expect(last)
		}
	}
	e.acked, e.asked = last, last
	e.keep()
	return nil
}

// leaveOut strikes what no file system has in use from what is to be read and what
// is owed. That is right because nothing is taken from the tracker between the map
// and this: a write since then is still to be found there.
func (e *Engine) leaveOut(ctx context.Context) error {
	if e.free == nil {
		return nil
	}
	free := newSet(&e.layout)
	areas, err := e.free(ctx, free)
	if err != nil {
		return err
	}
	e.todo.forgo(free)
	if e.unread.set != nil { // what cannot be read there is not needed
		e.unread.set.removeAll(free)
	}
	e.status.leftOut(e, free, areas)
	return nil
}

// again has blocks sent again, whatever was sent of them before.
func (e *Engine) again(lost *Set) {
	if e.compare != nil {
		e.compare.forget(lost)
	}
	e.todo.addAll(lost)
}

// rest is the pause between epochs. A long one ends when something is written.
func (e *Engine) rest(ctx context.Context) error {
	stirring, ok := e.tracker.(interface{ stirred() bool })
	if !ok {
		return e.sleep(ctx, e.next)
	}
	for left := e.next; left > 0; left -= e.pause {
		if err := e.sleep(ctx, min(left, e.pause)); err != nil {
			return err
		}
		if stirring.stirred() {
			break
		}
	}
	return nil
}

// commit closes an epoch and opens the next one. What was staged is owed until
// the epoch is known to be acknowledged, and it is known, also to whoever comes
// after this process, before it is no longer owed.
func (e *Engine) commit(ctx context.Context, ep *epoch, flags block.Flags) error {
	e.asked, e.whole = ep.point.Seq, flags.Has(block.Consistent)
	e.keep()
	if err := ep.sink.Commit(ctx, ep.point, ep.runs.Load(), flags); err != nil {
		return err
	}
	e.acked = ep.point.Seq
	if e.next = min(2*e.next, e.idle); ep.runs.Load() > 0 {
		e.next = e.pause
	}
	e.doubt.addAll(e.staged)
	if a, ok := e.tracker.(interface{ audited() bool }); ok && flags.Has(block.Consistent) && a.audited() {
		e.clean = ep.point.Seq
		e.doubt.clear()
	}
	if e.synced = e.synced || flags.Has(block.Consistent); flags.Has(block.Consistent) {
		e.brake.putOff(e.now())
	}
	e.status.committed(e, ep.point, flags)
	e.keep()
	e.staged.settle(e.todo, e.unread.set)
	ep.point.Seq++
	ep.runs.Store(0)
	ep.bytes.Store(0)
	return nil
}

// mistrust withdraws the points that may lack a change. The disk is read whole and
// compared, and so is everything that the points withdrawn held of any disk: on
// the other side it is again what it was before them. Until that is done the
// engine, and one that comes after it, knows that it is to be done.
func (e *Engine) mistrust(ctx context.Context, ep *epoch, a *AuditError) error {
	e.log.Error("withdrawing recovery points", "after", e.clean, "reason", a.Error())
	e.status.mistrusted(a)
	for i, p := range e.layout.disks {
		if a.Disk < 0 || a.Disk == i {
			e.todo.Add(i, 0, p.granules)
		}
	}
	if ep.point.Seq-1 <= e.clean {
		e.suspect = false // there are none
		e.keep()
		return nil
	}
	e.todo.addAll(e.doubt)
	e.suspect = true
	e.keep()
	r, ok := ep.sink.(Retractor)
	if !ok {
		return fmt.Errorf("the sink cannot withdraw points: %w", a)
	}
	if err := r.Retract(ctx, e.clean); err != nil {
		return err
	}
	e.doubt.clear()
	if e.acked > e.clean {
		e.status.withdrew(uint64(e.acked - e.clean))
	}
	e.acked, e.asked, e.suspect = e.clean, e.clean, false
	if ep.comparer != nil {
		e.expect(e.clean)
	}
	e.keep()
	return nil
}

// fold returns what was read but not acknowledged to what is to be read.
func (e *Engine) fold() {
	e.again(e.staged)
	e.staged.clear()
}

func (e *Engine) checkSizes() error {
	for _, s := range e.sources {
		if err := s.checkSize(); err != nil {
			return err
		}
	}
	return nil
}

// attach makes the sink's limiter follow the engine's bandwidth.
func (e *Engine) attach(sink Sink) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.limiter, _ = sink.(Limiter); e.limiter != nil {
		e.limiter.SetBandwidth(e.bandwidth)
	}
	d, says := sink.(Decoder)
	e.codec.meet(!says || d.Decodes(block.S2))
}

// SetBandwidth limits what is sent to so many Mbit/s (10^6 bits), from now on,
// through any sink that is a [Limiter]; 0 is no limit.
func (e *Engine) SetBandwidth(mbit int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bandwidth = max(0, mbit) * 1e6 / 8; e.limiter != nil {
		e.limiter.SetBandwidth(e.bandwidth)
	}
}

// SetCPULimit holds this process to so many processors on average, from now on,
// by having bulk work wait: the first copy, a rescan, and comparing. Points of a
// replica that is up to date come later for it by no more than Options.Idle, and
// may so take more than the limit; 0 is no limit.
func (e *Engine) SetCPULimit(cores float64) {
	e.cpu.set(cores)
	weight := 1.0
	if cores > 0 { // the readers share it, as they share the link
		weight = max(1, float64(e.workers)/cores)
	}
	e.codec.weigh(weight)
}

// Pause ends reading and sending within moments; tracking goes on.
func (e *Engine) Pause() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.resume == nil {
		e.resume = make(chan struct{})
	}
}

// Resume ends a [Engine.Pause].
func (e *Engine) Resume() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.resume != nil {
		close(e.resume)
		e.resume = nil
	}
}

func (e *Engine) waitResumed(ctx context.Context) error {
	e.mu.Lock()
	resume := e.resume
	e.mu.Unlock()
	if resume != nil {
		select {
		case <-resume:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close closes the disks. Tracking ends, or goes on without this process where
// Options.Pins says so, until [Unpin] ends it. Run must have returned. It waits for
// the sync of a file system that Run did not wait for. It may be called twice.
func (e *Engine) Close() error {
	if e.survey != nil {
		e.survey.close()
	}
	err := errors.Join(e.tracker.Close(), closeSources(e.sources))
	e.sources = nil
	return err
}

func closeSources(list []*source) (err error) {
	for _, s := range list {
		err = errors.Join(err, s.file.Close())
	}
	return err
}
