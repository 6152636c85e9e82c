package capture

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"rehost/block"
)

// ---- requests

func (m *model) submit(disk, first, n int, record int32, done func()) {
	q := &modelRequest{id: int32(len(m.writes)), disk: disk, first: first, n: n, tag: -1, done: done}
	for range n { // a write for each block: they may be done at different times
		m.writes = append(m.writes, modelWrite{never, never, record})
	}
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
		if m.chance(m.v.alike) {
			from = m.freed[q.disk]
		}
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
		if m.held(q) {
			return
		}
		if !q.began {
			q.began = true
			for i := range q.n {
				m.writes[q.id+int32(i)].issued = m.now
			}
		}
		q.early = q.early || m.deaf
		q.unseen, q.spare = true, false
		m.enter(q)
	case sparing: // the spare begins
		q.spare = true
		m.enter(q)
	case issuing: // a mark a step, then the pending table
		if q.marked < q.n && !m.deaf {
			if !m.v.markLate {
				m.mark(q.gen, q.disk, q.first+q.marked, 1)
			}
			q.marked++
			return
		}
		entry := &m.pend[q.disk][q.tag]
		if old := *entry; !q.relieved && old.n > 0 && !m.v.noPending && !(q.spare && old == q.covers()) { // a completion never seen
			q.relieved = true
			if m.v.forgottenFirst {
				*entry = modelRange{}
				q.late = old
				return
			}
			m.soil(q.disk, old)
			return
		}
		if q.late.n > 0 && m.chance(.9) {
			return
		}
		m.soil(q.disk, q.late)
		q.late = modelRange{}
		if *entry = q.covers(); m.deaf {
			*entry = modelRange{}
		}
		m.leave(q)
	case landing: // block by block, in any order
		if m.chance(m.v.requeue) {
			// Below a scheduler it has given its tag away by then: the entry stays there.
			if q.state = requeued; m.chance(m.v.scheduled) {
				q.state = putBack
			} else if !m.v.hasty {
				m.soil(q.disk, m.pend[q.disk][q.tag])
			}
			return
		}
		q.ends = bits.TrailingZeros32(^q.landed)
		if q.ends == q.n || q.ends > 0 && m.chance(m.v.parts) {
			q.state = landed
			return
		}
		j := m.r.IntN(q.n)
		for q.landed>>j&1 != 0 {
			j = (j + 1) % q.n
		}
		q.landed |= 1 << j
		b := q.first + j
		id := q.id + int32(j)
		m.dev[q.disk][b] = id
		m.past[q.disk][b] = append(m.past[q.disk][b], landedWrite{id, m.now})
	case requeued: // and forgotten
		m.pend[q.disk][q.tag] = modelRange{}
		q.landed, q.state = 0, queued
	case putBack:
		m.drop(i)
		q.landed, q.state = 0, queued
		m.queue = append(m.queue, q)
		m.giveTags()
	case landed: // the completion program begins, unless it is lost
		// The tracker waits for those that are early; here they may last longer.
		if q.marked, q.state, q.relieved = 0, completing, false; !q.early && !(q.unseen && m.v.oneEnd) && m.chance(m.v.lostComplete) {
			if q.state = over; q.unseen {
				m.lost++
			}
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
		if q.ends < q.n && !m.v.hurried { // the rest is still in flight
			q.state = over
			return
		}
		// A request's of before, and this one's issue was not seen; or its own, of which a part was done, perhaps unseen.
		old := m.pend[q.disk][q.tag]
		own := old == q.covers() || m.v.lenient && old.first < q.first && old.first+old.n == q.first+q.n
		if !q.relieved && old.n > 0 && !own {
			m.soil(q.disk, old)
			q.relieved = true
			return
		}
		m.pend[q.disk][q.tag] = modelRange{}
		if q.state = over; q.unseen && !m.deaf {
			m.lost++
		}
	case over: // whoever wrote is told
		for i := range q.ends {
			m.writes[q.id+int32(i)].completed = m.now
		}
		if q.ends < q.n { // or of a part, and the rest goes on
			q.id, q.first, q.n, q.landed, q.state = q.id+int32(q.ends), q.first+q.ends, q.n-q.ends, q.landed>>q.ends, landing
			return
		}
		m.drop(i)
		if q.done != nil {
			q.done()
		}
		m.giveTags()
	}
}

// drop takes a request's tag from it.
func (m *model) drop(i int) {
	q := m.active[i]
	m.inUse[q.disk][q.tag], m.freed[q.disk] = false, q.tag
	m.active[i] = m.active[len(m.active)-1]
	m.active = m.active[:len(m.active)-1]
}

// enter lets an issue program begin, which reads the generation, unless it is skipped.
func (m *model) enter(q *modelRequest) {
	switch {
	case !m.calm && !(q.spare && m.v.credulous) && m.chance(m.v.lostIssue):
		if q.spare {
			m.skips.Spare++
		} else {
			m.skips.Program++
		}
		m.leave(q)
	case q.spare && m.v.credulous && m.pend[q.disk][q.tag] == q.covers():
		q.unseen = false
		m.leave(q)
	default:
		q.gen, q.marked, q.state, q.unseen, q.relieved = m.gen, 0, issuing, false, false
	}
}

// leave ends it, or its being skipped.
func (m *model) leave(q *modelRequest) {
	if q.state = landing; m.skips.Spared && !q.spare {
		q.state = sparing
	}
}

func (q *modelRequest) covers() modelRange { return modelRange{q.first, q.n} }

// soil marks a range dirty.
func (m *model) soil(disk int, r modelRange) {
	for b := r.first; b < r.first+r.n; b++ {
		m.dirty[disk][b] = true
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
	m.rewrite(disk, 5+m.r.IntN(9), 1+m.r.IntN(3))
}

// rewrite writes a range and perhaps, once that is done, all but its first block again, and so on.
func (m *model) rewrite(disk, first, n int) {
	m.submit(disk, first, n, 0, func() {
		if n > 1 && m.chance(m.v.alike) {
			m.rewrite(disk, first+1, n-1)
			return
		}
		m.random(disk)
	})
}

// ---- Tracker

func (m *model) Method() (Method, string) { return EBPF, "model" }

func (m *model) Skipped() (uint64, error) {
	m.yield()
	now := m.skips
	switch {
	case !m.v.counted:
		return 0, nil
	case m.v.countedEarly:
		now = m.skipsThen
	case m.v.confident && now.Spared:
		return m.blind, nil
	}
	if now.Blind(m.skipsSeen) {
		m.blind++
	}
	m.skipsSeen = now
	if m.v.spares && now.Program > 0 && !now.Spared {
		m.skips.Spared, m.skips.Alone = true, m.skips.Program
	}
	return m.blind, nil
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
	case m.v.noConflictTest, m.v.believes && m.believed:
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
		m.account, m.calm = m.lost, m.v.storms
		return false, &AuditError{Disk: -1, Reason: "model"}
	}
	m.clean = true
	for _, q := range append(m.queue[:len(m.queue):len(m.queue)], m.active...) { // one that was put back is under way
		m.clean = m.clean && !q.unseen
	}
	m.calm = m.calm && !m.clean
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
