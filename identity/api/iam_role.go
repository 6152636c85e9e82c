package api

import (
	"context"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
	"rehost/identity/policy"
)

func (a *api) registerRoles(s *awsapi.Server) {
	awsapi.Handle(s, iam.CreateRole, a.createRole)
	awsapi.Handle(s, iam.GetRole, a.getRole)
	awsapi.Handle(s, iam.ListRoles, a.listRoles)
	awsapi.Handle(s, iam.UpdateRole, a.updateRole)
	awsapi.Handle(s, iam.UpdateRoleDescription, a.updateRoleDescription)
	awsapi.Handle(s, iam.UpdateAssumeRolePolicy, a.updateTrust)
	awsapi.Handle(s, iam.DeleteRole, a.deleteRole)
	awsapi.Handle(s, iam.TagRole, a.tagRole)
	awsapi.Handle(s, iam.UntagRole, a.untagRole)
	awsapi.Handle(s, iam.ListRoleTags, a.listRoleTags)
	awsapi.Handle(s, iam.PutRolePermissionsBoundary, a.putRoleBoundary)
	awsapi.Handle(s, iam.DeleteRolePermissionsBoundary, a.deleteRoleBoundary)
}

func role(tx *identity.Tx, name string) (identity.Role, error) {
	r, ok := tx.Roles.Get(name)
	if !ok {
		return r, iam.NoSuchEntityException.Errorf("The role with name %s cannot be found.", name)
	}
	return r, nil
}

func roleShape(tx *identity.Tx, r identity.Role) iam.Role {
	return iam.Role{RoleName: r.Name, RoleId: r.ID, Path: r.Path, Arn: arn(tx, "role", r.Path, r.Name), Description: r.Description,
		CreateDate: awsapi.Timestamp{Time: r.Created}, AssumeRolePolicyDocument: encoded(tx.Trust(r)), MaxSessionDuration: new(int32(r.MaxDuration / time.Second)),
		Tags: tagList(r.Tags), PermissionsBoundary: boundaryShape(r.Boundary)}
}

// trust checks the size of a trust policy; what it says is checked when it is written.
func trust(document string) error {
	if policy.Size(document) > policy.MaxTrust {
		return iam.LimitExceededException.Errorf("Cannot exceed quota for ACLSizePerRole: %d", policy.MaxTrust)
	}
	return nil
}

func (a *api) createRole(ctx context.Context, in *iam.CreateRoleRequest) (out *iam.CreateRoleResponse, err error) {
	if err := a.mayTag(ctx, "iam:TagRole", "role", orRoot(in.Path), in.RoleName, in.Tags); err != nil {
		return nil, err
	}
	err = a.d.Write(ctx, func(tx *identity.Tx) (err error) {
		if tx.Roles.Taken(in.RoleName) {
			return iam.EntityAlreadyExistsException.Errorf("Role with name %s already exists.", in.RoleName)
		}
		r := identity.Role{Name: in.RoleName, ID: identity.NewID("AROA"), Path: orRoot(in.Path), Created: a.d.Now(), Description: awsapi.Value(in.Description),
			Trust: in.AssumeRolePolicyDocument, MaxDuration: time.Hour, Boundary: awsapi.Value(in.PermissionsBoundary)}
		if in.MaxSessionDuration != nil {
			r.MaxDuration = time.Duration(*in.MaxSessionDuration) * time.Second
		}
		if r.Tags, err = tagged(nil, in.Tags); err != nil {
			return err
		}
		if err := attachable(tx, r.Boundary); err != nil {
			return err
		}
		tx.Roles.Put(r.Name, r)
		out = &iam.CreateRoleResponse{Role: new(roleShape(tx, r))}
		return trust(r.Trust)
	})
	return out, malformed(err)
}

func (a *api) getRole(_ context.Context, in *iam.GetRoleRequest) (*iam.GetRoleResponse, error) {
	out := new(iam.GetRoleResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		r, err := role(tx, in.RoleName)
		out.Role = new(roleShape(tx, r))
		return err
	})
}

func (a *api) listRoles(_ context.Context, in *iam.ListRolesRequest) (*iam.ListRolesResponse, error) {
	out := new(iam.ListRolesResponse)
	return out, a.d.Read(func(tx *identity.Tx) (err error) {
		var all []iam.Role
		for _, r := range tx.Roles.All() {
			if under(r.Path, in.PathPrefix) {
				shape := roleShape(tx, r)
				shape.Tags, shape.PermissionsBoundary = nil, nil // so does IAM
				all = append(all, shape)
			}
		}
		out.Roles, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}

// changeRole changes one role and gives it back.
func (a *api) changeRole(ctx context.Context, name string, change func(*identity.Tx, *identity.Role) error) (out *iam.Role, err error) {
	err = a.d.Write(ctx, func(tx *identity.Tx) error {
		r, err := role(tx, name)
		if err != nil {
			return err
		}
		if err := change(tx, &r); err != nil {
			return err
		}
		tx.Roles.Put(r.Name, r)
		out = new(roleShape(tx, r))
		return nil
	})
	return out, malformed(err)
}

func (a *api) updateRole(ctx context.Context, in *iam.UpdateRoleRequest) (*iam.UpdateRoleResponse, error) {
	_, err := a.changeRole(ctx, in.RoleName, func(_ *identity.Tx, r *identity.Role) error {
		if in.Description != nil {
			r.Description = *in.Description
		}
		if in.MaxSessionDuration != nil {
			r.MaxDuration = time.Duration(*in.MaxSessionDuration) * time.Second
		}
		return nil
	})
	return nil, err
}

func (a *api) updateRoleDescription(ctx context.Context, in *iam.UpdateRoleDescriptionRequest) (*iam.UpdateRoleDescriptionResponse, error) {
	r, err := a.changeRole(ctx, in.RoleName, func(_ *identity.Tx, r *identity.Role) error {
		r.Description = in.Description
		return nil
	})
	return &iam.UpdateRoleDescriptionResponse{Role: r}, err
}

func (a *api) updateTrust(ctx context.Context, in *iam.UpdateAssumeRolePolicyRequest) (*iam.UpdateAssumeRolePolicyResponse, error) {
	_, err := a.changeRole(ctx, in.RoleName, func(_ *identity.Tx, r *identity.Role) error {
		r.Trust = in.PolicyDocument
		return trust(r.Trust)
	})
	return nil, err
}

func (a *api) deleteRole(ctx context.Context, in *iam.DeleteRoleRequest) (*iam.DeleteRoleResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		r, err := role(tx, in.RoleName)
		switch {
		case err != nil:
			return err
		case len(r.Attached) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must detach all policies first.")
		case len(r.Inline) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must delete policies first.")
		case len(profilesOf(tx, r.Name)) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must remove roles from instance profile first.")
		}
		tx.Roles.Delete(r.Name)
		return nil
	})
}

func (a *api) tagRole(ctx context.Context, in *iam.TagRoleRequest) (*iam.TagRoleResponse, error) {
	_, err := a.changeRole(ctx, in.RoleName, func(_ *identity.Tx, r *identity.Role) (err error) {
		r.Tags, err = tagged(r.Tags, in.Tags)
		return err
	})
	return nil, err
}

func (a *api) untagRole(ctx context.Context, in *iam.UntagRoleRequest) (*iam.UntagRoleResponse, error) {
	_, err := a.changeRole(ctx, in.RoleName, func(_ *identity.Tx, r *identity.Role) error {
		r.Tags = untagged(r.Tags, in.TagKeys)
		return nil
	})
	return nil, err
}

func (a *api) listRoleTags(_ context.Context, in *iam.ListRoleTagsRequest) (*iam.ListRoleTagsResponse, error) {
	out := new(iam.ListRoleTagsResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		r, err := role(tx, in.RoleName)
		if err != nil {
			return err
		}
		out.Tags, out.Marker, out.IsTruncated, err = page(tagList(r.Tags), in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) putRoleBoundary(ctx context.Context, in *iam.PutRolePermissionsBoundaryRequest) (*iam.PutRolePermissionsBoundaryResponse, error) {
	_, err := a.changeRole(ctx, in.RoleName, func(tx *identity.Tx, r *identity.Role) error {
		r.Boundary = in.PermissionsBoundary
		return attachable(tx, r.Boundary)
	})
	return nil, err
}

func (a *api) deleteRoleBoundary(ctx context.Context, in *iam.DeleteRolePermissionsBoundaryRequest) (*iam.DeleteRolePermissionsBoundaryResponse, error) {
	_, err := a.changeRole(ctx, in.RoleName, func(_ *identity.Tx, r *identity.Role) error {
		r.Boundary = ""
		return nil
	})
	return nil, err
}
