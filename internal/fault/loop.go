// Package fault makes broken things for tests: disks that can no longer be
// read, and disks that shrink. And it judges what others make of a power cut: a
// [Recorder] writes to disks and knows what they can have held at any instant.
package fault

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"rehost/internal/loop"
)

// A Disk is a loop device over a file, which can be taken from under it, or over memory.
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

// Overwrite changes the disk's content without the block layer: nobody sees it. What
// the kernel has cached of the device is dropped.
func (d *Disk) Overwrite(t testing.TB, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(d.backing, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data, at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	dev, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.IoctlSetInt(int(dev.Fd()), unix.BLKFLSBUF, 0)
	if err := errors.Join(err, dev.Close()); err != nil {
		t.Fatal(err)
	}
}

// Content is what the disk holds, past the kernel's cache: that holds on to what was
// there while somebody has the device open, also where the disk came back as another.
func (d *Disk) Content() ([]byte, error) {
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	const page = 4096
	buf := make([]byte, size+page)
	buf = buf[-uintptr(unsafe.Pointer(&buf[0]))&(page-1):][:size]
	_, err = io.ReadFull(io.NewSectionReader(f, 0, size), buf)
	return buf, err
}

// Resize makes the disk smaller or larger, and the kernel knows. Of size 0 it is as
// a disk that was unplugged.
func (d *Disk) Resize(t testing.TB, size int64) {
	t.Helper()
	d.Truncate(t, size)
	if err := d.Resized(); err != nil {
		t.Fatal(err)
	}
}

// Given is a disk that is there already, and stays when the test ends. It can only be
// written to.
func Given(path string) *Disk { return &Disk{Device: &loop.Device{Path: path}} }

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
	return attach(t, f, size)
}

// Memory makes a disk of size bytes like [Loop], but over memory: what is flushed
// waits for no other disk.
func Memory(t testing.TB, size int64) *Disk {
	t.Helper()
	fd, err := unix.MemfdCreate("rehost-fault", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return attach(t, os.NewFile(uintptr(fd), "memory"), size)
}

// attach closes f.
func attach(t testing.TB, f *os.File, size int64) *Disk {
	t.Helper()
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
	return &Disk{Device: d, backing: f.Name()}
}
