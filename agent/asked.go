package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"rehost/awsapi/formgn"
	"rehost/release"
)

// This file has the agent upgraded when the service asks for it. The rules are:
//
//   - The agent, which cannot change its program, fetches what the service has, checks
//     it, lays it down in its state directory, and ends.
//   - Root takes it from there, and believes nothing of it: it copies what was laid down
//     to where the agent cannot change it and then looks at the copy, for a signature by
//     a key that root's program was built with, the version, the sum. It asks no network.
//   - It is newer than what is here. Only a person takes an older one: what was signed
//     once may have holes that are known by now.
//   - What comes of it root writes down in its own directory, for the agent to tell.
//
//	laid down ──end of the agent──> taken ──> as every upgrade ──> written down ──> told
//
// Whoever is killed on the way: the task is still open, and the agent begins again. What
// root had begun it then ends first.

// What the agent lays down in its state directory; the first one last.
const (
	askedFile      = "upgrade.json"
	askedSums      = "upgrade.sums"
	askedSignature = "upgrade.sums.minisig"
	askedProgram   = "upgrade.program"
)

// outcomeFile is where root writes down what has come of it, beside the program.
const outcomeFile = "upgrade.json"

const (
	maxAsked = 4 << 10 // bytes of askedFile and of outcomeFile
	maxTries = 5       // of an agent that ends, until it goes on instead
)

// errUpgrade is the cause of the end of an agent that has laid down an upgrade.
var errUpgrade = errors.New("told to upgrade")

// ErrUpgrade is how [Run] ends after the service told the agent to upgrade itself: what
// starts agents has to start it again, which is another version then if all is well.
var ErrUpgrade = errors.New("the agent ends, for root to put the version in its place that the service told it to fetch")

// errNotTakenUp says that root's part does not begin.
var errNotTakenUp = errors.New("the agent has ended for it again and again, and root does not take it up: see rehost-agent-upgrade.service on the server")

// errLater says that a task is under way, and is to be looked at again.
var errLater = errors.New("it is under way")

// ErrNotTaken says that what an agent has laid down is not what it has to be.
var ErrNotTaken = errors.New("what was laid down is not taken")

// An asked is what the agent says of what it has laid down.
type asked struct {
	Task  string `json:"task"`  // of the service
	Tries int    `json:"tries"` // how often it was laid down without being taken up
}

// An outcome is what has come of a task.
type outcome struct {
	Task     string `json:"task"`
	UnderWay bool   `json:"underWay,omitempty"`
	Failure  string `json:"failure,omitempty"`
}

// upgrade does the task of upgrading this agent: it tells what has come of it, or else
// lays down the service's version and ends the agent.
func (a *agent) upgrade(ctx context.Context, o formgn.AgentOrder) error {
	if a.dir.upgrading() {
		return errLater
	}
	switch done := a.dir.outcome(); {
	case done.Task != o.TaskID, done.UnderWay: // whoever did it is gone
	case done.Failure != "":
		return a.decline(ctx, o, errors.New(done.Failure))
	default:
		return a.succeed(ctx, o)
	}
	switch {
	case a.config.Service == ServiceNone:
		return a.decline(ctx, o, errors.New("nobody is known to start this agent again: run rehost-agent upgrade on the server"))
	case os.Geteuid() == 0:
		return a.decline(ctx, o, errors.New("this agent runs as root: run rehost-agent upgrade on the server"))
	}
	err := a.layDown(ctx, o.TaskID)
	switch {
	case err == nil, errors.Is(err, errNotNewer) && a.dir.cutOff(): // which root has to end
		a.log.Info("the service asks for an upgrade: this version ends", "task", o.TaskID)
		a.stop(errUpgrade)
		<-ctx.Done()
		return ctx.Err()
	case errors.Is(err, errNotNewer):
		return a.succeed(ctx, o)
	case errors.Is(err, errNotTakenUp), errors.Is(err, ErrNoKeys), errors.Is(err, ErrOlder), errors.Is(err, release.ErrSignature), errors.Is(err, release.ErrSum), errors.Is(err, release.ErrNotListed):
		if hint := Hint(err); hint != "" {
			err = fmt.Errorf("%w (%s)", err, hint)
		}
		return a.decline(ctx, o, err)
	}
	return err // the next time it may be there
}

// succeed tells the service that a task is done.
func (a *agent) succeed(ctx context.Context, o formgn.AgentOrder) error {
	_, err := ask(ctx, a.identity, formgn.UpdateAgentTaskForRehost, &formgn.UpdateAgentTaskForRehostRequest{SourceServerID: a.config.SourceServerID, TaskID: o.TaskID})
	return err
}

// layDown fetches the service's version, if it is another one that may be taken.
func (a *agent) layDown(ctx context.Context, task string) error {
	keys := release.Keys()
	if len(keys) == 0 {
		return ErrNoKeys
	}
	here, err := release.ParseVersion(Version)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	var dial dialer
	if a.identity.vpn != nil {
		dial = a.identity.vpn.dialService
	}
	wish, err := a.dir.wish(task)
	if err != nil {
		return err
	}
	d := newDownloads(a.config.Endpoint, a.bundle, dial)
	defer d.close()
	sums, signature, err := d.list(ctx)
	if err != nil {
		return err
	}
	m, err := acceptable(sums, signature, keys, here, false)
	if err != nil {
		return err
	}
	if err := d.program(ctx, m, a.dir.path(askedProgram)); err != nil {
		return err
	}
	return errors.Join(a.dir.write(askedSums, sums, true), a.dir.write(askedSignature, signature, true), a.dir.save(askedFile, wish))
}

// wish is what the agent says with what it lays down for a task, unless it has done so
// too often.
func (d stateDir) wish(task string) (asked, error) {
	a := asked{Task: task}
	if last, err := d.asked(); err == nil && last.Task == task {
		a.Tries = last.Tries + 1
	}
	if a.Tries == maxTries {
		return a, errors.Join(errNotTakenUp, d.takeUp())
	}
	return a, nil
}

// laidDown opens what the agent has laid down, as the agent. It is a file of the agent's:
// of no other user's, and nothing at which root would wait.
func (d stateDir) laidDown(name string) (f *os.File, err error) {
	owner, err := d.owner()
	if err != nil {
		return nil, err
	}
	err = d.as(func() error {
		fd, err := unix.Open(d.path(name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(fd), d.path(name))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d.path(name), err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != owner.UID) {
		err = fmt.Errorf("%w: %s is not a file of user %d", ErrNotTaken, d.path(name), owner.UID)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (d stateDir) smallLaidDown(name string, most int64) ([]byte, error) {
	f, err := d.laidDown(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%w: %s is longer than %d bytes", ErrNotTaken, name, most)
	}
	return text, err
}

// takeUp removes what was laid down.
func (d stateDir) takeUp() error {
	return d.as(func() (err error) {
		for _, name := range []string{askedFile, askedSums, askedSignature, askedProgram} {
			err = errors.Join(err, gone(d.path(name)))
		}
		return err
	})
}

// asked is which task the agent has laid something down for; [fs.ErrNotExist] if for none.
func (d stateDir) asked() (a asked, err error) {
	text, err := d.smallLaidDown(askedFile, maxAsked)
	if err == nil {
		if err = strictJSON(text, &a); err != nil {
			err = fmt.Errorf("read %s: %w", d.path(askedFile), err)
		}
	}
	return a, err
}

// take copies what was laid down beside the program, if that is a version that may be
// taken. It is root's copy that is looked at.
func (u *upgrade) take(ctx context.Context, from release.Version, keys []minisign.PublicKey) (v release.Version, err error) {
	if len(keys) == 0 {
		return v, ErrNoKeys
	}
	sums, err := u.dir.smallLaidDown(askedSums, release.MaxSums)
	if err != nil {
		return v, err
	}
	signature, err := u.dir.smallLaidDown(askedSignature, release.MaxSignature)
	if err != nil {
		return v, err
	}
	m, err := acceptable(sums, signature, keys, from, false)
	if err != nil {
		return v, err
	}
	f, err := u.dir.laidDown(askedProgram)
	if err != nil {
		return v, err
	}
	defer f.Close()
	return m.Version, u.takeProgram(ctx, m, f)
}

// takeProgram puts this machine's program of a release beside the one that is there.
func (u *upgrade) takeProgram(ctx context.Context, m *release.Manifest, from io.Reader) error {
	if err := writeListed(m, release.Agent(runtime.GOARCH), u.program+nextSuffix, from); err != nil {
		return err
	}
	return u.says(ctx, m.Version)
}

// Asked upgrades the agent of a state directory, which has ended, to what it has laid
// down, and finishes what was cut off before. What comes of it is written down for the
// agent; the error is of what cannot be.
func Asked(ctx context.Context, dir string) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	u, err := openUpgrade(UpgradeOptions{StateDir: dir})
	if err != nil {
		return err
	}
	defer u.lock.Close()
	u.asks = true
	return u.asked(ctx, release.Keys())
}

func (u *upgrade) asked(ctx context.Context, keys []minisign.PublicKey) error {
	before := u.dir.outcome()
	back, resumed := u.resume(ctx)
	a, err := u.dir.asked()
	if errors.Is(err, fs.ErrNotExist) {
		err = resumed
		if before.UnderWay { // and it was taken up already
			err = u.end(before.Task, errors.Join(back, resumed))
		}
		return errors.Join(err, u.goOn(ctx))
	}
	if err == nil {
		err = u.write(outcome{Task: a.Task, UnderWay: true})
	}
	if err == nil {
		err = resumed
	}
	if err == nil {
		err = u.follow(ctx, keys)
	}
	// Whatever it is, it is not looked at again.
	return errors.Join(u.dir.takeUp(), u.end(a.Task, err), u.goOn(ctx))
}

// follow does what was asked for.
func (u *upgrade) follow(ctx context.Context, keys []minisign.PublicKey) error {
	from, err := versionOf(ctx, u.program)
	if err != nil {
		return err
	}
	to, err := u.take(ctx, from, keys)
	defer os.Remove(u.program + nextSuffix)
	if errors.Is(err, errNotNewer) {
		return nil
	}
	if err == nil {
		err = u.dir.takeUp() // it runs once
	}
	if err == nil {
		_, err = u.replace(ctx, to)
	}
	if err != nil {
		return fmt.Errorf("upgrade from %s: %w", from, err)
	}
	return nil
}

// goOn starts an agent that nobody else starts again.
func (u *upgrade) goOn(ctx context.Context) error {
	if u.config.Service != ServiceDetached || u.dir.running() != 0 {
		return nil
	}
	return u.restart(ctx)
}

// end writes down how a task ended.
func (u *upgrade) end(task string, err error) error {
	o := outcome{Task: task}
	if err != nil {
		o.Failure = err.Error()
		if hint := Hint(err); hint != "" {
			o.Failure += " (" + hint + ")"
		}
	}
	return u.write(o)
}

func (u *upgrade) write(o outcome) error {
	o.Failure = clip(o.Failure, 1000)
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	path := filepath.Join(u.dir.programDir(), outcomeFile)
	if err := os.WriteFile(path+".new", text, 0o644); err != nil { //nolint:gosec // for everyone to read; the lock is held
		return err
	}
	return errors.Join(os.Chmod(path+".new", 0o644), os.Rename(path+".new", path), syncDir(u.dir.programDir())) //nolint:gosec // whatever the umask
}

// outcome is what has come of the last task; none if there was none.
func (d stateDir) outcome() (o outcome) {
	f, err := os.Open(filepath.Join(d.programDir(), outcomeFile))
	if err != nil {
		return outcome{}
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxAsked)).Decode(&o); err != nil {
		return outcome{}
	}
	return o
}

// upgrading is whether somebody holds the lock of an upgrade.
func (d stateDir) upgrading() bool {
	f, err := os.Open(d.programDir())
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// cutOff is whether there is a version from before, which an upgrade that ends removes.
func (d stateDir) cutOff() bool {
	_, err := os.Lstat(d.program() + previousSuffix)
	return err == nil
}

// due is whether root has an upgrade to do: one that the agent asks for, or that was cut
// off.
func (d stateDir) due() bool {
	if d.upgrading() {
		return false
	}
	if d.cutOff() {
		return true
	}
	err := d.as(func() error { _, err := os.Lstat(d.path(askedFile)); return err })
	return err == nil
}

// startUpgrade has root's part done by systemd, so that it goes on without its caller.
func startUpgrade() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return systemctl(ctx, "start", "--no-block", upgradeUnit)
}
