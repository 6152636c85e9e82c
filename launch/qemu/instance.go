package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"rehost/launch"
)

// An instance is a launched machine and what follows it.
type instance struct {
	target *Target
	dir    string
	spec   launch.Spec
	uuid   string
	log    *slog.Logger
	ctx    context.Context // ends the following
	cancel context.CancelFunc
	done   chan struct{} // closed when nobody follows any more

	// Of the follower alone.
	judge   *judge
	console consoleReader

	mu        sync.Mutex
	record    record
	state     launch.State
	hydration launch.Hydration
}

func newInstance(t *Target, dir string, r record) (*instance, error) {
	j, err := newJudge(r.Spec.FirstBoot)
	if err != nil {
		return nil, err
	}
	in := &instance{
		target: t, dir: dir, spec: r.Spec, uuid: r.UUID, done: make(chan struct{}), judge: j,
		log:     t.log.With("instance", r.Spec.ID),
		console: consoleReader{path: filepath.Join(dir, consoleFile)},
		record:  r, state: launch.Running,
	}
	in.ctx, in.cancel = context.WithCancel(t.ctx)
	in.hydration = launch.Hydration{Requested: r.Spec.HydrateDisks, Complete: r.Hydrated, Total: r.total()}
	if r.Hydrated {
		in.hydration.Done = in.hydration.Total
	}
	if len(findMachine(dir, r.UUID)) == 0 {
		in.state = launch.Stopped
	}
	return in, nil
}

func (r record) total() (n int64) {
	for _, d := range r.Spec.Disks {
		n += d.Size
	}
	return n
}

func (in *instance) describe() launch.Instance {
	alive := len(findMachine(in.dir, in.uuid)) > 0
	in.mu.Lock()
	defer in.mu.Unlock()
	r, state := in.record, in.state
	if !alive {
		state = launch.Stopped
	}
	described := r.instance()
	described.State, described.Hydration = state, in.hydration
	return described
}

// follow looks at the machine until it has stopped or the context ends. What
// goes wrong in one look is tried again in the next; it is logged when it changes.
func (in *instance) follow(ctx context.Context) {
	tick := time.NewTicker(in.target.opts.Poll)
	defer tick.Stop()
	last := ""
	for {
		alive := len(findMachine(in.dir, in.uuid)) > 0 // before the console is read to its end
		err := in.followConsole(alive)
		if alive {
			err = errors.Join(err, in.followMachine(ctx))
		}
		if text := fmt.Sprint(err); err != nil && text != last && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			in.log.Warn("follow instance", "err", err)
			last = text
		}
		if !alive && err == nil {
			_, err = in.target.reap(in.uuid)
		}
		if !alive && err == nil {
			in.setState(launch.Stopped)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// setState reports whether the state was another one.
func (in *instance) setState(s launch.State) (changed bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if changed = in.state != s; changed {
		in.log.Info("instance state", "state", s)
		in.state = s
	}
	return changed
}

func (in *instance) firstBoot() (launch.FirstBoot, time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.record.FirstBoot, in.record.Started
}

// followConsole judges what was printed since the last look.
func (in *instance) followConsole(alive bool) error {
	verdict, started := in.firstBoot()
	for verdict == launch.FirstBootWaiting {
		printed, err := in.console.next()
		if err != nil {
			return err
		}
		if len(printed) == 0 {
			break
		}
		var line string
		if verdict, line = in.judge.feed(printed); verdict != launch.FirstBootWaiting {
			return in.decide(verdict, "console: "+line)
		}
	}
	if verdict == launch.FirstBootWaiting {
		limit := in.spec.FirstBoot.Timeout
		if limit == 0 {
			limit = in.target.opts.FirstBootTimeout
		}
		switch {
		case !alive:
			return in.decide(launch.FirstBootStopped, "the machine stopped before it was up")
		case time.Since(started) > limit:
			return in.decide(launch.FirstBootUnknown, fmt.Sprintf("the console showed neither success nor failure within %v", limit))
		}
	}
	return in.console.bound(in.target.opts.MaxConsole)
}

func (in *instance) decide(verdict launch.FirstBoot, reason string) error {
	in.log.Info("first boot", "verdict", verdict, "reason", reason)
	return in.update(func(r *record) {
		r.FirstBoot, r.FirstBootReason, r.FirstBootAt = verdict, reason, time.Now().UTC()
	})
}

// update changes the record, on disk first.
func (in *instance) update(change func(*record)) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	r := in.record
	change(&r)
	if err := r.write(in.dir); err != nil {
		return err
	}
	in.record = r
	return nil
}

// followMachine asks QEMU how the machine is, and keeps it going.
func (in *instance) followMachine(ctx context.Context) error {
	m, err := dialMonitor(ctx, in.dir)
	if err != nil {
		return err
	}
	defer m.Close()
	var status struct{ Status string }
	if err := m.do("query-status", nil, &status); err != nil {
		return err
	}
	switch status.Status {
	case "running":
		in.setState(launch.Running)
	case "prelaunch":
		// The process that launched it died between the record and this command.
		return m.do("cont", nil, nil)
	case "io-error":
		// Its disk was out of reach for longer than requests wait. Going on repeats
		// the request, and pauses it again if nothing has changed.
		in.setState(launch.Paused)
		if err := m.do("cont", nil, nil); err != nil {
			return err
		}
	case "internal-error":
		if in.setState(launch.Paused) {
			in.log.Error("the machine was stopped by an internal error of KVM or QEMU, and cannot go on", "hint", "the kernel's log may say why; terminate it, and launch it on a host whose processor virtualizes")
		}
	default:
		in.setState(launch.Paused)
	}
	in.mu.Lock()
	wanted := in.hydration.Requested && !in.hydration.Complete
	in.mu.Unlock()
	if wanted {
		return in.hydrate(m)
	}
	return nil
}
