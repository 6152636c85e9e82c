package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"time"

	"rehost/awsapi/mgn"
	"rehost/block"
	"rehost/launch"
)

// An instance is a machine launched from a replica:
//
//	LAUNCHING ──> RUNNING ──> TERMINATED
//	    └──────── failed ────────┘
//
// It reads the replica until it is Independent. The word RUNNING says only that
// it was started and not terminated by us: what it does is for the target to say.
type instance struct {
	ID          string        `json:"id"`
	ServerID    string        `json:"serverID"`
	JobID       string        `json:"jobID"`
	State       string        `json:"state"`
	Cutover     bool          `json:"cutover"`
	Independent bool          `json:"independent"`
	Point       block.Seq     `json:"point"`
	Spec        launch.Spec   `json:"spec"`
	FirstBoot   mgn.FirstBoot `json:"firstBoot,omitempty"`
	CalledAt    string        `json:"calledAt"` // when the API was called
	StartedAt   string        `json:"startedAt,omitempty"`
	BootedAt    string        `json:"bootedAt,omitempty"`
}

const (
	instanceLaunching  = "LAUNCHING"
	instanceRunning    = "RUNNING"
	instanceTerminated = "TERMINATED"
)

func putInstance(ctx context.Context, tx *sql.Tx, i *instance) error {
	independent := 0
	if i.Independent {
		independent = 1
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO instances (id, server_id, job_id, state, independent, document) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, independent = excluded.independent, document = excluded.document`,
		i.ID, i.ServerID, i.JobID, i.State, independent, encode(i))
	if err != nil {
		return fmt.Errorf("write instance %s: %w", i.ID, err)
	}
	return nil
}

func getInstance(ctx context.Context, q querier, id string) (*instance, error) {
	docs, err := documents[*instance](ctx, q, `SELECT document FROM instances WHERE id = ?`, id)
	if err != nil || len(docs) == 0 {
		return nil, errors.Join(err, fmt.Errorf("instance %s is not known", id))
	}
	return docs[0], nil
}

// liveInstances are those of a server that were not terminated; of all servers
// if serverID is empty.
func liveInstances(ctx context.Context, q querier, serverID string) ([]*instance, error) {
	if serverID == "" {
		return documents[*instance](ctx, q, `SELECT document FROM instances WHERE state <> 'TERMINATED' ORDER BY id`)
	}
	return documents[*instance](ctx, q, `SELECT document FROM instances WHERE state <> 'TERMINATED' AND server_id = ? ORDER BY id`, serverID)
}

// spec says what to launch of a server; the same every time it is asked for the
// same instance, since it is asked once and kept.
func (c *Service) spec(s *server, id string, cutover bool, disks []block.Disk) launch.Spec {
	spec := launch.Spec{ID: id, Name: s.name(), CPUs: 1, MemoryMiB: 1024, BootMode: launch.LegacyBIOS, HydrateDisks: cutover}
	mode := string(s.Launch.BootMode)
	if mode != string(mgn.BootModeLegacyBios) && mode != string(mgn.BootModeUefi) {
		mode = string(s.BootMode)
	}
	if mode == string(mgn.BootModeUefi) {
		spec.BootMode = launch.UEFI
	}
	if s.Properties != nil {
		cores := int64(0)
		for _, cpu := range s.Properties.Cpus {
			cores += deref(cpu.Cores)
		}
		spec.CPUs = int(min(max(1, cores), int64(runtime.NumCPU()), launch.MaxCPUs))
		if ram := deref(s.Properties.RamBytes); ram > 0 {
			spec.MemoryMiB = int(min(max(256, ram>>20), launch.MaxMemoryMiB))
		}
	}
	spec.Network.Mode = launch.Isolated
	if cutover {
		spec.Network.Mode = launch.Outbound
	}
	for _, port := range c.opts.Forwards {
		spec.Network.Forwards = append(spec.Network.Forwards, launch.Forward{GuestPort: port})
	}
	for _, d := range disks {
		spec.Disks = append(spec.Disks, launch.Disk{Name: d.ID.String(), Socket: c.opts.Socket, Export: exportName(id, d.ID), Size: d.Size, Boot: d.Boot})
	}
	return spec
}

func exportName(instanceID string, disk block.DiskID) string { return instanceID + "/" + disk.String() }

// name is what people call the server.
func (s *server) name() string {
	if s.Properties != nil && s.Properties.IdentificationHints != nil && s.Properties.IdentificationHints.Hostname != "" {
		return s.Properties.IdentificationHints.Hostname
	}
	return s.ID
}

// An exported view is what one instance reads.
type exported struct {
	view  View
	names []string
}

// export serves the disks of an instance under names that stay the same for its
// life. Exporting twice does nothing.
func (c *Service) export(ctx context.Context, i *instance) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.views[i.ID] != nil {
		return nil
	}
	view, err := c.opts.Replicas.Open(ctx, i.ServerID, i.Point)
	if err != nil {
		return fmt.Errorf("open replica of %s at %s: %w", i.ServerID, i.Point, err)
	}
	e := &exported{view: view}
	for _, d := range view.Disks() {
		device, err := view.Device(d.ID)
		if err == nil {
			err = c.opts.Exporter.Add(exportName(i.ID, d.ID), device)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("export %s of %s: %w", d.ID, i.ServerID, err), e.close(c.opts.Exporter))
		}
		e.names = append(e.names, exportName(i.ID, d.ID))
	}
	c.views[i.ID] = e
	return nil
}

func (e *exported) close(exporter Exporter) error {
	for _, name := range e.names {
		exporter.Remove(name)
	}
	return e.view.Close()
}

// unexport stops serving an instance's disks.
func (c *Service) unexport(id string) error {
	c.mu.Lock()
	e := c.views[id]
	delete(c.views, id)
	c.mu.Unlock()
	if e == nil {
		return nil
	}
	return e.close(c.opts.Exporter)
}

// exportAgain serves what instances read that outlived the process before.
// One whose replica cannot be read is logged: the others must not suffer.
func (c *Service) exportAgain(ctx context.Context) error {
	live, err := liveInstances(ctx, c.db.reader, "")
	if err != nil {
		return fmt.Errorf("read instances: %w", err)
	}
	for _, i := range live {
		if i.Independent {
			continue
		}
		if err := c.export(ctx, i); err != nil {
			c.log.Error("an instance is without its disks", "instance", i.ID, "server", i.ServerID, "err", err)
		}
	}
	return nil
}

// observe asks the target how an instance is and writes down what has changed:
// its first boot, and whether it stands alone.
func (c *Service) observe(ctx context.Context, i *instance) error {
	if i.State != instanceRunning || i.FirstBoot != mgn.FirstBootWaiting && (i.Independent || !i.Spec.HydrateDisks) {
		return nil
	}
	seen, err := c.opts.Target.Describe(ctx, i.ID)
	if errors.Is(err, launch.ErrNotFound) {
		seen, err = launch.Instance{FirstBoot: launch.FirstBootUnknown, FirstBootReason: "the target does not know the instance any more"}, nil
	}
	if err != nil {
		return fmt.Errorf("describe instance %s: %w", i.ID, err)
	}
	boot := mgn.FirstBoot(seen.FirstBoot)
	if i.FirstBoot != mgn.FirstBootWaiting || boot == "" {
		boot = i.FirstBoot
	}
	alone := i.Independent || seen.Hydration.Complete
	if boot == i.FirstBoot && alone == i.Independent {
		return nil
	}
	if err := c.observed(ctx, i, boot, alone, seen.FirstBootAt); err != nil {
		return err
	}
	if boot != i.FirstBoot {
		c.log.Info("first boot", "instance", i.ID, "server", i.ServerID, "job", i.JobID, "firstBoot", boot, "reason", seen.FirstBootReason,
			"launchToBootedMs", seen.FirstBootAt.Sub(parseStamp(i.CalledAt)).Milliseconds())
		c.happened(ctx, instanceBooted, i.ServerID, "instance", i.ID, "job", i.JobID, "firstBoot", boot, "reason", seen.FirstBootReason)
	}
	if alone && !i.Independent {
		c.log.Info("instance stands alone", "instance", i.ID, "server", i.ServerID, "bytes", seen.Hydration.Total)
		return c.unexport(i.ID)
	}
	return nil
}

func (c *Service) observed(ctx context.Context, i *instance, boot mgn.FirstBoot, alone bool, at time.Time) error {
	return c.db.update(ctx, func(tx *sql.Tx) error {
		now, err := getInstance(ctx, tx, i.ID)
		if err != nil || now.State != instanceRunning {
			return err // terminated meanwhile
		}
		now.FirstBoot, now.Independent = boot, alone
		if boot != mgn.FirstBootWaiting && now.BootedAt == "" {
			now.BootedAt = stamp(at)
		}
		if err := putInstance(ctx, tx, now); err != nil {
			return err
		}
		s, err := getServer(ctx, tx, i.ServerID)
		if errors.Is(err, errNoServer) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.LifeCycle.State == mgn.LifeCycleStateCutover && alone {
			if err := condemn(ctx, tx, s.ID, stamp(c.now())); err != nil {
				return err
			}
		}
		if s.Launched != nil && s.Launched.Ec2InstanceID == i.ID {
			s.Launched.FirstBoot = boot
			return putServer(ctx, tx, s)
		}
		return nil
	})
}
