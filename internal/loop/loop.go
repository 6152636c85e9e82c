// Package loop attaches files to loop devices with the kernel's own calls, for
// those who need a disk that is nobody's: the tracker's canary, and tests.
package loop

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Device is a loop device over a file. It goes away when it is detached and
// its last user has closed it, at the latest when the process that holds the
// Device ends.
type Device struct {
	Path string // /dev/loopN
	file *os.File
}

// Attach makes a loop device of a free number over backing, which it keeps no
// hold on. It needs CAP_SYS_ADMIN and /dev/loop-control.
func Attach(backing *os.File) (*Device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach loop device: %w", err)
	}
	defer control.Close()
	for range 16 { // another process may take the free number first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("attach loop device: find a free one: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("attach loop device: %w", err)
		}
		err = unix.IoctlLoopConfigure(int(f.Fd()), &unix.LoopConfig{
			Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return &Device{Path: path, file: f}, nil
		}
		f.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach loop device: configure %s: %w", path, err)
		}
	}
	return nil, fmt.Errorf("attach loop device: %w", unix.EBUSY)
}

// Numbers are the device's major and minor.
func (d *Device) Numbers() (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.file.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", d.Path, err)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}

// Resized tells the kernel that the backing file's size has changed.
func (d *Device) Resized() error {
	if err := unix.IoctlSetInt(int(d.file.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("resize %s: %w", d.Path, err)
	}
	return nil
}

// Close detaches the device. It may be called twice.
func (d *Device) Close() error {
	if d.file == nil {
		return nil
	}
	_ = unix.IoctlSetInt(int(d.file.Fd()), unix.LOOP_CLR_FD, 0) // else autoclear does it on close
	err := d.file.Close()
	d.file = nil
	return err
}
