package policy

import (
	"encoding/json"
	"regexp"
	"strings"
)

// A Principal is who asks, as the Principal element of a policy names it.
type Principal struct {
	// Kind is "AWS", "Service", "Federated" or "CanonicalUser"; "" is nobody.
	Kind string
	// Value is the ARN of a user, of a session (assumed-role, federated-user) or
	// of the account's root; the service, provider or canonical id otherwise.
	Value string
	// Parent is the ARN of the role that a session is of, or of the user that a
	// federated user was made by.
	Parent string
	// ID is the unique id of the user (AIDA…) or session (AROA…:name), or "".
	ID string
}

// name is the ARN of an AWS principal, cut into its fields.
func (p *Principal) name() arn {
	if p.Kind != "AWS" {
		return arn{}
	}
	return parseARN(p.Value)
}

// An asker is a principal prepared for many patterns.
type asker struct {
	*Principal
	arn arn // zero for one that is not of AWS
}

// federated is whether it is a session of GetFederationToken, which may do
// nothing without session policies.
func (p *asker) federated() bool {
	return strings.HasPrefix(p.arn.fields[arnFields-1], "federated-user/")
}

// A grant is how closely a resource's policy names a principal, which decides
// what else can limit it.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic_policy-eval-denyallow.html
type grant byte

const (
	notNamed grant = iota
	// delegated to the account: its own policies decide.
	delegated
	// limited by boundary and session policies: the role of the session, the
	// user of the federated user, or everyone.
	limited
	// direct to this user, session, service or provider: nothing limits it but a Deny.
	direct
)

// A principalPattern is one whom a policy names.
type principalPattern struct {
	kind     string
	value    string
	account  string // the value names a whole account
	everyone bool
}

var (
	accountForm = regexp.MustCompile(`^[0-9]{12}$`)
	rootForm    = regexp.MustCompile(`^arn:aws[a-z-]*:iam::([0-9]{12}):root$`)
	awsForm     = regexp.MustCompile(`^arn:aws[a-z-]*:(iam::[0-9]{12}:(user|role)/|sts::[0-9]{12}:(assumed-role/[^/]+|federated-user)/)[^*?$]+$`)
	uniqueForm  = regexp.MustCompile(`^(AIDA[A-Z0-9]{12,124}|AROA[A-Z0-9]{12,124}(:[\w+=,.@-]{2,64})?)$`) // of a session with its name
	serviceForm = regexp.MustCompile(`^[a-z0-9-]+(\.[a-z0-9-]+)+$`)
	nameForm    = regexp.MustCompile(`^[^*?$\s]+$`)
)

// compilePrincipal reads one value; ok is whether it has a known form.
func compilePrincipal(kind, value string) (p principalPattern, ok bool) {
	p = principalPattern{kind: kind, value: value}
	switch kind {
	case "AWS":
		root := rootForm.FindStringSubmatch(value)
		switch {
		case value == "*":
			p.everyone = true
		case accountForm.MatchString(value):
			p.account = value
		case root != nil:
			p.account = root[1]
		default:
			return p, awsForm.MatchString(value) || uniqueForm.MatchString(value)
		}
		return p, true
	case "Service":
		return p, serviceForm.MatchString(value)
	case "Federated", "CanonicalUser":
		return p, nameForm.MatchString(value)
	}
	return p, false
}

func (p *parser) principals(n node) (out []principalPattern, err error) {
	if n.value == "*" {
		return []principalPattern{{everyone: true}}, nil
	}
	o, ok := n.value.(object)
	if !ok {
		return nil, p.fail(n, "neither * nor an object")
	}
	for _, m := range o {
		list, err := p.stringsOf(m.node)
		if err != nil {
			return nil, err
		}
		for i, s := range list {
			one, ok := compilePrincipal(m.name, s)
			if !ok {
				return nil, p.fail(m.list()[i], "principal %s %q is not of a known form; wildcards are not allowed in it", m.name, s)
			}
			out = append(out, one)
			if m.name == "AWS" {
				p.accounts = append(p.accounts, m.list()[i])
			}
		}
	}
	if len(out) == 0 {
		return nil, p.fail(n, "the Principal is empty")
	}
	return out, nil
}

// RenamePrincipals is the text of the document with other AWS principals in the
// place of those that it names: rename gets each, as often as it stands there.
// Its error comes back as an [*Error] that says where.
func (d *Document) RenamePrincipals(rename func(string) (string, error)) (string, error) {
	var out strings.Builder
	at := 0
	for _, n := range d.accounts {
		was := n.value.(string)
		name, err := rename(was)
		if err != nil {
			return "", &Error{Position: positionOf(d.text, n.start), Path: n.path, Reason: err.Error()}
		}
		if name == was {
			continue
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return "", err
		}
		out.WriteString(d.text[at:n.start])
		out.Write(quoted)
		at = n.end
	}
	out.WriteString(d.text[at:])
	return out.String(), nil
}

// names is how closely the pattern names the principal.
func (pp *principalPattern) names(p *asker) grant {
	switch {
	case pp.everyone:
		return limited
	case pp.kind != p.Kind:
		return notNamed
	case pp.value == p.Value:
		return direct
	case p.Kind != "AWS":
		return notNamed
	case p.ID != "" && pp.value == p.ID:
		return direct
	case p.Parent != "" && pp.value == p.Parent, pp.isRoleOf(p.ID):
		return limited
	case pp.account != "" && pp.account == p.arn.account():
		return delegated
	}
	return notNamed
}

// isRoleOf is whether a session's id, AROA…:name, is of the role that the
// pattern has the id of.
func (pp *principalPattern) isRoleOf(session string) bool {
	role, _, found := strings.Cut(session, ":")
	return found && strings.HasPrefix(role, "AROA") && role == pp.value
}

// grants is how closely an Allow statement names the principal. Only accounts'
// principals are meant by *: a service is always named.
func (s *statement) grants(p *asker) (out grant) {
	for i := range s.principals {
		if pp := &s.principals[i]; !pp.everyone || p.Kind == "AWS" {
			out = max(out, pp.names(p))
		}
	}
	return out
}

// hits is whether a Deny statement speaks of the principal. NotPrincipal
// spares whoever it names whole: the account, the role if there is one, and
// the user or session. It never spares one that has a boundary.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_notprincipal.html
func (s *statement) hits(p *asker, bounded bool) bool {
	if !s.notPrinc {
		for i := range s.principals {
			if s.principals[i].names(p) != notNamed {
				return true
			}
		}
		return false
	}
	if bounded {
		return true
	}
	var seen [direct + 1]bool
	for i := range s.principals {
		pp := &s.principals[i]
		if pp.everyone {
			return false
		}
		seen[pp.names(p)] = true
	}
	spared := seen[direct] && (p.Kind != "AWS" || seen[delegated]) && (p.Parent == "" || seen[limited])
	return !spared
}
