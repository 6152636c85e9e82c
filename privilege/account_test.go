package privilege

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rehost/internal/fault"
)

// machineWith makes the files of a machine without any program for users.
func machineWith(t *testing.T, files map[string]string) Accounts {
	t.Helper()
	a := Accounts{Root: t.TempDir()}
	if err := os.Mkdir(a.path(""), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(a.path(name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// TestAccounts makes a user in the files of a machine that has no program for it,
// once, with the highest number that is free, and removes it again: then the files
// are what they were.
func TestAccounts(t *testing.T) {
	before := map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nother:x:999:999::/:/bin/sh\n",
		"group":  "root:x:0:\ndisk:x:6:\ntaken:x:998:\n",
		"shadow": "root:*:19000:0:99999:7:::\n",
	}
	a := machineWith(t, before)
	x, made, err := a.Create("agent", "made here")
	if err != nil || !made || x != (Account{"agent", 997, 997, "made here"}) {
		t.Fatalf("got %+v, %v, %v", x, made, err)
	}
	if again, made, err := a.Create("agent", "made here"); err != nil || made || again != x {
		t.Errorf("got %+v, %v, %v", again, made, err)
	}
	text, err := os.ReadFile(a.path("shadow"))
	if err != nil || !strings.Contains(string(text), "agent:!*:") {
		t.Errorf("it could log in: %s, %v", text, err)
	}
	if gid, ok := a.Group("disk"); !ok || gid != 6 {
		t.Errorf("got %d, %v", gid, ok)
	}
	if _, err := a.ByID(997); err != nil {
		t.Error(err)
	}
	if err := a.Remove("agent", "made by somebody else"); err != nil {
		t.Error(err)
	}
	if _, err := a.Lookup("agent"); err != nil {
		t.Errorf("another's user was removed: %v", err)
	}
	if err := errors.Join(a.Remove("agent", "made here"), a.Remove("agent", "made here")); err != nil {
		t.Error(err)
	}
	for name, want := range before {
		var st unix.Stat_t
		text, err := os.ReadFile(a.path(name))
		if err = errors.Join(err, unix.Stat(a.path(name), &st)); err != nil || string(text) != want || st.Mode&0o777 != 0o640 {
			t.Errorf("%s, mode %o: %s: %v", name, st.Mode&0o777, text, err)
		}
	}
	if left, _ := filepath.Glob(a.path("*+")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestAccounts_InUse: nobody's files are taken from a process that runs.
func TestAccounts_InUse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it is root that runs here")
	}
	a := machineWith(t, map[string]string{"passwd": "me:x:0:0:made here:/:/bin/sh\n", "group": "me:x:0:\n"})
	if err := a.Remove("me", "made here"); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
}

// TestAccounts_ReadOnly: the error names the user and what could not be done.
func TestAccounts_ReadOnly(t *testing.T) {
	if _, _, err := (machineWith(t, nil)).Create("agent", ""); err == nil || !strings.Contains(err.Error(), "user agent") {
		t.Errorf("got %v", err)
	}
}

// TestInUse_Elsewhere: a process that has another root does not keep a user of this
// machine from being removed, though their numbers are the same.
func TestInUse_Elsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can be someone else somewhere else")
	}
	const uid = 60126
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	root := t.TempDir()
	program, err := os.ReadFile(busybox)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "busybox"), program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		root string
		want bool
	}{{"/", true}, {root, false}} {
		path := busybox
		if c.root != "/" {
			path = "/busybox"
		}
		cmd := &exec.Cmd{Path: path, Args: []string{"busybox", "sleep", "600"},
			SysProcAttr: &syscall.SysProcAttr{Chroot: c.root, Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}}
		fault.Passage(t, root)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		got := inUse(uid)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		if got != c.want {
			t.Errorf("with its root at %s: got %v, want %v", c.root, got, c.want)
		}
	}
}
