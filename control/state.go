package control

import (
	"fmt"
	"slices"
	"strings"

	"rehost/awsapi/mgn"
)

// This file is the one table of what may be asked of a source server in which
// state, and what becomes of the state. Two machines run side by side:
//
// The life cycle (mgn.LifeCycleState):
//
//	register ──> NOT_READY ──first consistent point──> READY_FOR_TEST <──────revert──────┐
//	    │            ↑                                   │        ↑                      │
//	    │     StartReplication                       StartTest  revert                   │
//	    │            │                                   ↓        │                      │
//	    └────────> STOPPED <──StopReplication──(any)   TESTING ───┴──finalize──> READY_FOR_CUTOVER
//	 (no replication)                                                               │         ↑
//	                                                                          StartCutover  revert
//	    DISCONNECTED <──DisconnectFromService──(any other)                          ↓         │
//	                                                      CUTOVER <──finalize── CUTTING_OVER ─┘
//
// Data replication (mgn.DataReplicationState):
//
//	STOPPED ──start──> INITIATING ──first bytes──> INITIAL_SYNC | RESCAN ──> BACKLOG ──> CREATING_SNAPSHOT ──> CONTINUOUS
//	   ↑                 ↑   ↑ ↑                         (as the agent reports, in any order among themselves)
//	 stop (any)       resume │ └── retry ── STALLED <──error── (any of them, and back by itself once the error is gone)
//	                     │   └── a session that begins again
//	                   PAUSED <──pause── (any of them)                   DISCONNECTED <── disconnect, finalize cutover

// A call is what users ask of a source server.
type call string

const (
	startTest           call = "StartTest"
	startCutover        call = "StartCutover"
	finalizeCutover     call = "FinalizeCutover"
	markReadyForTest    call = "ChangeServerLifeCycleState to READY_FOR_TEST"
	markReadyForCutover call = "ChangeServerLifeCycleState to READY_FOR_CUTOVER"
	disconnect          call = "DisconnectFromService"
	archive             call = "MarkAsArchived"
	deleteServer        call = "DeleteSourceServer"
	terminate           call = "TerminateTargetInstances"
	startReplication    call = "StartReplication"
	stopReplication     call = "StopReplication"
	pauseReplication    call = "PauseReplication"
	resumeReplication   call = "ResumeReplication"
	retryReplication    call = "RetryDataReplication"
	configure           call = "UpdateReplicationConfiguration"
)

// A transition says from which states a call is allowed and where it leads; an
// empty target leaves the state as it is.
type transition struct {
	from        []mgn.LifeCycleState
	to          mgn.LifeCycleState
	flowing     []mgn.DataReplicationState // nil: whatever replication does
	replication mgn.DataReplicationState
	launchable  bool // there is a recovery point to launch from
}

var (
	notDisconnected = []mgn.LifeCycleState{"STOPPED", "NOT_READY", "READY_FOR_TEST", "TESTING", "READY_FOR_CUTOVER", "CUTTING_OVER", "CUTOVER", "DISCOVERED", "PENDING_INSTALLATION"}
	finished        = []mgn.LifeCycleState{"DISCONNECTED", "CUTOVER"}
	replicating     = []mgn.LifeCycleState{"NOT_READY", "READY_FOR_TEST", "TESTING", "READY_FOR_CUTOVER", "CUTTING_OVER"}
	flowing         = []mgn.DataReplicationState{"INITIATING", "INITIAL_SYNC", "BACKLOG", "CREATING_SNAPSHOT", "CONTINUOUS", "RESCAN", "STALLED"}
)

var transitions = map[call]transition{
	startTest:           {from: []mgn.LifeCycleState{"READY_FOR_TEST", "TESTING"}, to: "TESTING", launchable: true},
	startCutover:        {from: []mgn.LifeCycleState{"READY_FOR_CUTOVER", "CUTTING_OVER"}, to: "CUTTING_OVER", launchable: true},
	finalizeCutover:     {from: []mgn.LifeCycleState{"CUTTING_OVER"}, to: "CUTOVER", replication: "DISCONNECTED"},
	markReadyForTest:    {from: []mgn.LifeCycleState{"TESTING", "READY_FOR_CUTOVER"}, to: "READY_FOR_TEST", launchable: true},
	markReadyForCutover: {from: []mgn.LifeCycleState{"TESTING", "CUTTING_OVER"}, to: "READY_FOR_CUTOVER", launchable: true},
	disconnect:          {from: notDisconnected, to: "DISCONNECTED", replication: "DISCONNECTED"},
	archive:             {from: finished},
	deleteServer:        {from: finished},
	terminate:           {from: []mgn.LifeCycleState{"STOPPED", "NOT_READY", "READY_FOR_TEST", "READY_FOR_CUTOVER", "DISCONNECTED", "DISCOVERED", "PENDING_INSTALLATION"}},
	startReplication:    {from: []mgn.LifeCycleState{"STOPPED"}, to: "NOT_READY", flowing: []mgn.DataReplicationState{"STOPPED"}, replication: "INITIATING"},
	stopReplication:     {from: replicating, to: "STOPPED", flowing: append([]mgn.DataReplicationState{"PAUSED"}, flowing...), replication: "STOPPED"},
	pauseReplication:    {from: replicating, flowing: flowing, replication: "PAUSED"},
	resumeReplication:   {from: replicating, flowing: []mgn.DataReplicationState{"PAUSED"}, replication: "INITIATING"},
	retryReplication:    {from: replicating, flowing: []mgn.DataReplicationState{"STALLED"}, replication: "INITIATING"},
	configure:           {from: []mgn.LifeCycleState{"STOPPED", "NOT_READY", "READY_FOR_TEST", "TESTING", "READY_FOR_CUTOVER", "CUTTING_OVER"}},
}

// refuses says why call c is not allowed now, in words for the user; "" if it is.
func (s *server) refuses(c call) string {
	t, known := transitions[c]
	state, flow := s.LifeCycle.State, s.Replication.state()
	switch {
	case !known:
		return fmt.Sprintf("%s is not known", c)
	case !slices.Contains(t.from, state):
		return fmt.Sprintf("%s is not possible while source server %s is in state %s, only in %s", c, s.ID, state, list(t.from))
	case t.flowing != nil && !slices.Contains(t.flowing, flow):
		return fmt.Sprintf("%s is not possible while the replication of source server %s is %s, only in %s", c, s.ID, flow, list(t.flowing))
	case t.launchable && !s.launchable():
		return fmt.Sprintf("%s is not possible: source server %s has no consistent recovery point to launch from", c, s.ID)
	}
	return ""
}

// move puts the server into the states that call c leads to. The caller has
// asked refuses.
func (s *server) move(c call) {
	t := transitions[c]
	if t.to != "" {
		s.LifeCycle.State = t.to
	}
	if t.replication != "" {
		s.Replication.become(t.replication)
		s.CommandNumber++
	}
}

func list[T ~string](states []T) string {
	words := make([]string, len(states))
	for i, s := range states {
		words[i] = string(s)
	}
	return strings.Join(words, ", ")
}
