package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/ca"
	iam "rehost/identity"
	"rehost/internal/fault"
	"rehost/receive"
	"rehost/store"
	"rehost/tunnel"
	"rehost/wire"
)

const (
	region     = "eu-west-1"
	serverID   = "s-0123456789abcdef0"
	replicator = "i-0123456789abcdef0"
)

// runVariable makes this test program the agent of a state directory.
const runVariable = "REHOST_AGENT_TEST_RUN"

func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "run" { // started by an installation of this very program
		fmt.Fprintln(os.Stderr, Run(context.Background(), RunOptions{StateDir: os.Args[3]}))
		os.Exit(3)
	}
	if dir := os.Getenv(askedVariable); dir != "" {
		if err := askedMain(dir, os.Getenv(keyVariable)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(runVariable); dir != "" {
		err := Run(context.Background(), RunOptions{StateDir: dir, poll: 100 * time.Millisecond, report: 100 * time.Millisecond})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	goleak.VerifyTestMain(m)
}

// A world is a service, a replication server and a store, all real, on
// loopback, with one installer and a machine of two disks.
type world struct {
	t         *testing.T
	authority *ca.Authority
	directory *iam.Directory
	installer iam.Credentials
	api       *awsapi.Server
	log       *fault.Log // of the service
	agentLog  *fault.Log
	address   string // of the API
	web       *http.Server
	webDone   chan struct{}

	store    *store.Store
	receiver *receive.Server
	dataAt   string
	dataDone chan struct{}
	keys     store.Keyring
	storeDir string

	hub *tunnel.Hub // if there is one, nothing else is open

	disks []*fault.Disk
	gone  map[int]bool // disks that are replicated no more
	state string       // directory of the agent
	bpffs string       // where it pins

	mu         sync.Mutex      // guards what follows
	cert       tls.Certificate // of the replication server
	trusts     string          // digest of the bundle that the agent believes
	command    formgn.AgentCommand
	throttling int64
	generation int64
	registered []formgn.Disk
	numbers    []string // what the numbers of disks were given to
	machine    string
	registers  int
	revoked    map[string]bool
	issuedN    int
	offered    string        // to agents that download their release
	peers      []tunnel.Peer // of the hub, the newest last
	reports    []formgn.UpdateAgentBacklogForMgnRequest
	lines      []formgn.LogLine
	metrics    map[string]float64
	ended      bool // for port 1500
	confirmed  bool
	sessions   int
	tags       formgn.TagsMap
	properties *formgn.SourceProperties
	orders     []formgn.AgentOrder // stay, whatever the agent does
	bundle     []byte
	declined   []string
	lose       int // parts of bundles that come and are forgotten
}

const diskSize = 24 << 20

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: an agent has to be root")
	}
	t.Parallel()
	w := &world{t: t, command: formgn.AgentCommandStart, revoked: map[string]bool{}, metrics: map[string]float64{}, gone: map[int]bool{}, log: new(fault.Log), agentLog: new(fault.Log),
		state: filepath.Join(t.TempDir(), "state"), bpffs: fault.BPF(t)}
	var err error
	if w.authority, err = ca.Open(t.TempDir(), ca.Options{}); err != nil {
		t.Fatal(err)
	}
	w.openIdentity()
	w.api = awsapi.New(awsapi.Options{Identity: w.directory, Region: region, Log: slog.New(slog.NewTextHandler(w.log, nil)),
		VerifyPeer: w.verifyPeer}, formgn.Service)
	w.handle()
	w.address = "127.0.0.1:0"
	w.startService()
	t.Cleanup(w.stopService)
	w.storeDir = t.TempDir()
	if w.keys, err = store.CreateKeyFile(filepath.Join(t.TempDir(), "key")); err != nil {
		t.Fatal(err)
	}
	w.dataAt = "127.0.0.1:0"
	w.startReceiver()
	t.Cleanup(w.stopReceiver)
	for range 2 {
		w.disks = append(w.disks, fault.Loop(t, diskSize))
	}
	for i := range w.disks {
		w.scribble(i, 0, diskSize/2)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("agent's log:\n%s", w.agentLog)
			t.Logf("service's log, end:\n%s", tail(w.log.String(), 4000))
		}
	})
	return w
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (w *world) openIdentity() {
	w.t.Helper()
	raw := make([]byte, 32)
	rand.Read(raw)
	key, err := iam.NewSealingKey(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx := w.t.Context()
	if w.directory, err = iam.Open(ctx, iam.Options{Store: iam.NewMemoryStore(), Key: key}); err != nil {
		w.t.Fatal(err)
	}
	if _, err = w.directory.Bootstrap(ctx); err != nil {
		w.t.Fatal(err)
	}
	if err = w.directory.CreateUser(ctx, iam.User{Name: "installer", Attached: []string{iam.ManagedPolicy("AWSApplicationMigrationAgentInstallationPolicy")}}); err != nil {
		w.t.Fatal(err)
	}
	if w.installer, err = w.directory.CreateAccessKey(ctx, "installer"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) verifyPeer(_ context.Context, leaf *x509.Certificate) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revoked[ca.Serial(leaf)] {
		return "", ca.ErrRevoked
	}
	name, err := ca.PeerName(leaf)
	return name.ID, err
}

func (w *world) listen(address string, inside uint16) (net.Listener, error) {
	if w.hub != nil {
		return w.hub.Listen(inside)
	}
	return net.Listen("tcp", address)
}

func (w *world) startService() {
	w.t.Helper()
	l, err := w.listen(w.address, tunnel.APIPort)
	if err != nil {
		w.t.Fatal(err)
	}
	w.address = l.Addr().String()
	end := ca.Endpoint{Bundle: w.authority.Bundle(), Certificate: func() (*tls.Certificate, error) {
		return w.authority.ServiceCertificate(nil, []net.IP{net.IPv4(127, 0, 0, 1)})
	}}
	handler := http.NewServeMux()
	handler.Handle("/", w.api)
	handler.HandleFunc("/agent/", func(out http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		io.WriteString(out, w.offered)
	})
	w.web = &http.Server{Handler: handler, TLSConfig: end.OptionalConfig(ca.SourceServer), ErrorLog: slog.NewLogLogger(slog.NewTextHandler(w.log, nil), slog.LevelWarn)}
	w.webDone = make(chan struct{})
	go func(web *http.Server, done chan struct{}) {
		defer close(done)
		_ = web.ServeTLS(l, "", "")
	}(w.web, w.webDone)
}

func (w *world) stopService() {
	w.web.Close()
	<-w.webDone
}

func (w *world) startReceiver() {
	w.t.Helper()
	var err error
	if w.store, err = store.Open(w.storeDir, w.keys, store.Options{}); err != nil {
		w.t.Fatal(err)
	}
	w.certify()
	l, err := w.listen(w.dataAt, tunnel.ReplicationPort)
	if err != nil {
		w.t.Fatal(err)
	}
	w.dataAt = l.Addr().String()
	w.receiver = receive.New(receive.Config{Endpoint: ca.Endpoint{Bundle: w.authority.Bundle(), Certificate: w.certificate},
		Store: receive.Replicas(w.store, nil), Controller: w, Logger: slog.New(slog.NewTextHandler(w.log, nil))})
	w.dataDone = make(chan struct{})
	go func(r *receive.Server, done chan struct{}) {
		defer close(done)
		_ = r.Serve(l)
	}(w.receiver, w.dataDone)
}

// certify gives the replication server another certificate.
func (w *world) certify() {
	w.t.Helper()
	cert, err := w.authority.IssueReplicationServer(replicator)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cert = cert
}

func (w *world) certificate() (*tls.Certificate, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cert := w.cert
	return &cert, nil
}

func (w *world) stopReceiver() {
	w.receiver.Close()
	<-w.dataDone
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

// The controller of port 1500.

func (w *world) Authenticated(context.Context, receive.Agent) error { return nil }

func (w *world) Connected(_ context.Context, a receive.Agent, _ wire.Hello) (receive.Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return receive.Grant{}, &wire.RefusedError{Code: wire.Disconnected, Message: "disconnected"}
	}
	w.generation++
	w.sessions++
	disks, err := blockDisks(w.disksOf())
	return receive.Grant{Generation: uint64(w.generation), Disks: disks}, err
}

func (w *world) Disconnected(context.Context, receive.Agent, error)           {}
func (w *world) Progress(context.Context, receive.Agent, receive.Progress)    {}
func (w *world) Unhealthy(context.Context, receive.Agent, *wire.RefusedError) {}

func (w *world) disksOf() (out []formgn.ReplicationDisk) {
	for _, d := range w.registered {
		is := isDisk(d)
		i := slices.Index(w.numbers, is)
		if i < 0 {
			i, w.numbers = len(w.numbers), append(w.numbers, is)
		}
		out = append(out, formgn.ReplicationDisk{DiskID: int32(i), DeviceName: d.DeviceName, Bytes: d.Bytes, IsBootDisk: d.IsBootDisk, Serial: d.Serial})
	}
	return out
}

// isDisk is what a disk is known by.
func isDisk(d formgn.Disk) string {
	if d.Serial != nil && *d.Serial != "" {
		return fmt.Sprint(*d.Serial, d.Bytes)
	}
	return fmt.Sprint(d.DeviceName, d.Bytes)
}

// handle registers the service's side of the agent's calls.
func (w *world) handle() {
	type ctx = context.Context
	awsapi.Handle(w.api, formgn.VerifyClientRoleForMgn, func(ctx, *formgn.VerifyClientRoleForMgnRequest) (*formgn.VerifyClientRoleForMgnResponse, error) {
		return &formgn.VerifyClientRoleForMgnResponse{Tunnel: w.tunnel()}, nil
	})
	awsapi.Handle(w.api, formgn.RegisterAgentForMgn, func(_ ctx, in *formgn.RegisterAgentForMgnRequest) (*formgn.RegisterAgentForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		isNew := w.machine != *in.SourceProperties.MachineID
		w.machine, w.registered, w.tags = *in.SourceProperties.MachineID, in.ReplicatedDisks, in.Tags
		w.registers++
		if in.NoReplication != nil && *in.NoReplication {
			w.command = formgn.AgentCommandStop
		}
		return &formgn.RegisterAgentForMgnResponse{SourceServerID: serverID, Arn: "arn:aws:mgn:" + region + ":1:source-server/" + serverID, IsNew: &isNew, Disks: w.disksOf()}, nil
	})
	awsapi.Handle(w.api, formgn.IssueClientCertificateForMgn, func(_ ctx, in *formgn.IssueClientCertificateForMgnRequest) (*formgn.IssueClientCertificateForMgnResponse, error) {
		request, _ := pem.Decode([]byte(in.CertificateSigningRequest))
		cert, err := w.authority.IssueAgent(request.Bytes, in.SourceServerID)
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.issuedN++
		out := &formgn.IssueClientCertificateForMgnResponse{Certificate: string(ca.EncodeCertificates(cert...)), CertificateAuthority: string(ca.EncodeCertificates(w.authority.Root()))}
		if in.TunnelKey != nil {
			out.Tunnel, err = w.letIn(*in.TunnelKey), nil
		}
		return out, err
	})
	awsapi.Handle(w.api, formgn.CreateSessionForMgn, func(c ctx, _ *formgn.CreateSessionForMgnRequest) (*formgn.CreateSessionForMgnResponse, error) {
		id := awsapi.CallerOf(c).Peer
		k, err := w.directory.AssumeRoleAsService(c, "mgn.amazonaws.com", iam.AssumeRole{Role: iam.AgentRole, Session: id, SourceIdentity: id})
		if err != nil {
			return nil, err
		}
		return &formgn.CreateSessionForMgnResponse{AccessKeyId: k.AccessKeyID, SecretAccessKey: formgn.Secret(k.SecretAccessKey), SessionToken: formgn.Secret(k.SessionToken), Expiration: awsapi.DateTime(k.Expires)}, nil
	})
	awsapi.Handle(w.api, formgn.GetAgentCommandForMgn, func(_ ctx, in *formgn.GetAgentCommandForMgnRequest) (*formgn.GetAgentCommandForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.trusts = *in.TrustDigest
		out := &formgn.GetAgentCommandForMgnResponse{Tasks: w.orders, Command: w.command, BandwidthThrottling: pointer(w.throttling)}
		if w.trusts != w.authority.Bundle().Digest() {
			out.TrustBundle = w.authority.Bundle().Text()
		}
		return out, nil
	})
	awsapi.Handle(w.api, formgn.GetAgentReplicationInfoForMgn, func(_ ctx, in *formgn.GetAgentReplicationInfoForMgnRequest) (*formgn.GetAgentReplicationInfoForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return &formgn.GetAgentReplicationInfoForMgnResponse{Disks: w.disksOf(), ReplicatorID: replicator, ReplicatorAddress: w.dataAt, Generation: pointer(w.generation)}, nil
	})
	awsapi.Handle(w.api, formgn.UpdateAgentReplicationInfoForMgn, func(_ ctx, in *formgn.UpdateAgentReplicationInfoForMgnRequest) (*formgn.UpdateAgentReplicationInfoForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		before := w.registered
		w.registered = nil
		for _, r := range in.Disks {
			d := formgn.Disk{DeviceName: r.DeviceName, Bytes: r.Bytes, IsBootDisk: r.IsBootDisk, Serial: r.Serial}
			w.registered = append(w.registered, d)
			for _, old := range before { // with a partition table by now
				if i := slices.Index(w.numbers, isDisk(old)); i >= 0 && !slices.Contains(w.numbers, isDisk(d)) && old.DeviceName == d.DeviceName && old.Bytes == d.Bytes {
					w.numbers[i] = isDisk(d)
				}
			}
		}
		return &formgn.UpdateAgentReplicationInfoForMgnResponse{Disks: w.disksOf()}, nil
	})
	awsapi.Handle(w.api, formgn.UpdateAgentBacklogForMgn, func(_ ctx, in *formgn.UpdateAgentBacklogForMgnRequest) (*formgn.UpdateAgentBacklogForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.reports = append(w.reports, *in)
		w.confirmed = w.confirmed || in.State == formgn.DataReplicationStateDisconnected
		return nil, nil
	})
	awsapi.Handle(w.api, formgn.UpdateAgentSourcePropertiesForMgn, func(_ ctx, in *formgn.UpdateAgentSourcePropertiesForMgnRequest) (*formgn.UpdateAgentSourcePropertiesForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.properties = in.SourceProperties
		return nil, nil
	})
	awsapi.Handle(w.api, formgn.SendSupportBundleForRehost, func(_ ctx, in *formgn.SendSupportBundleForRehostRequest) (*formgn.SendSupportBundleForRehostResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.lose > 0 {
			w.lose--
			w.bundle = nil
		} else if in.Offset == int64(len(w.bundle)) {
			w.bundle = append(w.bundle, in.Content...)
		}
		return &formgn.SendSupportBundleForRehostResponse{NextOffset: int64(len(w.bundle))}, nil
	})
	awsapi.Handle(w.api, formgn.UpdateAgentTaskForRehost, func(_ ctx, in *formgn.UpdateAgentTaskForRehostRequest) (*formgn.UpdateAgentTaskForRehostResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.declined = append(w.declined, awsapi.Value(in.Failure))
		return nil, nil
	})
	awsapi.Handle(w.api, formgn.SendAgentLogsForMgn, func(_ ctx, in *formgn.SendAgentLogsForMgnRequest) (*formgn.SendAgentLogsForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.lines = append(w.lines, in.Lines...)
		return nil, nil
	})
	awsapi.Handle(w.api, formgn.SendAgentMetricsForMgn, func(_ ctx, in *formgn.SendAgentMetricsForMgnRequest) (*formgn.SendAgentMetricsForMgnResponse, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, m := range in.Metrics {
			w.metrics[m.Name] = m.Value
		}
		return nil, nil
	})
}

func (w *world) say(c formgn.AgentCommand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.command = c
}

// scribble writes random data somewhere on a disk, in [from, to).
func (w *world) scribble(disk int, from, to int64) {
	w.t.Helper()
	f, err := os.OpenFile(w.disks[disk].Path, os.O_WRONLY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	for range 8 {
		rand.Read(buf)
		off := from + mrand.Int64N((to-from-int64(len(buf)))/512)*512
		if _, err := f.WriteAt(buf, off); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) options() InstallOptions {
	return InstallOptions{StateDir: w.state, Endpoint: w.address, Region: region,
		Credentials:   Credentials{AccessKeyID: w.installer.AccessKeyID, SecretAccessKey: string(w.installer.SecretAccessKey)},
		CAFingerprint: w.authority.Fingerprint(), Devices: []string{w.disks[0].Path, w.disks[1].Path}, ForceVolumes: true,
		BPFFS: w.bpffs, AsRoot: true, Service: ServiceNone, Log: slog.New(slog.NewTextHandler(w.agentLog, nil))}
}

func (w *world) install() *Installed {
	w.t.Helper()
	out, err := Install(w.t.Context(), w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// run starts the agent in this process; stop ends it and returns how it ended.
func (w *world) run(change ...func(*RunOptions)) (stop func() error) {
	w.t.Helper()
	o := RunOptions{StateDir: w.state, Log: slog.New(slog.NewTextHandler(w.agentLog, &slog.HandlerOptions{Level: slog.LevelDebug})), poll: 50 * time.Millisecond, report: 50 * time.Millisecond}
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := Run(ctx, o)
		// Where another test has just begun a process, that holds our locks until it is another program.
		for end := time.Now().Add(time.Second); errors.Is(err, ErrRunning) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			err = Run(ctx, o)
		}
		fmt.Fprintln(w.agentLog, "the agent ended:", err)
		done <- err
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	w.t.Cleanup(func() { _ = stop() })
	return stop
}

// pinned is what is left in the BPF file system.
func (w *world) pinned() (names []string) {
	w.t.Helper()
	err := filepath.WalkDir(filepath.Join(w.bpffs, "rehost-agent"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			names = append(names, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal(err)
	}
	return names
}

// wait waits until ok, or fails with what.
func (w *world) wait(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Fatalf("waited too long: %s", what)
}

// differs says where the newest point and the disks differ; "" is nowhere.
func (w *world) differs() string {
	r, err := w.store.Replica(context.Background(), serverID)
	if err != nil {
		return err.Error()
	}
	p, ok := r.Latest()
	if !ok || !p.Consistent() {
		return "no consistent point"
	}
	v, err := r.At(p.Seq)
	if err != nil {
		return err.Error()
	}
	for i, d := range w.disks {
		if w.gone[i] {
			continue
		}
		copied, err := v.Disk(block.DiskID(i))
		if err != nil {
			return err.Error()
		}
		want, err := d.Content()
		if err != nil {
			return err.Error()
		}
		got := make([]byte, len(want))
		if _, err := copied.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
			return err.Error()
		}
		if !bytes.Equal(got, want) {
			return fmt.Sprintf("disk %d differs at point %v", i, p.Seq)
		}
	}
	return ""
}

func (w *world) equal(when string) {
	w.t.Helper()
	last := ""
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if last = w.differs(); last == "" {
			return
		}
	}
	w.t.Fatalf("%s: the replica is not the source: %s", when, last)
}

func mustConfig(t *testing.T, dir string) Config {
	t.Helper()
	c, err := stateDir(dir).config()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func serialOf(id *identity) string {
	pair, _ := id.certificate()
	return ca.Serial(pair.Leaf)
}

func testLog(w *world) *slog.Logger { return slog.New(slog.NewTextHandler(w.agentLog, nil)) }
