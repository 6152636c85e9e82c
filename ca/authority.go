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
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	serverLifetime    = 90 * 24 * time.Hour
	maxAgentLifetime  = 24 * time.Hour
	clockSkew         = 5 * time.Minute // certificates begin in the past by this much
	minRSA, maxRSA    = 2048, 4096      // bits; larger keys are a way to burn our time
	maxSigningRequest = 16 << 10        // bytes
)

// ErrRequest is wrapped by every error about a signing request that is refused
// for what it says: the requester's fault, not the authority's.
var ErrRequest = errors.New("bad signing request")

// Options of an [Authority]. The zero value has the defaults.
type Options struct {
	AgentLifetime time.Duration    // of agents' certificates; default and maximum 24 h
	Time          func() time.Time // default time.Now

	// Sealer protects the private keys in the directory. Without one they are
	// kept as they are, in files of mode 0600: for tests, and authorities that
	// are thrown away. A directory is used with one or without, not both.
	Sealer Sealer

	// Overlap is how long a new root is made known before it issues, for those
	// who do not say that they have it; default 7 days.
	Overlap time.Duration
}

// An Authority issues certificates. Safe for concurrent use, also by several
// processes on one directory.
type Authority struct {
	dir     string
	options Options
	bundle  *Bundle

	mu    sync.Mutex
	state *state            // guarded by mu; what it points to never changes
	key   *ecdsa.PrivateKey // guarded by mu: of the issuer
	seen  os.FileInfo       // guarded by mu: the file that state was read from
}

// Root is the root of the certificates that are issued now. While it is
// replaced it is not the only one to believe: see [Authority.Bundle].
func (a *Authority) Root() *x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.issuing().Root.Certificate
}

// Bundle is what everyone has to believe. It is the same one always and follows
// every change that this process makes or notices.
func (a *Authority) Bundle() *Bundle { return a.bundle }

// Fingerprint is the [Fingerprint] of [Authority.Root].
func (a *Authority) Fingerprint() string { return Fingerprint(a.Root()) }

// NewKey makes a private key of the kind that the service uses itself: ECDSA on P-256.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// NewRequest makes the signing request (PKCS #10, DER) that an agent sends. It
// holds nothing but the public key: the service decides whose name it gets.
func NewRequest(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// IssueAgent signs the request (PKCS #10, DER) of the agent on the source
// server with that id, and returns the certificate and the chain under it, as
// [Certificate] takes them. What the request says about names, usages and dates
// is ignored. Errors about the request wrap [ErrRequest].
func (a *Authority) IssueAgent(request []byte, id string) ([]*x509.Certificate, error) {
	name := Name{SourceServer, id}
	if err := name.Validate(); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	key, err := checkRequest(request)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w: %w", id, ErrRequest, err)
	}
	return a.issue(issuance{
		name: name, key: key, lifetime: a.options.AgentLifetime,
		usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// checkRequest returns the public key of a signing request, which is all of it
// that counts. The requester has proven to hold the private key.
func checkRequest(request []byte) (crypto.PublicKey, error) {
	if len(request) > maxSigningRequest {
		return nil, fmt.Errorf("it is longer than %d bytes", maxSigningRequest)
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, err
	}
	if err := checkKey(csr.PublicKey); err != nil { // before the signature: the key's size is the cost of checking it
		return nil, err
	}
	return csr.PublicKey, csr.CheckSignature()
}

// checkKey takes the kinds of key that TLS peers of the policy can use: what our
// own agents make (P-256), and what an agent with its key in hardware may have.
// RSA from 2,048 bits on is as good as P-256 for a certificate of a day; larger
// than 4,096 bits only costs time.
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
// server with that id, good as a server on 1500 and as a client of the API. The
// error wraps [ErrRevoked] if the id was revoked.
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

// issue signs a leaf, and returns it with the certificates that lead to each of
// the roots. It ends with its issuer at the latest.
func (a *Authority) issue(i issuance) ([]*x509.Certificate, error) {
	if err := i.name.Validate(); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	s, key, err := a.current()
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", i.name, err)
	}
	issuer := s.issuing().Issuer.Certificate.Certificate
	now := a.options.Time()
	end := now.Add(i.lifetime)
	if end.After(issuer.NotAfter) {
		end = issuer.NotAfter
	}
	if end.Before(now.Add(time.Minute)) {
		return nil, fmt.Errorf("issue certificate for %s: %s, which signs it, ends %s: run rehost ca rotate", i.name, issuer.Subject.CommonName, issuer.NotAfter.UTC())
	}
	leaf, err := sign(&x509.Certificate{
		NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: i.usage,
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{i.name.url()}, DNSNames: i.dns, IPAddresses: i.ips,
	}, issuer, i.key, key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", i.name, err)
	}
	return append([]*x509.Certificate{leaf}, s.chain()...), nil
}

func (a *Authority) issueWithKey(i issuance) (tls.Certificate, error) {
	key, err := NewKey()
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue certificate for %s: %w", i.name, err)
	}
	i.key = key.Public()
	var pair tls.Certificate
	err = a.change(func(s *state) error {
		if slices.ContainsFunc(s.Revoked, func(r Certified) bool { return r.Serial == "" && r.Name == i.name.String() }) {
			return fmt.Errorf("%s: %w", i.name, ErrRevoked)
		}
		chain, err := a.issue(i)
		if err != nil {
			return err
		}
		s.note(chain[0], a.options.Time())
		// The roots travel with the chain for those who know only a fingerprint.
		pair, err = Certificate(append(chain, s.roots()...), key)
		return err
	})
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue certificate for %s: %w", i.name, err)
	}
	return pair, nil
}

// note remembers a server's certificate, and forgets those that have run out.
func (s *state) note(leaf *x509.Certificate, now time.Time) {
	over := func(c Certified) bool { return c.Serial != "" && now.After(c.NotAfter.Add(clockSkew)) }
	c := certified(leaf)
	c.Issuer = Fingerprint(s.issuing().Root.Certificate)
	s.Issued = append(slices.DeleteFunc(s.Issued, over), c)
	s.Revoked = slices.DeleteFunc(s.Revoked, over)
}

// sign makes a certificate and reads it back.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	return cert, nil
}

// Certificate joins a key with the certificate issued for it, which comes first
// in the chain.
func Certificate(chain []*x509.Certificate, key crypto.Signer) (tls.Certificate, error) {
	if len(chain) == 0 {
		return tls.Certificate{}, errors.New("join certificate and key: there is no certificate")
	}
	want, err := x509.MarshalPKIXPublicKey(chain[0].PublicKey)
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
	out := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
