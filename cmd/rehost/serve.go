package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"rehost/audit"
	"rehost/awsapi"
	"rehost/awsapi/ec2"
	"rehost/awsapi/formgn"
	"rehost/awsapi/iam"
	"rehost/awsapi/mgn"
	"rehost/awsapi/sts"
	"rehost/ca"
	"rehost/control"
	"rehost/export"
	"rehost/fence"
	"rehost/identity"
	"rehost/identity/api"
	"rehost/identity/oidc"
	"rehost/launch"
	"rehost/replicator"
	"rehost/store"
)

// ServeCmd is `rehost serve`: the service, with a replication server inside.
type ServeCmd struct {
	Data              string   `help:"Directory of everything that is kept." default:"/var/lib/rehost" placeholder:"DIR"`
	Listen            string   `help:"Address of the API." default:"127.0.0.1:8443" placeholder:"HOST:PORT"`
	ReplicationListen string   `help:"Address that agents replicate to." default:":1500" placeholder:"HOST:PORT"`
	Region            string   `help:"Region that clients have to name." default:"us-east-1"`
	Advertise         []string `help:"Names and addresses of this machine, for certificates and agents; the first is told to agents. By default its host name and addresses." placeholder:"HOST"`
	LaunchForward     []int    `help:"TCP ports of every launched instance that are to be reached on this machine's loopback; rehost instance ls says where." placeholder:"PORT"`
	SealingKey        string   `help:"File with the sealing key, where it lives elsewhere than in the directory, as a systemd credential does. By default sealing.key in the directory." placeholder:"FILE"`
	TLSCertificate    string   `help:"Certificate and chain (PEM) that the API shows to everyone but agents and replication servers; taken over when the file changes, and on SIGHUP." name:"tls-certificate" placeholder:"FILE"`
	TLSKey            string   `help:"Private key (PEM) of --tls-certificate." name:"tls-key" placeholder:"FILE"`
	VPN               string   `help:"Open a WireGuard port for agents installed with --vpn; HOST is what they are told, by default the first of --advertise." name:"vpn" placeholder:"[HOST]:PORT"`
	NoReplicator      bool     `help:"Run no replication server: rehost replicator is started beside, on the same --data."`
	AgentDir          string   `help:"Directory of the agent's programs that source servers download, with their sums and signature (make release). By default that of this program, or /usr/lib/rehost." placeholder:"DIR"`
	AuditStdout       bool     `help:"Write the records of the audit log to standard output, too."`
	AuditFileSize     int64    `help:"Size of one file of the audit log." default:"67108864" placeholder:"BYTES"`
	AuditFiles        int      `help:"How many files of the audit log are kept." default:"9" placeholder:"N"`
	Metrics           string   `help:"Loopback address that shows what is known of source servers at /metrics, in the text format of Prometheus. Whoever is on this machine can read it." placeholder:"HOST:PORT"`
	LogLevel          string   `help:"What is logged: debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
	PrefixLists       string   `help:"File with prefix lists, which rules of security groups can name; in force as soon as it changes." placeholder:"FILE"`
	RateFlags         `embed:""`
	FenceFlags        `embed:""`

	now func() time.Time // of accounts, policies and signatures; nil is time.Now. Tests move it
}

// Run serves until ctx ends.
func (c *ServeCmd) Run(ctx context.Context, stdout io.Writer, log *logOutput) (err error) {
	logger, err := log.logger(c.LogLevel)
	if err != nil {
		return err
	}
	var closers []func() error
	defer func() {
		for i := len(closers) - 1; i >= 0; i-- {
			err = errors.Join(err, closers[i]())
		}
	}()
	s, err := c.open(ctx, logger, stdout, &closers)
	if err != nil {
		return err
	}
	return s.run(ctx, stdout, log.w)
}

// A served is what serve has opened, in the order in which one part needs another.
type served struct {
	cmd       *ServeCmd
	log       *slog.Logger
	hosts     hosts
	authority *ca.Authority
	service   *control.Service
	api       *awsapi.Server
	store     *store.Store
	listener  *fence.Listener // of the API
	lists     *listFile       // of prefix lists; nil without
	incoming  net.Listener    // of replication; nil without
	measures  net.Listener    // of metrics; nil without
	first     bool            // this start has made the keys
	audit     *audit.Log
	agents    *agentFiles
	outside   *outside  // the certificate for strangers; nil without
	paired    *pairFile // the replication server's certificate
	vpn       *vpn      // nil without
}

func (c *ServeCmd) open(ctx context.Context, log *slog.Logger, stdout io.Writer, closers *[]func() error) (*served, error) {
	keep := func(f func() error) { *closers = append(*closers, f) }
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return nil, err
	}
	c.Data = data
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, err
	}
	if err := private(c.Data); err != nil {
		return nil, err
	}
	unlock, err := lockDir(c.Data)
	if err != nil {
		return nil, err
	}
	keep(unlock)
	if c.PrefixLists != "" {
		if c.PrefixLists, err = filepath.Abs(c.PrefixLists); err != nil {
			return nil, err
		}
	}
	s := &served{cmd: c, log: log, agents: &agentFiles{dir: c.AgentDir, log: log}}
	if c.AgentDir == "" {
		s.agents.dir = findAgentDir()
	}
	if s.hosts, err = findHosts(c.Advertise); err != nil {
		return nil, err
	}
	key, err := loadSealingKey(c.Data, c.SealingKey)
	if err != nil {
		return nil, err
	}
	if err := s.openTrust(key); err != nil {
		return nil, err
	}
	if c.VPN != "" {
		if s.vpn, err = openVPN(c.Data, c.VPN, s.hosts, log); err != nil {
			return nil, err
		}
		keep(s.vpn.hub.Close)
	}
	db, err := control.OpenDatabase(ctx, filepath.Join(c.Data, "control.db"))
	if err != nil {
		return nil, err
	}
	keep(db.Close)
	directory, err := c.identities(ctx, db, s, key)
	if err != nil {
		return nil, err
	}
	if err := s.openAudit(directory.Account().ID, stdout, keep); err != nil {
		return nil, err
	}
	if s.store, err = openStore(c.Data, log); err != nil {
		return nil, err
	}
	keep(s.store.Close)
	socket := filepath.Join(c.Data, "run", "nbd.sock")
	exporter := export.New(export.Options{Logger: log})
	keep(exporter.Close)
	target, err := openTarget(filepath.Join(c.Data, "instances"), log)
	if err != nil {
		return nil, err
	}
	keep(target.Close)
	if err := c.control(ctx, s, db, directory, exporter, socket, target); err != nil {
		return nil, err
	}
	keep(s.service.Close)
	if err := exporter.ListenUnix(socket); err != nil { // now that instances find what they read
		return nil, err
	}
	return s, s.listen(keep)
}

// openAudit opens the log that gets a record of every call and of what happens.
func (s *served) openAudit(account string, stdout io.Writer, keep func(func() error)) (err error) {
	o := audit.Options{Region: s.cmd.Region, Account: account, FileSize: s.cmd.AuditFileSize, Files: s.cmd.AuditFiles, Logger: s.log}
	if s.cmd.AuditStdout {
		o.Mirror = stdout
	}
	if s.audit, err = openAudit(s.cmd.Data, s.cmd.SealingKey, o); err != nil {
		return err
	}
	keep(s.audit.Close)
	started := audit.Event("ServiceStarted", map[string]any{"firstStart": s.first})
	keep(func() error { return s.audit.Append(audit.Event("ServiceStopped", nil)) })
	return s.audit.Append(started)
}

func openDirectory(ctx context.Context, db *control.Database, key *identity.SealingKey, now func() time.Time) (*identity.Directory, error) {
	return identity.Open(ctx, identity.Options{Store: db.Identities(), Key: key, Now: now})
}

func (c *ServeCmd) control(ctx context.Context, s *served, db *control.Database, directory *identity.Directory, exporter *export.Server, socket string, target launch.Target) (err error) {
	var lists []control.PrefixList
	if c.PrefixLists != "" {
		s.lists = &listFile{path: c.PrefixLists}
		if lists, err = s.lists.read(); err != nil {
			return err
		}
	}
	options := control.Options{PrefixLists: lists, APIPort: portOf(c.Listen), Database: db, Alone: true, Account: directory.Account().ID, Region: c.Region,
		Replicas: replicas{s.store}, Exporter: exporter, Socket: socket, Target: target, Forwards: c.LaunchForward,
		Authority: s.authority, Sessions: sessions{directory}, Events: events{s.audit}, Bundles: filepath.Join(c.Data, supportDir), Release: s.agents.version, Logger: s.log}
	if s.vpn != nil {
		options.Tunnel, options.TunnelEndpoint = s.vpn.hub, s.vpn.endpoint
	}
	if s.service, err = control.Open(ctx, options); err != nil {
		return err
	}
	s.api = awsapi.New(awsapi.Options{Identity: directory, Region: c.Region, Log: s.log, Audit: s.audit, Now: c.now, VerifyPeer: control.VerifyPeer,
		ResourceTags: s.service.ResourceTags, Limits: c.limits()}, mgn.Service, formgn.Service, iam.Service, sts.Service, ec2.Service)
	s.service.Register(s.api)
	s.service.RegisterGroups(s.api)
	api.Register(s.api, directory, oidc.New(nil))
	return nil
}

func (s *served) listen(keep func(func() error)) (err error) {
	if s.listener, err = s.cmd.guarded(s.cmd.Listen, fence.Options{Logger: s.log}); err != nil {
		return err
	}
	keep(s.listener.Close)
	if err := publish(filepath.Join(s.cmd.Data, endpointFile), []byte(s.loopback()+"\n")); err != nil {
		return err
	}
	if s.cmd.Metrics != "" {
		if s.measures, err = listenMetrics(s.cmd.Metrics); err != nil {
			return err
		}
		keep(ignoreClosed(s.measures.Close))
	}
	// Its certificate is made here also for rehost replicator.
	if s.paired, err = openPair(filepath.Join(s.cmd.Data, "replicator.pem"), s.authority); err != nil {
		return err
	}
	if s.cmd.NoReplicator {
		return nil
	}
	unlock, err := lockReplicator(s.cmd.Data)
	if err != nil {
		return err
	}
	keep(unlock)
	if s.incoming, err = net.Listen("tcp", s.cmd.ReplicationListen); err != nil {
		return err
	}
	keep(ignoreClosed(s.incoming.Close))
	return nil
}

func ignoreClosed(f func() error) func() error {
	return func() error {
		if err := f(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// run serves until ctx ends or a part fails. The API stops last, so that the
// replication server can tell how its sessions ended.
func (s *served) run(ctx context.Context, stdout, stderr io.Writer) error {
	mux := http.NewServeMux()
	mux.Handle("/", s.api)
	mux.Handle("GET /agent/", s.api.Strangers(s.agents))
	mux.Handle("GET /install.sh", s.api.Strangers(http.HandlerFunc(s.serveScript)))
	config, err := s.tlsConfig()
	if err != nil {
		return err
	}
	server := newAPIServer(mux, s.log, apiTimeouts)
	listeners := []net.Listener{s.listener}
	if s.vpn != nil {
		listeners = append(listeners, s.vpn.api)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var parts, api sync.WaitGroup
	for _, l := range listeners {
		l = tls.NewListener(limit(l, maxConnections, maxStrangers, s.cmd.StrangerConnections), config)
		api.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				cancel(err)
			}
		})
	}
	if s.measures != nil {
		parts.Go(func() { cancel(s.showMetrics(ctx)) })
	}
	parts.Go(func() { s.service.Run(ctx) })
	if s.incoming != nil {
		parts.Go(func() { cancel(s.replicate(ctx)) })
	} else if s.vpn != nil {
		parts.Go(func() { s.vpn.carry(ctx, func() string { return s.service.ReplicatorAddress(s.paired.id) }, s.log) })
	}
	parts.Go(func() { s.tendTrust(ctx) })
	parts.Go(func() { s.guard(ctx) })
	if s.lists != nil {
		parts.Go(func() { s.tendLists(ctx) })
	}
	s.greet(stdout, stderr)
	<-ctx.Done()
	parts.Wait()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	err = server.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	api.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

// replicate runs the replication server inside.
func (s *served) replicate(ctx context.Context) error {
	id := s.paired.id
	_, port, err := net.SplitHostPort(s.incoming.Addr().String())
	if err != nil {
		return err
	}
	fenced, err := s.cmd.options(s.incoming, fence.Options{})
	if err != nil {
		return err
	}
	config := replicator.Config{Endpoint: s.loopback(), Region: s.cmd.Region, ID: id,
		Address: net.JoinHostPort(s.hosts.first, port), Bundle: s.authority.Bundle(), Certificate: s.paired.Certificate, Store: s.store, Listener: s.incoming,
		Fence: fenced, Logger: s.log.With("replicator", id)}
	if s.vpn != nil {
		config.Inside = s.vpn.replication
	}
	err = replicator.Run(ctx, config)
	if err == nil {
		err = context.Canceled // it ends with ctx only
	}
	return err
}

// loopback is the address of the API for who is on this machine.
func (s *served) loopback() string {
	host, port, _ := net.SplitHostPort(s.listener.Addr().String()) // of TCP
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, port)
}

// private refuses a directory into which others could put something.
func private(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o022 != 0 {
		err = fmt.Errorf("others may write into %s (mode %v): chmod 700 it, and make sure that nobody has", dir, info.Mode().Perm())
	}
	return err
}

// lockDir keeps a second process out of the directory.
func lockDir(dir string) (unlock func() error, err error) { return lockFile(dir, "lock") }

// lockReplicator keeps a second replication server out of the directory, which
// is not the service: both may be there, as two processes.
func lockReplicator(dir string) (unlock func() error, err error) {
	return lockFile(dir, "replicator.lock")
}

func lockFile(dir, name string) (unlock func() error, err error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, errInUse)
	}
	return f.Close, nil
}

var errInUse = errors.New("another rehost process uses this directory")
