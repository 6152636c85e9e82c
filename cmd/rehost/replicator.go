package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"rehost/ca"
	"rehost/fence"
	"rehost/replicator"
)

// ReplicatorCmd is `rehost replicator`: a replication server as a process of its own.
type ReplicatorCmd struct {
	Endpoint   string `help:"Address of the service." required:"" placeholder:"URL"`
	Data       string `help:"Directory of the service: with replicator.pem, ca.pem, store.key and the store." default:"/var/lib/rehost" placeholder:"DIR"`
	Listen     string `help:"Address that agents replicate to." default:":1500" placeholder:"HOST:PORT"`
	Address    string `help:"What agents are told to connect to." required:"" placeholder:"HOST:PORT"`
	Region     string `help:"Region of the service." default:"us-east-1"`
	FenceFlags `embed:""`
	LogLevel   string `help:"What is logged: debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
}

// Help implements [kong.HelpProvider].
func (c *ReplicatorCmd) Help() string {
	return `Replication then outlives a restart of the service, and either can be limited or moved to other cores by itself.

    rehost serve --data DIR --no-replicator
    rehost replicator --data DIR --endpoint https://HOST:8443 --address HOST:1500

Both use the same directory, since instances are launched from the store in it. Start the service first: it makes the certificate of the replication server (DIR/replicator.pem), with which this process proves itself to agents and to the service, and renews it there. The name or address in --endpoint has to be one that the service was started to --advertise.`
}

// Run serves until ctx ends.
func (c *ReplicatorCmd) Run(ctx context.Context, log *logOutput, _ io.Writer) (err error) {
	logger, err := log.logger(c.LogLevel)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(c.Data, "ca.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errNotServed, err)
	}
	if err != nil {
		return err
	}
	unlock, err := lockReplicator(c.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	bundle, err := ca.ParseBundle(string(text))
	if err != nil {
		return fmt.Errorf("%s/ca.pem: %w", c.Data, err)
	}
	pair, err := openPair(filepath.Join(c.Data, "replicator.pem"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errNotServed, err)
	}
	if err != nil {
		return err
	}
	s, err := openStore(c.Data, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	fenced, err := c.options(listener, fence.Options{})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	fmt.Fprintf(log.w, "rehost: ready: replication server %s on %s\n", pair.id, listener.Addr())
	return replicator.Run(ctx, replicator.Config{Endpoint: c.Endpoint, Region: c.Region, ID: pair.id, Address: c.Address, Bundle: bundle,
		Certificate: pair.Certificate, Store: s, Listener: listener, Fence: fenced, Logger: logger})
}

// errNotServed: the service makes what a replication server needs.
var errNotServed = errors.New("no service has been started in this directory")
