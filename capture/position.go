package capture

import (
	"rehost/block"
)

// A position is where replication is: what an engine has to know, besides the
// blocks that are owed, to go on from where another one was.
type position struct {
	acked, asked, clean      block.Seq   // as in Engine
	whole                    bool        // as in Engine
	halfway                  bool        // what is owed is being compared
	started, synced, suspect bool        // as in Engine
	point                    block.Point // the newest consistent one
}

// A keeper is a [Tracker] whose memory outlives this process.
//
// The blocks owed to the other side are bits in that memory. They hold, at any
// instant, every granule that is to be read or was read and is not acknowledged:
// a granule is owed before anything else forgets it, and until the position says
// that it was acknowledged. docs/capture.md has the proof.
type keeper interface {
	// owed is the bitmap, in the engine's layout; nil if nothing outlives this process.
	owed() []uint64
	// kept is the position of an engine before this one, if its tracking went on.
	kept() (position, bool)
	// keep writes a position down: a process killed in it leaves this one or the one before.
	keep(position)
}

// restore goes on from where an engine before this one was, if tracking went on
// meanwhile, and reports whether it did.
func (e *Engine) restore() bool {
	k, ok := e.tracker.(keeper)
	if !ok || k.owed() == nil {
		return false
	}
	e.keeper = k
	e.todo.owed, e.staged.owed = k.owed(), k.owed()
	p, ok := k.kept()
	if !ok {
		return false
	}
	for w, v := range k.owed() {
		e.todo.addWord(w, v)
	}
	// Which blocks are in points not audited yet is not kept: it may be any.
	for i, p := range e.layout.disks {
		e.doubt.Add(i, 0, p.granules)
	}
	e.acked, e.asked, e.whole, e.clean = p.acked, p.asked, p.whole, p.clean
	e.started, e.synced, e.suspect, e.halfway = p.started, p.synced, p.suspect, p.halfway
	e.status.resumed(e, p.point)
	return true
}

// keep writes down where replication is.
func (e *Engine) keep() {
	if e.keeper == nil {
		return
	}
	e.keeper.keep(position{
		acked: e.acked, asked: e.asked, whole: e.whole, clean: e.clean,
		started: e.started, synced: e.synced, suspect: e.suspect, halfway: e.halfway || e.foreign != nil,
		point: e.status.newest(),
	})
}
