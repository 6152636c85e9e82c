package main

import (
	"context"
	"fmt"

	"rehost/agent"
)

type upgradeCommand struct {
	StateDir  string `help:"Directory of the installation." default:"${state}" type:"path"`
	Self      bool   `help:"Replace it by this very program, as packages do when they bring another one."`
	Downgrade bool   `help:"Also by an older version."`
	Asked     bool   `hidden:"" help:"By what the agent has fetched: what a service manager runs."`
}

// Help implements [kong.HelpProvider].
func (c *upgradeCommand) Help() string {
	return "The program is taken from the service and runs only if it is signed by a key that this program was built with. " +
		"Tracking goes on meanwhile. The version before comes back if the new one does not do what that did: run, reach the service, replicate."
}

// Run implements the command.
func (c *upgradeCommand) Run(ctx context.Context) error {
	if c.Asked {
		return agent.Asked(ctx, c.StateDir)
	}
	done, err := agent.Upgrade(ctx, agent.UpgradeOptions{StateDir: c.StateDir, Self: c.Self, Downgrade: c.Downgrade})
	if err != nil {
		return err
	}
	switch {
	case done.From == done.To && !c.Self:
		fmt.Printf("The agent is of version %s already, as the service's is.\n", done.To)
	case done.Restart:
		fmt.Printf("The agent is of version %s now, was of %s. Start it again, as it was started.\n", done.To, done.From)
	default:
		fmt.Printf("The agent is of version %s now, was of %s. It runs and has proven itself.\n", done.To, done.From)
	}
	return nil
}
