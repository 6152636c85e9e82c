package privilege

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// From linux/bpf.h.
const (
	devTypeBlock   = 1
	devAccessMknod = 1
	devAccessWrite = 4
)

// SealDisks moves this process into a control group in which no block device can be
// opened for writing or made a node for, whoever owns it: what DeviceAllow is where
// systemd runs. Groups of this name are shared. It needs the unified hierarchy
// (cgroup2), root, and Linux 4.15.
func SealDisks(name string) error {
	dir, err := groupDir(name)
	if err != nil {
		return fmt.Errorf("seal disks: %w", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("seal disks: %w", err)
	}
	group, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("seal disks: %w", err)
	}
	defer group.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "read_only", Type: ebpf.CGroupDevice, License: "Apache-2.0", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // access << 16 | type
		asm.Mov.Imm(asm.R0, 1),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.And.Imm(asm.R3, 0xffff),
		asm.JNE.Imm(asm.R3, devTypeBlock, "end"),
		asm.JSet.Imm(asm.R2, (devAccessWrite|devAccessMknod)<<16, "refuse"),
		asm.Return().WithSymbol("end"),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("refuse"),
		asm.Return(),
	}})
	if err != nil {
		return fmt.Errorf("seal disks: %w", err)
	}
	defer program.Close()
	// It stays while the group does, and takes the place of the one from before.
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(group.Fd()), Program: program, Attach: ebpf.AttachCGroupDevice}); err != nil {
		return fmt.Errorf("seal disks in %s: %w", dir, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("seal disks: %w", err)
	}
	return nil
}

// UnsealDisks removes the group that [SealDisks] made, if nobody is in it.
func UnsealDisks(name string) error {
	dir, err := groupDir(name)
	if err != nil {
		return nil //nolint:nilerr // there can be none
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unseal disks: %w", err)
	}
	return nil
}

// groupDir is a group at the top of the unified hierarchy.
func groupDir(name string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		if w := strings.Fields(before); len(w) > 4 && w[3] == "/" && strings.HasPrefix(after, "cgroup2 ") {
			return filepath.Join(w[4], name), nil
		}
	}
	return "", errors.New("no unified control groups are mounted (cgroup2)")
}

// Readable lets a program that runs as a user, with the group disks besides, read a block
// device and not write to it. What nobody but root could read, because no udev gives disks to
// a group, that group may from then on. What another group may read stays that group's,
// whether or not it has a name here: it may have been given more than disks, so the program
// does not become one of it, and the user's own group gets an entry in the list of the node.
func Readable(path string, a Account, disks int) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("let user %s read %s: %w", a.Name, path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("let user %s read %s: %w", a.Name, path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil
	}
	same := fmt.Sprintf("/proc/self/fd/%d", fd) // what was looked at, whatever its name is by now
	switch {
	case st.Mode&0o040 == 0 || st.Gid == 0:
		err = errors.Join(os.Chown(same, -1, disks), os.Chmod(same, os.FileMode(st.Mode&0o777&^0o020|0o040)))
	case int(st.Gid) != disks && int(st.Gid) != a.GID:
		err = listReader(same, st.Mode, a.GID)
	}
	if err != nil {
		return fmt.Errorf("let user %s read %s: %w", a.Name, path, err)
	}
	return nil
}

// Unreadable undoes [Readable] for a group that is no more: the devices in /dev that were its
// are root's alone again, and it is in no list. The kernel gives its number to the next group
// that is made.
func Unreadable(group int) error {
	return filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
			return nil // what has gone meanwhile, too
		}
		fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil // likewise
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			return nil
		}
		same := fmt.Sprintf("/proc/self/fd/%d", fd) // as in Readable
		err = unlistReader(same, st.Mode, group)
		if int(st.Gid) == group {
			err = errors.Join(err, os.Chown(same, -1, 0), os.Chmod(same, os.FileMode(st.Mode&0o707)))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take %s from group %d: %w", path, group, err)
		}
		return nil
	})
}

// Refused is how the kernel refuses to let this process write to a block device. It
// opens it for that and closes it again. nil says that nothing keeps the process
// from it.
func Refused(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return nil
	}
	return err
}
