package api

import (
	"context"
	"slices"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
)

// maxGroups is how many groups a user may be in.
const maxGroups = 10

func (a *api) registerGroups(s *awsapi.Server) {
	awsapi.Handle(s, iam.CreateGroup, a.createGroup)
	awsapi.Handle(s, iam.GetGroup, a.getGroup)
	awsapi.Handle(s, iam.ListGroups, a.listGroups)
	awsapi.Handle(s, iam.UpdateGroup, a.updateGroup)
	awsapi.Handle(s, iam.DeleteGroup, a.deleteGroup)
	awsapi.Handle(s, iam.AddUserToGroup, a.addUserToGroup)
	awsapi.Handle(s, iam.RemoveUserFromGroup, a.removeUserFromGroup)
	awsapi.Handle(s, iam.ListGroupsForUser, a.listGroupsForUser)
}

func group(tx *identity.Tx, name string) (identity.Group, error) {
	g, ok := tx.Groups.Get(name)
	if !ok {
		return g, iam.NoSuchEntityException.Errorf("The group with name %s cannot be found.", name)
	}
	return g, nil
}

func groupShape(tx *identity.Tx, g identity.Group) iam.Group {
	return iam.Group{GroupName: g.Name, GroupId: g.ID, Path: g.Path, Arn: arn(tx, "group", g.Path, g.Name), CreateDate: awsapi.Timestamp{Time: g.Created}}
}

// members lists who is in a group.
func members(tx *identity.Tx, name string) (out []identity.User) {
	for _, u := range tx.Users.All() {
		if slices.Contains(u.Groups, name) {
			out = append(out, u)
		}
	}
	return out
}

func (a *api) createGroup(ctx context.Context, in *iam.CreateGroupRequest) (out *iam.CreateGroupResponse, err error) {
	err = a.d.Write(ctx, func(tx *identity.Tx) error {
		if tx.Groups.Taken(in.GroupName) {
			return iam.EntityAlreadyExistsException.Errorf("Group with name %s already exists.", in.GroupName)
		}
		g := identity.Group{Name: in.GroupName, ID: identity.NewID("AGPA"), Path: orRoot(in.Path), Created: a.d.Now()}
		tx.Groups.Put(g.Name, g)
		out = &iam.CreateGroupResponse{Group: new(groupShape(tx, g))}
		return nil
	})
	return out, err
}

func (a *api) getGroup(_ context.Context, in *iam.GetGroupRequest) (*iam.GetGroupResponse, error) {
	out := new(iam.GetGroupResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		g, err := group(tx, in.GroupName)
		if err != nil {
			return err
		}
		var users []iam.User
		for _, u := range members(tx, g.Name) {
			users = append(users, userShape(tx, u))
		}
		out.Group = new(groupShape(tx, g))
		out.Users, out.Marker, out.IsTruncated, err = page(users, in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) listGroups(_ context.Context, in *iam.ListGroupsRequest) (*iam.ListGroupsResponse, error) {
	out := new(iam.ListGroupsResponse)
	return out, a.d.Read(func(tx *identity.Tx) (err error) {
		var all []iam.Group
		for _, g := range tx.Groups.All() {
			if under(g.Path, in.PathPrefix) {
				all = append(all, groupShape(tx, g))
			}
		}
		out.Groups, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}

func (a *api) updateGroup(ctx context.Context, in *iam.UpdateGroupRequest) (*iam.UpdateGroupResponse, error) {
	return nil, a.rename(ctx, "iam:UpdateGroup", func(tx *identity.Tx) (string, error) {
		g, err := group(tx, in.GroupName)
		if err != nil {
			return "", err
		}
		old := g.Name
		g.Name, g.Path = moved(g.Name, in.NewGroupName), moved(g.Path, in.NewPath)
		target := arn(tx, "group", g.Path, g.Name)
		tx.Groups.Delete(old)
		if tx.Groups.Taken(g.Name) {
			return target, iam.EntityAlreadyExistsException.Errorf("Group with name %s already exists.", g.Name)
		}
		for _, u := range members(tx, old) {
			u.Groups = slices.Clone(u.Groups)
			u.Groups[slices.Index(u.Groups, old)] = g.Name
			tx.Users.Put(u.Name, u)
		}
		tx.Groups.Put(g.Name, g)
		return target, nil
	})
}

func (a *api) deleteGroup(ctx context.Context, in *iam.DeleteGroupRequest) (*iam.DeleteGroupResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		g, err := group(tx, in.GroupName)
		switch {
		case err != nil:
			return err
		case len(g.Attached) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must detach all policies first.")
		case len(g.Inline) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must delete policies first.")
		case len(members(tx, g.Name)) > 0:
			return iam.DeleteConflictException.Errorf("Cannot delete entity, must remove users from group first.")
		}
		tx.Groups.Delete(g.Name)
		return nil
	})
}

func (a *api) addUserToGroup(ctx context.Context, in *iam.AddUserToGroupRequest) (*iam.AddUserToGroupResponse, error) {
	return nil, a.changeUser(ctx, in.UserName, func(tx *identity.Tx, u *identity.User) error {
		_, err := group(tx, in.GroupName)
		switch {
		case err != nil:
			return err
		case slices.Contains(u.Groups, in.GroupName):
			return nil
		case len(u.Groups) >= maxGroups:
			return iam.LimitExceededException.Errorf("Cannot exceed quota for GroupsPerUser: %d", maxGroups)
		}
		u.Groups = append(slices.Clone(u.Groups), in.GroupName)
		slices.Sort(u.Groups)
		return nil
	})
}

func (a *api) removeUserFromGroup(ctx context.Context, in *iam.RemoveUserFromGroupRequest) (*iam.RemoveUserFromGroupResponse, error) {
	return nil, a.changeUser(ctx, in.UserName, func(tx *identity.Tx, u *identity.User) error {
		u.Groups = slices.DeleteFunc(slices.Clone(u.Groups), func(name string) bool { return name == in.GroupName })
		_, err := group(tx, in.GroupName)
		return err
	})
}

func (a *api) listGroupsForUser(ctx context.Context, in *iam.ListGroupsForUserRequest) (*iam.ListGroupsForUserResponse, error) {
	out := new(iam.ListGroupsForUserResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		u, err := user(ctx, tx, in.UserName)
		if err != nil {
			return err
		}
		var all []iam.Group
		for _, name := range u.Groups {
			g, _ := tx.Groups.Get(name)
			all = append(all, groupShape(tx, g))
		}
		out.Groups, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}
