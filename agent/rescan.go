package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A rescan is asked for by a file in the state directory, so that only its owner
// can, and so that it is not forgotten by an agent that does not run or ends.

// Rescan asks the agent of a state directory to compare all disks with the replica
// and to send what differs. Running is whether one is there to do it now; otherwise
// it is done when one starts, or when replication is started or resumed.
func Rescan(dir string) (running bool, err error) {
	d := stateDir(dir)
	if _, err := d.config(); err != nil {
		return false, err
	}
	if err := d.check(); err != nil {
		return false, err
	}
	if err := d.write(rescanFile, nil, true); err != nil {
		return false, fmt.Errorf("ask for a rescan: %w", err)
	}
	return d.running() != 0, nil
}

// requests looks for what is asked of a running agent.
func (a *agent) requests(ctx context.Context) {
	asked := false
	for {
		a.holdLimits()
		_, err := os.Lstat(a.dir.path(rescanFile))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			asked = false
		case err == nil && !asked:
			asked = true
			a.replication.recheck(func() {
				if err := os.Remove(a.dir.path(rescanFile)); err != nil {
					a.log.Warn("the request for a rescan stays, and another agent will do it again", "err", err)
				}
			})
		}
		if pause(ctx, a.options.report/2) != nil {
			return
		}
	}
}
