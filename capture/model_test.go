package capture

import (
	"context"
	"errors"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"rehost/block"
	"rehost/capture/bpf"
	"rehost/internal/fault"
)

// The model: the engine as it is, in one goroutine, on simulated disks and a
// simulated kernel. A seeded scheduler interleaves its steps (every look at a
// shared bit, every block read) with those of requests: the issue program's
// reading of the generation, each of its marks, each block landing, completion.
// Whoever finds a seed can run it again.

const (
	modelDisks  = 2
	modelBlocks = 24
	modelTags   = 7
	never       = math.MaxInt64
)

type modelWrite struct {
	issued, completed int64
	record            int32
}

// A request goes queued -> issuing -> landing -> landed -> completing -> over;
// a requeue takes it from landing to requeued, or without its tag to putBack, and back to queued. Where the issue program has a
// spare, it goes from issuing, or past it, to sparing and issuing again. Where it is done in
// parts, it goes from over back to landing with the rest.
type modelRequest struct {
	id                 int32
	disk, first, n     int
	tag, state, marked int
	gen                int
	landed             uint32
	ends               int // how many blocks the next completion ends
	slow               float64
	done               func()
	began              bool
	unseen             bool       // by every issue program
	spare              bool       // the spare's turn
	relieved           bool       // what stood in its entry is dealt with
	late               modelRange // or is not, for one who forgets it first
	early              bool       // issued before anything tracked
}

const (
	queued = iota
	issuing
	sparing
	landing
	requeued
	putBack
	landed
	completing
	over
)

type landedWrite struct {
	id int32
	at int64
}

type modelRange struct{ first, n int }

// A model is the simulated machine and, as a Tracker and a Sink, what the engine sees of it.
type model struct {
	v   *variant
	r   *rand.Rand
	now int64

	gen       int
	skips     bpf.Skips
	skipsThen bpf.Skips // as the round began
	skipsSeen bpf.Skips // as they were looked at
	blind     uint64
	filter    [2][modelDisks][modelBlocks]bool
	dirty     [modelDisks][modelBlocks]bool
	pend      [modelDisks][modelTags]modelRange
	inUse     [modelDisks][modelTags]bool
	freed     [modelDisks]int // the tag that was given back last
	dev       [modelDisks][modelBlocks]int32
	past      [modelDisks][modelBlocks][]landedWrite
	writes    []modelWrite
	active    []*modelRequest
	queue     []*modelRequest
	record    int32
	slow      float64
	fs        [modelDisks]*modelFS
	deaf      bool  // nothing tracks yet
	holding   int64 // until then file systems are frozen
	believed  bool  // the engine believes that they are

	// What is pinned, and what of it was written down.
	owes     []uint64
	saved    *position
	late     *position // for one who writes down too late
	lost     int       // writes whose issue was not seen, known by their completion, or by the bytes
	calm     bool      // between two storms
	account  int       // how many of them are known
	accounts int       // as it was written down

	// The engine's side.
	engine   *Engine
	bads     [modelDisks][modelBlocks]bool
	failures int
	yield    func()
	landing  func()       // a Commit that is under way
	clean    bool         // the last Settle saw everything
	wrong    []block.Seq  // points that no power cut could have left
	early    []modelBlock // scanned before the flip
	asked    bool         // conflict, asked before the read
	staged   map[uint64]block.Run
	replica  [modelDisks][modelBlocks]int32
	last     block.Seq
	backups  []modelBackup
	bases    map[block.Seq][modelDisks][modelBlocks]int32 // the replica at the begin of sessions
	loss     float64                                      // of a session, at each Put and Commit
	pauses   int                                          // the longest, in steps
	points   int
	progress int
	kills    int
	reboots  int
	freezes  int
	left     int // blocks left out
	excused  int
	bad      string
}

type modelBlock struct{ disk, block int }

// A modelBackup is the other side as it once was.
type modelBackup struct {
	replica [modelDisks][modelBlocks]int32
	last    block.Seq
}

func (m *model) chance(p float64) bool { return p > 0 && m.r.Float64() < p }

// roll makes the other side what it was some time before, or empty.
func (m *model) roll(e *Engine) {
	if !m.chance(m.v.rollback) {
		return
	}
	m.backups = append([]modelBackup{{}}, m.backups...)[:1+m.r.IntN(len(m.backups)+1)]
	b := m.backups[len(m.backups)-1]
	if m.replica, m.last = b.replica, b.last; m.v.mistaken {
		m.last = e.acked
	}
}

type modelStopped struct{}

// simulate runs one seed and returns the model at its end, or at the first violation.
func simulate(v *variant, seed uint64, steps int64) *model {
	m := &model{v: v, r: rand.New(rand.NewPCG(seed, 0)), staged: map[uint64]block.Run{}, bases: map[block.Seq][modelDisks][modelBlocks]int32{}, now: 1}
	m.writes = []modelWrite{{-1, -1, 0}}
	m.loss = []float64{0, .002, .02}[m.r.IntN(3)]
	m.slow = []float64{.02, .1, .4}[m.r.IntN(3)]
	m.pauses = []int{1, 30, 200}[m.r.IntN(3)]
	weight := []int{1, 4, 16, 64}[m.r.IntN(4)]
	m.log()
	for i := range 1 + m.r.IntN(2) {
		m.files(i % 2)()
	}
	for i := range m.r.IntN(4) {
		m.random(i % 2)
	}
	if v.frees {
		for d := range modelDisks {
			m.fs[d] = &modelFS{m: m, disk: d, tables: map[int32]modelBits{}}
			m.fs[d].idle = 1 + m.r.IntN(3)
		}
	}
	if v.there {
		m.before()
	}
	disks := []block.Disk{{ID: 0, Size: modelBlocks * block.Size}, {ID: 1, Size: modelBlocks * block.Size}}
	if v.crashes {
		l := newLayout(disks, 0)
		m.owes = make([]uint64, l.words)
		m.begin(l)
	}
	m.boot()
	death := []float64{.0005, .003, .02}[m.r.IntN(3)]
	suspicious := .2
	if v.frees { // a first copy has to come to its end, and begins with syncs
		death, suspicious = death/20, .01
	}
	next, stop := m.process(disks)
	defer func() { stop() }()
	for ; m.now < steps && m.bad == ""; m.now++ {
		m.fs[0].wake()
		m.fs[1].wake()
		if k := m.r.IntN(len(m.active) + weight); k < len(m.active) {
			m.step(k)
		} else if next(); v.crashes && (m.chance(death) || m.engine.suspect && m.chance(suspicious)) {
			next, stop = m.kill(disks, stop)
		}
	}
	return m
}

// process is an engine and whoever runs it, a step at a time.
func (m *model) process(disks []block.Disk) (next func() (struct{}, bool), stop func()) {
	e := newEngine(Options{Disks: disks, Readers: 1, Progress: 7 * block.Size}, newLayout(disks, 0), m)
	if e.read, e.chunk = m.read, 1; m.v.frees {
		e.free = m.free
	}
	if m.v.freezes {
		e.brake = brake{freezer: modelFreezer{m}, most: time.Hour, room: int64(m.r.IntN(9)) * block.Size} // whenever a round does not settle
	}
	e.now = func() time.Time { return time.UnixMilli(50 * m.now) }
	e.patience = []patience{{}, {2 * time.Second, 1}, {time.Hour, 0}}[m.r.IntN(3)]
	e.sleep = func(context.Context, time.Duration) error {
		for range m.r.IntN(m.pauses) {
			m.yield()
		}
		return nil
	}
	m.engine, m.skipsSeen = e, bpf.Skips{}
	return iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != (modelStopped{}) {
				panic(r)
			}
		}()
		m.yield = func() {
			if !yield(struct{}{}) {
				panic(modelStopped{})
			}
			if m.chance(m.v.failing) { // most of the time nothing is bad, lest there be no points
				d, b := m.r.IntN(modelDisks), m.r.IntN(modelBlocks)
				if m.bads[d][b] = m.chance(.2); !m.bads[d][b] {
					m.bads = [modelDisks][modelBlocks]bool{}
				}
			}
			if u := e.unread.set; u != nil && m.v.paid {
				for w := range m.owes {
					m.owes[w] &^= u.words[w] &^ e.todo.words[w] &^ e.staged.words[w]
				}
			}
			if m.v.forgetful {
				e.unread.set = nil
			}
		}
		for {
			maps.DeleteFunc(m.bases, func(point block.Seq, _ [modelDisks][modelBlocks]int32) bool { return point > m.last })
			m.bases[m.last] = m.replica
			if err := e.Run(context.Background(), m, m.last); !errors.Is(err, errModelLost) {
				panic(err)
			}
			clear(m.staged)
			if m.v.noFold {
				e.todo.clear()
			}
			m.roll(e)
		}
	})
}

// begin pins what tracking begins with.
func (m *model) begin(l layout) {
	m.saved, m.late = &position{}, nil
	for _, p := range l.disks {
		eachWord(uint64(p.word0)*64, uint64(p.word0)*64+p.granules, func(w int, mask uint64) { m.owes[w] = mask })
	}
}

// boot lets a machine that nothing tracks run for a while, where it has file systems.
func (m *model) boot() {
	if !m.v.frees {
		return
	}
	m.dirty, m.pend, m.filter = [modelDisks][modelBlocks]bool{}, [modelDisks][modelTags]modelRange{}, [2][modelDisks][modelBlocks]bool{}
	for _, f := range m.fs {
		f.early = f.shown
	}
	m.deaf = true
	for range m.r.IntN(2000) {
		m.fs[0].wake()
		m.fs[1].wake()
		if len(m.active) > 0 {
			m.step(m.r.IntN(len(m.active)))
		}
		m.now++
	}
	m.deaf = false
}

// kill ends a process where it is, and lets another one go on with what is pinned. A
// Commit under way may reach the other side or not.
func (m *model) kill(disks []block.Disk, stop func()) (func() (struct{}, bool), func()) {
	m.kills++
	m.owing()
	owes := slices.Clone(m.owes)
	if m.landing != nil && m.chance(.5) {
		m.landing()
	}
	m.landing = nil
	stop()
	m.owes, m.account = owes, m.accounts
	clear(m.staged)
	m.roll(m.engine)
	if m.v.reboots && m.chance(.5) {
		m.reboots++
		m.begin(newLayout(disks, 0))
		m.boot()
	}
	next, stop := m.process(disks)
	if m.saved != nil && m.v.noRestore {
		m.engine.todo.clear()
	}
	if m.v.noDoubt {
		m.engine.doubt.clear()
	}
	if m.v.trusting {
		m.engine.acked, m.engine.asked, m.engine.clean = m.last, m.last, m.last
	}
	return next, stop
}

// TestModel runs the engine on many simulated machines: none may show a point
// that no power cut could have left, and every mutation must be caught.
// REHOST_MODEL_SEEDS and REHOST_MODEL_FROM set how many, and from which on.
func TestModel(t *testing.T) {
	number := func(name string, def uint64) uint64 {
		if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
			return n
		}
		return def
	}
	const steps = 100_000
	from := number("REHOST_MODEL_FROM", rand.Uint64N(1<<40))
	for i := range variants {
		v := &variants[i]
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			n := number("REHOST_MODEL_SEEDS", 40)
			if raceEnabled { // the model is one goroutine: there are no races to find
				if n = 2; v.mutant {
					t.Skip("SKIPPED: mutations need more seeds than the race detector has time for; run without -race")
				}
			}
			if v.mutant {
				n *= 30 // and fewer, as soon as it is caught
			}
			points, progress, failures, kills, reboots, excused, left, freezes, done := 0, 0, 0, 0, 0, 0, 0, 0, int64(0)
			for seed := from; seed < from+n; seed++ {
				m := simulate(v, seed, steps)
				points, progress, kills, excused, done = points+m.points, progress+m.progress, kills+m.kills, excused+m.excused, done+m.now
				failures, reboots, left, freezes = failures+m.failures, reboots+m.reboots, left+m.left, freezes+m.freezes
				if m.bad == "" {
					continue
				}
				if !v.mutant {
					t.Fatalf("seed %d: %s", seed, m.bad)
				}
				t.Logf("caught by seed %d, the %d. from %d: %s", seed, seed-from+1, from, m.bad)
				return
			}
			if v.mutant {
				t.Fatalf("not caught by seeds %d to %d", from, from+n-1)
			}
			t.Logf("seeds %d to %d: %d steps, %d points, %d commits of progress, %d failed reads, %d kills, %d reboots, %d wrong points excused, %d blocks left out, %d freezes", from, from+n-1, done, points, progress, failures, kills, reboots, excused, left, freezes)
			if v.frees && left == 0 && !raceEnabled {
				t.Fatal("no block was ever left out: the model tests nothing")
			}
			if v.freezes && freezes == 0 && n > 10 {
				t.Fatal("nothing was ever frozen: the model tests nothing")
			}
			if points < int(n) && !raceEnabled {
				t.Fatalf("only %d points: the model tests nothing", points)
			}
		})
	}
}

// TestModel_CutShort: a round that has lasted long is given up only where it would not
// have settled.
func TestModel_CutShort(t *testing.T) {
	fault.Caught(t, fault.Mutant{File: "round.go", From: "e.conflicts.Load() > 0 && e.now()", To: "e.now()", Tests: "TestModel$/as_it_is$"})
}
