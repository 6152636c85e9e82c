// Package capture turns live disks into an ordered stream of changed extents,
// cut at crash-consistent points. In go block devices ([Discover], [Resolve]);
// out come runs and commits, to a [Sink].
//
// An [Engine] follows a set of disks with a [Tracker] and replicates them to one
// sink after another ([Engine.Run]); what no file system has in use is left out.
// docs/capture.md describes the algorithm and says why each step is where it is.
//
// A granule is the unit of tracking: one block or a power of two of them.
package capture
