package capture

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/capture/bpf"
	"rehost/internal/fault"
)

// A scribbler writes to disks, each block about once in the test, so that what is
// lost stays lost.
type scribbler struct {
	mu     sync.Mutex // held by whoever wants silence
	over   atomic.Bool
	wrote  atomic.Int64
	ending sync.WaitGroup
}

func scribble(t *testing.T, disks []block.Disk, seed uint64) *scribbler {
	s := &scribbler{}
	for i, d := range disks {
		f := openDirect(t, d.Name, 0)
		n := int64(d.Size / block.Size)
		s.ending.Go(func() {
			r, buf := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(i)}), newBuffer()[:block.Size]
			for at := int64(0); !s.over.Load(); at = (at + 7919) % n {
				r.Read(buf)
				s.mu.Lock()
				if _, err := f.WriteAt(buf, at*block.Size); err != nil {
					t.Error(err)
				}
				s.mu.Unlock()
				s.wrote.Add(1)
				time.Sleep(500 * time.Microsecond)
			}
		})
	}
	t.Cleanup(s.stop)
	return s
}

func (s *scribbler) stop() { s.over.Store(true); s.ending.Wait() }

// A slaughter kills children at random moments, during the first copy and later,
// while the disks are written to, whether or not a child lives; now and then
// nothing is written while none does.
type slaughter struct {
	disks    []block.Disk
	rep      *replica
	pins     string
	mutation string
	rnd      *rand.Rand
	blocks   atomic.Int64 // received
	slow     atomic.Int64 // nanoseconds a run
	commit   time.Duration
	anew     int // children that did not go on where the one before was
}

func newSlaughter(t *testing.T, mutation string) *slaughter {
	if err := bpf.Supported(); err != nil {
		t.Skipf("SKIPPED: the kernel does not track here: %v", err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	k := &slaughter{disks: disksOf(t, fault.Loop(t, 40<<20), fault.Loop(t, 12<<20+512*3)), mutation: mutation, commit: 2 * time.Millisecond, rnd: rand.New(rand.NewPCG(seed, 0))}
	k.pins = filepath.Join(fault.BPF(t), "rehost-agent", "one")
	k.rep = newReplica(k.disks)
	buf := newBuffer()
	for _, d := range k.disks {
		f := openDirect(t, d.Name, 0)
		for at := int64(0); at+int64(len(buf)) <= d.Size; at += int64(len(buf)) {
			rand.NewChaCha8([32]byte{byte(at >> 20)}).Read(buf)
			if _, err := f.WriteAt(buf, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	return k
}

func (k *slaughter) spawn(t *testing.T) *victim {
	t.Helper()
	v := spawn(t, k.pins, k.disks, k.rep, k.mutation, func(m told) {
		if m.Run != nil {
			k.blocks.Add(int64(m.Run.Extent.Count))
		}
		if m.Run == nil {
			time.Sleep(k.commit)
			return
		}
		time.Sleep(time.Duration(k.slow.Load()))
	})
	if v.state.Method != EBPF {
		t.Fatalf("the kernel can track, and is not used: %+v", v.state)
	}
	if !strings.HasPrefix(v.state.Keeps, "went on") {
		k.anew++
	}
	return v
}

// rounds kills n children, each after a random life.
func (k *slaughter) rounds(t *testing.T, s *scribbler, n int, life time.Duration) {
	t.Helper()
	for range n {
		v := k.spawn(t)
		time.Sleep(time.Duration(k.rnd.Int64N(int64(life))))
		quiet := k.rnd.IntN(3) == 0
		if quiet {
			s.mu.Lock()
		}
		v.kill(t, k.rnd.IntN(2) == 0)
		time.Sleep(time.Duration(k.rnd.IntN(20)) * time.Millisecond)
		if quiet {
			s.mu.Unlock()
		}
	}
}

// TestEngine_Killed: whenever the process that replicates is killed, the next one
// goes on where it was. In the end the replica equals the disks, and what was sent
// after a kill is what was written, not all of it again.
func TestEngine_Killed(t *testing.T) {
	k := newSlaughter(t, "")
	s := scribble(t, k.disks, 1)
	k.slow.Store(int64(8 * time.Millisecond)) // the first copy takes about ten lives
	k.rounds(t, s, 12, 120*time.Millisecond)
	if first := !slices.ContainsFunc(k.rep.flags, func(f block.Flags) bool { return f.Has(block.Consistent) }); !first {
		t.Log("the first copy was over early")
	}
	k.slow.Store(int64(200 * time.Microsecond))
	k.rounds(t, s, 24, 250*time.Millisecond)
	v := k.spawn(t)
	s.stop()
	waitPoint(t, k.rep)
	waitPoint(t, k.rep) // so that the child knows of the one before
	v.kill(t, false)
	k.rep.differs(t, k.disks)
	if k.anew != 1 {
		t.Errorf("%d of 37 children began anew, want only the first", k.anew)
	}
	before := k.blocks.Load()
	f, buf := openDirect(t, k.disks[0].Name, 0), newBuffer()[:block.Size]
	for i := range int64(10) {
		if _, err := f.WriteAt(buf, i*500*block.Size); err != nil {
			t.Fatal(err)
		}
	}
	v = k.spawn(t)
	waitPoint(t, k.rep)
	v.kill(t, false)
	k.rep.differs(t, k.disks)
	total, sent := k.disks[0].Blocks()+k.disks[1].Blocks(), k.blocks.Load()-before
	t.Logf("%d points, %d writes; after a kill and 10 writes %d blocks of %d were sent", len(k.rep.points), s.wrote.Load(), sent, total)
	if sent < 10 || sent > 1000 {
		t.Errorf("after a kill and 10 writes %d blocks were sent", sent)
	}
	if v.state.State != Stalled { // no sink yet; what was kept of the copy shows with one
		t.Errorf("state %s", v.state.State)
	}
	if err := Unpin(k.pins); err != nil {
		t.Fatal(err)
	}
}

// TestEngine_KilledMutations: the same, with an order of steps that loses what is
// under way at a kill. The comparison must find it.
func TestEngine_KilledMutations(t *testing.T) {
	for _, mutation := range []string{"what is owed is not read back", "no longer owed before it is acknowledged", "owed after the swap"} {
		t.Run(mutation, func(t *testing.T) {
			k := newSlaughter(t, mutation)
			s := scribble(t, k.disks, 2)
			v := k.spawn(t)
			waitPoint(t, k.rep)
			v.kill(t, false)
			k.commit = 30 * time.Millisecond // most kills hit one that is under way
			for range 8 {
				k.rounds(t, s, 8, 200*time.Millisecond)
				s.mu.Lock()
				v := k.spawn(t)
				waitPoint(t, k.rep)
				v.kill(t, false)
				equal := k.rep.equals(t, k.disks)
				s.mu.Unlock()
				if !equal {
					return
				}
			}
			t.Error("not caught")
		})
	}
}

func (r *replica) equals(t *testing.T, disks []block.Disk) bool {
	t.Helper()
	for _, d := range disks {
		if string(content(t, d)) != string(r.disks[d.ID]) {
			return false
		}
	}
	return true
}

// A pinned is an engine that was closed and left its tracking pinned, one point ago.
type pinned struct {
	loops []*fault.Disk
	disks []block.Disk
	o     Options
	rep   *replica
}

func newPinned(t *testing.T) *pinned {
	t.Helper()
	p := &pinned{loops: []*fault.Disk{fault.Loop(t, 8<<20)}}
	p.disks = disksOf(t, p.loops...)
	p.o = Options{Disks: p.disks, Pins: filepath.Join(fault.BPF(t), "rehost-agent", "one"), Replica: "r"}
	p.rep = newReplica(p.disks)
	p.rep.keep = map[block.Seq]map[block.DiskID][]byte{}
	e := openEngine(t, p.o)
	stop := start(t, e, p.rep, 0)
	waitPoint(t, p.rep)
	for e.Status().Audited == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if s := e.Status(); !strings.HasPrefix(s.Keeps, "goes on without") {
		t.Fatalf("tracking %s", s.Keeps)
	}
	return p
}

func (p *pinned) write(t *testing.T, at int64) {
	t.Helper()
	buf := newBuffer()[:block.Size]
	buf[0], buf[1] = byte(at), 1
	if _, err := openDirect(t, p.disks[0].Name, 0).WriteAt(buf, at*block.Size); err != nil {
		t.Fatal(err)
	}
}

// record is the pinned state, to be looked at and broken.
func (p *pinned) record(t *testing.T) (*ebpf.Map, record) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.o.Pins, "state"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	var r []byte
	if err := m.Lookup(uint32(0), &r); err != nil {
		t.Fatal(err)
	}
	return m, r
}

// TestEngine_Adopts: an engine that is opened where another was goes on, and knows
// what was written while there was none.
func TestEngine_Adopts(t *testing.T) {
	p := newPinned(t)
	p.write(t, 77)
	e := openEngine(t, p.o)
	if s := e.Status(); !strings.HasPrefix(s.Keeps, "went on while no agent ran") || s.Point != p.rep.points[len(p.rep.points)-1] && !s.Point.Time.Equal(p.rep.points[len(p.rep.points)-1].Time) {
		t.Fatalf("status %+v, last point %v", s, p.rep.points[len(p.rep.points)-1])
	}
	if _, err := Open(t.Context(), p.o); !errors.Is(err, ErrPinned) {
		t.Fatalf("a second engine: %v, want %v", err, ErrPinned)
	}
	if err := Unpin(p.o.Pins); !errors.Is(err, ErrPinned) {
		t.Fatalf("removed while it is used: %v", err)
	}
	p.rep.runs = 0
	start(t, e, p.rep, p.rep.last())
	waitPoint(t, p.rep)
	p.rep.differs(t, p.disks)
	if s := e.Status(); p.rep.runs != 1 || s.State != Continuous || s.Retractions != 0 {
		t.Fatalf("%d runs for one block, state %s, audit %q", p.rep.runs, s.State, s.LastAudit)
	}
}

// TestEngine_AdoptsNot: what is not the same, or not whole, is begun anew, and
// says why; the replica is right all the same.
func TestEngine_AdoptsNot(t *testing.T) {
	poke := func(at int) func(*testing.T, *pinned) {
		return func(t *testing.T, p *pinned) {
			m, r := p.record(t)
			r[at] ^= 1
			if err := m.Put(uint32(0), []byte(r)); err != nil {
				t.Fatal(err)
			}
		}
	}
	unpin := func(name string) func(*testing.T, *pinned) {
		return func(t *testing.T, p *pinned) {
			if err := os.Remove(filepath.Join(p.o.Pins, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		do   func(*testing.T, *pinned)
		want string
	}{
		"other programs":      {poke(recPrograms), "upgraded"},
		"another version":     {poke(recVersion), "version"},
		"another boot":        {poke(recBoot), "before the machine was started"},
		"not ours":            {poke(0), "not this agent's"},
		"another replica":     {func(_ *testing.T, p *pinned) { p.o.Replica = "other" }, "another source server"},
		"coarser":             {func(_ *testing.T, p *pinned) { p.o.shift = 2 }, "not the same"},
		"a link is missing":   {unpin("link_block_rq_issue"), "open link"},
		"a map is missing":    {unpin("owed"), "open map owed"},
		"pinned half":         {unpin("state"), "goes on without"},
		"removed by somebody": {func(t *testing.T, p *pinned) { Unpin(p.o.Pins) }, "goes on without"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPinned(t)
			c.do(t, p)
			p.write(t, 5)
			e := openEngine(t, p.o)
			if s := e.Status(); !strings.Contains(s.Keeps, c.want) || strings.HasPrefix(s.Keeps, "went on") || s.Backlog != s.Total {
				t.Fatalf("tracking %s; want %q; backlog %d", s.Keeps, c.want, s.Backlog)
			}
			start(t, e, p.rep, p.rep.last())
			waitPoint(t, p.rep)
			p.rep.differs(t, p.disks)
		})
	}
}

// TestEngine_AdoptsAnotherDisk: a disk in the place of one that was tracked is not it.
func TestEngine_AdoptsAnotherDisk(t *testing.T) {
	p := newPinned(t)
	name := p.loops[0].Path
	if err := p.loops[0].Close(); err != nil {
		t.Fatal(err)
	}
	again := fault.Loop(t, 8<<20)
	if again.Path != name {
		t.Skipf("SKIPPED: the new disk is %s, not %s", again.Path, name)
	}
	e := openEngine(t, p.o)
	if s := e.Status(); !strings.Contains(s.Keeps, "the disks are not the same") {
		t.Fatalf("tracking %s", s.Keeps)
	}
}

// TestEngine_DiskComesBack takes a disk away and brings it back with other content, as
// one comes back that was in another machine. The kernel's number of it is the same;
// nothing tracked that, and the replica is right all the same.
func TestEngine_DiskComesBack(t *testing.T) {
	for name, meet := range map[string]func(*testing.T, *pinned, *Engine) *Engine{
		"through the same engine": func(_ *testing.T, _ *pinned, e *Engine) *Engine { return e },
		"through another": func(t *testing.T, p *pinned, e *Engine) *Engine {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			return openEngine(t, p.o)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPinned(t)
			e := openEngine(t, p.o)
			done := make(chan error, 1)
			go func() { done <- e.Run(t.Context(), p.rep, p.rep.last()) }()
			waitPoint(t, p.rep)
			p.loops[0].Resize(t, 0)
			if err := <-done; !errors.Is(err, ErrGone) {
				t.Fatalf("got %v, want %v", err, ErrGone)
			}
			p.back(t)
			start(t, meet(t, p, e), p.rep, p.rep.last())
			waitPoint(t, p.rep)
			p.rep.differs(t, p.disks)
		})
	}
	t.Run("seen by who looks for it", func(t *testing.T) {
		p := newPinned(t)
		p.loops[0].Resize(t, 0)
		if _, err := Open(t.Context(), p.o); !errors.Is(err, ErrGone) {
			t.Fatalf("got %v, want %v", err, ErrGone)
		}
		p.back(t)
		start(t, openEngine(t, p.o), p.rep, p.rep.last())
		waitPoint(t, p.rep)
		p.rep.differs(t, p.disks)
	})
}

// back brings the disk back, which holds something else now.
func (p *pinned) back(t *testing.T) {
	t.Helper()
	p.loops[0].Resize(t, p.disks[0].Size)
	p.loops[0].Overwrite(t, 1<<20, bytes.Repeat([]byte("elsewhere"), 1000))
}

// TestEngine_AdoptsBlind detaches the programs for a moment while there is no
// engine. Nothing of the bitmaps shows it; the account must, before there is a
// point: and the replica is right again.
func TestEngine_AdoptsBlind(t *testing.T) {
	p := newPinned(t)
	for _, name := range []string{"block_rq_issue", "block_rq_complete"} {
		if err := os.Remove(filepath.Join(p.o.Pins, "link_"+name)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // the kernel detaches a moment later; only a write would show when, and here none may come before
	p.write(t, 100)
	for _, name := range []string{"block_rq_issue", "block_rq_complete"} {
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.o.Pins, "program_"+name), nil)
		if err != nil {
			t.Fatal(err)
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: prog, AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Pin(filepath.Join(p.o.Pins, "link_"+name)), l.Close(), prog.Close()); err != nil {
			t.Fatal(err)
		}
	}
	e := openEngine(t, p.o)
	if s := e.Status(); !strings.HasPrefix(s.Keeps, "went on") {
		t.Fatalf("tracking %s", s.Keeps)
	}
	start(t, e, p.rep, p.rep.last())
	until(t, "an audit that notices a write that nobody saw", func() bool { return e.Status().LastAudit != "" })
	waitPoint(t, p.rep)
	p.rep.differs(t, p.disks)
	t.Logf("%s; withdrawn after %v", e.Status().LastAudit, p.rep.withdrew)
}

// A deaf sink loses its session when points are to be withdrawn.
type deaf struct{ *replica }

func (deaf) Retract(context.Context, block.Seq) error { return errLost }

// TestEngine_AdoptsSuspicion: points that were to be withdrawn, and were not before
// the process ended, are withdrawn by the next.
func TestEngine_AdoptsSuspicion(t *testing.T) {
	p := newPinned(t)
	e := openEngine(t, p.o)
	e.tracker.(*kernelTracker).nextAudit = time.Now().Add(time.Hour)
	stop := start(t, e, p.rep, p.rep.last())
	clean := e.clean
	waitPoint(t, p.rep)
	stop()
	p.rep.epoch = 0
	tr := e.tracker.(*kernelTracker)
	tr.base[0].counts.Bytes += block.Size // as if so much had not been seen
	tr.nextAudit = time.Time{}
	if err := e.Run(t.Context(), deaf{p.rep}, p.rep.last()); !errors.Is(err, errLost) {
		t.Fatalf("got %v, want %v", err, errLost)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	p.rep.epoch = 0
	e = openEngine(t, p.o)
	start(t, e, p.rep, p.rep.last())
	waitPoint(t, p.rep)
	p.rep.differs(t, p.disks)
	if len(p.rep.withdrew) != 1 || p.rep.withdrew[0] != clean {
		t.Fatalf("withdrawn after %v, want %v", p.rep.withdrew, clean)
	}
}

// TestUnpin leaves nothing in the kernel: no link, no map, no directory.
func TestUnpin(t *testing.T) {
	p := newPinned(t)
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.o.Pins, "program_block_rq_issue"), nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	maps, _ := info.MapIDs()
	prog.Close()
	l, err := link.LoadPinnedLink(filepath.Join(p.o.Pins, "link_block_rq_issue"), nil)
	if err != nil {
		t.Fatal(err)
	}
	attached, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Unpin(p.o.Pins); err != nil {
		t.Fatal(err)
	}
	there := func() (left []string) {
		if x, err := link.NewFromID(attached.ID); err == nil {
			left = append(left, "link")
			x.Close()
		}
		if x, err := ebpf.NewProgramFromID(id); err == nil {
			left = append(left, "program")
			x.Close()
		}
		for _, id := range maps {
			if x, err := ebpf.NewMapFromID(id); err == nil {
				left = append(left, "map")
				x.Close()
			}
		}
		return left
	}
	for end := time.Now().Add(10 * time.Second); len(there()) > 0; time.Sleep(20 * time.Millisecond) {
		runtime.GC() // the library holds on to the constants' memory until then
		if time.Now().After(end) {
			t.Fatalf("left in the kernel: %v", there())
		}
	}
	if _, err := os.Lstat(filepath.Dir(p.o.Pins)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if err := errors.Join(Unpin(p.o.Pins), Unpin("")); err != nil {
		t.Errorf("nothing is pinned: %v", err)
	}
}

// TestEngine_CannotPin: without a place for pins tracking works, and says what is missing.
func TestEngine_CannotPin(t *testing.T) {
	for name, c := range map[string]struct {
		pins func(t *testing.T) string
		want string
	}{
		"no bpffs": {func(t *testing.T) string { return filepath.Join(t.TempDir(), "rehost-agent", "one") }, "mount -t bpf"},
		"read-only": {func(t *testing.T) string {
			dir := fault.BPF(t)
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "rehost-agent", "one")
		}, "read-only"},
		"open to others": {func(t *testing.T) string {
			dir := filepath.Join(fault.BPF(t), "rehost-agent")
			if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "one")
		}, "mode 0700"},
	} {
		t.Run(name, func(t *testing.T) {
			disks := disksOf(t, fault.Loop(t, 4<<20))
			e := openEngine(t, Options{Disks: disks, Pins: c.pins(t)})
			rep := newReplica(disks)
			start(t, e, rep, 0)
			waitPoint(t, rep)
			rep.differs(t, disks)
			if s := e.Status(); !strings.HasPrefix(s.Keeps, "ends with the agent") || !strings.Contains(s.Keeps, c.want) {
				t.Errorf("tracking %s, want %q in it", s.Keeps, c.want)
			}
		})
	}
}
