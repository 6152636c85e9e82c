package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"rehost/awsapi"
	"rehost/awsapi/mgn"
)

// Whom the security groups let in. The rules are:
//
//   - A rule counts if it is one of ingress, for TCP or everything, and its ports
//     have the one that it is about: 1500 for replication and 8443 for the API, by
//     which rules call them wherever they listen, or the one where they do.
//   - A replication server is reached by whom the configuration of any source
//     server that it serves allows: what a connection may do is for its certificate
//     to say. While it serves none, the newest template stands for the first.
//   - A rule that names a group allows its members: the source servers, not ended,
//     whose configuration has that group, by the address from which their agent
//     called the API last. An agent cannot choose that, as it could what it reports.
//   - What is not there (a group, a prefix list) allows nobody.

// The ports as rules call them.
const (
	replicationPort = 1500
	apiPort         = 8443
)

// groupsOf are the ids of the groups of a replication configuration.
func groupsOf(defaultID string, associated *bool, ids []string) []string {
	out := slices.Clone(ids)
	if deref(associated) {
		out = append(out, defaultID)
	}
	return out
}

// replicates is whether an agent of the server has anything to do at a replication server.
func (s *server) replicates() bool {
	return !s.ended() && s.Replication.Flow != mgn.DataReplicationStateStopped
}

func namedGroup(ctx context.Context, q querier, name string) (id string, err error) {
	found, err := groupsWhere(ctx, q, "name = ?", name)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("security group %q is missing", name)
	}
	if err != nil {
		return "", err
	}
	return found[0].ID, nil
}

// replicationReach are the addresses that may reach a replication server, which
// serves these source servers.
func (c *Service) replicationReach(ctx context.Context, q querier, replicatorID string, servers []*server) ([]netip.Prefix, error) {
	defaultID, err := namedGroup(ctx, q, DefaultGroup)
	if err != nil {
		return nil, err
	}
	var groups []string
	served := false
	for _, s := range servers {
		if s.replicates() {
			served = true
			groups = append(groups, groupsOf(defaultID, s.Config.AssociateDefaultSecurityGroup, s.Config.ReplicationServersSecurityGroupsIDs)...)
		}
	}
	if !served {
		t, err := newest[mgn.ReplicationConfigurationTemplate](ctx, q, "rct")
		switch {
		case errors.Is(err, errNoTemplate):
			groups = []string{defaultID}
		case err != nil:
			return nil, err
		default:
			groups = groupsOf(defaultID, t.AssociateDefaultSecurityGroup, t.ReplicationServersSecurityGroupsIDs)
		}
	}
	ports := []int32{replicationPort}
	if _, port, err := net.SplitHostPort(c.ReplicatorAddress(replicatorID)); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			ports = append(ports, int32(n))
		}
	}
	slices.Sort(groups)
	return c.allowedBy(ctx, q, slices.Compact(groups), ports)
}

// APIReach waits until there may be something newer than revision, or ctx ends,
// and answers which addresses may reach the API by its security group. With
// revision 0 it answers at once.
func (c *Service) APIReach(ctx context.Context, revision int64) (allowed []netip.Prefix, newer int64, err error) {
	c.changes.wait(ctx, revision)
	newer = c.changes.now() // before what it is of
	id, err := namedGroup(ctx, c.db.reader, APIGroup)
	if err == nil {
		ports := []int32{apiPort}
		if c.opts.APIPort > 0 {
			ports = append(ports, int32(c.opts.APIPort))
		}
		allowed, err = c.allowedBy(ctx, c.db.reader, []string{id}, ports)
	}
	if err != nil {
		return nil, revision, fmt.Errorf("read who may reach the API: %w", err)
	}
	return allowed, newer, nil
}

// allowedBy are the addresses that the groups' rules for any of the ports allow.
func (c *Service) allowedBy(ctx context.Context, q querier, groups []string, ports []int32) (out []netip.Prefix, err error) {
	var members map[string][]netip.Prefix // found out where a rule asks for it
	for _, id := range groups {
		rules, err := rulesWhere(ctx, q, "group_id = ? AND egress = 0", id)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if !slices.ContainsFunc(ports, r.covers) {
				continue
			}
			switch r.kind() {
			case sourceGroup:
				if members == nil {
					if members, err = c.groupMembers(ctx, q); err != nil {
						return nil, err
					}
				}
				out = append(out, members[r.Source]...)
			case sourceList:
				l, _ := c.prefixList(r.Source)
				for _, e := range l.Entries {
					out = append(out, e.Prefix)
				}
			default:
				p, err := netip.ParsePrefix(r.Source)
				if err != nil {
					return nil, fmt.Errorf("rule %s: %w", r.ID, err)
				}
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// groupMembers are the addresses of the members of all groups.
func (c *Service) groupMembers(ctx context.Context, q querier) (map[string][]netip.Prefix, error) {
	defaultID, err := namedGroup(ctx, q, DefaultGroup)
	if err != nil {
		return nil, err
	}
	servers, err := documents[*server](ctx, q, `SELECT document FROM source_servers`)
	out := map[string][]netip.Prefix{}
	for _, s := range servers {
		a, err := netip.ParseAddr(c.gauge.get(s.ID).From)
		if err != nil || s.ended() {
			continue
		}
		p, _ := a.Prefix(a.BitLen()) // always of an address
		for _, id := range groupsOf(defaultID, s.Config.AssociateDefaultSecurityGroup, s.Config.ReplicationServersSecurityGroupsIDs) {
			out[id] = append(out[id], p)
		}
	}
	return out, err
}

// reachDigest names a list of addresses, so that it is sent only when it is another.
func reachDigest(allowed []netip.Prefix) (texts []string, digest string) {
	texts = []string{}
	for _, p := range allowed {
		texts = append(texts, p.String())
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintln(h, t)
	}
	return texts, hex.EncodeToString(h.Sum(nil))
}

// calledFrom is the address that the source server's own agent calls from, "" if
// it is somebody else who calls.
func calledFrom(ctx context.Context, serverID string) string {
	caller := awsapi.CallerOf(ctx)
	if caller == nil || caller.Principal == nil || caller.Principal.SourceIdentity != serverID || !caller.SourceIP.IsValid() {
		return ""
	}
	return caller.SourceIP.Unmap().WithZone("").String()
}
