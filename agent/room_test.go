package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRoom: a directory in which no agent can live is refused before anybody is told.
func TestRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root mounts")
	}
	for name, m := range map[string]struct {
		flags uintptr
		size  string
		want  string
	}{
		"Fine":     {0, "256m", ""},
		"ReadOnly": {unix.MS_RDONLY, "256m", "is read-only"},
		"NoExec":   {unix.MS_NOEXEC, "256m", "noexec"},
		"Full":     {0, "8m", "are needed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("rehost-test", dir, "tmpfs", m.flags, "size="+m.size); err != nil {
				t.Skipf("SKIPPED: nothing can be mounted here: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			err := stateDir(filepath.Join(dir, "a/b")).room() // not there yet
			// A state directory in which nothing may run is well, as on a /var that is noexec.
			if name == "NoExec" {
				if err := stateDir(dir).room(); err != nil {
					t.Errorf("with the program elsewhere: %v", err)
				}
			}
			if m.want == "" && err != nil || m.want != "" && (err == nil || !strings.Contains(err.Error(), m.want) || Hint(err) == "") {
				t.Errorf("%v, %q", err, Hint(err))
			}
		})
	}
}
