package capture

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"rehost/block"
)

// A source is a disk open for reading past every cache: the block device's page
// cache does not follow what a mounted file system writes.
type source struct {
	disk         block.Disk
	file         *os.File
	major, minor uint32
}

func openSource(d block.Disk) (*source, error) {
	f, err := os.OpenFile(d.Name, os.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &DiskError{Disk: d.Name, Op: "open", Err: errors.Unwrap(err)}
	}
	s := &source{disk: d, file: f}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		f.Close()
		return nil, &DiskError{Disk: d.Name, Op: "open", Err: fmt.Errorf("%w: not a block device", ErrBadDevice)}
	}
	s.major, s.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	if err := s.checkSize(); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func deviceSize(fd uintptr) (int64, error) {
	var n uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0, errno
	}
	return int64(n), nil
}

// checkSize finds disks that have shrunk, grown or gone. A disk that was unplugged
// has no size any more, or on older kernels no entry in /sys.
func (s *source) checkSize() error {
	n, err := deviceSize(s.file.Fd())
	_, there := os.Stat(sysBlock("/sys", s.major, s.minor))
	switch {
	case err == nil && n == 0, isGone(err), errors.Is(there, fs.ErrNotExist):
		return &DiskError{Disk: s.disk.Name, Op: "find", Err: ErrGone}
	case err != nil:
		return &DiskError{Disk: s.disk.Name, Op: "size", Err: err}
	case n < s.disk.Size:
		return &DiskError{Disk: s.disk.Name, Op: "size", Err: fmt.Errorf("%w: %d bytes, was %d", ErrShrunk, n, s.disk.Size)}
	case n > s.disk.Size:
		return &DiskError{Disk: s.disk.Name, Op: "size", Err: fmt.Errorf("the disk has grown from %d to %d bytes, and is replicated anew once the service knows", s.disk.Size, n)}
	}
	return nil
}

// read fills buf, which is aligned, with an extent. Behind the end of a disk
// whose size is no multiple of a block there are zeros; anywhere else a byte
// that cannot be read is an error.
func (s *source) read(e block.Extent, buf []byte) error {
	n := int(min(e.Bytes(), s.disk.Size-e.Offset()))
	for at := 0; at < n; {
		k, err := unix.Pread(int(s.file.Fd()), buf[at:n], e.Offset()+int64(at))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && k == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			if e := s.checkSize(); e != nil {
				return e
			}
			if isGone(err) {
				err = fmt.Errorf("%w (%w)", ErrGone, err)
			}
			return &DiskError{Disk: s.disk.Name, Op: "read", Offset: e.Offset() + int64(at), Err: err}
		}
		at += k
	}
	clear(buf[n:e.Bytes()])
	return nil
}

// isGone reports whether a device says that it is not there.
func isGone(err error) bool {
	return errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOMEDIUM)
}

// bytes returns n bytes at an offset, past every cache like read.
func (s *source) bytes(at int64, n int) ([]byte, error) {
	if at < 0 || n < 0 || at+int64(n) > s.disk.Size || n > (block.MaxRun-1)*block.Size {
		return nil, &DiskError{Disk: s.disk.Name, Op: "read", Offset: at, Err: fmt.Errorf("%d bytes: %w", n, io.ErrUnexpectedEOF)}
	}
	first := at / block.Size
	x := block.Extent{Start: uint64(first), Count: uint64((at+int64(n)+block.Size-1)/block.Size - first)}
	buf := newBuffer()[:x.Bytes()]
	if err := s.read(x, buf); err != nil {
		return nil, err
	}
	return buf[at-x.Offset():][:n], nil
}

// newBuffer is the memory of the longest run, aligned for direct reads.
func newBuffer() []byte {
	const align = 4096
	b := make([]byte, block.MaxRun*block.Size+align)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (align - 1)
	return b[skip : skip+block.MaxRun*block.Size]
}
