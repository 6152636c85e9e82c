// Package fleet installs the agent on many servers over SSH: an inventory and the
// agent's program go in, and a line for each server says how it went.
//
// Nothing is needed on the servers but a shell, and sudo where the login is not
// root. What was copied there is removed again, whatever happens. Credentials go
// through the encrypted connection's standard input: they are in no command line,
// no environment of the login shell and no file.
package fleet
