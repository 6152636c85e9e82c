package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A fileSystem is what the store needs of one, so that tests can put a layer in
// that forgets what was not synced. Names are paths.
type fileSystem interface {
	// Create makes a new file for writing; it is an error if it exists. Direct
	// asks for O_DIRECT, which is left out where the file system refuses it.
	Create(name string, direct bool) (file, error)
	Open(name string) (file, error)      // for reading
	OpenWrite(name string) (file, error) // an existing one
	Rename(from, to string) error
	Remove(name string) error
	ReadDir(name string) ([]string, error)
	SyncDir(name string) error
	MakeDir(name string) error // with its parents, for the owner only
	// Lock makes sure that nobody else holds the lock file name until it is
	// closed; [ErrLocked] if someone does.
	Lock(name string) (io.Closer, error)
}

// A file's WriteAt gets aligned buffers, lengths and offsets when it was
// created as direct.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Allocate grows the file to size and reserves the space, if it can; ENOSPC
	// is the only thing it may complain about.
	Allocate(size int64) error
	Sync() error // content and size are durable when it returns
}

// osFS is the operating system's.
type osFS struct{ reserve int64 }

type osFile struct {
	*os.File
	reserve int64 // of the file system, that Allocate leaves free
}

func (o osFS) Create(name string, direct bool) (file, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	if direct {
		f, err := os.OpenFile(name, flags|unix.O_DIRECT, 0o600)
		if err == nil {
			return osFile{f, o.reserve}, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return nil, err
		}
		// open(2) may have created the file before it refused the flag.
		if err := os.Remove(name); err != nil && !isNotExist(err) {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, flags, 0o600)
	return osFile{f, o.reserve}, err
}

func (osFS) Open(name string) (file, error) {
	f, err := os.Open(name)
	return osFile{f, 0}, err
}

func (osFS) OpenWrite(name string) (file, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	return osFile{f, 0}, err
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(name string) error     { return os.Remove(name) }

func (osFS) ReadDir(name string) ([]string, error) {
	d, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) MakeDir(name string) error { return os.MkdirAll(name, 0o700) }

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, &os.PathError{Op: "flock", Path: name, Err: err}
	}
	return f, nil
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Allocate(size int64) error {
	old, err := f.Size()
	if err != nil {
		return err
	}
	if err := f.room(size - old); err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, old, size-old)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil // not supported here: writes will allocate
}

// room is ENOSPC where n more bytes would leave less than the reserve.
func (f osFile) room(n int64) error {
	var st unix.Statfs_t
	if f.reserve == 0 || unix.Fstatfs(int(f.Fd()), &st) != nil {
		return nil //nolint:nilerr // what cannot be told is not in the way
	}
	if free := int64(st.Bavail) * st.Bsize; free-n < f.reserve {
		return &os.PathError{Op: "leave room beside", Path: f.Name(), Err: unix.ENOSPC}
	}
	return nil
}

func (f osFile) Sync() error {
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}

// readAll reads a small file whole; more than limit bytes are an error.
func readAll(fsys fileSystem, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("read %s: %d bytes, expected at most %d", name, n, limit)
	}
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, 0); err != nil && (n > 0 || !errors.Is(err, io.EOF)) {
		return nil, err
	}
	return buf, nil
}

// replaceFile makes name hold data, whole or not at all, durable on return.
func replaceFile(fsys fileSystem, name string, data []byte) error {
	tmp := name + tmpSuffix
	if err := fsys.Remove(tmp); err != nil && !isNotExist(err) {
		return err
	}
	f, err := fsys.Create(tmp, false)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// tmpSuffix marks files that nothing refers to yet; they are removed at Begin.
const tmpSuffix = ".tmp"
