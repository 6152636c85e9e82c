package capture

import (
	"sync"
	"sync/atomic"
	"time"

	"rehost/block"
)

// A State says how far replication is. The names are MGN's data replication
// states where it has one.
//
//	STALLED --Run--> INITIAL_SYNC, RESCAN --point--> CONTINUOUS <--> BACKLOG <--> NOT_CONVERGING
//	   ^                                                |
//	   +------------------- Run returns ----------------+        PAUSED: any of them, by Pause
type State string

// The states.
const (
	Stalled       State = "STALLED"        // no sink, or part of a disk cannot be read
	InitialSync   State = "INITIAL_SYNC"   // the first copy is under way
	Rescan        State = "RESCAN"         // the disks are compared with the replica
	Backlog       State = "BACKLOG"        // catching up: more than a moment's changes are to be sent
	Continuous    State = "CONTINUOUS"     // points follow each other
	NotConverging State = "NOT_CONVERGING" // no point within the deadline: writes outrun the reads
	Paused        State = "PAUSED"
)

// A DiskStatus is what is known of one disk, in bytes.
type DiskStatus struct {
	Disk       block.Disk
	Major      uint32 // of the device that is open, whatever has its name by now
	Minor      uint32
	Replicated int64 // durable on the other side, or left out
	Backlog    int64 // known to be changed and not yet read, what cannot be read included
	Rescanned  int64 // compared with the replica, while that is under way
	Free       int64 // left out of the copy, since no file system had it in use
}

// A Status is a moment's view of an [Engine].
type Status struct {
	State  State
	Method Method
	Reason string // why this method, and how it was shown to work
	Keeps  string // whether tracking goes on without this process; if not, why, and if it was begun anew, why
	Err    error  // why the last Run returned; while one goes on, an [*UnreadError] or nil

	Disks                      []DiskStatus
	Total, Replicated, Backlog int64 // bytes, of all disks

	// FreeAreas are where free space was looked for when everything was to be copied
	// or compared. An engine that goes on where another one was knows none.
	FreeAreas []FreeArea

	Point block.Point   // the newest consistent point
	Lag   time.Duration // its age; 0 without one
	ETA   time.Duration // until the backlog is read, at the present rate; 0: none or unknown

	ReadRate, SentRate  float64     // bytes a second, over the last seconds
	Compression         block.Level // of what compresses
	ReadLimit           float64     // bytes a second, while the disks' own writes would take long; 0: none
	BytesRead, SentSize int64       // since the engine was opened; sent is after compression

	CPU      time.Duration // processor time of this process, since its start
	CPURate  float64       // processors, over the last seconds
	CPULimit float64       // processors that bulk work is held to; 0: no limit

	// Statistics of consistency, since the engine was opened. Epochs are those that
	// became consistent points; a round that met conflicts did not.
	Epochs, Rounds, Conflicts uint64
	Retractions               uint64        // audits that failed
	Withdrawn                 uint64        // acknowledged epochs that they took back
	LongestRound              time.Duration // from its instant to its end, once the first copy was over
	Freezes                   uint64        // of file systems, since the engine was opened
	LongestFreeze             time.Duration // of these
	Outrun                    string        // why no point comes: in the state NotConverging, and where disks were compared in vain
	LastAudit                 string        // the last audit that failed, if any
	Audited                   block.Seq     // the last point under an audit that was clean for every disk
}

// status is the engine's account of itself.
type status struct {
	bytesRead, bytesSent atomic.Int64
	backlog              []atomic.Int64 // bytes of each disk, while a round runs
	foreign              []atomic.Int64 // of these, those still to be compared
	devices              []*source      // what is open; constant

	mu         sync.Mutex // guards:
	running    bool
	err        error
	unread     *UnreadError
	point      block.Point
	replicated []int64
	free       []int64 // bytes of each disk
	freeAreas  []FreeArea
	lastTry    time.Time // when the rounds without a point began
	epochs     uint64
	rounds     uint64
	conflicts  uint64
	retracts   uint64
	withdrawn  uint64
	longest    time.Duration
	freezes    uint64
	frozen     time.Duration // at most, by one freeze
	restless   bool          // the disks were compared, and written to meanwhile
	unfrozen   string        // why file systems are not frozen, or were in vain
	audit      string
	audited    block.Seq
	synced     bool
	rescan     bool
	reads      meter
	sends      meter
	works      meter
}

func (s *status) init(e *Engine) {
	s.backlog = make([]atomic.Int64, len(e.disks))
	s.foreign = make([]atomic.Int64, len(e.disks))
	s.replicated, s.free = make([]int64, len(e.disks)), make([]int64, len(e.disks))
	for i := range e.disks {
		s.backlog[i].Store(e.disks[i].Size)
	}
}

func (s *status) began() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.err, s.lastTry, s.restless, s.unfrozen = true, nil, time.Now(), false, ""
}

func (s *status) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.err, s.unread, s.rescan = false, err, nil, false
}

// unreadable says what cannot be read; nil is nothing.
func (s *status) unreadable(err *UnreadError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unread = err
}

// resumed says that an engine before this one had come so far.
func (s *status) resumed(e *Engine, newest block.Point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.point, s.synced, s.audited = newest, e.synced, e.clean
	for i, d := range e.disks {
		left := e.left(i)
		s.backlog[i].Store(left)
		if s.replicated[i] = d.Size - left; e.synced {
			s.replicated[i] = d.Size
		}
	}
}

// leftOut says what is not copied.
func (s *status) leftOut(e *Engine, free *Set, areas []FreeArea) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeAreas = areas
	for i := range e.disks {
		s.free[i] = int64(free.countDisk(i)<<e.layout.shift) * block.Size
	}
}

// newest is the newest consistent point.
func (s *status) newest() block.Point {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.point
}

// complete says that the first copy was over before this was known.
func (s *status) complete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = true
}

// restarted says that the first copy begins anew.
func (s *status) restarted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = false
	clear(s.replicated)
}

// left is how many bytes of a disk are to be read.
func (e *Engine) left(disk int) int64 {
	n := e.todo.countDisk(disk)
	if e.unread.set != nil {
		n += e.unread.set.countBesides(disk, e.todo)
	}
	return e.bytes(disk, n)
}

// bytes is how long n granules of a disk are, the last one of which may be short.
func (e *Engine) bytes(disk int, n uint64) int64 {
	return min(e.disks[disk].Size, int64(n<<e.layout.shift)*block.Size)
}

func (s *status) beginRound(e *Engine) {
	for i := range e.disks {
		s.backlog[i].Store(e.left(i))
		s.foreign[i].Store(0)
		if e.foreign != nil {
			s.foreign[i].Store(e.bytes(i, e.foreign.countDisk(i)))
		}
	}
	s.mu.Lock()
	s.rounds++
	s.rescan = e.foreign != nil && e.foreign.count > 0
	s.mu.Unlock()
}

// compared says that bytes of a disk are compared.
func (s *status) compared(disk int, n int64) { s.foreign[disk].Add(-n) }

func (s *status) read(disk int, n int64) {
	s.bytesRead.Add(n)
	if s.backlog[disk].Add(-n) < 0 { // blocks read through gaps were never in it
		s.backlog[disk].Store(0)
	}
}

func (s *status) sent(n int) { s.bytesSent.Add(int64(n)) }

func (s *status) conflicted(n int64) {
	s.mu.Lock()
	s.conflicts += uint64(n)
	s.mu.Unlock()
}

func (s *status) committed(e *Engine, p block.Point, flags block.Flags) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, d := range e.disks {
		s.replicated[i] = d.Size
		if !s.synced && !flags.Has(block.InitialSyncDone) {
			s.replicated[i] = d.Size - e.left(i)
		}
	}
	s.audited = e.clean
	if flags.Has(block.Consistent) {
		s.point, s.lastTry, s.synced, s.rescan, s.restless, s.unfrozen = p, time.Now(), true, false, false, ""
		s.epochs++
	}
}

// lasted says how long a round took.
func (s *status) lasted(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.longest = max(s.longest, d)
}

// withdrew says that epochs are no longer on the other side.
func (s *status) withdrew(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withdrawn += n
}

// froze says that file systems were frozen for so long.
func (s *status) froze(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freezes++
	s.frozen = max(s.frozen, d)
}

// disturbed says that all was read to be compared, and is no point.
func (s *status) disturbed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restless = true
}

// cannotFreeze says why they are not, or why that did not help.
func (s *status) cannotFreeze(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unfrozen = why
}

// outrun says why no point comes.
func (e *Engine) outrun(unfrozen string) string {
	text := "programs write faster than the disks can be read and sent"
	switch {
	case e.compare != nil:
		return "the disks are written to all the time, and compared: there is a point only where nothing is written for as long as reading them takes"
	case e.brake.freezer == nil:
		return text + "; file systems are not frozen, since that is not allowed"
	case unfrozen != "":
		return text + "; file systems are not frozen: " + unfrozen
	}
	return text
}

func (s *status) mistrusted(a *AuditError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retracts++
	s.audit = a.Error()
}

// A meter is a rate over the last few seconds.
type meter struct {
	at   time.Time
	n    int64
	rate float64
}

func (m *meter) update(now time.Time, n int64) float64 {
	if m.at.IsZero() {
		m.at, m.n = now, n
		return 0
	}
	if d := now.Sub(m.at); d >= time.Second {
		m.rate, m.at, m.n = float64(n-m.n)/d.Seconds(), now, n
	}
	return m.rate
}

// Status is the engine's state now. Rates need it to be called now and then.
func (e *Engine) Status() Status {
	e.mu.Lock()
	paused := e.resume != nil
	e.mu.Unlock()
	s := &e.status
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	out := Status{
		Err: s.err, Point: s.point, Lag: lag(now, s.point.Time),
		BytesRead: s.bytesRead.Load(), SentSize: s.bytesSent.Load(),
		Epochs: s.epochs, Rounds: s.rounds, Conflicts: s.conflicts, Retractions: s.retracts, Withdrawn: s.withdrawn, LongestRound: s.longest,
		Freezes: s.freezes, LongestFreeze: s.frozen, LastAudit: s.audit, Audited: s.audited, FreeAreas: s.freeAreas,
	}
	out.Method, out.Reason = e.tracker.Method()
	if k, ok := e.tracker.(interface{ keeps() string }); ok {
		out.Keeps = k.keeps()
	}
	if out.ReadLimit = e.pacer.limit(); s.synced && e.compare == nil {
		out.ReadLimit = 0 // it is for the first copy
	}
	out.Compression = e.codec.current()
	out.CPU, out.CPULimit = processTime(), e.cpu.limit()
	out.CPURate = s.works.update(now, int64(out.CPU)) / float64(time.Second)
	out.ReadRate, out.SentRate = s.reads.update(now, out.BytesRead), s.sends.update(now, out.SentSize)
	for i, d := range e.disks {
		ds := DiskStatus{Disk: d, Replicated: s.replicated[i], Backlog: s.backlog[i].Load(), Free: s.free[i]}
		if s.devices != nil {
			ds.Major, ds.Minor = s.devices[i].major, s.devices[i].minor
		}
		if s.rescan {
			ds.Rescanned = d.Size - max(0, s.foreign[i].Load())
		}
		out.Disks = append(out.Disks, ds)
		out.Total, out.Replicated, out.Backlog = out.Total+d.Size, out.Replicated+ds.Replicated, out.Backlog+ds.Backlog
	}
	if out.ReadRate > 0 && out.Backlog > 0 {
		out.ETA = time.Duration(float64(out.Backlog) / out.ReadRate * float64(time.Second))
	}
	if s.unread != nil {
		out.Err = s.unread
	}
	switch {
	case paused:
		out.State = Paused
	case !s.running, s.unread != nil:
		out.State = Stalled
	case s.rescan, !s.synced:
		if out.State = InitialSync; s.rescan {
			out.State = Rescan
		}
		if s.restless { // all has been read, and it begins again
			out.Outrun = e.outrun("")
		}
	case now.Sub(s.lastTry) > e.deadline:
		out.State, out.Outrun = NotConverging, e.outrun(s.unfrozen)
	case now.Sub(s.lastTry) > 10*e.idle:
		out.State = Backlog
	default:
		out.State = Continuous
	}
	return out
}
