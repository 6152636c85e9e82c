package api

import (
	"context"
	"fmt"
	"slices"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
	"rehost/identity/policy"
)

// maxVersions is how many versions of a policy are kept.
const maxVersions = 5

func (a *api) registerPolicies(s *awsapi.Server) {
	awsapi.Handle(s, iam.CreatePolicy, a.createPolicy)
	awsapi.Handle(s, iam.GetPolicy, a.getPolicy)
	awsapi.Handle(s, iam.ListPolicies, a.listPolicies)
	awsapi.Handle(s, iam.DeletePolicy, a.deletePolicy)
	awsapi.Handle(s, iam.CreatePolicyVersion, a.createVersion)
	awsapi.Handle(s, iam.GetPolicyVersion, a.getVersion)
	awsapi.Handle(s, iam.ListPolicyVersions, a.listVersions)
	awsapi.Handle(s, iam.SetDefaultPolicyVersion, a.setDefaultVersion)
	awsapi.Handle(s, iam.DeletePolicyVersion, a.deleteVersion)
	awsapi.Handle(s, iam.ListEntitiesForPolicy, a.listEntities)
	awsapi.Handle(s, iam.TagPolicy, a.tagPolicy)
	awsapi.Handle(s, iam.UntagPolicy, a.untagPolicy)
	awsapi.Handle(s, iam.ListPolicyTags, a.listPolicyTags)
}

func managedPolicy(tx *identity.Tx, arn string) (identity.Policy, error) {
	p, ok := tx.Policies.Get(arn)
	if !ok {
		return p, iam.NoSuchEntityException.Errorf("Policy %s was not found.", arn)
	}
	return p, nil
}

// attachable is whether there is a policy of the ARN; "" is none at all.
func attachable(tx *identity.Tx, arn string) error {
	if _, ok := tx.Policies.Get(arn); !ok && arn != "" {
		return iam.NoSuchEntityException.Errorf("Policy %s does not exist or is not attachable.", arn)
	}
	return nil
}

// A use is who has a policy, as a policy or as a boundary.
type use struct {
	users, groups, roles []string
}

func (u use) count() int32 { return int32(len(u.users) + len(u.groups) + len(u.roles)) }

// usesOf finds who has the policy attached, and whose boundary it is.
func usesOf(tx *identity.Tx, arn string) (attached, boundary use) {
	for _, u := range tx.Users.Each() {
		if slices.Contains(u.Attached, arn) {
			attached.users = append(attached.users, u.Name)
		}
		if u.Boundary == arn {
			boundary.users = append(boundary.users, u.Name)
		}
	}
	for _, g := range tx.Groups.Each() {
		if slices.Contains(g.Attached, arn) {
			attached.groups = append(attached.groups, g.Name)
		}
	}
	for _, r := range tx.Roles.Each() {
		if slices.Contains(r.Attached, arn) {
			attached.roles = append(attached.roles, r.Name)
		}
		if r.Boundary == arn {
			boundary.roles = append(boundary.roles, r.Name)
		}
	}
	slices.Sort(attached.groups) // the others are sorted where both uses come together
	return attached, boundary
}

func versionID(n int) string { return fmt.Sprint("v", n) }

func policyShape(tx *identity.Tx, arn string, p identity.Policy) iam.Policy {
	attached, boundary := usesOf(tx, arn)
	return iam.Policy{Arn: arn, PolicyName: p.Name, PolicyId: p.ID, Path: p.Path, Description: p.Description, IsAttachable: new(true),
		AttachmentCount: new(attached.count()), PermissionsBoundaryUsageCount: new(boundary.count()), DefaultVersionId: versionID(p.Default),
		CreateDate: &awsapi.Timestamp{Time: p.Created}, UpdateDate: &awsapi.Timestamp{Time: p.Updated}, Tags: tagList(p.Tags)}
}

func versionShape(p identity.Policy, v identity.PolicyVersion, document bool) iam.PolicyVersion {
	out := iam.PolicyVersion{VersionId: versionID(v.Number), IsDefaultVersion: new(v.Number == p.Default), CreateDate: &awsapi.Timestamp{Time: v.Created}}
	if document {
		out.Document = encoded(v.Document)
	}
	return out
}

func managedSize(document string) error {
	if policy.Size(document) > policy.MaxManaged {
		return iam.LimitExceededException.Errorf("Cannot exceed quota for PolicySize: %d", policy.MaxManaged)
	}
	return nil
}

func (a *api) createPolicy(ctx context.Context, in *iam.CreatePolicyRequest) (out *iam.CreatePolicyResponse, err error) {
	if err := a.mayTag(ctx, "iam:TagPolicy", "policy", orRoot(in.Path), in.PolicyName, in.Tags); err != nil {
		return nil, err
	}
	err = a.d.Write(ctx, func(tx *identity.Tx) (err error) {
		for arn, p := range tx.Policies.Each() {
			if p.Name == in.PolicyName && !identity.IsManaged(arn) {
				return iam.EntityAlreadyExistsException.Errorf("A policy called %s already exists. Duplicate names are not allowed.", in.PolicyName)
			}
		}
		now := a.d.Now()
		p := identity.Policy{Name: in.PolicyName, ID: identity.NewID("ANPA"), Path: orRoot(in.Path), Document: in.PolicyDocument, Description: awsapi.Value(in.Description),
			Created: now, Updated: now, Default: 1, Last: 1, Versions: []identity.PolicyVersion{{Number: 1, Document: in.PolicyDocument, Created: now}}}
		if p.Tags, err = tagged(nil, in.Tags); err != nil {
			return err
		}
		own := arn(tx, "policy", p.Path, p.Name)
		tx.Policies.Put(own, p)
		out = &iam.CreatePolicyResponse{Policy: new(policyShape(tx, own, p))}
		return managedSize(p.Document)
	})
	return out, malformed(err)
}

func (a *api) getPolicy(_ context.Context, in *iam.GetPolicyRequest) (*iam.GetPolicyResponse, error) {
	out := new(iam.GetPolicyResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		p, err := managedPolicy(tx, in.PolicyArn)
		out.Policy = new(policyShape(tx, in.PolicyArn, p))
		return err
	})
}

func (a *api) listPolicies(_ context.Context, in *iam.ListPoliciesRequest) (*iam.ListPoliciesResponse, error) {
	out := new(iam.ListPoliciesResponse)
	return out, a.d.Read(func(tx *identity.Tx) (err error) {
		var all []iam.Policy
		for _, arn := range tx.Policies.Names() {
			p, _ := tx.Policies.Get(arn)
			shape := policyShape(tx, arn, p)
			shape.Description, shape.Tags = "", nil // so does IAM
			used := *shape.AttachmentCount > 0
			switch {
			case in.Scope == iam.PolicyScopeTypeAws && !identity.IsManaged(arn), in.Scope == iam.PolicyScopeTypeLocal && identity.IsManaged(arn):
			case awsapi.Value(in.OnlyAttached) && !used, !under(p.Path, in.PathPrefix):
			case in.PolicyUsageFilter == iam.PolicyUsageTypePermissionsPolicy && !used:
			case in.PolicyUsageFilter == iam.PolicyUsageTypePermissionsBoundary && *shape.PermissionsBoundaryUsageCount == 0:
			default:
				all = append(all, shape)
			}
		}
		out.Policies, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}

// changePolicy changes a policy of the account; built-in ones are refused.
func (a *api) changePolicy(ctx context.Context, arn string, change func(*identity.Tx, *identity.Policy) error) error {
	return malformed(a.d.Write(ctx, func(tx *identity.Tx) error {
		p, err := managedPolicy(tx, arn)
		if err != nil {
			return err
		}
		if identity.IsManaged(arn) {
			return awsapi.Errorf(awsapi.AccessDenied, "Policy %s is managed by the service and cannot be changed", arn)
		}
		if err := change(tx, &p); err != nil {
			return err
		}
		tx.Policies.Put(arn, p)
		return nil
	}))
}

func (a *api) deletePolicy(ctx context.Context, in *iam.DeletePolicyRequest) (*iam.DeletePolicyResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		p, err := managedPolicy(tx, in.PolicyArn)
		attached, boundary := usesOf(tx, in.PolicyArn)
		switch {
		case err != nil:
			return err
		case identity.IsManaged(in.PolicyArn):
			return awsapi.Errorf(awsapi.AccessDenied, "Policy %s is managed by the service and cannot be deleted", in.PolicyArn)
		case attached.count()+boundary.count() > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete a policy attached to entities.")
		case len(p.Versions) > 1:
			return iam.DeleteConflictException.Errorf("This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The default version is deleted with the policy.")
		}
		tx.Policies.Delete(in.PolicyArn)
		return nil
	})
}

func (a *api) createVersion(ctx context.Context, in *iam.CreatePolicyVersionRequest) (out *iam.CreatePolicyVersionResponse, err error) {
	// A version that is not the default applies to nobody yet, and must be a policy all the same.
	if _, err := policy.Parse(policy.Identity, "policy", in.PolicyDocument); err != nil {
		return nil, malformed(err)
	}
	err = a.changePolicy(ctx, in.PolicyArn, func(_ *identity.Tx, p *identity.Policy) error {
		if len(p.Versions) >= maxVersions {
			return iam.LimitExceededException.Errorf("A managed policy can have up to %d versions. Before you create a new version, you must delete an existing version.", maxVersions)
		}
		p.Last++
		v := identity.PolicyVersion{Number: p.Last, Document: in.PolicyDocument, Created: a.d.Now()}
		p.Versions, p.Updated = append(slices.Clone(p.Versions), v), v.Created
		if awsapi.Value(in.SetAsDefault) {
			p.Default, p.Document = v.Number, v.Document
		}
		out = &iam.CreatePolicyVersionResponse{PolicyVersion: new(versionShape(*p, v, false))}
		return managedSize(v.Document)
	})
	return out, err
}

// version finds one version of a policy by its id.
func version(p identity.Policy, arn, id string) (identity.PolicyVersion, error) {
	for _, v := range p.Versions {
		if versionID(v.Number) == id {
			return v, nil
		}
	}
	return identity.PolicyVersion{}, iam.NoSuchEntityException.Errorf("Policy %s version %s does not exist or is not attachable.", arn, id)
}

func (a *api) getVersion(_ context.Context, in *iam.GetPolicyVersionRequest) (*iam.GetPolicyVersionResponse, error) {
	out := new(iam.GetPolicyVersionResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		p, err := managedPolicy(tx, in.PolicyArn)
		if err != nil {
			return err
		}
		v, err := version(p, in.PolicyArn, in.VersionId)
		out.PolicyVersion = new(versionShape(p, v, true))
		return err
	})
}

func (a *api) listVersions(_ context.Context, in *iam.ListPolicyVersionsRequest) (*iam.ListPolicyVersionsResponse, error) {
	out := new(iam.ListPolicyVersionsResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		p, err := managedPolicy(tx, in.PolicyArn)
		if err != nil {
			return err
		}
		var all []iam.PolicyVersion
		for _, v := range slices.Backward(p.Versions) { // newest first, as IAM does
			all = append(all, versionShape(p, v, false))
		}
		out.Versions, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) setDefaultVersion(ctx context.Context, in *iam.SetDefaultPolicyVersionRequest) (*iam.SetDefaultPolicyVersionResponse, error) {
	return nil, a.changePolicy(ctx, in.PolicyArn, func(_ *identity.Tx, p *identity.Policy) error {
		v, err := version(*p, in.PolicyArn, in.VersionId)
		p.Default, p.Document = v.Number, v.Document
		return err
	})
}

func (a *api) deleteVersion(ctx context.Context, in *iam.DeletePolicyVersionRequest) (*iam.DeletePolicyVersionResponse, error) {
	return nil, a.changePolicy(ctx, in.PolicyArn, func(_ *identity.Tx, p *identity.Policy) error {
		v, err := version(*p, in.PolicyArn, in.VersionId)
		if err == nil && v.Number == p.Default {
			return iam.DeleteConflictException.Errorf("Cannot delete the default version of a policy.")
		}
		p.Versions = slices.DeleteFunc(slices.Clone(p.Versions), func(w identity.PolicyVersion) bool { return w.Number == v.Number })
		return err
	})
}

// listEntities answers all at once: a policy has no more holders than an
// account, and paging over three lists would tear them apart.
func (a *api) listEntities(_ context.Context, in *iam.ListEntitiesForPolicyRequest) (*iam.ListEntitiesForPolicyResponse, error) {
	out := &iam.ListEntitiesForPolicyResponse{PolicyUsers: []iam.PolicyUser{}, PolicyGroups: []iam.PolicyGroup{}, PolicyRoles: []iam.PolicyRole{}, IsTruncated: new(false)}
	wants := func(t iam.EntityType) bool { return in.EntityFilter == "" || in.EntityFilter == t }
	return out, a.d.Read(func(tx *identity.Tx) error {
		_, err := managedPolicy(tx, in.PolicyArn)
		attached, boundary := usesOf(tx, in.PolicyArn)
		if in.PolicyUsageFilter == iam.PolicyUsageTypePermissionsBoundary {
			attached = use{}
		}
		if in.PolicyUsageFilter == iam.PolicyUsageTypePermissionsPolicy {
			boundary = use{}
		}
		for _, name := range distinct(attached.users, boundary.users) {
			if u, _ := tx.Users.Get(name); wants(iam.EntityTypeUser) && under(u.Path, in.PathPrefix) {
				out.PolicyUsers = append(out.PolicyUsers, iam.PolicyUser{UserName: u.Name, UserId: u.ID})
			}
		}
		for _, name := range attached.groups {
			if g, _ := tx.Groups.Get(name); wants(iam.EntityTypeGroup) && under(g.Path, in.PathPrefix) {
				out.PolicyGroups = append(out.PolicyGroups, iam.PolicyGroup{GroupName: g.Name, GroupId: g.ID})
			}
		}
		for _, name := range distinct(attached.roles, boundary.roles) {
			if r, _ := tx.Roles.Get(name); wants(iam.EntityTypeRole) && under(r.Path, in.PathPrefix) {
				out.PolicyRoles = append(out.PolicyRoles, iam.PolicyRole{RoleName: r.Name, RoleId: r.ID})
			}
		}
		return err
	})
}

func distinct(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}

func (a *api) tagPolicy(ctx context.Context, in *iam.TagPolicyRequest) (*iam.TagPolicyResponse, error) {
	return nil, a.changePolicy(ctx, in.PolicyArn, func(_ *identity.Tx, p *identity.Policy) (err error) {
		p.Tags, err = tagged(p.Tags, in.Tags)
		return err
	})
}

func (a *api) untagPolicy(ctx context.Context, in *iam.UntagPolicyRequest) (*iam.UntagPolicyResponse, error) {
	return nil, a.changePolicy(ctx, in.PolicyArn, func(_ *identity.Tx, p *identity.Policy) error {
		p.Tags = untagged(p.Tags, in.TagKeys)
		return nil
	})
}

func (a *api) listPolicyTags(_ context.Context, in *iam.ListPolicyTagsRequest) (*iam.ListPolicyTagsResponse, error) {
	out := new(iam.ListPolicyTagsResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		p, err := managedPolicy(tx, in.PolicyArn)
		if err != nil {
			return err
		}
		out.Tags, out.Marker, out.IsTruncated, err = page(tagList(p.Tags), in.Marker, in.MaxItems)
		return err
	})
}
