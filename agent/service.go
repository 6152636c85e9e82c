package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How an agent is kept running.
const (
	ServiceSystemd  = "systemd"  // a unit, started at boot
	ServiceDetached = "detached" // a process of its own session, until the next boot
	ServiceNone     = "none"     // by whoever installed it
)

// systemdRuns is whether systemd is the service manager, as sd_booted(3) tells it.
func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// usualService is how this machine keeps an agent running.
func usualService() string {
	if systemdRuns() {
		return ServiceSystemd
	}
	return ServiceDetached
}

// startService keeps the agent running as the configuration says.
func startService(ctx context.Context, c Config, program string, dir stateDir) error {
	switch c.Service {
	case ServiceSystemd:
		names := []string{unitName, upgradeUnit}
		if !c.NoFreeze {
			names = append(names, freezerSocket, freezerUnit)
		} else if err := removeFreezer(ctx); err != nil {
			return err
		}
		for _, name := range names {
			text, err := unit(name, program, dir, c)
			if err == nil {
				err = machineUnits.put(ctx, name, text)
			}
			if err != nil {
				return fmt.Errorf("put unit %s in place: %w", name, err)
			}
		}
		if err := systemctl(ctx, "daemon-reload"); err != nil {
			return err
		}
		if !c.NoFreeze {
			// One of a version before ends; the socket starts it again.
			if err := errors.Join(systemctl(ctx, "stop", freezerUnit), systemctl(ctx, "enable", "--now", freezerSocket)); err != nil {
				return err
			}
		}
		return systemctl(ctx, "enable", "--now", unitName)
	case ServiceDetached:
		return startDetached(program, dir)
	}
	return nil
}

// removeService undoes startService. Without stop the agent goes on until it
// ends by itself.
func removeService(kind string, stop bool) error {
	if kind != ServiceSystemd || !machineUnits.has(unitName) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := systemctl(ctx, "disable", unitName)
	if stop {
		err = errors.Join(err, systemctl(ctx, "stop", unitName))
		if machineUnits.has(upgradeUnit) { // which the agent's end may have begun
			err = errors.Join(err, systemctl(ctx, "stop", upgradeUnit))
		}
	}
	err = errors.Join(err, removeFreezer(ctx), machineUnits.remove(unitName), machineUnits.remove(upgradeUnit))
	return errors.Join(err, systemctl(ctx, "daemon-reload"))
}

// removeFreezer ends the freezer, if there is one.
func removeFreezer(ctx context.Context) error {
	if !machineUnits.has(freezerSocket) {
		return nil
	}
	err := errors.Join(systemctl(ctx, "disable", "--now", freezerSocket), systemctl(ctx, "stop", freezerUnit))
	return errors.Join(err, machineUnits.remove(freezerSocket), machineUnits.remove(freezerUnit))
}

func systemctl(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// restarts is how often systemd has started the agent again by itself.
func restarts(ctx context.Context) int {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=NRestarts", "--value", unitName).Output()
	n, bad := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || bad != nil { // one before 235 does not say
		return 0
	}
	return n
}

// startDetached starts the agent in a session of its own, with its output in
// the log file and nothing of the installer's environment but its proxy.
func startDetached(program string, dir stateDir) error {
	var log *os.File
	err := dir.as(func() (err error) {
		log, err = os.OpenFile(dir.path(logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(program, "run", "--state-dir", string(dir))
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = cleanEnvironment(os.Environ())
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	gone := make(chan struct{})
	go func() { // ends with the agent, or with this process
		cmd.Wait()
		close(gone)
	}()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		select {
		case <-gone:
			return fmt.Errorf("start agent: it ended at once (%v): %s", cmd.ProcessState, dir.lastLine(logFile)) // the file may go with the installation
		case <-time.After(20 * time.Millisecond):
			if dir.running() == cmd.Process.Pid {
				return nil
			}
		}
	}
	return errors.Join(errors.New("start agent: it does not come up"), unix.Kill(cmd.Process.Pid, unix.SIGKILL))
}

// lastLine is the end of a log.
func (d stateDir) lastLine(name string) string {
	var text []byte
	_ = d.as(func() (err error) { text, err = os.ReadFile(d.path(name)); return err })
	text = bytes.TrimSpace(text)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}

// cleanEnvironment keeps what an agent needs, which is hardly anything: what
// the installer was given must not outlive the installation in /proc.
func cleanEnvironment(env []string) (out []string) {
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch strings.ToUpper(name) {
		case "PATH", "LANG", "TZ", "HTTPS_PROXY", "NO_PROXY", "GOMEMLIMIT", "GOCOVERDIR":
			out = append(out, e)
		}
	}
	return out
}

// program is where the program of a state directory is: in a directory of root's.
func (d stateDir) program() string { return filepath.Join(d.programDir(), programFile) }

func (d stateDir) programDir() string {
	if path, err := filepath.Abs(string(d)); err == nil && path != DefaultStateDir {
		return path + ".program"
	}
	return filepath.Dir(unitProgram)
}

// copyProgram puts this program where an update of the machine's packages or the end
// of a download directory does not take it away, and where its agent cannot change
// it.
func copyProgram(dir stateDir) (path string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	path = dir.program()
	if filepath.Clean(self) == path {
		return path, nil
	}
	in, err := os.Open(self)
	if err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	defer in.Close()
	next := path + installSuffix
	if err = os.MkdirAll(dir.programDir(), 0o755); err == nil {
		err = writeProgram(next, in)
	}
	if err == nil {
		if err = os.Rename(next, path); err != nil {
			os.Remove(next)
		}
	}
	if err == nil {
		err = syncDir(dir.programDir())
	}
	if err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	_ = dir.as(func() error { return os.Remove(dir.path(programFile)) }) // where agents that were root had it
	return path, nil
}
