package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A Decision is yes or no, and why. The zero value is no.
type Decision struct {
	Allowed bool
	// Explicit is whether a Deny statement said no; otherwise nothing said yes.
	Explicit bool
	// Layer is the one that decided.
	Layer Layer
	// Outcomes is what each layer says. After a Deny the layers behind the one
	// that has it were not asked and are Absent, except in an explanation.
	Outcomes [layerCount]Outcome

	// Only [Explain] fills in these two.

	// Matched are all statements that apply to the request.
	Matched []Match
	// Missing are the condition keys that the policies ask for and the request
	// does not have, sorted.
	Missing []string

	statement        *statement // that decided; nil: none did
	action, resource string
	refusal          string
}

// An Outcome is what one layer says.
type Outcome byte

// The outcomes, the weightier the later.
const (
	Absent  Outcome = iota // there is no such policy
	Silent                 // no statement allows
	Allowed                // a statement allows
	Denied                 // a statement denies
)

var outcomeNames = [...]string{"absent", "implicitDeny", "allowed", "explicitDeny"}

func (o Outcome) String() string { return outcomeNames[o] }

// A Match is a statement that applies to a request.
type Match struct {
	Document   *Document
	Layer      Layer
	Statement  string // Sid, or its position: "#1" is the first
	Deny       bool
	Start, End Position // End is behind the last character
}

// Verdict is the decision in the words of IAM's policy simulator: allowed,
// explicitDeny or implicitDeny.
func (d *Decision) Verdict() string {
	switch {
	case d.Allowed:
		return Allowed.String()
	case d.Explicit:
		return Denied.String()
	}
	return Silent.String()
}

// Statement is the document and the statement that decided; both are "" when
// it was decided by the lack of one.
func (d *Decision) Statement() (document, statement string) {
	if d.statement == nil {
		return "", ""
	}
	return d.statement.document, d.statement.label
}

// Reason says in a sentence what decided. It is for the audit log and the
// administrator; a stranger is not told it.
func (d *Decision) Reason() string {
	switch {
	case d.refusal != "":
		return d.refusal
	case d.statement != nil && d.Explicit:
		return fmt.Sprintf("denied by statement %s of %s (%s)", d.statement.label, d.statement.document, d.Layer)
	case d.statement != nil:
		return fmt.Sprintf("allowed by statement %s of %s (%s)", d.statement.label, d.statement.document, d.Layer)
	}
	return fmt.Sprintf("no statement of the %s allows %s on %s", d.Layer, d.action, d.resource)
}

// layerKinds is what AWS calls a policy of each layer when it says no.
var layerKinds = [layerCount]struct{ article, kind string }{
	{"an", "identity-based policy"}, {"a", "permissions boundary"}, {"a", "session policy"}, {"a", "resource-based policy"},
}

// Because is how AWS tells the caller why not, behind "… is not authorized to
// perform: … on resource: …": what kind of policy it was, and nothing of its content.
// It is "" for what is allowed.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html
func (d *Decision) Because() string {
	kind := layerKinds[d.Layer]
	switch {
	case d.Allowed:
		return ""
	case d.refusal != "":
		return "because no policy allows the action"
	}
	if d.Explicit {
		return "with an explicit deny in " + kind.article + " " + kind.kind
	}
	return "because no " + kind.kind + " allows the " + d.action + " action"
}

// MarshalJSON writes the decision for machines: what was asked, the verdict,
// what decided, and what each layer says. It is compact, because it travels in
// messages of errors.
func (d Decision) MarshalJSON() ([]byte, error) {
	document, statement := d.Statement()
	layers := map[string]string{}
	for l, o := range d.Outcomes {
		if o != Absent {
			layers[Layer(l).String()] = o.String()
		}
	}
	type match struct {
		Document  string   `json:"document"`
		Statement string   `json:"statement"`
		Layer     string   `json:"layer"`
		Deny      bool     `json:"deny,omitempty"`
		Start     Position `json:"start"`
		End       Position `json:"end"`
	}
	var matched []match
	for _, m := range d.Matched {
		matched = append(matched, match{m.Document.name, m.Statement, m.Layer.String(), m.Deny, m.Start, m.End})
	}
	return json.Marshal(struct {
		Verdict   string            `json:"verdict"`
		Action    string            `json:"action,omitempty"`
		Resource  string            `json:"resource,omitempty"`
		Layer     string            `json:"layer"`
		Document  string            `json:"document,omitempty"`
		Statement string            `json:"statement,omitempty"`
		Reason    string            `json:"reason"`
		Layers    map[string]string `json:"layers,omitempty"`
		Matched   []match           `json:"matched,omitempty"`
		Missing   []string          `json:"missing,omitempty"`
	}{d.Verdict(), d.action, d.resource, d.Layer.String(), document, statement, d.Reason(), layers, matched, d.Missing})
}

// Opens is whether a statement allows any action of a service, "mgn" for
// example, to somebody and under some circumstances. Those that deny are not
// looked at.
func (d *Document) Opens(service string) bool {
	for i := range d.allows {
		if d.allows[i].opens(strings.ToLower(service)) {
			return true
		}
	}
	return false
}

func (s *statement) opens(service string) bool {
	for _, a := range s.actions {
		of, operation, _ := strings.Cut(a.text, ":")
		whole := a.text == "*" || strings.Trim(operation, "*") == ""
		if (of == "*" || of == service) && (whole || !s.notActions) {
			return !s.notActions
		}
	}
	return s.notActions
}

// Explain decides like [Evaluate], and looks at every statement to say all
// that bears on it. It takes longer.
func Explain(r *Request) Decision {
	d := Evaluate(r)
	q := ask(r)
	var one [1]*Document
	for l := range layerCount {
		list, there := r.Policies.of(l, &one)
		d.Outcomes[l] = outcome(there || l == SessionLayer && q.asker.federated(), false)
		for _, doc := range list {
			d.Outcomes[l] = max(d.Outcomes[l], q.collect(&d, l, doc))
			for _, key := range doc.keys {
				if len(r.Context[key]) == 0 {
					d.Missing = append(d.Missing, key)
				}
			}
		}
	}
	slices.Sort(d.Missing)
	d.Missing = slices.Compact(d.Missing)
	return d
}

// collect adds the statements of a document that apply, in their order.
func (q *question) collect(d *Decision, l Layer, doc *Document) (o Outcome) {
	from := len(d.Matched)
	add := func(s *statement, effect Outcome) {
		o = max(o, effect)
		d.Matched = append(d.Matched, Match{
			Document: doc, Layer: l, Statement: s.label, Deny: s.deny,
			Start: positionOf(doc.text, s.start), End: positionOf(doc.text, s.end),
		})
	}
	for i := range doc.denies {
		if s := &doc.denies[i]; q.applies(s) && (s.principals == nil || s.hits(&q.asker, q.Policies.Boundary != nil)) {
			add(s, Denied)
		}
	}
	for i := range doc.allows {
		if s := &doc.allows[i]; q.applies(s) && (s.principals == nil || s.grants(&q.asker) != notNamed) {
			add(s, Allowed)
		}
	}
	slices.SortFunc(d.Matched[from:], func(a, b Match) int {
		if a.Start.Line != b.Start.Line {
			return a.Start.Line - b.Start.Line
		}
		return a.Start.Column - b.Start.Column
	})
	return o
}
