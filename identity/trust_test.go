package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"rehost/identity/policy"
)

// trustOf is a role's trust policy as its owner sees it.
func (w *world) trustOf(t *testing.T, name string) (text string) {
	t.Helper()
	_ = w.Read(func(tx *Tx) error {
		r, ok := tx.Roles.Get(name)
		if !ok {
			t.Errorf("there is no role %s", name)
		}
		text = tx.Trust(r)
		return nil
	})
	return text
}

// again deletes a user or role and makes another one of the same name.
func (w *world) again(t *testing.T, kind, name string) {
	t.Helper()
	if err := w.Write(t.Context(), func(tx *Tx) error {
		if kind == "user" {
			u, _ := tx.Users.Get(name)
			u.ID = NewID("AIDA")
			tx.Users.Put(name, u)
			return nil
		}
		r, _ := tx.Roles.Get(name)
		r.ID = NewID("AROA")
		tx.Roles.Put(name, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestTrust_MadeAnew: who is made anew under a trusted name is not trusted, now
// and after a restart, and the policy shows whom it meant. With principals that
// are not bound the same attack succeeds, or this test would prove nothing.
func TestTrust_MadeAnew(t *testing.T) {
	for _, test := range []struct{ name, kind, principal string }{
		{"User", "user", "arn:aws:iam::%s:user/own"},
		{"Role", "role", "arn:aws:iam::%s:role/middle"},
		{"Session", "role", "arn:aws:sts::%s:assumed-role/middle/test"},
	} {
		for _, bound := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/bound=%v", test.name, bound), func(t *testing.T) {
				w := newWorld(t)
				user := w.person(t, "own", allow("sts:AssumeRole"))
				name := "own"
				middle := w.roleOf(t, Role{Name: "middle", Trust: statementsOf(trusts(w.root(), "")), Inline: map[string]string{"own": statementsOf(allow("sts:*"))}})
				caller := func() *Principal {
					if test.kind == "user" {
						u, _ := w.User("own")
						return w.userPrincipal(&u)
					}
					name = "middle"
					return w.assumed(t, user, AssumeRole{Role: middle})
				}
				caller()
				principal := fmt.Sprintf(test.principal, w.Account().ID)
				target := w.role(t, "target", trusts(principal, ""))
				if !bound {
					r := w.roles["target"].Role
					r.Trust = statementsOf(trusts(principal, ""))
					h, err := w.lookup().holdRole(r)
					if err != nil {
						t.Fatal(err)
					}
					w.roles["target"] = h
				}
				if got := w.trustOf(t, "target"); got != statementsOf(trusts(principal, "")) {
					t.Errorf("the policy reads %s", got)
				}
				if _, err := w.assume(caller(), AssumeRole{Role: target}); err != nil {
					t.Fatal(err)
				}
				before := w.roles["target"].Trust
				w.again(t, test.kind, name)
				_, err := w.assume(caller(), AssumeRole{Role: target})
				if !bound {
					if err != nil {
						t.Errorf("without ids another is not trusted either: %v", err)
					}
					return
				}
				wantDenied(t, err, "sts:AssumeRole")
				if got := w.trustOf(t, "target"); got != before || strings.Contains(got, "arn:") {
					t.Errorf("the policy reads %s", got)
				}
				w.open(t)
				_, err = w.assume(caller(), AssumeRole{Role: target})
				wantDenied(t, err, "sts:AssumeRole")

				// Another change of the role leaves it so, and the policy itself cannot be put again.
				change := func(do func(*Role)) error {
					return w.Write(t.Context(), func(tx *Tx) error {
						r, _ := tx.Roles.Get("target")
						do(&r)
						tx.Roles.Put(r.Name, r)
						return nil
					})
				}
				if err := change(func(r *Role) { r.Description = "x" }); err != nil {
					t.Errorf("change something else: %v", err)
				}
				if err := change(func(r *Role) { r.Trust += " " }); !strings.Contains(fmt.Sprint(err), "Invalid principal in policy") {
					t.Errorf("put it again: %v", err)
				}
				if err := change(func(r *Role) { r.Trust = statementsOf(trusts(principal, "")) }); err != nil {
					t.Errorf("trust the new one: %v", err)
				}
				if _, err := w.assume(caller(), AssumeRole{Role: target}); err != nil {
					t.Errorf("the new one: %v", err)
				}
			})
		}
	}
}

// TestTrust_Renamed: who has another name or path is the same.
func TestTrust_Renamed(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	target := w.role(t, "target", trusts(p.ARN, ""))
	if err := w.Write(t.Context(), func(tx *Tx) error {
		u, _ := tx.Users.Get("own")
		tx.Users.Delete("own")
		u.Name, u.Path = "other", "/staff/"
		tx.Users.Put(u.Name, u)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	u, _ := w.User("other")
	if _, err := w.assume(w.userPrincipal(&u), AssumeRole{Role: target}); err != nil {
		t.Error(err)
	}
	if got, want := w.trustOf(t, "target"), statementsOf(trusts("arn:aws:iam::"+w.Account().ID+":user/staff/other", "")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestTrust_Principals goes through those that are taken and those that are not.
func TestTrust_Principals(t *testing.T) {
	w := newWorld(t)
	w.person(t, "own")
	w.role(t, "middle", trusts(w.root(), ""))
	u, _ := w.User("own")
	account := w.Account().ID
	role := w.roles["middle"].ID
	for principal, taken := range map[string]bool{
		"*": true, account: true, w.root(): true, "111122223333": true, "arn:aws:iam::111122223333:root": true,
		"arn:aws:iam::" + account + ":user/own":                       true,
		"arn:aws:iam::" + account + ":role/service-role/" + AgentRole: true,
		"arn:aws:sts::" + account + ":assumed-role/middle/any":        true,
		"arn:aws:sts::" + account + ":federated-user/any":             true,
		u.ID:                       true,
		role:                       true,
		role + ":any":              true,
		u.ID + ":any":              false,
		"AIDAQQQQQQQQQQQQQQQQ":     false,
		"AROAQQQQQQQQQQQQQQQQ:any": false,
		"arn:aws:iam::" + account + ":user/nobody":         false,
		"arn:aws:iam::" + account + ":user/staff/own":      false,
		"arn:aws:iam::" + account + ":user/Own":            false,
		"arn:aws:iam::" + account + ":role/own":            false,
		"arn:aws:iam::" + account + ":role/" + AgentRole:   false,
		"arn:aws:sts::" + account + ":assumed-role/own/x2": false,
		"arn:aws:iam::111122223333:user/own":               false,
		"arn:aws-cn:iam::" + account + ":user/own":         false,
	} {
		err := w.CreateRole(t.Context(), Role{Name: "target", Trust: statementsOf(trusts(principal, ""))})
		var e *policy.Error
		if taken && err != nil || !taken && !errors.As(err, &e) {
			t.Errorf("%s: %v", principal, err)
		}
		if err == nil {
			if err := w.Write(t.Context(), func(tx *Tx) error { tx.Roles.Delete("target"); return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	err := w.CreateRole(t.Context(), Role{Name: "target", Trust: `{"Version":"2012-10-17","Statement":[` + "\n" + trusts("*", "") + ",\n" + `{"Effect":"Deny","Action":"sts:AssumeRole","Principal":{"Service":"x.amazonaws.com","AWS":["` + u.ID + `","arn:aws:iam::` + account + `:user/nobody"]}}]}`})
	var e *policy.Error
	if !errors.As(err, &e) || e.Line != 3 || !strings.Contains(e.Reason, `Invalid principal in policy: "AWS":"arn:aws:iam::`+account+`:user/nobody"`) {
		t.Errorf("got %v", err)
	}
}

// TestTrust_Held: what a store has from before principals were bound is bound
// when it is opened, once; whom there is no user of stays as named.
func TestTrust_Held(t *testing.T) {
	w := newWorld(t)
	p := w.person(t, "own")
	target := w.role(t, "target", trusts(p.ARN, ""))
	mixed := statementsOf(trusts(p.ARN, ""), trusts("arn:aws:iam::"+w.Account().ID+":user/later", ""))
	r := w.roles["target"].Role
	r.Trust = mixed
	text, err := json.Marshal(r)
	if err == nil {
		err = w.store.Put(t.Context(), KindRole, "target", text)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.open(t)
		if got := w.roles["target"].Trust; !strings.Contains(got, p.UserID) || strings.Contains(got, p.ARN+`"`) || !strings.Contains(got, ":user/later") {
			t.Errorf("kept: %s", got)
		}
		if got := w.trustOf(t, "target"); got != mixed {
			t.Errorf("shown: %s", got)
		}
	}
	w.again(t, "user", "own")
	u, _ := w.User("own")
	_, err = w.assume(w.userPrincipal(&u), AssumeRole{Role: target})
	wantDenied(t, err, "sts:AssumeRole")
	for _, name := range []string{AgentRole, ReplicationServerRole} {
		if got := w.trustOf(t, name); got != serviceRoles()[0].Trust {
			t.Errorf("%s trusts %s", name, got)
		}
		w.agentSession(t, "s-00000000000000001")
	}
}
