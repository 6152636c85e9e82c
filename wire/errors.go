package wire

import (
	"errors"
	"fmt"
)

// A Code says why a server refused a session or ended it.
type Code string

// The codes.
const (
	Fenced        Code = "FENCED"         // a newer session of this source server exists
	UnknownServer Code = "UNKNOWN_SERVER" // the service knows no such source server, or it belongs elsewhere
	Disconnected  Code = "DISCONNECTED"   // the source server was disconnected from the service
	DiskChanged   Code = "DISK_CHANGED"   // the agent's disks are not those the service knows
	StagingFull   Code = "STAGING_FULL"   // the replication server's storage is full
	Corrupt       Code = "CORRUPT"        // the replica is damaged
	Protocol      Code = "PROTOCOL"       // the other side broke the rules of the format
	Busy          Code = "BUSY"           // too many connections
	Revoked       Code = "REVOKED"        // the certificate was revoked or has ended
	Shutdown      Code = "SHUTDOWN"       // the server is going away; come again
	Internal      Code = "INTERNAL"       // the server's own trouble; come again
)

// ErrRefused is what every [RefusedError] is: the other side decided to end
// the session, as opposed to a network that broke.
var ErrRefused = errors.New("refused")

// A RefusedError is the ERROR message: what one side tells the other before it
// ends the session. On the agent it is what the replication server said.
type RefusedError struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do about it
}

// Type returns [TypeError].
func (*RefusedError) Type() Type { return TypeError }

// Error returns code, message and hint on one line.
func (e *RefusedError) Error() string {
	text := fmt.Sprintf("refused (%s): %s", e.Code, e.Message)
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Is makes errors.Is(err, ErrRefused) true.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// A VersionError is returned where the other side speaks another version of
// the format. It is an [ErrProtocol].
type VersionError struct{ Theirs uint16 }

// Error names both versions.
func (e *VersionError) Error() string {
	return fmt.Sprintf("the other side speaks version %d of the format, this program version %d: upgrade the older one", e.Theirs, Version)
}

// Is makes errors.Is(err, ErrProtocol) true.
func (e *VersionError) Is(target error) bool { return target == ErrProtocol }

// ErrClosed is returned by what is used after Close.
var ErrClosed = errors.New("session is closed")
