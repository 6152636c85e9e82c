package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/ec2"
	"rehost/awsapi/mgn"
)

// Security groups say who may connect. The rules are:
//
//   - Replication servers are guarded by the groups of the replication
//     configurations of the source servers that they serve; together with the
//     default group, where a configuration says so. See reach.go.
//   - The API is guarded by the group named APIGroup and no other.
//   - Those two groups are there from the first start and cannot be deleted. What
//     the default group has to allow is put back as soon as it is taken away.
//   - Rules of egress are kept and shown; nothing here connects by them.

// The groups that are always there. The first is called as MGN calls its own.
const (
	DefaultGroup = "AWS Application Migration Service default Security Group"
	APIGroup     = "rehost-api"
)

// Limits of EC2, the second as far as it can be raised there.
const (
	maxGroups     = 2500
	maxGroupRules = 1000 // of one group, each way
)

// A group is a security group without its rules.
type group struct{ ID, Name, Description string }

func (c *Service) groupARN(kind, id string) string {
	return fmt.Sprintf("arn:aws:ec2:%s:%s:%s/%s", c.opts.Region, c.opts.Account, kind, id)
}

func groupsWhere(ctx context.Context, q querier, condition string, args ...any) (out []group, err error) {
	rows, err := q.QueryContext(ctx, `SELECT id, name, description FROM security_groups WHERE `+condition+` ORDER BY id`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var g group
		if err := rows.Scan(&g.ID, &g.Name, &g.Description); err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, rows.Err()
}

// findGroup finds the one group that a request names by id or by name.
func findGroup(ctx context.Context, q querier, id, name *string) (group, error) {
	column, value := "id", deref(id)
	switch {
	case id != nil && name != nil:
		return group{}, ec2.InvalidParameterCombination.Errorf("The parameters GroupId and GroupName cannot be used together")
	case id == nil && name == nil:
		return group{}, ec2.MissingParameter.Errorf("The request must contain the parameter groupName or groupId")
	case id == nil:
		column, value = "name", *name
	case !strings.HasPrefix(value, "sg-"):
		return group{}, ec2.InvalidGroupIDMalformed.Errorf("Invalid id: %.100q (expecting \"sg-...\")", value)
	}
	found, err := groupsWhere(ctx, q, column+" = ?", value)
	if err == nil && len(found) == 0 {
		err = ec2.InvalidGroupNotFound.Errorf("The security group '%.255s' does not exist", value)
	}
	if err != nil {
		return group{}, err
	}
	return found[0], nil
}

// addGroup makes a group that lets everything out, as EC2 does.
func addGroup(ctx context.Context, tx *sql.Tx, name, description string) (group, error) {
	g := group{newID("sg"), name, description}
	if _, err := tx.ExecContext(ctx, `INSERT INTO security_groups (id, name, description) VALUES (?, ?, ?)`, g.ID, g.Name, g.Description); err != nil {
		return g, fmt.Errorf("write security group %s: %w", g.ID, err)
	}
	_, err := addRules(ctx, tx, []groupRule{{Group: g.ID, Egress: true, Protocol: "-1", From: -1, To: -1, Source: "0.0.0.0/0"}})
	return g, err
}

// openTo are rules that let everybody reach a port.
func openTo(id string, port int32) []groupRule {
	return []groupRule{{Group: id, Protocol: "tcp", From: port, To: port, Source: "0.0.0.0/0"}, {Group: id, Protocol: "tcp", From: port, To: port, Source: "::/0"}}
}

// settleGroups makes the groups that have to be there, and gives the default
// group back what it has to allow. It reports whether that changed anything.
func settleGroups(ctx context.Context, tx *sql.Tx) (changed bool, err error) {
	if g, err := groupsWhere(ctx, tx, "name = ?", APIGroup); err != nil {
		return false, err
	} else if len(g) == 0 {
		made, err := addGroup(ctx, tx, APIGroup, "Who may reach the API of this service")
		if err == nil {
			_, err = addRules(ctx, tx, openTo(made.ID, apiPort))
		}
		if err != nil {
			return false, err
		}
		changed = true
	}
	found, err := groupsWhere(ctx, tx, "name = ?", DefaultGroup)
	if err != nil {
		return false, err
	}
	if len(found) == 0 {
		made, err := addGroup(ctx, tx, DefaultGroup, "Who may replicate, where a replication configuration says so")
		if err != nil {
			return false, err
		}
		found = []group{made}
	}
	have, err := rulesWhere(ctx, tx, "group_id = ? AND egress = 0", found[0].ID)
	if err != nil {
		return false, err
	}
	for _, r := range openTo(found[0].ID, replicationPort) {
		if slices.ContainsFunc(have, r.same) {
			continue
		}
		changed = true
		if _, err := addRules(ctx, tx, []groupRule{r}); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// repairGroups is settleGroups for what nobody should have been able to change.
func (c *Service) repairGroups(ctx context.Context) error {
	changed := false
	err := c.db.update(ctx, func(tx *sql.Tx) (err error) {
		changed, err = settleGroups(ctx, tx)
		return err
	})
	if err == nil && changed {
		c.repaired(ctx)
	}
	return err
}

func (c *Service) repaired(ctx context.Context) {
	c.log.Warn("the default security group is repaired: to keep agents away, use groups of your own and no default group")
	c.record(ctx, securityGroupRepaired, nil, "groupName", DefaultGroup)
	c.changes.happened()
}

// changeGroups runs do in a transaction, repairs what it must not have changed,
// and lets those know at once who guard a port.
func (c *Service) changeGroups(ctx context.Context, do func(tx *sql.Tx) error) error {
	changed := false
	err := c.db.update(ctx, func(tx *sql.Tx) (err error) {
		if err := do(tx); err != nil {
			return err
		}
		changed, err = settleGroups(ctx, tx)
		return err
	})
	if err == nil {
		c.changes.happened()
		if changed {
			c.repaired(ctx)
		}
	}
	return err
}

// dry ends a call that only asks whether it may be made.
func dry(asks *bool) error {
	if deref(asks) {
		return ec2.DryRunOperation.Errorf("Request would have succeeded, but DryRun flag is set.")
	}
	return nil
}

// CreateSecurityGroup implements the operation of EC2.
func (c *Service) CreateSecurityGroup(ctx context.Context, in *ec2.CreateSecurityGroupRequest) (*ec2.CreateSecurityGroupResult, error) {
	switch {
	case deref(in.VpcId) != "":
		return nil, ec2.InvalidVpcIDNotFound.Errorf("The vpc ID '%.100s' does not exist: there are none here, leave it out", *in.VpcId)
	case in.GroupName == "" || len(in.GroupName) > 255 || strings.HasPrefix(in.GroupName, "sg-"):
		return nil, ec2.InvalidParameterValue.Errorf("Value for parameter GroupName is invalid: 1 to 255 characters are needed, and it cannot begin with sg-")
	case in.Description == "":
		return nil, ec2.MissingParameter.Errorf("The request must contain the parameter GroupDescription")
	case !described(in.Description):
		return nil, badDescription("GroupDescription")
	}
	tags, err := tagsFor(in.TagSpecifications, ec2.Group)
	if err := errors.Join(err, dry(in.DryRun)); err != nil {
		return nil, err
	}
	var g group
	err = c.changeGroups(ctx, func(tx *sql.Tx) error {
		all, err := groupsWhere(ctx, tx, "1")
		switch {
		case err != nil:
			return err
		case slices.ContainsFunc(all, func(g group) bool { return g.Name == in.GroupName }):
			return ec2.InvalidGroupDuplicate.Errorf("The security group '%s' already exists", in.GroupName)
		case len(all) >= maxGroups:
			return ec2.SecurityGroupLimitExceeded.Errorf("There are %d security groups, and there cannot be more", len(all))
		}
		if g, err = addGroup(ctx, tx, in.GroupName, in.Description); err != nil {
			return err
		}
		return c.tagGroup(ctx, tx, c.groupARN(ec2.Group, g.ID), tags)
	})
	if err != nil {
		return nil, err
	}
	return &ec2.CreateSecurityGroupResult{GroupId: g.ID, SecurityGroupArn: c.groupARN(ec2.Group, g.ID), Tags: tagList(tags)}, nil
}

// DeleteSecurityGroup implements the operation of EC2. A group that guards
// something, or that a rule names, stays.
func (c *Service) DeleteSecurityGroup(ctx context.Context, in *ec2.DeleteSecurityGroupRequest) (*ec2.DeleteSecurityGroupResult, error) {
	var g group
	err := c.changeGroups(ctx, func(tx *sql.Tx) (err error) {
		if g, err = findGroup(ctx, tx, in.GroupId, in.GroupName); err != nil {
			return err
		}
		if g.Name == DefaultGroup || g.Name == APIGroup {
			return ec2.CannotDelete.Errorf("the specified group: %q name: %q cannot be deleted by a user", g.ID, g.Name)
		}
		if err := errors.Join(c.unusedGroup(ctx, tx, g.ID), dry(in.DryRun)); err != nil {
			return err
		}
		rules, err := rulesWhere(ctx, tx, "group_id = ?", g.ID)
		if err != nil {
			return err
		}
		err = dropTags(ctx, tx, c.groupARN(ec2.Group, g.ID))
		for _, r := range rules {
			err = errors.Join(err, dropTags(ctx, tx, c.groupARN(ec2.GroupRule, r.ID)))
		}
		_, deleted := tx.ExecContext(ctx, `DELETE FROM security_groups WHERE id = ?`, g.ID)
		return errors.Join(err, deleted)
	})
	if err != nil {
		return nil, err
	}
	yes := true
	return &ec2.DeleteSecurityGroupResult{GroupId: g.ID, Return: &yes}, nil
}

// unusedGroup refuses when something would be guarded by a group that is gone.
func (c *Service) unusedGroup(ctx context.Context, tx *sql.Tx, id string) error {
	users, err := groupUsers(ctx, tx)
	if err != nil {
		return err
	}
	rules, err := rulesWhere(ctx, tx, "source = ? AND group_id <> ?", id, id)
	if err != nil {
		return err
	}
	if len(rules) > 0 {
		return ec2.DependencyViolation.Errorf("resource %s has a dependent object: a rule of %s names it", id, rules[0].Group)
	}
	if by := users[id]; len(by) > 0 {
		return ec2.DependencyViolation.Errorf("resource %s has a dependent object: %s uses it", id, by[0])
	}
	return nil
}

// groupUsers are the templates, and the source servers that have not ended, by
// the groups in their replication configurations.
func groupUsers(ctx context.Context, q querier) (map[string][]string, error) {
	out := map[string][]string{}
	servers, err := documents[*server](ctx, q, `SELECT document FROM source_servers`)
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		for _, id := range s.Config.ReplicationServersSecurityGroupsIDs {
			if !s.ended() {
				out[id] = append(out[id], s.ID)
			}
		}
	}
	templates, err := documents[mgn.ReplicationConfigurationTemplate](ctx, q, `SELECT document FROM templates WHERE kind = 'rct'`)
	for _, t := range templates {
		for _, id := range t.ReplicationServersSecurityGroupsIDs {
			out[id] = append(out[id], t.ReplicationConfigurationTemplateID)
		}
	}
	return out, err
}

// checkGroups refuses a replication configuration with a group that is not there:
// it would keep everybody away.
func checkGroups(ctx context.Context, q querier, ids []string) error {
	for _, id := range ids {
		if found, err := groupsWhere(ctx, q, "id = ?", id); err != nil {
			return err
		} else if len(found) == 0 {
			return invalid("replicationServersSecurityGroupsIDs", "security group %.100s does not exist (aws ec2 describe-security-groups)", id)
		}
	}
	return nil
}

// DescribeSecurityGroups implements the operation of EC2.
func (c *Service) DescribeSecurityGroups(ctx context.Context, in *ec2.DescribeSecurityGroupsRequest) (*ec2.DescribeSecurityGroupsResult, error) {
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	for _, id := range in.GroupIds {
		if _, err := findGroup(ctx, c.db.reader, &id, nil); err != nil {
			return nil, err
		}
	}
	for _, name := range in.GroupNames {
		if _, err := findGroup(ctx, c.db.reader, nil, &name); err != nil {
			return nil, err
		}
	}
	if in.MaxResults != nil && len(in.GroupIds) > 0 {
		return nil, ec2.InvalidParameterCombination.Errorf("The parameter groupIds cannot be used with the parameter maxResults")
	}
	after, limit, err := c.groupPage("DescribeSecurityGroups", in.Filters, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	all, err := groupsWhere(ctx, c.db.reader, "id > ?", after)
	if err != nil {
		return nil, err
	}
	out := []ec2.SecurityGroup{}
	for _, g := range all {
		if len(in.GroupIds) > 0 && !slices.Contains(in.GroupIds, g.ID) || len(in.GroupNames) > 0 && !slices.Contains(in.GroupNames, g.Name) {
			continue
		}
		shown, err := c.groupShape(ctx, g)
		if err != nil {
			return nil, err
		}
		ok, err := pass(in.Filters, groupFilters, shown, shown.Tags)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, shown)
		}
	}
	page, token := next(c.pager, "DescribeSecurityGroups", in.Filters, out, limit, func(g ec2.SecurityGroup) string { return g.GroupId })
	return &ec2.DescribeSecurityGroupsResult{SecurityGroups: page, NextToken: token}, nil
}

// groupPage is what a request says of its page: without a word of it, up to a
// thousand things.
func (c *Service) groupPage(operation string, filters any, token *string, max *int32) (after string, limit int, err error) {
	if max == nil {
		all := int32(1000)
		max = &all
	}
	if *max < 1 || *max > 1000 {
		return "", 0, ec2.InvalidParameterValue.Errorf("Value ( %d ) for parameter maxResults is invalid. Expecting a value between 1 and 1000.", *max)
	}
	if after, limit, err = c.pager.start(operation, filters, token, max); err != nil {
		return "", 0, ec2.InvalidNextToken.Errorf("The token is not one that %s gave out for these filters: begin again without it", operation)
	}
	return after, limit, nil
}

func (c *Service) groupShape(ctx context.Context, g group) (ec2.SecurityGroup, error) {
	out := ec2.SecurityGroup{GroupId: g.ID, GroupName: g.Name, Description: g.Description, OwnerId: c.opts.Account, SecurityGroupArn: c.groupARN(ec2.Group, g.ID),
		IpPermissions: []ec2.IpPermission{}, IpPermissionsEgress: []ec2.IpPermission{}}
	rules, err := rulesWhere(ctx, c.db.reader, "group_id = ?", g.ID)
	if err != nil {
		return out, err
	}
	for _, r := range rules {
		if r.Egress {
			out.IpPermissionsEgress = r.join(out.IpPermissionsEgress, c.opts.Account)
		} else {
			out.IpPermissions = r.join(out.IpPermissions, c.opts.Account)
		}
	}
	tags, err := tagsOf(ctx, c.db.reader, out.SecurityGroupArn)
	out.Tags = tagList(tags[out.SecurityGroupArn])
	return out, err
}

// groupFilters are the values that a filter of groups looks at.
var groupFilters = map[string]func(ec2.SecurityGroup) []string{
	"group-id":    func(g ec2.SecurityGroup) []string { return []string{g.GroupId} },
	"group-name":  func(g ec2.SecurityGroup) []string { return []string{g.GroupName} },
	"description": func(g ec2.SecurityGroup) []string { return []string{g.Description} },
	"owner-id":    func(g ec2.SecurityGroup) []string { return []string{g.OwnerId} },
	"vpc-id":      func(ec2.SecurityGroup) []string { return nil },
}

func init() {
	for name, of := range permissionFilters {
		groupFilters["ip-permission."+name] = func(g ec2.SecurityGroup) []string { return each(g.IpPermissions, of) }
		groupFilters["egress.ip-permission."+name] = func(g ec2.SecurityGroup) []string { return each(g.IpPermissionsEgress, of) }
	}
}

func each[T any](all []T, of func(T) []string) (out []string) {
	for _, v := range all {
		out = append(out, of(v)...)
	}
	return out
}

// pass is whether a thing has one of the values of every filter, in which * and ?
// stand for anything and for one character.
func pass[T any](filters []ec2.Filter, known map[string]func(T) []string, thing T, tags []ec2.Tag) (bool, error) {
	for _, f := range filters {
		name := deref(f.Name)
		var values []string
		key, isTag := strings.CutPrefix(name, "tag:")
		of, ok := known[name]
		switch {
		case isTag:
			values = each(tags, func(t ec2.Tag) []string {
				if deref(t.Key) == key {
					return []string{deref(t.Value)}
				}
				return nil
			})
		case name == "tag-key":
			values = each(tags, func(t ec2.Tag) []string { return []string{deref(t.Key)} })
		case ok:
			values = of(thing)
		default:
			return false, ec2.InvalidParameterValue.Errorf("The filter '%.100s' is invalid", name)
		}
		if !slices.ContainsFunc(f.Values, func(pattern string) bool {
			return slices.ContainsFunc(values, func(v string) bool { return like(pattern, v) })
		}) {
			return false, nil
		}
	}
	return true, nil
}

// like matches a filter's value. Slashes and brackets are no more than characters.
func like(pattern, value string) bool {
	escape := strings.NewReplacer("/", "\x00", "[", `\[`)
	ok, err := path.Match(escape.Replace(pattern), strings.ReplaceAll(value, "/", "\x00"))
	return err == nil && ok
}

// described is whether a text is one that EC2 takes as a description.
func described(text string) bool {
	return len(text) <= 255 && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(` ._-:/()#,@[]+=&;{}!$*`, r)
	})
}

func badDescription(parameter string) error {
	return ec2.InvalidParameterValue.Errorf("Invalid security group description. Valid descriptions (%s) are strings less than 256 characters from the following set: a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*", parameter)
}

// RegisterGroups makes the server answer the operations on security groups.
func (c *Service) RegisterGroups(s *awsapi.Server) {
	s.Describe(ec2.Service, c.describeGroup)
	awsapi.Handle(s, ec2.CreateSecurityGroup, c.CreateSecurityGroup)
	awsapi.Handle(s, ec2.DeleteSecurityGroup, c.DeleteSecurityGroup)
	awsapi.Handle(s, ec2.DescribeSecurityGroups, c.DescribeSecurityGroups)
	awsapi.Handle(s, ec2.DescribeSecurityGroupRules, c.DescribeSecurityGroupRules)
	awsapi.Handle(s, ec2.AuthorizeSecurityGroupIngress, c.AuthorizeSecurityGroupIngress)
	awsapi.Handle(s, ec2.AuthorizeSecurityGroupEgress, c.AuthorizeSecurityGroupEgress)
	awsapi.Handle(s, ec2.RevokeSecurityGroupIngress, c.RevokeSecurityGroupIngress)
	awsapi.Handle(s, ec2.RevokeSecurityGroupEgress, c.RevokeSecurityGroupEgress)
	awsapi.Handle(s, ec2.ModifySecurityGroupRules, c.ModifySecurityGroupRules)
	awsapi.Handle(s, ec2.UpdateSecurityGroupRuleDescriptionsIngress, c.UpdateSecurityGroupRuleDescriptionsIngress)
	awsapi.Handle(s, ec2.UpdateSecurityGroupRuleDescriptionsEgress, c.UpdateSecurityGroupRuleDescriptionsEgress)
	awsapi.Handle(s, ec2.CreateTags, c.CreateTags)
	awsapi.Handle(s, ec2.DeleteTags, c.DeleteTags)
	awsapi.Handle(s, ec2.DescribeTags, c.DescribeTags)
	awsapi.Handle(s, ec2.DescribeManagedPrefixLists, c.DescribeManagedPrefixLists)
	awsapi.Handle(s, ec2.GetManagedPrefixListEntries, c.GetManagedPrefixListEntries)
}
