package e2e

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rehost/agent"
	"rehost/e2e/site"
)

// interrupted cuts an installation off by kill -9, again and again and each time a little
// later: at what it does to the users and to its directories. After each, installing works,
// and uninstalling leaves nothing of either. It ends when an installation has come to its
// end before it was cut off.
func interrupted(t *testing.T, w *world, disk string) {
	before := accounts(t)
	dir := filepath.Dir(w.state) // where there is nothing yet
	state := filepath.Join(dir, "cut-off")
	for step := 1; ; step += 1 + step/4 { // the first ones are the ones by which something comes into being
		whole := cutOff(t, w, state, disk, step)
		if out, err := w.installed(state, w.installer(), disk, "--ca-fingerprint", w.fingerprint()); err != nil {
			t.Fatalf("install after one was cut off at step %d: %v: %s", step, err, out)
		}
		if out, err := w.command(nil, "rehost-agent", "uninstall", "--state-dir", state); err != nil {
			t.Fatalf("uninstall after an installation was cut off at step %d: %v: %s", step, err, out)
		}
		left, err := os.ReadDir(dir)
		_, pins := os.Stat(filepath.Join(w.bpffs, "rehost-agent"))
		if now := accounts(t); err != nil || len(left) > 0 || !os.IsNotExist(pins) || now != before {
			t.Fatalf("cut off at step %d, installed and uninstalled: left are %v, pins: %v, and users: %q, before %q (%v)", step, left, pins, now, before, err)
		}
		if whole {
			t.Logf("cut off at up to step %d", step)
			if step < 20 {
				t.Error("that is too few: it did not see the steps")
			}
			return
		}
	}
}

// accounts are the users and groups of this machine that have to do with an agent.
func accounts(t *testing.T) (lines string) {
	t.Helper()
	for _, file := range []string{"passwd", "group", "shadow", "gshadow"} {
		text, err := os.ReadFile(filepath.Join("/etc", file))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, agent.DefaultUser) {
				lines += file + ": " + line
			}
		}
	}
	return lines
}

// cutOff begins an installation, and kills it as soon as it has taken a step so often: a
// file made, put in its place or removed. whole is whether it has ended before.
func cutOff(t *testing.T, w *world, state, disk string, step int) (whole bool) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	watch := func(dir string) {
		_, _ = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_CLOSE_WRITE) // it may be gone already
	}
	places := []string{filepath.Dir(state), state, state + ".program"}
	watch("/etc")
	watch(places[0])
	cmd := exec.CommandContext(w.ctx, filepath.Join(w.bin, "rehost-agent"), "install", "--state-dir", state, "--bpffs", w.bpffs, "--endpoint", w.service.Endpoint, "--region", site.Region,
		"--no-prompt", "--no-service", "--force-volumes", "--devices", disk, "--ca-fingerprint", w.fingerprint())
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), w.installer()...), w.log, w.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait(); events.Close() }()
	buf := make([]byte, 4096)
	for taken := 0; taken < step; {
		n, err := events.Read(buf)
		if err != nil {
			break // the installation has ended
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; taken++ {
			rest = rest[unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(rest[12:])):]
		}
		for _, p := range places[1:] {
			watch(p) // again is once
		}
	}
	_ = cmd.Process.Kill()
	err = <-done
	if err != nil && err.Error() != "signal: killed" {
		t.Fatalf("the installation that was to be cut off: %v", err)
	}
	return err == nil
}
