package policy

import (
	"fmt"
	"strings"
)

// A Decision is yes or no, and why.
type Decision struct {
	Allowed bool
	// Explicit is whether a Deny statement said no; otherwise nothing said yes.
	Explicit bool
	// Reason names the policy and statement that decided. It is for the audit
	// log and the administrator; a stranger is not told it.
	Reason string
}

// A Request is what documents are applied to.
type Request struct {
	Action   string // "mgn:StartTest"
	Resource string // ARN, or "*"
	Context  Context
}

// A Layer is a set of documents of which one must allow. All Layers must.
type Layer struct {
	Name      string // "identity policies", "permissions boundary", "session policies"
	Documents []*Document
}

// Decide applies the layers: a Deny anywhere wins, then every layer has to
// allow, then it is allowed. No layer at all allows nothing.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
func Decide(layers []Layer, r Request) Decision {
	r.Action = strings.ToLower(r.Action)
	for _, l := range layers {
		for _, d := range l.Documents {
			if s := d.find(r, true); s != nil {
				return Decision{Explicit: true, Reason: fmt.Sprintf("denied by statement %s of %s (%s)", s.label, d.name, l.Name)}
			}
		}
	}
	out := Decision{Reason: "there is no policy"}
	for _, l := range layers {
		out = l.allow(r)
		if !out.Allowed {
			return out
		}
	}
	return out
}

func (l Layer) allow(r Request) Decision {
	for _, d := range l.Documents {
		if s := d.find(r, false); s != nil {
			return Decision{Allowed: true, Reason: fmt.Sprintf("allowed by statement %s of %s (%s)", s.label, d.name, l.Name)}
		}
	}
	return Decision{Reason: fmt.Sprintf("no statement of the %s allows %s on %s", l.Name, r.Action, r.Resource)}
}

// find returns the first statement of the effect that applies.
func (d *Document) find(r Request, deny bool) *statement {
	for i := range d.statements {
		if s := &d.statements[i]; s.deny == deny && s.applies(r) {
			return s
		}
	}
	return nil
}

// applies is whether the statement speaks of the request. The action is in
// lower case.
func (s *statement) applies(r Request) bool {
	for _, key := range s.needs {
		if _, ok := r.Context.single(key); !ok {
			return false
		}
	}
	return s.matchesAction(r.Action) && s.matchesResource(r) && s.conditionsHold(r.Context)
}

func (s *statement) matchesAction(action string) bool {
	for _, p := range s.actions {
		if p.match(action) {
			return !s.notActions
		}
	}
	return s.notActions
}

func (s *statement) matchesResource(r Request) bool {
	if s.principals != nil {
		return true // a trust policy stands for its role
	}
	for _, p := range s.resources {
		if p.match(r.Resource, r.Context) {
			return !s.notRes
		}
	}
	return s.notRes
}

func (s *statement) conditionsHold(c Context) bool {
	for i := range s.conditions {
		if !s.conditions[i].holds(c) {
			return false
		}
	}
	return true
}

// A Principal is whom a trust policy can name: kind "AWS", "Service" or
// "Federated", with its value.
type Principal struct{ Kind, Value string }

// Trusts decides whether a trust policy allows the principal the action, which
// is one of STS. A statement that does not name the principal does not count.
func (d *Document) Trusts(p Principal, action string, c Context) Decision {
	r := Request{Action: strings.ToLower(action), Resource: "*", Context: c}
	out := Decision{Reason: fmt.Sprintf("no statement of %s allows %s to %s", d.name, action, p.Value)}
	for i := range d.statements {
		s := &d.statements[i]
		switch {
		case !s.names(p) || !s.applies(r):
		case s.deny:
			return Decision{Explicit: true, Reason: fmt.Sprintf("denied by statement %s of %s", s.label, d.name)}
		case !out.Allowed:
			out = Decision{Allowed: true, Reason: fmt.Sprintf("allowed by statement %s of %s", s.label, d.name)}
		}
	}
	return out
}

// names is whether the statement's principals include the given one.
func (s *statement) names(want Principal) bool {
	for _, p := range s.principals {
		if p.kind == "*" && (s.deny || want.Kind == "AWS") || p.kind == want.Kind && p.value == want.Value {
			return true
		}
	}
	return false
}
