// Package freeze holds file systems still for a moment, in a process of its own
// that can do little else. Disks by number, and for how long at most, go in; what
// is mounted from them is frozen, and thawed in any case.
//
// [Serve] is that process, [Watch] is a second one that thaws if the first one does
// not, and a [Client] asks for it. docs/format/freezer.md has what they say to each
// other.
package freeze
