package privilege

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities of a program that tracks changes: to load programs into
// the kernel, and to let them look at requests. Both since Linux 5.8; before, only
// CAP_SYS_ADMIN could, which nobody is given.
var kept = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}

// Drop makes this process one of a user's, with the group that reads disks and the
// capabilities to track changes, of which nothing that it starts can have more. It
// starts this program anew in the same process, so that no thread keeps what it had:
// on success it does not return. Only root can.
func Drop(a Account, disks int, environment []string) error {
	runtime.LockOSThread() // what is done here counts for this thread, which alone survives exec
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"leave capabilities out", bound},
		{"take no new privileges", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"keep capabilities", func() error { return unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0) }},
		{"set groups", func() error { g := uint32(disks); return raw(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&g)), 0) }},
		{"set group", func() error { return raw(unix.SYS_SETRESGID, uintptr(a.GID), uintptr(a.GID), uintptr(a.GID)) }},
		{"set user", func() error { return raw(unix.SYS_SETRESUID, uintptr(a.UID), uintptr(a.UID), uintptr(a.UID)) }},
		{"set capabilities", capable},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("become user %s: %s: %w", a.Name, step.name, err)
		}
	}
	unix.Umask(0o077)
	return fmt.Errorf("become user %s: start %s: %w", a.Name, os.Args[0], unix.Exec("/proc/self/exe", os.Args, environment))
}

func raw(call uintptr, a, b, c uintptr) error {
	if _, _, errno := unix.RawSyscall(call, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// bound takes everything else out of what this thread could ever be given.
func bound() error {
	for c := uintptr(0); ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		switch {
		case errors.Is(err, unix.EINVAL):
			return nil // this kernel has no more
		case err != nil:
			return err
		case has == 1 && c != unix.CAP_BPF && c != unix.CAP_PERFMON:
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return err
			}
		}
	}
}

// capable gives up all capabilities but those that are kept, as far as this thread
// has them, and lets these outlive exec.
func capable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has, sets [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return err
	}
	for _, c := range kept {
		bit := has[c/32].Permitted & (1 << (c % 32))
		sets[c/32].Permitted |= bit
		sets[c/32].Effective |= bit
		sets[c/32].Inheritable |= bit
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return err
	}
	for _, c := range kept {
		if sets[c/32].Permitted&(1<<(c%32)) == 0 {
			continue // a container without it, or an older kernel: status says that it cannot track
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// As does do with the files of a user: what it opens or makes is opened or made as
// that user, though this process is root. Whoever owns a directory can put links
// into it, and root would follow them. do must not start goroutines.
func As(uid, gid int, do func() error) error {
	if os.Geteuid() != 0 || uid == 0 {
		return do()
	}
	runtime.LockOSThread() // file system ids are a thread's
	defer runtime.UnlockOSThread()
	for _, set := range []struct {
		call uintptr
		id   int
	}{{unix.SYS_SETFSGID, gid}, {unix.SYS_SETFSUID, uid}} {
		before, _, _ := unix.RawSyscall(set.call, uintptr(set.id), 0, 0)
		defer func() { _, _, _ = unix.RawSyscall(set.call, before, 0, 0) }()
		if now, _, _ := unix.RawSyscall(set.call, ^uintptr(0), 0, 0); int(now) != set.id { // it tells of no error
			return fmt.Errorf("use files as user %d: %w", uid, unix.EPERM)
		}
	}
	return do()
}
