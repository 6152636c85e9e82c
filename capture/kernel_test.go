package capture

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"rehost/block"
	"rehost/capture/bpf"
	"rehost/internal/fault"
)

// TestKernelTracker_Excuses: a completion without an issue is excused where the
// kernel has skipped programs, but not more of them than were skipped, and none twice.
// Whoever excuses more is caught.
func TestKernelTracker_Excuses(t *testing.T) {
	asIs := func(tr *kernelTracker, missed uint64) error { return tr.checkCounters(missed) }
	for _, c := range []struct {
		name  string
		check func(tr *kernelTracker, missed uint64) error
		bad   bool
	}{
		{"as it is", asIs, false},
		{"M without a limit", func(tr *kernelTracker, _ uint64) error { return tr.checkCounters(math.MaxUint64) }, true},
		{"M one excuse for many", func(tr *kernelTracker, missed uint64) error { tr.missed = 0; return tr.checkCounters(missed) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := openEngine(t, Options{Disks: disksOf(t, fault.Loop(t, 1<<20), fault.Loop(t, 1<<20))})
			tr, ok := e.tracker.(*kernelTracker)
			if !ok {
				t.Skipf("SKIPPED: this machine has no tracker: %s", e.Status().Reason)
			}
			if err := excuses(tr, c.check); (err != nil) != c.bad {
				t.Errorf("got %v", err)
			} else if c.bad {
				t.Logf("caught: %v", err)
			}
		})
	}
}

// excuses plays completions without an issue, and skips, to a tracker.
func excuses(tr *kernelTracker, check func(*kernelTracker, uint64) error) error {
	var skips bpf.Skips
	tr.look = func() (bpf.Skips, error) { return skips, nil }
	lost := func(disk int, n uint64) { tr.base[disk].counts.LostIssues -= n } // as if there had been fewer before
	expect := func(what string, excused bool) error {
		err := check(tr, skips.Unseen())
		switch audit := (*AuditError)(nil); {
		case err != nil && !errors.As(err, &audit):
			return err
		case err != nil && excused:
			return fmt.Errorf("%s: %w", what, err)
		case err == nil && !excused:
			return fmt.Errorf("%s: it is excused", what)
		}
		return nil
	}
	anew := func() error { return errors.Join(tr.open(0), tr.open(1)) }

	skips.Program = 4
	lost(0, 3)
	if err := expect("three of four", true); err != nil {
		return err
	}
	lost(1, 1)
	if err := expect("four of four, on two disks", true); err != nil {
		return err
	}
	if err := anew(); err != nil {
		return err
	}
	lost(1, 1)
	if err := expect("one more, when the four are used up", false); err != nil {
		return err
	}
	skips.Program += 3
	lost(0, 2)
	lost(1, 2)
	if err := expect("four of three, two on each disk", false); err != nil {
		return err
	}
	if err := anew(); err != nil {
		return err
	}
	skips.Program++ // a write that has ended, or one to another disk: the next audit of disks at rest settles that
	tr.clean = false
	for end := time.Now().Add(30 * time.Second); !tr.clean; time.Sleep(time.Millisecond) {
		if err := tr.audit(skips.Unseen()); err != nil {
			return err
		}
		if time.Now().After(end) {
			return errors.New("the disks were never at rest")
		}
	}
	lost(0, 1)
	return expect("one more, after a clean audit", false)
}

// TestKernelTracker_Lost: an account that is short is excused by completions that were
// lost, also by one that only its entry in the pending table tells of, and by nothing else.
func TestKernelTracker_Lost(t *testing.T) {
	for name, c := range map[string]struct {
		lost    int64
		entry   bool
		excused bool
	}{
		"nothing":                               {},
		"one":                                   {lost: 1, excused: true},
		"one that was put back":                 {lost: -1},
		"an entry that is left":                 {entry: true, excused: true},
		"the entry of one that gave up its tag": {lost: -1, entry: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPinned(t)
			tr := openEngine(t, p.o).tracker.(*kernelTracker)
			missed, err := tr.unseen()
			if err := errors.Join(err, tr.open(0)); err != nil {
				t.Fatal(err)
			}
			if c.entry {
				m, err := ebpf.LoadPinnedMap(filepath.Join(p.o.Pins, "pend"), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if err := m.Put(uint32(1), uint64(1)<<63|5<<20); err != nil { // block 5
					t.Fatal(err)
				}
			}
			base := &tr.base[0]
			base.stats.bytes -= block.Size // the kernel has counted a block that nobody saw
			base.counts.LostCompletions -= uint64(c.lost)
			for range 3 { // the first looks, the second is at rest
				if _, err = tr.auditDisk(0, uint32(missed)); err != nil {
					break
				}
			}
			if (err == nil) != c.excused {
				t.Errorf("got %v", err)
			}
		})
	}
}
