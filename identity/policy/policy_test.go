package policy

import (
	"errors"
	"strings"
	"testing"
)

func parse(t testing.TB, text string) *Document {
	t.Helper()
	d, err := Parse(Identity, "test", text)
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return d
}

func allows(d *Document, action, resource string, c Context) bool {
	if c == nil {
		c = Context{}
	}
	return Evaluate(&Request{Action: action, Resource: resource, Context: c, Policies: Policies{Identity: []*Document{d}}}).Allowed
}

// statementOf makes a document of one statement's members.
func statementOf(members string) string {
	return `{"Version":"2012-10-17","Statement":[{` + members + `}]}`
}

const server = "arn:aws:mgn:eu-west-1:111122223333:source-server/s-1"

func TestEvaluate_Match(t *testing.T) {
	for _, test := range []struct {
		members, action, resource string
		want                      bool
	}{
		{`"Effect":"Allow","Action":"mgn:StartTest","Resource":"*"`, "mgn:StartTest", server, true},
		{`"Effect":"Allow","Action":"mgn:starttest","Resource":"*"`, "mgn:StartTest", server, true},
		{`"Effect":"Allow","Action":"mgn:StartTest","Resource":"*"`, "mgn:StartTest2", server, false},
		{`"Effect":"Allow","Action":"mgn:Start*","Resource":"*"`, "mgn:StartCutover", server, true},
		{`"Effect":"Allow","Action":"mgn:*Test","Resource":"*"`, "mgn:StartTestTest", server, true},
		{`"Effect":"Allow","Action":"mgn:St?rtTest","Resource":"*"`, "mgn:StartTest", server, true},
		{`"Effect":"Allow","Action":"*","Resource":"*"`, "iam:CreateUser", "*", true},
		{`"Effect":"Allow","Action":"iam:*","Resource":"*"`, "mgn:StartTest", server, false},
		{`"Effect":"Allow","NotAction":"iam:*","Resource":"*"`, "mgn:StartTest", server, true},
		{`"Effect":"Allow","NotAction":["iam:*","mgn:*"],"Resource":"*"`, "mgn:StartTest", server, false},
		{`"Effect":"Allow","Action":"mgn:*","Resource":"` + server + `"`, "mgn:StartTest", server, true},
		{`"Effect":"Allow","Action":"mgn:*","Resource":"` + server + `"`, "mgn:StartTest", server + "2", false},
		{`"Effect":"Allow","Action":"mgn:*","Resource":"` + server + `"`, "mgn:DescribeJobs", "*", false},
		{`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:*:*:source-server/*"`, "mgn:StartTest", server, true},
		{`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:*:*:job/*"`, "mgn:StartTest", server, false},
		{`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:*:source-server/*"`, "mgn:StartTest", server, false},
		{`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:eu-*:*:source-server/s-?"`, "mgn:StartTest", server, true},
		{`"Effect":"Allow","Action":"mgn:*","NotResource":"` + server + `"`, "mgn:StartTest", server, false},
		{`"Effect":"Allow","Action":"mgn:*","NotResource":"` + server + `"`, "mgn:StartTest", server + "2", true},
		{`"Effect":"Deny","Action":"*","Resource":"*"`, "mgn:StartTest", server, false},
	} {
		text := statementOf(test.members)
		if got := allows(parse(t, text), test.action, test.resource, nil); got != test.want {
			t.Errorf("%s: %s on %s: got %v, want %v", test.members, test.action, test.resource, got, test.want)
		}
	}
}

func TestEvaluate_Conditions(t *testing.T) {
	context := func() Context {
		c := Context{}
		c.Set("aws:SourceIdentity", "s-1")
		c.Set("aws:SourceIp", "203.0.113.7")
		c.Set("aws:SecureTransport", "true")
		c.Set("aws:CurrentTime", "2026-06-01T12:00:00Z")
		c.Set("aws:EpochTime", "1780315200")
		c.Set("aws:PrincipalTag/Team", "storage")
		c.Set("aws:username", "*")
		c.Set("aws:TagKeys", "team", "env")
		c.Set("aws:PrincipalArn", "arn:aws:iam::111122223333:role/x/agent")
		return c
	}
	for _, test := range []struct {
		condition string
		want      bool
	}{
		{`"StringEquals":{"aws:SourceIdentity":"s-1"}`, true},
		{`"StringEquals":{"aws:sourceidentity":["s-0","s-1"]}`, true},
		{`"StringEquals":{"aws:SourceIdentity":"S-1"}`, false},
		{`"StringEquals":{"aws:SourceIdentity":"s-*"}`, false},
		{`"StringEqualsIgnoreCase":{"aws:SourceIdentity":"S-1"}`, true},
		{`"StringNotEqualsIgnoreCase":{"aws:SourceIdentity":"S-1"}`, false},
		{`"StringNotEquals":{"aws:SourceIdentity":["s-1","s-2"]}`, false},
		{`"StringNotEquals":{"aws:SourceIdentity":["s-3","s-2"]}`, true},
		{`"StringLike":{"aws:SourceIdentity":"s-?"}`, true},
		{`"StringNotLike":{"aws:SourceIdentity":"s-*"}`, false},
		{`"StringEquals":{"aws:PrincipalTag/team":"storage"}`, true},
		{`"StringLike":{"aws:SourceIdentity":"${aws:username}"}`, false}, // its value "*" is no wildcard
		{`"StringLike":{"aws:username":"${*}"}`, true},
		{`"StringLike":{"aws:SourceIdentity":"${*}"}`, false},
		{`"StringEquals":{"aws:SourceIdentity":"${aws:absent, 's-1'}"}`, true},
		{`"StringEquals":{"aws:SourceIdentity":"${aws:absent}"}`, false},
		{`"StringNotEquals":{"aws:SourceIdentity":"${aws:absent}"}`, false}, // an Allow that cannot be told apart does not apply
		{`"StringEquals":{"aws:absent":"x"}`, false},
		{`"StringNotEquals":{"aws:absent":"x"}`, true},
		{`"StringEqualsIfExists":{"aws:absent":"x"}`, true},
		{`"StringEqualsIfExists":{"aws:SourceIdentity":"x"}`, false},
		{`"Null":{"aws:absent":"true"}`, true},
		{`"Null":{"aws:absent":false}`, false},
		{`"Null":{"aws:SourceIdentity":"false"}`, true},
		{`"Bool":{"aws:SecureTransport":true}`, true},
		{`"Bool":{"aws:SecureTransport":"false"}`, false},
		{`"Bool":{"aws:absent":"false"}`, false},
		{`"IpAddress":{"aws:SourceIp":"203.0.113.0/24"}`, true},
		{`"IpAddress":{"aws:SourceIp":"203.0.113.7"}`, true},
		{`"IpAddress":{"aws:SourceIp":"2001:db8::/32"}`, false},
		{`"NotIpAddress":{"aws:SourceIp":["10.0.0.0/8","203.0.113.0/24"]}`, false},
		{`"NotIpAddress":{"aws:SourceIp":"10.0.0.0/8"}`, true},
		{`"DateLessThan":{"aws:CurrentTime":"2026-06-01T12:00:01Z"}`, true},
		{`"DateLessThan":{"aws:CurrentTime":"2026-06-01T12:00:00Z"}`, false},
		{`"DateLessThanEquals":{"aws:CurrentTime":"2026-06-01T14:00:00+02:00"}`, true},
		{`"DateGreaterThan":{"aws:CurrentTime":"2026-06"}`, true},
		{`"DateEquals":{"aws:CurrentTime":"1780315200"}`, true},
		{`"NumericLessThan":{"aws:EpochTime":"1780315201"}`, true},
		{`"NumericGreaterThanEquals":{"aws:EpochTime":1780315200}`, true},
		{`"NumericEquals":{"aws:SourceIdentity":1}`, false},
		{`"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:role/*"}`, true},
		{`"ArnEquals":{"aws:PrincipalArn":"arn:aws:iam::111122223333:role/x/agent"}`, true},
		{`"ArnNotLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/*"}`, true},
		{`"ForAllValues:StringEquals":{"aws:TagKeys":["team","env","x"]}`, true},
		{`"ForAllValues:StringEquals":{"aws:TagKeys":["team"]}`, false},
		{`"ForAllValues:StringEquals":{"aws:absent":["team"]}`, true},
		{`"ForAnyValue:StringEquals":{"aws:TagKeys":["team"]}`, true},
		{`"ForAnyValue:StringEquals":{"aws:TagKeys":["x"]}`, false},
		{`"ForAnyValue:StringEquals":{"aws:absent":["x"]}`, false},
		{`"ForAnyValue:StringNotEquals":{"aws:TagKeys":["team"]}`, true},
		{`"ForAnyValue:StringNotEquals":{"aws:absent":["x"]}`, false},
		{`"ForAllValues:StringNotEquals":{"aws:TagKeys":["team"]}`, false},
		{`"StringEquals":{"aws:SourceIdentity":"s-1"},"Bool":{"aws:SecureTransport":"false"}`, false},
		{`"StringEquals":{"aws:SourceIdentity":"s-1","aws:username":"x"}`, false},
	} {
		d := parse(t, statementOf(`"Effect":"Allow","Action":"*","Resource":"*","Condition":{`+test.condition+`}`))
		if got := allows(d, "mgn:StartTest", server, context()); got != test.want {
			t.Errorf("%s: got %v, want %v", test.condition, got, test.want)
		}
	}
}

// TestParse_Refused holds documents that must not be loaded: each would be read
// differently by a person and a lenient program.
func TestParse_Refused(t *testing.T) {
	good := `"Effect":"Allow","Action":"mgn:*","Resource":"*"`
	for name, text := range map[string]string{
		"NotJSON":            `{`,
		"Trailing":           statementOf(good) + `{}`,
		"NotAnObject":        `[]`,
		"NoStatement":        `{"Version":"2012-10-17","Statement":[]}`,
		"Version":            `{"Version":"2013-10-17","Statement":[{` + good + `}]}`,
		"UnknownElement":     `{"Version":"2012-10-17","Statements":[{` + good + `}]}`,
		"UnknownMember":      statementOf(good + `,"Conditions":{}`),
		"WrongCase":          statementOf(`"effect":"Allow","Action":"mgn:*","Resource":"*"`),
		"Effect":             statementOf(`"Effect":"allow","Action":"mgn:*","Resource":"*"`),
		"NoEffect":           statementOf(`"Action":"mgn:*","Resource":"*"`),
		"NoAction":           statementOf(`"Effect":"Allow","Resource":"*"`),
		"EmptyAction":        statementOf(`"Effect":"Allow","Action":[],"Resource":"*"`),
		"BothActions":        statementOf(good + `,"NotAction":"mgn:*"`),
		"NoResource":         statementOf(`"Effect":"Allow","Action":"mgn:*"`),
		"ActionForm":         statementOf(`"Effect":"Allow","Action":"StartTest","Resource":"*"`),
		"ActionNumber":       statementOf(`"Effect":"Allow","Action":1,"Resource":"*"`),
		"ResourceForm":       statementOf(`"Effect":"Allow","Action":"mgn:*","Resource":"source-server/*"`),
		"Principal":          statementOf(good + `,"Principal":"*"`),
		"NameTwice":          statementOf(good + `,"Effect":"Deny"`),
		"SidTwice":           `{"Statement":[{"Sid":"a",` + good + `},{"Sid":"a",` + good + `}]}`,
		"SidForm":            statementOf(good + `,"Sid":"a b"`),
		"UnknownOperator":    statementOf(good + `,"Condition":{"StringEqual":{"aws:username":"x"}}`),
		"OperatorCase":       statementOf(good + `,"Condition":{"stringequals":{"aws:username":"x"}}`),
		"ConditionForm":      statementOf(good + `,"Condition":{"StringEquals":["aws:username","x"]}`),
		"ConditionKey":       statementOf(good + `,"Condition":{"StringEquals":{"username":"x"}}`),
		"ConditionEmpty":     statementOf(good + `,"Condition":{"StringEquals":{"aws:username":[]}}`),
		"ConditionNull":      statementOf(good + `,"Condition":{"StringEquals":{"aws:username":null}}`),
		"Null":               statementOf(good + `,"Condition":{"Null":{"aws:username":"yes"}}`),
		"NullIfExists":       statementOf(good + `,"Condition":{"NullIfExists":{"aws:username":"true"}}`),
		"Bool":               statementOf(good + `,"Condition":{"Bool":{"aws:SecureTransport":"1"}}`),
		"Date":               statementOf(good + `,"Condition":{"DateLessThan":{"aws:CurrentTime":"tomorrow"}}`),
		"Number":             statementOf(good + `,"Condition":{"NumericEquals":{"aws:EpochTime":"x"}}`),
		"Address":            statementOf(good + `,"Condition":{"IpAddress":{"aws:SourceIp":"10.0.0/8"}}`),
		"SeveralValues":      statementOf(good + `,"Condition":{"StringEquals":{"aws:TagKeys":"x"}}`),
		"VariableUnfinished": statementOf(`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:*:*:source-server/${aws:SourceIdentity"`),
		"VariableForm":       statementOf(`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:*:*:source-server/${SourceIdentity}"`),
		"TooLong":            statementOf(good + `,"Sid":"` + strings.Repeat("a", maxDocument) + `"`),
		"TooDeep":            strings.Repeat("[", 100) + strings.Repeat("]", 100),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(Identity, "", text)
			if e := (*Error)(nil); !errors.As(err, &e) {
				t.Errorf("got %v, want a Error: %s", err, text)
			}
		})
	}
	if _, err := Parse(Identity, "", statementOf(good)); err != nil {
		t.Errorf("the document that the others differ from: %v", err)
	}
}

// TestEvaluate_Layers shows that a boundary and a session policy can only take
// away, and a Deny in any layer wins.
func TestEvaluate_Layers(t *testing.T) {
	all := parse(t, statementOf(`"Effect":"Allow","Action":"*","Resource":"*"`))
	tests := parse(t, statementOf(`"Effect":"Allow","Action":"mgn:StartTest","Resource":"*"`))
	never := parse(t, statementOf(`"Sid":"Never","Effect":"Deny","Action":"mgn:StartTest","Resource":"*"`))
	for _, test := range []struct {
		name     string
		policies Policies
		action   string
		want     bool
		reason   string // for the audit log
		because  string // for the caller, in AWS's words
	}{
		{"None", Policies{}, "mgn:StartTest", false, "no statement of the identity policies", "because no identity-based policy allows the mgn:StartTest action"},
		{"Boundary", Policies{Identity: []*Document{all}, Boundary: tests}, "mgn:StartTest", true, "permissions boundary", ""},
		{"OutsideBoundary", Policies{Identity: []*Document{all}, Boundary: tests}, "mgn:StartCutover", false, "no statement of the permissions boundary", "because no permissions boundary allows the mgn:StartCutover action"},
		{"BoundaryGivesNothing", Policies{Identity: []*Document{tests}, Boundary: all}, "mgn:StartCutover", false, "no statement of the identity policies", "because no identity-based policy allows the mgn:StartCutover action"},
		{"BoundaryAlone", Policies{Boundary: all}, "mgn:StartCutover", false, "no statement of the identity policies", "because no identity-based policy allows the mgn:StartCutover action"},
		{"Session", Policies{Identity: []*Document{all}, Session: []*Document{tests}}, "mgn:StartCutover", false, "no statement of the session policies", "because no session policy allows the mgn:StartCutover action"},
		{"DenyInSession", Policies{Identity: []*Document{all}, Session: []*Document{all, never}}, "mgn:StartTest", false, "denied by statement Never", "with an explicit deny in a session policy"},
		{"DenyInBoundary", Policies{Identity: []*Document{all}, Boundary: never}, "mgn:StartTest", false, "denied by statement Never", "with an explicit deny in a permissions boundary"},
		{"DenyFirst", Policies{Identity: []*Document{never, all}}, "mgn:StartTest", false, "denied by statement Never", "with an explicit deny in an identity-based policy"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Evaluate(&Request{Action: test.action, Resource: server, Policies: test.policies})
			if got.Allowed != test.want || !strings.Contains(got.Reason(), test.reason) {
				t.Errorf("got %+v: %s", got, got.Reason())
			}
			if got.Because() != test.because {
				t.Errorf("the caller is told %q", got.Because())
			}
		})
	}
}

// TestDocument_Opens: what allows anything of a service opens it, whatever the
// resource, the conditions and the denials.
func TestDocument_Opens(t *testing.T) {
	for _, test := range []struct {
		statements string
		opens      bool
	}{
		{`{"Effect":"Allow","Action":"mgn:StartTest","Resource":"*"}`, true},
		{`{"Effect":"Allow","Action":["s3:*","MGN:*"],"Resource":"arn:aws:mgn:*:*:job/*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}`, true},
		{`{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"mgn:*","Resource":"*"}`, true},
		{`{"Effect":"Allow","Action":"*:Describe*","Resource":"*"}`, true},
		{`{"Effect":"Allow","Action":["mgn2:*","s3:mgn"],"Resource":"*"}`, false},
		{`{"Effect":"Deny","Action":"mgn:*","Resource":"*"}`, false},
		{`{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}`, true},
		{`{"Effect":"Allow","NotAction":["iam:*","mgn:Start*"],"Resource":"*"}`, true},
		{`{"Effect":"Allow","NotAction":["iam:*","mgn:*"],"Resource":"*"}`, false},
		{`{"Effect":"Allow","NotAction":"mgn:**","Resource":"*"}`, false},
		{`{"Effect":"Allow","NotAction":"*","Resource":"*"}`, false},
		{`{"Effect":"Allow","NotAction":"*:*","Resource":"*"}`, false},
		{`{"Effect":"Allow","NotAction":"mgn:*","Resource":"*"},{"Effect":"Allow","Action":"mgn:Get*","Resource":"*"}`, true},
	} {
		doc, err := Parse(Identity, "p", `{"Version":"2012-10-17","Statement":[`+test.statements+`]}`)
		if err != nil {
			t.Fatal(err)
		}
		if got := doc.Opens("mgn"); got != test.opens {
			t.Errorf("%s: got %v", test.statements, got)
		}
	}
}
