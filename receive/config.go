package receive

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"rehost/block"
	"rehost/ca"
	"rehost/wire"
)

// A Store is where points become durable; [Replicas] makes one of a store.Store.
type Store interface {
	// Begin makes the one writer of the source server's replica, fences the
	// earlier ones, and says which point is the last.
	Begin(ctx context.Context, server string, generation uint64, disks []block.Disk) (Writer, block.Point, error)

	// At opens the source server's disks as they were at a committed point; store.View
	// says what is promised.
	At(ctx context.Context, server string, point block.Seq) (View, error)
}

// A View is all disks of a replica at a point. AppendHashes may be called at once;
// store.View says what is promised.
type View interface {
	AppendHashes(hashes []block.Hash, e block.Extent) ([]block.Hash, error)
}

// A Writer takes the epochs of one session; store.Writer says what is promised.
// Append is called by many goroutines, and must not keep the payload.
type Writer interface {
	Append(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error
	Commit(ctx context.Context, point block.Point, runs uint64, flags block.Flags) error
	Retract(ctx context.Context, after block.Seq) error
	Close() error
}

// An Agent is the other side of a session.
type Agent struct {
	Server     string // id of the source server, proven by its certificate
	Session    string // random, new for each session
	Generation uint64 // 0 before it is known
	Address    netip.AddrPort
}

// A Grant is a Controller's yes to a session.
type Grant struct {
	Generation uint64       // grows with each session of the source server
	Disks      []block.Disk // as the service knows them
}

// Progress is how far a session has come.
type Progress struct {
	Point block.Point // the last committed one; zero before, without a time if later ones were retracted

	// InitialSyncDone is set once a committed epoch of the session said so.
	InitialSyncDone bool

	Consistent bool   // the last epoch was crash-consistent
	Epochs     uint64 // committed in this session
	Bytes      int64  // of runs received in this session, zeros counted by their frames
}

// A Controller decides and is told. Its methods may be called at once for
// different sessions; they must obey ctx, which has a deadline. Where they
// return an error, a [*wire.RefusedError] reaches the agent as it is, and
// anything else as [wire.Internal] with the details in the log only.
type Controller interface {
	// Authenticated: an agent has proven who it is. An error refuses it.
	Authenticated(ctx context.Context, a Agent) error

	// Connected: an agent begins a session. Each success is followed by one
	// Disconnected with the same generation. A session that replaces another
	// is connected before the other one is disconnected.
	Connected(ctx context.Context, a Agent, hello wire.Hello) (Grant, error)

	// Disconnected: the session is over; cause is nil if the agent ended it.
	Disconnected(ctx context.Context, a Agent, cause error)

	// Progress: at most about twice a second while data comes, committed or not,
	// and for the first commit, the end of the initial sync and the last commit
	// of a session.
	Progress(ctx context.Context, a Agent, p Progress)

	// Unhealthy: the store failed under a session, which has ended for it.
	Unhealthy(ctx context.Context, a Agent, problem *wire.RefusedError)
}

// A Config has what a [Server] is made of.
type Config struct {
	Endpoint   ca.Endpoint // with the replication server's certificate
	Store      Store
	Controller Controller
	Logger     *slog.Logger // default slog.Default()

	KeepAlive        time.Duration // default wire.DefaultKeepAlive
	HandshakeTimeout time.Duration // default wire.HandshakeTimeout
	AdmitTimeout     time.Duration // for Connected and Begin, default 30 s

	Handshakes           int // connections that have not yet said HELLO, default 128
	HandshakesPerAddress int // of them from one address, default 32
	ConnectionsPerServer int // of one source server, default 2*wire.MaxConnections
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	set(&c.KeepAlive, wire.DefaultKeepAlive)
	set(&c.HandshakeTimeout, wire.HandshakeTimeout)
	set(&c.AdmitTimeout, 30*time.Second)
	set(&c.Handshakes, 128)
	set(&c.HandshakesPerAddress, 32)
	set(&c.ConnectionsPerServer, 2*wire.MaxConnections)
	return c
}

func set[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}
