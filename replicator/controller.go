package replicator

import (
	"context"
	"errors"
	"fmt"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/receive"
	"rehost/wire"
)

// A controller passes what a receive.Server asks and tells on to the service.
type controller struct{ r *replicator }

// refusal says in the words of the wire why the service refused; what is only
// for now is Busy, so that agents come again. AccessDenied is not among them: it
// is trouble with our own credentials, and no agent must take it for its end.
func refusal(err error) error {
	answer := new(awsapi.CallError)
	if !errors.As(err, &answer) {
		return err
	}
	switch answer.Name {
	case "ConflictException":
		return &wire.RefusedError{Code: wire.Disconnected, Message: answer.Message}
	case "ResourceNotFoundException":
		return &wire.RefusedError{Code: wire.UnknownServer, Message: answer.Message}
	case "ValidationException":
		return &wire.RefusedError{Code: wire.Busy, Message: answer.Message}
	}
	return err
}

// Authenticated implements [receive.Controller].
func (c controller) Authenticated(ctx context.Context, a receive.Agent) error {
	yes, address := true, a.Address.String()
	_, err := call(ctx, c.r, formgn.NotifyAgentAuthenticationForMgn, &formgn.NotifyAgentAuthenticationForMgnRequest{
		ReplicatorID: c.r.config.ID, SourceServerID: a.Server, Succeeded: &yes, RemoteAddress: &address})
	return refusal(err)
}

// Connected implements [receive.Controller].
func (c controller) Connected(ctx context.Context, a receive.Agent, _ wire.Hello) (receive.Grant, error) {
	address := a.Address.String()
	out, err := call(ctx, c.r, formgn.NotifyAgentConnectedForMgn, &formgn.NotifyAgentConnectedForMgnRequest{
		ReplicatorID: c.r.config.ID, SourceServerID: a.Server, RemoteAddress: &address})
	if err != nil {
		return receive.Grant{}, refusal(err)
	}
	grant := receive.Grant{Generation: uint64(out.Generation)}
	for _, d := range out.Disks {
		if d.DiskID < 0 || d.DiskID > 1<<16-1 {
			return receive.Grant{}, fmt.Errorf("the service answered disk id %d", d.DiskID)
		}
		disk := block.Disk{ID: block.DiskID(d.DiskID), Name: d.DeviceName, Size: d.Bytes}
		if d.IsBootDisk != nil {
			disk.Boot = *d.IsBootDisk
		}
		if d.Serial != nil {
			disk.Serial = *d.Serial
		}
		grant.Disks = append(grant.Disks, disk)
	}
	return grant, nil
}

// Disconnected implements [receive.Controller].
func (c controller) Disconnected(ctx context.Context, a receive.Agent, cause error) {
	text := ""
	if cause != nil {
		text = limited(cause.Error())
	}
	if _, err := call(ctx, c.r, formgn.NotifyAgentDisconnectedForMgn, &formgn.NotifyAgentDisconnectedForMgnRequest{
		ReplicatorID: c.r.config.ID, SourceServerID: a.Server, Generation: int64(a.Generation), RawError: &text}); err != nil {
		c.r.log.Warn("the end of a session is not told", "server", a.Server, "err", err)
	}
}

// Progress implements [receive.Controller]. What the service does not take now
// is told again later, unless there is something newer.
func (c controller) Progress(ctx context.Context, a receive.Agent, p receive.Progress) {
	in := &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: c.r.config.ID, SourceServerID: a.Server, Generation: int64(a.Generation),
		InitialSyncDone: &p.InitialSyncDone, Consistent: &p.Consistent, ReceivedBytes: &p.Bytes}
	if !p.Point.Seq.IsZero() && !p.Point.Time.IsZero() {
		seq, at := p.Point.Seq.String(), awsapi.DateTime(p.Point.Time)
		in.PointSeq, in.PointDateTime = &seq, &at
	}
	c.r.mu.Lock()
	c.r.pending[a.Server] = in
	c.r.mu.Unlock()
	c.r.send(ctx, in)
}

// Unhealthy implements [receive.Controller].
func (c controller) Unhealthy(ctx context.Context, a receive.Agent, problem *wire.RefusedError) {
	text := limited(problem.Error())
	if _, err := call(ctx, c.r, formgn.UpdateAgentReplicationProcessStateForMgn, &formgn.UpdateAgentReplicationProcessStateForMgnRequest{
		ReplicatorID: c.r.config.ID, SourceServerID: a.Server, Healthy: false, Error: formgn.ReplicationErrorSnapshotsFailure, RawError: &text}); err != nil {
		c.r.log.Warn("a failure of the store is not told", "server", a.Server, "err", err)
	}
}

// limited cuts a text to what the API takes.
func limited(s string) string {
	const limit = 4000
	if len(s) > limit {
		return s[:limit]
	}
	return s
}
