package capture

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// btrfs has no map of its free space to ask for, but shows its trees: what chunks
// lie where on the device, and which extents of them are in use. Layouts are those
// of linux/btrfs.h and linux/btrfs_tree.h, little endian.
const (
	iocBtrfsTreeSearch = 0xc0709411 // BTRFS_IOC_TREE_SEARCH_V2
	iocBtrfsFSInfo     = 0x8400941f
	iocBtrfsDevInfo    = 0xd000941e

	btrfsExtentTree = 2
	btrfsChunkTree  = 3

	btrfsExtentItem   = 168
	btrfsMetadataItem = 169
	btrfsChunkItem    = 228

	btrfsFirstChunk = 256 // the object that all chunks are of

	btrfsDup      = 1 << 5 // of a chunk's type: two copies on one device
	btrfsProfiles = 0xff<<3 | 0x3<<9

	btrfsSuper      = 64 << 10 // of the device: where its superblock is
	btrfsSuperSize  = 4096
	btrfsNodeSize   = 0x94 // of the superblock
	btrfsCompatRO   = 0xb4
	btrfsIncompat   = 0xbc
	btrfsDevices    = 0x88
	btrfsKnownRO    = 0xf     // free space tree, its validity, verity, block group tree
	btrfsKnownFlags = 0x1077f // all up to metadata UUIDs but RAID56, and simple quotas

	btrfsSearchKey  = 104
	btrfsSearchSize = btrfsSearchKey + 8 + 1<<20
)

// btrfsMirrors are where copies of the superblock are, which stand in no tree.
var btrfsMirrors = []int64{64 << 20, 256 << 30}

// A btrfsKey is where an item stands in a tree.
type btrfsKey struct {
	object uint64
	kind   uint8
	offset uint64
}

func (k btrfsKey) compare(o btrfsKey) int {
	return cmp.Or(cmp.Compare(k.object, o.object), cmp.Compare(k.kind, o.kind), cmp.Compare(k.offset, o.offset))
}

// next is the smallest key after k; ok is false if there is none.
func (k btrfsKey) next() (_ btrfsKey, ok bool) {
	if k.offset++; k.offset != 0 {
		return k, true
	}
	if k.kind++; k.kind != 0 {
		return k, true
	}
	k.object++
	return k, k.object != 0
}

// A btrfsChunk is a range of logical bytes and where on the device they are.
type btrfsChunk struct {
	logical, length uint64
	stripes         []uint64 // bytes on the device
}

// A btrfsMap is asked for the free space of a btrfs on one device.
type btrfsMap struct {
	search   func(tree uint64, from, to btrfsKey, each func(k btrfsKey, data []byte) error) error
	device   uint64 // its number
	size     int64  // bytes of the device that are the file system's
	nodeSize uint64
}

// openBtrfsMap wants a btrfs of one device, dev, with nothing that this code does
// not know of. superblock reads the device.
func openBtrfsMap(dir *os.File, dev uint64, superblock func(at int64, n int) ([]byte, error), size int64) (*btrfsMap, error) {
	info := make([]byte, 1024)
	if err := btrfsCall(dir, iocBtrfsFSInfo, info); err != nil {
		return nil, err
	}
	id := binary.LittleEndian.Uint64(info)
	if n := binary.LittleEndian.Uint64(info[8:]); n != 1 {
		return nil, fmt.Errorf("it is a btrfs over %d devices", n)
	}
	device := make([]byte, 4096)
	binary.LittleEndian.PutUint64(device, id)
	if err := btrfsCall(dir, iocBtrfsDevInfo, device); err != nil {
		return nil, err
	}
	path, _, _ := bytes.Cut(device[4096-1024:], []byte{0})
	var st unix.Stat_t
	if err := unix.Stat(string(path), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != dev {
		return nil, fmt.Errorf("the btrfs is on %q", path)
	}
	uses := binary.LittleEndian.Uint64(device[32:]) // may be less than there is
	if uses > uint64(size) {
		return nil, fmt.Errorf("the btrfs is of %d bytes", uses)
	}
	super, err := superblock(btrfsSuper, btrfsSuperSize)
	if err != nil {
		return nil, err
	}
	m := &btrfsMap{device: id, size: int64(uses)}
	m.search = func(tree uint64, from, to btrfsKey, each func(btrfsKey, []byte) error) error {
		return btrfsSearch(dir, tree, from, to, each)
	}
	return m, m.check(super)
}

func (m *btrfsMap) check(super []byte) error {
	le := binary.LittleEndian
	if string(super[0x40:0x48]) != "_BHRfS_M" {
		return errors.New("there is no btrfs on the device")
	}
	incompat, ro := le.Uint64(super[btrfsIncompat:]), le.Uint64(super[btrfsCompatRO:])
	if incompat&^btrfsKnownFlags != 0 || ro&^btrfsKnownRO != 0 || le.Uint64(super[btrfsDevices:]) != 1 {
		return fmt.Errorf("the btrfs has features that this agent does not know (%#x, %#x)", incompat, ro)
	}
	if m.nodeSize = uint64(le.Uint32(super[btrfsNodeSize:])); m.nodeSize < 4096 || m.nodeSize > 64<<10 {
		return fmt.Errorf("the btrfs has nodes of %d bytes", m.nodeSize)
	}
	return nil
}

// btrfsCall is one ioctl on a structure of the kernel's.
func btrfsCall(dir *os.File, request uintptr, arg []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), request, uintptr(unsafe.Pointer(&arg[0])))
	runtime.KeepAlive(dir)
	if errno == unix.EPERM {
		return fmt.Errorf("btrfs shows its trees to CAP_SYS_ADMIN only, which an agent is not given: %w", errno)
	}
	if errno != 0 {
		return fmt.Errorf("ask for its trees: %w", errno)
	}
	return nil
}

// btrfsSearch calls each with the items of a tree from one key to another.
func btrfsSearch(dir *os.File, tree uint64, from, to btrfsKey, each func(k btrfsKey, data []byte) error) error {
	buf, le := make([]byte, btrfsSearchSize), binary.LittleEndian
	for {
		le.PutUint64(buf[0:], tree)
		for i, v := range []uint64{from.object, to.object, from.offset, to.offset, 0, math.MaxUint64} {
			le.PutUint64(buf[8+8*i:], v)
		}
		le.PutUint32(buf[56:], uint32(from.kind))
		le.PutUint32(buf[60:], uint32(to.kind))
		le.PutUint32(buf[64:], math.MaxUint32)
		le.PutUint64(buf[btrfsSearchKey:], btrfsSearchSize-btrfsSearchKey-8)
		if err := btrfsCall(dir, iocBtrfsTreeSearch, buf); err != nil {
			return err
		}
		last, n, err := btrfsItems(buf, from, to, each)
		if err != nil || n == 0 {
			return err
		}
		next, ok := last.next()
		if !ok || next.compare(to) > 0 {
			return nil
		}
		from = next
	}
}

// btrfsItems reads one answer, whose keys must go up from one to the other.
func btrfsItems(buf []byte, from, to btrfsKey, each func(k btrfsKey, data []byte) error) (last btrfsKey, n int, err error) {
	const header = 32
	le, items := binary.LittleEndian, buf[btrfsSearchKey+8:]
	n = int(le.Uint32(buf[64:]))
	for range n {
		if len(items) < header {
			return last, n, errors.New("the btrfs's answer is cut off")
		}
		length, kind := uint64(le.Uint32(items[28:])), le.Uint32(items[24:])
		k := btrfsKey{object: le.Uint64(items[8:]), kind: uint8(kind), offset: le.Uint64(items[16:])}
		if kind > 0xff || length > uint64(len(items)-header) || k.compare(from) < 0 || k.compare(to) > 0 {
			return last, n, errors.New("the btrfs's answer makes no sense")
		}
		if err := each(k, items[header:][:length]); err != nil {
			return last, n, err
		}
		items, last = items[header+length:], k
		next, ok := k.next()
		if from = next; !ok {
			break
		}
	}
	return last, n, nil
}

// free calls f with each range of the device, in bytes, that no extent of a chunk
// lies on: what is in no chunk, and what is free in one.
func (m *btrfsMap) free(f func(from, to int64)) error {
	chunks, err := m.chunks()
	if err != nil {
		return err
	}
	var taken []span
	for _, at := range btrfsMirrors {
		taken = append(taken, span{at, at + btrfsSuper})
	}
	unallocated := slices.Clone(taken)
	for _, c := range chunks {
		for _, at := range c.stripes {
			unallocated = append(unallocated, span{int64(at), int64(at + c.length)})
		}
	}
	between(span{0, m.size}, unallocated, f)
	for _, c := range chunks {
		err := m.gaps(c, func(from, to uint64) {
			for _, at := range c.stripes {
				between(span{int64(at + from - c.logical), int64(at + to - c.logical)}, taken, f)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// chunks reads the chunk tree.
func (m *btrfsMap) chunks() (out []btrfsChunk, err error) {
	from := btrfsKey{btrfsFirstChunk, btrfsChunkItem, 0}
	err = m.search(btrfsChunkTree, from, btrfsKey{btrfsFirstChunk, btrfsChunkItem, math.MaxUint64}, func(k btrfsKey, b []byte) error {
		const head, stripe = 48, 32
		if len(b) < head {
			return errors.New("a chunk of the btrfs is cut off")
		}
		le := binary.LittleEndian
		c := btrfsChunk{logical: k.offset, length: le.Uint64(b)}
		if profile := le.Uint64(b[24:]) & btrfsProfiles; profile&^btrfsDup != 0 {
			return fmt.Errorf("the btrfs has a chunk of profile %#x", profile)
		}
		n := int(le.Uint16(b[44:]))
		if n < 1 || n > 2 || len(b) < head+n*stripe || c.length == 0 || c.length > math.MaxInt64 || c.logical > math.MaxInt64-c.length {
			return errors.New("a chunk of the btrfs makes no sense")
		}
		for i := range n {
			s := b[head+i*stripe:]
			device, at := le.Uint64(s), le.Uint64(s[8:])
			if device != m.device || at > uint64(m.size) || c.length > uint64(m.size)-at {
				return errors.New("a chunk of the btrfs is not on its device")
			}
			c.stripes = append(c.stripes, at)
		}
		out = append(out, c)
		return nil
	})
	return out, err
}

// gaps calls f with the logical ranges of a chunk that no extent is on.
func (m *btrfsMap) gaps(c btrfsChunk, f func(from, to uint64)) error {
	at, end := c.logical, c.logical+c.length
	err := m.search(btrfsExtentTree, btrfsKey{object: c.logical}, btrfsKey{end - 1, math.MaxUint8, math.MaxUint64}, func(k btrfsKey, _ []byte) error {
		length := k.offset
		switch k.kind {
		case btrfsExtentItem:
		case btrfsMetadataItem:
			length = m.nodeSize
		default:
			return nil
		}
		if k.object < at || length > end-k.object {
			return errors.New("extents of the btrfs overlap, or leave their chunk")
		}
		if k.object > at {
			f(at, k.object)
		}
		at = k.object + length
		return nil
	})
	if err == nil && at < end {
		f(at, end)
	}
	return err
}

// between calls f with what of a range is not taken.
func between(s span, taken []span, f func(from, to int64)) {
	slices.SortFunc(taken, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for _, t := range taken {
		if t.to <= s.from || t.from >= s.to {
			continue
		}
		if t.from > s.from {
			f(s.from, t.from)
		}
		s.from = t.to
	}
	if s.from < s.to {
		f(s.from, s.to)
	}
}
