package e2e

import (
	"context"
	"log/slog"
	"testing"

	"rehost/capture"
	"rehost/e2e/road"
	"rehost/internal/fault"
	"rehost/store"
)

// A replication is the road in this process: an engine on disks, through TLS, to a
// receiver and its encrypted store. It ends with the test.
type replication struct {
	engine   *capture.Engine
	receiver *road.Receiver
	start    func()     // begins to replicate
	ended    chan error // why that ended
	stop     func()     // ends it, and waits
}

// newReplication skips the test where the kernel cannot track.
func newReplication(ctx context.Context, t *testing.T, disks []*fault.Disk, o capture.Options) *replication {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	receiver, err := road.Receive(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { receiver.Close() })
	var paths []string
	for _, d := range disks {
		paths = append(paths, d.Path)
	}
	if o.Disks, err = road.Disks(paths...); err != nil {
		t.Fatal(err)
	}
	o.Log = log
	engine, err := capture.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	if st := engine.Status(); st.Method != capture.EBPF {
		t.Skipf("this machine has no tracker: %s", st.Reason)
	}
	session, err := road.Dial(ctx, dir, receiver.Address, o.Disks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	running, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	r := &replication{engine: engine, receiver: receiver, ended: make(chan error, 1)}
	r.start = func() { go func() { r.ended <- engine.Run(running, session, session.Last().Seq) }() }
	r.stop = func() { cancel(); <-r.ended }
	return r
}

// going fails the test if the replication has ended.
func (r *replication) going(t *testing.T) {
	t.Helper()
	select {
	case err := <-r.ended:
		t.Fatalf("replication ended: %v", err)
	default:
	}
}

// replica is what the receiver has.
func (r *replication) replica(ctx context.Context, t *testing.T) *store.Replica {
	t.Helper()
	replica, err := r.receiver.Store.Replica(ctx, road.ServerID)
	if err != nil {
		t.Fatal(err)
	}
	return replica
}
