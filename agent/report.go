package agent

import (
	"context"
	"encoding/json"
	"errors"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/capture"
	"rehost/support"
	"rehost/wire"
)

// noteFailure keeps why replication does not go on; nil means that it does.
func (a *agent) noteFailure(err error) { a.board.setFailure(err) }

// reports tells the service how far replication is, while there is any to tell of.
func (a *agent) reports(ctx context.Context) {
	told := false
	for pause(ctx, a.options.report) == nil {
		r, worth := a.report()
		if !worth {
			continue
		}
		_, err := ask(ctx, a.identity, formgn.UpdateAgentBacklogForMgn, r)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			told = false
		case !told: // the loop of commands tells of a service that is away
			a.log.Debug("report is not delivered", "err", err)
			told = true
		}
	}
}

// report is the state of replication in the service's words; worth is false
// while nothing is tracked and nothing went wrong.
func (a *agent) report() (r *formgn.UpdateAgentBacklogForMgnRequest, worth bool) {
	c, tracked := a.replication.progress()
	failure := a.trouble(c)
	r = &formgn.UpdateAgentBacklogForMgnRequest{
		SourceServerID: a.config.SourceServerID,
		State:          formgn.DataReplicationState(a.state()),
		Disks:          []formgn.DiskProgress{},
	}
	if failure != nil && r.State != formgn.DataReplicationStatePaused && r.State != formgn.DataReplicationStateStopped {
		r.State = formgn.DataReplicationStateStalled
		r.Error, r.RawError = replicationError(failure), pointer(clip(support.Redact(failure.Error()), 1000))
	}
	if !tracked {
		return r, failure != nil
	}
	if c.Outrun != "" && r.Error == "" {
		r.Error, r.RawError = formgn.ReplicationErrorNotConverging, pointer(clip(c.Outrun, 1000))
	}
	r.TrackingMethod, r.TrackingReason = formgn.TrackingMethod(c.Method), pointer(clip(trackingReason(c), 1000))
	if c.ETA > 0 {
		r.EtaSeconds = pointer(int64(c.ETA.Seconds()))
	}
	if !c.Point.Seq.IsZero() {
		r.LagMilliseconds = pointer(c.Lag.Milliseconds())
	}
	r.Disks = diskProgress(c)
	return r, true
}

// trouble is why there are no further points: what keeps replication from going on,
// or what of the disks cannot be read while the rest of them goes on.
func (a *agent) trouble(c capture.Status) error {
	failure, _, _ := a.board.read()
	var unread *capture.UnreadError
	if failure == nil && errors.As(c.Err, &unread) {
		return unread
	}
	return failure
}

// trackingReason is why changes are found so, and what becomes of that without the agent.
func trackingReason(c capture.Status) string {
	if c.Keeps == "" {
		return c.Reason
	}
	return c.Reason + "; tracking " + c.Keeps
}

// diskProgress is how far each disk is. During the first copy what was read
// counts, since nothing of it is durable as a point before the end of an epoch
// that may take hours.
func diskProgress(c capture.Status) []formgn.DiskProgress {
	out := []formgn.DiskProgress{}
	for _, d := range c.Disks {
		done := d.Replicated
		if (c.State == capture.InitialSync || c.State == capture.Rescan) && c.Rounds > 0 { // before the first round there is no backlog to count from
			done = max(done, d.Disk.Size-d.Backlog)
		}
		out = append(out, formgn.DiskProgress{DiskID: int32(d.Disk.ID), TotalStorageBytes: d.Disk.Size,
			ReplicatedStorageBytes: done, RescannedStorageBytes: d.Rescanned, BackloggedStorageBytes: d.Backlog})
	}
	return out
}

// replicationError puts a failure under one of MGN's names.
func replicationError(err error) formgn.ReplicationError {
	var connect *connectError
	var disk *capture.DiskError
	var missing *missingError
	var stranger *strangerError
	var ambiguous *ambiguousError
	var refused *wire.RefusedError
	var api *awsapi.CallError
	switch {
	case errors.As(err, &disk), errors.As(err, &missing), errors.As(err, &stranger), errors.As(err, &ambiguous), errors.Is(err, capture.ErrBadDevice):
		return formgn.ReplicationErrorFailedToStartDataTransfer
	case errors.As(err, &refused) && refused.Code == wire.StagingFull:
		return formgn.ReplicationErrorSnapshotsFailure
	case errors.As(err, &refused) && refused.Code == wire.UnknownServer:
		return formgn.ReplicationErrorFailedToPairReplicationServerWithAgent
	case errors.As(err, &connect):
		return formgn.ReplicationErrorFailedToConnectAgentToReplicationServer
	case errors.Is(err, errNotPaired), errors.As(err, &api):
		return formgn.ReplicationErrorFailedToPairReplicationServerWithAgent
	}
	return formgn.ReplicationErrorUnstableNetwork
}

// writeStatus keeps the status file, and leaves a last word in it.
func (a *agent) writeStatus(ctx context.Context) {
	for {
		if text, err := json.MarshalIndent(a.status(), "", "  "); err == nil {
			if err := a.dir.write(statusFile, append(text, '\n'), false); err != nil {
				a.log.Debug("status is not written", "err", err)
			}
		}
		if pause(ctx, a.options.report/2) != nil {
			return
		}
	}
}

func (a *agent) sendLogs(ctx context.Context, lines []formgn.LogLine) error {
	_, err := ask(ctx, a.identity, formgn.SendAgentLogsForMgn, &formgn.SendAgentLogsForMgnRequest{SourceServerID: a.config.SourceServerID, Lines: lines})
	return err
}
