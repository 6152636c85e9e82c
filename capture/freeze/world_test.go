package freeze

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"rehost/internal/fault"
)

// Nothing of the machine's own is ever frozen here: only file systems that a test has
// made on loop devices, and each is thawed when its test ends, whatever happens.

// Test binaries that are somebody else.
const asClient, asConfined = "REHOST_FREEZE_CLIENT", "REHOST_FREEZE_CONFINED"

var programDir string

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asClient) != "":
		client()
		return
	case os.Getenv(asConfined) != "":
		confined()
		return
	}
	var err error
	if programDir, err = os.MkdirTemp("", "rehost-freeze-"); err != nil {
		panic(err)
	}
	if err := os.Chmod(programDir, 0o711); err != nil { // other users ask too
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(programDir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}

// program builds the program that people run: without cgo, which it must be.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programDir, "rehost-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "rehost/cmd/rehost-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func agent(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root freezes")
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// A volume is a mounted file system that may be frozen.
type volume struct {
	t    *testing.T
	dir  string
	fd   int
	disk uint64 // the loop device's number
	path string // of the device
}

// loopDisk makes a disk.
func loopDisk(t *testing.T, size int64) (path string, number uint64) {
	t.Helper()
	l := fault.Loop(t, size) // two over memory are one to mkfs.btrfs
	major, minor, err := l.Numbers()
	if err != nil {
		t.Fatal(err)
	}
	return l.Path, unix.Mkdev(major, minor)
}

// mounted mounts a device, and thaws it before it is unmounted.
func mounted(t *testing.T, device, kind string, disk uint64) *volume {
	t.Helper()
	v := &volume{t: t, dir: t.TempDir(), disk: disk, path: device}
	if err := unix.Mount(device, v.dir, kind, 0, ""); err != nil {
		if errors.Is(err, unix.ENODEV) {
			t.Skipf("SKIPPED: this kernel has no %s", kind)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(v.dir, 0)
		for end := time.Now().Add(time.Minute); err == unix.EBUSY && time.Now().Before(end); err = unix.Unmount(v.dir, 0) {
			time.Sleep(10 * time.Millisecond) // whoever was killed goes on closing
		}
		if err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(v.dir, unix.MNT_DETACH)
		}
	})
	fd, err := unix.Open(v.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	v.fd = fd
	t.Cleanup(func() { _ = thaw(fd); unix.Close(fd) })
	return v
}

func newVolume(t *testing.T, kind string) *volume {
	t.Helper()
	size := map[string]int64{"ext4": 32 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}[kind]
	path, disk := loopDisk(t, size)
	force := "-f"
	if kind == "ext4" {
		force = "-F"
	}
	command(t, "mkfs."+kind, "-q", force, path)
	return mounted(t, path, kind, disk)
}

// frozen asks the kernel: what is frozen cannot be frozen once more.
func (v *volume) frozen() bool {
	v.t.Helper()
	switch err := freeze(v.fd); {
	case errors.Is(err, unix.EBUSY):
		return true
	case err == nil:
		if err := thaw(v.fd); err != nil && !errors.Is(err, unix.EINVAL) {
			v.t.Fatal(err)
		}
		return false
	default:
		v.t.Fatal(err)
		return false
	}
}

// thawed waits for the end of a freeze.
func (v *volume) thawed() {
	v.t.Helper()
	for end := time.Now().Add(time.Minute); v.frozen(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			v.t.Fatal("it stays frozen")
		}
	}
	if err := os.WriteFile(v.dir+"/after", []byte("it can be written to"), 0o600); err != nil {
		v.t.Error(err)
	}
}

// A running freezer has a socket, and a watchdog.
type running struct {
	cmd      *exec.Cmd
	socket   string
	watchdog int
}

// freezerAt starts a freezer at a socket.
func freezerAt(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{socket: filepath.Join(t.TempDir(), "s")}
	r.cmd = exec.Command(agent(t), append([]string{"freezer", "--socket", r.socket}, args...)...)
	r.start(t)
	return r
}

func (r *running) start(t *testing.T) {
	t.Helper()
	out, err := r.cmd.StderrPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	logged := make(chan struct{})
	ready := make(chan bool, 1)
	go func() {
		defer close(logged)
		for s := bufio.NewScanner(out); s.Scan(); {
			t.Log(s.Text())
			if strings.Contains(s.Text(), "freezer is ready") {
				ready <- true
			}
		}
		ready <- false
	}()
	t.Cleanup(func() {
		if r.watchdog != 0 {
			_ = unix.Kill(r.watchdog, unix.SIGCONT)
		}
		r.cmd.Process.Kill()
		<-logged // the watchdog has it too: then it has ended
		r.cmd.Wait()
	})
	if !<-ready {
		t.Fatal("the freezer does not start")
	}
	if r.watchdog = childOf(r.cmd.Process.Pid); r.watchdog == 0 {
		t.Fatal("the freezer has no watchdog")
	}
}

// childOf finds the only child of a process.
func childOf(parent int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(text), ") ")
		var state string
		var ppid int
		if n, _ := fmt.Sscan(rest, &state, &ppid); n == 2 && ppid == parent {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

// client is a process that freezes a disk and keeps it so.
func client() {
	fields := strings.Fields(os.Getenv(asClient))
	disk, _ := strconv.ParseUint(fields[1], 10, 64)
	most, _ := time.ParseDuration(fields[2])
	c := Client{Socket: fields[0]}
	err := c.Prepare(context.Background(), []uint64{disk})
	if err == nil {
		_, err = c.Freeze(context.Background(), most)
	}
	fmt.Println("frozen:", err)
	_, _ = os.Stdin.Read(make([]byte, 1)) // for ever
}

// copied is this program to where other users can run it.
var copied = sync.OnceValues(func() (string, error) {
	text, err := os.ReadFile(os.Args[0])
	path := filepath.Join(programDir, "client")
	return path, errors.Join(err, os.WriteFile(path, text, 0o755))
})

func itself(t *testing.T) string {
	t.Helper()
	path, err := copied()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// holder starts a client that keeps a volume frozen, and returns once it is.
func holder(t *testing.T, r *running, v *volume, most time.Duration, who *syscall.Credential) (cmd *exec.Cmd, said string) {
	t.Helper()
	cmd = exec.Command(itself(t))
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %v", asClient, r.socket, v.disk, most))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(said)
}

// stopped waits until no thread of a process that was sent SIGSTOP runs any more.
func stopped(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		still := len(stats) > 0 && err == nil
		for _, path := range stats {
			b, err := os.ReadFile(path)
			_, rest, _ := strings.Cut(string(b), ") ")
			still = still && err == nil && strings.HasPrefix(rest, "T")
		}
		if still {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
}
