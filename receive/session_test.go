package receive_test

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"rehost/block"
	"rehost/ca"
	"rehost/receive"
	"rehost/wire"
)

func TestServer_EpochsOverFourConnections(t *testing.T) {
	x, r, m := newSite(t), seeded(t), newModel()
	s := x.dial()
	if !s.Last().Seq.IsZero() || s.Generation() != 1 {
		t.Fatalf("a new replica begins at %v, generation %d", s.Last(), s.Generation())
	}
	var states []model
	for seq := block.Seq(1); seq <= 20; seq++ {
		flags := block.Consistent
		if seq >= 10 {
			flags |= block.InitialSyncDone
		}
		if err := send(t.Context(), s, r, seq, m.epoch(r, 40), flags); err != nil {
			t.Fatal(err)
		}
		if s.Last().Seq != seq {
			t.Fatalf("got last %v, want %v", s.Last().Seq, seq)
		}
		states = append(states, m.clone())
	}
	for i, m := range states {
		if err := equal(x.store, block.Seq(i+1), m); err != nil {
			t.Error(err)
		}
	}
	if err := s.Retract(t.Context(), 15); err != nil {
		t.Fatal(err)
	}
	if got := s.Last().Seq; got != 15 {
		t.Errorf("after retracting: got last %v, want 15", got)
	}
	s.Close()
	s.Close()
	again := x.dial()
	if got := again.Last(); got.Seq != 15 || !got.Time.Equal(time.Unix(15, 5)) || again.Generation() != 2 {
		t.Errorf("after reconnecting: got last %v, generation %d", got, again.Generation())
	}
	if err := equal(x.store, 15, states[14]); err != nil {
		t.Error(err)
	}
	x.desk.locked(func() {
		p := x.desk.progress
		if len(x.desk.disconnected) != 1 || x.desk.disconnected[0] != nil {
			t.Errorf("a session that was closed ended with %v", x.desk.disconnected)
		}
		for len(p) > 0 && p[0].Point.Seq == 0 { // told before the first commit
			if p[0].Bytes == 0 || p[0].InitialSyncDone {
				t.Errorf("before the first commit: %+v", p[0])
			}
			p = p[1:]
		}
		if len(p) < 3 || len(p) == len(x.desk.progress) || p[0].Point.Seq != 1 || p[len(p)-1].Point.Seq != 15 {
			t.Errorf("got progress %+v", p)
		}
	})
}

// TestServer_ProgressIsRare commits at more than 20 epochs a second.
func TestServer_ProgressIsRare(t *testing.T) {
	x, r, m := newSite(t), seeded(t), newModel()
	s, begin, n := x.dial(), time.Now(), block.Seq(0)
	for time.Since(begin) < 2*time.Second {
		n++
		flags := block.Flags(0)
		if n >= 7 {
			flags = block.InitialSyncDone
		}
		if err := send(t.Context(), s, r, n, m.epoch(r, 1), flags); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	x.server.Close()
	took := time.Since(begin)
	p := x.desk.progress
	most := int(took/(500*time.Millisecond)) + 5
	done := 0
	for done < len(p) && !p[done].InitialSyncDone {
		done++
	}
	if len(p) > most || p[0].Point.Seq > 1 || p[len(p)-1].Point.Seq != n || p[len(p)-1].Epochs != uint64(n) || done == len(p) {
		t.Errorf("%d epochs in %v made %d reports, want at most %d: %+v", n, took, len(p), most, p)
	}
}

// TestServer_ProgressBeforeCommit: of an epoch that takes long it is told that
// data comes.
func TestServer_ProgressBeforeCommit(t *testing.T) {
	x, r := newSite(t), seeded(t)
	s := x.dial()
	defer s.Close()
	for i := range uint64(64) { // more than is held back on the way
		data := make([]byte, 16*block.Size)
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		if err := s.Put(t.Context(), 1, i, block.Encode(block.Extent{Disk: disks[0].ID, Start: i * 16, Count: 16}, data, false)); err != nil {
			t.Fatal(err)
		}
	}
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		told := false
		x.desk.locked(func() {
			told = len(x.desk.progress) > 0 && x.desk.progress[0].Bytes > 0 && x.desk.progress[0].Point.Seq == 0
		})
		if told {
			return
		}
	}
	t.Error("nobody is told of data without a commit")
}

// A gate is a store whose commits wait, or fail.
type gate struct {
	receive.Store
	entered chan struct{}
	open    chan struct{}
	err     error
}

type gateWriter struct {
	receive.Writer
	g *gate
}

func (g *gate) Begin(ctx context.Context, id string, generation uint64, d []block.Disk) (receive.Writer, block.Point, error) {
	w, last, err := g.Store.Begin(ctx, id, generation, d)
	return gateWriter{w, g}, last, err
}

func (w gateWriter) Commit(ctx context.Context, p block.Point, runs uint64, f block.Flags) error {
	w.g.entered <- struct{}{}
	<-w.g.open
	if w.g.err != nil {
		return w.g.err
	}
	return w.Writer.Commit(ctx, p, runs, f)
}

func gated(g *gate) func(*receive.Config) {
	return func(c *receive.Config) { g.Store, c.Store = c.Store, g }
}

// TestServer_AcknowledgesOnlyWhatIsDurable: while the store has not answered,
// nor has the server; and where it says no, the server does not say yes.
func TestServer_AcknowledgesOnlyWhatIsDurable(t *testing.T) {
	g := &gate{entered: make(chan struct{}), open: make(chan struct{})}
	x, r, m := newSite(t, gated(g)), seeded(t), newModel()
	s := x.dial()
	done := make(chan error, 1)
	go func() { done <- send(t.Context(), s, r, 1, m.epoch(r, 3), 0) }()
	<-g.entered
	select {
	case err := <-done:
		t.Fatalf("acknowledged before it was durable (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	g.err = syscall.ENOSPC
	go func() { done <- send(t.Context(), s, r, 2, m.epoch(r, 3), 0) }()
	<-g.entered
	wantCode(t, <-done, wire.StagingFull)
	if s.Last().Seq != 1 {
		t.Errorf("got last %v, want 1", s.Last())
	}
	wantCode(t, s.Put(t.Context(), 3, 0, m.epoch(r, 1)[0]), wire.StagingFull) // what failed stays failed
}

// TestServer_CommitWaitsForAllRuns sends fewer runs than it says: the server
// must wait for the last one.
func TestServer_CommitWaitsForAllRuns(t *testing.T) {
	x, r, m := newSite(t), seeded(t), newModel()
	s, runs := x.dial(), m.epoch(r, 6)
	for i, run := range runs[:5] { // connections 0, 1, 2, 3 and 0 again
		if err := s.Put(t.Context(), 1, uint64(i), run); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.Commit(t.Context(), block.Point{Seq: 1, Time: time.Unix(1, 0)}, 6, block.Consistent) }()
	select {
	case err := <-done:
		t.Fatalf("committed with a run missing (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := s.Put(t.Context(), 1, 5, runs[5]); err != nil { // connection 1
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := equal(x.store, 1, m); err != nil {
		t.Error(err)
	}
}

func TestServer_NewerSessionFencesOlder(t *testing.T) {
	x, r, m := newSite(t), seeded(t), newModel()
	old := x.dial()
	if err := send(t.Context(), old, r, 1, m.epoch(r, 10), 0); err != nil {
		t.Fatal(err)
	}
	if err := old.Put(t.Context(), 2, 0, newModel().epoch(r, 1)[0]); err != nil { // staged, never committed
		t.Fatal(err)
	}
	young := x.dial()
	<-old.Done()
	wantCode(t, old.Err(), wire.Fenced)
	wantCode(t, old.Commit(t.Context(), block.Point{Seq: 2, Time: time.Unix(2, 0)}, 1, 0), wire.Fenced)
	if young.Last().Seq != 1 {
		t.Fatalf("got last %v, want 1", young.Last())
	}
	if err := send(t.Context(), young, r, 2, m.epoch(r, 10), 0); err != nil {
		t.Fatal(err)
	}
	if err := equal(x.store, 2, m); err != nil {
		t.Error(err)
	}
	x.desk.locked(func() { x.desk.fixed = 1 }) // a controller that has lost its count
	_, err := wire.Dial(t.Context(), x.config())
	wantCode(t, err, wire.Fenced)
	if err := send(t.Context(), young, r, 3, m.epoch(r, 1), 0); err != nil {
		t.Errorf("the newest session was disturbed: %v", err)
	}
}

func TestServer_WhomItRefuses(t *testing.T) {
	x := newSite(t)
	changed := func(f func(d []block.Disk) []block.Disk) func(*wire.Config) {
		return func(c *wire.Config) { c.Disks = f(append([]block.Disk(nil), disks...)) }
	}
	for name, c := range map[string]struct {
		change func(*wire.Config)
		code   wire.Code
	}{
		"HELLO of another": {func(c *wire.Config) { c.Server = otherID }, wire.UnknownServer},
		"disk missing":     {changed(func(d []block.Disk) []block.Disk { return d[:1] }), wire.DiskChanged},
		"disk grown":       {changed(func(d []block.Disk) []block.Disk { d[0].Size += 4096; return d }), wire.DiskChanged},
		"disk more":        {changed(func(d []block.Disk) []block.Disk { return append(d, block.Disk{ID: 9, Size: 4096}) }), wire.DiskChanged},
		"disk twice":       {changed(func(d []block.Disk) []block.Disk { return append(d, d[0]) }), wire.DiskChanged},
	} {
		_, err := wire.Dial(t.Context(), x.config(c.change))
		t.Logf("%s: %v", name, err)
		wantCode(t, err, c.code)
	}
	for _, code := range []wire.Code{wire.Disconnected, wire.UnknownServer} {
		x.desk.locked(func() { x.desk.refuse = &wire.RefusedError{Code: code, Message: "m"} })
		_, err := wire.Dial(t.Context(), x.config())
		wantCode(t, err, code)
	}
	x.desk.locked(func() { x.desk.refuse = errors.New("secret detail") })
	_, err := wire.Dial(t.Context(), x.config())
	wantCode(t, err, wire.Internal)
	x.desk.locked(func() { x.desk.refuse = nil })

	// Those who do not get as far as a frame.
	foreign := must(ca.Open(t.TempDir(), ca.Options{}))
	for name, e := range map[string]ca.Endpoint{
		"wrong authority":           {Root: foreign.Root(), Certificate: ca.Fixed(x.cert)},
		"service certificate":       {Root: x.ca.Root(), Certificate: ca.Fixed(must(x.ca.IssueService(nil, nil)))},
		"replication server's":      {Root: x.ca.Root(), Certificate: ca.Fixed(must(x.ca.IssueReplicationServer(serverID)))},
		"no certificate":            {Root: x.ca.Root()},
		"the clock is past its end": {Root: x.ca.Root(), Certificate: ca.Fixed(x.cert), Time: func() time.Time { return time.Now().Add(99 * 24 * time.Hour) }},
	} {
		_, err := wire.Dial(t.Context(), x.config(func(c *wire.Config) { c.TLS = e.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: serverID}) }))
		if err == nil || errors.Is(err, wire.ErrRefused) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	_, err = wire.Dial(t.Context(), x.config(func(c *wire.Config) {
		c.TLS = ca.Endpoint{Root: x.ca.Root(), Certificate: ca.Fixed(x.cert)}.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: "i-0123456789abcdef1"})
	}))
	if !errors.Is(err, ca.ErrName) {
		t.Errorf("a server of another name: got %v", err)
	}
	x.dial() // and after all that the right one is taken
}

func TestServer_RevokedWhileConnected(t *testing.T) {
	x := newSite(t)
	s := x.dial()
	x.revoked.Add(ca.Serial(x.cert.Leaf))
	<-s.Done()
	wantCode(t, s.Err(), wire.Revoked)
	if _, err := wire.Dial(t.Context(), x.config()); err == nil {
		t.Error("a revoked agent connected again")
	}
}

func TestServer_CertificateEndsWhileConnected(t *testing.T) {
	var mu sync.Mutex
	offset := time.Duration(0)
	now := func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(offset) }
	x := newSite(t, func(c *receive.Config) { c.Endpoint.Time = now })
	offset = time.Until(x.cert.Leaf.NotAfter) - time.Second
	s := x.dial()
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the session outlived its certificate")
	}
	wantCode(t, s.Err(), wire.Revoked)
}

func TestServer_Close(t *testing.T) {
	x, r, m := newSite(t), seeded(t), newModel()
	s := x.dial()
	if err := send(t.Context(), s, r, 1, m.epoch(r, 3), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.server.Close(), x.server.Close()); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	wantCode(t, s.Err(), wire.Shutdown)
	if _, err := net.DialTimeout("tcp", x.address, time.Second); err == nil {
		t.Error("it still listens")
	}
}

// TestServer_FullDisk writes into a file system of 160 MiB.
func TestServer_FullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=160m"); err != nil {
		t.Skipf("cannot mount a small tmpfs (%v): a full disk was tested with a store that answers ENOSPC only", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(os.NewSyscallError("unmount", err))
		}
	})
	x, r, m := newSiteIn(t, dir), seeded(t), newModel()
	s := x.dial()
	durable := newModel()
	for seq := block.Seq(1); ; seq++ {
		if err := send(t.Context(), s, r, seq, m.epoch(r, 60), 0); err != nil {
			wantCode(t, err, wire.StagingFull)
			break
		}
		durable = m.clone()
	}
	last := s.Last().Seq
	if last == 0 {
		t.Fatal("no epoch fits at all: the file system is smaller than what the store allocates at once")
	}
	if err := equal(x.store, last, durable); err != nil {
		t.Error(err)
	}
	s.Close()
	x.server.Close()
	x.desk.locked(func() {
		if len(x.desk.unhealthy) != 1 || x.desk.unhealthy[0].Code != wire.StagingFull {
			t.Errorf("the controller was told %v", x.desk.unhealthy)
		}
	})
}
