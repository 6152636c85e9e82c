package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"rehost/block"
	"rehost/internal/fault"
)

// An oracle replicates disks that a recorder writes to, and has each point judged
// the moment it is committed.
type oracle struct {
	disks    []block.Disk
	recorder *fault.Recorder
	engine   *Engine
	rep      *replica

	mu      sync.Mutex // guards:
	points  int
	flying  int
	cut     int
	slack   []time.Duration
	illegal error // the first
}

func newOracle(t *testing.T, disk func(testing.TB, int64) *fault.Disk, seed uint64, pace time.Duration) *oracle {
	t.Helper()
	return oracleOf(t, []*fault.Disk{disk(t, 2<<20), disk(t, 1<<20+512*3), disk(t, 1<<20)}, seed, pace)
}

func oracleOf(t *testing.T, loops []*fault.Disk, seed uint64, pace time.Duration) *oracle {
	t.Helper()
	o := &oracle{disks: disksOf(t, loops...)}
	o.engine = openEngine(t, Options{Disks: o.disks, Pause: time.Millisecond})
	o.rep = newReplica(o.disks)
	o.recorder = fault.Record(t, seed, pace, loops...)
	o.rep.onCommit = func(p block.Point, flags block.Flags) {
		if !flags.Has(block.Consistent) {
			return
		}
		var disks []io.ReaderAt
		for _, d := range o.disks {
			disks = append(disks, bytes.NewReader(o.rep.disks[d.ID]))
		}
		v, err := o.recorder.Judge(p.Time, time.Now(), disks)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.points++
		o.flying, o.cut, o.slack = o.flying+v.Flying, o.cut+v.Cut, append(o.slack, v.Slack)
		if err != nil && o.illegal == nil {
			o.illegal = err
		}
	}
	return o
}

// run replicates to a sink, which is rep or around it, until enough points were
// judged, or one was bad, or two minutes are over.
func (o *oracle) run(t *testing.T, sink Sink, enough func(points int) bool) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- o.engine.Run(ctx, sink, o.rep.last()) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("replication ended: %v", err)
		}
	}()
	before := 0
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		o.mu.Lock()
		points, err := o.points, o.illegal
		o.mu.Unlock()
		if enough(points) || err != nil {
			return err
		}
		o.recorder.Yield(points > before)
		before = points
	}
	return nil
}

// TestEngine_Oracle: every point of a run on real disks is a state that a power cut
// at an instant behind the one that it states would have left.
func TestEngine_Oracle(t *testing.T) {
	for _, load := range []struct {
		name string
		disk func(testing.TB, int64) *fault.Disk
		pace time.Duration
	}{{"files", fault.Loop, 4 * time.Millisecond}, {"memory", fault.Memory, 2 * time.Millisecond}, {"memory, busy", fault.Memory, 500 * time.Microsecond}} {
		t.Run(load.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			o := newOracle(t, load.disk, seed, load.pace)
			began := time.Now()
			enough := func(n int) bool { return n >= 1500 || n >= 100 && time.Since(began) > 4*time.Second }
			if err := o.run(t, o.rep, enough); err != nil {
				t.Error(err)
			}
			o.report(t, 100)
		})
	}
}

// report ends the writers and says what was judged, which must be at least so many
// points.
func (o *oracle) report(t *testing.T, least int) {
	t.Helper()
	o.recorder.Stop()
	slices.Sort(o.slack)
	s := o.engine.Status()
	if o.points < least {
		t.Fatalf("only %d points: nothing is shown; status %+v", o.points, s)
	}
	t.Logf("%v; %d points judged, %d rounds, %d conflicts; %d sectors in flight at a point, %d cut; slack p50 %v, p99 %v; audit %q", o.recorder,
		o.points, s.Rounds, s.Conflicts, o.flying, o.cut, o.slack[len(o.slack)/2], o.slack[len(o.slack)*99/100], s.LastAudit)
}

// shortQueue names a disk whose driver puts back some of the requests that it was
// given, since it has no room for them, and that holds zeros: internal/testvm makes a
// machine with one. It is written to.
const shortQueue = "REHOST_SHORT_QUEUE"

// TestEngine_OracleRequeues is TestEngine_Oracle with requests that begin, are put
// back and begin again: with the tag that they had, or, below a scheduler, after they
// have given it away.
func TestEngine_OracleRequeues(t *testing.T) {
	disk := os.Getenv(shortQueue)
	if disk == "" {
		t.Skipf("SKIPPED: no disk that puts requests back is named by %s; TestKernel has one", shortQueue)
	}
	for _, scheduler := range []string{"none", "mq-deadline"} {
		t.Run(scheduler, func(t *testing.T) {
			if err := os.WriteFile("/sys/block/"+filepath.Base(disk)+"/queue/scheduler", []byte(scheduler), 0); err != nil {
				t.Fatal(err)
			}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			o := oracleOf(t, []*fault.Disk{fault.Given(disk)}, seed, 2*time.Millisecond)
			kernel := o.engine.tracker.(*kernelTracker).bpf
			const least = 25
			if err := o.run(t, o.rep, func(n int) bool { return n >= least && kernel.Counters(0).Requeued >= least }); err != nil {
				t.Error(err)
			}
			o.report(t, least)
			n := kernel.Counters(0)
			if t.Logf("%+v", n); n.Requeued < least {
				t.Errorf("only %d requests were put back: nothing is shown", n.Requeued)
			}
			o.rep.epoch = 0 // a session drops what the one before did not commit
			stop := start(t, o.engine, o.rep, o.rep.last())
			waitPoint(t, o.rep)
			stop()
			o.rep.differs(t, o.disks)
			// What a request leaves behind that has given its tag away is no lost completion: one excuses
			// an account that is short, and the account would be good for nothing here.
			account := &o.engine.tracker.(*kernelTracker).base[0]
			n = kernel.Counters(0)
			if lost := int64(n.LostCompletions-account.counts.LostCompletions) + int64(kernel.InFlight(0)); uint64(2*max(lost, 0)) > n.Requeued {
				t.Errorf("%d completions count as lost, of %d that were put back", lost, n.Requeued)
			}
			if s := o.engine.Status(); s.Retractions != 0 {
				t.Errorf("%d points were withdrawn: %s", s.Retractions, s.LastAudit)
			}
			if _, err := openDirect(t, disk, 0).Write(newBuffer()[:o.disks[0].Size]); err != nil { // zeros for the next
				t.Fatal(err)
			}
		})
	}
}

// A bent tracker does one step of a round wrongly.
type bent struct {
	*kernelTracker
	flip     func()
	changed  func(into *Set) error
	conflict func(disk int, first, n uint64) bool
	settle   func()
}

func (b *bent) Flip() {
	if b.flip == nil {
		b.kernelTracker.Flip()
		return
	}
	b.flip()
}

func (b *bent) Changed(into *Set) error {
	if b.changed == nil {
		return b.kernelTracker.Changed(into)
	}
	return b.changed(into)
}

func (b *bent) Conflict(disk int, first, n uint64) bool {
	if b.conflict == nil {
		return b.kernelTracker.Conflict(disk, first, n)
	}
	return b.conflict(disk, first, n)
}

func (b *bent) Settle(ctx context.Context) (bool, error) {
	if b.settle != nil {
		b.settle()
	}
	return b.kernelTracker.Settle(ctx)
}

// A lossy sink does to runs and epochs what no sink may.
type lossy struct {
	*replica
	put    func(run block.Run) // before it is staged
	commit func()              // before the epoch is applied, and
	judge  func(judge func())  // after that
}

func (l *lossy) Put(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	l.put(run)
	return l.replica.Put(ctx, epoch, ordinal, run)
}

func (l *lossy) Commit(ctx context.Context, p block.Point, runs uint64, flags block.Flags) error {
	l.mu.Lock()
	l.commit()
	l.mu.Unlock()
	return l.replica.Commit(ctx, p, runs, flags)
}

func newLossy(r *replica) *lossy {
	l := &lossy{replica: r, put: func(block.Run) {}, commit: func() {}, judge: func(judge func()) { judge() }}
	on := r.onCommit
	r.onCommit = func(p block.Point, flags block.Flags) { l.judge(func() { on(p, flags) }) }
	return l
}

// TestEngine_OracleMutations: steps of a round in another order, a sink that loses
// something, a point that states a later time than its own: each is seen.
func TestEngine_OracleMutations(t *testing.T) {
	for name, mutate := range map[string]func(o *oracle, b *bent, l *lossy){
		"no conflict test": func(_ *oracle, b *bent, _ *lossy) {
			b.conflict = func(int, uint64, uint64) bool { return false }
		},
		"conflict test before the read": func(o *oracle, b *bent, _ *lossy) {
			var mu sync.Mutex
			early := map[block.Extent]bool{}
			read := o.engine.read
			o.engine.read = func(disk int, x block.Extent, buf []byte) error {
				mu.Lock()
				early[x] = b.kernelTracker.Conflict(disk, x.Start, x.Count)
				mu.Unlock()
				time.Sleep(100 * time.Microsecond)
				return read(disk, x, buf)
			}
			b.conflict = func(disk int, first, n uint64) bool {
				mu.Lock()
				defer mu.Unlock()
				return early[b.layout.extent(disk, first, n)]
			}
		},
		"scan before the flip": func(_ *oracle, b *bent, _ *lossy) {
			b.flip = func() {}
			b.changed = func(into *Set) error {
				err := b.kernelTracker.Changed(into)
				time.Sleep(time.Millisecond)
				b.kernelTracker.Flip()
				return err
			}
		},
		"cleared after the read": func(_ *oracle, b *bent, _ *lossy) {
			b.settle = func() { b.bpf.TakeDirty(0, b.layout.words, func(int, uint64) {}) }
		},
		"a point states a later time": func(o *oracle, _ *bent, _ *lossy) {
			o.engine.now = func() time.Time { return time.Now().Add(time.Millisecond) }
		},
		"zeros are lost": func(o *oracle, _ *bent, l *lossy) {
			kept := map[block.Extent][]byte{}
			l.put = func(run block.Run) {
				if x := run.Extent; run.Codec == block.Zero {
					o.rep.mu.Lock()
					defer o.rep.mu.Unlock()
					kept[x] = bytes.Clone(o.rep.disks[x.Disk][x.Offset():][:x.Bytes()])
				}
			}
			l.judge = func(judge func()) {
				for x, data := range kept {
					copy(o.rep.disks[x.Disk][x.Offset():], data)
				}
				clear(kept)
				judge()
			}
		},
		"runs in the wrong order": func(o *oracle, _ *bent, l *lossy) {
			l.commit = func() {
				for i, j := uint64(0), uint64(len(o.rep.staged)); i+1 < j; i++ {
					j--
					o.rep.staged[i], o.rep.staged[j] = o.rep.staged[j], o.rep.staged[i]
				}
			}
		},
		"a disk is a point behind": func(o *oracle, _ *bent, l *lossy) {
			before := bytes.Clone(o.rep.disks[1])
			l.judge = func(judge func()) {
				now := o.rep.disks[1]
				o.rep.disks[1] = before
				judge()
				o.rep.disks[1], before = now, bytes.Clone(now)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			o := newOracle(t, fault.Memory, seed, 500*time.Microsecond)
			b, l := &bent{kernelTracker: o.engine.tracker.(*kernelTracker)}, newLossy(o.rep)
			o.engine.tracker = b
			mutate(o, b, l)
			err := o.run(t, l, func(int) bool { return false })
			if !errors.Is(err, fault.ErrImpossible) {
				t.Fatalf("not caught in %d points: %v", o.points, err)
			}
			t.Logf("caught at point %d: %v", o.points, err)
		})
	}
}
