package capture

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/internal/fault"
)

// logSlots are the blocks that the record log goes round in; record n stands in
// slot n % logSlots of each disk, and in the block behind them, which is written
// each time.
const logSlots = 64

func logBlock(b []byte, n uint64) {
	clear(b)
	binary.LittleEndian.PutUint64(b, n)
	binary.LittleEndian.PutUint32(b[block.Size-4:], crc32.ChecksumIEEE(b[:block.Size-4]))
}

// newestRecord is the newest whole record on a disk.
func newestRecord(disk []byte) (n uint64) {
	for i := range logSlots + 1 {
		b := disk[i*block.Size:][:block.Size]
		if crc32.ChecksumIEEE(b[:block.Size-4]) == binary.LittleEndian.Uint32(b[block.Size-4:]) {
			n = max(n, binary.LittleEndian.Uint64(b))
		}
	}
	return n
}

// TestEngine_CrossDisk writes each record to disk A and, when it is durable
// there, to disk B. At no point may B be ahead of A, nor A by more than the
// record in flight, nor may a record between be missing, while other writers keep both disks busy.
func TestEngine_CrossDisk(t *testing.T) {
	a, b := fault.Loop(t, 64<<20), fault.Loop(t, 64<<20)
	disks := disksOf(t, a, b)
	e := openEngine(t, Options{Disks: disks, Pause: 5 * time.Millisecond})
	rep := newReplica(disks)
	var points int
	var newest uint64
	var violations []string // guarded by rep.mu while there are commits
	rep.onCommit = func(p block.Point, flags block.Flags) {
		if !flags.Has(block.Consistent) {
			return
		}
		points++
		na, nb := newestRecord(rep.disks[0]), newestRecord(rep.disks[1])
		newest = na
		if nb > na || na > nb+1 {
			violations = append(violations, fmt.Sprintf("point %v: A has record %d, B %d", p.Seq, na, nb))
		}
		for n := na - min(na-min(na, 1), logSlots-2); n > 0 && n < na; n++ {
			if got := binary.LittleEndian.Uint64(rep.disks[0][n%logSlots*block.Size:]); got != n {
				violations = append(violations, fmt.Sprintf("point %v: A lacks record %d of %d: slot holds %d", p.Seq, n, na, got))
			}
		}
	}
	stop := start(t, e, rep, 0)
	var over atomic.Bool
	done := make(chan struct{}, 3)
	for i, path := range []string{a.Path, b.Path} {
		f := openDirect(t, path, 0)
		go func() { // 5 MB/s of random writes to each
			defer func() { done <- struct{}{} }()
			r, buf := rand.New(rand.NewPCG(uint64(i), 1)), newBuffer()[:block.Size]
			for !over.Load() {
				buf[0] = byte(r.Uint32())
				f.WriteAt(buf, (1024+r.Int64N(8192))*block.Size)
				time.Sleep(800 * time.Microsecond)
			}
		}()
	}
	fa, fb := openDirect(t, a.Path, unix.O_DSYNC), openDirect(t, b.Path, unix.O_DSYNC)
	go func() {
		defer func() { done <- struct{}{} }()
		buf := newBuffer()[:block.Size]
		for n := uint64(1); !over.Load(); n++ {
			logBlock(buf, n)
			for _, f := range []*os.File{fa, fb} {
				f.WriteAt(buf, int64(n%logSlots)*block.Size)
				f.WriteAt(buf, logSlots*block.Size)
			}
		}
	}()
	begin := time.Now()
	for enough := false; time.Since(begin) < 6*time.Second || !enough && time.Since(begin) < 2*time.Minute; time.Sleep(50 * time.Millisecond) {
		rep.mu.Lock()
		enough = points >= 20 && newest >= 100
		rep.mu.Unlock()
	}
	over.Store(true)
	for range 3 {
		<-done
	}
	waitPoint(t, rep)
	// A write whose beginning and end the kernel kept from the programs is known by the
	// first audit of the disks at rest, which comes within a second: points are withdrawn, and it is copied.
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		first, n := rep.compare(t, disks)
		rep.mu.Lock()
		wrong := len(violations)
		rep.mu.Unlock()
		if n == 0 && (wrong == 0 || e.Status().LastAudit != "") {
			break
		}
		t.Logf("%d blocks differ (%s), %d points are wrong; audit %q", n, first, wrong, e.Status().LastAudit)
	}
	stop()
	rep.differs(t, disks)
	s := e.Status()
	skipped, err := e.tracker.Skipped()
	if tr, ok := e.tracker.(*kernelTracker); ok {
		t.Logf("programs skipped: %+v", tr.skips)
	}
	if skipped == 0 || s.LastAudit == "" {
		for _, v := range violations {
			t.Error(v)
		}
	}
	t.Logf("%d points, %d violations, %d records, %d rounds, %d conflicts, blind %d times (%v), audit %q", points, len(violations), newest, s.Rounds, s.Conflicts, skipped, err, s.LastAudit)
	if points < 20 || newest < 100 {
		t.Errorf("only %d points and %d records: nothing is shown", points, newest)
	}
	if s.LastAudit != "" && skipped == 0 {
		t.Errorf("audit: %s", s.LastAudit)
	}
}

// TestEngine_PointAge measures how old the newest point is, once a millisecond,
// under 20 MB/s of random 4 KiB writes, without pins and with. It reports; only
// what is absurd fails.
func TestEngine_PointAge(t *testing.T) {
	t.Run("not pinned", func(t *testing.T) { pointAge(t, "") })
	t.Run("pinned", func(t *testing.T) { pointAge(t, filepath.Join(fault.BPF(t), "rehost-agent", "one")) })
}

func pointAge(t *testing.T, pins string) {
	l := fault.Loop(t, 256<<20)
	disks := disksOf(t, l)
	f := openDirect(t, l.Path, 0)
	e := openEngine(t, Options{Disks: disks, Pins: pins})
	rep := newReplica(disks)
	start(t, e, rep, 0)
	waitPoint(t, rep) // as old as the first copy took
	waitPoint(t, rep)
	var over atomic.Bool
	var written atomic.Int64
	done := make(chan struct{})
	began := time.Now()
	for i := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			r, buf := rand.New(rand.NewPCG(uint64(i), 2)), newBuffer()[:block.Size]
			for !over.Load() {
				if float64(written.Load()) > 20e6*time.Since(began).Seconds() {
					time.Sleep(200 * time.Microsecond)
					continue
				}
				r.Uint64()
				binary.LittleEndian.PutUint64(buf, r.Uint64())
				f.WriteAt(buf, r.Int64N(256<<20/block.Size)*block.Size)
				written.Add(block.Size)
			}
		}()
	}
	var ages []time.Duration
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		ages = append(ages, e.Status().Lag)
	}
	rate := float64(written.Load()) / 1e6 / time.Since(began).Seconds()
	over.Store(true)
	for range 4 {
		<-done
	}
	slices.Sort(ages)
	s := e.Status()
	t.Logf("%.1f MB/s written: age p50 %v, p99 %v, max %v; %d points, %d rounds, %d conflicts", rate,
		ages[len(ages)/2].Round(time.Millisecond), ages[len(ages)*99/100].Round(time.Millisecond), ages[len(ages)-1].Round(time.Millisecond), s.Epochs, s.Rounds, s.Conflicts)
	if ages[len(ages)/2] > 5*time.Second {
		t.Errorf("points are %v old", ages[len(ages)/2])
	}
}
