package capture

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rehost/capture/bpf"
)

// Unpin ends the tracking that was pinned in a directory (Options.Pins) and
// removes it. Where nothing is pinned it does nothing. The error wraps [ErrPinned]
// while another process holds it.
func Unpin(dir string) error {
	if dir == "" {
		return nil
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	pins, err := bpf.OpenPins(dir)
	if errors.Is(err, bpf.ErrNoFileSystem) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end tracking: %w", err)
	}
	return pins.Remove()
}

// claim opens the directory of pins. Only that another process has it is an
// error: elsewhere tracking ends with this process, and says why.
func (t *kernelTracker) claim(o Options, disks []bpf.Disk) (err error) {
	if o.Pins == "" {
		t.fate = "ends with this process"
		return nil
	}
	if t.pins, err = bpf.OpenPins(o.Pins); errors.Is(err, ErrPinned) {
		return err
	}
	if err == nil {
		t.identity, err = t.identify(o, disks)
	}
	if err != nil {
		t.cannotKeep(err)
	}
	return nil
}

// cannotKeep makes tracking end with this process.
func (t *kernelTracker) cannotKeep(err error) {
	t.fate = fmt.Sprintf("ends with the agent, and a start compares everything: %v", err)
	if errors.Is(err, bpf.ErrNoFileSystem) {
		t.fate += " (mount -t bpf bpf /sys/fs/bpf)"
	}
	if t.record = nil; t.pins != nil {
		t.pins.Close()
		t.pins = nil
	}
}

// adopt goes on with tracking that is pinned, if it is about the same and was
// done by the same programs. Otherwise it is ended.
func (t *kernelTracker) adopt(disks []bpf.Disk) bool {
	if t.pins == nil {
		return false
	}
	b, err := t.pins.Adopt(disks, t.layout.words)
	if err == nil {
		t.bpf, t.look = b, b.Skips
		if err = t.readRecord(); err == nil {
			return true
		}
		t.bpf = nil
		err = errors.Join(err, b.Close())
	}
	if !errors.Is(err, bpf.ErrNoPins) {
		t.fate = "began anew: " + err.Error() + "; "
	}
	if err := t.pins.Clear(); err != nil {
		t.cannotKeep(err)
	}
	return false
}

// readRecord takes over position and accounts. What was written since an account
// was opened, with a process or without, is compared at its next audit.
func (t *kernelTracker) readRecord() error {
	r := record(t.bpf.State())
	if err := r.check(t.identity); err != nil {
		return err
	}
	p, missed, base, written, err := r.read()
	if err != nil {
		return err
	}
	if len(base) != len(t.sources) {
		return fmt.Errorf("it has the accounts of %d disks", len(base))
	}
	t.record, t.position, t.missed, t.base = r, &p, missed, base
	t.proof = "not shown since the agent started; the audit against diskstats will"
	t.fate = fmt.Sprintf("went on while no agent ran, since %s; pinned in %s", written.UTC().Format(time.RFC3339), t.pins.Dir())
	return nil
}

// pin makes tracking, which has just begun, outlive this process. Everything is
// owed from the first moment.
func (t *kernelTracker) pin() {
	if t.pins == nil {
		return
	}
	err := t.pins.Keep(t.bpf, t.layout.words)
	if err == nil {
		for _, p := range t.layout.disks {
			eachWord(uint64(p.word0)*64, uint64(p.word0)*64+p.granules, func(w int, mask uint64) { t.bpf.Owed()[w] = mask })
		}
		t.record = t.bpf.State()
		t.record.create(t.identity)
		t.keep(position{})
		err = t.pins.Publish(t.bpf)
	}
	if err != nil {
		t.cannotKeep(err)
		return
	}
	t.fate += "goes on without the agent, pinned in " + t.pins.Dir()
}

func (t *kernelTracker) owed() []uint64 {
	if t.record == nil {
		return nil
	}
	return t.bpf.Owed()
}

func (t *kernelTracker) kept() (position, bool) {
	if t.position == nil {
		return position{}, false
	}
	return *t.position, true
}

func (t *kernelTracker) keep(p position) { t.record.write(p, t.missed, t.base, time.Now()) }

func (t *kernelTracker) keeps() string { return t.fate }

// identify is what tracking of these disks is about.
func (t *kernelTracker) identify(o Options, disks []bpf.Disk) (id identity, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("identify this boot: %w", err)
	}
	if _, err := hex.Decode(id.boot[:], []byte(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))); err != nil {
		return id, fmt.Errorf("identify this boot: %w", err)
	}
	id.programs, id.replica = bpf.Fingerprint(), sha256.Sum256([]byte(o.Replica))
	h := sha256.New()
	fmt.Fprintf(h, "shift %d, words %d\n", t.layout.shift, t.layout.words)
	for i, s := range t.sources {
		if err := t.identifyDisk(h, s); err != nil {
			return id, err
		}
		fmt.Fprintf(h, "%+v\n", disks[i])
	}
	if o.CopyFree { // what was left out before is owed from now on
		fmt.Fprintln(h, "free space too")
	}
	h.Sum(id.disks[:0])
	return id, nil
}

// identifyDisk tells a disk from one that has its number later. Since 5.15 the
// kernel numbers disks as they appear, and uses no number twice. Before, its entry in
// /sys has such a number; by name and serial it would be the same disk also after it
// was away, on another machine perhaps.
func (t *kernelTracker) identifyDisk(h hash.Hash, s *source) error {
	dir, err := filepath.EvalSymlinks(sysBlock(t.sysfs, s.major, s.minor))
	if err != nil {
		return fmt.Errorf("identify %s: %w", s.disk.Name, err)
	}
	seq, err := fields(filepath.Join(dir, "diskseq"), 1)
	if errors.Is(err, fs.ErrNotExist) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("identify %s: %w", s.disk.Name, err)
		}
		fmt.Fprintf(h, "%q of inode %d ", System{Sysfs: t.sysfs}.identities(filepath.Base(dir), s.disk.Name), st.Ino)
	} else if err != nil {
		return err
	}
	fmt.Fprintf(h, "disk %d of %d bytes, %v\n", s.disk.ID, s.disk.Size, seq)
	return nil
}
