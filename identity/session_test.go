package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"rehost/identity/policy"
)

// A person is a user of the test with its key, as it calls.
func (w *world) person(t testing.TB, name string, statements ...string) *Principal {
	t.Helper()
	u := User{Name: name}
	if len(statements) > 0 {
		u.Inline = map[string]string{"own": statementsOf(statements...)}
	}
	return w.personOf(t, u)
}

func (w *world) personOf(t testing.TB, u User) *Principal {
	t.Helper()
	ctx := context.Background()
	if err := w.CreateUser(ctx, u); err != nil {
		t.Fatal(err)
	}
	c, err := w.CreateAccessKey(ctx, u.Name)
	if err != nil {
		t.Fatal(err)
	}
	return w.principal(t, c)
}

func (w *world) principal(t testing.TB, c Credentials) *Principal {
	t.Helper()
	p, err := w.authenticate(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// role makes a role that trusts by the statements, and may do what "mgn:Start*" is.
func (w *world) role(t testing.TB, name string, trust ...string) string {
	t.Helper()
	return w.roleOf(t, Role{Name: name, Trust: statementsOf(trust...), Inline: map[string]string{"own": statementsOf(allow("mgn:Start*"))}})
}

func (w *world) roleOf(t testing.TB, r Role) string {
	t.Helper()
	if err := w.CreateRole(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	return "arn:aws:iam::" + w.Account().ID + ":role/" + r.Name
}

func statementsOf(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

func allow(action string) string {
	return fmt.Sprintf(`{"Effect":"Allow","Action":%q,"Resource":"*"}`, action)
}

func deny(action string) string {
	return fmt.Sprintf(`{"Effect":"Deny","Action":%q,"Resource":"*"}`, action)
}

// trusts makes a statement of a trust policy, with more members after the principal.
func trusts(principal, more string) string {
	return fmt.Sprintf(`{"Effect":"Allow","Principal":{"AWS":%q},"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"]%s}`, principal, more)
}

func (w *world) root() string { return "arn:aws:iam::" + w.Account().ID + ":root" }

func (w *world) assume(p *Principal, a AssumeRole) (Session, error) {
	if a.Session == "" {
		a.Session = "test"
	}
	return w.AssumeRole(context.Background(), p, a, policy.Context{})
}

// assumed is the principal of a session that must begin.
func (w *world) assumed(t testing.TB, p *Principal, a AssumeRole) *Principal {
	t.Helper()
	s, err := w.assume(p, a)
	if err != nil {
		t.Fatal(err)
	}
	return w.principal(t, s.Credentials)
}

func wantDenied(t testing.TB, err error, action string) {
	t.Helper()
	if e := (*DeniedError)(nil); !errors.As(err, &e) || e.Action != action {
		t.Errorf("got %v, want that %s is denied", err, action)
	}
}

func wantCode(t testing.TB, err error, code, text string) {
	t.Helper()
	if e := (*RequestError)(nil); !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message, text) {
		t.Errorf("got %v, want %s with %q", err, code, text)
	}
}

// TestAssumeRole_Trust goes through the ways in which a trust policy and the
// caller's own policies say yes or no together.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic_policy-eval-basics-single-account.html
func TestAssumeRole_Trust(t *testing.T) {
	may, must := allow("sts:AssumeRole"), deny("sts:AssumeRole")
	for _, test := range []struct {
		name  string
		trust string // principal; "own" is the user, "root" the account
		own   []string
		more  string
		want  bool
	}{
		{"NamesTheUser", "own", nil, "", true},
		{"NamesTheUserButDenied", "own", []string{must}, "", false},
		{"NamesTheAccount", "root", nil, "", false},
		{"NamesTheAccountAndAllowed", "root", []string{may}, "", true},
		{"NamesTheAccountAndDenied", "root", []string{may, must}, "", false},
		{"NamesAnother", "arn:aws:iam::%s:user/other", []string{allow("*")}, "", false},
		{"NamesAnotherAccount", "arn:aws:iam::999988887777:root", []string{allow("*")}, "", false},
		{"ConditionFails", "own", []string{allow("*")}, `,"Condition":{"StringEquals":{"sts:ExternalId":"x1"}}`, false},
		{"ConditionHolds", "own", nil, `,"Condition":{"StringEquals":{"sts:RoleSessionName":"test"}}`, true},
		{"ConditionOnTheCaller", "root", []string{may}, `,"Condition":{"StringEquals":{"aws:username":"own"}}`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			p := w.person(t, "own", test.own...)
			w.person(t, "other")
			principal := test.trust
			switch {
			case principal == "own":
				principal = p.ARN
			case principal == "root":
				principal = w.root()
			case strings.Contains(principal, "%s"):
				principal = fmt.Sprintf(principal, w.Account().ID)
			}
			arn := w.role(t, "target", trusts(principal, test.more))
			s, err := w.assume(p, AssumeRole{Role: arn})
			if !test.want {
				wantDenied(t, err, "sts:AssumeRole")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := w.principal(t, s.Credentials)
			if want := "arn:aws:sts::" + w.Account().ID + ":assumed-role/target/test"; got.ARN != want || s.ARN != want || s.UserID != got.UserID {
				t.Errorf("got %s and %s %s, want %s", got.ARN, s.ARN, s.UserID, want)
			}
			if s.Expires != w.clock.Add(time.Hour) || s.PackedSize != 0 {
				t.Errorf("got %v and %d%%", s.Expires, s.PackedSize)
			}
		})
	}
}

// TestField_TrustPolicyAuthorizes: others have let whoever may do everything
// assume every role. The trust policy decides, also about the administrator.
func TestField_TrustPolicyAuthorizes(t *testing.T) {
	w := newWorld(t)
	admin := w.principal(t, w.admin)
	w.person(t, "other")
	arn := w.role(t, "closed", trusts("arn:aws:iam::"+w.Account().ID+":user/other", ""))
	_, err := w.assume(admin, AssumeRole{Role: arn})
	wantDenied(t, err, "sts:AssumeRole")
	_, missing := w.assume(admin, AssumeRole{Role: arn + "2"})
	wantDenied(t, missing, "sts:AssumeRole")
	if strings.ReplaceAll(missing.Error(), arn+"2", arn) != err.Error() {
		t.Errorf("the answer tells a role that is not there from one that does not trust:\n%v\n%v", err, missing)
	}
}

// TestField_SessionDenyInChain: others have dropped the session policy's
// explicit deny where a role was assumed with a role's session. Here it counts
// even where the trust policy names the session.
func TestField_SessionDenyInChain(t *testing.T) {
	for name, named := range map[string]string{
		"Role": "arn:aws:iam::%s:role/first", "Session": "arn:aws:sts::%s:assumed-role/first/test", "Account": "arn:aws:iam::%s:root",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.person(t, "own")
			first := w.roleOf(t, Role{Name: "first", Trust: statementsOf(trusts(p.ARN, "")), Inline: map[string]string{"all": statementsOf(allow("*"))}})
			second := w.role(t, "second", trusts(fmt.Sprintf(named, w.Account().ID), ""))
			if _, err := w.assume(w.assumed(t, p, AssumeRole{Role: first}), AssumeRole{Role: second}); err != nil {
				t.Errorf("without a session policy: %v", err)
			}
			narrowed := w.assumed(t, p, AssumeRole{Role: first, Policies: []string{statementsOf(allow("*"), deny("sts:AssumeRole"))}})
			_, err := w.assume(narrowed, AssumeRole{Role: second})
			wantDenied(t, err, "sts:AssumeRole")
			// What the session policy does not mention counts unless the trust
			// policy names the session itself: so has AWS it.
			silent := w.assumed(t, p, AssumeRole{Role: first, Policies: []string{statementsOf(allow("mgn:*"))}})
			if _, err := w.assume(silent, AssumeRole{Role: second}); (err == nil) != (name == "Session") {
				t.Errorf("a session policy that is silent: got %v", err)
			}
		})
	}
}

// TestField_SessionsAreNobodyElse: others have given sessions to the
// administrator. Here a session is its role, and nobody's user.
func TestField_SessionsAreNobodyElse(t *testing.T) {
	w := newWorld(t)
	admin := w.principal(t, w.admin)
	session := w.assumed(t, admin, AssumeRole{Role: w.role(t, "small", trusts(admin.ARN, ""))})
	if session.Kind != RolePrincipal || session.ARN == admin.ARN || session.UserID == admin.UserID || session.Name == admin.Name {
		t.Errorf("got %+v", session)
	}
	for action, want := range map[string]bool{"mgn:StartTest": true, "mgn:DeleteJob": false, "iam:CreateUser": false, "sts:AssumeRole": false} {
		if d := w.Authorize(session, action, "*", nil); d.Allowed != want {
			t.Errorf("%s: %+v", action, d)
		}
	}
	c := policy.Context{}
	w.Authorize(session, "mgn:StartTest", "*", c)
	if c["aws:username"] != nil || c["aws:principaltype"][0] != "AssumedRole" {
		t.Errorf("the circumstances say %v", c)
	}
}

// TestField_NoPoliciesNothing: others have let users without policies do everything.
func TestField_NoPoliciesNothing(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "bare")
	s, err := w.GetSessionToken(context.Background(), p, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	bare := w.assumed(t, p, AssumeRole{Role: w.roleOf(t, Role{Name: "bare", Trust: statementsOf(trusts(p.ARN, ""))})})
	for _, who := range []*Principal{p, w.principal(t, s.Credentials), bare} {
		for _, action := range []string{"mgn:DescribeJobs", "iam:GetUser", "sts:GetFederationToken", "sts:AssumeRole", "*"} {
			if d := w.Authorize(who, action, "*", nil); d.Allowed {
				t.Errorf("%s may %s", who.ARN, action)
			}
		}
	}
}

func TestAssumeRole_ExternalID(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	arn := w.role(t, "target", trusts(p.ARN, `,"Condition":{"StringEquals":{"sts:ExternalId":"ours/1"}}`))
	for id, want := range map[string]bool{"ours/1": true, "ours/2": false, "": false} {
		if _, err := w.assume(p, AssumeRole{Role: arn, ExternalID: id}); (err == nil) != want {
			t.Errorf("%q: %v", id, err)
		}
	}
	// A caller's own circumstances do not replace what was asked for.
	forged := policy.Context{}
	forged.Set("sts:ExternalId", "ours/1")
	_, err := w.AssumeRole(context.Background(), p, AssumeRole{Role: arn, Session: "test", ExternalID: "x2"}, forged)
	wantDenied(t, err, "sts:AssumeRole")
}

// TestAssumeRole_Permissions: bringing tags and a source identity are rights of
// their own, of which the trust policy has to know.
func TestAssumeRole_Permissions(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	bare := w.role(t, "bare", fmt.Sprintf(`{"Effect":"Allow","Principal":{"AWS":%q},"Action":"sts:AssumeRole"}`, p.ARN))
	full := w.role(t, "full", trusts(p.ARN, ""))
	tagged, sourced := AssumeRole{Tags: []Tag{{"env", "dev"}}}, AssumeRole{SourceIdentity: "alice"}
	for want, a := range map[string]AssumeRole{"sts:TagSession": tagged, "sts:SetSourceIdentity": sourced} {
		a.Role = bare
		_, err := w.assume(p, a)
		wantDenied(t, err, want)
		a.Role = full
		if _, err := w.assume(p, a); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
	conditional := w.role(t, "conditional", trusts(p.ARN, `,"Condition":{"StringEquals":{"aws:RequestTag/env":"dev"},"ForAllValues:StringEquals":{"aws:TagKeys":["env"],"sts:TransitiveTagKeys":["env"]}}`))
	for want, a := range map[bool]AssumeRole{true: tagged, false: {Tags: []Tag{{"env", "dev"}, {"x", "y"}}}} {
		a.Role = conditional
		if _, err := w.assume(p, a); (err == nil) != want {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

// TestAssumeRole_Chain carries tags and source identity through a chain of roles.
func TestAssumeRole_Chain(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	chain := Role{Trust: statementsOf(trusts(w.root(), "")), Inline: map[string]string{"all": statementsOf(allow("*"))}, MaxDuration: 12 * time.Hour}
	arns := map[string]string{}
	for _, name := range []string{"one", "two", "three"} {
		chain.Name = name
		arns[name] = w.roleOf(t, chain)
	}
	entry := w.roleOf(t, Role{Name: "entry", Trust: statementsOf(trusts(p.ARN, "")), Inline: chain.Inline, MaxDuration: 12 * time.Hour, Tags: map[string]string{"Team": "role", "site": "berlin"}})
	first := w.assumed(t, p, AssumeRole{Role: entry, SourceIdentity: "alice", Duration: 12 * time.Hour,
		Tags: []Tag{{"team", "blue"}, {"env", "dev"}}, Transitive: []string{"TEAM"}})
	if want := map[string]string{"team": "blue", "env": "dev", "site": "berlin"}; !maps.Equal(first.Tags, want) {
		t.Errorf("got tags %v, want %v: the session's come before the role's", first.Tags, want)
	}
	second := w.assumed(t, first, AssumeRole{Role: arns["one"], Tags: []Tag{{"env", "prod"}}})
	if want := map[string]string{"team": "blue", "env": "prod"}; !maps.Equal(second.Tags, want) || second.SourceIdentity != "alice" {
		t.Errorf("got %v of %q, want %v", second.Tags, second.SourceIdentity, want)
	}
	third := w.assumed(t, second, AssumeRole{Role: arns["two"]})
	if want := map[string]string{"team": "blue"}; !maps.Equal(third.Tags, want) || third.SourceIdentity != "alice" {
		t.Errorf("got %v of %q, want %v", third.Tags, third.SourceIdentity, want)
	}
	_, err := w.assume(third, AssumeRole{Role: arns["three"], Tags: []Tag{{"Team", "red"}}})
	wantCode(t, err, CodeValidation, "conflicts with a transitive tag key")
	_, err = w.assume(third, AssumeRole{Role: arns["three"], SourceIdentity: "bob"})
	wantCode(t, err, CodeAccessDenied, "cannot be changed")
	if _, err := w.assume(third, AssumeRole{Role: arns["three"], SourceIdentity: "alice"}); err != nil {
		t.Errorf("the same source identity: %v", err)
	}
	_, err = w.assume(first, AssumeRole{Role: arns["one"], Duration: time.Hour + time.Second})
	wantCode(t, err, CodeValidation, "exceeds the 1 hour session limit for roles assumed by role chaining")
	if s, err := w.assume(first, AssumeRole{Role: arns["one"]}); err != nil || s.Expires.After(w.clock.Add(time.Hour)) {
		t.Errorf("a chained session until %v, %v", s.Expires, err)
	}
	// A role that does not let tags in is not to be had by a session that hands one on.
	closed := w.role(t, "closed", fmt.Sprintf(`{"Effect":"Allow","Principal":{"AWS":%q},"Action":["sts:AssumeRole","sts:SetSourceIdentity"]}`, arns["two"]))
	_, err = w.assume(third, AssumeRole{Role: closed})
	wantDenied(t, err, "sts:TagSession")
}

func TestAssumeRole_Limits(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	arn := w.roleOf(t, Role{Name: "target", Trust: statementsOf(trusts(p.ARN, "")), MaxDuration: 2 * time.Hour})
	tags := func(n int) (out []Tag) {
		for i := range n {
			out = append(out, Tag{fmt.Sprintf("k%d", i), "v"})
		}
		return out
	}
	// Noise does not compress, unlike what people write.
	noise := func(n int) string {
		rnd := rand.New(rand.NewPCG(1, uint64(n)))
		b := make([]byte, n)
		for i := range b {
			b[i] = secretLetters[rnd.IntN(62)]
		}
		return string(b)
	}
	var large []Tag
	for i := range 50 {
		large = append(large, Tag{noise(100) + fmt.Sprint(i), noise(200 + i)})
	}
	long := statementsOf(fmt.Sprintf(`{"Effect":"Allow","Action":"*","Resource":"*","Sid":%q}`, strings.Repeat("a", 1940)))
	for name, test := range map[string]struct {
		a          AssumeRole
		code, text string
	}{
		"Short":            {AssumeRole{Duration: 899 * time.Second}, CodeValidation, "durationSeconds"},
		"Long":             {AssumeRole{Duration: 13 * time.Hour}, CodeValidation, "durationSeconds"},
		"AboveTheRole":     {AssumeRole{Duration: 2*time.Hour + time.Second}, CodeValidation, "exceeds the MaxSessionDuration set for this role"},
		"SessionName":      {AssumeRole{Session: "a b"}, CodeValidation, "session name"},
		"SourceIdentity":   {AssumeRole{SourceIdentity: "*"}, CodeValidation, "source identity"},
		"Policy":           {AssumeRole{Policies: []string{"{}"}}, CodeMalformedPolicy, "malformed"},
		"PolicyLong":       {AssumeRole{Policies: []string{long + strings.Repeat(" ", 60)}}, CodeValidation, "'policy'"},
		"PolicyWithARN":    {AssumeRole{Policies: []string{long}, PolicyARNs: []string{ManagedPolicy("AWSApplicationMigrationReadOnlyAccess")}}, CodeValidation, "'policy'"},
		"NoSuchPolicy":     {AssumeRole{PolicyARNs: []string{"arn:aws:iam::aws:policy/None"}}, CodeMalformedPolicy, "does not exist"},
		"Policies":         {AssumeRole{PolicyARNs: make([]string, 11)}, CodeValidation, "policyArns"},
		"Tags":             {AssumeRole{Tags: tags(51)}, CodeValidation, "'tags'"},
		"TagTwice":         {AssumeRole{Tags: []Tag{{"Env", "a"}, {"eNV", "b"}}}, CodeValidation, "case insensitive"},
		"TagKey":           {AssumeRole{Tags: []Tag{{"a\x00", "b"}}}, CodeValidation, "Tag key"},
		"TagKeyLong":       {AssumeRole{Tags: []Tag{{strings.Repeat("ä", 129), "b"}}}, CodeValidation, "Tag key"},
		"TagKeyEmpty":      {AssumeRole{Tags: []Tag{{"", "b"}}}, CodeValidation, "Tag key"},
		"TagKeyReserved":   {AssumeRole{Tags: []Tag{{"AWS:x", "b"}}}, CodeValidation, "aws:"},
		"TagValueLong":     {AssumeRole{Tags: []Tag{{"a", strings.Repeat("b", 257)}}}, CodeValidation, "Tag value"},
		"Transitive":       {AssumeRole{Tags: tags(1), Transitive: []string{"k1"}}, CodeValidation, "transitive"},
		"PackedTooLarge":   {AssumeRole{Tags: large}, CodePackedTooLarge, "%"},
		"NothingIsTheRule": {AssumeRole{}, "", ""},
		"AllThatFits":      {AssumeRole{Policies: []string{long}, Tags: tags(50), Transitive: []string{"k7"}, Duration: 2 * time.Hour}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.a.Role = arn
			s, err := w.assume(p, test.a)
			if test.code != "" {
				wantCode(t, err, test.code, test.text)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			w.principal(t, s.Credentials)
		})
	}
	// The largest that is let through still makes a token that is taken.
	for n := 1; n <= 50; n++ {
		s, err := w.assume(p, AssumeRole{Role: arn, Tags: large[:n]})
		if err != nil {
			wantCode(t, err, CodePackedTooLarge, "")
			if n < 10 {
				t.Errorf("only %d tags of 300 random characters fit", n-1)
			}
			break
		}
		if w.principal(t, s.Credentials); len(s.SessionToken) > 8<<10 || s.PackedSize < 1 || s.PackedSize > 100 {
			t.Errorf("%d tags: %d%%, a token of %d bytes", n, s.PackedSize, len(s.SessionToken))
		}
	}
}

// TestAssumeRole_ManagedSessionPolicy: it narrows, and when it is gone nothing is left.
func TestAssumeRole_ManagedSessionPolicy(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	arn := w.roleOf(t, Role{Name: "target", Trust: statementsOf(trusts(p.ARN, "")), Inline: map[string]string{"all": statementsOf(allow("*"))}})
	look := w.assumed(t, p, AssumeRole{Role: arn, PolicyARNs: []string{ManagedPolicy("AWSApplicationMigrationReadOnlyAccess")}})
	for action, want := range map[string]bool{"mgn:DescribeSourceServers": true, "mgn:StartTest": false} {
		if d := w.Authorize(look, action, "*", nil); d.Allowed != want {
			t.Errorf("%s: %+v", action, d)
		}
	}
	w.mu.Lock()
	delete(w.policies, ManagedPolicy("AWSApplicationMigrationReadOnlyAccess"))
	w.mu.Unlock()
	if d := w.Authorize(look, "mgn:DescribeSourceServers", "*", nil); d.Allowed {
		t.Errorf("without its policy: %+v", d)
	}
}

func TestGetSessionToken(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	admin := w.principal(t, w.admin)
	s, err := w.GetSessionToken(ctx, admin, 0, nil)
	if err != nil || s.Expires != w.clock.Add(12*time.Hour) {
		t.Fatalf("until %v, %v", s.Expires, err)
	}
	p := w.principal(t, s.Credentials)
	if p.ARN != admin.ARN || p.UserID != admin.UserID || p.Kind != UserPrincipal || !p.Temporary() {
		t.Errorf("got %+v", p)
	}
	for action, want := range map[string]bool{
		"mgn:StartTest": true, "iam:CreateUser": false, "IAM:GetUser": false, "sts:AssumeRole": true, "sts:GetFederationToken": false,
		"sts:GetSessionToken": false, "sts:DecodeAuthorizationMessage": false, "sts:GetAccessKeyInfo": false,
	} {
		if d := w.Authorize(p, action, "*", nil); d.Allowed != want {
			t.Errorf("%s: %+v", action, d)
		}
	}
	if _, err := w.assume(p, AssumeRole{Role: w.role(t, "target", trusts(admin.ARN, ""))}); err != nil {
		t.Errorf("AssumeRole: %v", err)
	}
	_, err = w.GetSessionToken(ctx, p, 0, nil)
	wantCode(t, err, CodeAccessDenied, "Cannot call GetSessionToken with session credentials")
	for _, life := range []time.Duration{899 * time.Second, 36*time.Hour + time.Second, -1} {
		_, err = w.GetSessionToken(ctx, admin, life, nil)
		wantCode(t, err, CodeValidation, "durationSeconds")
	}
	_, err = w.GetSessionToken(ctx, w.person(t, "denied", deny("sts:*")), 0, nil)
	wantDenied(t, err, "sts:GetSessionToken")
}

func TestGetFederationToken(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	p := w.person(t, "broker", allow("sts:*"), allow("mgn:*"))
	session := func(f Federation) *Principal {
		t.Helper()
		s, err := w.GetFederationToken(ctx, p, f, nil)
		if err != nil {
			t.Fatal(err)
		}
		return w.principal(t, s.Credentials)
	}
	nothing, all := session(Federation{Name: "bob"}), session(Federation{Name: "bob", Policies: []string{statementsOf(allow("*"))}})
	if want := "arn:aws:sts::" + w.Account().ID + ":federated-user/bob"; all.ARN != want || all.UserID != w.Account().ID+":bob" || all.Kind != FederatedPrincipal {
		t.Errorf("got %+v", all)
	}
	for action, want := range map[string]bool{
		"mgn:StartTest": true, "ec2:RunInstances": false, "iam:GetUser": false, "sts:AssumeRole": false, "sts:GetCallerIdentity": true, "sts:GetAccessKeyInfo": false,
	} {
		if d := w.Authorize(all, action, "*", nil); d.Allowed != want {
			t.Errorf("%s: %+v", action, d)
		}
		if d := w.Authorize(nothing, action, "*", nil); d.Allowed && action != "sts:GetCallerIdentity" {
			t.Errorf("without a session policy, %s: %+v", action, d)
		}
	}
	_, err := w.assume(all, AssumeRole{Role: w.role(t, "target", trusts(all.ARN, ""), trusts(w.root(), ""))})
	wantDenied(t, err, "sts:AssumeRole")
	_, err = w.GetFederationToken(ctx, w.person(t, "plain", allow("mgn:*")), Federation{Name: "bob"}, nil)
	wantDenied(t, err, "sts:GetFederationToken")
	_, err = w.GetFederationToken(ctx, w.person(t, "untagging", allow("sts:GetFederationToken")), Federation{Name: "bob", Tags: []Tag{{"a", "b"}}}, nil)
	wantDenied(t, err, "sts:TagSession")
	role := w.assumed(t, p, AssumeRole{Role: w.role(t, "other", trusts(p.ARN, ""))})
	_, err = w.GetFederationToken(ctx, role, Federation{Name: "bob"}, nil)
	wantCode(t, err, CodeAccessDenied, "Cannot call GetFederationToken with session credentials")
}

// TestSession_EndsWithItsKey goes through what a session came from: when it is
// taken away, so is the session, in a chain as well.
func TestSession_EndsWithItsKey(t *testing.T) {
	ctx := context.Background()
	for name, end := range map[string]func(w *world, p *Principal) error{
		"KeyDeleted": func(w *world, p *Principal) error { return w.DeleteAccessKey(ctx, p.AccessKeyID) },
		"KeyInactive": func(w *world, p *Principal) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			k := w.keys[p.AccessKeyID]
			k.Active = false
			w.keys[p.AccessKeyID] = k
			return nil
		},
		"KeyRevoked":  func(w *world, p *Principal) error { return w.RevokeSession(ctx, p.AccessKeyID) },
		"UserRevoked": func(w *world, p *Principal) error { return w.RevokeUser(ctx, p.Name) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p, other := w.person(t, "own", allow("*")), w.person(t, "other", allow("*"))
			one := w.role(t, "one", trusts(w.root(), ""))
			two := w.role(t, "two", trusts(one, ""))
			sessions := map[string]Credentials{}
			begin := func(who *Principal, name string) {
				first, err := w.assume(who, AssumeRole{Role: one})
				if err != nil {
					t.Fatal(err)
				}
				second, err := w.assume(w.principal(t, first.Credentials), AssumeRole{Role: two})
				if err != nil {
					t.Fatal(err)
				}
				token, err := w.GetSessionToken(ctx, who, 0, nil)
				if err != nil {
					t.Fatal(err)
				}
				federated, err := w.GetFederationToken(ctx, who, Federation{Name: "bob"}, nil)
				if err != nil {
					t.Fatal(err)
				}
				sessions[name+" role"], sessions[name+" chained"] = first.Credentials, second.Credentials
				sessions[name+" token"], sessions[name+" federated"] = token.Credentials, federated.Credentials
			}
			begin(p, "own")
			begin(other, "other")
			if err := end(w, p); err != nil {
				t.Fatal(err)
			}
			for name, c := range sessions {
				_, err := w.authenticate(c)
				if own := strings.HasPrefix(name, "own"); own && !errors.Is(err, ErrRevoked) || !own && err != nil {
					t.Errorf("%s: got %v", name, err)
				}
			}
		})
	}
}

// TestSession_OlderThan is how the console of AWS revokes sessions: by a policy
// on the role about when they were issued.
func TestSession_OlderThan(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	arn := w.roleOf(t, Role{Name: "target", Trust: statementsOf(trusts(p.ARN, "")), Inline: map[string]string{
		"all": statementsOf(allow("*")),
		"AWSRevokeOlderSessions": statementsOf(fmt.Sprintf(`{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateLessThan":{"aws:TokenIssueTime":%q}}}`,
			w.clock.Add(time.Minute).Format(time.RFC3339)))}})
	older := w.assumed(t, p, AssumeRole{Role: arn})
	w.clock = w.clock.Add(time.Minute)
	later := w.assumed(t, p, AssumeRole{Role: arn})
	if d := w.Authorize(older, "mgn:StartTest", "*", nil); !d.Explicit {
		t.Errorf("the older session: %+v", d)
	}
	if d := w.Authorize(later, "mgn:StartTest", "*", nil); !d.Allowed {
		t.Errorf("the later session: %+v", d)
	}
}

// TestRevocations_Pruned: what no session is left of is forgotten, also on disk,
// and not a moment before.
func TestRevocations_Pruned(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	count := func() (n int) {
		if err := w.store.All(ctx, func(kind Kind, _ string, _ []byte) error {
			if kind == KindRevocation {
				n++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	admin := w.principal(t, w.admin)
	s, err := w.GetSessionToken(ctx, admin, MaxUserSession, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.RevokeUser(ctx, AdminUser); err != nil {
		t.Fatal(err)
	}
	w.clock = s.Expires.Add(-time.Second)
	w.open(t)
	if err := w.RevokeSource(ctx, "s-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.authenticate(s.Credentials); !errors.Is(err, ErrRevoked) || count() != 2 {
		t.Errorf("just before the session ends: %v, %d revocations", err, count())
	}
	w.clock = s.Expires.Add(time.Second)
	if err := w.RevokeSource(ctx, "s-2"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.authenticate(s.Credentials); !errors.Is(err, ErrExpired) || count() != 2 {
		t.Errorf("after it: %v, %d revocations", err, count())
	}
	w.clock = w.clock.Add(2 * MaxUserSession)
	if w.open(t); count() != 0 {
		t.Errorf("%d revocations are left after a restart", count())
	}
}

// TestToken_Version1 takes a token as the version before this one has made it.
func TestToken_Version1(t *testing.T) {
	w := newWorld(t)
	role := w.roles[AgentRole]
	begin := w.clock.UnixMilli()
	text, err := json.Marshal(map[string]any{"k": "ASIAAAAAAAAAAAAAAAAA", "x": []byte("secret"), "a": w.Account().ID, "r": role.Name, "i": role.ID,
		"s": "s-1", "o": "s-1", "b": begin, "e": begin + time.Hour.Milliseconds(), "p": []string{statementsOf(allow("mgn:Send*"))}})
	if err != nil {
		t.Fatal(err)
	}
	s := &w.key.keys[0]
	sealed := append(append([]byte{1}, s.id[:]...), make([]byte, 24)...)
	sealed = s.aead[useToken].Seal(sealed, sealed[5:], text, append(append([]byte{1}, s.id[:]...), "session token"...))
	c := Credentials{AccessKeyID: "ASIAAAAAAAAAAAAAAAAA", SecretAccessKey: "secret", SessionToken: Secret(base64.StdEncoding.EncodeToString(sealed))}
	p := w.principal(t, c)
	if p.Kind != RolePrincipal || p.SourceIdentity != "s-1" || p.Name != AgentRole {
		t.Errorf("got %+v", p)
	}
	own := "arn:aws:mgn:eu-west-1:" + w.Account().ID + ":source-server/s-1"
	for action, want := range map[string]bool{"mgn:SendAgentLogsForMgn": true, "mgn:GetAgentCommandForMgn": false} {
		if d := w.Authorize(p, action, own, nil); d.Allowed != want {
			t.Errorf("%s: %+v", action, d)
		}
	}
	if err := w.RevokeSource(context.Background(), "s-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.authenticate(c); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked: got %v", err)
	}
	for _, version := range []byte{0, 2, 3} { // the version is bound to the text
		bad := append([]byte{version}, sealed[1:]...)
		c.SessionToken = Secret(base64.StdEncoding.EncodeToString(bad))
		if _, err := w.authenticate(c); !errors.Is(err, ErrBadToken) {
			t.Errorf("version %d: got %v", version, err)
		}
	}
}

// TestSealingKey_Rotate puts a new key in front of the old one, and then takes
// the old one away.
func TestSealingKey_Rotate(t *testing.T) {
	w := newWorld(t)
	old, err := w.GetSessionToken(context.Background(), w.principal(t, w.admin), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	rawOld, rawNew := strings.Repeat("\x01", 32), strings.Repeat("\x02", 32)
	both, err := NewSealingKey([]byte(rawNew + rawOld))
	if err != nil {
		t.Fatal(err)
	}
	w.key = both
	w.open(t)
	w.principal(t, old.Credentials)
	fresh, err := w.GetSessionToken(context.Background(), w.principal(t, w.admin), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.key, err = NewSealingKey([]byte(rawNew)); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	w.principal(t, w.admin) // its secret was sealed again
	w.principal(t, fresh.Credentials)
	if _, err := w.authenticate(old.Credentials); !errors.Is(err, ErrBadToken) {
		t.Errorf("a token of the key that was taken away: got %v", err)
	}
	for _, n := range []int{0, 31, 33, 9 * 32} {
		if _, err := NewSealingKey(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes is taken", n)
		}
	}
}

func TestRefusal(t *testing.T) {
	w := newWorld(t)
	c := policy.Context{}
	c.Set("aws:SourceIp", "203.0.113.7")
	for i := range 200 {
		c.Set(fmt.Sprintf("aws:RequestTag/%d", i), strings.Repeat(fmt.Sprintf("%x", rand.Uint64()), 40))
	}
	message := w.EncodeRefusal(RefusalPrincipal{ID: "AIDA", ARN: "arn:aws:iam::1:user/x"}, "mgn:StartTest", server, c, policy.Refuse("denied by statement Never"))
	if len(message) > maxMessage || strings.Contains(message, "=") {
		t.Errorf("%d bytes", len(message))
	}
	text, err := w.DecodeRefusal(message)
	if err != nil {
		t.Fatal(err)
	}
	var got Refusal
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Allowed || !got.ExplicitDeny || got.Reason != "denied by statement Never" ||
		got.Context.Action != "mgn:StartTest" || got.Context.Resource != server || len(got.Context.Conditions.Items) < 3 {
		t.Errorf("got %s, %v", text, err)
	}
	for name, bad := range map[string]string{"Empty": "", "Noise": "AAAA", "Cut": message[:len(message)-4], "Flipped": "B" + message[1:], "Long": strings.Repeat("A", maxMessage+1)} {
		if _, err := w.DecodeRefusal(bad); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	token, err := w.GetSessionToken(context.Background(), w.principal(t, w.admin), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed, _ := base64.StdEncoding.DecodeString(string(token.SessionToken))
	if text, err := w.DecodeRefusal(base64.RawURLEncoding.EncodeToString(sealed)); err == nil {
		t.Errorf("a session token is decoded: %s", text[:10])
	}
}

// TestRevokeUser_Renamed: a role's session that was revoked with the user who
// began it does not come back when the user gets another name.
func TestRevokeUser_Renamed(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own", allow("sts:AssumeRole"))
	role := w.role(t, "target", trusts(w.root(), ""))
	s, err := w.assume(p, AssumeRole{Role: role})
	if err != nil {
		t.Fatal(err)
	}
	w.clock = w.clock.Add(time.Second)
	wantError(t, "nobody", w.RevokeUser(t.Context(), "nobody"), ErrNotFound)
	if err := w.RevokeUser(t.Context(), "own"); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(t.Context(), func(tx *Tx) error {
		u, _ := tx.Users.Get("own")
		tx.Users.Delete("own")
		u.Name = "other"
		tx.Users.Put(u.Name, u)
		for id, k := range tx.Keys.Each() {
			if k.User == "own" {
				k.User = "other"
				tx.Keys.Put(id, k)
				break
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	_, err = w.authenticate(s.Credentials)
	wantError(t, "after the rename", err, ErrRevoked)
	w.open(t)
	_, err = w.authenticate(s.Credentials)
	wantError(t, "after a restart", err, ErrRevoked)
}
