package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

// AgentsUpgradeCmd is `rehost agents upgrade`.
type AgentsUpgradeCmd struct {
	SourceServerIDs []string      `arg:"" optional:"" name:"source-server-id" help:"Whose agents are asked." placeholder:"s-..."`
	All             bool          `help:"All agents of source servers that are not archived."`
	Wait            time.Duration `help:"How long to wait for them; 0 only asks." default:"15m"`
}

// Help implements [kong.HelpProvider].
func (c *AgentsUpgradeCmd) Help() string {
	return "An agent takes only what is newer than itself and signed by a key that it was built with, whatever the service says. " +
		"Its tracking goes on meanwhile, and the version before comes back if the new one does not do what that did."
}

// errNotUpgraded says that some agents are of the version from before.
var errNotUpgraded = errors.New("not upgraded everywhere")

// Run asks all of them, and then waits for all. Of whom the service does not tell, that is
// said, and the others are told of all the same.
func (c *AgentsUpgradeCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	if c.All == (len(c.SourceServerIDs) > 0) {
		return fmt.Errorf("%w: name source servers, or --all", errUsage)
	}
	client, err := cli.Agents.open()
	if err != nil {
		return err
	}
	defer client.Close()
	servers := c.SourceServerIDs
	if c.All {
		all, err := allAgents(ctx, client)
		if err != nil {
			return err
		}
		for _, a := range all {
			servers = append(servers, a.SourceServerID)
		}
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SOURCE SERVER\tTASK\tVERSION\tSTATE")
	failed, asked := 0, []formgn.AgentTask{}
	for _, id := range servers {
		answer, err := awsapi.Call(ctx, client, formgn.StartAgentTaskForRehost, &formgn.StartAgentTaskForRehostRequest{SourceServerID: id, Kind: formgn.AgentTaskKindUpgrade})
		if err != nil {
			failed++
			fmt.Fprintf(t, "%s\t-\t-\t%v\n", id, err)
			continue
		}
		asked = append(asked, *answer.Task)
	}
	end := time.Now().Add(c.Wait)
	for _, task := range asked {
		task, err := ended(ctx, client, task, end)
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), t.Flush())
		}
		if err != nil || task.State != formgn.AgentTaskStateSucceeded && c.Wait > 0 {
			failed++
		}
		state := stateText(task)
		if err != nil {
			state = fmt.Sprintf("not known: %v", err)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", task.SourceServerID, task.TaskID, task.Version, state)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%w: %d of %d agents are not of the version that the service offers, or not known to be", errNotUpgraded, failed, len(servers))
	}
	return nil
}

// stateText is how a task is. What an agent says of it is shown without what a terminal
// would obey.
func stateText(t formgn.AgentTask) string {
	if t.Message == "" {
		return string(t.State)
	}
	return fmt.Sprintf("%s: %q", t.State, t.Message)
}
