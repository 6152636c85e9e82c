package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startTimeout is how long QEMU may take from its start to its first word.
const startTimeout = time.Minute

// startMachine starts QEMU in a session of its own, so that it outlives this
// process (-daemonize would do that too, but not within QEMU's sandbox), and
// waits until its monitor answers, by when it has opened all its disks.
func (t *Target) startMachine(ctx context.Context, dir string, r record) (*monitor, error) {
	output, err := os.OpenFile(filepath.Join(dir, outputFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd := exec.Command(t.opts.QEMU, t.arguments(dir, r)...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.children[r.UUID] = cmd.Process.Pid
	t.mu.Unlock()
	cmd.Process.Release() // reap does the waiting
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		ended, rerr := t.reap(r.UUID) // asked before the monitor is
		if rerr != nil {
			return nil, rerr
		}
		m, err := dialMonitor(ctx, dir)
		if err == nil {
			return m, nil
		}
		if ended {
			said, _ := tailOf(filepath.Join(dir, outputFile), 2000)
			return nil, fmt.Errorf("QEMU ended: %s", bytes.TrimSpace(said))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// reap frees the process table of a machine that has ended, if this process
// started it, and tells whether no such child is left.
func (t *Target) reap(uuid string) (ended bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pid, ours := t.children[uuid]
	if !ours {
		return true, nil
	}
	got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	if err != nil && !errors.Is(err, syscall.ECHILD) {
		return false, fmt.Errorf("reap process %d: %w", pid, err)
	}
	ended = got == pid || err != nil
	if ended {
		delete(t.children, uuid)
	}
	return ended, nil
}

// killChild ends a machine that this process started. Its number cannot belong
// to anybody else before it is reaped, which takes the same lock.
func (t *Target) killChild(uuid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pid, ours := t.children[uuid]; ours {
		_ = syscall.Kill(pid, syscall.SIGKILL) // reap says what came of it
	}
}

// A machine's process is known by the random UUID on its command line: a
// process of the same number that lacks it is somebody else's. That also finds
// processes of a launch that was cut off before the pid file was written.

// isMachine reports whether pid is, now, the process of the machine.
func isMachine(pid int, uuid string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // empty for a zombie
	if err != nil {
		return false
	}
	args := bytes.Split(line, []byte{0})
	i := slices.IndexFunc(args, func(a []byte) bool { return string(a) == "-uuid" })
	return i >= 0 && i+1 < len(args) && string(args[i+1]) == uuid
}

// findMachine returns the pids of the machine's processes: the one in the pid
// file, or else all there are.
func findMachine(dir, uuid string) []int {
	if b, err := os.ReadFile(filepath.Join(dir, pidFile)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && isMachine(pid, uuid) {
			return []int{pid}
		}
	}
	return scanMachine(uuid)
}

func scanMachine(uuid string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && isMachine(pid, uuid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killMachine ends all processes of the machine and waits until they are gone.
func (t *Target) killMachine(ctx context.Context, uuid string) error {
	for {
		t.killChild(uuid)
		pids := scanMachine(uuid)
		for _, pid := range pids {
			if err := kill(pid, uuid); err != nil {
				return err
			}
		}
		ended, err := t.reap(uuid)
		if err != nil {
			return err
		}
		if ended && len(pids) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for process %v to end: %w", pids, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func kill(pid int, uuid string) error {
	p, err := os.FindProcess(pid) // holds the process, so that its number cannot change hands
	if err != nil {
		return err
	}
	defer p.Release()
	if !isMachine(pid, uuid) {
		return nil
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}
