package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"rehost/identity/policy"
)

// A Tx is a look at the whole directory, and what is to be changed in it. It is
// for one goroutine, until the function that got it returns.
type Tx struct {
	Account  Account
	Users    *Table[User]            // by name
	Groups   *Table[Group]           // by name
	Roles    *Table[Role]            // by name
	Profiles *Table[InstanceProfile] // by name
	Policies *Table[Policy]          // managed ones, by ARN
	Keys     *Table[AccessKey]       // by id

	directory *Directory
	base      Account
	holding   state
}

// A Table is the records of one kind. Records are values; their lists and maps
// must be replaced and not written to.
type Table[T any] struct {
	kind    Kind
	all     map[string]T
	changed map[string]*T // nil: removed
}

func newTable[T any](kind Kind, all map[string]T) *Table[T] {
	return &Table[T]{kind: kind, all: all, changed: map[string]*T{}}
}

// Get returns the record of a name.
func (t *Table[T]) Get(name string) (v T, ok bool) {
	if changed, ok := t.changed[name]; ok {
		if changed == nil {
			return v, false
		}
		return *changed, true
	}
	v, ok = t.all[name]
	return v, ok
}

// Taken is whether a name is used, or differs from a used one only in case.
func (t *Table[T]) Taken(name string) bool { return taken(t.now(), name) }

// Put makes or replaces a record.
func (t *Table[T]) Put(name string, v T) { t.changed[name] = &v }

// Delete removes a record.
func (t *Table[T]) Delete(name string) { t.changed[name] = nil }

// Names lists the names of all records, sorted.
func (t *Table[T]) Names() []string { return slices.Sorted(maps.Keys(t.now())) }

// All lists the records by their names, sorted.
func (t *Table[T]) All() []T {
	all := t.now()
	out := make([]T, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name])
	}
	return out
}

// now is the records with the changes.
func (t *Table[T]) now() map[string]T {
	if len(t.changed) == 0 {
		return t.all
	}
	out := maps.Clone(t.all)
	for name, v := range t.changed {
		if v == nil {
			delete(out, name)
		} else {
			out[name] = *v
		}
	}
	return out
}

func (t *Table[T]) changes() (out []Change, err error) {
	for name, v := range t.changed {
		c := Change{Kind: t.kind, Name: name}
		if v != nil {
			if c.Value, err = json.Marshal(v); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// transaction makes one. The caller holds the lock until it is done.
func (d *Directory) transaction() *Tx {
	users, roles := make(map[string]User, len(d.users)), make(map[string]Role, len(d.roles))
	for name, u := range d.users {
		users[name] = u.User
	}
	for name, r := range d.roles {
		roles[name] = r.Role
	}
	return &Tx{directory: d, Account: d.account, base: d.account, holding: d.state(), Users: newTable(KindUser, users), Groups: newTable(KindGroup, d.groups), Roles: newTable(KindRole, roles),
		Profiles: newTable(KindProfile, d.profiles), Policies: newTable(KindPolicy, d.records), Keys: newTable(KindKey, d.keys)}
}

// Read lets do look at the directory, in which nothing changes meanwhile.
func (d *Directory) Read(do func(*Tx) error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return do(d.transaction())
}

// Write lets do change the directory. All that it changed is durable and in
// force for every call when Write returns, or none of it. It fails if do does,
// and with a [*policy.Error] for a document that cannot be understood.
func (d *Directory) Write(ctx context.Context, do func(*Tx) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	tx := d.transaction()
	if err := do(tx); err != nil {
		return err
	}
	next, err := tx.next()
	if err != nil {
		return err
	}
	changes, err := tx.changes()
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return nil
	}
	if err := d.store.Apply(ctx, changes); err != nil {
		return fmt.Errorf("write directory: %w", err)
	}
	d.account, d.users, d.groups, d.roles = tx.Account, next.users, next.groups, next.roles
	d.profiles, d.records, d.policies, d.keys = tx.Profiles.now(), tx.Policies.now(), next.policies, tx.Keys.now()
	return nil
}

func (tx *Tx) changes() (out []Change, err error) {
	for _, of := range []func() ([]Change, error){tx.Users.changes, tx.Groups.changes, tx.Roles.changes, tx.Profiles.changes, tx.Policies.changes, tx.Keys.changes} {
		changes, err := of()
		if err != nil {
			return nil, err
		}
		out = append(out, changes...)
	}
	if tx.Account != tx.base {
		value, err := json.Marshal(tx.Account)
		if err != nil {
			return nil, err
		}
		out = append(out, Change{Kind: KindAccount, Name: tx.Account.ID, Value: value})
	}
	return out, nil
}

// next parses what the changes make of the directory. Where a policy or a group
// changed, everyone may be concerned.
func (tx *Tx) next() (s state, err error) {
	s = state{groups: tx.Groups.now(), policies: maps.Clone(tx.holding.policies), users: map[string]*heldUser{}, roles: map[string]*heldRole{}}
	for arn, p := range tx.Policies.changed {
		if delete(s.policies, arn); p == nil {
			continue
		}
		if s.policies[arn], err = policy.Parse(policy.Identity, p.Name, p.Document); err != nil {
			return s, err
		}
	}
	everyone := len(tx.Policies.changed)+len(tx.Groups.changed) > 0
	for name, u := range tx.Users.now() {
		if _, changed := tx.Users.changed[name]; !changed && !everyone {
			s.users[name] = tx.holding.users[name]
		} else if s.users[name], err = s.holdUser(u); err != nil {
			return s, fmt.Errorf("user %s: %w", name, err)
		}
	}
	if err := tx.bindAll(); err != nil {
		return s, err
	}
	for name, r := range tx.Roles.now() {
		if _, changed := tx.Roles.changed[name]; !changed && !everyone {
			s.roles[name] = tx.holding.roles[name]
		} else if s.roles[name], err = s.holdRole(r); err != nil {
			return s, fmt.Errorf("role %s: %w", name, err)
		}
	}
	return s, tx.checkGroups(s)
}

// checkGroups looks at the groups that nobody is in, too.
func (tx *Tx) checkGroups(s state) error {
	for name, g := range tx.Groups.changed {
		if g == nil {
			continue
		}
		if _, err := s.documents(g.Attached, g.Inline); err != nil {
			return fmt.Errorf("group %s: %w", name, err)
		}
	}
	return nil
}

// A state is what documents are looked up in while others are parsed.
type state struct {
	users    map[string]*heldUser
	groups   map[string]Group
	roles    map[string]*heldRole
	policies map[string]*policy.Document
}

func (d *Directory) state() state { return state{d.users, d.groups, d.roles, d.policies} }

func (s state) holdUser(u User) (*heldUser, error) {
	policies, err := s.policiesOf(u.Attached, u.Inline, u.Boundary)
	for _, name := range u.Groups {
		g, ok := s.groups[name]
		if !ok {
			return nil, fmt.Errorf("group %s: %w", name, ErrNotFound)
		}
		documents, err := s.documents(g.Attached, g.Inline)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", name, err)
		}
		policies.Identity = append(policies.Identity, documents...)
	}
	return &heldUser{User: u, policies: policies}, err
}

func (s state) holdRole(r Role) (*heldRole, error) {
	trust, err := policy.Parse(policy.Trust, "the trust policy", r.Trust)
	if err != nil {
		return nil, err
	}
	policies, err := s.policiesOf(r.Attached, r.Inline, r.Boundary)
	return &heldRole{Role: r, trust: trust, policies: policies}, err
}

// policiesOf parses what a user or role may do.
func (s state) policiesOf(attached []string, inline map[string]string, boundary string) (out policy.Policies, err error) {
	if out.Identity, err = s.documents(attached, inline); err != nil {
		return out, err
	}
	if boundary != "" {
		out.Boundary = s.policies[boundary]
		if out.Boundary == nil {
			return out, fmt.Errorf("permissions boundary %s: %w", boundary, ErrNotFound)
		}
	}
	return out, nil
}

func (s state) documents(attached []string, inline map[string]string) (out []*policy.Document, err error) {
	for _, arn := range attached {
		doc := s.policies[arn]
		if doc == nil {
			return nil, fmt.Errorf("policy %s: %w", arn, ErrNotFound)
		}
		out = append(out, doc)
	}
	for _, name := range slices.Sorted(maps.Keys(inline)) {
		doc, err := policy.Parse(policy.Identity, "inline policy "+name, inline[name])
		if err != nil {
			return nil, fmt.Errorf("inline policy %s: %w", name, err)
		}
		out = append(out, doc)
	}
	return out, nil
}

// PoliciesOf are the policies in force for a user or role, before any change of
// this transaction.
func (tx *Tx) PoliciesOf(kind, name string) (policy.Policies, bool) {
	switch kind {
	case "user":
		if u := tx.holding.users[name]; u != nil {
			return u.policies, true
		}
	case "role":
		if r := tx.holding.roles[name]; r != nil {
			return r.policies, true
		}
	case "group":
		if g, ok := tx.holding.groups[name]; ok {
			documents, err := tx.holding.documents(g.Attached, g.Inline)
			return policy.Policies{Identity: documents}, err == nil
		}
	}
	return policy.Policies{}, false
}

// ContextOf is what conditions can ask about a user, or about a role whoever
// assumes it, and the time. What only a session has is not in it: of a role,
// aws:userid.
func (tx *Tx) ContextOf(kind, name string) policy.Context {
	c := policy.Context{}
	tx.directory.timeContext(c)
	switch kind {
	case "user":
		if u, ok := tx.Users.Get(name); ok {
			tx.directory.userPrincipal(&u).context(c)
		}
	case "role":
		if r, ok := tx.Roles.Get(name); ok {
			p := Principal{Kind: RolePrincipal, Account: tx.Account.ID, Name: r.Name, Tags: r.Tags, parent: tx.directory.roleARN(&r)}
			p.context(c)
			delete(c, "aws:userid")
		}
	}
	return c
}

// NewAccessKey makes a key of a user and the only copy of its secret.
func (d *Directory) NewAccessKey(user string) (AccessKey, Secret) {
	secret := newSecret()
	k := AccessKey{ID: newID("AKIA"), User: user, Active: true, Created: d.now().UTC()}
	k.Sealed = d.key.seal(useSecret, k.ID, []byte(secret))
	return k, secret
}

// NewID makes the id of a new record: AIDA of a user, AGPA of a group, AROA of
// a role, ANPA of a policy, AIPA of an instance profile.
func NewID(prefix string) string { return newID(prefix) }

// Now is the directory's clock, in UTC.
func (d *Directory) Now() time.Time { return d.now().UTC() }

// useInterval is how exactly the last use of a key is known: writing each one
// down would cost every call a write to the disk.
const useInterval = time.Minute

// Used notes that a key has signed a call. What is no key of a user is ignored.
func (d *Directory) Used(ctx context.Context, keyID, service, region string) error {
	now := d.now().UTC()
	d.mu.RLock()
	k, ok := d.keys[keyID]
	d.mu.RUnlock()
	if !ok || now.Sub(k.Used.Time) < useInterval {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if k, ok = d.keys[keyID]; !ok || now.Sub(k.Used.Time) < useInterval {
		return nil
	}
	k.Used = KeyUse{Time: now, Service: service, Region: region}
	if err := d.put(ctx, KindKey, k.ID, k); err != nil {
		return fmt.Errorf("note use of access key %s: %w", k.ID, err)
	}
	d.keys[k.ID] = k
	return nil
}
