package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/capture/bpf"
	"rehost/internal/fault"
)

func TestMain(m *testing.M) {
	if os.Getenv(childPins) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// A replica is a Sink that holds all disks in memory and applies an epoch when
// it is committed, runs in order of their ordinals.
type replica struct {
	mu       sync.Mutex
	disks    map[block.DiskID][]byte
	staged   map[uint64]block.Run
	epoch    block.Seq
	points   []block.Point
	flags    []block.Flags
	payload  int64
	runs     int
	onCommit func(point block.Point, flags block.Flags) // with mu held
	putErr   func(run block.Run) error
	keep     map[block.Seq]map[block.DiskID][]byte // contents at each point, for Retract; nil: not kept
	withdrew []block.Seq
}

func newReplica(disks []block.Disk) *replica {
	r := &replica{disks: map[block.DiskID][]byte{}, staged: map[uint64]block.Run{}}
	for _, d := range disks {
		r.disks[d.ID] = make([]byte, d.Blocks()*block.Size)
	}
	return r
}

func (r *replica) Put(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	if err := run.Validate(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.putErr != nil {
		if err := r.putErr(run); err != nil {
			return err
		}
	}
	if epoch != r.epoch {
		clear(r.staged)
		r.epoch = epoch
	}
	if _, twice := r.staged[ordinal]; twice {
		return fmt.Errorf("ordinal %d of epoch %v was given twice", ordinal, epoch)
	}
	run.Payload = append([]byte(nil), run.Payload...)
	r.staged[ordinal] = run
	r.payload += int64(len(run.Payload))
	r.runs++
	return nil
}

func (r *replica) Commit(ctx context.Context, p block.Point, runs uint64, flags block.Flags) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Seq != r.last()+1 && len(r.withdrew) == 0 {
		return fmt.Errorf("commit %v after %v", p.Seq, r.last())
	}
	if uint64(len(r.staged)) != runs {
		return fmt.Errorf("commit %v of %d runs, %d are here", p.Seq, runs, len(r.staged))
	}
	for i := range runs {
		run, ok := r.staged[i]
		if !ok {
			return fmt.Errorf("commit %v: no run %d", p.Seq, i)
		}
		d := r.disks[run.Extent.Disk]
		if err := run.Decode(d[run.Extent.Offset():][:run.Extent.Bytes()]); err != nil {
			return err
		}
	}
	clear(r.staged)
	r.points, r.flags = append(r.points, p), append(r.flags, flags)
	if r.keep != nil {
		r.keep[p.Seq] = map[block.DiskID][]byte{}
		for id, d := range r.disks {
			r.keep[p.Seq][id] = bytes.Clone(d)
		}
	}
	if r.onCommit != nil {
		r.onCommit(p, flags)
	}
	return nil
}

func (r *replica) Retract(ctx context.Context, after block.Seq) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.withdrew = append(r.withdrew, after)
	for len(r.points) > 0 && r.last() > after {
		r.points, r.flags = r.points[:len(r.points)-1], r.flags[:len(r.flags)-1]
	}
	for id, d := range r.disks {
		if clear(d); after > 0 {
			copy(d, r.keep[after][id])
		}
	}
	return nil
}

func (r *replica) last() block.Seq {
	if len(r.points) == 0 {
		return 0
	}
	return r.points[len(r.points)-1].Seq
}

// disksOf are loop devices as disks of a server.
func disksOf(t *testing.T, list ...*fault.Disk) (out []block.Disk) {
	t.Helper()
	for i, l := range list {
		d, err := Resolve([]string{l.Path})
		if err != nil {
			t.Fatal(err)
		}
		d[0].ID = block.DiskID(i)
		out = append(out, d[0].Disk)
	}
	return out
}

func openEngine(t *testing.T, o Options) *Engine {
	t.Helper()
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if m, reason := e.tracker.Method(); !o.NoEBPF && m != EBPF {
		if err := bpf.Supported(); err != nil {
			t.Skipf("SKIPPED: the kernel does not track here: %v", err)
		}
		t.Fatalf("the kernel can track, and is not used: %s", reason)
	}
	return e
}

// start runs the engine until the test or stop ends it.
func start(t *testing.T, e *Engine, sink Sink, last block.Seq) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, sink, last) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

// waitPoint waits for a consistent point whose T is after now.
func waitPoint(t *testing.T, r *replica) {
	t.Helper()
	after := time.Now()
	for end := after.Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		r.mu.Lock()
		n := len(r.points)
		ok := n > 0 && r.flags[n-1].Has(block.Consistent) && r.points[n-1].Time.After(after)
		r.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatal("no point within a minute")
}

// content reads a disk past the page cache.
func content(t *testing.T, d block.Disk) []byte {
	t.Helper()
	s, err := openSource(d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.file.Close()
	out, buf := make([]byte, d.Blocks()*block.Size), newBuffer()
	for at := uint64(0); at < d.Blocks(); at += block.MaxRun {
		x := block.Extent{Start: at, Count: min(block.MaxRun, d.Blocks()-at)}
		if err := s.read(x, buf); err != nil {
			t.Fatal(err)
		}
		copy(out[x.Offset():], buf[:x.Bytes()])
	}
	return out
}

func (r *replica) differs(t *testing.T, disks []block.Disk) {
	t.Helper()
	if first, n := r.compare(t, disks); n > 0 {
		t.Fatalf("%s differs, and %d blocks in all", first, n)
	}
}

// compare counts the blocks that differ, and names the first.
func (r *replica) compare(t *testing.T, disks []block.Disk) (first string, n int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range disks {
		want, got := content(t, d), r.disks[d.ID]
		for b := 0; b < len(want); b += block.Size {
			if string(want[b:b+block.Size]) != string(got[b:b+block.Size]) {
				if n++; n == 1 {
					first = fmt.Sprintf("%s: block %d", d.Name, b/block.Size)
				}
			}
		}
	}
	return first, n
}

// openDirect opens a device for writes that are durable when they return.
func openDirect(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestEngine_Follows writes to two disks while they are replicated, by every way
// a disk's content changes, and expects the replica to be the same in the end.
func TestEngine_Follows(t *testing.T) {
	for name, o := range map[string]Options{"blocks": {}, "granules of 32 KiB": {shift: 3}, "comparing": {NoEBPF: true}} {
		t.Run(name, func(t *testing.T) {
			a, b := fault.Loop(t, 48<<20), fault.Loop(t, 20<<20+512*3) // ends in a partial block
			disks := disksOf(t, a, b)
			fa, fb := openDirect(t, a.Path, 0), openDirect(t, b.Path, 0)
			buf := newBuffer()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			fill := func(p []byte) {
				for i := 0; i < len(p); i += 8 {
					p[i] = byte(r.Uint32())
				}
			}
			for i := range int64(16) {
				fill(buf)
				fa.WriteAt(buf, i*3<<20)
			}
			o.Disks = disks
			e := openEngine(t, o)
			rep := newReplica(disks)
			start(t, e, rep, 0)
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
				n := block.Size * (1 + r.IntN(4))
				fill(buf[:n])
				if _, err := fa.WriteAt(buf[:n], r.Int64N(48<<20/block.Size-4)*block.Size); err != nil {
					t.Fatal(err)
				}
				if _, err := fb.WriteAt(buf[:512], r.Int64N(20<<20/512+3)*512); err != nil {
					t.Fatal(err)
				}
				if r.IntN(50) == 0 { // a discard, over many words
					at, n := r.Int64N(40)<<20, int64(1+r.IntN(8))<<20
					if err := unix.Fallocate(int(fa.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Duration(r.IntN(200)) * time.Microsecond)
			}
			fill(buf[:512])
			if _, err := fb.WriteAt(buf[:512], 20<<20+512*2); err != nil { // the very last sector
				t.Fatal(err)
			}
			waitPoint(t, rep)
			rep.differs(t, disks)
			s := e.Status()
			t.Logf("%s (%s): %d points, %d rounds, %d conflicts, read %d MiB, sent %d MiB, lag %v, state %s, audit %q", s.Method, s.Reason, s.Epochs, s.Rounds, s.Conflicts, s.BytesRead>>20, s.SentSize>>20, s.Lag, s.State, s.LastAudit)
			if s.LastAudit != "" || s.Retractions != 0 {
				t.Errorf("an audit failed: %s", s.LastAudit)
			}
			if s.State != Continuous {
				t.Errorf("state %s, want %s", s.State, Continuous)
			}
		})
	}
}

// TestEngine_DiskFails makes a disk smaller, and takes it away altogether, as the
// kernel shows it of a disk that is unplugged: an error that says which it is.
func TestEngine_DiskFails(t *testing.T) {
	for want, size := range map[error]int64{ErrShrunk: 4 << 20, ErrGone: 0} {
		l := fault.Loop(t, 8<<20)
		disks := disksOf(t, l)
		e := openEngine(t, Options{Disks: disks})
		rep := newReplica(disks)
		done := make(chan error, 1)
		go func() { done <- e.Run(t.Context(), rep, 0) }()
		waitPoint(t, rep)
		l.Resize(t, size)
		var disk *DiskError
		if err := <-done; !errors.Is(err, want) || !errors.As(err, &disk) || disk.Disk != l.Path {
			t.Fatalf("got %v, want %v of %s", err, want, l.Path)
		}
		if s := e.Status(); s.State != Stalled || !errors.Is(s.Err, want) {
			t.Fatalf("status is %s, %v", s.State, s.Err)
		}
	}
}

// TestEngine_SinkFails breaks every session after a few runs while the disk is
// written to; sessions that each continue from the last must lose nothing.
func TestEngine_SinkFails(t *testing.T) {
	for _, noEBPF := range []bool{false, true} {
		l := fault.Loop(t, 24<<20)
		disks := disksOf(t, l)
		f := openDirect(t, l.Path, 0)
		e := openEngine(t, Options{Disks: disks, NoEBPF: noEBPF, Progress: 6 << 20})
		rep := newReplica(disks)
		buf := newBuffer()
		r := rand.New(rand.NewPCG(7, 7))
		for session := range 12 {
			for range 40 {
				buf[0], buf[1] = byte(session), byte(r.Uint32())
				f.WriteAt(buf[:block.Size], r.Int64N(24<<20/block.Size)*block.Size)
			}
			left := 9
			rep.putErr = func(block.Run) error {
				if left--; left < 0 {
					return errLost
				}
				return nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			err := e.Run(ctx, rep, rep.last())
			cancel()
			if !errors.Is(err, errLost) && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			rep.epoch = 0     // a new session starts its epoch afresh,
			clear(rep.staged) // also where it has nothing to put in it
		}
		rep.putErr = nil
		start(t, e, rep, rep.last())
		waitPoint(t, rep)
		rep.differs(t, disks)
	}
}

// TestEngine_Audit hides a write from the tracker, as a kernel that did not run
// its programs would. The account with diskstats must show it, the points since
// the last clean audit must go, and the replica must be right again.
func TestEngine_Audit(t *testing.T) {
	a, b := fault.Loop(t, 4<<20), fault.Loop(t, 4<<20)
	disks := disksOf(t, a, b)
	fa, fb := openDirect(t, a.Path, 0), openDirect(t, b.Path, 0)
	e := openEngine(t, Options{Disks: disks})
	rep := newReplica(disks)
	rep.keep = map[block.Seq]map[block.DiskID][]byte{}
	buf := newBuffer()[:block.Size]
	write := func(f *os.File, at int64) {
		buf[0]++
		if _, err := f.WriteAt(buf, at*block.Size); err != nil {
			t.Fatal(err)
		}
	}
	write(fa, 3)
	// Five points of an engine before this one, which an audit must leave alone.
	for seq := range block.Seq(5) {
		rep.Commit(t.Context(), block.Point{Seq: seq + 1}, 0, block.Consistent)
	}
	stop := start(t, e, rep, rep.last())
	for e.Status().Audited <= 5 {
		time.Sleep(10 * time.Millisecond)
	}
	write(fb, 5) // stands in a point that will be withdrawn
	waitPoint(t, rep)
	stop()
	tr := e.tracker.(*kernelTracker)
	write(fa, 100)
	for tr.bpf.InFlight(0) > 0 {
		time.Sleep(time.Millisecond)
	}
	tr.bpf.TakeDirty(0, tr.layout.words, func(int, uint64) {})
	tr.base[0].counts.Bytes += block.Size
	start(t, e, rep, rep.last())
	for e.Status().Retractions == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	waitPoint(t, rep)
	rep.differs(t, disks)
	s := e.Status()
	t.Logf("withdrawn after %v: %s", rep.withdrew, s.LastAudit)
	if len(rep.withdrew) != 1 || rep.withdrew[0] <= 5 || s.Retractions != 1 {
		t.Errorf("withdrawn %v, %d times", rep.withdrew, s.Retractions)
	}
	if s.Withdrawn == 0 || s.Epochs < s.Withdrawn || s.LongestRound <= 0 || s.CPU <= 0 {
		t.Errorf("%d of %d epochs are withdrawn, the longest round took %v, and all of it %v of the processor", s.Withdrawn, s.Epochs, s.LongestRound, s.CPU)
	}
}

// slowSink is a Sink with a bandwidth, remembered.
type slowSink struct {
	*replica
	limits []int64
}

func (s *slowSink) SetBandwidth(n int64) { s.limits = append(s.limits, n) }

// TestEngine_Pause pauses before the first copy: nothing may be sent until it is
// resumed, and what is written meanwhile is not forgotten.
func TestEngine_Pause(t *testing.T) {
	l := fault.Loop(t, 8<<20)
	disks := disksOf(t, l)
	f := openDirect(t, l.Path, 0)
	e := openEngine(t, Options{Disks: disks})
	sink := &slowSink{replica: newReplica(disks)}
	e.SetBandwidth(80)
	e.Pause()
	e.Pause()
	start(t, e, sink, 0)
	buf := newBuffer()[:block.Size]
	buf[0] = 1
	f.WriteAt(buf, 77*block.Size)
	time.Sleep(100 * time.Millisecond)
	if s := e.Status(); s.State != Paused || s.BytesRead != 0 || s.Backlog != 8<<20 {
		t.Fatalf("status %+v", s)
	}
	e.Resume()
	e.SetBandwidth(0)
	waitPoint(t, sink.replica)
	sink.differs(t, disks)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(sink.limits) != 2 || sink.limits[0] != 10e6 || sink.limits[1] != 0 {
		t.Fatalf("limits %v", sink.limits)
	}
}

// restless is a Tracker of a disk that is always written to just before it is read.
type restless struct{ Tracker }

func (restless) Conflict(int, uint64, uint64) bool { return true }

func (t restless) Changed(into *Set) error {
	into.Add(0, 0, 1)
	return t.Tracker.Changed(into)
}

// TestEngine_NotConverging wants the truth when the reads are outrun: no point,
// and a state that says so.
func TestEngine_NotConverging(t *testing.T) {
	l := fault.Loop(t, 4<<20)
	disks := disksOf(t, l)
	e := openEngine(t, Options{Disks: disks, Deadline: 50 * time.Millisecond})
	rep := newReplica(disks)
	stop := start(t, e, rep, 0)
	waitPoint(t, rep)
	stop()
	points, tracker := len(rep.points), e.tracker
	e.tracker = restless{tracker}
	rep.epoch = 0
	stop = start(t, e, rep, rep.last())
	for e.Status().State != NotConverging {
		time.Sleep(time.Millisecond)
	}
	stop()
	if s := e.Status(); len(rep.points) != points || s.Lag < 50*time.Millisecond || s.Conflicts == 0 {
		t.Fatalf("%d points, then %d; status %+v", points, len(rep.points), s)
	}
	e.tracker = tracker
	rep.epoch = 0
	start(t, e, rep, rep.last())
	waitPoint(t, rep)
	rep.differs(t, disks)
	// The deadline here is shorter than the pause between points of an idle disk.
	until(t, "the state after the load has gone", func() bool { return e.Status().State == Continuous })
}

// TestEngine_ComparedInVain: a disk that is compared, and never let alone while it is read,
// gets no point, and the state says why. It gets one as soon as it is.
func TestEngine_ComparedInVain(t *testing.T) {
	l := fault.Loop(t, 4<<20)
	disks := disksOf(t, l)
	f := openDirect(t, l.Path, 0)
	e := openEngine(t, Options{Disks: disks, NoEBPF: true, Readers: 1})
	rep := newReplica(disks)
	buf := newBuffer()[:block.Size]
	rep.putErr = func(block.Run) error { // something is read, so it is written to
		buf[0]++
		_, err := f.WriteAt(buf, 0)
		return err
	}
	stop := start(t, e, rep, 0)
	until(t, "the reason why no point comes", func() bool {
		return strings.Contains(e.Status().Outrun, "there is a point only where nothing is written")
	})
	if s := e.Status(); s.State != InitialSync || s.Epochs != 0 || rep.consistent() != 0 {
		t.Fatalf("status %+v", s)
	}
	stop()
	rep.putErr, rep.epoch = nil, 0
	clear(rep.staged)
	start(t, e, rep, rep.last())
	waitPoint(t, rep)
	rep.differs(t, disks)
	until(t, "the end of the reason", func() bool { return e.Status().Outrun == "" })
}

var errLost = io.ErrClosedPipe
