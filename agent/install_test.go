package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"rehost/awsapi/formgn"
	"rehost/ca"
	"rehost/capture"
	"rehost/capture/freeze"
	"rehost/internal/fault"
	"rehost/privilege"
)

// TestInstall_Program drives the real program: it installs with the key in the
// environment, leaves a running agent, finds the same source server when it is
// run again, and uninstalls. The key is nowhere, on disk or in the process.
func TestInstall_Program(t *testing.T) {
	w := newWorld(t)
	run := w.program()
	install := []string{"install", "--no-prompt", "--endpoint", w.address, "--ca-fingerprint", strings.ToUpper(w.authority.Fingerprint()),
		"--bpffs", w.bpffs, "--force-volumes", "--devices", w.disks[0].Path + "," + w.disks[1].Path, "--tags", "Name=db", "Stage=test"}
	out, err := run(install...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if diff := cmp.Diff(formgn.TagsMap{"Name": "db", "Stage": "test"}, w.tags); diff != "" {
		t.Error(diff)
	}
	w.equal("installed by the program")
	first := stateDir(w.state).running()
	if first == 0 {
		t.Fatal("no agent runs")
	}
	w.keyNowhere(first)
	unprivileged(t, first)
	if kib := residentKiB(t, first); kib > 250<<10 {
		t.Errorf("the agent uses %d KiB", kib)
	} else {
		t.Logf("the agent uses %d KiB", kib)
	}
	w.wait("a status with the disks", func() bool { // it is written once a second
		s, err := ReadStatus(w.state)
		return err == nil && len(s.Disks) == 2
	})
	if out, err = run("status"); err != nil || !strings.Contains(out, "running, pid") || !strings.Contains(out, w.disks[1].Path) {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(out, "the kernel refuses to let it write to disks") || !strings.Contains(out, "goes on without the agent, pinned in") {
		t.Error("it may write, or its tracking ends with it")
	}
	t.Log("\n" + out)
	if out, err = run(append(install, "--no-skip-free-space", "--freeze-after", "90s", "--no-freeze")...); err != nil || !strings.Contains(out, "knew this machine already") {
		t.Fatalf("%v: %s", err, out)
	}
	if c := mustConfig(t, w.state); !c.CopyFree || !c.NoFreeze || c.FreezeAfter != 90 {
		t.Errorf("free space is skipped, or something may be frozen, though it was said not to: %+v", c)
	}
	second := stateDir(w.state).running()
	if second == 0 || second == first {
		t.Fatalf("the agent runs as %d, before as %d", second, first)
	}
	w.scribble(0, 0, diskSize)
	w.equal("installed again")
	if out, err = run("uninstall"); err != nil || !strings.Contains(out, "The service was told") {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(w.state); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the directory stays: %v", err)
	}
	if left := w.pinned(); len(left) > 0 {
		t.Errorf("pinned after the end: %v", left)
	}
	if out, err = run("status"); err == nil || !strings.Contains(out, "hint: install it with") {
		t.Fatalf("%v: %s", err, out)
	}
}

// program builds the program as it is shipped, and returns how it is run as root by
// who has the installer's key. What it installs is gone when the test ends.
func (w *world) program() (run func(args ...string) (out string, err error)) {
	t := w.t
	t.Helper()
	if systemdRuns() {
		t.Skip("SKIPPED: systemd runs here, and this test must not make a service of this machine")
	}
	fault.Alone(t)
	fault.Passage(t, filepath.Dir(w.state), w.bpffs)
	program := filepath.Join(t.TempDir(), "rehost-agent")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "../cmd/rehost-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := stateDir(w.state)
	t.Cleanup(func() {
		if text, err := os.ReadFile(d.path(logFile)); err == nil && t.Failed() {
			t.Logf("the program's log:\n%s", text)
		}
		if err := errors.Join(stopRunning(context.Background(), d), d.removeTraces(w.bpffs)); err != nil {
			t.Error(err)
		}
	})
	return func(args ...string) (string, error) {
		cmd := exec.Command(program, append(args, "--state-dir", w.state)...)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+w.installer.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+string(w.installer.SecretAccessKey), "AWS_REGION="+region)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// TestInstall_FromRoot installs over an agent that runs as root, as all did once: the
// new one is not root, goes on with the same tracking, and owns what is its. Told to go
// it leaves nothing, though it may remove neither its user nor its program.
func TestInstall_FromRoot(t *testing.T) {
	w := newWorld(t)
	run := w.program()
	install := []string{"install", "--no-prompt", "--endpoint", w.address, "--ca-fingerprint", w.authority.Fingerprint(),
		"--bpffs", w.bpffs, "--force-volumes", "--devices", w.disks[0].Path}
	if out, err := run(append(install, "--as-root")...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := stateDir(w.state)
	w.wait("its tracking to be pinned", func() bool { s, err := ReadStatus(w.state); return err == nil && strings.Contains(s.Keeps, "pinned") })
	if user := privilege.UserOf(d.running()); user != 0 {
		t.Fatalf("it runs as user %d", user)
	}
	if out, err := run(install...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	unprivileged(t, d.running())
	account, err := privilege.Accounts{}.Lookup(DefaultUser)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{w.state, filepath.Join(w.bpffs, "rehost-agent")} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && unix.Lstat(path, &st) == nil && int(st.Uid) != account.UID {
				err = fmt.Errorf("%s is user %d's", path, st.Uid)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // what is written anew all the time
			t.Error(err)
		}
	}
	w.wait("its tracking to go on", func() bool {
		s, err := ReadStatus(w.state)
		return err == nil && strings.Contains(s.Keeps, "went on while no agent ran")
	})
	w.say(formgn.AgentCommandUninstall)
	w.wait("nothing to be left", func() bool {
		_, err := privilege.Accounts{}.Lookup(DefaultUser)
		left, _ := filepath.Glob(w.state + "*")
		return errors.Is(err, privilege.ErrNoAccount) && len(left) == 0 && len(w.pinned()) == 0
	})
}

// unprivileged looks at what the kernel says that a process may do.
func unprivileged(t *testing.T, pid int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	is := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		is[name] = strings.Join(strings.Fields(value), " ")
	}
	const two = "000000c000000000" // CAP_PERFMON is 38, CAP_BPF 39
	for name, want := range map[string]string{"CapPrm": two, "CapEff": two, "CapBnd": two, "CapAmb": two, "NoNewPrivs": "1", "Seccomp": "2"} {
		if is[name] != want {
			t.Errorf("%s is %q, want %q", name, is[name], want)
		}
	}
	account, err := privilege.Accounts{}.Lookup(DefaultUser)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(strings.Repeat(fmt.Sprint(account.UID, " "), 4)); is["Uid"] != want {
		t.Errorf("it runs as %q, want %q", is["Uid"], want)
	}
	if want := fmt.Sprint(diskReaders(account)); is["Groups"] != want {
		t.Errorf("its groups are %q, want %q", is["Groups"], want)
	}
}

// keyNowhere looks for the installer's secret in all files of the agent and in
// what the process can be asked for.
func (w *world) keyNowhere(pid int) {
	w.t.Helper()
	secret, files := []byte(w.installer.SecretAccessKey), 0
	err := filepath.WalkDir(w.state, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the status file is replaced all the time
			}
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err == nil && bytes.Contains(content, secret) {
			w.t.Errorf("the key is in %s", path)
		}
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			w.t.Errorf("%s has mode %v", path, info.Mode())
		}
		files++
		return nil
	})
	if err != nil || files < 5 {
		w.t.Fatalf("looked at %d files: %v", files, err)
	}
	for _, name := range []string{"environ", "cmdline"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			w.t.Fatal(err)
		}
		if bytes.Contains(content, secret) {
			w.t.Errorf("the key is in the agent's %s", name)
		}
	}
	// the search finds what there is to find
	if config, err := os.ReadFile(filepath.Join(w.state, configFile)); err != nil || !bytes.Contains(config, []byte(serverID)) {
		w.t.Fatalf("the configuration cannot be searched: %v", err)
	}
}

// answers is a Prompter that knows the answers, by the beginning of the question.
type answers map[string]string

func (a answers) Line(question string) (string, error) {
	for begin, answer := range a {
		if strings.HasPrefix(question, begin) {
			return answer + "\n", nil
		}
	}
	return "", fmt.Errorf("unexpected question %q", question)
}

func (a answers) Secret(question string) (string, error) { return a.Line("secretly: " + question) }

func TestInstall_Asks(t *testing.T) {
	o := InstallOptions{Prompt: answers{"Address": "replicate.example", "Region": "r", "Access key id": "ASIA1",
		"secretly: Secret access key": "s", "secretly: Session token": "t", "SHA-256": "ab"}}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	if o.Endpoint != "https://replicate.example:8443" || o.Credentials != (Credentials{"ASIA1", "s", "t"}) || o.CAFingerprint != "ab" {
		t.Errorf("got %q %q %q", o.Endpoint, o.Credentials.AccessKeyID, o.CAFingerprint)
	}
	o = InstallOptions{Endpoint: "h", Region: "r", CA: "f", Credentials: Credentials{"AKIA1", "s", ""}, Prompt: answers{}}
	if err := o.complete(); err != nil {
		t.Errorf("a key that is not temporary has no token: %v", err)
	}
	if text := fmt.Sprintf("%v %+v %#v", o.Credentials, o.Credentials, o.Credentials); strings.Contains(text, `s"`) || strings.Contains(text, "AKIA") {
		t.Errorf("credentials print as %s", text)
	}
}

// TestInstall_Refused: what goes wrong is said with what to do, and nothing is left.
func TestInstall_Refused(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stranger, err := ca.Open(t.TempDir(), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	strangerFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(strangerFile, ca.EncodeCertificates(stranger.Root()), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change     func(*InstallOptions)
		want, hint string
	}{
		"SecretMissing":    {func(o *InstallOptions) { o.Credentials.SecretAccessKey = "" }, "--aws-secret-access-key is missing", ""},
		"TokenMissing":     {func(o *InstallOptions) { o.Credentials.AccessKeyID = "ASIA1" }, "--aws-session-token is missing", ""},
		"WrongSecret":      {func(o *InstallOptions) { o.Credentials.SecretAccessKey += "x" }, "InvalidSignature", "does not belong to the access key id"},
		"WrongKey":         {func(o *InstallOptions) { o.Credentials.AccessKeyID = "AKIAAAAAAAAAAAAAAAAA" }, "UnrecognizedClient", "no such access key"},
		"WrongRegion":      {func(o *InstallOptions) { o.Region = "mars-1" }, "InvalidSignature", "--region"},
		"WrongFingerprint": {func(o *InstallOptions) { o.CAFingerprint = ca.Fingerprint(stranger.Root()) }, "fingerprint", "someone answers"},
		"BadFingerprint":   {func(o *InstallOptions) { o.CAFingerprint = "12" }, "hexadecimal", ""},
		"NoAuthority":      {func(o *InstallOptions) { o.CAFingerprint = "" }, "--ca FILE", ""},
		"WrongAuthority":   {func(o *InstallOptions) { o.CA, o.CAFingerprint = strangerFile, "" }, "unknown authority", "another authority"},
		"Unreachable":      {func(o *InstallOptions) { o.Endpoint = "127.0.0.1:1" }, "refused", "nothing listens"},
		"PlainHTTP":        {func(o *InstallOptions) { o.Endpoint = "http://" + w.address }, "only spoken to by https", ""},
		"NoDevice":         {func(o *InstallOptions) { o.Devices = []string{"/dev/nothing-here"} }, "no such device", "lsblk"},
		"NotADevice":       {func(o *InstallOptions) { o.Devices = []string{file} }, "not a block device", "lsblk"},
		"ForcedNone":       {func(o *InstallOptions) { o.Devices = nil }, "--force-volumes", ""},
		"FreezeAtOnce":     {func(o *InstallOptions) { o.FreezeAfter = 9 * time.Second }, "--freeze-after", ""},
		"ForcedAndAsked":   {func(o *InstallOptions) { o.Prompt = answers{} }, "--no-prompt", ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := w.options()
			c.change(&o)
			_, err := Install(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if hint := Hint(err); !strings.Contains(hint, c.hint) {
				t.Errorf("%v: got hint %q, want %q", err, hint, c.hint)
			}
			if _, err := os.Stat(w.state); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something is left: %v", err)
			}
		})
	}
}

// TestInstall_FailsLate: an installation whose last step fails leaves nothing,
// and one over an older one leaves a whole one.
func TestInstall_FailsLate(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	pair, err := w.authority.IssueReplicationServer(replicator)
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Version: 99} // cannot be run: the agent ends at once
	o.Service = ServiceDetached
	config.Service = o.Service
	if err := o.settle(t.Context(), config, w.authority.Bundle(), pair, nil); err == nil || !strings.Contains(err.Error(), "ended at once") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(w.state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}

func TestReplicatePort_Blocked(t *testing.T) {
	w := newWorld(t)
	w.install()
	w.dataAt = "127.0.0.1:1" // nobody listens
	stop := w.run()
	w.wait("a report of the error", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := len(w.reports)
		return n > 0 && w.reports[n-1].Error == formgn.ReplicationErrorFailedToConnectAgentToReplicationServer
	})
	w.wait("the status to say so", func() bool {
		s, err := ReadStatus(w.state)
		return err == nil && strings.Contains(s.Hint, "1500")
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.dataAt = "127.0.0.1:0"
}

func TestDisk_Vanishes(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.equal("first copy")
	w.disks[1].Resize(t, diskSize/2)
	w.wait("a report of the disk", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := len(w.reports)
		return n > 0 && w.reports[n-1].RawError != nil && strings.Contains(*w.reports[n-1].RawError, "smaller")
	})
	w.wait("the log line to arrive", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.lines) > 0 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestUninstall_Offline works without the service.
func TestUninstall_Offline(t *testing.T) {
	w := newWorld(t)
	w.install()
	w.stopService()
	defer w.startService()
	told, err := Uninstall(t.Context(), w.state, testLog(w))
	if err != nil || told {
		t.Fatalf("told %v: %v", told, err)
	}
	if _, err := os.Stat(w.state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	if _, err := Uninstall(t.Context(), w.state, testLog(w)); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("got %v, want %v", err, ErrNotInstalled)
	}
}

func TestRun_OnlyOne(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.wait("the first one", func() bool { return stateDir(w.state).running() == os.Getpid() })
	if err := Run(t.Context(), RunOptions{StateDir: w.state}); !errors.Is(err, ErrRunning) {
		t.Errorf("got %v, want %v", err, ErrRunning)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if pid := stateDir(w.state).running(); pid != 0 {
		t.Errorf("%d still holds it", pid)
	}
}

func TestSelectDevices_Root(t *testing.T) {
	all, _, err := selectDevices(capture.System{}, nil, false)
	if errors.Is(err, ErrNoRoot) {
		t.Skip("SKIPPED: the root file system of this machine lies on no disk")
	}
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	some, rootless, err := selectDevices(capture.System{}, []string{w.disks[0].Path, w.disks[0].Path}, false)
	if err != nil || rootless || len(some) != 2 || some[0].Name != all[0].Name || !some[0].Boot || some[1].Name != w.disks[0].Path {
		t.Errorf("the root disk is always there, each disk once: got %+v, %v", some, err)
	}
	forced, rootless, err := selectDevices(capture.System{}, []string{w.disks[0].Path}, true)
	if err != nil || !rootless || len(forced) != 1 || !forced[0].Boot {
		t.Errorf("got %+v, %v, %v", forced, rootless, err)
	}
}

func TestParseEndpoint(t *testing.T) {
	for text, want := range map[string]string{"mgn.example": "https://mgn.example:8443", "10.0.0.1:443": "https://10.0.0.1:443", "https://x/": "https://x:8443",
		"localhost:9": "https://localhost:9", "http://x": "", "https://x/y": "", "https://u@x": "", "": "", "[::1]:9": "https://[::1]:9"} {
		if got, err := ParseEndpoint(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestStatus_Print(t *testing.T) {
	var b bytes.Buffer
	s := Status{SourceServerID: serverID, Running: true, PID: 7, Time: time.Now(), State: "INITIAL_SYNC", Disks: []DiskLine{{Name: "/dev/sda", Size: 4 << 30, Replicated: 1 << 30}},
		CPU: 17, CPULimit: 20, Consistency: &Consistency{Points: 9, Rounds: 12, Conflicts: 3, Withdrawn: 2, LongestRound: 1.5, LastAudit: "4096 bytes unseen"},
		NotReplicated: []SpareDisk{{Name: "/dev/sdb", Size: 1 << 30, New: true}, {Name: "/dev/pmem0", Size: 1 << 30, Reason: "DAX"}},
		Outrun:        "programs write faster", Freezes: 3, LongestFreeze: 81.4}
	if err := s.Print(&b); err != nil || !strings.Contains(b.String(), "[#######.......................]  25.0 %  1.0 GiB of 4.0 GiB") {
		t.Errorf("%v:\n%s", err, b.String())
	}
	for _, want := range []string{"/dev/sdb       not replicated (1.0 GiB), new since the installation", "/dev/pmem0     not replicated (1.0 GiB): DAX",
		"17 % of one, bulk work held to 20 %", "9 in 12 rounds, 3 conflicts, the longest round 1.5s", "2 WITHDRAWN: 4096 bytes unseen",
		"NO NEWER POINT comes: programs write faster", outrunHint, "3, the longest of 81 ms"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("does not say %q:\n%s", want, b.String())
		}
	}
	b.Reset()
	s.Tracking = "COMPARE"
	if err := s.Print(&b); err != nil || !strings.Contains(b.String(), compareHint) || strings.Contains(b.String(), outrunHint) {
		t.Errorf("where disks are compared it says (%v):\n%s", err, b.String())
	}
}

// TestAgent_Freezer: file systems may be frozen unless who installed has said otherwise.
func TestAgent_Freezer(t *testing.T) {
	program := []string{"rehost-agent", "freezer"}
	a := agent{dir: DefaultStateDir, options: RunOptions{Freezer: program}}
	socket := func() string {
		c, ok := a.freezer().(*freeze.Client)
		if !ok || !slices.Equal(c.Program, program) {
			t.Fatalf("got %+v", a.freezer())
		}
		return c.Socket
	}
	if got := socket(); got != freeze.Socket {
		t.Errorf("it listens at %s", got)
	}
	a.dir = "/var/lib/second"
	if got := socket(); got == freeze.Socket || filepath.Dir(got) != runDir || got == stateDir("/var/lib/third").freezer() {
		t.Errorf("the freezer of another agent listens at %s", got)
	}
	a.config.Service = ServiceSystemd
	if got := socket(); got != freeze.Socket {
		t.Errorf("that of systemd's unit listens at %s", got)
	}
	a.config.NoFreeze = true
	if f := a.freezer(); f != nil {
		t.Errorf("got %+v, want nobody", f)
	}
}

func residentKiB(t *testing.T, pid int) (n int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
