package agent

import (
	"context"
	"errors"
	"slices"

	"rehost/block"
	"rehost/capture"
)

// A SpareDisk is a disk of the machine that is not replicated.
type SpareDisk struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`             // bytes
	New    bool   `json:"new"`              // it has come since the installation
	Reason string `json:"reason,omitempty"` // why it cannot be replicated
}

// arrivals looks for disks that are not replicated, and has those that have come
// since the installation replicated too if it was installed so.
func (a *agent) arrivals(ctx context.Context) {
	for {
		if err := a.lookForDisks(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("looking for new disks", "err", err)
		}
		if pause(ctx, a.options.look) != nil {
			return
		}
	}
}

func (a *agent) lookForDisks(ctx context.Context) error {
	want, _ := a.replication.wanted()
	if a.config.Forced || len(want.Disks) == 0 {
		return nil
	}
	all, err := a.system.Discover()
	if err != nil {
		return err
	}
	placed, err := a.present(want.Disks)
	// What has become of the disks that are known comes first.
	sure := err == nil && slices.EqualFunc(placed, want.Disks, func(a, b block.Disk) bool { return a.Size == b.Size })
	var spare []SpareDisk
	var add []block.Disk
	for _, d := range all {
		if slices.ContainsFunc(placed, func(o block.Disk) bool { return o.Name == d.Name }) ||
			!sure && slices.ContainsFunc(want.Disks, func(o block.Disk) bool { return o.Name == d.Name || o.Serial != "" && d.Is(o.Serial) }) {
			continue
		}
		s := SpareDisk{Name: d.Name, Size: d.Size, New: !a.known(d), Reason: d.Unfit}
		switch {
		case s.Reason != "":
		case d.ReadOnly:
			s.Reason = "it is read-only"
		case slices.ContainsFunc(all, func(o capture.Device) bool { return o.Name != d.Name && d.Serial != "" && o.Is(d.Serial) }):
			s.Reason = "another disk has the same identity"
		}
		spare = append(spare, s)
		if s.New && s.Reason == "" {
			add = append(add, d.Disk)
		}
	}
	a.board.setSpare(spare)
	if !a.config.AutoReplicate || len(add) == 0 || want.Command != commandStart || !sure {
		return nil
	}
	for _, d := range add {
		a.log.Info("a disk has come, and is replicated from now on", "disk", d.Name, "identity", d.Serial, "size", d.Size)
	}
	if _, err := a.tellDisks(ctx, append(placed, add...)); err != nil {
		return errors.Join(errors.New("a disk that has come is not replicated yet"), err)
	}
	a.replication.renew()
	return nil
}

// known reports whether a disk was there when the agent was installed.
func (a *agent) known(d capture.Device) bool {
	return slices.ContainsFunc(a.config.Known, func(o Device) bool {
		return o.Serial != "" && d.Is(o.Serial) || o.Name == d.Name && o.Unmarked() && d.Unmarked() // partitioned since
	})
}
