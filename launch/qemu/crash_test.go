package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/export"
	"rehost/internal/testvm"
	"rehost/launch"
	"rehost/launch/launchtest"
)

func login(t *testing.T) (socket string, server *export.Server) {
	t.Helper()
	return launchtest.Serve(t, map[string]export.Device{
		"x": launchtest.Device{Beginning: launchtest.BootSector("tiny login: ", launchtest.Halt), Length: 64 << 20}})
}

func terminateAll(t *testing.T, target *Target) {
	t.Helper()
	list, err := target.Instances(context.Background())
	if err != nil {
		t.Error(err)
	}
	for _, in := range list {
		if err := target.Terminate(context.Background(), in.ID); err != nil {
			t.Error(err)
		}
	}
}

// TestReopen: a machine outlives its target and is found again, by the same
// process as before; its console is judged by whoever is there.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	socket, _ := login(t)
	spec := launchtest.SpecFor("stays", socket, "x", 64<<20)
	before, err := first.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	pids := scanMachine(before.UUID)
	if _, err := Open(Options{Dir: dir, Accel: tcg}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: got %v", err)
	}
	if list, err := List(dir); err != nil || len(list) != 1 || list[0].UUID != before.UUID || list[0].State != launch.Running || !list[0].Started.Equal(before.Started) {
		t.Errorf("beside the process that has it open: got %+v, %v; want %+v", list, err, before)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir)
	defer terminateAll(t, second)
	after := launchtest.Await(t, second, "stays", func(in launch.Instance) bool { return in.FirstBoot != launch.FirstBootWaiting })
	if after.UUID != before.UUID || after.State != launch.Running || after.FirstBoot != launch.FirstBootSucceeded {
		t.Errorf("got %+v, then %+v", before, after)
	}
	if got := scanMachine(before.UUID); fmt.Sprint(got) != fmt.Sprint(pids) || len(got) != 1 {
		t.Errorf("processes: got %v, then %v", pids, got)
	}
	if again, err := second.Launch(t.Context(), spec); err != nil || again.UUID != before.UUID {
		t.Errorf("launch repeated: got %+v, %v", again, err)
	}
}

// TestHalfLaunched cuts a launch off where a crash could: the record is there,
// the process runs, but nobody said that it is launched.
func TestHalfLaunched(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	socket, _ := login(t)
	in, err := first.Launch(t.Context(), launchtest.SpecFor("half", socket, "x", 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := readRecord(filepath.Join(dir, "half"))
	if err != nil {
		t.Fatal(err)
	}
	r.Launched = false
	if err := r.write(filepath.Join(dir, "half")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "half", pidFile)); err != nil { // not written yet
		t.Fatal(err)
	}
	for _, name := range []string{"other" + suffixNew, "third" + suffixGone} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// A child of this process is reaped by its target only; this stands in for init.
	defer first.reap(in.UUID)
	second := open(t, dir)
	if pids := scanMachine(in.UUID); len(pids) != 0 {
		t.Errorf("still running: %v", pids)
	}
	if list, _ := second.Instances(t.Context()); len(list) != 0 {
		t.Errorf("got %+v", list)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestReusedPid: a process that got the number of a dead machine is not touched.
func TestReusedPid(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	socket, _ := login(t)
	in, err := first.Launch(t.Context(), launchtest.SpecFor("dead", socket, "x", 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.killMachine(t.Context(), in.UUID); err != nil {
		t.Fatal(err)
	}
	bystander := exec.Command("sleep", "60")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		bystander.Process.Kill()
		bystander.Wait()
	}()
	pid := fmt.Sprint(bystander.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "dead", pidFile), []byte(pid), 0o600); err != nil {
		t.Fatal(err)
	}
	got := launchtest.Await(t, first, "dead", func(in launch.Instance) bool {
		return in.State == launch.Stopped && in.FirstBoot != launch.FirstBootWaiting
	})
	if got.FirstBoot != launch.FirstBootStopped {
		t.Errorf("got %+v", got)
	}
	if err := first.Terminate(t.Context(), "dead"); err != nil {
		t.Fatal(err)
	}
	if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
		t.Errorf("the bystander is gone: %s, %v", stat, err)
	}
}

// TestLaunch_Size prints how long it takes to start a machine from a small disk
// and from a huge one.
func TestLaunch_Size(t *testing.T) {
	target := open(t, t.TempDir())
	defer terminateAll(t, target)
	for _, size := range []int64{64 << 20, 1 << 40} {
		name := fmt.Sprintf("size-%d", size)
		socket, _ := launchtest.Serve(t, map[string]export.Device{
			"x": launchtest.Device{Beginning: launchtest.BootSector("tiny login: ", launchtest.Halt), Length: size}})
		began := time.Now()
		if _, err := target.Launch(t.Context(), launchtest.SpecFor(name, socket, "x", size)); err != nil {
			t.Fatal(err)
		}
		t.Logf("disk of %d MiB: launched after %v", size>>20, time.Since(began).Round(time.Millisecond))
		in := launchtest.Await(t, target, name, func(in launch.Instance) bool { return in.FirstBoot != launch.FirstBootWaiting })
		if in.FirstBoot != launch.FirstBootSucceeded {
			t.Errorf("got %+v", in)
		}
	}
}

// TestProbe runs the probe with an accelerator that works and with a QEMU that
// hangs, as one with a broken /dev/kvm does.
func TestProbe(t *testing.T) {
	testvm.Require(t, "qemu-system-x86_64")
	if works, err := probeAccel(t.Context(), "qemu-system-x86_64", TCG); err != nil || !works {
		t.Errorf("tcg: got %v, %v", works, err)
	}
	fake := filepath.Join(t.TempDir(), "qemu")
	for script, want := range map[string]bool{"exit 0": false, "exit 1": false, "exit 85": true} {
		if err := os.WriteFile(fake, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if works, err := probeAccel(t.Context(), fake, KVM); err != nil || works != want {
			t.Errorf("%s: got %v, %v", script, works, err)
		}
	}
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"processor\t: 0\nvmx flags\t: vnmi\nflags\t\t: fpu vme vmx sse\n": true,
		"flags\t\t: fpu svm\n":                                true,
		"vmx flags\t: vnmi\nflags\t\t: fpu vmxnet svm_lock\n": false,
		"": false,
	} {
		if got := virtualizes(text); got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
	began := time.Now()
	if works, err := probeAccel(t.Context(), fake, KVM); err != nil || works || time.Since(began) > probeTimeout+5*time.Second {
		t.Errorf("hanging: got %v, %v after %v", works, err, time.Since(began))
	}
	asked := 0
	target, err := Open(Options{Dir: t.TempDir(), Accel: func(context.Context) (string, error) { asked++; return TCG, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	for range 3 {
		if accel, err := target.accelerator(t.Context()); accel != TCG || err != nil {
			t.Errorf("got %s, %v", accel, err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func TestJudge(t *testing.T) {
	for text, want := range map[string]launch.FirstBoot{
		"source login: ": launch.FirstBootSucceeded,
		"[  OK  ] Reached target \x1b[0;1;39mMulti-User System\x1b[0m.\r\n": launch.FirstBootSucceeded,
		"Kernel panic - not syncing: VFS":                                   launch.FirstBootStopped,
		"error: unknown\r\ngrub rescue> ":                                   launch.FirstBootStopped,
		"No bootable device.\r\n":                                           launch.FirstBootStopped,
		"UEFI Interactive Shell v2.2\r\n":                                   launch.FirstBootStopped,
		"\r\n(initramfs) ":                                                  launch.FirstBootStopped,
		"Started Getty on tty1.\r\nGRUB> ":                                  launch.FirstBootWaiting,
		strings.Repeat("x", 3*maxLine) + "\nhost login: ":                   launch.FirstBootSucceeded,
	} {
		for _, step := range []int{1, 7, len(text)} { // however the bytes come in
			j, err := newJudge(launch.FirstBootCheck{})
			if err != nil {
				t.Fatal(err)
			}
			got := launch.FirstBootWaiting
			for i := 0; i < len(text) && got == launch.FirstBootWaiting; i += step {
				got, _ = j.feed([]byte(text[i:min(i+step, len(text))]))
			}
			if got != want {
				t.Errorf("%.40q by %d: got %s, want %s", text, step, got, want)
			}
		}
	}
}

// TestConsole_Bound: a guest that prints for ever does not fill the disk.
func TestConsole_Bound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	c := consoleReader{path: path}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 100 {
		fmt.Fprintf(f, "%04d%s\n", i, strings.Repeat(".", 1000))
		if err := c.bound(10000); err != nil {
			t.Fatal(err)
		}
		if fi, _ := f.Stat(); fi.Size() > 12000 {
			t.Fatalf("%d bytes after line %d", fi.Size(), i)
		}
	}
	if tail, err := tailOf(path, 1005); err != nil || !strings.HasPrefix(string(tail), "0099.") {
		t.Errorf("tail: got %.20q, %v", tail, err)
	}
}
