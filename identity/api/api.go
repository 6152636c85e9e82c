// Package api answers the IAM and STS APIs from a Directory.
//
// In come requests that are valid and allowed, out come the records of an
// [identity.Directory] in the shapes of those services. What a call has changed
// is durable and in force when it is answered.
package api

import (
	"errors"
	"net/url"
	"strconv"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
	"rehost/identity/oidc"
	"rehost/identity/policy"
)

// An api is the directory and the functions that answer from it.
type api struct{ d *identity.Directory }

// Register registers the handlers. The server must serve iam and sts. The
// verifier is of web identities.
func Register(s *awsapi.Server, d *identity.Directory, v *oidc.Verifier) {
	(&tokens{d, v}).register(s)
	(&providers{d}).register(s)
	a := &api{d}
	s.Describe(iam.Service, a.describe)
	a.registerUsers(s)
	a.registerGroups(s)
	a.registerRoles(s)
	a.registerKeys(s)
	a.registerLogins(s)
	a.registerPolicies(s)
	a.registerHolders(s)
	a.registerProfiles(s)
	a.registerAccount(s)
	a.registerSimulator(s)
	awsapi.Handle(s, iam.ListPoliciesGrantingServiceAccess, a.listGranting)
}

// arn is an ARN of the account; of a policy it is that of the account's own.
func arn(tx *identity.Tx, kind, path, name string) string {
	return "arn:aws:iam::" + tx.Account.ID + ":" + kind + path + name
}

// describe names what a request is about by its path, which only the directory
// knows, and the boundary of whom it is about.
func (a *api) describe(caller *awsapi.Caller, in any, r awsapi.Resource) (out string, keys policy.Context) {
	keys = policy.Context{}
	_ = a.d.Read(func(tx *identity.Tx) error {
		out = a.resource(tx, caller, in, r, keys)
		return nil
	})
	conditions(in, keys)
	return out, keys
}

func (a *api) resource(tx *identity.Tx, caller *awsapi.Caller, in any, r awsapi.Resource, keys policy.Context) string {
	path := "/"
	var tags map[string]string
	switch r.Type {
	case "":
		p, _ := tx.Policies.Get(r.ARN)
		setTags(keys, p.Tags)
		return r.ARN
	case "access-key":
		k, _ := tx.Keys.Get(r.ID)
		return a.resource(tx, caller, in, awsapi.Resource{Type: "user", ID: k.User}, keys)
	case "user":
		r.ID = ownName(caller, r.ID)
		if u, ok := tx.Users.Get(r.ID); ok {
			path, tags = u.Path, u.Tags
			setBoundary(keys, u.Boundary)
		}
	case "role":
		if v, ok := tx.Roles.Get(r.ID); ok {
			path, tags = v.Path, v.Tags
			setBoundary(keys, v.Boundary)
		}
	case "group":
		if v, ok := tx.Groups.Get(r.ID); ok {
			path = v.Path
		}
	case "instance-profile":
		if v, ok := tx.Profiles.Get(r.ID); ok {
			path, tags = v.Path, v.Tags
		}
	}
	setTags(keys, tags)
	if p := newPath(in); p != "" {
		path = p
	}
	return arn(tx, r.Type, path, r.ID)
}

func setBoundary(keys policy.Context, arn string) {
	if arn != "" {
		keys.Set("iam:PermissionsBoundary", arn)
	}
}

func setTags(keys policy.Context, tags map[string]string) {
	for key, value := range tags {
		keys.Set("aws:ResourceTag/"+key, value)
		keys.Set("iam:ResourceTag/"+key, value)
	}
}

// newPath is where a request puts what it makes.
func newPath(in any) string {
	switch in := in.(type) {
	case *iam.CreateUserRequest:
		return awsapi.Value(in.Path)
	case *iam.CreateGroupRequest:
		return awsapi.Value(in.Path)
	case *iam.CreateRoleRequest:
		return awsapi.Value(in.Path)
	case *iam.CreatePolicyRequest:
		return awsapi.Value(in.Path)
	case *iam.CreateInstanceProfileRequest:
		return awsapi.Value(in.Path)
	}
	return ""
}

// conditions puts what the request itself brings: the policy that it attaches
// or takes away, and the boundary that it sets, which counts before the one
// that is there.
func conditions(in any, keys policy.Context) {
	switch in := in.(type) {
	case *iam.AttachUserPolicyRequest:
		keys.Set("iam:PolicyARN", in.PolicyArn)
	case *iam.AttachGroupPolicyRequest:
		keys.Set("iam:PolicyARN", in.PolicyArn)
	case *iam.AttachRolePolicyRequest:
		keys.Set("iam:PolicyARN", in.PolicyArn)
	case *iam.DetachUserPolicyRequest:
		keys.Set("iam:PolicyARN", in.PolicyArn)
	case *iam.DetachGroupPolicyRequest:
		keys.Set("iam:PolicyARN", in.PolicyArn)
	case *iam.DetachRolePolicyRequest:
		keys.Set("iam:PolicyARN", in.PolicyArn)
	case *iam.CreateUserRequest:
		setBoundary(keys, awsapi.Value(in.PermissionsBoundary))
	case *iam.CreateRoleRequest:
		setBoundary(keys, awsapi.Value(in.PermissionsBoundary))
	case *iam.PutUserPermissionsBoundaryRequest:
		setBoundary(keys, in.PermissionsBoundary)
	case *iam.PutRolePermissionsBoundaryRequest:
		setBoundary(keys, in.PermissionsBoundary)
	}
}

// ownName is the name of a user, the caller's own where none is given.
func ownName(caller *awsapi.Caller, name string) string {
	if name == "" && caller.Principal != nil && caller.Principal.Kind == identity.UserPrincipal {
		return caller.Principal.Name
	}
	return name
}

// malformed turns a policy that cannot be understood into the answer to it.
func malformed(err error) error {
	if e := (*policy.Error)(nil); errors.As(err, &e) {
		return iam.MalformedPolicyDocumentException.Errorf("%s", e.Error())
	}
	if errors.Is(err, identity.ErrNotFound) {
		return iam.NoSuchEntityException.Errorf("%s", err.Error())
	}
	return err
}

// encoded is a document as IAM answers it: escaped by RFC 3986.
func encoded(document string) string {
	return strings.ReplaceAll(url.QueryEscape(document), "+", "%20")
}

// page cuts out what a call asks for: up to maxItems, 100 if it does not say,
// behind the position that the marker names.
func page[T any](all []T, marker *string, maxItems *int32) (items []T, next string, truncated *bool, err error) {
	start := 0
	if marker != nil {
		if start, err = strconv.Atoi(*marker); err != nil || start < 0 || start > len(all) {
			return nil, "", nil, awsapi.Errorf(awsapi.Validation, "Invalid Marker: it is not one that this service has given")
		}
	}
	limit := 100
	if maxItems != nil {
		limit = int(*maxItems)
	}
	end := min(start+limit, len(all))
	more := end < len(all)
	if more {
		next = strconv.Itoa(end)
	}
	return append([]T{}, all[start:end]...), next, &more, nil
}

// under is whether a path begins with the prefix that a call asks for.
func under(path string, prefix *string) bool { return strings.HasPrefix(path, awsapi.Value(prefix)) }

func orRoot(path *string) string {
	if path == nil {
		return "/"
	}
	return *path
}
