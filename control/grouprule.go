package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"rehost/awsapi/ec2"
)

// A groupRule is one rule of a group in the one form that it has: a permission of
// EC2's requests is as many as it has sources.
type groupRule struct {
	ID, Group   string
	Egress      bool
	Protocol    string // tcp, udp, icmp, icmpv6, another's number, or -1 for all
	From, To    int32  // ports; -1 for all
	Source      string // a CIDR, sg-… or pl-…
	Description string
}

// same is whether two rules say the same.
func (r groupRule) same(o groupRule) bool {
	return r.Egress == o.Egress && r.Protocol == o.Protocol && r.From == o.From && r.To == o.To && r.Source == o.Source
}

func (r groupRule) String() string {
	return fmt.Sprintf("peer: %s, %s, from port: %d, to port: %d, ALLOW", r.Source, strings.ToUpper(r.Protocol), r.From, r.To)
}

// covers is whether the rule is about a TCP port.
func (r groupRule) covers(port int32) bool {
	return !r.Egress && (r.Protocol == "-1" || r.Protocol == "tcp" && r.From <= port && port <= r.To)
}

func rulesWhere(ctx context.Context, q querier, condition string, args ...any) (out []groupRule, err error) {
	rows, err := q.QueryContext(ctx, `SELECT id, group_id, egress, protocol, from_port, to_port, source, description FROM security_group_rules WHERE `+condition+` ORDER BY id`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r groupRule
		if err := rows.Scan(&r.ID, &r.Group, &r.Egress, &r.Protocol, &r.From, &r.To, &r.Source, &r.Description); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// addRules writes rules that are new, and returns them with their ids.
func addRules(ctx context.Context, tx *sql.Tx, rules []groupRule) ([]groupRule, error) {
	for i := range rules {
		r := &rules[i]
		have, err := rulesWhere(ctx, tx, "group_id = ? AND egress = ?", r.Group, r.Egress)
		switch {
		case err != nil:
			return nil, err
		case slices.ContainsFunc(have, r.same):
			return nil, ec2.InvalidPermissionDuplicate.Errorf("the specified rule %q already exists", r)
		case len(have) >= maxGroupRules:
			return nil, ec2.RulesPerSecurityGroupLimitExceeded.Errorf("The security group %s has %d rules, and cannot have more", r.Group, len(have))
		}
		r.ID = newID("sgr")
		if _, err := tx.ExecContext(ctx, `INSERT INTO security_group_rules (id, group_id, egress, protocol, from_port, to_port, source, description) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			r.ID, r.Group, r.Egress, r.Protocol, r.From, r.To, r.Source, r.Description); err != nil {
			return nil, fmt.Errorf("write rule of security group %s: %w", r.Group, err)
		}
	}
	return rules, nil
}

// A ruleRequest is what the requests to allow and to take back have in common.
type ruleRequest struct {
	dryRun                                *bool
	id, name                              *string
	egress                                bool
	permissions                           []ec2.IpPermission
	protocol, cidr, sourceName, sourceOwn *string
	from, to                              *int32
	ids                                   []string // of rules, to take back
	tags                                  []ec2.TagSpecification
}

// protocols are the names of numbers.
var protocols = map[string]string{"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6", "all": "-1"}

// ports checks protocol and ports, and brings them into their form.
func (r *groupRule) ports(protocol *string, from, to *int32) error {
	if protocol == nil {
		return ec2.MissingParameter.Errorf("The request must contain the parameter ipProtocol")
	}
	r.Protocol, r.From, r.To = strings.ToLower(*protocol), -1, -1
	if name, ok := protocols[r.Protocol]; ok {
		r.Protocol = name
	}
	switch r.Protocol {
	case "-1":
		return nil
	case "icmp", "icmpv6":
		if from != nil && to != nil {
			r.From, r.To = *from, *to
		}
		if r.From < -1 || r.From > 255 || r.To < -1 || r.To > 255 {
			return ec2.InvalidParameterValue.Errorf("Invalid value for ICMP type or code")
		}
		return nil
	case "tcp", "udp":
		if from == nil || to == nil {
			return ec2.InvalidParameterValue.Errorf("Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.")
		}
		if r.From, r.To = *from, *to; r.From < 0 || r.To > 65535 || r.From > r.To {
			return ec2.InvalidParameterValue.Errorf("Invalid value '%d - %d' for portRange: ports are 0 to 65535, the first not above the last", r.From, r.To)
		}
		return nil
	}
	if n, err := strconv.Atoi(r.Protocol); err != nil || n < 0 || n > 255 || strconv.Itoa(n) != r.Protocol {
		return ec2.InvalidParameterValue.Errorf("Invalid value '%.100s' for IP protocol. Unknown protocol.", *protocol)
	}
	return nil
}

// parseCIDR reads the address of a rule and leaves out of it what does not count.
func parseCIDR(text string, six bool) (string, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4() == six || p.Addr().Is4In6() {
		family := "IPv4"
		if six {
			family = "IPv6"
		}
		return "", ec2.InvalidParameterValue.Errorf("CIDR block %.100s is malformed: it is none of %s", text, family)
	}
	return p.Masked().String(), nil
}

// parse makes rules of the request.
func (in *ruleRequest) parse(ctx context.Context, c *Service, q querier, g group) ([]groupRule, error) {
	permissions := in.permissions
	if in.protocol != nil || in.cidr != nil || in.sourceName != nil {
		if len(permissions) > 0 {
			return nil, ec2.InvalidParameterCombination.Errorf("The parameter ipPermissions cannot be used beside ipProtocol, cidrIp and sourceSecurityGroupName")
		}
		p := ec2.IpPermission{IpProtocol: in.protocol, FromPort: in.from, ToPort: in.to}
		if in.sourceName != nil {
			p.UserIdGroupPairs = []ec2.UserIdGroupPair{{GroupName: in.sourceName, UserId: in.sourceOwn}}
			if p.IpProtocol == nil {
				all := "-1"
				p.IpProtocol = &all
			}
		}
		if in.cidr != nil {
			p.IpRanges = []ec2.IpRange{{CidrIp: in.cidr}}
		}
		permissions = []ec2.IpPermission{p}
	}
	var out []groupRule
	for _, p := range permissions {
		r := groupRule{Group: g.ID, Egress: in.egress}
		if err := r.ports(p.IpProtocol, p.FromPort, p.ToPort); err != nil {
			return nil, err
		}
		sources, err := c.sources(ctx, q, p)
		if err != nil {
			return nil, err
		}
		for _, s := range sources {
			r.Source, r.Description = s.Source, s.Description
			out = append(out, r)
		}
	}
	return out, nil
}

// sources are the addresses, groups and lists of a permission, each with its
// description.
func (c *Service) sources(ctx context.Context, q querier, p ec2.IpPermission) (out []groupRule, err error) {
	add := func(source string, description *string, err error) error {
		if err == nil && !described(deref(description)) {
			err = badDescription("description")
		}
		out = append(out, groupRule{Source: source, Description: deref(description)})
		return err
	}
	for _, r := range p.IpRanges {
		cidr, err := parseCIDR(deref(r.CidrIp), false)
		if err := add(cidr, r.Description, err); err != nil {
			return nil, err
		}
	}
	for _, r := range p.Ipv6Ranges {
		cidr, err := parseCIDR(deref(r.CidrIpv6), true)
		if err := add(cidr, r.Description, err); err != nil {
			return nil, err
		}
	}
	for _, r := range p.PrefixListIds {
		if err := add(deref(r.PrefixListId), r.Description, c.knownList(deref(r.PrefixListId))); err != nil {
			return nil, err
		}
	}
	for _, r := range p.UserIdGroupPairs {
		g, err := findGroup(ctx, q, r.GroupId, r.GroupName)
		if err == nil && deref(r.UserId) != "" && *r.UserId != c.opts.Account {
			err = ec2.InvalidGroupNotFound.Errorf("Account %.20s has no security group here", *r.UserId)
		}
		if err := add(g.ID, r.Description, err); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, ec2.MissingParameter.Errorf("A permission needs a source or destination: a CIDR block, a security group or a prefix list")
	}
	return out, nil
}

// authorize allows what the request says, all of it or nothing.
func (c *Service) authorize(ctx context.Context, in *ruleRequest) (out []ec2.SecurityGroupRule, err error) {
	tags, err := tagsFor(in.tags, ec2.GroupRule)
	if err != nil {
		return nil, err
	}
	return out, c.changeGroups(ctx, func(tx *sql.Tx) error {
		g, err := findGroup(ctx, tx, in.id, in.name)
		if err != nil {
			return err
		}
		rules, err := in.parse(ctx, c, tx, g)
		if err != nil {
			return err
		}
		if len(rules) == 0 {
			return ec2.MissingParameter.Errorf("The request must contain the parameter ipPermissions")
		}
		if err := dry(in.dryRun); err != nil {
			return err
		}
		if rules, err = addRules(ctx, tx, rules); err != nil {
			return err
		}
		for _, r := range rules {
			if err := c.tagGroup(ctx, tx, c.groupARN(ec2.GroupRule, r.ID), tags); err != nil {
				return err
			}
			out = append(out, c.ruleShape(r, tagList(tags)))
		}
		return nil
	})
}

// revoke takes back what the request says, all of it or nothing: a rule that is
// not there is an error, since whoever mistypes one must not believe it gone.
func (c *Service) revoke(ctx context.Context, in *ruleRequest) (out []ec2.RevokedSecurityGroupRule, err error) {
	return out, c.changeGroups(ctx, func(tx *sql.Tx) error {
		g, err := findGroup(ctx, tx, in.id, in.name)
		if err != nil {
			return err
		}
		found, err := c.meant(ctx, tx, g, in)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return ec2.MissingParameter.Errorf("The request must contain the parameter ipPermissions or securityGroupRuleId")
		}
		if err := dry(in.dryRun); err != nil {
			return err
		}
		for _, r := range found {
			_, err := tx.ExecContext(ctx, `DELETE FROM security_group_rules WHERE id = ?`, r.ID)
			if err := errors.Join(err, dropTags(ctx, tx, c.groupARN(ec2.GroupRule, r.ID))); err != nil {
				return err
			}
			out = append(out, revokedShape(r))
		}
		return nil
	})
}

// meant are the rules of the group that a request names by what they say or by
// their ids.
func (c *Service) meant(ctx context.Context, q querier, g group, in *ruleRequest) ([]groupRule, error) {
	have, err := rulesWhere(ctx, q, "group_id = ? AND egress = ?", g.ID, in.egress)
	if err != nil {
		return nil, err
	}
	var out []groupRule
	for _, id := range in.ids {
		i := slices.IndexFunc(have, func(r groupRule) bool { return r.ID == id })
		if i < 0 {
			return nil, noRule(id)
		}
		out = append(out, have[i])
	}
	asked, err := in.parse(ctx, c, q, g)
	if err != nil {
		return nil, err
	}
	for _, r := range asked {
		i := slices.IndexFunc(have, r.same)
		if i < 0 {
			return nil, ec2.InvalidPermissionNotFound.Errorf("The specified rule does not exist in this security group: %s", r)
		}
		have[i].Description = r.Description // what an update of descriptions asks for
		out = append(out, have[i])
	}
	return out, nil
}

func noRule(id string) error {
	return ec2.InvalidSecurityGroupRuleIDNotFound.Errorf("The security group rule ID '%.100s' does not exist", id)
}

// AuthorizeSecurityGroupIngress implements the operation of EC2.
func (c *Service) AuthorizeSecurityGroupIngress(ctx context.Context, in *ec2.AuthorizeSecurityGroupIngressRequest) (*ec2.AuthorizeSecurityGroupIngressResult, error) {
	rules, err := c.authorize(ctx, &ruleRequest{dryRun: in.DryRun, id: in.GroupId, name: in.GroupName, permissions: in.IpPermissions, protocol: in.IpProtocol,
		cidr: in.CidrIp, sourceName: in.SourceSecurityGroupName, sourceOwn: in.SourceSecurityGroupOwnerId, from: in.FromPort, to: in.ToPort, tags: in.TagSpecifications})
	if err != nil {
		return nil, err
	}
	yes := true
	return &ec2.AuthorizeSecurityGroupIngressResult{Return: &yes, SecurityGroupRules: rules}, nil
}

// AuthorizeSecurityGroupEgress implements the operation of EC2.
func (c *Service) AuthorizeSecurityGroupEgress(ctx context.Context, in *ec2.AuthorizeSecurityGroupEgressRequest) (*ec2.AuthorizeSecurityGroupEgressResult, error) {
	rules, err := c.authorize(ctx, &ruleRequest{dryRun: in.DryRun, id: &in.GroupId, egress: true, permissions: in.IpPermissions, protocol: in.IpProtocol,
		cidr: in.CidrIp, sourceName: in.SourceSecurityGroupName, sourceOwn: in.SourceSecurityGroupOwnerId, from: in.FromPort, to: in.ToPort, tags: in.TagSpecifications})
	if err != nil {
		return nil, err
	}
	yes := true
	return &ec2.AuthorizeSecurityGroupEgressResult{Return: &yes, SecurityGroupRules: rules}, nil
}

// RevokeSecurityGroupIngress implements the operation of EC2.
func (c *Service) RevokeSecurityGroupIngress(ctx context.Context, in *ec2.RevokeSecurityGroupIngressRequest) (*ec2.RevokeSecurityGroupIngressResult, error) {
	rules, err := c.revoke(ctx, &ruleRequest{dryRun: in.DryRun, id: in.GroupId, name: in.GroupName, permissions: in.IpPermissions, protocol: in.IpProtocol,
		cidr: in.CidrIp, sourceName: in.SourceSecurityGroupName, sourceOwn: in.SourceSecurityGroupOwnerId, from: in.FromPort, to: in.ToPort, ids: in.SecurityGroupRuleIds})
	if err != nil {
		return nil, err
	}
	yes := true
	return &ec2.RevokeSecurityGroupIngressResult{Return: &yes, RevokedSecurityGroupRules: rules}, nil
}

// RevokeSecurityGroupEgress implements the operation of EC2.
func (c *Service) RevokeSecurityGroupEgress(ctx context.Context, in *ec2.RevokeSecurityGroupEgressRequest) (*ec2.RevokeSecurityGroupEgressResult, error) {
	rules, err := c.revoke(ctx, &ruleRequest{dryRun: in.DryRun, id: &in.GroupId, egress: true, permissions: in.IpPermissions, protocol: in.IpProtocol,
		cidr: in.CidrIp, sourceName: in.SourceSecurityGroupName, sourceOwn: in.SourceSecurityGroupOwnerId, from: in.FromPort, to: in.ToPort, ids: in.SecurityGroupRuleIds})
	if err != nil {
		return nil, err
	}
	yes := true
	return &ec2.RevokeSecurityGroupEgressResult{Return: &yes, RevokedSecurityGroupRules: rules}, nil
}

// ModifySecurityGroupRules implements the operation of EC2: each rule keeps its id
// and says from now on what the request does.
func (c *Service) ModifySecurityGroupRules(ctx context.Context, in *ec2.ModifySecurityGroupRulesRequest) (*ec2.ModifySecurityGroupRulesResult, error) {
	err := c.changeGroups(ctx, func(tx *sql.Tx) error {
		g, err := findGroup(ctx, tx, &in.GroupId, nil)
		if err != nil {
			return err
		}
		for _, u := range in.SecurityGroupRules {
			if err := c.modifyRule(ctx, tx, g, u); err != nil {
				return err
			}
		}
		return dry(in.DryRun)
	})
	if err != nil {
		return nil, err
	}
	yes := true
	return &ec2.ModifySecurityGroupRulesResult{Return: &yes}, nil
}

func (c *Service) modifyRule(ctx context.Context, tx *sql.Tx, g group, u ec2.SecurityGroupRuleUpdate) error {
	found, err := rulesWhere(ctx, tx, "id = ? AND group_id = ?", u.SecurityGroupRuleId, g.ID)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return noRule(u.SecurityGroupRuleId)
	}
	if u.SecurityGroupRule == nil {
		return ec2.MissingParameter.Errorf("The request must contain the parameter SecurityGroupRule")
	}
	to, r := u.SecurityGroupRule, found[0]
	if err := r.ports(to.IpProtocol, to.FromPort, to.ToPort); err != nil {
		return err
	}
	p := ec2.IpPermission{}
	if to.CidrIpv4 != nil {
		p.IpRanges = []ec2.IpRange{{CidrIp: to.CidrIpv4, Description: to.Description}}
	}
	if to.CidrIpv6 != nil {
		p.Ipv6Ranges = []ec2.Ipv6Range{{CidrIpv6: to.CidrIpv6, Description: to.Description}}
	}
	if to.PrefixListId != nil {
		p.PrefixListIds = []ec2.PrefixListId{{PrefixListId: to.PrefixListId, Description: to.Description}}
	}
	if to.ReferencedGroupId != nil {
		p.UserIdGroupPairs = []ec2.UserIdGroupPair{{GroupId: to.ReferencedGroupId, Description: to.Description}}
	}
	sources, err := c.sources(ctx, tx, p)
	if err != nil {
		return err
	}
	if len(sources) != 1 {
		return ec2.InvalidParameterCombination.Errorf("Only one of CidrIpv4, CidrIpv6, PrefixListId and ReferencedGroupId can be given")
	}
	r.Source, r.Description = sources[0].Source, sources[0].Description
	have, err := rulesWhere(ctx, tx, "group_id = ? AND id <> ?", g.ID, r.ID)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(have, r.same) {
		return ec2.InvalidPermissionDuplicate.Errorf("the specified rule %q already exists", r)
	}
	_, err = tx.ExecContext(ctx, `UPDATE security_group_rules SET protocol = ?, from_port = ?, to_port = ?, source = ?, description = ? WHERE id = ?`,
		r.Protocol, r.From, r.To, r.Source, r.Description, r.ID)
	return err
}

// UpdateSecurityGroupRuleDescriptionsIngress implements the operation of EC2.
func (c *Service) UpdateSecurityGroupRuleDescriptionsIngress(ctx context.Context, in *ec2.UpdateSecurityGroupRuleDescriptionsIngressRequest) (*ec2.UpdateSecurityGroupRuleDescriptionsIngressResult, error) {
	yes := true
	return &ec2.UpdateSecurityGroupRuleDescriptionsIngressResult{Return: &yes},
		c.describeRules(ctx, &ruleRequest{dryRun: in.DryRun, id: in.GroupId, name: in.GroupName, permissions: in.IpPermissions}, in.SecurityGroupRuleDescriptions)
}

// UpdateSecurityGroupRuleDescriptionsEgress implements the operation of EC2.
func (c *Service) UpdateSecurityGroupRuleDescriptionsEgress(ctx context.Context, in *ec2.UpdateSecurityGroupRuleDescriptionsEgressRequest) (*ec2.UpdateSecurityGroupRuleDescriptionsEgressResult, error) {
	yes := true
	return &ec2.UpdateSecurityGroupRuleDescriptionsEgressResult{Return: &yes},
		c.describeRules(ctx, &ruleRequest{dryRun: in.DryRun, id: in.GroupId, name: in.GroupName, egress: true, permissions: in.IpPermissions}, in.SecurityGroupRuleDescriptions)
}

// describeRules gives rules other descriptions.
func (c *Service) describeRules(ctx context.Context, in *ruleRequest, byID []ec2.SecurityGroupRuleDescription) error {
	for _, d := range byID {
		in.ids = append(in.ids, deref(d.SecurityGroupRuleId))
	}
	return c.changeGroups(ctx, func(tx *sql.Tx) error {
		g, err := findGroup(ctx, tx, in.id, in.name)
		if err != nil {
			return err
		}
		found, err := c.meant(ctx, tx, g, in)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return ec2.MissingParameter.Errorf("The request must contain the parameter ipPermissions or securityGroupRuleDescription")
		}
		for i, r := range found {
			if i < len(byID) { // these are the first of what was found
				r.Description = deref(byID[i].Description)
			}
			if !described(r.Description) {
				return badDescription("description")
			}
			if _, err := tx.ExecContext(ctx, `UPDATE security_group_rules SET description = ? WHERE id = ?`, r.Description, r.ID); err != nil {
				return err
			}
		}
		return dry(in.dryRun)
	})
}

// DescribeSecurityGroupRules implements the operation of EC2.
func (c *Service) DescribeSecurityGroupRules(ctx context.Context, in *ec2.DescribeSecurityGroupRulesRequest) (*ec2.DescribeSecurityGroupRulesResult, error) {
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	after, limit, err := c.groupPage("DescribeSecurityGroupRules", in.Filters, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	for _, id := range in.SecurityGroupRuleIds {
		if found, err := rulesWhere(ctx, c.db.reader, "id = ?", id); err != nil {
			return nil, err
		} else if len(found) == 0 {
			return nil, noRule(id)
		}
	}
	all, err := rulesWhere(ctx, c.db.reader, "id > ?", after)
	if err != nil {
		return nil, err
	}
	arns := make([]string, len(all))
	for i, r := range all {
		arns[i] = c.groupARN(ec2.GroupRule, r.ID)
	}
	tags, err := tagsOf(ctx, c.db.reader, arns...)
	if err != nil {
		return nil, err
	}
	out := []ec2.SecurityGroupRule{}
	for i, r := range all {
		if len(in.SecurityGroupRuleIds) > 0 && !slices.Contains(in.SecurityGroupRuleIds, r.ID) {
			continue
		}
		shown := c.ruleShape(r, tagList(tags[arns[i]]))
		ok, err := pass(in.Filters, ruleFilters, shown, shown.Tags)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, shown)
		}
	}
	page, token := next(c.pager, "DescribeSecurityGroupRules", in.Filters, out, limit, func(r ec2.SecurityGroupRule) string { return r.SecurityGroupRuleId })
	return &ec2.DescribeSecurityGroupRulesResult{SecurityGroupRules: page, NextToken: token}, nil
}

var ruleFilters = map[string]func(ec2.SecurityGroupRule) []string{
	"group-id":               func(r ec2.SecurityGroupRule) []string { return []string{r.GroupId} },
	"security-group-rule-id": func(r ec2.SecurityGroupRule) []string { return []string{r.SecurityGroupRuleId} },
}

// ruleShape is a rule as the API shows it.
func (c *Service) ruleShape(r groupRule, tags []ec2.Tag) ec2.SecurityGroupRule {
	out := ec2.SecurityGroupRule{SecurityGroupRuleId: r.ID, SecurityGroupRuleArn: c.groupARN(ec2.GroupRule, r.ID), GroupId: r.Group, GroupOwnerId: c.opts.Account,
		IsEgress: &r.Egress, IpProtocol: r.Protocol, FromPort: &r.From, ToPort: &r.To, Description: r.Description, Tags: tags}
	switch r.kind() {
	case sourceGroup:
		out.ReferencedGroupInfo = &ec2.ReferencedSecurityGroup{GroupId: r.Source, UserId: c.opts.Account}
	case sourceList:
		out.PrefixListId = r.Source
	case source6:
		out.CidrIpv6 = r.Source
	default:
		out.CidrIpv4 = r.Source
	}
	return out
}

func revokedShape(r groupRule) ec2.RevokedSecurityGroupRule {
	out := ec2.RevokedSecurityGroupRule{SecurityGroupRuleId: r.ID, GroupId: r.Group, IsEgress: &r.Egress, IpProtocol: r.Protocol, FromPort: &r.From, ToPort: &r.To, Description: r.Description}
	switch r.kind() {
	case sourceGroup:
		out.ReferencedGroupId = r.Source
	case sourceList:
		out.PrefixListId = r.Source
	case source6:
		out.CidrIpv6 = r.Source
	default:
		out.CidrIpv4 = r.Source
	}
	return out
}

// The kinds of sources.
const (
	source4 = iota
	source6
	sourceGroup
	sourceList
)

func (r groupRule) kind() int {
	switch {
	case strings.HasPrefix(r.Source, "sg-"):
		return sourceGroup
	case strings.HasPrefix(r.Source, "pl-"):
		return sourceList
	case strings.Contains(r.Source, ":"):
		return source6
	}
	return source4
}

// join adds the rule to the permission of the same protocol and ports, of which
// there may be none yet.
func (r groupRule) join(all []ec2.IpPermission, account string) []ec2.IpPermission {
	i := slices.IndexFunc(all, func(p ec2.IpPermission) bool {
		return deref(p.IpProtocol) == r.Protocol && (p.FromPort == nil || *p.FromPort == r.From && *p.ToPort == r.To)
	})
	if i < 0 {
		p := ec2.IpPermission{IpProtocol: &r.Protocol, IpRanges: []ec2.IpRange{}, Ipv6Ranges: []ec2.Ipv6Range{}, PrefixListIds: []ec2.PrefixListId{}, UserIdGroupPairs: []ec2.UserIdGroupPair{}}
		if r.Protocol != "-1" { // which has no ports
			p.FromPort, p.ToPort = &r.From, &r.To
		}
		all, i = append(all, p), len(all)
	}
	var description *string
	if r.Description != "" {
		description = &r.Description
	}
	switch p := &all[i]; r.kind() {
	case sourceGroup:
		p.UserIdGroupPairs = append(p.UserIdGroupPairs, ec2.UserIdGroupPair{GroupId: &r.Source, UserId: &account, Description: description})
	case sourceList:
		p.PrefixListIds = append(p.PrefixListIds, ec2.PrefixListId{PrefixListId: &r.Source, Description: description})
	case source6:
		p.Ipv6Ranges = append(p.Ipv6Ranges, ec2.Ipv6Range{CidrIpv6: &r.Source, Description: description})
	default:
		p.IpRanges = append(p.IpRanges, ec2.IpRange{CidrIp: &r.Source, Description: description})
	}
	return all
}

// permissionFilters are the values that a filter of permissions looks at.
var permissionFilters = map[string]func(ec2.IpPermission) []string{
	"protocol":  func(p ec2.IpPermission) []string { return []string{deref(p.IpProtocol)} },
	"from-port": func(p ec2.IpPermission) []string { return number(p.FromPort) },
	"to-port":   func(p ec2.IpPermission) []string { return number(p.ToPort) },
	"cidr": func(p ec2.IpPermission) []string {
		return each(p.IpRanges, func(r ec2.IpRange) []string { return []string{deref(r.CidrIp)} })
	},
	"ipv6-cidr": func(p ec2.IpPermission) []string {
		return each(p.Ipv6Ranges, func(r ec2.Ipv6Range) []string { return []string{deref(r.CidrIpv6)} })
	},
	"group-id": func(p ec2.IpPermission) []string {
		return each(p.UserIdGroupPairs, func(r ec2.UserIdGroupPair) []string { return []string{deref(r.GroupId)} })
	},
	"prefix-list-id": func(p ec2.IpPermission) []string {
		return each(p.PrefixListIds, func(r ec2.PrefixListId) []string { return []string{deref(r.PrefixListId)} })
	},
}

func number(n *int32) []string {
	if n == nil {
		return nil
	}
	return []string{strconv.Itoa(int(*n))}
}
