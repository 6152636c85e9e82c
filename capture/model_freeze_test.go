package capture

import (
	"context"
	"errors"
	"time"
)

// A modelFreezer keeps the model's programs from beginning a write, mostly: some
// freezes are refused, some end early, and some writers have no file system.
type modelFreezer struct{ m *model }

func (f modelFreezer) Prepare(context.Context, []uint64) error {
	f.m.yield()
	if f.m.chance(.1) {
		return errors.New("there is no freezer in the model, for now")
	}
	return nil
}

func (f modelFreezer) Freeze(context.Context, time.Duration) (time.Duration, error) {
	m := f.m
	m.yield()
	if m.chance(.1) {
		return 0, errors.New("the model does not freeze, for now")
	}
	m.freezes++
	m.believed, m.holding = true, m.now+int64(m.r.IntN(400))
	return time.Hour, nil
}

func (f modelFreezer) Thaw() (time.Duration, error) {
	f.m.believed, f.m.holding = false, 0
	f.m.yield()
	return time.Millisecond, nil
}

// held reports whether a request has to wait until it is thawed: not those that are
// on their way, nor those of a program that writes to the disk itself.
func (m *model) held(q *modelRequest) bool {
	return m.now < m.holding && !q.began && q.first >= 5
}
