package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/ca"
)

// TestAgent_Rotation replaces the authority's root under a running agent, which
// goes on in the same session; and takes the replication server's certificate
// back, at which it leaves that session for one with who has another.
func TestAgent_Rotation(t *testing.T) {
	w := newWorld(t)
	w.install()
	stop := w.run()
	w.equal("first copy")
	sessions := func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.sessions }
	before, old := sessions(), w.authority.Root()
	if err := w.authority.RotateRoot("", time.Hour); err != nil {
		t.Fatal(err)
	}
	w.scribble(0, 0, 1<<20)
	w.wait("the new root to issue", func() bool {
		_, err := w.authority.Advance(func(digest string) bool { w.mu.Lock(); defer w.mu.Unlock(); return w.trusts == digest })
		if err != nil {
			t.Fatal(err)
		}
		return !w.authority.Root().Equal(old)
	})
	w.certify()
	w.scribble(1, 0, 1<<20)
	w.equal("after the root was replaced")
	if got := sessions(); got != before {
		t.Errorf("%d sessions, want the one from before", got-before+1)
	}
	bundle, err := loadBundle(filepath.Join(w.state, rootFile))
	if err != nil || len(bundle.Roots()) != 2 {
		t.Fatalf("the agent keeps %v, %v", bundle, err)
	}
	// Started again it believes the new root, and its certificate from before is good.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.scribble(0, 0, 1<<20)
	stop = w.run()
	w.equal("started again")

	before = sessions()
	shown, err := w.certificate()
	if err != nil {
		t.Fatal(err)
	}
	w.certify()
	w.scribble(1, 0, 1<<20)
	w.equal("with a certificate that is not revoked")
	if sessions() != before {
		t.Error("the session has ended without need")
	}
	if _, err := w.authority.Revoke(ca.Serial(shown.Leaf)); err != nil {
		t.Fatal(err)
	}
	w.wait("another session", func() bool { return sessions() > before })
	w.scribble(0, 0, 1<<20)
	w.equal("after the certificate was revoked")
	if !strings.Contains(w.agentLog.String(), ca.ErrRevoked.Error()) {
		t.Error("the log does not say why the session has ended")
	}
	if text, err := os.ReadFile(filepath.Join(w.state, rootFile)); err != nil || !strings.Contains(string(text), "revoked "+ca.Serial(shown.Leaf)) {
		t.Errorf("what is revoked is not kept: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestBelieve_Foreign: what has nothing to do with whom the agent believes is
// not taken over, whoever says it.
func TestBelieve_Foreign(t *testing.T) {
	w := newWorld(t)
	w.install()
	a, err := newAgent(stateDir(w.state), mustConfig(t, w.state), RunOptions{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.identity.client.Close()
	foreign, err := ca.Open(t.TempDir(), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := a.bundle.Text()
	for _, text := range []string{foreign.Bundle().Text(), "hello", "rehost trust bundle 2\n" + before} {
		a.believe(text)
	}
	kept, err := os.ReadFile(filepath.Join(w.state, rootFile))
	if err != nil || string(kept) != before || a.bundle.Text() != before {
		t.Errorf("the agent believes %q now, keeps %q: %v", a.bundle.Text(), kept, err)
	}
}
