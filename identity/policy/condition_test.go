package policy

import (
	"fmt"
	"testing"
)

// One row for each operator: a value of the document, a context value that it
// fits and one that it does not.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
var operatorRows = []struct{ operator, value, fits, differs string }{
	{"StringEquals", "s-1", "s-1", "S-1"},
	{"StringEqualsIgnoreCase", "s-1", "S-1", "s-2"},
	{"StringLike", "s-?*", "s-123", "s-"},
	{"ArnEquals", "arn:aws:iam::*:role/x?", roleARN[:26] + "role/xy", userARN},
	{"ArnLike", "arn:aws:iam::1*:role/*", roleARN, "arn:aws:iam::1:x:role/agent"},
	{"Bool", "true", "True", "false"},
	{"BinaryEquals", "QmluYXJ5", "QmluYXJ5", "QmluYXJ6"},
	{"NumericEquals", "9007199254740993", "9007199254740993.0", "9007199254740992"},
	{"NumericLessThan", "5", "-5.1", "5"},
	{"NumericLessThanEquals", "5", "5.00", "5.01"},
	{"NumericGreaterThan", "-5", "-4.9", "-5"},
	{"NumericGreaterThanEquals", "-5", "-5", "-5.1"},
	{"DateEquals", "2026-06-01T12:00:00Z", "2026-06-01T14:00:00+02:00", "2026-06-01T12:00:01Z"},
	{"DateLessThan", "2026-06-01T12:00:00Z", "2026-06-01", "1780315200"},
	{"DateLessThanEquals", "2026-06-01T12:00Z", "1780315200", "1780315201"},
	{"DateGreaterThan", "2026-06", "2026-06-01T00:00:01Z", "2026-06-01T00:00:00Z"},
	{"DateGreaterThanEquals", "2026", "2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z"},
	{"IpAddress", "203.0.113.0/24", "::ffff:203.0.113.7", "203.0.114.0"},
	{"StringNotEquals", "s-1", "S-1", "s-1"},
	{"StringNotEqualsIgnoreCase", "s-1", "s-2", "S-1"},
	{"StringNotLike", "s-?*", "s-", "s-123"},
	{"ArnNotEquals", "arn:aws:iam::*:role/*", userARN, roleARN},
	{"ArnNotLike", "arn:aws:iam::1*:role/*", "not an ARN", roleARN},
	{"NumericNotEquals", "5", "5.01", "5.0"},
	{"DateNotEquals", "2026-06-01", "2026-06-02", "2026-06-01T00:00:00Z"},
	{"NotIpAddress", "2001:db8::/32", "203.0.113.7", "2001:db8::1"},
}

// A situation is a form of the operator and what the context has; the answer
// does not depend on the operator but for its being negated.
type situation struct {
	name             string
	prefix, suffix   string
	values           string // of the context: f fits, d differs
	positive, negate bool   // whether the condition holds
	underDeny        bool   // likewise of both under a Deny, where that differs
}

var situations = []situation{
	{"Match", "", "", "f", true, true, false},
	{"NoMatch", "", "", "d", false, false, false},
	{"Absent", "", "", "", false, true, false},
	{"AllFit", "", "", "ff", true, true, false},
	{"OneFits", "", "", "df", false, false, true}, // AWS leaves it open: an Allow wants all, a Deny one
	{"NoneFits", "", "", "dd", false, false, false},
	{"IfExists/Match", "", "IfExists", "f", true, true, false},
	{"IfExists/NoMatch", "", "IfExists", "d", false, false, false},
	{"IfExists/Absent", "", "IfExists", "", true, true, false},
	{"ForAll/AllFit", "ForAllValues:", "", "ff", true, true, false},
	{"ForAll/OneFits", "ForAllValues:", "", "fd", false, false, false},
	{"ForAll/NoneFits", "ForAllValues:", "", "dd", false, false, false},
	{"ForAll/Absent", "ForAllValues:", "", "", true, true, false},
	{"ForAll/IfExists/Absent", "ForAllValues:", "IfExists", "", true, true, false},
	{"ForAny/AllFit", "ForAnyValue:", "", "ff", true, true, false},
	{"ForAny/OneFits", "ForAnyValue:", "", "df", true, true, false},
	{"ForAny/NoneFits", "ForAnyValue:", "", "dd", false, false, false},
	{"ForAny/Absent", "ForAnyValue:", "", "", false, false, false},
	{"ForAny/IfExists/Absent", "ForAnyValue:", "IfExists", "", true, true, false},
	{"ForAny/IfExists/NoneFits", "ForAnyValue:", "IfExists", "d", false, false, false},
}

// conditionHolds is whether a statement of the effect applies, which shows as
// a yes of an Allow and a no of a Deny.
func conditionHolds(t *testing.T, effect, condition string, c Context) bool {
	t.Helper()
	d := parse(t, statementOf(fmt.Sprintf(`"Effect":%q,"Action":"*","Resource":"*","Condition":{%s}`, effect, condition)))
	got := Evaluate(&Request{Action: "mgn:StartTest", Resource: server, Context: c, Policies: Policies{Identity: []*Document{d}}})
	return got.Allowed || got.Explicit
}

// TestCondition_Operators tries every operator in every situation and under
// both effects.
func TestCondition_Operators(t *testing.T) {
	for _, row := range operatorRows {
		negated := operators[row.operator].negated
		for _, s := range situations {
			c := Context{}
			for _, v := range s.values {
				c["x:key"] = append(c["x:key"], map[rune]string{'f': row.fits, 'd': row.differs}[v])
			}
			condition := fmt.Sprintf(`"%s%s%s":{"x:Key":%q}`, s.prefix, row.operator, s.suffix, row.value)
			want := s.positive
			if negated {
				want = s.negate
			}
			if got := conditionHolds(t, "Allow", condition, c); got != want {
				t.Errorf("Allow, %s, %s with %q: got %v, want %v", s.name, condition, c["x:key"], got, want)
			}
			if got := conditionHolds(t, "Deny", condition, c); got != (want || s.underDeny) {
				t.Errorf("Deny, %s, %s with %q: got %v, want %v", s.name, condition, c["x:key"], got, want || s.underDeny)
			}
		}
	}
	covered := map[string]bool{"Null": true}
	for _, row := range operatorRows {
		covered[row.operator] = true
	}
	for name := range operators {
		if !covered[name] {
			t.Errorf("operator %s is in no row", name)
		}
	}
}

// TestCondition_Lists shows that the values of a condition are alternatives,
// and for a negated operator all to be avoided.
func TestCondition_Lists(t *testing.T) {
	several := Context{"x:key": {"b"}}
	for condition, want := range map[string]bool{
		`"StringEquals":{"x:key":["a","b"]}`: true, `"StringEquals":{"x:key":["a","c"]}`: false,
		`"StringNotEquals":{"x:key":["a","b"]}`: false, `"StringNotEquals":{"x:key":["a","c"]}`: true,
	} {
		if got := conditionHolds(t, "Allow", condition, several); got != want {
			t.Errorf("%s: got %v", condition, got)
		}
	}
}

// TestCondition_Doubt holds what AWS leaves open, or what cannot be read: an
// Allow does not apply then, a Deny does.
func TestCondition_Doubt(t *testing.T) {
	for _, test := range []struct {
		condition   string
		values      []string
		allow, deny bool
	}{
		{`"NumericEquals":{"x:key":"5"}`, []string{"five"}, false, true},
		{`"NumericNotEquals":{"x:key":"5"}`, []string{"five"}, false, true},
		{`"DateLessThan":{"x:key":"2026"}`, []string{"tomorrow"}, false, true},
		{`"IpAddress":{"x:key":"10.0.0.0/8"}`, []string{"10.0.0"}, false, true},
		{`"NotIpAddress":{"x:key":"10.0.0.0/8"}`, []string{"10.0.0"}, false, true},
		{`"Null":{"x:key":"true"}`, []string{""}, false, true},
		{`"Null":{"x:key":"false"}`, []string{""}, false, true},
		{`"Null":{"x:key":"true"}`, nil, true, true},
		{`"Null":{"x:key":"false"}`, nil, false, false},
		{`"Null":{"x:key":"false"}`, []string{"x"}, true, true},
		// A null data set counts as an absent key for set operators.
		{`"ForAllValues:StringEquals":{"x:key":"x"}`, []string{""}, true, true},
		{`"ForAnyValue:StringNotEquals":{"x:key":"x"}`, []string{"", ""}, false, false},
		{`"ForAnyValue:StringEquals":{"x:key":"x"}`, []string{"", "x"}, true, true},
		{`"StringEquals":{"x:key":""}`, []string{""}, true, true},
		// A variable without a value is equal to nothing.
		{`"StringEquals":{"x:key":"${x:gone}"}`, []string{"x"}, false, false},
		{`"StringNotEquals":{"x:key":"${x:gone}"}`, []string{"x"}, false, true},
		{`"StringNotLike":{"x:key":["a","${x:gone}"]}`, []string{"x"}, false, true},
		{`"ArnNotLike":{"x:key":"arn:aws:iam::*:user/${x:gone}"}`, []string{userARN}, false, true},
		{`"StringNotEquals":{"x:key":"${x:gone, 'y'}"}`, []string{"x"}, true, true},
		{`"StringEquals":{"x:key":"a${x:two}"}`, []string{"aa"}, false, false}, // a key of several values is no variable
	} {
		c := Context{"x:two": {"a", "b"}}
		c.Set("x:key", test.values...)
		if got := conditionHolds(t, "Allow", test.condition, c); got != test.allow {
			t.Errorf("Allow if %s with %q: got %v", test.condition, test.values, got)
		}
		if got := conditionHolds(t, "Deny", test.condition, c); got != test.deny {
			t.Errorf("Deny if %s with %q: got %v", test.condition, test.values, got)
		}
	}
}

// TestCondition_Multivalued: what can hold several values is asked for with a
// set prefix, or for whether it is there.
func TestCondition_Multivalued(t *testing.T) {
	for key, many := range map[string]bool{
		"aws:TagKeys": true, "aws:CalledVia": true, "sts:TransitiveTagKeys": true,
		"idp.example.com:amr": true, "idp.example.com:8443/realm:AMR": true,
		"idp.example.com:sub": false, "aws:PrincipalTag/x:amr": false, "iam:ResourceTag/idp.example.com:amr": false, "sts:RoleSessionName": false,
	} {
		for operator, taken := range map[string]bool{"StringEquals": !many, "StringNotLikeIfExists": !many, "ForAnyValue:StringEquals": true, "ForAllValues:StringLikeIfExists": true, "Null": true} {
			_, err := Parse(Identity, "p", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"`+operator+`":{"`+key+`":"true"}}}}`)
			if (err == nil) != taken {
				t.Errorf("%s of %s: %v", operator, key, err)
			}
		}
	}
}
