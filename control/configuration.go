package control

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"rehost/awsapi/mgn"
	"rehost/block"
)

// The configurations of one source server, and the control of its replication.

// GetReplicationConfiguration implements the operation.
func (c *Service) GetReplicationConfiguration(ctx context.Context, in *mgn.GetReplicationConfigurationRequest) (*mgn.ReplicationConfiguration, error) {
	s, err := c.find(ctx, in.SourceServerID)
	if err != nil {
		return nil, err
	}
	return &s.Config, nil
}

// GetLaunchConfiguration implements the operation.
func (c *Service) GetLaunchConfiguration(ctx context.Context, in *mgn.GetLaunchConfigurationRequest) (*mgn.LaunchConfiguration, error) {
	s, err := c.find(ctx, in.SourceServerID)
	if err != nil {
		return nil, err
	}
	return &s.Launch, nil
}

func (c *Service) find(ctx context.Context, id string) (*server, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	s, err := getServer(ctx, c.db.reader, id)
	return s, orNotFound(err, id)
}

// UpdateReplicationConfiguration implements the operation. Which disks are
// replicated is for the agent to say; only how they are staged can change here.
func (c *Service) UpdateReplicationConfiguration(ctx context.Context, in *mgn.UpdateReplicationConfigurationRequest) (*mgn.ReplicationConfiguration, error) {
	var out mgn.ReplicationConfiguration
	_, err := c.step(ctx, in.SourceServerID, configure, func(tx *sql.Tx, s *server) error {
		if err := checkGroups(ctx, tx, in.ReplicationServersSecurityGroupsIDs); err != nil {
			return err
		}
		for _, d := range in.ReplicatedDisks {
			if !slices.ContainsFunc(s.active(), func(a block.Disk) bool { return a.Name == deref(d.DeviceName) }) {
				return invalid("replicatedDisks", "source server %s replicates no disk named %q", s.ID, deref(d.DeviceName))
			}
		}
		if err := overlay(&s.Config, in); err != nil {
			return err
		}
		s.CommandNumber++ // throttling travels with the command
		out = s.Config
		return checkEncryption(s.Config.EbsEncryption, s.Config.EbsEncryptionKeyArn)
	})
	return &out, err
}

// UpdateLaunchConfiguration implements the operation.
func (c *Service) UpdateLaunchConfiguration(ctx context.Context, in *mgn.UpdateLaunchConfigurationRequest) (*mgn.LaunchConfiguration, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	s, err := c.change(ctx, in.SourceServerID, func(_ *sql.Tx, s *server) error {
		return errors.Join(overlay(&s.Launch, in), checkLaunch(s.Launch.LaunchDisposition, s.Launch.PostLaunchActions))
	})
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	return &s.Launch, nil
}

// StartReplication implements the operation. What was replicated before a stop
// has been given up, so it begins from nothing.
func (c *Service) StartReplication(ctx context.Context, in *mgn.StartReplicationRequest) (*mgn.SourceServer, error) {
	return c.step(ctx, in.SourceServerID, startReplication, func(tx *sql.Tx, s *server) error {
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM condemned_replicas WHERE server_id = ?`, s.ID).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return conflict("SourceServer", s.ID, "the replica from before StopReplication is still being deleted: try again in a minute")
		}
		s.Replication = replication{FirstByteAt: ""}
		s.Replication.initiate(c.now())
		return nil
	})
}

// StopReplication implements the operation: the replica is given up.
func (c *Service) StopReplication(ctx context.Context, in *mgn.StopReplicationRequest) (*mgn.SourceServer, error) {
	return c.step(ctx, in.SourceServerID, stopReplication, func(tx *sql.Tx, s *server) error {
		if err := c.idle(ctx, tx, s); err != nil {
			return err
		}
		if err := c.independent(ctx, tx, s); err != nil {
			return err
		}
		s.Generation++ // a session that is still open must not write into a deleted replica
		s.Replication.FirstPoint = ""
		c.gauge.set(s.ID, func(t *telemetry) { *t = telemetry{SeenAt: t.SeenAt} })
		return condemn(ctx, tx, s.ID, stamp(c.now()))
	})
}

// PauseReplication implements the operation: nothing is given up.
func (c *Service) PauseReplication(ctx context.Context, in *mgn.PauseReplicationRequest) (*mgn.SourceServer, error) {
	return c.step(ctx, in.SourceServerID, pauseReplication, nil)
}

// ResumeReplication implements the operation.
func (c *Service) ResumeReplication(ctx context.Context, in *mgn.ResumeReplicationRequest) (*mgn.SourceServer, error) {
	return c.step(ctx, in.SourceServerID, resumeReplication, func(_ *sql.Tx, s *server) error {
		s.Replication.initiate(c.now())
		return nil
	})
}

// RetryDataReplication implements the operation. The model gives it no conflict.
func (c *Service) RetryDataReplication(ctx context.Context, in *mgn.RetryDataReplicationRequest) (*mgn.SourceServer, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	s, err := c.change(ctx, in.SourceServerID, func(_ *sql.Tx, s *server) error {
		if reason := s.refuses(retryReplication); reason != "" {
			return invalid("", "%s", reason)
		}
		s.Retry = true
		s.move(retryReplication)
		s.Replication.initiate(c.now())
		return nil
	})
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	return c.shown(ctx, s)
}
