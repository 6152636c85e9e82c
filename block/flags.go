package block

import (
	"fmt"
	"strings"
)

// Flags say what is known of a committed epoch. The bits are part of the wire
// and segment formats and never change their meaning.
type Flags uint32

// The flags.
const (
	// Consistent: the epoch is crash-consistent over all disks of the server.
	// Without it the blocks of the epoch are durable, but no machine should be
	// started from the point.
	Consistent Flags = 1 << 0

	// InitialSyncDone: since this epoch every block of every disk has been
	// copied, or is known to be free.
	InitialSyncDone Flags = 1 << 1

	knownFlags = Consistent | InitialSyncDone
)

// Has reports whether all bits of want are set.
func (f Flags) Has(want Flags) bool { return f&want == want }

// Known reports whether f has no bit that this version does not know. Formats
// refuse what is not.
func (f Flags) Known() bool { return f&^knownFlags == 0 }

// String returns the names of the bits, joined by "|", or "none".
func (f Flags) String() string {
	var names []string
	if f.Has(Consistent) {
		names = append(names, "consistent")
	}
	if f.Has(InitialSyncDone) {
		names = append(names, "initial-sync-done")
	}
	if rest := f &^ knownFlags; rest != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(rest)))
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, "|")
}
