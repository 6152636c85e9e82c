package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"rehost/awsapi/formgn"
	"rehost/internal/fault"
	"rehost/release"
	"rehost/tunnel"
)

// tunnel is what installers are told.
func (w *world) tunnel() *formgn.Tunnel {
	if w.hub == nil {
		return nil
	}
	return &formgn.Tunnel{PublicKey: w.hub.Key().String(), Endpoint: fmt.Sprintf("localhost:%d", w.hub.Port())}
}

// letIn lets another key in beside those that may come. The caller holds mu.
func (w *world) letIn(text string) *formgn.Tunnel {
	key, err := tunnel.ParsePublicKey(text)
	if err != nil || w.hub == nil {
		return nil
	}
	w.peers = append(w.peers, tunnel.Peer{Key: key})
	if err := w.hub.SetPeers(w.peers); err != nil {
		w.t.Error(err)
	}
	return w.tunnel()
}

// keep lets only the key in that the agent has kept, or nobody.
func (w *world) keep(s *vpnState) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peers = nil
	if s != nil {
		key, err := tunnel.ParseKey(s.PrivateKey)
		if err != nil {
			w.t.Fatal(err)
		}
		w.peers = []tunnel.Peer{{Key: key.Public()}}
	}
	if err := w.hub.SetPeers(w.peers); err != nil {
		w.t.Error(err)
	}
}

// closePorts leaves nothing of the service open but its VPN, and invites to that.
func (w *world) closePorts() tunnel.Invitation {
	w.t.Helper()
	w.stopService()
	w.stopReceiver()
	hub, err := tunnel.OpenHub(tunnel.NewKey(), 0, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { hub.Close() })
	w.hub = hub
	w.startService()
	w.startReceiver()
	i := tunnel.Invitation{Key: tunnel.NewKey(), Hub: hub.Key(), Endpoint: w.tunnel().Endpoint, Until: time.Now().Add(time.Hour)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.letIn(i.Key.Public().String())
	return i
}

// TestVPN: with nothing open but the VPN an agent is installed, replicates, has
// its keys renewed while it does, and says so when it is let in no more.
func TestVPN(t *testing.T) {
	w := newWorld(t)
	invitation := w.closePorts()
	file := filepath.Join(t.TempDir(), "invitation")
	if err := os.WriteFile(file, []byte(invitation.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	o := w.options()
	o.VPNInvitation = file
	if _, err := Install(t.Context(), o); err != nil {
		t.Fatal(err, Hint(err))
	}
	path := filepath.Join(w.state, vpnFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	read := func() (s vpnState) {
		if err := stateDir(w.state).load(vpnFile, &s); err != nil {
			t.Error(err)
		}
		return s
	}
	first := read()
	w.keep(&first) // the invitation is used up
	stop := w.run()
	w.equal("first copy")
	if s, err := ReadStatus(w.state); err != nil || !strings.Contains(s.VPN, w.tunnel().Endpoint+", last handshake 2") {
		t.Errorf("status says %q, %v", s.VPN, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	stop = w.run(func(o *RunOptions) { o.renewShare = 1e-9 }) // overdue at once, again and again
	w.scribble(0, 0, diskSize)
	w.wait("renewals", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.issuedN >= 3 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	last := read()
	if last.PrivateKey == first.PrivateKey || last.Service != first.Service {
		t.Error("the key was not renewed")
	}
	for _, s := range []vpnState{first, last} {
		for name, text := range map[string]string{"the agent's log": w.agentLog.String(), "the service's log": w.log.String(), "printing": fmt.Sprintf("%v %+v %#v", s, s, s)} {
			if strings.Contains(text, s.PrivateKey) {
				t.Errorf("%s shows the private key", name)
			}
		}
	}

	// What was kept is enough for a start.
	w.keep(&last)
	stop = w.run()
	w.scribble(1, 0, diskSize)
	w.equal("with the newest key")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.keep(nil)
	stop = w.run()
	w.wait("a word about it", func() bool {
		s, err := ReadStatus(w.state)
		return err == nil && strings.Contains(s.Service, "no handshake with "+last.Endpoint+": wrong key or UDP blocked")
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestVPN_Installation: what is missing is said, and nothing is left.
func TestVPN_Installation(t *testing.T) {
	w := newWorld(t)
	nothing := func(err error) {
		t.Helper()
		if _, e := os.Stat(w.state); !errors.Is(e, fs.ErrNotExist) {
			t.Errorf("after %v something is left: %v", err, e)
		}
	}
	o := w.options()
	o.VPN = true
	_, err := Install(t.Context(), o)
	if !errors.Is(err, errNoVPN) || !strings.Contains(Hint(err), "without --vpn") {
		t.Errorf("without a VPN: %v (%s)", err, Hint(err))
	}
	nothing(err)

	invitation := w.closePorts()
	for name, test := range map[string]struct{ text, want, hint string }{
		"not one":     {"hello", "not an invitation", "rehost vpn invite"},
		"another key": {tunnel.Invitation{Key: tunnel.NewKey(), Hub: invitation.Hub, Endpoint: invitation.Endpoint}.Text(), "no handshake with " + invitation.Endpoint + ": wrong key or UDP blocked", "UDP"},
	} {
		file := filepath.Join(t.TempDir(), "invitation")
		if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		o := w.options()
		o.VPNInvitation = file
		_, err := Install(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(Hint(err), test.hint) {
			t.Errorf("%s: %v (%s)", name, err, Hint(err))
		}
		nothing(err)
	}
}

// TestVPN_Beside: what commands beside the agent want of the service goes through its
// tunnel, which that does not notice; why there is none is said.
func TestVPN_Beside(t *testing.T) {
	w := newWorld(t)
	invitation := w.closePorts()
	o := w.options()
	o.Endpoint = "rehost.invalid" // nothing goes past the VPN
	o.VPNInvitation = filepath.Join(t.TempDir(), "invitation")
	if err := os.WriteFile(o.VPNInvitation, []byte(invitation.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	invited := Diagnose(t.Context(), DoctorOptions{StateDir: w.state, Endpoint: o.Endpoint, CAFingerprint: o.CAFingerprint, BPFFS: w.bpffs, VPNInvitation: o.VPNInvitation})
	invited.want(t, OK, "VPN", "a tunnel of its own")
	invited.want(t, OK, "service", "rehost.invalid:8443 answers")
	invited.want(t, OK, "TLS", "chain and name of the service are right")
	invited.want(t, Skipped, "replication", "")
	Diagnose(t.Context(), DoctorOptions{StateDir: w.state, BPFFS: w.bpffs, VPNInvitation: o.VPNInvitation}).want(t, Skipped, "service", "--endpoint")

	if _, err := Install(t.Context(), o); err != nil {
		t.Fatal(err, Hint(err))
	}
	options := DoctorOptions{StateDir: w.state}
	d := Diagnose(t.Context(), options)
	d.want(t, OK, "VPN", "a tunnel of its own")
	d.want(t, OK, "clock", "as the service's")
	w.mu.Lock()
	w.offered = "of the release"
	w.mu.Unlock()
	w.downloads("while no agent runs", "of the release")

	stop := w.run()
	w.equal("first copy")
	sessions := func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.sessions }
	before := sessions()
	for range 3 {
		d := Diagnose(t.Context(), options)
		d.want(t, OK, "VPN", "the running agent's tunnel")
		d.want(t, OK, "service", "rehost.invalid:8443 answers")
		d.want(t, OK, "TLS", "chain and name of the service are right")
		d.want(t, OK, "replication", w.dataAt+" can be reached, through the VPN")
		w.downloads("beside the agent", "of the release")
		w.scribble(1, 0, diskSize)
		w.equal("beside commands")
	}
	if now := sessions(); now != before {
		t.Errorf("the agent had to begin %d sessions anew", now-before)
	}
	if t.Failed() {
		return // what follows takes long
	}

	// The other Endpoint is what a person asks about, and not the VPN.
	other := options
	other.Endpoint = "elsewhere.invalid"
	Diagnose(t.Context(), other).want(t, Fails, "DNS", "does not resolve")

	// What can be known about silence.
	w.keep(nil)
	var all sync.WaitGroup // each waits for the service as long as a dial does
	for skew, words := range map[time.Duration]string{
		0:               "no handshake with " + w.tunnel().Endpoint + ": wrong key or UDP blocked -> let this machine send UDP",
		-2 * time.Hour:  "taken for a replay",
		100 * time.Hour: "has ended with its certificate",
	} {
		all.Go(func() {
			o := options
			o.now = func() time.Time { return time.Now().Add(skew) }
			Diagnose(t.Context(), o).want(t, Fails, "VPN", words)
		})
	}
	all.Wait()
	if err := os.Remove(filepath.Join(w.state, socketFile)); err != nil {
		t.Error(err)
	}
	Diagnose(t.Context(), options).want(t, Skipped, "VPN", "does not lend its tunnel")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := w.hub.Close(); err != nil {
		t.Error(err)
	}
	Diagnose(t.Context(), options).want(t, Fails, "VPN", "nothing listens there")
}

// TestMutants_VPN: a command that goes another way, or an agent that lends more, is found out.
func TestMutants_VPN(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	t.Parallel() // with the worlds of other tests
	for name, m := range map[string]fault.Mutant{
		"UsesTheAgentsKey": {File: "vpn_lend.go", From: "if dir.running() != 0 {", To: "if false {", Tests: "TestVPN_Beside$"},
		"PastTheVPN":       {File: "upgrade.go", From: "bundle, way.dialService)", To: "bundle, nil)", Tests: "TestVPN_Beside$"},
		"LendsAnyPort":     {File: "vpn_lend.go", From: "q.Port != tunnel.APIPort && q.Port != tunnel.ReplicationPort", To: "q.Port == 0", Tests: "TestVPN_Lend$"},
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}

// TestVPN_Program: the agent as it is shipped, which is shut in and not root, lends its
// tunnel to root.
func TestVPN_Program(t *testing.T) {
	w := newWorld(t)
	run := w.program()
	invitation := w.closePorts()
	file := filepath.Join(t.TempDir(), "invitation")
	if err := os.WriteFile(file, []byte(invitation.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("install", "--no-prompt", "--vpn-invitation", file, "--endpoint", "rehost.invalid", "--ca-fingerprint", w.authority.Fingerprint(),
		"--bpffs", w.bpffs, "--force-volumes", "--devices", w.disks[0].Path+","+w.disks[1].Path); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.equal("first copy")
	s, err := ReadStatus(w.state)
	if err != nil || !strings.HasPrefix(s.Privileges, "runs as "+DefaultUser) {
		t.Errorf("%q, %v", s.Privileges, err)
	}
	t.Log(s.Privileges)
	out, _ := run("doctor") // of this machine something may be missing
	if !strings.Contains(out, "through the running agent's tunnel") || !strings.Contains(out, w.dataAt+" can be reached, through the VPN") {
		t.Errorf("doctor says: %s", out)
	}
	if out, err := run("uninstall"); err != nil || !strings.Contains(out, "The service was told") {
		t.Errorf("%v: %s", err, out)
	}
}

// downloads is what an upgrade begins with.
func (w *world) downloads(when, want string) {
	w.t.Helper()
	u, err := openUpgrade(UpgradeOptions{StateDir: w.state})
	if err != nil {
		w.t.Fatal(err)
	}
	defer u.lock.Close()
	d, err := u.downloads()
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.close()
	if text, err := d.small(w.t.Context(), release.SumsFile, release.MaxSums); err != nil || string(text) != want {
		w.t.Errorf("%s: %q, %v", when, text, err)
	}
}

// TestVPN_Lend: the tunnel is lent to who asks as the format says, for the service's
// two ports, to so many at once; with the agent it ends.
func TestVPN_Lend(t *testing.T) {
	w := newWorld(t)
	invitation := w.closePorts()
	o := w.options()
	o.VPNInvitation = filepath.Join(t.TempDir(), "invitation")
	if err := os.WriteFile(o.VPNInvitation, []byte(invitation.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), o); err != nil {
		t.Fatal(err, Hint(err))
	}
	stop := w.run()
	dir := stateDir(w.state)
	connect := func() net.Conn {
		t.Helper()
		c, err := dir.borrow(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	for name, test := range map[string]struct{ question, want string }{
		"another port":    {`{"version":1,"port":22}`, "port 22 is none of the service's"},
		"another version": {`{"version":2,"port":8443}`, "version 2 of the question is not known"},
		"something more":  {`{"version":1,"port":8443,"host":"192.0.2.1"}`, `unknown field "host"`},
		"not the format":  {"GET / HTTP/1.1", "invalid character"},
		"very long":       {strings.Repeat(" ", lendLine+1), "too long"},
	} {
		c := connect()
		fmt.Fprintln(c, test.question)
		var answer lendAnswer
		if err := receiveLine(c, &answer); err != nil && name != "very long" || err == nil && !strings.Contains(answer.Error, test.want) { // what is left unread resets it
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
		if n, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: it goes on: %d, %v", name, n, err)
		}
	}
	var lent []net.Conn
	for range lentMost {
		c := connect()
		if _, err := requestLoan(t.Context(), c, tunnel.APIPort); err != nil {
			t.Fatal(err)
		}
		lent = append(lent, c)
	}
	late, got := connect(), make(chan error, 1)
	go func() { _, err := requestLoan(t.Context(), late, tunnel.APIPort); got <- err }()
	select {
	case err := <-got:
		t.Errorf("one more than there are places: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	lent[0].Close()
	if err := <-got; err != nil {
		t.Errorf("when there is a place again: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n, err := late.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("a connection outlives the agent: %d, %v", n, err)
	}
	if _, err := os.Lstat(dir.path(socketFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
}

// TestLendFormat holds docs/format/tunnel.md and the code together.
func TestLendFormat(t *testing.T) {
	page, err := os.ReadFile("../docs/format/tunnel.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("`%s` in its state directory", socketFile),
		fmt.Sprintf("at most %d bytes", lendLine),
		fmt.Sprintf("An agent lends %d connections at once", lentMost),
		fmt.Sprintf("Question and answer have %.0f seconds", lendTimeout.Seconds()),
		fmt.Sprintf("| question | `version` | %d |", stateVersion),
		fmt.Sprintf("`port` | %d or %d,", tunnel.APIPort, tunnel.ReplicationPort),
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %s", want)
		}
	}
	for _, of := range []any{lendQuestion{}, lendAnswer{}} {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(of)) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !strings.Contains(string(page), "`"+name+"` |") {
				t.Errorf("the page does not have %s", name)
			}
		}
	}
}
