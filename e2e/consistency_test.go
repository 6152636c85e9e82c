// Package e2e holds the road's tests from end to end: from a disk under load to
// a machine that boots.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/capture"
	"rehost/e2e/sourceserver/records"
	"rehost/internal/fault"
	"rehost/store"
)

const opened = 24 // recovery points that are opened and judged

// TestConsistency replicates two ext4 disks of one server, through the kernel's
// tracker, TLS and the encrypted store, while fio, a churn of files and a record
// log write to both. Recovery points from all over the run are then opened:
// each must be clean after its journals were replayed, and the log, written to
// disk A first and to disk B after, must be whole and never further on B. At
// the end, at rest, the newest point equals the disks byte by byte.
//
// This is a weak oracle beside the model test of package capture, which proves
// the rounds; it shows that kernel, network and store are what the model assumes.
func TestConsistency(t *testing.T) {
	need(t, "mke2fs", "e2fsck", "debugfs", "fio")
	disks := []*fault.Disk{fault.Loop(t, 256<<20), fault.Loop(t, 256<<20)}
	mounts := make([]string, len(disks))
	for i, d := range disks {
		run(t, "mke2fs", "-q", "-t", "ext4", "-F", d.Path)
		mounts[i] = mount(t, d.Path)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r := newReplication(ctx, t, disks, capture.Options{CopyFree: true}) // so that all of it can be compared
	r.start()

	load(ctx, t, mounts, 25*time.Second)
	for _, m := range mounts {
		run(t, "sync", "-f", m)
		if err := unix.Unmount(m, 0); err != nil {
			t.Fatal(err)
		}
	}
	quiet := time.Now()
	eventually(t, ctx, "a point behind the last write", func() bool {
		r.going(t)
		return r.engine.Status().Point.Time.After(quiet)
	})
	st := r.engine.Status()
	r.stop()
	t.Logf("%d epochs, %d rounds, %d conflicts", st.Epochs, st.Rounds, st.Conflicts)

	replica := r.replica(ctx, t)
	points := slices.DeleteFunc(replica.Points(), func(p store.RecoveryPoint) bool { return !p.Consistent() })
	if len(points) < opened {
		t.Fatalf("only %d consistent points in the whole run", len(points))
	}
	ahead := 0
	for i := range opened {
		p := points[i*(len(points)-1)/(opened-1)]
		if v := judge(t, ctx, replica, p); v.A.Count > 0 {
			ahead++
		}
	}
	if ahead < opened/2 {
		t.Errorf("only %d of %d points hold records: the load was not seen", ahead, opened)
	}
	for i, d := range disks {
		same(t, replica, points[len(points)-1], i, d.Path)
	}
}

// load writes to both mounts for so long.
func load(ctx context.Context, t *testing.T, mounts []string, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, m := range mounts {
		wg.Go(func() {
			out, err := exec.Command("fio", "--name=load", "--directory="+m, "--size=48m", "--rw=randwrite", "--bs=4k", "--rate_iops=250", "--fsync=16",
				"--time_based", fmt.Sprintf("--runtime=%d", int(d.Seconds()))).CombinedOutput()
			if err != nil {
				t.Errorf("fio on disk %d: %v: %s", i, err, out)
			}
		})
		wg.Go(func() { churn(ctx, t, filepath.Join(m, "churn")) })
	}
	wg.Go(func() {
		recordLog(ctx, t, filepath.Join(mounts[0], "records.log"), filepath.Join(mounts[1], "records.log"))
	})
}

// paced counts from 0, at most once an interval, until ctx ends. The load is
// meant to be one that rounds converge under.
func paced(ctx context.Context, interval time.Duration) iter.Seq[int] {
	return func(yield func(int) bool) {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for i := 0; yield(i); i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// churn makes, fills, renames and removes files, so that metadata changes all the time.
func churn(ctx context.Context, t *testing.T, dir string) {
	data := bytes.Repeat([]byte("rehost "), 3000)
	for i := range paced(ctx, 4*time.Millisecond) {
		sub := filepath.Join(dir, fmt.Sprint(i%7))
		err := os.MkdirAll(sub, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(sub, "new"), data[:i%len(data)], 0o644)
		}
		if err == nil {
			err = os.Rename(filepath.Join(sub, "new"), filepath.Join(sub, fmt.Sprint(i%40)))
		}
		if err == nil && i%200 == 199 {
			err = os.RemoveAll(filepath.Join(dir, fmt.Sprint(i/200%7)))
		}
		if err != nil {
			t.Errorf("churn: %v", err)
			return
		}
	}
}

// recordLog appends to A, syncs, appends to B, syncs.
func recordLog(ctx context.Context, t *testing.T, a, b string) {
	var files []*os.File
	for _, path := range []string{a, b} {
		f, err := os.Create(path)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		files = append(files, f)
	}
	for i := range paced(ctx, 3*time.Millisecond) {
		r := records.New([16]byte{1}, uint64(i+1))
		for _, f := range files {
			if err := r.WriteTo(f); err != nil {
				t.Error(err)
				return
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
				return
			}
		}
	}
}

// judge restores a point, replays the journals as a boot would, and looks.
func judge(t *testing.T, ctx context.Context, replica *store.Replica, p store.RecoveryPoint) records.Verdict {
	t.Helper()
	view, err := replica.At(p.Seq)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	paths, err := view.Restore(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var logs [2]string
	for i, path := range paths {
		if magic, err := view.Disk(view.Disks()[i].ID); err != nil || empty(magic) {
			return records.Verdict{} // before the file system was made
		}
		// Exit status 1 is what replaying the journal is reported as.
		if out, err := exec.Command("e2fsck", "-p", path).CombinedOutput(); err != nil && exitStatus(err) != 1 {
			t.Errorf("point %v disk %d: journal replay: %v: %s", p.Seq, i, err, out)
		}
		if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("point %v disk %d is not clean: %v: %s", p.Seq, i, err, out)
		}
		logs[i] = filepath.Join(dir, fmt.Sprintf("records%d", i))
		run(t, "debugfs", "-R", "dump /records.log "+logs[i], path)
	}
	a, b := open(t, logs[0]), open(t, logs[1])
	v, err := records.Judge(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if !v.OK {
		t.Errorf("point %v: the record log is impossible: %+v", p.Seq, v)
	}
	return v
}

// empty reports whether an ext4 superblock is missing.
func empty(d *store.Device) bool {
	super := make([]byte, 1024)
	_, err := d.ReadAt(super, 1024)
	return err != nil || super[0x38] != 0x53 || super[0x39] != 0xef
}

// same compares a point with a disk, byte by byte.
func same(t *testing.T, replica *store.Replica, p store.RecoveryPoint, i int, path string) {
	t.Helper()
	view, err := replica.At(p.Seq)
	if err != nil {
		t.Fatal(err)
	}
	device, err := view.Disk(view.Disks()[i].ID)
	if err != nil {
		t.Fatal(err)
	}
	disk := open(t, path)
	const piece = 1 << 20
	want, got := make([]byte, piece), make([]byte, piece)
	for off := int64(0); off < device.Size(); off += piece {
		n := min(piece, device.Size()-off)
		if _, err := disk.ReadAt(want[:n], off); err != nil {
			t.Fatal(err)
		}
		if _, err := device.ReadAt(got[:n], off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want[:n], got[:n]) {
			t.Errorf("disk %d differs from its replica in the MiB at %d", i, off)
		}
	}
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices, mounts and eBPF need root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%v: scripts/setup test installs it", err)
		}
	}
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func mount(t *testing.T, device string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		t.Fatalf("mount %s: %v", device, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil && err != unix.EINVAL {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

func eventually(t *testing.T, ctx context.Context, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}
