package freeze

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestClient freezes and thaws each kind of file system, on a disk, above device
// mapper, and on the second of two disks, by a freezer that the client starts. A
// program that writes meanwhile waits, and goes on.
func TestClient(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T) *volume{
		"ext4":  func(t *testing.T) *volume { return newVolume(t, "ext4") },
		"xfs":   func(t *testing.T) *volume { return newVolume(t, "xfs") },
		"btrfs": func(t *testing.T) *volume { return newVolume(t, "btrfs") },
		"btrfs on two disks": func(t *testing.T) *volume {
			a, _ := loopDisk(t, 128<<20)
			b, second := loopDisk(t, 128<<20)
			command(t, "mkfs.btrfs", "-q", "-f", a, b)
			command(t, "btrfs", "device", "scan", a, b)
			return mounted(t, a, "btrfs", second)
		},
		"above device mapper": func(t *testing.T) *volume {
			if control, err := os.Open("/dev/mapper/control"); err != nil {
				t.Skipf("SKIPPED: %v", err)
			} else {
				control.Close()
			}
			path, disk := loopDisk(t, 32<<20)
			name := fmt.Sprintf("rehost-freeze-%d", os.Getpid())
			command(t, "dmsetup", "create", name, "--table", fmt.Sprintf("0 %d linear %s 0", 32<<20/512, path))
			t.Cleanup(func() { command(t, "dmsetup", "remove", "--retry", name) })
			command(t, "mkfs.ext4", "-q", "-F", "/dev/mapper/"+name)
			return mounted(t, "/dev/mapper/"+name, "ext4", disk)
		},
		"of another user": func(t *testing.T) *volume {
			v := newVolume(t, "ext4")
			if err := errors.Join(os.Chown(v.dir, 65534, 65534), os.Chmod(v.dir, 0o700)); err != nil {
				t.Fatal(err)
			}
			return v
		},
	} {
		t.Run(name, func(t *testing.T) {
			exe := agent(t)
			v := prepare(t)
			c := Client{Socket: "/nonexistent", Program: []string{exe, "freezer", "--fd", fmt.Sprint(ChildFD)}}
			defer c.Thaw()
			if err := c.Prepare(t.Context(), []uint64{v.disk}); err != nil {
				t.Fatal(err)
			}
			if v.frozen() {
				t.Fatal("it is frozen before it should be")
			}
			granted, err := c.Freeze(t.Context(), time.Hour)
			if err != nil || granted != DefaultMost {
				t.Fatalf("granted %v, %v", granted, err)
			}
			began := time.Now()
			written := make(chan error, 1)
			go func() { written <- os.WriteFile(v.dir+"/file", []byte("x"), 0o600) }()
			wasFrozen := v.frozen()
			if time.Since(began) < DefaultMost/2 && !wasFrozen {
				t.Error("it is not frozen")
			}
			frozen, err := c.Thaw()
			if time.Since(began) < DefaultMost/2 && (err != nil || frozen <= 0 || frozen > DefaultMost) {
				t.Errorf("frozen for %v, %v", frozen, err)
			}
			v.thawed()
			if err := <-written; err != nil {
				t.Error(err)
			}
			t.Logf("frozen for %v", frozen)
		})
	}
}

// TestWatchdog ends everybody who could thaw, in each way: it is thawed at once where
// somebody was killed, and when it is time where nobody was.
func TestWatchdog(t *testing.T) {
	const long, short = 50 * time.Second, time.Second
	for _, c := range []struct {
		name string
		most time.Duration
		do   func(client, freezer *os.Process)
	}{
		{"the client is killed", long, func(c, _ *os.Process) { c.Kill() }},
		{"the freezer is killed", long, func(_, f *os.Process) { f.Kill() }},
		{"both are killed", long, func(c, f *os.Process) { f.Kill(); c.Kill() }},
		{"the freezer hangs and the client is killed", long, func(c, f *os.Process) { f.Signal(unix.SIGSTOP); c.Kill() }},
		{"the client hangs", short, func(c, _ *os.Process) { c.Signal(unix.SIGSTOP) }},
		{"both hang", short, func(c, f *os.Process) { c.Signal(unix.SIGSTOP); f.Signal(unix.SIGSTOP) }},
		{"the freezer is told to end", long, func(_, f *os.Process) { f.Signal(unix.SIGTERM) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := newVolume(t, "ext4")
			r := freezerAt(t, "--most", c.most.String())
			client, said := holder(t, r, v, time.Hour, nil)
			if said != "frozen: <nil>" || c.most == long && !v.frozen() {
				t.Fatalf("it is not frozen: %s", said)
			}
			began := time.Now()
			c.do(client.Process, r.cmd.Process)
			v.thawed()
			if took := time.Since(began); took > long-5*time.Second {
				t.Errorf("thawed after %v", took)
			}
		})
	}
}

// TestWatchdog_Stopped is the mutation of TestWatchdog: with a watchdog that does
// nothing, a file system whose freezer was killed stays frozen. And the watchdog's
// own end is the end of a freeze, and of the freezer.
func TestWatchdog_Stopped(t *testing.T) {
	t.Run("it does nothing", func(t *testing.T) {
		v := newVolume(t, "ext4")
		r := freezerAt(t, "--most", "50s")
		client, said := holder(t, r, v, time.Hour, nil)
		if err := unix.Kill(r.watchdog, unix.SIGSTOP); err != nil || said != "frozen: <nil>" {
			t.Fatal(said, err)
		}
		stopped(t, r.watchdog)
		r.cmd.Process.Kill()
		client.Process.Kill()
		r.cmd.Process.Wait()
		for range 100 {
			if !v.frozen() {
				t.Fatal("it is thawed, and not by the watchdog: TestWatchdog shows nothing")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := unix.Kill(r.watchdog, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		v.thawed()
	})
	t.Run("it is killed", func(t *testing.T) {
		v := newVolume(t, "ext4")
		r := freezerAt(t, "--most", "50s")
		holder(t, r, v, time.Hour, nil)
		if err := unix.Kill(r.watchdog, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		v.thawed()
		if err := r.cmd.Wait(); err == nil {
			t.Error("the freezer goes on without a watchdog")
		}
	})
}

// said sends bytes to a freezer, and returns its answers until it has nothing more to
// say or n are there.
func said(t *testing.T, socket string, n int, bytes ...[]byte) (out []message) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	for _, b := range bytes {
		if _, err := c.Write(b); err != nil {
			break
		}
	}
	for len(out) < n {
		head := make([]byte, headSize)
		if _, err := io.ReadFull(c, head); err != nil {
			return out
		}
		m, length, err := parseHead(head)
		if err != nil {
			t.Fatal(err)
		}
		m.body = make([]byte, length)
		if _, err := io.ReadFull(c, m.body); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// TestServe_Hostile says to a freezer what it should not be told: it refuses, says why,
// and goes on serving others; nothing stays frozen.
func TestServe_Hostile(t *testing.T) {
	v := newVolume(t, "ext4")
	empty, nothing := loopDisk(t, 1<<20)
	r := freezerAt(t, "--most", "1s", "--every", "1h")
	question := func(k kind, value uint64, body []byte) []byte {
		return message{kind: k, value: value, body: body}.append(nil)
	}
	prepare := question(kindPrepare, 0, appendDisks(nil, []uint64{v.disk}))
	long := question(kindFreeze, 1, nil)
	binary.LittleEndian.PutUint16(long[offLength:], maxLength+1)
	older := question(kindThaw, 0, nil)
	older[offVersion] = 2
	for _, c := range []struct {
		name string
		say  [][]byte
		want Code
	}{
		{"garbage", [][]byte{[]byte("GET / HTTP/1.1\r\nHost: freezer\r\n\r\n")}, Malformed},
		{"another version", [][]byte{older}, Malformed},
		{"too long a message", [][]byte{long}, Malformed},
		{"an answer", [][]byte{question(kindFrozen, 1, nil)}, Malformed},
		{"no disks", [][]byte{question(kindPrepare, 0, nil)}, Malformed},
		{"half a disk", [][]byte{question(kindPrepare, 0, make([]byte, 12))}, Malformed},
		{"too many disks", [][]byte{question(kindPrepare, 0, make([]byte, 65*8))}, Malformed},
		{"no time", [][]byte{question(kindFreeze, 0, nil)}, Malformed},
		{"nothing prepared", [][]byte{question(kindFreeze, 1, nil)}, Unprepared},
		{"a disk that is none", [][]byte{question(kindPrepare, 0, appendDisks(nil, []uint64{unix.Mkdev(259, 1048000)}))}, Unknown},
		{"something like a path", [][]byte{question(kindPrepare, 0, []byte("/../etc/"))}, Unknown},
		{"a disk with nothing on it", [][]byte{question(kindPrepare, 0, appendDisks(nil, []uint64{nothing}))}, Nothing},
	} {
		answers := said(t, r.socket, 1, c.say...)
		if len(answers) != 1 || answers[0].kind != kindRefused || Code(answers[0].value) != c.want {
			t.Errorf("%s: got %+v, want code %d", c.name, answers, c.want)
			continue
		}
		t.Logf("%s: %s", c.name, answers[0].body)
	}
	_ = empty

	// Forever is a second, a freeze that is interrupted is over, and the next one too soon.
	answers := said(t, r.socket, 3, prepare, question(kindFreeze, 1<<63, nil), []byte(strings.Repeat("!", headSize)))
	if len(answers) != 3 || answers[1].kind != kindFrozen || answers[1].value != 1000 || answers[2].kind != kindRefused {
		t.Errorf("got %+v", answers)
	}
	v.thawed()
	flood := [][]byte{prepare}
	for range 200 {
		flood = append(flood, question(kindFreeze, 1000, nil))
	}
	for i, m := range said(t, r.socket, 201, flood...)[1:] {
		if m.kind != kindRefused || Code(m.value) != Soon {
			t.Fatalf("freeze %d: %+v", i, m)
		}
	}

	// Who says half of something keeps nobody waiting who comes after it is gone.
	half, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	half.Write(prepare[:7])
	half.Close()
	for range 500 {
		if c, err := net.Dial("unix", r.socket); err == nil { // or too many wait already
			c.Close()
		}
	}
	for {
		c, err := net.Dial("unix", r.socket)
		if err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if answers := said(t, r.socket, 1, prepare); len(answers) != 1 || answers[0].kind != kindPrepared || answers[0].value != 1 {
		t.Errorf("got %+v", answers)
	}
}

// TestServe_Bound: who does not thaw in time finds that it was done.
func TestServe_Bound(t *testing.T) {
	v := newVolume(t, "ext4")
	r := freezerAt(t, "--most", "300ms")
	c := Client{Socket: r.socket}
	defer c.Thaw()
	if err := c.Prepare(t.Context(), []uint64{v.disk}); err != nil {
		t.Fatal(err)
	}
	if granted, err := c.Freeze(t.Context(), time.Hour); err != nil || granted != 300*time.Millisecond {
		t.Fatalf("granted %v, %v", granted, err)
	}
	v.thawed()
	time.Sleep(300 * time.Millisecond)
	frozen, err := c.Thaw()
	if err == nil || frozen == 0 {
		t.Fatalf("frozen for %v, %v", frozen, err)
	}
	t.Logf("frozen for %v: %v", frozen, err)
}

// TestServe_Frozen: what somebody else has frozen is theirs to thaw.
func TestServe_Frozen(t *testing.T) {
	v := newVolume(t, "ext4")
	r := freezerAt(t)
	c := Client{Socket: r.socket}
	defer c.Thaw()
	if err := c.Prepare(t.Context(), []uint64{v.disk}); err != nil {
		t.Fatal(err)
	}
	if err := freeze(v.fd); err != nil {
		t.Fatal(err)
	}
	_, err := c.Freeze(t.Context(), time.Second)
	var no *RefusedError
	if !errors.As(err, &no) || no.Code != Failed || !v.frozen() {
		t.Fatalf("got %v", err)
	}
	t.Log(err)
}

// TestServe_Strangers: only root and the user that it is for may ask.
func TestServe_Strangers(t *testing.T) {
	nobody, other := &syscall.Credential{Uid: 65534, Gid: 65534}, &syscall.Credential{Uid: 65533, Gid: 65533}
	v := newVolume(t, "ext4")
	r := &running{socket: programDir + "/s"}
	r.cmd = exec.Command(agent(t), "freezer", "--socket", r.socket, "--user", "65534", "--every", "1ms")
	r.start(t)
	info, err := os.Stat(r.socket)
	if err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 65534 {
		t.Errorf("the socket is %v: %v", info.Mode(), err)
	}
	if err := os.Chmod(r.socket, 0o666); err != nil { // even if it were open to all
		t.Fatal(err)
	}
	if _, said := holder(t, r, v, 50*time.Millisecond, other); !strings.Contains(said, "may not ask") {
		t.Errorf("a stranger: %s", said)
	}
	if v.frozen() {
		t.Error("a stranger froze it")
	}
	if _, said := holder(t, r, v, 50*time.Millisecond, nobody); said != "frozen: <nil>" {
		t.Errorf("the user that it is for: %s", said)
	}
	v.thawed()
}

// TestServe_UntilStdin: a freezer that was started for a process ends with that.
func TestServe_UntilStdin(t *testing.T) {
	v := newVolume(t, "ext4")
	r := &running{socket: filepath.Join(t.TempDir(), "s")}
	r.cmd = exec.Command(agent(t), "freezer", "--socket", r.socket, "--until-stdin")
	life, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.start(t)
	c := Client{Socket: r.socket}
	if err := c.Prepare(t.Context(), []uint64{v.disk}); err != nil {
		t.Fatalf("while that lives: %v", err)
	}
	c.close()
	if err := life.Close(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(20*time.Second, func() { r.cmd.Process.Kill() })
	defer late.Stop()
	if state, err := r.cmd.Process.Wait(); err != nil || !state.Success() {
		t.Errorf("after its end: %v, %v", state, err)
	}
}

// TestServe_Activated starts a freezer as a service manager does, with a socket that
// listens already.
func TestServe_Activated(t *testing.T) {
	v := newVolume(t, "ext4")
	r := &running{socket: t.TempDir() + "/s"}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r.cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" freezer`, agent(t))
	r.cmd.ExtraFiles = []*os.File{file}
	r.start(t)
	c := Client{Socket: r.socket}
	defer c.Thaw()
	if err := c.Prepare(t.Context(), []uint64{v.disk}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Freeze(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Thaw(); err != nil {
		t.Log(err)
	}
	v.thawed()
}

// TestServe_Confined looks at both processes as the kernel sees them.
func TestServe_Confined(t *testing.T) {
	r := freezerAt(t)
	for pid, caps := range map[int]string{r.cmd.Process.Pid: "0000000000204004", r.watchdog: "0000000000204000"} {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil || len(tasks) == 0 {
			t.Fatal(err)
		}
		for _, task := range tasks {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
			if err != nil {
				continue // a thread that has ended
			}
			for name, want := range map[string]string{"CapPrm": caps, "CapEff": caps, "CapBnd": caps, "CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
				if got := regexp.MustCompile(name + `:\s+(\S+)`).FindSubmatch(text); got == nil || string(got[1]) != want {
					t.Errorf("thread %s of %d: %s is %q, want %s", task.Name(), pid, name, got, want)
				}
			}
			if regexp.MustCompile(`VmLck:\s+0 kB`).Match(text) {
				t.Errorf("thread %s of %d: its memory is not locked", task.Name(), pid)
			}
		}
	}
}

// confined is a thread under the freezer's filter, which says what it can do. The
// other ones of a test program need more: that all of the freezer's are under it
// shows TestServe_Confined.
func confined() {
	runtime.LockOSThread()
	p := freezerFilter().program()
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		fmt.Println(errno)
		os.Exit(1)
	}
	page := os.Getpagesize()
	at := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	proc, _ := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	raw := func(call, a, b, c uintptr) error {
		if _, _, errno := unix.RawSyscall(call, a, b, c); errno != 0 {
			return errno
		}
		return nil
	}
	_, mapErr := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	_, socketErr := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	for _, c := range []struct {
		name string
		got  error
		want error
	}{
		{"open a directory", at("/proc", unix.O_RDONLY|unix.O_DIRECTORY), nil},
		{"open a file", at("/etc/passwd", unix.O_RDONLY), unix.EPERM},
		{"make a file", at("/tmp/rehost-freeze", unix.O_RDWR|unix.O_CREAT), unix.EPERM},
		{"make a nameless file", at("/tmp", unix.O_RDWR|unix.O_TMPFILE), unix.EPERM},
		{"thaw what is not frozen", thaw(proc), unix.EINVAL},
		{"another ioctl", request(proc, unix.BLKRRPART), unix.EPERM},
		{"map code", mapErr, unix.EPERM},
		{"open a socket", socketErr, unix.EPERM},
		{"remove a file", unix.Unlink("/tmp/rehost-freeze"), unix.EPERM},
		{"unmount", unix.Unmount("/nonexistent", 0), unix.EPERM},
		{"signal somebody", unix.Kill(1, 0), unix.EPERM},
		{"signal another's thread", raw(unix.SYS_TGKILL, 1, 1, 0), unix.EPERM},
		{"run a program", unix.Exec("/bin/true", []string{"true"}, nil), unix.EPERM},
		{"fork", raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0), unix.EPERM},
		{"look into a process", raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1, 0), unix.EPERM},
		{"load a program into the kernel", raw(unix.SYS_BPF, 0, 0, 0), unix.EPERM},
		{"load a module", raw(unix.SYS_INIT_MODULE, 0, 0, 0), unix.EPERM},
	} {
		if !errors.Is(c.got, c.want) {
			fmt.Printf("%s: got %v, want %v\n", c.name, c.got, c.want)
		}
	}
	fmt.Println("done")
	unix.Exit(0) // at once
}

// TestFilter: what is not on the list fails, and nothing else.
func TestFilter(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asConfined+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "done\n" {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestMounts reads tables as they are, and as somebody may have made them look.
func TestMounts(t *testing.T) {
	got := parseMounts(`29 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
31 29 0:27 / /tmp rw - tmpfs tmpfs rw
40 29 252:17 /a /with\040space ro,relatime - xfs /dev/vdb1 rw,attr2
41 29 259:5 / /ro rw - ext4 /dev/nvme0n1p5 ro
42 29 x:1 / /odd rw - ext4 /dev/odd rw
short line
43 29 1:1 / /noend rw - ext4
`)
	want := []mount{
		{29, unix.Mkdev(252, 1), "/", "ext4", "/dev/vda1", true},
		{31, unix.Mkdev(0, 27), "/tmp", "tmpfs", "tmpfs", true},
		{40, unix.Mkdev(252, 17), "/with space", "xfs", "/dev/vdb1", true},
		{41, unix.Mkdev(259, 5), "/ro", "ext4", "/dev/nvme0n1p5", false},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || fmt.Sprintf("%+v", got[2]) != fmt.Sprintf("%+v", want[2]) || got[0].depth() != 0 || got[2].depth() != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestDisksUnder: a logical volume on an array of a partition and of a whole disk,
// and a partition of an array.
func TestDisksUnder(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"vda/vda1/slaves", "vda/slaves", "vdb/slaves", "md0/md0p1", "md0/slaves", "dm-0/slaves"} {
		if err := os.MkdirAll(dir+"/devices/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, at string) {
		if err := os.Symlink(to, dir+"/"+at); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"vda/vda1", "md0/md0p1"} {
		if err := os.WriteFile(dir+"/devices/"+name+"/partition", []byte("1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link("../../vda/vda1", "devices/md0/slaves/vda1")
	link("../../vdb", "devices/md0/slaves/vdb")
	link("../../md0", "devices/dm-0/slaves/md0")
	for number, name := range map[string]string{"253:0": "dm-0", "259:0": "md0/md0p1", "252:1": "vda/vda1", "252:16": "vdb"} {
		link("devices/"+name, number)
	}
	for number, want := range map[string]string{"253:0": "map[vda:true vdb:true]", "259:0": "map[vda:true vdb:true]", "252:1": "map[vda:true]", "252:16": "map[vdb:true]", "1:1": "map[]"} {
		got := map[string]bool{}
		if disksUnder(dir+"/"+number, got, 0); fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, want %s", number, got, want)
		}
	}
}

// TestTargets_Order: the deepest is frozen first, and each file system once.
func TestTargets_Order(t *testing.T) {
	outer := newVolume(t, "ext4")
	if err := os.Mkdir(outer.dir+"/in", 0o700); err != nil {
		t.Fatal(err)
	}
	inner := newVolume(t, "ext4")
	for _, to := range []string{outer.dir + "/in"} {
		if err := unix.Mount(inner.dir, to, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(to, 0)
	}
	if err := unix.Mount("none", outer.dir+"/in", "tmpfs", 0, ""); err != nil { // one of the two is hidden
		t.Fatal(err)
	}
	defer unix.Unmount(outer.dir+"/in", 0)
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	got, left, err := machine{fd}.targets([]uint64{outer.disk, inner.disk})
	defer closeTargets(got)
	if err != nil || len(got) != 2 || len(left) != 0 || got[0].name != "ext4 on "+inner.dir || got[1].name != "ext4 on "+outer.dir {
		t.Errorf("got %+v, left out %v: %v", got, left, err)
	}
}

// TestMessage_Document holds docs/format/freezer.md and the constants together.
func TestMessage_Document(t *testing.T) {
	text, err := os.ReadFile("../../docs/format/freezer.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		"| 0 | 4 | magic | `" + magic + "` |",
		fmt.Sprintf("| %d | 1 | version | %d |", offVersion, version),
		fmt.Sprintf("| %d | 1 | kind |", offKind),
		fmt.Sprintf("| %d | 2 | length | of what follows, at most %d |", offLength, maxLength),
		fmt.Sprintf("| %d | 8 | value |", offValue),
		fmt.Sprintf("| %d | length |", headSize),
		fmt.Sprintf("| %d | PREPARE | 0 | 1 to %d disks |", kindPrepare, maxDisks),
		fmt.Sprintf("| %d | FREEZE |", kindFreeze), fmt.Sprintf("| %d | THAW |", kindThaw), fmt.Sprintf("| %d | PREPARED |", kindPrepared),
		fmt.Sprintf("| %d | FROZEN |", kindFrozen), fmt.Sprintf("| %d | THAWED |", kindThawed), fmt.Sprintf("| %d | REFUSED |", kindRefused),
		fmt.Sprintf("| %d | MALFORMED |", Malformed), fmt.Sprintf("| %d | STRANGER |", Stranger), fmt.Sprintf("| %d | UNPREPARED |", Unprepared),
		fmt.Sprintf("| %d | UNKNOWN |", Unknown), fmt.Sprintf("| %d | NOTHING |", Nothing), fmt.Sprintf("| %d | SOON |", Soon), fmt.Sprintf("| %d | FAILED |", Failed),
		fmt.Sprintf("A disk is %d bytes", diskSize), fmt.Sprintf("%d at most", maxTargets),
	} {
		if !strings.Contains(string(text), row) {
			t.Errorf("the page does not say %q", row)
		}
	}
}

// FuzzMessage: whatever parses is encoded to the very same bytes.
func FuzzMessage(f *testing.F) {
	f.Add(message{kind: kindPrepare, body: appendDisks(nil, []uint64{unix.Mkdev(8, 1)})}.append(nil))
	f.Add(message{kind: kindRefused, value: 7, body: []byte("no")}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headSize {
			return
		}
		m, length, err := parseHead(b)
		if err != nil || len(b) != headSize+length {
			return
		}
		m.body = b[headSize:]
		if again := m.append(nil); !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
		if disks, err := parseDisks(m.body); err == nil && !bytes.Equal(appendDisks(nil, disks), m.body) {
			t.Errorf("%x became %v", m.body, disks)
		}
	})
}
