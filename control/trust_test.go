package control

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/ca"
)

func (w *world) issue(caller Caller, id string) (Peer, error) {
	out, err := w.IssueClientCertificate(w.t.Context(), caller, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: id, CertificateSigningRequest: csr(w.t)})
	if err != nil {
		return Peer{}, err
	}
	return Peer{Name: ca.Name{Role: ca.SourceServer, ID: id}, Serial: ca.Serial(parseCert(w.t, out.Certificate))}, nil
}

// TestInstaller_Takeover: with an installation key nobody takes the place of an
// agent that runs, and a registration gives one certificate.
func TestInstaller_Takeover(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	own, err := w.issue(Caller{ARN: installer}, id)
	w.must(err)
	if _, err := w.issue(Caller{ARN: installer}, id); !is[*mgn.AccessDeniedException](err) {
		t.Errorf("a second certificate for one registration: %v", err)
	}
	other := w.register("02")
	foreign, err := w.issue(Caller{ARN: installer}, other)
	w.must(err)
	w.replicate(id)
	before := w.describe(id)
	register := func(peer Peer) error {
		_, err := w.RegisterAgent(ctx, Caller{ARN: installer, Peer: peer}, machine("01"))
		return err
	}
	stolen := own
	stolen.Serial = foreign.Serial
	for what, peer := range map[string]Peer{"nothing": {}, "another server's certificate": foreign, "another serial": stolen} {
		if err := register(peer); !is[*mgn.ConflictException](err) {
			t.Errorf("with %s: %v", what, err)
		}
	}
	if after := w.describe(id); after.DataReplicationInfo.DataReplicationState != before.DataReplicationInfo.DataReplicationState {
		t.Errorf("what was refused changed the state to %s", after.DataReplicationInfo.DataReplicationState)
	}
	if err := register(own); err != nil {
		t.Errorf("with its own certificate: %v", err)
	}
	_, err = w.issue(Caller{ARN: installer}, id)
	w.must(err) // revokes own
	if err := register(own); !is[*mgn.ConflictException](err) {
		t.Errorf("with a revoked certificate: %v", err)
	}
	w.clock.advance(2 * time.Minute) // the machine was lost with its certificate
	if err := register(Peer{}); err != nil {
		t.Errorf("while the agent is silent: %v", err)
	}
}

// TestInstall_RevokesSessions: whoever has stolen a session cannot renew
// certificates after the agent was installed again.
func TestInstall_RevokesSessions(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	revoked := 0
	w.opts.Sessions = revoking{w.opts.Sessions, func(got string) {
		if got != id {
			t.Errorf("sessions of %s are revoked", got)
		}
		revoked++
	}}
	if _, err := w.issue(Caller{ARN: "somebody"}, id); err == nil || revoked != 0 {
		t.Errorf("who may not install revokes sessions: %v", err)
	}
	_, err := w.issue(Caller{ARN: installer}, id)
	w.must(err)
	if revoked != 1 {
		t.Errorf("an installation revoked sessions %d times", revoked)
	}
	_, err = w.issue(Caller{ARN: "agent", SourceIdentity: id}, id)
	w.must(err)
	if revoked != 1 {
		t.Error("a renewal revokes the agent's own session")
	}
}

type revoking struct {
	Sessions
	told func(string)
}

func (r revoking) Revoke(ctx context.Context, id string) error {
	r.told(id)
	return r.Sessions.Revoke(ctx, id)
}

// TestRenewals_Bounded: an agent cannot have so many certificates that its
// replication server is not told of all when they are revoked.
func TestRenewals_Bounded(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	renew := func() error {
		_, err := w.issue(Caller{ARN: "agent", SourceIdentity: id}, id)
		return err
	}
	for range maxRenewed {
		w.must(renew())
	}
	if err := renew(); !is[*mgn.ConflictException](err) {
		t.Fatalf("after %d renewals: %v", maxRenewed, err)
	}
	_, err := w.issue(Caller{ARN: installer}, id)
	w.must(err)
	revoked, err := revokedSerials(ctx, w.Service.db.reader, id, w.clock.Now())
	if err != nil || len(revoked) != maxRenewed {
		t.Fatalf("%d serials are to be refused, want %d; %v", len(revoked), maxRenewed, err)
	}
	w.clock.advance(25 * time.Hour)
	w.must(renew())
}

// TestReplicator_Foreign: a replication server can neither ask nor tell of a
// source server that is not paired with it.
func TestReplicator_Foreign(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	const other = "i-00000000000000002"
	yes, before := true, w.describe(id)
	for name, do := range map[string]func() error{
		"NotifyAgentAuthentication": func() error {
			_, err := w.NotifyAgentAuthentication(ctx, &formgn.NotifyAgentAuthenticationForMgnRequest{ReplicatorID: other, SourceServerID: id, Succeeded: &yes})
			return err
		},
		"NotifyAgentConnected": func() error {
			_, err := w.NotifyAgentConnected(ctx, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: other, SourceServerID: id})
			return err
		},
		"NotifyAgentDisconnected": func() error {
			_, err := w.NotifyAgentDisconnected(ctx, &formgn.NotifyAgentDisconnectedForMgnRequest{ReplicatorID: other, SourceServerID: id, Generation: 1})
			return err
		},
		"NotifyAgentReplicationProgress": func() error {
			_, err := w.NotifyAgentReplicationProgress(ctx, &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: other, SourceServerID: id, Generation: 1})
			return err
		},
		"UpdateAgentReplicationProcessState": func() error {
			_, err := w.UpdateAgentReplicationProcessState(ctx, &formgn.UpdateAgentReplicationProcessStateForMgnRequest{ReplicatorID: other, SourceServerID: id})
			return err
		},
	} {
		if err := do(); !is[*mgn.ResourceNotFoundException](err) {
			t.Errorf("%s by another replication server: %v", name, err)
		}
	}
	if out, err := w.DescribeReplicationServerAssociations(ctx, &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: other}); err != nil || len(out.Associations) != 0 {
		t.Errorf("another replication server is shown %+v, %v", out, err)
	}
	if after := w.describe(id); after.DataReplicationInfo.DataReplicationState != before.DataReplicationInfo.DataReplicationState {
		t.Errorf("the state is %s", after.DataReplicationInfo.DataReplicationState)
	}
}

// TestDisks_Bounded: an agent that reports other disks again and again neither
// fills the database nor gets an id a second time.
func TestDisks_Bounded(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	var err error
	seen := map[int32]bool{}
	for i := range int64(maxDisksEver) {
		var out *formgn.UpdateAgentReplicationInfoForMgnResponse
		out, err = w.UpdateAgentReplicationInfo(t.Context(), &formgn.UpdateAgentReplicationInfoForMgnRequest{SourceServerID: id,
			Disks: []formgn.ReplicationDisk{{DeviceName: "/dev/vda", Bytes: (100 + i) << 20, IsBootDisk: p(true)}}})
		if err != nil {
			break
		}
		if seen[out.Disks[0].DiskID] {
			t.Fatalf("disk id %d is given twice", out.Disks[0].DiskID)
		}
		seen[out.Disks[0].DiskID] = true
	}
	if !is[*mgn.ConflictException](err) || len(seen) < maxDisksEver-10 {
		t.Errorf("after %d disks: %v", len(seen), err)
	}
}

// TestTags_OnCreation: what TagResource refuses is refused there too.
func TestTags_OnCreation(t *testing.T) {
	w := newWorld(t)
	many := map[string]string{}
	for i := range maxTags + 1 {
		many[fmt.Sprint(i)] = "x"
	}
	for what, tags := range map[string]map[string]string{"too many": many, "a reserved one": {"AWS:cloud": "x"}} {
		in := machine("01")
		in.Tags = tags
		if _, err := w.RegisterAgent(t.Context(), Caller{ARN: installer}, in); !is[*mgn.ValidationException](err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestAdvance_LateWorker: who has lost its lease without noticing undoes nothing.
func TestAdvance_LateWorker(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	out, err := w.StartTest(ctx, &mgn.StartTestRequest{SourceServerIDs: []string{id}})
	w.must(err)
	late, err := readTasks(ctx, w.Service.db.reader, out.Job.JobID)
	w.must(err)
	w.runJobs()
	before := w.job(t, out.Job.JobID)
	if err := w.runTask(ctx, late[0]); !errors.Is(err, errLease) {
		t.Fatalf("a late worker: %v", err)
	}
	if after := w.job(t, out.Job.JobID); after.ParticipatingServers[0].LaunchStatus != before.ParticipatingServers[0].LaunchStatus || len(w.target.live) != 1 {
		t.Fatalf("a late worker left %+v and %d machines", after.ParticipatingServers[0], len(w.target.live))
	}
}

// TestLostAgent: what a lost agent has dies by itself. Its certificate is good
// for a day at most, and cannot be exchanged for a session afterwards, whoever
// has let the connection in. The session from just before ends an hour later:
// see TestDirectory_Session of identity.
func TestLostAgent(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	before := time.Now()
	out, err := w.IssueClientCertificate(t.Context(), Caller{ARN: installer}, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: id, CertificateSigningRequest: csr(t)})
	w.must(err)
	cert := parseCert(t, out.Certificate)
	if life := cert.NotAfter.Sub(before); life > 24*time.Hour+time.Minute {
		t.Errorf("a certificate lives %v", life)
	}
	peer := Peer{Name: ca.Name{Role: ca.SourceServer, ID: id}, Serial: ca.Serial(cert)}
	w.clock.advance(cert.NotAfter.Add(-time.Second).Sub(w.clock.Now()))
	_, err = w.CreateSession(t.Context(), peer)
	w.must(err)
	w.clock.advance(time.Second)
	if _, err := w.CreateSession(t.Context(), peer); !is[*mgn.AccessDeniedException](err) {
		t.Errorf("with a certificate that has ended: %v", err)
	}
}
