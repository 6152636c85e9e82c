package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

const (
	unitName = "rehost-agent.service"
	unitPath = "/etc/systemd/system/" + unitName
)

// unit is the systemd unit of the program at path. A copy of the source server
// and an uninstalled agent end with status 0, which on-failure leaves alone. Home
// directories stay in sight: a file system that is hidden cannot be asked what of it
// is free.
func unit(program, dir string) string {
	return `[Unit]
Description=Rehost replication agent
Wants=network-online.target
After=network-online.target local-fs.target

[Service]
ExecStart=` + systemdQuote(program) + ` run --state-dir ` + systemdQuote(dir) + `
Restart=on-failure
RestartSec=5
MemoryMax=512M
Nice=5
NoNewPrivileges=yes
ProtectHome=read-only
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
`
}

func systemdQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(s) + `"`
}

// systemdRuns is whether systemd is the service manager, as sd_booted(3) tells it.
func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// startService keeps the agent running as kind says.
func startService(ctx context.Context, kind, program string, dir stateDir) error {
	switch kind {
	case ServiceSystemd:
		if err := os.WriteFile(unitPath, []byte(unit(program, string(dir))), 0o644); err != nil {
			return fmt.Errorf("write unit: %w", err)
		}
		if err := systemctl(ctx, "daemon-reload"); err != nil {
			return err
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
	if _, err := os.Lstat(unitPath); kind != ServiceSystemd || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := []string{"disable", unitName}
	if stop {
		args = []string{"disable", "--now", unitName}
	}
	err := systemctl(ctx, args...)
	if e := os.Remove(unitPath); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return errors.Join(err, systemctl(ctx, "daemon-reload"))
}

func systemctl(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// startDetached starts the agent in a session of its own, with its output in
// the log file and nothing of the installer's environment but its proxy.
func startDetached(program string, dir stateDir) error {
	log, err := os.OpenFile(dir.path(logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
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
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }() // ends with the agent, or with this process
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		select {
		case err := <-gone:
			return fmt.Errorf("start agent: it ended at once (%v): see %s", err, dir.path(logFile))
		case <-time.After(20 * time.Millisecond):
			if dir.running() == cmd.Process.Pid {
				return nil
			}
		}
	}
	return errors.Join(errors.New("start agent: it does not come up"), unix.Kill(cmd.Process.Pid, unix.SIGKILL))
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

// copyProgram puts this program beside the state, where an update of the
// machine's packages or the end of a download directory does not take it away.
func copyProgram(dir stateDir) (path string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	path = dir.path(programFile)
	if filepath.Clean(self) == path {
		return path, nil
	}
	content, err := os.ReadFile(self)
	if err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	if err := dir.write(programFile, content, true); err != nil {
		return "", err
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	return path, nil
}
