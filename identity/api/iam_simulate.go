package api

import (
	"context"
	"maps"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
	"rehost/identity/policy"
)

func (a *api) registerSimulator(s *awsapi.Server) {
	awsapi.Handle(s, iam.SimulateCustomPolicy, a.simulateCustom)
	awsapi.Handle(s, iam.SimulatePrincipalPolicy, a.simulatePrincipal)
}

// A simulation is a question about policies that nobody need have.
type simulation struct {
	policies  policy.Policies
	principal policy.Principal
	context   policy.Context
	actions   []string
	resources []string
}

func (a *api) simulateCustom(_ context.Context, in *iam.SimulateCustomPolicyRequest) (*iam.SimulatePolicyResponse, error) {
	s := simulation{principal: policy.Principal{Kind: "AWS", Value: awsapi.Value(in.CallerArn)}, actions: in.ActionNames, resources: in.ResourceArns, context: contextOf(in.ContextEntries)}
	if err := s.add(in.PolicyInputList, in.PermissionsBoundaryPolicyInputList, in.ResourcePolicy); err != nil {
		return nil, err
	}
	return s.answer(in.Marker, in.MaxItems)
}

// simulatePrincipal knows what conditions can ask about the principal itself;
// what the request says of that counts before it.
func (a *api) simulatePrincipal(_ context.Context, in *iam.SimulatePrincipalPolicyRequest) (*iam.SimulatePolicyResponse, error) {
	s := simulation{principal: policy.Principal{Kind: "AWS", Value: in.PolicySourceArn}, actions: in.ActionNames, resources: in.ResourceArns}
	if in.CallerArn != nil {
		s.principal.Value = *in.CallerArn
	}
	err := a.d.Read(func(tx *identity.Tx) error {
		kind, name, err := holderNamed(tx, in.PolicySourceArn)
		if err != nil {
			return err
		}
		held, _ := tx.PoliciesOf(kind, name)
		s.policies = held
		s.context = tx.ContextOf(kind, name)
		maps.Copy(s.context, contextOf(in.ContextEntries))
		s.policies.Identity = append([]*policy.Document{}, held.Identity...)
		return nil
	})
	if err == nil {
		err = s.add(in.PolicyInputList, in.PermissionsBoundaryPolicyInputList, in.ResourcePolicy)
	}
	if err != nil {
		return nil, err
	}
	return s.answer(in.Marker, in.MaxItems)
}

// add puts the policies of the request beside those that are there; a boundary
// takes the place of the one that is there.
func (s *simulation) add(policies, boundaries []string, resource *string) error {
	for _, text := range policies {
		doc, err := policy.Parse(policy.Identity, "PolicyInputList", text)
		if err != nil {
			return malformed(err)
		}
		s.policies.Identity = append(s.policies.Identity, doc)
	}
	if len(boundaries) > 1 {
		return iam.InvalidInputException.Errorf("Only one permissions boundary can be simulated.")
	}
	for _, text := range boundaries {
		doc, err := policy.Parse(policy.Identity, "PermissionsBoundaryPolicyInputList", text)
		if err != nil {
			return malformed(err)
		}
		s.policies.Boundary = doc
	}
	if resource != nil {
		doc, err := policy.Parse(policy.Resource, "ResourcePolicy", *resource)
		if err != nil {
			return malformed(err)
		}
		s.policies.Resource = doc
	}
	return nil
}

func contextOf(entries []iam.ContextEntry) policy.Context {
	out := policy.Context{}
	for _, e := range entries {
		out.Set(awsapi.Value(e.ContextKeyName), e.ContextKeyValues...)
	}
	return out
}

func (s *simulation) answer(marker *string, maxItems *int32) (out *iam.SimulatePolicyResponse, err error) {
	if len(s.resources) == 0 {
		s.resources = []string{"*"}
	}
	var all []iam.EvaluationResult
	for _, action := range s.actions {
		for _, resource := range s.resources {
			all = append(all, s.evaluate(action, resource))
		}
	}
	out = new(iam.SimulatePolicyResponse)
	out.EvaluationResults, out.Marker, out.IsTruncated, err = page(all, marker, maxItems)
	return out, err
}

func (s *simulation) evaluate(action, resource string) iam.EvaluationResult {
	d := policy.Explain(&policy.Request{Principal: s.principal, Action: action, Resource: resource, Context: s.context, Policies: s.policies})
	out := iam.EvaluationResult{EvalActionName: action, EvalResourceName: resource, EvalDecision: iam.PolicyEvaluationDecisionType(d.Verdict()),
		MatchedStatements: []iam.Statement{}, MissingContextValues: append([]string{}, d.Missing...)}
	if outcome := d.Outcomes[policy.BoundaryLayer]; outcome != policy.Absent {
		out.PermissionsBoundaryDecisionDetail = &iam.PermissionsBoundaryDecisionDetail{AllowedByPermissionsBoundary: new(outcome == policy.Allowed)}
	}
	for _, m := range d.Matched {
		if m.Deny == d.Explicit { // those that decided
			out.MatchedStatements = append(out.MatchedStatements, iam.Statement{SourcePolicyId: m.Document.Name(), SourcePolicyType: iam.PolicySourceTypeNone,
				StartPosition: positionShape(m.Start), EndPosition: positionShape(m.End)})
		}
	}
	return out
}

func positionShape(p policy.Position) *iam.Position {
	return &iam.Position{Line: new(int32(p.Line)), Column: new(int32(p.Column))}
}
