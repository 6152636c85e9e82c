package identity

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/identity/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a directory with a clock that is set by hand.
type world struct {
	*Directory
	store Store
	key   *SealingKey
	admin Credentials
	clock time.Time
}

func newWorld(t testing.TB) *world {
	t.Helper()
	key, err := NewSealingKey(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{store: NewMemoryStore(), key: key, clock: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	w.open(t)
	if w.admin, err = w.Bootstrap(context.Background()); err != nil {
		t.Fatal(err)
	}
	return w
}

// open starts the directory from its store, as after a restart.
func (w *world) open(t testing.TB) {
	t.Helper()
	var err error
	w.Directory, err = Open(context.Background(), Options{Store: w.store, Key: w.key, Now: func() time.Time { return w.clock }})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) agentSession(t testing.TB, id string) Credentials {
	t.Helper()
	c, err := w.AssumeRoleAsService(context.Background(), ServiceName, AssumeRole{Role: AgentRole, Session: id, SourceIdentity: id})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) authenticate(c Credentials) (*Principal, error) {
	p, secret, err := w.Authenticate(context.Background(), c.AccessKeyID, string(c.SessionToken))
	if err == nil && secret != c.SecretAccessKey {
		err = errors.New("another secret")
	}
	return p, err
}

func TestDirectory_Bootstrap(t *testing.T) {
	w := newWorld(t)
	if !regexp.MustCompile(`^[1-9][0-9]{11}$`).MatchString(w.Account().ID) {
		t.Errorf("account %q", w.Account().ID)
	}
	if again, err := w.Bootstrap(context.Background()); err != nil || again != (Credentials{}) {
		t.Errorf("a second bootstrap made %v, %v", again, err)
	}
	w.open(t)
	p, err := w.authenticate(w.admin)
	if err != nil {
		t.Fatal(err)
	}
	if want := "arn:aws:iam::" + w.Account().ID + ":user/admin"; p.ARN != want || p.Temporary() {
		t.Errorf("got %+v, want %s", p, want)
	}
	own := strings.Replace(server, "111122223333", w.Account().ID, 1)
	if d := w.Authorize(p, "mgn:StartTest", own, nil); !d.Allowed || !strings.Contains(d.Reason(), "AdministratorAccess") {
		t.Errorf("got %+v", d)
	}
	if d := w.Authorize(p, "mgn:StartTest", server, nil); d.Allowed {
		t.Errorf("an administrator of another account: got %+v", d)
	}
}

// A failingStore stops writing after some writes, as a full disk does.
type failingStore struct {
	Store
	left int
}

func (f *failingStore) Put(ctx context.Context, kind Kind, name string, value []byte) error {
	if f.left--; f.left < 0 {
		return errors.New("disk full")
	}
	return f.Store.Put(ctx, kind, name, value)
}

func (f *failingStore) Apply(ctx context.Context, changes []Change) error {
	if f.left--; f.left < 0 {
		return errors.New("disk full")
	}
	return f.Store.Apply(ctx, changes)
}

// TestDirectory_BootstrapTorn stops the first start after each of its writes;
// the next start finishes it, with one working key.
func TestDirectory_BootstrapTorn(t *testing.T) {
	for left := 0; ; left++ {
		w := newWorld(t)
		memory := NewMemoryStore()
		w.store = &failingStore{memory, left}
		w.open(t)
		_, err := w.Bootstrap(context.Background())
		w.store = memory
		if err == nil {
			if left < 4 {
				t.Errorf("bootstrap took %d writes", left)
			}
			return
		}
		w.open(t)
		if w.admin, err = w.Bootstrap(context.Background()); err != nil || w.admin.AccessKeyID == "" {
			t.Fatalf("after %d writes: %v", left, err)
		}
		if _, err := w.authenticate(w.admin); err != nil || len(w.AccessKeys(AdminUser)) != 1 {
			t.Errorf("after %d writes: %d keys, %v", left, len(w.AccessKeys(AdminUser)), err)
		}
	}
}

func TestDirectory_Session(t *testing.T) {
	w := newWorld(t)
	one, two := w.agentSession(t, "s-00000000000000001"), w.agentSession(t, "s-00000000000000002")
	p, err := w.authenticate(one)
	if err != nil {
		t.Fatal(err)
	}
	if want := "arn:aws:sts::" + w.Account().ID + ":assumed-role/" + AgentRole + "/s-00000000000000001"; p.ARN != want || p.SourceIdentity != "s-00000000000000001" {
		t.Errorf("got %+v", p)
	}
	own := "arn:aws:mgn:eu-west-1:" + w.Account().ID + ":source-server/s-00000000000000001"
	if d := w.Authorize(p, "mgn:GetAgentCommandForMgn", own, nil); !d.Allowed {
		t.Errorf("own server: %+v", d)
	}
	if d := w.Authorize(p, "mgn:GetAgentCommandForMgn", own[:len(own)-1]+"2", nil); d.Allowed {
		t.Errorf("another server: %+v", d)
	}
	// A caller's own word does not replace what the token says.
	forged := policy.Context{}
	forged.Set("aws:SourceIdentity", "s-00000000000000002")
	if d := w.Authorize(p, "mgn:GetAgentCommandForMgn", own[:len(own)-1]+"2", forged); d.Allowed {
		t.Errorf("forged context: %+v", d)
	}

	t.Run("Binding", func(t *testing.T) {
		mixed := one
		mixed.SessionToken = two.SessionToken
		if _, err := w.authenticate(mixed); !errors.Is(err, ErrBadToken) {
			t.Errorf("the token of another key: got %v", err)
		}
		mixed.SessionToken = ""
		if _, err := w.authenticate(mixed); !errors.Is(err, ErrBadToken) {
			t.Errorf("no token: got %v", err)
		}
		admin := w.admin
		admin.SessionToken = one.SessionToken
		if _, err := w.authenticate(admin); !errors.Is(err, ErrBadToken) {
			t.Errorf("a token with a user's key: got %v", err)
		}
	})
	t.Run("Damaged", func(t *testing.T) {
		sealed, err := base64.StdEncoding.DecodeString(string(one.SessionToken))
		if err != nil {
			t.Fatal(err)
		}
		for i := range sealed {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1
			bad := one
			bad.SessionToken = Secret(base64.StdEncoding.EncodeToString(changed))
			if _, err := w.authenticate(bad); !errors.Is(err, ErrBadToken) {
				t.Fatalf("byte %d: got %v", i, err)
			}
		}
		for _, n := range []int{0, 1, sealedHead - 1, sealedHead, len(sealed) - 1} {
			bad := one
			bad.SessionToken = Secret(base64.StdEncoding.EncodeToString(sealed[:n]))
			if _, err := w.authenticate(bad); !errors.Is(err, ErrBadToken) {
				t.Errorf("cut to %d: got %v", n, err)
			}
		}
	})
	t.Run("OtherSealingKey", func(t *testing.T) {
		other := newWorld(t)
		other.key, _ = NewSealingKey(bytes.Repeat([]byte{2}, 32))
		other.open(t)
		if _, err := other.authenticate(one); !errors.Is(err, ErrBadToken) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("Expired", func(t *testing.T) {
		begin := w.clock
		defer func() { w.clock = begin }()
		if one.Expires != begin.Add(time.Hour) {
			t.Errorf("an agent's session ends at %v, begun at %v: want an hour", one.Expires, begin)
		}
		w.clock = one.Expires.Add(-time.Second)
		if _, err := w.authenticate(one); err != nil {
			t.Errorf("just before its end: %v", err)
		}
		w.clock = one.Expires
		if _, err := w.authenticate(one); !errors.Is(err, ErrExpired) {
			t.Errorf("at its end: got %v", err)
		}
	})
}

func TestDirectory_Revoke(t *testing.T) {
	for name, revoke := range map[string]func(w *world, c Credentials) error{
		"Source": func(w *world, _ Credentials) error {
			return w.RevokeSource(context.Background(), "s-00000000000000001")
		},
		"Role":    func(w *world, _ Credentials) error { return w.RevokeRole(context.Background(), AgentRole) },
		"Session": func(w *world, c Credentials) error { return w.RevokeSession(context.Background(), c.AccessKeyID) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			first, other := w.agentSession(t, "s-00000000000000001"), w.agentSession(t, "s-00000000000000002")
			if err := revoke(w, first); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time after a restart
				if _, err := w.authenticate(first); !errors.Is(err, ErrRevoked) {
					t.Errorf("got %v", err)
				}
				if _, err := w.authenticate(other); name != "Role" && err != nil {
					t.Errorf("another session: %v", err)
				}
				w.open(t)
			}
			w.clock = w.clock.Add(time.Second)
			if _, err := w.authenticate(w.agentSession(t, "s-00000000000000001")); err != nil {
				t.Errorf("a later session: %v", err)
			}
		})
	}
}

func TestDirectory_AssumeRole_Refused(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	for name, a := range map[string]AssumeRole{
		"Role":           {Role: "none", Session: "s-1"},
		"Session":        {Role: AgentRole, Session: "a b"},
		"SourceIdentity": {Role: AgentRole, Session: "s-1", SourceIdentity: "*"},
		"TooLong":        {Role: AgentRole, Session: "s-1", Duration: 13 * time.Hour},
		"TooShort":       {Role: AgentRole, Session: "s-1", Duration: time.Minute},
		"Policy":         {Role: AgentRole, Session: "s-1", Policies: []string{"{}"}},
	} {
		if _, err := w.AssumeRoleAsService(ctx, ServiceName, a); err == nil {
			t.Errorf("%s: a session was given", name)
		}
	}
	_, err := w.AssumeRoleAsService(ctx, "ec2.amazonaws.com", AssumeRole{Role: AgentRole, Session: "s-1"})
	if e := (*DeniedError)(nil); !errors.As(err, &e) {
		t.Errorf("a service that the role does not trust: got %v", err)
	}
}

// TestDirectory_SessionPolicy narrows a session down.
func TestDirectory_SessionPolicy(t *testing.T) {
	w := newWorld(t)
	id := "s-00000000000000001"
	c, err := w.AssumeRoleAsService(context.Background(), ServiceName, AssumeRole{Role: AgentRole, Session: id, SourceIdentity: id,
		Policies: []string{statementOf(`"Effect":"Allow","Action":"mgn:Send*","Resource":"*"`)}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.authenticate(c)
	if err != nil {
		t.Fatal(err)
	}
	own := "arn:aws:mgn:eu-west-1:" + w.Account().ID + ":source-server/" + id
	for action, want := range map[string]bool{"mgn:SendAgentLogsForMgn": true, "mgn:GetAgentCommandForMgn": false, "mgn:SendElse": false} {
		if d := w.Authorize(p, action, own, nil); d.Allowed != want {
			t.Errorf("%s: %+v", action, d)
		}
	}
}

// TestDirectory_Expiring shows the boundary that ends an installation key.
func TestDirectory_Expiring(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	boundary, err := w.CreatePolicy(ctx, Policy{Name: "UntilJune", Document: statementOf(`"Effect":"Allow","Action":"*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"2026-06-02T00:00:00Z"}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.CreateUser(ctx, User{Name: "installer", Attached: []string{ManagedPolicy("AWSApplicationMigrationAgentInstallationPolicy")}, Boundary: boundary}); err != nil {
		t.Fatal(err)
	}
	c, err := w.CreateAccessKey(ctx, "installer")
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.authenticate(c)
	if err != nil {
		t.Fatal(err)
	}
	if d := w.Authorize(p, "mgn:RegisterAgentForMgn", "*", nil); !d.Allowed {
		t.Errorf("in time: %+v", d)
	}
	w.clock = w.clock.Add(24 * time.Hour)
	if d := w.Authorize(p, "mgn:RegisterAgentForMgn", "*", nil); d.Allowed || !strings.Contains(d.Reason(), "permissions boundary") {
		t.Errorf("too late: %+v", d)
	}
}

func TestDirectory_Keys(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	if err := w.CreateUser(ctx, User{Name: "Admin"}); !errors.Is(err, ErrExists) {
		t.Errorf("a name that differs in case: %v", err)
	}
	if err := w.CreateUser(ctx, User{Name: "nobody"}); err != nil {
		t.Fatal(err)
	}
	c, err := w.CreateAccessKey(ctx, "nobody")
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.authenticate(c)
	if err != nil {
		t.Fatal(err)
	}
	if d := w.Authorize(p, "mgn:DescribeJobs", "*", nil); d.Allowed {
		t.Error("a user without policies is allowed something")
	}
	if err := w.DeleteAccessKey(ctx, c.AccessKeyID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.authenticate(c); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a deleted key: got %v", err)
	}
}

// TestDirectory_AtRest looks for secrets in the store, and moves one about.
func TestDirectory_AtRest(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	if err := w.store.All(ctx, func(kind Kind, name string, value []byte) error {
		if bytes.Contains(value, []byte(w.admin.SecretAccessKey)) || bytes.Contains(value, []byte(base64.StdEncoding.EncodeToString([]byte(w.admin.SecretAccessKey)))) {
			t.Errorf("%s %s holds the secret", kind, name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	other, err := w.CreateAccessKey(ctx, AdminUser)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	moved := w.keys[other.AccessKeyID]
	moved.Sealed = w.keys[w.admin.AccessKeyID].Sealed
	w.keys[other.AccessKeyID] = moved
	w.mu.Unlock()
	if _, err := w.authenticate(other); !errors.Is(err, errSealed) {
		t.Errorf("a secret in another key's row: got %v", err)
	}
}

// TestDirectory_OpenRefuses shows that half a policy is none.
func TestDirectory_OpenRefuses(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	if err := w.store.Put(ctx, KindUser, "x", []byte(`{"name":"x","inline":{"p":"{\"Statement\":[{\"Effect\":\"Deny\"}]}"}}`)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(ctx, Options{Store: w.store, Key: w.key})
	if e := (*policy.Error)(nil); !errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}

// TestDirectory_Sizes holds the limits of AWS where documents are taken in.
func TestDirectory_Sizes(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	long := func(n int) string {
		text := statementOf(`"Effect":"Allow","Action":"a:b","Resource":"*","Sid":"%"`)
		return strings.Replace(text, "%", strings.Repeat("x", n-len(text)+1), 1)
	}
	trust := strings.Replace(statementOf(`"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"Service":"%.x"}`), "%", strings.Repeat("x", policy.MaxTrust), 1)
	half := policy.MaxUserInline / 2
	for name, test := range map[string]struct{ fits, exceeds func(name string) error }{
		"Managed": {
			func(name string) error {
				_, err := w.CreatePolicy(ctx, Policy{Name: name, Document: long(policy.MaxManaged)})
				return err
			},
			func(name string) error {
				_, err := w.CreatePolicy(ctx, Policy{Name: name, Document: long(policy.MaxManaged + 1)})
				return err
			},
		},
		"User": {
			func(name string) error {
				return w.CreateUser(ctx, User{Name: name, Inline: map[string]string{"a": long(half), "b": long(half)}})
			},
			func(name string) error {
				return w.CreateUser(ctx, User{Name: name, Inline: map[string]string{"a": long(half), "b": long(half + 1)}})
			},
		},
		"Role": {
			func(name string) error {
				return w.CreateRole(ctx, Role{Name: name, Trust: serviceRoles()[0].Trust, Inline: map[string]string{"a": long(policy.MaxRoleInline)}})
			},
			func(name string) error { return w.CreateRole(ctx, Role{Name: name, Trust: trust}) },
		},
	} {
		if err := test.fits("fits"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if e := (*policy.Error)(nil); !errors.As(test.exceeds("exceeds"), &e) {
			t.Errorf("%s: one character too many was taken", name)
		}
	}
}

func TestSecret_NeverPrints(t *testing.T) {
	secret := Secret("hunter2")
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "c", secret, "all", fmt.Sprintf("%v %+v %#v %s %q %x %d", secret, secret, secret, secret, secret, secret, secret), "in", fmt.Sprintf("%+v", Credentials{SecretAccessKey: secret}))
	if strings.Contains(log.String(), "hunter2") || strings.Contains(log.String(), fmt.Sprintf("%x", "hunter2")) {
		t.Error(log.String())
	}
}

func TestLoadSealingKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	first, err := LoadSealingKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadSealingKey(path)
	if err != nil || again.keys[0].id != first.keys[0].id {
		t.Errorf("read again: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSealingKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: got %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, 31), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSealingKey(path); err == nil {
		t.Error("a short key was accepted")
	}
}

// TestFormat_SessionToken holds the page and the constants together.
func TestFormat_SessionToken(t *testing.T) {
	page, err := os.ReadFile("../docs/format/session-token.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| 0 | 1 | version, see below |",
		fmt.Sprintf("| secret of an access key | the key's id | %d |", uses[useSecret].version),
		fmt.Sprintf("| session token | `%s` | %d; 1 is read |", tokenUse, uses[useToken].version),
		fmt.Sprintf("| authorization message | `%s` | %d |", messageUse, uses[useMessage].version),
		"| 1 | 4 | name of the sealing key |",
		fmt.Sprintf("| 5 | %d | nonce, random |", sealedHead-5),
		fmt.Sprintf("| %d | n + 16 |", sealedHead),
		uses[useSecret].info, uses[useToken].info, uses[useMessage].info, uses[useAuthority].info, "rehost sealing key id",
		fmt.Sprintf("at most %d KiB)", maxToken>>10), fmt.Sprintf("one to eight keys of %d random bytes", sealingKeySize),
		fmt.Sprintf("at most %d KiB when it is expanded", maxInflated>>10), fmt.Sprintf("section 5), at most %d KiB", maxMessage>>10),
		"may take 4,096 bytes", fmt.Sprintf("could live (%d hours)", int(MaxUserSession.Hours())),
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// TestSealingKey_Replaced: a new key comes once, in front, opens what the old one has sealed
// until that is retired, and nobody else can read the file at any time.
func TestSealingKey_Replaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := AddSealingKey(path); err == nil {
		t.Error("a key was added to none")
	}
	old, err := LoadSealingKey(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed := old.seal(useSecret, "x", []byte("plain"))
	for range 2 {
		both, err := AddSealingKey(path)
		if err != nil || len(both.Names()) != 2 || both.Names()[1] != old.Names()[0] {
			t.Fatalf("%v, %v", both, err)
		}
		if _, _, err := both.open(useSecret, "x", sealed); err != nil || both.current(sealed) {
			t.Errorf("what the old key has sealed: %v", err)
		}
		if _, _, err := both.Newest().open(useSecret, "x", sealed); err == nil {
			t.Error("the new key alone opens it")
		}
		if !bytes.Equal(both.AuditKeys()[1], old.AuditKeys()[0]) || len(both.Newest().AuditKeys()) != 1 {
			t.Error("the keys of the audit log are in another order")
		}
	}
	for range 2 {
		if err := RetireSealingKeys(path); err != nil {
			t.Fatal(err)
		}
	}
	left, err := LoadSealingKey(path) // which refuses a file that others can read
	if err != nil || len(left.Names()) != 1 || left.Names()[0] == old.Names()[0] {
		t.Errorf("%v, %v", left, err)
	}
}
