package control

import (
	"slices"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
)

// A replication is where the data of one source server stands.
type replication struct {
	// Flow is what would be going on if nothing were wrong. It is never STALLED:
	// that is what state makes of a fault, so that a fault that goes away leaves
	// the flow as it was.
	Flow   mgn.DataReplicationState `json:"flow"`
	Faults map[reporter]fault       `json:"faults,omitempty"`

	StartedAt   string                                    `json:"startedAt,omitempty"` // of the current initiation
	RetryAt     string                                    `json:"retryAt,omitempty"`   // when a failed initiation is tried again
	Steps       []mgn.DataReplicationInitiationStepStatus `json:"steps"`               // in the order of initiation
	SteppedAt   string                                    `json:"steppedAt,omitempty"` // of the last progress among them
	FirstPoint  string                                    `json:"firstPoint,omitempty"`
	FirstByteAt string                                    `json:"firstByteAt,omitempty"`
	EndedAt     string                                    `json:"endedAt,omitempty"`
}

// A reporter is who sees a fault; each takes back only its own.
type reporter string

const (
	byService    reporter = "service" // the agent is not seen, or a step takes too long
	byReplicator reporter = "replicator"
	byAgent      reporter = "agent"
)

// A fault keeps data from flowing.
type fault struct {
	Error string `json:"error"`
	Raw   string `json:"raw,omitempty"`
	Since string `json:"since"`
}

// initiation lists the steps in order. Replication servers here are not made
// for one source server and hold no volumes, so those steps have no meaning.
var initiation = []struct {
	name    mgn.DataReplicationInitiationStepName
	skipped bool
	fails   mgn.DataReplicationErrorString
}{
	stepWait:         {name: "WAIT"},
	1:                {name: "CREATE_SECURITY_GROUP", skipped: true},
	2:                {name: "LAUNCH_REPLICATION_SERVER", skipped: true},
	3:                {name: "BOOT_REPLICATION_SERVER", skipped: true},
	stepAuthenticate: {name: "AUTHENTICATE_WITH_SERVICE", fails: "FAILED_TO_AUTHENTICATE_WITH_SERVICE"},
	5:                {name: "DOWNLOAD_REPLICATION_SOFTWARE", skipped: true},
	6:                {name: "CREATE_STAGING_DISKS", skipped: true},
	7:                {name: "ATTACH_STAGING_DISKS", skipped: true},
	stepPair:         {name: "PAIR_REPLICATION_SERVER_WITH_AGENT", fails: "FAILED_TO_PAIR_REPLICATION_SERVER_WITH_AGENT"},
	stepConnect:      {name: "CONNECT_AGENT_TO_REPLICATION_SERVER", fails: "FAILED_TO_CONNECT_AGENT_TO_REPLICATION_SERVER"},
	stepTransfer:     {name: "START_DATA_TRANSFER", fails: "FAILED_TO_START_DATA_TRANSFER"},
}

// The steps that something is done in.
const (
	stepWait         = 0  // until the agent is heard of
	stepAuthenticate = 4  // until a replication server is heard of
	stepPair         = 8  // until the agent has been told of it
	stepConnect      = 9  // until the replication server says that the agent is there
	stepTransfer     = 10 // until data has come
)

const (
	notStarted = mgn.DataReplicationInitiationStepStatusNotStarted
	inProgress = mgn.DataReplicationInitiationStepStatusInProgress
	succeeded  = mgn.DataReplicationInitiationStepStatusSucceeded
	failed     = mgn.DataReplicationInitiationStepStatusFailed
	skipped    = mgn.DataReplicationInitiationStepStatusSkipped
)

// state is what users see.
func (r *replication) state() mgn.DataReplicationState {
	if len(r.Faults) > 0 && slices.Contains(flowing, r.Flow) {
		return mgn.DataReplicationStateStalled
	}
	return r.Flow
}

// fault is the one that users see: the service's own first, since nothing that
// an unseen agent said before counts any more.
func (r *replication) fault() (fault, bool) {
	for _, who := range []reporter{byService, byReplicator, byAgent} {
		if f, ok := r.Faults[who]; ok {
			return f, true
		}
	}
	return fault{}, false
}

// blame records a fault, or takes the reporter's fault back with an empty error.
// It reports whether that changed anything.
func (r *replication) blame(who reporter, err, raw string, now time.Time) bool {
	old, had := r.Faults[who]
	switch {
	case err == "" && !had, had && old.Error == err && old.Raw == raw:
		return false
	case err == "":
		delete(r.Faults, who)
	default:
		if r.Faults == nil {
			r.Faults = map[reporter]fault{}
		}
		if had && old.Error == err {
			now = parseStamp(old.Since)
		}
		r.Faults[who] = fault{Error: err, Raw: raw, Since: stamp(now)}
	}
	return true
}

// become puts replication into a state that a user asked for.
func (r *replication) become(state mgn.DataReplicationState) {
	r.Flow, r.Faults = state, nil
}

// initiate begins the steps of initiation, without the faults of the last time.
// Steps that need not be repeated are done by what is reported next.
func (r *replication) initiate(now time.Time) {
	r.Faults = nil
	r.Flow, r.StartedAt, r.SteppedAt, r.RetryAt = mgn.DataReplicationStateInitiating, stamp(now), stamp(now), ""
	r.Steps = make([]mgn.DataReplicationInitiationStepStatus, len(initiation))
	for i, step := range initiation {
		r.Steps[i] = notStarted
		if step.skipped {
			r.Steps[i] = skipped
		}
	}
	r.Steps[stepWait] = inProgress
}

// done marks step as succeeded if it is the one in progress (or has failed),
// and puts the next into progress. It reports whether that changed anything.
func (r *replication) done(step int, now time.Time) bool {
	if r.Flow != mgn.DataReplicationStateInitiating || r.current() != step {
		return false
	}
	r.Steps[step], r.SteppedAt = succeeded, stamp(now)
	if next := r.current(); next >= 0 {
		r.Steps[next] = inProgress
	}
	if f, ok := r.Faults[byService]; ok && f.Error == string(initiation[step].fails) {
		r.blame(byService, "", "", now)
	}
	return true
}

// reached marks step and all before it as succeeded: what is reported proves them.
func (r *replication) reached(step int, now time.Time) (changed bool) {
	for r.Flow == mgn.DataReplicationStateInitiating {
		at := r.current()
		if at < 0 || at > step {
			break
		}
		changed = r.done(at, now) || changed
	}
	return changed
}

// blameGone takes one kind of fault of a reporter back.
func (r *replication) blameGone(who reporter, what mgn.DataReplicationErrorString, now time.Time) bool {
	return r.Faults[who].Error == string(what) && r.blame(who, "", "", now)
}

// current is the step that initiation is at, -1 if it is over.
func (r *replication) current() int {
	return slices.IndexFunc(r.Steps, func(s mgn.DataReplicationInitiationStepStatus) bool { return s != succeeded && s != skipped })
}

// info is MGN's dataReplicationInfo.
func (s *server) info(t telemetry, now time.Time) *mgn.DataReplicationInfo {
	r := &s.Replication
	out := &mgn.DataReplicationInfo{DataReplicationState: r.state(), ReplicatorId: s.ReplicatorID}
	if f, ok := r.fault(); ok && out.DataReplicationState == mgn.DataReplicationStateStalled {
		out.DataReplicationError = &mgn.DataReplicationError{Error: mgn.DataReplicationErrorString(f.Error), RawError: f.Raw}
	}
	if r.StartedAt != "" {
		out.DataReplicationInitiation = &mgn.DataReplicationInitiation{StartDateTime: r.StartedAt, NextAttemptDateTime: r.RetryAt}
		for i, status := range r.Steps {
			out.DataReplicationInitiation.Steps = append(out.DataReplicationInitiation.Steps,
				mgn.DataReplicationInitiationStep{Name: initiation[i].name, Status: status})
		}
	}
	if s.launchable() && (t.CurrentAt != "" || t.PointAt != "") {
		out.LagDuration = duration(t.lag(now))
		out.LastSnapshotDateTime = t.PointAt
	}
	if t.ETA != "" && slices.Contains(flowing, out.DataReplicationState) && r.Flow != mgn.DataReplicationStateContinuous {
		out.EtaDateTime = t.ETA
	}
	out.ReplicatedDisks = s.diskProgress(t)
	return out
}

// diskProgress is how far each disk is; an ended replication holds nothing.
func (s *server) diskProgress(t telemetry) []mgn.DataReplicationInfoReplicatedDisk {
	out := []mgn.DataReplicationInfoReplicatedDisk{}
	gone := s.Replication.Flow == mgn.DataReplicationStateDisconnected
	for _, d := range s.active() {
		p := formgn.DiskProgress{TotalStorageBytes: d.Size}
		if i := slices.IndexFunc(t.Disks, func(p formgn.DiskProgress) bool { return p.DiskID == int32(d.ID) }); i >= 0 {
			p = t.Disks[i]
		}
		if gone {
			p = formgn.DiskProgress{}
		}
		out = append(out, mgn.DataReplicationInfoReplicatedDisk{DeviceName: d.Name, TotalStorageBytes: &p.TotalStorageBytes,
			ReplicatedStorageBytes: &p.ReplicatedStorageBytes, RescannedStorageBytes: &p.RescannedStorageBytes,
			BackloggedStorageBytes: &p.BackloggedStorageBytes})
	}
	return out
}
