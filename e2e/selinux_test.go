package e2e

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"rehost/internal/testvm"
)

// TestPrivilege_SELinux is the life of the packages on a Debian whose SELinux enforces:
// everything is what it is without, in the domain that the policy has for services that
// it does not know, and the policy denies none of it. A relabelling of the file system
// takes the agent out of that domain, and the doctor's commands bring it back for good.
func TestPrivilege_SELinux(t *testing.T) {
	t.Parallel() // with the other guests: each waits half of its time
	g := newGuest(t, testvm.SourceSELinux(t), "6a0b3d0e-5a53-4c36-9f7e-1c1f6a4f0d13")
	key := filepath.Join(t.TempDir(), "release.key")
	first := pack(t, "1.0.0", key, false, "rehost-agent")
	second := pack(t, "1.1.0", key, false, "rehost-agent", "rehost")
	third := pack(t, "1.3.0", key, false, "rehost-agent")
	g.booted()
	if out := g.shell("cat /sys/fs/selinux/enforce; echo; id -Z"); out != "1\nunconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\n" {
		t.Fatalf("it does not enforce, or root has not logged in: %s", out)
	}
	if g.shell("! chcon -t no_such_type_t /root 2>&1"); len(g.denied()) != 1 {
		t.Fatalf("a denial on purpose is not seen: %q", g.denied())
	}

	g.mustDpkg(first.agent)
	g.install("/usr/bin/rehost-agent")
	t.Log("\n" + g.status("runs as aws-replication", "the kernel refuses to let it write to disks", "Tracking       EBPF", "pinned in /run/rehost-agent/pins/", "CONTINUOUS", "Last point"))
	g.inDomain("initrc_t")
	g.shutIn("/sys/fs/cgroup/system.slice/rehost-agent.service")
	const freezer = "systemctl show -p MainPID --value rehost-agent-freezer.service"
	g.freezes("/dev/vda", freezer, "journalctl -u rehost-agent-freezer.service --no-pager | tail -20")
	if out := g.shell("cat /proc/$(" + freezer + ")/attr/current"); !strings.Contains(out, ":initrc_t:") {
		t.Errorf("the freezer is in the domain %s", out)
	}
	g.relabelled()

	before := g.shell(pins)
	if out := g.mustDpkg(second.agent); !strings.Contains(out, "of version 1.1.0 now, was of 1.0.0") {
		t.Errorf("dpkg -i says: %s", out)
	}
	g.goesOn("1.1.0", before)
	g.inDomain("initrc_t")
	g.upgradesItself(second, third)
	g.inDomain("initrc_t")
	g.shell("dpkg -P rehost-agent")
	g.gone(traces, ofPackage)
	if denied := g.denied()[1:]; len(denied) > 0 {
		t.Errorf("SELinux has denied:\n%s", strings.Join(denied, "\n"))
	}
}

// ours are the domains in which anything of the agent is, from its installation to its
// end: what systemd does for it, the units, root's commands, the packages' scripts. Those
// of useradd and userdel are not: they look at more than they may (userdel, into other
// processes), and whether they did their work is seen.
var ours = regexp.MustCompile(`rehost|scontext=\w+:\w+:(init|initrc|unconfined|dpkg|dpkg_script)_t:`)

// denied is what SELinux has denied to anything of the agent's; to other parts of the
// Debian it denies a thing or two at boot.
func (g *guest) denied() (denied []string) {
	g.t.Helper()
	for line := range strings.Lines(g.shell("journalctl -q --no-pager -o cat _TRANSPORT=audit")) {
		if strings.Contains(line, "denied") && ours.MatchString(line) {
			denied = append(denied, strings.TrimSpace(line))
		}
	}
	return denied
}

// inDomain looks where the agent runs.
func (g *guest) inDomain(domain string) {
	g.t.Helper()
	if out := g.shell("cat /proc/$(cat /var/lib/rehost-agent/agent.pid)/attr/current"); !strings.Contains(out, ":"+domain+":") {
		g.t.Errorf("the agent is in the domain %s, not in %s; its program: %s", out, domain, g.shell("ls -Z /usr/local/lib/rehost-agent"))
	}
}

// relabelled gives the program the label that the policy has for its place, which is no
// program's, and then has the doctor tell what to do about it.
func (g *guest) relabelled() {
	g.t.Helper()
	const program = "/usr/local/lib/rehost-agent/rehost-agent"
	doctor := func(want string) string {
		g.t.Helper()
		out := regexp.MustCompile(`(?m)^\S+ +SELinux .*\n( +->.*\n)?`).FindString(g.shell(program + " doctor; true"))
		if !strings.Contains(out, want) {
			g.t.Errorf("the doctor does not say %q: %s", want, out)
		}
		return out
	}
	restart := func() {
		g.t.Helper()
		before := g.shell(pins)
		pid := strings.TrimSpace(g.shell("systemctl restart rehost-agent; systemctl show -p MainPID --value rehost-agent"))
		g.status("running, pid " + pid + ",") // and no more what the one before has said of itself
		g.goesOn("1.0.0", before)
	}
	doctor("which a relabelling of the file system takes back")
	g.shell("restorecon -R /usr/local/lib")
	restart()
	g.inDomain("init_t") // systemd's own; a stricter policy lets it start no such program
	hint := doctor(program + " has the type lib_t")
	_, commands, _ := strings.Cut(strings.TrimSpace(hint), "-> ")
	commands, ok := strings.CutSuffix(commands, ", and restart the agent")
	if !ok {
		g.t.Fatalf("the doctor does not say what to do: %s", hint)
	}
	g.t.Log(commands)
	g.shell(commands)
	doctor("and the policy has the type bin_t for " + program)
	g.shell("restorecon -R /usr/local/lib")
	restart()
	g.inDomain("initrc_t")
	g.step("relabelled")
}
