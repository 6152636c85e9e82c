package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rehost/capture/freeze"
	"rehost/privilege"
)

// This file is what root does for an agent that is not root. The rules are:
//
//   - Root does it before the agent begins or after it has ended, never at its wish
//     while it runs.
//   - The program belongs to root, in a directory of root's: whoever takes an agent
//     over does not change what root will run.
//   - Who an agent runs as is whom its state directory belongs to. What is in that
//     directory is the agent's word, and decides nothing that root does.

// DefaultUser is whom an agent runs as.
const DefaultUser = "aws-replication"

const (
	userComment = "Rehost replication agent" // marks the user as made here
	diskGroup   = "disk"                     // who may read disks, in all distributions that have such a group
	sealedGroup = "rehost-agent"             // a control group
)

// runDir is where root leaves what the agent may not get by itself; it is gone at the
// next boot.
const runDir = "/run/rehost-agent"

// pinsDir is where a service manager shows the agent its directory of pins: systemd
// lets nobody but root into the BPF file system.
const pinsDir = runDir + "/pins"

// uuidFile is the firmware's id of the machine, which the kernel shows to root alone.
const uuidFile = "product_uuid"

// Prepare makes ready what the agent of a state directory is not allowed to: it is
// to be run as root, before each start.
func Prepare(dir string) error {
	d := stateDir(dir)
	account, err := d.owner()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	config, err := d.config()
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(runDir, 0o755), os.Chmod(runDir, 0o755), showIdentity(account), d.openPins(config, account)); err != nil { //nolint:gosec // whatever the umask
		return fmt.Errorf("prepare: %w", err)
	}
	for _, disk := range config.Disks {
		if err := privilege.Readable(disk.Name, account, diskReaders(account)); err != nil && !errors.Is(err, fs.ErrNotExist) { // a disk may be away
			return fmt.Errorf("prepare: %w", err)
		}
	}
	return nil
}

// diskReaders is the group that may read disks: the agent's own where no other is
// meant for it.
func diskReaders(account privilege.Account) int {
	if gid, ok := (privilege.Accounts{}).Group(diskGroup); ok {
		return gid
	}
	return account.GID
}

// showIdentity leaves the machine's id for the agent's user.
func showIdentity(account privilege.Account) error {
	text, err := os.ReadFile(filepath.Join(sysDMI, uuidFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the machine has none
	}
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(runDir, "."+uuidFile+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chown(account.UID, account.GID), f.Chmod(0o400), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(runDir, uuidFile))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// openPins makes the directory of pins, and gives the agent's user what an agent that
// ran as root has pinned: tracking goes on through an upgrade. Where there is no BPF
// file system, status will say so.
func (d stateDir) openPins(c Config, account privilege.Account) error {
	dir := filepath.Dir(d.pins(c))
	if !pinnable(dir) {
		return nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return give(dir, account)
}

// pinnable is whether a directory lies, or would, in a BPF file system.
func pinnable(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(filepath.Dir(dir), &st) == nil && st.Type == unix.BPF_FS_MAGIC
}

// give makes a directory of root's, and all that is in it, a user's. What is not
// root's stays as it is: whoever it belongs to could change it meanwhile.
func give(dir string, account privilege.Account) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	if st.Uid != 0 {
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 {
		return fmt.Errorf("give %s to user %s: it must be a directory that nobody else may enter (mode 0700)", dir, account.Name)
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		return os.Lchown(path, account.UID, account.GID) //nolint:gosec // nobody else can enter it yet
	})
	return errors.Join(err, os.Lchown(dir, account.UID, account.GID)) // the last: from here on it is not root's alone
}

// change makes the directory the agent's user's, which may have been root's, or the
// other way round. No agent runs.
func (d stateDir) change(account privilege.Account) error {
	err := os.Chmod(string(d), 0o700)
	if account.UID == 0 {
		err = errors.Join(err, os.Lchown(string(d), 0, 0)) // from here on it is root's alone
	}
	if err == nil {
		err = give(string(d), account)
	}
	if err != nil {
		return fmt.Errorf("change the owner of %s: %w", d, err)
	}
	if err := d.as(func() error { _, err := os.ReadDir(string(d)); return err }); err != nil {
		err = errors.Join(err, os.Lchown(string(d), 0, 0)) // who cannot come to it cannot remove it either
		return fmt.Errorf("user %s cannot come to its state: %w; every directory on the way must let it through (chmod o+x)", account.Name, err)
	}
	return nil
}

// Drop makes this process, which is root's, the agent's user's and starts the program
// anew: on success it does not return. Where the state directory is root's, the agent
// stays root, and where this is the agent's user already nothing is to be done.
func Drop(dir string, log *slog.Logger) error {
	d := stateDir(dir)
	account, err := d.owner()
	if err != nil || os.Geteuid() != 0 || account.UID == 0 {
		return err
	}
	if err := Prepare(dir); err != nil {
		return err
	}
	config, err := d.config()
	if err != nil {
		return err
	}
	if pins := filepath.Dir(d.pins(config)); pinnable(pins) {
		if err := privilege.As(account.UID, account.GID, func() error { _, err := os.ReadDir(pins); return err }); err != nil {
			return fmt.Errorf("user %s cannot come to its pins: %w; let it through: mount -o remount,mode=0711 %s", account.Name, err, filepath.Dir(pins))
		}
	}
	if err := privilege.SealDisks(sealedGroup); err != nil {
		log.Info("no control group keeps disks from being written to", "err", err)
	}
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}) // kernels before 5.11 want it, and say so
	if err := d.leaveBehind(config, account); err != nil {
		return err
	}
	return privilege.Drop(account, diskReaders(account), os.Environ())
}

// leaveBehind starts what stays root's, where systemd has units for it: the process
// that does what is left to do when this one has ended, and the freezer. Both learn of
// that end from a pipe, however it comes.
func (d stateDir) leaveBehind(c Config, account privilege.Account) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start what stays behind: %w", err)
	}
	defer r.Close()
	programs := [][]string{{"finish", "--state-dir", string(d), "--bpffs", filepath.Dir(filepath.Dir(d.pins(c))), "--after-stdin"}}
	if !c.NoFreeze {
		programs = append(programs, []string{"freezer", "--socket", d.freezer(), "--user", strconv.Itoa(account.UID), "--until-stdin"})
	}
	for _, args := range programs {
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Args[0], cmd.Dir = os.Args[0], "/"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = r, os.Stderr, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return errors.Join(fmt.Errorf("start what stays behind: %w", err), w.Close())
		}
	}
	_, err = unix.FcntlInt(w.Fd(), unix.F_SETFD, 0) // stays open until the agent's process ends
	return err
}

// freezer is where the freezer of the agent of a state directory listens. Each agent has its
// own, since a freezer ends with its agent, and of two at one place the last one is found.
func (d stateDir) freezer() string {
	if d.abs() == DefaultStateDir {
		return freeze.Socket
	}
	return d.ownFreezer()
}

func (d stateDir) ownFreezer() string { return filepath.Join(runDir, "freezer-"+d.mark()+".sock") }

// Finish removes what is left of an agent that has uninstalled itself, which it could
// not do itself, and upgrades one that has asked for it ([Asked]), or has it upgraded by
// the service manager whose part this is. Otherwise it does nothing. bpffs is as in [InstallOptions]. If
// after is given, it is read to its end before.
func Finish(dir, bpffs string, after io.Reader) error {
	if after != nil {
		if _, err := io.Copy(io.Discard, after); err != nil {
			return fmt.Errorf("wait for the agent's end: %w", err)
		}
	}
	d := stateDir(dir)
	if d.check() == nil && d.due() {
		if after == nil {
			return startUpgrade()
		}
		return Asked(context.Background(), dir)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 || d.check() != nil {
		return nil //nolint:nilerr // what is not an empty directory of an agent is not taken away
	}
	if err := unveil(dir, pinsDir); err != nil {
		return err
	}
	return errors.Join(removeService(usualService(), false), d.wipe(), d.removeTraces(bpffs))
}

// unveil takes away what a service manager has mounted over directories for this
// process, which cannot remove them otherwise. The machine's own mounts stay.
func unveil(dirs ...string) error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if machines, err := os.Readlink("/proc/1/ns/mnt"); err != nil || own == machines {
		return nil //nolint:nilerr // a container may not let it be seen
	}
	for _, dir := range dirs {
		for err = nil; err == nil; { // one may lie on another
			err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return nil
}

// removeTraces removes what an installation made outside of its state directory, once
// no agent runs.
func (d stateDir) removeTraces(bpffs string) error {
	if bpffs == "" {
		bpffs = defaultBPFFS
	}
	_ = os.Remove(filepath.Join(bpffs, "rehost-agent")) // unless another agent's pins are in it
	_ = os.Remove(d.ownFreezer())                       // runDir stays if another agent is there
	err := errors.Join(os.RemoveAll(d.programDir()), privilege.UnsealDisks(sealedGroup))
	account, known := privilege.Accounts{}.Lookup(DefaultUser)
	switch e := (privilege.Accounts{}).Remove(DefaultUser, userComment); {
	case errors.Is(e, privilege.ErrInUse): // by the agent of another state directory
	case e != nil:
		err = errors.Join(err, e)
	default:
		err = errors.Join(err, os.RemoveAll(runDir))
		if known == nil && account.Comment == userComment {
			err = errors.Join(err, privilege.Unreadable(account.GID)) // by whoever gets that number next
		}
	}
	return err
}

// Confine shuts this process in, which from then on is the agent of a state directory
// and nothing else, and says by what it is held. Root's is not shut in. pins is as in
// [RunOptions].
func Confine(dir, pins string) (held string, err error) {
	d := stateDir(dir)
	config, err := d.config()
	if err != nil {
		return "", err
	}
	if os.Geteuid() == 0 {
		return "runs as root, and nothing but itself keeps it from writing to disks", nil
	}
	if pins == "" {
		pins = filepath.Dir(d.pins(config))
	}
	shut, err := privilege.Confine(dir, pins)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("user %d", os.Geteuid())
	if account, err := (privilege.Accounts{}).ByID(os.Geteuid()); err == nil {
		name = account.Name
	}
	return strings.Join(append([]string{"runs as " + name}, shut...), ", ") + "; " + readOnly(config), nil
}

// readOnly tries to open the disks for writing, and says what came of it. The kernel's
// no is the only proof there is.
func readOnly(c Config) string {
	var why error
	for _, disk := range c.Disks {
		err := privilege.Refused(disk.Name)
		if err == nil {
			return "NOTHING keeps it from writing to " + disk.Name
		}
		if !errors.Is(err, fs.ErrNotExist) {
			why = err
		}
	}
	if why == nil {
		return "no disk is there to try to write to"
	}
	return fmt.Sprintf("the kernel refuses to let it write to disks (%v)", why)
}
