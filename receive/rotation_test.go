package receive_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rehost/block"
	"rehost/ca"
	"rehost/receive"
	"rehost/wire"
)

// A rotation is a replication server and its agents under an authority whose
// root is replaced, in virtual time. Each party has a bundle of its own, which
// is brought to it as calls of the service do.
type rotation struct {
	*site
	clock  atomic.Int64 // unix seconds
	server *ca.Bundle
	mu     sync.Mutex
	cert   tls.Certificate // of the server; guarded by mu
	agents []*ca.Bundle    // that are told
}

func (r *rotation) now() time.Time { return time.Unix(r.clock.Load(), 0) }

func (r *rotation) copyBundle() *ca.Bundle { return must(ca.ParseBundle(r.ca.Bundle().Text())) }

func (r *rotation) recertify() {
	cert := must(r.ca.IssueReplicationServer(serverID))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cert = cert
}

// tell brings the authority's bundle to those who ask for it.
func (r *rotation) tell() {
	r.t.Helper()
	for _, b := range append([]*ca.Bundle{r.server}, r.agents...) {
		if err := b.Replace(r.ca.Bundle().Text()); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rotation) advance(d time.Duration, everyone bool) {
	r.t.Helper()
	r.clock.Add(int64(d / time.Second))
	digest := r.ca.Bundle().Digest()
	if _, err := r.ca.Advance(func(got string) bool { return everyone && got == digest }); err != nil {
		r.t.Fatal(err)
	}
}

// connect opens a session as an agent with that certificate and bundle, and
// sends a point over it.
func (r *rotation) connect(id string, b *ca.Bundle, cert tls.Certificate) error {
	s, err := wire.Dial(r.t.Context(), r.config(func(c *wire.Config) {
		c.Server = id
		c.TLS = ca.Endpoint{Bundle: b, Certificate: ca.Fixed(cert), Time: r.now}.ClientConfig(name)
	}))
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Commit(r.t.Context(), block.Point{Seq: s.Last().Seq + 1, Time: time.Now()}, 0, block.Consistent)
}

// issuedBy is which root a chain of the replication server ends in.
func issuedBy(t *testing.T, cert tls.Certificate, root *x509.Certificate) bool {
	t.Helper()
	between := must(x509.ParseCertificate(cert.Certificate[1]))
	return between.CheckSignatureFrom(root) == nil
}

func newRotation(t *testing.T) *rotation {
	r := &rotation{}
	r.clock.Store(time.Now().Unix())
	authority := must(ca.Open(t.TempDir(), ca.Options{Time: r.now}))
	r.server = must(ca.ParseBundle(authority.Bundle().Text()))
	r.site = newSite(t, func(c *receive.Config) {
		c.Endpoint = ca.Endpoint{Bundle: r.server, Time: r.now, Certificate: func() (*tls.Certificate, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			cert := r.cert
			return &cert, nil
		}}
	})
	r.ca = authority
	r.recertify()
	return r
}

// TestRotation replaces the root while an agent replicates: its session is never
// interrupted, agents that know and agents that do not connect in every phase,
// and in the end the old root is refused by everyone.
func TestRotation(t *testing.T) {
	r := newRotation(t)
	old := r.ca.Root()
	flowing, late := r.copyBundle(), r.copyBundle() // late is never told
	r.agents = []*ca.Bundle{flowing}

	// One session lasts through all phases.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := must(wire.Dial(ctx, r.config(func(c *wire.Config) {
		c.TLS = ca.Endpoint{Bundle: flowing, Certificate: ca.Fixed(r.agent(agentID)), Time: r.now}.ClientConfig(name)
	})))
	var points atomic.Int64
	done := make(chan error, 1)
	go func() {
		random, m := rand.New(rand.NewPCG(1, 2)), newModel()
		for seq := s.Last().Seq + 1; ; seq++ {
			if err := send(ctx, s, random, seq, m.epoch(random, 4), block.Consistent); err != nil {
				if ctx.Err() != nil { // the test is over
					err = nil
				}
				done <- err
				return
			}
			if err := equal(r.store, seq, m); err != nil {
				done <- err
				return
			}
			points.Add(1)
		}
	}()
	flows := func(phase string) {
		t.Helper()
		for before := points.Load(); points.Load() < before+2; time.Sleep(time.Millisecond) {
			select {
			case <-s.Done():
				t.Fatalf("%s: the session has ended: %v", phase, s.Err())
			default:
			}
		}
	}
	const told, untold = "s-0123456789abcdef2", "s-0123456789abcdef3"
	phase := func(what string) {
		t.Helper()
		flows(what)
		for id, b := range map[string]*ca.Bundle{told: flowing, untold: late} {
			if err := r.connect(id, b, r.agent(id)); err != nil {
				t.Errorf("%s: %s cannot connect: %v", what, id, err)
			}
		}
	}

	phase("before")
	veteran := r.agent(told) // of the old root
	if err := r.ca.RotateRoot("", 48*time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := r.ca.RotateRoot("", 0); !errors.Is(err, ca.ErrRotating) {
		t.Errorf("announced twice: %v", err)
	}
	phase("announced, nobody told")
	r.advance(2*time.Minute, false)
	if !r.ca.Root().Equal(old) {
		t.Fatal("the new root issues before all have it")
	}
	r.tell()
	phase("announced, all but one told")
	r.advance(time.Minute, true)
	if r.ca.Root().Equal(old) || len(r.ca.Bundle().Roots()) != 2 {
		t.Fatal("the new root does not issue")
	}
	phase("switched, the server still with its old certificate")
	if err := r.connect(told, flowing, veteran); err != nil {
		t.Errorf("an agent with a certificate of the old root: %v", err)
	}
	r.recertify()
	if !issuedBy(t, r.cert, r.ca.Root()) {
		t.Fatal("the server's certificate is not of the new root")
	}
	phase("switched, the server with its new certificate")
	r.tell()
	phase("switched, all told")

	r.advance(89*24*time.Hour, true) // a certificate of the server may still be there
	if len(r.ca.Bundle().Roots()) != 2 {
		t.Fatal("the old root was dropped before its last certificate has run out")
	}
	r.recertify()
	phase("retiring")
	if err := r.connect(told, flowing, veteran); err == nil {
		t.Error("a certificate that has run out was taken")
	}
	r.advance(2*24*time.Hour, true)
	if got := r.ca.Bundle().Roots(); len(got) != 1 || got[0].Equal(old) {
		t.Fatalf("the old root is still believed: %d roots", len(got))
	}
	r.tell()
	r.recertify() // sent without what the old root has signed
	flows("dropped")
	if err := r.connect(told, flowing, r.agent(told)); err != nil {
		t.Errorf("dropped: %v", err)
	}
	if err := r.connect(untold, late, r.agent(untold)); err == nil {
		t.Error("an agent that believes only the dropped root is still served")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the session: %v", err)
	}
	s.Close()
}

// TestRotation_Forged: a certificate of the dropped root is refused, even if it
// lives longer than its issuer promised.
func TestRotation_Forged(t *testing.T) {
	r := newRotation(t)
	veteran := r.agent(agentID)
	foreign := must(ca.Open(t.TempDir(), ca.Options{}))
	if err := r.ca.RotateRoot("", time.Minute); err != nil {
		t.Fatal(err)
	}
	r.tell()
	r.advance(2*time.Minute, false) // the overlap is over: whoever has it
	r.recertify()
	if err := r.connect(agentID, r.server, veteran); err != nil {
		t.Fatal(err)
	}
	// The server drops the old root now, before the certificate has run out.
	if err := r.server.Replace(string(ca.EncodeCertificates(r.ca.Root()))); err != nil {
		t.Fatal(err)
	}
	if err := r.connect(agentID, r.copyBundle(), veteran); err == nil {
		t.Error("a certificate of a dropped root was taken")
	}
	if err := r.server.Replace(foreign.Bundle().Text()); !errors.Is(err, ca.ErrBundle) {
		t.Errorf("a bundle of a foreign authority was taken over: %v", err)
	}
}
