package api

import (
	"context"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
	"rehost/identity/policy"
)

func (a *api) registerProfiles(s *awsapi.Server) {
	awsapi.Handle(s, iam.CreateInstanceProfile, a.createProfile)
	awsapi.Handle(s, iam.GetInstanceProfile, a.getProfile)
	awsapi.Handle(s, iam.ListInstanceProfiles, a.listProfiles)
	awsapi.Handle(s, iam.ListInstanceProfilesForRole, a.listProfilesForRole)
	awsapi.Handle(s, iam.DeleteInstanceProfile, a.deleteProfile)
	awsapi.Handle(s, iam.AddRoleToInstanceProfile, a.addRole)
	awsapi.Handle(s, iam.RemoveRoleFromInstanceProfile, a.removeRole)
	awsapi.Handle(s, iam.TagInstanceProfile, a.tagProfile)
	awsapi.Handle(s, iam.UntagInstanceProfile, a.untagProfile)
	awsapi.Handle(s, iam.ListInstanceProfileTags, a.listProfileTags)
}

func profile(tx *identity.Tx, name string) (identity.InstanceProfile, error) {
	p, ok := tx.Profiles.Get(name)
	if !ok {
		return p, iam.NoSuchEntityException.Errorf("Instance Profile %s cannot be found.", name)
	}
	return p, nil
}

// profilesOf lists the instance profiles with a role.
func profilesOf(tx *identity.Tx, role string) (out []iam.InstanceProfile) {
	for _, p := range tx.Profiles.All() {
		if p.Role == role {
			out = append(out, profileShape(tx, p))
		}
	}
	return out
}

func profileShape(tx *identity.Tx, p identity.InstanceProfile) iam.InstanceProfile {
	out := iam.InstanceProfile{InstanceProfileName: p.Name, InstanceProfileId: p.ID, Path: p.Path, Arn: arn(tx, "instance-profile", p.Path, p.Name),
		CreateDate: awsapi.Timestamp{Time: p.Created}, Tags: tagList(p.Tags), Roles: []iam.Role{}}
	if r, ok := tx.Roles.Get(p.Role); ok {
		out.Roles = append(out.Roles, roleShape(tx, r))
	}
	return out
}

func (a *api) createProfile(ctx context.Context, in *iam.CreateInstanceProfileRequest) (out *iam.CreateInstanceProfileResponse, err error) {
	if err := a.mayTag(ctx, "iam:TagInstanceProfile", "instance-profile", orRoot(in.Path), in.InstanceProfileName, in.Tags); err != nil {
		return nil, err
	}
	err = a.d.Write(ctx, func(tx *identity.Tx) (err error) {
		if tx.Profiles.Taken(in.InstanceProfileName) {
			return iam.EntityAlreadyExistsException.Errorf("Instance Profile %s already exists.", in.InstanceProfileName)
		}
		p := identity.InstanceProfile{Name: in.InstanceProfileName, ID: identity.NewID("AIPA"), Path: orRoot(in.Path), Created: a.d.Now()}
		if p.Tags, err = tagged(nil, in.Tags); err != nil {
			return err
		}
		tx.Profiles.Put(p.Name, p)
		out = &iam.CreateInstanceProfileResponse{InstanceProfile: new(profileShape(tx, p))}
		return nil
	})
	return out, err
}

func (a *api) getProfile(_ context.Context, in *iam.GetInstanceProfileRequest) (*iam.GetInstanceProfileResponse, error) {
	out := new(iam.GetInstanceProfileResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		p, err := profile(tx, in.InstanceProfileName)
		out.InstanceProfile = new(profileShape(tx, p))
		return err
	})
}

func (a *api) listProfiles(_ context.Context, in *iam.ListInstanceProfilesRequest) (*iam.ListInstanceProfilesResponse, error) {
	out := new(iam.ListInstanceProfilesResponse)
	return out, a.d.Read(func(tx *identity.Tx) (err error) {
		var all []iam.InstanceProfile
		for _, p := range tx.Profiles.All() {
			if under(p.Path, in.PathPrefix) {
				shape := profileShape(tx, p)
				shape.Tags = nil // so does IAM
				all = append(all, shape)
			}
		}
		out.InstanceProfiles, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) listProfilesForRole(_ context.Context, in *iam.ListInstanceProfilesForRoleRequest) (*iam.ListInstanceProfilesForRoleResponse, error) {
	out := new(iam.ListInstanceProfilesForRoleResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		r, err := role(tx, in.RoleName)
		if err != nil {
			return err
		}
		out.InstanceProfiles, out.Marker, out.IsTruncated, err = page(profilesOf(tx, r.Name), in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) deleteProfile(ctx context.Context, in *iam.DeleteInstanceProfileRequest) (*iam.DeleteInstanceProfileResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		p, err := profile(tx, in.InstanceProfileName)
		if err == nil && p.Role != "" {
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must remove roles from instance profile first.")
		}
		tx.Profiles.Delete(p.Name)
		return err
	})
}

// addRole asks for the right to pass the role on, too: whoever starts an
// instance with the profile gets what the role may do.
func (a *api) addRole(ctx context.Context, in *iam.AddRoleToInstanceProfileRequest) (*iam.AddRoleToInstanceProfileResponse, error) {
	var passed string
	err := a.d.Read(func(tx *identity.Tx) error {
		r, err := role(tx, in.RoleName)
		passed = arn(tx, "role", r.Path, r.Name)
		return err
	})
	if err != nil {
		return nil, err
	}
	keys := policy.Context{}
	keys.Set("iam:PassedToService", "ec2.amazonaws.com")
	if err := awsapi.Allowed(ctx, "iam:PassRole", passed, keys); err != nil {
		return nil, err
	}
	return nil, a.changeProfile(ctx, in.InstanceProfileName, func(tx *identity.Tx, p *identity.InstanceProfile) error {
		if _, err := role(tx, in.RoleName); err != nil {
			return err
		}
		if p.Role != "" {
			return iam.LimitExceededException.Errorf("Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1")
		}
		p.Role = in.RoleName
		return nil
	})
}

// changeProfile changes one instance profile.
func (a *api) changeProfile(ctx context.Context, name string, change func(*identity.Tx, *identity.InstanceProfile) error) error {
	return a.d.Write(ctx, func(tx *identity.Tx) error {
		p, err := profile(tx, name)
		if err != nil {
			return err
		}
		if err := change(tx, &p); err != nil {
			return err
		}
		tx.Profiles.Put(p.Name, p)
		return nil
	})
}

func (a *api) removeRole(ctx context.Context, in *iam.RemoveRoleFromInstanceProfileRequest) (*iam.RemoveRoleFromInstanceProfileResponse, error) {
	return nil, a.changeProfile(ctx, in.InstanceProfileName, func(_ *identity.Tx, p *identity.InstanceProfile) error {
		if p.Role != in.RoleName {
			return iam.NoSuchEntityException.Errorf("The role with name %s cannot be found.", in.RoleName)
		}
		p.Role = ""
		return nil
	})
}

func (a *api) tagProfile(ctx context.Context, in *iam.TagInstanceProfileRequest) (*iam.TagInstanceProfileResponse, error) {
	return nil, a.changeProfile(ctx, in.InstanceProfileName, func(_ *identity.Tx, p *identity.InstanceProfile) (err error) {
		p.Tags, err = tagged(p.Tags, in.Tags)
		return err
	})
}

func (a *api) untagProfile(ctx context.Context, in *iam.UntagInstanceProfileRequest) (*iam.UntagInstanceProfileResponse, error) {
	return nil, a.changeProfile(ctx, in.InstanceProfileName, func(_ *identity.Tx, p *identity.InstanceProfile) error {
		p.Tags = untagged(p.Tags, in.TagKeys)
		return nil
	})
}

func (a *api) listProfileTags(_ context.Context, in *iam.ListInstanceProfileTagsRequest) (*iam.ListInstanceProfileTagsResponse, error) {
	out := new(iam.ListInstanceProfileTagsResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		p, err := profile(tx, in.InstanceProfileName)
		if err != nil {
			return err
		}
		out.Tags, out.Marker, out.IsTruncated, err = page(tagList(p.Tags), in.Marker, in.MaxItems)
		return err
	})
}
