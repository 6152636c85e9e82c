package capture

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/internal/fault"
	"rehost/internal/loop"
)

// command runs a program, or skips the test where there is none.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// mounted mounts a device until the test ends, or unmount is called.
func mounted(t *testing.T, device, kind, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount(device, dir, kind, 0, options); err != nil {
		if errors.Is(err, unix.ENODEV) {
			t.Skipf("SKIPPED: this kernel has no %s", kind)
		}
		t.Fatalf("mount %s (%s, %q): %v", device, kind, options, err)
	}
	var once sync.Once
	unmount = func() {
		once.Do(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
				_ = unix.Unmount(dir, unix.MNT_DETACH)
			}
		})
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// A fileSystem is one that free space is looked for in.
type fileSystem struct {
	name, kind, mkfs string
	size             int64
	options          string   // of its mount
	copied           string   // of the mount of a copy, besides
	check            []string // the program that checks an unmounted one
}

var fileSystems = []fileSystem{
	{"ext4", "ext4", "mkfs.ext4 -q -F -b 4096", 96 << 20, "nodiscard", "", []string{"e2fsck", "-fn"}},
	{"ext4 in blocks of 1 KiB, without a journal", "ext4", "mkfs.ext4 -q -F -b 1024 -O ^has_journal", 96 << 20, "nodiscard", "", []string{"e2fsck", "-fn"}},
	{"ext4 in clusters", "ext4", "mkfs.ext4 -q -F -O bigalloc -C 65536", 96 << 20, "nodiscard", "", []string{"e2fsck", "-fn"}},
	{"xfs", "xfs", "mkfs.xfs -q -f", 320 << 20, "", "nouuid", []string{"xfs_repair", "-n"}},
	{"xfs with a map of owners", "xfs", "mkfs.xfs -q -f -m rmapbt=1", 320 << 20, "", "nouuid", []string{"xfs_repair", "-n"}},
	{"btrfs", "btrfs", "mkfs.btrfs -q -f", 160 << 20, "", "", []string{"btrfs", "check", "--readonly"}},
	{"btrfs, mixed", "btrfs", "mkfs.btrfs -q -f --mixed", 160 << 20, "", "", []string{"btrfs", "check", "--readonly"}},
}

func (f fileSystem) make(t *testing.T, device string) {
	t.Helper()
	words := strings.Fields(f.mkfs)
	command(t, words[0], append(words[1:], device)...)
}

// stale is what stands at the beginning of every block of files that were removed.
const stale = "this was removed"

// fill writes a file of n blocks, each of which begins with a mark.
func fill(t *testing.T, path string, n int, mark string, r *rand.Rand) {
	t.Helper()
	data := make([]byte, n*block.Size)
	for i := 0; i < len(data); i += 64 {
		binary.LittleEndian.PutUint64(data[i:], r.Uint64())
	}
	for i := range n {
		copy(data[i*block.Size:], mark)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// marked is how many blocks, of a file system that has them as small as 1 KiB, begin
// with a mark.
func marked(image []byte, mark string) (n int) {
	for at := 0; at < len(image); at += 1 << 10 {
		if bytes.HasPrefix(image[at:], []byte(mark)) {
			n++
		}
	}
	return n
}

// sums are the contents of all files under a directory.
func sums(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	out, err := readAll(dir)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readAll(dir string) (map[string][32]byte, error) {
	out := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir)] = sha256.Sum256(data)
		return err
	})
	return out, err
}

// saved writes an image to a file, without its zeros.
func saved(t *testing.T, image []byte) (path string) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = file.Truncate(int64(len(image)))
	const step = 64 << 10
	for at := 0; at < len(image) && err == nil; at += step {
		if part := image[at:min(at+step, len(image))]; !block.IsZero(part) {
			_, err = file.WriteAt(part, int64(at))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// opened mounts an image as the machine would find it after a power cut, hands the
// directory on, and checks the file system after that.
func opened(t *testing.T, image string, f fileSystem, look func(dir string) error) (err error) {
	t.Helper()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := loop.Attach(file)
	if err != nil {
		return err
	}
	defer l.Close()
	if f.kind == "btrfs" { // the kernel remembers the disk that this is a copy of
		_ = exec.Command("btrfs", "device", "scan", "--forget").Run()
	}
	dir := t.TempDir()
	if err := unix.Mount(l.Path, dir, f.kind, 0, f.copied); err != nil {
		return fmt.Errorf("mount it: %w", err)
	}
	err = look(dir)
	if err := errors.Join(err, unix.Unmount(dir, 0)); err != nil {
		return err
	}
	if out, err := exec.Command(f.check[0], append(f.check[1:], l.Path)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", f.check, err, out)
	}
	return nil
}

// image is what a replica holds of a disk at this moment.
func (r *replica) image(id block.DiskID) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.disks[id])
}

// TestEngine_FreeSpace makes file systems with files, and with blocks of files that
// were removed: these must not travel, all others must.
func TestEngine_FreeSpace(t *testing.T) {
	for i, f := range fileSystems {
		t.Run(f.name, func(t *testing.T) {
			if raceEnabled && i > 0 {
				t.Skip("SKIPPED: the race detector has seen it with the first one; run without -race")
			}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			l := fault.Loop(t, f.size)
			f.make(t, l.Path)
			dir, unmount := mounted(t, l.Path, f.kind, f.options)
			for i := range 8 {
				fill(t, fmt.Sprintf("%s/kept %d", dir, i), 512, "this is kept", r)
				fill(t, fmt.Sprintf("%s/removed %d", dir, i), 512, stale, r)
			}
			command(t, "sync", "-f", dir)
			for i := range 8 {
				if err := os.Remove(fmt.Sprintf("%s/removed %d", dir, i)); err != nil {
					t.Fatal(err)
				}
			}
			want := sums(t, dir)
			disks := disksOf(t, l)
			e := openEngine(t, Options{Disks: disks})
			rep := newReplica(disks)
			stop := start(t, e, rep, 0)
			waitPoint(t, rep)
			s := e.Status()
			t.Logf("%+v: read %d MiB of %d, sent %d", s.FreeAreas, s.BytesRead>>20, s.Total>>20, s.SentSize>>20)
			if s.FreeAreas[0].Whole != "" || s.Disks[0].Free < f.size/2 || s.BytesRead > f.size-s.Disks[0].Free+8<<20 {
				t.Errorf("%d bytes are free, %d were read", s.Disks[0].Free, s.BytesRead)
			}
			onDisk := marked(content(t, disks[0]), stale)
			if got := marked(rep.image(0), stale); onDisk < 2048 || got > 64 {
				t.Errorf("%d blocks with removed data were sent, of %d on the disk", got, onDisk)
			}
			// Files that are made later go where nothing was sent.
			fill(t, dir+"/later", 2048, "this came later", r)
			command(t, "sync", "-f", dir)
			for name, sum := range sums(t, dir) {
				want[name] = sum
			}
			waitPoint(t, rep)
			stop()
			unmount()
			whole(t, rep, f, want)
		})
	}
}

// TestFSMap_Batches asks for a map in one piece and in many: it must be the same.
func TestFSMap_Batches(t *testing.T) {
	for _, f := range fileSystems[:5] {
		t.Run(f.name, func(t *testing.T) {
			l := fault.Loop(t, f.size)
			f.make(t, l.Path)
			dir, _ := mounted(t, l.Path, f.kind, f.options)
			for i := range 200 {
				fill(t, fmt.Sprintf("%s/%d", dir, i), 1+i%20, "this is kept", rand.New(rand.NewPCG(1, 1)))
			}
			command(t, "sync", "-f", dir)
			for i := range 100 {
				if err := os.Remove(fmt.Sprintf("%s/%d", dir, 2*i)); err != nil {
					t.Fatal(err)
				}
			}
			command(t, "sync", "-f", dir)
			file, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			var st unix.Stat_t
			if err := unix.Stat(dir, &st); err != nil {
				t.Fatal(err)
			}
			ask := func(batch int) (got []span) {
				if err := fsmap(file, st.Dev, batch, func(from, to int64) { got = append(got, span{from, to}) }); err != nil {
					t.Fatal(err)
				}
				return got
			}
			for _, batch := range []int{1, 2, 7} {
				want, got := ask(fsmapBatch), ask(batch)
				for again := ask(fsmapBatch); !slices.Equal(want, again); again = ask(fsmapBatch) { // xfs removes files in the background
					want, got = again, ask(batch)
				}
				if len(want) < 5 || !slices.Equal(got, want) {
					t.Fatalf("%d at a time: got %v, want %v", batch, got, want)
				}
			}
		})
	}
}

// TestSurvey_SyncInterrupted: nobody waits for a sync when told to stop, though the
// sync goes on. There is never another one beside it, and it ends before close does.
func TestSurvey_SyncInterrupted(t *testing.T) {
	l := fault.Loop(t, 64<<20)
	command(t, "mkfs.ext4", "-q", l.Path)
	mounted(t, l.Path, "ext4", "")
	e := openEngine(t, Options{Disks: disksOf(t, l)})
	if e.survey == nil {
		t.Skipf("SKIPPED: this machine has no tracker: %s", e.Status().Reason)
	}
	began, goOn := make(chan struct{}), make(chan struct{})
	var syncs, beside atomic.Int32
	e.survey.syncfs = func(fd int) error {
		if beside.Add(1) > 1 {
			t.Error("two syncs at a time")
		}
		defer beside.Add(-1)
		if syncs.Add(1) == 1 {
			close(began)
			<-goOn
		}
		return unix.Syncfs(fd)
	}
	ask := func(stop <-chan struct{}) error {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		ended := make(chan error, 1)
		go func() {
			_, err := e.survey.free(ctx, newSet(&e.layout))
			ended <- err
		}()
		if stop != nil {
			<-stop
			cancel(errLost)
		}
		return <-ended
	}
	if err := ask(began); !errors.Is(err, errLost) { // in the middle of the sync
		t.Fatalf("got %v, want %v", err, errLost)
	}
	if err := ask(began); !errors.Is(err, errLost) { // waiting for it
		t.Fatalf("got %v, want %v", err, errLost)
	}
	if n := syncs.Load(); n != 1 || beside.Load() != 1 {
		t.Fatalf("%d syncs were begun, %d go on", n, beside.Load())
	}
	close(goOn)
	if err := ask(nil); err != nil {
		t.Fatal(err)
	}
	e.survey.close()
	if n := syncs.Load(); n != 3 || beside.Load() != 0 {
		t.Fatalf("%d syncs were begun, %d go on", n, beside.Load())
	}
}

// TestSurvey_Here asks the file systems of this machine, on whatever kernel it runs,
// and compares with what they tell everybody.
func TestSurvey_Here(t *testing.T) {
	list, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, d := range list {
		s, err := openSource(d.Disk)
		if err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
		defer s.file.Close()
		l := newLayout([]block.Disk{d.Disk}, 0)
		areas, err := newSurvey(System{}.roots(), []*source{s}, &l, slog.New(slog.DiscardHandler)).free(t.Context(), newSet(&l))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range areas {
			t.Logf("%+v", a)
			_, point, _ := strings.Cut(strings.TrimSuffix(a.Name, ")"), " on ")
			var st unix.Statfs_t
			if a.Whole != "" || unix.Statfs(point, &st) != nil {
				continue
			}
			asked++
			if free := int64(st.Bfree) * st.Bsize; a.Free > free+free/10+64<<20 { // it goes on being written
				t.Errorf("%s: %d bytes are free, and %d by its map", a.Name, free, a.Free)
			}
		}
	}
	if asked == 0 {
		t.Skip("SKIPPED: no disk of this machine has a file system that can be asked")
	}
}

// aged makes a file system with files, and with the blocks of some that were removed.
func aged(t *testing.T, f fileSystem, r *rand.Rand) (l *fault.Disk, dir string, unmount func()) {
	t.Helper()
	l = fault.Loop(t, f.size)
	f.make(t, l.Path)
	dir, unmount = mounted(t, l.Path, f.kind, f.options)
	fill(t, dir+"/kept", 2048, "this is kept", r)
	fill(t, dir+"/removed", 8192, stale, r)
	command(t, "sync", "-f", dir)
	if err := os.Remove(dir + "/removed"); err != nil {
		t.Fatal(err)
	}
	return l, dir, unmount
}

// whole wants a replica to have these files, and no fault.
func whole(t *testing.T, rep *replica, f fileSystem, want map[string][32]byte) {
	t.Helper()
	err := opened(t, saved(t, rep.image(0)), f, func(dir string) error {
		got, err := readAll(dir)
		if err == nil && !maps.Equal(got, want) {
			err = fmt.Errorf("it has files %v, want %v", got, want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestEngine_FreeSpaceCopied: who asks for it gets the free space, too.
func TestEngine_FreeSpaceCopied(t *testing.T) {
	f := fileSystems[0]
	l, _, _ := aged(t, f, rand.New(rand.NewPCG(1, 1)))
	disks := disksOf(t, l)
	e := openEngine(t, Options{Disks: disks, CopyFree: true})
	rep := newReplica(disks)
	start(t, e, rep, 0)
	waitPoint(t, rep)
	if s := e.Status(); len(s.FreeAreas) != 0 || s.Disks[0].Free != 0 || marked(rep.image(0), stale) < 8192 {
		t.Errorf("not everything was copied: %+v", s.FreeAreas)
	}
}

// TestEngine_FreeSpaceRescan changes everything behind the engine's back, as between
// two boots: what was free then must not count, what is free now must not be read.
func TestEngine_FreeSpaceRescan(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	f := fileSystems[0]
	l, dir, unmount := aged(t, f, r)
	disks := disksOf(t, l)
	rep := newComparing(disks)
	first := openEngine(t, Options{Disks: disks})
	stop := start(t, first, rep, 0)
	waitPoint(t, rep.replica)
	stop()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/kept"); err != nil {
		t.Fatal(err)
	}
	fill(t, dir+"/unseen", 9000, "this nobody saw", r) // where the removed file was
	command(t, "sync", "-f", dir)

	rep.atBase()
	rep.epoch = 0
	e := openEngine(t, Options{Disks: disks})
	stop = start(t, e, rep, rep.last())
	waitPoint(t, rep.replica)
	s, want := e.Status(), sums(t, dir)
	compared := rep.compared.Load() * block.ChunkBlocks * block.Size
	t.Logf("%+v: %d MiB compared, %d sent", s.FreeAreas, compared>>20, rep.payload>>20)
	if s.Disks[0].Free == 0 || compared > f.size-s.Disks[0].Free+2<<20 {
		t.Errorf("%d bytes are free, and %d of %d were compared", s.Disks[0].Free, compared, f.size)
	}
	stop()
	unmount()
	whole(t, rep.replica, f, want)
}

// TestEngine_FreeSpaceAdopted ends an engine in its first copy. The next one must
// know what is not to be copied, and what was written there meanwhile.
func TestEngine_FreeSpaceAdopted(t *testing.T) {
	f := fileSystems[0]
	r := rand.New(rand.NewPCG(2, 2))
	l, dir, unmount := aged(t, f, r)
	disks := disksOf(t, l)
	o := Options{Disks: disks, Pins: filepath.Join(fault.BPF(t), "rehost-agent", "one"), Replica: "r", Progress: 1 << 20}
	rep := newReplica(disks)
	first := openEngine(t, o)
	runs := 0
	rep.putErr = func(block.Run) error {
		if runs++; runs > 20 {
			return errLost
		}
		return nil
	}
	if err := first.Run(t.Context(), rep, 0); !errors.Is(err, errLost) {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	fill(t, dir+"/unattended", 2048, "no agent ran", r)
	command(t, "sync", "-f", dir)
	rep.putErr, rep.epoch = nil, 0
	clear(rep.staged)
	e := openEngine(t, o)
	s := e.Status()
	if !strings.HasPrefix(s.Keeps, "went on") || s.Backlog > f.size/2 {
		t.Fatalf("%d bytes are to be read; tracking %s", s.Backlog, s.Keeps)
	}
	stop := start(t, e, rep, rep.last())
	waitPoint(t, rep)
	s = e.Status()
	t.Logf("%d KiB read, %d points of the first engine", s.BytesRead>>10, len(rep.points))
	if s.BytesRead > f.size/2 || marked(rep.image(0), stale) > 64 {
		t.Errorf("%d of %d bytes were read", s.BytesRead, f.size)
	}
	want := sums(t, dir)
	stop()
	unmount()
	whole(t, rep, f, want)
}

// partitioned makes partitions as a script of sfdisk says, and has the kernel know
// them, until the test ends.
func partitioned(t *testing.T, l *fault.Disk, script string) {
	t.Helper()
	for _, program := range []string{"sfdisk", "partx"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
	}
	c := exec.Command("sfdisk", "-q", "--no-reread", "--no-tell-kernel", l.Path)
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	command(t, "partx", "-a", l.Path)
	t.Cleanup(func() { command(t, "partx", "-d", l.Path) })
}

// TestEngine_FreeSpacePartitions has a disk with partitions of all kinds. What is
// between them, and in swap, must not travel; what nobody can be asked about must.
func TestEngine_FreeSpacePartitions(t *testing.T) {
	const mib = 1 << 20
	l := fault.Loop(t, 200*mib)
	f := openDirect(t, l.Path, 0)
	buf := newBuffer()[:mib]
	for at := range int64(200) { // a megabyte after the other says where it is
		for i := range buf {
			buf[i] = byte(i>>12) | 1
		}
		for i := 0; i < len(buf); i += block.Size {
			copy(buf[i:], stale)
		}
		if _, err := f.WriteAt(buf, at*mib); err != nil {
			t.Fatal(err)
		}
	}
	partitioned(t, l, `label: gpt
first-lba: 34
start=2MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649
start=4MiB, size=40MiB
start=60MiB, size=32MiB, type=S
start=92MiB, size=8MiB
start=110MiB, size=30MiB
`)
	ext4 := fileSystem{kind: "ext4", mkfs: "mkfs.ext4 -q -F -E nodiscard", check: []string{"e2fsck", "-fn"}}
	ext4.make(t, l.Path+"p2")
	ext4.make(t, l.Path+"p5") // not mounted
	dir, _ := mounted(t, l.Path+"p2", "ext4", "nodiscard")
	fill(t, dir+"/kept", 256, "this is kept", rand.New(rand.NewPCG(1, 1)))
	command(t, "sync", "-f", dir)
	command(t, "mkswap", l.Path+"p3")
	swapped := exec.Command("swapon", l.Path+"p3").Run() == nil
	if swapped {
		t.Cleanup(func() { command(t, "swapoff", l.Path+"p3") })
	}
	disks := disksOf(t, l)
	e := openEngine(t, Options{Disks: disks})
	rep := newReplica(disks)
	stop := start(t, e, rep, 0)
	waitPoint(t, rep)
	stop()
	s := e.Status()
	t.Logf("%+v: read %d MiB", s.FreeAreas, s.BytesRead>>20)

	disk, copied := content(t, disks[0]), rep.image(0)
	left := func(from, to int) bool { return block.IsZero(copied[from*mib : to*mib]) }
	same := func(from, to int) bool { return bytes.Equal(disk[from*mib:to*mib], copied[from*mib:to*mib]) }
	for _, r := range []struct {
		what     string
		from, to int
		left     bool
	}{
		{"before the first partition", 0, 2, false}, {"a boot loader's partition", 2, 3, false}, {"a small gap", 3, 4, false},
		{"the end of a file system", 43, 44, false}, // its beginning changes now and then
		{"the beginning of a gap", 44, 45, false}, {"a gap", 45, 59, true}, {"its end", 59, 60, false},
		{"the header of swap", 60, 61, false}, {"swap", 61, 91, swapped}, {"its end", 91, 92, false},
		{"a partition of nobody's", 92, 100, false}, {"another gap", 101, 109, true}, {"what is not mounted", 110, 140, false},
		{"behind the last partition", 141, 199, true}, {"the copy of the table", 199, 200, false},
	} {
		if r.left && !left(r.from, r.to) {
			t.Errorf("%s was copied", r.what)
		}
		if !r.left && !same(r.from, r.to) {
			t.Errorf("%s was not copied", r.what)
		}
	}
	err := opened(t, saved(t, copied[4*mib:44*mib]), ext4, func(copy string) error {
		if got, want := sums(t, copy), sums(t, dir); !maps.Equal(got, want) {
			return fmt.Errorf("it has files %v, want %v", got, want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	t.Run("odd", func(t *testing.T) {
		again := func() map[string]FreeArea {
			areas, err := newSurvey(System{}.roots(), e.sources, &e.layout, e.log).free(t.Context(), newSet(&e.layout))
			if err != nil {
				t.Fatal(err)
			}
			out := map[string]FreeArea{}
			for _, a := range areas {
				out[strings.TrimPrefix(a.Name, l.Path)] = a
			}
			return out
		}
		const gaps, mount = " (between partitions)", "p2 (ext4 on "
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		if a := again()[mount+dir+")"]; a.Free != 0 || !strings.Contains(a.Whole, "ro") {
			t.Errorf("a file system that is read-only: %+v", a)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
		if a := again()[mount+dir+")"]; a.Free == 0 {
			t.Errorf("a file system that is read-only no more: %+v", a)
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if a := again()[mount+dir+")"]; a.Free != 0 || !strings.Contains(a.Whole, "hidden") {
			t.Errorf("a file system under another: %+v", a)
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		if swapped {
			copy(buf, disk[60*mib:60*mib+4096])
			copy(buf[4096-10:], "S1SUSPEND\x00")
			if _, err := f.WriteAt(buf[:4096], 60*mib); err != nil {
				t.Fatal(err)
			}
			if a := again()["p3 (swap)"]; a.Free != 0 || !strings.Contains(a.Whole, "S1SUSPEND") {
				t.Errorf("a machine asleep in its swap: %+v", a)
			}
		}
		command(t, "partx", "-d", "--nr", "4", l.Path)
		if a := again()[gaps]; a.Free != 0 || !strings.Contains(a.Whole, "not those") {
			t.Errorf("the kernel knows other partitions than the table has: %+v", a)
		}
		command(t, "partx", "-a", "--nr", "4", l.Path)
		copy(buf, disk[:4096])
		buf[512+60]++ // in the table's header
		if _, err := f.WriteAt(buf[:4096], 0); err != nil {
			t.Fatal(err)
		}
		if a := again()[gaps]; a.Free != 0 || !strings.Contains(a.Whole, "checksum") {
			t.Errorf("a table that is broken: %+v", a)
		}
	})
}
