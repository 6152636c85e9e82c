package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// A maker draws policies and requests whose parts often match.
type maker struct {
	*rand.Rand
	drawn map[Kind][]drawn
}

// A drawn document is there twice: parsed, and for the reference.
type drawn struct {
	document *Document
	ref      refDocument
}

// enough documents are drawn of each kind; then they are combined anew.
const enough = 1500

func (m maker) draw(t testing.TB, kind Kind) drawn {
	if len(m.drawn[kind]) == enough {
		return m.drawn[kind][m.IntN(enough)]
	}
	text := m.document(kind)
	d, err := Parse(kind, "random", text)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	out := drawn{d, refParse(text)}
	m.drawn[kind] = append(m.drawn[kind], out)
	return out
}

// newMaker prints its seed, so that what it found can be found again.
func newMaker(t testing.TB) maker {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return maker{rand.New(rand.NewPCG(seed, 3)), map[Kind][]drawn{}}
}

func (m maker) pick(list ...string) string { return list[m.IntN(len(list))] }

// some is one to three of the list, as JSON.
func (m maker) some(list ...string) string {
	n := 1 + m.IntN(3)
	if n == 1 && m.IntN(2) == 0 {
		return quote(m.pick(list...))
	}
	var out []string
	for range n {
		out = append(out, quote(m.pick(list...)))
	}
	return "[" + strings.Join(out, ",") + "]"
}

func quote(s string) string { return `"` + s + `"` }

const (
	home      = "111122223333"
	abroad    = "444455556666"
	userARN   = "arn:aws:iam::" + home + ":user/ops/ann"
	roleARN   = "arn:aws:iam::" + home + ":role/agent"
	sessARN   = "arn:aws:sts::" + home + ":assumed-role/agent/s-1"
	fedARN    = "arn:aws:sts::" + home + ":federated-user/guest"
	rootARN   = "arn:aws:iam::" + home + ":root"
	strangARN = "arn:aws:iam::" + abroad + ":user/eve"
	service   = "mgn.amazonaws.com"
)

// callers are the kinds of principal.
var callers = map[string]Principal{
	"User":      {Kind: "AWS", Value: userARN},
	"Session":   {Kind: "AWS", Value: sessARN, Parent: roleARN},
	"Federated": {Kind: "AWS", Value: fedARN, Parent: userARN},
	"Stranger":  {Kind: "AWS", Value: strangARN},
	"Service":   {Kind: "Service", Value: service},
	"Provider":  {Kind: "Federated", Value: "accounts.example.com"},
}

func (m maker) caller() Principal {
	return callers[m.pick("User", "Session", "Session", "Federated", "Stranger", "Service", "Provider")]
}

func (m maker) principals() string {
	switch m.IntN(6) {
	case 0:
		return `"*"`
	case 1:
		return `{"Service":` + m.some(service, "ec2.amazonaws.com") + `,"AWS":` + m.some(userARN, home) + `}`
	case 2:
		return `{"Federated":"accounts.example.com"}`
	}
	return `{"AWS":` + m.some(userARN, roleARN, sessARN, fedARN, rootARN, home, strangARN, abroad, "*") + `}`
}

func (m maker) notPrincipals() string {
	return `{"AWS":[` + m.pick(quote(userARN), quote(sessARN)+","+quote(roleARN), quote(sessARN), quote(fedARN)+","+quote(userARN)) +
		m.pick("", ","+quote(home), ","+quote(rootARN)) + `],"Service":"` + service + `"}`
}

func (m maker) condition() string {
	set := m.pick("", "", "", "ForAllValues:", "ForAnyValue:")
	ifExists := m.pick("", "", "IfExists")
	tags := m.some("team", "env", "t*", "${aws:username}", "${aws:PrincipalTag/x, 'env'}")
	texts := m.some("s-1", "S-1", "s-*", "x", "${aws:username}", "${*}", "?-1", "${aws:PrincipalTag/x, 's-1'}")
	if set != "" {
		return quote(set+m.pick("StringEquals", "StringNotEquals", "StringLike", "StringNotLike", "StringEqualsIgnoreCase")+ifExists) + `:{"aws:TagKeys":` + tags + `}`
	}
	switch m.IntN(7) {
	case 0:
		return quote("Numeric"+m.pick("Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals")+ifExists) + `:{"x:Count":` + m.some("5", "-2", "5.50", "9007199254740993") + `}`
	case 1:
		return quote("Date"+m.pick("Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals")+ifExists) + `:{"aws:CurrentTime":` + m.some("2026-06-01T12:00:00Z", "2026-06-01T14:00:00+02:00", "2027-01-01T00:00:00Z") + `}`
	case 2:
		return quote(m.pick("IpAddress", "NotIpAddress")+ifExists) + `:{"aws:SourceIp":` + m.some("203.0.113.0/24", "10.0.0.0/8", "2001:db8::/32") + `}`
	case 3:
		return quote("Arn"+m.pick("Equals", "Like", "NotEquals", "NotLike")+ifExists) + `:{"aws:PrincipalArn":` + m.some(userARN, "arn:aws:iam::*:role/*", "arn:*:iam::1?1122223333:user/*", "arn:aws:iam:*:user/*:x") + `}`
	case 4:
		return `"Null":{"` + m.pick("aws:username", "aws:SourceIdentity", "aws:TagKeys") + `":"` + m.pick("true", "false") + `"}`
	case 5:
		return quote("Bool"+ifExists) + `:{"aws:SecureTransport":` + m.pick(`"true"`, `false`, `"False"`) + `}`
	}
	return quote("String"+m.pick("Equals", "NotEquals", "Like", "NotLike", "EqualsIgnoreCase", "NotEqualsIgnoreCase")+ifExists) +
		`:{"` + m.pick("aws:SourceIdentity", "AWS:sourceidentity", "x:Many", "aws:username") + `":` + texts + `}`
}

func (m maker) statement(kind Kind, effect string) string {
	parts := []string{`"Effect":` + quote(effect)}
	parts = append(parts, quote(m.pick("Action", "Action", "NotAction"))+":"+m.some("*", "mgn:*", "mgn:StartTest", "mgn:start*", "MGN:Delete???", "iam:*"))
	if kind != Trust {
		parts = append(parts, quote(m.pick("Resource", "Resource", "NotResource"))+":"+m.some("*", "*", server, "arn:aws:mgn:*:*:source-server/*",
			"arn:aws:mgn:*:*:source-server/${aws:SourceIdentity}", "arn:aws:mgn:*:*:SOURCE-server/*", "arn:aws:mgn:*:*:job/*", "arn:aws:mgn:eu-*", "arn:aws:mgn:*:source-server/*",
			"arn:aws:mgn:*:"+home+":source-server/${aws:username, 's-1'}", "arn:aws:mgn:e*3:source-server/s-?:*"))
	}
	switch {
	case kind == Identity:
	case kind != Trust && effect == "Deny" && m.IntN(3) == 0:
		parts = append(parts, `"NotPrincipal":`+m.notPrincipals())
	default:
		parts = append(parts, `"Principal":`+m.principals())
	}
	switch m.IntN(4) {
	case 0, 1:
		parts = append(parts, `"Condition":{`+m.condition()+`}`)
	case 2:
		a, b := m.condition(), m.condition()
		if a[:strings.Index(a, ":{")] != b[:strings.Index(b, ":{")] { // the same operator twice is refused
			parts = append(parts, `"Condition":{`+a+","+b+`}`)
		}
	}
	m.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	return "{" + strings.Join(parts, ",") + "}"
}

func documentOf(version string, statements ...string) string {
	return fmt.Sprintf(`{"Version":%q,"Statement":[%s]}`, version, strings.Join(statements, ","))
}

func (m maker) document(kind Kind) string {
	var statements []string
	for range 1 + m.IntN(3) {
		statements = append(statements, m.statement(kind, m.pick("Allow", "Allow", "Allow", "Deny")))
	}
	return documentOf(m.pick("2012-10-17", "2012-10-17", "2012-10-17", "2008-10-17"), statements...)
}

func (m maker) context() Context {
	c := Context{}
	set := func(key string, values ...string) {
		if m.IntN(3) > 0 {
			c.Set(key, values[m.IntN(len(values))])
		}
	}
	set("aws:SourceIdentity", "s-1", "s-1", "S-1", "x", "*")
	set("aws:username", "s-1", "ann", "*")
	set("aws:SourceIp", "203.0.113.7", "10.1.2.3", "2001:db8::1")
	set("aws:SecureTransport", "true", "false")
	set("aws:CurrentTime", "2026-06-01T12:00:00Z", "2026-11-25T00:00:00Z")
	set("aws:PrincipalArn", userARN, roleARN)
	set("x:Count", "5", "5.5", "-3", "9007199254740992")
	for _, key := range []string{"aws:TagKeys", "x:Many"} {
		var values []string
		for range m.IntN(4) {
			values = append(values, m.pick("team", "env", "s-1", "s-2"))
		}
		c.Set(key, values...)
	}
	return c
}

// request draws a question, with the policies twice: parsed, and for the reference.
func (m maker) request(t testing.TB) (*Request, refPolicies, []string) {
	r := &Request{
		Principal: m.caller(), Context: m.context(),
		Action:   m.pick("mgn:StartTest", "mgn:startTest", "mgn:DeleteJob", "iam:CreateUser"),
		Resource: m.pick(server, server, "*", "arn:aws:mgn:eu-west-1:"+home+":job/j-1", "arn:aws:mgn:eu-west-1:"+home+":source-server/s-1:x", "arn:aws:mgn:eu-west-1:"+abroad+":source-server/s-1"),
	}
	var ref refPolicies
	var texts []string
	draw := func(kind Kind) (*Document, refDocument) {
		one := m.draw(t, kind)
		texts = append(texts, one.document.Text())
		return one.document, one.ref
	}
	for range m.IntN(3) {
		d, n := draw(Identity)
		r.Policies.Identity, ref.identity = append(r.Policies.Identity, d), append(ref.identity, n)
	}
	if m.IntN(3) == 0 {
		r.Policies.Boundary, ref.boundary = draw(Identity)
	}
	for range max(0, m.IntN(4)-1) {
		d, n := draw(Identity)
		r.Policies.Session, ref.session = append(r.Policies.Session, d), append(ref.session, n)
	}
	if m.IntN(2) == 0 {
		kind := []Kind{Trust, Resource, Key}[m.IntN(3)]
		r.Policies.Resource, ref.resource = draw(kind)
		ref.trust = kind != Resource
	}
	return r, ref, texts
}

// TestEvaluate_Reference compares with an evaluator that shares no code.
func TestEvaluate_Reference(t *testing.T) {
	m := newMaker(t)
	rounds := 100_000
	if testing.Short() {
		rounds = 5_000
	}
	counts := map[string]int{}
	for range rounds {
		r, ref, texts := m.request(t)
		d := Evaluate(r)
		got, want := d.Verdict(), reference{}.decide(r, ref)
		if got != want {
			t.Fatalf("got %s (%s), want %s: %+v %s on %s with %v:\n%s", got, d.Reason(), want, r.Principal, r.Action, r.Resource, r.Context, strings.Join(texts, "\n"))
		}
		if e := Explain(r); e.Verdict() != got {
			t.Fatalf("the explanation says %s, the decision %s", e.Verdict(), got)
		}
		counts[got]++
	}
	t.Log(counts)
	for _, verdict := range []string{"allowed", "explicitDeny", "implicitDeny"} {
		if counts[verdict] < rounds/40 {
			t.Errorf("%d of %d are %s: the test shows too little", counts[verdict], rounds, verdict)
		}
	}
}

// TestEvaluate_ReferenceNotices leaves out every rule of the reference, one by
// one: each must make it disagree, or the comparison would not notice that
// Evaluate lacks the rule.
func TestEvaluate_ReferenceNotices(t *testing.T) {
	m := newMaker(t)
	const patience = 200_000
	noticed := map[string]int{}
	for n := 1; n <= patience && len(noticed) < len(rules); n++ {
		r, ref, _ := m.request(t)
		d := Evaluate(r)
		for _, rule := range rules {
			if noticed[rule] == 0 && (reference{without: rule}).decide(r, ref) != d.Verdict() {
				noticed[rule] = n
			}
		}
	}
	for _, rule := range rules {
		if noticed[rule] == 0 {
			t.Errorf("nobody noticed in %d requests that this rule was left out: %s", patience, rule)
		} else {
			t.Logf("after %5d requests: %s", noticed[rule], rule)
		}
	}
}
