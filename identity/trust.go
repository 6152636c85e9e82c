package identity

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"rehost/identity/policy"
)

// A trust policy names users and roles by ARN, and they are kept by unique id,
// as at AWS: one that was deleted and made again under its name is another, and
// is not trusted. One that was renamed is.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_principal.html

var (
	entityForm  = regexp.MustCompile(`^arn:aws:iam::([0-9]{12}):(user|role)(/(?:.*/)?)([^/]+)$`)
	sessionForm = regexp.MustCompile(`^arn:aws:sts::([0-9]{12}):assumed-role/([^/]+)/([^/]+)$`)
	idForm      = regexp.MustCompile(`^(A(?:IDA|ROA)[A-Z0-9]+)(?::(.*))?$`)
	ownerForm   = regexp.MustCompile(`^([0-9]{12}|arn:aws[a-z-]*:(iam::[0-9]{12}:root|sts::[0-9]{12}:federated-user/.*))$`)
)

// bindAll binds the trust policies that the transaction brings.
func (tx *Tx) bindAll() error {
	for name, r := range tx.Roles.changed {
		if r == nil {
			continue
		}
		if held := tx.directory.roles[name]; held != nil && held.Trust == r.Trust {
			continue // also if somebody in it is gone
		}
		doc, err := policy.Parse(policy.Trust, "the trust policy", r.Trust)
		if err != nil {
			return fmt.Errorf("role %s: %w", name, err)
		}
		text, err := doc.RenamePrincipals(tx.bind)
		if err != nil {
			return fmt.Errorf("role %s: %w", name, err)
		}
		if text != r.Trust {
			bound := *r
			bound.Trust = text
			tx.Roles.Put(name, bound)
		}
	}
	return nil
}

// bind is how a principal of a trust policy is kept. It has to be there: what
// is not, somebody could make under that name later.
func (tx *Tx) bind(principal string) (string, error) {
	if m := entityForm.FindStringSubmatch(principal); m != nil && m[1] == tx.Account.ID {
		if id := tx.idOf(m[2], m[3], m[4]); id != "" {
			return id, nil
		}
	} else if m := sessionForm.FindStringSubmatch(principal); m != nil && m[1] == tx.Account.ID {
		if r, ok := tx.Roles.Get(m[2]); ok {
			return r.ID + ":" + m[3], nil
		}
	} else if principal == "*" || ownerForm.MatchString(principal) {
		return principal, nil // an account is taken as it is: of another nobody can call
	} else if _, ok := tx.named(principal); ok {
		return principal, nil
	}
	return "", fmt.Errorf("Invalid principal in policy: \"AWS\":%q", principal) //nolint:staticcheck // so says IAM
}

// idOf is the unique id of the user or role of a path and name, "" for none.
func (tx *Tx) idOf(kind, path, name string) string {
	if kind == "user" {
		if u, ok := tx.Users.Get(name); ok && u.Path == path {
			return u.ID
		}
	} else if r, ok := tx.Roles.Get(name); ok && r.Path == path {
		return r.ID
	}
	return ""
}

// Trust is a role's trust policy as its owner wrote it: with ARNs, but for the
// ids of users and roles that are gone.
func (tx *Tx) Trust(r Role) string {
	var doc *policy.Document
	if held := tx.directory.roles[r.Name]; held != nil && held.Trust == r.Trust {
		doc = held.trust
	} else if doc, _ = policy.Parse(policy.Trust, "the trust policy", r.Trust); doc == nil {
		return r.Trust // as it was put and not yet checked
	}
	text, _ := doc.RenamePrincipals(func(principal string) (string, error) {
		if arn, ok := tx.named(principal); ok {
			return arn, nil
		}
		return principal, nil
	})
	return text
}

// named is the ARN of the user, role or session of a unique id.
func (tx *Tx) named(id string) (arn string, ok bool) {
	m := idForm.FindStringSubmatch(id)
	if m == nil {
		return "", false
	}
	if strings.HasPrefix(id, "AIDA") {
		if u, ok := byID(tx.Users, id, tx.directory.names, func(u User) string { return u.ID }); ok {
			return tx.directory.userARN(&u), true
		}
		return "", false
	}
	r, ok := byID(tx.Roles, m[1], tx.directory.names, func(r Role) string { return r.ID })
	switch {
	case !ok:
		return "", false
	case m[2] != "":
		return "arn:aws:sts::" + tx.Account.ID + ":assumed-role/" + r.Name + "/" + m[2], true
	}
	return tx.directory.roleARN(&r), true
}

// byID finds a record by its unique id: by the name that the id had, or among
// what the transaction changes.
func byID[T any](t *Table[T], id string, names map[string]string, idOf func(T) string) (v T, ok bool) {
	for _, changed := range t.changed {
		if changed != nil && idOf(*changed) == id {
			return *changed, true
		}
	}
	v, ok = t.Get(names[id])
	return v, ok && idOf(v) == id
}

// bindHeld binds what was kept before principals were, and still names them by
// ARN. Whom nobody has the name of stays as named: the policy was taken in so.
func (d *Directory) bindHeld(ctx context.Context) error {
	tx := d.transaction()
	for name, held := range d.roles {
		r := held.Role
		r.Trust, _ = held.trust.RenamePrincipals(func(principal string) (string, error) {
			if id, err := tx.bind(principal); err == nil {
				return id, nil
			}
			return principal, nil
		})
		if r.Trust == held.Trust {
			continue
		}
		h, err := d.lookup().holdRole(r)
		if err == nil {
			err = d.put(ctx, KindRole, name, r)
		}
		if err != nil {
			return fmt.Errorf("bind trust policy of role %s: %w", name, err)
		}
		d.roles[name] = h
	}
	return nil
}
