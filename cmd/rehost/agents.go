package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

// AgentsCmd is `rehost agents`: what runs on the source servers.
type AgentsCmd struct {
	Data        string `help:"Directory of the service; its ca.pem, and the key to call with if none is given otherwise." default:"/var/lib/rehost" placeholder:"DIR"`
	EndpointURL string `help:"Where the service is reached; by default the directory says it." env:"AWS_ENDPOINT_URL_MGN,AWS_ENDPOINT_URL" placeholder:"URL"`
	Region      string `help:"Region of the service." env:"AWS_REGION,AWS_DEFAULT_REGION" default:"us-east-1" placeholder:"NAME"`

	Ls            AgentsLsCmd            `cmd:"" help:"List all agents: what they are and do, and how far they are behind."`
	SupportBundle AgentsSupportBundleCmd `cmd:"" help:"Have an agent make a support bundle, and download it."`
	Upgrade       AgentsUpgradeCmd       `cmd:"" help:"Have agents go on as the version that the service offers."`
}

func (c *AgentsCmd) open() (*awsapi.Client, error) {
	return besideMGN(c.Data, c.EndpointURL, c.Region)
}

// AgentsLsCmd is `rehost agents ls`.
type AgentsLsCmd struct {
	JSON bool `help:"As a JSON list."`
}

// Run lists the agents of source servers that are not archived.
func (c *AgentsLsCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	client, err := cli.Agents.open()
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := allAgents(ctx, client)
	if err != nil {
		return err
	}
	return printList(out, c.JSON, all, "HOST\tSOURCE SERVER\tAGENT\tLIFE CYCLE\tREPLICATION\tLAG\tLAST SEEN\tTRACKING\tTO DO", agentRow)
}

func allAgents(ctx context.Context, client *awsapi.Client) ([]formgn.Agent, error) {
	return pages(func(token *string) ([]formgn.Agent, string, error) {
		out, err := awsapi.Call(ctx, client, formgn.DescribeAgentsForRehost, &formgn.DescribeAgentsForRehostRequest{NextToken: token})
		if err != nil {
			return nil, "", err
		}
		return out.Items, out.NextToken, nil
	})
}

// agentRow is one agent for people. What it says of itself is shown without what a terminal would obey.
func agentRow(a formgn.Agent, now time.Time) string {
	lag, seen, tasks := "-", "never", []string{}
	if a.LagMilliseconds != nil {
		lag = (time.Duration(*a.LagMilliseconds) * time.Millisecond).Round(100 * time.Millisecond).String()
	}
	if at, err := awsapi.ParseDateTime(a.LastSeenDateTime); err == nil {
		seen = max(0, now.Sub(at)).Round(time.Second).String() + " ago"
	}
	for _, t := range a.OpenTasks {
		tasks = append(tasks, fmt.Sprintf("%s %s", t.Kind, t.State))
	}
	return tableRow(a.Hostname, a.SourceServerID, a.AgentVersion, a.LifeCycleState, string(a.ReplicationState), lag, seen, string(a.TrackingMethod), strings.Join(tasks, ", "))
}

// AgentsSupportBundleCmd is `rehost agents support-bundle`.
type AgentsSupportBundleCmd struct {
	SourceServerID string        `name:"source-server-id" help:"Whose agent is asked." required:"" placeholder:"s-..."`
	Output         string        `help:"File to write, which must not be there. Default: the source server's id with -support.tar.gz." short:"o" type:"path" placeholder:"FILE"`
	Last           bool          `help:"Ask for nothing: download the last one that is kept."`
	Wait           time.Duration `help:"How long to wait for the agent." default:"10m"`
}

// Run asks, waits and downloads.
func (c *AgentsSupportBundleCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	client, err := cli.Agents.open()
	if err != nil {
		return err
	}
	defer client.Close()
	if c.Output == "" {
		c.Output = c.SourceServerID + "-support.tar.gz"
	}
	f, err := os.OpenFile(c.Output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	task, err := c.task(ctx, client)
	if err == nil {
		err = download(ctx, client, task, f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(c.Output))
	}
	fmt.Fprintf(out, "%s is the support bundle of %s, made at %s. The agent has taken secrets out as far as it knows them; who is root there can have put anything into it.\n",
		c.Output, task.SourceServerID, task.EndedDateTime)
	return nil
}

// task is one that has brought a bundle.
func (c *AgentsSupportBundleCmd) task(ctx context.Context, client *awsapi.Client) (*formgn.AgentTask, error) {
	if c.Last {
		tasks, err := tasksOf(ctx, client, c.SourceServerID)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(tasks, func(t formgn.AgentTask) bool { return t.KeptUntilDateTime != "" }); i >= 0 {
			return &tasks[i], nil
		}
		return nil, fmt.Errorf("%w: none is kept of %s; without --last the agent is asked for one", errNoBundle, c.SourceServerID)
	}
	asked, err := awsapi.Call(ctx, client, formgn.StartAgentTaskForRehost, &formgn.StartAgentTaskForRehostRequest{SourceServerID: c.SourceServerID, Kind: formgn.AgentTaskKindCollectLogs})
	if err != nil {
		return nil, err
	}
	task, err := ended(ctx, client, *asked.Task, time.Now().Add(c.Wait))
	switch {
	case err != nil:
		return nil, err
	case task.State == formgn.AgentTaskStateSucceeded:
		return &task, nil
	case task.EndedDateTime != "" || task.State == formgn.AgentTaskStateExpired:
		return nil, fmt.Errorf("%w: task %s is %s: %q", errNoBundle, task.TaskID, task.State, task.Message)
	}
	return nil, fmt.Errorf("%w: the agent has not sent one within %v, and can do so until %s; --last downloads it then", errNoBundle, c.Wait, task.DeadlineDateTime)
}

var errNoBundle = errors.New("no support bundle")

func tasksOf(ctx context.Context, client *awsapi.Client, server string) ([]formgn.AgentTask, error) {
	out, err := awsapi.Call(ctx, client, formgn.DescribeAgentTasksForRehost, &formgn.DescribeAgentTasksForRehostRequest{SourceServerID: server})
	if err != nil {
		return nil, err
	}
	return out.Tasks, nil
}

// ended waits until a task has ended, or that time has come, and returns it as it is then. A
// service that does not answer, as while it is restarted, is asked again until that time; one
// that refuses is not.
func ended(ctx context.Context, client *awsapi.Client, task formgn.AgentTask, until time.Time) (formgn.AgentTask, error) {
	for {
		tasks, err := tasksOf(ctx, client, task.SourceServerID)
		if err == nil {
			i := slices.IndexFunc(tasks, func(t formgn.AgentTask) bool { return t.TaskID == task.TaskID })
			if i < 0 {
				return task, fmt.Errorf("task %s is not there any more", task.TaskID)
			}
			task = tasks[i]
		}
		var answer *awsapi.CallError
		refused := errors.As(err, &answer) && answer.Status < 500 && answer.Status != http.StatusTooManyRequests
		if task.EndedDateTime != "" || task.State == formgn.AgentTaskStateExpired || refused || !time.Now().Before(until) {
			return task, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return task, ctx.Err()
		}
	}
}

// download writes a bundle, which must be what the service says of it.
func download(ctx context.Context, client *awsapi.Client, task *formgn.AgentTask, w io.Writer) error {
	sum, in := sha256.New(), &formgn.DownloadSupportBundleForRehostRequest{SourceServerID: task.SourceServerID, TaskID: task.TaskID}
	for in.Offset < awsapi.Value(task.SizeBytes) {
		part, err := awsapi.Call(ctx, client, formgn.DownloadSupportBundleForRehost, in)
		if err != nil {
			return err
		}
		if len(part.Content) == 0 {
			return fmt.Errorf("download support bundle: nothing comes after %d bytes", in.Offset)
		}
		if _, err := io.MultiWriter(w, sum).Write(part.Content); err != nil {
			return err
		}
		in.Offset += int64(len(part.Content))
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != task.Sha256 {
		return fmt.Errorf("download support bundle: its SHA-256 is %s, not %s", got, task.Sha256)
	}
	return nil
}
