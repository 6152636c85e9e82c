// Package replicator is a replication server: connections of agents on port 1500
// go in, recovery points in a store come out, and the service is told.
//
// It is a client of the service like agents are: it exchanges its certificate
// for temporary credentials and speaks through signed calls only, whether it
// runs in the service's process or on its own.
package replicator
