package api

import (
	"context"
	"errors"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
)

func (a *api) registerUsers(s *awsapi.Server) {
	awsapi.Handle(s, iam.CreateUser, a.createUser)
	awsapi.Handle(s, iam.GetUser, a.getUser)
	awsapi.Handle(s, iam.ListUsers, a.listUsers)
	awsapi.Handle(s, iam.UpdateUser, a.updateUser)
	awsapi.Handle(s, iam.DeleteUser, a.deleteUser)
	awsapi.Handle(s, iam.TagUser, a.tagUser)
	awsapi.Handle(s, iam.UntagUser, a.untagUser)
	awsapi.Handle(s, iam.ListUserTags, a.listUserTags)
	awsapi.Handle(s, iam.PutUserPermissionsBoundary, a.putUserBoundary)
	awsapi.Handle(s, iam.DeleteUserPermissionsBoundary, a.deleteUserBoundary)
}

// user finds a user, the caller itself where no name is given.
func user(ctx context.Context, tx *identity.Tx, name string) (identity.User, error) {
	name = ownName(awsapi.CallerOf(ctx), name)
	if name == "" {
		return identity.User{}, awsapi.Errorf(awsapi.Validation, "Must specify userName when calling with non-User credentials")
	}
	u, ok := tx.Users.Get(name)
	if !ok {
		return u, noUser(name)
	}
	return u, nil
}

func noUser(name string) error {
	return iam.NoSuchEntityException.Errorf("The user with name %s cannot be found.", name)
}

func userShape(tx *identity.Tx, u identity.User) iam.User {
	out := iam.User{UserName: u.Name, UserId: u.ID, Path: u.Path, Arn: arn(tx, "user", u.Path, u.Name),
		CreateDate: awsapi.Timestamp{Time: u.Created}, Tags: tagList(u.Tags), PermissionsBoundary: boundaryShape(u.Boundary)}
	if !u.PasswordUsed.IsZero() {
		out.PasswordLastUsed = &awsapi.Timestamp{Time: u.PasswordUsed}
	}
	return out
}

func boundaryShape(arn string) *iam.AttachedPermissionsBoundary {
	if arn == "" {
		return nil
	}
	return &iam.AttachedPermissionsBoundary{PermissionsBoundaryArn: arn, PermissionsBoundaryType: iam.PermissionsBoundaryAttachmentTypePermissionsBoundaryPolicy}
}

func (a *api) createUser(ctx context.Context, in *iam.CreateUserRequest) (out *iam.CreateUserResponse, err error) {
	if err := a.mayTag(ctx, "iam:TagUser", "user", orRoot(in.Path), in.UserName, in.Tags); err != nil {
		return nil, err
	}
	err = a.d.Write(ctx, func(tx *identity.Tx) error {
		if tx.Users.Taken(in.UserName) {
			return iam.EntityAlreadyExistsException.Errorf("User with name %s already exists.", in.UserName)
		}
		u := identity.User{Name: in.UserName, ID: identity.NewID("AIDA"), Path: orRoot(in.Path), Created: a.d.Now(), Boundary: awsapi.Value(in.PermissionsBoundary)}
		var err error
		if u.Tags, err = tagged(nil, in.Tags); err != nil {
			return err
		}
		if err := attachable(tx, u.Boundary); err != nil {
			return err
		}
		tx.Users.Put(u.Name, u)
		out = &iam.CreateUserResponse{User: new(userShape(tx, u))}
		return nil
	})
	return out, malformed(err)
}

func (a *api) getUser(ctx context.Context, in *iam.GetUserRequest) (out *iam.GetUserResponse, err error) {
	err = a.d.Read(func(tx *identity.Tx) error {
		u, err := user(ctx, tx, awsapi.Value(in.UserName))
		out = &iam.GetUserResponse{User: new(userShape(tx, u))}
		return err
	})
	return out, err
}

func (a *api) listUsers(_ context.Context, in *iam.ListUsersRequest) (*iam.ListUsersResponse, error) {
	out := new(iam.ListUsersResponse)
	return out, a.d.Read(func(tx *identity.Tx) (err error) {
		var all []iam.User
		for _, u := range tx.Users.All() {
			if under(u.Path, in.PathPrefix) {
				shape := userShape(tx, u)
				shape.Tags, shape.PermissionsBoundary = nil, nil // so does IAM
				all = append(all, shape)
			}
		}
		out.Users, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) updateUser(ctx context.Context, in *iam.UpdateUserRequest) (*iam.UpdateUserResponse, error) {
	return nil, a.rename(ctx, "iam:UpdateUser", func(tx *identity.Tx) (string, error) {
		u, err := user(ctx, tx, in.UserName)
		if err != nil {
			return "", err
		}
		old := u.Name
		u.Name, u.Path = moved(u.Name, in.NewUserName), moved(u.Path, in.NewPath)
		target := arn(tx, "user", u.Path, u.Name)
		tx.Users.Delete(old)
		if tx.Users.Taken(u.Name) {
			return target, iam.EntityAlreadyExistsException.Errorf("User with name %s already exists.", u.Name)
		}
		for _, k := range keysOf(tx, old) {
			k.User = u.Name
			tx.Keys.Put(k.ID, k)
		}
		tx.Users.Put(u.Name, u)
		return target, nil
	})
}

// moved is a name or path after a change that need not change it.
func moved(from string, to *string) string {
	if to == nil {
		return from
	}
	return *to
}

// rename changes what something is called, if the caller has the right to what
// it is called then, too. Move does that and returns the new ARN, also with an
// error that only those may see who have the right. What it does depends on what
// is there: the right has to be to the very change that is made.
func (a *api) rename(ctx context.Context, action string, move func(*identity.Tx) (string, error)) error {
	var allowed string
	for {
		var target string
		err := a.d.Write(ctx, func(tx *identity.Tx) (err error) {
			if target, err = move(tx); target != "" && target != allowed {
				err = errNotAllowedYet
			}
			return err
		})
		if !errors.Is(err, errNotAllowedYet) {
			return err
		}
		if err := awsapi.Allowed(ctx, action, target, nil); err != nil {
			return err
		}
		allowed = target
	}
}

var errNotAllowedYet = errors.New("nobody has asked whether this is allowed")

func (a *api) deleteUser(ctx context.Context, in *iam.DeleteUserRequest) (*iam.DeleteUserResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		u, err := user(ctx, tx, in.UserName)
		if err != nil {
			return err
		}
		switch {
		case len(u.Attached) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must detach all policies first.")
		case len(u.Inline) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must delete policies first.")
		case len(keysOf(tx, u.Name)) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must delete access keys first.")
		case len(u.Groups) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must remove users from group first.")
		case u.Login != nil:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must delete login profile first.")
		}
		tx.Users.Delete(u.Name)
		return nil
	})
}

// changeUser changes one user.
func (a *api) changeUser(ctx context.Context, name string, change func(*identity.Tx, *identity.User) error) error {
	return malformed(a.d.Write(ctx, func(tx *identity.Tx) error {
		u, err := user(ctx, tx, name)
		if err != nil {
			return err
		}
		if err := change(tx, &u); err != nil {
			return err
		}
		tx.Users.Put(u.Name, u)
		return nil
	}))
}

func (a *api) tagUser(ctx context.Context, in *iam.TagUserRequest) (*iam.TagUserResponse, error) {
	return nil, a.changeUser(ctx, in.UserName, func(_ *identity.Tx, u *identity.User) (err error) {
		u.Tags, err = tagged(u.Tags, in.Tags)
		return err
	})
}

func (a *api) untagUser(ctx context.Context, in *iam.UntagUserRequest) (*iam.UntagUserResponse, error) {
	return nil, a.changeUser(ctx, in.UserName, func(_ *identity.Tx, u *identity.User) error {
		u.Tags = untagged(u.Tags, in.TagKeys)
		return nil
	})
}

func (a *api) listUserTags(ctx context.Context, in *iam.ListUserTagsRequest) (*iam.ListUserTagsResponse, error) {
	out := new(iam.ListUserTagsResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		u, err := user(ctx, tx, in.UserName)
		if err != nil {
			return err
		}
		out.Tags, out.Marker, out.IsTruncated, err = page(tagList(u.Tags), in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) putUserBoundary(ctx context.Context, in *iam.PutUserPermissionsBoundaryRequest) (*iam.PutUserPermissionsBoundaryResponse, error) {
	return nil, a.changeUser(ctx, in.UserName, func(tx *identity.Tx, u *identity.User) error {
		u.Boundary = in.PermissionsBoundary
		return attachable(tx, u.Boundary)
	})
}

func (a *api) deleteUserBoundary(ctx context.Context, in *iam.DeleteUserPermissionsBoundaryRequest) (*iam.DeleteUserPermissionsBoundaryResponse, error) {
	return nil, a.changeUser(ctx, in.UserName, func(_ *identity.Tx, u *identity.User) error {
		u.Boundary = ""
		return nil
	})
}
