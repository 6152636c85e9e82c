package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"rehost/agent"
)

type supportCommand struct {
	StateDir string `help:"Directory of the installation." default:"${state}" type:"path"`
	Output   string `help:"File to write, which must not be there." short:"o" default:"rehost-agent-support.tar.gz" type:"path" placeholder:"FILE"`
}

// Run implements the command. What is half written is removed again.
func (c *supportCommand) Run(ctx context.Context) error {
	f, err := os.OpenFile(c.Output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(agent.SupportBundle(ctx, c.StateDir, f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(c.Output))
	}
	fmt.Printf("%s is written. Secrets have been taken out of it as far as they can be known: look into it before you give it away.\n", c.Output)
	return nil
}
