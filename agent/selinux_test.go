package agent

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStartable: where SELinux is in use a program has the type that service managers
// may start; where it is not, or there are no labels, nothing is touched.
func TestStartable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root labels files")
	}
	selinux := t.TempDir()
	f, err := os.Create(filepath.Join(t.TempDir(), "program"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	after := func(label string) string {
		t.Helper()
		if label != "" {
			if err := unix.Fsetxattr(int(f.Fd()), labelName, []byte(label), 0); err != nil {
				t.Skipf("SKIPPED: no labels here: %v", err)
			}
		}
		if err := startable(f, selinux); err != nil {
			t.Errorf("of %q: %v", label, err)
		}
		b := make([]byte, 200)
		n, err := unix.Fgetxattr(int(f.Fd()), labelName, b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	const lib = "unconfined_u:object_r:lib_t:s0:c1,c2\x00"
	if got := after(lib); got != lib {
		t.Errorf("without SELinux in use: %q", got)
	}
	if err := os.WriteFile(filepath.Join(selinux, "enforce"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	for label, want := range map[string]string{
		lib:                          "unconfined_u:object_r:bin_t:s0:c1,c2\x00",
		"system_u:object_r:usr_t":    "system_u:object_r:bin_t\x00",
		"system_u:object_r:bin_t:s0": "system_u:object_r:bin_t:s0",
		"nonsense":                   "nonsense",
	} {
		if got := after(label); got != want {
			t.Errorf("of %q: %q, want %q", label, got, want)
		}
	}
	if err := unix.Fremovexattr(int(f.Fd()), labelName); err != nil {
		t.Fatal(err)
	}
	if got := after(""); got != "" {
		t.Errorf("without a label: %q", got)
	}
}
