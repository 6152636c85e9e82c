package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"rehost/identity"
)

// TestIAM_Access asks which policies let somebody use a service.
func TestIAM_Access(t *testing.T) {
	s := newSite(t)
	ctx, c := t.Context(), s.iam(s.admin)
	full, read := identity.ManagedPolicy("AWSApplicationMigrationFullAccess"), identity.ManagedPolicy("AWSApplicationMigrationReadOnlyAccess")
	if err := s.directory.Write(ctx, func(tx *identity.Tx) error {
		tx.Groups.Put("ops", identity.Group{Name: "ops", Path: "/", Attached: []string{read, full}, Inline: map[string]string{"look": allow}})
		tx.Users.Put("bob", identity.User{Name: "bob", Path: "/staff/", Groups: []string{"ops"}, Attached: []string{full}, Boundary: read, Inline: map[string]string{
			"jobs": `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:DescribeJobs","Resource":"*"}}`,
			"none": `{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}`}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	list := func(arn string, marker *string, services ...string) *sdk.ListPoliciesGrantingServiceAccessOutput {
		t.Helper()
		got, err := c.ListPoliciesGrantingServiceAccess(ctx, &sdk.ListPoliciesGrantingServiceAccessInput{Arn: &arn, ServiceNamespaces: services, Marker: marker})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	of := func(e types.ListPoliciesGrantingServiceAccessEntry) (out []string) {
		for _, p := range e.Policies {
			out = append(out, strings.Join([]string{string(p.PolicyType), *p.PolicyName, aws.ToString(p.PolicyArn), string(p.EntityType), aws.ToString(p.EntityName)}, " "))
		}
		return out
	}
	prefix := "arn:aws:iam::" + s.directory.Account().ID + ":"
	got := list(prefix+"user/staff/bob", nil, "mgn", "iam", "s3").PoliciesGrantingServiceAccess
	managed := func(arn string) string {
		return "MANAGED " + arn[strings.LastIndexByte(arn, '/')+1:] + " " + arn + "  "
	}
	for i, want := range [][]string{
		{managed(full), "INLINE jobs  USER bob", managed(read)},
		{"INLINE look  GROUP ops"},
		nil,
	} {
		if !slices.Equal(of(got[i]), want) {
			t.Errorf("%s: got %q, want %q", *got[i].ServiceNamespace, of(got[i]), want)
		}
	}
	if got := of(list(prefix+"role/service-role/"+identity.AgentRole, nil, "mgn").PoliciesGrantingServiceAccess[0]); len(got) != 1 {
		t.Errorf("of the agent's role: %q", got)
	}
	for bad, expected := range map[string]string{prefix + "user/bob": "NoSuchEntity", prefix + "role/bob": "NoSuchEntity", prefix + "user/staff/nobody": "NoSuchEntity", prefix + "group/": "NoSuchEntity",
		prefix + "policy/p": "InvalidInput", prefix + "root": "InvalidInput"} {
		_, err := c.ListPoliciesGrantingServiceAccess(ctx, &sdk.ListPoliciesGrantingServiceAccessInput{Arn: &bad, ServiceNamespaces: []string{"mgn"}})
		want(t, bad, err, expected)
		_, err = c.SimulatePrincipalPolicy(ctx, &sdk.SimulatePrincipalPolicyInput{PolicySourceArn: &bad, ActionNames: []string{"mgn:StartTest"}})
		want(t, "simulate "+bad, err, expected)
	}

	// More services than a page has.
	var services, seen []string
	for i := range 150 {
		services = append(services, fmt.Sprintf("service%d", i))
	}
	for marker, more := (*string)(nil), true; more; {
		got := list(prefix+"group/ops", marker, services...)
		for _, e := range got.PoliciesGrantingServiceAccess {
			seen = append(seen, *e.ServiceNamespace)
		}
		if marker, more = got.Marker, got.IsTruncated; len(got.PoliciesGrantingServiceAccess) > 100 || more == (marker == nil) {
			t.Fatalf("a page of %d, more: %v, marker %v", len(got.PoliciesGrantingServiceAccess), more, marker)
		}
	}
	if !slices.Equal(seen, services) {
		t.Errorf("got %d of %d services: %v", len(seen), len(services), seen)
	}
	_, err := c.ListPoliciesGrantingServiceAccess(ctx, &sdk.ListPoliciesGrantingServiceAccessInput{Arn: aws.String(prefix + "group/ops"), ServiceNamespaces: services, Marker: aws.String("151")})
	want(t, "another marker", err, "ValidationError")
}

// TestIAM_ProfileTags tags an instance profile and reads the tags page by page.
func TestIAM_ProfileTags(t *testing.T) {
	s := newSite(t)
	ctx, c := t.Context(), s.iam(s.admin)
	name := aws.String("server")
	_, err := c.CreateInstanceProfile(ctx, &sdk.CreateInstanceProfileInput{InstanceProfileName: name, Tags: []types.Tag{{Key: aws.String("team"), Value: aws.String("blue")}}})
	want(t, "create", err, "")
	var tags []types.Tag
	for i := range 5 {
		tags = append(tags, types.Tag{Key: aws.String(fmt.Sprint("key", i)), Value: aws.String(fmt.Sprint(i))})
	}
	_, err = c.TagInstanceProfile(ctx, &sdk.TagInstanceProfileInput{InstanceProfileName: name, Tags: append(tags, types.Tag{Key: aws.String("TEAM"), Value: aws.String("red")})})
	want(t, "tag", err, "")
	_, err = c.TagInstanceProfile(ctx, &sdk.TagInstanceProfileInput{InstanceProfileName: name, Tags: []types.Tag{{Key: aws.String("aws:x"), Value: aws.String("")}}})
	want(t, "a reserved tag", err, "InvalidInput")
	_, err = c.TagInstanceProfile(ctx, &sdk.TagInstanceProfileInput{InstanceProfileName: aws.String("none"), Tags: tags})
	want(t, "tag none", err, "NoSuchEntity")
	_, err = c.UntagInstanceProfile(ctx, &sdk.UntagInstanceProfileInput{InstanceProfileName: name, TagKeys: []string{"key2", "key9"}})
	want(t, "untag", err, "")
	s.restart()
	c = s.iam(s.admin)
	var got []string
	for p := sdk.NewListInstanceProfileTagsPaginator(c, &sdk.ListInstanceProfileTagsInput{InstanceProfileName: name, MaxItems: aws.Int32(2)}); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil || len(page.Tags) > 2 {
			t.Fatalf("%+v, %v", page, err)
		}
		for _, tag := range page.Tags {
			got = append(got, *tag.Key+"="+*tag.Value)
		}
	}
	if want := []string{"TEAM=red", "key0=0", "key1=1", "key3=3", "key4=4"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	// Its tags decide who may change it.
	tagged := s.user(t, "tagger", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"iam:*InstanceProfile*","Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/team":"red"}}}}`)
	_, err = tagged.ListInstanceProfileTags(ctx, &sdk.ListInstanceProfileTagsInput{InstanceProfileName: name})
	want(t, "list what is tagged", err, "")
	_, err = tagged.UntagInstanceProfile(ctx, &sdk.UntagInstanceProfileInput{InstanceProfileName: name, TagKeys: []string{"TEAM"}})
	want(t, "untag what is tagged", err, "")
	_, err = tagged.ListInstanceProfileTags(ctx, &sdk.ListInstanceProfileTagsInput{InstanceProfileName: name})
	want(t, "list what is not", err, "AccessDenied")
}

// TestIAM_Alias: there is one alias, and a new one takes its place.
// https://docs.aws.amazon.com/signin/latest/userguide/CreateAccountAlias.html
func TestIAM_Alias(t *testing.T) {
	s := newSite(t)
	ctx, c := t.Context(), s.iam(s.admin)
	for _, alias := range []string{"first", "second", "second"} {
		_, err := c.CreateAccountAlias(ctx, &sdk.CreateAccountAliasInput{AccountAlias: &alias})
		want(t, "create "+alias, err, "")
		got, err := c.ListAccountAliases(ctx, &sdk.ListAccountAliasesInput{})
		if err != nil || !slices.Equal(got.AccountAliases, []string{alias}) {
			t.Errorf("got %+v, %v, want %s", got, err, alias)
		}
	}
	for _, bad := range []string{"ab", "-abc", "abc-", "a--b", "Abc", strings.Repeat("a", 64)} {
		_, err := c.CreateAccountAlias(ctx, &sdk.CreateAccountAliasInput{AccountAlias: &bad})
		want(t, bad, err, "ValidationError")
	}
	_, err := c.DeleteAccountAlias(ctx, &sdk.DeleteAccountAliasInput{AccountAlias: aws.String("first")})
	want(t, "delete the old one", err, "NoSuchEntity")
	_, err = c.DeleteAccountAlias(ctx, &sdk.DeleteAccountAliasInput{AccountAlias: aws.String("second")})
	want(t, "delete", err, "")
}
