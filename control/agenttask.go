package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"rehost/awsapi/formgn"
	"rehost/release"
)

// A command says in which state an agent is to be, and holds until there is another.
// A task is something that an agent does once, when an operator asks for it:
//
//	PENDING --fetched--> DELIVERED --> SUCCEEDED
//	   |                     |-------> FAILED: the agent says why
//	   +---------------------+-------> EXPIRED: an hour after it was asked for
//
// There is one open task of a kind for a source server. It is offered to the agent until
// it has ended, so that neither side forgets it by being killed.

const (
	taskLife     = time.Hour
	taskPause    = time.Minute // between two of a kind of one source server
	tasksListed  = 20          // of one source server; older ones are forgotten
	openTask     = `state IN ('PENDING', 'DELIVERED')`
	isTask       = "AgentTask"
	tasksOfAgent = `SELECT document FROM agent_tasks WHERE server_id = ?`
)

// An agentTask is the document of one.
type agentTask struct {
	ID          string                `json:"id"`
	ServerID    string                `json:"serverID"`
	Kind        formgn.AgentTaskKind  `json:"kind"`
	State       formgn.AgentTaskState `json:"state"`
	RequestedBy string                `json:"requestedBy"` // ARN
	RequestedAt string                `json:"requestedAt"`
	Deadline    string                `json:"deadline"`
	EndedAt     string                `json:"endedAt,omitempty"`
	Message     string                `json:"message,omitempty"`
	Version     string                `json:"version,omitempty"` // of an upgrade, when it was asked for
	Bundle      *bundle               `json:"bundle,omitempty"`  // what has come of it so far
}

func (t *agentTask) open(now time.Time) bool {
	return (t.State == formgn.AgentTaskStatePending || t.State == formgn.AgentTaskStateDelivered) && stamp(now) < t.Deadline
}

func (t *agentTask) end(state formgn.AgentTaskState, message string, now time.Time) {
	t.State, t.Message, t.EndedAt = state, message, stamp(now)
}

func (t *agentTask) shape() formgn.AgentTask {
	out := formgn.AgentTask{TaskID: t.ID, SourceServerID: t.ServerID, Kind: t.Kind, State: t.State, RequestedBy: t.RequestedBy, RequestedDateTime: t.RequestedAt,
		DeadlineDateTime: t.Deadline, EndedDateTime: t.EndedAt, Message: t.Message, Version: t.Version}
	if b := t.Bundle; b != nil && b.KeptUntil != "" {
		out.SizeBytes, out.Sha256, out.KeptUntilDateTime = &b.Size, b.Sum, b.KeptUntil
	}
	return out
}

func putTask(ctx context.Context, tx *sql.Tx, t *agentTask) error {
	kept := ""
	if t.Bundle != nil {
		kept = t.Bundle.KeptUntil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO agent_tasks (id, server_id, kind, state, requested_at, deadline, kept_until, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, kept_until = excluded.kept_until, document = excluded.document`,
		t.ID, t.ServerID, string(t.Kind), string(t.State), t.RequestedAt, t.Deadline, kept, encode(t))
	if err != nil {
		return fmt.Errorf("write task %s: %w", t.ID, err)
	}
	return nil
}

// taskOf finds a task of that source server; to others it does not exist.
func taskOf(ctx context.Context, q querier, serverID, id string) (*agentTask, error) {
	found, err := documents[*agentTask](ctx, q, tasksOfAgent+` AND id = ?`, serverID, id)
	if err == nil && len(found) == 0 {
		err = notFound(isTask, id)
	}
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

// openTaskOf finds a task for its agent, which is refused if it has ended.
func (c *Service) openTaskOf(ctx context.Context, q querier, serverID, id string) (*agentTask, error) {
	if _, err := c.agentOf(ctx, q, serverID); err != nil {
		return nil, err
	}
	t, err := taskOf(ctx, q, serverID, id)
	if err == nil && !t.open(c.now()) {
		err = conflict(isTask, id, fmt.Sprintf("task %s has ended: %s", id, t.State))
	}
	return t, err
}

// StartAgentTask implements StartAgentTaskForRehost. caller is the ARN of who asks.
func (c *Service) StartAgentTask(ctx context.Context, caller string, in *formgn.StartAgentTaskForRehostRequest) (*formgn.StartAgentTaskForRehostResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	var t *agentTask
	err := c.db.update(ctx, func(tx *sql.Tx) (err error) {
		t, err = c.startTask(ctx, tx, caller, in.SourceServerID, in.Kind)
		return err
	})
	if err != nil {
		return nil, err
	}
	shape := t.shape()
	return &formgn.StartAgentTaskForRehostResponse{Task: &shape}, nil
}

func (c *Service) startTask(ctx context.Context, tx *sql.Tx, caller, serverID string, kind formgn.AgentTaskKind) (*agentTask, error) {
	s, err := getServer(ctx, tx, serverID)
	if err != nil {
		return nil, orNotFound(err, serverID)
	}
	if s.ended() {
		return nil, conflict("SourceServer", serverID, fmt.Sprintf("source server %s is %s: its agent does nothing any more", serverID, s.LifeCycle.State))
	}
	if _, err := c.expireTasks(ctx, tx); err != nil {
		return nil, err
	}
	last, err := documents[*agentTask](ctx, tx, tasksOfAgent+` AND kind = ? ORDER BY requested_at DESC, rowid DESC LIMIT 1`, serverID, string(kind))
	if err != nil {
		return nil, err
	}
	if len(last) > 0 && last[0].open(c.now()) {
		return last[0], nil
	}
	version, there := "", false
	if kind == formgn.AgentTaskKindUpgrade {
		if version, there, err = c.upgradeOf(s); err != nil {
			return nil, err
		}
	}
	if !there && len(last) > 0 && c.now().Sub(parseStamp(last[0].RequestedAt)) < taskPause {
		return nil, conflict("SourceServer", serverID, fmt.Sprintf("the agent of source server %s was asked for this less than %v ago: see task %s", serverID, taskPause, last[0].ID))
	}
	if kind == formgn.AgentTaskKindCollectLogs {
		if err := c.roomForBundle(ctx, tx); err != nil {
			return nil, err
		}
	}
	now := c.now()
	t := &agentTask{ID: newID("t"), ServerID: serverID, Kind: kind, State: formgn.AgentTaskStatePending, RequestedBy: caller, RequestedAt: stamp(now), Deadline: stamp(now.Add(taskLife)), Version: version}
	if there {
		t.end(formgn.AgentTaskStateSucceeded, "the agent is of this version already", now)
	}
	if err := putTask(ctx, tx, t); err != nil {
		return nil, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM agent_tasks WHERE server_id = ?1 AND kept_until = '' AND id NOT IN
		(SELECT id FROM agent_tasks WHERE server_id = ?1 ORDER BY requested_at DESC, rowid DESC LIMIT ?2)`, serverID, tasksListed)
	return t, err
}

// upgradeOf is the version that the agent of a source server is to be of, and whether it
// says that it is already. Whether to take it is the agent's to say, which looks at the
// signature.
func (c *Service) upgradeOf(s *server) (version string, there bool, err error) {
	if c.opts.Release == nil {
		return "", false, conflict("SourceServer", s.ID, "there is no version to upgrade agents to")
	}
	offered, err := c.opts.Release()
	if err != nil {
		return "", false, conflict("SourceServer", s.ID, fmt.Sprintf("there is no version to upgrade agents to: %v", err))
	}
	here, err := release.ParseVersion(s.AgentVersion)
	if err == nil && here.Compare(offered) > 0 {
		return "", false, conflict("SourceServer", s.ID, fmt.Sprintf("the agent of source server %s is of version %s, and the service has %s: agents take only newer ones from it", s.ID, here, offered))
	}
	return offered.String(), err == nil && here == offered, nil
}

// DescribeAgentTasks implements DescribeAgentTasksForRehost.
func (c *Service) DescribeAgentTasks(ctx context.Context, in *formgn.DescribeAgentTasksForRehostRequest) (*formgn.DescribeAgentTasksForRehostResponse, error) {
	if _, err := getServer(ctx, c.db.reader, in.SourceServerID); err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	found, err := documents[*agentTask](ctx, c.db.reader, tasksOfAgent+` ORDER BY requested_at DESC, rowid DESC LIMIT ?`, in.SourceServerID, tasksListed)
	if err != nil {
		return nil, err
	}
	return &formgn.DescribeAgentTasksForRehostResponse{Tasks: c.tasks(found)}, nil
}

// tasks are shown as they are now: what is over its deadline has not always been noticed.
func (c *Service) tasks(found []*agentTask) []formgn.AgentTask {
	out := []formgn.AgentTask{}
	for _, t := range found {
		if t.EndedAt == "" && !t.open(c.now()) {
			t.State = formgn.AgentTaskStateExpired
		}
		out = append(out, t.shape())
	}
	return out
}

// orders are what the agent has still to do. News is whether it hears of some of it for
// the first time.
func (c *Service) orders(ctx context.Context, serverID string) (out []formgn.AgentOrder, news bool, err error) {
	open, err := documents[*agentTask](ctx, c.db.reader, tasksOfAgent+` AND `+openTask+` ORDER BY requested_at`, serverID)
	if err != nil {
		return nil, false, err
	}
	for _, t := range open {
		if !t.open(c.now()) {
			continue
		}
		if t.State == formgn.AgentTaskStatePending {
			news = true
			if err := c.deliver(ctx, t); err != nil {
				return nil, false, err
			}
		}
		out = append(out, formgn.AgentOrder{TaskID: t.ID, Kind: string(t.Kind)})
	}
	return out, news, nil
}

// deliver writes down that the agent knows of the task, unless it has ended meanwhile.
func (c *Service) deliver(ctx context.Context, t *agentTask) error {
	return c.db.update(ctx, func(tx *sql.Tx) error {
		now, err := taskOf(ctx, tx, t.ServerID, t.ID)
		if err != nil || now.State != formgn.AgentTaskStatePending {
			return err
		}
		now.State = formgn.AgentTaskStateDelivered
		return putTask(ctx, tx, now)
	})
}

// UpdateAgentTask implements UpdateAgentTaskForRehost.
func (c *Service) UpdateAgentTask(ctx context.Context, in *formgn.UpdateAgentTaskForRehostRequest) (*formgn.UpdateAgentTaskForRehostResponse, error) {
	var t *agentTask
	err := c.db.update(ctx, func(tx *sql.Tx) (err error) {
		if t, err = c.openTaskOf(ctx, tx, in.SourceServerID, in.TaskID); err != nil {
			return orNotFound(err, in.SourceServerID)
		}
		switch {
		case in.Failure != nil:
			t.end(formgn.AgentTaskStateFailed, *in.Failure, c.now())
		case t.Kind == formgn.AgentTaskKindUpgrade:
			t.end(formgn.AgentTaskStateSucceeded, "", c.now())
		default: // it brings something, and that ends it
			return conflict(isTask, t.ID, fmt.Sprintf("task %s has not brought what it was asked for", t.ID))
		}
		return putTask(ctx, tx, t)
	})
	if err != nil {
		return nil, err
	}
	if t.State == formgn.AgentTaskStateSucceeded {
		c.happened(ctx, agentUpgraded, t.ServerID, "task", t.ID, "version", t.Version)
		return &formgn.UpdateAgentTaskForRehostResponse{}, nil
	}
	c.happened(ctx, agentTaskFailed, t.ServerID, "task", t.ID, "kind", t.Kind, "why", t.Message)
	return &formgn.UpdateAgentTaskForRehostResponse{}, nil
}

// expireTasks ends what is over its deadline.
func (c *Service) expireTasks(ctx context.Context, tx *sql.Tx) (expired []*agentTask, err error) {
	expired, err = documents[*agentTask](ctx, tx, `SELECT document FROM agent_tasks WHERE `+openTask+` AND deadline <= ?`, stamp(c.now()))
	for _, t := range expired {
		why := "the agent has not fetched it"
		if t.State == formgn.AgentTaskStateDelivered {
			why = "the agent has fetched it and not finished"
		}
		t.end(formgn.AgentTaskStateExpired, why, c.now())
		err = errors.Join(err, putTask(ctx, tx, t))
	}
	return expired, err
}

// watchTasks ends what is over its deadline, and removes bundles that nobody is to have any more.
func (c *Service) watchTasks(ctx context.Context) error {
	var due int
	err := c.db.reader.QueryRowContext(ctx, `SELECT COUNT(*) FROM agent_tasks WHERE `+openTask+` AND deadline <= ?1 OR kept_until <> '' AND kept_until <= ?1`, stamp(c.now())).Scan(&due)
	if err == nil && due > 0 {
		var expired []*agentTask
		err = c.db.update(ctx, func(tx *sql.Tx) (err error) {
			if expired, err = c.expireTasks(ctx, tx); err != nil {
				return err
			}
			return c.forgetBundles(ctx, tx)
		})
		for _, t := range expired {
			c.happened(ctx, agentTaskExpired, t.ServerID, "task", t.ID, "kind", t.Kind, "why", t.Message)
		}
	}
	if err != nil {
		return fmt.Errorf("watch tasks: %w", err)
	}
	return c.sweepBundles(ctx)
}
