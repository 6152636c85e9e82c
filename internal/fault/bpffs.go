package fault

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// BPF mounts a BPF file system of the test's own and returns where. When the test
// ends it is gone, and so is whatever is still pinned in it. Where none can be
// mounted the test is skipped, with the reason.
func BPF(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Skipf("SKIPPED: no BPF file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}
