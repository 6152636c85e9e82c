package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Limits of the kernel side; tracker.bpf.c has the same numbers.
const (
	MaxDisks   = 64
	filterSize = 1 << 20
	cpuSlots   = 16
	present    = 1 << 63
)

// A Disk is a request-based block device to be tracked.
type Disk struct {
	Major, Minor uint32 // of the whole disk
	Granules     uint64 // of 2^shift sectors, a partial last one included
	Word0        uint32 // its first word in the dirty bitmap; disks share no word
	Queues, Tags uint32 // hardware queues, and tags of each
}

// Counters are what the kernel side has seen of one disk since it was attached.
type Counters struct {
	Issued, Completed, Requeued uint64
	Bytes                       uint64 // written and discarded, as diskstats count them
	LostCompletions             uint64 // found by the pending table and made good
	LostIssues                  uint64 // a completion whose issue was never seen
	Passthrough                 uint64 // commands that write without saying where
	OutOfRange                  uint64 // sector, queue or tag beyond what was announced
}

// A Tracker is the programs attached and their memory mapped. Its methods may be
// called at any time beside the kernel, by one goroutine at a time, except
// Conflict and Counters, which any number may call. None may be called after Close.
type Tracker struct {
	disks    []Disk
	coll     *ebpf.Collection
	links    []link.Link
	mappings [][]byte

	control  []byte
	gen      *uint32
	dirty    []uint64
	pend     []uint64
	counters []Counters
	maps     uint64 // bytes
}

// Offsets in struct control.
const (
	offGen    = 0
	offWide   = 8
	offWhole  = 64
	offFilter = offWhole + 8*MaxDisks
)

// Supported reports whether this kernel lets this process track requests: nil,
// or an error wrapping [ebpf.ErrNotSupported] or [unix.EPERM] that gives the
// reason. It loads and attaches the real programs for no disk, so it does not guess.
func Supported() error {
	t, err := Load(nil, 3)
	if err != nil {
		return err
	}
	return t.Close()
}

// Load loads the programs for these disks and attaches them. From its return on,
// every change to any of them is seen. shift is a granule's size: 2^shift sectors.
func Load(disks []Disk, shift uint32) (_ *Tracker, err error) {
	if len(disks) > MaxDisks {
		return nil, fmt.Errorf("track %d disks: at most %d are supported: %w", len(disks), MaxDisks, ebpf.ErrNotSupported)
	}
	// Kernels before 5.11 charge maps against this limit; without the privilege to
	// raise it the load itself will say what is missing.
	_ = rlimit.RemoveMemlock()
	spec, err := loadTracker()
	if err != nil {
		return nil, fmt.Errorf("read tracking programs: %w", err)
	}
	t := &Tracker{disks: disks}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if err := t.configure(spec, shift); err != nil {
		return nil, err
	}
	if t.coll, err = ebpf.NewCollection(spec); err != nil {
		return nil, fmt.Errorf("load tracking programs: %w", err)
	}
	if err := t.mapMemory(); err != nil {
		return nil, err
	}
	// Completions first: a request issued before and completed after is then seen
	// once, as one that was in flight when tracking began.
	for _, name := range []string{"block_rq_complete", "block_rq_requeue", "block_rq_issue"} {
		l, err := link.AttachTracing(link.TracingOptions{Program: t.coll.Programs[name], AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			return nil, fmt.Errorf("attach to tracepoint %s: %w", name, err)
		}
		t.links = append(t.links, l)
	}
	return t, nil
}

func (t *Tracker) configure(spec *ebpf.CollectionSpec, shift uint32) error {
	var table [MaxDisks]trackerDisk
	words, slots := uint32(1), uint32(1)
	for i, d := range t.disks {
		table[i] = trackerDisk{
			Dev: uint64(d.Major)<<32 | uint64(d.Minor), Granules: d.Granules, Word0: d.Word0,
			Slot0: slots, Queues: d.Queues, Tags: d.Tags, Salt: salt(i),
		}
		slots += d.Queues * d.Tags
		words = max(words, d.Word0+uint32((d.Granules+63)/64))
	}
	spec.Maps["dirty"].MaxEntries = words
	spec.Maps["pend"].MaxEntries = slots
	spec.Maps["counters"].MaxEntries = cpuSlots * uint32(max(1, len(t.disks)))
	queueFirst, err := queueFirst()
	if err != nil {
		return err
	}
	return errors.Join(
		spec.Variables["ndisks"].Set(uint32(len(t.disks))),
		spec.Variables["shift"].Set(shift),
		spec.Variables["queue_first"].Set(queueFirst),
		spec.Variables["disks"].Set(table),
	)
}

// salt keeps the same granule of two disks apart in the filter.
func salt(disk int) uint32 { return uint32(disk) * 0x9E3779B1 }

// queueFirst asks the kernel's BTF for the form of block_rq_issue: before 5.11
// it was given (queue, request), since then the request alone.
func queueFirst() (uint8, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, fmt.Errorf("read the kernel's type information: %w", err)
	}
	var def *btf.Typedef
	if err := kernel.TypeByName("btf_trace_block_rq_issue", &def); err != nil {
		return 0, fmt.Errorf("find tracepoint block_rq_issue: %w", err)
	}
	if ptr, ok := def.Type.(*btf.Pointer); ok {
		if proto, ok := ptr.Target.(*btf.FuncProto); ok && len(proto.Params) == 3 { // the first is the program's own
			return 1, nil
		}
	}
	return 0, nil
}

func (t *Tracker) mapMemory() error {
	m := func(name string, elem uint32) ([]byte, error) {
		bm := t.coll.Maps[name]
		n := int(bm.MaxEntries()) * int(elem)
		b, err := unix.Mmap(bm.FD(), 0, (n+os.Getpagesize()-1)&^(os.Getpagesize()-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map the memory of %s: %w", name, err)
		}
		t.mappings, t.maps = append(t.mappings, b), t.maps+uint64(len(b))
		return b[:n], nil
	}
	control, err1 := m("control", t.coll.Maps["control"].ValueSize())
	dirty, err2 := m("dirty", 8)
	pend, err3 := m("pend", 8)
	counters, err4 := m("counters", uint32(unsafe.Sizeof(Counters{})))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	t.control, t.gen = control, (*uint32)(unsafe.Pointer(&control[offGen]))
	t.dirty = unsafe.Slice((*uint64)(unsafe.Pointer(&dirty[0])), len(dirty)/8)
	t.pend = unsafe.Slice((*uint64)(unsafe.Pointer(&pend[0])), len(pend)/8)
	t.counters = unsafe.Slice((*Counters)(unsafe.Pointer(&counters[0])), len(counters)/int(unsafe.Sizeof(Counters{})))
	return nil
}

// Memory is the size of the kernel memory shared, in bytes.
func (t *Tracker) Memory() uint64 { return t.maps }

// Prepare empties the conflict filter of the generation to come.
func (t *Tracker) Prepare() {
	next := int(atomic.LoadUint32(t.gen)+1) & 1
	clear(t.control[offFilter+next*filterSize : offFilter+(next+1)*filterSize])
	t.control[offWide+next] = 0
}

// Flip starts the next generation, with one store for all disks.
func (t *Tracker) Flip() { atomic.AddUint32(t.gen, 1) }

// Pending calls f with every range of granules that a request in flight covers,
// or one whose completion was never seen.
func (t *Tracker) Pending(f func(disk int, first, n uint64)) {
	slot := 1
	for d := range t.disks {
		for range t.disks[d].Queues * t.disks[d].Tags {
			if v := atomic.LoadUint64(&t.pend[slot]); v != 0 {
				f(d, v&^present>>20, v&0xfffff+1)
			}
			slot++
		}
	}
}

// InFlight is the number of requests in flight on a disk, as far as seen.
func (t *Tracker) InFlight(disk int) (n int) {
	t.Pending(func(d int, _, _ uint64) {
		if d == disk {
			n++
		}
	})
	return n
}

// Sweep forgets what stands in the pending table for a disk that is known to be
// idle, marking it dirty: completions that were never seen.
func (t *Tracker) Sweep(disk int) (n int) {
	slot := 1
	for d := range t.disks {
		for range t.disks[d].Queues * t.disks[d].Tags {
			if v := atomic.LoadUint64(&t.pend[slot]); v != 0 && d == disk {
				t.MarkDirty(d, v&^present>>20, v&0xfffff+1) // first marked, then forgotten
				if atomic.CompareAndSwapUint64(&t.pend[slot], v, 0) {
					n++
				}
			}
			slot++
		}
	}
	return n
}

// MarkDirty marks n granules dirty, as a completion does.
func (t *Tracker) MarkDirty(disk int, first, n uint64) {
	w0 := uint64(t.disks[disk].Word0)
	for g := first; g < min(first+n, t.disks[disk].Granules); g++ {
		atomic.OrUint64(&t.dirty[w0+g/64], 1<<(g%64))
	}
}

// TakeDirty swaps the words [from, to) of the dirty bitmap with zero and calls f
// with those that were not.
func (t *Tracker) TakeDirty(from, to int, f func(word int, set uint64)) {
	for i := range t.disks {
		whole := (*uint64)(unsafe.Pointer(&t.control[offWhole+8*i]))
		if atomic.LoadUint64(whole) != 0 && atomic.SwapUint64(whole, 0) != 0 {
			t.MarkDirty(i, 0, t.disks[i].Granules)
		}
	}
	for w, p := range t.dirty[from:min(to, len(t.dirty))] {
		if p == 0 { // not atomic, and need not be: a bit set before the flip is seen, one set later is found next time
			continue
		}
		if v := atomic.SwapUint64(&t.dirty[from+w], 0); v != 0 {
			f(from+w, v)
		}
	}
}

// Conflict reports whether a request issued in the current generation may cover
// one of n granules. It never misses one; it may name one that was not.
func (t *Tracker) Conflict(disk int, first, n uint64) bool {
	g := int(atomic.LoadUint32(t.gen)) & 1
	wide := (*uint32)(unsafe.Pointer(&t.control[offWide]))
	if w := atomic.LoadUint32(wide); byte(w>>(8*g)) != 0 {
		return true
	}
	h := uint32(first) + salt(disk)
	for i := range uint32(n) {
		at := offFilter + g*filterSize + int((h+i)&(filterSize-1))
		if t.control[at] != 0 {
			return true
		}
	}
	return false
}

// Counters are those of one disk.
func (t *Tracker) Counters(disk int) (sum Counters) {
	for i := range cpuSlots {
		c := &t.counters[disk*cpuSlots+i]
		sum.Issued += atomic.LoadUint64(&c.Issued)
		sum.Completed += atomic.LoadUint64(&c.Completed)
		sum.Requeued += atomic.LoadUint64(&c.Requeued)
		sum.Bytes += atomic.LoadUint64(&c.Bytes)
		sum.LostCompletions += atomic.LoadUint64(&c.LostCompletions)
		sum.LostIssues += atomic.LoadUint64(&c.LostIssues)
		sum.Passthrough += atomic.LoadUint64(&c.Passthrough)
		sum.OutOfRange += atomic.LoadUint64(&c.OutOfRange)
	}
	return sum
}

// Missed is how often the kernel skipped the program that sees writes begin,
// because it was running already on that CPU: those writes were never seen. A
// completion that is skipped so, by an interrupt within a completion, is made
// good by the pending table like every other that is not delivered.
func (t *Tracker) Missed() (uint64, error) {
	s, err := t.coll.Programs[trackerProgBlockRqIssue].Stats()
	if err != nil {
		return 0, fmt.Errorf("read statistics of program %s: %w", trackerProgBlockRqIssue, err)
	}
	return s.RecursionMisses, nil
}

// DirtyBits is the number of granules marked dirty in the words [from, to).
func (t *Tracker) DirtyBits(from, to int) (n uint64) {
	for i := from; i < min(to, len(t.dirty)); i++ {
		n += uint64(bits.OnesCount64(atomic.LoadUint64(&t.dirty[i])))
	}
	return n
}

// Close detaches the programs and frees their memory. Later calls do nothing.
func (t *Tracker) Close() error {
	var err error
	for _, l := range t.links {
		err = errors.Join(err, l.Close())
	}
	for _, m := range t.mappings {
		err = errors.Join(err, unix.Munmap(m))
	}
	if t.coll != nil {
		t.coll.Close()
	}
	t.links, t.mappings, t.coll = nil, nil, nil
	runtime.KeepAlive(t)
	return err
}
