package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rehost/ca"
)

const (
	agentID  = "s-0123456789abcdef0"
	otherID  = "s-0123456789abcdef1"
	serverID = "i-0123456789abcdef0"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func authority(t *testing.T, o ca.Options) *ca.Authority {
	t.Helper()
	a, err := ca.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestName_Text(t *testing.T) {
	for _, n := range []ca.Name{{ca.SourceServer, agentID}, {ca.ReplicationServer, serverID}, {Role: ca.Service}} {
		if got, err := ca.ParseName(n.String()); err != nil || got != n {
			t.Errorf("%s: got %v, %v", n, got, err)
		}
	}
	for _, bad := range []string{
		"", "urn:rehost:", "urn:rehost:service:", "urn:rehost:service:x", "urn:rehost:source-server", "urn:rehost:source-server:",
		"urn:rehost:source-server:i-0123456789abcdef0", "urn:rehost:source-server:s-0123456789ABCDEF0",
		"urn:rehost:source-server:s-0123456789abcdef00", "URN:rehost:service", "urn:rehost:root", "https://rehost/service",
		"urn:rehost:source-server:" + agentID + "\n",
	} {
		if n, err := ca.ParseName(bad); !errors.Is(err, ca.ErrName) {
			t.Errorf("%q: got %v, %v, want %v", bad, n, err, ca.ErrName)
		}
	}
}

func TestPeerName_ExactlyOne(t *testing.T) {
	one, two := must(url.Parse("urn:rehost:service")), must(url.Parse("urn:rehost:source-server:"+agentID))
	for name, uris := range map[string][]*url.URL{
		"none": nil, "two": {one, two}, "the same twice": {one, one}, "foreign": {must(url.Parse("spiffe://x/y"))},
	} {
		if n, err := ca.PeerName(&x509.Certificate{URIs: uris}); !errors.Is(err, ca.ErrName) {
			t.Errorf("%s: got %v, %v", name, n, err)
		}
	}
}

// TestOpen_FirstUse has many come at once to an empty directory: all must end
// up with one root, in a file nobody else can read.
func TestOpen_FirstUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	prints := make([]string, 8)
	var wg sync.WaitGroup
	for i := range prints {
		wg.Go(func() {
			a, err := ca.Open(dir, ca.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = a.Fingerprint()
		})
	}
	wg.Wait()
	for _, p := range prints {
		if p != prints[0] || len(p) != 64 {
			t.Fatalf("got fingerprints %q", prints)
		}
	}
	root := filepath.Join(dir, "authority.json")
	if info := must(os.Stat(root)); info.Mode().Perm() != 0o600 {
		t.Errorf("authority.json: got mode %v", info.Mode())
	}
	public := must(ca.DecodeCertificates(must(os.ReadFile(filepath.Join(dir, "ca.pem")))))
	if len(public) != 1 || ca.Fingerprint(public[0]) != prints[0] {
		t.Errorf("ca.pem holds something else: %v", public)
	}
	if names := must(os.ReadDir(dir)); len(names) != 3 {
		t.Errorf("got files %v, want authority.json, ca.pem and lock alone", names)
	}
	if err := os.Chmod(root, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(dir, ca.Options{}); err == nil {
		t.Error("a root key that the group may read was taken")
	}
	if err := os.WriteFile(root, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(dir, ca.Options{}); err == nil {
		t.Error("a damaged root was replaced silently")
	}
}

func TestAuthority_IssueAgent(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	a := authority(t, ca.Options{AgentLifetime: time.Hour, Time: func() time.Time { return now }})
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, c := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{
		"P-256":    {must(ca.NewKey()), true},
		"P-384":    {must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), true},
		"P-521":    {must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)), false},
		"P-224":    {must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), false},
		"Ed25519":  {ed, true},
		"RSA 2048": {must(rsa.GenerateKey(rand.Reader, 2048)), true},
		"RSA 1024": {must(rsa.GenerateKey(rand.Reader, 1024)), false},
	} {
		// The request asks for everything that it must not get.
		csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"evil"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
			URIs: []*url.URL{must(url.Parse("urn:rehost:service"))},
		}, c.key))
		chain, err := a.IssueAgent(csr, agentID)
		if !c.ok {
			if !errors.Is(err, ca.ErrRequest) {
				t.Errorf("%s: got %v, want %v", name, err, ca.ErrRequest)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		cert := chain[0]
		if n, err := ca.PeerName(cert); err != nil || n != (ca.Name{Role: ca.SourceServer, ID: agentID}) {
			t.Errorf("%s: got name %v, %v", name, n, err)
		}
		if len(cert.DNSNames)+len(cert.IPAddresses) != 0 || cert.Subject.CommonName != "" || cert.IsCA {
			t.Errorf("%s: the request's names were taken over: %v %v %v", name, cert.DNSNames, cert.IPAddresses, cert.Subject)
		}
		if !cert.NotAfter.Equal(now.Add(time.Hour)) || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
			t.Errorf("%s: ends %v, usages %v", name, cert.NotAfter, cert.ExtKeyUsage)
		}
	}
	csr := must(ca.NewRequest(must(ca.NewKey())))
	csr[len(csr)-1] ^= 1
	for name, bad := range map[string][]byte{"signature": csr, "empty": nil, "garbage": []byte("hello"), "long": make([]byte, 1<<20)} {
		if _, err := a.IssueAgent(bad, agentID); !errors.Is(err, ca.ErrRequest) {
			t.Errorf("%s: got %v, want %v", name, err, ca.ErrRequest)
		}
	}
	if _, err := a.IssueAgent(must(ca.NewRequest(must(ca.NewKey()))), "i-0123456789abcdef0"); !errors.Is(err, ca.ErrName) {
		t.Errorf("an agent got a replication server's id: %v", err)
	}
	for _, d := range []time.Duration{25 * time.Hour, time.Second, -1} {
		if _, err := ca.Open(t.TempDir(), ca.Options{AgentLifetime: d}); err == nil {
			t.Errorf("lifetime %v was taken", d)
		}
	}
}

func TestAuthority_ServiceCertificateRenews(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	a := authority(t, ca.Options{Time: func() time.Time { return now }})
	dns, ips := []string{"rehost.example"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	get := func() string { return ca.Serial(must(a.ServiceCertificate(dns, ips)).Leaf) }
	first := get()
	if got := get(); got != first {
		t.Error("a good certificate was replaced")
	}
	now = now.Add(59 * 24 * time.Hour)
	if got := get(); got != first {
		t.Error("a certificate with more than a third of its life left was replaced")
	}
	now = now.Add(2 * 24 * time.Hour)
	second := get()
	if second == first {
		t.Error("a certificate near its end was not replaced")
	}
	dns = []string{"other.example"}
	if get() == second {
		t.Error("a certificate with other names was not replaced")
	}
	now = now.Add(10 * 365 * 24 * time.Hour)
	if _, err := a.ServiceCertificate(dns, ips); err == nil {
		t.Error("a certificate was issued that outlives the root")
	}
}

func TestRevocations(t *testing.T) {
	var r ca.Revocations
	told := 0
	stop := r.Watch("b", func() { told += 100 })
	r.Watch("a", func() { told++ })
	stop()
	r.Add("a", "b")
	r.Add("a")
	if told != 1 || !r.Contains("a") || !r.Contains("b") || r.Contains("c") {
		t.Errorf("told %d times", told)
	}
	r.Watch("a", func() { told += 10 })
	if told != 11 {
		t.Errorf("watching what is revoked already: told %d", told)
	}
	var none *ca.Revocations
	none.Watch("a", func() { t.Error("told by nobody") })()
	if none.Contains("a") {
		t.Error("an absent set contains something")
	}
}
