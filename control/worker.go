package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"rehost/awsapi/mgn"
	"rehost/block"
	"rehost/launch"
)

// lease is how long a job belongs to a worker that says nothing; it is renewed
// after a third of that.
const lease = 30 * time.Second

// parallel is how many servers of one job are worked on at a time.
const parallel = 4

// Run works on jobs and watches agents and instances until ctx ends. It returns
// once everything it began has stopped; jobs that are not over are resumed by
// the next Run, here or in another process.
func (c *Service) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	defer c.changes.end()
	all.Go(func() { c.every(ctx, 5*time.Second, "watch", c.watch) })
	all.Go(func() { c.every(ctx, time.Second, "observe instances", c.observeAll) })
	if c.opts.Authority != nil {
		all.Go(func() { c.every(ctx, time.Second, "look after the certificate authority", c.tendAuthority) })
	}
	if c.opts.Tunnel != nil {
		all.Go(func() { c.tendTunnel(ctx) })
	}
	owner := newID("worker")
	tick := time.NewTicker(lease / 3)
	defer tick.Stop()
	for ctx.Err() == nil {
		for {
			id, err := c.claim(ctx, owner)
			if err != nil && ctx.Err() == nil {
				c.log.Error("claim a job", "err", err)
			}
			if id == "" {
				break
			}
			all.Go(func() { c.work(ctx, owner, id) })
		}
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-tick.C:
		}
	}
}

func (c *Service) every(ctx context.Context, period time.Duration, what string, do func(context.Context) error) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := do(ctx); err != nil && ctx.Err() == nil {
				c.log.Error(what, "err", err)
			}
		}
	}
}

func (c *Service) observeAll(ctx context.Context) error {
	live, err := liveInstances(ctx, c.db.reader, "")
	for _, i := range live {
		err = errors.Join(err, c.observe(ctx, i))
	}
	return err
}

// claim takes a job that nobody works on; "" if there is none.
func (c *Service) claim(ctx context.Context, owner string) (id string, err error) {
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		now := c.now()
		err := tx.QueryRowContext(ctx, `SELECT id FROM jobs WHERE status <> 'COMPLETED' AND lease_until < ? ORDER BY created_at, id LIMIT 1`, stamp(now)).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE jobs SET status = 'STARTED', lease_owner = ?, lease_until = ? WHERE id = ?`,
			owner, stamp(now.Add(lease)), id); err != nil {
			return err
		}
		return c.logEvent(ctx, tx, id, mgn.JobLogEventJobStart, mgn.JobLogEventData{})
	})
	return id, err
}

// errLease means that another worker has taken the job over.
var errLease = errors.New("the job's lease is lost")

func (c *Service) renew(ctx context.Context, owner, id string) error {
	return c.db.update(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, `UPDATE jobs SET lease_until = ? WHERE id = ? AND lease_owner = ?`, stamp(c.now().Add(lease)), id, owner)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errLease)
		}
		return nil
	})
}

// work brings a job to its end, keeping its lease meanwhile.
func (c *Service) work(ctx context.Context, owner, id string) {
	ctx, cancel := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	defer renewing.Wait()
	defer cancel(nil)
	renewing.Go(func() {
		c.every(ctx, lease/3, "renew lease of job "+id, func(ctx context.Context) error {
			err := c.renew(ctx, owner, id)
			if errors.Is(err, errLease) {
				cancel(err)
			}
			return err
		})
	})
	if err := c.runJob(ctx, id); err != nil {
		if ctx.Err() == nil {
			c.log.Error("run job", "job", id, "err", err)
		}
		return // the lease runs out and the job is taken up again
	}
}

// runJob takes every server of the job through its remaining steps.
func (c *Service) runJob(ctx context.Context, id string) error {
	tasks, err := readTasks(ctx, c.db.reader, id)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, parallel)
	for _, t := range tasks {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if e := c.runTask(ctx, t); e != nil {
				mu.Lock()
				err = errors.Join(err, fmt.Errorf("source server %s: %w", t.serverID, e))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if err != nil {
		return err
	}
	return c.db.update(ctx, func(tx *sql.Tx) error {
		if err := c.logEvent(ctx, tx, id, mgn.JobLogEventJobEnd, mgn.JobLogEventData{}); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE jobs SET status = 'COMPLETED', ended_at = ?, lease_owner = '', lease_until = '' WHERE id = ?`, stamp(c.now()), id)
		return err
	})
}

// runTask does one step after the other. Each may be cut off anywhere and done
// again: what it leads to is written together with the step that comes next.
// An error is one of ours (the database, the end of ctx) and leaves the task as
// it is; what goes wrong with the launch itself is written down as its outcome.
func (c *Service) runTask(ctx context.Context, t task) error {
	for t.step != stepDone {
		var err error
		switch t.step {
		case stepCleanup:
			err = c.cleanup(ctx, &t)
		case stepSnapshot:
			err = c.snapshot(ctx, &t)
		case stepLaunch:
			err = c.start(ctx, &t)
		case stepTerminate:
			err = c.terminate(ctx, &t)
		default:
			err = fmt.Errorf("job step %q is not known", t.step)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// advance writes an event, the outcome of a step and the next step.
func (c *Service) advance(ctx context.Context, t *task, next step, status mgn.LaunchStatus, event mgn.JobLogEvent, cause error, do func(tx *sql.Tx) error) error {
	if ctx.Err() != nil {
		return ctx.Err() // what looks like an outcome may come from our own end
	}
	err := c.db.update(ctx, func(tx *sql.Tx) error {
		if event != "" {
			if err := c.logEvent(ctx, tx, t.jobID, event, t.data(cause)); err != nil {
				return err
			}
		}
		if do != nil {
			if err := do(tx); err != nil {
				return err
			}
		}
		// Who has lost the lease without noticing must not undo what came after.
		result, err := tx.ExecContext(ctx, `UPDATE job_servers SET step = ?, status = ? WHERE job_id = ? AND server_id = ? AND step = ?`,
			string(next), string(status), t.jobID, t.serverID, string(t.step))
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errLease)
		}
		return nil
	})
	if err == nil {
		t.step, t.status = next, status
	}
	if cause != nil {
		c.log.Error("job step", "job", t.jobID, "server", t.serverID, "event", event, "err", cause)
	}
	return err
}

func (t *task) data(cause error) mgn.JobLogEventData {
	d := mgn.JobLogEventData{SourceServerID: t.serverID, TargetInstanceID: t.instanceID}
	if cause != nil {
		d.RawError = cause.Error()
	}
	return d
}

// cleanup terminates what was launched of the server before.
func (c *Service) cleanup(ctx context.Context, t *task) error {
	live, err := liveInstances(ctx, c.db.reader, t.serverID)
	if err != nil {
		return err
	}
	if len(live) == 0 {
		return c.advance(ctx, t, stepSnapshot, mgn.LaunchStatusInProgress, "", nil, nil)
	}
	if err := c.advance(ctx, t, stepCleanup, mgn.LaunchStatusInProgress, mgn.JobLogEventCleanupStart, nil, nil); err != nil {
		return err
	}
	if err := c.terminateAll(ctx, live); err != nil {
		return c.advance(ctx, t, stepDone, mgn.LaunchStatusFailed, mgn.JobLogEventCleanupFail, err, nil)
	}
	return c.advance(ctx, t, stepSnapshot, mgn.LaunchStatusInProgress, mgn.JobLogEventCleanupEnd, nil, nil)
}

func (c *Service) terminateAll(ctx context.Context, live []*instance) error {
	for _, i := range live {
		if err := c.opts.Target.Terminate(ctx, i.ID); err != nil {
			return fmt.Errorf("terminate instance %s: %w", i.ID, err)
		}
		if err := c.unexport(i.ID); err != nil {
			return err
		}
		if err := c.db.update(ctx, func(tx *sql.Tx) error { return c.gone(ctx, tx, i) }); err != nil {
			return err
		}
		c.happened(ctx, instanceEnded, i.ServerID, "instance", i.ID, "cutover", i.Cutover)
	}
	return nil
}

// gone writes down that an instance is not there any more.
func (c *Service) gone(ctx context.Context, tx *sql.Tx, i *instance) error {
	i.State = instanceTerminated
	if err := putInstance(ctx, tx, i); err != nil {
		return err
	}
	s, err := getServer(ctx, tx, i.ServerID)
	if errors.Is(err, errNoServer) {
		return nil
	}
	if err != nil || s.Launched == nil || s.Launched.Ec2InstanceID != i.ID {
		return err
	}
	s.Launched = nil
	return putServer(ctx, tx, s)
}

// snapshot chooses the newest recovery point and writes it down, so that a
// launch that is repeated is of the same point.
func (c *Service) snapshot(ctx context.Context, t *task) error {
	if err := c.advance(ctx, t, stepSnapshot, mgn.LaunchStatusInProgress, mgn.JobLogEventSnapshotStart, nil, nil); err != nil {
		return err
	}
	i, err := c.prepare(ctx, t)
	if err != nil {
		return c.advance(ctx, t, stepDone, mgn.LaunchStatusFailed, mgn.JobLogEventSnapshotFail, err, nil)
	}
	return c.advance(ctx, t, stepLaunch, mgn.LaunchStatusInProgress, mgn.JobLogEventSnapshotEnd, nil, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE job_servers SET point = ? WHERE job_id = ? AND server_id = ?`, i.Point.String(), t.jobID, t.serverID); err != nil {
			return err
		}
		return putInstance(ctx, tx, i)
	})
}

func (c *Service) prepare(ctx context.Context, t *task) (*instance, error) {
	s, err := getServer(ctx, c.db.reader, t.serverID)
	if err != nil {
		return nil, err
	}
	jobs, err := c.jobs(ctx, c.db.reader, `WHERE id = ?`, t.jobID)
	if err != nil || len(jobs) == 0 {
		return nil, errors.Join(err, fmt.Errorf("job %s is gone", t.jobID))
	}
	points, err := c.opts.Replicas.Points(ctx, s.ID)
	if err != nil {
		return nil, fmt.Errorf("list recovery points of %s: %w", s.ID, err)
	}
	if len(points) == 0 {
		return nil, fmt.Errorf("the replica of %s has no recovery point", s.ID)
	}
	point := points[len(points)-1]
	disks, err := c.disksAt(ctx, s.ID, point.Seq)
	if err != nil {
		return nil, err
	}
	cutover := jobs[0].InitiatedBy == mgn.InitiatedByStartCutover
	i := &instance{ID: t.instanceID, ServerID: s.ID, JobID: t.jobID, State: instanceLaunching, Cutover: cutover, Point: point.Seq,
		Spec: c.spec(s, t.instanceID, cutover, disks), CalledAt: jobs[0].CreationDateTime}
	return i, i.Spec.Validate()
}

// disksAt are the disks that the replica has at a point, which may not be those
// that the agent has reported since.
func (c *Service) disksAt(ctx context.Context, serverID string, seq block.Seq) ([]block.Disk, error) {
	view, err := c.opts.Replicas.Open(ctx, serverID, seq)
	if err != nil {
		return nil, fmt.Errorf("open replica of %s at %s: %w", serverID, seq, err)
	}
	return view.Disks(), view.Close()
}

// start launches the machine. The target finds one that is there already from
// before a crash.
func (c *Service) start(ctx context.Context, t *task) error {
	i, err := getInstance(ctx, c.db.reader, t.instanceID)
	if err != nil {
		return err
	}
	if err := c.advance(ctx, t, stepLaunch, mgn.LaunchStatusInProgress, mgn.JobLogEventLaunchStart, nil, nil); err != nil {
		return err
	}
	if err = c.export(ctx, i); err == nil {
		_, err = c.opts.Target.Launch(ctx, i.Spec)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return c.launchFailed(ctx, t, i, err)
	}
	now := c.now()
	err = c.advance(ctx, t, stepDone, mgn.LaunchStatusLaunched, "", nil, func(tx *sql.Tx) error {
		i.State, i.StartedAt, i.FirstBoot = instanceRunning, stamp(now), mgn.FirstBootWaiting
		s, err := getServer(ctx, tx, t.serverID)
		if err != nil {
			return err
		}
		s.Launched = &mgn.LaunchedInstance{Ec2InstanceID: i.ID, JobID: t.jobID, FirstBoot: mgn.FirstBootWaiting}
		return errors.Join(putServer(ctx, tx, s), putInstance(ctx, tx, i))
	})
	if err == nil {
		c.log.Info("launched", "instance", i.ID, "server", i.ServerID, "job", t.jobID, "cutover", i.Cutover, "point", i.Point,
			"launchToProcessMs", now.Sub(parseStamp(i.CalledAt)).Milliseconds())
		c.happened(ctx, instanceLaunched, i.ServerID, "instance", i.ID, "job", t.jobID, "cutover", i.Cutover, "point", i.Point.String())
	}
	return err
}

// launchFailed writes down why, and makes sure that nothing of the instance is
// left. What cannot be ended now stays in the books, and is by the next launch
// or TerminateTargetInstances.
func (c *Service) launchFailed(ctx context.Context, t *task, i *instance, cause error) error {
	gone := func(tx *sql.Tx) error { return c.gone(ctx, tx, i) }
	if err := c.opts.Target.Terminate(ctx, i.ID); err != nil && !errors.Is(err, launch.ErrNotFound) {
		cause, gone = errors.Join(cause, fmt.Errorf("terminate what may be left of it: %w", err)), nil
	} else {
		cause = errors.Join(cause, c.unexport(i.ID))
	}
	err := c.advance(ctx, t, stepDone, mgn.LaunchStatusFailed, mgn.JobLogEventLaunchFailed, cause, gone)
	if err == nil {
		c.happened(ctx, instanceFailed, i.ServerID, "instance", i.ID, "job", t.jobID, "cutover", i.Cutover, "error", cause.Error())
	}
	return err
}

// terminate ends every instance of the server.
func (c *Service) terminate(ctx context.Context, t *task) error {
	live, err := liveInstances(ctx, c.db.reader, t.serverID)
	if err != nil {
		return err
	}
	if err := c.advance(ctx, t, stepTerminate, mgn.LaunchStatusInProgress, mgn.JobLogEventCleanupStart, nil, nil); err != nil {
		return err
	}
	if err := c.terminateAll(ctx, live); err != nil {
		return c.advance(ctx, t, stepDone, mgn.LaunchStatusFailed, mgn.JobLogEventCleanupFail, err, nil)
	}
	return c.advance(ctx, t, stepDone, mgn.LaunchStatusTerminated, mgn.JobLogEventCleanupEnd, nil, nil)
}
