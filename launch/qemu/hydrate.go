package qemu

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
)

// Hydration copies what an overlay lacks from the NBD export below it, with one
// block-stream job per disk. When a job has ended well, QEMU takes the name of
// the backing file out of the overlay's header, and only then. The header is
// therefore what is believed: QMP's backing_file_depth, for one, is 0 from the
// beginning in a flat list of nodes. A job that failed is started again.

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
	done, complete, trouble := int64(0), true, ""
	for i, d := range in.spec.Disks {
		node := nodeName(i)
		if job, running := byDisk[node]; running {
			complete = false
			if job.Len > 0 {
				done += int64(float64(d.Size) * min(1, float64(job.Offset)/float64(job.Len)))
			}
			continue
		}
		alone, err := standsAlone(overlay(in.dir, d))
		if err != nil {
			return err
		}
		if alone {
			done += d.Size
			continue
		}
		complete = false
		if err := m.do("block-stream", map[string]any{"job-id": jobPrefix + node, "device": node}, nil); err != nil {
			trouble = "disk " + d.Name + ": " + err.Error()
		}
	}
	if complete {
		if err := in.flush(m); err != nil {
			return err
		}
		if err := in.update(func(r *record) { r.Hydrated = true }); err != nil {
			return err
		}
		in.log.Info("instance stands alone: all disks are copied", "bytes", done)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.hydration.Done, in.hydration.Complete, in.hydration.Error = done, complete, trouble
	return nil
}

// flush makes the copies durable, QEMU's cached tables included, so that the
// sources may go away although QEMU or the host may crash.
func (in *instance) flush(m *monitor) error {
	for i, d := range in.spec.Disks {
		var said string
		line := map[string]any{"command-line": "qemu-io " + nodeName(i) + " flush"}
		if err := m.do("human-monitor-command", line, &said); err != nil {
			return err
		}
		if said = strings.TrimSpace(said); said != "" {
			return fmt.Errorf("flush disk %s: %s", d.Name, said)
		}
	}
	return nil
}

// standsAlone reports whether a qcow2 file has no backing file: the offset of
// its name, 8 bytes at offset 8 of the header, is 0 (QEMU's docs/interop/qcow2).
func standsAlone(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var head [16]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return false, fmt.Errorf("read header of %s: %w", path, err)
	}
	if string(head[:4]) != "QFI\xfb" {
		return false, fmt.Errorf("%s is not a qcow2 file", path)
	}
	return binary.BigEndian.Uint64(head[8:]) == 0, nil
}
