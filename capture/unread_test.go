package capture

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/internal/fault"
)

// until waits for something that must come to pass.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long: %s", what)
		}
	}
}

// consistent is how many points the replica has that no block is missing in.
func (r *replica) consistent() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.flags {
		if f.Has(block.Consistent) {
			n++
		}
	}
	return n
}

// block is what the replica holds of one.
func (r *replica) block(disk block.DiskID, b int64) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.disks[disk][b*block.Size:][:block.Size])
}

// TestEngine_Unreadable cuts a disk's file off, so that its end cannot be read. It is
// said where and for how long; the rest, and the other disk, are replicated, without
// a point; and when it can be read again there is one, by itself.
func TestEngine_Unreadable(t *testing.T) {
	for name, o := range map[string]Options{"tracking": {}, "comparing": {NoEBPF: true}} {
		t.Run(name, func(t *testing.T) {
			a, b := fault.Loop(t, 8<<20), fault.Loop(t, 4<<20)
			disks := disksOf(t, a, b)
			fa, fb := openDirect(t, a.Path, 0), openDirect(t, b.Path, 0)
			buf := newBuffer()
			for i := range buf {
				buf[i] = byte(rand.Uint32())
			}
			for at := int64(0); at < 8<<20; at += int64(len(buf)) {
				if _, err := fa.WriteAt(buf, at); err != nil {
					t.Fatal(err)
				}
			}
			const cut = 5<<20 + 3*block.Size
			a.Truncate(t, cut)
			var log fault.Log
			o.Disks, o.Log = disks, slog.New(slog.NewTextHandler(&log, nil))
			e := openEngine(t, o)
			rep := newReplica(disks)
			start(t, e, rep, 0)
			until(t, "the state to say so", func() bool { return e.Status().State == Stalled && e.Status().Err != nil })
			s := e.Status()
			var bad *UnreadError
			if !errors.As(s.Err, &bad) || bad.First.Disk != a.Path || bad.First.Offset != cut || !errors.Is(s.Err, unix.EIO) || bad.Ranges != 1 {
				t.Fatalf("got %v, want EIO of %s at byte %d", s.Err, a.Path, cut)
			}
			if name == "tracking" && bad.Bytes != 8<<20-cut {
				t.Errorf("%d bytes, want %d", bad.Bytes, 8<<20-cut)
			}
			if s.Backlog < 8<<20-cut {
				t.Errorf("%d bytes are said to be left", s.Backlog)
			}
			t.Log(s.Err)
			for round := range byte(3) {
				buf[0] = round
				if _, err := fb.WriteAt(buf[:block.Size], 99*block.Size); err != nil {
					t.Fatal(err)
				}
				until(t, "the other disk's write", func() bool { return bytes.Equal(rep.block(1, 99), buf[:block.Size]) })
			}
			if got := rep.block(0, 7); bytes.Equal(got, make([]byte, block.Size)) {
				t.Error("the beginning of the disk was not replicated")
			}
			if n := rep.consistent(); n != 0 {
				t.Fatalf("%d points of a disk that cannot be read", n)
			}
			if n := strings.Count(log.String(), "cannot be read everywhere"); n != 1 {
				t.Errorf("said %d times in the log", n)
			}
			a.Truncate(t, 8<<20)
			waitPoint(t, rep)
			rep.differs(t, disks)
			if s := e.Status(); s.State != Continuous || s.Err != nil || strings.Count(log.String(), "can be read again") != 1 {
				t.Errorf("state %s, %v", s.State, s.Err)
			}
		})
	}
}

// TestEngine_Retry: however far away the next attempt is, who asks for one gets it.
func TestEngine_Retry(t *testing.T) {
	l := fault.Loop(t, 2<<20)
	disks := disksOf(t, l)
	e := openEngine(t, Options{Disks: disks})
	now := time.Now()
	e.now = func() time.Time { return now } // and stays so
	l.Truncate(t, 1<<20)
	rep := newReplica(disks)
	start(t, e, rep, 0)
	until(t, "the state to say so", func() bool { return e.Status().State == Stalled && e.Status().Err != nil })
	l.Truncate(t, 2<<20)
	rounds := e.Status().Rounds
	until(t, "rounds", func() bool { return e.Status().Rounds > rounds+2 })
	if e.Status().Err == nil {
		t.Fatal("it was tried again too early")
	}
	e.Retry()
	until(t, "a point", func() bool { return rep.consistent() > 0 && e.Status().Err == nil })
	rep.differs(t, disks)
}

// TestEngine_BadSectors makes single blocks unreadable. They are found, whatever the
// granules; of what need not be read, as between two changed blocks, nobody has to know.
func TestEngine_BadSectors(t *testing.T) {
	for name, o := range map[string]Options{"blocks": {}, "granules of 32 KiB": {shift: 3}, "comparing": {NoEBPF: true}} {
		t.Run(name, func(t *testing.T) {
			l := fault.Loop(t, 12<<20)
			disks := disksOf(t, l)
			f := openDirect(t, l.Path, 0)
			buf := newBuffer()[:block.Size]
			buf[0] = 1
			o.Disks = disks
			e := openEngine(t, o)
			var mu sync.Mutex // guards:
			bad := []uint64{301, 302, 1800}
			tries := 0
			disk := e.read
			e.read = func(d int, x block.Extent, buf []byte) error {
				mu.Lock()
				i := slices.IndexFunc(bad, func(b uint64) bool { return b >= x.Start && b < x.End() })
				if i >= 0 {
					tries++
				}
				mu.Unlock()
				if i >= 0 {
					return &DiskError{Disk: l.Path, Op: "read", Offset: x.Offset(), Err: unix.EREMOTEIO}
				}
				return disk(d, x, buf)
			}
			rep := newReplica(disks)
			start(t, e, rep, 0)
			var err *UnreadError
			until(t, "the state to say so", func() bool { return errors.As(e.Status().Err, &err) && err.Ranges == 2 })
			if err.First.Offset != 301*block.Size || err.First.Disk != l.Path || !errors.Is(err, unix.EREMOTEIO) {
				t.Errorf("got %v", err)
			}
			mu.Lock()
			if name == "blocks" && err.Bytes != 3*block.Size || tries > 500 {
				t.Errorf("%d bytes cannot be read, tried %d times", err.Bytes, tries)
			}
			bad = bad[:2]
			mu.Unlock()
			if _, err := f.WriteAt(buf, 1800*block.Size); err != nil { // a disk puts a good sector there
				t.Fatal(err)
			}
			until(t, "the written block", func() bool { return bytes.Equal(rep.block(0, 1800), buf) })
			if n := rep.consistent(); n != 0 {
				t.Fatalf("%d points of a disk that cannot be read", n)
			}
			mu.Lock()
			bad = nil
			mu.Unlock()
			waitPoint(t, rep)
			rep.differs(t, disks)
			if name != "blocks" {
				return
			}
			mu.Lock()
			bad = []uint64{701}
			mu.Unlock()
			for range 3 { // a run over the gap
				buf[1]++
				for _, b := range []int64{700, 702} {
					if _, err := f.WriteAt(buf, b*block.Size); err != nil {
						t.Fatal(err)
					}
				}
				waitPoint(t, rep)
			}
			if got := rep.block(0, 702); !bytes.Equal(got, buf) || e.Status().Err != nil {
				t.Errorf("a block that need not be read keeps points away: %v", e.Status().Err)
			}
		})
	}
}
