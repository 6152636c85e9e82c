// Package fault makes broken things for tests: disks that can no longer be
// read, and disks that shrink.
package fault

import (
	"os"
	"path/filepath"
	"testing"

	"rehost/internal/loop"
)

// A Disk is a loop device over a file that can be taken from under it.
type Disk struct {
	*loop.Device
	backing string
}

// Truncate cuts the backing file without telling the kernel: what is behind the
// cut cannot be read any more.
func (d *Disk) Truncate(t testing.TB, size int64) {
	t.Helper()
	if err := os.Truncate(d.backing, size); err != nil {
		t.Fatal(err)
	}
}

// Shrink makes the disk smaller, and the kernel knows.
func (d *Disk) Shrink(t testing.TB, size int64) {
	t.Helper()
	d.Truncate(t, size)
	if err := d.Resized(); err != nil {
		t.Fatal(err)
	}
}

// Loop makes a disk of size bytes: a loop device over a sparse file in the
// test's own directory, gone when the test ends. Where the machine has no loop
// devices the test is skipped, with the reason.
func Loop(t testing.TB, size int64) *Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
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
	return &Disk{Device: d, backing: path}
}
