package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"rehost/launch"
)

// Options of a [Target]. Only Dir has no default.
type Options struct {
	Dir    string       // holds the instances; made with mode 0700
	Logger *slog.Logger // default: slog.Default

	QEMU    string // program; default qemu-system-x86_64
	QEMUImg string // program; default qemu-img
	// Firmware for UEFI; default that of Debian's package ovmf.
	OVMFCode, OVMFVars string

	// Accel chooses the accelerator, [KVM] or [TCG]; it is asked at the first
	// launch, and its answer remembered. By default KVM is tried on a tiny guest.
	Accel func(ctx context.Context) (string, error)

	FirstBootTimeout time.Duration // for specs that name none; default 10 min
	ReconnectDelay   time.Duration // how long reads wait for an NBD server that went away; default 5 min
	Poll             time.Duration // between looks at an instance; default 500 ms
	MaxConsole       int64         // bytes kept of a console; default 4 MiB
}

func (o *Options) setDefaults(t *Target) error {
	if o.Dir == "" {
		return errors.New("no directory given")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	o.Dir = dir
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Accel == nil {
		o.Accel = t.hostAccel
	}
	o.QEMU = cmp.Or(o.QEMU, "qemu-system-x86_64")
	o.QEMUImg = cmp.Or(o.QEMUImg, "qemu-img")
	o.OVMFCode = cmp.Or(o.OVMFCode, "/usr/share/OVMF/OVMF_CODE_4M.fd")
	o.OVMFVars = cmp.Or(o.OVMFVars, "/usr/share/OVMF/OVMF_VARS_4M.fd")
	o.FirstBootTimeout = cmp.Or(o.FirstBootTimeout, 10*time.Minute)
	o.ReconnectDelay = cmp.Or(o.ReconnectDelay, 5*time.Minute)
	o.Poll = cmp.Or(o.Poll, 500*time.Millisecond)
	o.MaxConsole = cmp.Or(o.MaxConsole, 4<<20)
	return nil
}

// A Target launches machines in QEMU. It implements [launch.Target] and
// [launch.Console].
type Target struct {
	opts   Options
	log    *slog.Logger
	lock   *os.File        // locked while the target is open
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the watchers, and calls that change instances

	accelMu sync.Mutex
	accel   string // empty until it is known

	mu        sync.Mutex
	closed    bool
	instances map[string]*instance
	children  map[string]int           // pids by UUID, of machines that this process started and has to reap
	busy      map[string]chan struct{} // ids that are being launched or terminated; closed when done
}

var (
	_ launch.Target  = (*Target)(nil)
	_ launch.Console = (*Target)(nil)
)

// ErrLocked says that another process has the target's directory open.
var ErrLocked = errors.New("directory is in use by another process")

// Open opens the target over its directory, takes over the machines that run
// there and removes what a crash left half made.
func Open(opts Options) (_ *Target, err error) {
	t := &Target{instances: map[string]*instance{}, children: map[string]int{}, busy: map[string]chan struct{}{}}
	if err := opts.setDefaults(t); err != nil {
		return nil, fmt.Errorf("open QEMU target: %w", err)
	}
	t.opts, t.log = opts, opts.Logger
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if err := t.open(); err != nil {
		t.Close()
		return nil, fmt.Errorf("open QEMU target %s: %w", opts.Dir, err)
	}
	return t, nil
}

func (t *Target) open() (err error) {
	if err := os.MkdirAll(t.opts.Dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(t.opts.Dir, 0o700); err != nil {
		return err
	}
	if t.lock, err = os.OpenFile(filepath.Join(t.opts.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := syscall.Flock(int(t.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	entries, err := os.ReadDir(t.opts.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := t.adopt(filepath.Join(t.opts.Dir, e.Name())); err != nil {
			return fmt.Errorf("instance %s: %w", e.Name(), err)
		}
	}
	return nil
}

// Suffixes of directories that are not an instance yet, or not any more. No
// process belongs to them. A '~' is not part of any id.
const (
	suffixNew  = "~new"
	suffixGone = "~gone"
)

// adopt looks at one directory that an earlier process left.
func (t *Target) adopt(dir string) error {
	if strings.HasSuffix(dir, suffixNew) || strings.HasSuffix(dir, suffixGone) {
		return os.RemoveAll(dir)
	}
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		t.log.Warn("a directory without record is left alone", "dir", dir)
		return nil
	}
	if err != nil {
		return err
	}
	if !r.Launched {
		t.log.Info("remove half launched instance", "id", r.Spec.ID)
		return t.destroy(t.ctx, r.Spec.ID, r.UUID)
	}
	return t.watch(dir, r)
}

// watch makes a launched machine known and begins to follow it.
func (t *Target) watch(dir string, r record) error {
	in, err := newInstance(t, dir, r)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.instances[r.Spec.ID] = in
	t.wg.Go(func() {
		defer close(in.done)
		in.follow(in.ctx)
	})
	return nil
}

// begin makes the caller the only one who changes instance id, until the
// returned function is called.
func (t *Target) begin(ctx context.Context, id string) (end func(), err error) {
	for {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, launch.ErrClosed
		}
		other := t.busy[id]
		if other == nil {
			mine := make(chan struct{})
			t.busy[id] = mine
			t.wg.Add(1)
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.busy, id)
				t.mu.Unlock()
				close(mine)
				t.wg.Done()
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (t *Target) find(id string) *instance {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.instances[id]
}

// Launch implements [launch.Target].
func (t *Target) Launch(ctx context.Context, spec launch.Spec) (launch.Instance, error) {
	in, err := t.launch(ctx, spec)
	if err != nil {
		return launch.Instance{}, fmt.Errorf("launch instance %.63s: %w", spec.ID, err)
	}
	return in.describe(), nil
}

func (t *Target) launch(ctx context.Context, spec launch.Spec) (*instance, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	end, err := t.begin(ctx, spec.ID)
	if err != nil {
		return nil, err
	}
	defer end()
	if in := t.find(spec.ID); in != nil {
		if !reflect.DeepEqual(normal(in.spec), normal(spec)) {
			return nil, launch.ErrExists
		}
		return in, nil
	}
	accel, err := t.accelerator(ctx)
	if err != nil {
		return nil, fmt.Errorf("probe accelerator: %w", err)
	}
	r := newRecord(spec, accel)
	dir := t.dir(spec.ID)
	if err := t.start(ctx, dir, &r); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return nil, errors.Join(err, os.RemoveAll(dir+suffixNew), t.destroy(clean, spec.ID, r.UUID))
	}
	if err := t.watch(dir, r); err != nil {
		return nil, err
	}
	return t.find(spec.ID), nil
}

// normal is the spec with empty lists as nil, to be compared.
func normal(s launch.Spec) launch.Spec {
	if len(s.Network.Forwards) == 0 {
		s.Network.Forwards = nil
	}
	return s
}

func (t *Target) dir(id string) string { return filepath.Join(t.opts.Dir, id) }

// start does the work of a launch. Whoever calls it removes everything when it fails.
func (t *Target) start(ctx context.Context, dir string, r *record) error {
	if err := os.RemoveAll(dir + suffixNew); err != nil {
		return err
	}
	if err := os.Mkdir(dir+suffixNew, 0o700); err != nil {
		return err
	}
	if err := t.createOverlays(ctx, dir+suffixNew, r.Spec); err != nil {
		return err
	}
	if err := r.write(dir + suffixNew); err != nil {
		return err
	}
	if err := os.Rename(dir+suffixNew, dir); err != nil {
		return err
	}
	if err := syncDir(t.opts.Dir); err != nil {
		return err
	}
	m, err := t.startMachine(ctx, dir, *r)
	if err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	defer m.Close()
	if r.Forwards, err = forwards(m); err != nil {
		return err
	}
	if len(r.Forwards) != len(r.Spec.Network.Forwards) {
		return fmt.Errorf("machine listens on ports %v, where %v were asked for", r.Forwards, r.Spec.Network.Forwards)
	}
	r.Launched, r.Started = true, time.Now().UTC()
	if err := r.write(dir); err != nil {
		return err
	}
	return m.do("cont", nil, nil)
}

// Describe implements [launch.Target].
func (t *Target) Describe(_ context.Context, id string) (launch.Instance, error) {
	in := t.find(id)
	if in == nil {
		return launch.Instance{}, fmt.Errorf("describe instance %.63s: %w", id, launch.ErrNotFound)
	}
	return in.describe(), nil
}

// Instances implements [launch.Target].
func (t *Target) Instances(context.Context) ([]launch.Instance, error) {
	t.mu.Lock()
	var all []*instance
	for _, in := range t.instances {
		all = append(all, in)
	}
	t.mu.Unlock()
	list := make([]launch.Instance, 0, len(all))
	for _, in := range all {
		list = append(list, in.describe())
	}
	slices.SortFunc(list, func(a, b launch.Instance) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// ConsoleOutput implements [launch.Console].
func (t *Target) ConsoleOutput(_ context.Context, id string, limit int) ([]byte, error) {
	in := t.find(id)
	if in == nil {
		return nil, fmt.Errorf("console of instance %.63s: %w", id, launch.ErrNotFound)
	}
	return tailOf(filepath.Join(in.dir, consoleFile), limit)
}

// Terminate implements [launch.Target].
func (t *Target) Terminate(ctx context.Context, id string) error {
	if !launch.ValidID(id) {
		return nil // never launched
	}
	end, err := t.begin(ctx, id)
	if err != nil {
		return fmt.Errorf("terminate instance %s: %w", id, err)
	}
	defer end()
	in := t.find(id)
	if in == nil {
		return nil
	}
	in.cancel()
	<-in.done
	if err := t.destroy(ctx, id, in.uuid); err != nil {
		return fmt.Errorf("terminate instance %s: %w", id, err)
	}
	t.mu.Lock()
	delete(t.instances, id)
	t.mu.Unlock()
	return nil
}

// destroy ends the machine's process and removes its directory. It may be
// repeated from any point at which it was cut off.
func (t *Target) destroy(ctx context.Context, id, uuid string) error {
	if err := t.killMachine(ctx, uuid); err != nil {
		return err
	}
	dir := t.dir(id)
	if err := os.RemoveAll(dir + suffixGone); err != nil {
		return err
	}
	// The record goes with everything else at once, not before it.
	if err := os.Rename(dir, dir+suffixGone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir + suffixGone)
}

// Close implements [launch.Target].
func (t *Target) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
	if first && t.lock != nil {
		return t.lock.Close() // which unlocks
	}
	return nil
}
