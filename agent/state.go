package agent

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/privilege"
)

// This file keeps what the agent knows in one directory. The rules are:
//
//   - The directory is 0700 and its files 0600. Each appears whole or not at all.
//   - Its owner is the agent's user. Root, who installs and removes, touches what is
//     in it as that user: an agent that was taken over could put links there.
//   - The private key shares a file with its certificate, so that they cannot
//     disagree, and is overwritten before it is removed.
//   - No key of whoever installed the agent is ever written.
//   - Versions and members that are not known are refused.

// DefaultStateDir is where an agent keeps its state.
const DefaultStateDir = "/var/lib/rehost-agent"

// defaultBPFFS is where systemd and others mount the BPF file system.
const defaultBPFFS = "/sys/fs/bpf"

const (
	configFile  = "config.json"
	pairingFile = "pairing.json"
	pairFile    = "client.pem" // certificate and key
	rootFile    = "ca.pem"
	statusFile  = "status.json"
	rescanFile  = "rescan"
	limitsFile  = "limits.json"
	vpnFile     = "vpn.json"
	socketFile  = "vpn.sock"
	lockFile    = "agent.pid"
	logFile     = "agent.log"
	programFile = "rehost-agent"

	stateVersion = 1
)

// ErrNotInstalled says that a state directory holds no installation.
var ErrNotInstalled = errors.New("the agent is not installed here")

// ErrRunning says that another process runs the agent of a state directory.
var ErrRunning = errors.New("the agent is running already")

// A Config is what an installation decided, once.
type Config struct {
	Version        int       `json:"version"`
	Endpoint       string    `json:"endpoint"` // https://host:port
	Region         string    `json:"region"`
	SourceServerID string    `json:"sourceServerID"`
	MachineID      string    `json:"machineID"`        // see [Machine]
	Disks          []Device  `json:"disks"`            // chosen for replication
	Forced         bool      `json:"forced,omitempty"` // nothing but Disks is looked for
	NoReplication  bool      `json:"noReplication,omitempty"`
	Known          []Device  `json:"known,omitempty"`              // all disks that were there, chosen or not
	AutoReplicate  bool      `json:"autoReplicate,omitempty"`      // what comes besides is replicated too
	CopyFree       bool      `json:"copyFree,omitempty"`           // free space too
	NoFreeze       bool      `json:"noFreeze,omitempty"`           // file systems are never frozen
	FreezeAfter    float64   `json:"freezeAfterSeconds,omitempty"` // without a point; 0 is capture.DefaultFreezeAfter
	Service        string    `json:"service"`                      // systemd, detached or none
	BPFFS          string    `json:"bpffs,omitempty"`              // where the BPF file system is; "" is defaultBPFFS
	VPN            bool      `json:"vpn,omitempty"`                // calls go through the service's VPN
	Proxy          Proxy     `json:"proxy,omitzero"`               // of the machine, for HTTPS
	Installed      time.Time `json:"installed"`
}

// Validate reports whether c can be run with.
func (c Config) Validate() error {
	switch {
	case c.Version != stateVersion:
		return fmt.Errorf("version %d of the configuration is not known to this agent", c.Version)
	case c.Endpoint == "" || c.Region == "":
		return errors.New("no endpoint or region")
	case c.SourceServerID == "":
		return errors.New("no source server id")
	case c.MachineID == "":
		return errors.New("no machine identity")
	case len(c.Disks) == 0:
		return errors.New("no disks")
	}
	return nil
}

// A pairing is what the service said last, kept so that replication can start
// while the service cannot be reached.
type pairing struct {
	Version    int          `json:"version"`
	Command    string       `json:"command"` // the last one that changes what is to be done
	Disks      []block.Disk `json:"disks,omitempty"`
	Replicator string       `json:"replicator,omitempty"`
	Address    string       `json:"address,omitempty"`
	Generation uint64       `json:"generation,omitempty"`
	Throttling int64        `json:"bandwidthThrottling,omitempty"` // Mbit/s; 0 is none
}

// pins is where an installation's tracking outlives the agent's process.
func (d stateDir) pins(c Config) string {
	root := c.BPFFS
	if root == "" {
		root = defaultBPFFS
	}
	return filepath.Join(root, "rehost-agent", d.mark())
}

// mark tells what is this directory's from what is another's, where agents share a place.
func (d stateDir) mark() string {
	name := sha256.Sum256([]byte(d.abs()))
	return hex.EncodeToString(name[:8])
}

func (d stateDir) abs() string {
	path, err := filepath.Abs(string(d))
	if err != nil {
		return string(d)
	}
	return path
}

func (p pairing) ready() bool { return p.Replicator != "" && p.Address != "" && len(p.Disks) > 0 }

// A stateDir is the path of a state directory.
type stateDir string

func (d stateDir) path(name string) string { return filepath.Join(string(d), name) }

// create makes the directory, or takes over the one that there is.
func (d stateDir) create() error {
	if err := os.MkdirAll(filepath.Dir(string(d)), 0o755); err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	err := os.Mkdir(string(d), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return d.check()
	}
	if err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	return nil
}

// check refuses a directory that others could have put something into.
func (d stateDir) check() error {
	_, err := d.owner()
	return err
}

// owner is whom the agent of the directory runs as: this user, or where this is
// root the agent's.
func (d stateDir) owner() (privilege.Account, error) {
	var st unix.Stat_t
	if err := unix.Lstat(string(d), &st); err != nil {
		return privilege.Account{}, fmt.Errorf("open state directory %s: %w", d, err)
	}
	a := privilege.Account{UID: int(st.Uid), GID: int(st.Gid)}
	mine := a.UID == os.Geteuid()
	if !mine && os.Geteuid() == 0 {
		known, err := privilege.Accounts{}.ByID(a.UID)
		mine = err == nil && known.Name == DefaultUser
		a.Name = known.Name
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || !mine {
		return a, fmt.Errorf("open state directory %s: it must be a directory of this user's that nobody else may enter (mode 0700)", d)
	}
	return a, nil
}

// as does do with the directory's files as their owner.
func (d stateDir) as(do func() error) error {
	var st unix.Stat_t
	if err := unix.Lstat(string(d), &st); err != nil {
		return fmt.Errorf("open state directory: %w", err)
	}
	return privilege.As(int(st.Uid), int(st.Gid), do)
}

func (d stateDir) config() (Config, error) {
	var c Config
	if err := d.load(configFile, &c); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return c, fmt.Errorf("open state directory %s: %w", d, ErrNotInstalled)
		}
		return c, err
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("read %s: %w", d.path(configFile), err)
	}
	return c, nil
}

// pairing returns the last one known, or none.
func (d stateDir) pairing() (pairing, error) {
	p := pairing{Version: stateVersion}
	err := d.load(pairingFile, &p)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil && p.Version != stateVersion {
		err = fmt.Errorf("read %s: version %d is not known", d.path(pairingFile), p.Version)
	}
	return p, err
}

func (d stateDir) load(name string, v any) error {
	var text []byte
	err := d.as(func() (err error) {
		text, err = os.ReadFile(d.path(name))
		return err
	})
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if err := strictJSON(text, v); err != nil {
		return fmt.Errorf("read %s: %w", d.path(name), err)
	}
	return nil
}

func (d stateDir) save(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return d.write(name, append(text, '\n'), true)
}

// write replaces a file; with sync it survives a power cut, before or after.
func (d stateDir) write(name string, content []byte, sync bool) error {
	return d.as(func() error { return d.replace(name, content, sync) })
}

func (d stateDir) replace(name string, content []byte, sync bool) (err error) {
	f, err := os.CreateTemp(string(d), "."+name+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	_, err = f.Write(content)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), d.path(name)); err != nil {
		return err
	}
	if sync {
		return syncDir(string(d))
	}
	return nil
}

// wipe removes the directory and everything in it, keys overwritten first. The
// directory itself is left empty by an agent that may not remove it.
func (d stateDir) wipe() error {
	err := d.as(d.empty)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = os.Remove(string(d)); err == nil {
			err = syncDir(filepath.Dir(string(d)))
		} else if os.Geteuid() != 0 {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("wipe state: %w", err)
	}
	return nil
}

func (d stateDir) empty() error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := d.path(e.Name())
		if e.Type().IsRegular() && e.Name() != programFile {
			errs = append(errs, shred(path))
			continue
		}
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(append(errs, syncDir(string(d)))...)
}

// shred overwrites a file in place and removes it. Media that remap or keep
// old blocks may still hold it: which is why certificates are also revoked.
func shred(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(overwrite(f), f.Close(), os.Remove(path))
}

func overwrite(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	noise := make([]byte, min(info.Size(), 1<<20))
	for off := int64(0); off < info.Size(); off += int64(len(noise)) {
		if _, err := rand.Read(noise); err != nil {
			return err
		}
		if _, err := f.WriteAt(noise[:min(int64(len(noise)), info.Size()-off)], off); err != nil {
			return err
		}
	}
	return f.Sync()
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// lock claims the directory for this process until the file is closed.
func (d stateDir) lock() (f *os.File, err error) {
	err = d.as(func() error {
		f, err = os.OpenFile(d.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("lock state directory %s: %w", d, ErrRunning)
		}
		return nil, fmt.Errorf("lock state: %w", err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock state: %w", err)
	}
	return f, nil
}

// running returns the process that runs the agent of the directory, or 0.
func (d stateDir) running() (pid int) {
	var f *os.File
	err := d.as(func() (err error) {
		f, err = os.Open(d.path(lockFile))
		return err
	})
	if err != nil {
		return 0
	}
	defer f.Close()
	holder := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &holder); err != nil || holder.Type == unix.F_UNLCK {
		return 0 // nobody holds it
	}
	if _, err := fmt.Fscan(f, &pid); err != nil {
		return 0
	}
	return pid
}

// strictJSON decodes one value whose members are all known.
func strictJSON(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}
