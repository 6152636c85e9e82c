package capture

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"rehost/block"
	"rehost/capture/bpf"
)

// The state pinned beside the bitmaps: docs/format/pins.md. Numbers are little
// endian, as on every machine that runs this.
const (
	recordMagic   = "RHPINS\r\n"
	recordVersion = 4

	recVersion  = 8
	recActive   = 12 // which copy counts
	recBoot     = 16
	recPrograms = 32
	recReplica  = 64
	recDisks    = 96
	recCopy     = 256
	recCopySize = (bpf.StateSize - recCopy) / 2

	copyAcked    = 0
	copyAsked    = 8
	copyClean    = 16
	copyFlags    = 24
	copyAccounts = 28
	copyPoint    = 32
	copyTime     = 40
	copyMissed   = 48
	copyWritten  = 56
	copyFirst    = 64 // the first account

	accFlags    = 0
	accMissed   = 4
	accKernel   = 8
	accCounters = 16
	accSize     = 80

	flagStarted = 1
	flagSynced  = 2
	flagSuspect = 4
	flagWhole   = 8
	flagHalfway = 16

	flagOpen = 1
)

// An identity is what must be the same for tracking to go on: else it is about
// something else, or was done by other programs.
type identity struct {
	boot                     [16]byte // the kernel's boot_id
	programs, replica, disks [sha256.Size]byte
}

// A record is the pinned state of tracking. A process that is killed while it
// writes leaves the copy that counted.
type record []byte

// create writes a record for an identity. It holds no position yet.
func (r record) create(id identity) {
	clear(r)
	copy(r, recordMagic)
	binary.LittleEndian.PutUint32(r[recVersion:], recordVersion)
	copy(r[recBoot:], id.boot[:])
	copy(r[recPrograms:], id.programs[:])
	copy(r[recReplica:], id.replica[:])
	copy(r[recDisks:], id.disks[:])
}

// check reports why tracking under a record cannot go on as id.
func (r record) check(id identity) error {
	same := func(at int, want []byte) bool { return string(r[at:at+len(want)]) == string(want) }
	switch {
	case !same(0, []byte(recordMagic)):
		return errors.New("what is pinned is not this agent's")
	case binary.LittleEndian.Uint32(r[recVersion:]) != recordVersion:
		return fmt.Errorf("it was pinned in version %d of the format, and this agent knows version %d", binary.LittleEndian.Uint32(r[recVersion:]), recordVersion)
	case !same(recBoot, id.boot[:]):
		return errors.New("it is from before the machine was started")
	case !same(recPrograms, id.programs[:]):
		return errors.New("the agent was upgraded, and this version tracks with other programs")
	case !same(recReplica, id.replica[:]):
		return errors.New("it was for the replica of another source server")
	case !same(recDisks, id.disks[:]):
		return errors.New("the disks are not the same as then, or what of them is copied")
	}
	return nil
}

func (r record) active() *uint32 { return (*uint32)(unsafe.Pointer(&r[recActive])) }

func (r record) half(n uint32) []byte { return r[recCopy+int(n)*recCopySize:][:recCopySize] }

// write makes a position and the disks' accounts count, with one store.
func (r record) write(p position, missed uint64, accounts []baseline, now time.Time) {
	next := (atomic.LoadUint32(r.active()) + 1) & 1
	b, le := r.half(next), binary.LittleEndian
	le.PutUint64(b[copyAcked:], uint64(p.acked))
	le.PutUint64(b[copyAsked:], uint64(p.asked))
	le.PutUint64(b[copyClean:], uint64(p.clean))
	le.PutUint32(b[copyFlags:], bit(p.started, flagStarted)|bit(p.synced, flagSynced)|bit(p.suspect, flagSuspect)|bit(p.whole, flagWhole)|bit(p.halfway, flagHalfway))
	le.PutUint32(b[copyAccounts:], uint32(len(accounts)))
	le.PutUint64(b[copyPoint:], uint64(p.point.Seq))
	le.PutUint64(b[copyTime:], uint64(unixNano(p.point.Time)))
	le.PutUint64(b[copyMissed:], missed)
	le.PutUint64(b[copyWritten:], uint64(now.UnixNano()))
	for i, a := range accounts {
		c := b[copyFirst+i*accSize:][:accSize]
		le.PutUint32(c[accFlags:], bit(a.stats.inFlight == 0, flagOpen))
		le.PutUint32(c[accMissed:], a.missed)
		le.PutUint64(c[accKernel:], a.stats.bytes)
		for j, n := range counterList(&a.counts) {
			le.PutUint64(c[accCounters+8*j:], *n)
		}
	}
	atomic.StoreUint32(r.active(), next)
}

// read returns what was written last.
func (r record) read() (p position, missed uint64, accounts []baseline, written time.Time, err error) {
	b, le := r.half(atomic.LoadUint32(r.active())&1), binary.LittleEndian
	flags := le.Uint32(b[copyFlags:])
	p = position{
		acked: block.Seq(le.Uint64(b[copyAcked:])), asked: block.Seq(le.Uint64(b[copyAsked:])), clean: block.Seq(le.Uint64(b[copyClean:])),
		started: flags&flagStarted != 0, synced: flags&flagSynced != 0, suspect: flags&flagSuspect != 0,
		whole: flags&flagWhole != 0, halfway: flags&flagHalfway != 0,
	}
	if p.point.Seq = block.Seq(le.Uint64(b[copyPoint:])); p.point.Seq != 0 {
		p.point.Time = time.Unix(0, int64(le.Uint64(b[copyTime:])))
	}
	n := le.Uint32(b[copyAccounts:])
	if n > bpf.MaxDisks {
		return p, 0, nil, written, fmt.Errorf("it has the accounts of %d disks", n)
	}
	for i := range int(n) {
		c, a := b[copyFirst+i*accSize:][:accSize], baseline{}
		a.missed = le.Uint32(c[accMissed:])
		a.stats.bytes = le.Uint64(c[accKernel:])
		if le.Uint32(c[accFlags:])&flagOpen == 0 {
			a.stats.inFlight = 1
		}
		for j, n := range counterList(&a.counts) {
			*n = le.Uint64(c[accCounters+8*j:])
		}
		accounts = append(accounts, a)
	}
	return p, le.Uint64(b[copyMissed:]), accounts, time.Unix(0, int64(le.Uint64(b[copyWritten:]))), nil
}

func counterList(c *bpf.Counters) [8]*uint64 {
	return [8]*uint64{&c.Issued, &c.Completed, &c.Requeued, &c.Bytes, &c.LostCompletions, &c.LostIssues, &c.Passthrough, &c.OutOfRange}
}

func bit(set bool, flag uint32) uint32 {
	if set {
		return flag
	}
	return 0
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
