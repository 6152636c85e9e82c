package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/ca"
	"rehost/internal/fault"
	"rehost/wire"
)

// A running serve, and clients of it.
type running struct {
	t       *testing.T
	data    string
	api     string
	stdout  fault.Log
	stderr  fault.Log // complete once it has stopped
	stop    func() int
	root    *x509.Certificate
	mgn     *mgn.Client // of the administrator, by the official SDK
	install *awsapi.Client
	admin   aws.CredentialsProvider
}

var readyLine = regexp.MustCompile(`rehost: ready: API on (https://\S+), replication on (\S+), (?:VPN on \S+, )?data`)

func serve(t *testing.T, data string, more ...string) *running {
	t.Helper()
	return serveWith(t, data, append(more, "--advertise", "127.0.0.1")...)
}

// serveWith starts the service with more arguments.
func serveWith(t *testing.T, data string, more ...string) *running {
	t.Helper()
	r := &running{t: t, data: data}
	ctx, cancel := context.WithCancel(context.Background())
	reader, writer := io.Pipe()
	status := make(chan int, 1)
	read := make(chan struct{})
	go func() {
		args := []string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--replication-listen", "127.0.0.1:0"}
		code := Run(ctx, append(args, more...), &r.stdout, writer)
		writer.Close()
		<-read
		status <- code
	}()
	r.stop = sync.OnceValue(func() int { cancel(); return <-status })
	ready := make(chan string, 1)
	go func() {
		defer close(read)
		defer close(ready)
		for lines := bufio.NewScanner(io.TeeReader(reader, &r.stderr)); lines.Scan(); {
			if m := readyLine.FindStringSubmatch(lines.Text()); m != nil {
				ready <- m[1]
			} else if !strings.Contains(lines.Text(), "level=INFO") && !slices.Contains(more, "debug") {
				t.Log(lines.Text())
			}
		}
		io.Copy(&r.stderr, reader)
	}()
	t.Cleanup(func() { r.stop() })
	var ok bool
	if r.api, ok = <-ready; !ok {
		t.Fatal("serve ended:", r.stop())
	}
	r.clients()
	return r
}

func (r *running) clients() {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.data, "ca.pem"))
	r.must(err)
	roots, err := ca.DecodeCertificates(text)
	r.must(err)
	r.root = roots[0]
	keys, err := os.ReadFile(filepath.Join(r.data, "credentials"))
	r.must(err)
	m := regexp.MustCompile(`(?s)\[rehost\]\naws_access_key_id = (\S+)\naws_secret_access_key = (\S+)\n`).FindSubmatch(keys)
	if m == nil {
		r.t.Fatal("no key in the credentials file")
	}
	admin := credentials.NewStaticCredentialsProvider(string(m[1]), string(m[2]), "")
	r.admin = admin
	pool := x509.NewCertPool()
	pool.AddCert(r.root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	r.t.Cleanup(transport.CloseIdleConnections)
	r.mgn = mgn.New(mgn.Options{Region: "us-east-1", BaseEndpoint: &r.api, Credentials: admin, HTTPClient: &http.Client{Transport: transport}, RetryMaxAttempts: 1})
	r.install = awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", Credentials: admin, TLS: transport.TLSClientConfig})
	r.t.Cleanup(r.install.Close)
}

func (r *running) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// until waits for something that another goroutine brings about.
func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal("waited too long for ", what)
		}
	}
}

func (r *running) describe(id string) types.SourceServer {
	r.t.Helper()
	out, err := r.mgn.DescribeSourceServers(r.t.Context(), &mgn.DescribeSourceServersInput{Filters: &types.DescribeSourceServersRequestFilters{SourceServerIDs: []string{id}}})
	r.must(err)
	if len(out.Items) != 1 {
		r.t.Fatalf("%d source servers %s", len(out.Items), id)
	}
	return out.Items[0]
}

// An agent as the service sees one: a certificate, and calls signed with what it
// was exchanged for.
type agent struct {
	*running
	id     string
	disks  []block.Disk
	pair   tls.Certificate
	client *awsapi.Client
}

type fetched func(ctx context.Context) (aws.Credentials, error)

func (f fetched) Retrieve(ctx context.Context) (aws.Credentials, error) { return f(ctx) }

func registration(machine string) *formgn.RegisterAgentForMgnRequest {
	yes, size := true, int64(1<<20)
	return &formgn.RegisterAgentForMgnRequest{SourceProperties: &formgn.SourceProperties{
		MachineID: &machine, Hostname: &machine, Disks: []formgn.Disk{{DeviceName: "/dev/vda", Bytes: size, IsBootDisk: &yes}}}}
}

func (r *running) newAgent(machine string) *agent {
	r.t.Helper()
	return r.newAgentBy(r.install, machine)
}

// again installs the agent anew on its machine, where its certificate is.
func (a *agent) again(r *running, machine string) *agent {
	r.t.Helper()
	config := ca.Endpoint{Root: r.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.Service})
	c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", Credentials: r.admin, TLS: config})
	r.t.Cleanup(c.Close)
	return r.newAgentBy(c, machine)
}

func (r *running) newAgentBy(installer *awsapi.Client, machine string) *agent {
	r.t.Helper()
	registered, err := awsapi.Call(r.t.Context(), installer, formgn.RegisterAgentForMgn, registration(machine))
	r.must(err)
	a := &agent{running: r, id: registered.SourceServerID}
	for _, d := range registered.Disks {
		a.disks = append(a.disks, block.Disk{ID: block.DiskID(d.DiskID), Name: d.DeviceName, Size: d.Bytes, Boot: *d.IsBootDisk})
	}
	key, err := ca.NewKey()
	r.must(err)
	a.certify(key)
	config := ca.Endpoint{Root: r.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.Service})
	unsigned := awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", TLS: config})
	r.t.Cleanup(unsigned.Close)
	a.client = awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", TLS: config, Credentials: fetched(func(ctx context.Context) (aws.Credentials, error) {
		out, err := awsapi.Call(ctx, unsigned, formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
		if err != nil {
			return aws.Credentials{}, err
		}
		return aws.Credentials{AccessKeyID: out.AccessKeyId, SecretAccessKey: string(out.SecretAccessKey), SessionToken: string(out.SessionToken)}, nil
	})})
	r.t.Cleanup(a.client.Close)
	return a
}

func (a *agent) certify(key *ecdsa.PrivateKey) {
	a.t.Helper()
	der, err := ca.NewRequest(key)
	a.must(err)
	issued, err := awsapi.Call(a.t.Context(), a.install, formgn.IssueClientCertificateForMgn, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: a.id,
		CertificateSigningRequest: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	a.must(err)
	certs, err := ca.DecodeCertificates([]byte(issued.Certificate))
	a.must(err)
	a.pair, err = ca.Certificate(certs, key)
	a.must(err)
}

func (a *agent) command() (formgn.AgentCommand, error) {
	out, err := awsapi.Call(a.t.Context(), a.client, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: a.id})
	if err != nil {
		return "", err
	}
	return out.Command, nil
}

// connect pairs with the replication server and opens a session to it.
func (a *agent) connect() *wire.Session {
	a.t.Helper()
	var info *formgn.GetAgentReplicationInfoForMgnResponse
	a.until("a replication server", func() bool {
		var err error
		info, err = awsapi.Call(a.t.Context(), a.client, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: a.id})
		a.must(err)
		return info.ReplicatorAddress != ""
	})
	config := ca.Endpoint{Root: a.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: info.ReplicatorID})
	s, err := wire.Dial(a.t.Context(), wire.Config{Address: info.ReplicatorAddress, TLS: config, Server: a.id, Disks: a.disks, Connections: 2})
	a.must(err)
	return s
}

func (a *agent) commit(s *wire.Session, fill byte) {
	a.t.Helper()
	epoch := s.Last().Seq + 1
	run := block.Encode(block.Extent{Start: 3, Count: 1}, bytes.Repeat([]byte{fill}, block.Size), false)
	a.must(s.Put(a.t.Context(), epoch, 0, run))
	a.must(s.Commit(a.t.Context(), block.Point{Seq: epoch, Time: time.Now()}, 1, block.Consistent|block.InitialSyncDone))
}

// TestServe sets a service up, replicates to it as an agent does, restarts it,
// and disconnects, all through the doors that others use.
func TestServe(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data)
	ctx := t.Context()
	var uninitialized *types.UninitializedAccountException
	if _, err := r.mgn.DescribeSourceServers(ctx, &mgn.DescribeSourceServersInput{}); !errors.As(err, &uninitialized) {
		t.Fatalf("before InitializeService: %v", err)
	}
	_, err := r.mgn.InitializeService(ctx, &mgn.InitializeServiceInput{})
	r.must(err)
	a, b := r.newAgent("machine-a"), r.newAgent("machine-b")
	if c, err := a.command(); err != nil || c != formgn.AgentCommandStart {
		t.Fatal(c, err)
	}
	// One agent may not speak for another.
	_, err = awsapi.Call(ctx, a.client, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: b.id})
	if !awsapi.IsError(err, "AccessDeniedException") {
		t.Fatalf("a's credentials for b: %v", err)
	}

	s := a.connect()
	a.commit(s, 'x')
	r.until("READY_FOR_TEST", func() bool { return r.describe(a.id).LifeCycle.State == types.LifeCycleStateReadyForTest })
	got := r.describe(a.id)
	for _, step := range got.DataReplicationInfo.DataReplicationInitiation.Steps {
		if step.Status != "SUCCEEDED" && step.Status != "SKIPPED" {
			t.Errorf("step %s is %s", step.Name, step.Status)
		}
	}
	if aws.ToString(got.DataReplicationInfo.LagDuration) == "" || got.DataReplicationInfo.DataReplicationState != "CONTINUOUS" {
		t.Errorf("data replication is %+v", got.DataReplicationInfo)
	}
	first := s.Generation()
	r.must(s.Close())

	// A second process stays out; a restart goes on, with a higher generation.
	if status := Run(ctx, []string{"serve", "--data", data, "--listen", "127.0.0.1:0"}, io.Discard, io.Discard); status != statusInUse {
		t.Errorf("a second service on the same directory: status %d", status)
	}
	if status := r.stop(); status != statusDone {
		t.Fatalf("stopped with status %d", status)
	}
	r = serve(t, data)
	if r.stdout.String() != "" {
		t.Errorf("the second start printed %q", r.stdout.String())
	}
	if got := r.describe(a.id).LifeCycle.State; got != types.LifeCycleStateReadyForTest {
		t.Fatalf("after a restart: %s", got)
	}
	if _, err := awsapi.Call(ctx, r.install, formgn.RegisterAgentForMgn, registration("machine-a")); !awsapi.IsError(err, "ConflictException") {
		t.Fatalf("an installation elsewhere takes the place of an agent that runs: %v", err)
	}
	a = a.again(r, "machine-a") // the same source server
	if a.id != *got.SourceServerID {
		t.Fatalf("installed again as %s, was %s", a.id, *got.SourceServerID)
	}
	s = a.connect()
	if s.Generation() <= first || s.Last().Seq != 1 {
		t.Fatalf("generation %d after %d, last point %v", s.Generation(), first, s.Last())
	}
	a.commit(s, 'y')

	// Disconnected: the session breaks, the agent learns why, then all is shut.
	_, err = r.mgn.DisconnectFromService(ctx, &mgn.DisconnectFromServiceInput{SourceServerID: &a.id})
	r.must(err)
	select {
	case <-s.Done():
	case <-time.After(20 * time.Second):
		t.Error("the session goes on after disconnect")
	}
	r.must(s.Close())
	if c, err := a.command(); err != nil || c != formgn.AgentCommandUninstall {
		t.Fatal(c, err)
	}
	_, err = awsapi.Call(ctx, a.client, formgn.UpdateAgentBacklogForMgn, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: a.id, State: "DISCONNECTED", Disks: []formgn.DiskProgress{}})
	r.must(err)
	if _, err := a.command(); err == nil {
		t.Error("credentials are good after the agent has uninstalled itself")
	}
	_, err = r.mgn.DeleteSourceServer(ctx, &mgn.DeleteSourceServerInput{SourceServerID: &a.id})
	r.must(err)
	if status := r.stop(); status != statusDone {
		t.Fatalf("stopped with status %d", status)
	}
}

// TestServe_Launch starts a real machine from what was replicated (a disk that
// nothing boots from), restarts the service under it, and ends it.
func TestServe_Launch(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service and a machine")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed: no machine can be launched")
	}
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data)
	ctx := t.Context()
	_, err := r.mgn.InitializeService(ctx, &mgn.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	s := a.connect()
	a.commit(s, 'x')
	r.must(s.Close())
	r.until("READY_FOR_TEST", func() bool { return r.describe(a.id).LifeCycle.State == types.LifeCycleStateReadyForTest })
	test, err := r.mgn.StartTest(ctx, &mgn.StartTestInput{SourceServerIDs: []string{a.id}})
	r.must(err)
	ended := func(id *string) types.Job {
		var job types.Job
		r.until("the end of job "+*id, func() bool {
			out, err := r.mgn.DescribeJobs(ctx, &mgn.DescribeJobsInput{Filters: &types.DescribeJobsRequestFilters{JobIDs: []string{*id}}})
			r.must(err)
			job = out.Items[0]
			return job.Status == types.JobStatusCompleted
		})
		return job
	}
	terminate := func() {
		t.Helper()
		_, err := r.mgn.ChangeServerLifeCycleState(ctx, &mgn.ChangeServerLifeCycleStateInput{SourceServerID: &a.id,
			LifeCycle: &types.ChangeServerLifeCycleStateSourceServerLifecycle{State: "READY_FOR_TEST"}})
		r.must(err)
		out, err := r.mgn.TerminateTargetInstances(ctx, &mgn.TerminateTargetInstancesInput{SourceServerIDs: []string{a.id}})
		r.must(err)
		if job := ended(out.Job.JobID); job.ParticipatingServers[0].LaunchStatus != types.LaunchStatusTerminated {
			t.Errorf("terminated as %+v", job.ParticipatingServers[0])
		}
	}
	job := ended(test.Job.JobID)
	if job.ParticipatingServers[0].LaunchStatus != types.LaunchStatusLaunched {
		log, _ := r.mgn.DescribeJobLogItems(ctx, &mgn.DescribeJobLogItemsInput{JobID: job.JobID})
		for _, item := range log.Items {
			if item.EventData != nil {
				t.Log(item.Event, aws.ToString(item.EventData.RawError))
			}
		}
		t.Fatalf("launched as %+v", job.ParticipatingServers[0])
	}
	t.Cleanup(func() { killInstances(t, data) })
	if status := r.stop(); status != statusDone {
		t.Fatalf("stopped with status %d", status)
	}
	r = serve(t, data)
	if got := r.describe(a.id).LaunchedInstance; got == nil || *got.Ec2InstanceID != *job.ParticipatingServers[0].LaunchedEc2InstanceID {
		t.Errorf("after a restart the instance is %+v", got)
	}
	terminate()
	if r.describe(a.id).LaunchedInstance != nil {
		t.Error("the instance is still there")
	}
}

// killInstances ends machines that a failed test has left.
func killInstances(t *testing.T, data string) {
	target, err := openTarget(filepath.Join(data, "instances"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Log("machines may be left:", err)
		return
	}
	defer target.Close()
	left, err := target.Instances(context.Background())
	for _, i := range left {
		err = errors.Join(err, target.Terminate(context.Background(), i.ID))
	}
	if err != nil {
		t.Log("machines may be left:", err)
	}
}
