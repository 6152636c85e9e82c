package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"rehost/awsapi/mgn"
)

// What happens by itself: silence is noticed, telemetry is written down, and
// replicas and support bundles that nothing needs any more are deleted.

// watch looks at everything once.
func (c *Service) watch(ctx context.Context) error {
	return errors.Join(c.gauge.flush(ctx, c.db), c.watchServers(ctx), c.repairGroups(ctx), c.deleteCondemned(ctx), c.watchTasks(ctx))
}

func (c *Service) watchServers(ctx context.Context) error {
	servers, err := documents[*server](ctx, c.db.reader, `SELECT document FROM source_servers WHERE flow = 'INITIATING'`)
	if err != nil {
		return fmt.Errorf("watch source servers: %w", err)
	}
	for _, id := range c.quiet() {
		s, err := getServer(ctx, c.db.reader, id)
		if errors.Is(err, errNoServer) {
			c.gauge.forget(id) // a report that came while the server was deleted
			continue
		}
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	for _, s := range servers {
		if !c.inspect(s) {
			continue
		}
		_, err := c.change(ctx, s.ID, func(_ *sql.Tx, s *server) error { c.inspect(s); return nil })
		if err != nil && !errors.Is(err, errNoServer) {
			return err
		}
	}
	return nil
}

// quiet are the servers whose agent is silent or has left its session, so that
// not every document has to be read to find them.
func (c *Service) quiet() (ids []string) {
	for id, t := range c.gauge.all() {
		if t.GoneAt != "" || c.silent(t.SeenAt, c.opts.AgentTimeout) {
			ids = append(ids, id)
		}
	}
	return ids
}

// inspect blames silence. It reports whether that changed anything.
func (c *Service) inspect(s *server) (changed bool) {
	r, now, t := &s.Replication, c.now(), c.gauge.get(s.ID)
	if !slices.Contains(flowing, r.Flow) {
		return false
	}
	if c.silent(t.SeenAt, c.opts.AgentTimeout) && c.silent(s.RegisteredAt, c.opts.AgentTimeout) {
		return r.blame(byService, string(mgn.DataReplicationErrorStringAgentNotSeen), "the agent has not called the service since "+t.SeenAt, now)
	}
	if r.Flow == mgn.DataReplicationStateInitiating {
		step := r.current()
		if step <= stepWait || r.Steps[step] == failed || !c.silent(r.SteppedAt, c.opts.StepTimeout) {
			return false
		}
		r.Steps[step] = failed
		return r.blame(byService, string(initiation[step].fails), fmt.Sprintf("step %s has not succeeded within %v", initiation[step].name, c.opts.StepTimeout), now)
	}
	if t.GoneAt != "" && c.silent(t.GoneAt, c.opts.StepTimeout) {
		return r.blame(byService, string(mgn.DataReplicationErrorStringUnstableNetwork), "the agent has not come back to the replication server since "+t.GoneAt+": "+t.GoneWhy, now)
	}
	return false
}

// silent: longer ago than limit, and this process has listened that long too.
func (c *Service) silent(at string, limit time.Duration) bool {
	last := parseStamp(at)
	if last.Before(c.started) {
		last = c.started
	}
	return c.now().Sub(last) > limit
}

// replicaGrace is how long a condemned replica stays, so that a session of its
// agent has been closed before.
const replicaGrace = 30 * time.Second

// condemned lists the servers whose replicas are to go and may.
func (c *Service) condemned(ctx context.Context) (ids []string, err error) {
	rows, err := c.db.reader.QueryContext(ctx, `SELECT server_id FROM condemned_replicas WHERE since < ?
		AND NOT EXISTS (SELECT 1 FROM instances WHERE instances.server_id = condemned_replicas.server_id AND state <> 'TERMINATED' AND independent = 0)`,
		stamp(c.now().Add(-replicaGrace)))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

func (c *Service) deleteCondemned(ctx context.Context) error {
	ids, err := c.condemned(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, id := range ids {
		if err := c.opts.Replicas.Delete(ctx, id); err != nil {
			failed = errors.Join(failed, fmt.Errorf("delete replica of %s: %w", id, err))
			continue
		}
		c.log.Info("deleted a replica", "server", id)
		c.happened(ctx, replicaDeleted, id)
		failed = errors.Join(failed, c.db.update(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `DELETE FROM condemned_replicas WHERE server_id = ?`, id)
			return err
		}))
	}
	return failed
}
