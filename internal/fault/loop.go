// Package fault makes broken things for tests: disks that can be pulled, shrunk
// and written to behind everyone's back.
package fault

import (
	"os"
	"path/filepath"
	"testing"

	"rehost/internal/loop"
)

// Loop makes a disk of size bytes: a loop device over a sparse file in the
// test's own directory, gone when the test ends. Where the machine has no loop
// devices the test is skipped, with the reason.
func Loop(t testing.TB, size int64) *loop.Device {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	d, err := loop.Attach(f)
	if err != nil {
		t.Skipf("SKIPPED: no loop device can be had here: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("detach %s: %v", d.Path, err)
		}
	})
	return d
}
