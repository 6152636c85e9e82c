package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"rehost/block"
	"rehost/store"
)

// StoreCmd is `rehost store`: it reads a store, also beside a running service,
// and never changes it.
type StoreCmd struct {
	Dir string `help:"Directory of the store." default:"/var/lib/rehost/store" placeholder:"DIR"`
	Key string `help:"Key file that the replicas' keys are wrapped with." default:"/var/lib/rehost/store.key" placeholder:"FILE"`

	Ls      StoreLsCmd      `cmd:"" help:"List the replicas."`
	Inspect StoreInspectCmd `cmd:"" help:"Show disks, recovery points and segments of a replica."`
	Verify  StoreVerifyCmd  `cmd:"" help:"Read everything that is stored, and check it."`
	Restore StoreRestoreCmd `cmd:"" help:"Write the disks of a recovery point as sparse raw images."`
}

func (c *StoreCmd) open() (*store.Store, error) {
	keys, err := store.OpenKeyFile(c.Key)
	if err != nil {
		return nil, err
	}
	return store.Open(c.Dir, keys, store.Options{ReadOnly: true})
}

// withReplica opens one replica for f.
func (c *StoreCmd) withReplica(ctx context.Context, id string, f func(*store.Replica) error) (err error) {
	s, err := c.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r, err := s.Replica(ctx, id)
	if err != nil {
		return err
	}
	return f(r)
}

// StoreLsCmd is `rehost store ls`.
type StoreLsCmd struct{}

// Run lists replicas. One that cannot be opened is listed with the reason, and
// is an error in the end.
func (*StoreLsCmd) Run(ctx context.Context, out io.Writer, cli *CLI) (err error) {
	s, err := cli.Store.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ids, err := s.Replicas()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "REPLICA\tDISKS\tSIZE\tPOINTS\tCONSISTENT\tTIME")
	for _, id := range ids {
		r, openErr := s.Replica(ctx, id)
		if openErr != nil {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\tcannot be opened\n", id)
			err = errors.Join(err, openErr)
			continue
		}
		var size int64
		for _, d := range r.Disks() {
			size += d.Size
		}
		latest, when := "-", "-"
		if p, ok := r.Consistent(); ok {
			latest, when = p.Seq.String(), stamp(p.Time)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s\n", id, len(r.Disks()), size, len(r.Points()), latest, when)
	}
	return errors.Join(err, t.Flush())
}

// StoreInspectCmd is `rehost store inspect`.
type StoreInspectCmd struct {
	Replica string `arg:"" help:"Source server id."`
	Points  int    `help:"How many of the newest points to list; 0 lists all." default:"20"`
}

// Run describes a replica.
func (c *StoreInspectCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	return cli.Store.withReplica(ctx, c.Replica, func(r *store.Replica) error {
		segments, err := r.Segments(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "replica %s, generation %d\n\n", r.ID(), r.Generation())
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "DISK\tNAME\tBYTES\tBOOT")
		for _, d := range r.Disks() {
			fmt.Fprintf(t, "%v\t%s\t%d\t%v\n", d.ID, d.Name, d.Size, d.Boot)
		}
		points := r.Points()
		fmt.Fprintf(t, "\nPOINT\tTIME\tCONSISTENT\n")
		if n := len(points) - c.Points; c.Points > 0 && n > 0 {
			fmt.Fprintf(t, "(%d older)\n", n)
			points = points[n:]
		}
		for _, p := range points {
			fmt.Fprintf(t, "%v\t%s\t%v\n", p.Seq, stamp(p.Time), p.Consistent())
		}
		fmt.Fprintf(t, "\nSEGMENT\tSESSION\tGENERATION\tBYTES\tRUNS\tCOMMITS\tSEALED\n")
		for _, s := range segments.Segments {
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%v\n", filepath.Base(s.Name), s.Session, s.Generation, s.Bytes, s.Runs, s.Commits, s.Sealed)
		}
		return t.Flush()
	})
}

// StoreVerifyCmd is `rehost store verify`.
type StoreVerifyCmd struct {
	Replica []string `arg:"" optional:"" help:"Source server ids; all if none is given."`
}

// Run verifies replicas, all of them even if one is damaged.
func (c *StoreVerifyCmd) Run(ctx context.Context, out io.Writer, cli *CLI) (err error) {
	s, err := cli.Store.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ids := c.Replica
	if len(ids) == 0 {
		if ids, err = s.Replicas(); err != nil {
			return err
		}
	}
	var errs []error
	for _, id := range ids {
		rep, err := verify(ctx, s, id)
		if err != nil {
			fmt.Fprintf(out, "%s: NOT INTACT\n", id)
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(out, "%s: ok, %d points, %d segments, %d runs of %d bytes\n", id, rep.Points, len(rep.Segments), rep.Runs, rep.Bytes)
	}
	return errors.Join(errs...)
}

func verify(ctx context.Context, s *store.Store, id string) (store.Report, error) {
	r, err := s.Replica(ctx, id)
	if err != nil {
		return store.Report{}, err
	}
	return r.Verify(ctx)
}

// StoreRestoreCmd is `rehost store restore`.
type StoreRestoreCmd struct {
	Replica string `arg:"" help:"Source server id."`
	To      string `help:"Directory, which must exist; images are named d0.raw, d1.raw, ..." required:"" placeholder:"DIR"`
	Point   string `help:"Recovery point, as inspect lists it; the newest consistent one if not given." placeholder:"POINT"`
}

// Run writes images.
func (c *StoreRestoreCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	return cli.Store.withReplica(ctx, c.Replica, func(r *store.Replica) error {
		var seq block.Seq
		if latest, ok := r.Consistent(); c.Point == "" {
			if !ok {
				return fmt.Errorf("restore %s: it has no crash-consistent recovery point yet: %w", c.Replica, store.ErrNoPoint)
			}
			seq = latest.Seq
		} else {
			var err error
			if seq, err = block.ParseSeq(c.Point); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
		}
		v, err := r.At(seq)
		if err != nil {
			return err
		}
		paths, err := v.Restore(ctx, c.To)
		if err != nil {
			return err
		}
		doubt := ""
		if !v.Point().Consistent() {
			doubt = ", NOT crash-consistent"
		}
		fmt.Fprintf(out, "point %v of %s, %s%s\n", seq, c.Replica, stamp(v.Point().Time), doubt)
		for i, d := range v.Disks() {
			fmt.Fprintf(out, "%s  %s  %d bytes\n", paths[i], d.Name, d.Size)
		}
		return nil
	})
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
