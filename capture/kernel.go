package capture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rehost/block"
	"rehost/capture/bpf"
)

// maxBitmap is the most that the kernel's dirty bitmap may take, in bytes. What is
// owed and the engine's sets take as much each, which keeps a server's tracking
// under 200 MiB; 1 TiB in blocks takes 32 MiB.
const maxBitmap = 36 << 20

// kernelShift is the finest granularity whose bitmap is small enough.
func kernelShift(disks []block.Disk) (shift uint) {
	for shift = 0; shift < 8; shift++ {
		if l := newLayout(disks, shift); l.words*8 <= maxBitmap {
			break
		}
	}
	return shift
}

// auditEvery is how often a quiet disk is audited.
const auditEvery = time.Second

// A kernelTracker is a [Tracker] on the kernel's marks.
type kernelTracker struct {
	layout  *layout
	sources []*source
	sysfs   string
	bpf     *bpf.Tracker
	look    func() (bpf.Skips, error) // at what the kernel skipped

	// Of the engine's goroutine.
	base      []baseline
	missed    uint64 // begins of writes that the kernel kept from the programs, and whose ends are accounted for
	nextAudit time.Time
	issued    uint64 // by all disks, at the last flip
	clean     bool   // the last audit covered every disk and found nothing
	skips     bpf.Skips
	blind     uint64 // times that a write may have begun unseen since the look before

	// Where tracking outlives this process.
	pins     *bpf.Pins // nil: it does not
	identity identity
	record   record    // nil: it does not
	position *position // of an engine before this one, whose tracking went on
	fate     string

	mu        sync.Mutex // guards:
	proof     string
	spareless error // why there can be no spare program
}

// An observation is a disk's counters on both sides at one moment.
type observation struct {
	stats  diskstats
	counts bpf.Counters
}

// A baseline is the observation at which a disk's account was last opened.
type baseline struct {
	observation
	before observation // at the audit before
	missed uint32      // what the tracker had missed then, or when the account was found right, its lower half
}

func newKernelTracker(ctx context.Context, o Options, sources []*source, l *layout) (_ *kernelTracker, err error) {
	t := &kernelTracker{layout: l, sources: sources, sysfs: o.sysfs}
	disks, err := t.shape()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if err := t.claim(o, disks); err != nil {
		return nil, err
	}
	if t.adopt(disks) {
		return t, nil
	}
	if err := t.load(ctx, disks); err != nil {
		return nil, err
	}
	t.pin()
	return t, nil
}

// shape is what the kernel side is to know of the disks.
func (t *kernelTracker) shape() (disks []bpf.Disk, err error) {
	for i, s := range t.sources {
		queues, tags, err := bpf.Queues(sysBlock(t.sysfs, s.major, s.minor))
		if err != nil {
			return nil, fmt.Errorf("track %s: %w", s.disk.Name, err)
		}
		if queues == 0 { // what is under it must be tracked instead
			return nil, fmt.Errorf("track %s: %w: it is not request-based, it has no queues", s.disk.Name, ErrNotSupported)
		}
		p := t.layout.disks[i]
		disks = append(disks, bpf.Disk{Major: s.major, Minor: s.minor, Granules: p.granules, Word0: uint32(p.word0), Queues: queues, Tags: tags})
	}
	return disks, nil
}

// load starts to track, and shows where it can that the kernel runs the programs.
func (t *kernelTracker) load(ctx context.Context, disks []bpf.Disk) error {
	canary, canaryErr := newCanary(t.sysfs, t.layout)
	if canaryErr == nil {
		defer canary.close()
		disks = append(disks, canary.disk)
	}
	var err error
	if t.bpf, err = bpf.Load(disks, 3+uint32(t.layout.shift)); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	t.look = t.bpf.Skips
	t.proof = "writes to a disk made for the purpose were seen"
	if canaryErr != nil {
		t.proof = "not shown yet; the audit against diskstats will (" + canaryErr.Error() + ")"
	} else if err := canary.sing(t.bpf, len(t.sources)); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return t.settleDown(ctx)
}

// settleDown opens the disks' accounts once what was in flight before tracking
// began has drained, or after two seconds: a write that began before the
// programs were there looks like one whose issue was lost.
func (t *kernelTracker) settleDown(ctx context.Context) error {
	limit := time.Now().Add(2 * time.Second)
	for i, s := range t.sources {
		for {
			st, err := readDiskstats(sysBlock(t.sysfs, s.major, s.minor))
			if err != nil {
				return fmt.Errorf("audit %s: %w", s.disk.Name, err)
			}
			if st.inFlight == 0 || time.Now().After(limit) {
				break
			}
			if err := sleep(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		t.base = append(t.base, baseline{})
		if err := t.open(i); err != nil {
			return err
		}
	}
	var err error
	t.missed, err = t.unseen()
	return err
}

// unseen is the most writes that can have begun without a program seeing it.
func (t *kernelTracker) unseen() (uint64, error) {
	s, err := t.look()
	return s.Unseen(), err
}

// open opens a disk's account anew. Ends of writes in the old one whose begins
// were missed have been accounted for.
func (t *kernelTracker) open(i int) error {
	missed, err := t.unseen()
	if err != nil {
		return err
	}
	old := t.base[i].counts.LostIssues
	if err := t.openAt(i, uint32(missed)); err != nil {
		return err
	}
	t.missed = min(t.missed+t.base[i].counts.LostIssues-old, missed)
	return nil
}

func (t *kernelTracker) openAt(i int, missed uint32) error {
	s := t.sources[i]
	for range 100 { // both sides at one moment: until nothing happened in between
		before := t.bpf.Counters(i)
		st, err := readDiskstats(sysBlock(t.sysfs, s.major, s.minor))
		if err != nil {
			return fmt.Errorf("audit %s: %w", s.disk.Name, err)
		}
		t.base[i] = baseline{observation: observation{st, before}, missed: missed}
		if t.bpf.Counters(i) == before && st.inFlight == 0 && t.bpf.InFlight(i) == 0 {
			return nil
		}
	}
	t.base[i].stats.inFlight = 1 // never a quiet moment: bytes are not comparable yet
	return nil
}

// Method returns [EBPF], with how delivery of the kernel's events was shown.
func (t *kernelTracker) Method() (Method, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spareless != nil {
		return EBPF, fmt.Sprintf("%s; programs that the kernel skips have no spare: %v", t.proof, t.spareless)
	}
	return EBPF, t.proof
}

// Skipped grows when the kernel may have kept every program from a write's begin,
// because each was running on that CPU already: below another interrupt, or, since
// 7.0, as part of a task that was put aside. Where that happens at all, a spare is
// attached, which counts from the next call on.
func (t *kernelTracker) Skipped() (uint64, error) {
	now, err := t.look()
	if err != nil {
		return 0, err
	}
	if now.Blind(t.skips) {
		t.blind++
	}
	t.skips = now
	if now.Program > 0 && !now.Spared && t.spareless == nil {
		err := t.bpf.AttachSpare(t.pins)
		t.mu.Lock()
		t.spareless = err
		t.mu.Unlock()
	}
	return t.blind, nil
}

func (t *kernelTracker) Prepare() error { t.bpf.Prepare(); return nil }
func (t *kernelTracker) Flip()          { t.bpf.Flip(); t.issued = t.allIssued() }

func (t *kernelTracker) allIssued() (n uint64) {
	for i := range t.sources {
		n += t.bpf.Counters(i).Issued
	}
	return n
}

// stirred reports whether anything was written since the flip.
func (t *kernelTracker) stirred() bool { return t.allIssued() != t.issued }

func (t *kernelTracker) Pending(into *Set) {
	t.bpf.Pending(func(d int, first, n uint64) {
		if d < len(t.sources) {
			into.Add(d, first, n)
		}
	})
}

func (t *kernelTracker) Changed(into *Set) error {
	t.bpf.TakeDirty(0, t.layout.words, into.addWord)
	return nil
}

func (t *kernelTracker) Conflict(disk int, first, n uint64) bool {
	return t.bpf.Conflict(disk, first, n)
}

// Settle lets a round without conflict be a point unless an account shows that
// something went unseen.
func (t *kernelTracker) Settle(ctx context.Context) (bool, error) {
	missed, err := t.unseen()
	if err != nil {
		return false, err
	}
	if err := t.checkCounters(missed); err != nil {
		return false, err
	}
	t.clean = false
	if now := time.Now(); now.After(t.nextAudit) {
		t.nextAudit = now.Add(auditEvery)
		if err := t.audit(missed); err != nil {
			return false, err
		}
	}
	return true, nil
}

// audited reports whether the Settle before covered every disk.
func (t *kernelTracker) audited() bool { return t.clean }

// checkCounters looks for what the kernel side itself knows it cannot place. A
// write whose begin was missed is known by its end: it was marked then, and no
// round took place beside its begin. There are not more of them than were missed.
func (t *kernelTracker) checkCounters(missed uint64) error {
	unseen := uint64(0)
	for i := range t.sources {
		c, b := t.bpf.Counters(i), &t.base[i].counts
		unseen += c.LostIssues - b.LostIssues
		var reason string
		switch {
		case t.missed+unseen > missed:
			reason = fmt.Sprintf("%d writes were completed that were never seen to begin", c.LostIssues-b.LostIssues)
		case c.Passthrough > b.Passthrough:
			reason = fmt.Sprintf("%d commands were sent to the device past the block layer", c.Passthrough-b.Passthrough)
		case c.OutOfRange > b.OutOfRange:
			reason = fmt.Sprintf("%d requests were outside of the disk or its queues", c.OutOfRange-b.OutOfRange)
		default:
			continue
		}
		return errors.Join(&AuditError{Disk: i, Reason: reason}, t.open(i))
	}
	return nil
}

// audit compares, for each disk that is quiet, the bytes that the kernel's
// statistics and its tracepoints saw written. missed was asked before.
func (t *kernelTracker) audit(missed uint64) error {
	quiet, proven := 0, false
	for i := range t.sources {
		ok, err := t.auditDisk(i, uint32(missed))
		if err != nil {
			return err
		}
		if ok {
			quiet++
			proven = proven || t.bpf.Counters(i).Bytes > 0
		}
	}
	if t.clean = quiet == len(t.sources); t.clean {
		t.missed = missed // all that was missed has ended and was counted, or is of other disks
		for i := range t.base {
			b := &t.base[i]
			b.counts.LostIssues, b.missed = max(b.counts.LostIssues, b.before.counts.LostIssues), uint32(missed)
		}
	}
	if proven {
		t.mu.Lock()
		t.proof = "bytes written, as diskstats count them, equal those seen"
		t.mu.Unlock()
	}
	return nil
}

// auditDisk reports whether the disk was quiet enough to be audited; an error
// says that its account is wrong.
func (t *kernelTracker) auditDisk(i int, missed uint32) (bool, error) {
	s, base := t.sources[i], &t.base[i]
	counts := t.bpf.Counters(i)
	st, err := readDiskstats(sysBlock(t.sysfs, s.major, s.minor))
	if err != nil {
		return false, &DiskError{Disk: s.disk.Name, Op: "audit", Err: err}
	}
	if st.inFlight != 0 || counts != t.bpf.Counters(i) {
		return false, nil
	}
	// Nothing has happened since the audit before, so what still stands in the
	// pending table is no request.
	if now := (observation{st, counts}); now == base.before {
		base.counts.LostCompletions -= uint64(t.bpf.Sweep(i)) // each of them one more since
	} else {
		base.before = now
	}
	if base.stats.inFlight != 0 { // the account could not be opened yet
		return false, t.open(i)
	}
	kernel, seen := st.bytes-base.stats.bytes, counts.Bytes-base.counts.Bytes
	if kernel == seen || t.stillMoving(i, counts, st) {
		return kernel == seen, nil
	}
	if kernel > seen && t.bpf.InFlight(i) > 0 {
		return false, nil // a completion is missing; the next quiet audit will know
	}
	if kernel > seen && base.missed == missed && int64(counts.LostCompletions-base.counts.LostCompletions) > 0 {
		// Completions that never came are known and their blocks marked, since all begins
		// were seen: only the sum is short of them. The account starts anew.
		return true, t.open(i)
	}
	return false, errors.Join(&AuditError{Disk: i, Reason: fmt.Sprintf("%d bytes were written, %d seen", kernel, seen)}, t.open(i))
}

// stillMoving reports whether a disk that looked quiet was not: between a
// request's end and its entry in the statistics lies a moment.
func (t *kernelTracker) stillMoving(i int, counts bpf.Counters, st diskstats) bool {
	s := t.sources[i]
	time.Sleep(20 * time.Millisecond)
	again, err := readDiskstats(sysBlock(t.sysfs, s.major, s.minor))
	return err != nil || again != st || t.bpf.Counters(i) != counts
}

// Close lets go of the programs. Where they are pinned they go on.
func (t *kernelTracker) Close() (err error) {
	if t.bpf != nil {
		err = t.bpf.Close()
	}
	if t.pins != nil {
		err = errors.Join(err, t.pins.Close())
	}
	return err
}
