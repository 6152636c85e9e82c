package api_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"
)

// TestIAM_Trust: a trust policy names who is there, and shows by its id who is gone.
func TestIAM_Trust(t *testing.T) {
	s := newSite(t)
	ctx, c := t.Context(), s.iam(s.admin)
	bob := "arn:aws:iam::" + s.directory.Account().ID + ":user/bob"
	document := func(principal string) *string {
		return aws.String(`{ "Version": "2012-10-17", "Statement": {"Effect":"Allow", "Principal":{"AWS":["` + principal + `"]}, "Action":"sts:AssumeRole"} }`)
	}
	create := func(principal string) error {
		_, err := c.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: aws.String("r"), AssumeRolePolicyDocument: document(principal)})
		return err
	}
	update := func(principal string) error {
		_, err := c.UpdateAssumeRolePolicy(ctx, &sdk.UpdateAssumeRolePolicyInput{RoleName: aws.String("r"), PolicyDocument: document(principal)})
		return err
	}
	shown := func() string {
		t.Helper()
		got, err := c.GetRole(ctx, &sdk.GetRoleInput{RoleName: aws.String("r")})
		if err != nil {
			t.Fatal(err)
		}
		text, err := url.PathUnescape(*got.Role.AssumeRolePolicyDocument)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	err := create(bob)
	want(t, "before there is one", err, "MalformedPolicyDocument")
	if err == nil || !strings.Contains(err.Error(), `Invalid principal in policy: "AWS":"`+bob+`"`) {
		t.Errorf("got %v", err)
	}
	made, err := c.CreateUser(ctx, &sdk.CreateUserInput{UserName: aws.String("bob")})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "create", create(bob), "")
	if got := shown(); got != *document(bob) {
		t.Errorf("got %s", got)
	}
	want(t, "trust nobody", update(bob+"2"), "MalformedPolicyDocument")
	_, err = c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: aws.String("bob")})
	want(t, "delete", err, "")
	_, err = c.CreateUser(ctx, &sdk.CreateUserInput{UserName: aws.String("bob")})
	want(t, "create another", err, "")
	if got := shown(); got != *document(*made.User.UserId) {
		t.Errorf("got %s", got)
	}
	want(t, "trust who is gone", update(*made.User.UserId), "") // as it was
	want(t, "trust who is gone", update(*made.User.UserId+"\",\"*"), "MalformedPolicyDocument")
	want(t, "trust the other", update(bob), "")
	if got := shown(); got != *document(bob) {
		t.Errorf("got %s", got)
	}
}
