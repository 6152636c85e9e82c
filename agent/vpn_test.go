package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/awsapi/formgn"
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
