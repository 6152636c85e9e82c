package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"rehost/ca"
	"rehost/release"
)

// This file replaces the agent's program by another version. The rules are:
//
//   - What comes from the service runs only if it is signed by a key that this
//     program was built with: who has the service has not the source servers.
//   - It is no older than what is here, unless a person says so.
//   - The program from before stays until the new one has proven itself, and
//     comes back if it does not:
//
//     program.next ──> program ──> program.previous ──> gone
//                         └────────<────────┘
//
//   - Tracking is pinned and goes on meanwhile, so that nothing is read anew.

// What stands beside a program while it is replaced.
const (
	nextSuffix     = ".next"
	previousSuffix = ".previous"
	installSuffix  = ".install" // that an installation puts in its place
)

const (
	downloadTimeout = 15 * time.Minute
	proofTimeout    = 3 * time.Minute  // for a new program to do what the one before did
	proofLasts      = 10 * time.Second // that it does it
	maxRestarts     = 3                // of a program that ends by itself, before it is given up
)

var (
	// ErrNoKeys says that this program believes nobody's releases.
	ErrNoKeys = errors.New("this agent was built without the key of whoever makes releases")

	// ErrOlder says that the service has an older version.
	ErrOlder = errors.New("that is an older version")

	errNotNewer = errors.New("that version is here already")

	// ErrUnproven says that a new program did not do what the one before did,
	// which is back.
	ErrUnproven = errors.New("the new version has not proven itself")
)

// UpgradeOptions say what an agent is replaced by.
type UpgradeOptions struct {
	StateDir  string // "" is DefaultStateDir
	Self      bool   // by this very program, which a package has brought, and not by the service's
	Downgrade bool   // also by an older version

	proof, lasts time.Duration // 0 are the defaults
}

// Upgraded is what [Upgrade] has done.
type Upgraded struct {
	From, To string // versions; the same if there was nothing to do
	Restart  bool   // the agent is run by whoever installed it, who has to start it again
}

// Upgrade replaces the agent's program by that of the service and starts it. It
// returns once the new one runs, reaches the service and replicates, as far as
// the one before did; otherwise that one is back and runs, and the error wraps
// [ErrUnproven]. One that was interrupted is finished or taken back first.
func Upgrade(ctx context.Context, o UpgradeOptions) (*Upgraded, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	u, err := openUpgrade(o)
	if err != nil {
		return nil, err
	}
	defer u.lock.Close()
	if _, err := u.resume(ctx); err != nil {
		return nil, fmt.Errorf("finish the upgrade before: %w", err)
	}
	from, err := versionOf(ctx, u.program)
	if err != nil {
		return nil, err
	}
	done := &Upgraded{From: from.String()}
	to, err := u.fetch(ctx, from)
	defer os.Remove(u.program + nextSuffix) // there only if it is not taken over
	if err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	done.To = to.String()
	if to.Compare(from) == 0 && !o.Self {
		return done, nil
	}
	if done.Restart, err = u.replace(ctx, to); err != nil {
		return nil, fmt.Errorf("upgrade from %s to %s: %w", from, to, err)
	}
	return done, nil
}

// An upgrade is one in progress, of one state directory.
type upgrade struct {
	options UpgradeOptions
	dir     stateDir
	config  Config
	program string
	lock    *os.File
	asks    bool // the agent ran until it asked for this
}

func openUpgrade(o UpgradeOptions) (_ *upgrade, err error) {
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.proof == 0 {
		o.proof, o.lasts = proofTimeout, proofLasts
	}
	u := &upgrade{options: o, dir: stateDir(o.StateDir)}
	if u.config, err = u.dir.config(); err != nil {
		return nil, err
	}
	if err := u.dir.check(); err != nil {
		return nil, err
	}
	u.program = u.dir.program()
	u.config.heedProxy()
	// The directory of the program is locked, in which no file is needed for it.
	if u.lock, err = os.Open(filepath.Dir(u.program)); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(u.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		u.lock.Close()
		return nil, fmt.Errorf("upgrade: another upgrade is in progress: %w", err)
	}
	return u, nil
}

// versionOf asks a program, which has to answer at once.
func versionOf(ctx context.Context, program string) (v release.Version, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return v, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	return release.ParseVersion(strings.TrimSpace(string(out)))
}

// fetch puts the program of the new version beside the one that is there, once
// it is known to be what it says and to run on this machine.
func (u *upgrade) fetch(ctx context.Context, from release.Version) (release.Version, error) {
	if u.options.Self {
		return u.copySelf(ctx)
	}
	keys := release.Keys()
	if len(keys) == 0 {
		return release.Version{}, ErrNoKeys
	}
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	d, err := u.downloads()
	if err != nil {
		return release.Version{}, err
	}
	defer d.close()
	sums, signature, err := d.list(ctx)
	if err != nil {
		return release.Version{}, err
	}
	m, err := acceptable(sums, signature, keys, from, u.options.Downgrade)
	if errors.Is(err, errNotNewer) {
		return from, nil
	}
	if err != nil {
		return release.Version{}, err
	}
	if err := d.program(ctx, m, u.program+nextSuffix); err != nil {
		return m.Version, err
	}
	return m.Version, u.says(ctx, m.Version)
}

// acceptable is the manifest of a release that may take the place of version here.
func acceptable(sums, signature []byte, keys []minisign.PublicKey, here release.Version, downgrade bool) (*release.Manifest, error) {
	m, err := release.Open(sums, signature, keys)
	if err != nil {
		return nil, err
	}
	switch order := m.Version.Compare(here); {
	case order == 0:
		return nil, errNotNewer
	case order < 0 && !downgrade:
		return nil, fmt.Errorf("%w: the service has %s, here is %s", ErrOlder, m.Version, here)
	}
	return m, nil
}

// says wants the program beside the one that is there to start, and to be of a version.
func (u *upgrade) says(ctx context.Context, version release.Version) error {
	said, err := versionOf(ctx, u.program+nextSuffix)
	if err == nil && said != version {
		err = fmt.Errorf("the program of release %s says that it is %s", version, said)
	}
	return err
}

func (u *upgrade) copySelf(ctx context.Context) (release.Version, error) {
	self, err := os.Executable()
	if err != nil {
		return release.Version{}, err
	}
	in, err := os.Open(self)
	if err != nil {
		return release.Version{}, err
	}
	defer in.Close()
	if err := writeProgram(u.program+nextSuffix, in); err != nil {
		return release.Version{}, err
	}
	return versionOf(ctx, u.program+nextSuffix)
}

// writeProgram writes a program that is there after a power cut, whole.
func writeProgram(path string, from io.Reader) (err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Chmod(0o755), startable(f, selinuxFS), f.Sync(), f.Close()) // the agent is another user
}

// downloads are those of the service, of which it must be the one of the installation.
type downloads struct {
	http     *http.Client
	endpoint string
	way      *passage // nil without a VPN
}

func (u *upgrade) downloads() (*downloads, error) {
	bundle, err := loadBundle(u.dir.path(rootFile))
	if err != nil {
		return nil, err
	}
	if !u.config.VPN {
		return newDownloads(u.config.Endpoint, bundle, nil), nil
	}
	way, err := openPassage(u.dir)
	if err != nil {
		return nil, err
	}
	d := newDownloads(u.config.Endpoint, bundle, way.dialService)
	d.way = way
	return d, nil
}

// newDownloads asks a service, of which bundle is believed. With dial, no proxy is asked.
func newDownloads(endpoint string, bundle *ca.Bundle, dial dialer) *downloads {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: time.Minute,
		TLSClientConfig: ca.Endpoint{Bundle: bundle}.ClientConfig(ca.Name{Role: ca.Service})}
	if dial != nil {
		t.Proxy, t.DialContext = nil, dial
	}
	return &downloads{endpoint: endpoint, http: &http.Client{Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// close ends the connections. What is left of the way was of use only if nothing failed.
func (d *downloads) close() {
	d.http.CloseIdleConnections()
	if d.way != nil {
		_ = d.way.close()
	}
}

// list is that of the service's release, with its signature.
func (d *downloads) list(ctx context.Context) (sums, signature []byte, err error) {
	if sums, err = d.small(ctx, release.SumsFile, release.MaxSums); err == nil {
		signature, err = d.small(ctx, release.SignatureFile, release.MaxSignature)
	}
	return sums, signature, err
}

// get begins to download a file of at most that many bytes.
func (d *downloads) get(ctx context.Context, name string, most int64) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.endpoint+"/agent/"+name, nil)
	if err != nil {
		return nil, err
	}
	answer, err := d.http.Do(r)
	if err != nil {
		return nil, err
	}
	switch {
	case answer.StatusCode == http.StatusNotFound:
		err = fmt.Errorf("download %s: the service has none: %w", name, release.ErrNotListed)
	case answer.StatusCode != http.StatusOK:
		err = fmt.Errorf("download %s: the service answers %s", name, answer.Status)
	case answer.ContentLength > most:
		err = fmt.Errorf("download %s: it is longer than %d bytes", name, most)
	default:
		return answer.Body, nil
	}
	return nil, errors.Join(err, answer.Body.Close())
}

func (d *downloads) small(ctx context.Context, name string, most int64) ([]byte, error) {
	body, err := d.get(ctx, name, most)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("it is longer than %d bytes", most)
	}
	if err != nil {
		return nil, fmt.Errorf("download %s: %w", name, err)
	}
	return text, nil
}

// program downloads this machine's program to a file. What the manifest does
// not have is not left there.
func (d *downloads) program(ctx context.Context, m *release.Manifest, path string) error {
	name := release.Agent(runtime.GOARCH)
	if _, err := m.Sum(name); err != nil {
		return err
	}
	body, err := d.get(ctx, name, release.MaxProgram)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := writeListed(m, name, path, body); err != nil {
		return fmt.Errorf("download %s: %w", name, err)
	}
	return nil
}

// writeListed writes a program of a release to a file, and looks at what is there then.
// What the manifest does not have is not left.
func writeListed(m *release.Manifest, name, path string, from io.Reader) error {
	if err := writeProgram(path, io.LimitReader(from, release.MaxProgram+1)); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := release.SumOf(f)
	if err == nil {
		err = m.Check(name, sum)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// replace has the new program run instead of the one there is, and takes that
// back if it does not do.
func (u *upgrade) replace(ctx context.Context, to release.Version) (restart bool, err error) {
	before, _ := ReadStatus(string(u.dir)) // none is as good as one of an agent that does not run
	before.Running = before.Running || u.asks
	if err := u.keep(); err != nil {
		return false, errors.Join(err, u.forget())
	}
	if err := os.Rename(u.program+nextSuffix, u.program); err != nil {
		return false, errors.Join(err, u.forget())
	}
	if err := syncDir(filepath.Dir(u.program)); err != nil {
		return false, err
	}
	if u.config.Service == ServiceNone {
		return true, u.forget()
	}
	began := time.Now()
	if err = u.restart(ctx); err == nil {
		err = u.prove(ctx, to.String(), before, began)
	}
	if err == nil {
		return false, u.forget()
	}
	return false, errors.Join(fmt.Errorf("%w: %w", ErrUnproven, err), u.rollBack(context.WithoutCancel(ctx)))
}

// kept are the files that a newer version may write so that an older one cannot
// read them.
var kept = []string{configFile, pairingFile}

// keep puts the program and what it has to find aside.
func (u *upgrade) keep() error {
	err := u.dir.as(func() error {
		for _, name := range kept {
			text, err := os.ReadFile(u.dir.path(name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = u.dir.write(name+previousSuffix, text, true)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Last: with it there is something to go back to.
	return errors.Join(os.Link(u.program, u.program+previousSuffix), syncDir(filepath.Dir(u.program)))
}

// forget removes what was kept. The program goes first: without it there is
// nothing to go back to.
func (u *upgrade) forget() error {
	err := gone(u.program + previousSuffix)
	return errors.Join(err, syncDir(filepath.Dir(u.program)), u.dir.as(func() (err error) {
		for _, name := range kept {
			err = errors.Join(err, gone(u.dir.path(name+previousSuffix)))
		}
		return err
	}))
}

// rollBack has the program from before run again.
func (u *upgrade) rollBack(ctx context.Context) error {
	if err := stopRunning(ctx, u.dir); err != nil {
		return fmt.Errorf("take the version before back: %w", err)
	}
	err := u.dir.as(func() error {
		for _, name := range kept {
			if err := os.Rename(u.dir.path(name+previousSuffix), u.dir.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return gone(u.dir.path(statusFile)) // the version before may not know it
	})
	if err == nil {
		err = os.Rename(u.program+previousSuffix, u.program)
	}
	if err == nil {
		err = gone(u.program + previousSuffix) // cut off early, the two are one file, which stays under both names
	}
	if err == nil {
		err = errors.Join(syncDir(filepath.Dir(u.program)), u.restart(ctx))
	}
	if err != nil {
		return fmt.Errorf("take the version before back: %w", err)
	}
	return nil
}

// gone removes a file, if it is there.
func gone(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// resume finishes an upgrade that was cut off: the program that is there stays
// if it has proven itself meanwhile. back is why it has not, and is not there any more.
func (u *upgrade) resume(ctx context.Context) (back, err error) {
	if _, err := os.Stat(u.program + previousSuffix); errors.Is(err, fs.ErrNotExist) {
		return nil, u.forget() // it may have been cut off in that
	} else if err != nil {
		return nil, err
	}
	version, err := versionOf(ctx, u.program)
	if err == nil {
		err = u.prove(ctx, version.String(), Status{}, time.Time{})
	}
	if err == nil {
		return nil, u.forget()
	}
	return fmt.Errorf("%w: %w", ErrUnproven, err), u.rollBack(ctx)
}

// restart has the program start itself as its own version does it.
func (u *upgrade) restart(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, u.program, "restart", "--state-dir", string(u.dir))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("start the agent: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// prove waits until the agent of that version does all that the one before did,
// and goes on doing it.
func (u *upgrade) prove(ctx context.Context, version string, before Status, began time.Time) error {
	var since time.Time // when pid was seen to do
	pid, missing := 0, errors.New("it does not run")
	looked := time.Now()
	for end := time.Now().Add(u.options.proof); time.Now().Before(end); {
		s, err := ReadStatus(string(u.dir))
		if err == nil {
			err = unproven(s, version, before, began)
		}
		switch {
		case err != nil:
			pid, missing = 0, err
			if u.config.Service == ServiceSystemd && time.Since(looked) >= time.Second {
				looked = time.Now()
				if n := restarts(ctx); n >= maxRestarts {
					return fmt.Errorf("it ends again and again: systemd has started it %d times", n+1)
				}
			}
		case s.PID != pid:
			pid, since = s.PID, time.Now()
		case time.Since(since) >= u.options.lasts:
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return missing
}

// unproven is what an agent does not do yet that the one before did.
func unproven(s Status, version string, before Status, began time.Time) error {
	switch {
	case !s.Running:
		return errors.New("it does not run")
	case s.Version != version || !s.Time.After(began):
		return errors.New("it has not said anything yet")
	case before.Running && before.Service == "" && !s.Answered.After(began):
		return fmt.Errorf("it does not reach the service, which the one before did: %s", s.Service)
	case before.Running && before.Error == "" && s.Error != "":
		return errors.New(s.Error)
	}
	return nil
}

// Restart ends the agent of a state directory and starts it as this version
// does. Tracking that is pinned goes on meanwhile.
func Restart(ctx context.Context, dir string) error {
	d := stateDir(dir)
	config, err := d.config()
	if err != nil {
		return err
	}
	if config.Service == ServiceNone {
		return errors.New("restart: the agent is run by whoever installed it")
	}
	if config.Service == ServiceSystemd && machineUnits.has(unitName) { // it is not, after Retire
		if err := systemctl(ctx, "stop", unitName); err != nil {
			return err
		}
	}
	if err := stopRunning(ctx, d); err != nil {
		return err
	}
	return startService(ctx, config, d.program(), d)
}

// Retire ends the agent of a state directory, its service and its tracking, and
// keeps what it needs to go on: [Upgrade] with Self starts it again, which then
// compares all disks.
func Retire(ctx context.Context, dir string) error {
	d := stateDir(dir)
	config, err := d.config()
	if err != nil {
		return err
	}
	if err := errors.Join(removeService(config.Service, true), stopRunning(ctx, d)); err != nil {
		return fmt.Errorf("retire: %w", err)
	}
	return unpin(d.pins(config))
}
