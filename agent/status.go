package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"rehost/block"
	"rehost/capture"
)

// A Status is what an agent says of itself, about once a second, in a file that
// only the owner of the state directory may read.
type Status struct {
	Version        string    `json:"version"` // of the agent
	SourceServerID string    `json:"sourceServerID"`
	Endpoint       string    `json:"endpoint"`
	Running        bool      `json:"running"`
	PID            int       `json:"pid,omitempty"`
	Time           time.Time `json:"time"` // of this status

	Command  string     `json:"command,omitempty"` // what the service wants
	State    string     `json:"state,omitempty"`   // a MGN data replication state
	Error    string     `json:"error,omitempty"`   // why replication does not go on
	Hint     string     `json:"hint,omitempty"`    // what to do about it
	Service  string     `json:"service,omitempty"` // why the service cannot be asked
	Answered time.Time  `json:"serviceAnswered,omitzero"`
	Tracking string     `json:"tracking,omitempty"`
	Reason   string     `json:"trackingReason,omitempty"`
	Keeps    string     `json:"trackingKeeps,omitempty"` // whether it goes on without the agent
	Disks    []DiskLine `json:"disks,omitempty"`

	LeftOut []string `json:"freeSpaceLeftOut,omitempty"` // what free space is not copied, and why other is

	Privileges string `json:"privileges,omitempty"` // whom it runs as, and what keeps it from writing to disks

	NotReplicated []SpareDisk `json:"notReplicated,omitempty"`

	ReadRate  float64      `json:"readBytesPerSecond"`
	SentRate  float64      `json:"sentBytesPerSecond"`                // after compression
	Level     string       `json:"compression,omitempty"`             // of what compresses: s2, zstd
	ReadLimit float64      `json:"readLimitBytesPerSecond,omitempty"` // of the first copy, beside programs whose writes would take long
	Throttle  int64        `json:"bandwidthThrottling,omitempty"`
	ETA       float64      `json:"etaSeconds,omitempty"`
	Lag       float64      `json:"lagSeconds,omitempty"`
	LastPoint *block.Point `json:"lastPoint,omitempty"`

	CPU      float64 `json:"cpuPercent"`                // of one processor, over the last seconds, by this agent
	CPULimit float64 `json:"cpuLimitPercent,omitempty"` // of bulk work

	Consistency *Consistency `json:"consistency,omitempty"`

	Outrun        string  `json:"outrun,omitempty"` // why no point comes
	Freezes       uint64  `json:"freezes"`          // of file systems, since the disks are tracked
	LongestFreeze float64 `json:"longestFreezeMs,omitempty"`

	CertificateEnds time.Time `json:"certificateEnds,omitzero"`
	Renewal         string    `json:"renewal,omitempty"` // why the certificate is not renewed
	VPN             string    `json:"vpn,omitempty"`     // where calls go through, and when it last answered
}

// A DiskLine is one disk in a [Status]; numbers are bytes.
type DiskLine struct {
	ID         block.DiskID `json:"id"`
	Name       string       `json:"name"`
	Size       int64        `json:"size"`
	Replicated int64        `json:"replicated"`
	Backlog    int64        `json:"backlog"`
	Rescanned  int64        `json:"rescanned,omitempty"` // compared with the replica, during a rescan
	Free       int64        `json:"free,omitempty"`      // left out, since no file system had it in use
}

// Consistency is how recovery points came about since the agent began to track.
type Consistency struct {
	Points       uint64  `json:"points"`                // consistent ones, committed
	Rounds       uint64  `json:"rounds"`                // tries to make one
	Conflicts    uint64  `json:"conflicts"`             // runs that were read too late for theirs
	Withdrawn    uint64  `json:"withdrawnEpochs"`       // after an audit that failed
	LongestRound float64 `json:"longestRoundSeconds"`   // since the first copy
	LastAudit    string  `json:"failedAudit,omitempty"` // the last one that failed
}

// ReadStatus returns what the agent of a state directory said last, and whether
// it runs now. Without an installation the error is [ErrNotInstalled].
func ReadStatus(dir string) (Status, error) {
	d := stateDir(dir)
	config, err := d.config()
	if err != nil {
		return Status{}, err
	}
	var s Status
	if err := d.load(statusFile, &s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Status{}, err
	}
	s.SourceServerID, s.Endpoint = config.SourceServerID, config.Endpoint
	s.PID = d.running()
	s.Running = s.PID != 0
	return s, nil
}

// Print writes the status for people.
func (s Status) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("Source server", "%s", s.SourceServerID)
	line("Service", "%s", s.Endpoint)
	if s.Running {
		line("Agent", "running, pid %d, version %s", s.PID, s.Version)
	} else {
		line("Agent", "NOT RUNNING")
	}
	if !s.Time.IsZero() {
		s.printReplication(line)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, d := range s.Disks {
		if _, err := fmt.Fprintf(w, "  %-14s %s  %s of %s\n", d.Name, bar(d.Replicated, d.Size, 30), humanBytes(d.Replicated), humanBytes(d.Size)); err != nil {
			return err
		}
	}
	for _, d := range s.NotReplicated {
		note := ""
		if d.New {
			note = ", new since the installation: install again to replicate it"
		}
		if d.Reason != "" {
			note = ": " + d.Reason
		}
		if _, err := fmt.Fprintf(w, "  %-14s not replicated (%s)%s\n", d.Name, humanBytes(d.Size), note); err != nil {
			return err
		}
	}
	return nil
}

func (s Status) printReplication(line func(name, format string, args ...any)) {
	line("State", "%s, %s ago", s.State, time.Since(s.Time).Round(time.Second))
	if s.Error != "" {
		line("Error", "%s", s.Error)
	}
	if s.Hint != "" {
		line("Hint", "%s", s.Hint)
	}
	if s.Service != "" {
		line("Control plane", "%s", s.Service)
	}
	if s.VPN != "" {
		line("VPN", "%s", s.VPN)
	}
	if s.Renewal != "" {
		line("Certificate", "ends %s and is NOT RENEWED: %s", s.CertificateEnds.UTC().Format(time.RFC3339), s.Renewal)
	}
	if s.Tracking != "" {
		line("Tracking", "%s (%s)", s.Tracking, s.Reason)
	}
	if s.Keeps != "" {
		line("", "%s", s.Keeps)
	}
	if s.Privileges != "" {
		line("Privileges", "%s", s.Privileges)
	}
	for i, text := range s.LeftOut {
		name := ""
		if i == 0 {
			name = "Left out"
		}
		line(name, "%s", text)
	}
	line("Speed", "%.1f MB/s read, %.1f MB/s sent", s.ReadRate/1e6, s.SentRate/1e6)
	if s.Level != "" {
		line("", "what compresses is by %s", s.Level)
	}
	if s.ReadLimit > 0 {
		line("", "held back to %.1f MB/s, so that this server's own writes do not wait for it", s.ReadLimit/1e6)
	}
	if s.CPULimit > 0 {
		line("Processor", "%.0f %% of one, bulk work held to %.0f %%", s.CPU, s.CPULimit)
	} else {
		line("Processor", "%.0f %% of one", s.CPU)
	}
	if s.ETA > 0 {
		line("Time left", "%s", time.Duration(s.ETA*float64(time.Second)).Round(time.Second))
	}
	if s.LastPoint != nil {
		line("Last point", "%s, at %s, lag %s", s.LastPoint.Seq, s.LastPoint.Time.UTC().Format(time.RFC3339), time.Duration(s.Lag*float64(time.Second)).Round(time.Millisecond))
	}
	if s.Outrun != "" {
		line("", "NO NEWER POINT comes: %s", s.Outrun)
		hint := outrunHint
		if s.Tracking == string(capture.Compare) {
			hint = compareHint
		}
		line("", "%s", hint)
	}
	if c := s.Consistency; c != nil {
		line("Points", "%d in %d rounds, %d conflicts, the longest round %s", c.Points, c.Rounds, c.Conflicts,
			time.Duration(c.LongestRound*float64(time.Second)).Round(time.Millisecond))
		if c.Withdrawn > 0 || c.LastAudit != "" {
			line("", "%d WITHDRAWN: %s", c.Withdrawn, c.LastAudit)
		}
	}
	if s.Freezes > 0 {
		line("Freezes", "%d, the longest of %.0f ms", s.Freezes, s.LongestFreeze)
	}
}

// These are what a person can do about a load that is too heavy, where it is tracked and
// where disks are compared.
const (
	outrunHint  = "data goes on to be sent; points come again when programs write less, with more bandwidth, or where file systems may be frozen (install without --no-freeze)"
	compareHint = "data goes on to be sent; keep programs from writing for as long as reading the disks takes, or have the kernel track them (rehost-agent doctor says what it lacks)"
)

func bar(done, total int64, width int) string {
	share := 0.0
	if total > 0 {
		share = min(1, float64(done)/float64(total))
	}
	n := int(share * float64(width))
	return fmt.Sprintf("[%s%s] %5.1f %%", strings.Repeat("#", n), strings.Repeat(".", width-n), share*100)
}

func humanBytes(n int64) string {
	const unit = "KMGTP"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(unit)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, unit[i])
}

// A board is where the parts of an agent note what they know, for reports and
// the status. Safe for concurrent use.
type board struct {
	mu      sync.Mutex // guards:
	failure error      // why replication does not go on
	service error      // why the service cannot be asked
	asked   time.Time  // when it has answered last; zero is never
	command pairing
	spare   []SpareDisk
}

func (b *board) setFailure(err error) { b.mu.Lock(); b.failure = err; b.mu.Unlock() }

// setService notes that the service has answered, or why it has not.
func (b *board) setService(err error, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.service = err; err == nil {
		b.asked = now
	}
}

func (b *board) answered() time.Time { b.mu.Lock(); defer b.mu.Unlock(); return b.asked }

func (b *board) setPairing(p pairing) { b.mu.Lock(); b.command = p; b.mu.Unlock() }

func (b *board) setSpare(s []SpareDisk) { b.mu.Lock(); b.spare = s; b.mu.Unlock() }

func (b *board) spareDisks() []SpareDisk { b.mu.Lock(); defer b.mu.Unlock(); return b.spare }

func (b *board) read() (failure, service error, p pairing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failure, b.service, b.command
}

// status is what there is to say now; engine is nil while no disk is tracked.
func (a *agent) status() Status {
	c, ok := a.replication.progress()
	failure := a.trouble(c)
	_, service, p := a.board.read()
	s := Status{Version: Version, SourceServerID: a.config.SourceServerID, Endpoint: a.config.Endpoint,
		Time: a.now(), Command: p.Command, Throttle: p.Throttling, State: string(a.state()), NotReplicated: a.board.spareDisks(), Privileges: a.options.Privileges}
	if pair, err := a.identity.certificate(); err == nil {
		s.CertificateEnds = pair.Leaf.NotAfter
	}
	if err := a.identity.overdue(); err != nil {
		s.Renewal = err.Error()
	}
	if a.identity.vpn != nil {
		s.VPN = a.identity.vpn.line()
	}
	if failure != nil && s.State != "STOPPED" && s.State != "PAUSED" {
		s.Error, s.Hint = failure.Error(), Hint(failure)
	}
	s.Answered = a.board.answered()
	if service != nil {
		s.Service = service.Error()
	}
	if !ok {
		return s
	}
	s.Tracking, s.Reason, s.Keeps = string(c.Method), c.Reason, c.Keeps
	s.ReadRate, s.SentRate, s.ReadLimit = c.ReadRate, c.SentRate, c.ReadLimit
	s.Level = c.Compression.String()
	s.ETA, s.Lag = c.ETA.Seconds(), c.Lag.Seconds()
	s.CPU, s.CPULimit = 100*c.CPURate, 100*c.CPULimit
	s.Consistency = &Consistency{Points: c.Epochs, Rounds: c.Rounds, Conflicts: c.Conflicts, Withdrawn: c.Withdrawn,
		LongestRound: c.LongestRound.Seconds(), LastAudit: c.LastAudit}
	s.Outrun, s.Freezes, s.LongestFreeze = c.Outrun, c.Freezes, float64(c.LongestFreeze)/1e6
	if !c.Point.Seq.IsZero() {
		s.LastPoint = &c.Point
	}
	for _, d := range c.Disks {
		s.Disks = append(s.Disks, DiskLine{ID: d.Disk.ID, Name: d.Disk.Name, Size: d.Disk.Size, Replicated: d.Replicated, Backlog: d.Backlog, Rescanned: d.Rescanned, Free: d.Free})
	}
	for _, f := range c.FreeAreas {
		s.LeftOut = append(s.LeftOut, leftOut(f))
	}
	return s
}

func leftOut(f capture.FreeArea) string {
	if f.Whole != "" {
		return fmt.Sprintf("nothing of %s: %s", f.Name, f.Whole)
	}
	return fmt.Sprintf("%s that is free of %s", humanBytes(f.Free), f.Name)
}

// state maps what is wanted and what the engine does to MGN's states.
func (a *agent) state() capture.State {
	failure, _, p := a.board.read()
	c, ok := a.replication.progress()
	switch {
	case p.Command == commandStop || p.Command == "":
		return "STOPPED"
	case p.Command == commandPause:
		return capture.Paused
	case !ok && failure == nil:
		return "INITIATING"
	case !ok:
		return capture.Stalled
	case c.State == capture.NotConverging:
		return capture.Backlog
	}
	return c.State
}

// PrintJSON writes the status for programs.
func (s Status) PrintJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}
