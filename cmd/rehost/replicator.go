package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"rehost/ca"
	"rehost/replicator"
)

// ReplicatorCmd is `rehost replicator`: a replication server as a process of its
// own. Its data directory has the certificate that serve made for it
// (replicator.pem) and ca.pem; the store is made there.
type ReplicatorCmd struct {
	Endpoint string `help:"Address of the service." required:"" placeholder:"URL"`
	Data     string `help:"Directory with replicator.pem, ca.pem, and the store." default:"/var/lib/rehost" placeholder:"DIR"`
	Listen   string `help:"Address that agents replicate to." default:":1500" placeholder:"HOST:PORT"`
	Address  string `help:"What agents are told to connect to." required:"" placeholder:"HOST:PORT"`
	Region   string `help:"Region of the service." default:"us-east-1"`
	LogLevel string `help:"What is logged: debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
}

// Run serves until ctx ends.
func (c *ReplicatorCmd) Run(ctx context.Context, log *logOutput, _ io.Writer) (err error) {
	logger, err := log.logger(c.LogLevel)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(c.Data, "ca.pem"))
	if err != nil {
		return err
	}
	roots, err := ca.DecodeCertificates(text)
	if err != nil {
		return fmt.Errorf("%s/ca.pem: %w", c.Data, err)
	}
	id, pair, err := replicatorPair(filepath.Join(c.Data, "replicator.pem"), nil)
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
	fmt.Fprintf(log.w, "rehost: ready: replication server %s on %s\n", id, listener.Addr())
	return replicator.Run(ctx, replicator.Config{Endpoint: c.Endpoint, Region: c.Region, ID: id, Address: c.Address, Root: roots[0],
		Certificate: pair, Store: s, Listener: listener, Logger: logger})
}
