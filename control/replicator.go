package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/block"
)

// The calls of replication servers.

// replicators is what is known of replication servers besides their rows.
type replicators struct {
	mu      sync.Mutex
	seen    map[string]time.Time // guarded by mu
	address map[string]string    // guarded by mu
	trusts  map[string]string    // guarded by mu: digest of the bundle that it believes
}

func loadReplicators(ctx context.Context, q querier) (*replicators, error) {
	r := &replicators{seen: map[string]time.Time{}, address: map[string]string{}, trusts: map[string]string{}}
	rows, err := q.QueryContext(ctx, `SELECT id, address FROM replicators`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, address string
		if err := rows.Scan(&id, &address); err != nil {
			return nil, err
		}
		r.address[id] = address
	}
	return r, rows.Err()
}

// replicatorSeen: the replication server has asked for its work lately.
func (c *Service) replicatorSeen(id string) bool {
	c.replicators.mu.Lock()
	defer c.replicators.mu.Unlock()
	at, ok := c.replicators.seen[id]
	return ok && c.now().Sub(at) < c.opts.AgentTimeout
}

// ReplicatorAddress is what a replication server says that it is reached at; ""
// while it has said nothing.
func (c *Service) ReplicatorAddress(id string) string {
	c.replicators.mu.Lock()
	defer c.replicators.mu.Unlock()
	return c.replicators.address[id]
}

// chooseReplicator picks the replication server with the fewest source servers
// for a new one; "" while there is none, and then the first that comes takes it.
func (c *Service) chooseReplicator(ctx context.Context, q querier) (id string) {
	err := q.QueryRowContext(ctx, `SELECT id FROM replicators
		ORDER BY (SELECT COUNT(*) FROM source_servers WHERE replicator_id = replicators.id), id LIMIT 1`).Scan(&id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		c.log.Error("choose a replication server", "err", err)
	}
	return id
}

// DescribeReplicationServerAssociations implements the operation of that name.
// The address, host:port, is what agents are told to connect to. With the
// revision of the last answer and seconds to wait, the answer comes as soon as
// it is another: a revoked certificate is refused everywhere at once.
func (c *Service) DescribeReplicationServerAssociations(ctx context.Context, in *formgn.DescribeReplicationServerAssociationsForMgnRequest) (*formgn.DescribeReplicationServerAssociationsForMgnResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	known, err := c.noteReplicator(ctx, in.ReplicatorID, deref(in.Address))
	if err != nil {
		return nil, err
	}
	c.replicators.mu.Lock()
	c.replicators.trusts[in.ReplicatorID] = deref(in.TrustDigest)
	c.replicators.mu.Unlock()
	if seconds := deref(in.WaitSeconds); in.Revision != nil && seconds > 0 {
		wait, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		c.changes.wait(wait, *in.Revision)
		cancel()
	}
	revision := c.changes.now() // before what it is of
	servers, err := serversOf(ctx, c.db.reader, in.ReplicatorID)
	if err != nil {
		return nil, err
	}
	if known {
		awsapi.Routine(ctx)
	}
	out := &formgn.DescribeReplicationServerAssociationsForMgnResponse{Revision: &revision, Associations: []formgn.Association{}, TrustBundle: c.trustBundle(in.TrustDigest)}
	allowed, err := c.ruling().replication(ctx, c.ReplicatorAddress(in.ReplicatorID), servers)
	if err != nil {
		return nil, err
	}
	texts, digest := reachDigest(addressesOf(allowed))
	if out.AllowedDigest = digest; digest != deref(in.AllowedDigest) {
		out.AllowedAddresses = texts
	}
	for _, s := range servers {
		revoked, err := revokedSerials(ctx, c.db.reader, s.ID, c.now())
		if err != nil {
			return nil, err
		}
		if !s.replicates() && len(revoked) == 0 {
			continue // an ended one is listed while its certificates have to be refused
		}
		out.Associations = append(out.Associations, formgn.Association{SourceServerID: s.ID, Disks: s.replicationDisks(), Generation: s.Generation,
			RevokedCertificateSerials: revoked, BandwidthThrottling: s.Config.BandwidthThrottling})
	}
	return out, nil
}

// noteReplicator keeps where a replication server is, and gives one that is new
// the source servers that wait for one. Known is whether that changed nothing.
func (c *Service) noteReplicator(ctx context.Context, id, address string) (known bool, err error) {
	c.replicators.mu.Lock()
	known = c.replicators.address[id] == address || address == "" && c.replicators.address[id] != ""
	c.replicators.seen[id] = c.now()
	c.replicators.mu.Unlock()
	if known {
		return true, nil
	}
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO replicators (id, address) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET address = excluded.address`, id, address); err != nil {
			return err
		}
		waiting, err := documents[*server](ctx, tx, `SELECT document FROM source_servers WHERE replicator_id = ''`)
		for _, s := range waiting {
			s.ReplicatorID = id
			err = errors.Join(err, putServer(ctx, tx, s))
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("note replication server %s: %w", id, err)
	}
	c.replicators.mu.Lock()
	c.replicators.address[id] = address
	c.replicators.mu.Unlock()
	return false, nil
}

// served refuses if another replication server has the source server: to this
// one it does not exist.
func (c *Service) served(s *server, replicatorID string) error {
	if s.ReplicatorID != replicatorID {
		return noServer(s.ID)
	}
	return nil
}

// NotifyAgentAuthentication implements the operation of that name. A failure is
// only logged: whoever fails to prove who it is must not change anyone's state.
func (c *Service) NotifyAgentAuthentication(ctx context.Context, in *formgn.NotifyAgentAuthenticationForMgnRequest) (*formgn.NotifyAgentAuthenticationForMgnResponse, error) {
	s, err := getServer(ctx, c.db.reader, in.SourceServerID)
	if err == nil {
		err = c.served(s, in.ReplicatorID)
	}
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	if !deref(in.Succeeded) {
		c.log.Warn("an agent was not believed", "server", in.SourceServerID, "replicator", in.ReplicatorID, "remote", deref(in.RemoteAddress), "err", deref(in.RawError))
		c.happened(ctx, agentNotBelieved, s.ID, "replicator", in.ReplicatorID, "remote", deref(in.RemoteAddress), "error", deref(in.RawError))
	}
	return &formgn.NotifyAgentAuthenticationForMgnResponse{}, nil
}

// NotifyAgentConnected implements the operation of that name. The generation it
// answers is durable and higher than any before. Conflict says that the source
// server has ended, ResourceNotFound that it is not this replication server's,
// Validation that it is not to replicate now.
func (c *Service) NotifyAgentConnected(ctx context.Context, in *formgn.NotifyAgentConnectedForMgnRequest) (*formgn.NotifyAgentConnectedForMgnResponse, error) {
	s, err := c.change(ctx, in.SourceServerID, func(_ *sql.Tx, s *server) error {
		if err := c.served(s, in.ReplicatorID); err != nil {
			return err
		}
		if s.ended() {
			return conflict("SourceServer", s.ID, fmt.Sprintf("source server %s is %s", s.ID, s.LifeCycle.State))
		}
		if s.command() != formgn.AgentCommandStart {
			return invalid("", "replication of source server %s is %s", s.ID, s.Replication.Flow)
		}
		s.Generation++
		s.Replication.reached(stepConnect, c.now())
		s.Replication.blame(byReplicator, "", "", c.now())
		s.Replication.blameGone(byService, mgn.DataReplicationErrorStringUnstableNetwork, c.now())
		return nil
	})
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	c.gauge.set(s.ID, func(t *telemetry) { t.GoneAt = "" })
	c.happened(ctx, agentConnected, s.ID, "replicator", in.ReplicatorID, "generation", s.Generation)
	return &formgn.NotifyAgentConnectedForMgnResponse{Generation: s.Generation, Disks: s.replicationDisks()}, nil
}

// NotifyAgentDisconnected implements the operation of that name. Agents come
// back by themselves; the watch says so if one does not.
func (c *Service) NotifyAgentDisconnected(ctx context.Context, in *formgn.NotifyAgentDisconnectedForMgnRequest) (*formgn.NotifyAgentDisconnectedForMgnResponse, error) {
	s, err := getServer(ctx, c.db.reader, in.SourceServerID)
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	if err := c.served(s, in.ReplicatorID); err != nil {
		return nil, err
	}
	if in.Generation == s.Generation {
		c.gauge.set(s.ID, func(t *telemetry) { t.GoneAt, t.GoneWhy = stamp(c.now()), deref(in.RawError) })
	}
	c.happened(ctx, agentDisconnected, s.ID, "replicator", in.ReplicatorID, "generation", in.Generation, "error", deref(in.RawError))
	return &formgn.NotifyAgentDisconnectedForMgnResponse{}, nil
}

// NotifyAgentReplicationProgress implements the operation of that name. What an
// earlier session says does not count any more.
func (c *Service) NotifyAgentReplicationProgress(ctx context.Context, in *formgn.NotifyAgentReplicationProgressForMgnRequest) (*formgn.NotifyAgentReplicationProgressForMgnResponse, error) {
	now := c.now()
	pointAt := parseStamp(deref(in.PointDateTime))
	if in.PointSeq != nil {
		if _, err := block.ParseSeq(*in.PointSeq); err != nil || pointAt.IsZero() {
			return nil, invalid("pointSeq", "pointSeq needs 16 hexadecimal digits and pointDateTime a time")
		}
	}
	consistent := in.PointSeq != nil && deref(in.Consistent) && deref(in.InitialSyncDone)
	var refused error
	noted := false
	var from mgn.LifeCycleState
	s, changed, err := c.report(ctx, in.SourceServerID, func(s *server) bool {
		refused = c.served(s, in.ReplicatorID)
		if refused == nil && in.Generation != s.Generation {
			refused = conflict("SourceServer", s.ID, fmt.Sprintf("session %d of source server %s is over: the last one is %d", in.Generation, s.ID, s.Generation))
		}
		if refused == nil && consistent && !noted {
			noted = true // by the look that report takes before it changes anything
			refused = c.notePoint(ctx, s, in, pointAt, now)
		}
		from = s.LifeCycle.State
		return refused == nil && s.progress(deref(in.ReceivedBytes) > 0 || in.PointSeq != nil, consistent, now)
	})
	if err != nil || refused != nil {
		return nil, errors.Join(err, refused)
	}
	c.moved(ctx, s, from, "the first consistent point")
	var points []block.Point
	withdrawn := in.PointSeq == nil && deref(in.InitialSyncDone)
	if withdrawn {
		if points, err = c.opts.Replicas.Points(ctx, s.ID); err != nil {
			return nil, err
		}
	}
	before, after := "", ""
	c.gauge.set(s.ID, func(t *telemetry) {
		before = t.PointSeq
		t.Received, t.Stored = max(t.Received, deref(in.ReceivedBytes)), max(t.Stored, deref(in.StoredBytes))
		if withdrawn {
			t.PointSeq, t.PointAt, t.CurrentAt = "", "", ""
			if n := len(points); n > 0 {
				t.PointSeq, t.PointAt = points[n-1].Seq.String(), stamp(points[n-1].Time)
			}
		}
		after = t.PointSeq
	})
	if withdrawn && before != after {
		c.happened(ctx, pointsRetracted, s.ID, "before", before, "latest", after, "generation", in.Generation)
	} else if !changed {
		awsapi.Routine(ctx)
	}
	return &formgn.NotifyAgentReplicationProgressForMgnResponse{}, nil
}

// notePoint takes a consistent point over. Of the first one that is durable
// before the state says that there is one: neither who looks in between nor a
// crash must find a server that is ready and has no point.
func (c *Service) notePoint(ctx context.Context, s *server, in *formgn.NotifyAgentReplicationProgressForMgnRequest, at, now time.Time) error {
	c.gauge.set(s.ID, func(t *telemetry) {
		t.PointSeq, t.PointAt = *in.PointSeq, stamp(at)
		if at.After(now) {
			at = now // the source's clock is ahead
		}
		t.CurrentAt = max(t.CurrentAt, stamp(at))
	})
	if s.Replication.FirstPoint != "" {
		return nil
	}
	return c.gauge.flush(ctx, c.db)
}

// transferring takes over that data has come, which ends initiation.
func (r *replication) transferring(now time.Time) (changed bool) {
	if r.FirstByteAt == "" {
		r.FirstByteAt, changed = stamp(now), true
	}
	if r.current() >= 0 && r.reached(stepTransfer, now) {
		r.Flow, changed = mgn.DataReplicationStateInitialSync, true
		if r.FirstPoint != "" {
			r.Flow = mgn.DataReplicationStateRescan
		}
	}
	return changed
}

// progress takes over that data has come, and that there is a point to launch from.
func (s *server) progress(data, consistent bool, now time.Time) (changed bool) {
	r := &s.Replication
	if data {
		changed = r.transferring(now)
	}
	if consistent && r.FirstPoint == "" {
		r.FirstPoint, changed = stamp(now), true
		if s.LifeCycle.State == mgn.LifeCycleStateNotReady {
			s.LifeCycle.State = mgn.LifeCycleStateReadyForTest
		}
	}
	copying := []mgn.DataReplicationState{"INITIAL_SYNC", "RESCAN", "CREATING_SNAPSHOT"}
	if consistent && slices.Contains(copying, r.Flow) { // the agent says the same a moment later
		r.Flow, changed = mgn.DataReplicationStateContinuous, true
	}
	return changed
}

// UpdateAgentReplicationProcessState implements the operation of that name.
func (c *Service) UpdateAgentReplicationProcessState(ctx context.Context, in *formgn.UpdateAgentReplicationProcessStateForMgnRequest) (*formgn.UpdateAgentReplicationProcessStateForMgnResponse, error) {
	what := string(in.Error)
	if in.Healthy {
		what = ""
	} else if what == "" {
		what = string(mgn.DataReplicationErrorStringSnapshotsFailure)
	}
	var refused error
	_, changed, err := c.report(ctx, in.SourceServerID, func(s *server) bool {
		refused = c.served(s, in.ReplicatorID)
		return refused == nil && s.Replication.blame(byReplicator, what, deref(in.RawError), c.now())
	})
	if err != nil || refused != nil {
		return nil, errors.Join(err, refused)
	}
	if !changed {
		awsapi.Routine(ctx)
	}
	return &formgn.UpdateAgentReplicationProcessStateForMgnResponse{}, nil
}
