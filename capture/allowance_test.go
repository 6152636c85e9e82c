package capture

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"rehost/block"
	"rehost/internal/fault"
)

// A worker takes processor time for each piece of work, on a machine that is
// otherwise idle.
type worker struct{ used time.Duration }

// workFor works as the allowance lets it, and returns what part of the time it did.
func (w *worker) workFor(t *testing.T, a *allowance, piece, d time.Duration) float64 {
	t.Helper()
	began, from := time.Now(), w.used
	for time.Since(began) < d {
		time.Sleep(piece)
		w.used += piece
		if err := a.wait(t.Context(), sleep); err != nil {
			t.Fatal(err)
		}
	}
	return (w.used - from).Seconds() / time.Since(began).Seconds()
}

// TestAllowance: bulk work takes what it is given, whatever the size of its
// pieces, nothing for what it did not take long ago, and another share from the
// moment on that the limit changes.
func TestAllowance(t *testing.T) {
	for _, piece := range []time.Duration{time.Millisecond, 50 * time.Millisecond, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := &worker{}
			a := &allowance{used: func() time.Duration { return w.used }, now: time.Now}
			share := func(want float64) {
				t.Helper()
				if got := w.workFor(t, a, piece, time.Minute); got < .9*want || got > 1.1*want {
					t.Errorf("pieces of %v: %.0f %% of a processor, want %.0f", piece, 100*got, 100*want)
				}
			}
			share(1)
			a.set(.2)
			share(.2)
			a.set(.5)
			share(.5)
			time.Sleep(time.Hour) // no credit for that
			share(.5)
			a.set(0)
			share(1)
		})
	}
}

// TestAllowance_Live: who waits sees within a moment that the limit was lifted, or
// that there is nothing to wait for any more.
func TestAllowance_Live(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		used := time.Duration(0)
		a := &allowance{used: func() time.Duration { return used }, now: time.Now}
		a.set(.01)
		used = time.Minute // worth an hour and a half
		began := time.Now()
		time.AfterFunc(time.Second, func() { a.set(0) })
		if err := a.wait(t.Context(), sleep); err != nil || time.Since(began) > time.Second+allowanceLook {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		a.set(.01)
		used += time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.wait(ctx, sleep); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// TestEngine_CPULimit copies a real disk under a limit: by the kernel's account
// the process takes no more than that, but for a piece that is under way. It
// is alone in this process, or others would be on its account.
func TestEngine_CPULimit(t *testing.T) {
	const size, limit = 64 << 20, .4
	const pieces = size / block.Size / batchBlocks
	disk := fault.Loop(t, size)
	f := openDirect(t, disk.Path, 0)
	buf := newBuffer()
	for at := int64(0); at < size; at += int64(len(buf)) {
		fillWords(buf, byte(at/int64(len(buf))))
		if _, err := f.WriteAt(buf, at); err != nil {
			t.Fatal(err)
		}
	}
	disks := disksOf(t, disk)
	e := openEngine(t, Options{Disks: disks, Readers: 1})
	e.SetCPULimit(limit)
	rep := newReplica(disks)
	began, from := time.Now(), processTime()
	stop := start(t, e, rep, 0)
	waitPoint(t, rep)
	took, used := time.Since(began), processTime()-from
	stop()
	t.Logf("%v of the processor in %v: %.0f %% of one", used, took, 100*used.Seconds()/took.Seconds())
	if s := e.Status(); s.CPULimit != limit || s.CPU < used {
		t.Errorf("the status says %v used, limit %v", s.CPU, s.CPULimit)
	}
	rep.differs(t, disks)
	if most := limit * took.Seconds() * pieces / (pieces - 1); used.Seconds() > 1.1*most+.05 {
		t.Errorf("%v of the processor in %v, want at most %.2f s", used, took, most)
	}
}
