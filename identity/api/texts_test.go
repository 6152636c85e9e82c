package api_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/smithy-go"
)

// TestIAM_Texts compares what errors say with what those of IAM do, as far as that
// is known from its documentation and from what people have met: scripts and
// tools that were written for it look for the words.
func TestIAM_Texts(t *testing.T) {
	s := newSite(t)
	ctx, c := t.Context(), s.iam(s.admin)
	prefix := "arn:aws:iam::" + s.directory.Account().ID + ":"
	bob, none := aws.String("bob"), aws.String("none")
	s.user(t, "bob", "")
	password := aws.String("Passw0rd-of-bob")
	trust := aws.String(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + prefix + `user/none"},"Action":"sts:AssumeRole"}}`)
	issuer := aws.String("https://idp.example.com")
	_, err := c.CreateOpenIDConnectProvider(ctx, &sdk.CreateOpenIDConnectProviderInput{Url: issuer})
	want(t, "create provider", err, "")
	_, err = c.CreateLoginProfile(ctx, &sdk.CreateLoginProfileInput{UserName: bob, Password: password})
	want(t, "create login profile", err, "")
	_, err = c.CreateInstanceProfile(ctx, &sdk.CreateInstanceProfileInput{InstanceProfileName: bob})
	want(t, "create instance profile", err, "")
	var tags []types.Tag
	for i := range 50 {
		tags = append(tags, types.Tag{Key: aws.String(fmt.Sprint("k", i)), Value: aws.String("")})
	}
	_, err = c.TagInstanceProfile(ctx, &sdk.TagInstanceProfileInput{InstanceProfileName: bob, Tags: tags})
	want(t, "tag", err, "")
	for _, test := range []struct {
		code, text string
		do         func() error
	}{
		{"NoSuchEntity", "The user with name none cannot be found.", func() error {
			_, err := c.GetUser(ctx, &sdk.GetUserInput{UserName: none})
			return err
		}},
		{"EntityAlreadyExists", "User with name bob already exists.", func() error {
			_, err := c.CreateUser(ctx, &sdk.CreateUserInput{UserName: bob})
			return err
		}},
		{"NoSuchEntity", "Login Profile for User admin cannot be found.", func() error {
			_, err := c.GetLoginProfile(ctx, &sdk.GetLoginProfileInput{})
			return err
		}},
		{"NoSuchEntity", "The user with name none cannot be found.", func() error {
			_, err := c.UpdateLoginProfile(ctx, &sdk.UpdateLoginProfileInput{UserName: none, Password: password})
			return err
		}},
		{"EntityAlreadyExists", "Login Profile for user bob already exists.", func() error {
			_, err := c.CreateLoginProfile(ctx, &sdk.CreateLoginProfileInput{UserName: bob, Password: password})
			return err
		}},
		{"PasswordPolicyViolation", "Password should have a minimum length of 8", func() error {
			_, err := c.UpdateLoginProfile(ctx, &sdk.UpdateLoginProfileInput{UserName: bob, Password: aws.String("x")})
			return err
		}},
		{"NoSuchEntity", "The Password Policy with domain name " + s.directory.Account().ID + " cannot be found.", func() error {
			_, err := c.GetAccountPasswordPolicy(ctx, &sdk.GetAccountPasswordPolicyInput{})
			return err
		}},
		{"MalformedPolicyDocument", `Invalid principal in policy: "AWS":"` + prefix + `user/none"`, func() error {
			_, err := c.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: none, AssumeRolePolicyDocument: trust})
			return err
		}},
		{"EntityAlreadyExists", "Provider with url https://idp.example.com already exists.", func() error {
			_, err := c.CreateOpenIDConnectProvider(ctx, &sdk.CreateOpenIDConnectProviderInput{Url: issuer})
			return err
		}},
		{"NoSuchEntity", "OpenIDConnect Provider not found for arn " + prefix + "oidc-provider/none.example.com", func() error {
			_, err := c.GetOpenIDConnectProvider(ctx, &sdk.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: aws.String(prefix + "oidc-provider/none.example.com")})
			return err
		}},
		{"LimitExceeded", "The number of tags has reached the maximum limit.", func() error {
			_, err := c.TagInstanceProfile(ctx, &sdk.TagInstanceProfileInput{InstanceProfileName: bob, Tags: []types.Tag{{Key: bob, Value: bob}}})
			return err
		}},
		{"NoSuchEntity", "Instance Profile none cannot be found.", func() error {
			_, err := c.UntagInstanceProfile(ctx, &sdk.UntagInstanceProfileInput{InstanceProfileName: none, TagKeys: []string{"k"}})
			return err
		}},
		{"InvalidInput", "Invalid Entity Arn: " + prefix + "assumed-role/r/s does not clearly define entity type and name.", func() error {
			_, err := c.SimulatePrincipalPolicy(ctx, &sdk.SimulatePrincipalPolicyInput{PolicySourceArn: aws.String(prefix + "assumed-role/r/s"), ActionNames: []string{"mgn:StartTest"}})
			return err
		}},
		{"NoSuchEntity", "The role with name none cannot be found.", func() error {
			_, err := c.ListPoliciesGrantingServiceAccess(ctx, &sdk.ListPoliciesGrantingServiceAccessInput{Arn: aws.String(prefix + "role/none"), ServiceNamespaces: []string{"mgn"}})
			return err
		}},
		{"NoSuchEntity", "Policy " + prefix + "policy/none does not exist or is not attachable.", func() error {
			_, err := c.AttachUserPolicy(ctx, &sdk.AttachUserPolicyInput{UserName: bob, PolicyArn: aws.String(prefix + "policy/none")})
			return err
		}},
		{"DeleteConflict", "Cannot delete entity, must delete access keys first.", func() error {
			_, err := c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: bob})
			return err
		}},
		{"DeleteConflict", "Cannot delete entity, must delete login profile first.", func() error {
			for _, k := range s.directory.AccessKeys("bob") {
				if err := s.directory.DeleteAccessKey(ctx, k.ID); err != nil {
					return err
				}
			}
			_, err := c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: bob})
			return err
		}},
	} {
		var e smithy.APIError
		if err := test.do(); !errors.As(err, &e) || e.ErrorCode() != test.code || !strings.HasSuffix(e.ErrorMessage(), test.text) {
			t.Errorf("got %v, want %s: %s", err, test.code, test.text)
		}
	}
}
