package agent

import (
	"errors"
	"fmt"
	"io/fs"
)

// Limits are what an agent holds itself to on the source server. They are a file
// in the state directory, so that only its owner changes them, and a running
// agent looks at it every second.
type Limits struct {
	CPU float64 // percent of one processor for bulk work; 0 is no limit, 250 two and a half
}

// Validate reports whether an agent can hold itself to them.
func (l Limits) Validate() error {
	if l.CPU != 0 && !(l.CPU >= 1 && l.CPU <= 1e6) {
		return fmt.Errorf("a limit of %v %% of a processor: it must be 0, which is none, or from 1 on; 100 is one processor", l.CPU)
	}
	return nil
}

// limitsForm is how they are kept.
type limitsForm struct {
	Version int     `json:"version"`
	CPU     float64 `json:"cpuPercent"`
}

// SetLimits changes what the agent of a state directory holds itself to, from the
// next second on. Running is whether one is there to do it now.
func SetLimits(dir string, l Limits) (running bool, err error) {
	d := stateDir(dir)
	if _, err := d.config(); err != nil {
		return false, err
	}
	if err := d.check(); err != nil {
		return false, err
	}
	if err := d.setLimits(l); err != nil {
		return false, err
	}
	return d.running() != 0, nil
}

func (d stateDir) setLimits(l Limits) error {
	if err := l.Validate(); err != nil {
		return err
	}
	return d.save(limitsFile, limitsForm{Version: stateVersion, CPU: l.CPU})
}

// limits are those that were set; an installation from before there were any has none.
func (d stateDir) limits() (Limits, error) {
	var f limitsForm
	err := d.load(limitsFile, &f)
	if errors.Is(err, fs.ErrNotExist) {
		return Limits{}, nil
	}
	l := Limits{CPU: f.CPU}
	if err == nil && f.Version != stateVersion {
		err = fmt.Errorf("read %s: version %d is not known", d.path(limitsFile), f.Version)
	}
	if err == nil {
		if err = l.Validate(); err != nil {
			err = fmt.Errorf("read %s: %w", d.path(limitsFile), err)
		}
	}
	return l, err
}

// holdLimits takes over limits that have changed. Those that cannot be read
// change nothing, which is said once.
func (a *agent) holdLimits() {
	l, err := a.dir.limits()
	switch {
	case err != nil && a.limitsErr == nil:
		a.log.Warn("limits are not taken over; those from before hold", "err", err)
	case err == nil && a.replication.limit(l.CPU/100):
		a.log.Info("bulk work is limited", "processors", l.CPU/100)
	}
	a.limitsErr = err
}
