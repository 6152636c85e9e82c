package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

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
}

// newGuest boots an image, for an agent that replicates the second disk.
func newGuest(t *testing.T, image testvm.SourceImage, uuid string) *guest {
	t.Helper()
	w := newWorldAt(t, 25*time.Minute, t.TempDir(), testvm.GuestHost)
	g := &guest{t: t, ctx: w.ctx, w: w, token: image.Token, vm: testvm.Run(t, testvm.Config{MemoryMiB: 512, CPUs: 2, UUID: uuid, Ports: []int{80},
		Disks: []testvm.Disk{{Path: image.Disk0, Snapshot: true}, {Path: image.Disk1, Snapshot: true}}})}
	if _, err := g.vm.Get(g.ctx, 80, "/"); err != nil {
		t.Fatal(err)
	}
	g.fetch("rehost-agent", "/root/rehost-agent")
	return g
}

// installation is the command that installs the agent.
func (g *guest) installation() string {
	g.t.Helper()
	return fmt.Sprintf("%s /root/rehost-agent install --no-prompt --force-volumes --devices /dev/vdb --endpoint https://%s:%d --region %s --ca-fingerprint %s",
		strings.Join(g.w.installer(), " "), testvm.GuestHost, g.w.service.Port, site.Region, g.w.fingerprint())
}

// fetch brings a program there.
func (g *guest) fetch(program, place string) {
	g.t.Helper()
	offer, err := testvm.OfferFile(filepath.Join(g.w.bin, program), place)
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
	eventually(g.t, g.ctx, strings.Join(words, ", "), func() bool {
		out, _ = g.vm.Shell(g.ctx, g.token, "/root/rehost-agent status 2>&1")
		for _, word := range words {
			if !strings.Contains(out, word) {
				return false
			}
		}
		return true
	})
	return out
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

// gone looks for what an agent that was there has left.
func (g *guest) gone() {
	g.t.Helper()
	const look = `grep -s aws-replication /etc/passwd /etc/group /etc/shadow; ls -d /var/lib/rehost-agent /usr/local/lib/rehost-agent /run/rehost-agent /sys/fs/bpf/rehost-agent /sys/fs/cgroup/rehost-agent /etc/systemd/system/*rehost* /etc/systemd/system/*/*rehost* 2>/dev/null; true`
	left := ""
	ctx, cancel := context.WithTimeout(g.ctx, 3*time.Minute)
	defer cancel()
	for {
		if left = g.shell(look); strings.TrimSpace(left) == "" {
			return
		}
		select {
		case <-ctx.Done():
			g.t.Fatalf("the agent has left:\n%s", left)
		case <-time.After(time.Second):
		}
	}
}

// TestPrivilege_Systemd installs the agent on a Debian, where systemd gives it what it
// needs and no more: what it may do, that its tracking goes on through a restart, that
// the kernel lets nobody beside it write to a disk, and that after the service told it
// to go nothing is left that it could not have removed itself.
func TestPrivilege_Systemd(t *testing.T) {
	g := newGuest(t, testvm.SourceDebian(t), "6a0b3d0e-5a53-4c36-9f7e-1c1f6a4f0d11")
	g.shell(g.installation())
	out := g.status("runs as aws-replication", "the kernel refuses to let it write to disks", "pinned in /run/rehost-agent/pins/")
	t.Log("\n" + out)
	g.shutIn("/sys/fs/cgroup/system.slice/rehost-agent.service")
	if out := g.shell("stat -c '%U %a' /var/lib/rehost-agent /sys/fs/bpf/rehost-agent"); out != "aws-replication 700\naws-replication 700\n" {
		t.Errorf("its directories are: %s", out)
	}
	g.exposed("rehost-agent.service")
	g.freezes("/dev/vda", "systemctl show -p MainPID --value rehost-agent-freezer.service", "journalctl -u rehost-agent-freezer.service --no-pager | tail -20")
	g.shell("systemctl restart rehost-agent")
	g.status("went on while no agent ran", "Last point")

	servers, err := g.w.service.API.DescribeSourceServers(g.ctx, &mgn.DescribeSourceServersInput{})
	if err != nil || len(servers.Items) != 1 {
		t.Fatalf("%+v: %v", servers, err)
	}
	id := aws.ToString(servers.Items[0].SourceServerID)
	if _, err := g.w.service.API.DisconnectFromService(g.ctx, &mgn.DisconnectFromServiceInput{SourceServerID: &id}); err != nil {
		t.Fatal(err)
	}
	g.gone()
	g.serves()
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

// serves runs the service and a replication server there, from the units that are
// shipped, and looks what the replication server can see.
func (g *guest) serves() {
	g.t.Helper()
	g.fetch("rehost", "/usr/bin/rehost")
	units, err := filepath.Glob("../cmd/rehost/units/*")
	if err != nil || len(units) == 0 {
		g.t.Fatalf("%v: %v", units, err)
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			g.t.Fatal(err)
		}
		g.shell("cat >/etc/systemd/system/" + filepath.Base(unit) + " <<'END'\n" + string(text) + "END\n")
	}
	g.shell("useradd --system --user-group --home-dir /var/lib/rehost --shell /usr/sbin/nologin rehost\n" +
		"echo 'REHOST_OPTIONS=--advertise 127.0.0.1' >/etc/default/rehost\n" +
		"printf 'REHOST_ENDPOINT=https://127.0.0.1:8443\\nREHOST_ADDRESS=127.0.0.1:1500\\n' >/etc/default/rehost-replicator\n" +
		"systemctl daemon-reload; systemctl start rehost")
	eventually(g.t, g.ctx, "the service", func() bool {
		_, err := g.vm.Shell(g.ctx, g.token, "test -e /var/lib/rehost/setup-done -a -e /var/lib/rehost/replicator.pem -a -e /var/lib/rehost/store.key")
		return err == nil
	})
	g.shell("systemctl start rehost-replicator rehost-replicator-renew.path")
	eventually(g.t, g.ctx, "the replication server", func() bool {
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
	eventually(g.t, g.ctx, "the replication server with its new certificate", func() bool {
		out, err := g.vm.Shell(g.ctx, g.token, look+"echo $pid")
		return err == nil && out != before && out != "0\n"
	})
}

// TestPrivilege_Busybox does the same on a machine with neither systemd nor useradd nor
// udev, where the agent gives up by itself what it does not need; and before that, what
// it says on machines that it cannot be installed on.
func TestPrivilege_Busybox(t *testing.T) {
	g := newGuest(t, testvm.Source(t), "6a0b3d0e-5a53-4c36-9f7e-1c1f6a4f0d12")
	g.shell("mkdir -p /usr/local/lib; mount -o remount,noexec /tmp")
	before := g.listing()
	g.badHosts(before)
	g.shell(g.installation())
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
	g.shell("/root/rehost-agent uninstall")
	g.gone()
	if left := g.shell(freezer); left != "" {
		t.Errorf("a freezer is left: %s", left)
	}
	g.unchanged("uninstalled", before)
	g.bareHost()
}
