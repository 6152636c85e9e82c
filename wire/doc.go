// Package wire carries runs of blocks and the points that complete them over
// mutual TLS: an agent's [Session] goes in, a replication server's [Conn] comes
// out. docs/format/wire.md describes the bytes.
//
// The package moves and checks frames. What a server does with them, and whom
// it admits, is package receive's.
package wire
