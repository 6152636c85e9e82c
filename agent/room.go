package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// leastRoom is what an installation needs on the disk: its program, another one
// while it is upgraded, and a log.
const leastRoom = 64 << 20

// A roomError says why a directory is no place for an installation.
type roomError struct{ dir, why, hint string }

func (e *roomError) Error() string { return fmt.Sprintf("state directory %s: %s", e.dir, e.why) }

// room is whether the directory, there or not, can hold an installation whose
// program runs from there.
func (d stateDir) room() error {
	free, flags, err := d.fileSystem()
	if err != nil {
		return err
	}
	const elsewhere = "name a directory elsewhere with --state-dir"
	switch {
	case flags&unix.ST_RDONLY != 0:
		return &roomError{string(d), "its file system is read-only", elsewhere}
	case flags&unix.ST_NOEXEC != 0:
		return &roomError{string(d), "its file system is mounted noexec, and the agent's program has to run there", elsewhere}
	case free < leastRoom:
		return &roomError{string(d), fmt.Sprintf("%s are free, and %s are needed", humanBytes(free), humanBytes(leastRoom)), "free some space, or " + elsewhere}
	}
	return nil
}

// fileSystem looks at the one that the directory is on or will be.
func (d stateDir) fileSystem() (free, flags int64, err error) {
	path, err := filepath.Abs(string(d))
	if err != nil {
		return 0, 0, err
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return int64(st.Bavail) * int64(st.Bsize), int64(st.Flags), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return 0, 0, fmt.Errorf("state directory %s: %w", d, err)
		}
		path = filepath.Dir(path)
	}
}
