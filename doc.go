// Package rehost is the root of a module that moves running servers: it
// replicates their disks, block by block and continuously, and launches them
// elsewhere. It holds no code; docs/architecture.md is the map of the folders,
// and layers_test.go the map of who may import whom.
package rehost
