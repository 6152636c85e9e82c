package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"rehost/audit"
	"rehost/ca"
	"rehost/control"
	"rehost/support"
)

// supportDir is where the service keeps agents' support bundles in its directory.
const supportDir = "support"

// SupportCmd is `rehost support-bundle`: of the service itself.
type SupportCmd struct {
	Data        string `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`
	EndpointURL string `help:"Where the service is reached; by default the directory says it." placeholder:"URL"`
	Region      string `help:"Region of the service." env:"AWS_REGION,AWS_DEFAULT_REGION" default:"us-east-1" placeholder:"NAME"`
	Output      string `help:"File to write, which must not be there." short:"o" default:"rehost-support.tar.gz" type:"path" placeholder:"FILE"`
}

// Run writes the bundle, also of a service that does not run.
func (c *SupportCmd) Run(ctx context.Context, out io.Writer) error {
	f, err := os.OpenFile(c.Output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(support.Write(ctx, f, "rehost-support", time.Now(), c.parts()), f.Close()); err != nil {
		return errors.Join(err, os.Remove(c.Output))
	}
	fmt.Fprintf(out, "%s is written. Secrets have been taken out of it as far as they can be known: look into it before you give it away.\n", c.Output)
	return nil
}

func (c *SupportCmd) parts() []support.Part {
	parts := []support.Part{
		support.Text("about.txt", c.about),
		{Name: "agents.json", Read: c.agents},
		{Name: "database.txt", Read: c.database},
		support.Text("authority.txt", c.authority),
		support.Text("files.txt", c.files),
		support.Text("audit.jsonl", c.auditEnd),
		support.Journal("rehost"),
	}
	for _, pid := range c.holding("lock", "replicator.lock") {
		parts = append(parts, support.Process(pid)...)
	}
	return append(parts, support.System()...)
}

// holding are the processes that have one of the directory's locks: the service, and a
// replication server of its own.
func (c *SupportCmd) holding(locks ...string) (holders []int) {
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return nil
	}
	pids, err := processesIn(data)
	if err != nil {
		return nil
	}
	for _, pid := range pids {
		links, err := openFiles(pid)
		if err == nil && slices.ContainsFunc(locks, func(l string) bool { return slices.Contains(links, filepath.Join(data, l)) }) {
			holders = append(holders, pid)
		}
	}
	return holders
}

func (c *SupportCmd) about() (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "made at %s\ndirectory %s, used by processes %v\n", time.Now().UTC().Format(time.RFC3339), c.Data, c.holding("lock", "replicator.lock"))
	if info, ok := debug.ReadBuildInfo(); ok {
		fmt.Fprintln(&b, info)
	}
	endpoint, err := os.ReadFile(filepath.Join(c.Data, endpointFile))
	fmt.Fprintf(&b, "endpoint %s", endpoint)
	var s syscall.Statfs_t
	if full := syscall.Statfs(c.Data, &s); full == nil {
		fmt.Fprintf(&b, "file system: %d of %d bytes free, %d of %d inodes\n", s.Bavail*uint64(s.Bsize), s.Blocks*uint64(s.Bsize), s.Ffree, s.Files)
	}
	return b.String(), err
}

// agents is the fleet, by the service's API.
func (c *SupportCmd) agents(ctx context.Context) ([]byte, error) {
	client, err := besideMGN(c.Data, c.EndpointURL, c.Region)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	all, err := allAgents(ctx, client)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(all, "", "  ")
}

// database is how much there is of everything. Where no service has it open, it is left
// alone: even reading would leave files beside it.
func (c *SupportCmd) database(ctx context.Context) ([]byte, error) {
	if len(c.holding("lock")) == 0 {
		return nil, errNotRunning
	}
	sizes, err := control.TableSizes(ctx, filepath.Join(c.Data, "control.db"))
	var b bytes.Buffer
	for _, s := range sizes {
		fmt.Fprintf(&b, "%10d %s\n", s.Rows, s.Table)
	}
	return b.Bytes(), err
}

// authority is who issues, without keys.
func (c *SupportCmd) authority() (string, error) {
	text, err := os.ReadFile(filepath.Join(c.Data, "ca.pem"))
	if err != nil {
		return "", err
	}
	certs, err := ca.DecodeCertificates(text)
	var b strings.Builder
	for _, cert := range certs {
		fmt.Fprintf(&b, "%s, serial %s, from %s until %s\n", cert.Subject, ca.Serial(cert), cert.NotBefore, cert.NotAfter)
	}
	return b.String(), err
}

// files are those of the directory, without what is in them.
func (c *SupportCmd) files() (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(c.Data, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err == nil { // it may have gone
			fmt.Fprintf(&b, "%v %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), path)
		}
		return nil
	})
	return b.String(), err
}

// auditRecords is how many records of the audit log are in a bundle.
const auditRecords = 500

func (c *SupportCmd) auditEnd() (string, error) {
	files, err := audit.Files(filepath.Join(c.Data, auditDir))
	if err != nil {
		return "", err
	}
	var last []string
	unreadable, err := audit.Read(files[max(0, len(files)-2):], func(_ *audit.Entry, line []byte) error {
		last = append(last, string(line))
		last = last[max(0, len(last)-auditRecords):]
		return nil
	})
	if err == nil && unreadable > 0 {
		err = fmt.Errorf("%d lines are no records", unreadable)
	}
	return strings.Join(last, ""), err
}
