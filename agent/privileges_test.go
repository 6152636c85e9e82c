package agent

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rehost/internal/fault"
	"rehost/privilege"
)

// TestUnit: an installation with the defaults uses what packages ship; what is written
// for another one has its paths, and systemd takes it, whole and as a drop-in.
func TestUnit(t *testing.T) {
	has := func(text, want string, there bool) {
		t.Helper()
		if strings.Contains(text, want) != there {
			t.Errorf("%q there: %v, want %v:\n%s", want, !there, there, text)
		}
	}
	usual, err := unit(unitName, stateDir(DefaultStateDir).program(), DefaultStateDir, Config{})
	if err != nil {
		t.Fatal(err)
	}
	packaged, err := units.ReadFile("units/" + unitName)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := (privilege.Accounts{}).Group(diskGroup); ok && usual != string(packaged) {
		t.Errorf("it is not what packages ship, but beside that:\n%s", dropIn(string(packaged), usual))
	}
	odd, err := unit(unitName, "/odd 100%.program/rehost-agent", "/odd 100%", Config{BPFFS: "/mnt/bpf"})
	if err != nil {
		t.Fatal(err)
	}
	has(odd, `ExecStart="/odd 100%%.program/rehost-agent" run --state-dir "/odd 100%%" --pins`, true)
	has(odd, `finish --bpffs "/mnt/bpf" --state-dir "/odd 100%%"`, true)
	has(odd, "ConditionPathExists=/odd 100%%/config.json\n", true)
	has(odd, `BindPaths=-"/mnt/bpf/rehost-agent":/run/rehost-agent/pins`, true)
	has(odd, `ReadWritePaths="/odd 100%%"`, true)
	has(odd, "StateDirectory=", false)
	has(odd, DefaultStateDir, false)
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skipf("SKIPPED: whether systemd takes them: %v", err)
	}
	program := strings.NewReplacer(unitProgram, "/bin/true", "/odd 100%%.program/rehost-agent", "/bin/true").Replace
	for _, c := range []struct{ text, beside string }{{usual, ""}, {odd, ""}, {usual, dropIn(usual, odd)}} {
		path := filepath.Join(t.TempDir(), unitName)
		err := errors.Join(os.WriteFile(path, []byte(program(c.text)), 0o600), os.Mkdir(path+".d", 0o700),
			os.WriteFile(filepath.Join(path+".d", dropInFile), []byte(program(c.beside)), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// TestUnit_Lines: an agent that was taken over writes into its configuration what would be
// a line of root's in its unit, where its directory of pins stands.
func TestUnit_Lines(t *testing.T) {
	for _, evil := range []string{"/mnt/bpf\nExecStartPre=+/tmp/evil\n#", "/mnt/bpf\r[Service]", "/mnt/\x00"} {
		if text, err := unit(unitName, unitProgram, DefaultStateDir, Config{BPFFS: evil}); err == nil {
			t.Errorf("%q is in the unit:\n%s", evil, text)
		}
	}
}

// TestUnitDirs: with a package's unit there is only what differs from it beside, and
// nothing where nothing does; whatever was there before. What others put there stays.
func TestUnitDirs(t *testing.T) {
	u := unitDirs{own: t.TempDir(), packaged: t.TempDir()}
	read := func(path string) string {
		text, _ := os.ReadFile(path)
		return string(text)
	}
	put := func(text, own, beside string) {
		t.Helper()
		if err := u.put(t.Context(), "a.service", text); err != nil {
			t.Fatal(err)
		}
		if read(u.file("a.service")) != own || read(u.dropIn("a.service")) != beside {
			t.Errorf("for %q there is %q and beside %q", text, read(u.file("a.service")), read(u.dropIn("a.service")))
		}
	}
	if u.has("a.service") {
		t.Error("there is a unit in empty directories")
	}
	const one = "[Unit]\nDescription=A\n[Service]\nExecStart=/bin/a\nDeviceAllow=a r\nUser=a\n[Install]\nWantedBy=a.target\n"
	const two = "# Another.\n[Unit]\nDescription=A\n[Service]\nExecStartPre=/bin/b\nExecStart=/bin/a\nDeviceAllow=b r\nDeviceAllow=c r\n[Install]\nWantedBy=b.target\n"
	put(one, one, "")
	put(two, two, "")
	if err := u.remove("a.service"); err != nil || u.has("a.service") {
		t.Errorf("it stays: %v", err)
	}
	if err := os.WriteFile(filepath.Join(u.packaged, "a.service"), []byte(one), 0o644); err != nil {
		t.Fatal(err)
	}
	put(one, "", "")
	put(two, "", "[Service]\nDeviceAllow=\nDeviceAllow=b r\nDeviceAllow=c r\nUser=\nExecStartPre=\nExecStartPre=/bin/b\n")
	put(one, "", "")
	others := filepath.Join(filepath.Dir(u.dropIn("a.service")), "limits.conf")
	put(two, "", dropIn(one, two))
	if err := os.WriteFile(others, []byte("[Service]\nMemoryMax=1G\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := u.remove("a.service"); err != nil || read(others) == "" || read(u.dropIn("a.service")) != "" || !u.has("a.service") {
		t.Errorf("removed: %v; others' drop-in %q, ours %q", err, read(others), read(u.dropIn("a.service")))
	}
}

// TestStateDir_Links: an agent that was taken over puts links where its files were, and
// a number that is not its own. Root, who then installs, asks or removes, changes
// nothing elsewhere and stops nobody.
func TestStateDir_Links(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it is about what root does")
	}
	const uid = 60123
	d := stateDir(filepath.Join(t.TempDir(), "state"))
	fault.Passage(t, filepath.Dir(string(d)))
	precious := filepath.Join(t.TempDir(), "precious")
	if err := errors.Join(os.Mkdir(string(d), 0o700), os.WriteFile(precious, []byte("as it was"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{lockFile, configFile, statusFile, logFile, pairFile} {
		if err := os.Symlink(precious, d.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Lchown(string(d), uid, uid); err != nil {
		t.Fatal(err)
	}
	if _, err := d.owner(); err == nil {
		t.Error("a directory of somebody else's is taken for an agent's")
	}
	if _, err := d.lock(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("lock: %v", err)
	}
	if _, err := d.config(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("config: %v", err)
	}
	if pid := d.running(); pid != 0 {
		t.Errorf("process %d would be stopped", pid)
	}
	_ = d.wipe() // the links are in its way
	if text, err := os.ReadFile(precious); string(text) != "as it was" {
		t.Errorf("root has followed a link: %q, %v", text, err)
	}
}

// TestGive: what root gives away becomes the user's whole, the directory last; what is
// not root's, or open to others, is left alone.
func TestGive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can give")
	}
	account := privilege.Account{Name: "somebody", UID: 60123, GID: 60123}
	dir := filepath.Join(t.TempDir(), "dir")
	owner := func(path string) int {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		return int(st.Uid)
	}
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), os.Symlink("/etc/passwd", link)); err != nil {
		t.Fatal(err)
	}
	if err := give(dir, account); err == nil || owner(dir) != 0 {
		t.Errorf("a directory that others may enter was given away: %v", err)
	}
	if err := errors.Join(os.Chmod(dir, 0o700), give(dir, account)); err != nil {
		t.Fatal(err)
	}
	if owner(dir) != account.UID || owner(filepath.Join(dir, "file")) != account.UID || owner(link) != account.UID || owner("/etc/passwd") != 0 {
		t.Error("not all of it is the user's, or more than it")
	}
	if err := give(dir, privilege.Account{Name: "other", UID: 60124, GID: 60124}); err != nil || owner(dir) != account.UID {
		t.Errorf("what is not root's was given away: %v", err)
	}
}
