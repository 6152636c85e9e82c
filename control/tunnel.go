package control

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/tunnel"
)

// Who may come through the tunnel. The rules are:
//
//   - An agent's key comes with the signing request of a certificate and counts as
//     long as that does: it is renewed with it, ends with it, and is taken back with it.
//   - When a server ends, its agent can reach the API alone, while it may fetch its
//     last command and confirm it; then nothing.
//   - A key that was invited can reach the API alone, until an agent was installed
//     with it or its time is over.
//   - What changes is in force before the call that changed it is answered, or
//     within a second; what only time changes, within tunnelLook.

// A Tunnel lets the holders of keys reach the service, where its ports are not
// open to them. *tunnel.Hub is one.
type Tunnel interface {
	Key() tunnel.PublicKey
	SetPeers(peers []tunnel.Peer) error
	Sights() map[tunnel.PublicKey]tunnel.Sight
}

const (
	// tunnelLook is how often who may come is looked at anew.
	tunnelLook = 5 * time.Second

	// goodbye is how long a key that was used up or has confirmed its end may still
	// come: the answer goes through the tunnel, too.
	goodbye = 10 * time.Second
)

// apiOnly are the ports that an agent needs for calls.
var apiOnly = []uint16{tunnel.APIPort}

// tunnelInfo is what agents are told of the tunnel; nil if there is none.
func (c *Service) tunnelInfo() *formgn.Tunnel {
	if c.opts.Tunnel == nil {
		return nil
	}
	return &formgn.Tunnel{PublicKey: c.opts.Tunnel.Key().String(), Endpoint: c.opts.TunnelEndpoint}
}

// newTunnelKey takes a key that somebody wants to come with: one that nobody has
// come with before, so that taking it from one takes it from all.
func (c *Service) newTunnelKey(ctx context.Context, tx *sql.Tx, text string) error {
	if c.opts.Tunnel == nil {
		return invalid("tunnelKey", "this service has no VPN: it was not started with --vpn")
	}
	key, err := tunnel.ParsePublicKey(text)
	if err != nil {
		return invalid("tunnelKey", "%v", err)
	}
	if key.String() != text || key == c.opts.Tunnel.Key() {
		return invalid("tunnelKey", "tunnelKey is not a key of the caller's")
	}
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM certificates WHERE tunnel_key = ?1) + (SELECT COUNT(*) FROM tunnel_invitations WHERE tunnel_key = ?1)`, text).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return invalid("tunnelKey", "tunnelKey has been given before: make a new one")
	}
	return nil
}

// CreateTunnelInvitation implements CreateTunnelInvitationForMgn.
func (c *Service) CreateTunnelInvitation(ctx context.Context, in *formgn.CreateTunnelInvitationForMgnRequest) (*formgn.CreateTunnelInvitationForMgnResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	end := stamp(c.now().Add(time.Duration(in.LifetimeSeconds) * time.Second))
	err := c.db.update(ctx, func(tx *sql.Tx) error {
		if err := c.newTunnelKey(ctx, tx, in.TunnelKey); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM tunnel_invitations WHERE not_after < ?`, stamp(c.now())); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO tunnel_invitations (tunnel_key, not_after) VALUES (?, ?)`, in.TunnelKey, end)
		return err
	})
	if err == nil {
		err = c.letIn(ctx)
	}
	if err != nil {
		return nil, err
	}
	c.log.Info("invited into the tunnel", "key", in.TunnelKey, "until", end)
	return &formgn.CreateTunnelInvitationForMgnResponse{Tunnel: c.tunnelInfo(), NotAfter: end}, nil
}

// useInvitation ends the invitation that an installer has come with, if it has.
func (c *Service) useInvitation(ctx context.Context, tx *sql.Tx, from netip.Addr) error {
	keys, err := texts(ctx, tx, `SELECT tunnel_key FROM tunnel_invitations`)
	if err != nil {
		return err
	}
	end := stamp(c.now().Add(goodbye))
	for _, text := range keys {
		if key, err := tunnel.ParsePublicKey(text); err != nil || key.Address() != from {
			continue
		}
		if _, err := tx.ExecContext(ctx, `UPDATE tunnel_invitations SET not_after = ?1 WHERE tunnel_key = ?2 AND not_after > ?1`, end, text); err != nil {
			return err
		}
	}
	return nil
}

func texts(ctx context.Context, q querier, query string, args ...any) (out []string, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, rows.Err()
}

// tendTunnel lets in who may come, and nobody else, until ctx ends.
func (c *Service) tendTunnel(ctx context.Context) {
	for ctx.Err() == nil {
		revision := c.changes.now()
		if err := c.letIn(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("say who may come through the tunnel", "err", err)
		}
		wait, cancel := context.WithTimeout(ctx, tunnelLook)
		c.changes.wait(wait, revision)
		cancel()
	}
}

// letIn tells the tunnel who may come.
func (c *Service) letIn(ctx context.Context) error {
	if c.opts.Tunnel == nil {
		return nil
	}
	c.letting.Lock() // what was read last is what is in force
	defer c.letting.Unlock()
	places, err := c.tunnelPlaces(ctx)
	if err != nil {
		return err
	}
	peers := make([]tunnel.Peer, len(places))
	for i, p := range places {
		peers[i] = p.peer
	}
	return c.opts.Tunnel.SetPeers(peers)
}

// A place in the tunnel is what somebody may come by.
type place struct {
	peer     tunnel.Peer
	server   string // whose agent it is of; "" of an invitation
	notAfter string
}

// tunnelPlaces are all that count now, by their keys.
func (c *Service) tunnelPlaces(ctx context.Context) (places []place, err error) {
	now := stamp(c.now())
	rows, err := c.db.reader.QueryContext(ctx, `SELECT tunnel_key AS key, not_after, server_id, revoked_at, CASE life_cycle WHEN ?2 THEN document WHEN ?3 THEN document ELSE '' END
		FROM certificates JOIN source_servers ON source_servers.id = server_id WHERE tunnel_key <> '' AND not_after > ?1
		UNION ALL SELECT tunnel_key, not_after, '', '', '' FROM tunnel_invitations WHERE not_after > ?1 ORDER BY key`,
		now, string(mgn.LifeCycleStateDisconnected), string(mgn.LifeCycleStateCutover))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var p place
		var text, revoked, document string
		if err := rows.Scan(&text, &p.notAfter, &p.server, &revoked, &document); err != nil {
			return nil, err
		}
		if p.peer.Key, err = tunnel.ParsePublicKey(text); err != nil {
			return nil, err
		}
		switch {
		case document != "":
			s := new(server)
			if err := json.Unmarshal([]byte(document), s); err != nil {
				return nil, fmt.Errorf("decode source server: %w", err)
			}
			if !s.leaving(revoked, c.now()) {
				continue
			}
			p.peer.Ports = apiOnly
		case p.server == "":
			p.peer.Ports = apiOnly
		case revoked != "":
			continue
		}
		places = append(places, p)
	}
	return places, errors.Join(rows.Err(), rows.Close())
}

// DescribeTunnelKeys implements DescribeTunnelKeysForRehost.
func (c *Service) DescribeTunnelKeys(ctx context.Context, in *formgn.DescribeTunnelKeysForRehostRequest) (*formgn.DescribeTunnelKeysForRehostResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	const operation = "DescribeTunnelKeysForRehost"
	after, limit, err := c.pager.start(operation, nil, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	out := &formgn.DescribeTunnelKeysForRehostResponse{Tunnel: c.tunnelInfo(), Items: []formgn.TunnelPeer{}}
	if c.opts.Tunnel == nil {
		return out, nil
	}
	if err := c.letIn(ctx); err != nil { // what time has ended is in force with being told
		return nil, fmt.Errorf("list tunnel keys: %w", err)
	}
	places, err := c.tunnelPlaces(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tunnel keys: %w", err)
	}
	places = slices.DeleteFunc(places, func(p place) bool { return p.peer.Key.String() <= after })
	places, out.NextToken = next(c.pager, operation, nil, places, limit, func(p place) string { return p.peer.Key.String() })
	hosts, err := c.hostsOf(ctx, places)
	if err != nil {
		return nil, fmt.Errorf("list tunnel keys: %w", err)
	}
	seen := c.opts.Tunnel.Sights()
	for _, p := range places {
		out.Items = append(out.Items, describePlace(p, hosts[p.server], seen[p.peer.Key]))
	}
	return out, nil
}

// hostsOf are the names of the source servers that places are of, by their ids.
func (c *Service) hostsOf(ctx context.Context, places []place) (map[string]string, error) {
	var ids []string
	for _, p := range places {
		if p.server != "" {
			ids = append(ids, p.server)
		}
	}
	hosts := map[string]string{}
	if len(ids) == 0 {
		return hosts, nil
	}
	condition, args := in("id", ids, nil)
	servers, err := documents[*server](ctx, c.db.reader, `SELECT document FROM source_servers WHERE `+condition, args...)
	for _, s := range servers {
		hosts[s.ID] = s.name()
	}
	return hosts, err
}

func describePlace(p place, host string, seen tunnel.Sight) formgn.TunnelPeer {
	item := formgn.TunnelPeer{TunnelKey: p.peer.Key.String(), Address: p.peer.Key.Address().String(), Kind: formgn.TunnelPeerKindAgent, SourceServerID: p.server, Hostname: host, NotAfter: p.notAfter,
		Ports: []int32{}, Endpoint: seen.Endpoint, ReceivedBytes: &seen.Received, SentBytes: &seen.Sent}
	if p.server == "" {
		item.Kind = formgn.TunnelPeerKindInvitation
	}
	ports := p.peer.Ports
	if ports == nil {
		ports = []uint16{tunnel.APIPort, tunnel.ReplicationPort}
	}
	for _, port := range ports {
		item.Ports = append(item.Ports, int32(port))
	}
	if !seen.Handshake.IsZero() {
		item.LastHandshakeDateTime = awsapi.DateTime(seen.Handshake)
	}
	return item
}

// DeleteTunnelInvitation implements DeleteTunnelInvitationForMgn. The key is not
// answered any more when it returns.
func (c *Service) DeleteTunnelInvitation(ctx context.Context, in *formgn.DeleteTunnelInvitationForMgnRequest) (*formgn.DeleteTunnelInvitationForMgnResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	err := c.db.update(ctx, func(tx *sql.Tx) error {
		deleted, err := tx.ExecContext(ctx, `DELETE FROM tunnel_invitations WHERE tunnel_key = ? AND not_after > ?`, in.TunnelKey, stamp(c.now()))
		if err != nil {
			return err
		}
		if n, err := deleted.RowsAffected(); n > 0 || err != nil {
			return err
		}
		return notFound("TunnelInvitation", in.TunnelKey)
	})
	if err == nil {
		err = c.letIn(ctx)
	}
	if err != nil {
		return nil, err
	}
	c.log.Info("invitation into the tunnel taken back", "key", in.TunnelKey)
	return &formgn.DeleteTunnelInvitationForMgnResponse{}, nil
}

// leaving: the agent of an ended server, whose certificate was not revoked for
// another reason before, may fetch its last command, or has just confirmed it.
func (s *server) leaving(revoked string, now time.Time) bool {
	u := s.Uninstall
	return u != nil && (revoked == "" || revoked >= u.RequestedAt) && (s.learning(now) || u.ConfirmedAt != "" && now.Sub(parseStamp(u.ConfirmedAt)) < goodbye)
}

// tunneled: the agent of a source server has a key of the tunnel.
func (c *Service) tunneled(ctx context.Context, id string) (bool, error) {
	if c.opts.Tunnel == nil {
		return false, nil
	}
	var n int
	err := c.db.reader.QueryRowContext(ctx, `SELECT COUNT(*) FROM certificates WHERE server_id = ? AND tunnel_key <> '' AND revoked_at = '' AND not_after > ?`, id, stamp(c.now())).Scan(&n)
	return n > 0, err
}

// pairedAddress is where the agent of a source server is to replicate to: inside
// the tunnel if it has a key of that and dataPlaneRouting is PRIVATE_IP, or else
// what the replication server says of itself; "" while nothing is known of that.
func (c *Service) pairedAddress(ctx context.Context, s *server) (string, error) {
	address := c.ReplicatorAddress(s.ReplicatorID)
	if address == "" || s.Config.DataPlaneRouting != mgn.ReplicationConfigurationDataPlaneRoutingPrivateIp {
		return address, nil
	}
	if inside, err := c.tunneled(ctx, s.ID); !inside || err != nil {
		return address, err
	}
	return netip.AddrPortFrom(c.opts.Tunnel.Key().Address(), tunnel.ReplicationPort).String(), nil
}
