package control

import (
	"context"

	"rehost/awsapi/mgn"
)

// Events keeps what happens that is not a call, or more than its call says: for
// the audit log. Record must not block for longer than a write to memory takes,
// and reports its failures itself.
type Events interface {
	Record(ctx context.Context, e Event)
}

// An Event is something that happened. It is recorded once it is durable.
type Event struct {
	Name      string         // AgentRegistered
	Account   string         // 12 digits
	Resources []string       // ARNs
	Details   map[string]any // no secrets
}

// The names of events.
const (
	agentRegistered     = "AgentRegistered"
	agentConnected      = "AgentConnected"
	agentDisconnected   = "AgentDisconnected"
	agentNotBelieved    = "AgentNotBelieved"
	agentUninstalled    = "AgentUninstalled"
	agentUpgraded       = "AgentUpgraded"
	agentTaskExpired    = "AgentTaskExpired"
	agentTaskFailed     = "AgentTaskFailed"
	bundleReceived      = "SupportBundleReceived"
	certificateIssued   = "CertificateIssued"
	certificatesRevoked = "CertificatesRevoked"
	sessionFenced       = "SessionFenced"
	pointsRetracted     = "PointsRetracted"
	replicaDeleted      = "ReplicaDeleted"
	instanceLaunched    = "InstanceLaunched"
	instanceFailed      = "InstanceLaunchFailed"
	instanceBooted      = "InstanceFirstBoot"
	instanceEnded       = "InstanceTerminated"
	lifeCycleChanged    = "LifeCycleStateChanged"

	securityGroupRepaired = "SecurityGroupRepaired"
)

// happened records an event of a source server; details are names and values.
func (c *Service) happened(ctx context.Context, name, serverID string, details ...any) {
	c.record(ctx, name, []string{c.arn("source-server", serverID)}, details...)
}

// record records an event of whatever resources.
func (c *Service) record(ctx context.Context, name string, resources []string, details ...any) {
	if c.opts.Events == nil {
		return
	}
	e := Event{Name: name, Account: c.opts.Account, Resources: resources, Details: map[string]any{}}
	for i := 0; i+1 < len(details); i += 2 {
		e.Details[details[i].(string)] = details[i+1]
	}
	c.opts.Events.Record(context.WithoutCancel(ctx), e)
}

// moved records that the life cycle has gone on, if it has.
func (c *Service) moved(ctx context.Context, s *server, from mgn.LifeCycleState, why string) {
	if s.LifeCycle.State != from {
		c.happened(ctx, lifeCycleChanged, s.ID, "from", from, "to", s.LifeCycle.State, "by", why)
	}
}
