package fault

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	recordWriters = 4   // each has one write in flight
	sharedSectors = 256 // at the start of a disk, dealt out to the writers one by one, so that they share blocks
	longestWrite  = 128 // sectors
)

// A Recorder writes to disks and remembers when: what claims to be a copy of them
// at an instant can be judged by it ([Recorder.Judge]).
//
// Several writers go from disk to disk, each beginning a write only after its last
// one, wherever that was, has returned. They write past the page cache: one or many
// sectors that say who wrote them ([sectorSize], 512 bytes each), the same ones
// again and again, and blocks that are in part another writer's; they discard and
// zero; and they flush, by themselves or with a write. A sector belongs to one
// writer, so that the order of its writes is known.
//
// All methods may be called concurrently.
type Recorder struct {
	history
	drift time.Duration // when it began
	pace  atomic.Int64  // nanoseconds, and
	least atomic.Int64  // at its fastest
	stop  chan struct{}
	once  sync.Once
	done  sync.WaitGroup
	made  [kinds]atomic.Int64
}

// Record begins to write to disks that hold zeros only and are 256 KiB or longer, each writer about once in
// pace. The schedule follows from seed, up to what the machine makes of it. The
// writers end with the test, at the latest.
func Record(t testing.TB, seed uint64, pace time.Duration, disks ...*Disk) *Recorder {
	t.Helper()
	r := &Recorder{drift: drift(), stop: make(chan struct{})}
	r.Pace(pace)
	var sizes []int64
	for _, d := range disks {
		size, err := d.size()
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size/sectorSize)
	}
	r.history = newHistory(sizes)
	t.Cleanup(r.Stop)
	for id := range recordWriters {
		w := &recordWriter{r: r, id: id, rnd: rand.New(rand.NewPCG(seed, uint64(id)))}
		if err := w.open(disks); err != nil {
			t.Fatal(errors.Join(err, w.close()))
		}
		r.done.Go(func() {
			if err := errors.Join(w.run(), w.close()); err != nil {
				t.Errorf("recorder's writer %d: %v", id, err)
			}
		})
	}
	return r
}

// Pace changes how often each writer writes, on average; 0 is as fast as it can.
func (r *Recorder) Pace(d time.Duration) {
	r.least.Store(int64(d))
	r.pace.Store(int64(d))
}

// slowest is how seldom a writer writes that was asked to be slower again and again.
const slowest = 40 * time.Millisecond

// Yield makes the writers slower where whoever follows them has made no progress,
// and faster again, up to their pace, where it has. So a load can be one that is
// followed on any machine. It is to be called some ten times a second.
func (r *Recorder) Yield(progress bool) {
	pace, least := r.pace.Load(), r.least.Load()
	if pace = max(pace*3/4, least); !progress {
		pace = max(least, min(max(pace, int64(time.Millisecond))*2, int64(slowest)))
	}
	r.pace.Store(pace)
}

// Stop ends the writers. Afterwards every write has returned. It may be called twice.
func (r *Recorder) Stop() {
	r.once.Do(func() { close(r.stop) })
	r.done.Wait()
}

// String counts what was done.
func (r *Recorder) String() string {
	return fmt.Sprintf("%d writes, %d discards, %d zeroed, %d flushes", r.made[kindWrite].Load(), r.made[kindDiscard].Load(),
		r.made[kindPunch].Load()+r.made[kindZero].Load(), r.made[kindFlush].Load())
}

// size is how long the device is, in bytes.
func (d *Disk) size() (int64, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// A recordWriter is one goroutine that writes.
type recordWriter struct {
	r      *Recorder
	id     int
	rnd    *rand.Rand
	number uint64
	direct []*os.File // of each disk
	forced []*os.File // the same; a write returns once it is durable
	memory []byte     // aligned
}

func (w *recordWriter) open(disks []*Disk) (err error) {
	for _, d := range disks {
		for flags, list := range map[int]*[]*os.File{0: &w.direct, unix.O_DSYNC: &w.forced} {
			f, err := os.OpenFile(d.Path, os.O_WRONLY|unix.O_DIRECT|flags, 0)
			if err != nil {
				return err
			}
			*list = append(*list, f)
		}
	}
	w.memory, err = unix.Mmap(-1, 0, longestWrite*sectorSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	return err
}

func (w *recordWriter) close() (err error) {
	for _, f := range append(w.direct, w.forced...) {
		err = errors.Join(err, f.Close())
	}
	if w.memory != nil {
		err = errors.Join(err, unix.Munmap(w.memory))
	}
	return err
}

func (w *recordWriter) run() error {
	for {
		pace := time.Duration(w.r.pace.Load())
		timer := time.NewTimer(time.Duration(w.rnd.Int64N(int64(2*pace) + 1)))
		select {
		case <-w.r.stop:
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := w.do(w.next()); err != nil {
			return err
		}
	}
}

// next is what comes next, by chance.
func (w *recordWriter) next() *write {
	w.number++
	x := &write{writer: w.id, number: w.number, disk: w.rnd.IntN(len(w.direct))}
	switch dice := w.rnd.IntN(100); {
	case dice < 1:
		x.kind = kindFlush
		return x
	case dice < 10:
		x.kind = kindDiscard
	case dice < 14:
		x.kind = kindPunch
	case dice < 18:
		x.kind = kindZero
	case dice < 60: // in a block that others write to, too
		x.first, x.count = w.rnd.IntN(sharedSectors/recordWriters)*recordWriters+w.id, 1
		return x
	}
	zone := (len(w.r.sectors[x.disk]) - sharedSectors) / recordWriters
	first := sharedSectors + w.id*zone
	if w.id == recordWriters-1 { // with what is left of the disk
		zone = len(w.r.sectors[x.disk]) - first
	}
	most := min(zone, longestWrite)
	if x.kind != kindWrite {
		most = zone
	}
	x.count = 1 + int(float64(most)*w.rnd.Float64()*w.rnd.Float64()*w.rnd.Float64()) // mostly short
	at := w.rnd.IntN(zone - x.count + 1)
	if w.rnd.IntN(2) == 0 { // in a corner that is written again and again
		at = min(at, w.rnd.IntN(64))
	}
	x.first = first + at
	return x
}

// do writes, and writes down when.
func (w *recordWriter) do(x *write) error {
	x.issued = time.Now().UnixNano()
	w.r.begin(x)
	w.r.made[x.kind].Add(1)
	off, n := int64(x.first)*sectorSize, x.count*sectorSize
	var err error
	switch x.kind {
	case kindFlush:
		err = unix.Fdatasync(int(w.direct[x.disk].Fd()))
	case kindDiscard:
		extent := [2]uint64{uint64(off), uint64(n)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, w.direct[x.disk].Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&extent))); errno != 0 {
			err = errno
		}
	case kindPunch:
		err = unix.Fallocate(int(w.direct[x.disk].Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n))
	case kindZero:
		err = unix.Fallocate(int(w.direct[x.disk].Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n))
	default:
		for i := range x.count {
			x.encode(x.first+i, w.memory[i*sectorSize:][:sectorSize])
		}
		f := w.direct[x.disk]
		if w.rnd.IntN(64) == 0 {
			f = w.forced[x.disk]
		}
		_, err = f.WriteAt(w.memory[:n], off)
	}
	if errors.Is(err, unix.EOPNOTSUPP) { // the disk cannot, and has not
		clear(w.memory)
		for err = nil; n > 0 && err == nil; n, off = n-len(w.memory), off+int64(len(w.memory)) {
			_, err = w.direct[x.disk].WriteAt(w.memory[:min(n, len(w.memory))], off)
		}
	}
	if err != nil {
		return fmt.Errorf("%v: %w", x, err)
	}
	x.completed.Store(time.Now().UnixNano())
	return nil
}

// drift is how far the wall's clock, which points are stamped with, is ahead of one
// that nobody sets. Of several looks the middle one counts: between the readings of
// both anything may happen.
func drift() time.Duration {
	var looks [9]time.Duration
	for i := range looks {
		now := time.Now()
		looks[i] = time.Duration(now.UnixNano()) - now.Sub(born)
	}
	slices.Sort(looks[:])
	return looks[len(looks)/2]
}

var born = time.Now()
