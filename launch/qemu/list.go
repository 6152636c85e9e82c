package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"rehost/launch"
)

// List reads what a Target's directory says of its instances, in order of id,
// without opening the target: also beside the process that has it open. What
// only the machine itself can tell, such as the progress of hydration, is not
// in it.
func List(dir string) ([]launch.Instance, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	var list []launch.Instance
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		r, err := readRecord(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // no instance, or one that goes away
			continue
		}
		if err != nil {
			return list, fmt.Errorf("list instance %s: %w", e.Name(), err)
		}
		if !r.Launched {
			continue
		}
		in := r.instance()
		in.State = launch.Stopped
		if len(findMachine(path, r.UUID)) > 0 {
			in.State = launch.Running
		}
		in.Hydration = launch.Hydration{Requested: r.Spec.HydrateDisks, Complete: r.Hydrated}
		list = append(list, in)
	}
	return list, nil
}

// instance is what the record alone tells.
func (r record) instance() launch.Instance {
	return launch.Instance{
		ID: r.Spec.ID, Name: r.Spec.Name, UUID: r.UUID, Started: r.Started,
		FirstBoot: r.FirstBoot, FirstBootReason: r.FirstBootReason, FirstBootAt: r.FirstBootAt,
		Accelerator: r.Accel, Forwards: r.Forwards,
	}
}
