package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rehost/agent"
	"rehost/e2e/site"
	"rehost/internal/fault"
	"rehost/privilege"
	"rehost/store"
)

// programs builds rehost and rehost-agent once for all tests.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "rehost-e2e-"); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir, "rehost/cmd/rehost", "rehost/cmd/rehost-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build the programs: %w: %s", err, out), os.RemoveAll(dir))
	}
	return dir, nil
})

var built atomic.Bool // programs was called

func TestMain(m *testing.M) {
	status := m.Run()
	if built.Load() {
		if dir, err := programs(); err == nil {
			os.RemoveAll(dir)
		}
	}
	os.Exit(status)
}

// A world is a service and an agent on this machine, as processes.
type world struct {
	t       *testing.T
	ctx     context.Context
	bin     string
	config  site.Config // how the service is started each time
	service *site.Service
	state   string // of the agent
	bpffs   string // where it pins
	agent   *site.Process
	log     *logFile
}

// newWorld starts a service with its directory at data.
func newWorld(t *testing.T, limit time.Duration, data string, args ...string) *world {
	t.Helper()
	fault.Alone(t) // before time begins to run
	w := newWorldAt(t, limit, data, "127.0.0.1", args...)
	t.Cleanup(w.removeUser)
	return w
}

// newWorldAt tells agents to come to another address of this machine. They must be on
// another, on which there is no user to be in somebody's way.
func newWorldAt(t *testing.T, limit time.Duration, data, address string, args ...string) *world {
	t.Helper()
	built.Store(true)
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, bin: bin, state: filepath.Join(t.TempDir(), "agent"), bpffs: fault.BPF(t), log: newLogFile(t)}
	fault.Passage(t, filepath.Dir(w.state), w.bpffs)
	w.config = site.Config{Program: filepath.Join(bin, "rehost"), Data: data, Advertise: address, Args: args, Log: w.log}
	t.Cleanup(func() {
		if w.agent != nil {
			w.agent.Kill()
		}
		if w.service != nil {
			w.service.Kill()
			if err := w.service.RemoveInstances(); err != nil {
				t.Errorf("remove what was launched: %v", err)
			}
		}
	})
	w.serve()
	if err := w.service.SetUp(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

// removeUser removes whom the agent runs as, where a test left it installed.
func (w *world) removeUser() {
	if w.agent != nil {
		w.agent.Kill()
	}
	if err := (privilege.Accounts{}).Remove(agent.DefaultUser, "Rehost replication agent"); err != nil && !errors.Is(err, privilege.ErrInUse) {
		w.t.Errorf("remove the agent's user: %v", err)
	}
}

// starting is held until a service has its ports, which are free before.
var starting sync.Mutex

// serve starts the service, on the same ports as before.
func (w *world) serve() {
	w.t.Helper()
	starting.Lock()
	defer starting.Unlock()
	s, err := site.Serve(w.ctx, w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.service, w.config = s, s.Config
}

// installed is what `rehost-agent install` says, and whether it did it. args
// come last and win.
func (w *world) installed(state string, env []string, devices string, args ...string) (out string, err error) {
	return w.command(env, "rehost-agent", append([]string{"install", "--state-dir", state, "--bpffs", w.bpffs, "--endpoint", w.service.Endpoint, "--region", site.Region,
		"--no-prompt", "--no-service", "--force-volumes", "--devices", devices}, args...)...)
}

func (w *world) fingerprint() string {
	w.t.Helper()
	f, err := w.service.Fingerprint()
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// command runs one of the programs to its end.
func (w *world) command(env []string, program string, args ...string) (out string, err error) {
	cmd := exec.CommandContext(w.ctx, filepath.Join(w.bin, program), args...)
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	fmt.Fprintf(w.log, "$ %s %s\n%s", program, strings.Join(args, " "), text)
	return string(text), err
}

// installer is the environment with the installation key of the first start.
func (w *world) installer() []string {
	w.t.Helper()
	id, secret, err := site.ReadCredentials(filepath.Join(w.config.Data, "installer-credentials"))
	if err != nil {
		w.t.Fatal(err)
	}
	return []string{"AWS_ACCESS_KEY_ID=" + id, "AWS_SECRET_ACCESS_KEY=" + secret}
}

// install installs the agent and starts it.
func (w *world) install(disks []*fault.Disk) {
	w.t.Helper()
	var paths []string
	for _, d := range disks {
		paths = append(paths, d.Path)
	}
	if out, err := w.installed(w.state, w.installer(), strings.Join(paths, ","), "--ca-fingerprint", w.fingerprint()); err != nil {
		w.t.Fatalf("install: %v: %s", err, out)
	}
	w.runAgent()
}

// runAgent starts the agent that is installed.
func (w *world) runAgent() {
	w.t.Helper()
	p, err := site.Start(w.ctx, w.log, "agent started", filepath.Join(w.bin, "rehost-agent"), "run", "--state-dir", w.state)
	if err != nil {
		w.t.Fatal(err)
	}
	w.agent = p
}

// replica opens the source server's replica read-only, beside whoever writes it.
func (w *world) replica(id string) *store.Replica {
	w.t.Helper()
	keys, err := store.OpenKeyFile(filepath.Join(w.config.Data, "store.key"))
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := store.Open(filepath.Join(w.config.Data, "store"), keys, store.Options{ReadOnly: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	r, err := s.Replica(w.ctx, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// equal compares the newest consistent point with the disks, byte by byte.
func (w *world) equal(id string, disks []*fault.Disk) *store.Replica {
	w.t.Helper()
	replica := w.replica(id)
	points := replica.Points()
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].Consistent() {
			for n, d := range disks {
				same(w.t, replica, points[i], n, d.Path)
			}
			return replica
		}
	}
	w.t.Fatal("there is no consistent point")
	return nil
}

// A logFile is what the programs say; it is shown when the test has failed.
type logFile struct {
	mu sync.Mutex
	f  *os.File
}

func newLogFile(t *testing.T) *logFile {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	l := &logFile{f: f}
	t.Cleanup(func() {
		if t.Failed() {
			var said []string
			for line := range strings.Lines(l.text()) {
				if !strings.Contains(line, "msg=call") { // the service logs each
					said = append(said, line)
				}
			}
			t.Logf("the programs said, at the end:\n%s", strings.Join(said[max(0, len(said)-60):], ""))
		}
		f.Close()
	})
	return l
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Write(p)
}

func (l *logFile) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text, _ := os.ReadFile(l.f.Name())
	return string(bytes.ToValidUTF8(text, nil))
}
