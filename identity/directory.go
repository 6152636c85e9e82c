package identity

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"rehost/identity/policy"
)

// A Directory holds one account with its users, roles, keys and policies, all
// of it in memory and, through its [Store], on disk. It is safe for concurrent
// use. There is nothing to close.
type Directory struct {
	store Store
	key   *SealingKey
	now   func() time.Time

	hashing chan struct{} // has an element for each password that is being hashed
	cost    passwordCost  // of those that are set

	mu          sync.RWMutex // guards what follows; held while the store is written
	account     Account
	users       map[string]*heldUser
	roles       map[string]*heldRole
	keys        map[string]AccessKey
	groups      map[string]Group
	profiles    map[string]InstanceProfile
	records     map[string]Policy           // managed policies, by ARN
	policies    map[string]*policy.Document // their default versions, by ARN
	revocations map[string]revocation
	providers   map[string]*Provider // by ARN
	names       map[string]string    // of users and roles, by their unique ids
}

// A heldUser is a user together with its parsed policies.
type heldUser struct {
	User
	policies policy.Policies
}

// A heldRole is a role together with its parsed policies.
type heldRole struct {
	Role
	trust    *policy.Document
	policies policy.Policies
}

// An Options says what a directory stands on.
type Options struct {
	Store Store            // required
	Key   *SealingKey      // required
	Now   func() time.Time // nil is time.Now
}

// Open reads the whole store. A document in it that cannot be understood is an
// error: nothing is served with half a policy.
func Open(ctx context.Context, o Options) (*Directory, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &Directory{
		store: o.Store, key: o.Key, now: o.Now, hashing: make(chan struct{}, maxHashing), cost: writtenCost,
		users: map[string]*heldUser{}, roles: map[string]*heldRole{}, keys: map[string]AccessKey{},
		groups: map[string]Group{}, profiles: map[string]InstanceProfile{}, records: managedRecords(),
		policies: map[string]*policy.Document{}, revocations: map[string]revocation{}, providers: map[string]*Provider{},
		names: map[string]string{},
	}
	maps.Copy(d.policies, managed())
	var users []User
	var roles []Role
	err := o.Store.All(ctx, func(kind Kind, name string, value []byte) (err error) {
		switch kind {
		case KindAccount:
			err = json.Unmarshal(value, &d.account)
		case KindUser:
			err = appendJSON(&users, value)
		case KindRole:
			err = appendJSON(&roles, value)
		case KindKey:
			var k AccessKey
			err = json.Unmarshal(value, &k)
			d.keys[name] = k
		case KindPolicy:
			var p Policy
			if err = json.Unmarshal(value, &p); err == nil {
				d.records[name] = p.complete(name)
				d.policies[name], err = policy.Parse(policy.Identity, p.Name, p.Document)
			}
		case KindGroup:
			var g Group
			err = json.Unmarshal(value, &g)
			d.groups[name] = g
		case KindProfile:
			var p InstanceProfile
			err = json.Unmarshal(value, &p)
			d.profiles[name] = p
		case KindRevocation:
			var r revocation
			err = json.Unmarshal(value, &r)
			d.revocations[name] = r
		case KindProvider:
			p := new(Provider)
			err = json.Unmarshal(value, p)
			d.providers[name] = p
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", kind, name, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	for _, u := range users {
		if d.users[u.Name], err = d.lookup().holdUser(u); err != nil {
			return nil, fmt.Errorf("open directory: user %s: %w", u.Name, err)
		}
		d.names[u.ID] = u.Name
	}
	for _, r := range roles {
		if d.roles[r.Name], err = d.lookup().holdRole(r); err != nil {
			return nil, fmt.Errorf("open directory: role %s: %w", r.Name, err)
		}
		d.names[r.ID] = r.Name
	}
	if err := errors.Join(d.reseal(ctx), d.prune(ctx), d.bindHeld(ctx)); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	return d, nil
}

func appendJSON[T any](list *[]T, value []byte) error {
	var v T
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	*list = append(*list, v)
	return nil
}

// Account is the account, with an empty ID before [Directory.Bootstrap].
func (d *Directory) Account() Account {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.account
}

// AdminUser is the user that Bootstrap makes.
const AdminUser = "admin"

// Bootstrap makes the account, its roles and its administrator with an access
// key, unless they are there already; then the credentials are zero. After a
// crash in the middle it goes on, and makes the key anew.
func (d *Directory) Bootstrap(ctx context.Context) (Credentials, error) {
	if d.Account().ID != "" {
		return Credentials{}, nil
	}
	id, err := rand.Int(rand.Reader, big.NewInt(900_000_000_000))
	if err != nil {
		return Credentials{}, err
	}
	account := Account{ID: fmt.Sprintf("%012d", id.Int64()+100_000_000_000), Created: d.now().UTC()}
	for _, r := range serviceRoles() {
		if err := d.CreateRole(ctx, r); err != nil && !errors.Is(err, ErrExists) {
			return Credentials{}, err
		}
	}
	admin := User{Name: AdminUser, Attached: []string{ManagedPolicy("AdministratorAccess")}}
	if err := d.CreateUser(ctx, admin); err != nil && !errors.Is(err, ErrExists) {
		return Credentials{}, err
	}
	for _, k := range d.AccessKeys(AdminUser) {
		if err := d.DeleteAccessKey(ctx, k.ID); err != nil {
			return Credentials{}, err
		}
	}
	credentials, err := d.CreateAccessKey(ctx, AdminUser)
	if err != nil {
		return Credentials{}, err
	}
	// The account comes last: as long as there is none, nobody can call.
	if err := d.Write(ctx, func(tx *Tx) error { tx.Account = account; return nil }); err != nil {
		return Credentials{}, fmt.Errorf("create account: %w", err)
	}
	return credentials, nil
}

// put writes a record; the caller holds the lock for writing.
func (d *Directory) put(ctx context.Context, kind Kind, name string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return d.store.Put(ctx, kind, name, text)
}

var nameForm = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)

// taken is whether a name is used, or differs from a used one only in case.
func taken[T any](names map[string]T, name string) bool {
	for n := range names {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// CreateUser adds a user; ID, Path and Created are filled in.
func (d *Directory) CreateUser(ctx context.Context, u User) error {
	if !nameForm.MatchString(u.Name) {
		return fmt.Errorf("create user %.64q: not a name", u.Name)
	}
	u.ID, u.Created = newID("AIDA"), d.now().UTC()
	if u.Path == "" {
		u.Path = "/"
	}
	return d.Write(ctx, func(tx *Tx) error {
		if tx.Users.Taken(u.Name) {
			return fmt.Errorf("create user %s: %w", u.Name, ErrExists)
		}
		return tx.putUser(u)
	})
}

// UpdateUser changes a user's tags, policies or boundary. Change gets a copy
// whose lists and maps it must replace and not write to.
func (d *Directory) UpdateUser(ctx context.Context, name string, change func(*User) error) error {
	return d.Write(ctx, func(tx *Tx) error {
		held, ok := tx.Users.Get(name)
		if !ok {
			return fmt.Errorf("user %s: %w", name, ErrNotFound)
		}
		u := held
		if err := change(&u); err != nil {
			return err
		}
		u.Name, u.ID = held.Name, held.ID
		return tx.putUser(u)
	})
}

func (tx *Tx) putUser(u User) error {
	if err := policy.CheckSize(policy.MaxUserInline, slices.Collect(maps.Values(u.Inline))...); err != nil {
		return fmt.Errorf("user %s: inline policies: %w", u.Name, err)
	}
	tx.Users.Put(u.Name, u)
	return nil
}

// User returns a user.
func (d *Directory) User(name string) (User, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if h := d.users[name]; h != nil {
		return h.User, nil
	}
	return User{}, fmt.Errorf("user %s: %w", name, ErrNotFound)
}

// Users lists the names of all users, sorted.
func (d *Directory) Users() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Sorted(maps.Keys(d.users))
}

// CreateRole adds a role; ID, Path, Created and a MaxDuration of 0 are filled in.
func (d *Directory) CreateRole(ctx context.Context, r Role) error {
	if !nameForm.MatchString(r.Name) {
		return fmt.Errorf("create role %.64q: not a name", r.Name)
	}
	if err := errors.Join(policy.CheckSize(policy.MaxTrust, r.Trust), policy.CheckSize(policy.MaxRoleInline, slices.Collect(maps.Values(r.Inline))...)); err != nil {
		return fmt.Errorf("create role %s: %w", r.Name, err)
	}
	r.ID, r.Created = newID("AROA"), d.now().UTC()
	if r.Path == "" {
		r.Path = "/"
	}
	if r.MaxDuration == 0 {
		r.MaxDuration = time.Hour
	}
	return d.Write(ctx, func(tx *Tx) error {
		if tx.Roles.Taken(r.Name) {
			return fmt.Errorf("create role %s: %w", r.Name, ErrExists)
		}
		tx.Roles.Put(r.Name, r)
		return nil
	})
}

// CreatePolicy adds a managed policy of the account and returns its ARN.
func (d *Directory) CreatePolicy(ctx context.Context, p Policy) (arn string, err error) {
	if !nameForm.MatchString(p.Name) {
		return "", fmt.Errorf("create policy %.64q: not a name", p.Name)
	}
	if err := policy.CheckSize(policy.MaxManaged, p.Document); err != nil {
		return "", fmt.Errorf("create policy %s: %w", p.Name, err)
	}
	if p.Path == "" {
		p.Path = "/"
	}
	p.Created, p.ID = d.now().UTC(), newID("ANPA")
	err = d.Write(ctx, func(tx *Tx) error {
		arn = "arn:aws:iam::" + tx.Account.ID + ":policy" + p.Path + p.Name
		if tx.Policies.Taken(arn) {
			return fmt.Errorf("create policy %s: %w", p.Name, ErrExists)
		}
		tx.Policies.Put(arn, p.complete(arn))
		return nil
	})
	return arn, err
}

// CreateAccessKey makes a key of the user. This is the only time that its
// secret is to be had.
func (d *Directory) CreateAccessKey(ctx context.Context, user string) (Credentials, error) {
	k, secret := d.NewAccessKey(user)
	err := d.Write(ctx, func(tx *Tx) error {
		if _, ok := tx.Users.Get(user); !ok {
			return fmt.Errorf("create access key of user %s: %w", user, ErrNotFound)
		}
		tx.Keys.Put(k.ID, k)
		return nil
	})
	if err != nil {
		return Credentials{}, err
	}
	return Credentials{AccessKeyID: k.ID, SecretAccessKey: secret}, nil
}

// AccessKeys lists the keys of a user, oldest first.
func (d *Directory) AccessKeys(user string) []AccessKey {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out []AccessKey
	for _, k := range d.keys {
		if k.User == user {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b AccessKey) int {
		return 2*a.Created.Compare(b.Created) + strings.Compare(a.ID, b.ID)
	})
	return out
}

// DeleteAccessKey removes a key; it stops working at once.
func (d *Directory) DeleteAccessKey(ctx context.Context, id string) error {
	return d.Write(ctx, func(tx *Tx) error { tx.Keys.Delete(id); return nil })
}

// Authenticate finds whom an access key and a session token stand for, and the
// secret with which the request must be signed. It proves nothing yet: the
// caller has to check the signature. The errors are [ErrUnknownKey],
// [ErrBadToken], [ErrExpired] and [ErrRevoked].
func (d *Directory) Authenticate(_ context.Context, accessKeyID, sessionToken string) (*Principal, Secret, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if sessionToken != "" || strings.HasPrefix(accessKeyID, "ASIA") {
		return d.session(accessKeyID, sessionToken)
	}
	k, ok := d.keys[accessKeyID]
	user := d.users[k.User]
	if !ok || !k.Active || user == nil || d.account.ID == "" {
		return nil, "", ErrUnknownKey
	}
	secret, _, err := d.key.open(useSecret, k.ID, k.Sealed)
	if err != nil {
		return nil, "", fmt.Errorf("access key %s: %w", k.ID, err)
	}
	p := d.userPrincipal(&user.User)
	p.AccessKeyID = k.ID
	return p, Secret(secret), nil
}

// userPrincipal is the user itself. The caller holds the lock.
func (d *Directory) userPrincipal(u *User) *Principal {
	return &Principal{Kind: UserPrincipal, Account: d.account.ID, ARN: d.userARN(u), UserID: u.ID, Name: u.Name, Tags: u.Tags}
}

// Authorize decides whether the principal may do the action to the resource,
// an ARN or "*". The context holds the circumstances of the request; what is
// known of the principal and the time is added to it.
func (d *Directory) Authorize(p *Principal, action, resource string, c policy.Context) policy.Decision {
	if c == nil {
		c = policy.Context{}
	}
	p.context(c)
	d.timeContext(c)
	service, operation, _ := strings.Cut(strings.ToLower(action), ":")
	if why := p.barred(service, operation); why != "" {
		return policy.Refuse("%s", why)
	}
	policies, err := d.policiesFor(p)
	if err != nil {
		return policy.Refuse("%v", err)
	}
	return policy.Evaluate(&policy.Request{Principal: p.asNamed(), Action: action, Resource: resource, Context: c, Policies: policies})
}

// timeContext puts the time.
func (d *Directory) timeContext(c policy.Context) {
	now := d.now().UTC()
	c.Set("aws:CurrentTime", now.Format(time.RFC3339))
	c.Set("aws:EpochTime", fmt.Sprint(now.Unix()))
}

// policiesFor collects the policies of a principal; one that is gone has none.
func (d *Directory) policiesFor(p *Principal) (policy.Policies, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.heldPolicies(p)
}

// heldPolicies is policiesFor for those who hold the lock.
func (d *Directory) heldPolicies(p *Principal) (out policy.Policies, err error) {
	out = d.ownPolicies(p)
	if p.session == nil {
		return out, nil
	}
	for _, text := range p.session.Policies {
		doc, err := policy.Parse(policy.Identity, "session policy", text)
		if err != nil {
			return out, err
		}
		out.Session = append(out.Session, doc)
	}
	for _, arn := range p.session.PolicyARNs {
		doc := d.policies[arn]
		if doc == nil {
			return out, fmt.Errorf("session policy %s: %w", arn, ErrNotFound)
		}
		out.Session = append(out.Session, doc)
	}
	return out, nil
}

// ownPolicies are those of the role or user that the principal stands on.
func (d *Directory) ownPolicies(p *Principal) policy.Policies {
	if p.Kind == RolePrincipal {
		if r := d.roles[p.Name]; r != nil && p.session != nil && r.ID == p.session.RoleID {
			return r.policies
		}
		return policy.Policies{}
	}
	name, id := p.Name, p.UserID
	if p.session != nil {
		name, id = p.session.User, p.session.UserID
	}
	u := d.users[name]
	if u == nil || u.ID != id {
		return policy.Policies{}
	}
	out := u.policies
	if rules := d.account.Passwords; rules != nil && rules.UsersChange && p.Kind == UserPrincipal {
		out.Identity = append(slices.Clip(out.Identity), changesOwnPassword)
	}
	return out
}

// reseal seals the secrets of access keys with the newest sealing key.
func (d *Directory) reseal(ctx context.Context) error {
	for id, k := range d.keys {
		if d.key.current(k.Sealed) {
			continue
		}
		secret, _, err := d.key.open(useSecret, id, k.Sealed)
		if err != nil {
			continue // not to be had any more: nobody can sign with it
		}
		k.Sealed = d.key.seal(useSecret, id, secret)
		if err := d.put(ctx, KindKey, id, k); err != nil {
			return fmt.Errorf("seal access key %s again: %w", id, err)
		}
		d.keys[id] = k
	}
	return nil
}
