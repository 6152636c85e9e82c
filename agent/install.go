package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/ca"
	"rehost/capture"
	"rehost/capture/bpf"
	"rehost/capture/freeze"
	"rehost/privilege"
	"rehost/tunnel"
)

// A Prompter asks whoever installs for what is missing.
type Prompter interface {
	Line(question string) (string, error)
	Secret(question string) (string, error) // read without echo
}

// InstallOptions are the parameters of an installation, named as MGN's
// installer names them.
type InstallOptions struct {
	StateDir    string // "" is DefaultStateDir
	Endpoint    string // host, host:port or https URL
	Region      string
	Credentials Credentials // used for this installation and written nowhere

	CA            string // file with the service's certificate authority
	CAFingerprint string // its SHA-256, if it is to be fetched from the endpoint

	Prompt         Prompter // nil: nothing is asked
	Devices        []string
	ForceVolumes   bool // exactly Devices, nothing is detected
	Tags           map[string]string
	UserProvidedID string
	NoReplication  bool
	AutoReplicate  bool          // disks that come later are replicated too
	CopyFree       bool          // copy also what no file system has in use
	Service        string        // one of the Service constants; "" is what the machine has
	VPN            bool          // the agent goes through the service's VPN
	VPNInvitation  string        // file: this installation does, too
	BPFFS          string        // where the BPF file system is mounted; "" is /sys/fs/bpf
	Limits         Limits        // what the agent holds itself to
	NoFreeze       bool          // never freeze file systems
	FreezeAfter    time.Duration // so long without a point; 0 is capture.DefaultFreezeAfter
	Proxy          Proxy         // what the agent is to use, as this installation does by its environment
	AsRoot         bool          // the agent stays root; not with systemd

	Machine Machine
	System  capture.System
	Log     *slog.Logger // nil is slog.Default()
	Out     io.Writer    // what people are told; nil is nothing
}

// Installed is what an installation made, or found.
type Installed struct {
	SourceServerID string
	ARN            string
	New            bool // false: the service knew the machine already
	Disks          []block.Disk
	Service        string
}

// Install registers this machine and leaves a running agent. It may be run
// again: the machine stays the same source server. When it fails, nothing new
// is left on the machine.
func Install(ctx context.Context, o InstallOptions) (_ *Installed, err error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if err := o.complete(); err != nil {
		return nil, err
	}
	var dial dialer
	if o.VPNInvitation != "" {
		invited, err := readInvitation(o.VPNInvitation, o.Log)
		if err != nil {
			return nil, err
		}
		defer invited.Close()
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return invited.Dial(ctx, tunnel.APIPort) }
	}
	bundle, err := findBundle(ctx, o.Endpoint, o.CA, o.CAFingerprint, dial)
	if err != nil {
		return nil, err
	}
	if err := stateDir(o.StateDir).room(); err != nil { // before the service knows of anything
		return nil, err
	}
	disks, err := o.disks()
	if err != nil {
		return nil, err
	}
	o.probe(disks)
	c := newClient(o.Endpoint, o.Region, ca.Endpoint{Bundle: bundle, Certificate: previous(stateDir(o.StateDir), bundle)}, aws.CredentialsProviderFunc(o.Credentials.fixed), 4, dial)
	defer c.Close()
	role, err := awsapi.Call(ctx, c, formgn.VerifyClientRoleForMgn, &formgn.VerifyClientRoleForMgnRequest{})
	if err != nil {
		return nil, err
	}
	if o.VPN && role.Tunnel == nil {
		return nil, errNoVPN
	}
	config, registered, err := o.register(ctx, c, disks)
	if err != nil {
		return nil, err
	}
	o.say("Registered as source server %s.", config.SourceServerID)
	pair, way, err := o.enrol(ctx, c, config.SourceServerID)
	if err != nil {
		return nil, err
	}
	if err := o.settle(ctx, config, bundle, pair, way); err != nil {
		return nil, err
	}
	out := &Installed{SourceServerID: config.SourceServerID, ARN: registered.Arn, New: registered.IsNew != nil && *registered.IsNew, Service: config.Service}
	out.Disks, err = blockDisks(registered.Disks)
	return out, err
}

// previous is the certificate of an installation from before, nil if there is
// none that has not run out, or none of the authority that is in force here. It
// shows that this is the machine of an agent that may be running.
func previous(dir stateDir, bundle *ca.Bundle) func() (*tls.Certificate, error) {
	pair, err := ca.LoadPair(dir.path(pairFile))
	if err != nil || dir.check() != nil || !(ca.Endpoint{Bundle: bundle}).Believes(pair) {
		return nil
	}
	return ca.Fixed(pair)
}

func (o *InstallOptions) say(format string, args ...any) {
	if o.Out != nil {
		fmt.Fprintf(o.Out, format+"\n", args...)
	}
}

// complete asks for what is missing, fills in defaults and checks the rest.
func (o *InstallOptions) complete() (err error) {
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.VPN = o.VPN || o.VPNInvitation != ""
	if o.Service == "" {
		o.Service = usualService()
	}
	if o.FreezeAfter != 0 && o.FreezeAfter < freeze.DefaultEvery {
		return fmt.Errorf("--freeze-after must be %v or more; with --no-freeze nothing is ever frozen", freeze.DefaultEvery)
	}
	if o.AsRoot && o.Service == ServiceSystemd {
		return errors.New("--as-root is not for machines with systemd, which starts the agent with what it needs")
	}
	if o.ForceVolumes && o.Prompt != nil {
		return errors.New("--force-volumes is only for an installation with --no-prompt")
	}
	if o.ForceVolumes && o.AutoReplicate {
		return errors.New("--auto-replicate-new-disks looks for disks, and with --force-volumes nothing is looked for: give one of them")
	}
	if err := o.Limits.Validate(); err != nil {
		return err
	}
	if o.ForceVolumes && len(o.Devices) == 0 {
		return errors.New("--force-volumes takes the disks of --devices and detects none: list them, the root disk too")
	}
	for _, q := range []struct {
		to       *string
		flag     string
		question string
		secret   bool
		wanted   bool
	}{
		{&o.Endpoint, "--endpoint", "Address of the service (host or host:port)", false, true},
		{&o.Region, "--region", "Region of the service", false, true},
		{&o.Credentials.AccessKeyID, "--aws-access-key-id", "Access key id", false, true},
		{&o.Credentials.SecretAccessKey, "--aws-secret-access-key", "Secret access key", true, true},
		{&o.Credentials.SessionToken, "--aws-session-token", "Session token", true, false},
	} {
		if q.to == &o.Credentials.SessionToken {
			q.wanted = strings.HasPrefix(o.Credentials.AccessKeyID, "ASIA") // temporary keys have one
		}
		if *q.to != "" || !q.wanted {
			continue
		}
		if o.Prompt == nil {
			return fmt.Errorf("%s is missing", q.flag)
		}
		ask := o.Prompt.Line
		if q.secret {
			ask = o.Prompt.Secret
		}
		if *q.to, err = ask(q.question); err != nil {
			return fmt.Errorf("ask for %s: %w", q.flag, err)
		}
		if *q.to = strings.TrimSpace(*q.to); *q.to == "" {
			return fmt.Errorf("%s is missing", q.flag)
		}
	}
	if o.CA == "" && o.CAFingerprint == "" && o.Prompt != nil {
		if o.CAFingerprint, err = o.Prompt.Line("SHA-256 fingerprint of the service's certificate authority, as it printed it"); err != nil {
			return fmt.Errorf("ask for --ca-fingerprint: %w", err)
		}
	}
	o.CAFingerprint = normalFingerprint(o.CAFingerprint)
	o.Endpoint, err = ParseEndpoint(o.Endpoint)
	return err
}

// normalFingerprint is the form that [ca.Fingerprint] has.
func normalFingerprint(text string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimSpace(text), ":", ""))
}

// disks selects what is replicated, asking if it may.
func (o *InstallOptions) disks() ([]Device, error) {
	if o.Prompt != nil && len(o.Devices) == 0 {
		all, err := allDevices(o.System)
		if err != nil {
			return nil, err
		}
		o.say("Disks of this machine:")
		for _, d := range all {
			note := ""
			if d.Boot {
				note = "  (root, always replicated)"
			}
			if d.Unfit != "" {
				note += "  (cannot be replicated: " + d.Unfit + ")"
			}
			o.say("  %-14s %10s%s", d.Name, humanBytes(d.Size), note)
		}
		answer, err := o.Prompt.Line("Disks to replicate, separated by commas (Enter for all)")
		if err != nil {
			return nil, fmt.Errorf("ask for --devices: %w", err)
		}
		o.Devices = strings.FieldsFunc(answer, func(r rune) bool { return r == ',' || r == ' ' })
	}
	disks, rootless, err := selectDevices(o.System, o.Devices, o.ForceVolumes)
	if err != nil {
		return nil, err
	}
	if rootless {
		o.say("WARNING: the root disk is not among the disks listed. %s counts as the boot disk: nothing will start from the replica unless it can.", disks[0].Name)
	}
	if others := apart(o.System, disks); len(others) > 0 {
		o.say("WARNING: what lies on these disks lies on %s too, which is not replicated: elsewhere it will be incomplete.", strings.Join(others, ", "))
	}
	return disks, nil
}

// probe says how changes will be found, before anything is decided.
func (o *InstallOptions) probe(disks []Device) {
	for _, d := range disks {
		o.say("Replicates %s, %s.", d.Name, humanBytes(d.Size))
	}
	if err := bpf.Supported(); err != nil {
		o.say("This kernel cannot track changes (%v): the disks will be read and compared again and again instead.", err)
		return
	}
	o.say("This kernel tracks changes (eBPF): no module, no restart.")
}

func (o *InstallOptions) register(ctx context.Context, c *awsapi.Client, disks []Device) (config Config, out *formgn.RegisterAgentForMgnResponse, err error) {
	properties, err := o.Machine.Properties()
	if err != nil {
		return config, nil, err
	}
	properties.Disks = inventoryDisks(disks)
	var known []Device
	if !o.ForceVolumes {
		all, err := allDevices(o.System)
		if err != nil {
			return config, nil, err
		}
		known = bare(all)
		properties.Disks = inventoryDisks(known)
	}
	in := &formgn.RegisterAgentForMgnRequest{
		SourceProperties: properties, ReplicatedDisks: inventoryDisks(disks),
		NoReplication: pointer(o.NoReplication), AgentVersion: pointer(Version), Tags: o.Tags,
	}
	if o.UserProvidedID != "" {
		in.UserProvidedID = &o.UserProvidedID
	}
	if out, err = awsapi.Call(ctx, c, formgn.RegisterAgentForMgn, in); err != nil {
		return config, nil, err
	}
	return Config{
		Version: stateVersion, Endpoint: o.Endpoint, Region: o.Region, SourceServerID: out.SourceServerID,
		MachineID: *properties.MachineID, Disks: disks, Known: known, AutoReplicate: o.AutoReplicate, Forced: o.ForceVolumes, NoReplication: o.NoReplication, CopyFree: o.CopyFree, VPN: o.VPN, NoFreeze: o.NoFreeze, FreezeAfter: o.FreezeAfter.Seconds(), Service: o.Service, BPFFS: o.BPFFS, Proxy: o.Proxy, Installed: time.Now().UTC(),
	}, out, nil
}

// enrol makes the agent's key, which never leaves this machine, and has it
// certified; with a VPN, the key of that too, and tries it: a port that is
// blocked is to be found out before anything is written. Way is nil without.
func (o *InstallOptions) enrol(ctx context.Context, c *awsapi.Client, server string) (pair tls.Certificate, way *vpnState, err error) {
	key, text, err := newRequest()
	if err != nil {
		return pair, nil, err
	}
	in := &formgn.IssueClientCertificateForMgnRequest{SourceServerID: server, CertificateSigningRequest: text}
	var secret tunnel.Key
	if o.VPN {
		secret = tunnel.NewKey()
		in.TunnelKey = pointer(secret.Public().String())
	}
	out, err := awsapi.Call(ctx, c, formgn.IssueClientCertificateForMgn, in)
	if err != nil {
		return pair, nil, err
	}
	if pair, err = issued(out, key, server); err != nil || !o.VPN {
		return pair, nil, err
	}
	state, err := newVPNState(secret, out.Tunnel)
	if err != nil {
		return pair, nil, err
	}
	client, err := state.open(o.Log)
	if err != nil {
		return pair, nil, err
	}
	defer client.Close()
	conn, err := client.Dial(ctx, tunnel.APIPort)
	if err != nil {
		return pair, nil, fmt.Errorf("try the VPN: %w", err)
	}
	o.say("The VPN leads to %s.", state.Endpoint)
	return pair, &state, conn.Close()
}

// settle writes the state, the configuration last since it is what makes an
// installation one, and starts the agent. An agent that ran before ends first.
func (o *InstallOptions) settle(ctx context.Context, config Config, bundle *ca.Bundle, pair tls.Certificate, way *vpnState) (err error) {
	dir := stateDir(o.StateDir)
	account, made, err := o.account()
	if err != nil {
		return err
	}
	old, oldErr := dir.config()
	defer func() {
		if err == nil || oldErr == nil {
			return
		}
		err = errors.Join(err, removeService(config.Service, true), stopRunning(context.WithoutCancel(ctx), dir), unpin(dir.pins(config)), dir.wipe()) // nothing was here: nothing stays
		if made {
			err = errors.Join(err, dir.removeTraces(filepath.Dir(filepath.Dir(dir.pins(config)))))
		}
	}()
	if err = dir.create(); err != nil {
		return err
	}
	if oldErr == nil {
		if err := removeService(old.Service, true); err != nil {
			o.Log.Warn("the old service is not removed", "err", err)
		}
	}
	if err := stopRunning(ctx, dir); err != nil {
		return err
	}
	if oldErr == nil && dir.pins(old) != dir.pins(config) {
		if err := unpin(dir.pins(old)); err != nil {
			o.Log.Warn("tracking of the old installation is not ended", "err", err)
		}
	}
	if err := dir.change(account); err != nil {
		return err
	}
	lock, err := dir.lock() // nobody starts it meanwhile
	if err != nil {
		return err
	}
	keepVPN := func() error { return dropVPN(dir) }
	if way != nil {
		keepVPN = func() error { return replaceVPN(dir, *way) }
	}
	err = dir.as(func() error {
		return errors.Join(
			dir.write(rootFile, []byte(bundle.Text()), true),
			keepVPN(),
			replacePair(dir, pair),
			dir.save(pairingFile, pairing{Version: stateVersion}),
			dir.setLimits(o.Limits),
			dir.save(configFile, config),
		)
	})
	program := ""
	if err == nil {
		program, err = copyProgram(dir)
	}
	if err = errors.Join(err, lock.Close()); err != nil {
		return err
	}
	if err := startService(ctx, config, program, dir); err != nil {
		return err
	}
	o.explain(config.Service, program)
	return nil
}

// account is whom the agent will run as; made is whether it was made for it.
func (o *InstallOptions) account() (_ privilege.Account, made bool, err error) {
	if o.AsRoot {
		return privilege.Account{Name: "root"}, false, nil
	}
	return privilege.Accounts{}.Create(DefaultUser, userComment)
}

func (o *InstallOptions) explain(service, program string) {
	switch service {
	case ServiceSystemd:
		o.say("The agent runs as %s and starts with the machine.", unitName)
	case ServiceDetached:
		o.say("The agent runs in the background. No systemd was found: have your init system run at boot\n  %s run --state-dir %s", program, o.StateDir)
	case ServiceNone:
		o.say("Run the agent with\n  %s run --state-dir %s", program, o.StateDir)
	}
}
