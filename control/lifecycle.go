package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"rehost/awsapi/mgn"
)

// The operations on source servers.

// shape is the source server as the API shows it.
func (c *Service) shape(s *server, tags mgn.TagsMap) mgn.SourceServer {
	now, t := c.now(), c.gauge.get(s.ID)
	life := s.LifeCycle
	life.FirstByteDateTime = s.Replication.FirstByteAt
	life.LastSeenByServiceDateTime = t.SeenAt
	end := now
	if s.Replication.EndedAt != "" {
		end = parseStamp(s.Replication.EndedAt)
	}
	if begun := parseStamp(s.Replication.FirstByteAt); !begun.IsZero() {
		life.ElapsedReplicationDuration = duration(end.Sub(begun))
	}
	return mgn.SourceServer{
		SourceServerID: s.ID, Arn: c.arn("source-server", s.ID), IsArchived: &s.Archived, Tags: tags,
		UserProvidedID: s.UserProvidedID, ReplicationType: mgn.ReplicationTypeAgentBased, LifeCycle: &life,
		SourceProperties: s.Properties, DataReplicationInfo: s.info(t, now), LaunchedInstance: s.Launched,
		ConnectorAction: s.Connector,
	}
}

// shown reads what shape needs besides the document.
func (c *Service) shown(ctx context.Context, s *server) (*mgn.SourceServer, error) {
	arn := c.arn("source-server", s.ID)
	tags, err := tagsOf(ctx, c.db.reader, arn)
	if err != nil {
		return nil, err
	}
	out := c.shape(s, tags[arn])
	return &out, nil
}

// DescribeSourceServers implements the operation. Without a filter on it,
// archived servers are left out.
func (c *Service) DescribeSourceServers(ctx context.Context, req *mgn.DescribeSourceServersRequest) (*mgn.DescribeSourceServersResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	const operation = "DescribeSourceServers"
	after, limit, err := c.pager.start(operation, req.Filters, req.NextToken, req.MaxResults)
	if err != nil {
		return nil, err
	}
	f := mgn.DescribeSourceServersRequestFilters{}
	if req.Filters != nil {
		f = *req.Filters
	}
	query, args := `SELECT document FROM source_servers WHERE id > ?`, []any{after}
	restrict := func(condition string, more []any) { query, args = query+` AND `+condition, more }
	switch {
	case f.IsArchived != nil && *f.IsArchived:
		query += ` AND archived = 1`
	case f.IsArchived != nil || len(f.SourceServerIDs) == 0:
		query += ` AND archived = 0`
	}
	if len(f.SourceServerIDs) > 0 {
		restrict(in("id", f.SourceServerIDs, args))
	}
	if len(f.LifeCycleStates) > 0 {
		restrict(in("life_cycle", f.LifeCycleStates, args))
	}
	if len(f.ApplicationIDs) > 0 || len(f.ReplicationTypes) == 1 && f.ReplicationTypes[0] != mgn.ReplicationTypeAgentBased {
		query += ` AND 1 = 0` // there are no applications and no other replication types yet
	}
	docs, err := documents[server](ctx, c.db.reader, query+` ORDER BY id LIMIT ?`, append(args, limit+1)...)
	if err != nil {
		return nil, fmt.Errorf("list source servers: %w", err)
	}
	docs, token := next(c.pager, operation, req.Filters, docs, limit, func(s server) string { return s.ID })
	arns := make([]string, len(docs))
	for i := range docs {
		arns[i] = c.arn("source-server", docs[i].ID)
	}
	tags, err := tagsOf(ctx, c.db.reader, arns...)
	if err != nil {
		return nil, err
	}
	out := &mgn.DescribeSourceServersResponse{Items: []mgn.SourceServer{}, NextToken: token}
	for i := range docs {
		out.Items = append(out.Items, c.shape(&docs[i], tags[arns[i]]))
	}
	return out, nil
}

// step is what the calls on one source server have in common: it is found, the
// table of transitions is asked, do says what else is to be (it may refuse), and
// the server moves.
func (c *Service) step(ctx context.Context, id string, what call, do func(tx *sql.Tx, s *server) error) (*mgn.SourceServer, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	var from mgn.LifeCycleState
	s, err := c.change(ctx, id, func(tx *sql.Tx, s *server) error {
		if reason := s.refuses(what); reason != "" {
			return conflict("SourceServer", id, reason)
		}
		from = s.LifeCycle.State
		if do != nil {
			if err := do(tx, s); err != nil {
				return err
			}
		}
		s.move(what)
		return nil
	})
	if err != nil {
		return nil, orNotFound(err, id)
	}
	c.changes.happened()
	c.moved(ctx, s, from, string(what))
	if what == disconnect || what == finalizeCutover {
		c.happened(ctx, certificatesRevoked, id, "reason", string(what))
		c.happened(ctx, sessionFenced, id, "generation", s.Generation-1, "reason", string(what))
	}
	return c.shown(ctx, s)
}

// idle refuses while a job works on the server.
func (c *Service) idle(ctx context.Context, tx *sql.Tx, s *server) error {
	job, err := activeJob(ctx, tx, s.ID)
	if err == nil && job != "" {
		err = conflict("SourceServer", s.ID, fmt.Sprintf("job %s still works on source server %s: wait until it has ended", job, s.ID))
	}
	return err
}

// ChangeServerLifeCycleState implements the operation.
func (c *Service) ChangeServerLifeCycleState(ctx context.Context, in *mgn.ChangeServerLifeCycleStateRequest) (*mgn.SourceServer, error) {
	at := stamp(c.now())
	switch in.LifeCycle.State {
	case "READY_FOR_TEST":
		return c.step(ctx, in.SourceServerID, markReadyForTest, func(_ *sql.Tx, s *server) error {
			lastTest(s).Reverted = &mgn.LifeCycleLastTestReverted{ApiCallDateTime: at}
			return nil
		})
	case "READY_FOR_CUTOVER":
		return c.step(ctx, in.SourceServerID, markReadyForCutover, func(tx *sql.Tx, s *server) error {
			if s.LifeCycle.State == mgn.LifeCycleStateCuttingOver {
				lastCutover(s).Reverted = &mgn.LifeCycleLastCutoverReverted{ApiCallDateTime: at}
				return nil
			}
			lastTest(s).Finalized = &mgn.LifeCycleLastTestFinalized{ApiCallDateTime: at}
			return nil
		})
	case "CUTOVER": // by FinalizeCutover only
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	return nil, invalid("lifeCycle.state", "lifeCycle.state can be set to READY_FOR_TEST or READY_FOR_CUTOVER; a server becomes CUTOVER by FinalizeCutover")
}

func lastTest(s *server) *mgn.LifeCycleLastTest {
	if s.LifeCycle.LastTest == nil {
		s.LifeCycle.LastTest = &mgn.LifeCycleLastTest{}
	}
	return s.LifeCycle.LastTest
}

func lastCutover(s *server) *mgn.LifeCycleLastCutover {
	if s.LifeCycle.LastCutover == nil {
		s.LifeCycle.LastCutover = &mgn.LifeCycleLastCutover{}
	}
	return s.LifeCycle.LastCutover
}

// FinalizeCutover implements the operation. As the API reference has it, it
// ends replication and has the agent uninstall itself. It is refused unless the
// cutover instance is there: what the source is switched off for.
func (c *Service) FinalizeCutover(ctx context.Context, in *mgn.FinalizeCutoverRequest) (*mgn.SourceServer, error) {
	return c.step(ctx, in.SourceServerID, finalizeCutover, func(tx *sql.Tx, s *server) error {
		if err := c.idle(ctx, tx, s); err != nil {
			return err
		}
		live, err := liveInstances(ctx, tx, s.ID)
		if err != nil {
			return err
		}
		if len(live) != 1 || !live[0].Cutover {
			return conflict("SourceServer", s.ID, fmt.Sprintf("source server %s has no cutover instance: its last cutover launch failed or it was terminated; launch one with StartCutover", s.ID))
		}
		lastCutover(s).Finalized = &mgn.LifeCycleLastCutoverFinalized{ApiCallDateTime: stamp(c.now())}
		if live[0].Independent { // else as soon as it is, see observed
			if err := condemn(ctx, tx, s.ID, stamp(c.now())); err != nil {
				return err
			}
		}
		return c.end(ctx, tx, s)
	})
}

// DisconnectFromService implements the operation. The replica stays until the
// source server is deleted.
func (c *Service) DisconnectFromService(ctx context.Context, in *mgn.DisconnectFromServiceRequest) (*mgn.SourceServer, error) {
	return c.step(ctx, in.SourceServerID, disconnect, func(tx *sql.Tx, s *server) error {
		return errors.Join(c.idle(ctx, tx, s), c.end(ctx, tx, s))
	})
}

// end takes the trust back and leaves the agent a last command. Its sessions
// end with the state itself: every call of an agent asks for it (see formgn.go).
func (c *Service) end(ctx context.Context, tx *sql.Tx, s *server) error {
	if s.Uninstall == nil {
		s.Uninstall = &uninstall{RequestedAt: stamp(c.now())}
		s.Generation++ // fences the session that may still be open
	}
	if s.Replication.EndedAt == "" {
		s.Replication.EndedAt = stamp(c.now())
	}
	_, err := tx.ExecContext(ctx, `UPDATE certificates SET revoked_at = ? WHERE server_id = ? AND revoked_at = ''`, stamp(c.now()), s.ID)
	return err
}

// MarkAsArchived implements the operation.
func (c *Service) MarkAsArchived(ctx context.Context, in *mgn.MarkAsArchivedRequest) (*mgn.SourceServer, error) {
	return c.step(ctx, in.SourceServerID, archive, func(_ *sql.Tx, s *server) error {
		s.Archived = true
		return nil
	})
}

// DeleteSourceServer implements the operation: the server and its replica. It
// is refused while a launched instance still reads the replica.
func (c *Service) DeleteSourceServer(ctx context.Context, in *mgn.DeleteSourceServerRequest) (*mgn.DeleteSourceServerResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	id := in.SourceServerID
	err := c.db.update(ctx, func(tx *sql.Tx) error {
		s, err := getServer(ctx, tx, id)
		if err != nil {
			return orNotFound(err, id)
		}
		if reason := s.refuses(deleteServer); reason != "" {
			return conflict("SourceServer", id, reason)
		}
		if err := errors.Join(c.idle(ctx, tx, s), c.independent(ctx, tx, s), condemn(ctx, tx, id, stamp(c.now()))); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM source_servers WHERE id = ?`, id); err != nil {
			return err
		}
		return dropTags(ctx, tx, c.arn("source-server", id))
	})
	if err != nil {
		return nil, err
	}
	c.gauge.forget(id)
	return &mgn.DeleteSourceServerResponse{}, nil
}

// independent refuses while an instance still reads the replica.
func (c *Service) independent(ctx context.Context, tx *sql.Tx, s *server) error {
	live, err := liveInstances(ctx, tx, s.ID)
	if err != nil {
		return err
	}
	for _, i := range live {
		if !i.Independent {
			return conflict("SourceServer", s.ID, fmt.Sprintf("instance %s still reads the replica of source server %s: terminate it, or wait until a cutover instance has copied its disks", i.ID, s.ID))
		}
	}
	return nil
}

// condemn has the replica deleted as soon as nothing reads it any more.
func condemn(ctx context.Context, tx *sql.Tx, id, at string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO condemned_replicas (server_id, since) VALUES (?, ?) ON CONFLICT (server_id) DO NOTHING`, id, at)
	return err
}

// UpdateSourceServer implements the operation.
func (c *Service) UpdateSourceServer(ctx context.Context, in *mgn.UpdateSourceServerRequest) (*mgn.SourceServer, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	s, err := c.change(ctx, in.SourceServerID, func(_ *sql.Tx, s *server) error {
		if in.ConnectorAction != nil {
			s.Connector = in.ConnectorAction
		}
		return nil
	})
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	return c.shown(ctx, s)
}
