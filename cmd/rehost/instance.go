package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"rehost/launch"
	"rehost/launch/qemu"
)

// InstanceCmd is `rehost instance`: what was launched on this machine.
type InstanceCmd struct {
	Data string `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`

	Ls        InstanceLsCmd        `cmd:"" help:"List the launched instances; also beside a running service."`
	Terminate InstanceTerminateCmd `cmd:"" help:"Stop instances and remove their disks, while the service is stopped. This is also the way to remove one after its cutover was finalized."`
}

func (c *InstanceCmd) dir() string { return filepath.Join(c.Data, "instances") }

// InstanceLsCmd is `rehost instance ls`.
type InstanceLsCmd struct {
	JSON bool `help:"As a JSON list."`
}

// Run lists the instances.
func (c *InstanceLsCmd) Run(out io.Writer, cli *CLI) error {
	list, err := qemu.List(cli.Instance.dir())
	if err != nil {
		return err
	}
	if c.JSON {
		if list == nil {
			list = []launch.Instance{}
		}
		return json.NewEncoder(out).Encode(list)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "INSTANCE\tNAME\tSTATE\tFIRST BOOT\tSTARTED\tREACHED AT")
	for _, in := range list {
		var ports []string
		for _, f := range in.Forwards {
			ports = append(ports, fmt.Sprintf("127.0.0.1:%d->%d", f.HostPort, f.GuestPort))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", in.ID, in.Name, in.State, in.FirstBoot, stamp(in.Started), strings.Join(ports, " "))
	}
	return t.Flush()
}

// InstanceTerminateCmd is `rehost instance terminate`.
type InstanceTerminateCmd struct {
	IDs []string `arg:"" name:"id" help:"Instances, i-...; what is on their disks is lost."`
}

// Run removes instances. The service notices at its next start.
func (c *InstanceTerminateCmd) Run(ctx context.Context, cli *CLI) (err error) {
	known, err := qemu.List(cli.Instance.dir())
	if err != nil {
		return err
	}
	target, err := qemu.Open(qemu.Options{Dir: cli.Instance.dir(), Logger: slog.New(slog.DiscardHandler)})
	if errors.Is(err, qemu.ErrLocked) {
		return fmt.Errorf("open %s: %w", cli.Instance.dir(), errInUse)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	for _, id := range c.IDs {
		found := false
		for _, in := range known {
			found = found || in.ID == id
		}
		if !found {
			return fmt.Errorf("terminate %s: %w", id, launch.ErrNotFound)
		}
		if err := target.Terminate(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
