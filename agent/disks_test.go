package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/capture"
	"rehost/internal/fault"
)

// A bay is a machine whose disks can be given any names: /sys, /proc and /dev are
// the test's own, the devices behind them real.
type bay struct {
	t    *testing.T
	root string
}

func newBay(t *testing.T) *bay {
	b := &bay{t: t, root: t.TempDir()}
	for _, dir := range []string{"sys/block", "proc/self", "dev"} {
		if err := os.MkdirAll(filepath.Join(b.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bay) system() capture.System {
	return capture.System{Sysfs: filepath.Join(b.root, "sys"), Procfs: filepath.Join(b.root, "proc"), Dev: filepath.Join(b.root, "dev")}
}

func (b *bay) path(name string) string { return filepath.Join(b.root, "dev", name) }

// insert gives disks names, in place of those there were. The first one is the root disk.
func (b *bay) insert(names ...string) func(disks ...*fault.Disk) {
	return func(disks ...*fault.Disk) {
		b.t.Helper()
		must := func(err error) {
			b.t.Helper()
			if err != nil {
				b.t.Fatal(err)
			}
		}
		for _, dir := range []string{"sys", "dev"} {
			must(os.RemoveAll(filepath.Join(b.root, dir)))
			must(os.MkdirAll(filepath.Join(b.root, dir), 0o755))
		}
		for i, d := range disks {
			major, minor, err := d.Numbers()
			must(err)
			number := fmt.Sprintf("%d:%d", major, minor)
			dir := filepath.Join(b.root, "sys/block", names[i])
			must(os.MkdirAll(dir, 0o755))
			must(os.MkdirAll(filepath.Join(b.root, "sys/dev/block"), 0o755))
			must(os.Symlink(dir, filepath.Join(b.root, "sys/dev/block", number)))
			for _, file := range []string{"dev", "size", "ro", "queue"} {
				must(os.Symlink(filepath.Join("/sys/dev/block", number, file), filepath.Join(dir, file)))
			}
			must(unix.Mknod(b.path(names[i]), unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))))
			if i == 0 {
				must(os.WriteFile(filepath.Join(b.root, "proc/self/mountinfo"), []byte("22 1 "+number+" / / rw - ext4 "+b.path(names[i])+" rw\n"), 0o600))
			}
		}
	}
}

// label writes what tells a disk from others: the head of a partition table.
func label(t *testing.T, d *fault.Disk, id byte) {
	t.Helper()
	f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 512)
	copy(head, "EFI PART")
	for i := range 16 {
		head[56+i] = id
	}
	_, err = f.WriteAt(head, 512)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// reboot ends the agent and the tracking.
func (w *world) reboot(stop func() error) {
	w.t.Helper()
	if err := stop(); err != nil {
		w.t.Fatal(err)
	}
	if err := capture.Unpin(stateDir(w.state).pins(mustConfig(w.t, w.state))); err != nil {
		w.t.Fatal(err)
	}
}

// installIn installs on the machine of a bay.
func (w *world) installIn(b *bay, change func(*InstallOptions)) {
	w.t.Helper()
	o := w.options()
	o.ForceVolumes, o.Devices, o.System = false, nil, b.system()
	if change != nil {
		change(&o)
	}
	if _, err := Install(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) runIn(b *bay) (stop func() error) {
	return w.run(func(o *RunOptions) { o.system, o.look = b.system(), 50*time.Millisecond })
}

// says waits for a status that says all of this.
func (w *world) says(what string, texts ...string) Status {
	w.t.Helper()
	var s Status
	w.wait(what, func() bool {
		var err error
		if s, err = ReadStatus(w.state); err != nil {
			return false
		}
		text := fmt.Sprint(s.State, " ", s.Error, " ", s.Hint, " ", s.NotReplicated)
		for _, want := range texts {
			if !strings.Contains(text, want) {
				return false
			}
		}
		return true
	})
	return s
}

// latest is the newest point, and how many sessions there were.
func (w *world) latest() (p block.Point, sessions int) {
	w.t.Helper()
	r, err := w.store.Replica(w.t.Context(), serverID)
	if err != nil {
		w.t.Fatal(err)
	}
	last, _ := r.Latest()
	w.mu.Lock()
	defer w.mu.Unlock()
	return last.Point, w.sessions
}

// TestAgent_DisksRenamed: names change places at a reboot, and each disk's content
// goes where it went before. A disk in the place of another one, or one that two
// disks could be, stops replication before anything is sent.
//
// It was tried what this notices: disks found by their names (disk 0 differs in the
// end), and the first of two that are alike taken.
func TestAgent_DisksRenamed(t *testing.T) {
	w := newWorld(t)
	for i, d := range w.disks {
		label(t, d, byte(0xa1+i))
	}
	b := newBay(t)
	b.insert("sda", "sdb")(w.disks...)
	w.installIn(b, nil)
	stop := w.runIn(b)
	w.equal("first copy")

	w.reboot(stop)
	b.insert("sdb", "sda")(w.disks...)
	w.scribble(0, 1<<20, diskSize)
	stop = w.runIn(b)
	w.equal("names changed places")
	w.wait("the new names", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.registered[0].DeviceName == b.path("sdb") })

	w.reboot(stop)
	stranger := fault.Loop(t, diskSize)
	label(t, stranger, 0xcc)
	before, sessions := w.latest()
	b.insert("sdb", "sda")(w.disks[0], stranger)
	stop = w.runIn(b)
	w.says("another disk in its place", "STALLED", "is another disk now", "lest two disks be mixed")
	w.wait("a report that says so", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		r := w.reports[len(w.reports)-1]
		return r.State == formgn.DataReplicationStateStalled && r.Error == formgn.ReplicationErrorFailedToStartDataTransfer && strings.Contains(*r.RawError, "another disk")
	})
	w.reboot(stop)
	b.insert("sdb")(w.disks[0])
	stop = w.runIn(b)
	w.says("a disk that is away", "STALLED", "no longer attached", "attach the disk again")

	w.reboot(stop)
	label(t, stranger, 0xa2) // a copy
	b.insert("sdb", "sda", "sdc")(w.disks[0], w.disks[1], stranger)
	stop = w.runIn(b)
	w.says("two disks alike", "STALLED", "alike", "sgdisk -G")
	if now, n := w.latest(); now != before || n != sessions {
		t.Errorf("something was sent meanwhile: %v, then %v, %d sessions", before, now, n-sessions)
	}
	b.insert("sdb", "sda")(w.disks...) // and away again, while the agent runs
	w.scribble(1, 1<<20, diskSize)
	w.equal("both are there again")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestAgent_Partitioned: a partition table that is written while the agent runs makes
// no other disk of a disk, at the next reboot either.
func TestAgent_Partitioned(t *testing.T) {
	w := newWorld(t)
	b := newBay(t)
	b.insert("sda", "sdb")(w.disks...)
	w.installIn(b, nil)
	stop := w.runIn(b)
	w.equal("first copy")
	label(t, w.disks[0], 0xa1)
	label(t, w.disks[1], 0xa2)
	w.equal("partitioned")
	w.stopReceiver() // a new session
	w.startReceiver()
	w.wait("the new identities", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.registered[1].Serial != nil && *w.registered[1].Serial == "gpt:a2a2a2a2-a2a2-a2a2-a2a2-a2a2a2a2a2a2"
	})
	w.equal("with identities")
	b.insert("sdb", "sda")(w.disks...) // another disk has the name of one that is open
	w.stopReceiver()
	w.startReceiver()
	w.wait("the new names", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.registered[0].DeviceName == b.path("sdb") })
	w.equal("names changed places while the disks were open")
	w.reboot(stop)
	b.insert("sda", "sdb")(w.disks...)
	stop = w.runIn(b)
	w.scribble(0, 1<<20, diskSize)
	w.equal("and back, at a reboot")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestAgent_DiskGrows: a disk that grows while it is replicated goes on as another
// one, and the points from before are still of the smaller one.
func TestAgent_DiskGrows(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.equal("first copy")
	before, _ := w.latest()
	const larger = diskSize + 8<<20
	w.disks[1].Resize(t, larger)
	w.gone[1] = true
	w.disks = append(w.disks, w.disks[1]) // number 2
	w.scribble(2, diskSize, larger)
	w.equal("grown")
	r, err := w.store.Replica(t.Context(), serverID)
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.At(before.Seq)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := v.Disk(1); err != nil || d.Size() != diskSize {
		t.Errorf("the disk of the point before: %v", err)
	}
	w.disks[2].Resize(t, diskSize)
	w.says("shrunk", "STALLED", "smaller", "install again")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestAgent_DiskGone: a disk that is unplugged while it is replicated is told from one
// that fails, and replication goes on by itself when it is back.
func TestAgent_DiskGone(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.equal("first copy")
	w.disks[1].Resize(t, 0)
	w.says("unplugged", "STALLED", "attach the disk again")
	w.disks[1].Resize(t, diskSize)
	w.equal("there again, and empty")
	w.scribble(1, 0, diskSize)
	w.equal("written to")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestAgent_Unreadable: the end of a disk cannot be read. That is said, to the person and
// to the service, while the other disk goes on; there is a point again when it can be.
func TestAgent_Unreadable(t *testing.T) {
	w := newWorld(t)
	w.install()
	w.disks[1].Truncate(t, diskSize-1<<20)
	stop := w.run()
	w.says("a disk that fails", "STALLED", "read "+w.disks[1].Path+" at byte 24117248", "smartctl")
	w.wait("a report that says so", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		r := w.reports[len(w.reports)-1]
		return r.State == formgn.DataReplicationStateStalled && r.Error == formgn.ReplicationErrorFailedToStartDataTransfer && r.TrackingMethod != "" && strings.Contains(*r.RawError, "at byte")
	})
	r, err := w.store.Replica(t.Context(), serverID)
	if err != nil {
		t.Fatal(err)
	}
	w.wait("what can be read", func() bool { _, ok := r.Latest(); return ok })
	if p, ok := r.Consistent(); ok {
		t.Errorf("point %v of a disk that cannot be read", p)
	}
	w.disks[1].Truncate(t, diskSize)
	w.equal("it can be read again")
	w.wait("nothing to complain of", func() bool {
		s, err := ReadStatus(w.state)
		return err == nil && s.Error == "" && s.State == "CONTINUOUS"
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestAgent_DiskArrives: a disk that was left out at the installation stays out; one
// that comes later is shown, and replicated if the agent was installed so.
func TestAgent_DiskArrives(t *testing.T) {
	for _, auto := range []bool{false, true} {
		t.Run(fmt.Sprintf("auto %v", auto), func(t *testing.T) {
			w := newWorld(t)
			left, comes := fault.Loop(t, 4<<20), fault.Loop(t, 8<<20)
			for i, d := range append(w.disks, left, comes) {
				label(t, d, byte(0xa1+i))
			}
			b := newBay(t)
			b.insert("sda", "sdb", "sdc")(append(w.disks, left)...)
			w.installIn(b, func(o *InstallOptions) { o.Devices, o.AutoReplicate = []string{b.path("sdb")}, auto })
			stop := w.runIn(b)
			w.equal("first copy")
			w.says("one is left out", "{"+b.path("sdc")+" 4194304 false }")
			b.insert("sda", "sdb", "sdc", "sdd")(append(w.disks, left, comes)...)
			if !auto {
				w.says("one has come", "{"+b.path("sdd")+" 8388608 true }")
			} else {
				w.disks = append(w.disks, comes)
				w.equal("with the one that has come")
				w.scribble(2, 1<<20, 8<<20)
				w.equal("written to")
				w.says("one is left out", "{"+b.path("sdc")+" 4194304 false }")
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestRescan: the replica is not what the disks are, and nobody saw why. When a person
// asks for it, everything is compared, and what differs is sent; the request outlives
// an agent that does not run.
func TestRescan(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.equal("first copy")
	// Behind the kernel's back, as a disk that is written to by another machine.
	meddle := func(i int) {
		t.Helper()
		w.disks[i].Overwrite(t, 3<<20, []byte("somebody else was here"))
		w.scribble(1-i, 0, diskSize)
		w.wait("a difference", func() bool { return strings.Contains(w.differs(), fmt.Sprintf("disk %d differs", i)) })
	}
	meddle(0)
	if running, err := Rescan(w.state); err != nil || !running {
		t.Fatalf("running %v, %v", running, err)
	}
	w.equal("compared")
	w.wait("the request to be gone", func() bool {
		_, err := os.Stat(filepath.Join(w.state, rescanFile))
		return errors.Is(err, os.ErrNotExist)
	})
	meddle(1)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if running, err := Rescan(w.state); err != nil || running {
		t.Fatalf("running %v, %v", running, err)
	}
	w.mu.Lock()
	w.reports = nil
	w.mu.Unlock()
	stop = w.run()
	w.equal("compared by the next agent")
	if _, err := Rescan(t.TempDir()); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("got %v, want %v", err, ErrNotInstalled)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}
