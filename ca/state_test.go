package ca_test

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"rehost/ca"
)

// A sealer like the service's.
type sealer struct{ cipher.AEAD }

func (s sealer) Seal(use string, plain []byte) []byte {
	nonce := make([]byte, s.NonceSize())
	rand.Read(nonce)
	return s.AEAD.Seal(nonce, nonce, plain, []byte(use))
}

func (s sealer) Open(use string, sealed []byte) ([]byte, error) {
	n := s.NonceSize()
	if len(sealed) < n {
		return nil, errors.New("short")
	}
	return s.AEAD.Open(nil, sealed[:n], sealed[n:], []byte(use))
}

func sealed(key byte) ca.Options {
	return ca.Options{Sealer: sealer{must(chacha20poly1305.NewX(bytes.Repeat([]byte{key}, 32)))}}
}

func agentURIs() []*url.URL {
	return []*url.URL{must(url.Parse("urn:rehost:source-server:" + agentID))}
}

// TestOpen_Sealed: the keys open with the sealing key only, and only beside
// their own certificates; whatever is wrong, no authority is made in its place.
func TestOpen_Sealed(t *testing.T) {
	dir := t.TempDir()
	print := must(ca.Open(dir, sealed(1))).Fingerprint()
	path := filepath.Join(dir, "authority.json")
	text := must(os.ReadFile(path))
	if bytes.Contains(text, []byte("PRIVATE KEY")) || bytes.Count(text, []byte("BEGIN REHOST SEALED KEY")) != 2 {
		t.Fatalf("the keys are not sealed:\n%s", text)
	}
	if a := must(ca.Open(dir, sealed(1))); a.Fingerprint() != print {
		t.Error("opened again it is another")
	}
	for name, o := range map[string]ca.Options{"another key": sealed(2), "no key": {}} {
		if _, err := ca.Open(dir, o); !errors.Is(err, ca.ErrSealed) {
			t.Errorf("%s: got %v, want %v", name, err, ca.ErrSealed)
		}
	}
	plain := t.TempDir()
	must(ca.Open(plain, ca.Options{}))
	if _, err := ca.Open(plain, sealed(1)); !errors.Is(err, ca.ErrSealed) {
		t.Errorf("a key that is not sealed was taken: %v", err)
	}
	// The root's key in the place of the intermediate's.
	var state map[string]any
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	g := state["generations"].([]any)[0].(map[string]any)
	g["issuer"].(map[string]any)["key"] = g["key"]
	for name, bad := range map[string]string{
		"swapped keys": string(must(json.Marshal(state))), "torn": string(text[:len(text)/2]), "empty": "",
		"newer":    strings.Replace(string(text), `"version": 1`, `"version": 2`, 1),
		"no phase": strings.Replace(string(text), `"ISSUING"`, `"RETIRING"`, 1),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := ca.Open(dir, sealed(1)); err == nil {
			t.Errorf("%s: opened, with root %s", name, a.Fingerprint())
		}
		if string(must(os.ReadFile(path))) != bad {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

// TestChain looks at what stands between a root and a leaf.
func TestChain(t *testing.T) {
	a := authority(t, ca.Options{})
	pair := must(a.ServiceCertificate([]string{"rehost.example"}, []net.IP{net.IPv4(192, 0, 2, 1)}))
	if len(pair.Certificate) != 3 {
		t.Fatalf("%d certificates are sent, want leaf, intermediate, root", len(pair.Certificate))
	}
	between := must(x509.ParseCertificate(pair.Certificate[1]))
	switch root := a.Root(); {
	case root.MaxPathLen != 1 || !root.IsCA || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign:
		t.Errorf("root: path length %d, usage %b", root.MaxPathLen, root.KeyUsage)
	case !between.MaxPathLenZero || between.MaxPathLen != 0 || !between.IsCA || len(between.ExtKeyUsage) != 2:
		t.Errorf("intermediate: %+v", between)
	case between.CheckSignatureFrom(root) != nil || pair.Leaf.CheckSignatureFrom(between) != nil || pair.Leaf.CheckSignatureFrom(root) == nil:
		t.Error("the root signs intermediates, and these the leaves")
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root())
	inter.AddCert(between)
	for host, ok := range map[string]bool{"rehost.example": true, "192.0.2.1": true, "other.example": false} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: host}); (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// TestExportRoot: with the root's key elsewhere the authority goes on, and asks
// for it where a root has to sign.
func TestExportRoot(t *testing.T) {
	dir := t.TempDir()
	a := must(ca.Open(dir, sealed(1)))
	first := must(a.ServiceCertificate([]string{"a.example"}, nil))
	file := filepath.Join(t.TempDir(), "root.key")
	if err := a.ExportRoot(file); err != nil {
		t.Fatal(err)
	}
	if bytes.Count(must(os.ReadFile(filepath.Join(dir, "authority.json"))), []byte("SEALED KEY-----")) != 2 {
		t.Error("the root's key is still there")
	}
	if err := a.ExportRoot(file + "2"); err == nil {
		t.Error("exported twice")
	}
	a = must(ca.Open(dir, sealed(1)))
	if got := must(a.ServiceCertificate([]string{"a.example"}, nil)); ca.Serial(got.Leaf) != ca.Serial(first.Leaf) {
		t.Error("another certificate is needed")
	}
	must(a.IssueReplicationServer(serverID))
	if err := a.RotateIssuer(""); err == nil || !strings.Contains(err.Error(), "--root-key") {
		t.Errorf("without the root's key: %v", err)
	}
	if err := a.RotateIssuer(file); err != nil {
		t.Fatal(err)
	}
	if a.Current(first.Leaf) {
		t.Error("the former intermediate still signs")
	}
	if got := must(a.ServiceCertificate([]string{"a.example"}, nil)); ca.Serial(got.Leaf) == ca.Serial(first.Leaf) {
		t.Error("the service keeps the certificate of the former intermediate")
	}
}

// TestRevoke_Intermediate: what a former intermediate has signed goes with it.
func TestRevoke_Intermediate(t *testing.T) {
	a := authority(t, ca.Options{})
	client := ca.Endpoint{Bundle: a.Bundle(), Certificate: ca.Fixed(agent(t, a, agentID))}
	server := ca.Endpoint{Bundle: a.Bundle(), Certificate: ca.Fixed(must(a.IssueReplicationServer(serverID)))}
	try := func() error {
		serverErr, clientErr, _ := handshake(t, server.ServerConfig(ca.SourceServer), client.ClientConfig(replicator))
		return errors.Join(serverErr, clientErr)
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	former := must(x509.ParseCertificate(must(client.Certificate()).Certificate[1]))
	if _, err := a.Revoke(ca.Serial(former)); !errors.Is(err, ca.ErrUnknown) {
		t.Errorf("the intermediate that issues was revoked: %v", err)
	}
	if err := a.RotateIssuer(""); err != nil {
		t.Fatal(err)
	}
	server.Certificate = ca.Fixed(must(a.IssueReplicationServer(serverID)))
	if err := try(); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	if _, err := a.Revoke(ca.Serial(former)); err != nil {
		t.Fatal(err)
	}
	if err := try(); !errors.Is(err, ca.ErrRevoked) {
		t.Errorf("got %v, want %v", err, ca.ErrRevoked)
	}
	client.Certificate = ca.Fixed(agent(t, a, agentID))
	if err := try(); err != nil {
		t.Errorf("of the new intermediate: %v", err)
	}
}

// TestRevoke_Server: by its serial number, and by its id for good.
func TestRevoke_Server(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	a := must(ca.Open(dir, ca.Options{Time: func() time.Time { return now }}))
	first := must(a.IssueReplicationServer(serverID))
	if got, err := a.Revoke(ca.Serial(first.Leaf)); err != nil || len(got) != 1 || got[0].Name != replicator.String() {
		t.Fatalf("got %v, %v", got, err)
	}
	if a.Current(first.Leaf) || !a.Bundle().Revoked().Contains(ca.Serial(first.Leaf)) {
		t.Error("it is not revoked")
	}
	second := must(a.IssueReplicationServer(serverID))
	if got, err := must(ca.Open(dir, ca.Options{})).Revoke(serverID); err != nil || len(got) != 3 { // another process
		t.Fatalf("got %v, %v", got, err)
	}
	if changed, err := a.Advance(nil); changed || err != nil || !a.Bundle().Revoked().Contains(ca.Serial(second.Leaf)) || !a.RevokedName(replicator) {
		t.Errorf("the other process does not notice: %v", err)
	}
	if _, err := a.IssueReplicationServer(serverID); !errors.Is(err, ca.ErrRevoked) {
		t.Errorf("a revoked server got a certificate: %v", err)
	}
	for _, bad := range []string{"", "0", "i-", "beef", agentID, "service"} {
		if _, err := a.Revoke(bad); !errors.Is(err, ca.ErrUnknown) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
