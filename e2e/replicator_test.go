package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/e2e/site"
	"rehost/internal/fault"
)

// TestReplicator runs the replication server as a process of its own, kills it,
// and kills the service beside it: neither is in the other's way.
func TestReplicator(t *testing.T) {
	need(t)
	disks := []*fault.Disk{fault.Loop(t, 24<<20)}
	data := t.TempDir()
	w := newWorld(t, 90*time.Second, data, "--no-replicator")
	port, err := site.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	args := []string{"replicator", "--data", data, "--endpoint", w.service.Endpoint, "--listen", address, "--address", address}
	var replicator *site.Process
	start := func() {
		t.Helper()
		if replicator, err = site.Start(w.ctx, w.log, "ready", filepath.Join(w.bin, "rehost"), args...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { replicator.Kill() })
	}
	start()
	if out, err := w.command(nil, "rehost", args...); exitStatus(err) != 5 || !strings.Contains(out, "in use") && !strings.Contains(out, "uses this directory") {
		t.Errorf("a second replication server in one directory: %v: %s", err, out)
	}
	if out, err := w.command(nil, "rehost", "replicator", "--data", t.TempDir(), "--endpoint", w.service.Endpoint, "--address", address); exitStatus(err) != 3 ||
		!strings.Contains(out, "hint: start rehost serve --no-replicator") {
		t.Errorf("a replication server where no service was: %v: %s", err, out)
	}
	w.install(disks)
	o := newObserver(w)
	stop := scribble(t, disks, 1)
	o.until("the first point", func() bool { return !o.last.IsZero() })

	if err := replicator.Kill(); err != nil {
		t.Fatal(err)
	}
	dead := time.Now()
	start()
	o.until("a point after the replication server's death", func() bool { return o.last.After(dead) })

	// Points go on being made while there is no service.
	if err := w.service.Kill(); err != nil {
		t.Fatal(err)
	}
	dead = time.Now()
	replica := w.replica(o.id)
	eventually(t, w.ctx, "a point without the service", func() bool {
		if err := replica.Refresh(); err != nil {
			t.Fatal(err)
		}
		p, ok := replica.Latest()
		return ok && p.Consistent() && p.Time.After(dead)
	})
	w.serve()
	stop()
	quiet := time.Now()
	o.until("a point behind the last write", func() bool { return o.last.After(quiet) })
	w.equal(o.id, disks)
	if err := replicator.Stop(); err != nil {
		t.Errorf("the replication server ended with %v", err)
	}
}
