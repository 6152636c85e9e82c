package freeze

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a client says is a number; every path is found here. Nothing but directories
// and links is opened or read for it, besides mountinfo, which is open all the time:
// the freezer's filter allows no more.

// kinds are the file systems that are frozen: their freeze brings the journal to
// rest, and their thaw needs nothing but the call.
var kinds = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}

// maxTargets is how many descriptors a message to the watchdog can carry, with some to spare.
const maxTargets = 128

// A target is a file system that is to be frozen.
type target struct {
	name string // "ext4 on /data"
	fd   int    // a directory of it
}

func closeTargets(list []target) {
	for _, t := range list {
		unix.Close(t.fd)
	}
}

// A mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id     uint64
	dev    uint64 // of the superblock
	point  string
	kind   string
	source string
	rw     bool // of the superblock
}

// unescape undoes what mountinfo does to white space.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// parseMounts reads a mountinfo; lines that it does not understand are none.
func parseMounts(text string) (out []mount) {
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		i := slices.Index(w, "-")
		if i < 6 || i+3 >= len(w) {
			continue
		}
		major, minor, _ := strings.Cut(w[2], ":")
		id, err1 := strconv.ParseUint(w[0], 10, 64)
		ma, err2 := strconv.ParseUint(major, 10, 32)
		mi, err3 := strconv.ParseUint(minor, 10, 32)
		if errors.Join(err1, err2, err3) != nil {
			continue
		}
		out = append(out, mount{
			id: id, dev: unix.Mkdev(uint32(ma), uint32(mi)), point: unescape.Replace(w[4]), kind: w[i+1], source: unescape.Replace(w[i+2]),
			rw: slices.Contains(strings.Split(w[i+3], ","), "rw"),
		})
	}
	return out
}

// depth is how many directories deep a mount point lies; / is 0.
func (m mount) depth() int {
	if m.point == "/" {
		return 0
	}
	return strings.Count(m.point, "/")
}

func (m mount) String() string { return m.kind + " on " + m.point }

// A machine is where disks and mounts are looked for.
type machine struct {
	mountinfo int // open
}

// mounts lists what is mounted.
func (s machine) mounts() ([]mount, error) {
	if _, err := unix.Seek(s.mountinfo, 0, 0); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	var text strings.Builder
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(s.mountinfo, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, fmt.Errorf("read mountinfo: %w", err)
		case n == 0:
			return parseMounts(text.String()), nil
		default:
			text.Write(b[:n])
		}
	}
}

// targets opens the file systems that are written to on the disks, in the order in
// which they are to be frozen, and says which are left out and why.
func (s machine) targets(disks []uint64) (out []target, leftOut []string, err error) {
	names := map[string]bool{}
	for _, d := range disks {
		dir := sysDevice(d)
		link, err := readlink(dir)
		if err != nil || exists(dir+"/partition") {
			return nil, nil, refuse(Unknown, "%d:%d is no disk of this machine", unix.Major(d), unix.Minor(d))
		}
		names[path.Base(link)] = true
	}
	mounts, err := s.mounts()
	if err != nil {
		return nil, nil, err
	}
	groups := map[uint64][]mount{} // by superblock
	var order []uint64
	for _, m := range mounts {
		if groups[m.dev] == nil {
			order = append(order, m.dev)
		}
		groups[m.dev] = append(groups[m.dev], m)
	}
	slices.Reverse(order) // of two that are as deep as each other, the one mounted later first
	for _, g := range groups {
		slices.SortStableFunc(g, func(a, b mount) int { return cmp.Compare(a.depth(), b.depth()) })
	}
	slices.SortStableFunc(order, func(a, b uint64) int { return cmp.Compare(groups[b][0].depth(), groups[a][0].depth()) })
	for _, dev := range order {
		g := groups[dev]
		if !lies(g[0], names) {
			continue
		}
		t, why := open(g)
		if why == "" && len(out) == maxTargets {
			unix.Close(t.fd)
			why = fmt.Sprintf("there are more than %d", maxTargets)
		}
		if why != "" {
			leftOut = append(leftOut, fmt.Sprintf("%v: %s", g[0], why))
			continue
		}
		out = append(out, t)
	}
	return out, leftOut, nil
}

// open opens a directory of a file system, and looks whether it is the right one.
func open(g []mount) (t target, why string) {
	switch {
	case !slices.Contains(kinds, g[0].kind):
		return t, "it is of a kind that is not frozen"
	case !g[0].rw:
		return t, "it is not written to"
	}
	for _, m := range g {
		fd, err := unix.Open(m.point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			why = err.Error() // a file may be a mount point too
			continue
		}
		var st unix.Stat_t
		var x unix.Statx_t
		if err := errors.Join(unix.Fstat(fd, &st), unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &x)); err != nil {
			why = err.Error()
		} else if x.Mnt_id != m.id || st.Dev != m.dev && m.kind != "btrfs" { // whose subvolumes have numbers of their own
			why = "it is hidden under another mount"
		} else {
			return target{m.String(), fd}, ""
		}
		unix.Close(fd)
	}
	return t, why
}

// lies reports whether a file system lies on one of the disks.
func lies(m mount, disks map[string]bool) bool {
	dev := m.dev
	if unix.Major(dev) == 0 { // btrfs has numbers of its own
		var st unix.Stat_t
		if m.kind != "btrfs" || !strings.HasPrefix(m.source, "/dev/") || unix.Stat(m.source, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			return false
		}
		dev = st.Rdev
	}
	under := map[string]bool{}
	if m.kind == "btrfs" {
		for _, dir := range btrfsDevices(dev) {
			disksUnder(dir, under, 0)
		}
	}
	disksUnder(sysDevice(dev), under, 0)
	for name := range under {
		if disks[name] {
			return true
		}
	}
	return false
}

// btrfsDevices are all devices of the btrfs that dev is one of, as directories.
func btrfsDevices(dev uint64) (dirs []string) {
	const root = "/sys/fs/btrfs"
	link, err := readlink(sysDevice(dev))
	if err != nil {
		return nil
	}
	for _, id := range list(root) {
		devices := list(root + "/" + id + "/devices")
		if !slices.Contains(devices, path.Base(link)) {
			continue
		}
		for _, name := range devices {
			dirs = append(dirs, root+"/"+id+"/devices/"+name)
		}
	}
	return dirs
}

// disksUnder adds the names of the whole disks that the device of a directory in
// /sys lies on.
func disksUnder(dir string, into map[string]bool, depth int) {
	link, err := readlink(dir)
	if err != nil || depth > 16 {
		return
	}
	name := path.Base(link)
	if exists(dir + "/partition") {
		dir, name = dir+"/..", path.Base(path.Dir(link))
	}
	slaves := list(dir + "/slaves")
	if len(slaves) == 0 {
		into[name] = true
	}
	for _, s := range slaves {
		disksUnder(dir+"/slaves/"+s, into, depth+1)
	}
}

func sysDevice(dev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
}

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}

func readlink(path string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlink(path, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// list returns the names in a directory; none if there is no such one.
func list(dir string) (names []string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	b := make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
}
