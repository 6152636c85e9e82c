package agent

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
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
		return nil //nolint:nilerr // there is no SELinux here
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

// selinux looks whether systemd may start the program, also when the file system was
// labelled anew.
func (d *doctor) selinux() {
	const name = "SELinux"
	if d.Machine.read("sys/fs/selinux/enforce") != "1" {
		return
	}
	program, is := d.dir.program(), ""
	if f, err := os.Open(program); err == nil && d.installed {
		if parts := labelOf(f); parts != nil {
			is = parts[2]
		}
		f.Close()
	}
	policy := d.Machine.labels()
	lasts := policy.local(program) == programType
	commands := "restorecon -v " + program
	if !lasts {
		commands = "semanage fcontext -a -t " + programType + " " + policy.alias(program) + " && " + commands
	}
	switch {
	case is != "" && is != programType:
		d.note(Warning, name, commands+", and restart the agent", "it is enforcing, and %s has the type %s: systemd may not start it (status 203), or runs it in its own domain", program, is)
	case !lasts:
		d.note(Warning, name, "for that to last: "+commands, "it is enforcing; an installation gives its program the type %s, which a relabelling of the file system takes back", programType)
	default:
		d.ok(name, "it is enforcing, and the policy has the type %s for %s", programType, program)
	}
}

// A fileLabels is the directory in which the policy in use says which files have which
// labels.
type fileLabels struct {
	machine Machine
	dir     string
}

func (m Machine) labels() fileLabels {
	policy := "targeted"
	for line := range strings.Lines(m.read("etc/selinux/config")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "SELINUXTYPE="); ok {
			policy = name
		}
	}
	return fileLabels{m, filepath.Join("etc/selinux", policy, "contexts/files")}
}

// alias is the path by which the policy knows another one: many have /usr/local/lib as
// /usr/lib, and semanage takes it by no other name.
func (l fileLabels) alias(path string) string {
	for _, file := range []string{"file_contexts.subs", "file_contexts.subs_dist"} {
		for line := range strings.Lines(l.machine.read(filepath.Join(l.dir, file))) {
			words := strings.Fields(line)
			if len(words) != 2 || strings.HasPrefix(words[0], "#") {
				continue
			}
			if rest, ok := strings.CutPrefix(path, words[0]+"/"); ok {
				return filepath.Join(words[1], rest)
			}
		}
	}
	return path
}

// local is the type that this machine's own rules have for a path, the last one that is
// about it; "" if there is none.
func (l fileLabels) local(path string) (is string) {
	path = l.alias(path)
	for line := range strings.Lines(l.machine.read(filepath.Join(l.dir, "file_contexts.local"))) {
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasPrefix(words[0], "#") || len(words) == 3 && words[1] != "--" { // of something else than files
			continue
		}
		if rule, err := regexp.Compile("^(?:" + words[0] + ")$"); err != nil || !rule.MatchString(path) {
			continue
		}
		if parts := strings.SplitN(words[len(words)-1], ":", 4); len(parts) >= 3 {
			is = parts[2]
		}
	}
	return is
}
