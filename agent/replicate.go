package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"rehost/block"
	"rehost/ca"
	"rehost/capture"
	"rehost/capture/freeze"
	"rehost/wire"
)

// Commands of the service, as they are kept and shown.
const (
	commandStart = "START"
	commandPause = "PAUSE"
	commandStop  = "STOP"
)

// Delays between sessions grow between these.
const (
	minBackoff   = 200 * time.Millisecond
	maxBackoff   = 30 * time.Second
	unpinTimeout = 5 * time.Second
	steadyAfter  = 30 * time.Second // a session that lasted so long was good
)

// An engine follows disks and replicates them; *capture.Engine is one.
type engine interface {
	Run(ctx context.Context, sink capture.Sink, last block.Seq) error
	Status() capture.Status
	Rescan()
	Retry()
	SetBandwidth(mbit int64)
	SetCPULimit(cores float64)
	Pause()
	Resume()
	Close() error
}

// A session is a [capture.Sink] somewhere else; *wire.Session is one.
type session interface {
	capture.Sink
	Last() block.Point
	Generation() uint64
	Done() <-chan struct{}
	Err() error
	Close() error
}

// A replication does what the service wants of the disks. One goroutine, that
// of run, opens and closes the engine and the sessions.
//
//	             START                      dialed
//	STOPPED ---------------> STARTING -----------------> REPLICATING
//	   ^                       ^  ^                        |     ^
//	   |  STOP: from anywhere  |  +------ any error -------+     | START
//	   +-----------------------+         after a delay        PAUSED <-- PAUSE
//
// The engine lives from the first START to a STOP: across sessions, pauses and
// times without the service. Tracking lives as long, and where it can be pinned
// also across this process's end: then only a STOP ends it.
type replication struct {
	log  *slog.Logger
	open func(ctx context.Context, p pairing) (engine, error)
	dial func(ctx context.Context, p pairing) (session, error)
	pair func(ctx context.Context, p pairing) (pairing, error) // asks the service anew
	note func(failure error)
	keep func()       // what is wanted has changed
	end  func() error // ends tracking that goes on without an engine
	now  func() time.Time

	mu      sync.Mutex // guards:
	want    pairing    // what was said last
	changed chan struct{}
	again   bool   // a delay is to end now
	stale   bool   // a session is to end, since something has to begin with one
	rescan  func() // the disks are to be compared, and who wants to know that it has begun
	engine  engine
	cores   float64 // what bulk work may take; 0 is no limit
}

func (r *replication) init(p pairing) { r.want, r.changed = p, make(chan struct{}) }

// command says what is wanted, and returns whether that is news. Retry ends a
// delay at once, and has what could not be read tried again.
func (r *replication) command(name string, throttling int64, retry bool) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = r.want.Command != name || r.want.Throttling != throttling
	r.want.Command, r.want.Throttling = name, throttling
	if changed || retry {
		r.again = r.again || retry
		close(r.changed)
		r.changed = make(chan struct{})
	}
	if r.engine != nil {
		if obey(r.engine, r.want); retry {
			r.engine.Retry()
		}
	}
	return changed
}

// limit says how many processors bulk work may take, and returns whether that is news.
func (r *replication) limit(cores float64) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = r.cores != cores
	if r.cores = cores; changed && r.engine != nil {
		r.engine.SetCPULimit(cores)
	}
	return changed
}

// renew has the next session begin now, in place of the one there is.
func (r *replication) renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.again, r.stale = true, true
	close(r.changed)
	r.changed = make(chan struct{})
}

// recheck has the disks compared with the replica from the next session on, which
// begins now. Begun is called once that will be done whatever happens.
func (r *replication) recheck(begun func()) {
	r.mu.Lock()
	r.rescan = begun
	r.mu.Unlock()
	r.renew()
}

// obey makes an engine do what can be done while it runs.
func obey(e engine, p pairing) {
	e.SetBandwidth(p.Throttling)
	if p.Command == commandPause {
		e.Pause()
	} else {
		e.Resume()
	}
}

func (r *replication) wanted() (pairing, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want, r.changed
}

// progress is the engine's, if there is one.
func (r *replication) progress() (capture.Status, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.engine == nil {
		return capture.Status{}, false
	}
	return r.engine.Status(), true
}

// run replicates as wanted until ctx ends, and closes the engine then.
func (r *replication) run(ctx context.Context) {
	defer r.closeEngine()
	delay := minBackoff
	for ctx.Err() == nil {
		want, changed := r.wanted()
		if want.Command != commandStart && (want.Command != commandPause || r.engine == nil) {
			if want.Command == commandStop {
				r.closeEngine()
				r.note(r.end())
			}
			delay = minBackoff
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		began := r.now()
		err := r.session(ctx, want)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errUnwanted) || errors.Is(err, errStale) {
			continue
		}
		r.note(err)
		r.doubt(err)
		if r.now().Sub(began) > steadyAfter {
			delay = minBackoff
		}
		r.log.Warn("replication is interrupted", "again in", delay, "err", err)
		r.rest(ctx, delay)
		delay = min(2*delay, maxBackoff)
	}
}

// doubt closes an engine whose disks are not what they were: they are looked for
// anew. What was pinned is gone on with if they turn out to be the same.
func (r *replication) doubt(err error) {
	var disk *capture.DiskError
	var missing *missingError
	if errors.As(err, &disk) || errors.As(err, &missing) {
		r.closeEngine()
	}
}

// errUnwanted ends a session because replication is to stop.
var errUnwanted = errors.New("replication is not wanted")

// errStale ends a session because another one is to begin.
var errStale = errors.New("another session is to begin")

// rest waits for about d, or until replication is to stop or to be tried again.
func (r *replication) rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	for {
		want, changed := r.wanted()
		r.mu.Lock()
		again := r.again
		r.again = false
		r.mu.Unlock()
		if again || want.Command == commandStop {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-changed:
		}
	}
}

// session pairs, connects and replicates until something fails.
func (r *replication) session(ctx context.Context, want pairing) error {
	r.mu.Lock()
	r.stale = false
	r.mu.Unlock()
	p, err := r.pair(ctx, want)
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.engine != nil && !slices.EqualFunc(r.want.Disks, p.Disks, func(a, b block.Disk) bool { return a.ID == b.ID && a.Size == b.Size }) {
		r.mu.Unlock()
		r.closeEngine() // other disks, or of another size
		r.mu.Lock()
	}
	r.want.Disks, r.want.Replicator, r.want.Address = p.Disks, p.Replicator, p.Address
	r.mu.Unlock()
	if err := r.openEngine(ctx, p); err != nil {
		return err
	}
	r.mu.Lock()
	begun := r.rescan
	r.rescan = nil
	r.mu.Unlock()
	if begun != nil {
		r.log.Info("comparing all disks with the replica, as asked for")
		r.engine.Rescan()
		begun()
	}
	s, err := r.dial(ctx, p)
	if err != nil {
		return &connectError{p.Address, err}
	}
	defer s.Close()
	r.mu.Lock()
	r.want.Generation = s.Generation()
	r.mu.Unlock()
	r.keep()
	r.note(nil)
	r.log.Info("connected to the replication server", "address", p.Address, "replicator", p.Replicator, "generation", s.Generation(), "last", s.Last().Seq)
	return r.feed(ctx, s)
}

// feed runs the engine on a session, and ends it when replication is to stop.
func (r *replication) feed(ctx context.Context, s session) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			want, changed := r.wanted()
			switch {
			case want.Command == commandStop:
				cancel(errUnwanted)
			case r.isStale():
				cancel(errStale)
			}
			select {
			case <-ctx.Done():
				return
			case <-s.Done(): // the engine may be paused and not notice
				cancel(s.Err())
				return
			case <-changed:
			}
		}
	}()
	err := r.engine.Run(ctx, s, s.Last().Seq)
	cancel(nil)
	<-watched
	if want, _ := r.wanted(); want.Command == commandStop {
		return errUnwanted
	}
	if r.isStale() {
		return errStale
	}
	if e := s.Err(); e != nil && !errors.Is(e, wire.ErrClosed) {
		var disk *capture.DiskError
		if !errors.As(err, &disk) {
			return e // why the session ended, rather than that it was cancelled
		}
	}
	return err
}

func (r *replication) isStale() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stale
}

func (r *replication) openEngine(ctx context.Context, p pairing) error {
	if r.engine != nil { // only this goroutine writes it
		return nil
	}
	e, err := r.open(ctx, p)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.engine = e
	e.SetCPULimit(r.cores)
	obey(e, r.want)
	return nil
}

func (r *replication) closeEngine() {
	r.mu.Lock()
	e := r.engine
	r.engine = nil
	r.mu.Unlock()
	if e == nil {
		return
	}
	if err := e.Close(); err != nil {
		r.log.Warn("tracking did not end well", "err", err)
	}
}

// A connectError is a replication server that could not be connected to.
type connectError struct {
	address string
	err     error
}

func (e *connectError) Error() string {
	return fmt.Sprintf("connect to replication server %s: %v", e.address, e.err)
}

func (e *connectError) Unwrap() error { return e.err }

// errNotPaired says that the service has not chosen a replication server yet.
var errNotPaired = errors.New("pair with a replication server: the service has none for this source server yet")

// openCapture opens the engine of the disks on this machine.
func (a *agent) openCapture(ctx context.Context, p pairing) (engine, error) {
	disks, err := locate(a.system, p.Disks, a.config.Disks)
	if err != nil {
		return nil, err
	}
	for i := range disks {
		disks[i].Size = p.Disks[i].Size // a disk that is smaller by now is found out by the engine
	}
	return capture.Open(ctx, capture.Options{Disks: disks, Log: a.log, Pins: a.pins(), Replica: a.config.SourceServerID, CopyFree: a.config.CopyFree,
		Freezer: a.freezer(), FreezeAfter: time.Duration(a.config.FreezeAfter * float64(time.Second))})
}

// freezer is who freezes file systems; nil is nobody.
func (a *agent) freezer() capture.Freezer {
	if a.config.NoFreeze {
		return nil
	}
	socket := a.dir.freezer()
	if a.config.Service == ServiceSystemd {
		socket = freeze.Socket // of the unit, whatever the directory
	}
	return &freeze.Client{Socket: socket, Program: a.options.Freezer}
}

// pins is where this process sees the directory of its pins.
func (a *agent) pins() string {
	dir := a.dir.pins(a.config)
	if a.options.Pins != "" {
		dir = filepath.Join(a.options.Pins, filepath.Base(dir))
	}
	return dir
}

// endCapture ends the tracking that outlives the agent.
func (a *agent) endCapture() error { return unpin(a.pins()) }

// unpin ends tracking that is pinned. A process that was killed may hold it for a
// moment more.
func unpin(dir string) error {
	for end := time.Now().Add(unpinTimeout); ; time.Sleep(20 * time.Millisecond) {
		if err := capture.Unpin(dir); !errors.Is(err, capture.ErrPinned) || time.Now().After(end) {
			return err
		}
	}
}

// dialWire opens a session with the replication server that the agent was paired
// with. It ends when the certificate that the server has shown is revoked.
func (a *agent) dialWire(ctx context.Context, p pairing) (session, error) {
	end := ca.Endpoint{Bundle: a.bundle, Certificate: a.identity.certificate}
	name := ca.Name{Role: ca.ReplicationServer, ID: p.Replicator}
	config := end.ClientConfig(name)
	verify := config.VerifyConnection
	var mu sync.Mutex
	shown := map[string]bool{} // serials; guarded by mu
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verify(state); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, c := range state.PeerCertificates {
			shown[ca.Serial(c)] = true
		}
		return nil
	}
	to := wire.Config{Address: p.Address, TLS: config,
		Server: a.config.SourceServerID, Disks: p.Disks, Generation: p.Generation, Version: Version}
	if a.identity.vpn != nil {
		to.DialContext = a.identity.vpn.dialReplication
	}
	s, err := wire.Dial(ctx, to)
	if err != nil {
		return nil, err // not a typed nil
	}
	out := &trusted{Session: s}
	mu.Lock()
	defer mu.Unlock()
	for serial := range shown {
		out.stop = append(out.stop, a.bundle.Revoked().Watch(serial, func() { s.Abort(fmt.Errorf("%s: %w", name, ca.ErrRevoked)) }))
	}
	return out, nil
}

// A trusted session ends with the trust in the certificates that it began with.
type trusted struct {
	*wire.Session
	stop []func()
}

// Close implements [session].
func (t *trusted) Close() error {
	for _, stop := range t.stop {
		stop()
	}
	return t.Session.Close()
}
