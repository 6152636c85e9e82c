package control

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/launch"
)

// TestEvents: what agents, replication and launches do is recorded in its order, and
// only once it is so.
func TestEvents(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	if _, err := w.StartTest(ctx, &mgn.StartTestRequest{SourceServerIDs: []string{id}}); err == nil {
		t.Fatal("a test without a point")
	}
	w.replicate(id)
	w.target.boot = launch.FirstBootSucceeded
	w.launch(t, w.StartTest, id)
	w.must(w.observeAll(ctx))
	w.become(t, id, "READY_FOR_TEST")
	if _, err := w.TerminateTargetInstances(ctx, &mgn.TerminateTargetInstancesRequest{SourceServerIDs: []string{id}}); err != nil {
		t.Fatal(err)
	}
	w.runJobs()
	no := false
	_, err := w.NotifyAgentAuthentication(ctx, &formgn.NotifyAgentAuthenticationForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, Succeeded: &no})
	w.must(err)
	yes, generation := true, w.generation(id)
	w.replicas.mu.Lock()
	w.replicas.points[id] = nil
	w.replicas.mu.Unlock()
	withdrawn := &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, Generation: generation, InitialSyncDone: &yes}
	for range 2 { // said twice, it has happened once
		_, err = w.NotifyAgentReplicationProgress(ctx, withdrawn)
		w.must(err)
	}
	_, err = w.NotifyAgentDisconnected(ctx, &formgn.NotifyAgentDisconnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, Generation: generation})
	w.must(err)
	_, err = w.DisconnectFromService(ctx, &mgn.DisconnectFromServiceRequest{SourceServerID: id})
	w.must(err)
	_, err = w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
	w.must(err)
	_, err = w.UpdateAgentBacklog(ctx, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: formgn.DataReplicationStateDisconnected})
	w.must(err)
	_, err = w.DeleteSourceServer(ctx, &mgn.DeleteSourceServerRequest{SourceServerID: id})
	w.must(err)
	w.clock.advance(replicaGrace + time.Second)
	w.must(w.deleteCondemned(ctx))
	got := slices.DeleteFunc(w.happened.of(id), func(name string) bool { return name == certificateIssued || name == certificatesRevoked })
	want := []string{agentRegistered, agentConnected, lifeCycleChanged, lifeCycleChanged, instanceLaunched, instanceBooted, lifeCycleChanged, instanceEnded,
		agentNotBelieved, pointsRetracted, agentDisconnected, lifeCycleChanged, sessionFenced, agentUninstalled, replicaDeleted}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if all := w.happened.of(id); !slices.Contains(all, certificatesRevoked) {
		t.Errorf("no revocation in %v", all)
	}
}

// generation is that of the source server's last session.
func (w *world) generation(id string) int64 {
	w.t.Helper()
	s, err := getServer(w.t.Context(), w.db.reader, id)
	w.must(err)
	return s.Generation
}
