package identity

import (
	"fmt"
	"testing"
)

// crowd is a directory with a thousand users and a thousand roles, each with an
// inline policy; one user in ten is in a group.
func crowd(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	inline := map[string]string{"own": statementsOf(allow("mgn:Start*"), deny("iam:*"))}
	trust := statementsOf(trusts(w.root(), ""))
	if err := w.Write(t.Context(), func(tx *Tx) error {
		tx.Groups.Put("ops", Group{Name: "ops", Path: "/", ID: NewID("AGPA"), Inline: inline})
		for i := range 1000 {
			u := User{Name: fmt.Sprintf("user%04d", i), Path: "/", ID: NewID("AIDA"), Inline: inline, Tags: map[string]string{"team": "blue"}}
			if i%10 == 0 {
				u.Groups = []string{"ops"}
			}
			tx.Users.Put(u.Name, u)
			k, _ := w.NewAccessKey(u.Name)
			tx.Keys.Put(k.ID, k)
			r := Role{Name: fmt.Sprintf("role%04d", i), Path: "/", ID: NewID("AROA"), Trust: trust, Inline: inline}
			tx.Roles.Put(r.Name, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

// BenchmarkDirectory is what a call of IAM costs in a directory of a thousand
// users and a thousand roles, the store apart.
func BenchmarkDirectory(b *testing.B) {
	w := crowd(b)
	one := func(tx *Tx) error {
		if _, ok := tx.Users.Get("user0500"); !ok {
			return ErrNotFound
		}
		return nil
	}
	change := func(tx *Tx) error {
		u, _ := tx.Users.Get("user0500")
		u.Tags = map[string]string{"team": "red"}
		tx.Users.Put(u.Name, u)
		return nil
	}
	for _, bench := range []struct {
		name string
		do   func() error
	}{
		{"ReadOne", func() error { return w.Read(one) }},
		{"ReadAll", func() error {
			return w.Read(func(tx *Tx) error {
				if len(tx.Users.All()) < 1000 {
					return ErrNotFound
				}
				return nil
			})
		}},
		{"WriteNothing", func() error { return w.Write(b.Context(), one) }},
		{"WriteUser", func() error { return w.Write(b.Context(), change) }},
		{"WriteGroup", func() error {
			return w.Write(b.Context(), func(tx *Tx) error {
				g, _ := tx.Groups.Get("ops")
				tx.Groups.Put(g.Name, g)
				return nil
			})
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bench.do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
