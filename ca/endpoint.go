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
//   - The chain leads to the one root, is within its dates, and is meant for
//     the peer's side of the connection.
//   - The certificate carries exactly one name, and it is the wanted one.
//   - It is not revoked.
//   - All of it holds for every connection: nothing is resumed.

// ErrRevoked is wrapped by the error of a handshake with a revoked certificate.
var ErrRevoked = errors.New("certificate is revoked")

// An Endpoint is one program's part in TLS connections. It is a value: change
// none of its fields while configurations made from it are in use.
type Endpoint struct {
	// Root is the certificate of the authority, the only one believed.
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
	c.ClientCAs = pool(e.Root)
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
	if e.Root == nil {
		return errors.New("verify peer: no root is configured")
	}
	now := time.Now
	if e.Time != nil {
		now = e.Time
	}
	leaf := state.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         pool(e.Root),
		Intermediates: x509.NewCertPool(), // the root signs leaves itself
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
	if e.Revoked.Contains(Serial(leaf)) {
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

func pool(root *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	if root != nil {
		p.AddCert(root)
	}
	return p
}
