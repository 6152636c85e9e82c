package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"rehost/ca"
)

// CACmd is `rehost ca`. Its commands change the authority's one file, under the
// lock beside it, and a service that runs sees within a second that it is
// another: so they work in the same way with and without one, their answer is
// the outcome, and there is no second door to the service that would have to be
// guarded. Who may use them is who may read the directory and the sealing key,
// which is who could replace the authority anyway.
type CACmd struct {
	Data       string `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`
	SealingKey string `help:"File with the sealing key; by default sealing.key in the directory." placeholder:"FILE"`

	Ls         CALsCmd         `cmd:"" help:"List roots, intermediates, and certificates of servers."`
	Rotate     CARotateCmd     `cmd:"" help:"Replace the intermediate certificate, or with --root the root."`
	Revoke     CARevokeCmd     `cmd:"" help:"Take back a certificate by its serial number, or all of a replication server by its id."`
	ExportRoot CAExportRootCmd `cmd:"" help:"Move the root's key out of the directory, into a file."`
}

// open opens the authority of a service that has been started before.
func (c *CACmd) open() (*ca.Authority, error) {
	if _, err := os.Stat(filepath.Join(c.Data, "ca")); err != nil {
		return nil, fmt.Errorf("no service has been started in this directory: %w", err)
	}
	key, err := loadSealingKey(c.Data, c.SealingKey)
	if err != nil {
		return nil, err
	}
	return openAuthority(c.Data, key)
}

// CALsCmd is `rehost ca ls`.
type CALsCmd struct{}

// Run lists, with times in UTC.
func (*CALsCmd) Run(out io.Writer, cli *CLI) error {
	authority, err := cli.CA.open()
	if err != nil {
		return err
	}
	list, err := authority.List()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tPHASE\tNAME\tSERIAL\tENDS\tNOTE")
	for _, l := range list {
		ends, note := "-", l.Note
		if !l.Ends.IsZero() {
			ends = l.Ends.UTC().Format(time.RFC3339)
		}
		if l.Attended {
			note = "! " + note
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Kind, cmp.Or(string(l.Phase), "-"), l.Name, cmp.Or(l.Serial, "-"), ends, note)
	}
	return t.Flush()
}

// CARotateCmd is `rehost ca rotate`.
type CARotateCmd struct {
	Root    bool          `help:"Make a new root. It is made known first, and issues when all have it."`
	Overlap time.Duration `help:"With --root: after this long it issues, whoever has it." default:"168h"`
	RootKey string        `help:"File that the root's key was exported to." placeholder:"FILE"`
}

// Help implements [kong.HelpProvider].
func (c *CARotateCmd) Help() string {
	return `A new intermediate issues at once: what the one before has issued stays good until it ends, and nobody has to be told, since it is sent along.

A new root (--root) is believed by nobody at first. Agents and replication servers are given it with the calls that they make anyway. It issues once all of them have it, or when --overlap is over; the old one is believed until the last certificate that it has issued has ended, and is then forgotten. Clients that hold a copy of ca.pem (AWS_CA_BUNDLE) need a new copy meanwhile. rehost ca ls shows how far it is.`
}

// Run rotates.
func (c *CARotateCmd) Run(out io.Writer, cli *CLI) error {
	if c.Overlap < time.Minute {
		return fmt.Errorf("%w: --overlap is at least 1m", errUsage)
	}
	authority, err := cli.CA.open()
	if err != nil {
		return err
	}
	if !c.Root {
		if err := authority.RotateIssuer(c.RootKey); err != nil {
			return err
		}
		fmt.Fprintln(out, "A new intermediate certificate issues from now on.")
		return nil
	}
	if err := authority.RotateRoot(c.RootKey, c.Overlap); err != nil {
		return err
	}
	fmt.Fprintf(out, "A new root is announced; it issues when all have it, at the latest in %v. rehost ca ls shows it.\n", c.Overlap)
	return nil
}

// CARevokeCmd is `rehost ca revoke`.
type CARevokeCmd struct {
	What string `arg:"" help:"A serial number, as rehost ca ls shows it, or the id of a replication server."`
}

// Help implements [kong.HelpProvider].
func (c *CARevokeCmd) Help() string {
	return `The service refuses the certificate within a second; agents learn of it when they next ask what to do, within seconds, and end their sessions with who shows it. By its serial number one certificate is taken back, and the replication server gets another with a new key by itself. By its id (i-...) the replication server is out for good.`
}

// Run revokes.
func (c *CARevokeCmd) Run(out io.Writer, cli *CLI) error {
	authority, err := cli.CA.open()
	if err != nil {
		return err
	}
	revoked, err := authority.Revoke(c.What)
	if err != nil {
		return err
	}
	for _, r := range revoked {
		if r.Serial == "" {
			fmt.Fprintf(out, "%s gets no certificate any more.\n", r.Name)
			continue
		}
		fmt.Fprintf(out, "Revoked %s of %s.\n", r.Serial, r.Name)
	}
	return nil
}

// CAExportRootCmd is `rehost ca export-root`.
type CAExportRootCmd struct {
	To string `help:"File to write; it must not be there." required:"" placeholder:"FILE"`
}

// Run exports.
func (c *CAExportRootCmd) Run(out io.Writer, cli *CLI) error {
	authority, err := cli.CA.open()
	if err != nil {
		return err
	}
	if err := authority.ExportRoot(c.To); err != nil {
		return err
	}
	fmt.Fprintf(out, "The root's key is in %s only, sealed with the sealing key. Take it elsewhere; rehost ca rotate asks for it with --root-key.\n", c.To)
	return nil
}
