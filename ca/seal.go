package ca

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// A Sealer protects private keys at rest. What was sealed under a use opens
// under that use only. Safe for concurrent use.
type Sealer interface {
	Seal(use string, plain []byte) []byte
	Open(use string, sealed []byte) ([]byte, error)
}

// The types of the PEM blocks that hold a key; docs/format/authority.md.
const (
	sealedBlock = "REHOST SEALED KEY"
	plainBlock  = "PRIVATE KEY"
)

// ErrSealed is wrapped by the error about a key that cannot be opened.
var ErrSealed = errors.New("the key of the certificate authority cannot be opened")

// sealUse binds a sealed key to the public key of its certificate, so that
// one cannot be put in the place of another.
func sealUse(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "authority key " + hex.EncodeToString(sum[:])
}

// encodeKey returns the PEM of a certificate's key, sealed if there is a sealer.
func (o Options) encodeKey(cert *x509.Certificate, key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("encode key of %s: %w", cert.Subject, err)
	}
	kind := plainBlock
	if o.Sealer != nil {
		kind, der = sealedBlock, o.Sealer.Seal(sealUse(cert), der)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})), nil
}

// Reseal seals all keys of the authority again, and the root's in the file that it was
// exported to, if that is named. With a sealer that opens what older keys have sealed and
// seals with the newest, nothing needs the older ones afterwards. It may be repeated.
func (a *Authority) Reseal(rootKeyFile string) error {
	again := func(cert *x509.Certificate, text *string) error {
		if *text == "" {
			return nil
		}
		key, err := a.options.decodeKey(cert, *text)
		if err != nil {
			return fmt.Errorf("%s: %w", cert.Subject.CommonName, err)
		}
		*text, err = a.options.encodeKey(cert, key)
		return err
	}
	err := a.change(func(s *state) error {
		for _, g := range s.Generations {
			if err := errors.Join(again(g.Root.Certificate, &g.Key), again(g.Issuer.Certificate.Certificate, &g.Issuer.Key)); err != nil {
				return err
			}
		}
		if rootKeyFile == "" {
			return nil
		}
		root := s.issuing().Root.Certificate
		exported, err := readPrivate(rootKeyFile)
		if err != nil {
			return err
		}
		text := string(exported)
		if err := again(root, &text); err != nil {
			return fmt.Errorf("%s: %w", rootKeyFile, err)
		}
		return writeFile(rootKeyFile, append(EncodeCertificates(root), text...), 0o600, true)
	})
	if err != nil {
		return fmt.Errorf("seal the authority's keys again: %w", err)
	}
	return nil
}

// CheckKeys opens every key that the authority has, and the root's in the file that it
// was exported to, which has to be named then.
func (a *Authority) CheckKeys(rootKeyFile string) error {
	s, _, err := a.current()
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	for _, g := range s.Generations {
		if g.Key != "" || g.Phase == Issuing && !g.Direct {
			_, err = a.rootKey(g, "")
			if errors.Is(err, errNoRootKey) && rootKeyFile != "" {
				_, err = a.rootKey(g, rootKeyFile)
			}
		}
		if err == nil && g.Issuer.Key != "" {
			_, err = a.options.decodeKey(g.Issuer.Certificate.Certificate, g.Issuer.Key)
		}
		if err != nil {
			return fmt.Errorf("open the key of %s: %w", g.Root.Subject.CommonName, err)
		}
	}
	return nil
}

// decodeKey is the inverse of encodeKey. It refuses a key that is not the
// certificate's, and one that is not sealed where keys have to be.
func (o Options) decodeKey(cert *x509.Certificate, text string) (*ecdsa.PrivateKey, error) {
	block, rest := pem.Decode([]byte(text))
	for block != nil && block.Type == "CERTIFICATE" { // an exported key stands behind its certificate
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, fmt.Errorf("%w: it is not PEM", ErrSealed)
	}
	der := block.Bytes
	switch {
	case block.Type == sealedBlock && o.Sealer == nil:
		return nil, fmt.Errorf("%w: it is sealed, and no sealing key is given", ErrSealed)
	case block.Type == sealedBlock:
		var err error
		if der, err = o.Sealer.Open(sealUse(cert), der); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSealed, err)
		}
	case block.Type != plainBlock || o.Sealer != nil:
		return nil, fmt.Errorf("%w: a PEM block of type %q is not a sealed key", ErrSealed, block.Type)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%w: it is not the key of %s", ErrSealed, cert.Subject)
	}
	return key, nil
}
