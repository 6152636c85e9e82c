package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// An outside is a certificate from elsewhere that the API shows to strangers.
// Safe for concurrent use.
type outside struct {
	certificate, key string // files
	hosts            []string
	log              *slog.Logger

	mu   sync.Mutex
	pair *tls.Certificate // guarded by mu
	seen [2]os.FileInfo   // guarded by mu: the files that pair was read from, or that were refused
	err  error            // guarded by mu: why what the files hold is not taken over
}

// openOutside reads and checks the files. hosts are the names and addresses
// that the certificate has to be for.
func openOutside(certificate, key string, hosts []string, log *slog.Logger) (*outside, error) {
	if certificate == "" || key == "" {
		return nil, fmt.Errorf("%w: --tls-certificate and --tls-key go together", errUsage)
	}
	o := &outside{certificate: certificate, key: key, hosts: hosts, log: log}
	return o, o.refresh()
}

// Certificate is the last one that was good.
func (o *outside) Certificate() (*tls.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.pair, nil
}

// refresh takes over what the files hold, if they have changed. What is no good
// changes nothing, and is said each time.
func (o *outside) refresh() error {
	var now [2]os.FileInfo
	for i, path := range []string{o.certificate, o.key} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("--tls-certificate: %w", err)
		}
		now[i] = info
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if sameFile(o.seen[0], now[0]) && sameFile(o.seen[1], now[1]) {
		return o.err
	}
	pair, err := loadOutside(o.certificate, o.key, o.hosts, time.Now())
	o.seen, o.err = now, err
	if err != nil {
		return err
	}
	if o.pair != nil {
		o.log.Info("the API shows another certificate", "subject", pair.Leaf.Subject, "notAfter", pair.Leaf.NotAfter)
	}
	o.pair = pair
	return nil
}

func sameFile(a, b os.FileInfo) bool {
	return a != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// loadOutside reads a certificate with its chain, and its key.
func loadOutside(certificate, key string, hosts []string, now time.Time) (*tls.Certificate, error) {
	info, err := os.Stat(key)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it", key, info.Mode().Perm())
	}
	if err != nil {
		return nil, fmt.Errorf("--tls-key: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil { // says so if the two do not belong together
		return nil, fmt.Errorf("--tls-certificate %s, --tls-key %s: %w", certificate, key, err)
	}
	if err := checkOutside(pair, hosts, now); err != nil {
		return nil, fmt.Errorf("--tls-certificate %s: %w", certificate, err)
	}
	return &pair, nil
}

func checkOutside(pair tls.Certificate, hosts []string, now time.Time) error {
	leaf := pair.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("it ended %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("it begins only %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case leaf.IsCA:
		return errors.New("the first certificate in the file is an authority's: the server's own comes first")
	}
	for _, host := range hosts {
		if err := leaf.VerifyHostname(host); err != nil {
			return fmt.Errorf("it is not for %s, which --advertise names: %w", host, err)
		}
	}
	return checkChain(pair, now)
}

// checkChain wants each certificate signed by the next, and the last one to be a
// root, or signed by one that this system believes: what clients are not sent,
// they must have.
func checkChain(pair tls.Certificate, now time.Time) error {
	last, between := pair.Leaf, x509.NewCertPool()
	for i, der := range pair.Certificate[1:] {
		next, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", i+2, err)
		}
		if err := last.CheckSignatureFrom(next); err != nil {
			return fmt.Errorf("certificate %d (%s) has not signed the one before it: %w", i+2, next.Subject, err)
		}
		between.AddCert(next)
		last = next
	}
	if last.CheckSignature(last.SignatureAlgorithm, last.RawTBSCertificate, last.Signature) == nil { // a root
		return nil
	}
	_, err := pair.Leaf.Verify(x509.VerifyOptions{Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return fmt.Errorf("the chain is not whole: %s was signed by %s, which is neither in the file nor believed by this system: append its certificate (%w)", last.Subject, last.Issuer, err)
	}
	return nil
}
