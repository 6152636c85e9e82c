package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/ca"
	"rehost/tunnel"
)

// Credentials are an access key, of whoever installs the agent or of the
// agent's own session. They print as nothing.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
}

// String keeps secrets out of logs.
func (c Credentials) String() string { return "**redacted**" }

// GoString keeps them out of %#v too.
func (c Credentials) GoString() string { return c.String() }

// fixed answers with the same credentials always.
func (c Credentials) fixed(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}, nil
}

// An identity is the agent's certificate and key, renewed in time, and the
// temporary credentials that it is exchanged for.
//
//	certificate --CreateSession--> session --IssueClientCertificate--> certificate
type identity struct {
	dir    stateDir
	server string // source server id
	client *awsapi.Client
	vpn    *vpn   // nil without
	moved  func() // another key of the VPN is in use; nil: nobody cares
	log    *slog.Logger
	now    func() time.Time
	share  float64 // of a certificate's life after which it is renewed; 0 is the default

	mu      sync.Mutex // guards:
	pair    tls.Certificate
	trouble error // why it is not renewed

	session struct {
		sync.Mutex // guards what follows, and is held while a session is made
		keys       aws.Credentials
	}
}

const (
	sessionSpare = 5 * time.Minute // before its end a session is replaced
)

// openIdentity reads the certificate of an installation.
func openIdentity(dir stateDir, config Config, bundle *ca.Bundle, log *slog.Logger) (*identity, error) {
	pair, err := ca.LoadPair(dir.path(pairFile))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	if name, err := ca.PeerName(pair.Leaf); err != nil || name != (ca.Name{Role: ca.SourceServer, ID: config.SourceServerID}) {
		return nil, fmt.Errorf("read certificate %s: it names %v, not source server %s: %w", dir.path(pairFile), name, config.SourceServerID, errors.Join(ca.ErrName, err))
	}
	id := &identity{dir: dir, server: config.SourceServerID, log: log, now: time.Now, pair: pair}
	var dial dialer
	if config.VPN {
		if id.vpn, err = openVPN(dir, log); err != nil {
			return nil, err
		}
		dial = id.vpn.dialService
	}
	id.client = newClient(config.Endpoint, config.Region, ca.Endpoint{Bundle: bundle, Certificate: id.certificate}, aws.CredentialsProviderFunc(id.credentials), 1, dial)
	return id, nil
}

// close ends the connections.
func (id *identity) close() {
	id.client.Close()
	if id.vpn == nil {
		return
	}
	if err := id.vpn.close(); err != nil {
		id.log.Warn("the VPN did not end well", "err", err)
	}
}

func (id *identity) certificate() (*tls.Certificate, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	pair := id.pair
	return &pair, nil
}

// credentials returns the session's, making a new one where it ends soon.
func (id *identity) credentials(ctx context.Context) (aws.Credentials, error) {
	s := &id.session
	s.Lock()
	defer s.Unlock()
	if s.keys.HasKeys() && id.now().Before(s.keys.Expires) {
		return s.keys, nil
	}
	out, err := awsapi.Call(ctx, id.client, formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
	if err != nil {
		return aws.Credentials{}, err
	}
	end, err := awsapi.ParseDateTime(out.Expiration)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("CreateSessionForMgn: %w", err)
	}
	life := end.Sub(id.now())
	s.keys = aws.Credentials{
		AccessKeyID: out.AccessKeyId, SecretAccessKey: string(out.SecretAccessKey), SessionToken: string(out.SessionToken),
		CanExpire: true, Expires: end.Add(-min(sessionSpare, life/4)),
	}
	return s.keys, nil
}

// forget drops the session, which the service no longer takes.
func (id *identity) forget() {
	id.session.Lock()
	defer id.session.Unlock()
	id.session.keys = aws.Credentials{}
}

// renewals renews the certificate in time until ctx ends.
func (id *identity) renewals(ctx context.Context) {
	ca.Renewer{Leaf: id.leaf, Renew: id.renew, Share: id.share, Now: id.now, Note: func(err error) {
		id.mu.Lock()
		id.trouble = err
		id.mu.Unlock()
		if err != nil {
			id.log.Warn("certificate is not renewed", "left", id.leaf().NotAfter.Sub(id.now()).Round(time.Second), "err", err)
		}
	}}.Run(ctx)
}

func (id *identity) leaf() *x509.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.pair.Leaf
}

// overdue is why the certificate is not renewed, nil while it need not be or is.
func (id *identity) overdue() error {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.trouble
}

// renew gets a certificate for a new key, which is born here and takes the
// place of the old one in the same rename.
func (id *identity) renew(ctx context.Context) error {
	key, text, err := newRequest()
	if err != nil {
		return err
	}
	in := &formgn.IssueClientCertificateForMgnRequest{SourceServerID: id.server, CertificateSigningRequest: text}
	var secret tunnel.Key
	if id.vpn != nil {
		secret = tunnel.NewKey()
		in.TunnelKey = pointer(secret.Public().String())
	}
	out, err := ask(ctx, id, formgn.IssueClientCertificateForMgn, in)
	if err != nil {
		return err
	}
	pair, err := issued(out, key, id.server)
	if err != nil {
		return err
	}
	if id.vpn != nil {
		next, err := newVPNState(secret, out.Tunnel)
		if err == nil {
			err = id.vpn.replace(next)
		}
		if err != nil {
			return err
		}
	}
	if err := replacePair(id.dir, pair); err != nil {
		return err
	}
	id.mu.Lock()
	id.pair = pair
	id.mu.Unlock()
	id.client.Close()
	if id.vpn != nil && id.moved != nil {
		id.moved()
	}
	id.log.Info("certificate renewed", "serial", ca.Serial(pair.Leaf), "notAfter", pair.Leaf.NotAfter)
	return nil
}

// newRequest makes a key and the PEM of a signing request for it.
func newRequest() (*ecdsa.PrivateKey, string, error) {
	key, err := ca.NewKey()
	if err != nil {
		return nil, "", fmt.Errorf("make key: %w", err)
	}
	der, err := ca.NewRequest(key)
	if err != nil {
		return nil, "", fmt.Errorf("make signing request: %w", err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// issued joins an answer with the key that it is for, and refuses a certificate
// that names someone else.
func issued(out *formgn.IssueClientCertificateForMgnResponse, key *ecdsa.PrivateKey, server string) (tls.Certificate, error) {
	certs, err := ca.DecodeCertificates([]byte(out.Certificate))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read issued certificate: %w", err)
	}
	want := ca.Name{Role: ca.SourceServer, ID: server}
	if name, err := ca.PeerName(certs[0]); err != nil || name != want {
		return tls.Certificate{}, fmt.Errorf("read issued certificate: it names %v instead of %v: %w", name, want, errors.Join(ca.ErrName, err))
	}
	pair, err := ca.Certificate(certs, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read issued certificate: %w", err)
	}
	return pair, nil
}

// replacePair writes a certificate with its key, and overwrites the key that it replaces.
func replacePair(dir stateDir, pair tls.Certificate) error {
	old, err := os.OpenFile(dir.path(pairFile), os.O_WRONLY, 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace certificate: %w", err)
	}
	if err := ca.SavePair(dir.path(pairFile), pair); err != nil {
		if old != nil {
			old.Close()
		}
		return err
	}
	if old == nil {
		return nil
	}
	return errors.Join(overwrite(old), old.Close()) // the old file has no name any more
}

// pause waits for d, or returns why ctx has ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
