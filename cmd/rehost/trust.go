package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"rehost/ca"
	"rehost/control"
	"rehost/identity"
)

// Whom the service believes, and what it shows of itself. The rules are:
//
//   - Who asks for the host ca.ServiceHost (SNI), as agents and replication
//     servers do, is shown the authority's certificate, which names the service.
//   - Everyone else is shown that of --tls-certificate, if there is one.
//   - Both are the service's, so it does not matter who asks for which; but an
//     agent takes only the first, whoever has signed the other.

// loadSealingKey reads the sealing key: the file named, or the one in the
// directory, which the first start makes. A file that is named is made only for
// a directory that is new: elsewhere another key could open nothing.
func loadSealingKey(data, file string) (*identity.SealingKey, error) {
	if file == "" {
		return identity.LoadSealingKey(filepath.Join(data, sealingKeyFile))
	}
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, old := os.Stat(filepath.Join(data, "control.db")); !errors.Is(old, fs.ErrNotExist) {
			return nil, fmt.Errorf("sealing key: %w; what %s holds was sealed with another one", err, data)
		}
	}
	return identity.LoadSealingKey(file)
}

// openSealed opens the accounts with the sealing key.
func openSealed(ctx context.Context, data, file string, db *control.Database) (*identity.Directory, error) {
	key, err := loadSealingKey(data, file)
	if err != nil {
		return nil, err
	}
	return openDirectory(ctx, db, key, nil)
}

func openAuthority(data string, key *identity.SealingKey) (*ca.Authority, error) {
	return ca.Open(filepath.Join(data, "ca"), ca.Options{Sealer: key.Authority()})
}

// openTrust opens the authority and the certificate for strangers.
func (s *served) openTrust(key *identity.SealingKey) (err error) {
	if s.authority, err = openAuthority(s.cmd.Data, key); err != nil {
		return err
	}
	if s.cmd.TLSCertificate != "" || s.cmd.TLSKey != "" {
		if s.outside, err = openOutside(s.cmd.TLSCertificate, s.cmd.TLSKey, s.cmd.Advertise, s.log); err != nil {
			return err
		}
	}
	return s.publishRoots()
}

// publishRoots keeps ca.pem, which people and clients read, as it has to be.
func (s *served) publishRoots() error {
	return publish(filepath.Join(s.cmd.Data, "ca.pem"), ca.EncodeCertificates(s.authority.Bundle().Roots()...))
}

func (s *served) certificate() (*tls.Certificate, error) {
	return s.authority.ServiceCertificate(s.hosts.names, s.hosts.addresses)
}

// tlsConfig is of the API's listener.
func (s *served) tlsConfig() (*tls.Config, error) {
	if _, err := s.certificate(); err != nil {
		return nil, err
	}
	endpoint := ca.Endpoint{Bundle: s.authority.Bundle(), Certificate: s.certificate}
	config := endpoint.OptionalConfig(ca.SourceServer, ca.ReplicationServer)
	if s.outside == nil {
		return config, nil
	}
	shown := endpoint
	shown.Certificate = s.outside.Certificate
	strangers := shown.OptionalConfig(ca.SourceServer, ca.ReplicationServer)
	believed := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName == ca.ServiceHost {
			return believed(hello)
		}
		return strangers.GetConfigForClient(hello)
	}
	return config, nil
}

// tendTrust renews certificates, takes over new ones and publishes roots, until
// ctx ends.
func (s *served) tendTrust(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { s.paired.renewer(s.authority, s.note("the replication server's certificate")).Run(ctx) })
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // a service manager's reload must not end the service
	defer signal.Stop(hup)
	roots, issuer, outside := s.note("ca.pem"), s.note("the intermediate certificate"), s.note("--tls-certificate")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-hup:
		}
		roots(s.publishRoots())
		issuer(s.renewIssuer())
		if s.outside != nil {
			outside(s.outside.refresh())
		}
	}
}

// renewIssuer has the root sign another intermediate in time, if its key is here.
func (s *served) renewIssuer() error {
	due, can := s.authority.IssuerDue()
	switch {
	case !due:
		return nil
	case !can:
		return errors.New("it grows old, and the root's key is not here: rehost ca rotate --root-key FILE")
	}
	return s.authority.RotateIssuer("")
}

// note makes a function that logs trouble with a certificate once, and its end.
func (s *served) note(what string) func(error) {
	return s.noteOf("certificates: "+what+" cannot be renewed", "certificates: "+what+" is renewed")
}

// noteOf makes a function that logs trouble once, and its end.
func (s *served) noteOf(trouble, over string) func(error) {
	var before error
	return func(err error) {
		switch {
		case err != nil && (before == nil || before.Error() != err.Error()):
			s.log.Error(trouble, "err", err)
		case err == nil && before != nil:
			s.log.Info(over)
		}
		before = err
	}
}

// A pairFile is the replication server's certificate and key in their file,
// which the service writes and the replication server reads, be it this process
// or another. Safe for concurrent use.
type pairFile struct {
	path string
	id   string // of the replication server

	mu   sync.Mutex
	pair tls.Certificate // guarded by mu
	seen os.FileInfo     // guarded by mu
}

// openPair reads the file. Where the authority is at hand it makes a replication
// server of its own if there is none.
func openPair(path string, authority *ca.Authority) (*pairFile, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && authority != nil {
		pair, err := authority.IssueReplicationServer(control.NewReplicatorID())
		if err == nil {
			err = ca.SavePair(path, pair)
		}
		if err != nil {
			return nil, err
		}
	}
	p := &pairFile{path: path}
	if _, err := p.Certificate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Certificate is what the file holds; what it held before, if that cannot be
// read now.
func (p *pairFile) Certificate() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.read()
	if err != nil && p.seen == nil {
		return nil, err
	}
	pair := p.pair
	return &pair, nil
}

func (p *pairFile) read() error {
	info, err := os.Stat(p.path)
	if err != nil || p.seen != nil && os.SameFile(p.seen, info) && p.seen.ModTime().Equal(info.ModTime()) {
		return err
	}
	pair, err := ca.LoadPair(p.path)
	if err != nil {
		return err
	}
	name, err := ca.PeerName(pair.Leaf)
	if err == nil && (name.Role != ca.ReplicationServer || p.id != "" && p.id != name.ID) {
		err = fmt.Errorf("%s is the certificate of %s, not of the replication server", p.path, name)
	}
	if err != nil {
		return err
	}
	p.id, p.pair, p.seen = name.ID, pair, info
	return nil
}

func (p *pairFile) leaf() *x509.Certificate {
	pair, _ := p.Certificate() // it was read before
	return pair.Leaf
}

// renewer renews the certificate in time, and when it is revoked or of a root or
// intermediate that signs no more.
func (p *pairFile) renewer(authority *ca.Authority, note func(error)) ca.Renewer {
	return ca.Renewer{Leaf: p.leaf, Note: note,
		Stale: func() bool { return !authority.Current(p.leaf()) },
		Renew: func(context.Context) error {
			pair, err := authority.IssueReplicationServer(p.id)
			if err != nil {
				return err
			}
			return ca.SavePair(p.path, pair)
		}}
}
