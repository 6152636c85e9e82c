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
type roomError struct{ what, dir, why, hint string }

func (e *roomError) Error() string { return fmt.Sprintf("%s %s: %s", e.what, e.dir, e.why) }

// room is whether there can be an installation: the directory, there or not, holds its
// state, and that of the program the program, which runs from there.
func (d stateDir) room() error {
	for _, place := range []struct {
		what string
		dir  stateDir
		runs bool // what is there
	}{{"state directory", d, false}, {"directory of the agent's program", stateDir(d.programDir()), true}} {
		free, flags, err := place.dir.fileSystem()
		if err != nil {
			return fmt.Errorf("%s %s: %w", place.what, place.dir, err)
		}
		why, hint := "", "name a directory elsewhere with --state-dir"
		if place.runs {
			hint += ": the program goes beside it"
		}
		switch {
		case flags&unix.ST_RDONLY != 0:
			why = "its file system is read-only"
		case flags&unix.ST_NOEXEC != 0 && place.runs:
			why = "its file system is mounted noexec"
		case free < leastRoom:
			why, hint = fmt.Sprintf("%s are free, and %s are needed", humanBytes(free), humanBytes(leastRoom)), "free some space, or "+hint
		default:
			continue
		}
		return &roomError{place.what, string(place.dir), why, hint}
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
			return 0, 0, err
		}
		path = filepath.Dir(path)
	}
}
