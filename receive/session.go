package receive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"rehost/block"
	"rehost/ca"
	"rehost/wire"
)

type logger = *slog.Logger

const (
	// stalled is how long a COMMIT waits for runs when none arrives.
	stalled = time.Minute

	// maxLeap is how far epochs may run ahead of the last committed one: retracted
	// ones leave gaps, but nobody may use the numbers up.
	maxLeap = 1 << 32
)

// A session is one agent's connections and the writer they share. The goroutine
// of connection 0 leads: it answers commits, and ends the session when all
// connections are through.
//
//	open --fail--> failing: connections stop reading --finish--> ended
type session struct {
	server *Server
	agent  Agent
	count  int
	disks  map[block.DiskID]block.Disk
	writer Writer
	last   block.Point // when the session began
	log    logger
	report *reporter

	ctx    context.Context // ends with the cause of the session's end
	cancel context.CancelCauseFunc
	ended  chan struct{}

	followers sync.WaitGroup // added to under Server.mu while the session is the peer's
	bytes     atomic.Int64   // of payload

	mu        sync.Mutex
	joined    [wire.MaxConnections]bool
	committed block.Seq
	runs      map[block.Seq]uint64 // appended, of epochs after committed
	bases     map[block.Seq]*base  // points that the agent compares with
	arrived   chan struct{}        // closed and replaced when runs changes
	progress  Progress
	posted    time.Time // when progress was passed on last for runs alone
}

func newSession(s *Server, agent Agent, hello wire.Hello, disks []block.Disk, w Writer, last block.Point, log logger) *session {
	x := &session{
		server: s, agent: agent, count: hello.Count, disks: map[block.DiskID]block.Disk{},
		writer: w, last: last, log: log, ended: make(chan struct{}),
		committed: last.Seq, runs: map[block.Seq]uint64{}, arrived: make(chan struct{}),
		bases: map[block.Seq]*base{},
	}
	x.joined[0] = true
	for _, d := range disks {
		x.disks[d.ID] = d
	}
	x.ctx, x.cancel = context.WithCancelCause(context.Background())
	x.report = startReporter(func(p Progress) {
		s.tell(func(ctx context.Context) { s.config.Controller.Progress(ctx, agent, p) })
	})
	return x
}

// join reserves a connection's place. Server.mu is held.
func (x *session) join(h wire.Hello) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ctx.Err() != nil || h.Count != x.count || x.joined[h.Index] {
		return false
	}
	x.joined[h.Index] = true
	x.followers.Add(1)
	return true
}

// fail ends the session; the first cause counts.
func (x *session) fail(cause error) { x.cancel(cause) }

func (x *session) cause() error { return context.Cause(x.ctx) }

// finish waits for the other connections, lets go of the replica and tells.
// It returns why the session ended.
func (x *session) finish(forget func()) error {
	forget()
	x.followers.Wait()
	if err := x.writer.Close(); err != nil {
		x.log.Warn("close writer", "err", err)
	}
	x.report.stop()
	cause, controller := x.cause(), x.server.config.Controller
	var failed *storeError
	if errors.As(cause, &failed) {
		if problem := storeRefusal(failed.err); problem.Code != wire.Fenced && problem.Code != wire.Protocol {
			x.log.Error("store", "err", failed.err)
			x.server.tell(func(ctx context.Context) { controller.Unhealthy(ctx, x.agent, problem) })
		}
	}
	told := cause
	if errors.Is(cause, errAgentClosed) {
		told = nil
	}
	x.server.tell(func(ctx context.Context) { controller.Disconnected(ctx, x.agent, told) })
	close(x.ended)
	return cause
}

// serve carries the session on one connection until one of them ends.
func (x *session) serve(c *conn, hello wire.Hello) error {
	defer context.AfterFunc(x.ctx, func() {
		c.in.StopReading()
		c.raw.SetWriteDeadline(time.Now().Add(lastWords)) // an agent that reads nothing must not hold on to the session
	})()
	defer x.watch(c)()
	if err := c.Write(wire.Welcome{Last: x.last, Generation: x.agent.Generation, MaxFrame: wire.MaxFrame, Codecs: codecs()}); err != nil {
		return err
	}
	want := []wire.Type{wire.TypeRun, wire.TypeHashes, wire.TypeAlive, wire.TypeError}
	if hello.Index == 0 {
		want = append(want, wire.TypeCommit, wire.TypeRetract)
	}
	for {
		m, err := c.Read(want...)
		switch {
		case x.ctx.Err() != nil:
			return x.cause()
		case err == io.EOF: //nolint:errorlint // a wrapped one is no end between two frames
			return errAgentClosed
		case err != nil:
			return err
		}
		if err := x.take(c, m); err != nil {
			return err
		}
	}
}

// codecs are the names of those that the store can read.
func codecs() (names []string) {
	for _, c := range block.Codecs {
		names = append(names, c.String())
	}
	return names
}

// watch ends the session when the certificate of a connection does.
func (x *session) watch(c *conn) (stop func()) {
	e, cert := x.server.config.Endpoint, c.certificate()
	unwatch := e.Revoked.Watch(ca.Serial(cert), func() {
		x.fail(&wire.RefusedError{Code: wire.Revoked, Message: "the agent's certificate was revoked", Hint: "the source server was disconnected from the service; install the agent again to go on"})
	})
	now := time.Now
	if e.Time != nil {
		now = e.Time
	}
	end := time.AfterFunc(cert.NotAfter.Sub(now()), func() {
		x.fail(&wire.RefusedError{Code: wire.Revoked, Message: "the agent's certificate has ended", Hint: "the agent connects again with a renewed one"})
	})
	return func() {
		unwatch()
		end.Stop()
	}
}

func (x *session) take(c *conn, m wire.Message) error {
	switch m := m.(type) {
	case wire.Alive:
		return nil
	case wire.Run:
		return x.stage(m)
	case wire.Commit:
		return x.commit(c, m)
	case wire.Retract:
		return x.retract(c, m)
	case wire.Hashes:
		return x.compare(c, m)
	case *wire.RefusedError:
		return fmt.Errorf("the agent ended the session: %s: %s: %w", m.Code, m.Message, errAgentClosed)
	}
	return fmt.Errorf("%w: unexpected %v", wire.ErrProtocol, m.Type())
}

func (x *session) stage(r wire.Run) error {
	defer r.Free()
	if d, ok := x.disks[r.Run.Extent.Disk]; !ok || r.Run.Extent.End() > d.Blocks() {
		return fmt.Errorf("%w: run %d of epoch %v: %v is on no disk of this source server", wire.ErrProtocol, r.Ordinal, r.Epoch, r.Run.Extent)
	}
	if err := x.open(r.Epoch); err != nil {
		return err
	}
	if err := x.writer.Append(x.ctx, r.Epoch, r.Ordinal, r.Run); err != nil {
		return &storeError{err}
	}
	x.bytes.Add(r.Size())
	x.mu.Lock()
	defer x.mu.Unlock()
	x.runs[r.Epoch]++
	close(x.arrived)
	x.arrived = make(chan struct{})
	x.flowing()
	return nil
}

// flowing tells that data comes, now and then: an epoch may take hours, above
// all the first. The caller holds mu.
func (x *session) flowing() {
	if now := time.Now(); now.Sub(x.posted) >= reportEvery {
		first := x.posted.IsZero()
		x.posted, x.progress.Bytes = now, x.bytes.Load()
		x.report.post(x.progress, first)
	}
}

// follows checks that an epoch may come behind the last committed one.
func follows(epoch, last block.Seq) error {
	if epoch <= last || epoch-last > maxLeap {
		return fmt.Errorf("%w: epoch %v, which does not follow the last committed one, %v", wire.ErrProtocol, epoch, last)
	}
	return nil
}

// open checks that runs of an epoch may come.
func (x *session) open(epoch block.Seq) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := follows(epoch, x.committed); err != nil {
		return err
	}
	if _, ok := x.runs[epoch]; !ok {
		if len(x.runs) == wire.MaxOpenEpochs {
			return fmt.Errorf("%w: run of epoch %v while %d others are open", wire.ErrProtocol, epoch, len(x.runs))
		}
		x.runs[epoch] = 0
	}
	return nil
}

// commit waits for all runs of the epoch, has the store make it durable, and
// only then says so.
func (x *session) commit(c *conn, m wire.Commit) error {
	if err := x.wait(m); err != nil {
		return err
	}
	if err := x.writer.Commit(x.ctx, m.Point, m.Runs, m.Flags); err != nil {
		return &storeError{err}
	}
	x.settled(m)
	return c.Write(wire.Ack{Epoch: m.Point.Seq})
}

// wait returns when as many runs of the epoch are staged as the commit counts.
func (x *session) wait(m wire.Commit) error {
	for {
		x.mu.Lock()
		got, last, arrived := x.runs[m.Point.Seq], x.committed, x.arrived
		x.mu.Unlock()
		if err := follows(m.Point.Seq, last); err != nil {
			return err
		}
		switch {
		case got > m.Runs:
			return fmt.Errorf("%w: commit of epoch %v with %d runs, of which %d have arrived", wire.ErrProtocol, m.Point.Seq, m.Runs, got)
		case got == m.Runs:
			return nil
		}
		timer := time.NewTimer(stalled)
		select {
		case <-arrived:
			timer.Stop()
		case <-x.ctx.Done():
			timer.Stop()
			return x.cause()
		case <-timer.C:
			return fmt.Errorf("%w: commit of epoch %v with %d runs, of which only %d have arrived", wire.ErrProtocol, m.Point.Seq, m.Runs, got)
		}
	}
}

// settled counts a commit and passes it on.
func (x *session) settled(m wire.Commit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.committed = m.Point.Seq
	for epoch := range x.runs {
		if epoch <= x.committed {
			delete(x.runs, epoch)
		}
	}
	p := &x.progress
	p.Point, p.Consistent, p.Bytes = m.Point, m.Flags.Has(block.Consistent), x.bytes.Load()
	p.Epochs++
	urgent := p.Epochs == 1 || m.Flags.Has(block.InitialSyncDone) && !p.InitialSyncDone
	p.InitialSyncDone = p.InitialSyncDone || m.Flags.Has(block.InitialSyncDone)
	x.report.post(*p, urgent)
}

func (x *session) retract(c *conn, m wire.Retract) error {
	if err := x.writer.Retract(x.ctx, m.After); err != nil {
		return &storeError{err}
	}
	x.mu.Lock()
	if m.After < x.committed {
		x.committed = m.After
		maps.DeleteFunc(x.bases, func(point block.Seq, _ *base) bool { return point > m.After })
		x.progress.Point, x.progress.Consistent = block.Point{Seq: m.After}, false
		x.report.post(x.progress, true)
	}
	x.mu.Unlock()
	return c.Write(wire.Retracted(m))
}
