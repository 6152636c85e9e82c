package ec2

import "rehost/awsapi"

// What requests act on, and which tags they bring and take away. A group can be
// named by its id or by its name: who describes resources to the server finds
// the id of a name, which stands in [awsapi.Resource] as ID after "name:".

// The kinds of resources.
const (
	Group      = "security-group"
	GroupRule  = "security-group-rule"
	PrefixList = "prefix-list"
)

// GroupNamed is the id of a group in an [awsapi.Resource] whose request knows
// only its name.
const GroupNamed = "name:"

func group(id, name *string) []awsapi.Resource {
	if id == nil && name != nil {
		return []awsapi.Resource{{Type: Group, ID: GroupNamed + *name}}
	}
	return []awsapi.Resource{{Type: Group, ID: awsapi.Value(id)}}
}

// Resources implements [awsapi.ResourceLister].
func (*CreateSecurityGroupRequest) Resources() []awsapi.Resource {
	return []awsapi.Resource{{Type: Group, ID: "*"}}
}

// Resources implements [awsapi.ResourceLister].
func (v *DeleteSecurityGroupRequest) Resources() []awsapi.Resource {
	return group(v.GroupId, v.GroupName)
}

// Resources implements [awsapi.ResourceLister].
func (v *AuthorizeSecurityGroupIngressRequest) Resources() []awsapi.Resource {
	return group(v.GroupId, v.GroupName)
}

// Resources implements [awsapi.ResourceLister].
func (v *AuthorizeSecurityGroupEgressRequest) Resources() []awsapi.Resource {
	return group(&v.GroupId, nil)
}

// Resources implements [awsapi.ResourceLister].
func (v *RevokeSecurityGroupIngressRequest) Resources() []awsapi.Resource {
	return group(v.GroupId, v.GroupName)
}

// Resources implements [awsapi.ResourceLister].
func (v *RevokeSecurityGroupEgressRequest) Resources() []awsapi.Resource {
	return group(&v.GroupId, nil)
}

// Resources implements [awsapi.ResourceLister]: the group and each rule.
func (v *ModifySecurityGroupRulesRequest) Resources() []awsapi.Resource {
	out := group(&v.GroupId, nil)
	for _, u := range v.SecurityGroupRules {
		out = append(out, awsapi.Resource{Type: GroupRule, ID: u.SecurityGroupRuleId})
	}
	return out
}

// Resources implements [awsapi.ResourceLister].
func (v *UpdateSecurityGroupRuleDescriptionsIngressRequest) Resources() []awsapi.Resource {
	return group(v.GroupId, v.GroupName)
}

// Resources implements [awsapi.ResourceLister].
func (v *UpdateSecurityGroupRuleDescriptionsEgressRequest) Resources() []awsapi.Resource {
	return group(v.GroupId, v.GroupName)
}

// Resources implements [awsapi.ResourceLister].
func (v *GetManagedPrefixListEntriesRequest) Resources() []awsapi.Resource {
	return []awsapi.Resource{{Type: PrefixList, ID: v.PrefixListId}}
}

// Resources implements [awsapi.ResourceLister]. The kind of each is in its id.
func (v *CreateTagsRequest) Resources() []awsapi.Resource { return byID(v.ResourceIds) }

// Resources implements [awsapi.ResourceLister]. The kind of each is in its id.
func (v *DeleteTagsRequest) Resources() []awsapi.Resource { return byID(v.ResourceIds) }

func byID(ids []string) (out []awsapi.Resource) {
	for _, id := range ids {
		out = append(out, awsapi.Resource{ID: id})
	}
	return out
}

// RequestTags implements [awsapi.TagBringer].
func (v *CreateTagsRequest) RequestTags() map[string]string { return TagMap(v.Tags) }

// RequestTags implements [awsapi.TagBringer].
func (v *CreateSecurityGroupRequest) RequestTags() map[string]string {
	return specified(v.TagSpecifications)
}

// RequestTags implements [awsapi.TagBringer].
func (v *AuthorizeSecurityGroupIngressRequest) RequestTags() map[string]string {
	return specified(v.TagSpecifications)
}

// RequestTags implements [awsapi.TagBringer].
func (v *AuthorizeSecurityGroupEgressRequest) RequestTags() map[string]string {
	return specified(v.TagSpecifications)
}

// RequestTagKeys implements [awsapi.TagKeyBringer].
func (v *DeleteTagsRequest) RequestTagKeys() (keys []string) {
	for _, t := range v.Tags {
		keys = append(keys, awsapi.Value(t.Key))
	}
	return keys
}

// TagMap has the values of tags by their keys.
func TagMap(tags []Tag) map[string]string {
	out := map[string]string{}
	for _, t := range tags {
		out[awsapi.Value(t.Key)] = awsapi.Value(t.Value)
	}
	return out
}

func specified(specifications []TagSpecification) map[string]string {
	var all []Tag
	for _, s := range specifications {
		all = append(all, s.Tags...)
	}
	return TagMap(all)
}
