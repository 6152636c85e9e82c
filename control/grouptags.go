package control

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/ec2"
	"rehost/identity/policy"
)

// Tags of security groups and their rules, which EC2 names by id alone.

// kindOfID is the kind of resource that an id of EC2 names, "" for none here.
func kindOfID(id string) string {
	switch prefix, _, _ := strings.Cut(id, "-"); prefix {
	case "sg":
		return ec2.Group
	case "sgr":
		return ec2.GroupRule
	case "pl":
		return ec2.PrefixList
	}
	return ""
}

// describeGroup is an [awsapi.Describer]: a group can be named by its name, and
// policies may ask for tags as ec2:ResourceTag, too.
func (c *Service) describeGroup(_ *awsapi.Caller, _ any, r awsapi.Resource) (string, policy.Context) {
	ctx := context.Background()
	if name, ok := strings.CutPrefix(r.ID, ec2.GroupNamed); ok {
		r.ID = "" // of no group: the call will say so
		if g, err := findGroup(ctx, c.db.reader, nil, &name); err == nil {
			r.ID = g.ID
		}
	}
	if r.Type == "" {
		r.Type = kindOfID(r.ID)
	}
	arn, keys := c.groupARN(r.Type, r.ID), policy.Context{}
	for key, value := range c.ResourceTags(ctx, arn) {
		keys.Set("ec2:ResourceTag/"+key, value)
	}
	return arn, keys
}

func tagList(tags map[string]string) []ec2.Tag {
	out := []ec2.Tag{}
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		value := tags[key]
		out = append(out, ec2.Tag{Key: &key, Value: &value})
	}
	return out
}

// tagsFor are the tags that a request brings for what it makes.
func tagsFor(specifications []ec2.TagSpecification, kind string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range specifications {
		if string(s.ResourceType) != kind {
			return nil, ec2.InvalidParameterValue.Errorf("'%s' is not a valid taggable resource type for this operation.", s.ResourceType)
		}
		for key, value := range ec2.TagMap(s.Tags) {
			if _, twice := out[key]; twice {
				return nil, ec2.InvalidParameterValue.Errorf("Duplicate tag key '%.128s' specified.", key)
			}
			out[key] = value
		}
	}
	return out, nil
}

// tagGroup is putTags with the errors of EC2.
func (c *Service) tagGroup(ctx context.Context, tx *sql.Tx, arn string, tags map[string]string) error {
	for key, value := range tags {
		switch {
		case key == "" || len([]rune(key)) > 128 || len([]rune(value)) > 256:
			return ec2.InvalidParameterValue.Errorf("Tag keys have 1 to 128 characters, values at most 256")
		case strings.HasPrefix(strings.ToLower(key), "aws:"):
			return ec2.InvalidParameterValue.Errorf("Tag keys starting with 'aws:' are reserved for internal use")
		}
	}
	have, err := tagsOf(ctx, tx, arn)
	if err != nil {
		return err
	}
	all := maps.Clone(have[arn])
	maps.Copy(all, tags)
	if len(all) > maxTags {
		return ec2.TagLimitExceeded.Errorf("%s would have %d tags, and can have %d", arn, len(all), maxTags)
	}
	return putTags(ctx, tx, arn, tags)
}

// taggedGroup is the ARN of a group or rule that is there.
func (c *Service) taggedGroup(ctx context.Context, q querier, id string) (string, error) {
	switch kindOfID(id) {
	case ec2.Group:
		_, err := findGroup(ctx, q, &id, nil)
		return c.groupARN(ec2.Group, id), err
	case ec2.GroupRule:
		found, err := rulesWhere(ctx, q, "id = ?", id)
		if err == nil && len(found) == 0 {
			err = noRule(id)
		}
		return c.groupARN(ec2.GroupRule, id), err
	}
	return "", ec2.InvalidID.Errorf("The ID '%.100s' is not valid: security groups (sg-...) and their rules (sgr-...) have tags here", id)
}

// CreateTags implements the operation of EC2.
func (c *Service) CreateTags(ctx context.Context, in *ec2.CreateTagsRequest) (*ec2.CreateTagsResponse, error) {
	return nil, c.changeGroups(ctx, func(tx *sql.Tx) error {
		for _, id := range in.ResourceIds {
			arn, err := c.taggedGroup(ctx, tx, id)
			if err == nil {
				err = c.tagGroup(ctx, tx, arn, ec2.TagMap(in.Tags))
			}
			if err != nil {
				return err
			}
		}
		return dry(in.DryRun)
	})
}

// DeleteTags implements the operation of EC2: a tag that names a value is taken
// away only where it has that one, and without tags all are.
func (c *Service) DeleteTags(ctx context.Context, in *ec2.DeleteTagsRequest) (*ec2.DeleteTagsResponse, error) {
	return nil, c.changeGroups(ctx, func(tx *sql.Tx) error {
		for _, id := range in.ResourceIds {
			arn, err := c.taggedGroup(ctx, tx, id)
			if err == nil && len(in.Tags) == 0 {
				err = dropTags(ctx, tx, arn)
			}
			for _, t := range in.Tags {
				if err == nil {
					_, err = tx.ExecContext(ctx, `DELETE FROM tags WHERE arn = ? AND name = ? AND (? OR value = ?)`, arn, deref(t.Key), t.Value == nil, deref(t.Value))
				}
			}
			if err != nil {
				return err
			}
		}
		return dry(in.DryRun)
	})
}

// DescribeTags implements the operation of EC2.
func (c *Service) DescribeTags(ctx context.Context, in *ec2.DescribeTagsRequest) (*ec2.DescribeTagsResult, error) {
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	after, limit, err := c.groupPage("DescribeTags", in.Filters, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	prefix := c.groupARN("", "")
	prefix = strings.TrimSuffix(prefix, "/")
	rows, err := c.db.reader.QueryContext(ctx, `SELECT arn, name, value FROM tags WHERE arn LIKE ? || '%' ORDER BY arn, name`, prefix)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []ec2.TagDescription{}
	for rows.Next() {
		var arn, key, value string
		if err := rows.Scan(&arn, &key, &value); err != nil {
			return nil, err
		}
		kind, id, _ := strings.Cut(strings.TrimPrefix(arn, prefix), "/")
		d := ec2.TagDescription{Key: key, Value: value, ResourceId: id, ResourceType: ec2.ResourceType(kind)}
		ok, err := pass(in.Filters, tagFilters, d, []ec2.Tag{{Key: &key, Value: &value}})
		if err != nil {
			return nil, err
		}
		if ok && tagPosition(d) > after {
			out = append(out, d)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b ec2.TagDescription) int { return strings.Compare(tagPosition(a), tagPosition(b)) })
	page, token := next(c.pager, "DescribeTags", in.Filters, out, limit, tagPosition)
	return &ec2.DescribeTagsResult{Tags: page, NextToken: token}, nil
}

func tagPosition(t ec2.TagDescription) string { return t.ResourceId + "/" + t.Key }

var tagFilters = map[string]func(ec2.TagDescription) []string{
	"key":           func(t ec2.TagDescription) []string { return []string{t.Key} },
	"value":         func(t ec2.TagDescription) []string { return []string{t.Value} },
	"resource-id":   func(t ec2.TagDescription) []string { return []string{t.ResourceId} },
	"resource-type": func(t ec2.TagDescription) []string { return []string{string(t.ResourceType)} },
}
