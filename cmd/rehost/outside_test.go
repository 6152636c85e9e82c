package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/ca"
)

// An elsewhere is an authority that is not ours, with an intermediate.
type elsewhere struct {
	t          *testing.T
	root       *x509.Certificate
	between    *x509.Certificate
	betweenKey *ecdsa.PrivateKey
	dir        string
}

func newElsewhere(t *testing.T) *elsewhere {
	e := &elsewhere{t: t, dir: t.TempDir()}
	var rootKey *ecdsa.PrivateKey
	e.root, rootKey = e.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "Elsewhere root"}, IsCA: true, BasicConstraintsValid: true}, nil, nil)
	e.between, e.betweenKey = e.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "Elsewhere"}, IsCA: true, BasicConstraintsValid: true}, e.root, rootKey)
	return e
}

func (e *elsewhere) sign(c, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	e.t.Helper()
	key, err := ca.NewKey()
	if err != nil {
		e.t.Fatal(err)
	}
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	if parent == nil {
		parent, by = c, key
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		e.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		e.t.Fatal(err)
	}
	return out, key
}

// write issues a server's certificate and writes it with this chain.
func (e *elsewhere) write(template *x509.Certificate, chain ...*x509.Certificate) (certificate, key string) {
	e.t.Helper()
	leaf, private := e.sign(template, e.between, e.betweenKey)
	certificate, key = filepath.Join(e.dir, "tls.pem"), filepath.Join(e.dir, "tls.key")
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		e.t.Fatal(err)
	}
	for path, text := range map[string][]byte{
		certificate: ca.EncodeCertificates(append([]*x509.Certificate{leaf}, chain...)...),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := writeFile(path, text, 0o600); err != nil {
			e.t.Fatal(err)
		}
	}
	return certificate, key
}

func server(names ...string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
}

// TestOutside_Checks: what is no good is said at the start, with the reason.
func TestOutside_Checks(t *testing.T) {
	e := newElsewhere(t)
	chain := []*x509.Certificate{e.between, e.root}
	over, early := server("rehost.example"), server("rehost.example")
	over.NotBefore, over.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	early.NotBefore, early.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	for name, c := range map[string]struct {
		leaf  *x509.Certificate
		chain []*x509.Certificate
		says  string // "" is good
	}{
		"good":              {server("rehost.example"), chain, ""},
		"ended":             {over, chain, "it ended"},
		"to come":           {early, chain, "it begins only"},
		"no chain":          {server("rehost.example"), nil, "the chain is not whole"},
		"chain without end": {server("rehost.example"), chain[:1], "the chain is not whole"},
		"chain in disorder": {server("rehost.example"), []*x509.Certificate{e.root, e.between}, "has not signed the one before it"},
		"another host":      {server("other.example"), chain, "not for rehost.example"},
	} {
		certificate, key := e.write(c.leaf, c.chain...)
		_, err := openOutside(certificate, key, []string{"rehost.example"}, slog.New(slog.DiscardHandler))
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want it to say %q", name, err, c.says)
		}
	}
	_, key := e.write(server("rehost.example"), chain...)
	other := filepath.Join(t.TempDir(), "other.key")
	text, err := os.ReadFile(key)
	if err == nil {
		err = os.WriteFile(other, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	certificate, key := e.write(server("rehost.example"), chain...)
	for name, files := range map[string][2]string{"another's key": {certificate, other}, "no key": {certificate, ""}, "no file": {certificate + "x", key}} {
		if _, err := openOutside(files[0], files[1], nil, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := openOutside(certificate, key, nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a key that others may read was taken")
	}
}

// TestServe_Outside: strangers are shown the certificate from elsewhere, agents
// the authority's; a change is taken over, unless it is no good.
func TestServe_Outside(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	e := newElsewhere(t)
	certificate, key := e.write(server("127.0.0.1.example", "localhost"), e.between, e.root)
	sealing := filepath.Join(t.TempDir(), "credential")
	data := filepath.Join(t.TempDir(), "data")
	r := serveWith(t, data, "--advertise", "localhost", "--tls-certificate", certificate, "--tls-key", key, "--sealing-key", sealing)
	if _, err := os.Stat(filepath.Join(data, "sealing.key")); err == nil {
		t.Error("a sealing key was made in the directory")
	}
	api, err := url.Parse(r.api)
	r.must(err)
	pool := x509.NewCertPool()
	pool.AddCert(e.root)
	shown := func() (*x509.Certificate, error) {
		conn, err := tls.Dial("tcp", api.Host, &tls.Config{RootCAs: pool, ServerName: "localhost"})
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0], nil
	}
	first, err := shown()
	if err != nil || first.Subject.CommonName != "127.0.0.1.example" {
		t.Fatal("a stranger is not shown the certificate from elsewhere:", err)
	}
	if _, err := ca.FetchRoot(t.Context(), api.Host, ca.Fingerprint(r.root), nil); err != nil {
		t.Error("an agent is not shown the service's:", err)
	}
	// An agent that was given the foreign authority believes nobody here.
	conn, err := tls.Dial("tcp", api.Host, ca.Endpoint{Root: e.root}.ClientConfig(ca.Name{Role: ca.Service}))
	if err == nil {
		conn.Close()
		t.Error("an agent takes the foreign authority for the service's")
	}
	e.write(server("localhost"), e.between, e.root)
	r.until("the new certificate", func() bool {
		now, err := shown()
		r.must(err)
		return !now.Equal(first)
	})
	second, err := shown()
	r.must(err)
	e.write(server("other.example"), e.between, e.root) // not for what is advertised
	time.Sleep(2500 * time.Millisecond)                 // it is looked at every second
	if now, err := shown(); err != nil || !now.Equal(second) {
		t.Errorf("a certificate that is no good was taken over: %v", err)
	}
	if status := r.stop(); status != statusDone {
		t.Fatalf("stopped with status %d", status)
	}
	// A sealing key that is not there is not made anew for a directory in use.
	var errs bytes.Buffer
	if status := Run(context.Background(), []string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--sealing-key", sealing + "x"}, &errs, &errs); status == statusDone || !strings.Contains(errs.String(), "sealed with another") {
		t.Errorf("with another sealing key: status %d: %s", status, errs.String())
	}
	if _, err := os.Stat(sealing + "x"); err == nil {
		t.Error("it was made")
	}
}
