// Command rehost is the service, the replication server and the operator's
// tools. Exit status: 0 done, 1 an error, 2 wrong usage, 3 what was named does
// not exist, 4 stored data is damaged, 5 in use by another process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"rehost/audit"
	"rehost/ca"
	"rehost/fleet"
	"rehost/store"
)

// CLI is the command line; each command is a field.
type CLI struct {
	Serve      ServeCmd      `cmd:"" help:"Run the service, with a replication server inside."`
	Replicator ReplicatorCmd `cmd:"" help:"Run a replication server as a process of its own."`
	Instance   InstanceCmd   `cmd:"" help:"Look at launched instances, or remove one while the service is stopped."`
	CA         CACmd         `cmd:"" name:"ca" help:"Look at the certificate authority, replace it, or take certificates back; the service may be running."`
	VPN        VPNCmd        `cmd:"" name:"vpn" help:"Let machines in that reach nothing of the service but its VPN, and see who may come."`
	Keys       KeysCmd       `cmd:"" help:"List access keys, make one that can install agents, or replace the sealing key."`
	Doctor     DoctorCmd     `cmd:"" help:"List what the running service lets others reach, and what of it is not as it should be."`
	Agents     AgentsCmd     `cmd:"" help:"List the agents of a running service, or have one make a support bundle."`
	Support    SupportCmd    `cmd:"" name:"support-bundle" help:"Write a file with what somebody who helps with the service has to see, without secrets; it may be running."`
	Audit      AuditCmd      `cmd:"" help:"Check and read the audit log, while the service runs or not."`
	Install    InstallCmd    `cmd:"" help:"Install the agent on many servers over SSH."`
	Store      StoreCmd      `cmd:"" help:"Look into a store directly, without the service."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// The exit statuses.
const (
	statusDone = iota
	statusError
	statusUsage
	statusNotFound
	statusDamaged
	statusInUse
)

// errUsage is wrapped by errors in what was asked.
var errUsage = errors.New("wrong usage")

// Run runs the command line args and returns the exit status.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	type exited int // kong wants to exit after --help
	status := statusDone
	err := func() (err error) {
		defer func() {
			if code, ok := recover().(exited); ok {
				status = int(code)
			}
		}()
		var cli CLI
		parser, err := newParser(&cli, stdout, stderr, func(code int) { panic(exited(code)) })
		if err != nil {
			return err
		}
		cmd, err := parser.Parse(args)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		cmd.Bind(&cli)
		cmd.BindTo(ctx, (*context.Context)(nil))
		cmd.BindTo(stdout, (*io.Writer)(nil))
		cmd.Bind(&logOutput{stderr})
		return cmd.Run()
	}()
	if err == nil {
		return status
	}
	fmt.Fprintf(stderr, "error: %v\n", err)
	if damage := new(store.CorruptError); errors.As(err, &damage) && !errors.Is(err, store.ErrKey) {
		fmt.Fprintln(stderr, "hint: what is stored has been damaged; no data was returned from there. Restore the file from a copy, or replicate anew")
		return statusDamaged
	}
	if damage := new(audit.BadError); errors.As(err, &damage) {
		fmt.Fprintln(stderr, "hint: what is before this record is as it was written; keep the files as they are, and compare them with copies")
		return statusDamaged
	}
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			if o.hint != "" {
				fmt.Fprintf(stderr, "hint: %s\n", o.hint)
			}
			return o.status
		}
	}
	return statusError
}

// newParser makes what reads a command line into cli.
func newParser(cli *CLI, stdout, stderr io.Writer, exit func(status int)) (*kong.Kong, error) {
	return kong.New(cli, kong.Name("rehost"), kong.Description("Moves running servers."), kong.Writers(stdout, stderr), kong.Exit(exit))
}

// outcomes says what each error means to the user. The first that fits counts.
var outcomes = []struct {
	err    error
	status int
	hint   string
}{
	{errUsage, statusUsage, "rehost --help lists commands and flags"},
	{store.ErrKey, statusError, "this replica was written with another key: name its key file with --key"},
	{store.ErrNotFound, statusNotFound, "rehost store ls lists the replicas that are there"},
	{store.ErrNoPoint, statusNotFound, "rehost store inspect lists the points that can be opened"},
	{store.ErrBadID, statusUsage, "a replica has the name of its source server, like s-0123456789abcdef0"},
	{store.ErrLocked, statusInUse, "stop the replication server that writes this replica"},
	{errInUse, statusInUse, "stop the other process, or name another directory with --data"},
	{fleet.ErrInventory, statusUsage, "the guide has an example: docs/guide/fleet.md"},
	{errSomeFailed, statusError, "run the same command again: hosts that are done are left out"},
	{errNoKey, statusError, "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE, of who may create users, policies and keys"},
	{errKeys, statusError, "aws iam update-access-key --status Inactive and aws iam delete-access-key end a key at once"},
	{ca.ErrUnknown, statusNotFound, "rehost ca ls lists the certificates there are; agents' end with their source server (aws mgn disconnect-from-service)"},
	{errExposed, statusError, "docs/guide/security.md says what each should be, docs/guide/network.md how to let fewer in"},
	{errNoVPN, statusNotFound, "start it with rehost serve --vpn"},
	{errNotInvite, statusNotFound, "rehost vpn ls lists who may come; one that was used or is over opens nothing by itself"},
	{errNotRunning, statusNotFound, "start it, or name its directory with --data; run this as root or as the user it runs as"},
	{errNoBundle, statusError, "rehost agents ls says when the agent was last seen; on the source server, rehost-agent support-bundle makes one without the service"},
	{errStillNeeded, statusError, "nothing was taken away; rehost ca export-root has moved a key that --root-key FILE names"},
	{ca.ErrSealed, statusError, "name the sealing key that the service was started with: --sealing-key"},
	{ca.ErrRotating, statusError, "rehost ca ls says when it issues"},
	{errNotServed, statusNotFound, "start rehost serve --no-replicator with the same --data first: it makes the certificate"},
	{store.ErrFull, statusError, "free some space and try again"},
	{os.ErrNotExist, statusNotFound, ""},
	{os.ErrPermission, statusError, "run it as the user the replication server runs as"},
}
