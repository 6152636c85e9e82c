package agent

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"

	"rehost/ca"
)

// loadBundle reads whom an agent believes.
func loadBundle(path string) (*ca.Bundle, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	bundle, err := ca.ParseBundle(string(text))
	if err != nil {
		return nil, fmt.Errorf("read certificate authority %s: %w", path, err)
	}
	return bundle, nil
}

// findBundle gets the authority from a file, or from the endpoint itself if it
// has the fingerprint. Without either nobody is believed. With both, only the
// root in the file that has the fingerprint is. While the authority is replaced
// it has two roots, and the file or fingerprint of either will do: each vouches
// for the service, which then tells the agent of the other.
func findBundle(ctx context.Context, endpoint, file, fingerprint string, dial dialer) (*ca.Bundle, error) {
	if file != "" {
		bundle, err := loadBundle(file)
		if err != nil || fingerprint == "" {
			return bundle, err
		}
		for _, root := range bundle.Roots() {
			if ca.Fingerprint(root) == fingerprint {
				return ca.NewBundle(root), nil
			}
		}
		return nil, fmt.Errorf("read certificate authority %s: %w", file, ca.ErrFingerprint)
	}
	if fingerprint == "" {
		return nil, errors.New("the service's certificate authority is not given: --ca FILE or --ca-fingerprint SHA256")
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	root, err := ca.FetchRoot(ctx, u.Host, fingerprint, dial)
	if err != nil {
		return nil, err
	}
	return ca.NewBundle(root), nil
}
