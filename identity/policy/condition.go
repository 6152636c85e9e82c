package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
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
	forAll   bool // ForAllValues:
	forAny   bool // ForAnyValue:
	ifExists bool // true of an absent key
	key      string
	values   []test
}

// A test compares a context value with one value of the document.
type test func(value string, c Context) bool

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
	"NumericEquals":             {compile: numeric(func(a, b float64) bool { return a == b })},
	"NumericNotEquals":          {compile: numeric(func(a, b float64) bool { return a == b }), negated: true},
	"NumericLessThan":           {compile: numeric(func(a, b float64) bool { return a < b })},
	"NumericLessThanEquals":     {compile: numeric(func(a, b float64) bool { return a <= b })},
	"NumericGreaterThan":        {compile: numeric(func(a, b float64) bool { return a > b })},
	"NumericGreaterThanEquals":  {compile: numeric(func(a, b float64) bool { return a >= b })},
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

var keyForm = regexp.MustCompile(`^[A-Za-z0-9-]+:[A-Za-z0-9._:/=+@ -]+$`)

// multivalued are the keys that can hold several values. Compared with a plain
// operator they would give an answer that nobody can predict.
var multivalued = map[string]bool{"aws:tagkeys": true, "aws:calledvia": true}

func (p *parser) conditions(value any) (out []condition, err error) {
	block, ok := value.(object)
	if !ok {
		return nil, errors.New("the Condition is not an object")
	}
	for name, value := range block.each {
		keys, ok := value.(object)
		if !ok {
			return nil, fmt.Errorf("condition %s is not an object", name)
		}
		for key, value := range keys.each {
			c, err := p.condition(name, key, value)
			if err != nil {
				return nil, fmt.Errorf("condition %s %q: %w", name, key, err)
			}
			out = append(out, c)
		}
	}
	return out, nil
}

func (p *parser) condition(name, key string, value any) (c condition, err error) {
	name, c.forAll = strings.CutPrefix(name, "ForAllValues:")
	if !c.forAll {
		name, c.forAny = strings.CutPrefix(name, "ForAnyValue:")
	}
	base, ifExists := strings.CutSuffix(name, "IfExists")
	operator, known := operators[base]
	switch {
	case !known:
		return c, errors.New("operator is not known")
	case operator.null && (c.forAll || c.forAny || ifExists):
		return c, errors.New("Null takes neither a set prefix nor IfExists")
	case !keyForm.MatchString(key):
		return c, errors.New("not the name of a condition key")
	case multivalued[strings.ToLower(key)] && !operator.null && !c.forAll && !c.forAny:
		return c, errors.New("the key holds several values: put ForAllValues: or ForAnyValue: before the operator")
	}
	c.operator, c.ifExists, c.key = operator, ifExists, strings.ToLower(key)
	list, err := scalars(value)
	if err != nil {
		return c, err
	}
	if operator.null && len(list) != 1 {
		return c, errors.New("Null takes one value")
	}
	for _, s := range list {
		t, err := operator.compile(s, p.variables)
		if err != nil {
			return c, err
		}
		c.values = append(c.values, t)
		if operator.negated && operator.expands {
			whole, _ := compilePattern(s, p.variables)
			p.needs = whole.variables(p.needs)
		}
	}
	return c, nil
}

// scalars reads one value or a list of them as text; IAM accepts numbers and
// booleans without quotes.
func scalars(value any) (out []string, err error) {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	for _, element := range list {
		switch v := element.(type) {
		case string:
			out = append(out, v)
		case bool:
			out = append(out, strconv.FormatBool(v))
		case json.Number:
			out = append(out, v.String())
		default:
			return nil, fmt.Errorf("%v is not a value", element)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("there is no value")
	}
	return out, nil
}

// holds is whether the condition is true.
func (c *condition) holds(ctx Context) bool {
	values := ctx[c.key]
	switch {
	case c.operator.null:
		return c.values[0](strconv.FormatBool(len(values) == 0), ctx)
	case len(values) == 0:
		return c.forAll || c.ifExists || c.operator.negated && !c.forAny
	case c.forAny:
		for _, v := range values {
			if c.fits(v, ctx) {
				return true
			}
		}
		return false
	}
	for _, v := range values {
		if !c.fits(v, ctx) {
			return false
		}
	}
	return true
}

// fits is whether one context value satisfies the operator.
func (c *condition) fits(value string, ctx Context) bool {
	for _, t := range c.values {
		if t(value, ctx) {
			return !c.operator.negated
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
		}
	}
	return p, err
}

func matcher(p pattern, err error) (test, error) {
	return func(value string, c Context) bool {
		p, ok := p.expand(c)
		return ok && p.match(value)
	}, err
}

func stringEquals(value string, variables bool) (test, error) {
	return matcher(literalOf(value, variables))
}

func stringLike(value string, variables bool) (test, error) {
	return matcher(compilePattern(value, variables))
}

func stringEqualsFold(value string, variables bool) (test, error) {
	p, err := literalOf(value, variables)
	return func(value string, c Context) bool {
		p, ok := p.expand(c)
		if !ok {
			return false
		}
		var text strings.Builder
		for _, piece := range p {
			text.WriteString(piece.text)
		}
		return strings.EqualFold(text.String(), value)
	}, err
}

func arnLike(value string, variables bool) (test, error) {
	a, err := compileARN(value, variables)
	return func(value string, c Context) bool { return a.match(value, c) }, err
}

func boolEquals(value string, _ bool) (test, error) {
	want, err := strconv.ParseBool(strings.ToLower(value))
	if err != nil || len(value) < 4 {
		return nil, fmt.Errorf("%q is neither true nor false", value)
	}
	return func(value string, _ Context) bool { return strings.EqualFold(value, strconv.FormatBool(want)) }, nil
}

var base64Form = regexp.MustCompile(`^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$`)

func binaryEquals(want string, _ bool) (test, error) {
	if !base64Form.MatchString(want) {
		return nil, fmt.Errorf("%q is not base64", want)
	}
	return func(value string, _ Context) bool { return value == want }, nil
}

func numeric(compare func(a, b float64) bool) func(string, bool) (test, error) {
	return func(value string, _ bool) (test, error) {
		want, err := strconv.ParseFloat(value, 64)
		if err != nil || math.IsNaN(want) {
			return nil, fmt.Errorf("%q is not a number", value)
		}
		return func(value string, _ Context) bool {
			got, err := strconv.ParseFloat(value, 64)
			return err == nil && !math.IsNaN(got) && compare(got, want)
		}, nil
	}
}

func date(accept func(int) bool) func(string, bool) (test, error) {
	return func(value string, _ bool) (test, error) {
		want, err := parseDate(value)
		if err != nil {
			return nil, err
		}
		return func(value string, _ Context) bool {
			got, err := parseDate(value)
			return err == nil && accept(got.Compare(want))
		}, nil
	}
}

// parseDate reads a W3C profile of ISO 8601, or seconds since 1970.
func parseDate(s string) (time.Time, error) {
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil && len(s) > 4 {
		return time.Unix(seconds, 0), nil
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
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a block like 203.0.113.0/24", value)
		}
		prefix = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
	}
	return func(value string, _ Context) bool {
		addr, err := netip.ParseAddr(value)
		return err == nil && prefix.Contains(addr.Unmap().WithZone(""))
	}, nil
}
