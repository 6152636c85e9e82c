package launch

import (
	"context"
	"errors"
	"io"
	"time"
)

// Sentinels that callers of a [Target] branch on.
var (
	// ErrBadSpec: the spec breaks a rule of [Spec.Validate], or asks for what the
	// target cannot do.
	ErrBadSpec = errors.New("bad launch specification")
	// ErrExists: an instance of that id runs already, from another spec.
	ErrExists = errors.New("instance exists with another specification")
	// ErrNotFound: the target knows no instance of that id.
	ErrNotFound = errors.New("no such instance")
	// ErrClosed: the target was closed.
	ErrClosed = errors.New("launch target is closed")
)

// A Target is a place where machines run. Its methods may be called
// concurrently. Instances outlive the Target and the process that made it: a
// Target opened again over the same state finds them.
type Target interface {
	// Launch starts a machine and returns once it runs, long before it has
	// booted; how long that takes does not depend on the size of its disks.
	// Launching the same spec again returns the instance that is there, so a
	// caller that crashed may simply repeat the call; another spec under the same
	// id is ErrExists. A Launch that returns an error leaves nothing behind.
	Launch(ctx context.Context, spec Spec) (Instance, error)

	// Describe tells the present state of one instance, or ErrNotFound.
	Describe(ctx context.Context, id string) (Instance, error)

	// Instances describes all instances, in order of id.
	Instances(ctx context.Context) ([]Instance, error)

	// Terminate stops the machine at once and removes everything that was made
	// for it. An instance that does not exist is terminated already: no error.
	Terminate(ctx context.Context, id string) error

	// Close stops watching the instances, which go on running. It waits, and may
	// be called twice.
	io.Closer
}

// A Console is a Target that keeps what instances print on their serial console.
type Console interface {
	// ConsoleOutput returns the last bytes printed, at most limit of them, or
	// ErrNotFound.
	ConsoleOutput(ctx context.Context, id string, limit int) ([]byte, error)
}

// State is what a machine does at the moment.
//
//	RUNNING <-> PAUSED
//	   |           |
//	   +-----------+--> STOPPED
type State string

// The states of a machine.
const (
	Running State = "RUNNING"
	Paused  State = "PAUSED"  // its disks are out of reach, and it goes on when they are back; or QEMU has given it up
	Stopped State = "STOPPED" // it powered off, or its process died
)

// FirstBoot says how the first start of an instance went, in the words of
// MGN's launchedInstance.firstBoot.
//
//	WAITING -> SUCCEEDED | STOPPED | UNKNOWN
type FirstBoot string

// The outcomes of a first boot.
const (
	FirstBootWaiting   FirstBoot = "WAITING"
	FirstBootSucceeded FirstBoot = "SUCCEEDED" // the console showed that user space is up
	FirstBootStopped   FirstBoot = "STOPPED"   // the console showed a fatal error, or the machine stopped
	FirstBootUnknown   FirstBoot = "UNKNOWN"   // neither within the time allowed
)

// An Instance is a launched machine as its target sees it.
type Instance struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	UUID    string    `json:"uuid"` // SMBIOS system UUID, fresh for every launch
	State   State     `json:"state"`
	Started time.Time `json:"started"`

	FirstBoot       FirstBoot `json:"firstBoot"`
	FirstBootReason string    `json:"firstBootReason,omitempty"` // the evidence, a line of the console for example
	FirstBootAt     time.Time `json:"firstBootAt,omitzero"`      // when it was decided

	Accelerator string    `json:"accelerator,omitempty"` // what runs the guest's code: kvm, tcg
	Forwards    []Forward `json:"forwards,omitempty"`    // with the host ports that were chosen

	Hydration Hydration `json:"hydration"`
}

// Hydration tells how far an instance's disks have been copied to where it
// runs. Once Complete, the sources it was launched from may go away.
type Hydration struct {
	Requested bool   `json:"requested"`
	Complete  bool   `json:"complete"`
	Done      int64  `json:"done"`  // bytes looked at; what is not allocated counts too
	Total     int64  `json:"total"` // bytes of all disks
	Error     string `json:"error,omitempty"`
}
