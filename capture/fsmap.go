package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The layout of FS_IOC_GETFSMAP, from linux/fsmap.h. The kernel's numbers are in
// the machine's own order, which is little endian wherever this runs.
const (
	iocGetFSMap = 0xc0c0583b

	fsmapHead   = 192 // struct fsmap_head, with its two keys
	fsmapRecord = 64  // struct fsmap
	fsmapBatch  = 4096

	fmhOutFlags = 4
	fmhCount    = 8
	fmhEntries  = 12
	fmhLow      = 64
	fmhHigh     = 128

	fmrDevice   = 0
	fmrFlags    = 4
	fmrPhysical = 8
	fmrOwner    = 16
	fmrLength   = 32

	fmhDevT    = 0x1  // fmr_device is a device number
	fmrSpecial = 0x10 // fmr_owner is none of an inode
	fmrLast    = 0x20
	fmrFree    = 1 // FMR_OWN_FREE
)

// errFSMap says that what a file system answered is not what was asked for.
var errFSMap = errors.New("the file system's answer makes no sense")

// fsmap calls free with each free range, in bytes, of the file system of a
// directory that lies on the device dev, so many records at a time. ext4 and xfs have
// such a map.
func fsmap(dir *os.File, dev uint64, batch int, free func(from, to int64)) error {
	buf := make([]byte, fsmapHead+batch*fsmapRecord)
	for i := range fmrLength { // the high key is all that comes before the length
		buf[fmhHigh+i] = 0xff
	}
	binary.LittleEndian.PutUint32(buf[fmhCount:], uint32(batch))
	var at fsmapReader
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), iocGetFSMap, uintptr(unsafe.Pointer(&buf[0])))
		runtime.KeepAlive(dir)
		if errno != 0 {
			return fmt.Errorf("ask for its free space: %w", errno)
		}
		more, err := at.take(buf, dev, free)
		if err != nil || !more {
			return err
		}
	}
}

// A fsmapReader is how far a map has been read.
type fsmapReader struct {
	seen uint64 // bytes of the device that have an owner or are known to be free
}

// take reads one answer and makes it the next question. It reports whether there
// is more to ask.
func (p *fsmapReader) take(buf []byte, dev uint64, free func(from, to int64)) (more bool, err error) {
	le := binary.LittleEndian
	n := int(le.Uint32(buf[fmhEntries:]))
	if n > (len(buf)-fsmapHead)/fsmapRecord {
		return false, fmt.Errorf("%w: %d entries", errFSMap, n)
	}
	if n == 0 {
		return false, nil
	}
	if le.Uint32(buf[fmhOutFlags:])&fmhDevT == 0 {
		return false, fmt.Errorf("%w: it does not say on which device", errFSMap)
	}
	var last []byte
	for i := range n {
		last = buf[fsmapHead+i*fsmapRecord:][:fsmapRecord]
		device, flags := le.Uint32(last[fmrDevice:]), le.Uint32(last[fmrFlags:])
		from, length := le.Uint64(last[fmrPhysical:]), le.Uint64(last[fmrLength:])
		if length == 0 || from > 1<<62 || length > 1<<62 {
			return false, fmt.Errorf("%w: %d bytes at %d", errFSMap, length, from)
		}
		if uint64(device) != encodeDev(dev) { // a journal's, or one for real time
			continue
		}
		isFree := flags&fmrSpecial != 0 && le.Uint64(last[fmrOwner:]) == fmrFree
		if isFree && from < p.seen { // owners may share blocks
			return false, fmt.Errorf("%w: byte %d is free and in use", errFSMap, from)
		}
		if p.seen = max(p.seen, from+length); isFree {
			free(int64(from), int64(from+length))
		}
	}
	if le.Uint32(last[fmrFlags:])&fmrLast != 0 {
		return false, nil
	}
	if string(buf[fmhLow:fmhLow+fsmapRecord]) == string(last) {
		return false, fmt.Errorf("%w: it does not go on", errFSMap)
	}
	copy(buf[fmhLow:fmhLow+fsmapRecord], last)
	return true, nil
}

// encodeDev is a device number as the kernel shows it in 32 bits (new_encode_dev).
func encodeDev(dev uint64) uint64 {
	major, minor := uint64(unix.Major(dev)), uint64(unix.Minor(dev))
	return minor&0xff | major<<8&0xfff00 | minor&^0xff<<12
}
