// Package road puts the road's two ends together for tests and benchmarks
// without the control plane: in goes a directory, out come a replication server
// that admits one source server, and sessions to it. Nothing else is left out:
// mutual TLS with both names checked, encryption at rest, acknowledgements of
// what is durable only.
package road

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"

	"rehost/block"
	"rehost/ca"
	"rehost/capture"
	"rehost/receive"
	"rehost/store"
	"rehost/wire"
)

// ServerID is the one source server that is admitted.
const ServerID = "s-0123456789abcdef0"

const replicatorID = "i-0123456789abcdef0"

// A Receiver is a replication server on loopback, with its store in a directory.
type Receiver struct {
	Store   *store.Store
	Address string

	server *receive.Server
	served chan error
}

// Receive starts a replication server whose certificate authority, key and
// store are in dir. It must be closed.
func Receive(dir string, log *slog.Logger) (_ *Receiver, err error) {
	authority, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{})
	if err != nil {
		return nil, err
	}
	cert, err := authority.IssueReplicationServer(replicatorID)
	if err != nil {
		return nil, err
	}
	r := &Receiver{served: make(chan error, 1)}
	if r.Store, err = OpenStore(dir, store.Options{Logger: log}); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, r.Store.Close())
	}
	r.Address = l.Addr().String()
	admit := &admitAll{}
	if replica, err := r.Store.Replica(context.Background(), ServerID); err == nil {
		admit.generation.Store(replica.Generation())
	}
	r.server = receive.New(receive.Config{
		Endpoint: ca.Endpoint{Root: authority.Root(), Certificate: ca.Fixed(cert)},
		Store:    receive.Replicas(r.Store, nil), Controller: admit, Logger: log,
	})
	go func() { r.served <- r.server.Serve(l) }()
	return r, nil
}

// OpenStore opens the store of a Receiver's directory.
func OpenStore(dir string, options store.Options) (*store.Store, error) {
	keys, err := store.CreateKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		return nil, err
	}
	return store.Open(filepath.Join(dir, "store"), keys, options)
}

// Close ends the sessions, the server and the store.
func (r *Receiver) Close() error {
	return errors.Join(r.server.Close(), <-r.served, r.Store.Close())
}

// Dial begins a session of the source server with the Receiver of dir at address.
func Dial(ctx context.Context, dir, address string, disks []block.Disk) (*wire.Session, error) {
	authority, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{})
	if err != nil {
		return nil, err
	}
	key, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	request, err := ca.NewRequest(key)
	if err != nil {
		return nil, err
	}
	leaf, err := authority.IssueAgent(request, ServerID)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Certificate(leaf, key)
	if err != nil {
		return nil, err
	}
	peer := ca.Endpoint{Root: authority.Root(), Certificate: ca.Fixed(cert)}
	return wire.Dial(ctx, wire.Config{Address: address, Server: ServerID, Disks: disks,
		TLS: peer.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: replicatorID})})
}

// Disks resolves device paths and numbers them as a service would.
func Disks(paths ...string) ([]block.Disk, error) {
	devices, err := capture.Resolve(paths)
	if err != nil {
		return nil, err
	}
	if len(devices) != len(paths) {
		return nil, fmt.Errorf("%v are %d disks", paths, len(devices))
	}
	disks := make([]block.Disk, len(devices))
	for i, d := range devices {
		disks[i] = d.Disk
		disks[i].ID = block.DiskID(i)
	}
	return disks, nil
}

// admitAll is a control plane for one source server, whatever its disks.
type admitAll struct{ generation atomic.Uint64 }

func (*admitAll) Authenticated(context.Context, receive.Agent) error { return nil }

func (a *admitAll) Connected(_ context.Context, _ receive.Agent, hello wire.Hello) (receive.Grant, error) {
	return receive.Grant{Generation: a.generation.Add(1), Disks: hello.Disks}, nil
}
func (*admitAll) Disconnected(context.Context, receive.Agent, error)           {}
func (*admitAll) Progress(context.Context, receive.Agent, receive.Progress)    {}
func (*admitAll) Unhealthy(context.Context, receive.Agent, *wire.RefusedError) {}
