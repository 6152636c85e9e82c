package store

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// What a caller may branch on, with [errors.Is].
var (
	ErrNotFound   = errors.New("no such replica")
	ErrExists     = errors.New("replica exists already")
	ErrBadID      = errors.New("source server id is not a plain name")
	ErrNoPoint    = errors.New("no such recovery point")
	ErrNoDisk     = errors.New("no such disk")
	ErrReadOnly   = errors.New("store is open for reading only")
	ErrLocked     = errors.New("replica is in use by another process")
	ErrFenced     = errors.New("writer is fenced by a later one")
	ErrClosed     = errors.New("closed")
	ErrCommitted  = errors.New("epoch is not after the last committed one")
	ErrIncomplete = errors.New("epoch is incomplete")
	ErrKey        = errors.New("key does not open this replica")

	// ErrBroken is what a [Writer] answers for ever once a write or a sync of it
	// has gone wrong: what is on disk is then unknown, and only a new Begin,
	// which reads it again, may go on.
	ErrBroken = errors.New("writer is broken")

	// ErrFull accompanies ErrBroken where the cause is a full disk or quota.
	ErrFull = errors.New("no space left for the store")
)

// A CorruptError says that stored bytes are not what was written: damaged,
// truncated, missing or moved. No data is returned along with it.
type CorruptError struct {
	Object string // file, relative to the store's directory
	Offset int64  // bytes from its start, where the damaged part begins
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is corrupt at %d: %v", e.Object, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

func corrupt(object string, offset uint64, format string, args ...any) error {
	return &CorruptError{Object: object, Offset: int64(offset), Err: fmt.Errorf(format, args...)}
}

// classify adds ErrFull to errors that mean it.
func classify(err error) error {
	if err != nil && !errors.Is(err, ErrFull) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
