package capture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/capture/freeze"
	"rehost/internal/fault"
)

// freezerProgram builds the freezer as people run it: without cgo, which it must be.
func freezerProgram(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rehost-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "rehost/cmd/rehost-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return []string{path, "freezer", "--fd", fmt.Sprint(freeze.ChildFD), "--every", "1ms"}
}

// storm writes everywhere in a file, past every cache, until ctx ends.
func storm(ctx context.Context, t *testing.T, path string, size int64, r *rand.Rand) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	buf := newBuffer()[:block.Size]
	for ctx.Err() == nil {
		buf[0], buf[1] = byte(r.Uint32()), byte(r.Uint32())
		if _, err := f.WriteAt(buf, r.Int64N(size/block.Size)*block.Size); err != nil {
			t.Error(err)
			return
		}
	}
}

// TestEngine_Freezes: while programs write so fast that no round settles, a freeze
// makes a point, in which every file that was durable is there and the file system is
// whole. What programs write meanwhile is written afterwards.
func TestEngine_Freezes(t *testing.T) {
	program := freezerProgram(t)
	for _, i := range []int{0, 3, 5} {
		f := fileSystems[i]
		t.Run(f.name, func(t *testing.T) {
			if raceEnabled && i > 0 {
				t.Skip("SKIPPED: the race detector has seen it with the first one; run without -race")
			}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			const hot = 4 << 20
			l := fault.Loop(t, f.size)
			f.make(t, l.Path)
			if f.kind == "btrfs" { // which else writes to another place each time, where nobody reads
				f.options = "nodatacow"
			}
			dir, unmount := mounted(t, l.Path, f.kind, f.options)
			t.Cleanup(func() { thawed(dir) })
			fill(t, dir+"/hot", hot/block.Size, "this is written all the time", rand.New(rand.NewPCG(seed, 0)))
			command(t, "sync", "-f", dir)
			disks := disksOf(t, l)
			e := openEngine(t, Options{Disks: disks, CopyFree: true, FreezeAfter: 300 * time.Millisecond, Freezer: &freeze.Client{Socket: "/nonexistent", Program: program}})
			read := e.read
			e.read = func(disk int, x block.Extent, buf []byte) error {
				err := read(disk, x, buf)
				time.Sleep(200 * time.Microsecond) // a disk that is slow to read, whatever machine this is
				return err
			}
			type cut struct {
				image    string
				from, to time.Time
			}
			var cuts []cut
			freezes := uint64(0)
			rep := newReplica(disks)
			rep.onCommit = func(p block.Point, flags block.Flags) {
				if s := e.Status(); flags.Has(block.Consistent) && s.Freezes > freezes {
					freezes, cuts = s.Freezes, append(cuts, cut{saved(t, rep.disks[0]), p.Time, time.Now()})
				}
			}
			stop := start(t, e, rep, 0)
			waitPoint(t, rep)
			before := e.Status()

			ctx, cancel := context.WithCancel(context.Background())
			var programs sync.WaitGroup
			end := func() { cancel(); programs.Wait() }
			defer end()
			d := &diary{live: map[string]int{}}
			for i := range 2 {
				own := rand.New(rand.NewPCG(seed, uint64(i)+1))
				programs.Go(func() { storm(ctx, t, dir+"/hot", hot, own) })
			}
			programs.Go(func() { d.program(ctx, dir, 0, rand.New(rand.NewPCG(seed, 9))) })
			done := func() bool { rep.mu.Lock(); defer rep.mu.Unlock(); return len(cuts) > 0 }
			for end := time.Now().Add(2 * time.Minute); !done() && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			end()
			unmount()
			waitPoint(t, rep)
			stop()
			s := e.Status()
			t.Logf("%d freezes, the longest %v; %d rounds, %d points, %d conflicts under load; %d versions; %s", s.Freezes, s.LongestFreeze,
				s.Rounds-before.Rounds, s.Epochs-before.Epochs, s.Conflicts-before.Conflicts, len(d.files), s.Outrun)
			if d.err != nil || before.Freezes != 0 || len(cuts) == 0 || s.Retractions > 0 {
				t.Fatalf("%d freezes made %d points; %s %s; the programs: %v", s.Freezes, len(cuts), s.Outrun, s.LastAudit, d.err)
			}
			rep.differs(t, disks)
			for _, c := range cuts {
				if err := opened(t, c.image, f, func(dir string) error {
					n, err := d.missing(dir, c.from, c.to)
					t.Logf("%d files had to be in the point", n)
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// thawed thaws what a test has left frozen.
func thawed(dir string) {
	const fiThaw = 0xc0045878
	if f, err := os.Open(dir); err == nil {
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiThaw, 0)
		f.Close()
	}
}

// A fakeFreezer refuses, or does nothing.
type fakeFreezer struct {
	mu                      sync.Mutex // guards:
	prepared, frozen, thaws int
	refuse, fail            error
}

func (f *fakeFreezer) Prepare(context.Context, []uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.prepared++
	return f.refuse
}

func (f *fakeFreezer) Freeze(context.Context, time.Duration) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen++
	return time.Second, f.fail
}

func (f *fakeFreezer) Thaw() (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.thaws++
	return time.Millisecond, nil
}

// TestEngine_FreezesNot: where nothing can be frozen, or that does not help, there is
// no point, and the status says which of these it is.
func TestEngine_FreezesNot(t *testing.T) {
	for _, c := range []struct {
		name    string
		freezer *fakeFreezer
		most    time.Duration
		want    string
		frozen  bool
	}{
		{"not allowed", nil, time.Second, "that is not allowed", false},
		{"nobody to ask", &fakeFreezer{refuse: errors.New("there is no freezer")}, time.Second, "there is no freezer", false},
		{"refused", &fakeFreezer{fail: errors.New("too soon")}, time.Second, "too soon", false},
		{"too much is left", &fakeFreezer{}, 1, "takes about", false},
		{"in vain", &fakeFreezer{}, time.Second, "nevertheless", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := fault.Loop(t, 4<<20)
			disks := disksOf(t, l)
			o := Options{Disks: disks, Deadline: 20 * time.Millisecond, FreezeAfter: 10 * time.Millisecond}
			if c.freezer != nil {
				o.Freezer = c.freezer
			}
			e := openEngine(t, o)
			e.brake.most = c.most
			rep := newReplica(disks)
			stop := start(t, e, rep, 0)
			waitPoint(t, rep)
			stop()
			points := len(rep.points)
			e.tracker, rep.epoch = restless{e.tracker}, 0
			stop = start(t, e, rep, rep.last())
			for end := time.Now().Add(time.Minute); !strings.Contains(e.Status().Outrun, c.want); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("state %s: %q, want %q", e.Status().State, e.Status().Outrun, c.want)
				}
			}
			stop()
			if s := e.Status(); len(rep.points) != points || (s.Freezes > 0) != c.frozen {
				t.Errorf("%d points, then %d; %d freezes", points, len(rep.points), s.Freezes)
			}
			if f := c.freezer; f != nil && (f.thaws < f.frozen || f.thaws < f.prepared) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// TestBrake_Takes: a guess may be too long and not too short.
func TestBrake_Takes(t *testing.T) {
	var s speed
	if got := s.takes(1<<20, heldMost); got != time.Second {
		t.Errorf("unmeasured: %v", got)
	}
	s.add(10<<20, 100*time.Millisecond) // a reader reads 100 MiB a second,
	if n := s.since(time.Second); n != 10<<20 {
		t.Errorf("%d bytes", n)
	}
	if got := s.takes(20<<20, heldMost); got != 200*time.Millisecond { // which is sent later,
		t.Errorf("with room: %v", got)
	}
	if got := s.takes(20<<20, 10<<20); got != 1100*time.Millisecond { // or at 10 MiB a second
		t.Errorf("without: %v", got)
	}
	if s.since(time.Hour); s.takes(20<<20, heldMost) != 200*time.Millisecond { // nothing read is nothing learnt
		t.Error("idle rounds count")
	}
}
