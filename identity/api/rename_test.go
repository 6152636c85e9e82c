package api_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"

	"rehost/identity"
)

// TestIAM_RenameMeanwhile moves a user or group to another path at each moment at
// which the service looks at the clock while it renames it for somebody who may
// do that under the first path only. The move is never undone, and what was moved
// before it was renamed is not renamed.
func TestIAM_RenameMeanwhile(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	d := s.user(t, "delegate", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["iam:UpdateUser","iam:UpdateGroup"],"Resource":["arn:aws:iam::*:user/a/*","arn:aws:iam::*:group/a/*"]}}`)
	kind := "user"
	put := func(name, path string, only bool) (moved bool) {
		t.Helper()
		if err := s.directory.Write(ctx, func(tx *identity.Tx) error {
			if u, ok := tx.Users.Get(name); ok || !only && kind == "user" {
				u.Name, u.Path = name, path
				tx.Users.Put(name, u)
				moved = moved || ok
			}
			if g, ok := tx.Groups.Get(name); ok || !only && kind == "group" {
				g.Name, g.Path = name, path
				tx.Groups.Put(name, g)
				moved = moved || ok
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return moved
	}
	paths := func() (out map[string]string) {
		out = map[string]string{}
		_ = s.directory.Read(func(tx *identity.Tx) error {
			for _, u := range tx.Users.All() {
				out["user "+u.Name] = u.Path
			}
			for _, g := range tx.Groups.All() {
				out["group "+g.Name] = g.Path
			}
			return nil
		})
		return out
	}
	renames := map[string]func() error{
		"group": func() error {
			_, err := d.UpdateGroup(ctx, &sdk.UpdateGroupInput{GroupName: aws.String("bob"), NewGroupName: aws.String("rob")})
			return err
		},
		"user": func() error {
			_, err := d.UpdateUser(ctx, &sdk.UpdateUserInput{UserName: aws.String("bob"), NewUserName: aws.String("rob")})
			return err
		},
	}
	for _, kind = range []string{"group", "user"} {
		if err := s.directory.Write(ctx, func(tx *identity.Tx) error { // only what is renamed here
			tx.Users.Delete("bob")
			tx.Groups.Delete("bob")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		refused := 0
		for at := 1; ; at++ {
			if err := s.directory.Write(ctx, func(tx *identity.Tx) error {
				tx.Users.Delete("rob")
				tx.Groups.Delete("rob")
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			put("bob", "/a/", false)
			ticks, moved := 0, false
			s.tick = func() {
				if ticks++; ticks == at {
					moved = put("bob", "/b/", true)
				}
			}
			err := renames[kind]()
			s.tick = nil
			all := paths()
			old, new := all[kind+" bob"], all[kind+" rob"]
			switch {
			case err != nil && code(err) == "AccessDenied" && old == "/b/" && new == "":
				refused++
			case err == nil && old == "" && new == "/a/" && !moved:
			default:
				t.Errorf("%s moved at tick %d: %v; bob is in %q and rob in %q", kind, at, err, old, new)
			}
			if ticks < at {
				break // it was over before
			}
		}
		if refused < 2 {
			t.Errorf("%s: %d renames were refused: the moments between are not among them", kind, refused)
		}
	}

	// Who has no right to a name does not learn whether there is one.
	put("bob", "/a/", false)
	put("taken", "/b/", false)
	for _, name := range []string{"taken", "free"} {
		_, err := d.UpdateUser(ctx, &sdk.UpdateUserInput{UserName: aws.String("bob"), NewUserName: &name, NewPath: aws.String("/b/")})
		want(t, "rename to "+name, err, "AccessDenied")
	}
	_, err := d.UpdateUser(ctx, &sdk.UpdateUserInput{UserName: aws.String("bob"), NewUserName: aws.String("taken")})
	want(t, "rename to one that is taken", err, "EntityAlreadyExists")
}
