package ca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rehost/ca"
)

// legacyRoot leaves what a version before sealed keys and intermediates has
// left: a root of path length 0 with its key as it is.
func legacyRoot(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	key := must(ca.NewKey())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{Organization: []string{"Rehost"}, CommonName: "Rehost root 2026-01-02"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(9 * 365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))}
	if err := ca.SavePair(filepath.Join(dir, "root.pem"), pair); err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestOpen_Legacy brings an old directory to the present form, also where a
// crash has cut that off: the root stays, its key lies nowhere unsealed, and
// agents from before are believed and believe.
func TestOpen_Legacy(t *testing.T) {
	dir := t.TempDir()
	root := legacyRoot(t, dir)
	before := must(os.ReadFile(filepath.Join(dir, "root.pem")))
	key := must(ca.NewKey())
	leaf := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: agentURIs(),
	}, root.Leaf, key.Public(), root.PrivateKey))))
	old := ca.Endpoint{Root: root.Leaf, Certificate: ca.Fixed(must(ca.Certificate([]*x509.Certificate{leaf}, key)))}

	var a *ca.Authority
	for attempt := range 3 {
		if attempt == 1 { // cut off after the state was written and before the old file was removed
			if err := os.WriteFile(filepath.Join(dir, "root.pem"), before, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a = must(ca.Open(dir, sealed(1)))
		if a.Fingerprint() != ca.Fingerprint(root.Leaf) || len(a.Bundle().Roots()) != 1 {
			t.Fatalf("the root is %s now, with %d", a.Fingerprint(), len(a.Bundle().Roots()))
		}
		server := ca.Endpoint{Bundle: a.Bundle(), Certificate: ca.Fixed(must(a.IssueReplicationServer(serverID)))}
		serverErr, clientErr, _ := handshake(t, server.ServerConfig(ca.SourceServer), old.ClientConfig(replicator))
		check(t, "server", serverErr, "")
		check(t, "client", clientErr, "")
	}
	for _, e := range must(os.ReadDir(dir)) {
		if bytes.Contains(must(os.ReadFile(filepath.Join(dir, e.Name()))), []byte("PRIVATE KEY")) || e.Name() == "root.pem" {
			t.Errorf("%s has the key as it is", e.Name())
		}
	}
	if err := a.RotateIssuer(""); err == nil {
		t.Error("a root of path length 0 has signed an intermediate")
	}
}
