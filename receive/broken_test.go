package receive_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rehost/block"
	"rehost/ca"
	"rehost/receive"
	"rehost/store"
	"rehost/wire"
)

// A mole is an agent that goes on whatever breaks, as a real one does, and
// remembers what it may rely on.
type mole struct {
	t      testing.TB
	r      *rand.Rand
	states []model // states[n] is what point n must hold
	acked  block.Seq
	runs   []block.Run // of the epoch under way
	dials  int

	commits atomic.Int64 // acknowledged, for others to look at
}

func newMole(t testing.TB, r *rand.Rand) *mole {
	return &mole{t: t, r: r, states: []model{newModel()}}
}

// epochs commits epochs until there are n, connecting as often as it takes.
func (a *mole) epochs(ctx context.Context, n int, size int, config func() wire.Config) {
	for int(a.acked) < n && ctx.Err() == nil {
		c := config()
		if c.Address == "" {
			continue // there is no server just now
		}
		a.dials++
		s, err := wire.Dial(ctx, c)
		if err != nil {
			continue
		}
		err = a.session(ctx, s, n, size)
		s.Close()
		if errors.Is(err, wire.ErrRefused) && !strings.Contains(err.Error(), string(wire.Fenced)) {
			a.t.Errorf("refused: %v", err)
			return
		}
	}
}

func (a *mole) session(ctx context.Context, s *wire.Session, n, size int) error {
	last := s.Last().Seq
	switch {
	case last == a.acked:
	case last == a.acked+1 && a.runs != nil: // the commit whose answer was lost
		a.acked, a.runs = last, nil
	default:
		a.t.Errorf("the server is at %v, acknowledged was %v", last, a.acked)
		return wire.ErrRefused
	}
	for int(a.acked) < n {
		if a.runs == nil {
			m := a.states[len(a.states)-1].clone()
			a.runs = m.epoch(a.r, size)
			a.states = append(a.states, m)
		}
		if err := send(ctx, s, a.r, a.acked+1, a.runs, block.Consistent); err != nil {
			return err
		}
		a.acked, a.runs = a.acked+1, nil
		a.commits.Add(1)
	}
	return nil
}

// check opens every acknowledged point.
func (a *mole) check(st *store.Store) {
	a.t.Helper()
	replica := must(st.Replica(context.Background(), agentID))
	if got := replica.Points(); len(got) != int(a.acked) {
		a.t.Errorf("got %d points, acknowledged were %d", len(got), a.acked)
	}
	for seq := block.Seq(1); seq <= a.acked; seq++ {
		if err := equal(st, seq, a.states[seq]); err != nil {
			a.t.Error(err)
		}
	}
}

// cutting dials connections that break after some bytes, either way.
func cutting(r *rand.Rand, most int64) func(context.Context, string, string) (net.Conn, error) {
	var mu sync.Mutex
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		cut := &cutConn{Conn: c}
		cut.left.Store(r.Int64N(most))
		return cut, nil
	}
}

type cutConn struct {
	net.Conn
	left atomic.Int64
}

func (c *cutConn) Write(p []byte) (int, error) {
	if left := c.left.Load(); int64(len(p)) > left {
		n, _ := c.Conn.Write(p[:max(left, 0)])
		c.Conn.(*net.TCPConn).SetLinger(0) // a reset: what is under way is lost too
		c.Conn.Close()
		return n, io.ErrClosedPipe
	}
	c.left.Add(-int64(len(p)))
	return c.Conn.Write(p)
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left.Add(-int64(n)) < 0 {
		c.Conn.Close() // what was read is lost
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// TestServer_NetworkCuts cuts each connection at a random byte. Whatever was
// acknowledged must be there, and nothing else.
func TestServer_NetworkCuts(t *testing.T) {
	x, r := newSite(t), seeded(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dial := cutting(rand.New(rand.NewPCG(r.Uint64(), 2)), 3<<20)
	a := newMole(t, r)
	a.epochs(ctx, 16, 30, func() wire.Config { return x.config(func(c *wire.Config) { c.DialContext = dial }) })
	t.Logf("%d sessions for %d epochs", a.dials, a.acked)
	if a.acked < 16 || a.dials < 5 {
		t.Errorf("got %d epochs in %d sessions", a.acked, a.dials)
	}
	a.check(x.store)
}

// child is the receiver that gets killed. Its directory is all that lasts.
func child() {
	dir := os.Getenv("RECEIVE_CHILD")
	a := must(ca.Open(filepath.Join(dir, "ca"), ca.Options{}))
	st := must(store.Open(filepath.Join(dir, "store"), must(store.OpenKeyFile(filepath.Join(dir, "key"))), store.Options{}))
	s := receive.New(receive.Config{
		Endpoint:   ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(must(a.IssueReplicationServer(serverID)))},
		Store:      receive.Replicas(st, nil),
		Controller: &desk{disks: disks, generation: uint64(time.Now().UnixNano())},
		Logger:     slog.New(slog.DiscardHandler),
	})
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	fmt.Println(l.Addr())
	go func() { // an orphan must not stay
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	s.Serve(l)
}

// TestServer_Killed kills the receiver dozens of times at random moments.
func TestServer_Killed(t *testing.T) {
	kills := 30
	if testing.Short() {
		kills = 6
	}
	r, dir := seeded(t), t.TempDir()
	authority := must(ca.Open(filepath.Join(dir, "ca"), ca.Options{}))
	must(store.CreateKeyFile(filepath.Join(dir, "key")))
	key := must(ca.NewKey())
	cert := must(ca.Certificate(must(authority.IssueAgent(must(ca.NewRequest(key)), agentID)), key))

	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	var address atomic.Value
	address.Store("")
	a := newMole(t, r)
	stop, done := context.WithCancel(ctx)
	var agent sync.WaitGroup
	agent.Go(func() {
		a.epochs(stop, 1<<30, 12, func() wire.Config {
			if address.Load() == "" {
				time.Sleep(time.Millisecond) // starting a process takes real time
			}
			return wire.Config{Address: address.Load().(string), Server: agentID, Disks: disks,
				TLS: ca.Endpoint{Root: authority.Root(), Certificate: ca.Fixed(cert)}.ClientConfig(name)}
		})
	})
	moments := rand.New(rand.NewPCG(r.Uint64(), 3))
	for i := range kills {
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), "RECEIVE_CHILD="+dir)
		cmd.Stderr = os.Stderr
		in, out := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Errorf("child: %v", err)
		}
		address.Store(strings.TrimSpace(line))
		// Every other life gets as far as a commit, however slow the machine is.
		for before, n := a.commits.Load(), 0; i%2 == 0 && n < 5000 && a.commits.Load() == before; n++ {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(moments.IntN(300)) * time.Millisecond) // a random moment is the test
		address.Store("")
		cmd.Process.Kill()
		cmd.Wait()
		in.Close()
	}
	done()
	agent.Wait()
	st := must(store.Open(filepath.Join(dir, "store"), must(store.OpenKeyFile(filepath.Join(dir, "key"))), store.Options{ReadOnly: true}))
	defer st.Close()
	replica := must(st.Replica(ctx, agentID))
	latest, ok := replica.Latest()
	t.Logf("%d kills, %d sessions, %d epochs acknowledged, replica at %v", kills, a.dials, a.acked, latest.Seq)
	if !ok || latest.Seq < a.acked || latest.Seq > a.acked+1 || a.acked < block.Seq(kills/3) {
		t.Fatalf("the replica is at %v, acknowledged was %v", latest.Seq, a.acked)
	}
	a.acked = latest.Seq
	a.check(st)
}

// TestServer_Silence: an agent whose network swallows everything is noticed, by
// both sides, although no connection is closed.
func TestServer_Silence(t *testing.T) {
	const alive = 250 * time.Millisecond // long enough for a busy machine
	x, r, m := newSite(t, func(c *receive.Config) { c.KeepAlive = alive }), seeded(t), newModel()
	var swallow atomic.Bool
	s := x.dial(func(c *wire.Config) {
		c.KeepAlive = alive
		c.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			t.Cleanup(func() { conn.Close() })
			return &hole{Conn: conn, on: &swallow}, err
		}
	})
	if err := send(t.Context(), s, r, 1, m.epoch(r, 3), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(6 * alive) // several times the limit: signs of life keep it
	if err := s.Err(); err != nil {
		t.Fatalf("an idle session ended: %v", err)
	}
	swallow.Store(true)
	select {
	case <-s.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the agent does not notice")
	}
	for range 500 {
		ended := 0
		x.desk.locked(func() { ended = len(x.desk.disconnected) })
		if ended == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the server does not notice")
}

// A hole swallows what is written and says nothing, once it is on.
type hole struct {
	net.Conn
	on *atomic.Bool
}

func (h *hole) Write(p []byte) (int, error) {
	if h.on.Load() {
		return len(p), nil
	}
	return h.Conn.Write(p)
}

func (h *hole) Read(p []byte) (int, error) {
	for {
		n, err := h.Conn.Read(p)
		if err != nil || !h.on.Load() {
			return n, err
		}
	}
}

// Close is not heard by the other side.
func (h *hole) Close() error { return h.SetDeadline(time.Unix(1, 0)) }
