package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"

	"rehost/e2e/site"
	"rehost/internal/testvm"
)

// maxExposure is the most that systemd-analyze may find exposed of the agent: of 10,
// and rather of what it has to do than of how it is shut in.
const maxExposure = 2.0

// A guest is a machine with an installed agent, that replicates to this one.
type guest struct {
	t     *testing.T
	ctx   context.Context
	w     *world
	vm    *testvm.VM
	token string
	began time.Time
}

// newGuest boots an image. Meanwhile the caller may do something else, until booted.
func newGuest(t *testing.T, image testvm.SourceImage, uuid string) *guest {
	t.Helper()
	w := newWorldAt(t, 25*time.Minute, t.TempDir(), testvm.GuestHost)
	return &guest{t: t, ctx: w.ctx, w: w, token: image.Token, began: time.Now(), vm: testvm.Run(t, testvm.Config{MemoryMiB: 512, CPUs: 2, UUID: uuid, Ports: []int{80},
		Disks: []testvm.Disk{{Path: image.Disk0, Snapshot: true}, {Path: image.Disk1, Snapshot: true}}})}
}

// booted waits until commands can be run there.
func (g *guest) booted() {
	g.t.Helper()
	if _, err := g.vm.Get(g.ctx, 80, "/"); err != nil {
		g.t.Fatal(err)
	}
	g.step("booted")
}

// step says how long everything has taken so far: it is an emulator's time.
func (g *guest) step(what string) {
	g.t.Helper()
	g.t.Logf("%4.0f s: %s", time.Since(g.began).Seconds(), what)
}

// install has a program that is there install the agent, of which the second disk is
// replicated.
func (g *guest) install(program string) {
	g.t.Helper()
	g.shell(g.installation(program))
	g.step("installed")
}

// installation is the command that does it.
func (g *guest) installation(program string) string {
	g.t.Helper()
	return fmt.Sprintf("%s %s install --no-prompt --force-volumes --devices /dev/vdb --endpoint https://%s:%d --region %s --ca-fingerprint %s",
		strings.Join(g.w.installer(), " "), program, testvm.GuestHost, g.w.service.Port, site.Region, g.w.fingerprint())
}

// fetch brings a file there.
func (g *guest) fetch(file, place string) {
	g.t.Helper()
	offer, err := testvm.OfferFile(file, place)
	if err != nil {
		g.t.Fatal(err)
	}
	defer offer.Close()
	g.shell(offer.Fetch)
}

func (g *guest) shell(command string) string {
	g.t.Helper()
	out, err := g.vm.Shell(g.ctx, g.token, command)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// status waits until the agent says all of words of itself, and returns it.
func (g *guest) status(words ...string) string {
	g.t.Helper()
	var out string
	g.until(strings.Join(words, ", "), func() bool {
		out, _ = g.vm.Shell(g.ctx, g.token, "/usr/local/lib/rehost-agent/rehost-agent status 2>&1")
		for _, word := range words {
			if !strings.Contains(out, word) {
				return false
			}
		}
		return true
	})
	return out
}

// until looks every second: what an emulator runs to look is taken from what is waited for.
func (g *guest) until(what string, ok func() bool) {
	g.t.Helper()
	for !ok() {
		select {
		case <-g.ctx.Done():
			g.t.Fatalf("waited in vain for %s", what)
		case <-time.After(time.Second):
		}
	}
	g.step(what)
}

// shutIn looks at what the kernel says that the agent may do, and has root try to write
// to a disk where the agent is.
func (g *guest) shutIn(group string) {
	g.t.Helper()
	out := g.shell("cat /proc/$(cat /var/lib/rehost-agent/agent.pid)/status")
	const two = "000000c000000000" // CAP_PERFMON is 38, CAP_BPF 39
	for _, name := range []string{"CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !strings.Contains(out, name+":\t"+two+"\n") {
			g.t.Errorf("%s is not CAP_BPF and CAP_PERFMON:\n%s", name, out)
		}
	}
	if regexp.MustCompile(`(?m)^Uid:.*\b0\b`).MatchString(out) || !strings.Contains(out, "NoNewPrivs:\t1") || !strings.Contains(out, "Seccomp:\t2") {
		g.t.Errorf("it is not shut in:\n%s", out)
	}
	out = g.shell("grep -q $(cat /var/lib/rehost-agent/agent.pid) " + group + "/cgroup.procs; echo $$ >" + group + "/cgroup.procs; busybox dd if=/dev/vdb of=/dev/null bs=4k count=1 2>&1; busybox dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=notrunc 2>&1 || true")
	if !strings.Contains(out, "can't open '/dev/vdb': Operation not permitted") || !strings.Contains(out, "1+0 records out") {
		g.t.Errorf("beside the agent even root is to read and not to write, and it says:\n%s", out)
	}
}

// exposed asks systemd what of a unit is.
func (g *guest) exposed(unit string) {
	g.t.Helper()
	out := g.shell("systemd-analyze security --no-pager " + unit + " | tail -1")
	g.t.Log(strings.TrimSpace(out))
	m := regexp.MustCompile(`: ([0-9.]+) `).FindStringSubmatch(out)
	if m == nil {
		g.t.Fatalf("systemd-analyze says: %s", out)
	}
	if exposure, err := strconv.ParseFloat(m[1], 64); err != nil || exposure > maxExposure {
		g.t.Errorf("systemd-analyze finds %s of %s exposed, at most %v may be", m[1], unit, maxExposure)
	}
}

// traces are what an agent has made on a machine, and its package.
const (
	traces    = `grep -s aws-replication /etc/passwd /etc/group /etc/shadow; ls -d /var/lib/rehost-agent /usr/local/lib/rehost-agent /run/rehost-agent /sys/fs/bpf/rehost-agent /sys/fs/cgroup/rehost-agent /etc/systemd/system/*rehost* /etc/systemd/system/*/*rehost* 2>/dev/null; true`
	ofPackage = `ls -d /usr/bin/rehost-agent /usr/lib/systemd/system/*rehost-agent* /usr/share/doc/rehost-agent /var/lib/dpkg/info/rehost-agent* 2>/dev/null; true`
)

// gone looks for what an agent that was there has left.
func (g *guest) gone(looks ...string) {
	g.t.Helper()
	for _, look := range looks {
		left := ""
		for end := time.Now().Add(3 * time.Minute); ; {
			if left = g.shell(look); strings.TrimSpace(left) == "" {
				break
			}
			if time.Now().After(end) {
				g.t.Fatalf("the agent has left:\n%s", left)
			}
			time.Sleep(time.Second)
		}
	}
	g.step("gone")
}

// packages are those of a version.
type packages struct {
	dir            string // of the release, which is signed
	agent, service string
}

// pack makes packages as `make packages` does. A version that is broken has a program
// that does everything but run.
func pack(t *testing.T, version, key string, broken bool, programs ...string) packages {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	cmd := exec.CommandContext(t.Context(), "go", "run", "./packaging", "--version", version, "--key", key, "--arch", "amd64", "--only", strings.Join(programs, ","), "--package", "deb", "--out", out)
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if broken {
		cmd.Env = append(cmd.Env, "GOFLAGS=-overlay="+overlay(t, dir, "../cmd/rehost-agent/main.go", "level := slog.LevelInfo", `return errors.New("broken on purpose"); level := slog.LevelInfo`))
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make packages of %s: %v: %s", version, err, text)
	}
	return packages{out, filepath.Join(out, "rehost-agent_"+version+"_amd64.deb"), filepath.Join(out, "rehost_"+version+"_amd64.deb")}
}

// overlay is a file for go build -overlay with which a source file says something else.
func overlay(t *testing.T, dir, file, from, to string) string {
	t.Helper()
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), from) {
		t.Fatalf("%s has no %q: %v", file, from, err)
	}
	changed, list := filepath.Join(dir, filepath.Base(file)), filepath.Join(dir, "overlay.json")
	content, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	if err = errors.Join(err, os.WriteFile(changed, []byte(strings.Replace(string(text), from, to, 1)), 0o600), os.WriteFile(list, content, 0o600)); err != nil {
		t.Fatal(err)
	}
	return list
}

// dpkg installs a package, and returns what that says.
func (g *guest) dpkg(deb string) (string, error) {
	g.t.Helper()
	g.fetch(deb, "/root/package.deb")
	out, err := g.vm.Shell(g.ctx, g.token, "dpkg -i /root/package.deb 2>&1")
	g.step(filepath.Base(deb))
	return out, err
}

func (g *guest) mustDpkg(deb string) string {
	g.t.Helper()
	out, err := g.dpkg(deb)
	if err != nil {
		g.t.Fatalf("%v: %s", err, out)
	}
	return out
}

// TestPrivilege_Systemd is the whole life of the packages on a Debian, where systemd gives
// the agent what it needs and no more: what it may do, that its tracking goes on through
// an upgrade, also through one that fails, that the kernel lets nobody beside it write to a
// disk, and that nothing is left that the agent could not have removed itself, neither
// after the service told it to go nor after the package was purged.
func TestPrivilege_Systemd(t *testing.T) {
	t.Parallel() // with the other guest: each waits half of its time
	g := newGuest(t, testvm.SourceDebian(t), "6a0b3d0e-5a53-4c36-9f7e-1c1f6a4f0d11")
	key := filepath.Join(t.TempDir(), "release.key")
	first := pack(t, "1.0.0", key, false, "rehost-agent")
	second := pack(t, "1.1.0", key, false, "rehost-agent", "rehost")
	broken := pack(t, "1.2.0", key, true, "rehost-agent")
	third := pack(t, "1.3.0", key, false, "rehost-agent")
	g.booted()

	g.mustDpkg(first.agent)
	g.gone(traces)
	// A package's unit of another version, which lets the agent have hardly any memory.
	g.shell("sed -i -e 's/^MemoryMax=.*/MemoryMax=8M/' -e 's,^ExecStart=,ExecStartPre=/bin/false\\n&,' /usr/lib/systemd/system/rehost-agent.service; systemctl daemon-reload")
	g.shell("chgrp 4321 /dev/vdb") // which has no name, and is not the group for disks
	g.install("/usr/bin/rehost-agent")
	out := g.status("runs as aws-replication", "the kernel refuses to let it write to disks", "pinned in /run/rehost-agent/pins/", "CONTINUOUS")
	t.Log("\n" + out)
	if out := g.shell("stat -c '%a %g' /dev/vdb"); out != "660 4321\n" {
		t.Errorf("the disk of the group without a name is %s", out)
	}
	if out := g.shell("for p in MemoryMax UnitFileState DropInPaths FragmentPath; do systemctl show --value -p $p rehost-agent; done"); !strings.HasPrefix(out, "536870912\nenabled\n/etc/systemd/system/rehost-agent.service.d/rehost-agent.conf\n") || !strings.HasSuffix(out, "/lib/systemd/system/rehost-agent.service\n") {
		t.Errorf("systemd runs it by:\n%s", out)
	}
	g.shutIn("/sys/fs/cgroup/system.slice/rehost-agent.service")
	if out := g.shell("stat -c '%U %a' /var/lib/rehost-agent /sys/fs/bpf/rehost-agent"); out != "aws-replication 700\naws-replication 700\n" {
		t.Errorf("its directories are: %s", out)
	}
	g.exposed("rehost-agent.service")
	g.freezes("/dev/vda", "systemctl show -p MainPID --value rehost-agent-freezer.service", "journalctl -u rehost-agent-freezer.service --no-pager | tail -20")
	g.upgrades(second, broken)
	g.upgradesItself(second, third)

	servers, err := g.w.service.API.DescribeSourceServers(g.ctx, &mgn.DescribeSourceServersInput{})
	if err != nil || len(servers.Items) != 1 {
		t.Fatalf("%+v: %v", servers, err)
	}
	id := aws.ToString(servers.Items[0].SourceServerID)
	if _, err := g.w.service.API.DisconnectFromService(g.ctx, &mgn.DisconnectFromServiceInput{SourceServerID: &id}); err != nil {
		t.Fatal(err)
	}
	g.gone(traces)
	g.purges(second)
	g.serves(second)
}

// pins are what the kernel keeps of tracking while no agent runs, each by a number that
// is its own.
const pins = "find /sys/fs/bpf/rehost-agent -printf '%p %i\\n' | sort"

// upgrades puts the next version in place, and then one that does not run, in whose place
// the one before goes on.
func (g *guest) upgrades(next, broken packages) {
	g.t.Helper()
	before := g.shell(pins)
	if out := g.mustDpkg(next.agent); !strings.Contains(out, "of version 1.1.0 now, was of 1.0.0") {
		g.t.Errorf("dpkg -i says: %s", out)
	}
	g.goesOn("1.1.0", before)
	if out := g.shell("ls -d /etc/systemd/system/rehost-agent.service* 2>/dev/null; true"); out != "" {
		g.t.Errorf("beside the unit of the package of the same version there is %s", out)
	}
	out, err := g.dpkg(broken.agent)
	if err == nil || !strings.Contains(out, "has not proven itself: it ends again and again") || !strings.Contains(out, "hint: the version before runs again") {
		g.t.Errorf("dpkg -i of a version that does not run: %v: %s", err, out)
	}
	g.goesOn("1.1.0", before)
}

// goesOn waits for the agent of a version, which has to have gone on with what was pinned
// before: nothing is read again.
func (g *guest) goesOn(version, before string) {
	g.t.Helper()
	g.status("version "+version, "went on while no agent ran", "Last point", "CONTINUOUS")
	if now := g.shell(pins); now != before {
		g.t.Errorf("with %s there is pinned\n%s, before it was\n%s", version, now, before)
	}
	server, err := g.w.service.Server(g.ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	if state := server.DataReplicationInfo.DataReplicationState; state == types.DataReplicationStateRescan || state == types.DataReplicationStateInitialSync {
		g.t.Errorf("with %s it is %s", version, state)
	}
	for _, d := range server.DataReplicationInfo.ReplicatedDisks {
		if d.RescannedStorageBytes != 0 || d.ReplicatedStorageBytes == 0 {
			g.t.Errorf("with %s: %+v", version, d)
		}
	}
}

// upgradesItself has the service tell the agent to go on as a third version.
func (g *guest) upgradesItself(service, next packages) {
	g.t.Helper()
	if err := g.w.service.Stop(); err != nil {
		g.t.Fatal(err)
	}
	g.w.config.Program, g.w.config.Args = filepath.Join(service.dir, "rehost-linux-amd64"), []string{"--agent-dir", next.dir} // which believes the key
	g.w.serve()
	before := g.shell(pins)
	server, err := g.w.service.Server(g.ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	out, err := g.w.command(nil, "rehost", "agents", "--data", g.w.config.Data, "upgrade", aws.ToString(server.SourceServerID))
	if err != nil || !strings.Contains(out, "1.3.0    SUCCEEDED") {
		g.t.Errorf("rehost agents upgrade: %v: %s\n%s", err, out, g.shell("journalctl -u 'rehost-agent*' --no-pager | tail -40"))
	}
	g.goesOn("1.3.0", before)
	if out := g.shell("ls /usr/local/lib/rehost-agent; ls /var/lib/rehost-agent | grep upgrade; systemctl is-active rehost-agent-upgrade; true"); out != "rehost-agent\nupgrade.json\ninactive\n" {
		g.t.Errorf("there is left of it:\n%s", out)
	}
	if out, err := g.w.command(nil, "rehost", "agents", "--data", g.w.config.Data, "ls"); err != nil || !strings.Contains(out, " 1.3.0 ") {
		g.t.Errorf("rehost agents ls: %v: %s", err, out)
	}
}

// purges installs the agent once more, and takes the package away: first what can be put
// back, then all.
func (g *guest) purges(p packages) {
	g.t.Helper()
	g.mustDpkg(p.agent) // the broken one is still half installed
	g.install("/usr/bin/rehost-agent")
	g.status("version 1.1.0", "Last point")
	g.shell("dpkg -r rehost-agent")
	if out := g.shell("systemctl is-active rehost-agent rehost-agent-freezer.socket; systemctl is-enabled rehost-agent 2>&1; ls /var/lib/rehost-agent/config.json; find /sys/fs/bpf/rehost-agent -type f 2>/dev/null; find /etc/systemd /usr/lib/systemd -name '*rehost*'; true"); !strings.HasPrefix(out, "inactive\ninactive\n") || strings.Contains(out, "enabled") || !strings.HasSuffix(out, "\n/var/lib/rehost-agent/config.json\n") {
		g.t.Errorf("after dpkg -r:\n%s", out)
	}
	g.shell("dpkg -P rehost-agent")
	g.gone(traces, ofPackage)
}

// freezes asks the freezer as the agent's user does, for the disk with the root file
// system: whoever starts it, it freezes and thaws.
func (g *guest) freezes(disk, pid, log string) {
	g.t.Helper()
	ask := "su -s /bin/sh aws-replication -c '/usr/local/lib/rehost-agent/rehost-agent freezer --try %s' 2>&1; true"
	out := g.shell(fmt.Sprintf(ask, disk))
	if !strings.Contains(out, "What is mounted from "+disk+" was frozen for ") {
		g.t.Errorf("asked to freeze %s, the freezer says:\n%s\n%s", disk, out, g.shell(log))
	}
	g.t.Log(strings.TrimSpace(out))
	if out := g.shell(pid); !regexp.MustCompile(`^[1-9][0-9]*\n$`).MatchString(out) {
		g.t.Errorf("the freezer's process is %q", out)
	}
}

// serves runs the service and a replication server there, from their package, and looks
// what the replication server can see.
func (g *guest) serves(p packages) {
	g.t.Helper()
	g.mustDpkg(p.service)
	if out := g.shell("systemctl is-enabled rehost rehost-replicator rehost-replicator-renew.path; systemctl is-active rehost; true"); out != "disabled\ndisabled\ndisabled\ninactive\n" {
		g.t.Errorf("the package has begun:\n%s", out)
	}
	g.shell("echo 'REHOST_OPTIONS=--advertise 127.0.0.1' >/etc/default/rehost\n" +
		"printf 'REHOST_ENDPOINT=https://127.0.0.1:8443\\nREHOST_ADDRESS=127.0.0.1:1500\\n' >/etc/default/rehost-replicator\n" +
		"systemctl enable --now rehost")
	g.until("the service", func() bool {
		_, err := g.vm.Shell(g.ctx, g.token, "test -e /var/lib/rehost/setup-done -a -e /var/lib/rehost/replicator.pem -a -e /var/lib/rehost/store.key")
		return err == nil
	})
	g.shell("systemctl enable --now rehost-replicator rehost-replicator-renew.path")
	g.until("the replication server", func() bool {
		out, _ := g.vm.Shell(g.ctx, g.token, "journalctl -u rehost-replicator --no-pager")
		return strings.Contains(out, "rehost: ready: replication server")
	})
	const look = "pid=$(systemctl show -p MainPID --value rehost-replicator); "
	if out := g.shell(look + "ls /proc/$pid/root/var/lib/rehost"); out != "ca.pem\nreplicator.lock\nreplicator.pem\nstore\nstore.key\n" {
		g.t.Errorf("the replication server sees of the service's directory:\n%s", out)
	}
	if out := g.shell(look + "ls /proc/$pid/root/proc; grep -E '^(Uid|CapPrm|CapBnd)' /proc/$pid/status"); !strings.Contains(out, "CapPrm:\t0000000000000000\nCapBnd:\t0000000000000000\n") || strings.Contains(out, "Uid:\t0") || strings.Contains(out, "self") {
		g.t.Errorf("the replication server may be too much:\n%s", out)
	}
	g.exposed("rehost.service")
	g.exposed("rehost-replicator.service")
	before := g.shell(look + "echo $pid")
	g.shell("cd /var/lib/rehost && cp -p replicator.pem new.pem && mv new.pem replicator.pem") // as the service renews it
	g.until("the replication server with its new certificate", func() bool {
		out, err := g.vm.Shell(g.ctx, g.token, look+"echo $pid")
		return err == nil && out != before && out != "0\n"
	})
	g.shell("dpkg -r rehost")
	if out := g.shell("systemctl is-active rehost rehost-replicator rehost-replicator-renew.path; find /etc/systemd /usr/lib/systemd -name '*rehost*'; ls /var/lib/rehost/setup-done; true"); out != "inactive\ninactive\ninactive\n/var/lib/rehost/setup-done\n" {
		g.t.Errorf("after dpkg -r:\n%s", out)
	}
	g.step("removed")
}

// TestPrivilege_Busybox does the same on a machine with neither systemd nor useradd nor
// udev, where the agent gives up by itself what it does not need; and before that, what
// it says on machines that it cannot be installed on.
func TestPrivilege_Busybox(t *testing.T) {
	t.Parallel()
	g := newGuest(t, testvm.Source(t), "6a0b3d0e-5a53-4c36-9f7e-1c1f6a4f0d12")
	g.booted()
	g.fetch(filepath.Join(g.w.bin, "rehost-agent"), "/root/rehost-agent")
	g.shell("mkdir -p /usr/local/lib; mount -o remount,noexec /tmp")
	before := g.listing()
	g.badHosts(before)
	g.install("/root/rehost-agent")
	out := g.status("runs as aws-replication", "the kernel refuses to let it write to disks", "pinned in /sys/fs/bpf/rehost-agent/")
	t.Log("\n" + out)
	g.shutIn("/sys/fs/cgroup/rehost-agent")
	const freezer = `for p in /proc/[0-9]*; do { tr '\0' ' ' <$p/cmdline; } 2>/dev/null | grep -q 'freezer --[s]ocket' && echo ${p#/proc/}; done; true`
	g.freezes("/dev/vda", freezer, "tail -20 /tmp/agent.log")
	first := g.shell(freezer)
	g.shell("kill -9 $(cat /var/lib/rehost-agent/agent.pid); (/usr/local/lib/rehost-agent/rehost-agent run >/tmp/agent.log 2>&1 &)")
	g.status("went on while no agent ran", "Last point")
	if now := g.shell(freezer); now == first {
		t.Errorf("the freezer of the agent that was killed runs still: %s", now)
	}
	g.freezes("/dev/vda", freezer, "tail -20 /tmp/agent.log")
	g.second()
	g.shell("/root/rehost-agent uninstall")
	g.gone(traces)
	if left := g.shell(freezer); left != "" {
		t.Errorf("a freezer is left: %s", left)
	}
	g.unchanged("uninstalled", before)
	g.bareHost()
}

// second has another agent come, replicate as a source server of its own, and go: each of the
// two has its freezer, and the first one keeps it.
func (g *guest) second() {
	g.t.Helper()
	const dir = "/var/lib/rehost-second"
	frozen := func(at string) {
		g.t.Helper()
		out := ""
		g.until("the freezer at "+at+" may freeze again", func() bool { // ten seconds after the last time
			out = g.shell("/usr/local/lib/rehost-agent/rehost-agent freezer --try /dev/vda --socket " + at + " 2>&1; true")
			return !strings.Contains(out, "it must wait")
		})
		if !strings.Contains(out, "was frozen for ") {
			g.t.Errorf("the freezer at %s says: %s", at, out)
		}
	}
	g.shell(g.installation("/root/rehost-agent") + " --user-provided-id second --state-dir " + dir)
	frozen("/run/rehost-agent/freezer.sock")
	frozen("/run/rehost-agent/freezer-*.sock")
	g.shell("/root/rehost-agent uninstall --state-dir " + dir)
	if out := g.shell("ls -d /run/rehost-agent/freezer* " + dir + "* 2>/dev/null; true"); out != "/run/rehost-agent/freezer.sock\n" {
		g.t.Errorf("after the second agent there is:\n%s", out)
	}
	frozen("/run/rehost-agent/freezer.sock") // the first one's, after the second has gone
	servers, err := g.w.service.API.DescribeSourceServers(g.ctx, &mgn.DescribeSourceServersInput{})
	if err != nil {
		g.t.Fatal(err)
	}
	for _, s := range servers.Items {
		if aws.ToString(s.UserProvidedID) != "second" {
			continue
		}
		_, err := g.w.service.API.DisconnectFromService(g.ctx, &mgn.DisconnectFromServiceInput{SourceServerID: s.SourceServerID})
		if err == nil {
			_, err = g.w.service.API.DeleteSourceServer(g.ctx, &mgn.DeleteSourceServerInput{SourceServerID: s.SourceServerID})
		}
		if err != nil {
			g.t.Fatal(err)
		}
	}
	g.step("the second agent has come and gone")
}
