package receive_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/block"
	"rehost/ca"
	"rehost/receive"
	"rehost/store"
	"rehost/wire"
)

const (
	agentID  = "s-0123456789abcdef0"
	otherID  = "s-0123456789abcdef1"
	serverID = "i-0123456789abcdef0"
)

func TestMain(m *testing.M) {
	if os.Getenv("RECEIVE_CHILD") != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	disks = []block.Disk{{ID: 1, Name: "/dev/vda", Size: 4 << 20, Boot: true}, {ID: 7, Name: "/dev/vdb", Size: 2<<20 + 512}}
	name  = ca.Name{Role: ca.ReplicationServer, ID: serverID}
)

// A desk is a Controller that keeps what it was told.
type desk struct {
	mu           sync.Mutex
	generation   uint64
	fixed        uint64 // generation for everyone, if not 0
	disks        []block.Disk
	refuse       error
	connected    int
	disconnected []error
	progress     []receive.Progress
	unhealthy    []*wire.RefusedError
}

func (d *desk) Authenticated(context.Context, receive.Agent) error { return nil }

func (d *desk) Connected(_ context.Context, a receive.Agent, h wire.Hello) (receive.Grant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return receive.Grant{}, d.refuse
	}
	d.connected++
	d.generation++
	g := receive.Grant{Generation: d.generation, Disks: d.disks}
	if d.fixed != 0 {
		g.Generation = d.fixed
	}
	return g, nil
}

func (d *desk) Disconnected(_ context.Context, _ receive.Agent, cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disconnected = append(d.disconnected, cause)
}

func (d *desk) Progress(_ context.Context, _ receive.Agent, p receive.Progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.progress = append(d.progress, p)
}

func (d *desk) Unhealthy(_ context.Context, _ receive.Agent, p *wire.RefusedError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unhealthy = append(d.unhealthy, p)
}

func (d *desk) locked(f func()) { d.mu.Lock(); defer d.mu.Unlock(); f() }

// A site is a replication server with everything around it.
type site struct {
	t       testing.TB
	ca      *ca.Authority
	desk    *desk
	store   *store.Store
	server  *receive.Server
	address string
	revoked *ca.Revocations
	cert    tls.Certificate // of the agent
}

func newSite(t testing.TB, change ...func(*receive.Config)) *site {
	t.Helper()
	return newSiteIn(t, t.TempDir(), change...)
}

func newSiteIn(t testing.TB, dir string, change ...func(*receive.Config)) *site {
	t.Helper()
	x := &site{t: t, ca: must(ca.Open(t.TempDir(), ca.Options{})), desk: &desk{disks: disks}, revoked: &ca.Revocations{}}
	keys := must(store.CreateKeyFile(filepath.Join(t.TempDir(), "key")))
	x.store = must(store.Open(dir, keys, store.Options{}))
	config := receive.Config{
		Endpoint: ca.Endpoint{Root: x.ca.Root(), Certificate: ca.Fixed(must(x.ca.IssueReplicationServer(serverID))), Revoked: x.revoked},
		Store:    receive.Replicas(x.store, nil), Controller: x.desk, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, f := range change {
		f(&config)
	}
	x.server = receive.New(config)
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	x.address = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- x.server.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(x.server.Close(), <-done, x.store.Close()); err != nil {
			t.Error(err)
		}
		d := x.desk
		d.locked(func() {
			if d.connected != len(d.disconnected) {
				t.Errorf("%d sessions were connected, %d disconnected", d.connected, len(d.disconnected))
			}
		})
	})
	x.cert = x.agent(agentID)
	return x
}

func (x *site) agent(id string) tls.Certificate {
	key := must(ca.NewKey())
	return must(ca.Certificate(must(x.ca.IssueAgent(must(ca.NewRequest(key)), id)), key))
}

func (x *site) config(change ...func(*wire.Config)) wire.Config {
	c := wire.Config{
		Address: x.address, Server: agentID, Disks: disks, Version: "test",
		TLS: ca.Endpoint{Root: x.ca.Root(), Certificate: ca.Fixed(x.cert)}.ClientConfig(name),
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func (x *site) dial(change ...func(*wire.Config)) *wire.Session {
	x.t.Helper()
	s, err := wire.Dial(x.t.Context(), x.config(change...))
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { s.Close() })
	return s
}

func wantCode(t testing.TB, err error, code wire.Code) {
	t.Helper()
	var refused *wire.RefusedError
	if !errors.As(err, &refused) || refused.Code != code || !errors.Is(err, wire.ErrRefused) {
		t.Errorf("got %v, want code %s", err, code)
	}
}

// A model is what the disks must hold.
type model map[block.DiskID][]byte

func newModel() model {
	m := model{}
	for _, d := range disks {
		m[d.ID] = make([]byte, d.Blocks()*block.Size)
	}
	return m
}

func (m model) clone() model {
	out := model{}
	for d, b := range m {
		out[d] = append([]byte(nil), b...)
	}
	return out
}

// epoch makes n random runs, in the order of their ordinals, and applies them.
func (m model) epoch(r *rand.Rand, n int) []block.Run {
	var runs []block.Run
	for range n {
		d := disks[r.IntN(len(disks))]
		start := r.Uint64N(d.Blocks())
		e := block.Extent{Disk: d.ID, Start: start, Count: 1 + r.Uint64N(min(64, d.Blocks()-start))}
		data := make([]byte, e.Bytes())
		switch r.IntN(4) {
		case 0: // zeros
		case 1:
			for i := range data {
				data[i] = byte(e.Start) + byte(i>>9)
			}
		default:
			for i := 0; i < len(data); i += 8 {
				v := r.Uint64()
				for k := range 8 {
					data[i+k] = byte(v >> (8 * k))
				}
			}
		}
		if e.End() == d.Blocks() { // what is behind the end of the disk is zero
			clear(data[len(data)-int(d.Blocks()*block.Size-uint64(d.Size)):])
		}
		copy(m[d.ID][e.Offset():], data)
		runs = append(runs, block.EncodeAt(block.Level(r.IntN(int(block.Strong)+1)), e, data, nil))
	}
	return runs
}

// send puts the runs in random order from several goroutines and commits.
func send(ctx context.Context, s *wire.Session, r *rand.Rand, seq block.Seq, runs []block.Run, flags block.Flags) error {
	order := r.Perm(len(runs))
	errs := make(chan error, len(order))
	for part := range 6 {
		go func() {
			for i := part; i < len(order); i += 6 {
				errs <- s.Put(ctx, seq, uint64(order[i]), runs[order[i]])
			}
		}()
	}
	var err error
	for range order {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return err
	}
	return s.Commit(ctx, block.Point{Seq: seq, Time: time.Unix(int64(seq), 5)}, uint64(len(runs)), flags)
}

// equal compares a point of the replica with the model.
func equal(st *store.Store, seq block.Seq, m model) error {
	replica, err := st.Replica(context.Background(), agentID)
	if err != nil {
		return err
	}
	view, err := replica.At(seq)
	if err != nil {
		return err
	}
	for _, d := range disks {
		dev, err := view.Disk(d.ID)
		if err != nil {
			return err
		}
		got := make([]byte, d.Size)
		if _, err := dev.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for b := 0; b < len(got); b += block.Size {
			end := min(b+block.Size, len(got))
			if string(got[b:end]) != string(m[d.ID][b:end]) {
				return fmt.Errorf("point %v: %v block %d differs", seq, d.ID, b/block.Size)
			}
		}
	}
	return nil
}

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}
