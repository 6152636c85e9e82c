package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
)

const (
	rootLifetime      = 10 * 365 * 24 * time.Hour
	serverLifetime    = 90 * 24 * time.Hour
	maxAgentLifetime  = 24 * time.Hour
	clockSkew         = 5 * time.Minute // certificates begin in the past by this much
	minRSA, maxRSA    = 2048, 8192      // bits; larger keys are a way to burn our time
	maxSigningRequest = 16 << 10        // bytes
)

// ErrRequest is wrapped by every error about a signing request that is refused
// for what it says: the requester's fault, not the authority's.
var ErrRequest = errors.New("bad signing request")

// Options of an [Authority]. The zero value has the defaults.
type Options struct {
	AgentLifetime time.Duration    // of agents' certificates; default and maximum 24 h
	Time          func() time.Time // default time.Now
}

// An Authority issues certificates. Safe for concurrent use.
type Authority struct {
	dir     string
	options Options
	root    *x509.Certificate
	key     crypto.Signer
}

// Root is the authority's own certificate, which everyone has to believe.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Fingerprint is the [Fingerprint] of the root.
func (a *Authority) Fingerprint() string { return Fingerprint(a.root) }

// NewKey makes a private key of the kind that the service uses itself: ECDSA on P-256.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// NewRequest makes the signing request (PKCS #10, DER) that an agent sends. It
// holds nothing but the public key: the service decides whose name it gets.
func NewRequest(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// IssueAgent signs the request (PKCS #10, DER) of the agent on the source
// server with that id. What the request says about names, usages and dates is
// ignored. Errors about the request wrap [ErrRequest].
func (a *Authority) IssueAgent(request []byte, id string) (*x509.Certificate, error) {
	if len(request) > maxSigningRequest {
		return nil, fmt.Errorf("issue certificate for %s: %w: it is longer than %d bytes", id, ErrRequest, maxSigningRequest)
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w: %w", id, ErrRequest, err)
	}
	if err := checkKey(csr.PublicKey); err != nil { // before the signature: the key's size is the cost of checking it
		return nil, fmt.Errorf("issue certificate for %s: %w: %w", id, ErrRequest, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w: %w", id, ErrRequest, err)
	}
	return a.issue(issuance{
		name: Name{SourceServer, id}, key: csr.PublicKey, lifetime: a.options.AgentLifetime,
		usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func checkKey(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("the curve is %s, want P-256 or P-384", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("the RSA key has %d bits, want %d to %d", n, minRSA, maxRSA)
		}
		return nil
	}
	return fmt.Errorf("keys of type %T are not accepted", key)
}

// IssueReplicationServer makes a key and a certificate for the replication
// server with that id, good as a server on 1500 and as a client of the API.
func (a *Authority) IssueReplicationServer(id string) (tls.Certificate, error) {
	return a.issueWithKey(issuance{
		name: Name{ReplicationServer, id}, lifetime: serverLifetime,
		usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// IssueService makes a key and a certificate for the API endpoint, which is
// also known under the DNS names and addresses given.
func (a *Authority) IssueService(dns []string, ips []net.IP) (tls.Certificate, error) {
	return a.issueWithKey(issuance{
		name: Name{Role: Service}, lifetime: serverLifetime, dns: dns, ips: ips,
		usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

type issuance struct {
	name     Name
	key      crypto.PublicKey
	lifetime time.Duration
	usage    []x509.ExtKeyUsage
	dns      []string
	ips      []net.IP
}

func (a *Authority) issue(i issuance) (*x509.Certificate, error) {
	if err := i.name.Validate(); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	now := a.options.Time()
	end := now.Add(i.lifetime)
	if end.After(a.root.NotAfter) {
		return nil, fmt.Errorf("issue certificate for %s: the authority's root ends %s, before the certificate would", i.name, a.root.NotAfter.UTC())
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: i.usage,
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{i.name.url()}, DNSNames: i.dns, IPAddresses: i.ips,
	}, a.root, i.key, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", i.name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: read back: %w", i.name, err)
	}
	return cert, nil
}

func (a *Authority) issueWithKey(i issuance) (tls.Certificate, error) {
	key, err := NewKey()
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue certificate for %s: %w", i.name, err)
	}
	i.key = key.Public()
	leaf, err := a.issue(i)
	if err != nil {
		return tls.Certificate{}, err
	}
	// The root travels with the leaf for those who know only its fingerprint.
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, a.root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// Certificate joins an agent's key with the certificate issued for it.
func Certificate(leaf *x509.Certificate, key crypto.Signer) (tls.Certificate, error) {
	want, err := x509.MarshalPKIXPublicKey(leaf.PublicKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("join certificate and key: %w", err)
	}
	got, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("join certificate and key: %w", err)
	}
	if !bytes.Equal(got, want) {
		return tls.Certificate{}, errors.New("join certificate and key: they do not belong together")
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func newRoot(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{"Rehost"}, CommonName: "Rehost root " + now.UTC().Format(time.DateOnly)},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(rootLifetime),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}
