// Command rehost-agent replicates the disks of this machine: a service's
// address and a key that is used once go in, recovery points come out.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"rehost/agent"
)

type cli struct {
	Install   installCommand   `cmd:"" help:"Register this machine and start to replicate it."`
	Run       runCommand       `cmd:"" help:"Be the agent: what the service or init system starts."`
	Status    statusCommand    `cmd:"" help:"Show what the agent does."`
	Rescan    rescanCommand    `cmd:"" help:"Compare all disks with the replica, and send what differs."`
	Limit     limitCommand     `cmd:"" help:"Change what the agent may take of this machine."`
	Freezer   freezerCommand   `cmd:"" help:"Be the freezer: what the service manager or the agent starts."`
	Doctor    doctorCommand    `cmd:"" help:"Say what this machine lacks to be replicated, and what to do."`
	Upgrade   upgradeCommand   `cmd:"" help:"Replace the agent by the service's version, which has to be signed."`
	Restart   restartCommand   `cmd:"" help:"Start the agent anew, as this version does."`
	Support   supportCommand   `cmd:"" name:"support-bundle" help:"Write a file with what somebody who helps has to see, without secrets."`
	Uninstall uninstallCommand `cmd:"" help:"Stop the agent and remove it with its key."`
	Prepare   prepareCommand   `cmd:"" hidden:"" help:"Root's part before the agent starts: what a service manager runs."`
	Finish    finishCommand    `cmd:"" hidden:"" help:"Root's part after the agent has ended: what a service manager runs."`
	Version   kong.VersionFlag `help:"Print the version."`
}

const description = `Replicates the disks of this machine to a Rehost service, block by block and continuously.

No kernel module, no compiler and no restart are needed. Exit status: 0 done, 1 error, 2 wrong usage.`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	var c cli
	parser := kong.Must(&c, kong.Name("rehost-agent"), kong.Description(description), kong.UsageOnError(),
		kong.Vars{"version": agent.Version, "state": agent.DefaultStateDir}, kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	k, err := parser.Parse(joinLists(os.Args[1:]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "rehost-agent: "+err.Error())
		os.Exit(2)
	}
	k.BindTo(ctx, (*context.Context)(nil))
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "error: "+err.Error())
		if hint := agent.Hint(err); hint != "" {
			fmt.Fprintln(os.Stderr, "hint: "+hint)
		}
		os.Exit(1)
	}
}

// joinLists lets a list follow its flag in several words, as MGN's installer
// does: --tags A=1 B=2 becomes --tags=A=1 --tags=B=2, and so do --devices.
func joinLists(args []string) (out []string) {
	list := ""
	for _, a := range args {
		switch {
		case a == "--tags" || a == "--devices":
			list = a
			continue
		case strings.HasPrefix(a, "-"):
			list = ""
		case list != "":
			a = list + "=" + a
		}
		out = append(out, a)
	}
	return out
}

type runCommand struct {
	StateDir string `help:"Directory of the installation." default:"${state}" type:"path"`
	Pins     string `hidden:"" help:"Where the service manager shows the directory of pins." type:"path" placeholder:"DIR"`
	Verbose  bool   `help:"Log details too."`
}

// Run implements the command. What a service manager must not repeat ends well.
func (c *runCommand) Run(ctx context.Context) error {
	level := slog.LevelInfo
	if c.Verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := agent.Drop(c.StateDir, log); err != nil {
		return err
	}
	held, err := agent.Confine(c.StateDir, c.Pins)
	if err != nil {
		return err
	}
	err = agent.Run(ctx, agent.RunOptions{StateDir: c.StateDir, Log: log, Freezer: ownFreezer(), Pins: c.Pins, Privileges: held})
	if errors.Is(err, agent.ErrCopied) || errors.Is(err, agent.ErrUninstalled) || errors.Is(err, agent.ErrRunning) {
		log.Warn(err.Error(), "hint", agent.Hint(err))
		return nil
	}
	return err
}

type prepareCommand struct {
	StateDir string `help:"Directory of the installation." default:"${state}" type:"path"`
}

// Run implements the command.
func (c *prepareCommand) Run() error { return agent.Prepare(c.StateDir) }

type finishCommand struct {
	StateDir   string `help:"Directory of the installation." default:"${state}" type:"path"`
	BPFFS      string `name:"bpffs" help:"As it was installed with." type:"path" placeholder:"DIR"`
	AfterStdin bool   `help:"Once standard input ends."`
}

// Run implements the command.
func (c *finishCommand) Run() error {
	if c.AfterStdin {
		return agent.Finish(c.StateDir, c.BPFFS, os.Stdin)
	}
	return agent.Finish(c.StateDir, c.BPFFS, nil)
}

type statusCommand struct {
	StateDir string `help:"Directory of the installation." default:"${state}" type:"path"`
	JSON     bool   `name:"json" help:"Print JSON."`
}

// Run implements the command.
func (c *statusCommand) Run() error {
	s, err := agent.ReadStatus(c.StateDir)
	if err != nil {
		return err
	}
	if c.JSON {
		return s.PrintJSON(os.Stdout)
	}
	return s.Print(os.Stdout)
}

type rescanCommand struct {
	StateDir string `help:"Directory of the installation." default:"${state}" type:"path"`
}

// Run implements the command.
func (c *rescanCommand) Run() error {
	running, err := agent.Rescan(c.StateDir)
	if err != nil {
		return err
	}
	if !running {
		fmt.Println("The agent does not run: it will compare all disks when it starts.")
		return nil
	}
	fmt.Println("The agent compares all disks with the replica; rehost-agent status shows the progress (RESCAN).")
	return nil
}

type limitCommand struct {
	CPU      float64 `name:"cpu" required:"" help:"What the first copy and comparing may take, in percent of one processor; 0 is no limit." placeholder:"PERCENT"`
	StateDir string  `help:"Directory of the installation." default:"${state}" type:"path"`
}

// Run implements the command.
func (c *limitCommand) Run() error {
	running, err := agent.SetLimits(c.StateDir, agent.Limits{CPU: c.CPU})
	if err != nil {
		return err
	}
	if !running {
		fmt.Println("The agent does not run: the limit holds when it starts.")
		return nil
	}
	fmt.Println("The agent holds itself to that from now on; rehost-agent status shows what it takes.")
	return nil
}

type restartCommand struct {
	StateDir string `help:"Directory of the installation." default:"${state}" type:"path"`
}

// Run implements the command.
func (c *restartCommand) Run(ctx context.Context) error { return agent.Restart(ctx, c.StateDir) }

type uninstallCommand struct {
	StateDir  string `help:"Directory of the installation." default:"${state}" type:"path"`
	KeepState bool   `help:"Keep key and configuration, as packages do until they are purged: upgrade --self starts the agent again."`
}

// Run implements the command.
func (c *uninstallCommand) Run(ctx context.Context) error {
	if c.KeepState {
		if err := agent.Retire(ctx, c.StateDir); err != nil {
			return err
		}
		fmt.Printf("The agent is stopped; its key and configuration stay in %s.\n", c.StateDir)
		return nil
	}
	told, err := agent.Uninstall(ctx, c.StateDir, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	fmt.Println("The agent is uninstalled.")
	if told {
		fmt.Println("The service was told.")
	}
	fmt.Println("The source server stays in the service until it is disconnected there.")
	return nil
}
