// Package receive takes the epochs that agents send over package wire and makes
// them durable recovery points: bytes on port 1500 go in, committed points in a
// [Store] come out, and nothing is acknowledged before the store has it.
//
// A [Server] is the listener. Whom it admits, with which disks, and who hears of
// it, is decided by its [Controller].
package receive
