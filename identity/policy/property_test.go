package policy

import (
	"slices"
	"strings"
	"testing"
)

// ranked orders verdicts by what they let through.
var ranked = map[string]int{"explicitDeny": 0, "implicitDeny": 1, "allowed": 2}

func rank(r *Request) int {
	d := Evaluate(r)
	return ranked[d.Verdict()]
}

// A property says how a change of the policies may change the answer.
type property struct {
	name   string
	change func(m maker, t *testing.T, r *Request)
	holds  func(before, after int) bool
}

func narrows(before, after int) bool { return after <= before }
func keeps(before, after int) bool   { return after == before }

// noLess is of what an Allow adds: who was allowed still is.
func noLess(before, after int) bool { return before != 2 || after == 2 }

func (m maker) parsed(t *testing.T, kind Kind, effect string) *Document {
	t.Helper()
	d, err := Parse(kind, "added", documentOf("2012-10-17", m.statement(kind, effect)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var properties = []property{
	{"AddingADenyNeverAllows", func(m maker, t *testing.T, r *Request) {
		r.Policies.Identity = append(r.Policies.Identity, m.parsed(t, Identity, "Deny"))
	}, narrows},
	{"AddingAnAllowNeverDenies", func(m maker, t *testing.T, r *Request) {
		r.Policies.Identity = append(r.Policies.Identity, m.parsed(t, Identity, "Allow"))
	}, noLess},
	{"ABoundaryOnlyNarrows", func(m maker, t *testing.T, r *Request) {
		if r.Policies.Boundary == nil {
			r.Policies.Boundary = parse(t, m.document(Identity))
		}
	}, narrows},
	{"SessionPoliciesOnlyNarrow", func(m maker, t *testing.T, r *Request) {
		if len(r.Policies.Session) == 0 && !strings.Contains(r.Principal.Value, "federated-user") {
			r.Policies.Session = []*Document{parse(t, m.document(Identity))}
		}
	}, narrows},
	{"OrderDoesNotMatter", func(m maker, t *testing.T, r *Request) {
		r.Policies.Identity = slices.Clone(r.Policies.Identity)
		slices.Reverse(r.Policies.Identity)
		for i, d := range r.Policies.Identity {
			var statements []string
			top, err := parseTree(d.Text())
			if err != nil {
				t.Fatal(err)
			}
			list, _ := top.value.(object).get("Statement")
			for _, n := range list.list() {
				statements = append(statements, d.Text()[n.start:n.end])
			}
			version, _ := top.value.(object).get("Version")
			slices.Reverse(statements)
			r.Policies.Identity[i] = parse(t, documentOf(version.value.(string), statements...))
		}
	}, keeps},
	{"CaseOfActionsDoesNotMatter", func(m maker, t *testing.T, r *Request) { r.Action = strings.ToUpper(r.Action) }, keeps},
	{"AnUnknownKeyDoesNotMatter", func(m maker, t *testing.T, r *Request) { r.Context["x:unheard"] = []string{"of"} }, keeps},
}

// TestEvaluate_Properties changes random policies and looks what comes of it.
func TestEvaluate_Properties(t *testing.T) {
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			m := newMaker(t)
			changed := 0
			for range 2000 {
				r, _, texts := m.request(t)
				before := rank(r)
				p.change(m, t, r)
				after := rank(r)
				if !p.holds(before, after) {
					t.Fatalf("%d became %d: %+v %s on %s with %v:\n%s", before, after, r.Principal, r.Action, r.Resource, r.Context, strings.Join(texts, "\n"))
				}
				if before != after {
					changed++
				}
			}
			if !p.holds(0, 2) && !p.holds(1, 2) && changed < 20 && p.holds(2, 1) {
				t.Errorf("only %d changes changed anything: the test shows too little", changed)
			}
		})
	}
}

// TestEvaluate_Duality: what Action means, NotAction leaves, and the other way
// round; likewise Resource and NotResource for patterns without wildcards
// inside their fields.
func TestEvaluate_Duality(t *testing.T) {
	m := newMaker(t)
	for range 500 {
		for _, pair := range [][3]string{
			{"Action", m.some("*", "mgn:*", "mgn:StartTest", "mgn:start*", "MGN:Delete???", "iam:*"), `"Resource":"*"`},
			{"Resource", m.some("*", server, "arn:aws:mgn:eu-west-1:"+home+":job/*", "arn:aws:mgn:eu-west-1:"+home+":source-server/*"), `"Action":"*"`},
		} {
			effect := m.pick("Allow", "Deny")
			r, _, _ := m.request(t)
			r.Principal, r.Policies = callers["User"], Policies{}
			r.Resource = strings.Replace(r.Resource, abroad, home, 1)
			applies := func(element string) bool {
				d := parse(t, statementOf(`"Effect":"`+effect+`",`+quote(element)+":"+pair[1]+","+pair[2]))
				r.Policies.Identity = []*Document{d}
				return rank(r) != ranked["implicitDeny"]
			}
			if applies(pair[0]) == applies("Not"+pair[0]) {
				t.Fatalf("%s: %s and Not%s %s agree about %s on %s", effect, pair[0], pair[0], pair[1], r.Action, r.Resource)
			}
		}
	}
}
