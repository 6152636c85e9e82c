// Package store turns runs of changed blocks into durable recovery points, and
// any recovery point back into disks.
//
// In goes what an agent sends: runs ([Writer.Append]) and the point that makes
// an epoch's runs count ([Writer.Commit]). Out comes a [View] of all disks of a
// source server as they were at any committed epoch ([Replica.At]).
//
// A [Store] is a directory, a [Replica] the disks of one source server in it:
// a log of epochs kept in segment files, encrypted with the replica's own key,
// which a [Keyring] wraps. docs/format/segment.md describes every byte.
//
// One process writes a replica at a time; any number may read it meanwhile, each
// seeing whole committed epochs only. Segments are never compacted and points
// never expire in this version: a replica grows until it is deleted.
package store
