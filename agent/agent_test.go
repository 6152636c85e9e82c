package agent

import (
	"bytes"
	"errors"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/awsapi/formgn"
	"rehost/capture/bpf"
)

// TestAgent_Story installs, replicates two disks, pauses, goes on, stops, and
// copies again; the service and the replication server go away and come back.
func TestAgent_Story(t *testing.T) {
	w := newWorld(t)
	if got := w.install(); !got.New || got.SourceServerID != serverID || len(got.Disks) != 2 {
		t.Fatalf("got %+v", got)
	}
	stop := w.run()
	w.equal("first copy")
	w.wait("a report of continuous replication", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := len(w.reports)
		return n > 0 && w.reports[n-1].State == formgn.DataReplicationStateContinuous && w.reports[n-1].TrackingMethod == formgn.TrackingMethodEbpf
	})
	w.scribble(0, 0, diskSize)
	w.equal("after writes")
	w.wait("measurements", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		m := w.metrics
		return m[formgn.MetricPoints] > 1 && m[formgn.MetricRounds] >= m[formgn.MetricPoints] && m[formgn.MetricReadBytes] >= 2*diskSize &&
			m[formgn.MetricLongestRound] > 0 && m[formgn.MetricCPUSeconds] > 0
	})
	if s, err := ReadStatus(w.state); err != nil || s.Consistency == nil || s.Consistency.Points == 0 || s.Consistency.Withdrawn != 0 {
		t.Errorf("the status says %+v, %v", s.Consistency, err)
	}
	w.mu.Lock()
	if p := w.properties; p == nil || *p.Kernel == "" || *p.Hostname == "" || *p.RamBytes == 0 || len(p.Cpus) == 0 || len(p.Disks) != 2 {
		t.Errorf("got properties %+v", p)
	}
	w.mu.Unlock()

	w.say(formgn.AgentCommandPause)
	w.wait("pause", func() bool { s, err := ReadStatus(w.state); return err == nil && s.State == "PAUSED" })
	time.Sleep(200 * time.Millisecond) // a round under way may end
	w.scribble(1, 0, diskSize)
	time.Sleep(500 * time.Millisecond)
	if w.differs() == "" {
		t.Error("replication went on while paused")
	}
	w.say(formgn.AgentCommandStart)
	w.equal("after the pause")

	w.stopService()
	w.scribble(0, 0, diskSize)
	w.equal("without the service")
	w.wait("status says so", func() bool { s, err := ReadStatus(w.state); return err == nil && s.Service != "" })
	w.stopReceiver()
	w.scribble(1, 0, diskSize)
	w.startReceiver()
	w.equal("new sessions without the service")
	w.startService()
	w.wait("the service is asked again", func() bool { s, err := ReadStatus(w.state); return err == nil && s.Service == "" })

	w.say(formgn.AgentCommandStop)
	w.wait("stop", func() bool {
		s, err := ReadStatus(w.state)
		return err == nil && s.State == "STOPPED" && s.Tracking == ""
	})
	w.scribble(0, 0, diskSize)
	w.say(formgn.AgentCommandStart)
	w.equal("copied again after a stop")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestAgent_StartsWithoutService(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.equal("first copy")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.stopService()
	w.scribble(0, 0, diskSize)
	stop = w.run()
	w.equal("an agent started without the service")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.startService()
}

func TestAgent_UninstallsItself(t *testing.T) {
	w := newWorld(t)
	w.install()
	done := make(chan error, 1)
	stop := w.run()
	w.equal("first copy")
	w.say(formgn.AgentCommandUninstall)
	w.wait("the directory to go", func() bool { _, err := os.Stat(w.state); return errors.Is(err, os.ErrNotExist) })
	done <- stop()
	if err := <-done; !errors.Is(err, ErrUninstalled) {
		t.Fatalf("got %v, want %v", err, ErrUninstalled)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.confirmed {
		t.Error("the service was not told")
	}
	if left := w.pinned(); len(left) > 0 {
		t.Errorf("pinned after the end: %v", left)
	}
}

// TestAgent_Disowned: the certificate was revoked before the agent was told.
// The service alone is not enough to wipe a key; with the replication server it is.
func TestAgent_Disowned(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.equal("first copy")
	pair, err := os.ReadFile(filepath.Join(w.state, pairFile))
	if err != nil || len(pair) == 0 {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	id, err := openIdentity(stateDir(w.state), mustConfig(t, w.state), w.authority.Bundle(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.revoked[serialOf(id)] = true
	w.mu.Unlock()
	stop = w.run()
	w.wait("the service refuses", func() bool {
		s, err := ReadStatus(w.state)
		return err == nil && strings.Contains(s.Service, "not accepted")
	})
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(w.state); err != nil {
		t.Fatal("the key was wiped on one word alone")
	}
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.stopReceiver()
	w.startReceiver()
	w.wait("the directory to go", func() bool { _, err := os.Stat(w.state); return errors.Is(err, os.ErrNotExist) })
	if err := stop(); !errors.Is(err, ErrUninstalled) {
		t.Fatalf("got %v, want %v", err, ErrUninstalled)
	}
}

func TestAgent_RenewsCertificate(t *testing.T) {
	w := newWorld(t)
	w.install()
	before, err := os.ReadFile(filepath.Join(w.state, pairFile))
	if err != nil {
		t.Fatal(err)
	}
	stop := w.run(func(o *RunOptions) { o.renewShare = 1e-9 }) // overdue at once, again and again
	w.wait("three renewals", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.issuedN > 3 })
	w.stopReceiver()
	w.startReceiver() // a new session with a renewed certificate
	w.equal("after renewals")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(w.state, pairFile))
	if err != nil || string(after) == string(before) {
		t.Fatalf("certificate is the same: %v", err)
	}
}

func TestRun_Copied(t *testing.T) {
	w := newWorld(t)
	w.install()
	other := t.TempDir()
	if err := os.MkdirAll(filepath.Join(other, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "etc/machine-id"), []byte("00112233445566778899aabbccddeeff\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "state")
	if out, err := exec.Command("cp", "-a", w.state, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err := Run(t.Context(), RunOptions{StateDir: copied, Machine: Machine{Root: other}})
	if !errors.Is(err, ErrCopied) || Hint(err) == "" {
		t.Fatalf("got %v, want %v", err, ErrCopied)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sessions != 0 {
		t.Error("a copy connected")
	}
}

// killsVariable makes TestAgent_Killed kill that often, for a soak.
const killsVariable = "REHOST_AGENT_KILLS"

// TestAgent_Killed kills the agent at random moments, during the first copy
// and later, and starts it again: in the end the replica is the source.
func TestAgent_Killed(t *testing.T) {
	w := newWorld(t)
	w.install()
	seed := mrand.Uint64()
	r := mrand.New(mrand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	times := 5
	if n, err := strconv.Atoi(os.Getenv(killsVariable)); err == nil {
		times = n
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), runVariable+"="+w.state)
		cmd.Stderr = w.agentLog
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	for i := range times {
		cmd := start()
		for end := time.Now().Add(time.Duration(r.IntN(1500)) * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if r.IntN(8) == 0 {
				w.scribble(r.IntN(2), 0, diskSize)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatalf("kill %d, seed %d: %v", i, seed, err)
		}
		_ = cmd.Wait()
	}
	cmd := start()
	w.equal("after kills")
	w.wait("a report of continuous replication", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := len(w.reports)
		return n > 0 && w.reports[n-1].State == formgn.DataReplicationStateContinuous
	})
	_, _ = cmd.Process.Kill(), cmd.Wait()
	if bpf.Supported() == nil {
		w.goesOn(start)
	}
	cmd = start()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	w.scribble(0, 0, diskSize)
	w.equal("after kills, live")
}

// goesOn: an agent that is killed after the first copy and started again takes over
// the tracking, and never says that it copies.
func (w *world) goesOn(start func() *exec.Cmd) {
	w.t.Helper()
	w.mu.Lock()
	w.reports = nil
	w.mu.Unlock()
	w.scribble(1, 0, diskSize/8)
	cmd := start()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	w.equal("after a kill, with writes meanwhile")
	w.wait("reports", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.reports) > 3 })
	s, err := ReadStatus(w.state)
	if err != nil || !strings.HasPrefix(s.Keeps, "went on while no agent ran") {
		w.t.Errorf("tracking %s, %v", s.Keeps, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		if r.State != formgn.DataReplicationStateContinuous && r.State != formgn.DataReplicationStateBacklog && r.State != formgn.DataReplicationStateStalled {
			w.t.Errorf("state %s after a restart", r.State)
		}
	}
}

// TestAgent_FreeSpace: what a file system does not use is left out, the status says
// so, and whoever installs may say otherwise.
func TestAgent_FreeSpace(t *testing.T) {
	w := newWorld(t)
	disk, dir := w.disks[0].Path, t.TempDir()
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := unix.Mount(disk, dir, "ext4", 0, "nodiscard"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	for _, copyFree := range []bool{false, true} {
		o := w.options()
		o.CopyFree = copyFree
		if _, err := Install(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		stop := w.run()
		var s Status
		w.wait("a point", func() bool {
			var err error
			s, err = ReadStatus(w.state)
			return err == nil && s.LastPoint != nil && s.LastPoint.Time.After(mustConfig(t, w.state).Installed)
		})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := s.Print(&text); err != nil {
			t.Fatal(err)
		}
		left := s.Disks[0].Free > 0 && strings.Contains(text.String(), "that is free of "+disk+" (ext4 on "+dir+")")
		if left == copyFree {
			t.Errorf("to be copied: %v; status %+v\n%s", copyFree, s.Disks, &text)
		}
	}
}
