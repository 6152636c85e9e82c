package control

import (
	"errors"
	"slices"
	"testing"
	"time"

	"rehost/awsapi/mgn"
)

// TestTransitions walks every pair of a state and a call against a table written
// from MGN's documentation, not from ours.
func TestTransitions(t *testing.T) {
	type end struct {
		state mgn.LifeCycleState
		flow  mgn.DataReplicationState
	}
	const same = ""
	allowed := map[call]map[mgn.LifeCycleState]end{
		startTest:           {"READY_FOR_TEST": {"TESTING", same}, "TESTING": {"TESTING", same}},
		startCutover:        {"READY_FOR_CUTOVER": {"CUTTING_OVER", same}, "CUTTING_OVER": {"CUTTING_OVER", same}},
		finalizeCutover:     {"CUTTING_OVER": {"CUTOVER", "DISCONNECTED"}},
		markReadyForTest:    {"TESTING": {"READY_FOR_TEST", same}, "READY_FOR_CUTOVER": {"READY_FOR_TEST", same}},
		markReadyForCutover: {"TESTING": {"READY_FOR_CUTOVER", same}, "CUTTING_OVER": {"READY_FOR_CUTOVER", same}},
		archive:             {"DISCONNECTED": {same, same}, "CUTOVER": {same, same}},
		deleteServer:        {"DISCONNECTED": {same, same}, "CUTOVER": {same, same}},
		disconnect:          {}, terminate: {}, stopReplication: {}, pauseReplication: {}, configure: {},
		startReplication:  {}, // of these the flow decides, below
		resumeReplication: {}, retryReplication: {},
	}
	all := mgn.LifeCycleState("").Values()
	for _, s := range all {
		if s != "DISCONNECTED" {
			allowed[disconnect][s] = end{"DISCONNECTED", "DISCONNECTED"}
		}
		if !slices.Contains([]mgn.LifeCycleState{"TESTING", "CUTTING_OVER", "CUTOVER"}, s) {
			allowed[terminate][s] = end{}
		}
		if slices.Contains([]mgn.LifeCycleState{"NOT_READY", "READY_FOR_TEST", "TESTING", "READY_FOR_CUTOVER", "CUTTING_OVER"}, s) {
			allowed[stopReplication][s], allowed[pauseReplication][s], allowed[configure][s] = end{"STOPPED", "STOPPED"}, end{same, "PAUSED"}, end{}
		}
	}
	allowed[configure]["STOPPED"] = end{}
	if len(allowed) != len(transitions) {
		t.Fatalf("%d calls are tested, there are %d", len(allowed), len(transitions))
	}
	for what, ends := range allowed {
		for _, state := range all {
			s := server{ID: "s-1", LifeCycle: mgn.LifeCycle{State: state}, Replication: replication{Flow: "CONTINUOUS", FirstPoint: "2026-01-01T00:00:00Z"}}
			want, ok := ends[state]
			if reason := s.refuses(what); (reason == "") != ok {
				t.Errorf("%s in %s: got %q, allowed should be %v", what, state, reason, ok)
				continue
			}
			if !ok {
				continue
			}
			s.move(what)
			if want.state == same {
				want.state = state
			}
			if want.flow == same {
				want.flow = "CONTINUOUS"
			}
			if got := (end{s.LifeCycle.State, s.Replication.Flow}); got != want {
				t.Errorf("%s in %s: got %v, want %v", what, state, got, want)
			}
		}
	}
}

// TestTransitions_Replication walks every pair of a replication state and a call
// that depends on it.
func TestTransitions_Replication(t *testing.T) {
	for what, from := range map[call][]mgn.DataReplicationState{
		startReplication:  {"STOPPED"},
		stopReplication:   {"INITIATING", "INITIAL_SYNC", "BACKLOG", "CREATING_SNAPSHOT", "CONTINUOUS", "PAUSED", "RESCAN", "STALLED"},
		pauseReplication:  {"INITIATING", "INITIAL_SYNC", "BACKLOG", "CREATING_SNAPSHOT", "CONTINUOUS", "RESCAN", "STALLED"},
		resumeReplication: {"PAUSED"},
		retryReplication:  {"STALLED"},
	} {
		for _, state := range mgn.DataReplicationState("").Values() {
			s := server{LifeCycle: mgn.LifeCycle{State: "READY_FOR_TEST"}, Replication: replication{Flow: state}}
			if what == startReplication {
				s.LifeCycle.State = "STOPPED"
			}
			if state == "STALLED" {
				s.Replication.Flow = "CONTINUOUS"
				s.Replication.blame(byAgent, "NOT_CONVERGING", "", time.Time{})
			}
			if reason := s.refuses(what); (reason == "") != slices.Contains(from, state) {
				t.Errorf("%s while %s: got %q, allowed should be %v", what, state, reason, slices.Contains(from, state))
			}
		}
	}
}

// TestTransitions_Launchable: without a point nothing is launched, whatever the state.
func TestTransitions_Launchable(t *testing.T) {
	for _, what := range []call{startTest, startCutover, markReadyForTest, markReadyForCutover} {
		for _, state := range transitions[what].from {
			s := server{LifeCycle: mgn.LifeCycle{State: state}, Replication: replication{Flow: "CONTINUOUS"}}
			if s.refuses(what) == "" {
				t.Errorf("%s in %s without a recovery point is allowed", what, state)
			}
		}
	}
}

// TestErrors_Shapes: each operation answers a bad state and an unknown id in
// error shapes that the model gives it.
func TestErrors_Shapes(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	ctx := t.Context()
	unknown := "s-00000000000000000"
	calls := map[string]func(id string) error{
		"StartTest": func(id string) error {
			_, err := w.StartTest(ctx, &mgn.StartTestRequest{SourceServerIDs: []string{id}})
			return err
		},
		"StartCutover": func(id string) error {
			_, err := w.StartCutover(ctx, &mgn.StartCutoverRequest{SourceServerIDs: []string{id}})
			return err
		},
		"TerminateTargetInstances": func(id string) error {
			_, err := w.TerminateTargetInstances(ctx, &mgn.TerminateTargetInstancesRequest{SourceServerIDs: []string{id}})
			return err
		},
		"RetryDataReplication": func(id string) error {
			_, err := w.RetryDataReplication(ctx, &mgn.RetryDataReplicationRequest{SourceServerID: id})
			return err
		},
		"MarkAsArchived": func(id string) error {
			_, err := w.MarkAsArchived(ctx, &mgn.MarkAsArchivedRequest{SourceServerID: id})
			return err
		},
		"DeleteSourceServer": func(id string) error {
			_, err := w.DeleteSourceServer(ctx, &mgn.DeleteSourceServerRequest{SourceServerID: id})
			return err
		},
		"FinalizeCutover": func(id string) error {
			_, err := w.FinalizeCutover(ctx, &mgn.FinalizeCutoverRequest{SourceServerID: id})
			return err
		},
		"ResumeReplication": func(id string) error {
			_, err := w.ResumeReplication(ctx, &mgn.ResumeReplicationRequest{SourceServerID: id})
			return err
		},
		"StartReplication": func(id string) error {
			_, err := w.StartReplication(ctx, &mgn.StartReplicationRequest{SourceServerID: id})
			return err
		},
		"ChangeServerLifeCycleState": func(id string) error {
			_, err := w.ChangeServerLifeCycleState(ctx, &mgn.ChangeServerLifeCycleStateRequest{SourceServerID: id,
				LifeCycle: &mgn.ChangeServerLifeCycleStateSourceServerLifecycle{State: "READY_FOR_CUTOVER"}})
			return err
		},
		"DisconnectFromService": func(id string) error {
			_, err := w.DisconnectFromService(ctx, &mgn.DisconnectFromServiceRequest{SourceServerID: id})
			return err
		},
	}
	for _, op := range mgn.Service.Operations {
		do := calls[op.Name]
		if do == nil {
			continue
		}
		delete(calls, op.Name)
		for _, id := range []string{unknown, id} {
			if id != unknown && (op.Name == "DisconnectFromService" || op.Name == "TerminateTargetInstances") {
				continue // allowed
			}
			var e interface{ ErrorName() string }
			if err := do(id); !errors.As(err, &e) {
				t.Errorf("%s of %s: got %v, want an error of the model", op.Name, id, err)
			} else if !op.Models(e.ErrorName()) {
				t.Errorf("%s of %s: got %s, the model allows %v", op.Name, id, e.ErrorName(), op.Errors)
			}
		}
	}
	if len(calls) > 0 {
		t.Errorf("not operations of the model: %v", calls)
	}
}

// TestFlow: what an agent says it is doing is shown as far as it can be true.
func TestFlow(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		reported   mgn.DataReplicationState
		firstPoint time.Duration // ago; 0: there is none
		want       mgn.DataReplicationState
	}{
		{"INITIAL_SYNC", 0, "INITIAL_SYNC"},
		{"INITIAL_SYNC", time.Hour, "RESCAN"},
		{"RESCAN", time.Hour, "RESCAN"},
		{"RESCAN", 0, "INITIAL_SYNC"}, // of a first copy that was interrupted
		{"CONTINUOUS", 0, "CREATING_SNAPSHOT"},
		{"CONTINUOUS", time.Hour, "CONTINUOUS"},
	} {
		s := &server{}
		if s.Replication.Flow = mgn.DataReplicationStateBacklog; c.firstPoint > 0 {
			s.Replication.FirstPoint = stamp(now.Add(-c.firstPoint))
		}
		if s.flow(c.reported, now); s.Replication.Flow != c.want {
			t.Errorf("%s, first point %v ago: got %s, want %s", c.reported, c.firstPoint, s.Replication.Flow, c.want)
		}
	}
}
