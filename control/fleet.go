package control

import (
	"context"
	"fmt"

	"rehost/awsapi/formgn"
)

// DescribeAgents implements DescribeAgentsForRehost: all source servers that are not
// archived, as what runs on them.
func (c *Service) DescribeAgents(ctx context.Context, in *formgn.DescribeAgentsForRehostRequest) (*formgn.DescribeAgentsForRehostResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	const operation = "DescribeAgentsForRehost"
	after, limit, err := c.pager.start(operation, nil, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	servers, err := documents[*server](ctx, c.db.reader, `SELECT document FROM source_servers WHERE id > ? AND archived = 0 ORDER BY id LIMIT ?`, after, limit+1)
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	servers, token := next(c.pager, operation, nil, servers, limit, func(s *server) string { return s.ID })
	open, err := documents[*agentTask](ctx, c.db.reader, `SELECT document FROM agent_tasks WHERE `+openTask+` AND deadline > ? ORDER BY requested_at`, stamp(c.now()))
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	tasks := map[string][]*agentTask{}
	for _, t := range open {
		tasks[t.ServerID] = append(tasks[t.ServerID], t)
	}
	out := &formgn.DescribeAgentsForRehostResponse{Items: []formgn.Agent{}, NextToken: token}
	for _, s := range servers {
		out.Items = append(out.Items, c.agent(s, tasks[s.ID]))
	}
	return out, nil
}

func (c *Service) agent(s *server, open []*agentTask) formgn.Agent {
	t := c.gauge.get(s.ID)
	a := formgn.Agent{SourceServerID: s.ID, Hostname: s.name(), AgentVersion: s.AgentVersion, LifeCycleState: string(s.LifeCycle.State),
		ReplicationState: formgn.DataReplicationState(s.Replication.state()), LastSeenDateTime: t.SeenAt,
		TrackingMethod: t.Tracking, TrackingReason: t.Reason, OpenTasks: c.tasks(open)}
	if s.launchable() && (t.CurrentAt != "" || t.PointAt != "") {
		lag := t.lag(c.now()).Milliseconds()
		a.LagMilliseconds = &lag
	}
	return a
}
