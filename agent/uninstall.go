package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rehost/awsapi/formgn"
	"rehost/privilege"
)

const (
	confirmTimeout = 15 * time.Second
	stopTimeout    = 30 * time.Second
)

// uninstall is the agent's own, told to by the service: it confirms while it
// still can, and leaves nothing but what is root's, which [Finish] removes.
func (a *agent) uninstall() error {
	ctx, cancel := context.WithTimeout(context.Background(), confirmTimeout)
	defer cancel()
	if err := confirm(ctx, a.identity); err != nil {
		a.log.Warn("the uninstallation is not confirmed to the service", "err", err)
	}
	a.identity.close()
	if os.Geteuid() == 0 {
		if err := removeService(a.config.Service, false); err != nil {
			a.log.Warn("service is not removed", "err", err)
		}
	}
	if err := errors.Join(a.endCapture(), a.dir.wipe()); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	return ErrUninstalled
}

// confirm tells the service that the agent is gone.
func confirm(ctx context.Context, id *identity) error {
	_, err := ask(ctx, id, formgn.UpdateAgentBacklogForMgn, &formgn.UpdateAgentBacklogForMgnRequest{
		SourceServerID: id.server, State: formgn.DataReplicationStateDisconnected, Disks: []formgn.DiskProgress{},
		RawError: pointer("uninstalled on the source server")})
	return err
}

// Uninstall stops the agent of a state directory and removes it with its key
// and its service, whether or not the control plane can be reached; told is
// whether that knows now. The source server's record stays until it is
// disconnected there.
func Uninstall(ctx context.Context, dir string, log *slog.Logger) (told bool, err error) {
	d := stateDir(dir)
	if err := d.check(); errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("uninstall %s: %w", dir, ErrNotInstalled)
	} else if err != nil {
		return false, err
	}
	config, configErr := d.config()
	if configErr != nil {
		config.Service = usualService() // what it was is not known
	}
	if err := removeService(config.Service, true); err != nil {
		return false, fmt.Errorf("uninstall: %w", err)
	}
	if err := stopRunning(ctx, d); err != nil {
		return false, fmt.Errorf("uninstall: %w", err)
	}
	if configErr == nil {
		config.heedProxy()
		told = farewell(ctx, d, config, log)
	}
	pins := d.pins(config)
	return told, errors.Join(unpin(pins), d.wipe(), d.removeTraces(filepath.Dir(filepath.Dir(pins))))
}

func farewell(ctx context.Context, d stateDir, config Config, log *slog.Logger) bool {
	var id *identity
	bundle, err := loadBundle(d.path(rootFile))
	if err == nil {
		id, err = openIdentity(d, config, bundle, log)
	}
	if err != nil {
		log.Warn("the service is not told", "err", err)
		return false
	}
	defer id.close()
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	_, err = ask(ctx, id, formgn.SendAgentLogsForMgn, &formgn.SendAgentLogsForMgnRequest{SourceServerID: id.server,
		Lines: []formgn.LogLine{{DateTime: time.Now().UTC().Format(time.RFC3339), Level: pointer("WARN"), Message: "the agent was uninstalled on the source server"}}})
	if e := confirm(ctx, id); err == nil || e == nil {
		return true
	}
	log.Warn("the service is not told", "err", err)
	return false
}

// stopRunning ends the process that holds the directory, politely and then not.
func stopRunning(ctx context.Context, d stateDir) error {
	pid := d.running()
	if pid == 0 {
		return nil
	}
	owner, err := d.owner()
	if err != nil {
		return err
	}
	if user := privilege.UserOf(pid); user >= 0 && user != owner.UID { // the number is the agent's word
		return fmt.Errorf("stop the agent: pid %d is another user's, not %s's", pid, d)
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop the agent, pid %d: %w", pid, err)
		}
		for end := time.Now().Add(stopTimeout); time.Now().Before(end); {
			if d.running() != pid {
				return nil
			}
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("stop the agent: pid %d does not end", pid)
}
