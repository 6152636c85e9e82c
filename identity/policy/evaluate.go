package policy

import "fmt"

// A Request is all that a decision rests on: who wants what, under which
// circumstances, and the policies that concern it.
type Request struct {
	Principal Principal // as resources' policies may name it
	Action    string    // "mgn:StartTest"
	Resource  string    // ARN, or "*"
	Context   Context
	Policies  Policies
}

// Policies are the documents that concern a request, by what they are to it.
type Policies struct {
	// Identity are the policies of the user and its groups, or of the role.
	Identity []*Document
	// Boundary is the permissions boundary; nil is none. One that should be
	// there and is not must not become nil: refuse instead, see [Refuse].
	Boundary *Document
	// Session are the policies that the session was made with; empty is none.
	// A federated user's session without any may do nothing.
	Session []*Document
	// Resource is the policy of the resource, of a kind other than Identity; nil is none.
	Resource *Document
}

// A Layer is one of the sets of policies that concern a request.
type Layer byte

// The layers, in the order in which they are asked.
const (
	IdentityLayer Layer = iota
	BoundaryLayer
	SessionLayer
	ResourceLayer
	layerCount
)

var layerNames = [layerCount]string{"identity policies", "permissions boundary", "session policies", "resource policy"}

func (l Layer) String() string { return layerNames[l] }

// of is the documents of a layer, and whether there is such a layer.
func (p *Policies) of(l Layer, one *[1]*Document) (list []*Document, there bool) {
	switch l {
	case IdentityLayer:
		return p.Identity, true
	case SessionLayer:
		return p.Session, len(p.Session) > 0
	case BoundaryLayer:
		one[0] = p.Boundary
	default:
		one[0] = p.Resource
	}
	if one[0] == nil {
		return nil, false
	}
	return one[:], true
}

// Evaluate decides a request as AWS does, for one account and across two:
//
//   - A Deny that applies wins, wherever it stands.
//   - What a resource's policy grants to this very user, session, service or
//     provider is allowed. What it grants to the role behind a session, to the
//     user behind a federated one, or to everyone, is allowed within boundary
//     and session policies. What it grants to an account is left to that
//     account's own policies.
//   - Otherwise an identity policy must allow, and boundary and session policies
//     too where there are any.
//   - A trust or key policy must name the principal or its account in any case;
//     so must the policy of a resource of another account, and there the
//     identity's policies must allow as well.
//
// It allocates nothing and keeps nothing. It does not say more than what
// decided; [Explain] does.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic_policy-eval-denyallow.html
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic-cross-account.html
func Evaluate(r *Request) Decision {
	q := ask(r)
	d := Decision{action: r.Action, resource: r.Resource}
	var one [1]*Document
	for l := range layerCount {
		list, _ := r.Policies.of(l, &one)
		if s := q.denied(list); s != nil {
			d.Explicit, d.Layer, d.statement = true, l, s
			d.Outcomes[l] = Denied
			return d
		}
	}
	granted, how := q.granted()
	var found [layerCount]*statement
	found[ResourceLayer] = granted
	for l := range ResourceLayer {
		list, there := r.Policies.of(l, &one)
		if l == SessionLayer {
			there = there || q.asker.federated()
		}
		found[l] = q.allowed(list)
		d.Outcomes[l] = outcome(there, found[l] != nil)
	}
	d.Outcomes[ResourceLayer] = outcome(r.Policies.Resource != nil, how != notNamed)
	d.Layer, d.Allowed = d.combine(how, r.Policies.Resource, q.foreign())
	if d.Allowed {
		d.statement = found[d.Layer]
	}
	return d
}

func outcome(there, allows bool) Outcome {
	switch {
	case !there:
		return Absent
	case allows:
		return Allowed
	}
	return Silent
}

// combine is what the layers come to when none denies: the layer that decided,
// and whether it is yes.
func (d *Decision) combine(how grant, resource *Document, foreign bool) (Layer, bool) {
	if how == direct && !foreign {
		return ResourceLayer, true
	}
	must := foreign || resource != nil && (resource.kind == Trust || resource.kind == Key)
	switch {
	case must && how == notNamed:
		return ResourceLayer, false
	case d.Outcomes[IdentityLayer] != Allowed && (how != limited || foreign):
		return IdentityLayer, false
	case d.Outcomes[BoundaryLayer] == Silent:
		return BoundaryLayer, false
	case d.Outcomes[SessionLayer] == Silent:
		return SessionLayer, false
	case how == limited && !foreign:
		return ResourceLayer, true
	case d.Outcomes[SessionLayer] == Allowed:
		return SessionLayer, true
	case d.Outcomes[BoundaryLayer] == Allowed:
		return BoundaryLayer, true
	}
	return IdentityLayer, true
}

// A question is a request prepared for many statements.
type question struct {
	*Request
	asker    asker
	resource arn
}

func ask(r *Request) question {
	return question{Request: r, asker: asker{&r.Principal, r.Principal.name()}, resource: parseARN(r.Resource)}
}

// foreign is whether principal and resource are of different accounts. Managed
// policies of AWS, whose account is "aws", are everybody's.
func (q *question) foreign() bool {
	theirs, ours := q.resource.account(), q.asker.arn.account()
	return len(theirs) == accountDigits && ours != "" && theirs != ours
}

// denied returns the first Deny that applies.
func (q *question) denied(list []*Document) *statement {
	for _, doc := range list {
		for i := range doc.denies {
			s := &doc.denies[i]
			if q.applies(s) && (s.principals == nil || s.hits(&q.asker, q.Policies.Boundary != nil)) {
				return s
			}
		}
	}
	return nil
}

// allowed returns the first Allow that applies, of policies without principals.
func (q *question) allowed(list []*Document) *statement {
	for _, doc := range list {
		for i := range doc.allows {
			if s := &doc.allows[i]; q.applies(s) {
				return s
			}
		}
	}
	return nil
}

// granted returns the Allow of the resource's policy that names the principal closest.
func (q *question) granted() (closest *statement, how grant) {
	if q.Policies.Resource == nil {
		return nil, notNamed
	}
	for i := range q.Policies.Resource.allows {
		s := &q.Policies.Resource.allows[i]
		if g := s.grants(&q.asker); g > how && q.applies(s) {
			closest, how = s, g
		}
	}
	return closest, how
}

// applies is whether the statement speaks of the request, whoever makes it.
func (q *question) applies(s *statement) bool {
	return q.isAction(s) && q.isResource(s) && q.conditionsHold(s) && q.complete(s)
}

func (q *question) isAction(s *statement) bool {
	for i := range s.actions {
		if s.actions[i].match(q.Action) {
			return !s.notActions
		}
	}
	return s.notActions
}

// isResource is always so for a trust policy, which stands for its role.
func (q *question) isResource(s *statement) bool {
	if s.resources == nil {
		return true
	}
	for i := range s.resources {
		if s.resources[i].match(&q.resource, q.Context) {
			return !s.notRes
		}
	}
	return s.notRes
}

func (q *question) conditionsHold(s *statement) bool {
	for i := range s.conditions {
		if !s.conditions[i].holds(q.Context) {
			return false
		}
	}
	return true
}

// complete is whether the variables that an Allow needs have a value.
func (q *question) complete(s *statement) bool {
	for _, key := range s.needs {
		if _, ok := q.Context.single(key); !ok {
			return false
		}
	}
	return true
}

// Trusts decides by a trust policy alone whether the principal may do the
// action, which is one of STS. It is for services and providers of identities,
// which have no policies of their own; for users and sessions ask [Evaluate].
func (d *Document) Trusts(p Principal, action string, c Context) Decision {
	return Evaluate(&Request{Principal: p, Action: action, Resource: "*", Context: c, Policies: Policies{Resource: d}})
}

// Refuse is the decision of someone who cannot evaluate, because a policy is
// missing or broken: an explicit no.
func Refuse(format string, args ...any) Decision {
	return Decision{Explicit: true, refusal: fmt.Sprintf(format, args...)}
}
