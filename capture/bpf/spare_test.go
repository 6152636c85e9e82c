package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/internal/fault"
)

// tracked is a tracker of a loop device, and the device opened for direct writes.
func tracked(t *testing.T) (*Tracker, *os.File) {
	t.Helper()
	if err := Supported(); err != nil {
		t.Skipf("SKIPPED: this kernel does not let us track requests: %v", err)
	}
	l := fault.Loop(t, 8<<20)
	d := deviceOf(t, l.Path, 2048)
	tr, err := Load([]Disk{d}, 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	f, err := os.OpenFile(l.Path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return tr, f
}

// deviceOf is what the programs need to know of a device.
func deviceOf(t testing.TB, path string, granules uint64) Disk {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	d := Disk{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Granules: granules}
	var err error
	if d.Queues, d.Tags, err = Queues(fmt.Sprintf("/sys/dev/block/%d:%d", d.Major, d.Minor)); err != nil || d.Queues == 0 {
		t.Fatalf("%s has %d queues: %v", path, d.Queues, err)
	}
	return d
}

// page is a page of zeros, as direct writes want it.
func page(t testing.TB) []byte {
	t.Helper()
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(buf) })
	return buf
}

// write writes n blocks, 16 apart, to what tr has as a disk's, and returns what the kernel
// side counted of them, a write that was put back and issued again once.
func write(t *testing.T, tr *Tracker, disk int, f *os.File, n uint64) Counters {
	t.Helper()
	buf, before := page(t), tr.Counters(disk)
	tr.Prepare()
	tr.Flip()
	for i := range n {
		if _, err := f.WriteAt(buf, int64(i)*16*4096); err != nil {
			t.Fatal(err)
		}
	}
	var c Counters
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) { // an end is counted a moment after it is told
		if c = tr.Counters(disk); c.Completed-before.Completed >= n {
			break
		}
	}
	c.Issued, c.Completed = c.Issued-before.Issued-(c.Requeued-before.Requeued), c.Completed-before.Completed
	c.LostIssues, c.LostCompletions = c.LostIssues-before.LostIssues, c.LostCompletions-before.LostCompletions
	return c
}

// TestTracker_Spare: with its spare the program counts no write twice, and what it
// is kept from, here all of it, leaves every mark by the spare alone.
func TestTracker_Spare(t *testing.T) {
	tr, f := tracked(t)
	const n = 50
	if s, err := tr.Skips(); err != nil || s.Spared {
		t.Fatalf("%+v, %v: there is a spare already", s, err)
	}
	if err := tr.AttachSpare(nil); err != nil {
		t.Fatal(err)
	}
	if s, err := tr.Skips(); err != nil || !s.Spared || s.Unseen() != s.Program {
		t.Fatalf("%+v, %v: there is no spare", s, err)
	}
	if c := write(t, tr, 0, f, n); c.Issued != n || c.Completed != n || c.LostIssues != 0 || c.LostCompletions != 0 {
		t.Errorf("with both, %d writes were counted as %+v", n, c)
	}
	if err := tr.links[trackerProgBlockRqIssue].Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // the kernel detaches a moment later; only a write would show when, and here none may come before
	c := write(t, tr, 0, f, n)
	if c.Issued != n || c.Completed != n || c.LostIssues != 0 || c.LostCompletions != 0 {
		t.Errorf("by the spare alone, %d writes were counted as %+v", n, c)
	}
	for i := range uint64(n) {
		if !tr.Conflict(0, i*16, 1) {
			t.Errorf("the write to granule %d did not reach the conflict filter", i*16)
		}
	}
	if got := tr.DirtyBits(0, 2048/64); got != n {
		t.Errorf("%d granules are dirty, not %d", got, n)
	}
}

// TestPins_Spare: a spare goes on without a process like the other programs, with
// what it counted.
func TestPins_Spare(t *testing.T) {
	tr, f := tracked(t)
	pins, err := OpenPins(filepath.Join(fault.BPF(t), "one"))
	if err != nil {
		t.Fatal(err)
	}
	defer pins.Remove()
	words := 2048 / 64
	if err := pins.Keep(tr, words); err != nil {
		t.Fatal(err)
	}
	if err := pins.Publish(tr); err != nil {
		t.Fatal(err)
	}
	adopt := func() (next *Tracker, s Skips) {
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		if next, err = pins.Adopt(tr.disks, words); err != nil {
			t.Fatal(err)
		}
		if s, err = next.Skips(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { next.Close() })
		return next, s
	}
	tr, s := adopt()
	if s.Spared {
		t.Fatalf("%+v: a spare came by itself", s)
	}
	if err := tr.AttachSpare(pins); err != nil {
		t.Fatal(err)
	}
	*tr.alone() = 7
	if tr, s = adopt(); !s.Spared || s.Alone != 7 {
		t.Fatalf("%+v: the spare is gone", s)
	}
	if err := tr.links[trackerProgBlockRqIssue].Unpin(); err != nil {
		t.Fatal(err)
	}
	if err := tr.links[trackerProgBlockRqIssue].Close(); err != nil {
		t.Fatal(err)
	}
	delete(tr.links, trackerProgBlockRqIssue)
	time.Sleep(200 * time.Millisecond) // the kernel detaches a moment later; only a write would show when, and here none may come before
	if c := write(t, tr, 0, f, 10); c.Issued != 10 || c.LostIssues != 0 {
		t.Errorf("by the spare alone, 10 writes were counted as %+v", c)
	}
}

// TestSkips: what was skipped is unseen only as often as every program was, and a
// look at one of them does not tell.
func TestSkips(t *testing.T) {
	for _, c := range []struct {
		before, after Skips
		unseen        uint64
		blind         bool
	}{
		{Skips{}, Skips{}, 0, false},
		{Skips{}, Skips{Program: 3}, 3, true},
		{Skips{Program: 3}, Skips{Program: 3}, 3, false},
		{Skips{Program: 3}, Skips{Program: 4, Alone: 4, Spared: true}, 4, true},
		{Skips{Program: 4}, Skips{Program: 5, Alone: 4, Spared: true}, 4, true}, // it was not there all the time
		{Skips{Program: 4, Alone: 4, Spared: true}, Skips{Program: 9, Alone: 4, Spared: true}, 4, false},
		{Skips{Program: 9, Alone: 4, Spared: true}, Skips{Program: 9, Alone: 4, Spared: true, Spare: 2}, 6, false},
		{Skips{Program: 9, Alone: 4, Spared: true, Spare: 2}, Skips{Program: 10, Alone: 4, Spared: true, Spare: 3}, 7, true},
	} {
		if got := c.after.Unseen(); got != c.unseen {
			t.Errorf("%+v: %d unseen, want %d", c.after, got, c.unseen)
		}
		if got := c.after.Blind(c.before); got != c.blind {
			t.Errorf("from %+v to %+v: blind is %v", c.before, c.after, got)
		}
	}
}
