package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/ca"
	"rehost/wire"
)

// ca runs `rehost ca` beside the service.
func (r *running) ca(args ...string) string {
	r.t.Helper()
	var out, errs bytes.Buffer
	if status := Run(r.t.Context(), append([]string{"ca", "--data", r.data}, args...), &out, &errs); status != statusDone {
		r.t.Fatalf("rehost ca %v: status %d: %s", args, status, errs.String())
	}
	return out.String()
}

// line is the one line of the list that has all the words.
func (r *running) line(words ...string) []string {
	r.t.Helper()
	var found []string
	for l := range strings.Lines(r.ca("ls")) {
		fits := true
		for _, w := range words {
			fits = fits && strings.Contains(l, w)
		}
		if fits {
			found = append(found, l)
		}
	}
	if len(found) != 1 {
		return nil
	}
	return strings.Fields(found[0])
}

// ask is what an agent does every few seconds: it asks for its command and takes
// over whom to believe.
func (a *agent) ask(b *ca.Bundle) error {
	digest := b.Digest()
	out, err := awsapi.Call(a.t.Context(), a.client, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: a.id, TrustDigest: &digest})
	if err == nil && out.TrustBundle != "" {
		err = b.Replace(out.TrustBundle)
	}
	return err
}

func (a *agent) dial(b *ca.Bundle) (*wire.Session, error) {
	info := a.pairing()
	config := ca.Endpoint{Bundle: b, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: info.ReplicatorID})
	return wire.Dial(a.t.Context(), wire.Config{Address: info.ReplicatorAddress, TLS: config, Server: a.id, Disks: a.disks, Connections: 2})
}

// TestServe_CA replaces intermediate and root of a service under replication,
// with the commands of an operator, and then takes its replication server's
// certificates back.
func TestServe_CA(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	r := serve(t, filepath.Join(t.TempDir(), "data"))
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	believed, first := ca.NewBundle(r.root), ca.NewBundle(r.root)
	s, err := a.dial(believed)
	r.must(err)
	a.commit(s, 'a')
	reconnect := func(b *ca.Bundle) {
		t.Helper()
		r.must(s.Close())
		if s, err = a.dial(b); err != nil {
			t.Fatal(err)
		}
		a.commit(s, 'b')
	}

	// The intermediate: at once, nobody has to be told.
	before := r.line("intermediate", "Rehost")
	r.ca("rotate")
	if after := r.line("intermediate", "Rehost intermediate"); after != nil {
		t.Errorf("only one intermediate is listed: %v", after)
	}
	r.until("a certificate of the new intermediate", func() bool { return strings.Contains(r.ca("ls"), "former intermediate") })
	a.commit(s, 'c')
	if before == nil {
		t.Error("no intermediate was listed")
	}

	// The root: announced, and when the agent has it, it issues. The agent's
	// session lasts.
	old := ca.Fingerprint(r.root)
	r.ca("rotate", "--root", "--overlap", "1h")
	if status := Run(t.Context(), []string{"ca", "--data", r.data, "rotate", "--root"}, io.Discard, io.Discard); status != statusError {
		t.Errorf("announced twice: status %d", status)
	}
	roots := func() []string {
		text, err := os.ReadFile(filepath.Join(r.data, "ca.pem"))
		r.must(err)
		certs, err := ca.DecodeCertificates(text)
		r.must(err)
		var prints []string
		for _, c := range certs {
			prints = append(prints, ca.Fingerprint(c))
		}
		return prints
	}
	r.until("two roots in ca.pem", func() bool { return len(roots()) == 2 })
	if roots()[0] != old {
		t.Error("the new root issues before the agent has it")
	}
	if fetched, err := ca.FetchRoot(t.Context(), strings.TrimPrefix(r.api, "https://"), old, nil); err != nil || ca.Fingerprint(fetched) != old {
		t.Errorf("an installer with the old fingerprint: %v", err)
	}
	next := roots()[1]
	r.until("the new root to issue", func() bool {
		r.must(a.ask(believed))
		a.commit(s, 'd')
		return roots()[0] == next
	})
	if r.line("root", "RETIRING") == nil || r.line("root", "ISSUING") == nil {
		t.Errorf("ls says\n%s", r.ca("ls"))
	}
	for what, print := range map[string]string{"old": old, "new": next} {
		if _, err := ca.FetchRoot(t.Context(), strings.TrimPrefix(r.api, "https://"), print, nil); err != nil {
			t.Errorf("an installer with the %s fingerprint: %v", what, err)
		}
	}
	r.until("a replication server of the new root", func() bool {
		pair, err := ca.LoadPair(filepath.Join(r.data, "replicator.pem"))
		return err == nil && r.serving(pair.Leaf.AuthorityKeyId)
	})
	a.commit(s, 'e')
	reconnect(believed)
	reconnect(first) // one that was not told
	r.newAgent("machine-b").ask(ca.NewBundle(r.root))

	// One certificate of the replication server is taken back; it gets another.
	path := filepath.Join(r.data, "replicator.pem")
	lost, err := ca.LoadPair(path)
	r.must(err)
	name, err := ca.PeerName(lost.Leaf)
	r.must(err)
	thief := r.replicator(lost)
	describe := func() error {
		_, err := awsapi.Call(t.Context(), thief, formgn.DescribeReplicationServerAssociationsForMgn, &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: name.ID})
		return err
	}
	r.must(describe())
	r.ca("revoke", ca.Serial(lost.Leaf))
	r.until("refusal of its session", func() bool {
		return awsapi.IsStale(describe(), formgn.DescribeReplicationServerAssociationsForMgn.Name)
	})
	if _, err := awsapi.Call(t.Context(), r.unsigned(lost), formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{}); err == nil {
		t.Error("a revoked certificate is exchanged for a session")
	}
	r.must(a.ask(believed))
	if !believed.Revoked().Contains(ca.Serial(lost.Leaf)) {
		t.Error("the agent is not told of it")
	}
	r.until("another certificate", func() bool {
		pair, err := ca.LoadPair(path)
		return err == nil && !pair.Leaf.Equal(lost.Leaf)
	})
	reconnect(believed)

	// All of it is taken back: nobody talks to it any more.
	r.ca("revoke", name.ID)
	r.until("word of it", func() bool {
		r.must(a.ask(believed))
		_, err := a.dial(believed)
		return errors.Is(err, ca.ErrRevoked)
	})
	if status := Run(t.Context(), []string{"ca", "--data", r.data, "revoke", "beef"}, io.Discard, io.Discard); status != statusNotFound {
		t.Errorf("revoking nothing: status %d", status)
	}
	r.must(s.Close())
}

// serving: the certificate is of the intermediate that issues.
func (r *running) serving(keyID []byte) bool {
	r.t.Helper()
	key, err := loadSealingKey(r.data, "")
	r.must(err)
	authority, err := openAuthority(r.data, key)
	r.must(err)
	pair, err := authority.IssueService(nil, nil)
	r.must(err)
	return bytes.Equal(keyID, pair.Leaf.AuthorityKeyId)
}

func (r *running) unsigned(pair tls.Certificate) *awsapi.Client {
	config := ca.Endpoint{Root: r.root, Certificate: ca.Fixed(pair)}.ClientConfig(ca.Name{Role: ca.Service})
	c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", TLS: config, Attempts: 1})
	r.t.Cleanup(c.Close)
	return c
}

// replicator is who has a replication server's certificate, and a session of it.
func (r *running) replicator(pair tls.Certificate) *awsapi.Client {
	r.t.Helper()
	out, err := awsapi.Call(r.t.Context(), r.unsigned(pair), formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
	r.must(err)
	config := ca.Endpoint{Root: r.root, Certificate: ca.Fixed(pair)}.ClientConfig(ca.Name{Role: ca.Service})
	c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", TLS: config, Attempts: 1, Credentials: fetched(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: out.AccessKeyId, SecretAccessKey: string(out.SecretAccessKey), SessionToken: string(out.SessionToken)}, nil
	})})
	r.t.Cleanup(c.Close)
	return c
}

// TestServe_RevokedAgent: with its source server an agent loses everything at
// once: its session, the next one, and what its certificate is exchanged for.
func TestServe_RevokedAgent(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	r := serve(t, filepath.Join(t.TempDir(), "data"))
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	s := a.connect()
	a.commit(s, 'a')
	info := a.pairing()
	_, err = r.mgn.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceInput{SourceServerID: &a.id})
	r.must(err)
	began := time.Now()
	select {
	case <-s.Done():
		t.Logf("the session has ended after %v", time.Since(began))
	case <-time.After(10 * time.Second): // the replication server asks every two
		t.Fatal("the session goes on")
	}
	r.must(s.Close())
	config := ca.Endpoint{Root: r.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: info.ReplicatorID})
	if again, err := wire.Dial(t.Context(), wire.Config{Address: info.ReplicatorAddress, TLS: config, Server: a.id, Disks: a.disks}); err == nil {
		again.Close()
		t.Error("a new session begins")
	}
	if _, err := awsapi.Call(t.Context(), a.client, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: a.id}); err == nil {
		t.Error("a signed call is answered")
	}
	key, err := ca.NewKey()
	r.must(err)
	der, err := ca.NewRequest(key)
	r.must(err)
	if _, err := awsapi.Call(t.Context(), a.client, formgn.IssueClientCertificateForMgn, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: a.id,
		CertificateSigningRequest: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}); err == nil {
		t.Error("the certificate is renewed")
	}
}
