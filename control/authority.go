package control

import (
	"context"
	"crypto/x509"
	"fmt"

	"rehost/ca"
)

// How everyone comes to believe what the authority says. The rules are:
//
//   - Agents and replication servers tell with a call that they make anyway which
//     bundle they believe, and are answered with the one to believe if it is another.
//   - A new root issues when every source server that has a certificate which has
//     not run out, and every replication server, has told that it believes it;
//     or when the overlap is over.
//   - What a replication server's certificate was exchanged for ends with it.

// An Authority signs agents' certificates and says who is believed.
type Authority interface {
	// IssueAgent returns a certificate and the chain under it.
	IssueAgent(request []byte, id string) ([]*x509.Certificate, error)
	// Bundle is what is believed; always the same one.
	Bundle() *ca.Bundle
	// RevokedName: nobody of that name is believed any more.
	RevokedName(name ca.Name) bool
	// Revocations lists what was taken back, of servers.
	Revocations() []ca.Certified
	// Advance does the steps of a rotation that are due.
	Advance(everyone func(digest string) bool) (changed bool, err error)
}

// trustBundle is what a caller that believes the bundle of this digest is to
// believe instead; "" if that is the one. Callers from before say nothing.
func (c *Service) trustBundle(digest *string) string {
	if digest == nil || c.opts.Authority == nil || *digest == c.opts.Authority.Bundle().Digest() {
		return ""
	}
	return c.opts.Authority.Bundle().Text()
}

// takenBack: the certificate of a replication server, or all of its name.
func (c *Service) takenBack(peer Peer) bool {
	return c.opts.Authority.Bundle().Revoked().Contains(peer.Serial) || c.opts.Authority.RevokedName(peer.Name)
}

// tendAuthority notices what has changed, here or by a command of an operator.
func (c *Service) tendAuthority(ctx context.Context) error {
	changed, err := c.opts.Authority.Advance(func(digest string) bool {
		all, err := c.everyoneTrusts(ctx, digest)
		if err != nil {
			c.log.Error("count who believes the new root", "err", err)
		}
		return all && err == nil
	})
	if err != nil {
		return err
	}
	if changed {
		c.log.Info("the certificate authority has changed", "roots", len(c.opts.Authority.Bundle().Roots()), "bundle", c.opts.Authority.Bundle().Digest())
	}
	return c.turnOut(ctx)
}

// turnOut ends the sessions of replication servers whose certificates were
// taken back, each time once.
func (c *Service) turnOut(ctx context.Context) error {
	for _, r := range c.opts.Authority.Revocations() {
		name, err := ca.ParseName(r.Name)
		if err != nil || name.Role != ca.ReplicationServer || c.turned[r] {
			continue
		}
		if err := c.opts.Sessions.Revoke(ctx, name.ID); err != nil {
			return fmt.Errorf("end the sessions of %s: %w", name, err)
		}
		c.turned[r] = true
		c.log.Info("a replication server's certificate is revoked: its sessions have ended", "name", r.Name, "serial", r.Serial)
	}
	return nil
}

// everyoneTrusts: all who may come with a certificate have told that they
// believe the bundle of that digest.
func (c *Service) everyoneTrusts(ctx context.Context, digest string) (all bool, err error) {
	rows, err := c.db.reader.QueryContext(ctx, `SELECT DISTINCT server_id FROM certificates WHERE revoked_at = '' AND not_after > ?`, stamp(c.now()))
	if err != nil {
		return false, err
	}
	defer rows.Close()
	gauges := c.gauge.all()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return false, err
		}
		if gauges[id].Trusts != digest {
			return false, nil
		}
	}
	c.replicators.mu.Lock()
	defer c.replicators.mu.Unlock()
	for id := range c.replicators.address {
		if !c.opts.Authority.RevokedName(ca.Name{Role: ca.ReplicationServer, ID: id}) && c.replicators.trusts[id] != digest {
			return false, nil
		}
	}
	return true, rows.Err()
}
