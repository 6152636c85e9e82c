package api

import (
	"context"
	"maps"
	"slices"

	"rehost/awsapi/iam"
	"rehost/identity"
	"rehost/identity/policy"
)

// A granting is a policy that a user, group or role has, in the shape in which
// IAM lists those that grant access to a service.
type granting struct {
	document *policy.Document
	shape    iam.PolicyGrantingServiceAccess
}

// listGranting looks at what policies allow, and not at what is denied, at
// boundaries or conditions; so does IAM.
func (a *api) listGranting(ctx context.Context, in *iam.ListPoliciesGrantingServiceAccessRequest) (*iam.ListPoliciesGrantingServiceAccessResponse, error) {
	out := new(iam.ListPoliciesGrantingServiceAccessResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		kind, name, err := holderNamed(tx, in.Arn)
		if err != nil {
			return err
		}
		policies, err := grantings(ctx, tx, kind, name)
		if err != nil {
			return err
		}
		var all []iam.ListPoliciesGrantingServiceAccessEntry
		for _, service := range in.ServiceNamespaces {
			entry := iam.ListPoliciesGrantingServiceAccessEntry{ServiceNamespace: service, Policies: []iam.PolicyGrantingServiceAccess{}}
			for _, p := range policies {
				if p.document.Opens(service) && !slices.Contains(entry.Policies, p.shape) { // a group may have the same
					entry.Policies = append(entry.Policies, p.shape)
				}
			}
			all = append(all, entry)
		}
		out.PoliciesGrantingServiceAccess, out.Marker, out.IsTruncated, err = page(all, in.Marker, nil)
		return err
	})
}

// entityTypes are the kinds of holders as IAM lists them.
var entityTypes = map[string]iam.PolicyOwnerEntityType{"user": iam.PolicyOwnerEntityTypeUser, "group": iam.PolicyOwnerEntityTypeGroup, "role": iam.PolicyOwnerEntityTypeRole}

// grantings are the policies of a holder; of a user, those of its groups, too.
func grantings(ctx context.Context, tx *identity.Tx, kind, name string) (out []granting, err error) {
	h, err := holderOf(ctx, tx, kind, name)
	if err != nil {
		return nil, err
	}
	for _, attached := range attachedList(tx, h.attached, nil) {
		p, _ := tx.Policies.Get(attached.PolicyArn)
		doc, err := policy.Parse(policy.Identity, p.Name, p.Document)
		if err != nil {
			return nil, err
		}
		out = append(out, granting{doc, iam.PolicyGrantingServiceAccess{PolicyName: p.Name, PolicyArn: attached.PolicyArn, PolicyType: iam.PolicyTypeManaged}})
	}
	for _, policyName := range slices.Sorted(maps.Keys(h.inline)) {
		doc, err := policy.Parse(policy.Identity, policyName, h.inline[policyName])
		if err != nil {
			return nil, err
		}
		out = append(out, granting{doc, iam.PolicyGrantingServiceAccess{PolicyName: policyName, PolicyType: iam.PolicyTypeInline, EntityType: entityTypes[kind], EntityName: name}})
	}
	if kind != "user" {
		return out, nil
	}
	u, _ := tx.Users.Get(name)
	for _, group := range u.Groups {
		of, err := grantings(ctx, tx, "group", group)
		if err != nil {
			return nil, err
		}
		out = append(out, of...)
	}
	return out, nil
}
