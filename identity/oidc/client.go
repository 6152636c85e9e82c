package oidc

import (
	"context"
	"crypto/sha1" //nolint:gosec // thumbprints of IAM are SHA-1; they name a certificate that the administrator has seen
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"rehost/identity"
)

// newClient makes the client that talks to a provider: to its own address and
// that of its keys, over TLS only, to wherever nobody redirects, and for no
// more than fits.
func newClient(p identity.Provider) *http.Client {
	own := ""
	if u, err := url.Parse(p.URL); err == nil {
		own = u.Hostname()
	}
	return &http.Client{
		Timeout: fetchLimit,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("it redirects, which is not followed")
		},
		Transport: bounded{&http.Transport{
			DialTLSContext:         dialer(own, p.Thumbprints),
			ResponseHeaderTimeout:  fetchLimit,
			MaxResponseHeaderBytes: 32 << 10,
			DisableKeepAlives:      true, // it is asked every few minutes
		}},
	}
}

// bounded refuses what is not TLS and cuts answers that are too large.
type bounded struct{ http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%s is not https", r.URL.Redacted())
	}
	answer, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = &limited{answer.Body, maxAnswer}
	}
	return answer, err
}

type limited struct {
	io.ReadCloser
	left int
}

// Read implements [io.Reader].
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if l.left -= n; l.left < 0 {
		return 0, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	return n, err
}

// dialer connects to where a provider may be. Its own host is as the
// administrator wants it, inside the network or on this machine. An address of
// its keys on another host is the provider's word, and must be of the internet.
// Nobody's may be link-local, where clouds have their metadata. It is the
// address that counts, after the name was resolved.
func dialer(own string, thumbprints []string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		d := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return reachable(at.Addr().Unmap(), strings.EqualFold(host, own))
		}}
		plain, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := tls.Client(plain, trust(host, thumbprints))
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, plain.Close())
		}
		return c, nil
	}
}

func reachable(at netip.Addr, own bool) error {
	switch {
	case at.IsLinkLocalUnicast(), at.IsMulticast(), at.IsUnspecified(), at.IsInterfaceLocalMulticast():
		return fmt.Errorf("%s is no address of a provider", at)
	case !own && (at.IsLoopback() || at.IsPrivate() || !at.IsGlobalUnicast()):
		return fmt.Errorf("%s is inside the network, and on another host than the provider", at)
	}
	return nil
}

// trust is whom TLS believes to be the host: whom the system's authorities name,
// or those authorities alone of which there are thumbprints.
func trust(host string, thumbprints []string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if len(thumbprints) == 0 {
		return c
	}
	c.InsecureSkipVerify = true // VerifyConnection does it
	c.VerifyConnection = func(s tls.ConnectionState) error {
		roots, others := x509.NewCertPool(), x509.NewCertPool()
		found := false
		for i, cert := range s.PeerCertificates {
			sum := sha1.Sum(cert.Raw) //nolint:gosec // see above
			switch named := slices.ContainsFunc(thumbprints, func(t string) bool { return strings.EqualFold(t, hex.EncodeToString(sum[:])) }); {
			case named:
				roots.AddCert(cert)
				found = true
			case i > 0:
				others.AddCert(cert)
			}
		}
		if !found {
			return errors.New("no certificate has a thumbprint of the provider")
		}
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: others}) // s.ServerName is empty for an address
		return err
	}
	return c
}
