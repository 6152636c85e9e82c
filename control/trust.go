package control

import (
	"bytes"
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"rehost/awsapi/formgn"
	"rehost/ca"
)

// How agents come to be believed. The rules are:
//
//   - Whoever calls RegisterAgentForMgn gets one certificate for the source
//     server that was made or found, and for no other, within registrationGrace.
//     While the agent of a found one runs, its certificate must be shown.
//   - An agent renews its own with its own credentials.
//   - A certificate issued at an installation revokes those from before it, and
//     the sessions that they were exchanged for.
//   - A certificate is exchanged for credentials while it is not revoked and its
//     server is not ended.
//   - When a server ends, everything is revoked and every call of its agent is
//     refused, except that it may fetch its last command and confirm it: until
//     it has, or uninstallGrace after the command was first fetched.

const (
	registrationGrace = 15 * time.Minute
	uninstallGrace    = 10 * time.Minute
)

// How many certificates of one source server there may be that have not run
// out. Renewals need two; more would not fit into what replication servers are
// told to refuse, see revokedSerials. Installations may go further, so that
// whoever has stolen a key cannot keep the owner out.
const (
	maxRenewed   = 100
	maxInstalled = 900
)

// Sessions makes temporary credentials.
type Sessions interface {
	// Agent makes those of the agent's role, with the source server's id as
	// source identity.
	Agent(ctx context.Context, serverID string) (Credentials, error)
	// ReplicationServer makes those of the replication servers' role.
	ReplicationServer(ctx context.Context, id string) (Credentials, error)
	// Revoke ends the agent's sessions that there are.
	Revoke(ctx context.Context, serverID string) error
}

// A Caller is who signed a request.
type Caller struct {
	ARN            string
	SourceIdentity string // of an agent's session: the id of its source server
	Peer           Peer   // of the connection; zero without a client certificate
	Address        netip.Addr
	Quota          Quota // of source servers to register
}

// A Peer is who the client certificate of a connection names.
type Peer struct {
	Name   ca.Name
	Serial string
}

// learning: the agent of an ended server may still fetch its last command.
func (s *server) learning(now time.Time) bool {
	u := s.Uninstall
	return s.ended() && u != nil && u.ConfirmedAt == "" && (u.DeliveredAt == "" || now.Sub(parseStamp(u.DeliveredAt)) < uninstallGrace)
}

// IssueClientCertificate implements IssueClientCertificateForMgn.
func (c *Service) IssueClientCertificate(ctx context.Context, caller Caller, in *formgn.IssueClientCertificateForMgnRequest) (*formgn.IssueClientCertificateForMgnResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	block, rest := pem.Decode([]byte(in.CertificateSigningRequest))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, invalid("certificateSigningRequest", "certificateSigningRequest is not one PEM block of type CERTIFICATE REQUEST")
	}
	installing := caller.SourceIdentity == ""
	if installing {
		if err := c.revokeSessions(ctx, caller, in.SourceServerID); err != nil {
			return nil, err
		}
	}
	var chain []*x509.Certificate
	_, err := c.change(ctx, in.SourceServerID, func(tx *sql.Tx, s *server) (err error) {
		if err := s.mayHaveCertificate(caller, c.now()); err != nil {
			return err
		}
		s.Enrolled = s.Enrolled || installing
		if err := c.countCertificates(ctx, tx, s.ID, installing); err != nil {
			return err
		}
		if chain, err = c.opts.Authority.IssueAgent(block.Bytes, s.ID); errors.Is(err, ca.ErrRequest) {
			return invalid("certificateSigningRequest", "%v", err)
		} else if err != nil {
			return err
		}
		key := deref(in.TunnelKey)
		if key != "" {
			if err := c.newTunnelKey(ctx, tx, key); err != nil {
				return err
			}
		}
		if installing {
			if err := c.useInvitation(ctx, tx, caller.Address); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `UPDATE certificates SET revoked_at = ? WHERE server_id = ? AND revoked_at = ''`, stamp(c.now()), s.ID); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO certificates (serial, server_id, not_after, revoked_at, tunnel_key) VALUES (?, ?, ?, '', ?)`,
			ca.Serial(chain[0]), s.ID, stamp(chain[0].NotAfter), key)
		return err
	})
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	if err := c.letIn(ctx); err != nil {
		c.log.Error("say who may come through the tunnel", "err", err) // it is tried again
	}
	c.log.Info("issued a certificate", "server", in.SourceServerID, "serial", ca.Serial(chain[0]), "caller", caller.ARN)
	if installing {
		c.changes.happened()
		c.happened(ctx, certificatesRevoked, in.SourceServerID, "reason", "the agent was installed", "sessions", "revoked")
	}
	c.happened(ctx, certificateIssued, in.SourceServerID, "serial", ca.Serial(chain[0]), "notAfter", stamp(chain[0].NotAfter), "caller", caller.ARN)
	out := &formgn.IssueClientCertificateForMgnResponse{Certificate: string(ca.EncodeCertificates(chain...)),
		CertificateAuthority: string(ca.EncodeCertificates(c.opts.Authority.Bundle().Roots()...)), NotAfter: stamp(chain[0].NotAfter)}
	if in.TunnelKey != nil {
		out.Tunnel = c.tunnelInfo()
	}
	return out, nil
}

// revokeSessions ends the sessions from before an installation, before its
// certificate is there: a session can renew certificates.
func (c *Service) revokeSessions(ctx context.Context, caller Caller, id string) error {
	s, err := getServer(ctx, c.db.reader, id)
	if err != nil {
		return orNotFound(err, id)
	}
	if err := s.mayHaveCertificate(caller, c.now()); err != nil {
		return err
	}
	return c.opts.Sessions.Revoke(ctx, id)
}

func (c *Service) countCertificates(ctx context.Context, tx *sql.Tx, id string, installing bool) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM certificates WHERE server_id = ? AND not_after < ?`, id, stamp(c.now())); err != nil {
		return err
	}
	limit := maxRenewed
	if installing {
		limit = maxInstalled
	}
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM certificates WHERE server_id = ?`, id).Scan(&n); err != nil {
		return err
	}
	if n >= limit {
		return conflict("SourceServer", id, fmt.Sprintf("source server %s has been given %d certificates that have not run out, which is the most there may be: try again tomorrow", id, n))
	}
	return nil
}

// holds: the peer has shown a certificate of the source server that is known
// and not revoked.
func (c *Service) holds(ctx context.Context, q querier, peer Peer, id string) (bool, error) {
	if peer.Name != (ca.Name{Role: ca.SourceServer, ID: id}) {
		return false, nil
	}
	var n int
	err := q.QueryRowContext(ctx, `SELECT COUNT(*) FROM certificates WHERE serial = ? AND server_id = ? AND revoked_at = ''`, peer.Serial, id).Scan(&n)
	return n > 0, err
}

func (s *server) mayHaveCertificate(caller Caller, now time.Time) error {
	switch {
	case s.ended():
		return denied("source server %s is %s: install the agent again to replicate this machine anew", s.ID, s.LifeCycle.State)
	case caller.SourceIdentity == s.ID:
		return nil
	case caller.SourceIdentity == "" && caller.ARN != "" && caller.ARN == s.RegisteredBy && !s.Enrolled && now.Sub(parseStamp(s.RegisteredAt)) < registrationGrace:
		return nil
	}
	return denied("a certificate of source server %s is given to its own agent, and once to who has registered it, within %v after that: register again", s.ID, registrationGrace)
}

// CreateSession implements CreateSessionForMgn. A peer that may not have
// credentials is told no more than that.
func (c *Service) CreateSession(ctx context.Context, peer Peer) (*formgn.CreateSessionForMgnResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	var credentials Credentials
	var err error
	switch peer.Name.Role {
	case ca.SourceServer:
		if err := c.mayHaveSession(ctx, peer); err != nil {
			return nil, err
		}
		credentials, err = c.opts.Sessions.Agent(ctx, peer.Name.ID)
	case ca.ReplicationServer:
		if c.takenBack(peer) {
			return nil, denied("the certificate %s of %s is revoked", peer.Serial, peer.Name)
		}
		credentials, err = c.opts.Sessions.ReplicationServer(ctx, peer.Name.ID)
	default:
		return nil, denied("no certificate, or one that credentials are not given for")
	}
	if err != nil {
		return nil, fmt.Errorf("create session of %s: %w", peer.Name, err)
	}
	return &formgn.CreateSessionForMgnResponse{AccessKeyId: credentials.AccessKeyID, SecretAccessKey: formgn.Secret(credentials.SecretAccessKey),
		SessionToken: formgn.Secret(credentials.SessionToken), Expiration: stamp(credentials.Expiration), Subject: peer.Name.String()}, nil
}

func (c *Service) mayHaveSession(ctx context.Context, peer Peer) error {
	refused := denied("the certificate %s of %s is revoked or not known", peer.Serial, peer.Name)
	var revoked string
	err := c.db.reader.QueryRowContext(ctx, `SELECT revoked_at FROM certificates WHERE serial = ? AND server_id = ? AND not_after > ?`, peer.Serial, peer.Name.ID, stamp(c.now())).Scan(&revoked)
	if errors.Is(err, sql.ErrNoRows) {
		return refused
	}
	if err != nil {
		return err
	}
	s, err := getServer(ctx, c.db.reader, peer.Name.ID)
	switch {
	case errors.Is(err, errNoServer):
		return refused
	case err != nil:
		return err
	case s.learning(c.now()) && revoked >= s.Uninstall.RequestedAt: // not one revoked before, for another reason
		return nil
	case revoked != "" || s.ended():
		return refused
	}
	return nil
}

// revokedSerials are those of a server that have not run out by themselves.
func revokedSerials(ctx context.Context, q querier, serverID string, now time.Time) (serials []string, err error) {
	rows, err := q.QueryContext(ctx, `SELECT serial FROM certificates WHERE server_id = ? AND revoked_at <> '' AND not_after > ? ORDER BY serial LIMIT 1000`, serverID, stamp(now))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var serial string
		if err := rows.Scan(&serial); err != nil {
			return nil, err
		}
		serials = append(serials, serial)
	}
	return serials, rows.Err()
}
