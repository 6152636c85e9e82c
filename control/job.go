package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/mgn"
)

// A job launches or terminates the instances of some source servers:
//
//	PENDING ──a worker leases it──> STARTED ──every server is done──> COMPLETED
//
// There is no failed job; each server has a launch status of its own:
//
//	PENDING ──> IN_PROGRESS ──> LAUNCHED | FAILED | TERMINATED
//
// and a step, which is what a worker does next for it:
//
//	launch:    cleanup ──> snapshot ──> launch ──> done
//	terminate: terminate ──> done
type step string

const (
	stepCleanup   step = "cleanup"   // the previous instance goes
	stepSnapshot  step = "snapshot"  // the point to launch from is chosen and written down
	stepLaunch    step = "launch"    // the machine is started
	stepTerminate step = "terminate" // the machines go
	stepDone      step = "done"
)

// Quotas of MGN.
const (
	maxJobs          = 20
	maxServersPerJob = 200
)

// A task is the part of a job that concerns one server.
type task struct {
	jobID, serverID, instanceID string
	status                      mgn.LaunchStatus
	step                        step
}

// activeJob is the job that works on a server, "" if there is none.
func activeJob(ctx context.Context, q querier, serverID string) (id string, err error) {
	err = q.QueryRowContext(ctx, `SELECT jobs.id FROM jobs JOIN job_servers ON job_servers.job_id = jobs.id
		WHERE job_servers.server_id = ? AND jobs.status <> 'COMPLETED'`, serverID).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return id, err
}

// startJob makes a job for servers that all may take the call, or says of each
// why it may not. prepare changes a server that takes part.
func (c *Service) startJob(ctx context.Context, what call, by mgn.InitiatedBy, kind mgn.JobType, first step, ids []string, tags mgn.TagsMap,
	prepare func(s *server, jobID, at string)) (*mgn.Job, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(ids))); len(ids) == 0 || len(ids) > maxServersPerJob || len(sorted) != len(ids) {
		return nil, invalid("sourceServerIDs", "sourceServerIDs must name 1 to %d different source servers", maxServersPerJob)
	}
	id, at := newID("mgnjob"), stamp(c.now())
	var servers []*server
	var from []mgn.LifeCycleState
	err := c.db.update(ctx, func(tx *sql.Tx) (err error) {
		if servers, err = c.participants(ctx, tx, what, ids); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO jobs (id, type, initiated_by, status, created_at, ended_at, lease_owner, lease_until)
			VALUES (?, ?, ?, 'PENDING', ?, '', '', '')`, id, string(kind), string(by), at); err != nil {
			return err
		}
		for i, s := range servers {
			from = append(from, s.LifeCycle.State)
			s.move(what)
			if prepare != nil {
				prepare(s, id, at)
			}
			if err := putServer(ctx, tx, s); err != nil {
				return err
			}
			instanceID := ""
			if kind == mgn.JobTypeLaunch {
				instanceID = newID("i")
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO job_servers (job_id, server_id, position, status, step, instance_id, point)
				VALUES (?, ?, ?, 'PENDING', ?, ?, '')`, id, s.ID, i, string(first), instanceID); err != nil {
				return err
			}
		}
		return putTags(ctx, tx, c.arn("job", id), tags)
	})
	if err != nil {
		return nil, err
	}
	for i, s := range servers {
		c.moved(ctx, s, from[i], string(what))
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
	jobs, err := c.jobs(ctx, c.db.reader, `WHERE id = ?`, id)
	if err != nil {
		return nil, err
	}
	return &jobs[0], nil
}

// participants reads the servers of a new job. None takes part unless all can.
func (c *Service) participants(ctx context.Context, tx *sql.Tx, what call, ids []string) (servers []*server, err error) {
	var running int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM jobs WHERE status <> 'COMPLETED'`).Scan(&running); err != nil {
		return nil, err
	}
	if running >= maxJobs {
		return nil, conflict("Job", "", fmt.Sprintf("%d jobs are running already, which is the most there may be: wait until one has ended", running))
	}
	var refused []mgn.ErrorDetails
	for _, id := range ids {
		s, err := getServer(ctx, tx, id)
		if errors.Is(err, errNoServer) {
			return nil, invalid("sourceServerIDs", "source server %s does not exist", id)
		}
		if err != nil {
			return nil, err
		}
		reason := s.refuses(what)
		if s.Archived {
			reason = fmt.Sprintf("source server %s is archived", id)
		}
		if reason == "" {
			var busy *mgn.ConflictException
			if err := c.idle(ctx, tx, s); errors.As(err, &busy) {
				reason = busy.Message
			} else if err != nil {
				return nil, err
			}
		}
		if reason != "" {
			refused = append(refused, mgn.ErrorDetails{Code: "CONFLICT", Message: reason, ResourceId: id, ResourceType: "SourceServer"})
		}
		servers = append(servers, s)
	}
	if len(refused) > 0 {
		return nil, conflicts(refused)
	}
	return servers, nil
}

// StartTest implements the operation.
func (c *Service) StartTest(ctx context.Context, in *mgn.StartTestRequest) (*mgn.StartTestResponse, error) {
	job, err := c.startJob(ctx, startTest, "START_TEST", "LAUNCH", stepCleanup, in.SourceServerIDs, in.Tags, func(s *server, jobID, at string) {
		lastTest(s).Initiated = &mgn.LifeCycleLastTestInitiated{ApiCallDateTime: at, JobID: jobID}
	})
	return &mgn.StartTestResponse{Job: job}, err
}

// StartCutover implements the operation.
func (c *Service) StartCutover(ctx context.Context, in *mgn.StartCutoverRequest) (*mgn.StartCutoverResponse, error) {
	job, err := c.startJob(ctx, startCutover, "START_CUTOVER", "LAUNCH", stepCleanup, in.SourceServerIDs, in.Tags, func(s *server, jobID, at string) {
		lastCutover(s).Initiated = &mgn.LifeCycleLastCutoverInitiated{ApiCallDateTime: at, JobID: jobID}
	})
	return &mgn.StartCutoverResponse{Job: job}, err
}

// TerminateTargetInstances implements the operation.
func (c *Service) TerminateTargetInstances(ctx context.Context, in *mgn.TerminateTargetInstancesRequest) (*mgn.TerminateTargetInstancesResponse, error) {
	job, err := c.startJob(ctx, terminate, "TERMINATE", "TERMINATE", stepTerminate, in.SourceServerIDs, in.Tags, nil)
	return &mgn.TerminateTargetInstancesResponse{Job: job}, err
}

// jobs reads jobs as the API shows them.
func (c *Service) jobs(ctx context.Context, q querier, where string, args ...any) (out []mgn.Job, err error) {
	rows, err := q.QueryContext(ctx, `SELECT id, type, initiated_by, status, created_at, ended_at FROM jobs `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	defer rows.Close()
	var arns []string
	for rows.Next() {
		j := mgn.Job{ParticipatingServers: []mgn.ParticipatingServer{}}
		if err := rows.Scan(&j.JobID, &j.Type, &j.InitiatedBy, &j.Status, &j.CreationDateTime, &j.EndDateTime); err != nil {
			return nil, err
		}
		j.Arn = c.arn("job", j.JobID)
		arns, out = append(arns, j.Arn), append(out, j)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	tags, err := tagsOf(ctx, q, arns...)
	if err != nil {
		return nil, err
	}
	for i := range out {
		out[i].Tags = tags[out[i].Arn]
		tasks, err := readTasks(ctx, q, out[i].JobID)
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			p := mgn.ParticipatingServer{SourceServerID: t.serverID, LaunchStatus: t.status}
			if t.status == mgn.LaunchStatusLaunched {
				p.LaunchedEc2InstanceID = t.instanceID
			}
			out[i].ParticipatingServers = append(out[i].ParticipatingServers, p)
		}
	}
	return out, nil
}

func readTasks(ctx context.Context, q querier, jobID string) (tasks []task, err error) {
	rows, err := q.QueryContext(ctx, `SELECT server_id, status, step, instance_id FROM job_servers WHERE job_id = ? ORDER BY position`, jobID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		t := task{jobID: jobID}
		if err := rows.Scan(&t.serverID, &t.status, &t.step, &t.instanceID); err != nil {
			return nil, err
		}
		tasks = append(tasks, t)
	}
	return tasks, rows.Err()
}

// DescribeJobs implements the operation: newest first.
func (c *Service) DescribeJobs(ctx context.Context, req *mgn.DescribeJobsRequest) (*mgn.DescribeJobsResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	const operation = "DescribeJobs"
	after, limit, err := c.pager.start(operation, req.Filters, req.NextToken, req.MaxResults)
	if err != nil {
		return nil, err
	}
	where, args := `WHERE 1 = 1`, []any{}
	if f := req.Filters; f != nil {
		if len(f.JobIDs) > 0 {
			var condition string
			condition, args = in("id", f.JobIDs, args)
			where += ` AND ` + condition
		}
		for _, bound := range []struct {
			name, condition string
			date            *string
		}{{"filters.fromDate", ` AND created_at >= ?`, f.FromDate}, {"filters.toDate", ` AND created_at <= ?`, f.ToDate}} {
			if bound.date == nil {
				continue
			}
			at, err := awsapi.ParseDateTime(*bound.date)
			if err != nil {
				return nil, invalid(bound.name, "%s: %v", bound.name, err)
			}
			where, args = where+bound.condition, append(args, stamp(at))
		}
	}
	if at, id, ok := strings.Cut(after, " "); ok {
		where, args = where+` AND (created_at < ? OR created_at = ? AND id > ?)`, append(args, at, at, id)
	}
	jobs, err := c.jobs(ctx, c.db.reader, where+` ORDER BY created_at DESC, id LIMIT ?`, append(args, limit+1)...)
	if err != nil {
		return nil, err
	}
	jobs, token := next(c.pager, operation, req.Filters, jobs, limit, func(j mgn.Job) string { return j.CreationDateTime + " " + j.JobID })
	return &mgn.DescribeJobsResponse{Items: append([]mgn.Job{}, jobs...), NextToken: token}, nil
}

// DescribeJobLogItems implements the operation: oldest first.
func (c *Service) DescribeJobLogItems(ctx context.Context, req *mgn.DescribeJobLogItemsRequest) (*mgn.DescribeJobLogItemsResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	const operation = "DescribeJobLogItems"
	after, limit, err := c.pager.start(operation, req.JobID, req.NextToken, req.MaxResults)
	if err != nil {
		return nil, err
	}
	if jobs, err := c.jobs(ctx, c.db.reader, `WHERE id = ?`, req.JobID); err != nil || len(jobs) == 0 {
		return nil, errors.Join(err, invalid("jobID", "job %s does not exist", req.JobID))
	}
	type item struct {
		mgn.JobLog
		position string
	}
	rows, err := c.db.reader.QueryContext(ctx, `SELECT position, document FROM job_logs WHERE job_id = ? AND position > ? ORDER BY position LIMIT ?`,
		req.JobID, atoi(after), limit+1)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var items []item
	for rows.Next() {
		var it item
		var text string
		if err := rows.Scan(&it.position, &text); err != nil {
			return nil, err
		}
		if err := decode(text, &it.JobLog); err != nil {
			return nil, err
		}
		items = append(items, it)
	}
	items, token := next(c.pager, operation, req.JobID, items, limit, func(i item) string { return i.position })
	out := &mgn.DescribeJobLogItemsResponse{Items: []mgn.JobLog{}, NextToken: token}
	for _, it := range items {
		out.Items = append(out.Items, it.JobLog)
	}
	return out, rows.Err()
}

// DeleteJob implements the operation: only what is over can be deleted.
func (c *Service) DeleteJob(ctx context.Context, in *mgn.DeleteJobRequest) (*mgn.DeleteJobResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	return &mgn.DeleteJobResponse{}, c.db.update(ctx, func(tx *sql.Tx) error {
		var status string
		err := tx.QueryRowContext(ctx, `SELECT status FROM jobs WHERE id = ?`, in.JobID).Scan(&status)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return notFound("Job", in.JobID)
		case err != nil:
			return err
		case status != string(mgn.JobStatusCompleted):
			return conflict("Job", in.JobID, fmt.Sprintf("job %s is %s: only a job that is COMPLETED can be deleted", in.JobID, status))
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM jobs WHERE id = ?`, in.JobID); err != nil {
			return err
		}
		return dropTags(ctx, tx, c.arn("job", in.JobID))
	})
}

// logEvent appends to a job's log. An event of a server that is there already
// is left alone, so that a step which is repeated after a crash does not tell
// its beginning twice.
func (c *Service) logEvent(ctx context.Context, tx *sql.Tx, jobID string, event mgn.JobLogEvent, data mgn.JobLogEventData) error {
	entry := mgn.JobLog{Event: event, LogDateTime: stamp(c.now())}
	if data != (mgn.JobLogEventData{}) {
		entry.EventData = &data
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO job_logs (job_id, position, logged_at, event, server_id, document)
		SELECT ?, (SELECT COALESCE(MAX(position), 0) + 1 FROM job_logs WHERE job_id = ?), ?, ?, ?, ?
		WHERE NOT EXISTS (SELECT 1 FROM job_logs WHERE job_id = ? AND event = ? AND server_id = ?)`,
		jobID, jobID, entry.LogDateTime, string(event), data.SourceServerID, encode(entry), jobID, string(event), data.SourceServerID)
	if err != nil {
		return fmt.Errorf("log %s of job %s: %w", event, jobID, err)
	}
	return nil
}
