package capture

import "context"

// A Method says how changes are found.
type Method string

// The methods.
const (
	EBPF    Method = "EBPF"    // the kernel marks what is written
	Compare Method = "COMPARE" // the disks are read whole and compared with what was sent
)

// A Tracker knows which granules change. The engine calls its methods in the
// order of a round, which is what makes a point consistent:
//
//	Skipped, Prepare, Flip, Pending, Changed, then reads, each followed by Conflict, then Skipped, Settle
//
// All but Conflict are called by one goroutine at a time.
type Tracker interface {
	// Method is how changes are found; reason is why no better way is taken, or how
	// it was shown that this one works.
	Method() (method Method, reason string)

	// Skipped is how often something kept the tracker from seeing a write begin. While
	// it grows, Conflict may miss one.
	Skipped() (uint64, error)

	// Prepare readies what will remember the writes of the next generation.
	Prepare() error
	// Flip starts the next generation, at one instant for all disks: T.
	Flip()
	// Pending adds what writes in flight cover, before Changed looks.
	Pending(into *Set)
	// Changed moves what was written since it was last called into the set. A
	// granule leaves the tracker before it is read.
	Changed(into *Set) error
	// Conflict reports whether a write to one of n granules may have been issued
	// since the flip. It is asked after they were read. It never misses one.
	Conflict(disk int, first, n uint64) bool
	// Settle is asked after a round without conflict: may the round be a point at
	// T? An [*AuditError] says that the past may not have been one either.
	Settle(ctx context.Context) (bool, error)

	Close() error
}

// A comparer is a Tracker that knows what was sent and spares sending it again.
type comparer interface {
	// same reports whether the granules were sent with this content, and remembers
	// the content as sent.
	same(disk int, first, n uint64, data []byte) bool
	// forget says that what was sent of these granules is lost.
	forget(lost *Set)
}
