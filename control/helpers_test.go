package control

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/block"
	"rehost/ca"
	"rehost/export"
	"rehost/launch"
	"rehost/release"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const installer = "arn:aws:iam::123456789012:user/installer"

// A world is a service over a real database and authority, with replicas, a
// target and a clock that the test moves.
type world struct {
	*Service
	t        *testing.T
	db       *Database
	path     string
	clock    *clock
	replicas *replicas
	target   *target
	exports  *exporter
	ca       *ca.Authority
	happened *happenings
	release  func() (release.Version, error)
}

// happenings are the events that were recorded.
type happenings struct {
	mu     sync.Mutex
	all    []Event     // guarded by mu
	during func(Event) // called with each, if not nil
}

func (h *happenings) Record(_ context.Context, e Event) {
	if h.during != nil {
		h.during(e)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, e)
}

// of lists the events of a source server by name.
func (h *happenings) of(id string) (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.all {
		if e.Account == "123456789012" && len(e.Resources) == 1 && strings.HasSuffix(e.Resources[0], ":source-server/"+id) {
			names = append(names, e.Name)
		}
	}
	return names
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, path: filepath.Join(t.TempDir(), "control.db"), clock: &clock{now: time.Now().Truncate(time.Second)},
		replicas: &replicas{points: map[string][]block.Point{}}, target: &target{live: map[string]launch.Spec{}}, exports: &exporter{names: map[string]bool{}}, happened: &happenings{}}
	var err error
	if w.ca, err = ca.Open(t.TempDir(), ca.Options{}); err != nil {
		t.Fatal(err)
	}
	w.open()
	t.Cleanup(func() {
		if w.Service != nil {
			w.close()
		}
	})
	if _, err := w.InitializeService(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) open() {
	w.t.Helper()
	db, err := OpenDatabase(w.t.Context(), w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.db = db
	w.Service, err = Open(w.t.Context(), Options{Database: db, Account: "123456789012", Region: "us-east-1", Replicas: w.replicas, Exporter: w.exports,
		Socket: "/run/rehost/nbd.sock", Target: w.target, Authority: w.ca, Sessions: sessions{w.clock}, Events: w.happened, Bundles: filepath.Join(filepath.Dir(w.path), "support"), Now: w.clock.Now, Release: w.release,
		Logger: slog.New(slog.NewTextHandler(testWriter{w.t}, nil))})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	if err := errors.Join(w.Service.Close(), w.db.Close(), w.Service.Close()); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		w.t.Log("close:", err)
	}
	w.Service = nil
}

// restart is what a crash and a new process are: nothing in memory survives.
func (w *world) restart() {
	w.t.Helper()
	if err := w.db.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.exports.names = map[string]bool{}
	w.open()
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

// replicas of nothing but their points.
type replicas struct {
	mu      sync.Mutex
	points  map[string][]block.Point // guarded by mu
	open    int                      // guarded by mu
	deleted []string                 // guarded by mu
}

func (r *replicas) Points(_ context.Context, id string) ([]block.Point, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.points[id]), nil
}

func (r *replicas) Open(_ context.Context, id string, seq block.Seq) (View, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.points[id], func(p block.Point) bool { return p.Seq == seq }) {
		return nil, errors.New("no such point")
	}
	r.open++
	return &view{r}, nil
}

func (r *replicas) Delete(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deleted = append(r.deleted, id)
	delete(r.points, id)
	return nil
}

type view struct{ r *replicas }

func (v *view) Disks() []block.Disk {
	return []block.Disk{{ID: 0, Name: "/dev/vda", Size: 8 << 20, Boot: true}, {ID: 1, Name: "/dev/vdb", Size: 4 << 20}}
}

func (v *view) Device(block.DiskID) (export.Device, error) {
	return bytes.NewReader(make([]byte, 512)), nil
}

func (v *view) Close() error {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	v.r.open--
	return nil
}

type exporter struct {
	mu    sync.Mutex
	names map[string]bool
}

func (e *exporter) Add(name string, _ export.Device) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.names[name] {
		return errors.New("export " + name + " exists")
	}
	e.names[name] = true
	return nil
}

func (e *exporter) Remove(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.names, name)
}

// A target that launches by writing it down. at is called where a real one
// would take its time.
type target struct {
	mu       sync.Mutex
	live     map[string]launch.Spec // guarded by mu
	launches int                    // guarded by mu: how many machines were really started
	boot     launch.FirstBoot
	hydrated bool
	fail     error
	at       func(when string)

	halfway, cannotEnd error // of a launch after the machine has started, and of its end
}

func (g *target) Launch(ctx context.Context, spec launch.Spec) (launch.Instance, error) {
	g.point("before launch")
	if err := ctx.Err(); err != nil {
		return launch.Instance{}, err
	}
	g.mu.Lock()
	if g.fail != nil {
		defer g.mu.Unlock()
		return launch.Instance{}, g.fail
	}
	if _, there := g.live[spec.ID]; !there {
		g.live[spec.ID] = spec
		g.launches++
	}
	if g.halfway != nil {
		defer g.mu.Unlock()
		return launch.Instance{}, g.halfway
	}
	g.mu.Unlock()
	g.point("after launch")
	return launch.Instance{ID: spec.ID, State: launch.Running}, ctx.Err()
}

func (g *target) point(when string) {
	if g.at != nil {
		g.at(when)
	}
}

func (g *target) Describe(_ context.Context, id string) (launch.Instance, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	spec, ok := g.live[id]
	if !ok {
		return launch.Instance{}, launch.ErrNotFound
	}
	boot := g.boot
	if boot == "" {
		boot = launch.FirstBootWaiting
	}
	return launch.Instance{ID: id, State: launch.Running, FirstBoot: boot, Hydration: launch.Hydration{Requested: spec.HydrateDisks, Complete: g.hydrated && spec.HydrateDisks}}, nil
}

func (g *target) Instances(context.Context) ([]launch.Instance, error) { return nil, nil }

func (g *target) Terminate(ctx context.Context, id string) error {
	g.point("before terminate")
	if err := ctx.Err(); err != nil {
		return err
	}
	if g.cannotEnd != nil {
		return g.cannotEnd
	}
	g.mu.Lock()
	delete(g.live, id)
	g.mu.Unlock()
	g.point("after terminate")
	return ctx.Err()
}

func (g *target) Close() error { return nil }

type sessions struct{ clock *clock }

func (s sessions) Agent(_ context.Context, id string) (Credentials, error) {
	return Credentials{AccessKeyID: "ASIA" + id, SecretAccessKey: "x", SessionToken: "y", Expiration: s.clock.Now().Add(time.Hour)}, nil
}

func (s sessions) ReplicationServer(_ context.Context, id string) (Credentials, error) {
	return s.Agent(context.Background(), id)
}

func p[T any](v T) *T { return &v }

// machine is what an agent says of its source server.
func machine(id string) *formgn.RegisterAgentForMgnRequest {
	return &formgn.RegisterAgentForMgnRequest{AgentVersion: p("1.0"), SourceProperties: &formgn.SourceProperties{
		Hostname: p("db-" + id), MachineID: p(id), OsString: p("Debian GNU/Linux 12"), RamBytes: p(int64(2 << 30)), BootMode: "UEFI",
		Cpus:              []formgn.CPU{{Cores: p(int64(2)), ModelName: p("test")}},
		NetworkInterfaces: []formgn.NetworkInterface{{MacAddress: p("52:54:00:00:00:" + id), Ips: []string{"10.0.0.1"}, IsPrimary: p(true)}},
		Disks: []formgn.Disk{{DeviceName: "/dev/vda", Bytes: 8 << 20, IsBootDisk: p(true), Serial: p("serial:a")},
			{DeviceName: "/dev/vdb", Bytes: 4 << 20, Serial: p("serial:b")}},
	}}
}

const replicatorID = "i-00000000000000001"

func (w *world) register(id string) string {
	w.t.Helper()
	out, err := w.RegisterAgent(w.t.Context(), Caller{ARN: installer}, machine(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return out.SourceServerID
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// pair brings a registered server's agent and a replication server together.
func (w *world) pair(id string) {
	w.t.Helper()
	ctx := w.t.Context()
	_, err := w.DescribeReplicationServerAssociations(ctx, &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: replicatorID, Address: p("127.0.0.1:1500")})
	w.must(err)
	_, err = w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
	w.must(err)
	_, err = w.GetAgentReplicationInfo(ctx, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: id})
	w.must(err)
}

// replicate brings a registered server to its first recovery point, by the
// calls that its agent and its replication server would make.
func (w *world) replicate(id string) {
	w.t.Helper()
	w.pair(id)
	ctx, must := w.t.Context(), w.must
	connected, err := w.NotifyAgentConnected(ctx, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id})
	must(err)
	seq := block.Seq(connected.Generation)
	w.replicas.mu.Lock()
	w.replicas.points[id] = append(w.replicas.points[id], block.Point{Seq: seq, Time: w.clock.Now()})
	w.replicas.mu.Unlock()
	_, err = w.NotifyAgentReplicationProgress(ctx, &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id,
		Generation: connected.Generation, ReceivedBytes: p(int64(4096)), PointSeq: p(seq.String()), PointDateTime: p(stamp(w.clock.Now())), Consistent: p(true), InitialSyncDone: p(true)})
	must(err)
	_, err = w.UpdateAgentBacklog(ctx, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: "CONTINUOUS", LagMilliseconds: p(int64(0))})
	must(err)
}

func (w *world) describe(id string) mgn.SourceServer {
	w.t.Helper()
	out, err := w.DescribeSourceServers(w.t.Context(), &mgn.DescribeSourceServersRequest{Filters: &mgn.DescribeSourceServersRequestFilters{SourceServerIDs: []string{id}}})
	if err != nil || len(out.Items) != 1 {
		w.t.Fatalf("describe %s: %v, %d items", id, err, len(out.Items))
	}
	return out.Items[0]
}

// runJobs does what Run does with jobs, in this goroutine.
func (w *world) runJobs() {
	w.t.Helper()
	for {
		id, err := w.claim(w.t.Context(), "test")
		if err != nil {
			w.t.Fatal(err)
		}
		if id == "" {
			return
		}
		if err := w.runJob(w.t.Context(), id); err != nil {
			w.t.Fatal(err)
		}
	}
}

func csr(t *testing.T) string {
	t.Helper()
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func parseCert(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	certs, err := ca.DecodeCertificates([]byte(text))
	if err != nil {
		t.Fatal(err, len(certs))
	}
	return certs[0]
}

func (s sessions) Revoke(context.Context, string) error { return nil }
