package e2e

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/e2e/site"
	"rehost/internal/fault"
)

// bundled is what a support bundle on the disk has.
func bundled(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", path, info.Mode(), err)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for files := tar.NewReader(z); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err == nil {
			b.WriteString("== " + h.Name + "\n")
			_, err = io.Copy(&b, files)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestSupport asks an agent for a support bundle while it is dead, kills the service too, and
// gets the bundle once both are there again; then the other two kinds of bundles are made.
func TestSupport(t *testing.T) {
	need(t)
	w := newWorld(t, 4*time.Minute, filepath.Join(t.TempDir(), "data"))
	disk := fault.Loop(t, 16<<20)
	fill(t, disk.Path, rand.New(rand.NewPCG(1, 1)))
	w.install([]*fault.Disk{disk})
	id := newObserver(w).id
	agents := func(env []string, args ...string) (string, error) {
		return w.command(env, "rehost", append([]string{"agents", "--data", w.config.Data, "--region", site.Region}, args...)...)
	}
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return out
	}
	eventually(t, w.ctx, "the agent in the list, as it replicates", func() bool {
		out := must(agents(nil, "ls"))
		return strings.Contains(out, id) && strings.Contains(out, "CONTINUOUS") && strings.Contains(out, "EBPF")
	})
	if out, err := agents(w.installer(), "ls"); err == nil || !strings.Contains(out, "AccessDenied") {
		t.Errorf("an installation key lists the agents: %v: %s", err, out)
	}

	w.agent.Kill()
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	out, err := agents(nil, "support-bundle", "--source-server-id", id, "-o", file, "--wait", "2s")
	if err == nil || !strings.Contains(out, "has not sent one") || !strings.Contains(out, "hint:") {
		t.Fatalf("of an agent that does not run: %v: %s", err, out)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file is left: %v", err)
	}
	w.service.Kill()
	w.serve()
	if out := must(agents(nil, "ls")); !strings.Contains(out, "COLLECT_LOGS PENDING") {
		t.Errorf("after kill -9 the task is not there: %s", out)
	}
	w.runAgent()
	must(agents(nil, "support-bundle", "--source-server-id", id, "-o", file, "--wait", "2m"))
	last := filepath.Join(t.TempDir(), "last.tar.gz")
	must(agents(nil, "support-bundle", "--source-server-id", id, "-o", last, "--last"))
	text := bundled(t, file)
	if text != bundled(t, last) {
		t.Error("the last bundle that is kept is another")
	}
	own := filepath.Join(t.TempDir(), "own.tar.gz")
	must(w.command(nil, "rehost-agent", "support-bundle", "--state-dir", w.state, "-o", own))
	service := filepath.Join(t.TempDir(), "service.tar.gz")
	must(w.command(nil, "rehost", "support-bundle", "--data", w.config.Data, "--region", site.Region, "-o", service))
	ofService := bundled(t, service)
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"the agent's, by the service": {text, []string{id, disk.Path, "certificate.txt", "bpf.txt"}},
		"the agent's own":             {bundled(t, own), []string{id, disk.Path, "prog_id:"}},
		"the service's":               {ofService, []string{id, "SupportBundleReceived", "source_servers", "/cmdline"}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.text, want) {
				t.Errorf("%s is without %q", name, want)
			}
		}
		for _, of := range []string{"credentials", "installer-credentials"} {
			if _, secret, err := site.ReadCredentials(filepath.Join(w.config.Data, of)); err != nil || strings.Contains(c.text, secret) || strings.Contains(c.text, "PRIVATE KEY") {
				t.Errorf("%s has a secret of %s, or: %v", name, of, err)
			}
		}
	}
	if out, err := w.command(nil, "rehost", "support-bundle", "--data", w.config.Data, "-o", service); err == nil {
		t.Errorf("a file that was there is written over: %s", out)
	}
	record := must(w.command(nil, "rehost", "audit", "ls", "--data", w.config.Data))
	for _, event := range []string{"StartAgentTaskForRehost", "SendSupportBundleForRehost", "SupportBundleReceived", "DownloadSupportBundleForRehost"} {
		if !strings.Contains(record, event) {
			t.Errorf("the audit log is without %s", event)
		}
	}
	must(w.command(nil, "rehost", "audit", "verify", "--data", w.config.Data))
}
