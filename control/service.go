package control

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"rehost/awsapi/mgn"
	"rehost/block"
	"rehost/ca"
	"rehost/export"
	"rehost/launch"
	"rehost/release"
)

// Replicas is what the service needs of the store, which other processes write.
type Replicas interface {
	// Points lists the recovery points of a replica, oldest first; none if there
	// is no such replica (yet).
	Points(ctx context.Context, serverID string) ([]block.Point, error)
	// Open makes one point readable until the view is closed.
	Open(ctx context.Context, serverID string, seq block.Seq) (View, error)
	// Delete removes a replica for good. Deleting what is not there is no error.
	Delete(ctx context.Context, serverID string) error
}

// A View is all disks of a source server at one recovery point.
type View interface {
	Disks() []block.Disk
	Device(id block.DiskID) (export.Device, error)
	io.Closer
}

// An Exporter serves devices where a launch target can read them.
type Exporter interface {
	Add(name string, device export.Device) error
	Remove(name string) // waits until the device is no longer read
}

// Credentials are temporary keys of an agent or a replication server.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
	Expiration                                 time.Time
}

// Options of a [Service]. Database, Account and Region must be set; so must
// Replicas, Exporter, Socket and Target for launches, and the trust parts for
// agents.
type Options struct {
	Database *Database // stays the caller's to close
	Account  string    // 12 digits

	// Alone: a lock keeps other processes off the database, so a lease of a job
	// can only be of a process that is gone.
	Alone  bool
	Region string

	Replicas Replicas
	Exporter Exporter
	Socket   string // absolute path of the unix socket that Exporter is served on
	Target   launch.Target
	Forwards []int // TCP ports of every instance that are to be reached on this machine's loopback

	// APIPort is where the API listens: rules of its security group may call it so,
	// besides 8443. 0: they may not.
	APIPort int
	// PrefixLists are those that there are at first.
	PrefixLists []PrefixList

	Authority Authority
	Sessions  Sessions

	Tunnel         Tunnel // nil: there is none
	TunnelEndpoint string // host:port that agents are told to go to, UDP

	Events Events // nil: none are kept

	// Bundles is the directory that support bundles of agents are kept in; nobody else
	// writes there. "" refuses the tasks that bring some.
	Bundles string

	// Release is the version that agents can download. nil, or an error: there is none to
	// upgrade them to.
	Release func() (release.Version, error)

	// AgentTimeout is after how long of silence an agent counts as not seen,
	// StepTimeout how long a step of initiation may take. 0 means 90 s each.
	AgentTimeout, StepTimeout time.Duration

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil discards
}

// A Service answers the operations of MGN and of its agents and replication
// servers. All methods may be called concurrently.
//
//	Open -> Run (jobs, watching) -> Close
type Service struct {
	opts    Options
	db      *Database
	gauge   *gauge
	pager   pager
	log     *slog.Logger
	now     func() time.Time
	started time.Time
	wake    chan struct{} // a job was created
	changes *changes      // for replication servers

	replicators *replicators
	turned      map[ca.Certified]bool // revocations that have ended sessions; of tendAuthority alone

	letting sync.Mutex // held while the tunnel is told who may come
	bundles sync.Mutex // held while files of support bundles are changed

	mu    sync.Mutex
	views map[string]*exported // guarded by mu: by instance
	lists []PrefixList         // guarded by mu; replaced whole
}

// Open makes a service over a database and serves again what launched instances read.
func Open(ctx context.Context, opts Options) (*Service, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.AgentTimeout == 0 {
		opts.AgentTimeout = 90 * time.Second
	}
	if opts.StepTimeout == 0 {
		opts.StepTimeout = 90 * time.Second
	}
	db := opts.Database
	c := &Service{opts: opts, db: db, log: opts.Logger, now: opts.Now, started: opts.Now(), wake: make(chan struct{}, 1), changes: newChanges(opts.Now()), views: map[string]*exported{}, lists: opts.PrefixLists, turned: map[ca.Certified]bool{}}
	var err error
	if c.gauge, err = loadGauge(ctx, db.reader); err != nil {
		return nil, fmt.Errorf("read telemetry: %w", err)
	}
	if c.replicators, err = loadReplicators(ctx, db.reader); err != nil {
		return nil, fmt.Errorf("read replication servers: %w", err)
	}
	if err := c.settle(ctx); err != nil {
		return nil, err
	}
	if err := c.exportAgain(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// settle checks that the database is of this account and region, which are part
// of every ARN that was given out.
func (c *Service) settle(ctx context.Context) error {
	return c.db.update(ctx, func(tx *sql.Tx) error {
		for name, want := range map[string]string{"account": c.opts.Account, "region": c.opts.Region} {
			have, err := setting(ctx, tx, name)
			if err != nil {
				return err
			}
			if have == "" {
				err = setSetting(ctx, tx, name, want)
			} else if have != want {
				err = fmt.Errorf("the database is of %s %s, not %s", name, have, want)
			}
			if err != nil {
				return err
			}
		}
		if err := c.openPager(ctx, tx); err != nil {
			return err
		}
		if _, err := settleGroups(ctx, tx); err != nil {
			return err
		}
		if c.opts.Alone {
			_, err := tx.ExecContext(ctx, `UPDATE jobs SET lease_owner = '', lease_until = ''`)
			return err
		}
		return nil
	})
}

// openPager takes the key of page tokens from the database, so that tokens are
// good after a restart.
func (c *Service) openPager(ctx context.Context, tx *sql.Tx) error {
	text, err := setting(ctx, tx, "pageKey")
	if err == nil && text == "" {
		text = newPageKey()
		err = setSetting(ctx, tx, "pageKey", text)
	}
	if err != nil {
		return err
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		c.pager, err = newPager(key)
	}
	if err != nil {
		return fmt.Errorf("key of page tokens: %w", err)
	}
	return nil
}

// Close writes telemetry down and closes what is exported; instances go on running
// and wait for their disks. It may be called twice; Run must have returned.
func (c *Service) Close() error {
	err := c.gauge.flush(context.Background(), c.db)
	c.mu.Lock()
	ids := make([]string, 0, len(c.views))
	for id := range c.views {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	for _, id := range ids {
		err = errors.Join(err, c.unexport(id))
	}
	return err
}

// InitializeService implements the operation: everything else is refused before.
func (c *Service) InitializeService(ctx context.Context, _ *mgn.InitializeServiceRequest) (*mgn.InitializeServiceResponse, error) {
	return &mgn.InitializeServiceResponse{}, c.db.update(ctx, func(tx *sql.Tx) error {
		at, err := setting(ctx, tx, "initialized")
		if err != nil || at != "" {
			return err
		}
		return setSetting(ctx, tx, "initialized", stamp(c.now()))
	})
}

// ready refuses what comes before InitializeService.
func (c *Service) ready(ctx context.Context) error {
	at, err := setting(ctx, c.db.reader, "initialized")
	if err == nil && at == "" {
		err = uninitialized()
	}
	return err
}
