package ca

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// This file makes roots and intermediates. The rules are:
//
//   - A root signs intermediates (path length 1), an intermediate leaves (0).
//   - An intermediate is good for TLS only. It has no name constraints: in RFC
//     5280 (4.2.1.10) those of URIs are about hosts, which the names of roles do
//     not have, and so Go refuses a chain that has any constraint at all.
//   - The root of a directory from before there were intermediates has path
//     length 0. It goes on signing leaves itself, as long as it issues.

const (
	rootLifetime   = 10 * 365 * 24 * time.Hour
	issuerLifetime = 365 * 24 * time.Hour
)

// ServiceHost is the host that agents and replication servers ask the API
// endpoint for (SNI), whatever its address is, to be shown the service's
// certificate of its own authority. No such host exists.
const ServiceHost = "rehost-service.internal"

var errNoRootKey = errors.New("the root's key is not here: name the file that it was exported to with --root-key")

// newGeneration makes a root with an intermediate.
func (a *Authority) newGeneration(phase Phase) (*generation, *ecdsa.PrivateKey, error) {
	now := a.options.Time()
	key, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	template := caTemplate("root", now, now.Add(rootLifetime), 1)
	root, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	g := &generation{Phase: phase, Root: pemCert{root}, Since: now}
	if g.Key, err = a.options.encodeKey(root, key); err != nil {
		return nil, nil, err
	}
	return g, key, a.newIssuer(g, key)
}

// newIssuer gives the generation another intermediate.
func (a *Authority) newIssuer(g *generation, root *ecdsa.PrivateKey) error {
	now := a.options.Time()
	key, err := NewKey()
	if err != nil {
		return err
	}
	end := now.Add(issuerLifetime)
	if end.After(g.Root.NotAfter) {
		end = g.Root.NotAfter
	}
	template := caTemplate("intermediate", now, end, 0)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	cert, err := sign(template, g.Root.Certificate, key.Public(), root)
	if err != nil {
		return err
	}
	if g.Issuer != nil {
		g.Former = append(slices.DeleteFunc(g.Former, func(c pemCert) bool { return now.After(c.NotAfter) }), g.Issuer.Certificate)
	}
	g.Issuer = &issuer{Certificate: pemCert{cert}}
	g.Issuer.Key, err = a.options.encodeKey(cert, key)
	return err
}

func caTemplate(kind string, now, end time.Time, pathLength int) *x509.Certificate {
	var tell [4]byte // one day's roots apart
	rand.Read(tell[:])
	return &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{"Rehost"}, CommonName: fmt.Sprintf("Rehost %s %s %s", kind, now.UTC().Format(time.DateOnly), hex.EncodeToString(tell[:]))},
		NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLen: pathLength, MaxPathLenZero: pathLength == 0,
	}
}

// cross has the root sign another generation's issuer, so that those who
// believe only this root, or were given only its fingerprint, believe what the
// other one issues. A root from before may not: its path length forbids it.
func (g *generation) cross(root *ecdsa.PrivateKey, other *generation) error {
	if g.Direct {
		return nil
	}
	like := other.Issuer.Certificate.Certificate
	end := like.NotAfter
	if end.After(g.Root.NotAfter) {
		end = g.Root.NotAfter
	}
	cert, err := sign(&x509.Certificate{
		RawSubject: like.RawSubject, SubjectKeyId: like.SubjectKeyId, NotBefore: like.NotBefore, NotAfter: end,
		KeyUsage: like.KeyUsage, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}, g.Root.Certificate, like.PublicKey, root)
	if err != nil {
		return err
	}
	g.Cross = append(g.Cross, pemCert{cert})
	return nil
}

// chain is what is sent after a leaf: the issuer, and what other roots have
// signed of it.
func (s *state) chain() []*x509.Certificate {
	g := s.issuing()
	var out []*x509.Certificate
	if !g.Direct {
		out = append(out, g.Issuer.Certificate.Certificate)
	}
	for _, other := range s.Generations {
		for _, c := range other.Cross {
			if other != g && string(c.RawSubjectPublicKeyInfo) == string(g.Issuer.Certificate.RawSubjectPublicKeyInfo) {
				out = append(out, c.Certificate)
			}
		}
	}
	return out
}

// rootKey opens the key of a generation's root: the one that is kept, or the
// one in an exported file.
func (a *Authority) rootKey(g *generation, file string) (*ecdsa.PrivateKey, error) {
	text := g.Key
	if file != "" {
		exported, err := readPrivate(file)
		if err != nil {
			return nil, err
		}
		text = string(exported)
	}
	if text == "" {
		return nil, fmt.Errorf("%s: %w", g.Root.Subject.CommonName, errNoRootKey)
	}
	return a.options.decodeKey(g.Root.Certificate, text)
}

// legacy is the generation of a root from before there were intermediates.
func (a *Authority) legacy(pair tls.Certificate) (*generation, error) {
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("the certificate in %s is not an authority's", rootFile)
	}
	text, err := a.options.encodeKey(pair.Leaf, key)
	if err != nil {
		return nil, err
	}
	return &generation{Phase: Issuing, Root: pemCert{pair.Leaf}, Direct: true, Since: a.options.Time(),
		Issuer: &issuer{Certificate: pemCert{pair.Leaf}, Key: text}}, nil
}
