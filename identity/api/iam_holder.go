package api

import (
	"context"
	"maps"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
	"rehost/identity/policy"
)

// maxAttached is how many managed policies a user, group or role may have.
const maxAttached = 10

// A holder is a user, group or role as what has policies.
type holder struct {
	kind     string // "user", "group", "role"
	name     string
	attached []string
	inline   map[string]string
	save     func(holder)
}

// inlineLimits is how long all inline policies of a holder may be together.
var inlineLimits = map[string]int{"user": policy.MaxUserInline, "group": policy.MaxGroupInline, "role": policy.MaxRoleInline}

func holderOf(ctx context.Context, tx *identity.Tx, kind, name string) (holder, error) {
	h := holder{kind: kind, name: name}
	switch kind {
	case "user":
		u, err := user(ctx, tx, name)
		h.attached, h.inline = u.Attached, u.Inline
		h.save = func(h holder) { u.Attached, u.Inline = h.attached, h.inline; tx.Users.Put(u.Name, u) }
		return h, err
	case "group":
		g, err := group(tx, name)
		h.attached, h.inline = g.Attached, g.Inline
		h.save = func(h holder) { g.Attached, g.Inline = h.attached, h.inline; tx.Groups.Put(g.Name, g) }
		return h, err
	}
	r, err := role(tx, name)
	h.attached, h.inline = r.Attached, r.Inline
	h.save = func(h holder) { r.Attached, r.Inline = h.attached, h.inline; tx.Roles.Put(r.Name, r) }
	return h, err
}

// holderNamed finds the user, group or role of an ARN.
func holderNamed(tx *identity.Tx, holder string) (kind, name string, err error) {
	resource, own := strings.CutPrefix(holder, "arn:aws:iam::"+tx.Account.ID+":")
	kind, rest, _ := strings.Cut(resource, "/")
	at := strings.LastIndexByte(rest, '/') + 1
	path, name := "/"+rest[:at], rest[at:]
	found := false
	switch kind {
	case "user":
		u, ok := tx.Users.Get(name)
		found = ok && u.Path == path
	case "group":
		g, ok := tx.Groups.Get(name)
		found = ok && g.Path == path
	case "role":
		r, ok := tx.Roles.Get(name)
		found = ok && r.Path == path
	default:
		own = false
	}
	switch {
	case !own:
		return "", "", iam.InvalidInputException.Errorf("Invalid Entity Arn: %s does not clearly define entity type and name.", holder)
	case !found:
		return "", "", iam.NoSuchEntityException.Errorf("The %s with name %s cannot be found.", kind, name)
	}
	return kind, name, nil
}

func (a *api) change(ctx context.Context, kind, name string, change func(*identity.Tx, *holder) error) error {
	return malformed(a.d.Write(ctx, func(tx *identity.Tx) error {
		h, err := holderOf(ctx, tx, kind, name)
		if err != nil {
			return err
		}
		if err := change(tx, &h); err != nil {
			return err
		}
		h.save(h)
		return nil
	}))
}

func (a *api) attach(ctx context.Context, kind, name, arn string) error {
	return a.change(ctx, kind, name, func(tx *identity.Tx, h *holder) error {
		if err := attachable(tx, arn); err != nil || slices.Contains(h.attached, arn) {
			return err
		}
		if len(h.attached) >= maxAttached {
			return iam.LimitExceededException.Errorf("Cannot exceed quota for PoliciesPer%s: %d", strings.ToUpper(kind[:1])+kind[1:], maxAttached)
		}
		h.attached = append(slices.Clone(h.attached), arn)
		return nil
	})
}

func (a *api) detach(ctx context.Context, kind, name, arn string) error {
	return a.change(ctx, kind, name, func(_ *identity.Tx, h *holder) error {
		if !slices.Contains(h.attached, arn) {
			return iam.NoSuchEntityException.Errorf("Policy %s was not found.", arn)
		}
		h.attached = slices.DeleteFunc(slices.Clone(h.attached), func(a string) bool { return a == arn })
		return nil
	})
}

func (a *api) putInline(ctx context.Context, kind, name, policyName, document string) error {
	return a.change(ctx, kind, name, func(_ *identity.Tx, h *holder) error {
		h.inline = maps.Clone(h.inline)
		if h.inline == nil {
			h.inline = map[string]string{}
		}
		h.inline[policyName] = document
		size := 0
		for _, text := range h.inline {
			size += policy.Size(text)
		}
		if limit := inlineLimits[kind]; size > limit {
			return iam.LimitExceededException.Errorf("Maximum policy size of %d bytes exceeded for %s %s", limit, kind, name)
		}
		return nil
	})
}

func (a *api) deleteInline(ctx context.Context, kind, name, policyName string) error {
	return a.change(ctx, kind, name, func(_ *identity.Tx, h *holder) error {
		if _, ok := h.inline[policyName]; !ok {
			return noInline(kind, policyName)
		}
		h.inline = maps.Clone(h.inline)
		delete(h.inline, policyName)
		return nil
	})
}

func noInline(kind, name string) error {
	return iam.NoSuchEntityException.Errorf("The %s policy with name %s cannot be found.", kind, name)
}

func (a *api) inline(ctx context.Context, kind, name, policyName string) (document string, err error) {
	err = a.d.Read(func(tx *identity.Tx) error {
		h, err := holderOf(ctx, tx, kind, name)
		if err != nil {
			return err
		}
		text, ok := h.inline[policyName]
		if !ok {
			return noInline(kind, policyName)
		}
		document = encoded(text)
		return nil
	})
	return document, err
}

func (a *api) inlineNames(ctx context.Context, kind, name string, marker *string, maxItems *int32) (names []string, next string, more *bool, err error) {
	err = a.d.Read(func(tx *identity.Tx) error {
		h, err := holderOf(ctx, tx, kind, name)
		if err != nil {
			return err
		}
		names, next, more, err = page(slices.Sorted(maps.Keys(h.inline)), marker, maxItems)
		return err
	})
	return names, next, more, err
}

func (a *api) attachedTo(ctx context.Context, kind, name string, prefix, marker *string, maxItems *int32) (list []iam.AttachedPolicy, next string, more *bool, err error) {
	err = a.d.Read(func(tx *identity.Tx) error {
		h, err := holderOf(ctx, tx, kind, name)
		if err != nil {
			return err
		}
		list, next, more, err = page(attachedList(tx, h.attached, prefix), marker, maxItems)
		return err
	})
	return list, next, more, err
}

func attachedList(tx *identity.Tx, arns []string, prefix *string) []iam.AttachedPolicy {
	out := []iam.AttachedPolicy{}
	for _, arn := range arns {
		if p, _ := tx.Policies.Get(arn); under(p.Path, prefix) {
			out = append(out, iam.AttachedPolicy{PolicyArn: arn, PolicyName: p.Name})
		}
	}
	return out
}

func inlineList(inline map[string]string) []iam.PolicyDetail {
	out := []iam.PolicyDetail{}
	for _, name := range slices.Sorted(maps.Keys(inline)) {
		out = append(out, iam.PolicyDetail{PolicyName: name, PolicyDocument: encoded(inline[name])})
	}
	return out
}

func (a *api) registerHolders(s *awsapi.Server) {
	awsapi.Handle(s, iam.AttachUserPolicy, func(ctx context.Context, in *iam.AttachUserPolicyRequest) (*iam.AttachUserPolicyResponse, error) {
		return nil, a.attach(ctx, "user", in.UserName, in.PolicyArn)
	})
	awsapi.Handle(s, iam.DetachUserPolicy, func(ctx context.Context, in *iam.DetachUserPolicyRequest) (*iam.DetachUserPolicyResponse, error) {
		return nil, a.detach(ctx, "user", in.UserName, in.PolicyArn)
	})
	awsapi.Handle(s, iam.PutUserPolicy, func(ctx context.Context, in *iam.PutUserPolicyRequest) (*iam.PutUserPolicyResponse, error) {
		return nil, a.putInline(ctx, "user", in.UserName, in.PolicyName, in.PolicyDocument)
	})
	awsapi.Handle(s, iam.DeleteUserPolicy, func(ctx context.Context, in *iam.DeleteUserPolicyRequest) (*iam.DeleteUserPolicyResponse, error) {
		return nil, a.deleteInline(ctx, "user", in.UserName, in.PolicyName)
	})
	awsapi.Handle(s, iam.GetUserPolicy, func(ctx context.Context, in *iam.GetUserPolicyRequest) (*iam.GetUserPolicyResponse, error) {
		document, err := a.inline(ctx, "user", in.UserName, in.PolicyName)
		return &iam.GetUserPolicyResponse{UserName: in.UserName, PolicyName: in.PolicyName, PolicyDocument: document}, err
	})
	awsapi.Handle(s, iam.ListUserPolicies, func(ctx context.Context, in *iam.ListUserPoliciesRequest) (out *iam.ListUserPoliciesResponse, err error) {
		out = new(iam.ListUserPoliciesResponse)
		out.PolicyNames, out.Marker, out.IsTruncated, err = a.inlineNames(ctx, "user", in.UserName, in.Marker, in.MaxItems)
		return out, err
	})
	awsapi.Handle(s, iam.ListAttachedUserPolicies, func(ctx context.Context, in *iam.ListAttachedUserPoliciesRequest) (out *iam.ListAttachedUserPoliciesResponse, err error) {
		out = new(iam.ListAttachedUserPoliciesResponse)
		out.AttachedPolicies, out.Marker, out.IsTruncated, err = a.attachedTo(ctx, "user", in.UserName, in.PathPrefix, in.Marker, in.MaxItems)
		return out, err
	})
	awsapi.Handle(s, iam.AttachGroupPolicy, func(ctx context.Context, in *iam.AttachGroupPolicyRequest) (*iam.AttachGroupPolicyResponse, error) {
		return nil, a.attach(ctx, "group", in.GroupName, in.PolicyArn)
	})
	awsapi.Handle(s, iam.DetachGroupPolicy, func(ctx context.Context, in *iam.DetachGroupPolicyRequest) (*iam.DetachGroupPolicyResponse, error) {
		return nil, a.detach(ctx, "group", in.GroupName, in.PolicyArn)
	})
	awsapi.Handle(s, iam.PutGroupPolicy, func(ctx context.Context, in *iam.PutGroupPolicyRequest) (*iam.PutGroupPolicyResponse, error) {
		return nil, a.putInline(ctx, "group", in.GroupName, in.PolicyName, in.PolicyDocument)
	})
	awsapi.Handle(s, iam.DeleteGroupPolicy, func(ctx context.Context, in *iam.DeleteGroupPolicyRequest) (*iam.DeleteGroupPolicyResponse, error) {
		return nil, a.deleteInline(ctx, "group", in.GroupName, in.PolicyName)
	})
	awsapi.Handle(s, iam.GetGroupPolicy, func(ctx context.Context, in *iam.GetGroupPolicyRequest) (*iam.GetGroupPolicyResponse, error) {
		document, err := a.inline(ctx, "group", in.GroupName, in.PolicyName)
		return &iam.GetGroupPolicyResponse{GroupName: in.GroupName, PolicyName: in.PolicyName, PolicyDocument: document}, err
	})
	awsapi.Handle(s, iam.ListGroupPolicies, func(ctx context.Context, in *iam.ListGroupPoliciesRequest) (out *iam.ListGroupPoliciesResponse, err error) {
		out = new(iam.ListGroupPoliciesResponse)
		out.PolicyNames, out.Marker, out.IsTruncated, err = a.inlineNames(ctx, "group", in.GroupName, in.Marker, in.MaxItems)
		return out, err
	})
	awsapi.Handle(s, iam.ListAttachedGroupPolicies, func(ctx context.Context, in *iam.ListAttachedGroupPoliciesRequest) (out *iam.ListAttachedGroupPoliciesResponse, err error) {
		out = new(iam.ListAttachedGroupPoliciesResponse)
		out.AttachedPolicies, out.Marker, out.IsTruncated, err = a.attachedTo(ctx, "group", in.GroupName, in.PathPrefix, in.Marker, in.MaxItems)
		return out, err
	})
	awsapi.Handle(s, iam.AttachRolePolicy, func(ctx context.Context, in *iam.AttachRolePolicyRequest) (*iam.AttachRolePolicyResponse, error) {
		return nil, a.attach(ctx, "role", in.RoleName, in.PolicyArn)
	})
	awsapi.Handle(s, iam.DetachRolePolicy, func(ctx context.Context, in *iam.DetachRolePolicyRequest) (*iam.DetachRolePolicyResponse, error) {
		return nil, a.detach(ctx, "role", in.RoleName, in.PolicyArn)
	})
	awsapi.Handle(s, iam.PutRolePolicy, func(ctx context.Context, in *iam.PutRolePolicyRequest) (*iam.PutRolePolicyResponse, error) {
		return nil, a.putInline(ctx, "role", in.RoleName, in.PolicyName, in.PolicyDocument)
	})
	awsapi.Handle(s, iam.DeleteRolePolicy, func(ctx context.Context, in *iam.DeleteRolePolicyRequest) (*iam.DeleteRolePolicyResponse, error) {
		return nil, a.deleteInline(ctx, "role", in.RoleName, in.PolicyName)
	})
	awsapi.Handle(s, iam.GetRolePolicy, func(ctx context.Context, in *iam.GetRolePolicyRequest) (*iam.GetRolePolicyResponse, error) {
		document, err := a.inline(ctx, "role", in.RoleName, in.PolicyName)
		return &iam.GetRolePolicyResponse{RoleName: in.RoleName, PolicyName: in.PolicyName, PolicyDocument: document}, err
	})
	awsapi.Handle(s, iam.ListRolePolicies, func(ctx context.Context, in *iam.ListRolePoliciesRequest) (out *iam.ListRolePoliciesResponse, err error) {
		out = new(iam.ListRolePoliciesResponse)
		out.PolicyNames, out.Marker, out.IsTruncated, err = a.inlineNames(ctx, "role", in.RoleName, in.Marker, in.MaxItems)
		return out, err
	})
	awsapi.Handle(s, iam.ListAttachedRolePolicies, func(ctx context.Context, in *iam.ListAttachedRolePoliciesRequest) (out *iam.ListAttachedRolePoliciesResponse, err error) {
		out = new(iam.ListAttachedRolePoliciesResponse)
		out.AttachedPolicies, out.Marker, out.IsTruncated, err = a.attachedTo(ctx, "role", in.RoleName, in.PathPrefix, in.Marker, in.MaxItems)
		return out, err
	})
}
