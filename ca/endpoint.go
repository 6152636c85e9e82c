package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// This file decides whom a connection is believed. The rules are:
//
//   - TLS 1.3, or 1.2 with ephemeral elliptic-curve keys and AEAD ciphers.
//   - The chain leads to a root that is believed, is within its dates, and is
//     meant for the peer's side of the connection.
//   - The certificate carries exactly one name, and it is the wanted one.
//   - Neither it nor what signed it is revoked.
//   - All of it holds for every connection: nothing is resumed.

// ErrRevoked is wrapped by the error of a handshake with a revoked certificate.
var ErrRevoked = errors.New("certificate is revoked")

// An Endpoint is one program's part in TLS connections. It is a value: change
// none of its fields while configurations made from it are in use.
type Endpoint struct {
	// Bundle is what is believed; it may change while configurations are in use.
	Bundle *Bundle

	// Root is believed too, always: for those who know one root only.
	Root *x509.Certificate

	// Certificate returns the program's own certificate and is asked in every
	// handshake, so that renewal needs no restart. Nil means there is none,
	// which only a client may do. Safe for concurrent use.
	Certificate func() (*tls.Certificate, error)

	Revoked *Revocations     // nil: none
	Time    func() time.Time // nil: time.Now
}

// Fixed makes a function for [Endpoint.Certificate] of a certificate that does not change.
func Fixed(cert tls.Certificate) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return &cert, nil }
}

// ServerConfig is for a server whose every client must hold a certificate with
// one of the roles. The name's id is for the caller to look at: [PeerName].
func (e Endpoint) ServerConfig(roles ...Role) *tls.Config {
	return e.serverConfig(tls.RequireAndVerifyClientCert, roles)
}

// OptionalConfig is [Endpoint.ServerConfig] for a server that also takes
// clients without a certificate, which it must then authenticate otherwise.
func (e Endpoint) OptionalConfig(roles ...Role) *tls.Config {
	return e.serverConfig(tls.VerifyClientCertIfGiven, roles)
}

func (e Endpoint) serverConfig(auth tls.ClientAuthType, roles []Role) *tls.Config {
	c := baseConfig()
	c.Time = e.Time
	c.ClientAuth = auth
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return e.Certificate() }
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 && auth == tls.VerifyClientCertIfGiven {
			return nil
		}
		return e.verify(state, x509.ExtKeyUsageClientAuth, func(n Name) error {
			if !slices.Contains(roles, n.Role) {
				return fmt.Errorf("%w: %s may not connect here", ErrName, n)
			}
			return nil
		})
	}
	// Go verifies the client's chain with what is believed at that moment.
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := c.Clone()
		now.GetConfigForClient, now.ClientCAs = nil, e.pool()
		return now, nil
	}
	return c
}

// ClientConfig is for a client that talks to the server of that name and to no
// other, wherever it is: the host in the address is not part of the decision.
func (e Endpoint) ClientConfig(want Name) *tls.Config {
	c := baseConfig()
	c.Time = e.Time
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if e.Certificate == nil {
			return &tls.Certificate{}, nil
		}
		return e.Certificate()
	}
	if want.Role == Service {
		c.ServerName = ServiceHost // others may be shown another certificate there
	}
	c.InsecureSkipVerify = true // host names mean nothing here: VerifyConnection checks the chain and the name
	c.VerifyConnection = func(state tls.ConnectionState) error {
		return e.verify(state, x509.ExtKeyUsageServerAuth, exactly(want))
	}
	return c
}

func exactly(want Name) func(Name) error {
	return func(got Name) error {
		if got != want {
			return fmt.Errorf("%w: want %s, got %s", ErrName, want, got)
		}
		return nil
	}
}

// verify is the whole decision about a peer. Go has verified a client's chain
// before; doing it again costs little and leaves one place to read.
func (e Endpoint) verify(state tls.ConnectionState, usage x509.ExtKeyUsage, accept func(Name) error) error {
	if len(state.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the peer has no certificate", ErrName)
	}
	if len(e.roots()) == 0 {
		return errors.New("verify peer: no root is configured")
	}
	now := time.Now
	if e.Time != nil {
		now = e.Time
	}
	leaf := state.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         e.pool(),
		Intermediates: between,
		CurrentTime:   now(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return fmt.Errorf("verify peer: %w", err)
	}
	name, err := PeerName(leaf)
	if err != nil {
		return fmt.Errorf("verify peer: %w", err)
	}
	if err := accept(name); err != nil {
		return fmt.Errorf("verify peer: %w", err)
	}
	if !slices.ContainsFunc(chains, e.unrevoked) {
		return fmt.Errorf("verify peer: %s: %w", name, ErrRevoked)
	}
	return nil
}

func baseConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are all as good
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		SessionTicketsDisabled:      true, // and no ClientSessionCache: every connection proves itself anew
		DynamicRecordSizingDisabled: true, // bulk data: full records from the first byte
		Renegotiation:               tls.RenegotiateNever,
	}
}

// unrevoked: nothing in the chain was taken back.
func (e Endpoint) unrevoked(chain []*x509.Certificate) bool {
	for _, c := range chain {
		if serial := Serial(c); e.Revoked.Contains(serial) || e.Bundle != nil && e.Bundle.Revoked().Contains(serial) {
			return false
		}
	}
	return true
}

func (e Endpoint) roots() (roots []*x509.Certificate) {
	if e.Bundle != nil {
		roots = e.Bundle.Roots()
	}
	if e.Root != nil {
		roots = append(roots, e.Root)
	}
	return roots
}

func (e Endpoint) pool() *x509.CertPool {
	p := x509.NewCertPool()
	for _, r := range e.roots() {
		p.AddCert(r)
	}
	return p
}

// Believes reports whether another endpoint of the same bundle would take the
// certificate as a client's now.
func (e Endpoint) Believes(pair tls.Certificate) bool {
	var state tls.ConnectionState
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return false
		}
		state.PeerCertificates = append(state.PeerCertificates, c)
	}
	return e.verify(state, x509.ExtKeyUsageClientAuth, func(Name) error { return nil }) == nil
}
