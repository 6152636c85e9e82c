package policy

import (
	"fmt"
	"testing"
)

// Pages of the user guide of IAM that the rows below come from, all under
// https://docs.aws.amazon.com/IAM/latest/UserGuide/
const (
	logicPage   = "reference_policies_evaluation-logic_policy-eval-denyallow.html"
	basicsPage  = "reference_policies_evaluation-logic_policy-eval-basics.html"
	crossPage   = "reference_policies_evaluation-logic-cross-account.html"
	boundPage   = "access_policies_boundaries.html"
	sessionPage = "access_policies.html#policies_session"
)

// A combination is what each layer says to one request, and how the resource's
// policy names the principal.
type combination struct {
	caller                                string
	identity, boundary, session, resource Outcome
	naming                                string // how an allowing resource policy names the caller
	kind                                  Kind   // of the resource's policy
}

func (c combination) has(o Outcome) bool {
	return c.identity == o || c.boundary == o || c.session == o || c.resource == o
}

func (c combination) grants(naming string) bool { return c.resource == Allowed && c.naming == naming }

// withinLimits is whether neither boundary nor session policies are silent.
// Without session policies a federated user has no permissions.
func (c combination) withinLimits() bool {
	return c.boundary != Silent && c.session != Silent && !(c.caller == "Federated" && c.session == Absent)
}

// documented are the rules of evaluation in the order of the pages; the first
// row that speaks of a combination decides it.
var documented = []struct {
	page, rule string
	speaks     func(combination) bool
	want       func(combination) Outcome
}{
	{logicPage, "an explicit deny in any policy overrides any allow", func(c combination) bool { return c.has(Denied) }, always(Denied)},
	{crossPage, "across accounts both the identity's policies and the resource's must allow",
		func(c combination) bool { return c.caller == "Stranger" },
		when(func(c combination) bool { return c.resource == Allowed && c.identity == Allowed && c.withinLimits() })},
	{logicPage, "what is granted directly to a user, a role session, a federated session, a service or a provider is allowed whatever is implicit elsewhere",
		func(c combination) bool { return c.grants("self") }, always(Allowed)},
	{logicPage, "what is granted to a role, or to the user behind a federated session, is limited by boundary and session policies only",
		func(c combination) bool { return c.grants("parent") }, when(combination.withinLimits)},
	{logicPage, "what is granted to everyone needs no identity policy; we keep it within boundary and session policies too",
		func(c combination) bool {
			return c.grants("everyone") && c.caller != "Service" && c.caller != "Provider"
		},
		when(combination.withinLimits)},
	{logicPage, "trust and key policies must explicitly allow",
		func(c combination) bool {
			return c.resource != Absent && c.kind != Resource && !c.grants("account")
		}, always(Silent)},
	{basicsPage, "within an account an identity policy is enough, and what the account is granted is left to it",
		func(c combination) bool { return c.identity != Allowed }, always(Silent)},
	{boundPage, "a boundary must allow as well", func(c combination) bool { return c.boundary == Silent }, always(Silent)},
	{sessionPage, "session policies must allow as well, and a federated user must have some",
		func(c combination) bool { return !c.withinLimits() }, always(Silent)},
	{basicsPage, "then it is allowed", func(combination) bool { return true }, always(Allowed)},
}

func always(o Outcome) func(combination) Outcome { return func(combination) Outcome { return o } }

func when(f func(combination) bool) func(combination) Outcome {
	return func(c combination) Outcome {
		if f(c) {
			return Allowed
		}
		return Silent
	}
}

// naming are the Principal elements that can name each caller.
func naming(caller string) map[string]string {
	p := callers[caller]
	out := map[string]string{"self": fmt.Sprintf(`{%q:%q}`, p.Kind, p.Value), "everyone": `"*"`}
	if p.Parent != "" {
		out["parent"] = fmt.Sprintf(`{"AWS":%q}`, p.Parent)
	}
	if p.Kind == "AWS" {
		a := parseARN(p.Value)
		out["account"] = fmt.Sprintf(`{"AWS":["arn:aws:iam::%s:root"]}`, a.account())
	}
	return out
}

// TestEvaluate_Combinations goes through every combination of what four layers
// say, for every kind of caller, every way to name it and every kind of
// resource policy.
func TestEvaluate_Combinations(t *testing.T) {
	allow, silent, deny := `"Effect":"Allow","Action":"mgn:*"`, `"Effect":"Allow","Action":"other:*"`, `"Effect":"Deny","Action":"mgn:*"`
	members := map[Outcome]string{Allowed: allow, Silent: silent, Denied: deny}
	make1 := func(o Outcome, kind Kind, principal string) *Document {
		if o == Absent {
			return nil
		}
		text := members[o]
		if kind != Identity {
			text += `,"Principal":` + principal
		}
		if kind != Trust {
			text += `,"Resource":"*"`
		}
		d, err := Parse(kind, "test", statementOf(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	outcomes := []Outcome{Absent, Silent, Allowed, Denied}
	used := map[string]int{}
	total := 0
	try := func(c combination, principal string) {
		r := Request{Principal: callers[c.caller], Action: "mgn:StartTest", Resource: server}
		if d := make1(c.identity, Identity, ""); d != nil {
			r.Policies.Identity = []*Document{d}
		}
		r.Policies.Boundary = make1(c.boundary, Identity, "")
		if d := make1(c.session, Identity, ""); d != nil {
			r.Policies.Session = []*Document{d}
		}
		r.Policies.Resource = make1(c.resource, c.kind, principal)
		got := Evaluate(&r)
		total++
		for _, row := range documented {
			if !row.speaks(c) {
				continue
			}
			used[row.rule]++
			if want := row.want(c); got.Verdict() != want.String() {
				t.Errorf("%+v: got %s (%s), want %s: %s (%s)", c, got.Verdict(), got.Reason(), want, row.rule, row.page)
			}
			if e := Explain(&r); e.Verdict() != got.Verdict() || c.identity != Absent && e.Outcomes[IdentityLayer] != c.identity {
				t.Errorf("%+v: the explanation says %s %v", c, e.Verdict(), e.Outcomes)
			}
			return
		}
	}
	for caller := range callers {
		for _, identity := range outcomes {
			for _, boundary := range outcomes {
				for _, session := range outcomes {
					for _, resource := range outcomes {
						for how, principal := range naming(caller) {
							for _, kind := range []Kind{Trust, Resource, Key} {
								try(combination{caller, identity, boundary, session, resource, how, kind}, principal)
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d combinations", total)
	for _, row := range documented {
		if used[row.rule] == 0 {
			t.Errorf("no combination reaches the row %q", row.rule)
		}
	}
}
