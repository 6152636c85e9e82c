package ca

import (
	"bytes"
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

const (
	rootFile    = "root.pem"    // the root with its key, before there was authority.json
	publicFile  = "ca.pem"      // the roots for everyone to read
	serviceFile = "service.pem" // the API endpoint's certificate with its key
)

// Open opens the authority that lives in dir, and makes both at first use.
// Several processes may do so at once. The roots alone, for those who have to
// believe them, are kept beside it as ca.pem.
//
// A directory from before keys were sealed is brought to the present form: its
// root stays the same and goes on issuing, its key is sealed, and the file that
// held it is overwritten and removed.
func Open(dir string, options Options) (*Authority, error) {
	if options.Time == nil {
		options.Time = time.Now
	}
	if options.Overlap == 0 {
		options.Overlap = 7 * 24 * time.Hour
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
	a := &Authority{dir: dir, options: options, bundle: &Bundle{}}
	if err := a.change(a.begin); err != nil {
		return nil, fmt.Errorf("open authority %s: %w", dir, err)
	}
	if err := a.forgetRoot(); err != nil {
		return nil, fmt.Errorf("open authority %s: %w", dir, err)
	}
	return a, nil
}

// begin fills in the state of an authority that has none.
func (a *Authority) begin(s *state) error {
	if len(s.Generations) > 0 {
		return nil
	}
	pair, err := LoadPair(filepath.Join(a.dir, rootFile))
	var g *generation
	switch {
	case err == nil:
		g, err = a.legacy(pair)
	case errors.Is(err, fs.ErrNotExist):
		g, _, err = a.newGeneration(Issuing)
	}
	s.Generations = []*generation{g}
	return err
}

// forgetRoot removes the file of a root that is in the state by now.
func (a *Authority) forgetRoot() error {
	path := filepath.Join(a.dir, rootFile)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, info.Size()), 0)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return errors.Join(os.Remove(path), syncDir(a.dir))
}

// publish keeps ca.pem as it has to be.
func (a *Authority) publish() error {
	public, text := filepath.Join(a.dir, publicFile), EncodeCertificates(a.bundle.Roots()...)
	if fileHolds(public, text) {
		return nil
	}
	return writeFile(public, text, 0o644, true)
}

// ServiceCertificate is the API endpoint's certificate for those DNS names and
// addresses: the one in the authority's directory, or a new one if that is
// absent, has other names, is revoked, is of a root that issues no more, or has
// less than a third of its life left. If a new one cannot be made, one that is
// still good for a while is better than none.
func (a *Authority) ServiceCertificate(dns []string, ips []net.IP) (*tls.Certificate, error) {
	old, loadErr := a.servicePair()
	if loadErr == nil && a.stillGood(old.Leaf, dns, ips) {
		return &old, nil
	}
	if loadErr != nil && !errors.Is(loadErr, fs.ErrNotExist) {
		return nil, fmt.Errorf("load service certificate: %w", loadErr)
	}
	pair, err := a.IssueService(dns, ips)
	if err == nil {
		return &pair, SavePair(filepath.Join(a.dir, serviceFile), pair)
	}
	if loadErr == nil && a.options.Time().Before(old.Leaf.NotAfter) {
		return &old, nil
	}
	return nil, err
}

func (a *Authority) servicePair() (tls.Certificate, error) {
	return LoadPair(filepath.Join(a.dir, serviceFile))
}

func (a *Authority) stillGood(leaf *x509.Certificate, dns []string, ips []net.IP) bool {
	name, err := PeerName(leaf)
	return err == nil && name == Name{Role: Service} && a.Current(leaf) &&
		a.options.Time().Before(RenewAt(leaf, 0)) &&
		slices.Equal(leaf.DNSNames, dns) && slices.EqualFunc(leaf.IPAddresses, ips, net.IP.Equal)
}

// Current reports whether the certificate is signed by what signs now, and was
// not taken back: one that is not should be replaced.
func (a *Authority) Current(leaf *x509.Certificate) bool {
	s, _, err := a.current()
	return err == nil && leaf.CheckSignatureFrom(s.issuing().Issuer.Certificate.Certificate) == nil && !a.bundle.Revoked().Contains(Serial(leaf))
}

// LoadPair reads a certificate with its key, as [SavePair] wrote it. A file
// that others than its owner may read is refused.
func LoadPair(path string) (tls.Certificate, error) {
	text, err := readPrivate(path)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(text, text)
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

// readPrivate reads a file that nobody else may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s holds a private key but others may read it (%v): chmod 600 it, and replace the key if that was so for long", path, mode)
	}
	var text bytes.Buffer
	_, err = text.ReadFrom(f)
	return text.Bytes(), err
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
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
