package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestPassword_Document holds docs/format/password.md and the constants together.
func TestPassword_Document(t *testing.T) {
	page, err := os.ReadFile("../docs/format/password.md")
	if err != nil {
		t.Fatal(err)
	}
	example := newPassword(writtenCost)
	example.salt, example.sum = []byte("saltsaltsaltsalt"), []byte(strings.Repeat("hash", 8))
	for _, want := range []string{
		string(example.text()),
		fmt.Sprintf("| `m` | memory, in KiB | %d |", writtenCost.memory), fmt.Sprintf("| `t` | passes | %d |", writtenCost.passes), fmt.Sprintf("| `p` | lanes | %d |", writtenCost.lanes),
		fmt.Sprintf("| salt | random, in base64 without padding | %d bytes |", passwordSalt), fmt.Sprintf("| hash | in base64 without padding | %d bytes |", passwordSum),
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	text, err := json.Marshal(Login{Hash: "h", Previous: []Secret{"p"}, Reset: true})
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil || len(members) != 5 {
		t.Errorf("%v, %v", members, err)
	}
	for name := range members {
		if !strings.Contains(string(page), "| `"+name+"` |") {
			t.Errorf("the page does not have the member %s", name)
		}
	}
}

// reference is a hash of "password" with the salt "somesalt" that another
// implementation has made: it is in the tests of the reference implementation,
// https://github.com/P-H-C/phc-winner-argon2.
const reference = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"

func TestPassword_Parse(t *testing.T) {
	h, err := parsePassword(reference)
	if err != nil || h.isOf(writtenCost) || h.text() != reference {
		t.Errorf("reference: %+v, %v", h, err)
	}
	if h, err = parsePassword(newPassword(writtenCost).text()); err != nil || !h.isOf(writtenCost) {
		t.Errorf("what is written: %+v, %v", h, err)
	}
	for name, bad := range map[string]string{
		"empty":               "",
		"another function":    strings.Replace(reference, "argon2id", "argon2i", 1),
		"another version":     strings.Replace(reference, "v=19", "v=16", 1),
		"no pass":             strings.Replace(reference, "t=2", "t=0", 1),
		"no lane":             strings.Replace(reference, "p=1", "p=0", 1),
		"too many passes":     strings.Replace(reference, "t=2", "t=17", 1),
		"memory of a machine": strings.Replace(reference, "m=65536", "m=4194304", 1),
		"too little memory":   strings.Replace(reference, "m=65536", "m=8", 1),
		"short salt":          strings.Replace(reference, "c29tZXNhbHQ", "c29t", 1),
		"padded salt":         strings.Replace(reference, "c29tZXNhbHQ", "c29tZXNhbHQ=", 1),
		"short hash":          reference[:len(reference)-30],
		"leading zero":        strings.Replace(reference, "t=2", "t=02", 1),
		"something behind":    reference + "$",
		"a line":              reference + "\n",
	} {
		if h, err := parsePassword(Secret(bad)); err == nil {
			t.Errorf("%s: taken as %d KiB, %d passes, %d lanes", name, h.memory, h.passes, h.lanes)
		}
	}
}

func TestPasswordPolicy_Check(t *testing.T) {
	strict := &PasswordPolicy{MinLength: 10, Lower: true, Upper: true, Number: true, Symbol: true}
	for _, test := range []struct {
		rules    *PasswordPolicy
		password string
		want     string
	}{
		{nil, "Abcdefg1", ""},
		{nil, "abcdef1!", ""},
		{nil, "Abc1!", "Password should have a minimum length of 8"},
		{nil, "abcdefg1", "Password should meet 1 more of the following requirements: Password should have at least one uppercase letter, Password should have at least one symbol"},
		{nil, "abcdefgh", "Password should meet 2 more of the following requirements: Password should have at least one uppercase letter, Password should have at least one number, Password should have at least one symbol"},
		{nil, strings.Repeat("Abc1", 33), "Password should have a maximum length of 128"},
		{&PasswordPolicy{MinLength: 6}, "aaaaaa", ""},
		{&PasswordPolicy{MinLength: 6}, "ééééé", "Password should have a minimum length of 6"},
		{strict, "Abcdefgh1!", ""},
		{strict, "Abcdefgh1~", "Password should have at least one symbol"},
		{strict, "ÀÉbcdefg1!", "Password should have at least one uppercase letter"},
		{strict, "!!!!!!!!!!", "Password should have at least one uppercase letter, Password should have at least one lowercase letter, Password should have at least one number"},
	} {
		err := test.rules.check(Secret(test.password))
		var e *RequestError
		if test.want == "" && err != nil || test.want != "" && (!errors.As(err, &e) || e.Code != CodePasswordPolicy || e.Message != test.want) {
			t.Errorf("%q: got %v, want %q", test.password, err, test.want)
		}
	}
}

// cheap is what a password costs in tests that set many.
var cheap = passwordCost{memory: 8 << 10, passes: 1, lanes: 1}

// rules sets the account's policy for passwords.
func (w *world) rules(t *testing.T, p *PasswordPolicy) {
	t.Helper()
	if err := w.Write(t.Context(), func(tx *Tx) error { tx.Account.Passwords = p; return nil }); err != nil {
		t.Fatal(err)
	}
}

// wantError checks how something ended; nil is well.
func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// wantViolation checks that a password was not taken for what it is.
func wantViolation(t *testing.T, what string, err error) {
	t.Helper()
	var e *RequestError
	if !errors.As(err, &e) || e.Code != CodePasswordPolicy {
		t.Errorf("%s: got %v", what, err)
	}
}

// TestDirectory_Login tells the life of a password: given, used, changed, ended,
// not to be used again, taken away.
func TestDirectory_Login(t *testing.T) {
	w := newWorld(t)
	w.cost = cheap
	ctx := t.Context()
	if err := w.CreateUser(ctx, User{Name: "bob", Path: "/staff/", Tags: map[string]string{"team": "blue"}}); err != nil {
		t.Fatal(err)
	}
	const first, second, third = Secret("first Passw0rd"), Secret("second Passw0rd"), Secret("third Passw0rd")
	check := func(what string, password Secret, want error) SignIn {
		t.Helper()
		s, err := w.CheckPassword(ctx, "bob", password)
		wantError(t, what, err, want)
		if (err == nil) != (s.Principal != nil) {
			t.Errorf("%s: %+v with %v", what, s, err)
		}
		return s
	}
	check("before there is one", first, ErrPassword)
	check("none at all", "", ErrPassword)
	wantError(t, "change none", w.ChangePassword(ctx, "bob", first, second), ErrNoLogin)
	wantError(t, "update none", w.UpdateLogin(ctx, "bob", nil, new(true)), ErrNoLogin)
	_, err := w.CreateLogin(ctx, "nobody", first, false)
	wantError(t, "of nobody", err, ErrNotFound)
	_, err = w.CreateLogin(ctx, "bob", "short", false)
	wantViolation(t, "short", err)
	created := w.clock
	if _, err = w.CreateLogin(ctx, "bob", first, true); err != nil {
		t.Fatal(err)
	}
	_, err = w.CreateLogin(ctx, "bob", second, false)
	wantError(t, "create again", err, ErrExists)

	// The first one is for once.
	w.clock = w.clock.Add(time.Hour)
	s := check("first", first, nil)
	if p := s.Principal; !s.MustChange || p.Kind != UserPrincipal || p.ARN != "arn:aws:iam::"+w.Account().ID+":user/staff/bob" || p.Tags["team"] != "blue" || p.Temporary() {
		t.Errorf("signed in as %+v, must change: %v", p, s.MustChange)
	}
	check("another", second, ErrPassword)
	check("in another case", "First Passw0rd", ErrPassword)
	wantError(t, "change with a wrong one", w.ChangePassword(ctx, "bob", third, second), ErrPassword)
	wantError(t, "change", w.ChangePassword(ctx, "bob", first, second), nil)
	check("the one before", first, ErrPassword)

	// All of it is on disk, and no password is.
	w.open(t)
	w.cost = cheap
	if s := check("after a restart", second, nil); s.MustChange {
		t.Error("has to be changed again")
	}
	u, err := w.User("bob")
	if err != nil || !u.PasswordUsed.Equal(w.clock) || !u.Login.Created.Equal(created) || !u.Login.Changed.Equal(w.clock) || len(u.Login.Previous) != 0 {
		t.Errorf("got %+v, %v, login %+v", u, err, u.Login)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", u.Login, *u.Login, *u.Login, u.Login.Hash); strings.Contains(text, "argon2id") {
		t.Errorf("the hash shows: %s", text)
	}

	// Passwords that were used, and ones that end.
	w.rules(t, &PasswordPolicy{MinLength: 6, Reuse: 2, MaxAge: 10})
	wantViolation(t, "the present one again", w.ChangePassword(ctx, "bob", second, second))
	wantError(t, "third", w.ChangePassword(ctx, "bob", second, third), nil)
	wantViolation(t, "the one before the present one", w.UpdateLogin(ctx, "bob", new(second), nil))
	wantError(t, "the one before that", w.UpdateLogin(ctx, "bob", new(first), nil), nil)
	w.clock = w.clock.Add(10*24*time.Hour - time.Second)
	if s := check("on the last day", first, nil); s.MustChange {
		t.Error("has ended early")
	}
	w.clock = w.clock.Add(time.Second)
	if s := check("when it has ended", first, nil); !s.MustChange {
		t.Error("does not have to be changed")
	}
	w.rules(t, &PasswordPolicy{MinLength: 6, MaxAge: 10, HardExpiry: true})
	check("ended for good", first, ErrPasswordEnded)
	check("ended for good, and wrong", third, ErrPassword)
	wantError(t, "set by an administrator", w.UpdateLogin(ctx, "bob", new(second), new(true)), nil)
	if s := check("set by an administrator", second, nil); !s.MustChange {
		t.Error("does not have to be changed")
	}
	if u, _ = w.User("bob"); len(u.Login.Previous) != 0 {
		t.Errorf("%d hashes are kept that nothing needs", len(u.Login.Previous))
	}
	if err := w.UpdateUser(ctx, "bob", func(u *User) error { u.Login = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	check("taken away", second, ErrPassword)
}

// TestDirectory_CheckPassword_Rehash: a hash with other parameters, also one that
// another implementation has made, is good for one more sign-in.
func TestDirectory_CheckPassword_Rehash(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if err := w.CreateUser(ctx, User{Name: "bob", Login: &Login{Hash: reference, Reset: true, Changed: w.clock}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if s, err := w.CheckPassword(ctx, "bob", "password"); err != nil || !s.MustChange {
			t.Fatalf("got %+v, %v", s, err)
		}
		u, _ := w.User("bob")
		if h, err := parsePassword(u.Login.Hash); err != nil || !h.isOf(writtenCost) || !u.Login.Reset || !u.Login.Changed.Equal(w.clock) {
			t.Errorf("%+v, %v, %+v", h, err, u.Login)
		}
	}
	if err := w.CreateUser(ctx, User{Name: "eve", Login: &Login{Hash: "$2b$12$bcrypt"}}); err != nil {
		t.Fatal(err)
	}
	if s, err := w.CheckPassword(ctx, "eve", "password"); err == nil || errors.Is(err, ErrPassword) || s.Principal != nil || strings.Contains(err.Error(), "bcrypt") {
		t.Errorf("a hash that is not known: %+v, %v", s, err)
	}
}

// TestDirectory_CheckPassword_Alike: whoever asks cannot tell from the time
// whether there is such a user. Time is not measured: with every place for
// hashing taken, each question has to wait for one, or it would be answered.
func TestDirectory_CheckPassword_Alike(t *testing.T) {
	w := newWorld(t)
	if err := w.CreateUser(t.Context(), User{Name: "bob", Login: &Login{Hash: reference}}); err != nil {
		t.Fatal(err)
	}
	for range maxHashing {
		w.hashing <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{"bob", AdminUser, "nobody", ""} {
		for _, password := range []Secret{"password", "wrong", ""} {
			_, err := w.CheckPassword(ctx, name, password)
			wantError(t, fmt.Sprintf("user %q", name), err, context.Canceled)
		}
	}
}

// TestDirectory_Login_Together: of two who change a password from the same one,
// one has changed it, and the other is told so. Neither is lost without a word.
func TestDirectory_Login_Together(t *testing.T) {
	w := newWorld(t)
	w.cost = cheap
	ctx := t.Context()
	if err := w.CreateUser(ctx, User{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	const before = Secret("Passw0rd of all")
	if _, err := w.CreateLogin(ctx, "bob", before, false); err != nil {
		t.Fatal(err)
	}
	passwords := []Secret{"Passw0rd of one", "Passw0rd of two", "Passw0rd of three"}
	errs := make([]error, len(passwords))
	var all sync.WaitGroup
	for i, p := range passwords {
		all.Go(func() { errs[i] = w.ChangePassword(ctx, "bob", before, p) })
	}
	all.Go(func() { // who signs in meanwhile does not get in the way
		if _, err := w.CheckPassword(ctx, "bob", before); err != nil && !errors.Is(err, ErrPassword) && !errors.Is(err, ErrChanged) {
			t.Error(err)
		}
	})
	all.Wait()
	done := 0
	for i, err := range errs {
		_, signIn := w.CheckPassword(ctx, "bob", passwords[i])
		if (err == nil) != (signIn == nil) || err != nil && !errors.Is(err, ErrChanged) && !errors.Is(err, ErrPassword) {
			t.Errorf("%d: changed: %v, signed in: %v", i, err, signIn)
		}
		if err == nil {
			done++
		}
	}
	if done != 1 {
		t.Errorf("%d have changed the same password", done)
	}

	// The user who was made anew in between is another.
	u, rules, _ := w.login("bob")
	err := w.Write(ctx, func(tx *Tx) error { tx.Users.Delete("bob"); return nil })
	if err == nil {
		err = w.CreateUser(ctx, User{Name: "bob", Login: u.Login})
	}
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, "of another bob", w.saveLogin(ctx, u, rules, new(*u.Login)), ErrChanged)
	u, _, _ = w.login("bob")
	w.rules(t, &PasswordPolicy{MinLength: 20})
	wantError(t, "under other rules", w.saveLogin(ctx, u, rules, new(*u.Login)), ErrChanged)
	without := u
	without.Login = nil
	wantError(t, "created meanwhile", w.saveLogin(ctx, without, w.Account().Passwords, new(*u.Login)), ErrExists)
	if err := w.UpdateUser(ctx, "bob", func(u *User) error { u.Login = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	wantError(t, "taken away meanwhile", w.saveLogin(ctx, u, w.Account().Passwords, new(*u.Login)), ErrNoLogin)
	if err := w.Write(ctx, func(tx *Tx) error { tx.Users.Delete("bob"); return nil }); err != nil {
		t.Fatal(err)
	}
	wantError(t, "of who is gone", w.saveLogin(ctx, u, w.Account().Passwords, new(*u.Login)), ErrNotFound)
}

// TestDirectory_UsersChange: the account lets users change their own password,
// and nothing else; a Deny and a boundary still count.
func TestDirectory_UsersChange(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	const deny = `{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"iam:ChangePassword","Resource":"*"}}`
	may := func(u User) func(action string) bool {
		t.Helper()
		if err := w.CreateUser(ctx, u); err != nil {
			t.Fatal(err)
		}
		k, err := w.CreateAccessKey(ctx, u.Name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := w.authenticate(k)
		if err != nil {
			t.Fatal(err)
		}
		return func(action string) bool { return w.Authorize(p, action, p.ARN, nil).Allowed }
	}
	bob := may(User{Name: "bob"})
	denied := may(User{Name: "denied", Inline: map[string]string{"p": deny}})
	bounded := may(User{Name: "bounded", Boundary: ManagedPolicy("AWSApplicationMigrationReadOnlyAccess")})
	for _, on := range []bool{false, true, false} {
		w.rules(t, &PasswordPolicy{MinLength: 6, UsersChange: on})
		if got := bob("iam:ChangePassword"); got != on {
			t.Errorf("may change: %v, want %v", got, on)
		}
		if denied("iam:ChangePassword") || bounded("iam:ChangePassword") || bob("iam:UpdateLoginProfile") {
			t.Error("more than that is allowed")
		}
	}
	w.rules(t, &PasswordPolicy{MinLength: 6, UsersChange: true})
	p, err := w.authenticate(w.agentSession(t, "s-00000000000000001"))
	if err != nil || w.Authorize(p, "iam:ChangePassword", "*", nil).Allowed {
		t.Errorf("a role's session may, or %v", err)
	}
}
