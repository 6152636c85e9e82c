package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
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
	homes      = 256
	present    = 1 << 63
)

// A Disk is a request-based block device to be tracked.
type Disk struct {
	Major, Minor uint32 // of the whole disk
	Granules     uint64 // of 2^shift sectors, a partial last one included
	Word0        uint32 // its first word in the dirty bitmap; disks share no word
	Queues, Tags uint32 // hardware queues, and tags of each
}

// Queues are how many hardware queues a disk has, and how many tags each of them at most, by its
// directory in sysfs. None: it is not request-based.
func Queues(dir string) (queues, tags uint32, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "mq/*/nr_tags"))
	if err != nil {
		return 0, 0, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return 0, 0, err
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			return 0, 0, fmt.Errorf("read %s: %w", f, err)
		}
		tags = max(tags, uint32(n))
	}
	return uint32(len(files)), tags, nil
}

// Counters are what the kernel side has seen of one disk since it was attached.
type Counters struct {
	Issued, Completed, Requeued uint64
	Bytes                       uint64 // written and discarded, as diskstats count them
	LostCompletions             uint64 // found by the pending table and made good; below zero, as a negative int64, while requests that gave their tag away have left entries there
	LostIssues                  uint64 // a completion whose issue was never seen
	Passthrough                 uint64 // commands that write without saying where
	OutOfRange                  uint64 // sector, queue or tag beyond what was announced
}

// A Tracker is the programs attached and their memory mapped. Its methods may be
// called at any time beside the kernel, by one goroutine at a time, except
// Conflict and Counters, which any number may call. None may be called after Close.
type Tracker struct {
	disks    []Disk
	objects  *ebpf.Collection // maps and programs
	links    map[string]link.Link
	mappings [][]byte

	control  []byte
	gen      *uint32
	dirty    []uint64
	pend     []uint64
	counters []Counters
	owed     []uint64 // nil where nothing is pinned, and so
	state    []byte
	maps     uint64 // bytes
}

// attached are the programs. Completions come first: a request issued before and
// completed after is then seen once, as one that was in flight when tracking began.
var attached = []string{trackerProgBlockRqComplete, trackerProgBlockRqRequeue, trackerProgBlockRqIssue}

// spare is a copy of the program that sees writes begin. It is loaded with the
// others, and attached where the kernel turns out to skip programs.
const spare = trackerProgBlockRqIssueSpare

// Offsets in struct control.
const (
	offGen    = 0
	offWide   = 8
	offAlone  = 16
	offWhole  = 64
	offFilter = offWhole + 8*MaxDisks

	controlSize = offFilter + 2*filterSize
	counterSize = 64
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
	memlock := rlimit.RemoveMemlock()
	spec, err := loadTracker()
	if err != nil {
		return nil, fmt.Errorf("read tracking programs: %w", err)
	}
	t := &Tracker{disks: disks, links: map[string]link.Link{}}
	defer func() {
		if err != nil {
			t.Close()
			err = explain(err, memlock)
		}
	}()
	if err := t.configure(spec, shift); err != nil {
		return nil, err
	}
	if t.objects, err = ebpf.NewCollection(spec); err != nil {
		return nil, fmt.Errorf("load tracking programs: %w", err)
	}
	if err := t.mapMemory(); err != nil {
		return nil, err
	}
	for _, name := range attached {
		if err := t.attach(name); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *Tracker) attach(name string) error {
	l, err := link.AttachTracing(link.TracingOptions{Program: t.objects.Programs[name], AttachType: ebpf.AttachTraceRawTp})
	if err != nil {
		return fmt.Errorf("attach program %s to its tracepoint: %w", name, err)
	}
	t.links[name] = l
	return nil
}

func (t *Tracker) configure(spec *ebpf.CollectionSpec, shift uint32) error {
	var table [MaxDisks]trackerDisk
	var at [homes]uint8
	for i, d := range t.disks {
		_, slots := sizes(t.disks[:i])
		table[i] = trackerDisk{
			Dev: uint64(d.Major)<<32 | uint64(d.Minor), Granules: d.Granules, Word0: d.Word0,
			Slot0: slots, Queues: d.Queues, Tags: d.Tags, Salt: salt(i),
		}
		at[home(d)] = uint8(i + 1)
	}
	words, slots := sizes(t.disks)
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
		spec.Variables["homes"].Set(at),
	)
}

// sizes are how many words of the dirty bitmap and entries of the pending table
// disks take; its entry 0 belongs to none.
func sizes(disks []Disk) (words, slots uint32) {
	words, slots = 1, 1
	for _, d := range disks {
		slots += d.Queues * d.Tags
		words = max(words, d.Word0+uint32((d.Granules+63)/64))
	}
	return words, slots
}

// home is where the kernel side looks for a disk first.
func home(d Disk) uint32 { return (d.Major*37 + d.Minor) % homes }

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

// memory maps a map of the kernel's into this process.
func (t *Tracker) memory(name string, m *ebpf.Map, elem uint32) ([]byte, error) {
	n := int(m.MaxEntries()) * int(elem)
	b, err := unix.Mmap(m.FD(), 0, (n+os.Getpagesize()-1)&^(os.Getpagesize()-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory of %s: %w", name, err)
	}
	t.mappings, t.maps = append(t.mappings, b), t.maps+uint64(len(b))
	return b[:n], nil
}

func (t *Tracker) mapMemory() error {
	m := func(name string, elem uint32) ([]byte, error) { return t.memory(name, t.objects.Maps[name], elem) }
	control, err1 := m("control", t.objects.Maps["control"].ValueSize())
	dirty, err2 := m("dirty", 8)
	pend, err3 := m("pend", 8)
	counters, err4 := m("counters", uint32(unsafe.Sizeof(Counters{})))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	t.control, t.gen = control, (*uint32)(unsafe.Pointer(&control[offGen]))
	t.dirty, t.pend = words(dirty), words(pend)
	t.counters = unsafe.Slice((*Counters)(unsafe.Pointer(&counters[0])), len(counters)/int(unsafe.Sizeof(Counters{})))
	return nil
}

func words(b []byte) []uint64 { return unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), len(b)/8) }

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

// TakeDirty takes the words [from, to) out of the dirty bitmap. f is called with
// each that is not empty before its bits are cleared, so that at no moment they
// are nowhere; bits that are set meanwhile stay for the next time.
func (t *Tracker) TakeDirty(from, to int, f func(word int, set uint64)) {
	for i := range t.disks { // first marked, then forgotten, and looked at below
		whole := (*uint64)(unsafe.Pointer(&t.control[offWhole+8*i]))
		if atomic.LoadUint64(whole) != 0 {
			t.MarkDirty(i, 0, t.disks[i].Granules)
			atomic.StoreUint64(whole, 0)
		}
	}
	for w, p := range t.dirty[from:min(to, len(t.dirty))] {
		if p == 0 { // not atomic, and need not be: a bit set before the flip is seen, one set later is found next time
			continue
		}
		at := &t.dirty[from+w]
		v := atomic.LoadUint64(at)
		f(from+w, v)
		atomic.AndUint64(at, ^v)
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

// Skips are how often the kernel skipped the programs that see writes begin,
// because the program was running already on that CPU. A completion that is
// skipped so is made good by the pending table like every other that is not delivered.
type Skips struct {
	Program uint64 // times that the program was skipped
	Alone   uint64 // of these, before it had a spare
	Spared  bool   // it has one
	Spare   uint64 // times that the spare was skipped
}

// Unseen is the most beginnings that can have been seen by no program. It never
// shrinks.
func (s Skips) Unseen() uint64 {
	if !s.Spared {
		return s.Program
	}
	return s.Alone + min(s.Program-s.Alone, s.Spare)
}

// Blind reports whether a beginning since before may have been seen by no
// program: each was skipped.
func (s Skips) Blind(before Skips) bool {
	return s.Program != before.Program && (!before.Spared || s.Spare != before.Spare)
}

// Skips asks the kernel for its counts.
func (t *Tracker) Skips() (s Skips, err error) {
	program, err := t.skips(trackerProgBlockRqIssue)
	if err != nil || t.links[spare] == nil {
		return Skips{Program: program}, err
	}
	s = Skips{Program: program, Alone: *t.alone(), Spared: true}
	s.Spare, err = t.skips(spare)
	return s, err
}

func (t *Tracker) skips(name string) (uint64, error) {
	s, err := t.objects.Programs[name].Stats()
	if err != nil {
		return 0, fmt.Errorf("read statistics of program %s: %w", name, err)
	}
	return s.RecursionMisses, nil
}

// alone is where the skips before there was a spare are kept.
func (t *Tracker) alone() *uint64 { return (*uint64)(unsafe.Pointer(&t.control[offAlone])) }

// AttachSpare has a spare see the writes that the program is kept from, from its
// return on. pins are those that hold the tracker; nil: none do.
func (t *Tracker) AttachSpare(pins *Pins) error {
	if err := t.attach(spare); err != nil {
		return err
	}
	program, err := t.skips(trackerProgBlockRqIssue) // after: what both were kept from is in it, or in both
	if err == nil {
		*t.alone() = program
		if pins != nil { // with its number: without a pin it would not be there for who comes next
			err = pins.pinLink(t, spare)
		}
	}
	if err != nil {
		err = errors.Join(err, t.links[spare].Close())
		delete(t.links, spare)
	}
	return err
}

// DirtyBits is the number of granules marked dirty in the words [from, to).
func (t *Tracker) DirtyBits(from, to int) (n uint64) {
	for i := from; i < min(to, len(t.dirty)); i++ {
		n += uint64(bits.OnesCount64(atomic.LoadUint64(&t.dirty[i])))
	}
	return n
}

// Close lets go of the programs and their memory. What is not pinned is detached
// and freed; what is goes on. Later calls do nothing.
func (t *Tracker) Close() error {
	var err error
	for _, l := range t.links {
		err = errors.Join(err, l.Close())
	}
	for _, m := range t.mappings {
		err = errors.Join(err, unix.Munmap(m))
	}
	if t.objects != nil {
		t.objects.Close()
	}
	t.links, t.mappings, t.objects = nil, nil, nil
	runtime.KeepAlive(t)
	return err
}
