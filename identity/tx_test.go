package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"rehost/identity/policy"
)

// picture is all that a directory holds, and what it made of it.
func (d *Directory) picture(t *testing.T) map[string]string {
	t.Helper()
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := map[string]string{}
	put := func(kind, name string, v any, documents ...*policy.Document) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range documents {
			if doc != nil {
				text = fmt.Appendf(text, "\n%s: %s", doc.Name(), doc.Text())
			}
		}
		out[kind+" "+name] = string(text)
	}
	put("account", "", d.account)
	for name, u := range d.users {
		put("user", name, u.User, append(slices.Clone(u.policies.Identity), nil, u.policies.Boundary)...)
	}
	for name, r := range d.roles {
		put("role", name, r.Role, append(slices.Clone(r.policies.Identity), nil, r.policies.Boundary, r.trust)...)
	}
	for arn, p := range d.records {
		put("policy", arn, p, d.policies[arn])
	}
	for name, v := range d.groups {
		put("group", name, v)
	}
	for name, v := range d.profiles {
		put("profile", name, v)
	}
	for name, v := range d.keys {
		put("key", name, v)
	}
	for name, v := range d.revocations {
		put("revocation", name, v)
	}
	for name, v := range d.providers {
		put("provider", name, v)
	}
	for id, name := range d.names {
		put("name of", id, name)
	}
	put("documents", "", len(d.policies))
	return out
}

// wantSame compares two pictures.
func wantSame(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: %s: got %s, want %s", what, name, got[name], text)
		}
	}
	for name, text := range got {
		if _, there := want[name]; !there {
			t.Errorf("%s: %s should not be there: %s", what, name, text)
		}
	}
}

var errDisk = errors.New("disk full")

// A moodyStore fails now and then, before it has done anything.
type moodyStore struct {
	Store
	fails func() bool
}

func (m *moodyStore) Put(ctx context.Context, kind Kind, name string, value []byte) error {
	if m.fails() {
		return errDisk
	}
	return m.Store.Put(ctx, kind, name, value)
}

func (m *moodyStore) Delete(ctx context.Context, kind Kind, name string) error {
	if m.fails() {
		return errDisk
	}
	return m.Store.Delete(ctx, kind, name)
}

func (m *moodyStore) Apply(ctx context.Context, changes []Change) error {
	if m.fails() {
		return errDisk
	}
	return m.Store.Apply(ctx, changes)
}

// TestDirectory_FailingStore does everything that changes a directory, in random
// order, over a store that fails at every third write. What failed has changed
// nothing, in memory or on the disk, and succeeds when it is tried again; and
// after each step the directory is what a new one would make of its store:
// nothing that refers to what changed was left as it was.
func TestDirectory_FailingStore(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	w.cost = cheap
	disk := w.store
	mood := &moodyStore{Store: disk, fails: func() bool { return r.IntN(3) == 0 }}
	w.Directory.store = mood
	failed, done := 0, map[string]int{}
	for step := range 400 {
		name, do := w.step(r)
		before := w.picture(t)
		err := do()
		if errors.Is(err, errDisk) {
			failed++
			wantSame(t, fmt.Sprintf("step %d, %s failed", step, name), w.picture(t), before)
			moody := mood.fails
			mood.fails = func() bool { return false }
			if err = do(); errors.Is(err, errDisk) {
				t.Errorf("step %d, %s again: %v", step, name, err)
			}
			mood.fails = moody
		}
		if err == nil {
			done[name]++
		}
		fresh, err := Open(t.Context(), Options{Store: disk, Key: w.key, Now: func() time.Time { return w.clock }})
		if err != nil {
			t.Fatalf("step %d, %s: %v", step, name, err)
		}
		wantSame(t, fmt.Sprintf("step %d, after %s", step, name), w.picture(t), fresh.picture(t))
		if t.Failed() {
			return
		}
	}
	if failed < 20 || len(done) < 15 {
		t.Errorf("%d writes failed, and of the steps only these did something: %v", failed, done)
	}
}

// step draws something to do. Done twice, it is the same twice.
func (w *world) step(r *rand.Rand) (name string, do func() error) {
	ctx := context.Background()
	pick := func(kind string) string { return fmt.Sprint(kind, r.IntN(4)) }
	some := func(kind string) (out []string) {
		for i := range 4 {
			if r.IntN(3) == 0 {
				out = append(out, fmt.Sprint(kind, i))
			}
		}
		return out
	}
	prefix := "arn:aws:iam::" + w.Account().ID + ":"
	inline := func() map[string]string {
		return map[string]string{"own": statementsOf(allow(fmt.Sprintf("mgn:Start%d", r.IntN(100))))}
	}
	u, g, role, p := pick("user"), pick("group"), pick("role"), prefix+"policy/"+pick("policy")
	boundary := ""
	if r.IntN(4) == 0 {
		boundary = p
	}
	user := User{Name: u, ID: NewID("AIDA"), Path: "/", Attached: some(prefix + "policy/policy"), Groups: some("group"), Boundary: boundary, Inline: inline()}
	group := Group{Name: g, ID: NewID("AGPA"), Path: "/", Attached: some(prefix + "policy/policy"), Inline: inline()}
	text := inline()["own"]
	trust := statementsOf(trusts([]string{w.root(), prefix + "user/" + u, prefix + "role/" + role}[r.IntN(3)], ""))
	newRole := Role{Name: pick("role"), Trust: trust, Boundary: boundary, Attached: some(prefix + "policy/policy")}
	other, password := pick("user"), Secret(fmt.Sprintf("Passw0rd-%d", r.IntN(3)))
	issuer, tag := fmt.Sprintf("https://idp%d.example.com", r.IntN(3)), fmt.Sprint(r.IntN(100))
	var keyID string
	if keys := w.AccessKeys(u); len(keys) > 0 {
		keyID = keys[0].ID
	}
	write := func(do func(tx *Tx)) func() error {
		return func() error { return w.Write(ctx, func(tx *Tx) error { do(tx); return nil }) }
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"CreateUser", func() error { return w.CreateUser(ctx, user) }},
		{"UpdateUser", func() error {
			return w.UpdateUser(ctx, u, func(u *User) error {
				u.Attached, u.Groups, u.Tags = user.Attached, user.Groups, map[string]string{"t": tag}
				return nil
			})
		}},
		{"put user", write(func(tx *Tx) { tx.Users.Put(u, user) })},
		{"delete user", write(func(tx *Tx) { tx.Users.Delete(u) })},
		{"rename user", write(func(tx *Tx) {
			if user, ok := tx.Users.Get(u); ok {
				tx.Users.Delete(u)
				user.Name = other
				tx.Users.Put(other, user)
			}
		})},
		{"put group", write(func(tx *Tx) { tx.Groups.Put(g, group) })},
		{"put group", write(func(tx *Tx) { tx.Groups.Put(g, group) })},
		{"delete group", write(func(tx *Tx) {
			tx.Groups.Delete(g)
			for name, u := range tx.Users.Each() {
				if slices.Contains(u.Groups, g) {
					u.Groups = slices.DeleteFunc(slices.Clone(u.Groups), func(name string) bool { return name == g })
					defer tx.Users.Put(name, u)
				}
			}
		})},
		{"delete group in use", write(func(tx *Tx) { tx.Groups.Delete(g) })},
		{"put policy", write(func(tx *Tx) {
			tx.Policies.Put(p, Policy{Name: "p", Path: "/", Document: text}.complete(p))
		})},
		{"CreatePolicy", func() error {
			_, err := w.CreatePolicy(ctx, Policy{Name: p[len(prefix+"policy/"):], Document: text})
			return err
		}},
		{"delete policy", write(func(tx *Tx) { tx.Policies.Delete(p) })},
		{"bad policy", write(func(tx *Tx) { tx.Groups.Put(g, group); tx.Policies.Put(p, Policy{Name: "p", Document: "{"}) })},
		{"CreateRole", func() error { return w.CreateRole(ctx, newRole) }},
		{"delete role", write(func(tx *Tx) { tx.Roles.Delete(role) })},
		{"update trust", write(func(tx *Tx) {
			if r, ok := tx.Roles.Get(role); ok {
				r.Trust = trust
				tx.Roles.Put(role, r)
			}
		})},
		{"CreateAccessKey", func() error { _, err := w.CreateAccessKey(ctx, u); return err }},
		{"DeleteAccessKey", func() error { return w.DeleteAccessKey(ctx, keyID) }},
		{"Used", func() error { w.clock = w.clock.Add(useInterval); return w.Used(ctx, keyID, "iam", "x") }},
		{"put profile", write(func(tx *Tx) {
			tx.Profiles.Put("p", InstanceProfile{Name: "p", Role: role})
			tx.Account.Alias = "a" + tag
		})},
		{"delete profile", write(func(tx *Tx) { tx.Profiles.Delete("p") })},
		{"RevokeUser", func() error { return w.RevokeUser(ctx, u) }},
		{"CreateProvider", func() error { _, err := w.CreateProvider(ctx, Provider{URL: issuer}); return err }},
		{"UpdateProvider", func() error {
			return w.UpdateProvider(ctx, prefix+"oidc-provider/"+issuer[len("https://"):], func(p *Provider) error { p.Clients = []string{tag}; return nil })
		}},
		{"DeleteProvider", func() error { return w.DeleteProvider(ctx, prefix+"oidc-provider/"+issuer[len("https://"):]) }},
		{"CreateLogin", func() error { _, err := w.CreateLogin(ctx, u, password, true); return err }},
		{"UpdateLogin", func() error { return w.UpdateLogin(ctx, u, &password, new(false)) }},
		{"ChangePassword", func() error { return w.ChangePassword(ctx, u, password, password+"!") }},
		{"CheckPassword", func() error {
			w.clock = w.clock.Add(useInterval)
			_, err := w.CheckPassword(ctx, u, password)
			return err
		}},
		{"password policy", write(func(tx *Tx) { tx.Account.Passwords = &PasswordPolicy{MinLength: 6, Reuse: len(user.Groups)} })},
	}
	s := steps[r.IntN(len(steps))]
	return s.name, s.do
}
