package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rehost/fleet"
)

// errSomeFailed says that the agent is not on all hosts.
var errSomeFailed = errors.New("not installed everywhere")

// InstallCmd is `rehost install`.
type InstallCmd struct {
	Inventory string `help:"CSV file with the servers; its first line names the columns: host, and what is needed of port, user, key, devices, tags, user_provided_id, options." type:"existingfile" required:"" placeholder:"FILE"`

	Endpoint string `help:"The service, as the servers reach it." env:"AWS_ENDPOINT_URL_MGN,AWS_ENDPOINT_URL" required:"" placeholder:"HOST"`
	Region   string `help:"Region of the service." env:"AWS_REGION,AWS_DEFAULT_REGION" required:"" placeholder:"NAME"`
	CA       string `name:"ca" help:"File with the service's certificate authority (ca.pem)." type:"existingfile" required:"" placeholder:"FILE"`

	Agent []string `help:"Programs of the agent, one for each architecture. Default: rehost-agent, or rehost-agent-amd64 and -arm64, beside this program." type:"existingfile" placeholder:"FILE"`

	SSHUser       string   `name:"ssh-user" help:"Who logs in where the inventory names nobody. Who is not root needs sudo without a password." default:"root" placeholder:"NAME"`
	SSHKey        []string `name:"ssh-key" help:"Private keys to log in with; those of the SSH agent are tried first." type:"existingfile" placeholder:"FILE"`
	SSHKnownHosts []string `name:"ssh-known-hosts" help:"Files with the keys of the servers; others are refused. Default: ~/.ssh/known_hosts." type:"existingfile" placeholder:"FILE"`
	SSHAgent      string   `name:"ssh-agent" help:"Socket of an SSH agent." env:"SSH_AUTH_SOCK" placeholder:"SOCKET"`

	Parallel int           `help:"Servers at once." default:"10"`
	Timeout  time.Duration `help:"For one server." default:"10m"`
	Journal  string        `help:"Where it is written down which servers are done; they are left out the next time. Default: the inventory's name with .done." type:"path" placeholder:"FILE"`

	AgentOptions []string `arg:"" optional:"" passthrough:"" help:"Flags of rehost-agent install, for all servers, behind --."`
}

// Help implements [kong.HelpProvider].
func (c *InstallCmd) Help() string {
	return `The access key is taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN: rehost keys create-installer makes one that can do nothing else and ends by itself. It reaches the servers through SSH's encrypted standard input, and is stored nowhere.`
}

// Run installs, and prints a table.
func (c *InstallCmd) Run(ctx context.Context, out io.Writer) error {
	f, err := os.Open(c.Inventory)
	if err != nil {
		return err
	}
	hosts, err := fleet.ReadInventory(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", c.Inventory, err)
	}
	plan, err := c.plan()
	if err != nil {
		return err
	}
	if c.Journal == "" {
		c.Journal = c.Inventory + ".done"
	}
	results, err := fleet.Run(ctx, plan, hosts, c.Journal, newTable(out, len(hosts)))
	if err != nil {
		return err
	}
	failed := 0
	for _, r := range results {
		if r.Err != nil {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%w: %d of %d servers failed", errSomeFailed, failed, len(results))
	}
	return nil
}

func (c *InstallCmd) plan() (p fleet.Plan, err error) {
	p = fleet.Plan{
		Login:    fleet.Login{User: c.SSHUser, Keys: c.SSHKey, KnownHosts: c.SSHKnownHosts, Socket: c.SSHAgent},
		Endpoint: c.Endpoint, Region: c.Region, Options: c.AgentOptions, Parallel: c.Parallel, Timeout: c.Timeout,
		Key: fleet.Key{ID: os.Getenv("AWS_ACCESS_KEY_ID"), Secret: os.Getenv("AWS_SECRET_ACCESS_KEY"), Token: os.Getenv("AWS_SESSION_TOKEN")},
	}
	if len(p.Options) > 0 && p.Options[0] == "--" {
		p.Options = p.Options[1:]
	}
	if p.Key.ID == "" || p.Key.Secret == "" {
		return p, fmt.Errorf("%w: no access key to install with: rehost keys create-installer prints one to export", errUsage)
	}
	if p.CA, err = os.ReadFile(c.CA); err != nil {
		return p, err
	}
	if len(p.Login.KnownHosts) == 0 {
		home, err := os.UserHomeDir()
		if err != nil {
			return p, err
		}
		p.Login.KnownHosts = []string{filepath.Join(home, ".ssh", "known_hosts")}
	}
	if len(c.Agent) == 0 {
		if c.Agent, err = agentsBeside(); err != nil {
			return p, err
		}
	}
	for _, path := range c.Agent {
		a, err := fleet.ReadAgent(path)
		if err != nil {
			return p, err
		}
		p.Agents = append(p.Agents, a)
	}
	return p, nil
}

// agentsBeside are the agent's programs in the directory of this one.
func agentsBeside() (found []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"rehost-agent-amd64", "rehost-agent-arm64", "rehost-agent"} {
		path := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(path); err == nil {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: no rehost-agent beside %s: name it with --agent", errUsage, self)
	}
	return found, nil
}

// newTable draws on a terminal that has room for all hosts.
func newTable(out io.Writer, hosts int) *fleet.Table {
	t := &fleet.Table{Out: out}
	f, ok := out.(*os.File)
	if !ok {
		return t
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || hosts+2 > int(size.Row) {
		return t
	}
	t.Live = true
	t.Width = func() int {
		if now, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			size = now
		}
		return int(size.Col)
	}
	return t
}
