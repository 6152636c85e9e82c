package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// This file keeps certificates with their keys in files. The rules are:
//
//   - A certificate and its key share one file, so that they cannot disagree.
//   - It is 0600 and appears whole or not at all; one that others may read is refused.
//   - A root is made once: whoever comes second takes the first one's.

const (
	rootFile    = "root.pem"    // the root with its key
	publicFile  = "ca.pem"      // the root for everyone to read
	serviceFile = "service.pem" // the API endpoint's certificate with its key
)

// Open opens the authority that lives in dir, and makes both at first use.
// Several processes may do so at once. The root alone, for those who have to
// believe it, is kept beside it as ca.pem.
func Open(dir string, options Options) (*Authority, error) {
	if options.Time == nil {
		options.Time = time.Now
	}
	if options.AgentLifetime == 0 {
		options.AgentLifetime = maxAgentLifetime
	}
	if options.AgentLifetime < time.Minute || options.AgentLifetime > maxAgentLifetime {
		return nil, fmt.Errorf("open authority %s: agents' certificates live 1 minute to %v, not %v", dir, maxAgentLifetime, options.AgentLifetime)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	path := filepath.Join(dir, rootFile)
	pair, err := LoadPair(path)
	if errors.Is(err, fs.ErrNotExist) {
		if pair, err = createRoot(path, options.Time()); err != nil {
			return nil, fmt.Errorf("create authority %s: %w", dir, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open authority %s: %w", dir, err)
	}
	if !pair.Leaf.IsCA {
		return nil, fmt.Errorf("open authority %s: the certificate in %s is not an authority's", dir, rootFile)
	}
	a := &Authority{dir: dir, options: options, root: pair.Leaf, key: pair.PrivateKey.(*ecdsa.PrivateKey)}
	public := filepath.Join(dir, publicFile)
	if text := EncodeCertificates(a.root); !fileHolds(public, text) {
		if err := writeFile(public, text, 0o644, true); err != nil {
			return nil, fmt.Errorf("open authority %s: %w", dir, err)
		}
	}
	return a, nil
}

func createRoot(path string, now time.Time) (tls.Certificate, error) {
	cert, key, err := newRoot(now)
	if err != nil {
		return tls.Certificate{}, err
	}
	text, err := encodePair(tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key})
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := writeFile(path, text, 0o600, false); err != nil && !errors.Is(err, fs.ErrExist) {
		return tls.Certificate{}, err
	}
	return LoadPair(path)
}

// ServiceCertificate is the API endpoint's certificate for those DNS names and
// addresses: the one in the authority's directory, or a new one if that is
// absent, has other names, or has less than a third of its life left. Asking
// in every handshake, as [Endpoint.Certificate], is cheap enough for a few
// hundred a second.
func (a *Authority) ServiceCertificate(dns []string, ips []net.IP) (*tls.Certificate, error) {
	path := filepath.Join(a.dir, serviceFile)
	pair, err := LoadPair(path)
	if err == nil && a.stillGood(pair.Leaf, dns, ips) {
		return &pair, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load service certificate: %w", err)
	}
	if pair, err = a.IssueService(dns, ips); err != nil {
		return nil, err
	}
	return &pair, SavePair(path, pair)
}

func (a *Authority) stillGood(leaf *x509.Certificate, dns []string, ips []net.IP) bool {
	name, err := PeerName(leaf)
	return err == nil && name == Name{Role: Service} &&
		leaf.CheckSignatureFrom(a.root) == nil &&
		leaf.NotAfter.Sub(a.options.Time()) > leaf.NotAfter.Sub(leaf.NotBefore)/3 &&
		slices.Equal(leaf.DNSNames, dns) && slices.EqualFunc(leaf.IPAddresses, ips, net.IP.Equal)
}

// LoadPair reads a certificate with its key, as [SavePair] wrote it. A file
// that others than its owner may read is refused.
func LoadPair(path string) (tls.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return tls.Certificate{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return tls.Certificate{}, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return tls.Certificate{}, fmt.Errorf("%s holds a private key but others may read it (%v): chmod 600 it, and replace the key if that was so for long", path, mode)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(f); err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(text.Bytes(), text.Bytes())
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read %s: %w", path, err)
	}
	if pair.Leaf == nil { // GODEBUG=x509keypairleaf=0
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return tls.Certificate{}, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return pair, nil
}

// SavePair writes a certificate, its chain and its key to path, mode 0600, in
// place of what was there; the file is whole at every moment.
func SavePair(path string, pair tls.Certificate) error {
	text, err := encodePair(pair)
	if err != nil {
		return err
	}
	return writeFile(path, text, 0o600, true)
}

func encodePair(pair tls.Certificate) ([]byte, error) {
	var out []byte
	for _, der := range pair.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...), nil
}

func fileHolds(path string, text []byte) bool {
	got, err := os.ReadFile(path)
	return err == nil && bytes.Equal(got, text)
}

// writeFile makes text durable at path, whole or not at all. Without replace
// an existing file stays and the error is [fs.ErrExist].
func writeFile(path string, text []byte, mode fs.FileMode, replace bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // made 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already where it was renamed
	if _, err = f.Write(text); err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if replace {
		err = os.Rename(f.Name(), path)
	} else {
		err = os.Link(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
