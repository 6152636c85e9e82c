package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rehost/agent"
)

type installCommand struct {
	Region             string `help:"Region of the service." env:"AWS_REGION,AWS_DEFAULT_REGION" placeholder:"NAME"`
	AWSAccessKeyID     string `name:"aws-access-key-id" help:"Access key of who installs." env:"AWS_ACCESS_KEY_ID" placeholder:"ID"`
	AWSSecretAccessKey string `name:"aws-secret-access-key" help:"Its secret. On the command line others on this machine can see it: prefer the environment or the prompt." env:"AWS_SECRET_ACCESS_KEY" placeholder:"SECRET"`
	AWSSessionToken    string `name:"aws-session-token" help:"Its token, if the key is temporary (ASIA...)." env:"AWS_SESSION_TOKEN" placeholder:"TOKEN"`
	Endpoint           string `help:"The service: host, host:port or https URL. Port 8443 unless given." env:"AWS_ENDPOINT_URL_MGN,AWS_ENDPOINT_URL" placeholder:"HOST"`

	CA            string `name:"ca" help:"File with the service's certificate authority (ca.pem)." type:"existingfile" placeholder:"FILE"`
	CAFingerprint string `name:"ca-fingerprint" help:"SHA-256 of the authority, which is then fetched from the service." placeholder:"HEX"`

	NoPrompt       bool              `help:"Ask nothing; what is missing is an error."`
	Devices        []string          `help:"Disks to replicate; the root disk always is. A partition stands for its disk. Default: all." placeholder:"/dev/sda,/dev/sdb"`
	ForceVolumes   bool              `help:"With --no-prompt: exactly the disks listed, nothing is detected; list the root disk too."`
	AutoReplicate  bool              `name:"auto-replicate-new-disks" help:"Replicate disks that are attached later, too."`
	Tags           map[string]string `help:"Tags of a new source server." placeholder:"KEY=VALUE"`
	UserProvidedID string            `name:"user-provided-id" help:"An id of your own for this machine; it cannot be changed later." placeholder:"ID"`
	NoReplication  bool              `help:"Install only; replication is started by the service later."`

	NoFreeze    bool          `help:"Never freeze file systems. Without: where programs write faster than the disks can be read, for two seconds at most."`
	FreezeAfter time.Duration `help:"Freeze after so long without a recovery point." default:"60s"`

	NoSkipFreeSpace bool `help:"Copy also what no file system has in use: freed blocks, swap, gaps between partitions."`

	CPULimit float64 `name:"cpu-limit" help:"What the first copy and comparing may take, in percent of one processor; 0 is no limit. rehost-agent limit changes it." placeholder:"PERCENT"`

	VPN           bool   `name:"vpn" help:"Let the agent go through the service's VPN (WireGuard), for which one UDP port is enough; only this installation needs port 8443 itself."`
	VPNInvitation string `name:"vpn-invitation" help:"File with what rehost vpn invite has printed: nothing but the VPN is needed, now or later." type:"existingfile" placeholder:"FILE"`

	AsRoot    bool   `hidden:"" help:"Let the agent stay root."`
	NoService bool   `help:"Start nothing; say how the agent is run."`
	StateDir  string `help:"Directory of the installation." default:"${state}" type:"path"`
	BPFFS     string `name:"bpffs" help:"Where the BPF file system is mounted, in which tracking outlives the agent. Default: /sys/fs/bpf." type:"path" placeholder:"DIR"`
}

// Help implements [kong.HelpProvider].
func (c *installCommand) Help() string {
	return "The key is used for this installation and stored nowhere. What is not given is asked for. " +
		"With systemd the agent becomes a service; without it a process of its own session."
}

// Run implements the command.
func (c *installCommand) Run(ctx context.Context) error {
	o := agent.InstallOptions{
		StateDir: c.StateDir, Endpoint: c.Endpoint, Region: c.Region,
		Credentials: agent.Credentials{AccessKeyID: c.AWSAccessKeyID, SecretAccessKey: c.AWSSecretAccessKey, SessionToken: c.AWSSessionToken},
		CA:          c.CA, CAFingerprint: c.CAFingerprint,
		Devices: c.Devices, ForceVolumes: c.ForceVolumes, Tags: c.Tags,
		UserProvidedID: c.UserProvidedID, NoReplication: c.NoReplication, AutoReplicate: c.AutoReplicate, CopyFree: c.NoSkipFreeSpace, VPN: c.VPN, VPNInvitation: c.VPNInvitation, NoFreeze: c.NoFreeze, FreezeAfter: c.FreezeAfter, BPFFS: c.BPFFS, AsRoot: c.AsRoot, Proxy: agent.EnvironmentProxy(), Limits: agent.Limits{CPU: c.CPULimit}, Out: os.Stdout,
	}
	if c.NoService {
		o.Service = agent.ServiceNone
	}
	if !c.NoPrompt {
		o.Prompt = &terminal{in: bufio.NewReader(os.Stdin)}
	}
	if c.AWSSecretAccessKey != "" && os.Getenv("AWS_SECRET_ACCESS_KEY") != c.AWSSecretAccessKey {
		fmt.Fprintln(os.Stderr, "warning: the secret access key was on the command line, where others on this machine can see it")
	}
	done, err := agent.Install(ctx, o)
	if err != nil {
		return err
	}
	if !done.New {
		fmt.Println("The service knew this machine already: it goes on as the same source server.")
	}
	fmt.Printf("The agent is installed. Delete or disable the access key if nothing else needs it; rehost-agent status shows the progress.\n")
	return nil
}

// A terminal is an [agent.Prompter] on standard input. Questions go to standard
// error, secrets are not echoed.
type terminal struct{ in *bufio.Reader }

// Line implements [agent.Prompter].
func (t *terminal) Line(question string) (string, error) {
	fmt.Fprint(os.Stderr, question+": ")
	text, err := t.in.ReadString('\n')
	if err != nil && text == "" {
		return "", err
	}
	return text, nil
}

// Secret implements [agent.Prompter].
func (t *terminal) Secret(question string) (string, error) {
	fd := int(os.Stdin.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return t.Line(question) // not a terminal: nothing echoes
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return "", err
	}
	defer func() {
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, old)
		fmt.Fprintln(os.Stderr)
	}()
	return t.Line(question)
}
