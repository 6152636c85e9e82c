package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"rehost/block"
)

// ---- checker

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
