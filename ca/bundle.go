package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// A Bundle is what a program believes at the moment: the roots of the authority
// and the certificates that it has taken back. It has one text form, in which it
// travels and is kept: docs/format/trust-bundle.md. Safe for concurrent use.
type Bundle struct {
	revoked Revocations

	mu    sync.Mutex
	roots []*x509.Certificate // guarded by mu
	text  string              // guarded by mu
}

const (
	bundleHeader   = "rehost trust bundle 1"
	maxBundle      = 256 << 10 // bytes
	maxBundleRoots = 8
)

// ErrBundle is wrapped by every error about a bundle that is not taken.
var ErrBundle = errors.New("trust bundle")

var serialForm = regexp.MustCompile(`^[0-9a-f]{1,40}$`)

// NewBundle believes these roots, and has nothing revoked.
func NewBundle(roots ...*x509.Certificate) *Bundle {
	b := &Bundle{}
	b.set(roots, nil)
	return b
}

// ParseBundle reads the text form. A file of certificates alone, as ca.pem is
// for other programs, is a bundle with nothing revoked.
func ParseBundle(text string) (*Bundle, error) {
	roots, revoked, err := parseBundle(text)
	if err != nil {
		return nil, err
	}
	b := &Bundle{}
	b.set(roots, revoked)
	return b, nil
}

// Roots are the certificates that chains may end in.
func (b *Bundle) Roots() []*x509.Certificate {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.roots)
}

// Revoked are the certificates taken back. They only grow in number, until the
// program ends: a bundle that forgets one that has run out takes nothing back.
func (b *Bundle) Revoked() *Revocations { return &b.revoked }

// Text is the one text form of the bundle.
func (b *Bundle) Text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text
}

// Digest tells one bundle from another: the SHA-256 of its text in hexadecimal.
func (b *Bundle) Digest() string {
	sum := sha256.Sum256([]byte(b.Text()))
	return hex.EncodeToString(sum[:])
}

// Check reports why the text must not take the place of b: it is not a bundle,
// or has no root in common with b, so that nothing would vouch for it after the
// one connection that it came on.
func (b *Bundle) Check(text string) error {
	roots, _, err := parseBundle(text)
	if err != nil {
		return err
	}
	for _, r := range b.Roots() {
		if slices.ContainsFunc(roots, r.Equal) {
			return nil
		}
	}
	return fmt.Errorf("%w: none of its roots is believed yet", ErrBundle)
}

// Replace takes over a bundle that [Bundle.Check] has nothing against.
func (b *Bundle) Replace(text string) error {
	if err := b.Check(text); err != nil {
		return err
	}
	roots, revoked, err := parseBundle(text)
	if err != nil {
		return err
	}
	b.set(roots, revoked)
	return nil
}

func (b *Bundle) set(roots []*x509.Certificate, revoked []string) {
	text := bundleText(roots, revoked)
	b.mu.Lock()
	b.roots, b.text = roots, text
	b.mu.Unlock()
	b.revoked.Add(revoked...)
}

func bundleText(roots []*x509.Certificate, revoked []string) string {
	var out bytes.Buffer
	fmt.Fprintln(&out, bundleHeader)
	for _, serial := range revoked {
		fmt.Fprintln(&out, "revoked", serial)
	}
	out.Write(EncodeCertificates(roots...))
	return out.String()
}

func parseBundle(text string) (roots []*x509.Certificate, revoked []string, err error) {
	if len(text) > maxBundle {
		return nil, nil, fmt.Errorf("%w: it is longer than %d bytes", ErrBundle, maxBundle)
	}
	if head, rest, _ := strings.Cut(text, "\n"); head == bundleHeader {
		text = rest
		for {
			line, rest, _ := strings.Cut(text, "\n")
			serial, ok := strings.CutPrefix(line, "revoked ")
			if !ok {
				break
			}
			if !serialForm.MatchString(serial) {
				return nil, nil, fmt.Errorf("%w: %q is not a serial number", ErrBundle, serial)
			}
			revoked, text = append(revoked, serial), rest
		}
		if !strings.HasPrefix(text, "-----BEGIN CERTIFICATE-----") {
			return nil, nil, fmt.Errorf("%w: something other than certificates follows its head", ErrBundle)
		}
	} else if strings.HasPrefix(head, "rehost trust bundle") {
		return nil, nil, fmt.Errorf("%w: %q is not a version that is known here", ErrBundle, head)
	}
	if roots, err = DecodeCertificates([]byte(text)); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	if len(roots) > maxBundleRoots {
		return nil, nil, fmt.Errorf("%w: it has %d roots, the most is %d", ErrBundle, len(roots), maxBundleRoots)
	}
	for _, r := range roots {
		if !r.IsCA || !r.BasicConstraintsValid {
			return nil, nil, fmt.Errorf("%w: %s is not an authority's certificate", ErrBundle, r.Subject)
		}
	}
	return roots, revoked, nil
}
