package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"aead.dev/minisign"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"

	"rehost/e2e/site"
	"rehost/internal/fault"
	"rehost/release"
)

// built are two releases of this tree that one key has signed, and the service of
// the first; made once for all tests.
type built struct {
	dir   string
	key   minisign.PublicKey
	agent [2]string // directories with a release each: 0.1.0, 0.2.0
	rehost,
	signer string // secret key
}

var (
	buildOnce sync.Once
	theBuilt  built
	buildErr  error
)

func TestMain(m *testing.M) {
	status := m.Run()
	if theBuilt.dir != "" {
		os.RemoveAll(theBuilt.dir)
	}
	os.Exit(status)
}

// starting is held until a service has its ports, which are free before.
var starting sync.Mutex

func releases(t *testing.T) *built {
	t.Helper()
	buildOnce.Do(func() { buildErr = theBuilt.build() })
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return &theBuilt
}

func (b *built) build() (err error) {
	if b.dir, err = os.MkdirTemp("", "rehost-release-*"); err != nil {
		return err
	}
	if err := os.Chdir(".."); err != nil { // as `make release` runs it
		return err
	}
	b.signer = filepath.Join(b.dir, "release.key")
	for i, version := range []string{"0.1.0", "0.2.0"} {
		b.agent[i] = filepath.Join(b.dir, version)
		c := command{Version: version, Out: b.agent[i], Arch: []string{"amd64"}, Key: b.signer, Only: []string{"rehost-agent", "rehost"}[:2-i]}
		if err := c.Run(context.Background()); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(b.signer + ".pub")
	if err != nil {
		return err
	}
	b.rehost = filepath.Join(b.agent[0], "rehost-linux-amd64")
	return b.key.UnmarshalText(bytes.TrimSpace(text))
}

// A world is a service, real, and a machine with one disk to be replicated.
type world struct {
	chroot string // where the agent is installed with the defaults; "": on this machine
	*built
	t       *testing.T
	service *site.Service
	serving string // the directory that the service takes the agent from
	disk    *fault.Disk
	bpffs   string
	state   string
	tmp     string
	log     *fault.Log
	env     []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: an agent is installed by root")
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("SKIPPED: systemd runs here, and this test must not make a service of this machine")
	}
	t.Parallel() // they wait most of the time
	w := &world{built: releases(t), t: t, state: filepath.Join(t.TempDir(), "state"), serving: t.TempDir(), tmp: t.TempDir(), log: new(fault.Log)}
	w.serve(w.agent[0])
	w.bpffs, w.disk = fault.BPF(t), fault.Loop(t, 16<<20)
	fault.Passage(t, w.bpffs)
	var err error
	starting.Lock()
	defer starting.Unlock()
	if w.service, err = site.Serve(t.Context(), site.Config{Program: w.rehost, Data: filepath.Join(t.TempDir(), "data"), Advertise: "127.0.0.1,rehost.test",
		Args: []string{"--agent-dir", w.serving}, Log: w.log}); err != nil {
		t.Fatal(err, w.log)
	}
	t.Cleanup(func() { _ = w.service.Kill() })
	if _, err := w.service.API.InitializeService(t.Context(), &mgn.InitializeServiceInput{}); err != nil {
		t.Fatal(err)
	}
	id, secret, err := site.ReadCredentials(filepath.Join(w.service.Data, "installer-credentials"))
	if err != nil {
		t.Fatal(err)
	}
	w.env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+id, "AWS_SECRET_ACCESS_KEY="+secret, "TMPDIR="+w.tmp)
	t.Cleanup(func() {
		_, _ = w.agentRun("uninstall")
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(w.state, "agent.log"))
			t.Logf("agent's log:\n%s\nservice's log:\n%s", tail(string(text)), tail(w.log.String()))
		}
	})
	return w
}

// again starts the service anew.
func (w *world) again(c site.Config) {
	w.t.Helper()
	starting.Lock()
	defer starting.Unlock()
	s, err := site.Serve(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err, w.log)
	}
	w.service = s
	w.t.Cleanup(func() { _ = s.Kill() })
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// serve has the service offer another release.
func (w *world) serve(dir string) {
	w.t.Helper()
	for _, name := range []string{release.Agent("amd64"), release.SumsFile, release.SignatureFile} {
		w.put(name, filepath.Join(dir, name))
	}
}

func (w *world) put(name, from string) {
	w.t.Helper()
	if err := copyFile(filepath.Join(w.serving, name+".new"), from); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(w.serving, name+".new"), filepath.Join(w.serving, name)); err != nil {
		w.t.Fatal(err)
	}
}

// offer signs what the service has as another version, with a program of our own.
func (w *world) offer(version, program string, key minisign.PrivateKey) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), release.Agent("amd64"))
	if err := os.WriteFile(path, []byte(program), 0o755); err != nil {
		w.t.Fatal(err)
	}
	v, err := release.ParseVersion(version)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := new(command).sign(filepath.Dir(path), &key, v); err != nil {
		w.t.Fatal(err)
	}
	w.serve(filepath.Dir(path))
}

func (w *world) secret() minisign.PrivateKey {
	w.t.Helper()
	k, err := loadKey(w.signer, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// installArgs are those of an installation without a person.
func (w *world) installArgs(more ...string) string {
	return strings.Join(append([]string{"--no-prompt", "--as-root", "--force-volumes", "--devices", w.disk.Path, "--bpffs", w.bpffs, "--state-dir", w.state}, more...), " ")
}

// sh runs a line of shell, as somebody pastes it.
func (w *world) sh(line string, env ...string) (string, error) {
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = append(w.env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *world) curl(args string) string {
	return fmt.Sprintf("curl -fsS --cacert %s %s/install.sh | sh -s -- %s", filepath.Join(w.service.Data, "ca.pem"), w.service.Endpoint, args)
}

// refused wants an installation to fail with these words, and to leave nothing.
func (w *world) refused(name, out string, err error, words ...string) {
	w.t.Helper()
	if err == nil {
		w.t.Errorf("%s: it is installed:\n%s", name, out)
		return
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			w.t.Errorf("%s: it does not say %q:\n%s", name, word, out)
		}
	}
	w.nothingLeft(name)
}

func (w *world) nothingLeft(name string) {
	w.t.Helper()
	if entries, err := os.ReadDir(w.tmp); err != nil || len(entries) > 0 {
		w.t.Errorf("%s: left behind: %v, %v", name, entries, err)
	}
	if _, err := os.Stat(w.state); err == nil {
		w.t.Errorf("%s: there is a state directory", name)
	}
	if n := len(w.servers()); n > 0 {
		w.t.Errorf("%s: the service knows %d source servers", name, n)
	}
}

func (w *world) servers() []types.SourceServer {
	w.t.Helper()
	out, err := w.service.API.DescribeSourceServers(w.t.Context(), &mgn.DescribeSourceServersInput{})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.Items
}

// agentRun runs the installed agent's program.
func (w *world) agentRun(args ...string) (string, error) {
	cmd := exec.Command(w.program(), append(args, "--state-dir", w.state)...)
	if w.chroot != "" { // which has users of its own
		cmd = exec.Command("chroot", append([]string{w.chroot, "/usr/local/lib/rehost-agent/rehost-agent"}, args...)...)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A status is what of the agent's own these tests look at.
type status struct {
	Version   string          `json:"version"`
	Running   bool            `json:"running"`
	PID       int             `json:"pid"`
	State     string          `json:"state"`
	Keeps     string          `json:"trackingKeeps"`
	LastPoint json.RawMessage `json:"lastPoint"`
}

func (w *world) status() (s status) {
	w.t.Helper()
	out, err := w.agentRun("status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	return s
}

// until waits for what the agent brings about.
func (w *world) until(what string, ok func(status) bool) status {
	w.t.Helper()
	var s status
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if s = w.status(); ok(s) {
			return s
		}
	}
	w.t.Fatalf("waited too long for %s: %+v", what, s)
	return s
}

func continuous(s status) bool {
	return s.Running && s.State == "CONTINUOUS" && len(s.LastPoint) > 0
}

// A connectProxy is a proxy for HTTPS, which finds every host on loopback.
type connectProxy struct {
	url string

	mu    sync.Mutex
	hosts []string // guarded by mu: who was asked for
	stop  bool     // guarded by mu: let nothing more through
}

func newConnectProxy(t *testing.T) *connectProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{url: "http://" + l.Addr().String()}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { l.Close(); cancel(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(ctx, c) })
		}
	})
	return p
}

func (p *connectProxy) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	from := bufio.NewReader(c)
	r, err := http.ReadRequest(from)
	if err != nil || r.Method != http.MethodConnect {
		return
	}
	p.mu.Lock()
	p.hosts = append(p.hosts, r.Host)
	stopped := p.stop && len(p.hosts) > 1
	p.mu.Unlock()
	_, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		return
	}
	to, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return
	}
	defer to.Close()
	defer context.AfterFunc(ctx, func() { to.Close() })()
	io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	if stopped {
		<-ctx.Done()
		return
	}
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(c, to); c.Close() }()
	_, _ = io.Copy(to, from)
	to.Close()
	<-done
}

func (p *connectProxy) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.hosts...)
}

func (w *world) port() string { return strconv.Itoa(w.service.Port) }

// program is the agent's, as it is installed.
func (w *world) program() string { return filepath.Join(w.state+".program", "rehost-agent") }
