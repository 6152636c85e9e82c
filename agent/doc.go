// Package agent is what the program on a source server does around capture: an
// installation goes in, a registered source server comes out, and from then on
// commands go in and replication, reports and in the end an empty directory
// come out.
//
// [Install] enrols the machine with a key that is used once and kept nowhere.
// [Run] is the agent itself: it exchanges its certificate for temporary
// credentials, asks for commands, and replicates while it is told to, also when
// the service cannot be reached. [Uninstall] removes everything. [ReadStatus]
// shows what a running agent does, and [Rescan] has it compare everything.
package agent

// Version of the agent, as the service sees it: MAJOR.MINOR.PATCH. A release's
// build sets it (-X rehost/agent.Version=...).
var Version = "0.1.0"
