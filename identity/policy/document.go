package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Kind says what a document is for, which decides what its statements may hold.
type Kind int

// The kinds of documents.
const (
	// Identity is attached to a user, group or role, or is a permissions
	// boundary or a session policy. Its statements have a resource and no principal.
	Identity Kind = iota
	// Trust says who may assume a role: with principals, and without resources
	// because it stands for its role. It must allow, see [Evaluate].
	Trust
	// Resource is attached to a resource and says who may do what with it: with
	// principals and resources.
	Resource
	// Key is a resource's policy without which nobody may do anything with it,
	// as that of an encryption key.
	Key
)

// Limits of AWS in characters as [Size] counts them. For inline policies they
// hold for all of one holder together. Whoever takes a document in checks them
// with [CheckSize]: what a document is for is known there.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
const (
	MaxUserInline  = 2048
	MaxGroupInline = 5120
	MaxRoleInline  = 10240
	MaxManaged     = 6144
	MaxTrust       = 2048
	MaxSession     = 2048 // the inline and managed ones of a session together, as passed
)

// maxDocument is the size above which [Parse] refuses any document.
const maxDocument = MaxRoleInline

// A Document is a policy in the language of AWS IAM, parsed and checked. It is
// never changed, so it is safe for concurrent use.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
type Document struct {
	kind      Kind
	name      string // for explanations
	text      string
	variables bool // its version has policy variables
	allows    []statement
	denies    []statement
	keys      []string
	accounts  []node // AWS principals, as they stand in the text
}

// Text is the document as it was given.
func (d *Document) Text() string { return d.text }

// Name is the name that the document was parsed with.
func (d *Document) Name() string { return d.name }

// ContextKeys lists the condition keys that the document asks for, in lower
// case and sorted, without repetition. It must not be written to.
func (d *Document) ContextKeys() []string { return d.keys }

// A statement is one rule of a document.
type statement struct {
	document   string // its name
	label      string // Sid, or its position
	start, end int    // in the text
	deny       bool
	actions    []action
	notActions bool // actions lists what is not meant
	resources  []resourcePattern
	notRes     bool // resources lists what is not meant
	principals []principalPattern
	notPrinc   bool // principals lists who is not meant
	conditions []condition
	// needs are the variables of an Allow whose absence would make it allow
	// more, because they stand in a NotResource or a negated condition. Without
	// them the statement does not apply.
	needs []string
}

// An Error says what is wrong with a policy document, and where.
type Error struct {
	Position        // of the offending element; zero when it is the document itself
	Path     string // of the element: "Statement[0].Condition.StringEquals"; "" is the document
	Reason   string
}

func (e *Error) Error() string {
	where := ""
	if e.Line > 0 {
		where = fmt.Sprintf("line %d, column %d: ", e.Line, e.Column)
	}
	if e.Path != "" {
		where += e.Path + ": "
	}
	return "malformed policy document: " + where + e.Reason
}

// Parse checks a document whole. Name appears in explanations. The error is a
// [*Error], with the position of the first mistake.
func Parse(kind Kind, name, text string) (*Document, error) {
	if len(text) > maxText {
		return nil, &Error{Reason: fmt.Sprintf("%d bytes long, at most %d are allowed", len(text), maxText)}
	}
	if err := CheckSize(maxDocument, text); err != nil {
		return nil, err
	}
	p := &parser{Document: Document{kind: kind, name: name, text: text}}
	top, err := parseTree(text)
	if err != nil {
		return nil, p.at(top, err)
	}
	if err := p.document(top); err != nil {
		return nil, err
	}
	slices.Sort(p.keys)
	p.keys = slices.Compact(p.keys)
	return &p.Document, nil
}

// A parser reads one document.
type parser struct {
	Document
	deny  bool     // of the statement being read: its effect
	needs []string // likewise
}

// at makes an error of what is wrong with a node, unless it is one already.
func (p *parser) at(n node, err error) error {
	if e := (*Error)(nil); err == nil || errors.As(err, &e) {
		return err
	}
	return &Error{Position: positionOf(p.text, n.start), Path: n.path, Reason: err.Error()}
}

func (p *parser) fail(n node, format string, args ...any) error {
	return p.at(n, fmt.Errorf(format, args...))
}

func (p *parser) document(top node) error {
	o, ok := top.value.(object)
	if !ok {
		return p.fail(top, "not an object")
	}
	var list []node
	for _, m := range o {
		switch m.name {
		case "Version":
			if m.value != "2012-10-17" && m.value != "2008-10-17" {
				return p.fail(m.node, "version %v is not known; write 2012-10-17", m.value)
			}
			p.variables = m.value == "2012-10-17"
		case "Id":
			if _, ok := m.value.(string); !ok {
				return p.fail(m.node, "the Id is not a string")
			}
		case "Statement":
			list = m.list()
		default:
			return p.fail(m.node, "element %q is not known", m.name)
		}
	}
	if len(list) == 0 {
		return p.fail(top, "there is no statement")
	}
	sids := map[string]bool{}
	for i, n := range list {
		s, err := p.statement(n, fmt.Sprintf("#%d", i+1))
		if err != nil {
			return err
		}
		if sids[s.label] {
			return p.fail(n, "its Sid %s is used twice", s.label)
		}
		sids[s.label] = true
		if s.deny {
			p.denies = append(p.denies, s)
		} else {
			p.allows = append(p.allows, s)
		}
	}
	return nil
}

var sidForm = regexp.MustCompile(`^[A-Za-z0-9]*$`)

func (p *parser) statement(n node, label string) (s statement, err error) {
	o, ok := n.value.(object)
	if !ok {
		return s, p.fail(n, "not an object")
	}
	s = statement{document: p.name, label: label, start: n.start, end: n.end}
	p.needs = nil
	// What a value compiles to depends on the effect, so that comes first.
	effect, ok := o.get("Effect")
	switch {
	case !ok:
		return s, p.fail(n, "there is no Effect")
	case effect.value != "Allow" && effect.value != "Deny":
		return s, p.fail(effect, "effect %v is neither Allow nor Deny", effect.value)
	}
	s.deny = effect.value == "Deny"
	p.deny = s.deny
	if err := p.complete(n, o); err != nil {
		return s, err
	}
	for _, m := range o {
		if err := p.element(&s, m); err != nil {
			return s, p.at(m.node, err)
		}
	}
	if !s.deny {
		s.needs = p.needs
	}
	return s, nil
}

// element reads one member of a statement.
func (p *parser) element(s *statement, m member) (err error) {
	switch m.name {
	case "Effect":
	case "Sid":
		sid, ok := m.value.(string)
		if !ok || !sidForm.MatchString(sid) {
			return errors.New("the Sid may only have letters and digits")
		}
		if sid != "" {
			s.label = sid
		}
	case "Action", "NotAction":
		s.notActions = m.name == "NotAction"
		s.actions, err = p.actions(m.node)
	case "Resource", "NotResource":
		s.notRes = m.name == "NotResource"
		s.resources, err = p.resources(m.node, s.notRes)
	case "Principal", "NotPrincipal":
		s.notPrinc = m.name == "NotPrincipal"
		s.principals, err = p.principals(m.node)
	case "Condition":
		s.conditions, err = p.conditions(m.node)
	default:
		return fmt.Errorf("element %q is not known", m.name)
	}
	return err
}

// complete checks that a statement has what its kind asks for, and no more.
func (p *parser) complete(n node, o object) error {
	one := func(a, b string) error {
		if o.has(a) == o.has(b) {
			return p.fail(n, "one of %s and %s is needed, and not both", a, b)
		}
		return nil
	}
	if err := one("Action", "NotAction"); err != nil {
		return err
	}
	switch {
	case p.kind == Identity && (o.has("Principal") || o.has("NotPrincipal")):
		return p.fail(n, "an identity's policy has no Principal: it stands for its holder")
	case p.kind == Trust && (o.has("Resource") || o.has("NotResource")):
		return p.fail(n, "a trust policy has no Resource: it stands for its own role")
	case p.kind == Trust && o.has("NotPrincipal"):
		return p.fail(n, "a trust policy has no NotPrincipal: use a condition on aws:PrincipalArn")
	case !p.deny && o.has("NotPrincipal"):
		return p.fail(n, "NotPrincipal goes with Deny only: an Allow would name everybody else in the world")
	}
	if p.kind != Identity {
		if err := one("Principal", "NotPrincipal"); err != nil {
			return err
		}
	}
	if p.kind == Trust {
		return nil
	}
	return one("Resource", "NotResource")
}

// stringsOf reads a string or a list of strings; neither may be empty.
func (p *parser) stringsOf(n node) ([]string, error) {
	var out []string
	for _, element := range n.list() {
		s, ok := element.value.(string)
		if !ok {
			return nil, p.fail(element, "not a string")
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, p.fail(n, "the list is empty")
	}
	return out, nil
}

var actionForm = regexp.MustCompile(`^(\*|([a-z0-9-]+|\*):[a-z0-9*?]+)$`)

func (p *parser) actions(n node) (out []action, err error) {
	list, err := p.stringsOf(n)
	if err != nil {
		return nil, err
	}
	for i, s := range list {
		if !actionForm.MatchString(strings.ToLower(s)) {
			return nil, p.fail(n.list()[i], "action %q is not of the form service:Name", s)
		}
		out = append(out, compileAction(strings.ToLower(s)))
	}
	return out, nil
}

func (p *parser) resources(n node, not bool) (out []resourcePattern, err error) {
	list, err := p.stringsOf(n)
	if err != nil {
		return nil, err
	}
	for i, s := range list {
		r, err := compileResource(s, p.variables, p.deny != not)
		if err != nil {
			return nil, p.fail(n.list()[i], "resource %q: %w", s, err)
		}
		p.keys = r.keys(p.keys, false)
		if not {
			p.needs = r.keys(p.needs, true)
		}
		out = append(out, r)
	}
	return out, nil
}
