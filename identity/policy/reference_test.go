package policy

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A reference decides requests as the user guide of IAM tells it, sentence by
// sentence and as slowly as it likes: documents are maps, wildcards regular
// expressions. It shares no code with what it checks. One of its rules can be
// left out, to show that the comparison would notice.
type reference struct{ without string }

func (r reference) rule(name string) bool { return r.without != name }

// rules names what can be left out.
var rules = []string{
	"an explicit deny wins", "a deny in the boundary counts", "a deny in the session policy counts", "a deny of the resource counts",
	"the boundary must allow", "the session policy must allow", "an identity policy must allow",
	"the session of a federated user must have policies", "a direct grant needs no more", "a grant to the role is limited",
	"an account is only a delegation", "a trust policy must allow", "another account must agree on both sides",
	"NotPrincipal spares whoever is named whole", "NotPrincipal never spares the bounded", "a service is not everyone",
	"actions ignore case", "resources heed case", "NotAction turns round", "NotResource turns round", "a star of an allow stays in its field", "a star of a deny goes on",
	"an unknown variable matches nothing", "an unknown variable in a negation stops an allow", "the value of a variable has no wildcards", "variables need the version",
	"all conditions must hold", "one value is enough", "negated operators turn round", "an absent key fits nothing", "an absent key satisfies a negation",
	"IfExists", "ForAllValues", "ForAnyValue", "all of several values for an allow", "one of several values for a deny", "Null",
}

type refDocument map[string]any

type refPolicies struct {
	identity, session []refDocument
	boundary          refDocument
	resource          refDocument
	trust             bool
}

func (r reference) decide(q *Request, p refPolicies) string {
	if r.rule("an explicit deny wins") {
		everywhere := slices.Clone(p.identity)
		if r.rule("a deny in the boundary counts") && p.boundary != nil {
			everywhere = append(everywhere, p.boundary)
		}
		if r.rule("a deny in the session policy counts") {
			everywhere = append(everywhere, p.session...)
		}
		for _, d := range everywhere {
			if len(r.matching(q, d, "Deny")) > 0 {
				return "explicitDeny"
			}
		}
		if p.resource != nil && r.rule("a deny of the resource counts") {
			for _, s := range r.matching(q, p.resource, "Deny") {
				if r.struck(q.Principal, s, p.boundary != nil) {
					return "explicitDeny"
				}
			}
		}
	}
	allows := func(documents ...refDocument) bool {
		return slices.ContainsFunc(documents, func(d refDocument) bool { return len(r.matching(q, d, "Allow")) > 0 })
	}
	self, role, account := r.grants(q, p.resource)
	identity := allows(p.identity...) || !r.rule("an identity policy must allow")
	boundary := p.boundary == nil || allows(p.boundary) || !r.rule("the boundary must allow")
	session := len(p.session) == 0 || allows(p.session...) || !r.rule("the session policy must allow")
	if len(p.session) == 0 && strings.Contains(q.Principal.Value, ":federated-user/") && r.rule("the session of a federated user must have policies") {
		session = false
	}
	owner := compiled(`^arn:[^:]*:[^:]*:[^:]*:([0-9]{12}):`).FindStringSubmatch(q.Resource)
	caller := compiled(`^arn:[^:]*:[^:]*:[^:]*:([0-9]{12}):`).FindStringSubmatch(q.Principal.Value)
	allowed := false
	switch {
	case owner != nil && caller != nil && owner[1] != caller[1] && r.rule("another account must agree on both sides"):
		allowed = identity && boundary && session && (self || role || account)
	case self && r.rule("a direct grant needs no more"):
		allowed = true
	case role && r.rule("a grant to the role is limited"):
		allowed = boundary && session
	case role:
		allowed = true
	case p.trust && r.rule("a trust policy must allow"):
		allowed = account && identity && boundary && session
		if account && !r.rule("an account is only a delegation") {
			allowed = boundary && session
		}
	default:
		allowed = identity && boundary && session
	}
	if allowed {
		return "allowed"
	}
	return "implicitDeny"
}

func list(v any) []any {
	if l, ok := v.([]any); ok {
		return l
	}
	return []any{v}
}

func (r reference) matching(q *Request, d refDocument, effect string) (out []map[string]any) {
	for _, s := range list(d["Statement"]) {
		s := s.(map[string]any)
		if s["Effect"] == effect && r.speaksOf(q, s, d["Version"] == "2012-10-17" || !r.rule("variables need the version")) {
			out = append(out, s)
		}
	}
	return out
}

func (r reference) speaksOf(q *Request, s map[string]any, variables bool) bool {
	deny := s["Effect"] == "Deny"
	any1 := func(element string, fit func(string) bool) (bool, bool) {
		v, there := s[element]
		if !there {
			return false, false
		}
		return slices.ContainsFunc(list(v), func(e any) bool { return fit(e.(string)) }), true
	}
	isAction := func(a string) bool {
		if r.rule("actions ignore case") {
			a = strings.ToLower(a)
			return glob(a, ".*").MatchString(strings.ToLower(q.Action))
		}
		return glob(a, ".*").MatchString(q.Action)
	}
	if fit, there := any1("Action", isAction); there && !fit {
		return false
	}
	if fit, there := any1("NotAction", isAction); there && fit == r.rule("NotAction turns round") {
		return false
	}
	if fit, there := any1("Resource", func(p string) bool { return r.isResource(q, p, variables, deny) }); there && !fit {
		return false
	}
	if fit, there := any1("NotResource", func(p string) bool { return r.isResource(q, p, variables, !deny) }); there && fit == r.rule("NotResource turns round") {
		return false
	}
	if n, there := s["NotResource"]; there && !deny && variables && r.rule("an unknown variable in a negation stops an allow") {
		for _, p := range list(n) {
			if _, ok := r.expand(p.(string), q.Context, true); !ok {
				return false
			}
		}
	}
	conditions, _ := s["Condition"].(map[string]any)
	held := 0
	for operator, keys := range conditions {
		for key, values := range keys.(map[string]any) {
			if r.holds(q.Context, operator, strings.ToLower(key), list(values), deny, variables) {
				held++
			} else if r.rule("all conditions must hold") {
				return false
			}
		}
	}
	return held > 0 || len(conditions) == 0
}

// glob makes a regular expression of a pattern without variables.
func glob(p, star string) *regexp.Regexp {
	p = regexp.QuoteMeta(p)
	p = strings.ReplaceAll(strings.ReplaceAll(p, `\*`, star), `\?`, strings.TrimSuffix(star, "*"))
	return compiled(`(?s)^` + p + `$`)
}

var refVariable = regexp.MustCompile(`\$\{([^}']*)(?:'([^']*)')?\}`)

// expand makes the text of a regular expression of a pattern; its own
// characters are quoted, * and ? are left as \x01 and \x02.
func (r reference) expand(p string, c Context, variables bool) (out string, ok bool) {
	stars := strings.NewReplacer(`\*`, "\x01", `\?`, "\x02")
	at := 0
	for _, m := range refVariable.FindAllStringSubmatchIndex(p, -1) {
		if !variables {
			break
		}
		out += stars.Replace(regexp.QuoteMeta(p[at:m[0]]))
		at = m[1]
		name := p[m[2]:m[3]]
		if name == "*" || name == "?" || name == "$" {
			out += regexp.QuoteMeta(name)
			continue
		}
		values := c[strings.ToLower(strings.TrimSuffix(strings.TrimSpace(name), ","))]
		value := ""
		switch {
		case len(values) == 1:
			value = values[0]
		case m[4] >= 0:
			value = p[m[4]:m[5]]
		case r.rule("an unknown variable matches nothing"):
			return "", false
		}
		if r.rule("the value of a variable has no wildcards") {
			out += regexp.QuoteMeta(value)
		} else {
			out += stars.Replace(regexp.QuoteMeta(value))
		}
	}
	return out + stars.Replace(regexp.QuoteMeta(p[at:])), true
}

func (r reference) isResource(q *Request, p string, variables, broad bool) bool {
	if p == "*" {
		return true
	}
	text, ok := r.expand(p, q.Context, variables)
	if !ok || q.Resource == "*" {
		return false
	}
	if !r.rule("resources heed case") {
		text = "(?i)" + text
	}
	if broad && r.rule("a star of a deny goes on") || !broad && !r.rule("a star of an allow stays in its field") {
		return compiled("^" + strings.NewReplacer("\x01", ".*", "\x02", ".").Replace(text) + "$").MatchString(q.Resource)
	}
	return refARN(text).MatchString(q.Resource)
}

// refARN lets a * end at the next colon, except in the last field, and where
// there are fewer fields at the very end.
func refARN(text string) *regexp.Regexp {
	fields := strings.SplitN(text, ":", 6)
	for i, f := range fields {
		star, one := "[^:]*", "[^:]"
		if i == 5 || text == "\x01" {
			star, one = ".*", "."
		}
		fields[i] = strings.NewReplacer("\x01", star, "\x02", one).Replace(f)
	}
	rest := ""
	if len(fields) < 6 {
		rest = "(:.*)?"
	}
	return compiled("^" + strings.Join(fields, ":") + rest + "$")
}

func (r reference) grants(q *Request, d refDocument) (self, role, account bool) {
	if d == nil {
		return
	}
	for _, s := range r.matching(q, d, "Allow") {
		a, b, c := r.named(q.Principal, s["Principal"])
		if s["Principal"] == "*" || hasStar(s["Principal"]) {
			b = b || q.Principal.Kind == "AWS" || !r.rule("a service is not everyone")
		}
		self, role, account = self || a, role || b, account || c
	}
	return
}

func hasStar(principal any) bool {
	m, ok := principal.(map[string]any)
	return ok && slices.Contains(list(m["AWS"]), any("*"))
}

// named is whether the element names the principal itself, its role, its account.
func (r reference) named(p Principal, element any) (self, role, account bool) {
	m, _ := element.(map[string]any)
	for kind, values := range m {
		for _, v := range list(values) {
			v := v.(string)
			if kind != p.Kind {
				continue
			}
			self = self || v == p.Value
			role = role || v == p.Parent
			if kind == "AWS" {
				id := strings.Split(p.Value, ":")[4]
				account = account || v == id || v == "arn:aws:iam::"+id+":root"
			}
		}
	}
	return
}

// struck is whether a Deny of a resource means the principal.
func (r reference) struck(p Principal, s map[string]any, bounded bool) bool {
	if element, there := s["Principal"]; there {
		self, role, account := r.named(p, element)
		return element == "*" || hasStar(element) || self || role || account
	}
	if bounded && r.rule("NotPrincipal never spares the bounded") {
		return true
	}
	self, role, account := r.named(p, s["NotPrincipal"])
	whole := self && (p.Parent == "" || role) && (p.Kind != "AWS" || account)
	if !r.rule("NotPrincipal spares whoever is named whole") {
		whole = self || role || account
	}
	return !whole
}

func (r reference) holds(c Context, operator, key string, wanted []any, deny, variables bool) bool {
	name, all := strings.CutPrefix(operator, "ForAllValues:")
	name, some := strings.CutPrefix(name, "ForAnyValue:")
	name, ifExists := strings.CutSuffix(name, "IfExists")
	all, some, ifExists = all && r.rule("ForAllValues"), some && r.rule("ForAnyValue"), ifExists && r.rule("IfExists")
	got := c[key]
	if name == "Null" {
		return (len(got) == 0) == (fmt.Sprint(wanted[0]) == "true") || !r.rule("Null")
	}
	positive, negated := name, false
	for _, n := range []string{"StringNot", "ArnNot", "NumericNot", "DateNot", "NotIp"} {
		if strings.HasPrefix(name, n) {
			positive, negated = strings.Replace(name, "Not", "", 1), r.rule("negated operators turn round")
		}
	}
	if negated && !deny && variables && (strings.HasPrefix(name, "String") || strings.HasPrefix(name, "Arn")) && r.rule("an unknown variable in a negation stops an allow") {
		for _, w := range wanted {
			if _, ok := r.expand(fmt.Sprint(w), c, true); !ok {
				return false
			}
		}
	}
	if len(got) == 0 {
		switch {
		case all, ifExists:
			return true
		case some:
			return false
		}
		return negated && r.rule("an absent key satisfies a negation") || !negated && !r.rule("an absent key fits nothing")
	}
	one := func(value string) bool {
		fits := 0
		for _, w := range wanted {
			if r.compare(positive, value, fmt.Sprint(w), c, variables) {
				fits++
			}
		}
		enough := fits > 0
		if !r.rule("one value is enough") {
			enough = fits == len(wanted)
		}
		return enough != negated
	}
	everyone := !slices.ContainsFunc(got, func(v string) bool { return !one(v) })
	anyone := slices.ContainsFunc(got, one)
	switch {
	case some, !all && deny && r.rule("one of several values for a deny"):
		return anyone
	case !all && !deny && !r.rule("all of several values for an allow"):
		return anyone
	}
	return everyone
}

func (r reference) compare(operator, got, want string, c Context, variables bool) bool {
	text, ok := r.expand(want, c, variables)
	plain := strings.NewReplacer("\x01", `\*`, "\x02", `\?`).Replace(text)
	switch operator {
	case "StringEquals":
		return ok && compiled("^"+plain+"$").MatchString(got)
	case "StringEqualsIgnoreCase":
		return ok && compiled("(?i)^"+plain+"$").MatchString(got)
	case "StringLike":
		return ok && compiled("^"+strings.NewReplacer("\x01", ".*", "\x02", ".").Replace(text)+"$").MatchString(got)
	case "ArnEquals", "ArnLike":
		return ok && strings.Count(got, ":") >= 5 && refARN(text).MatchString(got)
	case "Bool":
		return strings.EqualFold(got, want)
	case "IpAddress":
		_, block, err := net.ParseCIDR(want)
		return err == nil && block.Contains(net.ParseIP(got))
	}
	var order int
	if rest, ok := strings.CutPrefix(operator, "Numeric"); ok {
		a, _ := new(big.Rat).SetString(got)
		b, _ := new(big.Rat).SetString(want)
		operator, order = rest, a.Cmp(b)
	} else {
		a, _ := time.Parse(time.RFC3339, got)
		b, _ := time.Parse(time.RFC3339, want)
		operator, order = strings.TrimPrefix(operator, "Date"), a.Compare(b)
	}
	return order == 0 && strings.Contains(operator, "Equals") || order < 0 && strings.HasPrefix(operator, "LessThan") || order > 0 && strings.HasPrefix(operator, "GreaterThan")
}

var compiledOnes = map[string]*regexp.Regexp{}

// compiled remembers what it compiled: the same few patterns come all the time.
func compiled(text string) *regexp.Regexp {
	if compiledOnes[text] == nil {
		compiledOnes[text] = regexp.MustCompile(text)
	}
	return compiledOnes[text]
}

// refParse reads a document for the reference.
func refParse(text string) (d refDocument) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&d); err != nil {
		panic(err)
	}
	return d
}
