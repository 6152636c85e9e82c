package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"

	"rehost/awsapi"
)

// What a machine can be like that is to get an agent and cannot have one, or not as it
// is. Each says what is wrong and what to do, and leaves the machine as it was.

// asItWas lists what an installation may touch: files, with their owners and modes, users,
// groups and mounts.
const asItWas = `cat /etc/passwd /etc/group /proc/mounts; find / /run /tmp /sys/fs/bpf -xdev ` +
	`\( -path /lib/modules -o -path /srv -o -path /etc/.pwd.lock -o -name '*.log' \) -prune -o -exec stat -c '%n %a %u:%g' {} +`

// listing is what asItWas says of the guest.
func (g *guest) listing() []string {
	g.t.Helper()
	lines := strings.Split(g.shell(asItWas), "\n")
	slices.Sort(lines)
	return lines
}

// changed is what is in one listing and not in the other.
func changed(before, after []string) (out []string) {
	for _, l := range after {
		if _, found := slices.BinarySearch(before, l); !found {
			out = append(out, "+ "+l)
		}
	}
	for _, l := range before {
		if _, found := slices.BinarySearch(after, l); !found {
			out = append(out, "- "+l)
		}
	}
	return out
}

// unchanged holds the guest against a listing.
func (g *guest) unchanged(when string, before []string) {
	g.t.Helper()
	if left := changed(before, g.listing()); len(left) > 0 {
		g.t.Errorf("%s: the machine is not as it was:\n%s", when, strings.Join(left, "\n"))
	}
}

// badHosts has the guest, which has no agent yet, be each of them.
func (g *guest) badHosts(before []string) {
	t := g.t
	t.Helper()
	for _, bad := range []struct {
		name, make, undo string
		want             []string
	}{
		{"read-only /var", "mount --bind /var /var; mount -o remount,bind,ro /var", "umount /var", []string{"/var/lib/rehost-agent", "read-only", "hint: ", "--state-dir"}},
		{"read-only /usr", "mount --bind /usr /usr; mount -o remount,bind,ro /usr", "umount /usr", []string{"/usr/local/lib/rehost-agent", "read-only", "hint: "}},
		{"noexec /usr/local", "mount --bind /usr/local /usr/local; mount -o remount,bind,noexec /usr/local", "umount /usr/local", []string{"/usr/local/lib/rehost-agent", "noexec", "hint: "}},
		{"clock a day ahead", "date -s @$(($(date +%s) + 86400)) >/dev/null", "date -s @$(($(date +%s) - 86400)) >/dev/null", []string{"clock", "hint: "}},
		{"clock a day behind", "date -s @$(($(date +%s) - 86400)) >/dev/null", "date -s @$(($(date +%s) + 86400)) >/dev/null", []string{"clock", "hint: "}},
	} {
		began := time.Now()
		out := g.shell(bad.make + "; (" + g.installation("/root/rehost-agent") + ") 2>&1; echo status $?; " + bad.undo)
		if strings.Contains(out, "status 0\n") {
			t.Errorf("%s: it is installed: %s", bad.name, out)
		}
		for _, want := range bad.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: does not say %q: %s", bad.name, want, out)
			}
		}
		g.unchanged(bad.name, before)
		t.Logf("%s, %v: %s", bad.name, time.Since(began).Round(100*time.Millisecond), out)
	}
}

// bareHost installs the agent where there is no group for disks, and no description of the
// kernel's types, without which nothing is tracked: it compares instead, says so and what
// would be better, comes to a durable point as soon as programs do not write, and goes without
// a trace. It comes to a disk that nobody may read but root, and to one that is of a group
// without a name.
func (g *guest) bareHost() {
	g.t.Helper()
	g.shell("sed -i /^disk:/d /etc/group; chown 0:6 /dev/vdb; chmod 660 /dev/vdb; mount --bind /dev/null /sys/kernel/btf/vmlinux")
	before, was := g.listing(), aws.ToString(g.server().DataReplicationInfo.LastSnapshotDateTime)
	out := g.shell("(/root/rehost-agent doctor; " + g.installation("/root/rehost-agent") + ") 2>&1")
	for _, want := range []string{"fails    eBPF", "-> the disks would be read and compared again and again instead", "cannot track changes", "read and compared again and again"} {
		if !strings.Contains(out, want) {
			g.t.Errorf("without BPF it does not say %q: %s", want, out)
		}
	}
	g.t.Log(g.status("runs as aws-replication", "the kernel refuses to let it write to disks", "Tracking       COMPARE (not supported here"))
	if out := g.shell("stat -c '%a %g' /dev/vdb"); out != "660 6\n" {
		g.t.Errorf("the disk of the group without a name is %s", out)
	}
	g.compares(was)
	g.shell("/root/rehost-agent uninstall")
	g.gone(traces)
	g.unchanged("uninstalled from the bare machine", before)

	g.shell("chown 0:0 /dev/vdb; chmod 600 /dev/vdb")
	g.install("/root/rehost-agent")
	g.status("Tracking       COMPARE (not supported here")
	if out := g.shell("stat -c '%a %G' /dev/vdb"); out != "640 aws-replication\n" {
		g.t.Errorf("without a group for disks the disk is %s", out)
	}
	g.shell("/root/rehost-agent uninstall")
	g.gone(traces)
	g.unchanged("uninstalled from the bare machine once more", before)
	if out := g.shell("stat -c '%a %u:%g' /dev/vdb"); out != "600 0:0\n" { // the number of the group is the next one's
		g.t.Errorf("uninstalled from the bare machine, the disk is %s", out)
	}
}

// server is the guest as the service describes it.
func (g *guest) server() types.SourceServer {
	g.t.Helper()
	server, err := g.w.service.Server(g.ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	return server
}

// compares looks at an agent that compares. A program writes to the disk all the time: there
// is no point, and both sides say why. It is kept from that: there is one, durable and byte by
// byte the disk. was is the last one of the agent from before.
func (g *guest) compares(was string) {
	t := g.t
	t.Helper()
	g.t.Log(g.status("INITIAL_SYNC", "NO NEWER POINT comes: the disks are written to all the time, and compared", "data goes on to be sent; keep programs from writing"))
	server := g.server()
	g.until("the service says so", func() bool {
		server = g.server()
		e := server.DataReplicationInfo.DataReplicationError
		return e != nil && e.Error == types.DataReplicationErrorStringNotConverging && strings.Contains(aws.ToString(e.RawError), "there is a point only where nothing is written")
	})
	if at := aws.ToString(server.DataReplicationInfo.LastSnapshotDateTime); at != was {
		t.Errorf("of a disk that is written to there is a point, %s", at)
	}

	g.shell("fsfreeze --freeze /data")
	g.t.Log(g.status("CONTINUOUS", "Tracking       COMPARE (not supported here", "Last point"))
	replica := g.w.replica(aws.ToString(server.SourceServerID))
	point, ok := replica.Consistent()
	if old, err := awsapi.ParseDateTime(was); err != nil || !ok || !point.Time.After(old) {
		t.Fatalf("the agent tells of a point, and the newest that is durable and consistent is %v of %v: %v", point.Seq, point.Time, err)
	}
	view, err := replica.At(point.Seq)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := view.Disk(view.Disks()[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(disk, 0, disk.Size())); err != nil {
		t.Fatal(err)
	}
	// Past the page cache, which does not see what the journal writes.
	if is := g.shell("busybox dd if=/dev/vdb bs=1M iflag=direct 2>/dev/null | sha256sum"); !strings.HasPrefix(is, hex.EncodeToString(sum.Sum(nil))+" ") {
		t.Errorf("the disk is %s, its replica at %v %x", is, point.Seq, sum.Sum(nil))
	}
	g.step("compared with its replica")
	g.shell("fsfreeze --unfreeze /data")
}
