package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rehost/ca"
	"rehost/support"
)

// SupportBundle writes a tar.gz of what a person who helps has to see of the agent of a state
// directory and of its machine, without secrets; see [support.Write]. Also an
// agent that does not run, or is not installed, has one: what cannot be read says why.
func SupportBundle(ctx context.Context, dir string, w io.Writer) error {
	return writeBundle(ctx, dir, w)
}

// writeBundle makes a bundle; more is what only the agent itself can say.
func writeBundle(ctx context.Context, dir string, w io.Writer, more ...support.Part) error {
	d, now := stateDir(dir), time.Now()
	pid := d.running()
	parts := []support.Part{
		support.Text("about.txt", func() (string, error) {
			return fmt.Sprintf("rehost-agent %s\nmade at %s by user %d\nstate directory %s\nagent's process %d (0: it does not run)\n", Version, now.UTC().Format(time.RFC3339), os.Geteuid(), d, pid), nil
		}),
		support.Text("status.txt", func() (string, error) {
			s, err := ReadStatus(dir)
			if err != nil {
				return "", err
			}
			var b strings.Builder
			err = s.Print(&b)
			return b.String(), err
		}),
	}
	config, installed := d.config()
	parts = append(parts, support.Part{Name: "doctor.txt", Read: func(ctx context.Context) ([]byte, error) {
		var b bytes.Buffer
		err := Diagnose(ctx, DoctorOptions{StateDir: dir, BPFFS: config.BPFFS}).Print(&b)
		return b.Bytes(), err
	}})
	for _, name := range []string{statusFile, configFile, pairingFile, limitsFile} {
		parts = append(parts, support.File(name, d.path(name), 0))
	}
	parts = append(parts, support.Text("certificate.txt", d.certificate), support.Text("files.txt", func() (string, error) {
		text, problem := listing(dir)
		pins, missing := listing(d.pins(config))
		return text + pins, errors.Join(problem, missing)
	}), support.File(logFile, d.path(logFile), 0))
	if installed == nil && config.Service == ServiceSystemd {
		parts = append(parts, support.Journal(unitName))
	}
	parts = append(parts, more...)
	if pid != 0 {
		parts = append(parts, support.Process(pid)...)
	}
	return support.Write(ctx, w, "rehost-agent-support", now, append(parts, support.System()...))
}

// certificate is what is public of the agent's own.
func (d stateDir) certificate() (string, error) {
	pair, err := ca.LoadPair(d.path(pairFile))
	if err != nil {
		return "", err
	}
	c := pair.Leaf
	name, err := ca.PeerName(c)
	var b strings.Builder
	fmt.Fprintf(&b, "%v\nserial %s\nfrom %s\nuntil %s\nissued by %s\n", name, ca.Serial(c), c.NotBefore, c.NotAfter, c.Issuer)
	bundle, missing := loadBundle(d.path(rootFile))
	if missing == nil {
		fmt.Fprintf(&b, "believes %d roots, bundle %s\n", len(bundle.Roots()), bundle.Digest()[:16])
	}
	return b.String(), errors.Join(err, missing)
}

// listing is what files there are, without what is in them.
func listing(dir string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			fmt.Fprintf(&b, "%v %10d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), path)
		}
		return nil // it may have gone
	})
	return b.String(), err
}
