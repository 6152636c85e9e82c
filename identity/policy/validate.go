package policy

import (
	"fmt"
	"strings"
)

// A FindingType is how grave a finding is, in the words of Access Analyzer.
type FindingType string

// The types of findings. A mistake is no finding but an [Error] of [Parse].
const (
	SecurityWarning FindingType = "SECURITY_WARNING"
	Warning         FindingType = "WARNING"
	Suggestion      FindingType = "SUGGESTION"
)

// A Finding is something in a valid document that is risky, or does not do
// what it seems to.
type Finding struct {
	Type      FindingType
	Code      string // "PASS_ROLE_WITH_STAR_IN_RESOURCE"
	Statement string // Sid or position; "" is the document
	Position  Position
	Message   string // what, and what to do instead
}

// Validate looks a document over. It finds what can be seen without knowing
// the account; codes are those of Access Analyzer where it has the check.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/access-analyzer-reference-policy-checks.html
func (d *Document) Validate() []Finding {
	v := validator{Document: d}
	if !d.variables && strings.Contains(d.text, "${") {
		v.find(nil, Warning, "POLICY_VARIABLES_NEED_2012_VERSION", "variables are plain text in this version of the language: write Version 2012-10-17")
	}
	for i := range d.allows {
		v.allow(&d.allows[i])
	}
	for i := range d.denies {
		v.both(&d.denies[i])
	}
	return v.found
}

type validator struct {
	*Document
	found []Finding
}

func (v *validator) find(s *statement, t FindingType, code, format string, args ...any) {
	f := Finding{Type: t, Code: code, Message: fmt.Sprintf(format, args...), Position: Position{1, 1}}
	if s != nil {
		f.Statement, f.Position = s.label, positionOf(v.text, s.start)
	}
	v.found = append(v.found, f)
}

// allow looks at what makes an Allow give more than one would think.
func (v *validator) allow(s *statement) {
	everything := false
	for i := range s.resources {
		everything = everything || s.resources[i].all && !s.notRes
	}
	for _, a := range s.actions {
		switch {
		case s.notActions:
		case a.text == "*" && everything:
			v.find(s, SecurityWarning, "ALLOW_WITH_ADMINISTRATOR_ACCESS", "it allows everything on everything: list the actions")
		case a.match("iam:PassRole") && everything:
			v.find(s, SecurityWarning, "PASS_ROLE_WITH_STAR_IN_RESOURCE", "action %s lets any role be passed: name the roles in Resource", a.text)
		}
	}
	if s.notActions && everything {
		v.find(s, SecurityWarning, "ALLOW_WITH_NOT_ACTION", "NotAction allows every other action, also of services to come: use Action")
	}
	if s.notRes {
		v.find(s, Warning, "ALLOW_WITH_NOT_RESOURCE", "NotResource allows every other resource: use Resource")
	}
	for _, p := range s.principals {
		if p.everyone && len(s.conditions) == 0 {
			v.find(s, SecurityWarning, "ALLOW_WITH_STAR_PRINCIPAL", "everyone is allowed: name principals or put a condition")
		}
	}
	for _, c := range s.conditions {
		if c.forAll && !s.tests(c.key) {
			v.find(s, SecurityWarning, "FORALLVALUES_WITH_SINGLE_VALUED_KEY", "ForAllValues is true when %s is absent: add a Null condition of false on it", c.key)
		}
	}
	v.both(s)
}

// tests is whether the statement holds only when the key is there.
func (s *statement) tests(key string) bool {
	present := Context{}
	for _, c := range s.conditions {
		if c.key == key && c.operator.null && !c.holds(present) {
			return true
		}
	}
	return false
}

// both looks at what is odd in a statement of either effect.
func (v *validator) both(s *statement) {
	for _, c := range s.conditions {
		if s.deny && c.ifExists {
			v.find(s, Suggestion, "DENY_WITH_IF_EXISTS", "it also denies when %s is absent", c.key)
		}
		if multivalued(c.key) != (c.forAll || c.forAny) && !c.operator.null && strings.HasPrefix(c.key, "aws:") {
			v.find(s, Warning, "SET_OPERATOR_WITH_SINGLE_VALUED_KEY", "%s has one value at most: leave out the set prefix", c.key)
		}
		if c.starred {
			v.find(s, Warning, "WILDCARD_WITHOUT_LIKE_OPERATOR", "in the values of %s * and ? stand for themselves: use StringLike", c.key)
		}
	}
	for _, r := range s.resources {
		if !r.all && len(r.fields) < arnFields {
			v.find(s, Warning, "MISSING_ARN_FIELD", "an ARN has six fields; this one allows less than it denies")
		}
		if len(r.fields) > 2 && r.fields[2].wild() {
			v.find(s, Warning, "WILDCARD_IN_SERVICE", "AWS does not take wildcards in the service of an ARN")
		}
	}
}

func (p pattern) wild() bool {
	for _, piece := range p {
		if piece.kind == anyRun || piece.kind == anyOne {
			return true
		}
	}
	return false
}
