package capture

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rehost/block"
)

// An engine in a process of its own, this test binary, which is killed; its sink
// is in the test's process, at the other end of two pipes.

const (
	childPins     = "REHOST_CAPTURE_PINS"
	childDisks    = "REHOST_CAPTURE_DISKS"
	childMutation = "REHOST_CAPTURE_MUTATION"
)

// A told is what the child says: its state once, then Puts and Commits.
type told struct {
	Keeps   string
	State   State
	Method  Method
	Epoch   block.Seq
	Ordinal uint64
	Run     *block.Run
	Point   block.Point
	Runs    uint64
	Flags   block.Flags
}

// A pipe is the child's sink.
type pipe struct {
	mu     sync.Mutex
	out    *gob.Encoder
	in     *gob.Decoder
	commit func() // a mutation
}

func (p *pipe) Put(_ context.Context, epoch block.Seq, ordinal uint64, run block.Run) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Encode(told{Epoch: epoch, Ordinal: ordinal, Run: &run})
}

func (p *pipe) Commit(_ context.Context, point block.Point, runs uint64, flags block.Flags) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commit()
	if err := p.out.Encode(told{Point: point, Runs: runs, Flags: flags}); err != nil {
		return err
	}
	var ok bool
	return p.in.Decode(&ok)
}

// child is the process that is killed.
func child() {
	p := &pipe{out: gob.NewEncoder(os.Stdout), in: gob.NewDecoder(os.Stdin), commit: func() {}}
	err := func() error {
		var last block.Seq
		if err := p.in.Decode(&last); err != nil {
			return err
		}
		devices, err := Resolve(strings.Split(os.Getenv(childDisks), ","))
		if err != nil {
			return err
		}
		o := Options{Pins: os.Getenv(childPins), Replica: "r", Progress: 4 << 20, Pause: 5 * time.Millisecond}
		for i := range devices {
			devices[i].ID = block.DiskID(i)
			o.Disks = append(o.Disks, devices[i].Disk)
		}
		e, err := Open(context.Background(), o)
		if err != nil {
			return err
		}
		s := e.Status()
		if err := p.out.Encode(told{Keeps: s.Keeps, State: s.State, Method: s.Method}); err != nil {
			return err
		}
		mutate(e, p, os.Getenv(childMutation))
		return e.Run(context.Background(), p, last)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

// mutate breaks the order that makes a kill harmless.
func mutate(e *Engine, p *pipe, name string) {
	switch name {
	case "what is owed is not read back":
		if e.started {
			e.todo.clear()
		}
	case "no longer owed before it is acknowledged":
		p.commit = func() { copy(e.keeper.owed(), e.todo.words) }
	case "owed after the swap":
		e.tracker = lateTracker{e.tracker.(*kernelTracker)}
	}
}

// A lateTracker takes bits out of the bitmap some time before they are owed.
type lateTracker struct{ *kernelTracker }

func (t lateTracker) Changed(into *Set) error {
	type word struct {
		at  int
		set uint64
	}
	var taken []word
	t.bpf.TakeDirty(0, t.layout.words, func(w int, v uint64) { taken = append(taken, word{w, v}) })
	time.Sleep(20 * time.Millisecond)
	for _, w := range taken {
		into.addWord(w.at, w.set)
	}
	return nil
}

// A victim is a child that runs.
type victim struct {
	cmd   *exec.Cmd
	state told // what it said of itself
	lost  atomic.Bool
	done  chan error
}

// spawn starts a child that replicates to r from its last point on; each is called
// before something that it says is taken.
func spawn(t *testing.T, pins string, disks []block.Disk, r *replica, mutation string, each func(told)) *victim {
	t.Helper()
	var names []string
	for _, d := range disks {
		names = append(names, d.Name)
	}
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childPins+"="+pins, childDisks+"="+strings.Join(names, ","), childMutation+"="+mutation)
	c.Stderr = os.Stderr
	in, err1 := c.StdinPipe()
	out, err2 := c.StdoutPipe()
	if err := errors.Join(err1, err2, c.Start()); err != nil {
		t.Fatal(err)
	}
	v := &victim{cmd: c, done: make(chan error, 1)}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	to, from := gob.NewEncoder(in), gob.NewDecoder(out)
	r.mu.Lock()
	last := r.last()
	clear(r.staged) // a new session starts its epoch afresh
	r.epoch = 0
	r.mu.Unlock()
	err := to.Encode(last)
	if err == nil {
		err = from.Decode(&v.state)
	}
	if err != nil {
		t.Fatalf("start child: %v", err)
	}
	go func() { v.done <- v.serve(r, to, from, each) }()
	return v
}

// serve takes what a child says until it is gone, or the connection is.
func (v *victim) serve(r *replica, to *gob.Encoder, from *gob.Decoder, each func(told)) error {
	for {
		var m told
		if err := from.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		}
		each(m)
		if v.lost.Load() {
			return nil
		}
		if m.Run != nil {
			if err := r.Put(context.Background(), m.Epoch, m.Ordinal, *m.Run); err != nil {
				return err
			}
			continue
		}
		if err := r.Commit(context.Background(), m.Point, m.Runs, m.Flags); err != nil {
			return err
		}
		_ = to.Encode(true) // whether or not it is still there
	}
}

// kill ends the child without a moment's notice, and returns once it is gone and
// what it had sent is taken, or is lost.
func (v *victim) kill(t *testing.T, lost bool) {
	t.Helper()
	v.lost.Store(lost)
	v.cmd.Process.Kill()
	if err := <-v.done; err != nil {
		t.Fatal(err)
	}
	v.cmd.Wait()
}
