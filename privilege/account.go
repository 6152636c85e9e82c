package privilege

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file makes and removes users. The rules are:
//
//   - The machine's own program does it where there is one: it knows what else is to
//     be told, labels and subordinate ids. Otherwise the files are written, under the
//     lock that those programs take, each whole or not at all.
//   - Who has the mark is ours. Nobody else is changed or removed.

// ErrNoAccount says that there is no such user.
var ErrNoAccount = errors.New("there is no such user")

// ErrInUse says that a user cannot be removed yet: a process runs as it.
var ErrInUse = errors.New("a process runs as this user")

// An Account is whom a program runs as.
type Account struct {
	Name    string
	UID     int
	GID     int
	Comment string // the GECOS field
}

// Accounts are the users of a machine.
type Accounts struct {
	// Root is the directory under which /etc is; "" is /. Programs are asked only for
	// this machine's own.
	Root string
}

func (a Accounts) path(name string) string { return filepath.Join("/", a.Root, "etc", name) }

// Lookup finds a user by name. Only the machine's own files are read: a service
// that starts at boot must not wait for a directory in the network.
func (a Accounts) Lookup(name string) (Account, error) {
	return a.find(name, func(x Account) bool { return x.Name == name })
}

// ByID finds a user by number.
func (a Accounts) ByID(uid int) (Account, error) {
	return a.find(strconv.Itoa(uid), func(x Account) bool { return x.UID == uid })
}

func (a Accounts) find(who string, is func(Account) bool) (Account, error) {
	text, err := os.ReadFile(a.path("passwd"))
	if err != nil {
		return Account{}, fmt.Errorf("look for user %s: %w", who, err)
	}
	for line := range strings.Lines(string(text)) {
		w := strings.Split(strings.TrimSpace(line), ":")
		if len(w) < 5 {
			continue
		}
		uid, err1 := strconv.Atoi(w[2])
		gid, err2 := strconv.Atoi(w[3])
		if x := (Account{w[0], uid, gid, w[4]}); err1 == nil && err2 == nil && is(x) {
			return x, nil
		}
	}
	return Account{}, fmt.Errorf("look for user %s: %w", who, ErrNoAccount)
}

// Group is the number of a group; false if there is none.
func (a Accounts) Group(name string) (gid int, ok bool) {
	text, _ := os.ReadFile(a.path("group"))
	for line := range strings.Lines(string(text)) {
		if w := strings.Split(line, ":"); len(w) > 2 && w[0] == name {
			gid, err := strconv.Atoi(w[2])
			return gid, err == nil
		}
	}
	return 0, false
}

// Create makes a user with a group of its own that nobody can log in as, marked by a
// comment, or returns the one that there is. made is whether it was not there.
func (a Accounts) Create(name, comment string) (_ Account, made bool, err error) {
	x, err := a.Lookup(name)
	if !errors.Is(err, ErrNoAccount) {
		return x, false, err
	}
	err = a.make(name, comment)
	if err == nil {
		x, err = a.Lookup(name)
	}
	if err != nil {
		return x, false, fmt.Errorf("make user %s: %w", name, err)
	}
	return x, true, nil
}

func (a Accounts) make(name, comment string) error {
	for _, cmd := range [][]string{
		{"useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", "--comment", comment, name},
		{"systemd-sysusers", "--inline", fmt.Sprintf("u %s - %q /nonexistent /usr/sbin/nologin", name, comment)},
	} {
		if found, err := a.run(cmd); found {
			return err
		}
	}
	return a.locked(func() error { return a.write(name, comment) })
}

// Remove removes a user that has the comment, and its group. Where there is none it
// does nothing. The error wraps [ErrInUse] while a process runs as it.
func (a Accounts) Remove(name, comment string) error {
	x, err := a.Lookup(name)
	if errors.Is(err, ErrNoAccount) || err == nil && x.Comment != comment {
		return nil
	}
	for end := time.Now().Add(endTimeout); err == nil && inUse(x.UID); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			err = ErrInUse
		}
	}
	if err == nil {
		var found bool
		if found, err = a.run([]string{"userdel", name}); !found {
			err = a.locked(func() error { return a.erase(name) })
		}
	}
	if err != nil {
		return fmt.Errorf("remove user %s: %w", name, err)
	}
	return nil
}

// run runs a program of the machine's; found is whether it has it.
func (a Accounts) run(cmd []string) (found bool, err error) {
	if a.Root != "" {
		return false, nil
	}
	path, err := exec.LookPath(cmd[0])
	for _, dir := range []string{"/usr/sbin", "/sbin"} { // which a user's PATH may lack
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, cmd[0]))
		}
	}
	if err != nil {
		return false, nil //nolint:nilerr // the machine has no such program
	}
	if out, err := exec.Command(path, cmd[1:]...).CombinedOutput(); err != nil { //nolint:noctx // half an account is worse than a late one
		return true, fmt.Errorf("%s: %w: %s", cmd[0], err, bytes.TrimSpace(out))
	}
	return true, nil
}

// inUse is whether a process runs as a user of this machine. In a container the same
// number is another's.
func inUse(uid int) bool {
	found, _ := filepath.Glob("/proc/[0-9]*")
	return slices.ContainsFunc(found, func(dir string) bool {
		pid, err := strconv.Atoi(filepath.Base(dir))
		return err == nil && UserOf(pid) == uid && !elsewhere(dir)
	})
}

// elsewhere is whether the process of a directory of /proc has another root.
func elsewhere(dir string) bool {
	var own, its unix.Stat_t
	return unix.Stat("/", &own) == nil && unix.Stat(dir+"/root", &its) == nil && (own.Dev != its.Dev || own.Ino != its.Ino)
}

// UserOf is the user that a process runs as, -1 if there is no such process or it has
// ended and nobody has asked how.
func UserOf(pid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // whose own owner is root for some
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if len(w) > 1 && w[0] == "State:" && w[1] == "Z" {
			return -1
		}
		if len(w) > 2 && w[0] == "Uid:" {
			if uid, err := strconv.Atoi(w[2]); err == nil {
				return uid
			}
		}
	}
	return -1
}

const (
	lockTimeout = 15 * time.Second // as lckpwdf(3)
	endTimeout  = 3 * time.Second  // for a process that has let go of everything, but is not gone
)

// locked runs do under the lock of lckpwdf(3).
func (a Accounts) locked(do func() error) error {
	f, err := os.OpenFile(a.path(".pwd.lock"), os.O_WRONLY|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for end := time.Now().Add(lockTimeout); ; time.Sleep(50 * time.Millisecond) {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return do()
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) || time.Now().After(end) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// write adds a user to the files: shadow first, so that at no moment there is a
// user without a password that is locked.
func (a Accounts) write(name, comment string) error {
	id, err := a.free()
	if err != nil {
		return err
	}
	for _, f := range []struct{ file, line string }{
		{"group", fmt.Sprintf("%s:x:%d:", name, id)},
		{"gshadow", name + ":!::"},
		{"shadow", name + ":!*:::::::"},
		{"passwd", fmt.Sprintf("%s:x:%d:%d:%s:/nonexistent:/usr/sbin/nologin", name, id, id, comment)},
	} {
		if err := a.edit(f.file, func(lines []string) []string { return append(lines, f.line) }, name); err != nil {
			return err
		}
	}
	return nil
}

func (a Accounts) erase(name string) error {
	for _, file := range []string{"passwd", "shadow", "gshadow", "group"} {
		if err := a.edit(file, func(lines []string) []string { return lines }, name); err != nil {
			return err
		}
	}
	return nil
}

// edit replaces a file by one without the lines of a name, and what change makes of
// that. A file that not every machine has may be missing.
func (a Accounts) edit(file string, change func([]string) []string, name string) error {
	path := a.path(file)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(file, "shadow") {
		return nil
	}
	if err != nil {
		return err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, "\n"); !strings.HasPrefix(line, name+":") {
			lines = append(lines, line)
		}
	}
	return replace(path, strings.Join(change(lines), "\n")+"\n")
}

// replace writes a file anew, with the owner, mode and label of the old one.
func replace(path, text string) (err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	f, err := os.OpenFile(path+"+", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chown(int(st.Uid), int(st.Gid)), f.Chmod(fs.FileMode(st.Mode&0o777)))
	label := make([]byte, 256)
	if n, e := unix.Getxattr(path, "security.selinux", label); e == nil {
		err = errors.Join(err, unix.Fsetxattr(int(f.Fd()), "security.selinux", label[:n], 0))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// free is a number that is neither a user's nor a group's, of those for programs
// of the system, the highest first like useradd.
func (a Accounts) free() (int, error) {
	taken := map[string]bool{}
	for _, file := range []string{"passwd", "group"} {
		text, err := os.ReadFile(a.path(file))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if w := strings.Split(strings.TrimSpace(line), ":"); len(w) > 2 {
				taken[w[2]] = true
			}
		}
	}
	for id := 999; id >= 100; id-- {
		if !taken[strconv.Itoa(id)] {
			return id, nil
		}
	}
	return 0, errors.New("no number from 100 to 999 is free")
}
