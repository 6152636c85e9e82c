package testvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Disk of a machine.
type Disk struct {
	Path     string
	Format   string // raw where empty
	Bus      string // virtio where empty, or nvme
	Snapshot bool   // the file stays as it is; writes are lost with the machine
}

// Firmware of Debian's package ovmf.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// A Config describes a machine. The first disk is booted.
type Config struct {
	Disks     []Disk
	UEFI      bool
	MemoryMiB int      // 256 where 0
	CPUs      int      // 1 where 0
	Accel     string   // QEMU's -accel; TCG where empty
	UUID      string   // SMBIOS system UUID; none where empty
	Ports     []int    // guest TCP ports to be reached from the host, see VM.Addr
	Dir       string   // for the firmware's variables; the caller removes it
	Args      []string // further arguments for QEMU
}

// maxConsole is how much of the console is kept: the end.
const maxConsole = 4 << 20

// A VM is a running machine. Its methods may be called concurrently.
type VM struct {
	cmd   *exec.Cmd
	ports map[int]int // host port by guest port, constant
	stdin io.WriteCloser
	done  chan struct{} // closed when QEMU has ended and its output is read

	mu      sync.Mutex
	console []byte
	changed chan struct{} // closed and replaced whenever the console grew
	err     error         // why QEMU ended, valid when done
}

// Start starts a machine. It must be stopped with Kill.
func Start(cfg Config) (*VM, error) {
	v := &VM{ports: map[int]int{}, done: make(chan struct{}), changed: make(chan struct{})}
	args, err := v.arguments(cfg)
	if err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	v.cmd.Stdout, v.cmd.Stderr = write, write
	if v.stdin, err = v.cmd.StdinPipe(); err != nil {
		out.Close()
		write.Close()
		return nil, err
	}
	started := make(chan error)
	go v.own(out, write, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	return v, nil
}

// own starts QEMU and waits for its end on one thread, because the kernel sends
// the parent's death signal when that thread ends.
func (v *VM) own(out, write *os.File, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer out.Close()
	err := v.cmd.Start()
	write.Close()
	started <- err
	if err != nil {
		return
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		v.capture(out)
	}()
	err = v.cmd.Wait()
	<-read
	v.mu.Lock()
	v.err = err
	v.mu.Unlock()
	close(v.done)
}

func (v *VM) capture(out io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		v.mu.Lock()
		v.console = append(v.console, buf[:n]...)
		if over := len(v.console) - maxConsole; over > 0 {
			v.console = append(v.console[:0], v.console[over:]...)
		}
		close(v.changed)
		v.changed = make(chan struct{})
		v.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (v *VM) arguments(cfg Config) ([]string, error) {
	or := func(n, other int) string {
		if n == 0 {
			n = other
		}
		return strconv.Itoa(n)
	}
	if cfg.Accel == "" {
		cfg.Accel = "tcg,tb-size=64"
	}
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-cpu", "max", "-accel", cfg.Accel,
		"-m", or(cfg.MemoryMiB, 256), "-smp", or(cfg.CPUs, 1), "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"}
	if cfg.UUID != "" {
		args = append(args, "-uuid", cfg.UUID)
	}
	if cfg.UEFI {
		vars := filepath.Join(cfg.Dir, "efivars.fd")
		b, err := os.ReadFile(ovmfVars)
		if err == nil {
			err = os.WriteFile(vars, b, 0o600)
		}
		if err != nil {
			return nil, err
		}
		args = append(args, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,unit=1,format=raw,file="+escape(vars))
	}
	for i, d := range cfg.Disks {
		drive := fmt.Sprintf("if=none,id=disk%d,file=%s,format=%s", i, escape(d.Path), d.format())
		if d.Snapshot {
			drive += ",snapshot=on"
		}
		device := fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=disk%d,bootindex=%d", i, i, i+1)
		if d.Bus == "nvme" {
			device = strings.Replace(device, "virtio-blk-pci", "nvme", 1)
		}
		args = append(args, "-drive", drive, "-device", device)
	}
	netdev := "user,id=net0"
	for _, guest := range cfg.Ports {
		host, err := freePort()
		if err != nil {
			return nil, err
		}
		v.ports[guest] = host
		netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", host, guest)
	}
	args = append(args, "-netdev", netdev, "-device", "virtio-net-pci,netdev=net0")
	return append(args, cfg.Args...), nil
}

func (d Disk) format() string {
	if d.Format == "" {
		return "raw"
	}
	return d.Format
}

// escape doubles commas, which end a value in QEMU's option syntax.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// Addr is where a guest port of Config.Ports is reached on the host.
func (v *VM) Addr(guestPort int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(v.ports[guestPort]))
}

// Console is what the machine, and QEMU itself, have printed so far.
func (v *VM) Console() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return string(v.console)
}

// Send types text on the console.
func (v *VM) Send(text string) error {
	_, err := io.WriteString(v.stdin, text)
	return err
}

// ErrEnded is returned when the machine ended while something was expected of it.
var ErrEnded = errors.New("machine ended")

// WaitFor waits until the console matches the regular expression and returns
// the match. The error shows the end of the console.
func (v *VM) WaitFor(ctx context.Context, pattern string) (string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return "", err
	}
	for {
		ended := false
		select {
		case <-v.done:
			ended = true // before the last look at the console
		default:
		}
		v.mu.Lock()
		match, tail, changed := re.Find(v.console), v.console, v.changed
		tail = append([]byte(nil), tail[max(0, len(tail)-2000):]...)
		v.mu.Unlock()
		if match != nil {
			return string(match), nil
		}
		if ended {
			return "", fmt.Errorf("wait for %q: %w: %w; console ends: %s", pattern, ErrEnded, v.err, tail)
		}
		select {
		case <-changed:
		case <-v.done:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %q: %w; console ends: %s", pattern, ctx.Err(), tail)
		}
	}
}

// Get asks the machine's web server at a guest port, again and again until it
// answers with status 200, and returns the body.
func (v *VM) Get(ctx context.Context, guestPort int, path string) ([]byte, error) {
	body, err := Get(ctx, "http://"+v.Addr(guestPort)+path)
	if err != nil {
		return nil, fmt.Errorf("%w; console ends: %.2000s", err, v.Console())
	}
	return body, nil
}

// Get asks for url again and again until it is answered with status 200.
func Get(ctx context.Context, url string) ([]byte, error) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		body, err := get(ctx, &client, url)
		if err == nil {
			return body, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: last answer: %w", ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", url, resp.Status, body)
	}
	return body, err
}

// Done is closed when the machine has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

// Kill cuts the machine's power and waits. It may be called twice.
func (v *VM) Kill() {
	select {
	case <-v.done:
	default:
		v.cmd.Process.Kill()
		<-v.done
	}
	v.stdin.Close()
}
