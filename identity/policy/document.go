package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// A Kind says what a document is for, which decides what its statements may hold.
type Kind int

// A document of kind Identity is attached to a user or role, or is a permissions
// boundary or a session policy; one of kind Trust says who may assume a role.
const (
	Identity Kind = iota
	Trust
)

// maxDocument is the size in bytes above which a document is refused. AWS
// allows 6,144 for managed policies and 10,240 for a role's inline ones.
const maxDocument = 10240

// A Document is a policy in the language of AWS IAM, parsed and checked. It is
// never changed.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
type Document struct {
	name       string // for explanations
	text       string
	statements []statement
}

// Text is the document as it was given.
func (d *Document) Text() string { return d.text }

// A statement is one rule of a document.
type statement struct {
	label      string // Sid, or its position
	deny       bool
	actions    []pattern
	notActions bool // actions lists what is not meant
	resources  []arnPattern
	notRes     bool // resources lists what is not meant
	principals []principalPattern
	conditions []condition
	// needs are the variables of an Allow whose absence would make it allow
	// more, because they stand in a NotResource or a negated condition. Without
	// them the statement does not apply.
	needs []string
}

// An Error says what is wrong with a policy document, and where.
type Error struct {
	Statement string // "" when it is the document itself
	Reason    string
}

func (e *Error) Error() string {
	if e.Statement == "" {
		return "malformed policy document: " + e.Reason
	}
	return fmt.Sprintf("malformed policy document: statement %s: %s", e.Statement, e.Reason)
}

// Parse checks a document whole. Name appears in explanations.
// The error is a [*Error].
func Parse(kind Kind, name, text string) (*Document, error) {
	if len(text) > maxDocument {
		return nil, &Error{Reason: fmt.Sprintf("%d bytes long, at most %d are allowed", len(text), maxDocument)}
	}
	tree, err := parseJSON(text)
	if err != nil {
		return nil, &Error{Reason: err.Error()}
	}
	top, ok := tree.(object)
	if !ok {
		return nil, &Error{Reason: "not an object"}
	}
	p := &parser{kind: kind}
	statements, err := p.document(top)
	if err != nil {
		if e := (*Error)(nil); errors.As(err, &e) {
			return nil, e
		}
		return nil, &Error{Statement: p.label, Reason: err.Error()}
	}
	return &Document{name: name, text: text, statements: statements}, nil
}

// A parser reads one document.
type parser struct {
	kind      Kind
	variables bool // the document's version has policy variables
	// of the statement being read
	label string
	needs []string
}

func (p *parser) document(top object) ([]statement, error) {
	var list []any
	for name, value := range top.each {
		switch name {
		case "Version":
			switch value {
			case "2012-10-17":
				p.variables = true
			case "2008-10-17":
			default:
				return nil, fmt.Errorf("version %v is not known; write 2012-10-17", value)
			}
		case "Id":
			if _, ok := value.(string); !ok {
				return nil, errors.New("the Id is not a string")
			}
		case "Statement":
			var ok bool
			if list, ok = value.([]any); !ok {
				list = []any{value}
			}
		default:
			return nil, fmt.Errorf("element %q is not known", name)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("there is no statement")
	}
	var out []statement
	sids := map[string]bool{}
	for i, value := range list {
		p.label = fmt.Sprintf("#%d", i+1)
		o, ok := value.(object)
		if !ok {
			return nil, errors.New("not an object")
		}
		s, err := p.statement(o)
		if err != nil {
			return nil, err
		}
		if sids[s.label] {
			return nil, errors.New("its Sid is used twice")
		}
		sids[s.label] = true
		out = append(out, s)
	}
	return out, nil
}

var sidForm = regexp.MustCompile(`^[A-Za-z0-9]*$`)

func (p *parser) statement(o object) (s statement, err error) {
	s.label = p.label
	p.needs = nil
	if sid, ok := o.get("Sid").(string); ok && sid != "" {
		s.label, p.label = sid, sid
	}
	for name, value := range o.each {
		if err := p.element(&s, name, value); err != nil {
			return s, err
		}
	}
	if !s.deny {
		s.needs = p.needs
	}
	return s, p.complete(o)
}

// element reads one member of a statement.
func (p *parser) element(s *statement, name string, value any) (err error) {
	switch name {
	case "Sid":
		if sid, ok := value.(string); !ok || !sidForm.MatchString(sid) {
			return errors.New("the Sid may only have letters and digits")
		}
	case "Effect":
		if value != "Allow" && value != "Deny" {
			return fmt.Errorf("effect %v is neither Allow nor Deny", value)
		}
		s.deny = value == "Deny"
	case "Action", "NotAction":
		s.notActions = name == "NotAction"
		s.actions, err = p.actions(value)
	case "Resource", "NotResource":
		s.notRes = name == "NotResource"
		s.resources, err = p.resources(value)
		if s.notRes {
			for _, r := range s.resources {
				for _, field := range r.fields {
					p.needs = field.variables(p.needs)
				}
			}
		}
	case "Principal":
		s.principals, err = p.principals(value)
	case "Condition":
		s.conditions, err = p.conditions(value)
	default:
		return fmt.Errorf("element %q is not known", name)
	}
	return err
}

// complete checks that a statement has what its kind asks for, and no more.
func (p *parser) complete(o object) error {
	one := func(a, b string) error {
		if o.has(a) == o.has(b) {
			return fmt.Errorf("one of %s and %s is needed, and not both", a, b)
		}
		return nil
	}
	if !o.has("Effect") {
		return errors.New("there is no Effect")
	}
	if err := one("Action", "NotAction"); err != nil {
		return err
	}
	if p.kind == Trust {
		if o.has("Resource") || o.has("NotResource") {
			return errors.New("a trust policy has no Resource: it stands for its own role")
		}
		if !o.has("Principal") {
			return errors.New("there is no Principal")
		}
		return nil
	}
	if o.has("Principal") {
		return errors.New("an identity's policy has no Principal: it stands for its holder")
	}
	return one("Resource", "NotResource")
}

// stringsOf reads a string or a list of strings; neither may be empty.
func stringsOf(value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var out []string
	for _, element := range list {
		s, ok := element.(string)
		if !ok {
			return nil, fmt.Errorf("%v is not a string", element)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, errors.New("a list is empty")
	}
	return out, nil
}

var actionForm = regexp.MustCompile(`^(\*|([a-z0-9-]+|\*):[a-z0-9*?]+)$`)

func (p *parser) actions(value any) (out []pattern, err error) {
	list, err := stringsOf(value)
	if err != nil {
		return nil, fmt.Errorf("action: %w", err)
	}
	for _, s := range list {
		if !actionForm.MatchString(strings.ToLower(s)) {
			return nil, fmt.Errorf("action %q is not of the form service:Name", s)
		}
		compiled, err := compilePattern(strings.ToLower(s), false)
		if err != nil {
			return nil, err
		}
		out = append(out, compiled)
	}
	return out, nil
}

func (p *parser) resources(value any) (out []arnPattern, err error) {
	list, err := stringsOf(value)
	if err != nil {
		return nil, fmt.Errorf("resource: %w", err)
	}
	for _, s := range list {
		a, err := compileARN(s, p.variables)
		if err != nil {
			return nil, fmt.Errorf("resource %q: %w", s, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// A principalPattern is whom a trust policy speaks of.
type principalPattern struct {
	kind  string // "AWS", "Service", "Federated"; "*" is everyone
	value string
}

var accountForm = regexp.MustCompile(`^[0-9]{12}$`)

func (p *parser) principals(value any) (out []principalPattern, err error) {
	if value == "*" {
		return []principalPattern{{kind: "*"}}, nil
	}
	o, ok := value.(object)
	if !ok {
		return nil, errors.New("the Principal is neither * nor an object")
	}
	for kind, value := range o.each {
		list, err := stringsOf(value)
		if err != nil {
			return nil, fmt.Errorf("principal: %w", err)
		}
		for _, s := range list {
			switch {
			case kind == "AWS" && s == "*":
				out = append(out, principalPattern{kind: "*"})
			case kind == "AWS" && accountForm.MatchString(s):
				out = append(out, principalPattern{kind, "arn:aws:iam::" + s + ":root"})
			case kind == "AWS" && strings.HasPrefix(s, "arn:") && !strings.ContainsAny(s, "*?$"),
				(kind == "Service" || kind == "Federated") && s != "" && !strings.ContainsAny(s, "*?$"):
				out = append(out, principalPattern{kind, s})
			default:
				return nil, fmt.Errorf("principal %s %q is not of a known form; wildcards are not allowed in it", kind, s)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the Principal is empty")
	}
	return out, nil
}

// An object is a JSON object in its order. Unlike a map it cannot lose one of
// two members of the same name, which is where a reader and a program would
// see different policies.
type object []member

type member struct {
	name  string
	value any // object, []any, string, json.Number, bool, nil
}

func (o object) each(yield func(string, any) bool) {
	for _, m := range o {
		if !yield(m.name, m.value) {
			return
		}
	}
}

func (o object) get(name string) any {
	for _, m := range o {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

func (o object) has(name string) bool { return o.get(name) != nil }

// parseJSON reads one JSON value and refuses repeated names.
func parseJSON(text string) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.UseNumber()
	value, err := parseValue(decoder, 0)
	if err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("something follows the document")
	}
	return value, nil
}

// maxNesting is more than any policy needs.
const maxNesting = 8

func parseValue(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if depth == maxNesting {
		return nil, errors.New("nested too deeply")
	}
	if delim == '[' {
		list := []any{}
		for d.More() {
			value, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		_, err := d.Token()
		return list, err
	}
	var o object
	seen := map[string]bool{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		text, _ := name.(string)
		if seen[text] {
			return nil, fmt.Errorf("element %q stands twice", text)
		}
		seen[text] = true
		value, err := parseValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		o = append(o, member{text, value})
	}
	_, err = d.Token()
	return o, err
}
