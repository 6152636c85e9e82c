package control

import (
	"errors"
	"testing"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/ca"
)

// TestTrust_Everyone: a new root issues when all who may come have told that
// they believe it, and nobody is told what it believes already.
func TestTrust_Everyone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	_, err := w.issue(Caller{ARN: installer}, id)
	w.must(err)
	w.must(w.ca.RotateRoot("", 0))
	bundle := w.ca.Bundle()
	everyone := func() bool {
		t.Helper()
		all, err := w.everyoneTrusts(ctx, bundle.Digest())
		w.must(err)
		return all
	}
	agent := func(digest string) string {
		t.Helper()
		out, err := w.GetAgentCommand(ctx, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id, TrustDigest: &digest})
		w.must(err)
		return out.TrustBundle
	}
	replicator := func(digest string) string {
		t.Helper()
		address := "192.0.2.1:1500"
		out, err := w.DescribeReplicationServerAssociations(ctx, &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: replicatorID, Address: &address, TrustDigest: &digest})
		w.must(err)
		return out.TrustBundle
	}
	old := ca.NewBundle(bundle.Roots()[0]).Digest()
	if agent(old) != bundle.Text() || replicator(old) != bundle.Text() || everyone() {
		t.Error("who believes the old bundle is not told of the new one, or counts")
	}
	if agent(bundle.Digest()) != "" || everyone() {
		t.Error("the replication server does not believe it yet")
	}
	if replicator(bundle.Digest()) != "" || !everyone() {
		t.Error("all believe it")
	}
	other := w.register("02")
	_, err = w.issue(Caller{ARN: installer}, other)
	w.must(err)
	if everyone() {
		t.Error("another agent has not told")
	}
	w.clock.advance(25 * time.Hour) // its certificate has run out
	if !everyone() {
		t.Error("who cannot come any more holds the others up")
	}
}

// TestTrust_RevokedReplicator: its certificate is exchanged for nothing, and the
// sessions that there are end once.
func TestTrust_RevokedReplicator(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	name := ca.Name{Role: ca.ReplicationServer, ID: replicatorID}
	pair, err := w.ca.IssueReplicationServer(name.ID)
	w.must(err)
	peer := Peer{Name: name, Serial: ca.Serial(pair.Leaf)}
	if _, err := w.CreateSession(ctx, peer); err != nil {
		t.Fatal(err)
	}
	ended := 0
	w.opts.Sessions = revoking{w.opts.Sessions, func(id string) {
		if id != name.ID {
			t.Errorf("sessions of %s end", id)
		}
		ended++
	}}
	_, err = w.ca.Revoke(peer.Serial)
	w.must(err)
	for range 3 {
		w.must(w.tendAuthority(ctx))
	}
	if ended != 1 {
		t.Errorf("sessions ended %d times", ended)
	}
	if _, err := w.CreateSession(ctx, peer); !is[*mgn.AccessDeniedException](err) {
		t.Errorf("with the revoked certificate: %v", err)
	}
	again, err := w.ca.IssueReplicationServer(name.ID)
	w.must(err)
	peer.Serial = ca.Serial(again.Leaf)
	if _, err := w.CreateSession(ctx, peer); err != nil {
		t.Errorf("with another certificate: %v", err)
	}
	_, err = w.ca.Revoke(name.ID)
	w.must(err)
	peer.Serial = "abc" // one that the authority has not noted
	if _, err := w.CreateSession(ctx, peer); !is[*mgn.AccessDeniedException](err) {
		t.Errorf("of a revoked name: %v", err)
	}
	if _, err := w.ca.IssueReplicationServer(name.ID); !errors.Is(err, ca.ErrRevoked) {
		t.Errorf("a revoked name gets a certificate: %v", err)
	}
}
