// Package export serves disks read-only over NBD: in goes anything with ReadAt
// and Size (a point in time of a replica), out comes a block device that QEMU,
// nbdcopy or a kernel can open.
//
// The protocol is the one of the NBD project's doc/proto.md: fixed newstyle
// negotiation, simple and structured replies, the base:allocation context. A
// write of whatever kind is answered with EPERM.
package export
