package ca

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

// ErrFingerprint is returned where no certificate has the pinned fingerprint.
var ErrFingerprint = errors.New("the server presented no certificate authority with the given fingerprint")

// Fingerprint is the SHA-256 of the certificate's DER form, in lower-case
// hexadecimal: what `openssl x509 -fingerprint -sha256` prints, without colons.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// FetchRoot asks the API endpoint at address (host:port) for the authority's
// root and returns it if its fingerprint is the given one (case and colons do
// not matter) and the endpoint proves to be the service under that root.
// Nothing is sent to a server that does not. Dial makes the connection; with nil
// it goes through the proxy that the environment names, if it names one.
func FetchRoot(ctx context.Context, address, fingerprint string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*x509.Certificate, error) {
	want, err := hex.DecodeString(strings.ReplaceAll(fingerprint, ":", ""))
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("fingerprint %q is not %d hexadecimal digits", fingerprint, 2*sha256.Size)
	}
	var root *x509.Certificate
	config := baseConfig()
	config.ServerName = ServiceHost
	config.InsecureSkipVerify = true // replaced by what follows
	config.VerifyConnection = func(state tls.ConnectionState) error {
		for _, cert := range state.PeerCertificates {
			sum := sha256.Sum256(cert.Raw)
			if subtle.ConstantTimeCompare(sum[:], want) == 1 && cert.IsCA {
				root = cert
				return Endpoint{Root: cert}.verify(state, x509.ExtKeyUsageServerAuth, exactly(Name{Role: Service}))
			}
		}
		return ErrFingerprint
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var proven atomic.Bool // that the handshake is over, and so root is written
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{TLSHandshakeDone: func(_ tls.ConnectionState, err error) { proven.Store(err == nil) }})
	// A request and not a bare connection, so that it goes through a proxy as those
	// that follow do. It asks for nothing, and any answer will do.
	transport := &http.Transport{DialContext: dial, TLSClientConfig: config, DisableKeepAlives: true}
	if dial == nil {
		transport.Proxy = http.ProxyFromEnvironment
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+address+"/", nil)
	if err != nil {
		return nil, fmt.Errorf("fetch root from %s: %w", address, err)
	}
	answer, err := transport.RoundTrip(request)
	if err == nil {
		answer.Body.Close()
	}
	if !proven.Load() {
		return nil, fmt.Errorf("fetch root from %s: %w", address, err)
	}
	return root, nil
}

// EncodeCertificates returns the certificates in PEM, in the order given.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// DecodeCertificates is the inverse of [EncodeCertificates]. Text between the
// blocks is ignored; a block of another type, or none at all, is an error.
func DecodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("decode certificates: unexpected %s", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("decode certificates: %w", err)
		}
		out = append(out, cert)
	}
	if out == nil {
		return nil, errors.New("decode certificates: no PEM block found")
	}
	return out, nil
}
