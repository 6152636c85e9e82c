package policy

import (
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestParse_Positions marks the place of the mistake with « in the text.
func TestParse_Positions(t *testing.T) {
	for _, test := range []struct{ path, text string }{
		{"", "«[]"},
		{"", `«{"Version":"2012-10-17"}`},
		{"Version", `{"Version":«"2013-10-17"}`},
		{"Statements", "{\n  \"Version\": \"2012-10-17\",\n  \"Statements\": «[]\n}"},
		{"Statement[0]", `{"Statement":[«{"Action":"a:b"}]}`},
		{"Statement[0].Effect", "{\"Statement\":\n [{\"Effect\":\t«\"allow\",\"Action\":\"a:b\",\"Resource\":\"*\"}]}"},
		{"Statement.Action[1]", `{"Statement":{"Effect":"Allow","Action":["a:b",«"b"],"Resource":"*"}}`},
		{"Statement.Action[1]", `{"Statement":{"Effect":"Allow","Action":["a:b" , «7],"Resource":"*"}}`},
		{"Statement.Resource", `{"Statement":{"Sid":"ä","Effect":"Allow","Action":"a:b","Resource":«"x"}}`},
		{"Statement[1].Condition.StringEquals.x", `{"Statement":[{"Effect":"Deny","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"x":«"y"}}}]}`},
		{"Statement[1]", `{"Statement":[{"Sid":"A","Effect":"Deny","Action":"*","Resource":"*"},«{"Sid":"A","Effect":"Deny","Action":"*","Resource":"*"}]}`},
	} {
		before, after, _ := strings.Cut(test.text, "«")
		want := positionOf(before+after, len(before))
		_, err := Parse(Identity, "", strings.Replace(before+after, "ä", "a", 1))
		e := (*Error)(nil)
		if !errors.As(err, &e) || e.Path != test.path || e.Position != want {
			t.Errorf("%s: got %+v, want %+v at %q", test.text, e, want, test.path)
		}
	}
	if got := positionOf("a\nä«", 4); got != (Position{2, 2}) {
		t.Errorf("columns count characters: got %+v", got)
	}
	_, err := Parse(Identity, "", `{"Statement":[{"Effect":"Allow",}]}`)
	if e := (*Error)(nil); !errors.As(err, &e) || e.Line != 1 || e.Column < 30 {
		t.Errorf("a comma too many: got %+v", err)
	}
}

// TestParse_Kinds shows which elements each kind of document takes.
func TestParse_Kinds(t *testing.T) {
	const (
		head      = `"Effect":"Allow","Action":"sts:AssumeRole"`
		deny      = `"Effect":"Deny","Action":"sts:AssumeRole"`
		resource  = `,"Resource":"*"`
		notRes    = `,"NotResource":"*"`
		principal = `,"Principal":{"AWS":"111122223333"}`
		not       = `,"NotPrincipal":{"AWS":"111122223333"}`
	)
	for members, want := range map[string][]Kind{
		head:                                     nil,
		head + resource:                          {Identity},
		head + notRes:                            {Identity},
		head + resource + notRes:                 nil,
		head + principal:                         {Trust},
		head + principal + resource:              {Resource, Key},
		head + not + resource:                    nil,
		deny + not + resource:                    {Resource, Key},
		deny + not:                               nil,
		deny + principal + not + resource:        nil,
		head + `,"Principal":"*"`:                {Trust},
		head + `,"Principal":"x"`:                nil,
		head + `,"Principal":{}`:                 nil,
		head + `,"Principal":{"AWS":[]}`:         nil,
		head + `,"Principal":{"AWS":"*"}`:        {Trust},
		head + `,"Principal":{"AWS":"11112222"}`: nil,
		head + `,"Principal":{"AWS":"arn:aws:iam::111122223333:user/*"}`:                nil,
		head + `,"Principal":{"AWS":"arn:aws:iam::111122223333:root"}`:                  {Trust},
		head + `,"Principal":{"AWS":"arn:aws-cn:iam::111122223333:user/a/b"}`:           {Trust},
		head + `,"Principal":{"AWS":"arn:aws:iam::111122223333:group/a"}`:               nil,
		head + `,"Principal":{"AWS":"arn:aws:sts::111122223333:assumed-role/a/b"}`:      {Trust},
		head + `,"Principal":{"AWS":"arn:aws:sts::111122223333:assumed-role/a"}`:        nil,
		head + `,"Principal":{"AWS":"arn:aws:sts::111122223333:federated-user/a"}`:      {Trust},
		head + `,"Principal":{"AWS":"AROAJQABLZS4A3QDU576Q"}`:                           {Trust},
		head + `,"Principal":{"Service":["mgn.amazonaws.com"]}`:                         {Trust},
		head + `,"Principal":{"Service":"*"}`:                                           nil,
		head + `,"Principal":{"Federated":"arn:aws:iam::111122223333:oidc-provider/x"}`: {Trust},
		head + `,"Principal":{"CanonicalUser":"79a59d"}`:                                {Trust},
		head + `,"Principal":{"User":"ann"}`:                                            nil,
	} {
		for _, kind := range []Kind{Identity, Trust, Resource, Key} {
			_, err := Parse(kind, "", statementOf(members))
			if got := err == nil; got != slices.Contains(want, kind) {
				t.Errorf("kind %d: %s: %v", kind, members, err)
			}
		}
	}
}

// TestPrincipal_IDs: an element of a unique id means that very user or role,
// and nobody of the same name that came later.
func TestPrincipal_IDs(t *testing.T) {
	const role, user = "AROAJQABLZS4A3QDU576Q", "AIDAJQABLZS4A3QDU576Q"
	for _, test := range []struct {
		element, id string
		want        grant
	}{
		{role, role + ":s-1", limited}, {role, "AROAJQABLZS4A3QDU576X:s-1", notNamed}, {role, "", notNamed},
		{user, user, direct}, {user, "AIDAJQABLZS4A3QDU576X", notNamed},
		{home, home + ":bob", delegated}, // a federated user's id begins with the account
	} {
		d, err := Parse(Trust, "", statementOf(`"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"AWS":"`+test.element+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		p := Principal{Kind: "AWS", Value: "arn:aws:sts::" + home + ":assumed-role/x/y", Parent: "arn:aws:iam::" + home + ":role/x", ID: test.id}
		if got := d.allows[0].grants(&asker{&p, p.name()}); got != test.want {
			t.Errorf("%s names %s: got %d, want %d", test.element, test.id, got, test.want)
		}
	}
}

// TestSize counts as AWS does, and Parse holds the largest of its limits.
func TestSize(t *testing.T) {
	for text, want := range map[string]int{
		`{}`:                                 2,
		" {\r\n\t\"a\" : \"b c\" } ":         len(`{"a":"b c"}`), // white space inside of a value counts: we rather count too much
		`{"a":"ä"}`:                          len(`{"a":"x"}`),
		`not JSON`:                           8,
		"{" + strings.Repeat(" ", 9) + "\n}": 2,
	} {
		if got := Size(text); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
	fill := func(n int) string {
		text := statementOf(`"Effect":"Allow","Action":"a:b","Resource":"*","Sid":"%"`)
		return strings.Replace(text, "%", strings.Repeat("x", n-len(text)+1), 1)
	}
	if _, err := Parse(Identity, "", strings.Repeat(" ", 50000)+fill(MaxRoleInline)); err != nil {
		t.Errorf("the longest: %v", err)
	}
	if _, err := Parse(Identity, "", fill(MaxRoleInline+1)); err == nil {
		t.Error("one character more was accepted")
	}
	if _, err := Parse(Identity, "", strings.Repeat(" ", maxText)+fill(100)); err == nil {
		t.Error("white space without end was accepted")
	}
}

// TestExplain shows all that bears on a decision, with positions of the text.
func TestExplain(t *testing.T) {
	text := "{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": [\n    {\"Sid\": \"Look\", \"Effect\": \"Allow\", \"Action\": \"mgn:*\", \"Resource\": \"*\"},\n" +
		"    {\"Effect\": \"Allow\", \"Action\": \"mgn:StartTest\", \"Resource\": \"*\", \"Condition\": {\"StringEquals\": {\"aws:Absent\": \"${x:Gone}\"}}},\n" +
		"    {\"Effect\": \"Deny\", \"Action\": \"mgn:StartTest\", \"Resource\": \"*\"}\n  ]\n}"
	own := parse(t, text)
	bound := parse(t, statementOf(`"Effect":"Allow","Action":"iam:*","Resource":"*"`))
	r := Request{Principal: callers["User"], Action: "mgn:StartTest", Resource: server, Policies: Policies{Identity: []*Document{own}, Boundary: bound}}
	d := Explain(&r)
	document, statement := d.Statement()
	if d.Verdict() != "explicitDeny" || d.Layer != IdentityLayer || document != "test" || statement != "#3" {
		t.Errorf("got %+v by %s of %s", d, statement, document)
	}
	if d.Outcomes != [layerCount]Outcome{Denied, Silent, Absent, Absent} {
		t.Errorf("got %v", d.Outcomes)
	}
	lines := strings.Split(text, "\n")
	want := []Match{
		{own, IdentityLayer, "Look", false, Position{4, 5}, Position{4, len(lines[3])}},
		{own, IdentityLayer, "#3", true, Position{6, 5}, Position{6, len(lines[5]) + 1}},
	}
	if !slices.Equal(d.Matched, want) {
		t.Errorf("got %+v", d.Matched)
	}
	if !slices.Equal(d.Missing, []string{"aws:absent", "x:gone"}) || !slices.Equal(own.ContextKeys(), d.Missing) {
		t.Errorf("missing %q", d.Missing)
	}
	encoded, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Verdict, Action, Document, Statement, Reason string
		Layers                                       map[string]string
		Matched                                      []struct{ Start Position }
		Missing                                      []string
	}
	if err := json.Unmarshal(encoded, &back); err != nil {
		t.Fatal(err)
	}
	if back.Verdict != "explicitDeny" || back.Action != "mgn:StartTest" || back.Statement != "#3" || back.Layers["permissions boundary"] != "implicitDeny" ||
		len(back.Matched) != 2 || back.Matched[1].Start.Line != 6 || len(back.Missing) != 2 || !strings.Contains(back.Reason, "#3") {
		t.Errorf("got %s", encoded)
	}
	no := Refuse("policy %s is gone", "x")
	if no.Allowed || no.Verdict() != "explicitDeny" || no.Reason() != "policy x is gone" {
		t.Errorf("got %+v", no)
	}
}

// TestValidate has a document for every finding, and one without any.
func TestValidate(t *testing.T) {
	const allow = `"Effect":"Allow","Action":"mgn:*","Resource":"*"`
	for _, test := range []struct {
		kind       Kind
		text, code string
	}{
		{Identity, statementOf(`"Effect":"Allow","Action":"*","Resource":"*"`), "ALLOW_WITH_ADMINISTRATOR_ACCESS"},
		{Identity, statementOf(`"Effect":"Allow","Action":"iam:pass*","Resource":"*"`), "PASS_ROLE_WITH_STAR_IN_RESOURCE"},
		{Identity, statementOf(`"Effect":"Allow","NotAction":"iam:*","Resource":"*"`), "ALLOW_WITH_NOT_ACTION"},
		{Identity, statementOf(`"Effect":"Allow","Action":"mgn:*","NotResource":"arn:aws:mgn:*:*:job/*"`), "ALLOW_WITH_NOT_RESOURCE"},
		{Trust, statementOf(`"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"AWS":"*"}`), "ALLOW_WITH_STAR_PRINCIPAL"},
		{Identity, statementOf(allow + `,"Condition":{"ForAllValues:StringEquals":{"aws:TagKeys":"x"}}`), "FORALLVALUES_WITH_SINGLE_VALUED_KEY"},
		{Identity, statementOf(allow + `,"Condition":{"ForAnyValue:StringEquals":{"aws:username":"x"}}`), "SET_OPERATOR_WITH_SINGLE_VALUED_KEY"},
		{Identity, statementOf(allow + `,"Condition":{"StringEquals":{"aws:username":"x*"}}`), "WILDCARD_WITHOUT_LIKE_OPERATOR"},
		{Identity, statementOf(`"Effect":"Deny","Action":"*","Resource":"*","Condition":{"BoolIfExists":{"aws:SecureTransport":"false"}}`), "DENY_WITH_IF_EXISTS"},
		{Identity, statementOf(`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:*"`), "MISSING_ARN_FIELD"},
		{Identity, statementOf(`"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:*:*:*:*"`), "WILDCARD_IN_SERVICE"},
		{Identity, `{"Statement":{"Effect":"Allow","Action":"mgn:*","Resource":"arn:aws:mgn:*:*:job/${aws:username}"}}`, "POLICY_VARIABLES_NEED_2012_VERSION"},
		{Identity, statementOf(allow), ""},
		{Identity, statementOf(allow + `,"Condition":{"ForAllValues:StringEquals":{"aws:TagKeys":"x"},"Null":{"aws:TagKeys":"false"}}`), ""},
		{Identity, statementOf(allow + `,"Condition":{"StringEquals":{"aws:username":"x${*}"}}`), ""},
	} {
		d, err := Parse(test.kind, "", test.text)
		if err != nil {
			t.Fatal(err)
		}
		var codes []string
		for _, f := range d.Validate() {
			codes = append(codes, f.Code)
			if f.Message == "" || f.Position.Line != 1 {
				t.Errorf("got %+v", f)
			}
		}
		if test.code == "" && len(codes) > 0 || test.code != "" && !slices.Contains(codes, test.code) {
			t.Errorf("%s: got %q, want %q", test.text, codes, test.code)
		}
	}
}

// TestPage holds the page and the program together.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range operators {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("the page does not name the operator %s", name)
		}
	}
	source, err := os.ReadFile("validate.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range regexp.MustCompile(`"[A-Z0-9]+_[A-Z0-9_]+_[A-Z0-9_]+"`).FindAllString(string(source), -1) {
		if !strings.Contains(string(page), "`"+strings.Trim(code, `"`)+"`") {
			t.Errorf("the page does not name the finding %s", code)
		}
	}
	for _, limit := range []string{"2,048", "5,120", "10,240", "6,144", "131,072"} {
		if !strings.Contains(string(page), limit) {
			t.Errorf("the page does not name the limit %s", limit)
		}
	}
}

// TestDocument_RenamePrincipals puts other principals in the place of those of
// AWS, wherever they stand, and leaves every other character as it is.
func TestDocument_RenamePrincipals(t *testing.T) {
	const text = ` {"Statement": [ {"Principal" : {"AWS":"AIDAAAAAAAAAAAAAAAAA" , "Federated":"AIDAAAAAAAAAAAAAAAAA"},"Effect":"Allow","Action":"sts:*"},
	{"Effect":"Deny","Action":["sts:AssumeRole"],"Principal":{"AWS":[ "\u0041IDAAAAAAAAAAAAAAAAA","arn:aws:iam::111122223333:user/é","*" ]},"Condition":{"StringEquals":{"aws:userid":"AIDAAAAAAAAAAAAAAAAA"}}},
	{"Effect":"Allow","Action":"sts:AssumeRole","Principal":"*"}], "Version":"2012-10-17" }
`
	doc, err := Parse(Trust, "p", text)
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	same, err := doc.RenamePrincipals(func(p string) (string, error) { seen = append(seen, p); return p, nil })
	if err != nil || same != text || !slices.Equal(seen, []string{"AIDAAAAAAAAAAAAAAAAA", "AIDAAAAAAAAAAAAAAAAA", "arn:aws:iam::111122223333:user/é", "*"}) {
		t.Errorf("got %v, %q, %s", err, seen, same)
	}
	other, err := doc.RenamePrincipals(func(p string) (string, error) {
		if p == "AIDAAAAAAAAAAAAAAAAA" {
			return "arn:aws:iam::111122223333:user/ö", nil
		}
		return p, nil
	})
	want := strings.Replace(strings.Replace(text, `"AIDAAAAAAAAAAAAAAAAA" ,`, `"arn:aws:iam::111122223333:user/ö" ,`, 1), `"\u0041IDAAAAAAAAAAAAAAAAA"`, `"arn:aws:iam::111122223333:user/ö"`, 1)
	if err != nil || other != want {
		t.Errorf("got %v, %s", err, other)
	}
	_, err = doc.RenamePrincipals(func(p string) (string, error) {
		if p == "*" {
			return "", errors.New("nobody")
		}
		return p, nil
	})
	if e := (*Error)(nil); !errors.As(err, &e) || e.Line != 2 || e.Path != "Statement[1].Principal.AWS[2]" || e.Reason != "nobody" {
		t.Errorf("got %v", err)
	}
}
