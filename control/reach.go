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

// A Permission is a rule of a security group that counts for a port, with whom it
// lets in at the moment.
type Permission struct {
	Rule      string         `json:"rule"` // its id
	Group     string         `json:"group"`
	GroupName string         `json:"groupName"`
	Source    string         `json:"source"`    // a CIDR, or the id of a group or a prefix list
	Addresses []netip.Prefix `json:"addresses"` // that the source stands for: none lets nobody in
}

// A Reach is who may reach the ports of a service, by its security groups.
type Reach struct{ API, Replication []Permission }

// Reach reads from the database of a service, which may be running, what that goes
// by: lists are its prefix lists, apiPort is where it listens, and the replication
// server is named by its id.
func (db *Database) Reach(ctx context.Context, lists []PrefixList, apiPort int, replicatorID string) (r Reach, err error) {
	known, err := loadReplicators(ctx, db.reader)
	if err != nil {
		return r, err
	}
	gauge, err := loadGauge(ctx, db.reader)
	if err != nil {
		return r, err
	}
	servers, err := serversOf(ctx, db.reader, replicatorID)
	if err != nil {
		return r, err
	}
	rules := ruling{db.reader, lists, gauge}
	if r.API, err = rules.api(ctx, apiPort); err != nil {
		return r, err
	}
	r.Replication, err = rules.replication(ctx, known.address[replicatorID], servers)
	return r, err
}

// serversOf are the source servers that a replication server serves or has served.
func serversOf(ctx context.Context, q querier, replicatorID string) ([]*server, error) {
	return documents[*server](ctx, q, `SELECT document FROM source_servers WHERE replicator_id = ? ORDER BY id`, replicatorID)
}

// A ruling reads what is needed to say whom security groups let in.
type ruling struct {
	querier
	lists []PrefixList
	gauge *gauge // where agents call from
}

func (c *Service) ruling() ruling { return ruling{c.db.reader, c.prefixLists(), c.gauge} }

// replication is who may reach a replication server, which says that it is reached
// at an address and serves these source servers.
func (r ruling) replication(ctx context.Context, address string, servers []*server) ([]Permission, error) {
	defaultID, err := namedGroup(ctx, r, DefaultGroup)
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
		t, err := newest[mgn.ReplicationConfigurationTemplate](ctx, r, "rct")
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
	if _, port, err := net.SplitHostPort(address); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			ports = append(ports, int32(n))
		}
	}
	slices.Sort(groups)
	return r.permissions(ctx, slices.Compact(groups), ports)
}

// api is who may reach the API, which listens on a port.
func (r ruling) api(ctx context.Context, port int) ([]Permission, error) {
	id, err := namedGroup(ctx, r, APIGroup)
	if err != nil {
		return nil, err
	}
	ports := []int32{apiPort}
	if port > 0 {
		ports = append(ports, int32(port))
	}
	return r.permissions(ctx, []string{id}, ports)
}

// APIReach waits until there may be something newer than revision, or ctx ends,
// and answers which addresses may reach the API by its security group. With
// revision 0 it answers at once.
func (c *Service) APIReach(ctx context.Context, revision int64) (allowed []netip.Prefix, newer int64, err error) {
	c.changes.wait(ctx, revision)
	newer = c.changes.now() // before what it is of
	permissions, err := c.ruling().api(ctx, c.opts.APIPort)
	if err != nil {
		return nil, revision, fmt.Errorf("read who may reach the API: %w", err)
	}
	return addressesOf(permissions), newer, nil
}

func addressesOf(permissions []Permission) (out []netip.Prefix) {
	for _, p := range permissions {
		out = append(out, p.Addresses...)
	}
	return out
}

// permissions are the groups' rules for any of the ports.
func (r ruling) permissions(ctx context.Context, groups []string, ports []int32) (out []Permission, err error) {
	var members map[string][]netip.Prefix // found out where a rule asks for it
	for _, id := range groups {
		found, err := groupsWhere(ctx, r, "id = ?", id)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			continue // which allows nobody
		}
		rules, err := rulesWhere(ctx, r, "group_id = ? AND egress = 0", id)
		if err != nil {
			return nil, err
		}
		for _, rule := range rules {
			if !slices.ContainsFunc(ports, rule.covers) {
				continue
			}
			p := Permission{Rule: rule.ID, Group: id, GroupName: found[0].Name, Source: rule.Source, Addresses: []netip.Prefix{}}
			switch rule.kind() {
			case sourceGroup:
				if members == nil {
					if members, err = r.members(ctx); err != nil {
						return nil, err
					}
				}
				p.Addresses = append(p.Addresses, members[rule.Source]...)
			case sourceList:
				for _, l := range r.lists {
					for _, e := range l.Entries {
						if l.ID == rule.Source {
							p.Addresses = append(p.Addresses, e.Prefix)
						}
					}
				}
			default:
				prefix, err := netip.ParsePrefix(rule.Source)
				if err != nil {
					return nil, fmt.Errorf("rule %s: %w", rule.ID, err)
				}
				p.Addresses = append(p.Addresses, prefix)
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// members are the addresses of the members of all groups.
func (r ruling) members(ctx context.Context) (map[string][]netip.Prefix, error) {
	defaultID, err := namedGroup(ctx, r, DefaultGroup)
	if err != nil {
		return nil, err
	}
	servers, err := documents[*server](ctx, r, `SELECT document FROM source_servers`)
	out := map[string][]netip.Prefix{}
	for _, s := range servers {
		a, err := netip.ParseAddr(r.gauge.get(s.ID).From)
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
