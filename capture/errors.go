package capture

import (
	"errors"
	"fmt"

	"rehost/capture/bpf"
)

// A DiskError is a source disk that could not be read as it should. What was
// read before is kept to be read again; nothing is ever replaced by zeros.
type DiskError struct {
	Disk   string // device name
	Op     string // "open", "read", "size"
	Offset int64  // bytes, for a read
	Err    error
}

func (e *DiskError) Error() string {
	if e.Op == "read" {
		return fmt.Sprintf("read %s at byte %d: %v", e.Disk, e.Offset, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Op, e.Disk, e.Err)
}

// Unwrap returns the cause.
func (e *DiskError) Unwrap() error { return e.Err }

// An AuditError says that changes to a disk may have gone unseen. The points
// since the last clean audit are withdrawn and the disk is read whole.
type AuditError struct {
	Disk   int // index in the engine's list; -1 for all
	Reason string
}

func (e *AuditError) Error() string {
	if e.Disk < 0 {
		return "audit: changes may have gone unseen: " + e.Reason
	}
	return fmt.Sprintf("audit of disk %d: changes may have gone unseen: %s", e.Disk, e.Reason)
}

// Errors that callers branch on.
var (
	// ErrNotSupported is wrapped by errors about what this kernel, or this
	// process's privileges, cannot do. Its text gives the reason.
	ErrNotSupported = errors.New("not supported here")

	// ErrGone is the cause of a [DiskError] for a disk that was taken away.
	ErrGone = errors.New("the disk is gone: it was unplugged, detached or taken offline")

	// ErrShrunk is the cause of a [DiskError] for a disk that has become smaller.
	ErrShrunk = errors.New("the disk has become smaller than when it was added; remove it from replication and add it again")

	// ErrPinned is wrapped by [Open] and [Unpin] while another process tracks with
	// the same pins.
	ErrPinned = bpf.ErrBusy

	// ErrBadDevice is wrapped by [Resolve] for a path that names no disk to replicate.
	ErrBadDevice = errors.New("not a disk that can be replicated")
)
