package bpf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Names in a directory of pins (docs/format/pins.md). Programs and links have a
// prefix before the name of the program.
const (
	pinOwed    = "owed"
	pinState   = "state" // the last to appear: without it a directory holds nothing
	pinProgram = "program_"
	pinLink    = "link_"
)

// StateSize is the size of the memory that [Tracker.State] returns, in bytes.
const StateSize = 16 << 10

// Errors of [OpenPins] and [Pins.Adopt] that callers branch on.
var (
	// ErrBusy says that another process holds a directory of pins.
	ErrBusy = errors.New("another process tracks with these pins")

	// ErrNoFileSystem says that there is no BPF file system where pins were to be.
	ErrNoFileSystem = errors.New("there is no BPF file system")

	// ErrNoPins says that a directory holds no tracking to go on with.
	ErrNoPins = errors.New("nothing is pinned")
)

// Pins are a directory in a BPF file system that keeps a tracker's programs
// attached and its memory in place while no process runs. This process holds it
// alone until Close. Not safe for concurrent use.
type Pins struct {
	dir  string
	lock *os.File
}

// OpenPins claims a directory for pins, which is made if it is not there; its
// parent is made too. The error wraps [ErrBusy] or [ErrNoFileSystem], or says
// what this process may not do.
func OpenPins(dir string) (*Pins, error) {
	if err := inBPF(dir); err != nil {
		return nil, err
	}
	for range 10 { // a directory may be removed between its making and its locking
		p, err := openPins(dir)
		if err != nil || p != nil {
			return p, err
		}
	}
	return nil, fmt.Errorf("open pins %s: %w", dir, ErrBusy)
}

func openPins(dir string) (*Pins, error) {
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("open pins: %w", err)
		}
		var st unix.Stat_t
		switch err := unix.Lstat(d, &st); {
		case errors.Is(err, unix.ENOENT):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("open pins %s: %w", d, err)
		case st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() && os.Geteuid() != 0: // root removes what a user's agent has pinned
			return nil, fmt.Errorf("open pins %s: it must be a directory of this user's that nobody else may enter (mode 0700)", d)
		}
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pins: %w", err)
	}
	p := &Pins{dir: dir, lock: f}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		p.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, fmt.Errorf("open pins %s: %w", dir, err)
	}
	mine, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Stat(dir); err == nil && os.SameFile(mine, there) {
			return p, nil
		}
	}
	p.Close() // removed by whoever held it before
	return nil, nil
}

// inBPF reports whether a path is, or would be, in a BPF file system.
func inBPF(path string) error {
	at := path
	var st unix.Statfs_t
	for {
		err := unix.Statfs(at, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || at == filepath.Dir(at) {
			return fmt.Errorf("look for a BPF file system at %s: %w", at, err)
		}
		at = filepath.Dir(at)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%w at %s", ErrNoFileSystem, at)
	}
	return nil
}

// Dir is the directory.
func (p *Pins) Dir() string { return p.dir }

func (p *Pins) path(name string) string { return filepath.Join(p.dir, name) }

// Close lets go of the directory. What is pinned stays. It may be called twice.
func (p *Pins) Close() error {
	if p.lock == nil {
		return nil
	}
	err := p.lock.Close()
	p.lock = nil
	return err
}

// Clear removes what is pinned: programs that no process holds are detached, and
// their memory is gone.
func (p *Pins) Clear() error {
	// The state goes first: whoever is interrupted here leaves nothing to go on with.
	err := os.Remove(p.path(pinState))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	entries, e := os.ReadDir(p.dir)
	err = errors.Join(err, e)
	for _, f := range entries {
		if f.Name() != pinState {
			err = errors.Join(err, os.Remove(p.path(f.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// Remove clears the directory, removes it, and lets go of it.
func (p *Pins) Remove() error {
	err := p.Clear()
	if err == nil {
		if err = os.Remove(p.dir); err == nil {
			_ = os.Remove(filepath.Dir(p.dir)) // where it was the last
		}
	}
	return errors.Join(err, p.Close())
}

// Fingerprint tells the programs in this binary from those of other versions.
func Fingerprint() [sha256.Size]byte { return sha256.Sum256(_TrackerBytes) }

// Owed is memory beside the dirty bitmap, as many words as [Pins.Keep] was told,
// that this process alone writes and that outlives it. nil if nothing is pinned.
func (t *Tracker) Owed() []uint64 { return t.owed }

// State is [StateSize] bytes more of such memory, aligned to a page.
func (t *Tracker) State() []byte { return t.state }

// Keep pins a tracker that was loaded, with words of memory for what is owed. It
// counts only after [Pins.Publish]. After an error nothing is pinned.
func (p *Pins) Keep(t *Tracker, words int) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Clear())
		}
	}()
	owed, err := newMemory(pinOwed, 8, max(1, words))
	if err != nil {
		return err
	}
	t.objects.Maps[pinOwed] = owed
	state, err := newMemory(pinState, StateSize, 1)
	if err != nil {
		return err
	}
	t.objects.Maps[pinState] = state
	if err := t.mapKept(); err != nil {
		return err
	}
	for _, name := range pinnedMaps {
		if err := t.objects.Maps[name].Pin(p.path(name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for name, program := range t.objects.Programs {
		if err := program.Pin(p.path(pinProgram + name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	for name := range t.links {
		if err := p.pinLink(t, name); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pins) pinLink(t *Tracker, name string) error {
	if err := t.links[name].Pin(p.path(pinLink + name)); err != nil {
		return fmt.Errorf("pin link %s: %w", name, err)
	}
	return nil
}

// Publish pins the state, and with it makes the rest count.
func (p *Pins) Publish(t *Tracker) error {
	if err := t.objects.Maps[pinState].Pin(p.path(pinState)); err != nil {
		return errors.Join(fmt.Errorf("pin map %s: %w", pinState, err), p.Clear())
	}
	return nil
}

// pinnedMaps are all but the state.
var pinnedMaps = []string{trackerMapControl, trackerMapDirty, trackerMapPend, trackerMapCounters, pinOwed}

func newMemory(name string, size uint32, n int) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: uint32(n), Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	return m, nil
}

func (t *Tracker) mapKept() error {
	owed, err := t.memory(pinOwed, t.objects.Maps[pinOwed], 8)
	if err != nil {
		return err
	}
	if t.state, err = t.memory(pinState, t.objects.Maps[pinState], StateSize); err != nil {
		return err
	}
	t.owed = words(owed)
	return nil
}

// Adopt takes over what another process has pinned for these disks: programs that
// went on, and their memory. The error wraps [ErrNoPins] where there is nothing,
// and otherwise says what does not fit. Whether disks and programs are the same
// as then is for the caller to know, from the state.
func (p *Pins) Adopt(disks []Disk, words int) (_ *Tracker, err error) {
	if _, err := os.Lstat(p.path(pinState)); err != nil {
		return nil, fmt.Errorf("adopt %s: %w", p.dir, ErrNoPins)
	}
	t := &Tracker{disks: disks, links: map[string]link.Link{}, objects: &ebpf.Collection{Maps: map[string]*ebpf.Map{}, Programs: map[string]*ebpf.Program{}}}
	defer func() {
		if err != nil {
			t.Close()
			err = fmt.Errorf("adopt %s: %w", p.dir, err)
		}
	}()
	for _, name := range attached {
		if err := p.adoptProgram(t, name); err != nil {
			return nil, err
		}
		if err := p.adoptLink(t, name); err != nil {
			return nil, err
		}
	}
	if err := p.adoptProgram(t, spare); err != nil {
		return nil, err
	}
	if err := p.adoptLink(t, spare); err != nil && !errors.Is(err, fs.ErrNotExist) { // where no program was skipped
		return nil, err
	}
	for name, want := range layoutOf(disks, words) {
		m, err := ebpf.LoadPinnedMap(p.path(name), nil)
		if err != nil {
			return nil, fmt.Errorf("open map %s: %w", name, err)
		}
		t.objects.Maps[name] = m
		if m.Type() != ebpf.Array || m.Flags()&unix.BPF_F_MMAPABLE == 0 || m.ValueSize() != want.size || m.MaxEntries() < want.entries {
			return nil, fmt.Errorf("map %s is %v with %d values of %d bytes, which is not what this version makes", name, m.Type(), m.MaxEntries(), m.ValueSize())
		}
	}
	return t, errors.Join(t.mapMemory(), t.mapKept())
}

func (p *Pins) adoptProgram(t *Tracker, name string) error {
	prog, err := ebpf.LoadPinnedProgram(p.path(pinProgram+name), nil)
	if err != nil {
		return fmt.Errorf("open program %s: %w", name, err)
	}
	t.objects.Programs[name] = prog
	return nil
}

func (p *Pins) adoptLink(t *Tracker, name string) error {
	l, err := link.LoadPinnedLink(p.path(pinLink+name), nil)
	if err != nil {
		return fmt.Errorf("open link %s: %w", name, err)
	}
	t.links[name] = l
	has, err := l.Info()
	if err != nil {
		return fmt.Errorf("look at link %s: %w", name, err)
	}
	is, err := t.objects.Programs[name].Info()
	if err != nil {
		return fmt.Errorf("look at program %s: %w", name, err)
	}
	if id, ok := is.ID(); !ok || id != has.Program {
		return fmt.Errorf("program %s is not the one that is attached", name)
	}
	return nil
}

type mapShape struct{ size, entries uint32 }

// layoutOf is what the maps of these disks have at least; a canary adds to it.
func layoutOf(disks []Disk, words int) map[string]mapShape {
	w, slots := sizes(disks)
	return map[string]mapShape{
		trackerMapControl:  {controlSize, 1},
		trackerMapDirty:    {8, w},
		trackerMapPend:     {8, slots},
		trackerMapCounters: {counterSize, cpuSlots * uint32(max(1, len(disks)))},
		pinOwed:            {8, uint32(max(1, words))},
		pinState:           {StateSize, 1},
	}
}
