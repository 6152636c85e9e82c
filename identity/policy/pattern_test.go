package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestPattern compares the matcher with the plain recursive definition.
func TestPattern(t *testing.T) {
	var plain func(p, s string) bool
	plain = func(p, s string) bool {
		switch {
		case p == "":
			return s == ""
		case p[0] == '*':
			return plain(p[1:], s) || s != "" && plain(p, s[1:])
		case s == "":
			return false
		}
		return (p[0] == '?' || p[0] == s[0]) && plain(p[1:], s[1:])
	}
	rnd := newMaker(t)
	text := func(letters string) string {
		b := make([]byte, rnd.IntN(9))
		for i := range b {
			b[i] = letters[rnd.IntN(len(letters))]
		}
		return string(b)
	}
	matched := 0
	for range 10000 {
		p, s := text("ab*?"), text("ab")
		compiled, err := compilePattern(p, true)
		if err != nil {
			t.Fatal(err)
		}
		got, want := compiled.match(s, nil), plain(p, s)
		if a := compileAction(p); a.match(strings.ToUpper(s)) != want {
			t.Fatalf("as an action %q matches %q: got %v, want %v", p, s, !want, want)
		}
		if got != want {
			t.Fatalf("%q matches %q: got %v, want %v", p, s, got, want)
		}
		if got {
			matched++
		}
	}
	if matched < 300 {
		t.Errorf("only %d matched", matched)
	}
}

// TestEvaluate_Hostile asks the largest document that is accepted, full of
// wildcards, about the longest name: it must stay a matter of milliseconds. The
// bound is loose because machines are busy; going back over every * would take
// longer than the universe has.
func TestEvaluate_Hostile(t *testing.T) {
	name := "arn:aws:mgn:eu-west-1:111122223333:source-server/" + strings.Repeat("a", 2000)
	for _, hostile := range []string{strings.Repeat("a*", 500), "*" + strings.Repeat("?", 1000), "*" + strings.Repeat("a?", 500), "*" + strings.Repeat("${x:y}", 160)} {
		for _, effect := range []string{"Allow", "Deny"} {
			var resources []string
			for i := range 9 {
				resources = append(resources, fmt.Sprintf(`"arn:aws:mgn:*:*:source-server/%s%d"`, hostile, i))
			}
			d := parse(t, statementOf(fmt.Sprintf(`"Effect":%q,"Action":"mgn:*","Resource":[%s]`, effect, strings.Join(resources, ","))))
			start := time.Now()
			if got := Evaluate(&Request{Action: "mgn:StartTest", Resource: name, Context: Context{"x:y": {"a"}}, Policies: Policies{Identity: []*Document{d}}}); got.Allowed || got.Explicit {
				t.Errorf("%s of %.9s matched", effect, hostile)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("%s of %.9s took %v", effect, hostile, took)
			} else {
				t.Logf("%s of %.9s: %v", effect, hostile, took)
			}
		}
	}
}

// TestEvaluate_Names shows how far wildcards reach: of what gives rights no
// further than their field, of what takes rights away across all of the name.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html
func TestEvaluate_Names(t *testing.T) {
	const (
		object = "arn:aws:s3:::bucket/a/b:c"
		user   = "arn:aws:iam::111122223333:user/ann"
	)
	for _, test := range []struct {
		pattern, name string
		narrow, broad bool
	}{
		{"*", object, true, true},
		{"*", "*", true, true},
		{"arn:*", "*", false, false},
		{"arn:aws:s3:::*", object, true, true},
		{"arn:aws:s3:::bucket/*", object, true, true},
		{"arn:aws:s3:::bucket/*c", object, true, true},
		{"arn:aws:s3:::bucket/a/?:c", object, true, true},
		{"arn:aws:s3:::BUCKET/*", object, false, false},
		{"arn:aws:s3:::bucket", object, false, false},
		{"arn:*:s3:*:*:bucket/*", object, true, true},
		{"arn:aws:*", object, true, true},
		{"arn:aws:iam::*", user, true, true},
		{"arn:aws:iam::*:user/*", user, true, true},
		{"arn:aws:iam::*:*", user, true, true},
		{"arn:aws:iam:*:user/*", user, false, true}, // five fields: the * would have to reach over a colon
		{"arn:aws:iam*:user/*", user, false, true},
		{"arn:aws:iam::1111*3:user/ann", user, true, true},
		{"arn:aws:iam::1111?2223333:user/ann", user, true, true},
		{"arn:aws:iam::*ann:*", user, false, false},
		{"arn:aws:iam::?????????????user/*", user, false, true}, // a ? is no colon in an Allow
		{"arn:aws:mgn:*:*:*", user, false, false},
		{"arn:aws:iam::*:user/${x:who}", user, true, true},
		{"arn:aws:iam::*:user/${x:star}", user, false, false},
		{"arn:aws:iam::*:user/${x:gone}", user, false, false},
		{"arn:aws:iam::*:user/${x:gone, 'ann'}", user, true, true},
		{"arn:aws:iam::*:user/a${*}n", user, false, false},
	} {
		c := Context{"x:who": {"ann"}, "x:star": {"*"}}
		applies := func(effect, element string) bool {
			d := parse(t, statementOf(fmt.Sprintf(`"Effect":%q,"Action":"*",%q:%q`, effect, element, test.pattern)))
			got := Evaluate(&Request{Action: "x:Y", Resource: test.name, Context: c, Policies: Policies{Identity: []*Document{d}}})
			return got.Allowed || got.Explicit
		}
		if got := applies("Allow", "Resource"); got != test.narrow {
			t.Errorf("Allow of %s on %s: got %v", test.pattern, test.name, got)
		}
		if got := applies("Deny", "NotResource"); got == test.narrow {
			t.Errorf("Deny of all but %s on %s: got %v", test.pattern, test.name, got)
		}
		if got := applies("Deny", "Resource"); got != test.broad {
			t.Errorf("Deny of %s on %s: got %v", test.pattern, test.name, got)
		}
		if strings.Contains(test.pattern, "gone}") {
			test.broad = true // an Allow that cannot be told apart does not apply
		}
		if got := applies("Allow", "NotResource"); got == test.broad {
			t.Errorf("Allow of all but %s on %s: got %v", test.pattern, test.name, got)
		}
	}
}
