package control

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/launch"
)

// The calls of agents and their installers.

// VerifyClientRole implements VerifyClientRoleForMgn: who may call it may install.
func (c *Service) VerifyClientRole(ctx context.Context, _ *formgn.VerifyClientRoleForMgnRequest) (*formgn.VerifyClientRoleForMgnResponse, error) {
	return &formgn.VerifyClientRoleForMgnResponse{AccountID: c.opts.Account, Region: c.opts.Region, Tunnel: c.tunnelInfo()}, c.ready(ctx)
}

// RegisterAgent implements RegisterAgentForMgn. A machine is known by the id
// that the installer gave it, or else by its operating system's machine id, so
// that an agent that is installed again goes on with its source server. One
// whose replication was ended for good becomes a new source server.
func (c *Service) RegisterAgent(ctx context.Context, caller Caller, in *formgn.RegisterAgentForMgnRequest) (*formgn.RegisterAgentForMgnResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	p := in.SourceProperties
	disks, err := registeredDisks(in)
	if err != nil {
		return nil, err
	}
	if deref(in.UserProvidedID) == "" && deref(p.MachineID) == "" {
		return nil, invalid("sourceProperties.machineID", "a machine id or a userProvidedID is needed to know the machine again")
	}
	var s *server
	isNew := false
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		var err error
		if s, err = c.sameMachine(ctx, tx, caller, deref(in.UserProvidedID), p); err != nil {
			return err
		}
		if isNew = s == nil; isNew {
			if s, err = c.newServer(ctx, tx, in); err != nil {
				return err
			}
		}
		if err := caller.Quota.count(ctx, tx, s.ID); err != nil {
			return err
		}
		s.MachineID, s.AgentVersion, s.BootMode = deref(p.MachineID), deref(in.AgentVersion), p.BootMode
		s.RegisteredBy, s.RegisteredAt = caller.ARN, stamp(c.now())
		s.Properties = properties(p, c.now())
		s.Enrolled = false
		if err := s.assignDisks(disks); err != nil {
			return err
		}
		s.describeDisks()
		if !isNew && slices.Contains(flowing, s.Replication.Flow) {
			s.Replication.initiate(c.now())
			s.CommandNumber++
		}
		return putServer(ctx, tx, s)
	})
	if err != nil {
		return nil, err
	}
	c.changes.happened() // who may reach its replication server
	c.log.Info("agent registered", "server", s.ID, "new", isNew, "hostname", s.name(), "caller", caller.ARN)
	c.happened(ctx, agentRegistered, s.ID, "new", isNew, "hostname", s.name(), "caller", caller.ARN)
	return &formgn.RegisterAgentForMgnResponse{SourceServerID: s.ID, Arn: c.arn("source-server", s.ID), IsNew: &isNew, Disks: s.replicationDisks()}, nil
}

// registeredDisks are the disks to replicate: those asked for, or all, and
// always the one that the machine boots from.
func registeredDisks(in *formgn.RegisterAgentForMgnRequest) ([]formgn.Disk, error) {
	disks := slices.Clone(in.ReplicatedDisks)
	if len(disks) == 0 {
		disks = slices.Clone(in.SourceProperties.Disks)
	}
	boots := func(d formgn.Disk) bool { return deref(d.IsBootDisk) }
	if !slices.ContainsFunc(disks, boots) {
		i := slices.IndexFunc(in.SourceProperties.Disks, boots)
		if i < 0 {
			return nil, invalid("replicatedDisks", "no disk is the one that the machine boots from")
		}
		root := in.SourceProperties.Disks[i]
		if j := slices.IndexFunc(disks, func(d formgn.Disk) bool { return d.DeviceName == root.DeviceName }); j >= 0 {
			disks[j] = root
		} else {
			disks = append([]formgn.Disk{root}, disks...)
		}
	}
	return disks, checkDisks(disks)
}

func checkDisks(disks []formgn.Disk) error {
	names, boot := map[string]bool{}, 0
	for _, d := range disks {
		switch {
		case d.DeviceName == "" || names[d.DeviceName]:
			return invalid("replicatedDisks", "disk names must be given and differ: %q", d.DeviceName)
		case d.Bytes <= 0 || d.Bytes%512 != 0:
			return invalid("replicatedDisks", "disk %s has %d bytes, which is not a positive multiple of 512", d.DeviceName, d.Bytes)
		}
		names[d.DeviceName] = true
		if deref(d.IsBootDisk) {
			boot++
		}
	}
	if boot != 1 || len(disks) > launch.MaxDisks {
		return invalid("replicatedDisks", "%d disks with %d boot disks: there must be one boot disk and at most %d disks", len(disks), boot, launch.MaxDisks)
	}
	return nil
}

// sameMachine finds the source server that the machine is already; nil if it is
// none. Who may install agents must not take the place of one that runs: then
// its certificate is asked for, which an installation beside it has.
func (c *Service) sameMachine(ctx context.Context, tx *sql.Tx, caller Caller, userID string, p *formgn.SourceProperties) (*server, error) {
	column, value := "machine_id", deref(p.MachineID)
	if userID != "" {
		column, value = "user_provided_id", userID
	}
	found, err := documents[*server](ctx, tx, `SELECT document FROM source_servers WHERE `+column+` = ?
		AND life_cycle NOT IN ('DISCONNECTED', 'CUTOVER') AND archived = 0 ORDER BY id LIMIT 1`, value)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	s := found[0]
	seen := parseStamp(c.gauge.get(s.ID).SeenAt)
	running := c.now().Sub(seen) < c.opts.AgentTimeout
	proven, err := c.holds(ctx, tx, caller.Peer, s.ID)
	if err != nil {
		return nil, err
	}
	switch {
	case userID != "" && s.MachineID != "" && s.MachineID != deref(p.MachineID):
		return nil, conflict("SourceServer", s.ID, fmt.Sprintf("userProvidedID %q belongs to source server %s, which is another machine: disconnect that first, or give another id", userID, s.ID))
	case running && !proven && shareNetwork(s.Properties, p):
		return nil, conflict("SourceServer", s.ID, fmt.Sprintf("the agent of source server %s is running, and the installation has not shown its certificate: install on that machine, with the same --state-dir; or, if that agent is gone, wait %v and try again", s.ID, c.opts.AgentTimeout))
	case userID == "" && s.UserProvidedID != "":
		return s, nil
	case running && !shareNetwork(s.Properties, p):
		// Disks of two machines must never be mixed in one replica.
		return nil, conflict("SourceServer", s.ID, fmt.Sprintf("source server %s has the same machine id and its agent is running on a machine with other network interfaces: this looks like a clone; give it a machine id of its own (systemd-machine-id-setup) or --user-provided-id", s.ID))
	}
	return s, nil
}

// shareNetwork reports whether a network interface is the same, or nothing is known.
func shareNetwork(a *mgn.SourceProperties, b *formgn.SourceProperties) bool {
	if a == nil || len(a.NetworkInterfaces) == 0 || len(b.NetworkInterfaces) == 0 {
		return true
	}
	return slices.ContainsFunc(a.NetworkInterfaces, func(x mgn.NetworkInterface) bool {
		return slices.ContainsFunc(b.NetworkInterfaces, func(y formgn.NetworkInterface) bool { return x.MacAddress == deref(y.MacAddress) })
	})
}

func (c *Service) newServer(ctx context.Context, tx *sql.Tx, in *formgn.RegisterAgentForMgnRequest) (*server, error) {
	s := &server{ID: newID("s"), UserProvidedID: deref(in.UserProvidedID)}
	s.LifeCycle = mgn.LifeCycle{AddedToServiceDateTime: stamp(c.now()), State: mgn.LifeCycleStateNotReady}
	if deref(in.NoReplication) {
		s.LifeCycle.State, s.Replication.Flow = mgn.LifeCycleStateStopped, mgn.DataReplicationStateStopped
	} else {
		s.Replication.initiate(c.now())
	}
	if err := c.templated(ctx, tx, s); err != nil {
		return nil, err
	}
	s.ReplicatorID = c.chooseReplicator(ctx, tx)
	return s, putTags(ctx, tx, c.arn("source-server", s.ID), in.Tags)
}

// describeDisks makes the replication configuration list the disks.
func (s *server) describeDisks() {
	old := s.Config.ReplicatedDisks
	s.Config.ReplicatedDisks = []mgn.ReplicationConfigurationReplicatedDisk{}
	for _, d := range s.active() {
		entry := mgn.ReplicationConfigurationReplicatedDisk{StagingDiskType: "AUTO"}
		if i := slices.IndexFunc(old, func(o mgn.ReplicationConfigurationReplicatedDisk) bool { return deref(o.DeviceName) == d.Name }); i >= 0 {
			entry = old[i]
		}
		name, boot := d.Name, d.Boot
		entry.DeviceName, entry.IsBootDisk = &name, &boot
		s.Config.ReplicatedDisks = append(s.Config.ReplicatedDisks, entry)
	}
}

// agentOf finds the server of an agent's call and refuses it if the server has ended.
func (c *Service) agentOf(ctx context.Context, q querier, id string) (*server, error) {
	s, err := getServer(ctx, q, id)
	if err != nil {
		return nil, orNotFound(err, id)
	}
	if s.ended() {
		return nil, denied("source server %s is %s: its agent may only fetch its last command", id, s.LifeCycle.State)
	}
	return s, nil
}

// report is how calls that mostly change nothing are done: what is to be changed
// is found out on a copy, and only then is there a transaction.
func (c *Service) report(ctx context.Context, id string, do func(s *server) (changed bool)) (s *server, changed bool, err error) {
	s, err = c.agentOf(ctx, c.db.reader, id)
	if err != nil || !do(s) {
		return s, false, err
	}
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		if s, err = c.agentOf(ctx, tx, id); err != nil || !do(s) {
			return err
		}
		return putServer(ctx, tx, s)
	})
	return s, true, err
}

// seen notes when an agent has called, and from where.
func (c *Service) seen(ctx context.Context, id string) {
	from, moved := calledFrom(ctx, id), false
	c.gauge.set(id, func(t *telemetry) {
		t.SeenAt = stamp(c.now())
		if from != "" && from != t.From {
			t.From, moved = from, true
		}
	})
	if moved { // rules that name a group follow its members
		c.changes.happened()
	}
}

// GetAgentCommand implements GetAgentCommandForMgn: the state that the agent is
// to be in, every time; commandID changes with it.
func (c *Service) GetAgentCommand(ctx context.Context, in *formgn.GetAgentCommandForMgnRequest) (*formgn.GetAgentCommandForMgnResponse, error) {
	s, err := getServer(ctx, c.db.reader, in.SourceServerID)
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	c.seen(ctx, s.ID)
	if digest := deref(in.TrustDigest); len(digest) <= 2*sha256.Size {
		c.gauge.set(s.ID, func(t *telemetry) { t.Trusts = digest })
	}
	if s.ended() {
		return c.lastCommand(ctx, s.ID)
	}
	retry := false
	s, changed, err := c.report(ctx, s.ID, func(s *server) bool {
		changed := s.Replication.blameGone(byService, mgn.DataReplicationErrorStringAgentNotSeen, c.now())
		changed = s.Replication.reached(stepWait, c.now()) || changed
		if c.replicatorSeen(s.ReplicatorID) {
			changed = s.Replication.done(stepAuthenticate, c.now()) || changed
		}
		if v := deref(in.AgentVersion); v != "" && v != s.AgentVersion {
			s.AgentVersion, changed = v, true
		}
		retry, s.Retry = s.Retry, false
		return changed || retry
	})
	if err != nil {
		return nil, err
	}
	orders, news, err := c.orders(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	if !changed && !news {
		awsapi.Routine(ctx)
	}
	address, err := c.pairedAddress(ctx, s)
	if err != nil {
		return nil, err
	}
	return &formgn.GetAgentCommandForMgnResponse{Tasks: orders, Command: s.command(), CommandID: s.commandID(), Retry: &retry, ReplicatorAddress: address,
		BandwidthThrottling: s.Config.BandwidthThrottling, TrustBundle: c.trustBundle(in.TrustDigest)}, nil
}

func (s *server) command() formgn.AgentCommand {
	switch s.Replication.Flow {
	case mgn.DataReplicationStateStopped:
		return formgn.AgentCommandStop
	case mgn.DataReplicationStatePaused:
		return formgn.AgentCommandPause
	case mgn.DataReplicationStateDisconnected:
		return formgn.AgentCommandUninstall
	default:
		return formgn.AgentCommandStart
	}
}

func (s *server) commandID() string { return fmt.Sprintf("%s-%d", s.ID, s.CommandNumber) }

// lastCommand tells an agent to uninstall itself.
func (c *Service) lastCommand(ctx context.Context, id string) (*formgn.GetAgentCommandForMgnResponse, error) {
	s, err := c.change(ctx, id, func(_ *sql.Tx, s *server) error {
		if !s.learning(c.now()) {
			return denied("source server %s is %s and its agent has been told to uninstall itself", id, s.LifeCycle.State)
		}
		if s.Uninstall.DeliveredAt == "" {
			s.Uninstall.DeliveredAt = stamp(c.now())
		}
		return nil
	})
	if err != nil {
		return nil, orNotFound(err, id)
	}
	return &formgn.GetAgentCommandForMgnResponse{Command: formgn.AgentCommandUninstall, CommandID: s.commandID()}, nil
}

// GetAgentReplicationInfo implements GetAgentReplicationInfoForMgn: the pairing.
func (c *Service) GetAgentReplicationInfo(ctx context.Context, in *formgn.GetAgentReplicationInfoForMgnRequest) (*formgn.GetAgentReplicationInfoForMgnResponse, error) {
	s, changed, err := c.report(ctx, in.SourceServerID, func(s *server) bool {
		changed := s.Replication.reached(stepWait, c.now())
		if c.ReplicatorAddress(s.ReplicatorID) == "" {
			return changed
		}
		return s.Replication.reached(stepPair, c.now()) || changed
	})
	if err != nil {
		return nil, err
	}
	address, err := c.pairedAddress(ctx, s)
	if err != nil {
		return nil, err
	}
	c.seen(ctx, s.ID)
	if !changed {
		awsapi.Routine(ctx)
	}
	out := &formgn.GetAgentReplicationInfoForMgnResponse{Disks: s.replicationDisks(), Generation: &s.Generation}
	if address != "" {
		out.ReplicatorID, out.ReplicatorAddress = s.ReplicatorID, address
	}
	return out, nil
}

// UpdateAgentReplicationInfo implements UpdateAgentReplicationInfoForMgn: what
// was said of the disks at the registration is replaced. The ids that the agent
// sends are not believed.
func (c *Service) UpdateAgentReplicationInfo(ctx context.Context, in *formgn.UpdateAgentReplicationInfoForMgnRequest) (*formgn.UpdateAgentReplicationInfoForMgnResponse, error) {
	disks := make([]formgn.Disk, len(in.Disks))
	for i, d := range in.Disks {
		disks[i] = formgn.Disk{DeviceName: d.DeviceName, Bytes: d.Bytes, IsBootDisk: d.IsBootDisk, Serial: d.Serial}
	}
	if err := checkDisks(disks); err != nil {
		return nil, err
	}
	var refused error
	s, _, err := c.report(ctx, in.SourceServerID, func(s *server) bool {
		before := slices.Clone(s.Disks)
		s.Disks = slices.Clone(s.Disks)
		if refused = s.assignDisks(disks); refused != nil {
			return false
		}
		s.describeDisks()
		return !slices.Equal(before, s.Disks)
	})
	if err != nil || refused != nil {
		return nil, errors.Join(err, refused)
	}
	return &formgn.UpdateAgentReplicationInfoForMgnResponse{Disks: s.replicationDisks()}, nil
}

// UpdateAgentSourceProperties implements UpdateAgentSourcePropertiesForMgn.
func (c *Service) UpdateAgentSourceProperties(ctx context.Context, in *formgn.UpdateAgentSourcePropertiesForMgnRequest) (*formgn.UpdateAgentSourcePropertiesForMgnResponse, error) {
	_, _, err := c.report(ctx, in.SourceServerID, func(s *server) bool {
		s.Properties = properties(in.SourceProperties, c.now())
		if in.SourceProperties.BootMode != "" {
			s.BootMode = in.SourceProperties.BootMode
		}
		return true
	})
	return &formgn.UpdateAgentSourcePropertiesForMgnResponse{}, err
}

// reportable are the states that an agent can be in.
var reportable = []formgn.DataReplicationState{"INITIAL_SYNC", "RESCAN", "BACKLOG", "CREATING_SNAPSHOT", "CONTINUOUS"}

// UpdateAgentBacklog implements UpdateAgentBacklogForMgn. From the agent of an
// ended server, DISCONNECTED confirms that it has uninstalled itself.
func (c *Service) UpdateAgentBacklog(ctx context.Context, in *formgn.UpdateAgentBacklogForMgnRequest) (*formgn.UpdateAgentBacklogForMgnResponse, error) {
	out := &formgn.UpdateAgentBacklogForMgnResponse{}
	if in.State == formgn.DataReplicationStateDisconnected {
		return out, c.confirmUninstall(ctx, in.SourceServerID)
	}
	now := c.now()
	_, changed, err := c.report(ctx, in.SourceServerID, func(s *server) bool {
		changed := s.Replication.blame(byAgent, string(in.Error), deref(in.RawError), now)
		if slices.Contains(reportable, in.State) {
			// The agent is believed that it copies, once the replication server has
			// said that it is there: comparing may send nothing for hours.
			if s.Replication.current() == stepTransfer && slices.ContainsFunc(in.Disks, moving) {
				changed = s.Replication.transferring(now) || changed
			}
			changed = s.flow(mgn.DataReplicationState(in.State), now) || changed
		}
		return changed
	})
	if err != nil {
		return nil, err
	}
	c.gauge.set(in.SourceServerID, func(t *telemetry) {
		changed = changed || t.Tracking != in.TrackingMethod || t.Reason != deref(in.TrackingReason)
		t.SeenAt, t.Disks, t.ETA = stamp(now), in.Disks, ""
		t.Tracking, t.Reason = in.TrackingMethod, deref(in.TrackingReason)
		if in.EtaSeconds != nil {
			t.ETA = stamp(now.Add(time.Duration(*in.EtaSeconds) * time.Second))
		}
		if in.LagMilliseconds != nil {
			t.CurrentAt = max(t.CurrentAt, stamp(now.Add(-time.Duration(*in.LagMilliseconds)*time.Millisecond)))
		}
	})
	if !changed {
		awsapi.Routine(ctx)
	}
	return out, nil
}

func moving(d formgn.DiskProgress) bool {
	return d.ReplicatedStorageBytes > 0 || d.RescannedStorageBytes > 0
}

// underWay is how long a report may take from the agent to here.
const underWay = 10 * time.Second

// flow takes a state over that was reported, as far as it can be true: not
// before data has come, not CONTINUOUS before there is a point to launch from,
// and not the first copy when the report crossed the point that ended it.
func (s *server) flow(reported mgn.DataReplicationState, now time.Time) bool {
	r := &s.Replication
	if !slices.Contains(flowing, r.Flow) || r.current() >= 0 {
		return false
	}
	if reported == mgn.DataReplicationStateInitialSync && r.FirstPoint != "" && now.Sub(parseStamp(r.FirstPoint)) < underWay {
		return false
	}
	if reported == mgn.DataReplicationStateContinuous && r.FirstPoint == "" {
		reported = mgn.DataReplicationStateCreatingSnapshot
	}
	if reported == mgn.DataReplicationStateInitialSync && r.FirstPoint != "" {
		reported = mgn.DataReplicationStateRescan
	}
	if reported == mgn.DataReplicationStateRescan && r.FirstPoint == "" {
		reported = mgn.DataReplicationStateInitialSync
	}
	changed := r.Flow != reported
	r.Flow = reported
	return changed
}

func (c *Service) confirmUninstall(ctx context.Context, id string) error {
	_, err := c.change(ctx, id, func(_ *sql.Tx, s *server) error {
		if !s.learning(c.now()) {
			// Uninstalled on the machine itself: at least it does not run any more.
			c.gauge.set(id, func(t *telemetry) { t.SeenAt = "" })
			return denied("source server %s has not been told to uninstall its agent", id)
		}
		s.Uninstall.ConfirmedAt = stamp(c.now())
		return nil
	})
	if err != nil {
		return orNotFound(err, id)
	}
	c.happened(ctx, agentUninstalled, id)
	return c.opts.Sessions.Revoke(ctx, id)
}

// maxAgentLog is how many lines are kept of each agent.
const maxAgentLog = 1000

// SendAgentLogs implements SendAgentLogsForMgn.
func (c *Service) SendAgentLogs(ctx context.Context, in *formgn.SendAgentLogsForMgnRequest) (*formgn.SendAgentLogsForMgnResponse, error) {
	err := c.db.update(ctx, func(tx *sql.Tx) error {
		if _, err := c.agentOf(ctx, tx, in.SourceServerID); err != nil {
			return err
		}
		var last int
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(position), 0) FROM agent_logs WHERE server_id = ?`, in.SourceServerID).Scan(&last); err != nil {
			return err
		}
		for _, line := range in.Lines {
			last++
			if _, err := tx.ExecContext(ctx, `INSERT INTO agent_logs (server_id, position, logged_at, level, message) VALUES (?, ?, ?, ?, ?)`,
				in.SourceServerID, last, line.DateTime, deref(line.Level), line.Message); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM agent_logs WHERE server_id = ? AND position <= ?`, in.SourceServerID, last-maxAgentLog)
		return err
	})
	return &formgn.SendAgentLogsForMgnResponse{}, err
}

// maxMetrics bounds what an agent can make us remember.
const maxMetrics = 200

// SendAgentMetrics implements SendAgentMetricsForMgn: the last value of each is kept.
func (c *Service) SendAgentMetrics(ctx context.Context, in *formgn.SendAgentMetricsForMgnRequest) (*formgn.SendAgentMetricsForMgnResponse, error) {
	if _, err := c.agentOf(ctx, c.db.reader, in.SourceServerID); err != nil {
		return nil, err
	}
	var err error
	c.gauge.set(in.SourceServerID, func(t *telemetry) {
		values := map[string]float64{}
		for name, v := range t.Metrics {
			values[name] = v
		}
		for _, m := range in.Metrics {
			if _, known := values[m.Name]; !known && len(values) >= maxMetrics {
				err = errors.Join(invalid("metrics", "at most %d metrics are kept", maxMetrics))
				continue
			}
			values[m.Name] = m.Value
		}
		t.Metrics = values
	})
	awsapi.Routine(ctx)
	return &formgn.SendAgentMetricsForMgnResponse{}, err
}
