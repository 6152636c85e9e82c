package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"
)

// This file is the part that every user of the service writes in some form:
// calls of the public API with the stock SDK, and waiting for their effect.

// poll calls f every interval until it answers true, fails, or the time is up.
func poll(ctx context.Context, what string, limit, interval time.Duration, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		done, err := f()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: not within %v", what, limit)
		case <-tick.C:
		}
	}
}

// storage sums up the progress of a server's disks.
func storage(server types.SourceServer) (done, total, backlog int64) {
	if server.DataReplicationInfo == nil {
		return 0, 0, 0
	}
	for _, d := range server.DataReplicationInfo.ReplicatedDisks {
		done += d.ReplicatedStorageBytes
		total += d.TotalStorageBytes
		backlog += d.BackloggedStorageBytes
	}
	return done, total, backlog
}

// firstCopy shows the progress of the first copy until the server is ready for a test.
// It returns how many bytes of disk were covered and in what time.
func (s *service) firstCopy(ctx context.Context, t *terminal) (bytes int64, took time.Duration, err error) {
	start := time.Now()
	last := ""
	err = poll(ctx, "READY_FOR_TEST", 4*time.Minute, 300*time.Millisecond, func() (bool, error) {
		server, err := s.Server(ctx)
		if err != nil {
			return false, err
		}
		info := server.DataReplicationInfo
		done, total, _ := storage(server)
		if e := info.DataReplicationError; e != nil {
			return false, fmt.Errorf("%s: %s", e.Error, aws.ToString(e.RawError))
		}
		switch state := string(info.DataReplicationState); {
		case state == string(types.DataReplicationStateInitialSync) && total > 0:
			elapsed := time.Since(start)
			if done == 0 {
				start = time.Now()
				return false, nil
			}
			mbps := float64(done) / 1e6 / elapsed.Seconds()
			t.bar(done, total, mbps, time.Duration(float64(total-done)/float64(done)*float64(elapsed)))
			if done < total {
				took = elapsed
			}
		case state != last:
			t.say("%s", state)
			last = state
		}
		bytes = total
		return server.LifeCycle.State == types.LifeCycleStateReadyForTest, nil
	})
	if took == 0 {
		took = time.Since(start)
	}
	return bytes, took, err
}

// job shows a job's log until it is completed, and returns the instance that it
// was about. It is an error when the launch status is not the wanted one.
func (s *service) job(ctx context.Context, t *terminal, job *types.Job, want types.LaunchStatus) (instance string, err error) {
	seen := 0
	err = poll(ctx, "job "+aws.ToString(job.JobID), 4*time.Minute, 200*time.Millisecond, func() (bool, error) {
		logs, err := s.API.DescribeJobLogItems(ctx, &mgn.DescribeJobLogItemsInput{JobID: job.JobID})
		if err != nil {
			return false, err
		}
		for ; seen < len(logs.Items); seen++ {
			item := logs.Items[seen]
			raw := ""
			if item.EventData != nil && item.EventData.RawError != nil {
				raw = ": " + *item.EventData.RawError
			}
			t.say("%s%s", item.Event, raw)
		}
		jobs, err := s.API.DescribeJobs(ctx, &mgn.DescribeJobsInput{Filters: &types.DescribeJobsRequestFilters{JobIDs: []string{*job.JobID}}})
		if err != nil {
			return false, err
		}
		if len(jobs.Items) != 1 {
			return false, errors.New("the job is gone")
		}
		if jobs.Items[0].Status != types.JobStatusCompleted {
			return false, nil
		}
		p := jobs.Items[0].ParticipatingServers[0]
		if p.LaunchStatus != want {
			return false, fmt.Errorf("launch status is %s", p.LaunchStatus)
		}
		instance = aws.ToString(p.LaunchedEc2InstanceID)
		return true, nil
	})
	return instance, err
}

// booted waits until the service has seen the launched instance's first boot on its console.
func (s *service) booted(ctx context.Context) error {
	return poll(ctx, "the first boot", 3*time.Minute, 200*time.Millisecond, func() (bool, error) {
		server, err := s.Server(ctx)
		if err != nil {
			return false, err
		}
		switch boot := server.LaunchedInstance.FirstBoot; boot {
		case types.FirstBootSucceeded:
			return true, nil
		case types.FirstBootWaiting:
			return false, nil
		default:
			return false, fmt.Errorf("first boot is %s", boot)
		}
	})
}
