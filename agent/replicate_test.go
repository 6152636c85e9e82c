package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rehost/block"
	"rehost/capture"
)

// A still engine does nothing, but notes what it is told.
type stillEngine struct {
	mu     sync.Mutex
	mbit   int64
	cores  float64
	paused bool
	closed bool
	runs   int
}

func (e *stillEngine) Run(ctx context.Context, _ capture.Sink, _ block.Seq) error {
	e.mu.Lock()
	e.runs++
	e.mu.Unlock()
	<-ctx.Done()
	return context.Cause(ctx)
}
func (e *stillEngine) Rescan()                {}
func (e *stillEngine) Retry()                 {}
func (e *stillEngine) Status() capture.Status { return capture.Status{} }
func (e *stillEngine) SetBandwidth(n int64)   { e.mu.Lock(); e.mbit = n; e.mu.Unlock() }
func (e *stillEngine) SetCPULimit(n float64)  { e.mu.Lock(); e.cores = n; e.mu.Unlock() }
func (e *stillEngine) Pause()                 { e.mu.Lock(); e.paused = true; e.mu.Unlock() }
func (e *stillEngine) Resume()                { e.mu.Lock(); e.paused = false; e.mu.Unlock() }
func (e *stillEngine) Close() error           { e.mu.Lock(); e.closed = true; e.mu.Unlock(); return nil }

// A still session breaks when it is told to.
type stillSession struct {
	capture.Sink
	done chan struct{}
	err  error
}

func (s *stillSession) Last() block.Point     { return block.Point{} }
func (s *stillSession) Generation() uint64    { return 7 }
func (s *stillSession) Done() <-chan struct{} { return s.done }
func (s *stillSession) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}
func (s *stillSession) Close() error { return nil }

// TestReplication_Commands drives the states in virtual time.
func TestReplication_Commands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var engines []*stillEngine
		var sessions []*stillSession
		var dials []time.Time
		var failure error
		broken, ended := true, 0
		down := errors.New("network is down")
		r := &replication{log: slog.New(slog.DiscardHandler), now: time.Now, keep: func() {}, end: func() error { ended++; return nil }, note: func(err error) { failure = err },
			pair: func(_ context.Context, p pairing) (pairing, error) {
				p.Disks, p.Address, p.Replicator = []block.Disk{{Name: "/dev/x", Size: 1 << 20}}, "a:1500", replicator
				return p, nil
			},
			open: func(context.Context, pairing) (engine, error) {
				engines = append(engines, &stillEngine{})
				return engines[len(engines)-1], nil
			},
			dial: func(context.Context, pairing) (session, error) {
				dials = append(dials, time.Now())
				if broken {
					return nil, down
				}
				sessions = append(sessions, &stillSession{done: make(chan struct{}), err: down})
				return sessions[len(sessions)-1], nil
			}}
		r.init(pairing{})
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { r.run(ctx) })
		defer func() { cancel(); all.Wait() }()

		synctest.Wait()
		if len(engines) != 0 {
			t.Fatal("an engine before any command")
		}
		r.command(commandStart, 0, false)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(dials); n < 20 || n > 60 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		if gap := dials[len(dials)-1].Sub(dials[len(dials)-2]); gap < maxBackoff/2 || gap > maxBackoff {
			t.Errorf("the last attempts are %v apart", gap)
		}
		var connect *connectError
		if !errors.As(failure, &connect) || len(engines) != 1 {
			t.Errorf("failure %v, %d engines", failure, len(engines))
		}
		broken = false
		r.command(commandStart, 25, true) // retry: now, not after the delay
		synctest.Wait()
		if len(sessions) != 1 || failure != nil || engines[0].mbit != 25 {
			t.Fatalf("%d sessions, failure %v, %d Mbit/s", len(sessions), failure, engines[0].mbit)
		}
		r.command(commandPause, 25, false)
		synctest.Wait()
		if !engines[0].paused || engines[0].closed {
			t.Error("not paused, or tracking ended")
		}
		close(sessions[0].done) // the connection breaks meanwhile
		time.Sleep(time.Second)
		synctest.Wait()
		r.command(commandStart, 0, false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if ended != 0 {
			t.Errorf("tracking ended %d times without a STOP", ended)
		}
		if engines[0].paused || engines[0].mbit != 0 || len(sessions) != 2 || len(engines) != 1 || engines[0].runs != 2 {
			t.Errorf("paused %v, %d Mbit/s, %d sessions, %d engines, %d runs", engines[0].paused, engines[0].mbit, len(sessions), len(engines), engines[0].runs)
		}
		r.command(commandStop, 0, false)
		synctest.Wait()
		if !engines[0].closed || ended != 1 || failure != nil {
			t.Errorf("closed %v, tracking ended %d times, failure %v", engines[0].closed, ended, failure)
		}
		r.command(commandStart, 0, false)
		synctest.Wait()
		if len(engines) != 2 || len(sessions) != 3 {
			t.Errorf("%d engines, %d sessions after a new start", len(engines), len(sessions))
		}
	})
}

// TestDiskProgress: the first copy is seen to go on long before it is done.
func TestDiskProgress(t *testing.T) {
	c := capture.Status{State: capture.InitialSync, Disks: []capture.DiskStatus{{Disk: block.Disk{Size: 100}}}}
	done := func() int64 { return diskProgress(c)[0].ReplicatedStorageBytes }
	if got := done(); got != 0 {
		t.Errorf("before the first round %d are replicated", got)
	}
	c.Rounds, c.Disks[0].Backlog = 1, 70
	if got := done(); got != 30 {
		t.Errorf("with 70 of 100 to read %d are replicated", got)
	}
	c.State, c.Disks[0].Replicated = capture.Continuous, 100
	if got := done(); got != 100 {
		t.Errorf("with new backlog %d of 100 are replicated", got)
	}
}
