package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
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

	directory *Directory // as it is; locked for as long as the transaction lives
}

// A Table is the records of one kind: those that the directory holds, which are
// not copied, under what the transaction changes. Records are values; their
// lists and maps must be replaced and not written to.
type Table[T any] struct {
	kind    Kind
	get     func(name string) (T, bool)
	each    iter.Seq2[string, T]
	changed map[string]*T // nil: removed
}

// tableOf makes a table of what is held, and of the record in each.
func tableOf[H, T any](kind Kind, held map[string]H, record func(H) T) *Table[T] {
	return &Table[T]{kind: kind,
		get: func(name string) (v T, ok bool) {
			h, ok := held[name]
			if ok {
				v = record(h)
			}
			return v, ok
		},
		each: func(yield func(string, T) bool) {
			for name, h := range held {
				if !yield(name, record(h)) {
					return
				}
			}
		},
	}
}

func itself[T any](v T) T { return v }

// Get returns the record of a name.
func (t *Table[T]) Get(name string) (v T, ok bool) {
	if changed, ok := t.changed[name]; ok {
		if changed == nil {
			return v, false
		}
		return *changed, true
	}
	return t.get(name)
}

// Each goes through the records in no order.
func (t *Table[T]) Each() iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		for name, v := range t.each {
			if _, changed := t.changed[name]; !changed && !yield(name, v) {
				return
			}
		}
		for name, v := range t.changed {
			if v != nil && !yield(name, *v) {
				return
			}
		}
	}
}

// Taken is whether a name is used, or differs from a used one only in case.
func (t *Table[T]) Taken(name string) bool {
	for n := range t.Each() {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// Put makes or replaces a record.
func (t *Table[T]) Put(name string, v T) { t.change(name, &v) }

// Delete removes a record.
func (t *Table[T]) Delete(name string) { t.change(name, nil) }

func (t *Table[T]) change(name string, v *T) {
	if t.changed == nil {
		t.changed = map[string]*T{}
	}
	t.changed[name] = v
}

// Names lists the names of all records, sorted.
func (t *Table[T]) Names() (out []string) {
	for name := range t.Each() {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// All lists the records by their names, sorted.
func (t *Table[T]) All() []T {
	names := t.Names()
	out := make([]T, len(names))
	for i, name := range names {
		out[i], _ = t.Get(name)
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
	return &Tx{Account: d.account, directory: d,
		Users:    tableOf(KindUser, d.users, func(h *heldUser) User { return h.User }),
		Groups:   tableOf(KindGroup, d.groups, itself[Group]),
		Roles:    tableOf(KindRole, d.roles, func(h *heldRole) Role { return h.Role }),
		Profiles: tableOf(KindProfile, d.profiles, itself[InstanceProfile]),
		Policies: tableOf(KindPolicy, d.records, itself[Policy]),
		Keys:     tableOf(KindKey, d.keys, itself[AccessKey])}
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
	d.take(tx, next)
	return nil
}

// take puts into force what is durable. Nothing in it can fail.
func (d *Directory) take(tx *Tx, next parsed) {
	for name := range tx.Users.changed {
		if held := d.users[name]; held != nil {
			delete(d.names, held.ID)
		}
	}
	for name := range tx.Roles.changed {
		if held := d.roles[name]; held != nil {
			delete(d.names, held.ID)
		}
	}
	for _, u := range next.users {
		d.names[u.ID] = u.Name
	}
	for _, r := range next.roles {
		d.names[r.ID] = r.Name
	}
	d.account = tx.Account
	replace(d.users, tx.Users.changed, next.users)
	replace(d.roles, tx.Roles.changed, next.roles)
	replace(d.policies, tx.Policies.changed, next.policies)
	replace(d.groups, tx.Groups.changed, values(tx.Groups.changed))
	replace(d.profiles, tx.Profiles.changed, values(tx.Profiles.changed))
	replace(d.records, tx.Policies.changed, values(tx.Policies.changed))
	replace(d.keys, tx.Keys.changed, values(tx.Keys.changed))
}

// replace removes what was changed, and puts in what there is now.
func replace[H, T any](held map[string]H, changed map[string]*T, now map[string]H) {
	for name, v := range changed {
		if v == nil {
			delete(held, name)
		}
	}
	maps.Copy(held, now)
}

// values are the records that were not removed.
func values[T any](changed map[string]*T) map[string]T {
	out := make(map[string]T, len(changed))
	for name, v := range changed {
		if v != nil {
			out[name] = *v
		}
	}
	return out
}

func (tx *Tx) changes() (out []Change, err error) {
	for _, of := range []func() ([]Change, error){tx.Users.changes, tx.Groups.changes, tx.Roles.changes, tx.Profiles.changes, tx.Policies.changes, tx.Keys.changes} {
		changes, err := of()
		if err != nil {
			return nil, err
		}
		out = append(out, changes...)
	}
	if tx.Account != tx.directory.account {
		value, err := json.Marshal(tx.Account)
		if err != nil {
			return nil, err
		}
		out = append(out, Change{Kind: KindAccount, Name: tx.Account.ID, Value: value})
	}
	return out, nil
}

// parsed is what a transaction makes of users, roles and policies: those whose
// record or whose policies changed.
type parsed struct {
	users    map[string]*heldUser
	roles    map[string]*heldRole
	policies map[string]*policy.Document
}

// next parses what the changes make of the directory.
func (tx *Tx) next() (p parsed, err error) {
	p = parsed{map[string]*heldUser{}, map[string]*heldRole{}, map[string]*policy.Document{}}
	for arn, changed := range tx.Policies.changed {
		if changed == nil {
			continue
		}
		if p.policies[arn], err = policy.Parse(policy.Identity, changed.Name, changed.Document); err != nil {
			return p, fmt.Errorf("policy %s: %w", arn, err)
		}
	}
	if err := tx.bindAll(); err != nil {
		return p, err
	}
	at := lookup{group: tx.Groups.Get, document: func(arn string) *policy.Document {
		if _, changed := tx.Policies.changed[arn]; changed {
			return p.policies[arn]
		}
		return tx.directory.policies[arn]
	}}
	for name, u := range tx.Users.concerned(tx, tx.concernsUser) {
		if p.users[name], err = at.holdUser(u); err != nil {
			return p, fmt.Errorf("user %s: %w", name, err)
		}
	}
	for name, r := range tx.Roles.concerned(tx, tx.concernsRole) {
		if p.roles[name], err = at.holdRole(r); err != nil {
			return p, fmt.Errorf("role %s: %w", name, err)
		}
	}
	for name, g := range tx.Groups.concerned(tx, tx.concernsGroup) { // also if nobody is in it
		if _, err := at.documents(g.Attached, g.Inline); err != nil {
			return p, fmt.Errorf("group %s: %w", name, err)
		}
	}
	return p, nil
}

// concerned are the records that changed, and where policies or groups did, also
// those which refer to one of these.
func (t *Table[T]) concerned(tx *Tx, also func(T) bool) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		if len(tx.Policies.changed)+len(tx.Groups.changed) == 0 {
			maps.All(values(t.changed))(yield)
			return
		}
		for name, v := range t.Each() {
			if _, changed := t.changed[name]; (changed || also(v)) && !yield(name, v) {
				return
			}
		}
	}
}

func (tx *Tx) concernsUser(u User) bool {
	return tx.policyChanged(u.Boundary) || slices.ContainsFunc(u.Attached, tx.policyChanged) || slices.ContainsFunc(u.Groups, func(name string) bool {
		g, ok := tx.Groups.Get(name)
		_, changed := tx.Groups.changed[name]
		return changed || !ok || tx.concernsGroup(g)
	})
}

func (tx *Tx) concernsRole(r Role) bool {
	return tx.policyChanged(r.Boundary) || slices.ContainsFunc(r.Attached, tx.policyChanged)
}

func (tx *Tx) concernsGroup(g Group) bool { return slices.ContainsFunc(g.Attached, tx.policyChanged) }

func (tx *Tx) policyChanged(arn string) bool {
	_, changed := tx.Policies.changed[arn]
	return changed
}

// A lookup finds what users and roles refer to while they are parsed.
type lookup struct {
	group    func(name string) (Group, bool)
	document func(arn string) *policy.Document // of a managed policy; nil for none
}

// lookup is of the directory as it is.
func (d *Directory) lookup() lookup {
	return lookup{
		group:    func(name string) (Group, bool) { g, ok := d.groups[name]; return g, ok },
		document: func(arn string) *policy.Document { return d.policies[arn] },
	}
}

func (l lookup) holdUser(u User) (*heldUser, error) {
	policies, err := l.policiesOf(u.Attached, u.Inline, u.Boundary)
	for _, name := range u.Groups {
		g, ok := l.group(name)
		if !ok {
			return nil, fmt.Errorf("group %s: %w", name, ErrNotFound)
		}
		documents, err := l.documents(g.Attached, g.Inline)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", name, err)
		}
		policies.Identity = append(policies.Identity, documents...)
	}
	return &heldUser{User: u, policies: policies}, err
}

func (l lookup) holdRole(r Role) (*heldRole, error) {
	trust, err := policy.Parse(policy.Trust, "the trust policy", r.Trust)
	if err != nil {
		return nil, err
	}
	policies, err := l.policiesOf(r.Attached, r.Inline, r.Boundary)
	return &heldRole{Role: r, trust: trust, policies: policies}, err
}

// policiesOf parses what a user or role may do.
func (l lookup) policiesOf(attached []string, inline map[string]string, boundary string) (out policy.Policies, err error) {
	if out.Identity, err = l.documents(attached, inline); err != nil {
		return out, err
	}
	if boundary != "" {
		out.Boundary = l.document(boundary)
		if out.Boundary == nil {
			return out, fmt.Errorf("permissions boundary %s: %w", boundary, ErrNotFound)
		}
	}
	return out, nil
}

func (l lookup) documents(attached []string, inline map[string]string) (out []*policy.Document, err error) {
	for _, arn := range attached {
		doc := l.document(arn)
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
		if u := tx.directory.users[name]; u != nil {
			return u.policies, true
		}
	case "role":
		if r := tx.directory.roles[name]; r != nil {
			return r.policies, true
		}
	case "group":
		if g, ok := tx.directory.groups[name]; ok {
			documents, err := tx.directory.lookup().documents(g.Attached, g.Inline)
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
