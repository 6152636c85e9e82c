package capture

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/internal/fault"
)

// A version is what a file held, from when that was durable to when it began to be
// changed or removed.
type version struct {
	name           string
	sum            [32]byte
	durable, ended time.Time
}

// A diary knows what programs were told to be durable.
type diary struct {
	mu    sync.Mutex
	files []version
	live  map[string]int // which version it is
	err   error
}

// end says that a file is about to change.
func (d *diary) end(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i, ok := d.live[name]; ok {
		d.files[i].ended = time.Now()
		delete(d.live, name)
	}
}

func (d *diary) durable(name string, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.live[name] = len(d.files)
	d.files = append(d.files, version{name: name, sum: sha256.Sum256(data), durable: time.Now()})
}

// missing compares a point cut between two instants with what had to be in it.
func (d *diary) missing(dir string, from, to time.Time) (n int, err error) {
	got, err := readAll(dir)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.files {
		if v.durable.After(from) || !v.ended.IsZero() && v.ended.Before(to) {
			continue
		}
		if n++; got["/"+v.name] != v.sum {
			err = errors.Join(err, fmt.Errorf("%s, durable %v before the point, is missing or another", v.name, from.Sub(v.durable)))
		}
	}
	return n, err
}

// program makes, rewrites, replaces and removes files, as a mail server and a
// database would, until ctx ends.
func (d *diary) program(ctx context.Context, dir string, id int, r *rand.Rand) {
	var names []string
	err := func() error {
		parent, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer parent.Close()
		for n := 0; ctx.Err() == nil; n++ {
			data := make([]byte, 1+r.IntN(120<<10))
			for i := 0; i < len(data); i += 64 {
				data[i] = byte(r.Uint32())
			}
			name := fmt.Sprintf("%d-%d", id, n)
			old := len(names) > 0 && r.IntN(2) == 0
			if old {
				name = names[r.IntN(len(names))]
			}
			switch path := filepath.Join(dir, name); {
			case old && (r.IntN(3) == 0 || len(names) > 60):
				d.end(name)
				err = os.Remove(path)
				names = slices.DeleteFunc(names, func(s string) bool { return s == name })
				if r.IntN(2) == 0 {
					err = errors.Join(err, parent.Sync())
				}
			case old && r.IntN(2) == 0: // in place
				d.end(name)
				err = put(path, data, os.O_TRUNC*r.IntN(2), false)
				if data, e := os.ReadFile(path); err == nil && e == nil {
					d.durable(name, data)
				}
			default: // with another name first, allocated first or not
				d.end(name)
				if err = put(path+".new", data, os.O_CREATE|os.O_TRUNC, r.IntN(2) == 0); err == nil {
					err = errors.Join(os.Rename(path+".new", path), parent.Sync())
				}
				if d.durable(name, data); !old {
					names = append(names, name)
				}
			}
			if err != nil {
				return err
			}
			time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
		}
		return nil
	}()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = errors.Join(d.err, err)
}

// put writes a file and makes it durable.
func put(path string, data []byte, flags int, allocate bool) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if allocate {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(len(data))); err != nil {
			return err
		}
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Sync())
}

// A lazySink takes its time with the first runs, so that the first copy lasts.
type lazySink struct {
	*replica
	runs atomic.Int64
}

func (s *lazySink) Put(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	if s.runs.Add(1) < 100 {
		time.Sleep(20 * time.Millisecond)
	}
	return s.replica.Put(ctx, epoch, ordinal, run)
}

// A forgetful tracker ignores what is written where free space was.
type forgetful struct {
	*kernelTracker
	free *Set
}

func (f forgetful) Changed(into *Set) error {
	f.bpf.TakeDirty(0, f.layout.words, func(w int, v uint64) { into.addWord(w, v&^f.free.words[w]) })
	return nil
}

// churn replicates a file system that programs work on from before the first copy
// until after it, and compares points with what was durable when they were cut.
func churn(t *testing.T, f fileSystem, seed uint64, mutant bool) error {
	r := rand.New(rand.NewPCG(seed, 0))
	l := fault.Loop(t, f.size)
	f.make(t, l.Path)
	dir, unmount := mounted(t, l.Path, f.kind, f.options)
	fill(t, dir+"/kept", 2048, "this is kept", r)
	fill(t, dir+"/removed", 4096, stale, r)
	command(t, "sync", "-f", dir)
	if err := os.Remove(dir + "/removed"); err != nil {
		t.Fatal(err)
	}
	d := &diary{live: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	var programs sync.WaitGroup
	end := func() { cancel(); programs.Wait() }
	defer end()
	for i := range 3 {
		own := rand.New(rand.NewPCG(seed, uint64(i)+1))
		programs.Go(func() { d.program(ctx, dir, i, own) })
	}
	disks := disksOf(t, l)
	e := openEngine(t, Options{Disks: disks, Progress: 8 << 20})
	if mutant {
		tracker, find := forgetful{e.tracker.(*kernelTracker), newSet(&e.layout)}, e.free
		e.free = func(ctx context.Context, into *Set) ([]FreeArea, error) {
			areas, err := find(ctx, into)
			tracker.free.addAll(into)
			return areas, err
		}
		e.tracker = tracker
	}
	type cut struct {
		image    string
		from, to time.Time
	}
	cuts := make(chan cut, 3)
	rep, last := newReplica(disks), time.Time{}
	rep.onCommit = func(p block.Point, flags block.Flags) {
		if now := time.Now(); flags.Has(block.Consistent) && len(cuts) < cap(cuts) && now.Sub(last) > 200*time.Millisecond {
			last = now
			cuts <- cut{saved(t, rep.disks[0]), p.Time, now}
		}
	}
	stop := start(t, e, &lazySink{replica: rep}, 0)
	for end := time.Now().Add(2 * time.Minute); len(cuts) < cap(cuts) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	end()
	stop()
	unmount()
	s := e.Status()
	t.Logf("%s, seed %d: %d versions, %d rounds, %d points, %d conflicts, %d MiB left out, %d MiB read", f.name, seed, len(d.files), s.Rounds, s.Epochs, s.Conflicts, s.Disks[0].Free>>20, s.BytesRead>>20)
	if d.err != nil || len(cuts) < cap(cuts) || s.Disks[0].Free < f.size/4 {
		t.Fatalf("%d points, %+v; the programs: %v", len(cuts), s.FreeAreas, d.err)
	}
	close(cuts)
	var errs []error
	for c := range cuts {
		errs = append(errs, opened(t, c.image, f, func(dir string) error {
			n, err := d.missing(dir, c.from, c.to)
			t.Logf("%d files had to be in the point", n)
			return err
		}))
	}
	return errors.Join(errs...)
}

// TestEngine_FreeSpaceChurn: no file that was durable may be missing in a point, and
// every file system must be whole, though the free space changes all the time.
// REHOST_CHURN_SEEDS sets how often.
func TestEngine_FreeSpaceChurn(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("REHOST_CHURN_SEEDS"))
	if err != nil {
		n = 1
	}
	for _, i := range []int{0, 3, 5} {
		f := fileSystems[i]
		t.Run(f.name, func(t *testing.T) {
			if raceEnabled && i > 0 {
				t.Skip("SKIPPED: the race detector has seen it with the first one; run without -race")
			}
			for range n {
				if err := churn(t, f, rand.Uint64(), false); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("M writes to free space ignored", func(t *testing.T) {
		if raceEnabled {
			t.Skip("SKIPPED: there are no races to find in it; run without -race")
		}
		err := churn(t, fileSystems[0], rand.Uint64(), true)
		if err == nil {
			t.Fatal("not caught")
		}
		t.Logf("caught: %.200v", err)
	})
}
