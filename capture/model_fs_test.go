package capture

import "context"

// A file system of the model: files of one block each, and a table in a block of its
// own that says which blocks are files. Before it is on the disk a file is none, and
// one that was removed is one still: so its block is not given away before that.
// What its map shows lags behind, or runs ahead, as real ones do: an extent that is
// given away may be in the map only when the table is on the disk (btrfs), and one
// that is taken back may have left it before that (xfs).

const modelTable = 16 // the table's block; files come behind it

type modelBits [modelBlocks]bool

type modelFS struct {
	m    *model
	disk int

	used    modelBits           // given away, or not yet to be given away again
	files   modelBits           // as the table in memory has them
	writing modelBits           // a write is under way
	shown   modelBits           // the map shows it as in use
	tables  map[int32]modelBits // by the write that brought it to the disk
	made    [modelBlocks]int    // which change gave it away

	changes, durable int
	committing       bool
	idle             int // programs between one thing and the next

	early modelBits // the map as it was before anything tracked
	held  modelBits // left out
	asked bool      // the map was asked for before
}

// work makes, rewrites and removes files, one thing after the other, for ever.
func (f *modelFS) work() {
	b := modelTable + 1 + f.m.r.IntN(modelBlocks-modelTable-1)
	switch {
	case !f.used[b]:
		f.used[b], f.writing[b] = true, true
		f.changes++
		f.made[b] = f.changes
		f.shown[b] = f.m.chance(.5)
		f.m.submit(f.disk, b, 1, 0, func() {
			f.writing[b], f.files[b] = false, true
			f.changes++
			f.next()
		})
	case f.files[b] && !f.writing[b] && f.m.chance(.5):
		f.writing[b] = true
		f.m.submit(f.disk, b, 1, 0, func() {
			f.writing[b] = false
			f.next()
		})
	case f.files[b] && !f.writing[b]:
		f.files[b] = false
		f.changes++
		if f.m.chance(.5) {
			f.shown[b] = false
		}
		f.next()
	default:
		f.next()
	}
}

// next is the end of one thing; the next one follows some time later.
func (f *modelFS) next() {
	if f.idle++; f.m.chance(.3) {
		f.commit()
	}
}

// wake lets one who is idle go on, now and then.
func (f *modelFS) wake() {
	if f != nil && f.idle > 0 && f.m.chance(.02) {
		f.idle--
		f.work()
	}
}

// commit brings the table to the disk.
func (f *modelFS) commit() {
	if f.committing {
		return
	}
	f.committing = true
	files, changes := f.files, f.changes
	f.tables[int32(len(f.m.writes))] = files
	f.m.submit(f.disk, modelTable, 1, 0, func() {
		f.committing, f.durable = false, changes
		for b := range f.used {
			switch {
			case files[b] && f.files[b]:
				f.shown[b] = true
			case !files[b] && !f.files[b] && f.used[b] && !f.writing[b] && f.made[b] <= changes:
				f.used[b], f.shown[b] = false, false
			}
		}
	})
}

// sync returns when all that was done before is on the disk.
func (f *modelFS) sync() {
	made, writing := f.made, f.writing
	for b := range writing {
		for writing[b] && f.writing[b] && f.made[b] == made[b] {
			f.m.yield()
		}
	}
	for target := f.changes; f.durable < target; f.m.yield() {
		f.commit()
	}
}

// free is the engine's question for blocks that no file system has in use.
func (m *model) free(_ context.Context, into *Set) ([]FreeArea, error) {
	for _, f := range m.fs {
		if !m.v.noSyncBefore {
			f.sync()
		}
		old := f.held
		for b := modelTable + 1; b < modelBlocks; b++ {
			used := f.shown[b]
			if m.v.earlyMap {
				used = f.early[b]
			}
			f.held[b] = !used
			m.yield()
		}
		if m.v.oldMap && f.asked {
			f.held = old
		}
		f.asked = true
		if !m.v.noSyncAfter {
			f.sync()
		}
		if m.v.takeBetween {
			m.scan(func(d, b int) { m.engine.todo.Add(d, uint64(b), 1) })
		}
		for b, held := range f.held {
			if held || m.v.strikeWordwide {
				into.Add(f.disk, uint64(b), 1)
				m.left++
			}
		}
	}
	return nil, nil
}
