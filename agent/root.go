package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"

	"rehost/ca"
)

// loadRoot reads the certificate of the service's authority.
func loadRoot(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	certs, err := ca.DecodeCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority %s: %w", path, err)
	}
	if !certs[0].IsCA {
		return nil, fmt.Errorf("read certificate authority %s: the certificate in it is not an authority's", path)
	}
	return certs[0], nil
}

// findRoot gets the authority from a file, or from the endpoint itself if it
// has the fingerprint. Without either nobody is believed.
func findRoot(ctx context.Context, endpoint, file, fingerprint string) (*x509.Certificate, error) {
	if file != "" {
		root, err := loadRoot(file)
		if err == nil && fingerprint != "" && ca.Fingerprint(root) != fingerprint {
			err = fmt.Errorf("read certificate authority %s: %w", file, ca.ErrFingerprint)
		}
		return root, err
	}
	if fingerprint == "" {
		return nil, errors.New("the service's certificate authority is not given: --ca FILE or --ca-fingerprint SHA256")
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	return ca.FetchRoot(ctx, u.Host, fingerprint)
}
