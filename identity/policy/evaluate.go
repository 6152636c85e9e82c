package identity

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

// A request is what documents are applied to.
type request struct {
	action   string // "mgn:StartTest"
	resource string // ARN, or "*"
	context  Context
}

// A layer is a set of documents of which one must allow. All layers must.
type layer struct {
	name      string // "identity policies", "permissions boundary", "session policies"
	documents []*Document
}

// decide applies the layers: a Deny anywhere wins, then every layer has to
// allow, then it is allowed. No layer at all allows nothing.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
func decide(layers []layer, r request) Decision {
	r.action = strings.ToLower(r.action)
	for _, l := range layers {
		for _, d := range l.documents {
			if s := d.find(r, true); s != nil {
				return Decision{Explicit: true, Reason: fmt.Sprintf("denied by statement %s of %s (%s)", s.label, d.name, l.name)}
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

func (l layer) allow(r request) Decision {
	for _, d := range l.documents {
		if s := d.find(r, false); s != nil {
			return Decision{Allowed: true, Reason: fmt.Sprintf("allowed by statement %s of %s (%s)", s.label, d.name, l.name)}
		}
	}
	return Decision{Reason: fmt.Sprintf("no statement of the %s allows %s on %s", l.name, r.action, r.resource)}
}

// find returns the first statement of the effect that applies.
func (d *Document) find(r request, deny bool) *statement {
	for i := range d.statements {
		if s := &d.statements[i]; s.deny == deny && s.applies(r) {
			return s
		}
	}
	return nil
}

// applies is whether the statement speaks of the request. The action is in
// lower case.
func (s *statement) applies(r request) bool {
	for _, key := range s.needs {
		if _, ok := r.context.single(key); !ok {
			return false
		}
	}
	return s.matchesAction(r.action) && s.matchesResource(r) && s.conditionsHold(r.context)
}

func (s *statement) matchesAction(action string) bool {
	for _, p := range s.actions {
		if p.match(action) {
			return !s.notActions
		}
	}
	return s.notActions
}

func (s *statement) matchesResource(r request) bool {
	if s.principals != nil {
		return true // a trust policy stands for its role
	}
	for _, p := range s.resources {
		if p.match(r.resource, r.context) {
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
