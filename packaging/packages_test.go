package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/release"
)

// A root is a machine to put packages on: this one's files, of which what is
// changed is the test's own and goes with it.
type root struct {
	*world
	dir string
}

// newRoot lays one out. The agent of its world lives in there.
func newRoot(t *testing.T, tools ...string) *root {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: %s is not there", tool)
		}
	}
	r := &root{newWorld(t), t.TempDir()}
	over := t.TempDir()
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			t.Skipf("SKIPPED: %s cannot be mounted here: %v", kind, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil { // nothing may be removed below it: this machine's /dev is
				panic(fmt.Sprintf("unmount %s: %v", target, err))
			}
		})
	}
	mount("rehost-test", over, "tmpfs", 0, "size=512m")
	for _, name := range []string{"up", "work"} {
		if err := os.Mkdir(filepath.Join(over, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount("overlay", r.dir, "overlay", 0, "lowerdir=/,upperdir="+over+"/up,workdir="+over+"/work")
	for _, name := range []string{"bpf", "packages"} {
		if err := os.Mkdir(filepath.Join(r.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/proc", "/sys", "/dev"} {
		mount(name, filepath.Join(r.dir, name), "bind", unix.MS_BIND|unix.MS_REC, "")
	}
	mount(r.bpffs, filepath.Join(r.dir, "bpf"), "bind", unix.MS_BIND, "")
	r.state = filepath.Join(r.dir, "var/lib/rehost-agent")
	r.chroot = r.dir
	t.Cleanup(func() { _, _ = r.agentRun("uninstall") })
	return r
}

// in runs a command in the root.
func (r *root) in(args ...string) (string, error) {
	cmd := exec.Command("chroot", append([]string{r.dir}, args...)...)
	cmd.Env = append(r.env, "TMPDIR=/tmp")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *root) must(args ...string) string {
	r.t.Helper()
	out, err := r.in(args...)
	if err != nil {
		r.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// pack makes a package of one of the two releases and puts it into the root.
func (r *root) pack(i int, name, format string) (path string) {
	r.t.Helper()
	var packed [2][]byte
	for n := range packed { // twice, elsewhere and later: the same bytes
		stage, out := r.t.TempDir(), r.t.TempDir()
		program, agents := name+"-linux-amd64", filepath.Join(stage, "agents")
		if err := errors.Join(copyFile(filepath.Join(out, program), filepath.Join(r.agent[i], program)), os.Mkdir(agents, 0o755),
			copyFile(filepath.Join(agents, release.Agent("amd64")), filepath.Join(r.agent[i], release.Agent("amd64")))); err != nil {
			r.t.Fatal(err)
		}
		c := command{Version: []string{"0.1.0", "0.2.0"}[i], Out: out, epoch: time.Unix(1_780_000_000, 0)}
		if err := c.pack(r.t.Context(), name, "amd64", format, stage); err != nil {
			r.t.Fatal(err)
		}
		made, err := filepath.Glob(filepath.Join(out, "*."+format))
		if err != nil || len(made) != 1 {
			r.t.Fatal(made, err)
		}
		if packed[n], err = os.ReadFile(made[0]); err != nil {
			r.t.Fatal(err)
		}
		path = filepath.Join("/packages", filepath.Base(made[0]))
		if i > 0 {
			break // once is enough
		}
	}
	if i == 0 && !bytes.Equal(packed[0], packed[1]) {
		r.t.Errorf("%s is another one each time it is made", path)
	}
	if err := os.WriteFile(filepath.Join(r.dir, path), packed[0], 0o644); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *root) install() {
	r.t.Helper()
	if _, err := os.Stat(r.state); err == nil {
		r.t.Fatal("the package alone has installed an agent")
	}
	ca, err := os.ReadFile(filepath.Join(r.service.Data, "ca.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(r.dir, "packages/ca.pem"), ca, 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.must("/usr/bin/rehost-agent", "install", "--no-prompt", "--force-volumes", "--devices", r.disk.Path, "--bpffs", "/bpf",
		"--endpoint", r.service.Endpoint, "--region", "us-east-1", "--ca", "/packages/ca.pem")
	r.until("replication", continuous)
}

func (r *root) gone(name string) {
	r.t.Helper()
	for _, path := range []string{"var/lib/rehost-agent", "usr/bin/rehost-agent", "bpf/rehost-agent",
		"etc/systemd/system/rehost-agent.service", "usr/lib/systemd/system/rehost-agent.service"} {
		entries, err := os.ReadDir(filepath.Join(r.dir, path))
		if err == nil && path == "bpf/rehost-agent" && len(entries) == 0 {
			continue // the directory of all agents' pins
		}
		if _, err := os.Lstat(filepath.Join(r.dir, path)); err == nil {
			r.t.Errorf("%s: /%s stays: %v", name, path, entries)
		}
	}
}

// TestPackages_Deb: the package starts nothing; the agent that was installed from it
// goes on as the next version, stops when the package is removed, goes on when it is
// put back, and is gone when it is purged.
func TestPackages_Deb(t *testing.T) {
	r := newRoot(t, "dpkg", "chroot")
	first, second := r.pack(0, "rehost-agent", "deb"), r.pack(1, "rehost-agent", "deb")
	r.must("dpkg", "-i", first)
	if out := r.must("rehost-agent", "--version"); strings.TrimSpace(out) != "0.1.0" {
		t.Errorf("version %s", out)
	}
	for _, unit := range []string{"rehost-agent.service", "rehost-agent-freezer.service", "rehost-agent-freezer.socket"} {
		if _, err := os.Stat(filepath.Join(r.dir, "usr/lib/systemd/system", unit)); err != nil {
			t.Error(err)
		}
	}
	r.install()

	if out := r.must("dpkg", "-i", second); !strings.Contains(out, "of version 0.2.0 now, was of 0.1.0") {
		t.Errorf("dpkg -i says %s", out)
	}
	if s := r.until("replication", continuous); s.Version != "0.2.0" || !strings.HasPrefix(s.Keeps, "went on while no agent ran") {
		t.Errorf("after the next version: %+v", s)
	}

	r.must("dpkg", "-r", "rehost-agent")
	if s := r.status(); s.Running {
		t.Errorf("after dpkg -r: %+v", s)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "usr/bin/rehost-agent")); err == nil {
		t.Error("after dpkg -r the program is there")
	}
	r.must("dpkg", "-i", second)
	r.until("replication after the package was put back", continuous)

	r.must("dpkg", "-P", "rehost-agent")
	r.gone("purged")
	if n := len(r.servers()); n != 1 { // whose record the operator removes
		t.Errorf("%d source servers", n)
	}
}

// TestPackages_RPM: as of the .deb, but that rpm knows no state that stays.
func TestPackages_RPM(t *testing.T) {
	r := newRoot(t, "rpm", "chroot")
	first, second := r.pack(0, "rehost-agent", "rpm"), r.pack(1, "rehost-agent", "rpm")
	rpm := func(args ...string) string {
		return r.must(append([]string{"rpm", "--dbpath", "/packages/db"}, args...)...)
	}
	rpm("-i", "--nodeps", first)
	r.install()
	if out := rpm("-U", "--nodeps", second); !strings.Contains(out, "of version 0.2.0 now, was of 0.1.0") {
		t.Errorf("rpm -U says %s", out)
	}
	if s := r.until("replication", continuous); s.Version != "0.2.0" || !strings.HasPrefix(s.Keeps, "went on while no agent ran") {
		t.Errorf("after the next version: %+v", s)
	}
	rpm("-e", "rehost-agent")
	r.gone("erased")
}

// TestPackages_Service: the package makes the user and starts nothing; what the service
// has made stays until it is purged, and replicas stay even then. That systemd takes the
// units TestPrivilege_Systemd shows.
func TestPackages_Service(t *testing.T) {
	r := newRoot(t, "dpkg", "chroot", "useradd")
	deb, state := r.pack(0, "rehost", "deb"), filepath.Join(r.dir, "var/lib/rehost")
	for _, c := range []struct {
		made  string // below the state
		stays bool
	}{{"store", false}, {"store/s-0123456789abcdef0", true}} {
		r.must("dpkg", "-i", "--force-depends", deb) // this machine's users need no package here
		r.must("id", "-u", "rehost")
		if _, err := os.Stat(state); err == nil {
			t.Error("the package alone has begun a service")
		}
		for _, path := range []string{"usr/bin/rehost", "usr/lib/rehost/" + release.Agent("amd64"), "usr/lib/systemd/system/rehost.service", "usr/lib/systemd/system/rehost-replicator.service"} {
			if _, err := os.Stat(filepath.Join(r.dir, path)); err != nil {
				t.Error(err)
			}
		}
		if err := os.MkdirAll(filepath.Join(state, c.made), 0o700); err != nil {
			t.Fatal(err)
		}
		r.must("dpkg", "-r", "rehost")
		if _, err := os.Stat(state); err != nil {
			t.Errorf("removed: %v", err)
		}
		out := r.must("dpkg", "-P", "rehost")
		_, err := os.Stat(state)
		if there := err == nil; there != c.stays || strings.Contains(out, "/var/lib/rehost stays") != c.stays {
			t.Errorf("purged with %s: there %v, want %v: %s", c.made, there, c.stays, out)
		}
		if _, err := r.in("id", "-u", "rehost"); (err == nil) != c.stays {
			t.Errorf("purged with %s, the user: %v", c.made, err)
		}
	}
}
