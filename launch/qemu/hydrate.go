package qemu

import (
	"strconv"
	"strings"
)

// Hydration copies what an overlay lacks from the NBD export below it, with one
// block-stream job per disk. QEMU cuts an overlay off its source when the job
// has ended well: an overlay without a backing node is complete. So there is
// nothing to remember, and a job that failed is started again.

const jobPrefix = "hydrate-"

// A streamJob is a part of QEMU's BlockJobInfo.
type streamJob struct {
	Device      string
	Len, Offset int64
	Status      string
}

// hydrate starts the jobs that are missing and notes how far they are.
func (in *instance) hydrate(m *monitor) error {
	var jobs []streamJob
	if err := m.do("query-block-jobs", nil, &jobs); err != nil {
		return err
	}
	byDisk := map[string]streamJob{}
	for _, j := range jobs {
		byDisk[strings.TrimPrefix(j.Device, jobPrefix)] = j
	}
	// Asked after the jobs: a disk whose job ended in between shows as complete
	// here, or is started again, which then has nothing to do.
	depth, err := backingDepth(m)
	if err != nil {
		return err
	}
	done, complete, trouble := int64(0), true, ""
	for i, d := range in.spec.Disks {
		node := nodeName(i)
		if below, known := depth[node]; known && below == 0 {
			done += d.Size
			continue
		}
		complete = false
		if job, running := byDisk[node]; running {
			if job.Len > 0 {
				done += int64(float64(d.Size) * min(1, float64(job.Offset)/float64(job.Len)))
			}
			continue
		}
		if err := m.do("block-stream", map[string]any{"job-id": jobPrefix + node, "device": node}, nil); err != nil {
			trouble = "disk " + d.Name + ": " + err.Error()
		}
	}
	if complete {
		if err := in.update(func(r *record) { r.Hydrated = true }); err != nil {
			return err
		}
		in.log.Info("instance stands alone: all disks are copied", "bytes", strconv.FormatInt(done, 10))
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.hydration.Done, in.hydration.Complete, in.hydration.Error = done, complete, trouble
	return nil
}

// backingDepth is how many layers lie below each disk's overlay, by node name.
func backingDepth(m *monitor) (map[string]int, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Depth int    `json:"backing_file_depth"`
	}
	if err := m.do("query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	depth := map[string]int{}
	for _, n := range nodes {
		depth[n.Name] = n.Depth
	}
	return depth, nil
}
