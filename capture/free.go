package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"rehost/block"
)

// What no file system has in use is not copied. Why nothing can be lost by that is
// in docs/capture.md; it rests on this order:
//
//   - The kernel tracks writes already.
//   - Each file system is synced, asked for its map, and synced again.
//   - Only then are the free granules struck from what is to be read, and nothing
//     was taken from the tracker between the first of these and the last.
//   - The next point is cut after that.
//
// When in doubt a block is not free: what cannot be asked, or answers oddly, is
// copied whole.

// edge is how much of each end of a partition, and of a gap between two, is copied
// whatever it holds, in bytes: labels, boot loaders, and copies of partition tables
// lie there, and nobody asks for what is smaller.
const edge = 1 << 20

// leastFree is the shortest run of free blocks worth leaving out.
const leastFree = 16

// A FreeArea is a part of a disk that free space was looked for in.
type FreeArea struct {
	Name  string // "/dev/sda1 (ext4 on /)"
	Free  int64  // bytes of it that were not to be copied
	Whole string // why all of it is copied; "" if it is not
}

// A survey looks for the free space of disks.
type survey struct {
	system  System
	sources []*source
	layout  *layout
	log     *slog.Logger

	syncing chan struct{} // holds one while a file system is synced
	syncfs  func(fd int) error
}

func newSurvey(system System, sources []*source, l *layout, log *slog.Logger) *survey {
	return &survey{system: system, sources: sources, layout: l, log: log, syncing: make(chan struct{}, 1), syncfs: unix.Syncfs}
}

// A volume is a partition, or a disk without any.
type volume struct {
	disk int
	name string
	dev  uint64
	span
	mounts []mount
}

// free adds granules that nobody needs what they hold now of, and says where they
// are. Only that ctx ended is an error.
func (s *survey) free(ctx context.Context, into *Set) (areas []FreeArea, err error) {
	for i := range s.sources {
		found, err := s.disk(ctx, i, into)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			found = append(found, FreeArea{Name: s.sources[i].disk.Name, Whole: err.Error()})
		}
		areas = append(areas, found...)
	}
	for _, a := range areas {
		if a.Whole != "" {
			s.log.Info("free space is copied", "of", a.Name, "because", a.Whole)
		} else {
			s.log.Info("free space is not copied", "of", a.Name, "bytes", a.Free)
		}
	}
	return areas, nil
}

func (s *survey) disk(ctx context.Context, disk int, into *Set) (areas []FreeArea, err error) {
	src := s.sources[disk]
	dir, err := filepath.EvalSymlinks(sysBlock(s.system.Sysfs, src.major, src.minor))
	if err != nil {
		return nil, err
	}
	table, err := s.system.mountTable()
	if err != nil {
		return nil, err
	}
	d, err := s.system.device(filepath.Base(dir), map[string][]string{})
	if err != nil {
		return nil, err
	}
	volumes, err := volumesOf(disk, d, table)
	if err != nil {
		return nil, err
	}
	if len(d.Partitions) > 0 {
		areas = append(areas, s.gaps(disk, dir, d, into))
	}
	swaps := s.swaps()
	for _, v := range volumes {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if size, ok := swaps[v.dev]; ok {
			areas = append(areas, s.area(v, v.name+" (swap)", into, func(add func(from, to int64)) error { return s.swap(v, size, add) }))
			continue
		}
		if len(v.mounts) == 0 {
			continue
		}
		m := v.mounts[0]
		areas = append(areas, s.area(v, fmt.Sprintf("%s (%s on %s)", v.name, m.fileSystem, m.point), into, func(add func(from, to int64)) error {
			return s.fileSystem(ctx, v, add)
		}))
	}
	return areas, nil
}

// volumesOf are a disk's partitions, or the disk itself if it has none, each with
// what of it is mounted.
func volumesOf(disk int, d Device, table []mount) (out []volume, err error) {
	add := func(name string, major, minor uint32, at span) {
		v := volume{disk: disk, name: name, dev: unix.Mkdev(major, minor), span: at}
		for _, m := range table {
			if m.dev == fmt.Sprintf("%d:%d", major, minor) {
				v.mounts = append(v.mounts, m)
			}
		}
		out = append(out, v)
	}
	add(d.Name, d.Major, d.Minor, span{0, d.Size})
	if len(d.Partitions) == 0 {
		return out, nil
	}
	if len(out[0].mounts) > 0 {
		return nil, errors.New("it has partitions, and is mounted itself")
	}
	out = nil
	at := int64(0)
	for _, p := range d.Partitions { // in order
		if p.Start < at || p.Size < 0 || p.Start > d.Size-p.Size {
			return nil, fmt.Errorf("its partition %s overlaps another, or its end", p.Name)
		}
		at = p.Start + p.Size
		add(p.Name, p.Major, p.Minor, span{p.Start, at})
	}
	return out, nil
}

// area gathers the free ranges of a volume. Those of one that fails are not free.
func (s *survey) area(v volume, name string, into *Set, gather func(add func(from, to int64)) error) FreeArea {
	before := into.count
	g := gatherer{into: into, disk: v.disk, within: span{v.from + edge, v.to - edge}}
	err := gather(g.add)
	if err != nil {
		into.removeDisk(v.disk, v.from, v.to)
		return FreeArea{Name: name, Whole: err.Error()}
	}
	g.flush()
	return FreeArea{Name: name, Free: int64(into.count-before) << s.layout.shift * block.Size}
}

// A gatherer adds free ranges of a disk to a set: those one behind the other as
// one, in whole granules.
type gatherer struct {
	into   *Set
	disk   int
	within span
	last   span
}

func (g *gatherer) add(from, to int64) {
	if from != g.last.to {
		g.flush()
		g.last.from = from
	}
	g.last.to = to
}

func (g *gatherer) flush() {
	from, to := max(g.last.from, g.within.from), min(g.last.to, g.within.to)
	g.last = span{}
	granule := int64(block.Size) << g.into.layout.shift
	first, end := (from+granule-1)/granule, to/granule
	if end-first >= max(1, int64(leastFree)>>g.into.layout.shift) {
		g.into.Add(g.disk, uint64(first), uint64(end-first))
	}
}

// gaps finds what lies between a disk's partitions and behind them. What is before
// the first one belongs to the boot loader.
func (s *survey) gaps(disk int, dir string, d Device, into *Set) FreeArea {
	all := volume{disk: disk, span: span{0, d.Size}}
	return s.area(all, d.Name+" (between partitions)", into, func(add func(from, to int64)) error {
		if users, err := os.ReadDir(filepath.Join(dir, "holders")); err != nil || len(users) > 0 {
			return errors.New("it is in use as a whole")
		}
		table, err := partitionTable(s.sources[disk].bytes, d.Size, int64(d.LogicalBlock))
		if err != nil {
			return err
		}
		known := slices.EqualFunc(table, d.Partitions, func(a span, p Partition) bool { return a == span{p.Start, p.Start + p.Size} })
		if !known {
			return errors.New("the partitions in use are not those of its table")
		}
		for i, p := range table {
			end := d.Size
			if i+1 < len(table) {
				end = table[i+1].from
			}
			if from, to := p.to+edge, end-edge; from < to {
				add(from, to)
			}
		}
		return nil
	})
}

// swaps are the swap areas in use, with their size in bytes.
func (s *survey) swaps() map[uint64]int64 {
	text, err := os.ReadFile(filepath.Join(s.system.Procfs, "swaps"))
	if err != nil {
		return nil
	}
	out := map[uint64]int64{}
	for line := range strings.Lines(string(text)) {
		var name, kind string
		var kib int64
		var st unix.Stat_t
		if n, _ := fmt.Sscan(line, &name, &kind, &kib); n == 3 && kind == "partition" && kib > 0 && kib < 1<<50 &&
			unix.Stat(unescape.Replace(name), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			out[st.Rdev] = kib << 10
		}
	}
	return out
}

// swap is free behind its header, unless the machine was put to sleep in it.
func (s *survey) swap(v volume, size int64, add func(from, to int64)) error {
	page := int64(os.Getpagesize())
	b, err := s.read(v)(page-10, 10)
	if err != nil {
		return err
	}
	if string(b) != "SWAPSPACE2" {
		return fmt.Errorf("its header says %q", b)
	}
	add(v.from+page, min(v.to, v.from+page+size))
	return nil
}

// read reads a volume past every cache.
func (s *survey) read(v volume) func(at int64, n int) ([]byte, error) {
	return func(at int64, n int) ([]byte, error) {
		if at < 0 || at+int64(n) > v.to-v.from {
			return nil, fmt.Errorf("it has no bytes %d to %d", at, at+int64(n))
		}
		return s.sources[v.disk].bytes(v.from+at, n)
	}
}

// fileSystem asks a mounted file system. Its first sync brings to the disk, and so
// into the map, what was written before changes were tracked; the second one what
// the map may have known before the disk did: that something was removed.
func (s *survey) fileSystem(ctx context.Context, v volume, add func(from, to int64)) error {
	m, dir, err := openMount(v)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := s.sync(ctx, dir); err != nil {
		return fmt.Errorf("sync it: %w", err)
	}
	shifted := func(from, to int64) { add(v.from+from, v.from+to) }
	switch m.fileSystem {
	case "ext2", "ext3", "ext4", "xfs":
		err = fsmap(dir, v.dev, fsmapBatch, shifted)
	case "btrfs":
		var b *btrfsMap
		if b, err = openBtrfsMap(dir, v.dev, s.read(v), v.to-v.from); err == nil {
			err = b.free(shifted)
		}
	default:
		err = errors.New("this agent cannot ask it for its free space")
	}
	if err != nil {
		return err
	}
	if err := s.sync(ctx, dir); err != nil {
		return fmt.Errorf("sync it: %w", err)
	}
	return s.stillWell(v, m)
}

// sync brings to the disk what a file system has in memory. That may take minutes,
// and the kernel cannot be made to stop in the middle of it: where ctx ends before,
// the sync goes on by itself, and the next one, and close, wait for its end.
func (s *survey) sync(ctx context.Context, dir *os.File) error {
	select {
	case s.syncing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0) // whoever asked may close theirs
	if err != nil {
		<-s.syncing
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- errors.Join(s.syncfs(fd), unix.Close(fd))
		<-s.syncing
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close waits for a sync that nobody waited for.
func (s *survey) close() {
	s.syncing <- struct{}{}
	<-s.syncing
}

// openMount opens a directory of the file system on a volume.
func openMount(v volume) (mount, *os.File, error) {
	err := errors.New("it is hidden under another mount")
	for _, m := range v.mounts {
		if e := m.writable(); e != nil {
			err = e
			continue
		}
		fd, e := unix.Open(m.point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if e != nil {
			continue // a file may be a mount point too
		}
		dir := os.NewFile(uintptr(fd), m.point)
		var st unix.Stat_t
		if e := unix.Fstat(fd, &st); e == nil && (st.Dev == v.dev || m.fileSystem == "btrfs") { // which has numbers of its own, and is asked
			return m, dir, nil
		}
		dir.Close()
	}
	return mount{}, nil, err
}

// writable wants a file system that knows its own state: one that is read-only may
// have a journal that it has not read, or has met an error.
func (m mount) writable() error {
	words := strings.FieldsFunc(m.options, func(r rune) bool { return r == ',' || r == ' ' })
	for _, odd := range []string{"ro", "shutdown", "emergency_ro", "norecovery", "noload"} {
		if slices.Contains(words, odd) {
			return fmt.Errorf("it is mounted %s", odd)
		}
	}
	if !slices.Contains(words, "rw") {
		return errors.New("it is not mounted rw")
	}
	return nil
}

// stillWell wants that nothing has happened to a file system that would make its
// map or its syncs worthless.
func (s *survey) stillWell(v volume, m mount) error {
	table, err := s.system.mountTable()
	if err != nil {
		return err
	}
	if !slices.Contains(table, m) {
		return errors.New("it was mounted otherwise meanwhile")
	}
	if !strings.HasPrefix(m.fileSystem, "ext") {
		return nil
	}
	const super, state, hasErrors = 1024, 0x3a, 2
	b, err := s.read(v)(super+state, 2)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(b)&hasErrors != 0 {
		return errors.New("it has errors, says its superblock")
	}
	return nil
}
