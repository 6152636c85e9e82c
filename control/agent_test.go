package control

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
)

// TestRegisterAgent_Again: a machine stays the same source server whatever its
// disks and addresses are called, and no disk id is ever given twice.
func TestRegisterAgent_Again(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	first, err := w.RegisterAgent(ctx, Caller{ARN: installer}, machine("01"))
	if err != nil || !*first.IsNew || len(first.Disks) != 2 || first.Disks[0].DiskID != 0 || first.Disks[1].DiskID != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	again := func(change func(*formgn.RegisterAgentForMgnRequest)) *formgn.RegisterAgentForMgnResponse {
		t.Helper()
		in := machine("01")
		change(in)
		out, err := w.RegisterAgent(ctx, Caller{ARN: installer}, in)
		if err != nil || *out.IsNew || out.SourceServerID != first.SourceServerID {
			t.Fatalf("%+v, %v", out, err)
		}
		return out
	}
	ids := func(out *formgn.RegisterAgentForMgnResponse) string {
		var s []string
		for _, d := range out.Disks {
			s = append(s, fmt.Sprintf("%d=%s", d.DiskID, d.DeviceName))
		}
		return strings.Join(s, " ")
	}
	for _, c := range []struct {
		what, want string
		change     func(*formgn.RegisterAgentForMgnRequest)
	}{
		{"names changed places", "0=/dev/vdb 1=/dev/vda", func(in *formgn.RegisterAgentForMgnRequest) {
			d := in.SourceProperties.Disks
			d[0].DeviceName, d[1].DeviceName = "/dev/vdb", "/dev/vda"
		}},
		{"the second disk is away", "0=/dev/vda", func(in *formgn.RegisterAgentForMgnRequest) {
			in.ReplicatedDisks = in.SourceProperties.Disks[:1]
		}},
		{"and back", "0=/dev/vda 1=/dev/vdb", func(in *formgn.RegisterAgentForMgnRequest) {}},
		{"it is larger, so another disk", "0=/dev/vda 2=/dev/vdb", func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.Disks[1].Bytes *= 2 }},
		{"root is not asked for, but always there", "0=/dev/vda 1=/dev/vdb", func(in *formgn.RegisterAgentForMgnRequest) {
			in.ReplicatedDisks = in.SourceProperties.Disks[1:]
		}},
		{"addresses are others, while the agent is silent", "0=/dev/vda 1=/dev/vdb", func(in *formgn.RegisterAgentForMgnRequest) {
			in.SourceProperties.NetworkInterfaces[0].MacAddress = p("52:54:00:ff:ff:ff")
		}},
	} {
		if got := ids(again(c.change)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.what, got, c.want)
		}
	}
	if w.register("02") == first.SourceServerID {
		t.Error("another machine is the same source server")
	}
}

// TestAssignDisks: whatever disks are reported, each keeps the id of its content, and
// only a disk that nothing but its partition table tells from others may get another one.
func TestAssignDisks(t *testing.T) {
	s := &server{}
	for _, c := range []struct{ what, disks, want string }{
		{"first", "sda gpt:a 1, sdb gpt:b 1, sdc - 1", "0 1 2"},
		{"names changed places", "sda gpt:b 1, sdb gpt:a 1, sdc - 1", "1 0 2"},
		{"and back, and one partitioned", "sda gpt:a 1, sdb gpt:b 1, sdc mbr:c 1", "0 1 2"},
		{"a new table", "sda gpt:a 1, sdb gpt:x 1, sdc mbr:c 1", "0 1 2"},
		{"a table taken away, beside one that moved", "sda gpt:x 1, sdb - 1, sdc mbr:c 1", "1 3 2"},
		{"another size", "sda gpt:x 1, sdb - 1, sdc mbr:c 2", "1 3 4"},
		{"hardware says who it is: another one", "sda gpt:x 1, sdb wwn:9 1, sdc mbr:c 2", "1 5 4"},
		{"one away", "sda gpt:x 1, sdc mbr:c 2", "1 4"},
		{"another in its place", "sda gpt:x 1, sdb wwn:8 1, sdc mbr:c 2", "1 6 4"},
		{"and the old one again", "sda gpt:x 1, sdb wwn:9 1, sdc mbr:c 2", "1 5 4"},
	} {
		var reported []formgn.Disk
		for text := range strings.SplitSeq(c.disks, ", ") {
			w := strings.Fields(text)
			d := formgn.Disk{DeviceName: w[0], Serial: p(strings.TrimPrefix(w[1], "-"))}
			fmt.Sscan(w[2], &d.Bytes)
			reported = append(reported, d)
		}
		if err := s.assignDisks(reported); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range reported {
			for _, k := range s.active() {
				if k.Name == d.DeviceName && k.Serial == *d.Serial && k.Size == d.Bytes {
					got = append(got, fmt.Sprint(int(k.ID)))
				}
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %v, want %s", c.what, got, c.want)
		}
	}
}

// TestRegisterAgent_Clone: disks of a clone never get into the replica of the
// machine that it was copied from.
func TestRegisterAgent_Clone(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.replicate(id)
	in := machine("01")
	in.SourceProperties.NetworkInterfaces[0].MacAddress = p("52:54:00:ff:ff:ff")
	if _, err := w.RegisterAgent(t.Context(), Caller{ARN: installer}, in); !is[*mgn.ConflictException](err) {
		t.Fatalf("a clone: got %v, want a conflict", err)
	}
	in.UserProvidedID = p("clone")
	out, err := w.RegisterAgent(t.Context(), Caller{ARN: installer}, in)
	if err != nil || out.SourceServerID == id {
		t.Fatalf("a clone with a name of its own: %+v, %v", out, err)
	}
	other := machine("03")
	other.UserProvidedID = p("clone")
	if _, err := w.RegisterAgent(t.Context(), Caller{ARN: installer}, other); !is[*mgn.ConflictException](err) {
		t.Fatalf("a name that is taken: %v", err)
	}
}

func TestRegisterAgent_Invalid(t *testing.T) {
	w := newWorld(t)
	for what, change := range map[string]func(*formgn.RegisterAgentForMgnRequest){
		"no identity":     func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.MachineID = nil },
		"no boot disk":    func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.Disks[0].IsBootDisk = nil },
		"two boot disks":  func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.Disks[1].IsBootDisk = p(true) },
		"names collide":   func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.Disks[1].DeviceName = "/dev/vda" },
		"an empty disk":   func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.Disks[1].Bytes = 0 },
		"half a sector":   func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.Disks[1].Bytes = 1000 },
		"too many to run": func(in *formgn.RegisterAgentForMgnRequest) { in.SourceProperties.Disks = manyDisks() },
	} {
		in := machine("01")
		change(in)
		if _, err := w.RegisterAgent(t.Context(), Caller{ARN: installer}, in); !is[*mgn.ValidationException](err) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func manyDisks() (disks []formgn.Disk) {
	for i := range 25 {
		disks = append(disks, formgn.Disk{DeviceName: fmt.Sprint("/dev/", i), Bytes: 512, IsBootDisk: p(i == 0)})
	}
	return disks
}

// TestIssueClientCertificate: who gets a certificate of which server, and what
// an installation does to those from before it.
func TestIssueClientCertificate(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, b := w.register("01"), w.register("02")
	issue := func(caller Caller, id string) error {
		_, err := w.IssueClientCertificate(ctx, caller, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: id, CertificateSigningRequest: csr(t)})
		return err
	}
	for _, c := range []struct {
		what   string
		caller Caller
		id     string
		ok     bool
	}{
		{"its installer", Caller{ARN: installer}, a, true},
		{"another principal", Caller{ARN: "arn:aws:iam::123456789012:user/other"}, a, false},
		{"nobody", Caller{}, a, false},
		{"its agent", Caller{ARN: "session", SourceIdentity: a}, a, true},
		{"another agent", Caller{ARN: installer, SourceIdentity: b}, a, false},
	} {
		if err := issue(c.caller, c.id); (err == nil) != c.ok || err != nil && !is[*mgn.AccessDeniedException](err) {
			t.Errorf("%s: got %v, allowed should be %v", c.what, err, c.ok)
		}
	}
	w.clock.advance(registrationGrace)
	if issue(Caller{ARN: installer}, a) == nil {
		t.Error("the installer gets a certificate long after the registration")
	}
	if revoked, _ := revokedSerials(ctx, w.Service.db.reader, a, w.clock.Now()); len(revoked) != 0 {
		t.Fatalf("revoked: %v", revoked)
	}
	w.register("01")
	if err := issue(Caller{ARN: installer}, a); err != nil {
		t.Fatal(err)
	}
	if revoked, _ := revokedSerials(ctx, w.Service.db.reader, a, w.clock.Now()); len(revoked) != 2 {
		t.Fatalf("after installing again %d certificates are revoked, want the 2 from before", len(revoked))
	}
	_, err := w.IssueClientCertificate(ctx, Caller{ARN: installer}, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: a, CertificateSigningRequest: "nonsense"})
	if !is[*mgn.ValidationException](err) {
		t.Errorf("nonsense: %v", err)
	}
}

// TestSilence: what is not heard of stalls, says why, and recovers by itself.
func TestSilence(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	state := func(want mgn.DataReplicationState, why mgn.DataReplicationErrorString) {
		t.Helper()
		if err := w.watch(ctx); err != nil {
			t.Fatal(err)
		}
		got := w.describe(id).DataReplicationInfo
		if got.DataReplicationState != want || (got.DataReplicationError == nil) != (why == "") || why != "" && got.DataReplicationError.Error != why {
			t.Fatalf("got %s, %+v; want %s, %s", got.DataReplicationState, got.DataReplicationError, want, why)
		}
	}
	poll := func() {
		t.Helper()
		if _, err := w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id}); err != nil {
			t.Fatal(err)
		}
	}
	poll()
	w.clock.advance(89 * time.Second)
	state("INITIATING", "")
	w.clock.advance(2 * time.Second)
	state("STALLED", "AGENT_NOT_SEEN")
	poll()
	state("STALLED", "FAILED_TO_AUTHENTICATE_WITH_SERVICE") // no replication server has come for 90 s
	w.replicate(id)
	state("CONTINUOUS", "")

	w.clock.advance(2 * time.Minute)
	state("STALLED", "AGENT_NOT_SEEN")
	w.restart()
	state("STALLED", "AGENT_NOT_SEEN") // it is written down
	poll()
	state("CONTINUOUS", "")

	// A service that was away itself does not blame the agents for it.
	w.clock.advance(time.Hour)
	w.restart()
	state("CONTINUOUS", "")

	s, err := getServer(ctx, w.Service.db.reader, id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.NotifyAgentDisconnected(ctx, &formgn.NotifyAgentDisconnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, Generation: s.Generation, RawError: p("reset")}); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(60 * time.Second)
	poll()
	w.clock.advance(60 * time.Second)
	state("STALLED", "UNSTABLE_NETWORK")
	if _, err := w.RetryDataReplication(ctx, &mgn.RetryDataReplicationRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	out, err := w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
	if err != nil || !*out.Retry {
		t.Fatalf("the agent is not told to try again: %+v, %v", out, err)
	}
	w.replicate(id)
	state("CONTINUOUS", "")

	// The staging disk is full: the replication server says so, and takes it back.
	if _, err := w.UpdateAgentReplicationProcessState(ctx, &formgn.UpdateAgentReplicationProcessStateForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, RawError: p("no space")}); err != nil {
		t.Fatal(err)
	}
	state("STALLED", "SNAPSHOTS_FAILURE")
	w.replicate(id)
	state("CONTINUOUS", "")
}

// TestFirstCopy: data that comes ends initiation at once, however long the first
// epoch takes, and is seen to grow.
func TestFirstCopy(t *testing.T) {
	ctx := t.Context()
	for name, flows := range map[string]func(w *world, id string, generation int64) error{
		"the replication server receives": func(w *world, id string, generation int64) error {
			_, err := w.NotifyAgentReplicationProgress(ctx, &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: replicatorID,
				SourceServerID: id, Generation: generation, ReceivedBytes: p(int64(4096))})
			return err
		},
		"the agent compares": func(w *world, id string, _ int64) error { return w.reportCopy(id, 1<<20) },
	} {
		w := newWorld(t)
		id := w.register("01")
		w.pair(id)
		if err := w.reportCopy(id, 1<<20); err != nil {
			t.Fatal(err)
		}
		if got := w.describe(id).DataReplicationInfo.DataReplicationState; got != "INITIATING" {
			t.Fatalf("%s: the agent is believed without a connection: %s", name, got)
		}
		connected, err := w.NotifyAgentConnected(ctx, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id})
		if err != nil {
			t.Fatal(err)
		}
		if err := flows(w, id, connected.Generation); err != nil {
			t.Fatal(err)
		}
		for i := range int64(3) { // minutes without a commit
			w.clock.advance(time.Minute)
			if err := errors.Join(w.reportCopy(id, (i+2)<<20), w.watch(ctx)); err != nil {
				t.Fatal(err)
			}
			got := w.describe(id)
			if d := got.DataReplicationInfo; d.DataReplicationState != "INITIAL_SYNC" || *d.ReplicatedDisks[0].ReplicatedStorageBytes != (i+2)<<20 || d.EtaDateTime == "" {
				t.Fatalf("%s: after %d minutes: %+v", name, i+1, d)
			}
			if got.LifeCycle.State != "NOT_READY" || got.DataReplicationInfo.LagDuration != "" {
				t.Fatalf("%s: launchable before there is a point: %+v", name, got.LifeCycle)
			}
		}
		w.replicate(id)
		if got := w.describe(id); got.DataReplicationInfo.DataReplicationState != "CONTINUOUS" || got.LifeCycle.State != "READY_FOR_TEST" {
			t.Fatalf("%s: after the first point: %s, %s", name, got.DataReplicationInfo.DataReplicationState, got.LifeCycle.State)
		}
	}
}

// reportCopy is an agent's report of its first copy.
func (w *world) reportCopy(id string, done int64) error {
	_, err := w.UpdateAgentBacklog(w.t.Context(), &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: "INITIAL_SYNC", EtaSeconds: p(int64(60)),
		Disks: []formgn.DiskProgress{{DiskID: 0, TotalStorageBytes: 8 << 20, ReplicatedStorageBytes: done}}})
	return err
}

// TestFencing: generations grow across restarts, and what an older session says
// does not count.
func TestFencing(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	var last int64
	for range 3 {
		out, err := w.NotifyAgentConnected(ctx, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id})
		if err != nil || out.Generation <= last {
			t.Fatalf("generation %d after %d, %v", out.Generation, last, err)
		}
		last = out.Generation
		w.restart()
	}
	_, err := w.NotifyAgentReplicationProgress(ctx, &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, Generation: last - 1})
	if !is[*mgn.ConflictException](err) {
		t.Fatalf("progress of an older session: %v", err)
	}
	_, err = w.NotifyAgentConnected(ctx, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: "i-00000000000000002", SourceServerID: id})
	if !is[*mgn.ResourceNotFoundException](err) {
		t.Fatalf("another replication server: %v", err)
	}
}

// TestFirstPointAtOnce: whoever sees that a server is ready sees the point too,
// also when the service is killed the moment that it is.
func TestFirstPointAtOnce(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	looks := 0
	w.happened.during = func(e Event) {
		if e.Name != lifeCycleChanged {
			return
		}
		looks++
		db, err := OpenDatabase(t.Context(), w.path) // what another process would find
		w.must(err)
		defer db.Close()
		g, err := loadGauge(t.Context(), db.reader)
		w.must(err)
		if info := w.describe(id).DataReplicationInfo; info.LastSnapshotDateTime == "" || g.get(id).PointAt != info.LastSnapshotDateTime {
			t.Errorf("the server is ready; its point is %q, and %q is durable", info.LastSnapshotDateTime, g.get(id).PointAt)
		}
	}
	w.replicate(id)
	if looks != 1 {
		t.Errorf("the life cycle went on %d times, not once", looks)
	}
}

// TestRescan: an agent that was started again copies everything anew, which the
// state must not call CONTINUOUS, nor the first copy; what was there stays, and
// what was withdrawn is gone.
func TestRescan(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	w.restart() // at once: nothing was written down by the watch
	look := func(state mgn.DataReplicationState, point string) *mgn.DataReplicationInfo {
		t.Helper()
		server := w.describe(id)
		info := server.DataReplicationInfo
		if info.DataReplicationState != state || info.LastSnapshotDateTime != point || server.LifeCycle.State != mgn.LifeCycleStateReadyForTest {
			t.Fatalf("got %s, point %q, %s", info.DataReplicationState, info.LastSnapshotDateTime, server.LifeCycle.State)
		}
		return info
	}
	first := stamp(w.clock.Now())
	look(mgn.DataReplicationStateContinuous, first)
	for _, state := range []formgn.DataReplicationState{"STALLED", "CONTINUOUS"} { // an agent that goes on where it was: no session yet, then one
		if _, err := w.UpdateAgentBacklog(ctx, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: state, Disks: []formgn.DiskProgress{}}); err != nil {
			t.Fatal(err)
		}
		look(mgn.DataReplicationStateContinuous, first)
	}
	copies := func() {
		t.Helper()
		if _, err := w.UpdateAgentBacklog(ctx, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: formgn.DataReplicationStateInitialSync, Disks: []formgn.DiskProgress{}}); err != nil {
			t.Fatal(err)
		}
	}
	copies() // it crossed the first point on its way
	look(mgn.DataReplicationStateContinuous, first)
	w.clock.advance(time.Minute)
	copies()
	if info := look(mgn.DataReplicationStateRescan, first); info.LagDuration != duration(time.Minute) {
		t.Errorf("lag is %s", info.LagDuration)
	}
	w.replicate(id)
	look(mgn.DataReplicationStateContinuous, stamp(w.clock.Now()))
	w.replicas.mu.Lock()
	w.replicas.points[id] = w.replicas.points[id][:1]
	w.replicas.mu.Unlock()
	if _, err := w.NotifyAgentReplicationProgress(ctx, &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id,
		Generation: 2, InitialSyncDone: p(true), Consistent: p(false)}); err != nil {
		t.Fatal(err)
	}
	if info := look(mgn.DataReplicationStateContinuous, first); info.LagDuration != duration(time.Minute) {
		t.Errorf("after points were withdrawn lag is %s", info.LagDuration)
	}
}

// TestReplicationControl: what users say reaches the agent as a command.
func TestReplicationControl(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	seen := map[string]bool{}
	command := func(want formgn.AgentCommand) {
		t.Helper()
		out, err := w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
		if err != nil || out.Command != want || seen[out.CommandID] {
			t.Fatalf("got %+v, %v; want %s under a new id", out, err, want)
		}
		seen[out.CommandID] = true
	}
	command("START")
	if _, err := w.PauseReplication(ctx, &mgn.PauseReplicationRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	command("PAUSE")
	if got := w.describe(id).DataReplicationInfo; got.DataReplicationState != "PAUSED" || got.LagDuration == "" {
		t.Fatalf("paused: %+v", got)
	}
	if _, err := w.NotifyAgentConnected(ctx, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id}); err == nil {
		t.Fatal("a session begins while paused")
	}
	if _, err := w.ResumeReplication(ctx, &mgn.ResumeReplicationRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	command("START")
	w.replicate(id)
	job := w.launch(t, w.StartTest, id)
	if _, err := w.StopReplication(ctx, &mgn.StopReplicationRequest{SourceServerID: id}); !is[*mgn.ConflictException](err) {
		t.Fatalf("stop under a test instance: %v", err)
	}
	w.become(t, id, "READY_FOR_TEST")
	if _, err := w.TerminateTargetInstances(ctx, &mgn.TerminateTargetInstancesRequest{SourceServerIDs: []string{id}}); err != nil {
		t.Fatal(err)
	}
	w.runJobs()
	if len(w.target.live) != 0 || w.describe(id).LaunchedInstance != nil || job.JobID == "" {
		t.Fatal("not terminated")
	}
	if _, err := w.StopReplication(ctx, &mgn.StopReplicationRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	command("STOP")
	if got := w.describe(id); got.LifeCycle.State != "STOPPED" || got.DataReplicationInfo.LagDuration != "" {
		t.Fatalf("stopped: %+v", got.DataReplicationInfo)
	}
	if _, err := w.StartReplication(ctx, &mgn.StartReplicationRequest{SourceServerID: id}); !is[*mgn.ConflictException](err) {
		t.Fatalf("start before the old replica is deleted: %v", err)
	}
	w.clock.advance(time.Minute)
	if err := w.watch(ctx); err != nil || !slices.Equal(w.replicas.deleted, []string{id}) {
		t.Fatalf("deleted %v, %v", w.replicas.deleted, err)
	}
	if _, err := w.StartReplication(ctx, &mgn.StartReplicationRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	command("START")
	w.replicate(id)
	if got := w.describe(id).LifeCycle.State; got != "READY_FOR_TEST" {
		t.Fatalf("replicated anew: %s", got)
	}
}

// TestDescribe_Pages goes through long lists page by page, and tries tokens that
// were not given out for them.
func TestDescribe_Pages(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for i := range 7 {
		w.register(fmt.Sprintf("%02d", i))
	}
	seen := map[string]bool{}
	var token *string
	for {
		out, err := w.DescribeSourceServers(ctx, &mgn.DescribeSourceServersRequest{MaxResults: p(int32(3)), NextToken: token})
		if err != nil || len(out.Items) > 3 {
			t.Fatal(err, len(out.Items))
		}
		for _, s := range out.Items {
			if seen[s.SourceServerID] {
				t.Fatal("a server is listed twice")
			}
			seen[s.SourceServerID] = true
		}
		if out.NextToken == "" {
			break
		}
		token = &out.NextToken
		w.restart() // in the middle of a list
	}
	if len(seen) != 7 {
		t.Fatalf("%d servers were listed, there are 7", len(seen))
	}
	bad := func(what string, in *mgn.DescribeSourceServersRequest) {
		t.Helper()
		if _, err := w.DescribeSourceServers(ctx, in); !is[*mgn.ValidationException](err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	bad("nonsense", &mgn.DescribeSourceServersRequest{NextToken: p("nonsense")})
	bad("changed", &mgn.DescribeSourceServersRequest{NextToken: p((*token)[1:])})
	bad("of other filters", &mgn.DescribeSourceServersRequest{NextToken: token, Filters: &mgn.DescribeSourceServersRequestFilters{IsArchived: p(true)}})
	if _, err := w.DescribeJobs(ctx, &mgn.DescribeJobsRequest{NextToken: token}); !is[*mgn.ValidationException](err) {
		t.Errorf("of another operation: %v", err)
	}
	out, err := w.DescribeSourceServers(ctx, &mgn.DescribeSourceServersRequest{Filters: &mgn.DescribeSourceServersRequestFilters{LifeCycleStates: []mgn.LifeCycleState{"TESTING"}}})
	if err != nil || len(out.Items) != 0 {
		t.Fatalf("in TESTING: %v, %v", out, err)
	}
}

// TestTemplates: new servers take theirs over; an update replaces what it names.
func TestTemplates(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	rct, err := w.CreateReplicationConfigurationTemplate(ctx, &mgn.CreateReplicationConfigurationTemplateRequest{BandwidthThrottling: 100, DataPlaneRouting: "PRIVATE_IP",
		DefaultLargeStagingDiskType: "GP3", EbsEncryption: "DEFAULT", ReplicationServerInstanceType: "m5.large", StagingAreaSubnetId: "subnet-12345678",
		ReplicationServersSecurityGroupsIDs: []string{}, StagingAreaTags: mgn.TagsMap{"x": "y"}, Tags: mgn.TagsMap{"team": "a"}})
	if err != nil || *rct.BandwidthThrottling != 100 || rct.Tags["team"] != "a" {
		t.Fatalf("%+v, %v", rct, err)
	}
	if _, err := w.CreateLaunchConfigurationTemplate(ctx, &mgn.CreateLaunchConfigurationTemplateRequest{BootMode: "LEGACY_BIOS"}); err != nil {
		t.Fatal(err)
	}
	id := w.register("01")
	config, err := w.GetReplicationConfiguration(ctx, &mgn.GetReplicationConfigurationRequest{SourceServerID: id})
	if err != nil || *config.BandwidthThrottling != 100 || config.StagingAreaSubnetId != "subnet-12345678" || len(config.ReplicatedDisks) != 2 || config.SourceServerID != id {
		t.Fatalf("%+v, %v", config, err)
	}
	lc, err := w.GetLaunchConfiguration(ctx, &mgn.GetLaunchConfigurationRequest{SourceServerID: id})
	if err != nil || lc.BootMode != "LEGACY_BIOS" || lc.LaunchDisposition != "STARTED" {
		t.Fatalf("%+v, %v", lc, err)
	}
	if _, err := w.UpdateReplicationConfiguration(ctx, &mgn.UpdateReplicationConfigurationRequest{SourceServerID: id, BandwidthThrottling: p(int64(7))}); err != nil {
		t.Fatal(err)
	}
	out, err := w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
	if err != nil || *out.BandwidthThrottling != 7 {
		t.Fatalf("throttling reaches the agent as %v, %v", out.BandwidthThrottling, err)
	}
	config, _ = w.GetReplicationConfiguration(ctx, &mgn.GetReplicationConfigurationRequest{SourceServerID: id})
	if config.ReplicationServerInstanceType != "m5.large" {
		t.Fatal("an update of one member changed another")
	}
	if _, err := w.UpdateLaunchConfiguration(ctx, &mgn.UpdateLaunchConfigurationRequest{SourceServerID: id, LaunchDisposition: "STOPPED"}); !is[*mgn.ValidationException](err) {
		t.Fatalf("what is not built is taken: %v", err)
	}
	if _, err := w.DeleteReplicationConfigurationTemplate(ctx, &mgn.DeleteReplicationConfigurationTemplateRequest{ReplicationConfigurationTemplateID: rct.ReplicationConfigurationTemplateID}); !is[*mgn.ConflictException](err) {
		t.Fatalf("delete a template while there are servers: %v", err)
	}
}

// TestTags: on everything that has an ARN, at most fifty, gone with it.
func TestTags(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	arn := w.arn("source-server", id)
	many := mgn.TagsMap{}
	for i := range 50 {
		many[fmt.Sprint(i)] = "x"
	}
	if _, err := w.TagResource(ctx, &mgn.TagResourceRequest{ResourceArn: arn, Tags: many}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.TagResource(ctx, &mgn.TagResourceRequest{ResourceArn: arn, Tags: mgn.TagsMap{"one more": ""}}); !is[*mgn.ValidationException](err) {
		t.Fatalf("the 51st tag: %v", err)
	}
	if _, err := w.UntagResource(ctx, &mgn.UntagResourceRequest{ResourceArn: arn, TagKeys: mgn.TagKeys{"0", "1"}}); err != nil {
		t.Fatal(err)
	}
	if got := w.describe(id).Tags; len(got) != 48 {
		t.Fatalf("%d tags, want 48", len(got))
	}
	for what, arn := range map[string]string{"unknown id": w.arn("source-server", "s-00000000000000000"), "another account": strings.Replace(arn, "123456789012", "210987654321", 1),
		"another service": strings.Replace(arn, ":mgn:", ":drs:", 1), "unknown kind": w.arn("thing", id)} {
		if _, err := w.ListTagsForResource(ctx, &mgn.ListTagsForResourceRequest{ResourceArn: arn}); !is[*mgn.ResourceNotFoundException](err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestDatabase_Newer: a database of a later version is left alone.
func TestDatabase_Newer(t *testing.T) {
	path := t.TempDir() + "/db"
	db, err := OpenDatabase(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.writer.Exec(`INSERT INTO schema_version (version) VALUES (1000)`); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDatabase(t.Context(), path); !errors.Is(err, ErrNewerDatabase) {
		t.Fatalf("got %v", err)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "PT0S", -time.Second: "PT0S", 1500 * time.Millisecond: "PT1.5S", 26*time.Hour + 3*time.Minute: "P1DT2H3M",
		24 * time.Hour: "P1D", 10 * time.Second: "PT10S", 10 * time.Millisecond: "PT0.01S"} {
		if got := duration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}
