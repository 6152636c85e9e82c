package receive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"rehost/block"
	"rehost/store"
	"rehost/wire"
)

// A storeError is an error that the store returned for a session's data.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// errAgentClosed is the cause of a session that its agent ended as it should.
var errAgentClosed = errors.New("the agent closed the session")

// refusal turns the cause of a session's end into what the agent is told. It is
// nil where there is nobody left to tell: the agent went, or its network did.
func refusal(cause error) *wire.RefusedError {
	var said *wire.RefusedError
	var failed *storeError
	switch {
	case errors.As(cause, &said):
		return said
	case errors.As(cause, &failed):
		return storeRefusal(failed.err)
	case errors.Is(cause, wire.ErrProtocol):
		return &wire.RefusedError{Code: wire.Protocol, Message: cause.Error(), Hint: "use the agent's version that belongs to the service's"}
	}
	return nil
}

func storeRefusal(err error) *wire.RefusedError {
	switch {
	case errors.Is(err, store.ErrFenced):
		return &wire.RefusedError{Code: wire.Fenced, Message: "a newer session of this source server has begun",
			Hint: "if this is not the same agent reconnecting, two agents run with one identity: remove one"}
	case errors.Is(err, store.ErrFull), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &wire.RefusedError{Code: wire.StagingFull, Message: "the replication server's storage is full",
			Hint: "add space to its file system or delete replicas; the agent goes on by itself then"}
	case isCorrupt(err):
		return &wire.RefusedError{Code: wire.Corrupt, Message: "the replica of this source server is damaged",
			Hint: "run `rehost store verify` on the replication server; replication may have to start afresh"}
	case errors.Is(err, block.ErrBadRun), errors.Is(err, store.ErrIncomplete), errors.Is(err, store.ErrCommitted), errors.Is(err, store.ErrNoPoint):
		return &wire.RefusedError{Code: wire.Protocol, Message: err.Error()}
	}
	return &wire.RefusedError{Code: wire.Internal, Message: "the replication server could not store the data",
		Hint: "its log has the reason; the agent tries again by itself"}
}

// controllerRefusal is what an agent is told when the Controller says no.
func controllerRefusal(err error) *wire.RefusedError {
	var said *wire.RefusedError
	if errors.As(err, &said) {
		return said
	}
	message := "the replication server could not ask the service about this source server"
	if errors.Is(err, context.DeadlineExceeded) {
		message = "the service did not answer the replication server in time"
	}
	return &wire.RefusedError{Code: wire.Internal, Message: message, Hint: "the replication server's log has the reason; the agent tries again by itself"}
}

// compareDisks says what makes the agent's disks other ones than those the
// service granted. Names and the boot flag may change, as they do across
// reboots; a size, a serial number or the set of disks may not.
func compareDisks(granted, agents []block.Disk) error {
	changed := func(format string, args ...any) error {
		return &wire.RefusedError{Code: wire.DiskChanged, Message: fmt.Sprintf(format, args...),
			Hint: "the agent must report its disks to the service again before it connects"}
	}
	for i, d := range agents {
		if slices.ContainsFunc(agents[:i], func(o block.Disk) bool { return o.ID == d.ID }) {
			return changed("disk %v (%s) is there twice", d.ID, d.Name)
		}
		k := slices.IndexFunc(granted, func(g block.Disk) bool { return g.ID == d.ID })
		if k < 0 {
			return changed("disk %v (%s) is not known to the service", d.ID, d.Name)
		}
		g := granted[k]
		if g.Size != d.Size {
			return changed("disk %v (%s) has %d bytes, the service knows %d", d.ID, d.Name, d.Size, g.Size)
		}
		if g.Serial != "" && d.Serial != "" && g.Serial != d.Serial {
			return changed("disk %v (%s) is another one: its serial number is %s, the service knows %s", d.ID, d.Name, d.Serial, g.Serial)
		}
	}
	for _, g := range granted {
		if !slices.ContainsFunc(agents, func(d block.Disk) bool { return d.ID == g.ID }) {
			return changed("disk %v (%s) is missing", g.ID, g.Name)
		}
	}
	return nil
}
