package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Context is the circumstances of a request: values by condition key. Keys
// are lower case ("aws:sourceidentity"), because they are compared so.
type Context map[string][]string

// Set puts the values of a key; without values the key is absent.
func (c Context) Set(key string, values ...string) {
	if len(values) > 0 {
		c[strings.ToLower(key)] = values
	}
}

// single is the value of a key that has exactly one.
func (c Context) single(key string) (string, bool) {
	values := c[key]
	if len(values) != 1 {
		return "", false
	}
	return values[0], true
}

// A condition is one line of a Condition block: operator, key, values.
type condition struct {
	operator operator
	deny     bool // it belongs to a Deny
	forAll   bool // ForAllValues:
	forAny   bool // ForAnyValue:
	ifExists bool // true of an absent key
	starred  bool // a value has a wildcard that is none
	key      string
	values   []test
}

// A test compares a context value with one value of the document.
type test func(value string, c Context) verdict

// A verdict is what a test finds. A value that is not of the operator's type
// is unreadable: with it an Allow does not apply, and a Deny does.
type verdict byte

const (
	differs verdict = iota
	fits
	unreadable
)

func verdictOf(fit bool) verdict {
	if fit {
		return fits
	}
	return differs
}

// An operator is one kind of comparison. Negated ones hold when no value of
// the document fits, and of an absent key.
type operator struct {
	negated bool
	null    bool
	expands bool // its values can hold policy variables
	// compile checks the document's value and makes the test of it.
	compile func(value string, variables bool) (test, error)
}

// operators lists all that IAM has.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
var operators = map[string]operator{
	"StringEquals":              {compile: stringEquals, expands: true},
	"StringNotEquals":           {compile: stringEquals, expands: true, negated: true},
	"StringEqualsIgnoreCase":    {compile: stringEqualsFold, expands: true},
	"StringNotEqualsIgnoreCase": {compile: stringEqualsFold, expands: true, negated: true},
	"StringLike":                {compile: stringLike, expands: true},
	"StringNotLike":             {compile: stringLike, expands: true, negated: true},
	"ArnEquals":                 {compile: arnLike, expands: true},
	"ArnLike":                   {compile: arnLike, expands: true},
	"ArnNotEquals":              {compile: arnLike, expands: true, negated: true},
	"ArnNotLike":                {compile: arnLike, expands: true, negated: true},
	"Bool":                      {compile: boolEquals},
	"BinaryEquals":              {compile: binaryEquals},
	"NumericEquals":             {compile: numeric(func(c int) bool { return c == 0 })},
	"NumericNotEquals":          {compile: numeric(func(c int) bool { return c == 0 }), negated: true},
	"NumericLessThan":           {compile: numeric(func(c int) bool { return c < 0 })},
	"NumericLessThanEquals":     {compile: numeric(func(c int) bool { return c <= 0 })},
	"NumericGreaterThan":        {compile: numeric(func(c int) bool { return c > 0 })},
	"NumericGreaterThanEquals":  {compile: numeric(func(c int) bool { return c >= 0 })},
	"DateEquals":                {compile: date(func(c int) bool { return c == 0 })},
	"DateNotEquals":             {compile: date(func(c int) bool { return c == 0 }), negated: true},
	"DateLessThan":              {compile: date(func(c int) bool { return c < 0 })},
	"DateLessThanEquals":        {compile: date(func(c int) bool { return c <= 0 })},
	"DateGreaterThan":           {compile: date(func(c int) bool { return c > 0 })},
	"DateGreaterThanEquals":     {compile: date(func(c int) bool { return c >= 0 })},
	"IpAddress":                 {compile: ipAddress},
	"NotIpAddress":              {compile: ipAddress, negated: true},
	"Null":                      {null: true, compile: boolEquals},
}

// keyForm also has the keys of identity providers: "idp.example.com:8443/realm:sub".
var keyForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]*:[A-Za-z0-9._:/=+@~ -]+$`)

// multivalued is whether a key, in lower case, can hold several values. Compared
// with a plain operator it would give an answer that nobody can predict. How a
// person was authenticated stands in "amr" of whichever provider.
func multivalued(key string) bool {
	switch key {
	case "aws:tagkeys", "aws:calledvia", "sts:transitivetagkeys":
		return true
	}
	host, _, _ := strings.Cut(key, ":") // and not a service, which can have a tag of any name
	return strings.HasSuffix(key, ":amr") && strings.Contains(host, ".")
}

func (p *parser) conditions(n node) (out []condition, err error) {
	block, ok := n.value.(object)
	if !ok {
		return nil, p.fail(n, "not an object")
	}
	for _, operator := range block {
		keys, ok := operator.value.(object)
		if !ok {
			return nil, p.fail(operator.node, "not an object")
		}
		seen := map[string]bool{}
		for _, m := range keys {
			key := strings.ToLower(m.name)
			if seen[key] {
				return nil, p.fail(m.node, "condition key %q stands twice; its case does not count", m.name)
			}
			seen[key] = true
			c, err := p.condition(operator.name, m)
			if err != nil {
				return nil, p.at(m.node, err)
			}
			out = append(out, c)
		}
	}
	return out, nil
}

func (p *parser) condition(name string, m member) (c condition, err error) {
	name, c.forAll = strings.CutPrefix(name, "ForAllValues:")
	if !c.forAll {
		name, c.forAny = strings.CutPrefix(name, "ForAnyValue:")
	}
	base, ifExists := strings.CutSuffix(name, "IfExists")
	operator, known := operators[base]
	c.key = strings.ToLower(m.name)
	switch {
	case !known:
		return c, errors.New("the operator is not known")
	case operator.null && (c.forAll || c.forAny || ifExists):
		return c, errors.New("operator Null takes neither a set prefix nor IfExists")
	case !keyForm.MatchString(m.name):
		return c, errors.New("not the name of a condition key")
	case multivalued(c.key) && !operator.null && !c.forAll && !c.forAny:
		return c, errors.New("the key holds several values: put ForAllValues: or ForAnyValue: before the operator")
	}
	c.operator, c.ifExists, c.deny = operator, ifExists, p.deny
	p.Document.keys = append(p.Document.keys, c.key)
	list, err := scalars(m.node)
	if err != nil {
		return c, err
	}
	if operator.null && len(list) != 1 {
		return c, errors.New("operator Null takes one value")
	}
	for _, s := range list {
		t, err := operator.compile(s, p.variables)
		if err != nil {
			return c, err
		}
		c.values = append(c.values, t)
		c.starred = c.starred || strings.HasPrefix(base, "String") && !strings.HasSuffix(base, "Like") && strings.ContainsAny(strings.NewReplacer("${*}", "", "${?}", "").Replace(s), "*?")
		if operator.expands {
			whole, _ := compilePattern(s, p.variables)
			p.Document.keys = whole.keys(p.Document.keys, false)
			if operator.negated {
				p.needs = whole.keys(p.needs, true)
			}
		}
	}
	return c, nil
}

// scalars reads one value or a list of them as text; IAM accepts numbers and
// booleans without quotes.
func scalars(n node) (out []string, err error) {
	for _, element := range n.list() {
		switch v := element.value.(type) {
		case string:
			out = append(out, v)
		case bool:
			out = append(out, strconv.FormatBool(v))
		case json.Number:
			out = append(out, v.String())
		default:
			return nil, errors.New("a value is neither text nor a number nor true nor false")
		}
	}
	if len(out) == 0 {
		return nil, errors.New("there is no value")
	}
	return out, nil
}

// holds is whether the condition is true. Of several values of a plain
// operator all have to satisfy an Allow, and any a Deny: AWS leaves open which.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-single-vs-multi-valued-context-keys.html
func (c *condition) holds(ctx Context) bool {
	values := ctx[c.key]
	void := isVoid(values)
	switch {
	case c.operator.null && void && len(values) > 0:
		return c.deny // whether such a key is there or not is left open
	case c.operator.null:
		return c.values[0](strconv.FormatBool(void), ctx) == fits
	case len(values) == 0:
		return c.forAll || c.ifExists || c.operator.negated && !c.forAny
	case void && (c.forAll || c.forAny):
		return c.forAll
	}
	one := c.forAny || !c.forAll && c.deny // is enough
	for _, v := range values {
		if c.satisfied(v, ctx) == one {
			return one
		}
	}
	return !one
}

// isVoid is whether there is nothing but empty text, which AWS calls a null
// data set and set operators take for an absent key.
func isVoid(values []string) bool {
	for _, v := range values {
		if v != "" {
			return false
		}
	}
	return true
}

// satisfied is whether one context value satisfies the operator.
func (c *condition) satisfied(value string, ctx Context) bool {
	for _, t := range c.values {
		switch t(value, ctx) {
		case fits:
			return !c.operator.negated
		case unreadable:
			return c.deny
		case differs: // the next may fit
		}
	}
	return c.operator.negated
}

// literalOf compiles a value in which wildcards are ordinary characters.
func literalOf(value string, variables bool) (pattern, error) {
	p, err := compilePattern(value, variables)
	for i := range p {
		switch p[i].kind {
		case anyRun:
			p[i] = piece{kind: literal, text: "*"}
		case anyOne:
			p[i] = piece{kind: literal, text: "?"}
		case literal, variable: // has none
		}
	}
	return p, err
}

func matcher(p pattern, err error) (test, error) {
	return func(value string, c Context) verdict { return verdictOf(p.match(value, c)) }, err
}

func stringEquals(value string, variables bool) (test, error) {
	return matcher(literalOf(value, variables))
}

func stringLike(value string, variables bool) (test, error) {
	return matcher(compilePattern(value, variables))
}

func stringEqualsFold(value string, variables bool) (test, error) {
	p, err := literalOf(value, variables)
	return func(value string, c Context) verdict {
		var want strings.Builder
		for i := range p {
			text, ok := p[i].resolve(c)
			if !ok {
				return differs
			}
			want.WriteString(text)
		}
		return verdictOf(strings.EqualFold(want.String(), value))
	}, err
}

func arnLike(value string, variables bool) (test, error) {
	p, err := compileARN(value, variables)
	return func(value string, c Context) verdict {
		name := parseARN(value)
		return verdictOf(p.match(&name, c))
	}, err
}

func boolEquals(value string, _ bool) (test, error) {
	if !strings.EqualFold(value, "true") && !strings.EqualFold(value, "false") {
		return nil, fmt.Errorf("%q is neither true nor false", value)
	}
	return func(got string, _ Context) verdict { return verdictOf(strings.EqualFold(got, value)) }, nil
}

var base64Form = regexp.MustCompile(`^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$`)

func binaryEquals(want string, _ bool) (test, error) {
	if !base64Form.MatchString(want) {
		return nil, fmt.Errorf("%q is not base64", want)
	}
	return func(value string, _ Context) verdict { return verdictOf(value == want) }, nil
}

// ordered makes the compiler of an operator for a type whose values have an order.
func ordered[T any](read func(string) (T, error), compare func(a, b T) int) func(func(int) bool) func(string, bool) (test, error) {
	return func(accept func(int) bool) func(string, bool) (test, error) {
		return func(value string, _ bool) (test, error) {
			want, err := read(value)
			if err != nil {
				return nil, err
			}
			return func(value string, _ Context) verdict {
				got, err := read(value)
				if err != nil {
					return unreadable
				}
				return verdictOf(accept(compare(got, want)))
			}, nil
		}
	}
}

var (
	numeric = ordered(parseDecimal, decimal.compare)
	date    = ordered(parseDate, time.Time.Compare)
)

// parseDate reads a W3C profile of ISO 8601, or seconds since 1970.
func parseDate(s string) (time.Time, error) {
	if len(s) > 4 && strings.Trim(s, "0123456789") == "" {
		seconds, err := strconv.ParseInt(s, 10, 64)
		if err == nil {
			return time.Unix(seconds, 0), nil
		}
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", "2006-01-02", "2006-01", "2006"} {
		if t, err := time.Parse(form, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a date: write 2026-12-31T23:59:59Z", s)
}

func ipAddress(value string, _ bool) (test, error) {
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%q is neither an address nor a block like 203.0.113.0/24", value)
		}
		prefix = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
	}
	if prefix.Addr().Is4In6() {
		return nil, fmt.Errorf("%q is a block of IPv4 addresses: write it as such", value)
	}
	return func(value string, _ Context) verdict {
		addr, err := netip.ParseAddr(value)
		if err != nil {
			return unreadable
		}
		return verdictOf(prefix.Contains(addr.Unmap().WithZone("")))
	}, nil
}
