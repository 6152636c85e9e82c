package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// This file has the agent's program started where SELinux is in use. By its place below
// lib a program gets a type from which systemd may not start it (203/EXEC), or runs it in
// its own domain. Programs of the type bin_t are started in the domain that a policy has
// for services that it does not know.

const (
	selinuxFS   = "/sys/fs/selinux" // where it is seen, if the kernel has it in use
	labelName   = "security.selinux"
	programType = "bin_t"
)

// labelOf is that of a file, in its parts: user, role, type, and a level where there are
// any. It is nil where there is none.
func labelOf(f *os.File) []string {
	text := make([]byte, 4096)
	n, err := unix.Fgetxattr(int(f.Fd()), labelName, text)
	if err != nil {
		return nil
	}
	if parts := strings.SplitN(strings.TrimRight(string(text[:n]), "\x00"), ":", 4); len(parts) >= 3 {
		return parts
	}
	return nil
}

// startable gives a program the type from which it is started. What another than root
// writes is not started from there.
func startable(f *os.File, selinux string) error {
	if _, err := os.Stat(filepath.Join(selinux, "enforce")); err != nil || os.Geteuid() != 0 {
		return nil
	}
	parts := labelOf(f)
	if parts == nil || parts[2] == programType {
		return nil
	}
	parts[2] = programType
	err := unix.Fsetxattr(int(f.Fd()), labelName, append([]byte(strings.Join(parts, ":")), 0), 0)
	if errors.Is(err, unix.EINVAL) { // a policy without that type
		return nil
	}
	return os.NewSyscallError("fsetxattr "+labelName, err)
}
