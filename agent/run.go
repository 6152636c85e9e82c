package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/ca"
	"rehost/capture"
	"rehost/wire"
)

// ErrCopied says that a state directory belongs to another machine: this one
// looks like a copy of the source server, launched elsewhere.
var ErrCopied = errors.New("this looks like a copy of the source server, launched elsewhere")

// ErrUninstalled is how [Run] ends after the service told the agent to
// uninstall itself: nothing is left.
var ErrUninstalled = errors.New("the agent has uninstalled itself, as the service told it to")

// RunOptions say how an agent runs.
type RunOptions struct {
	StateDir string       // "" is DefaultStateDir
	Machine  Machine      // whose identity is looked at
	Log      *slog.Logger // nil is slog.Default()
	Freezer  []string     // a program that freezes file systems, started where none listens (freeze.Client)

	Pins       string // the directory of all agents' pins, where it is not seen in the BPF file system of the installation
	Privileges string // what [Confine] says, for the status

	poll, report time.Duration // between questions and reports; 0 is the default
	look         time.Duration // between looks for disks that have come
	system       capture.System
	renewShare   float64
}

const (
	pollEvery   = 3 * time.Second
	reportEvery = 2 * time.Second
	lookEvery   = time.Minute
	pollMax     = time.Minute
	memoryLimit = 160 << 20 // of the Go heap; maps and stacks of the kernel side come on top, 250 MB in all
)

// An agent is one run of an installation.
type agent struct {
	dir      stateDir
	config   Config
	options  RunOptions
	system   capture.System
	bundle   *ca.Bundle // whom it believes
	identity *identity
	log      *slog.Logger
	shipper  *shipper
	now      func() time.Time

	board       board
	replication replication
	keeping     sync.Mutex // held while what the service wants is written
	limitsErr   error      // why limits were not read the last time; of requests' goroutine
	orders      chan []formgn.AgentOrder

	stop context.CancelCauseFunc
}

// Run is the agent: it replicates as the service commands until ctx ends (nil)
// or something makes it impossible to go on. The error wraps [ErrCopied] if the
// machine is not the one of the installation, [ErrUninstalled] if nothing is
// left, [ErrRunning] if another one runs; for these a service manager must not
// start the agent again. For [ErrUpgrade] it must.
func Run(ctx context.Context, o RunOptions) error {
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.poll == 0 {
		o.poll = pollEvery
	}
	if o.report == 0 {
		o.report = reportEvery
	}
	if o.look == 0 {
		o.look = lookEvery
	}
	dir := stateDir(o.StateDir)
	config, err := dir.config()
	if err != nil {
		return err
	}
	if err := dir.check(); err != nil {
		return err
	}
	if err := sameMachine(config, o.Machine); err != nil {
		return err
	}
	config.heedProxy()
	lock, err := dir.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	a, err := newAgent(dir, config, o)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

func sameMachine(config Config, m Machine) error {
	id, err := m.ID()
	if err != nil {
		return err
	}
	if id != config.MachineID {
		return fmt.Errorf("%w: the agent was installed on the machine %s and this is %s; nothing is replicated from here", ErrCopied, config.MachineID, id)
	}
	return nil
}

func newAgent(dir stateDir, config Config, o RunOptions) (*agent, error) {
	p, err := dir.pairing()
	if err != nil {
		return nil, err
	}
	bundle, err := loadBundle(dir.path(rootFile))
	if err != nil {
		return nil, err
	}
	a := &agent{dir: dir, config: config, options: o, system: o.system, bundle: bundle, now: time.Now, shipper: newShipper(), orders: make(chan []formgn.AgentOrder)}
	a.log = slog.New(a.shipper.handler(o.Log.Handler()))
	if a.identity, err = openIdentity(dir, config, bundle, a.log); err != nil {
		return nil, err
	}
	if o.renewShare > 0 {
		a.identity.share = o.renewShare
	}
	a.replication = replication{log: a.log, open: a.openCapture, dial: a.dialWire, pair: a.pair, note: a.noteFailure, keep: a.remember, end: a.endCapture, now: time.Now}
	a.replication.init(p)
	a.identity.moved = a.replication.renew
	a.board.setPairing(p)
	return a, nil
}

// run starts the agent's goroutines, and waits for them.
func (a *agent) run(ctx context.Context) error {
	ctx, a.stop = context.WithCancelCause(ctx)
	defer a.stop(nil)
	var all sync.WaitGroup
	for _, part := range []func(context.Context){a.commands, a.replication.run, a.reports, a.metrics, a.identity.renewals, a.writeStatus, a.requests, a.arrivals, a.tasks, a.lend} {
		all.Go(func() { part(ctx) })
	}
	all.Go(func() { a.shipper.run(ctx, a.sendLogs) })
	a.log.Info("agent started", "server", a.config.SourceServerID, "version", Version)
	all.Wait()
	defer a.identity.close()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errUninstall):
		return a.uninstall()
	case errors.Is(cause, errUpgrade):
		return ErrUpgrade
	}
	return nil
}

// errUninstall is the cause of the end of an agent that is to leave nothing.
var errUninstall = errors.New("told to uninstall")

// commands asks what to do, every few seconds, and less often while nobody answers.
func (a *agent) commands(ctx context.Context) {
	delay, told := time.Duration(0), false
	for {
		if pause(ctx, delay/2+rand.N(delay/2+1)) != nil {
			return
		}
		out, err := ask(ctx, a.identity, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{
			SourceServerID: a.config.SourceServerID, AgentVersion: pointer(Version), TrustDigest: pointer(a.bundle.Digest())})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if _, before, _ := a.board.read(); before == nil {
				a.log.Warn("the service cannot be asked; replication goes on as it was told last", "err", err)
			}
			a.board.setService(err, a.now())
			if a.disowned(err) {
				a.log.Warn("the service and the replication server both say that this source server is disconnected: uninstalling")
				a.stop(errUninstall)
				return
			}
			delay = min(max(2*delay, a.options.poll), pollMax)
			continue
		}
		if _, before, _ := a.board.read(); before != nil {
			a.log.Info("the service answers again")
		}
		a.board.setService(nil, a.now())
		delay = 2 * a.options.poll // halved by the jitter, on average three quarters of it
		if out.Command == formgn.AgentCommandUninstall {
			a.stop(errUninstall)
			return
		}
		a.believe(out.TrustBundle)
		a.obey(out)
		a.offer(out.Tasks)
		if !told {
			told = a.tellProperties(ctx)
		}
	}
}

// tellProperties sends the inventory, which may be another since the last start.
func (a *agent) tellProperties(ctx context.Context) bool {
	p, err := a.options.Machine.Properties()
	if err != nil {
		a.log.Warn("inventory is not complete", "err", err)
		return true
	}
	p.Disks = inventoryDisks(a.config.Disks)
	if all, err := allDevices(a.system); err == nil && !a.config.Forced {
		p.Disks = inventoryDisks(bare(all))
	}
	_, err = ask(ctx, a.identity, formgn.UpdateAgentSourcePropertiesForMgn, &formgn.UpdateAgentSourcePropertiesForMgnRequest{
		SourceServerID: a.config.SourceServerID, SourceProperties: p})
	return err == nil
}

// believe takes over whom the service says to believe, which it says when the
// agent has told that it believes others. It is on the disk first, so that an
// agent that is started again is not left behind.
func (a *agent) believe(text string) {
	if text == "" || text == a.bundle.Text() {
		return
	}
	err := a.bundle.Check(text)
	if err == nil {
		err = a.dir.write(rootFile, []byte(text), true)
	}
	if err == nil {
		err = a.bundle.Replace(text)
	}
	if err != nil {
		a.log.Warn("whom the service says to believe is not taken over", "err", err)
		return
	}
	a.log.Info("the service says whom to believe", "roots", len(a.bundle.Roots()), "bundle", a.bundle.Digest())
}

// obey passes a command on, and keeps it for a start without the service.
func (a *agent) obey(out *formgn.GetAgentCommandForMgnResponse) {
	want, _ := a.replication.wanted()
	name, throttling := want.Command, int64(0)
	if out.Command != formgn.AgentCommandNone {
		name = string(out.Command)
	}
	if out.BandwidthThrottling != nil {
		throttling = *out.BandwidthThrottling
	}
	if out.ReplicatorAddress != "" && want.Address != "" && out.ReplicatorAddress != want.Address {
		a.log.Info("the replication server is to be reached elsewhere", "address", out.ReplicatorAddress)
		a.replication.renew()
	}
	if !a.replication.command(name, throttling, out.Retry != nil && *out.Retry) {
		return
	}
	a.log.Info("the service says", "command", name, "bandwidthThrottling", throttling)
	a.remember()
}

// remember keeps what the service wants as it is now, for a start without it.
func (a *agent) remember() {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	p, _ := a.replication.wanted()
	if _, _, kept := a.board.read(); kept.Command == p.Command && kept.Throttling == p.Throttling && kept.Generation == p.Generation && same(kept, p) {
		return
	}
	a.board.setPairing(p)
	if err := a.dir.save(pairingFile, p); err != nil {
		a.log.Error("what the service said is not kept", "err", err)
	}
}

// disowned is whether it is sure that the source server was disconnected while
// the agent could not be told: both who it talks to say so, each proven by its
// certificate. One alone may be mistaken, and a key is not made anew.
func (a *agent) disowned(err error) bool {
	var refused *awsapi.CallError
	var ended *wire.RefusedError
	failure, _, _ := a.board.read()
	return errors.As(err, &refused) && refused.Operation == formgn.CreateSessionForMgn.Name && refused.Status/100 == 4 &&
		(refused.Name == awsapi.AccessDenied || refused.Name == awsapi.UnrecognizedClient) &&
		errors.As(failure, &ended) && ended.Code == wire.Disconnected
}

// pair asks the service for disks and replication server. While it does not
// answer, what it said last is as good.
func (a *agent) pair(ctx context.Context, old pairing) (pairing, error) {
	p, err := a.askPairing(ctx, old)
	if err != nil {
		if old.ready() && ctx.Err() == nil {
			return old, nil
		}
		return old, err
	}
	if !p.ready() {
		return old, errNotPaired
	}
	return p, nil
}

func same(a, b pairing) bool {
	if a.Replicator != b.Replicator || a.Address != b.Address || len(a.Disks) != len(b.Disks) {
		return false
	}
	for i := range a.Disks {
		if a.Disks[i] != b.Disks[i] {
			return false
		}
	}
	return true
}

func (a *agent) askPairing(ctx context.Context, old pairing) (pairing, error) {
	out, err := ask(ctx, a.identity, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: a.config.SourceServerID})
	if err != nil {
		return old, err
	}
	p := old
	if p.Disks, err = blockDisks(out.Disks); err != nil {
		return old, err
	}
	if p.Disks, err = a.changed(ctx, p.Disks); err != nil {
		return old, err
	}
	p.Replicator, p.Address = out.ReplicatorID, out.ReplicatorAddress
	if out.Generation != nil {
		p.Generation = max(p.Generation, uint64(*out.Generation))
	}
	return p, nil
}

// changed tells the service of disks that have grown, and of those that have
// another name or partition table now, and returns them as it then knows them.
func (a *agent) changed(ctx context.Context, disks []block.Disk) ([]block.Disk, error) {
	if len(disks) == 0 {
		return nil, nil
	}
	now, err := a.present(disks)
	if err != nil {
		return nil, err
	}
	for i, d := range now {
		if d.Size > disks[i].Size {
			a.log.Warn("a disk has grown, and is replicated anew", "disk", d.Name, "before", disks[i].Size, "now", d.Size)
		} else if d.Size < disks[i].Size {
			return nil, &capture.DiskError{Disk: d.Name, Op: "size", Err: capture.ErrShrunk}
		}
	}
	if slices.Equal(now, disks) {
		return disks, nil
	}
	return a.tellDisks(ctx, now)
}

// tellDisks says which disks are to be replicated, and returns them with the
// numbers that the service gives them.
func (a *agent) tellDisks(ctx context.Context, disks []block.Disk) ([]block.Disk, error) {
	out, err := ask(ctx, a.identity, formgn.UpdateAgentReplicationInfoForMgn, &formgn.UpdateAgentReplicationInfoForMgnRequest{
		SourceServerID: a.config.SourceServerID, Disks: replicationDisks(disks)})
	if err != nil {
		return nil, err
	}
	return blockDisks(out.Disks)
}
