package api_test

import (
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"rehost/identity"
)

// TestIAM_SimulatePrincipal: the simulator knows the principal's own keys, like
// the decision that it foretells, unless the question says otherwise.
func TestIAM_SimulatePrincipal(t *testing.T) {
	s := newSite(t)
	ctx, c := t.Context(), s.iam(s.admin)
	account := s.directory.Account().ID
	only := func(key, value string) string {
		return `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:StartTest","Resource":"*","Condition":{"StringEquals":{"` + key + `":"` + value + `"}}}}`
	}
	user := identity.User{Name: "bob", Path: "/staff/", ID: "AIDAQQQQQQQQQQQQQQQQ", Tags: map[string]string{"Team": "blue"}}
	role := identity.Role{Name: "dev", Path: "/staff/", ID: "AROAQQQQQQQQQQQQQQQQ", Tags: user.Tags, Trust: `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"Service":"mgn.amazonaws.com"},"Action":"sts:AssumeRole"}}`}
	userARN, roleARN := "arn:aws:iam::"+account+":user/staff/bob", "arn:aws:iam::"+account+":role/staff/dev"
	ask := func(arn, document string, entries ...types.ContextEntry) types.EvaluationResult {
		t.Helper()
		user.Inline, role.Inline = map[string]string{"p": document}, map[string]string{"p": document}
		if err := s.directory.Write(ctx, func(tx *identity.Tx) error {
			tx.Users.Put(user.Name, user)
			tx.Roles.Put(role.Name, role)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		got, err := c.SimulatePrincipalPolicy(ctx, &sdk.SimulatePrincipalPolicyInput{PolicySourceArn: &arn, ActionNames: []string{"mgn:StartTest"}, ContextEntries: entries})
		if err != nil || len(got.EvaluationResults) != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		return got.EvaluationResults[0]
	}
	entry := func(key, value string) types.ContextEntry {
		return types.ContextEntry{ContextKeyName: &key, ContextKeyType: types.ContextKeyTypeEnumString, ContextKeyValues: []string{value}}
	}
	for _, test := range []struct{ arn, key, value string }{
		{userARN, "aws:username", "bob"},
		{userARN, "aws:userid", "AIDAQQQQQQQQQQQQQQQQ"},
		{userARN, "aws:PrincipalArn", userARN},
		{userARN, "aws:PrincipalAccount", account},
		{userARN, "aws:PrincipalType", "User"},
		{userARN, "aws:PrincipalTag/team", "blue"},
		{roleARN, "aws:PrincipalArn", roleARN},
		{roleARN, "aws:PrincipalAccount", account},
		{roleARN, "aws:PrincipalType", "AssumedRole"},
		{roleARN, "aws:PrincipalTag/team", "blue"},
	} {
		document := only(test.key, test.value)
		if r := ask(test.arn, document); r.EvalDecision != types.PolicyEvaluationDecisionTypeAllowed || len(r.MissingContextValues) > 0 {
			t.Errorf("%s of %s: got %s, missing %v", test.key, test.arn, r.EvalDecision, r.MissingContextValues)
		}
		if r := ask(test.arn, only(test.key, "another")); r.EvalDecision == types.PolicyEvaluationDecisionTypeAllowed {
			t.Errorf("%s of %s is another", test.key, test.arn)
		}
		if r := ask(test.arn, document, entry(test.key, "given")); r.EvalDecision == types.PolicyEvaluationDecisionTypeAllowed {
			t.Errorf("%s of %s: what was given does not count", test.key, test.arn)
		}
	}
	for _, key := range []string{"aws:username", "aws:userid"} {
		if r := ask(roleARN, only(key, "dev")); !slices.Contains(r.MissingContextValues, key) {
			t.Errorf("%s of a role: missing %v", key, r.MissingContextValues)
		}
	}
	times := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"2020-01-01"},"NumericGreaterThan":{"aws:EpochTime":"1577836800"}}}}`
	if r := ask(userARN, times); r.EvalDecision != types.PolicyEvaluationDecisionTypeAllowed {
		t.Errorf("the time: %s, missing %v", r.EvalDecision, r.MissingContextValues)
	}
	if r := ask(userARN, times, types.ContextEntry{ContextKeyName: aws.String("aws:CurrentTime"), ContextKeyType: types.ContextKeyTypeEnumDate, ContextKeyValues: []string{"2019-12-31T00:00:00Z"}}); r.EvalDecision == types.PolicyEvaluationDecisionTypeAllowed {
		t.Error("the time that was given does not count")
	}

	// Who the caller is to a resource's policy can be said, and is the principal otherwise.
	ask(userARN, only("aws:username", "nobody"))
	resource := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + roleARN + `"},"Action":"mgn:StartTest","Resource":"*"}}`
	for caller, allowed := range map[string]bool{"": false, roleARN: true} {
		in := &sdk.SimulatePrincipalPolicyInput{PolicySourceArn: &userARN, ActionNames: []string{"mgn:StartTest"}, ResourcePolicy: &resource}
		if caller != "" {
			in.CallerArn = &caller
		}
		got, err := c.SimulatePrincipalPolicy(ctx, in)
		if err != nil || (got.EvaluationResults[0].EvalDecision == types.PolicyEvaluationDecisionTypeAllowed) != allowed {
			t.Errorf("caller %q: %+v, %v", caller, got, err)
		}
	}
}
