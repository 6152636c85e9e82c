package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
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

// A variant is what may go wrong in the kernel, and what is wrong in the engine's
// or the kernel's order of steps: a mutation, which the checker must catch.
type variant struct {
	name                              string
	requeue, lostComplete, lostIssue  float64
	noConflictTest, conflictFirst     bool
	markLate, clearAfterRead, noFold  bool
	noPending, pendingLate, scanEarly bool
	rollback                          float64 // the other side loses points between two sessions
	mistaken                          bool    // and says that it has them
	there                             bool    // the other side has a replica from before, some of it right
	audits                            bool    // lost issues are noticed, some time later
	counted, countedEarly             bool    // they are counted when they happen; looked at too early

	// The process is killed at any step, and another one goes on with what is pinned.
	crashes                         bool
	oweLate, settleEarly, noRestore bool
	keepLate, trusting, noDoubt     bool
	unsuspecting                    bool

	failing   float64 // reads begin and cease to fail, in each step of the engine
	forgetful bool    // what cannot be read is forgotten
	paid      bool    // and no longer owed

	// A file system on each disk, whose free blocks are not copied. A machine with
	// reboots loses what is pinned at a kill, and writes before it is tracked again.
	frees, reboots             bool
	noSyncBefore, noSyncAfter  bool
	earlyMap, oldMap           bool
	ignoreHeld, strikeWordwide bool
	takeBetween                bool

	mutant bool
}

var variants = []variant{
	{name: "as it is"},
	{name: "requeues", requeue: .02},
	{name: "requeues and lost completions", requeue: .02, lostComplete: .02},
	{name: "points lost by the other side", rollback: .3},
	{name: "M points lost by the other side unnoticed", rollback: .3, mistaken: true, mutant: true},
	{name: "a replica from before", there: true, requeue: .02, rollback: .1},
	{name: "M no conflict test in a rescan", there: true, noConflictTest: true, mutant: true},
	{name: "kills", crashes: true},
	{name: "kills, requeues and lost completions", crashes: true, requeue: .02, lostComplete: .02},
	{name: "kills and points lost by the other side", crashes: true, rollback: .3},
	{name: "audits that fail", audits: true, lostIssue: .1},
	{name: "kills and audits that fail", crashes: true, audits: true, lostIssue: .1},
	{name: "kills in a rescan", crashes: true, there: true, requeue: .02, rollback: .1},
	{name: "programs that are skipped", lostIssue: .05, counted: true, requeue: .02},
	{name: "kills and programs that are skipped", crashes: true, lostIssue: .05, counted: true},
	{name: "a replica from before and programs that are skipped", there: true, lostIssue: .05, counted: true},
	{name: "M skipped programs looked for too early", lostIssue: .05, countedEarly: true, counted: true, mutant: true},
	{name: "reads that fail", failing: .01, requeue: .02},
	{name: "kills and reads that fail", failing: .01, crashes: true, there: true, rollback: .1},
	{name: "M what cannot be read is forgotten", failing: .01, forgetful: true, mutant: true},
	{name: "M what cannot be read is no longer owed", failing: .01, crashes: true, paid: true, mutant: true},
	{name: "M killed between the bitmap and what is owed", crashes: true, oweLate: true, mutant: true},
	{name: "M no longer owed before it is acknowledged", crashes: true, settleEarly: true, mutant: true},
	{name: "M what is owed is not read back", crashes: true, noRestore: true, mutant: true},
	{name: "M acknowledgement written down too late", crashes: true, rollback: .3, keepLate: true, mutant: true},
	{name: "M position taken from the other side", crashes: true, rollback: .3, trusting: true, mutant: true},
	{name: "M doubt forgotten by a kill", crashes: true, rollback: .3, noDoubt: true, mutant: true},
	{name: "M suspicion forgotten by a kill", crashes: true, audits: true, lostIssue: .1, unsuspecting: true, mutant: true},
	{name: "free space", frees: true, requeue: .02, lostComplete: .02},
	{name: "free space and kills", frees: true, crashes: true, requeue: .02},
	{name: "free space and points lost by the other side", frees: true, crashes: true, rollback: .3},
	{name: "free space and audits that fail", frees: true, crashes: true, audits: true, lostIssue: .1},
	{name: "free space and reboots", frees: true, crashes: true, reboots: true, rollback: .1},
	{name: "M map asked before changes are tracked", frees: true, crashes: true, reboots: true, earlyMap: true, mutant: true},
	{name: "M no sync before the map", frees: true, crashes: true, reboots: true, noSyncBefore: true, mutant: true},
	{name: "M no sync after the map", frees: true, crashes: true, reboots: true, noSyncAfter: true, mutant: true},
	{name: "M map from before a reboot", frees: true, crashes: true, reboots: true, oldMap: true, mutant: true},
	{name: "M writes to what was left out ignored", frees: true, ignoreHeld: true, mutant: true},
	{name: "M changes taken between the map and the strike", frees: true, takeBetween: true, mutant: true},
	{name: "M whole words left out", frees: true, strikeWordwide: true, mutant: true},
	{name: "M no conflict test", noConflictTest: true, mutant: true},
	{name: "M conflict test before the read", conflictFirst: true, mutant: true},
	{name: "M filter marked after the data landed", markLate: true, mutant: true},
	{name: "M bit cleared after the read", clearAfterRead: true, mutant: true},
	{name: "M nothing folded back after a lost session", noFold: true, mutant: true},
	{name: "M lost completions without a pending table", lostComplete: .02, noPending: true, mutant: true},
	{name: "M pending table read after the scan", lostComplete: .1, pendingLate: true, mutant: true},
	{name: "M bitmap scanned before the flip", scanEarly: true, mutant: true},
	{name: "M lost issues", lostIssue: .01, mutant: true},
}

type modelWrite struct {
	issued, completed int64
	record            int32
}

// A request goes queued -> issuing -> landing -> landed -> completing -> over;
// a requeue takes it from landing back to queued.
type modelRequest struct {
	id                 int32
	disk, first, n     int
	tag, state, marked int
	gen                int
	landed             uint32
	slow               float64
	done               func()
	began, unseen      bool
	early              bool // issued before anything tracked
}

const (
	queued = iota
	issuing
	landing
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
	skips     uint64 // issues that no program saw
	skipsThen uint64 // as the round began
	filter    [2][modelDisks][modelBlocks]bool
	dirty     [modelDisks][modelBlocks]bool
	pend      [modelDisks][modelTags]modelRange
	inUse     [modelDisks][modelTags]bool
	dev       [modelDisks][modelBlocks]int32
	past      [modelDisks][modelBlocks][]landedWrite
	writes    []modelWrite
	active    []*modelRequest
	queue     []*modelRequest
	record    int32
	slow      float64
	fs        [modelDisks]*modelFS
	deaf      bool // nothing tracks yet

	// What is pinned, and what of it was written down.
	owes     []uint64
	saved    *position
	late     *position // for one who writes down too late
	lost     int       // completions whose issue was not seen
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

// ---- requests

func (m *model) submit(disk, first, n int, record int32, done func()) {
	q := &modelRequest{id: int32(len(m.writes)), disk: disk, first: first, n: n, tag: -1, done: done}
	m.writes = append(m.writes, modelWrite{never, never, record})
	if m.chance(m.slow) {
		q.slow = []float64{.5, .9, .97, .99}[m.r.IntN(4)]
	}
	if first >= modelTable { // a sync waits for these
		q.slow = min(q.slow, .5)
	}
	m.queue = append(m.queue, q)
	m.giveTags()
}

func (m *model) giveTags() {
	wait := m.queue[:0]
next:
	for _, q := range m.queue {
		from := m.r.IntN(modelTags)
		for i := range modelTags {
			if t := (from + i) % modelTags; !m.inUse[q.disk][t] {
				m.inUse[q.disk][t], q.tag = true, t
				m.active = append(m.active, q)
				continue next
			}
		}
		wait = append(wait, q)
	}
	m.queue = wait
}

func (m *model) mark(gen, disk, first, n int) {
	for b := first; b < first+n; b++ {
		m.filter[gen&1][disk][b] = true
	}
}

// step takes one request one step further.
func (m *model) step(i int) {
	q := m.active[i]
	if q.slow > 0 && m.chance(q.slow) {
		return
	}
	switch q.state {
	case queued: // the issue program begins: it reads the generation
		if !q.began {
			q.began, m.writes[q.id].issued = true, m.now
		}
		q.early = q.early || m.deaf
		if q.gen, q.marked, q.state = m.gen, 0, issuing; m.chance(m.v.lostIssue) {
			q.state, q.unseen = landing, true
			m.skips++
		}
	case issuing: // a mark a step, then the pending table
		if q.marked < q.n && !m.deaf {
			if !m.v.markLate {
				m.mark(q.gen, q.disk, q.first+q.marked, 1)
			}
			q.marked++
			return
		}
		if old := m.pend[q.disk][q.tag]; old.n > 0 && !m.v.noPending { // a completion never seen
			for b := old.first; b < old.first+old.n; b++ {
				m.dirty[q.disk][b] = true
			}
		}
		if m.pend[q.disk][q.tag] = (modelRange{q.first, q.n}); m.deaf {
			m.pend[q.disk][q.tag] = modelRange{}
		}
		q.state = landing
	case landing: // block by block, in any order
		if m.chance(m.v.requeue) {
			m.pend[q.disk][q.tag] = modelRange{}
			q.landed, q.state = 0, queued
			return
		}
		if q.landed == 1<<q.n-1 {
			q.state = landed
			return
		}
		j := m.r.IntN(q.n)
		for q.landed>>j&1 != 0 {
			j = (j + 1) % q.n
		}
		q.landed |= 1 << j
		b := q.first + j
		m.dev[q.disk][b] = q.id
		m.past[q.disk][b] = append(m.past[q.disk][b], landedWrite{q.id, m.now})
	case landed: // the completion program begins, unless it is lost
		// The tracker waits for those that are early; here they may last longer.
		if q.marked, q.state = 0, completing; !q.early && m.chance(m.v.lostComplete) {
			q.state = over
		}
	case completing:
		if q.marked < q.n && !m.deaf {
			m.dirty[q.disk][q.first+q.marked] = true
			if m.v.markLate {
				m.mark(m.gen, q.disk, q.first+q.marked, 1)
			}
			q.marked++
			return
		}
		m.pend[q.disk][q.tag] = modelRange{}
		if q.state = over; q.unseen && !m.deaf {
			m.lost++
		}
	case over: // whoever wrote is told
		m.writes[q.id].completed = m.now
		m.inUse[q.disk][q.tag] = false
		m.active[i] = m.active[len(m.active)-1]
		m.active = m.active[:len(m.active)-1]
		if q.done != nil {
			q.done()
		}
		m.giveTags()
	}
}

// ---- writers

// log writes record n to disk 0 and, once that is done, to disk 1.
func (m *model) log() {
	m.record++
	n := m.record
	m.submit(0, int(n)%5, 1, n, func() { m.submit(1, int(n)%5, 1, n, m.log) })
}

// files writes as a journalling file system does: data, journal, commit block.
func (m *model) files(disk int) func() {
	turn := 0
	var run func()
	run = func() {
		turn++
		m.submit(disk, 5+m.r.IntN(2), 1+m.r.IntN(3), 0, func() {
			m.submit(disk, 9+turn%2*2, 2, 0, func() {
				m.submit(disk, 13, 1, 0, func() {
					if m.chance(.3) {
						m.submit(disk, 14, 1, 0, nil)
					}
					if m.chance(.5) {
						m.submit(1-disk, 5+m.r.IntN(3), 2, 0, run)
						return
					}
					run()
				})
			})
		})
	}
	return run
}

func (m *model) random(disk int) {
	m.submit(disk, 5+m.r.IntN(9), 1+m.r.IntN(3), 0, func() { m.random(disk) })
}

// ---- the checker

// check asks whether there is an instant T at which a power cut could have left
// the replica: every write in it was issued before T, every write it lacks was
// completed after T.
func (m *model) check() {
	newest, oldest := int64(-1), int64(never)
	var logged [modelDisks]int32
	for d := range modelDisks {
		for b := range modelBlocks {
			if m.fs[d] != nil && b > modelTable && !m.fs[d].tables[m.replica[d][modelTable]][b] {
				continue // no file's: it may hold anything
			}
			id, past := m.replica[d][b], m.past[d][b]
			at := len(past) - 1
			for at >= 0 && past[at].id != id {
				at--
			}
			if at < 0 && id != 0 {
				m.bad = fmt.Sprintf("block %d/%d holds write %d, which never landed there", d, b, id)
				return
			}
			if id != 0 {
				newest = max(newest, m.writes[id].issued)
			}
			for _, l := range past[at+1:] {
				oldest = min(oldest, m.writes[l.id].completed)
			}
			if at > 0 {
				m.past[d][b] = append(past[:0], past[at:]...)
			}
			if b < 5 {
				logged[d] = max(logged[d], m.writes[id].record)
			}
		}
	}
	if newest >= oldest {
		m.bad = fmt.Sprintf("point %v: a write issued at step %d is in it, one completed at step %d is not", m.last, newest, oldest)
	} else if logged[1] > logged[0] {
		m.bad = fmt.Sprintf("point %v: record %d is on the second disk, the first has only %d", m.last, logged[1], logged[0])
	}
}

// ---- Tracker

func (m *model) Method() (Method, string) { return EBPF, "model" }

func (m *model) Skipped() (uint64, error) {
	m.yield()
	switch {
	case !m.v.counted:
		return 0, nil
	case m.v.countedEarly:
		return m.skipsThen, nil
	}
	return m.skips, nil
}

func (m *model) Prepare() error {
	m.skipsThen = m.skips
	m.filter[(m.gen+1)&1] = [modelDisks][modelBlocks]bool{}
	m.yield()
	if m.early = nil; m.v.scanEarly {
		m.scan(func(d, b int) { m.early = append(m.early, modelBlock{d, b}) })
	}
	return nil
}

func (m *model) Flip() { m.gen++; m.yield() }

func (m *model) scan(f func(disk, block int)) {
	for d := range modelDisks {
		for b := range modelBlocks {
			if m.v.ignoreHeld && m.fs[d] != nil && m.fs[d].held[b] {
				m.dirty[d][b] = false
			}
			if m.dirty[d][b] {
				if m.v.oweLate {
					m.dirty[d][b] = false
					m.yield()
				}
				f(d, b)
				if m.v.crashes && !m.v.oweLate {
					m.yield()
				}
				if !m.v.clearAfterRead {
					m.dirty[d][b] = false
				}
			}
			if b%4 == 3 {
				m.yield()
			}
		}
	}
}

func (m *model) pending(into *Set) {
	for d := range modelDisks {
		for t := range modelTags {
			if p := m.pend[d][t]; p.n > 0 && !m.v.noPending {
				into.Add(d, uint64(p.first), uint64(p.n))
			}
			if t%3 == 0 {
				m.yield()
			}
		}
	}
}

func (m *model) Pending(into *Set) {
	if !m.v.pendingLate {
		m.pending(into)
	}
}

func (m *model) Changed(into *Set) error {
	if m.v.scanEarly {
		for _, x := range m.early {
			into.Add(x.disk, uint64(x.block), 1)
		}
		return nil
	}
	m.scan(func(d, b int) { into.Add(d, uint64(b), 1) })
	if m.v.pendingLate {
		m.pending(into)
	}
	return nil
}

func (m *model) conflict(disk, first, n int) bool {
	for b := first; b < first+n; b++ {
		if b < modelBlocks && m.filter[m.gen&1][disk][b] {
			return true
		}
	}
	return false
}

func (m *model) Conflict(disk int, first, n uint64) bool {
	m.yield()
	switch {
	case m.v.noConflictTest:
		return false
	case m.v.conflictFirst:
		return m.asked
	}
	return m.conflict(disk, int(first), int(n))
}

// Settle fails when an audit, now and then, knows of a write whose issue was not
// seen. It covers everything when there is none, also none under way.
func (m *model) Settle(context.Context) (bool, error) {
	if m.clean = false; !m.v.audits || m.chance(.95) {
		return true, nil
	}
	if m.lost > m.account {
		m.account = m.lost
		return false, &AuditError{Disk: -1, Reason: "model"}
	}
	m.clean = true
	for _, q := range m.active {
		m.clean = m.clean && !q.unseen
	}
	return true, nil
}

func (m *model) Close() error { return nil }

func (m *model) audited() bool {
	if m.v.audits {
		return m.clean
	}
	return m.chance(m.v.rollback / 10)
}

// ---- keeper

func (m *model) owed() []uint64 { return m.owes }

func (m *model) kept() (position, bool) {
	if m.saved == nil {
		return position{}, false
	}
	return *m.saved, true
}

func (m *model) keep(p position) {
	m.yield()
	if m.v.unsuspecting {
		p.suspect = false
	}
	if p.point = (block.Point{}); m.v.keepLate {
		m.saved, m.late = m.late, &p
		if m.saved == nil {
			m.saved = &p
		}
	} else {
		m.saved = &p
	}
	m.accounts = m.account
	m.yield()
}

// owing asks whether what is pinned holds everything that is not acknowledged.
func (m *model) owing() {
	for w, v := range m.owes {
		missing := m.engine.todo.words[w] | m.engine.staged.words[w]
		if u := m.engine.unread.set; u != nil {
			missing |= u.words[w]
		}
		if missing &^= v; missing != 0 && !m.v.mutant {
			m.bad = fmt.Sprintf("word %d: %b is to be sent and not owed", w, missing)
		}
	}
}

// noise makes blocks that do not compress, which would take most of the time.
var noise = func() []byte {
	b := make([]byte, block.Size)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

// blockOf is what a block holds after write id; before any it is zero.
func blockOf(p []byte, id int32) {
	if id == 0 {
		clear(p)
		return
	}
	copy(p, noise)
	binary.LittleEndian.PutUint64(p, uint64(id))
}

func (m *model) read(disk int, x block.Extent, buf []byte) error {
	m.asked = m.conflict(disk, int(x.Start), int(x.Count))
	for b := int(x.Start); b < int(x.End()); b++ {
		if m.bads[disk][b] {
			m.failures++
			return &DiskError{Op: "read", Offset: int64(b) * block.Size, Err: unix.EIO}
		}
	}
	for i := range int(x.Count) {
		b := int(x.Start) + i
		id := m.dev[disk][b]
		blockOf(buf[i*block.Size:][:block.Size], id)
		m.yield()
		if m.v.clearAfterRead {
			m.dirty[disk][b] = false
		}
	}
	return nil
}

// ---- Sink

var errModelLost = errors.New("session lost")

func (m *model) Put(_ context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	m.yield()
	if m.chance(m.loss) {
		return errModelLost
	}
	run.Payload = append([]byte(nil), run.Payload...)
	m.staged[ordinal] = run
	return nil
}

func (m *model) Commit(_ context.Context, p block.Point, runs uint64, flags block.Flags) (err error) {
	if m.v.settleEarly {
		for w := range m.owes {
			m.owes[w] = m.engine.todo.words[w]
		}
	}
	m.landing = func() { err = m.commit(p, runs, flags) }
	m.yield()
	if m.landing = nil; m.chance(m.loss) {
		return errModelLost
	}
	if err := m.commit(p, runs, flags); err != nil {
		return err
	}
	m.yield()
	if m.chance(m.loss) {
		return errModelLost // it took place, but who knows
	}
	return nil
}

// Retract makes the other side what it was at a point.
func (m *model) Retract(_ context.Context, after block.Seq) error {
	m.yield()
	if m.chance(m.loss) {
		return errModelLost
	}
	for n := len(m.backups); n > 0 && m.last > after; n-- {
		if m.backups = m.backups[:n-1]; n == 1 {
			m.replica, m.last = [modelDisks][modelBlocks]int32{}, 0
		} else {
			m.replica, m.last = m.backups[n-2].replica, m.backups[n-2].last
		}
	}
	if m.last != after {
		m.bad = fmt.Sprintf("withdrawn after %v, which is not there", after)
	}
	m.bases[after] = m.replica
	m.wrong = slices.DeleteFunc(m.wrong, func(s block.Seq) bool { return s > after })
	m.yield()
	if m.chance(m.loss) {
		return errModelLost
	}
	return nil
}

func (m *model) commit(p block.Point, runs uint64, flags block.Flags) error {
	if uint64(len(m.staged)) != runs || p.Seq <= m.last || p.Seq != m.last+1 && !m.v.audits {
		m.bad = fmt.Sprintf("commit of %v with %d runs after %v with %d", p.Seq, runs, m.last, len(m.staged))
	}
	var buf [modelBlocks * block.Size]byte
	for i := range runs {
		run := m.staged[i]
		data := buf[:run.Extent.Bytes()]
		if err := run.Decode(data); err != nil {
			return err
		}
		for j := range int(run.Extent.Count) {
			m.replica[run.Extent.Disk][int(run.Extent.Start)+j] = int32(binary.LittleEndian.Uint64(data[j*block.Size:]))
		}
	}
	clear(m.staged)
	if m.last = p.Seq; m.v.rollback > 0 || m.v.audits {
		m.backups = append(m.backups, modelBackup{m.replica, m.last})
	}
	if flags.Has(block.Consistent) {
		m.points++
		m.check()
		m.excuse()
	} else {
		m.progress++
	}
	return nil
}

// excuse allows a wrong point until an audit has called it clean: then it stays.
func (m *model) excuse() {
	if m.v.audits && m.bad != "" {
		m.bad, m.wrong, m.excused = "", append(m.wrong, m.last), m.excused+1
	}
	for _, seq := range m.wrong {
		if seq <= m.engine.clean {
			m.bad = fmt.Sprintf("point %v is wrong, and %v was clean", seq, m.engine.clean)
		}
	}
}

// Compare hashes block by block what the other side had.
func (m *model) Compare(_ context.Context, point block.Seq, x block.Extent, hashes []block.Hash) ([]bool, error) {
	m.yield()
	if m.chance(m.loss) {
		return nil, errModelLost
	}
	then, ok := m.bases[point]
	if !ok {
		m.bad = fmt.Sprintf("compared with point %v, which is not there", point)
	}
	differ := make([]bool, len(hashes))
	var b [block.Size]byte
	for i := range hashes {
		blockOf(b[:], then[x.Disk][int(x.Start)+i])
		differ[i] = block.AppendHashes(nil, b[:], 1)[0] != hashes[i]
	}
	return differ, nil
}

// before gives the other side a replica of which some blocks are as the disks are
// and the others are nobody's.
func (m *model) before() {
	m.last = 3
	for d := range modelDisks {
		for b := range modelBlocks {
			if m.chance(.5) {
				m.replica[d][b] = -1
			}
		}
	}
}

// ---- the run

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
	e.now = func() time.Time { return time.UnixMilli(50 * m.now) }
	e.sleep = func(context.Context, time.Duration) error {
		for range m.r.IntN(m.pauses) {
			m.yield()
		}
		return nil
	}
	m.engine = e
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
			points, progress, failures, kills, reboots, excused, left, done := 0, 0, 0, 0, 0, 0, 0, int64(0)
			for seed := from; seed < from+n; seed++ {
				m := simulate(v, seed, steps)
				points, progress, kills, excused, done = points+m.points, progress+m.progress, kills+m.kills, excused+m.excused, done+m.now
				failures, reboots, left = failures+m.failures, reboots+m.reboots, left+m.left
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
			t.Logf("seeds %d to %d: %d steps, %d points, %d commits of progress, %d failed reads, %d kills, %d reboots, %d wrong points excused, %d blocks left out", from, from+n-1, done, points, progress, failures, kills, reboots, excused, left)
			if v.frees && left == 0 && !raceEnabled {
				t.Fatal("no block was ever left out: the model tests nothing")
			}
			if points < int(n) && !raceEnabled {
				t.Fatalf("only %d points: the model tests nothing", points)
			}
		})
	}
}
