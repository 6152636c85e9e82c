package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/ca"
	"rehost/launch"
)

// TestMigration goes the whole way from an agent that registers to a source
// server that is deleted.
func TestMigration(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	if got := w.describe(id); got.LifeCycle.State != "NOT_READY" || got.DataReplicationInfo.DataReplicationState != "INITIATING" || got.DataReplicationInfo.LagDuration != "" {
		t.Fatalf("after registration: %+v, %+v", got.LifeCycle, got.DataReplicationInfo)
	}
	w.replicate(id)
	w.clock.advance(1500 * time.Millisecond)
	got := w.describe(id)
	if got.LifeCycle.State != "READY_FOR_TEST" || got.DataReplicationInfo.DataReplicationState != "CONTINUOUS" || got.DataReplicationInfo.LagDuration != "PT1.5S" {
		t.Fatalf("after the first point: %+v, %+v", got.LifeCycle, got.DataReplicationInfo)
	}

	w.target.boot = launch.FirstBootSucceeded
	job := w.launch(t, w.StartTest, id)
	if w.describe(id).LifeCycle.State != "TESTING" {
		t.Fatal("not TESTING")
	}
	test := job.ParticipatingServers[0].LaunchedEc2InstanceID
	if spec := w.target.live[test]; spec.Network.Mode != launch.Isolated || spec.HydrateDisks || spec.BootMode != launch.UEFI || len(spec.Disks) != 2 || spec.MemoryMiB != 2048 {
		t.Fatalf("test launched as %+v", spec)
	}
	if got := w.describe(id).LaunchedInstance; got.FirstBoot != "WAITING" {
		t.Fatalf("first boot is %s before it was seen", got.FirstBoot)
	}
	if err := w.observeAll(ctx); err != nil {
		t.Fatal(err)
	}
	if got := w.describe(id).LaunchedInstance; got.FirstBoot != "SUCCEEDED" || got.Ec2InstanceID != test || got.JobID != job.JobID {
		t.Fatalf("launched instance is %+v", got)
	}

	// Terminate is refused in TESTING, then the test is finalized and the cutover begun.
	if _, err := w.TerminateTargetInstances(ctx, &mgn.TerminateTargetInstancesRequest{SourceServerIDs: []string{id}}); !is[*mgn.ConflictException](err) {
		t.Fatalf("terminate in TESTING: %v", err)
	}
	w.become(t, id, "READY_FOR_CUTOVER")
	job = w.cutover(t, id)
	cut := job.ParticipatingServers[0].LaunchedEc2InstanceID
	if _, still := w.target.live[test]; still || len(w.target.live) != 1 {
		t.Fatalf("the test instance is still there after the cutover launch: %v", w.target.live)
	}
	if spec := w.target.live[cut]; !spec.HydrateDisks || spec.Network.Mode != launch.Outbound {
		t.Fatalf("cutover launched as %+v", spec)
	}
	if _, err := w.FinalizeCutover(ctx, &mgn.FinalizeCutoverRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	got = w.describe(id)
	info := got.DataReplicationInfo
	if got.LifeCycle.State != "CUTOVER" || info.DataReplicationState != "DISCONNECTED" || info.LagDuration != "" || *info.ReplicatedDisks[0].TotalStorageBytes != 0 {
		t.Fatalf("after finalizing: %+v, %+v", got.LifeCycle, info)
	}

	// The replica stays for as long as the cutover instance reads it.
	w.clock.advance(time.Hour)
	if err := w.watch(ctx); err != nil || len(w.replicas.deleted) != 0 {
		t.Fatalf("deleted %v while the instance reads it, %v", w.replicas.deleted, err)
	}
	if _, err := w.DeleteSourceServer(ctx, &mgn.DeleteSourceServerRequest{SourceServerID: id}); !is[*mgn.ConflictException](err) {
		t.Fatalf("delete while the instance reads the replica: %v", err)
	}
	w.target.hydrated = true
	if err := w.observeAll(ctx); err != nil {
		t.Fatal(err)
	}
	if w.replicas.open != 0 || len(w.exports.names) != 0 {
		t.Fatalf("%d views and %v are still open for an instance that stands alone", w.replicas.open, w.exports.names)
	}
	w.clock.advance(time.Minute)
	if err := w.watch(ctx); err != nil || !slices.Equal(w.replicas.deleted, []string{id}) {
		t.Fatalf("deleted %v, %v", w.replicas.deleted, err)
	}
	if _, err := w.MarkAsArchived(ctx, &mgn.MarkAsArchivedRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	if out, _ := w.DescribeSourceServers(ctx, &mgn.DescribeSourceServersRequest{}); len(out.Items) != 0 {
		t.Fatal("an archived server is listed without being asked for")
	}
	if out, _ := w.DescribeSourceServers(ctx, &mgn.DescribeSourceServersRequest{Filters: &mgn.DescribeSourceServersRequestFilters{IsArchived: p(true)}}); len(out.Items) != 1 {
		t.Fatal("an archived server is not listed when asked for")
	}
	if _, err := w.DeleteSourceServer(ctx, &mgn.DeleteSourceServerRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	if _, still := w.target.live[cut]; !still {
		t.Fatal("the cutover instance went with its source server")
	}
}

func (w *world) become(t *testing.T, id string, state mgn.ChangeServerLifeCycleStateSourceServerLifecycleState) {
	t.Helper()
	if _, err := w.ChangeServerLifeCycleState(t.Context(), &mgn.ChangeServerLifeCycleStateRequest{SourceServerID: id,
		LifeCycle: &mgn.ChangeServerLifeCycleStateSourceServerLifecycle{State: state}}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) launch(t *testing.T, start func(context.Context, *mgn.StartTestRequest) (*mgn.StartTestResponse, error), ids ...string) mgn.Job {
	t.Helper()
	out, err := start(t.Context(), &mgn.StartTestRequest{SourceServerIDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	if out.Job.Status != "PENDING" || out.Job.ParticipatingServers[0].LaunchStatus != "PENDING" {
		t.Fatalf("a new job is %+v", out.Job)
	}
	w.runJobs()
	return w.job(t, out.Job.JobID)
}

func (w *world) cutover(t *testing.T, id string) mgn.Job {
	return w.launch(t, func(ctx context.Context, in *mgn.StartTestRequest) (*mgn.StartTestResponse, error) {
		out, err := w.StartCutover(ctx, &mgn.StartCutoverRequest{SourceServerIDs: in.SourceServerIDs})
		return &mgn.StartTestResponse{Job: out.Job}, err
	}, id)
}

func (w *world) job(t *testing.T, id string) mgn.Job {
	t.Helper()
	out, err := w.DescribeJobs(t.Context(), &mgn.DescribeJobsRequest{Filters: &mgn.DescribeJobsRequestFilters{JobIDs: []string{id}}})
	if err != nil || len(out.Items) != 1 {
		t.Fatal(err, len(out.Items))
	}
	return out.Items[0]
}

func (w *world) events(t *testing.T, job string) (events []mgn.JobLogEvent) {
	t.Helper()
	out, err := w.DescribeJobLogItems(t.Context(), &mgn.DescribeJobLogItemsRequest{JobID: job})
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range out.Items {
		events = append(events, item.Event)
	}
	return events
}

func is[E error](err error) bool { var e E; return errors.As(err, &e) }

// TestJob_Crash kills the service at every place where a launch touches the
// target, and lets the next process go on: one machine runs, of the point that
// was chosen first, and the log tells everything once.
func TestJob_Crash(t *testing.T) {
	for _, place := range []string{"before launch", "after launch", "before terminate", "after terminate"} {
		t.Run(place, func(t *testing.T) {
			w := newWorld(t)
			id := w.register("01")
			w.replicate(id)
			w.launch(t, w.StartTest, id) // so that there is something to clean up
			out, err := w.StartTest(t.Context(), &mgn.StartTestRequest{SourceServerIDs: []string{id}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, die := context.WithCancel(t.Context())
			defer die()
			crashed := false
			w.target.at = func(when string) {
				if when == place && !crashed {
					crashed = true
					die()
				}
			}
			job, err := w.claim(ctx, "first")
			if err != nil {
				t.Fatal(err)
			}
			if err := w.runJob(ctx, job); !errors.Is(err, context.Canceled) || !crashed {
				t.Fatalf("got %v, crashed %v", err, crashed)
			}
			w.restart()
			w.replicate(id) // a newer point must not be taken for one that was chosen already
			if other, err := w.claim(t.Context(), "second"); err != nil || other != "" {
				t.Fatalf("a leased job was given to another: %q, %v", other, err)
			}
			w.clock.advance(lease + time.Second)
			w.runJobs()
			if got := w.job(t, out.Job.JobID); got.Status != "COMPLETED" || got.ParticipatingServers[0].LaunchStatus != "LAUNCHED" {
				t.Fatalf("job is %+v", got)
			}
			if len(w.target.live) != 1 || w.target.launches != 2 {
				t.Fatalf("%d machines run and %d were started, want 1 and 2", len(w.target.live), w.target.launches)
			}
			want := []mgn.JobLogEvent{"JOB_START", "CLEANUP_START", "CLEANUP_END", "SNAPSHOT_START", "SNAPSHOT_END", "LAUNCH_START", "JOB_END"}
			if diff := cmp.Diff(want, w.events(t, out.Job.JobID)); diff != "" {
				t.Fatal(diff)
			}
			live, err := liveInstances(t.Context(), w.Service.db.reader, id)
			if err != nil || len(live) != 1 {
				t.Fatal(err, live)
			}
			if strings.HasSuffix(place, "launch") && live[0].Point != 1 {
				t.Fatalf("launched point %v, chosen was 1", live[0].Point)
			}
			if len(w.exports.names) != 2 {
				t.Fatalf("exports are %v", w.exports.names)
			}
		})
	}
}

// TestJob_Failure: the job completes, the server in it has failed, and can be tried again.
func TestJob_Failure(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.replicate(id)
	w.target.fail = errors.New("no memory left")
	job := w.launch(t, w.StartTest, id)
	if job.Status != "COMPLETED" || job.ParticipatingServers[0].LaunchStatus != "FAILED" || job.ParticipatingServers[0].LaunchedEc2InstanceID != "" {
		t.Fatalf("job is %+v", job)
	}
	want := []mgn.JobLogEvent{"JOB_START", "SNAPSHOT_START", "SNAPSHOT_END", "LAUNCH_START", "LAUNCH_FAILED", "JOB_END"}
	if diff := cmp.Diff(want, w.events(t, job.JobID)); diff != "" {
		t.Fatal(diff)
	}
	if w.describe(id).LaunchedInstance != nil || len(w.exports.names) != 0 || w.replicas.open != 0 {
		t.Fatal("a failed launch left something behind")
	}
	w.target.fail = nil
	if job := w.launch(t, w.StartTest, id); job.ParticipatingServers[0].LaunchStatus != "LAUNCHED" {
		t.Fatalf("second try: %+v", job)
	}
}

// TestJob_LeftOver: a launch that failed half way leaves no machine, and one that
// cannot be ended now is by the next launch.
func TestJob_LeftOver(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.replicate(id)
	stuck := errors.New("it does not answer")
	w.target.halfway = errors.New("no monitor")
	if job := w.launch(t, w.StartTest, id); job.ParticipatingServers[0].LaunchStatus != "FAILED" || len(w.target.live) != 0 || len(w.exports.names) != 0 {
		t.Fatalf("%+v left %v, %v", job.ParticipatingServers[0], w.target.live, w.exports.names)
	}
	w.target.cannotEnd = stuck
	w.launch(t, w.StartTest, id)
	if len(w.target.live) != 1 || len(w.exports.names) == 0 {
		t.Fatalf("%v, %v: a machine that runs has lost its disks", w.target.live, w.exports.names)
	}
	w.target.halfway, w.target.cannotEnd = nil, nil
	if job := w.launch(t, w.StartTest, id); job.ParticipatingServers[0].LaunchStatus != "LAUNCHED" || len(w.target.live) != 1 {
		t.Fatalf("the next launch: %+v, %v", job.ParticipatingServers[0], w.target.live)
	}
}

// TestFinalizeCutover_CopiedBefore: the replica goes also where the cutover
// instance had copied its disks before.
func TestFinalizeCutover_CopiedBefore(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	w.launch(t, w.StartTest, id)
	w.become(t, id, "READY_FOR_CUTOVER")
	w.cutover(t, id)
	w.target.hydrated = true
	w.must(w.observeAll(ctx))
	w.clock.advance(time.Hour)
	w.must(w.watch(ctx))
	if len(w.replicas.deleted) != 0 {
		t.Fatal("the replica is deleted before the cutover is final")
	}
	_, err := w.FinalizeCutover(ctx, &mgn.FinalizeCutoverRequest{SourceServerID: id})
	w.must(err)
	w.clock.advance(time.Minute)
	w.must(w.watch(ctx))
	if !slices.Equal(w.replicas.deleted, []string{id}) {
		t.Fatalf("deleted %v", w.replicas.deleted)
	}
}

// TestFinalizeCutover_NoInstance: a source is not given up for a machine that is not there.
func TestFinalizeCutover_NoInstance(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.replicate(id)
	w.launch(t, w.StartTest, id)
	w.become(t, id, "READY_FOR_CUTOVER")
	w.target.fail = errors.New("no")
	w.cutover(t, id)
	if _, err := w.FinalizeCutover(t.Context(), &mgn.FinalizeCutoverRequest{SourceServerID: id}); !is[*mgn.ConflictException](err) {
		t.Fatalf("got %v, want a conflict", err)
	}
	if w.describe(id).LifeCycle.State != "CUTTING_OVER" {
		t.Fatal("the state moved")
	}
}

// TestRestart: instances that outlive the service find their disks again.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.replicate(id)
	job := w.launch(t, w.StartTest, id)
	i := job.ParticipatingServers[0].LaunchedEc2InstanceID
	w.restart()
	if !w.exports.names[i+"/d0"] || !w.exports.names[i+"/d1"] {
		t.Fatalf("exports after the restart are %v", w.exports.names)
	}
	if got := w.describe(id); got.LifeCycle.State != "TESTING" || got.LaunchedInstance.Ec2InstanceID != i {
		t.Fatalf("after the restart: %+v", got)
	}
}

// TestStartTest_AllOrNothing: one server that may not take part keeps all others out, and is named.
func TestStartTest_AllOrNothing(t *testing.T) {
	w := newWorld(t)
	a, b := w.register("01"), w.register("02")
	w.replicate(a)
	_, err := w.StartTest(t.Context(), &mgn.StartTestRequest{SourceServerIDs: []string{a, b}})
	var e *mgn.ConflictException
	if !errors.As(err, &e) || len(e.Errors) != 1 || e.Errors[0].ResourceId != b {
		t.Fatalf("got %v", err)
	}
	if w.describe(a).LifeCycle.State != "READY_FOR_TEST" {
		t.Fatal("the other server moved")
	}
	if _, err := w.StartTest(t.Context(), &mgn.StartTestRequest{SourceServerIDs: []string{a}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.StartTest(t.Context(), &mgn.StartTestRequest{SourceServerIDs: []string{a}}); !is[*mgn.ConflictException](err) {
		t.Fatalf("a second job on one server: %v", err)
	}
	if _, err := w.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceRequest{SourceServerID: a}); !is[*mgn.ConflictException](err) {
		t.Fatalf("disconnect under a job: %v", err)
	}
	w.runJobs()
}

// TestStartTest_Concurrent: of many calls at once, one makes a job.
func TestStartTest_Concurrent(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.replicate(id)
	var all sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 20 {
		all.Go(func() {
			if _, err := w.StartTest(t.Context(), &mgn.StartTestRequest{SourceServerIDs: []string{id}}); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			} else if !is[*mgn.ConflictException](err) {
				t.Errorf("got %v", err)
			}
		})
	}
	all.Wait()
	if won != 1 {
		t.Fatalf("%d calls made a job", won)
	}
	w.runJobs()
}

// TestDisconnect: trust ends at once, but the agent learns that it is to go.
func TestDisconnect(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	issued, err := w.IssueClientCertificate(ctx, Caller{ARN: installer}, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: id, CertificateSigningRequest: csr(t)})
	if err != nil {
		t.Fatal(err)
	}
	cert := parseCert(t, issued.Certificate)
	name, err := ca.PeerName(cert)
	if err != nil || name.ID != id {
		t.Fatal(name, err)
	}
	peer := Peer{Name: name, Serial: ca.Serial(cert)}
	w.replicate(id)
	if _, err := w.CreateSession(ctx, peer); err != nil {
		t.Fatal(err)
	}
	if _, err := w.CreateSession(ctx, Peer{Name: name, Serial: "1234"}); !is[*mgn.AccessDeniedException](err) {
		t.Fatalf("an unknown certificate: %v", err)
	}
	if _, err := w.DisconnectFromService(ctx, &mgn.DisconnectFromServiceRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	denied := func(what string, err error) {
		t.Helper()
		if !is[*mgn.AccessDeniedException](err) {
			t.Errorf("%s after disconnect: got %v, want access denied", what, err)
		}
	}
	_, err = w.IssueClientCertificate(ctx, Caller{ARN: "session", SourceIdentity: id}, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: id, CertificateSigningRequest: csr(t)})
	denied("certificate", err)
	_, err = w.GetAgentReplicationInfo(ctx, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: id})
	denied("replication info", err)
	_, err = w.UpdateAgentSourceProperties(ctx, &formgn.UpdateAgentSourcePropertiesForMgnRequest{SourceServerID: id, SourceProperties: &formgn.SourceProperties{}})
	denied("source properties", err)
	_, err = w.UpdateAgentBacklog(ctx, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: "CONTINUOUS"})
	denied("backlog", err)
	_, err = w.SendAgentLogs(ctx, &formgn.SendAgentLogsForMgnRequest{SourceServerID: id, Lines: []formgn.LogLine{{DateTime: stamp(w.clock.Now()), Message: "x"}}})
	denied("logs", err)
	if _, err := w.NotifyAgentConnected(ctx, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id}); err == nil {
		t.Error("a session begins after disconnect")
	}
	assoc, err := w.DescribeReplicationServerAssociations(ctx, &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: replicatorID})
	if err != nil || len(assoc.Associations) != 1 || !slices.Equal(assoc.Associations[0].RevokedCertificateSerials, []string{peer.Serial}) {
		t.Fatalf("the replication server is not told to refuse the certificate: %+v, %v", assoc, err)
	}

	// An agent that was away for a day still learns it, and may say so.
	w.clock.advance(23 * time.Hour)
	if _, err := w.CreateSession(ctx, peer); err != nil {
		t.Fatalf("session to fetch the last command: %v", err)
	}
	command, err := w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
	if err != nil || command.Command != "UNINSTALL" {
		t.Fatalf("got %+v, %v", command, err)
	}
	w.clock.advance(9 * time.Minute)
	if _, err := w.UpdateAgentBacklog(ctx, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: "DISCONNECTED"}); err != nil {
		t.Fatal(err)
	}
	_, err = w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
	denied("command after the confirmation", err)
	_, err = w.CreateSession(ctx, peer)
	denied("session after the confirmation", err)
	if len(w.replicas.points[id]) == 0 {
		t.Error("the replica went with the connection")
	}

	// The machine may come back, as a new source server.
	if again := w.register("01"); again == id {
		t.Error("a disconnected source server was revived")
	}
}

// TestDisconnect_Grace: without a confirmation, the last command is told for ten minutes.
func TestDisconnect_Grace(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	if _, err := w.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		wait time.Duration
		ok   bool
	}{{48 * time.Hour, true}, {9 * time.Minute, true}, {2 * time.Minute, false}} {
		w.clock.advance(c.wait)
		if _, err := w.GetAgentCommand(t.Context(), &formgn.GetAgentCommandForMgnRequest{SourceServerID: id}); (err == nil) != c.ok {
			t.Fatalf("after %v: %v", c.wait, err)
		}
	}
}
