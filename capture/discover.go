package capture

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rehost/block"
)

// A Device is a disk of this machine, with what it is used for.
type Device struct {
	block.Disk
	Major, Minor uint32
	ReadOnly     bool
	LogicalBlock int // bytes that the device reads and writes at least
	Partitions   []Partition
	FileSystem   string   // of an unpartitioned disk; "" if there is none known
	Mounts       []string // of an unpartitioned disk

	// IDs tell the disk from others across reboots, the best one first, which is
	// Serial too: what its hardware says ("wwn:...", "serial:..."), then the id of
	// its partition table ("gpt:...", "mbr:..."), which a copy of the disk shares.
	IDs []string

	Unfit string   // why it cannot be replicated, and what to do; "" if it can
	With  []string // other disks that LVM, md or device mapper join with it, by name
}

// Is reports whether the disk is the one that had this identity before.
func (d Device) Is(id string) bool { return slices.Contains(d.IDs, id) }

// A Partition is a part of a [Device].
type Partition struct {
	Name         string // /dev/sda1
	Major, Minor uint32
	Start, Size  int64  // bytes
	FileSystem   string // "ext4", "xfs", "btrfs", "vfat", "swap", "LVM2_member"; "" if not known
	Mounts       []string
}

// A System is the machine whose disks are looked for. The zero value is this one.
type System struct {
	Sysfs, Procfs, Dev string // "/sys", "/proc", "/dev"
}

func (s System) roots() System {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&s.Sysfs, "/sys")
	def(&s.Procfs, "/proc")
	def(&s.Dev, "/dev")
	return s
}

// BootMode is how the firmware started this machine: "UEFI" or "LEGACY_BIOS".
func (s System) BootMode() string {
	if _, err := os.Stat(filepath.Join(s.roots().Sysfs, "firmware/efi")); err == nil {
		return "UEFI"
	}
	return "LEGACY_BIOS"
}

// Discover lists this machine's disks, see [System.Discover].
func Discover() ([]Device, error) { return System{}.Discover() }

// Resolve finds the disks that paths name, see [System.Resolve].
func Resolve(paths []string) ([]Device, error) { return System{}.Resolve(paths) }

// virtual are names of whole devices that are no disks of their own: made of
// memory, or of other devices that are listed themselves.
var virtual = []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"}

// Discover lists the whole disks, the one the root file system lies on first,
// then by name. Memory disks, loop devices, and what lies on other disks (device
// mapper, md) are left out. Discs without a medium are too.
func (s System) Discover() ([]Device, error) {
	s = s.roots()
	entries, err := os.ReadDir(filepath.Join(s.Sysfs, "block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	mounts, err := s.mounts()
	if err != nil {
		return nil, err
	}
	var out []Device
	for _, e := range entries {
		if slices.ContainsFunc(virtual, func(p string) bool { return strings.HasPrefix(e.Name(), p) }) {
			continue
		}
		d, err := s.device(e.Name(), mounts)
		if err != nil {
			return nil, err
		}
		if d.Size > 0 && !s.hidden(e.Name()) {
			out = append(out, d)
		}
	}
	s.order(out, mounts)
	return out, nil
}

// hidden reports a path of a multipath NVMe device, which is another's.
func (s System) hidden(name string) bool {
	return s.text("block", name, "hidden") == "1"
}

// order puts the disks that hold the root file system first and marks the first as boot disk.
func (s System) order(list []Device, mounts map[string][]string) {
	var roots []string
	for dev, at := range mounts {
		if slices.Contains(at, "/") {
			roots = s.physical(dev)
		}
	}
	boot := func(d Device) bool { return slices.Contains(roots, filepath.Base(d.Name)) }
	slices.SortStableFunc(list, func(a, b Device) int {
		if x, y := boot(a), boot(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return compareNames(a.Name, b.Name)
	})
	if len(list) > 0 && boot(list[0]) {
		list[0].Boot = true
	}
}

// compareNames puts sdb before sdaa and nvme2n1 before nvme10n1.
func compareNames(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

// physical are the whole disks that the device maj:min lies on.
func (s System) physical(dev string) []string {
	dir, err := filepath.EvalSymlinks(filepath.Join(s.Sysfs, "dev/block", dev))
	if err != nil {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	if len(slaves) == 0 {
		return []string{filepath.Base(dir)}
	}
	var out []string
	for _, e := range slaves {
		if number, err := os.ReadFile(filepath.Join(dir, "slaves", e.Name(), "dev")); err == nil {
			out = append(out, s.physical(strings.TrimSpace(string(number)))...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// A mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id         string
	dev        string // maj:min of the block device that it lies on, as far as can be told
	point      string
	fileSystem string // the kernel's name of it
	options    string // of the file system, "rw,..." or "ro,..."
}

// mountTable lists what is mounted, in the order of mounting.
func (s System) mountTable() (out []mount, err error) {
	f, err := os.Open(filepath.Join(s.Procfs, "self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) < 10 {
			continue
		}
		m := mount{id: w[0], dev: w[2], point: unescape.Replace(w[4])}
		source := ""
		if i := slices.Index(w, "-"); i > 0 && i+2 < len(w) {
			m.fileSystem, source = w[i+1], w[i+2]
			m.options = strings.Join(w[i+3:], " ")
		}
		if strings.HasPrefix(m.dev, "0:") { // btrfs and overlays have numbers of their own
			var st unix.Stat_t
			if !strings.HasPrefix(source, "/dev/") || unix.Stat(source, &st) != nil {
				continue
			}
			m.dev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		out = append(out, m)
	}
	return out, sc.Err()
}

// mounts maps maj:min to mount points.
func (s System) mounts() (map[string][]string, error) {
	table, err := s.mountTable()
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, m := range table {
		out[m.dev] = append(out[m.dev], m.point)
	}
	return out, nil
}

// unescape undoes what mountinfo does to white space.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func (s System) text(elem ...string) string {
	b, _ := os.ReadFile(filepath.Join(append([]string{s.Sysfs}, elem...)...))
	return strings.TrimSpace(string(b))
}

func (s System) number(elem ...string) int64 {
	n, _ := strconv.ParseInt(s.text(elem...), 10, 64)
	return n
}

// device describes the whole disk of a name in /sys/block.
func (s System) device(name string, mounts map[string][]string) (Device, error) {
	node := filepath.Join(s.Dev, strings.ReplaceAll(name, "!", "/"))
	dev := s.text("block", name, "dev")
	var d Device
	if _, err := fmt.Sscanf(dev, "%d:%d", &d.Major, &d.Minor); err != nil {
		return d, fmt.Errorf("describe disk %s: its number is %q: %w", name, dev, err)
	}
	d.Name, d.Size = node, s.number("block", name, "size")*512
	d.ReadOnly = s.text("block", name, "ro") == "1"
	d.LogicalBlock = int(max(512, s.number("block", name, "queue", "logical_block_size")))
	d.Mounts = mounts[dev]
	d.FileSystem = signature(node, 0)
	if d.IDs = s.identities(name, node); len(d.IDs) > 0 {
		d.Serial = d.IDs[0]
	}
	d.Unfit, d.With = s.unfit(name), s.joined(name)
	parts, err := filepath.Glob(filepath.Join(s.Sysfs, "block", name, "*", "partition"))
	if err != nil {
		return d, err
	}
	for _, p := range parts {
		part := filepath.Base(filepath.Dir(p))
		dev := s.text("block", name, part, "dev")
		q := Partition{
			Name:  filepath.Join(s.Dev, part),
			Start: s.number("block", name, part, "start") * 512, Size: s.number("block", name, part, "size") * 512,
			Mounts: mounts[dev],
		}
		if _, err := fmt.Sscanf(dev, "%d:%d", &q.Major, &q.Minor); err != nil {
			return d, fmt.Errorf("describe partition %s: its number is %q: %w", part, dev, err)
		}
		q.FileSystem = signature(node, q.Start)
		d.Partitions = append(d.Partitions, q)
	}
	slices.SortFunc(d.Partitions, func(a, b Partition) int { return int(min(1, max(-1, a.Start-b.Start))) })
	return d, nil
}

// identities are what tells a disk from others across reboots: its world-wide name,
// its serial number, the id of its partition table.
func (s System) identities(name, node string) (out []string) {
	for _, f := range []struct{ kind, file string }{
		{"wwn:", "wwid"}, {"wwn:", "device/wwid"}, {"serial:", "serial"}, {"serial:", "device/serial"},
	} {
		if v := s.text("block", name, f.file); v != "" {
			out = append(out, f.kind+v)
		}
	}
	if id := tableID(node); id != "" {
		out = append(out, id)
	}
	return out
}

// unfit says why writes to a disk could go unseen: neither the kernel's tracepoints
// nor its statistics for this device would show all of them.
func (s System) unfit(name string) string {
	holders, _ := os.ReadDir(filepath.Join(s.Sysfs, "block", name, "holders"))
	for _, h := range holders {
		if strings.HasPrefix(s.text("block", h.Name(), "dm/uuid"), "mpath-") {
			return fmt.Sprintf("it is one of several paths to the multipath device %s, and what is written by another one would go unseen: leave the disk one path only (multipath -f, or blacklist it), or leave it out",
				s.text("block", h.Name(), "dm/name"))
		}
	}
	if _, err := os.Stat(filepath.Join(s.Sysfs, "block", name, "multipath")); err == nil {
		return "it stands for several paths (NVMe multipath), whose writes do not all pass it: start the kernel with nvme_core.multipath=N, or leave the disk out"
	}
	if s.number("block", name, "queue", "dax") == 1 {
		return "files on it can be written to past the block layer (DAX): make its namespace a sector one (ndctl create-namespace --mode=sector), or leave the disk out"
	}
	return ""
}

// joined are the other disks under what lies on a disk.
func (s System) joined(name string) (out []string) {
	dirs, _ := filepath.Glob(filepath.Join(s.Sysfs, "block", name, "*", "holders", "*"))
	whole, _ := filepath.Glob(filepath.Join(s.Sysfs, "block", name, "holders", "*"))
	for _, h := range append(dirs, whole...) {
		for _, disk := range s.physical(s.text("block", filepath.Base(h), "dev")) {
			if disk != name {
				out = append(out, filepath.Join(s.Dev, disk))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Resolve finds the disks that paths name, in that order and each once. A
// partition stands for the whole disk it is on; a loop device is taken only when
// it is named. Errors wrap [ErrBadDevice] and say what to do.
func (s System) Resolve(paths []string) ([]Device, error) {
	s = s.roots()
	mounts, err := s.mounts()
	if err != nil {
		return nil, err
	}
	var out []Device
	for _, p := range paths {
		names, err := s.wholeDisks(p)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			d, err := s.device(name, mounts)
			switch {
			case err != nil:
				return nil, err
			case d.Size == 0:
				return nil, fmt.Errorf("%s: %w: it has no medium; insert one or leave it out", p, ErrBadDevice)
			case d.ReadOnly:
				return nil, fmt.Errorf("%s: %w: it is read-only, so nothing on it changes; copy it with a file tool instead", p, ErrBadDevice)
			case !slices.ContainsFunc(out, func(o Device) bool { return o.Name == d.Name }):
				out = append(out, d)
			}
		}
	}
	boot := slices.Clone(out)
	s.order(boot, mounts)
	for i := range out {
		out[i].Boot = slices.ContainsFunc(boot, func(d Device) bool { return d.Name == out[i].Name && d.Boot })
	}
	return out, nil
}

func (s System) wholeDisks(path string) ([]string, error) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w: there is no such device; lsblk lists those there are", path, ErrBadDevice)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", path, ErrBadDevice, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return nil, fmt.Errorf("%s: %w: it is not a block device; give a disk such as /dev/sda", path, ErrBadDevice)
	}
	names := s.physical(fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: %w: the kernel knows no disk behind it", path, ErrBadDevice)
	}
	return names, nil
}
