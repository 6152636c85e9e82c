package identity

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"rehost/identity/policy"
)

// Why credentials are refused.
var (
	// ErrUnknownKey says that no such access key is active.
	ErrUnknownKey = errors.New("access key is not known")
	// ErrBadToken says that the session token is missing, not ours, or of another key.
	ErrBadToken = errors.New("session token is not valid")
	// ErrExpired says that the session has ended.
	ErrExpired = errors.New("session has expired")
	// ErrRevoked says that the session was revoked, or lost its role.
	ErrRevoked = errors.New("session was revoked")
)

// A TrustError says that a role's trust policy does not name the caller.
type TrustError struct{ Role, Caller string }

func (e *TrustError) Error() string {
	return fmt.Sprintf("role %s does not trust %s", e.Role, e.Caller)
}

// Session limits, as AWS STS has them.
const (
	MinSession     = 15 * time.Minute
	MaxSession     = 12 * time.Hour
	DefaultSession = time.Hour
)

// Credentials are an access key with its secret, and for a session its token.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey Secret
	SessionToken    Secret
	Expires         time.Time // zero: do not expire
}

// claims is what a session token holds, sealed.
// docs/format/session-token.md
type claims struct {
	AccessKeyID    string            `json:"k"`
	Secret         []byte            `json:"x"` // as text; base64 in JSON
	Account        string            `json:"a"`
	Role           string            `json:"r"`
	RoleID         string            `json:"i"` // a role of the same name made later is another
	Session        string            `json:"s"`
	SourceIdentity string            `json:"o,omitempty"`
	Issued         int64             `json:"b"` // milliseconds since 1970
	Expires        int64             `json:"e"` // milliseconds since 1970
	Policies       []string          `json:"p,omitempty"`
	Tags           map[string]string `json:"t,omitempty"`
}

const tokenUse = "session token"

// An AssumeRole asks for a session of a role.
type AssumeRole struct {
	Role           string
	Session        string        // name of the session: [\w+=,.@-]{2,64}
	SourceIdentity string        // likewise, or ""
	Duration       time.Duration // 0 is DefaultSession, cut to the role's maximum
	Policies       []string      // session policies: the session may do what these and the role's allow
	Tags           map[string]string
}

var sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)

func (a *AssumeRole) validate(role *Role) error {
	if !sessionName.MatchString(a.Session) {
		return fmt.Errorf("session name %.64q: want 2 to 64 of letters, digits and +=,.@_-", a.Session)
	}
	if a.SourceIdentity != "" && !sessionName.MatchString(a.SourceIdentity) {
		return fmt.Errorf("source identity %.64q: want 2 to 64 of letters, digits and +=,.@_-", a.SourceIdentity)
	}
	limit := min(role.MaxDuration, MaxSession)
	if a.Duration == 0 {
		a.Duration = min(DefaultSession, limit)
	}
	if a.Duration < MinSession || a.Duration > limit {
		return fmt.Errorf("session of %v: want %v to %v", a.Duration, MinSession, limit)
	}
	for _, text := range a.Policies {
		if _, err := policy.Parse(policy.Identity, "session policy", text); err != nil {
			return err
		}
	}
	return nil
}

// AssumeRoleAsService starts a session on behalf of a service, "mgn.amazonaws.com"
// for example, which has authenticated the other side in a way of its own: by
// its client certificate. The role's trust policy must name the service.
// The error is a [*TrustError] when it does not.
func (d *Directory) AssumeRoleAsService(_ context.Context, service string, a AssumeRole) (Credentials, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	role := d.roles[a.Role]
	if role == nil {
		return Credentials{}, fmt.Errorf("assume role %s: %w", a.Role, ErrNotFound)
	}
	if err := a.validate(&role.Role); err != nil {
		return Credentials{}, fmt.Errorf("assume role %s: %w", a.Role, err)
	}
	if !role.trustsService(service, a) {
		return Credentials{}, &TrustError{Role: a.Role, Caller: service}
	}
	return d.issue(&role.Role, a)
}

// trustsService is whether the role's trust policy allows the service to assume it.
func (r *heldRole) trustsService(service string, a AssumeRole) bool {
	c := policy.Context{}
	c.Set("sts:RoleSessionName", a.Session)
	if a.SourceIdentity != "" {
		c.Set("sts:SourceIdentity", a.SourceIdentity)
	}
	return r.trust.Trusts(policy.Principal{Kind: "Service", Value: service}, "sts:AssumeRole", c).Allowed
}

// issue makes the credentials of a session.
func (d *Directory) issue(role *Role, a AssumeRole) (Credentials, error) {
	now := d.now()
	out := Credentials{
		AccessKeyID:     newID("ASIA"),
		SecretAccessKey: newSecret(),
		Expires:         now.Add(a.Duration).Truncate(time.Second),
	}
	text, err := json.Marshal(claims{
		AccessKeyID: out.AccessKeyID, Secret: []byte(out.SecretAccessKey),
		Account: d.account.ID, Role: role.Name, RoleID: role.ID,
		Session: a.Session, SourceIdentity: a.SourceIdentity,
		Issued: now.UnixMilli(), Expires: out.Expires.UnixMilli(),
		Policies: a.Policies, Tags: a.Tags,
	})
	if err != nil {
		return Credentials{}, err
	}
	sealed := d.key.seal(d.key.tokens, tokenUse, text)
	out.SessionToken = Secret(base64.StdEncoding.EncodeToString(sealed))
	return out, nil
}

// maxToken bounds what is decoded of a stranger's token, in bytes of base64.
const maxToken = 16 << 10

// openToken reads a session token that goes with the access key.
func (d *Directory) openToken(accessKeyID, token string) (*claims, error) {
	if len(token) > maxToken {
		return nil, ErrBadToken
	}
	sealed, err := base64.StdEncoding.Strict().DecodeString(token)
	if err != nil {
		return nil, ErrBadToken
	}
	text, err := d.key.open(d.key.tokens, tokenUse, sealed)
	if err != nil {
		return nil, ErrBadToken
	}
	c := new(claims)
	if err := json.Unmarshal(text, c); err != nil || c.AccessKeyID != accessKeyID {
		return nil, ErrBadToken
	}
	return c, nil
}

// session is the principal of a token. The caller holds the lock.
func (d *Directory) session(accessKeyID, token string) (*Principal, Secret, error) {
	c, err := d.openToken(accessKeyID, token)
	if err != nil {
		return nil, "", err
	}
	issued, expires := time.UnixMilli(c.Issued), time.UnixMilli(c.Expires)
	role := d.roles[c.Role]
	switch {
	case !d.now().Before(expires):
		return nil, "", ErrExpired
	case role == nil || role.ID != c.RoleID || c.Account != d.account.ID,
		d.revoked("key", accessKeyID, issued),
		d.revoked("role", c.Role, issued),
		c.SourceIdentity != "" && d.revoked("source", c.SourceIdentity, issued):
		return nil, "", ErrRevoked
	}
	return &Principal{
		Kind:            RolePrincipal,
		Account:         c.Account,
		ARN:             "arn:aws:sts::" + c.Account + ":assumed-role/" + c.Role + "/" + c.Session,
		UserID:          c.RoleID + ":" + c.Session,
		Name:            c.Role,
		SourceIdentity:  c.SourceIdentity,
		AccessKeyID:     accessKeyID,
		Tags:            c.Tags,
		Issued:          issued,
		Expires:         expires,
		role:            "arn:aws:iam::" + c.Account + ":role" + role.Path + role.Name,
		sessionPolicies: c.Policies,
	}, Secret(c.Secret), nil
}

func (d *Directory) revoked(what, name string, issued time.Time) bool {
	r, ok := d.revocations[what+"/"+name]
	return ok && !issued.After(r.NotAfter)
}

// RevokeSource ends all sessions with the source identity, such as the id of a
// source server, that began until now.
func (d *Directory) RevokeSource(ctx context.Context, sourceIdentity string) error {
	return d.revoke(ctx, "source/"+sourceIdentity)
}

// RevokeRole ends all sessions of the role that began until now.
func (d *Directory) RevokeRole(ctx context.Context, role string) error {
	return d.revoke(ctx, "role/"+role)
}

// RevokeSession ends the session with the temporary access key.
func (d *Directory) RevokeSession(ctx context.Context, accessKeyID string) error {
	return d.revoke(ctx, "key/"+accessKeyID)
}

func (d *Directory) revoke(ctx context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := revocation{NotAfter: d.now()}
	if err := d.put(ctx, KindRevocation, name, r); err != nil {
		return fmt.Errorf("revoke %s: %w", name, err)
	}
	d.revocations[name] = r
	return nil
}

const (
	idLetters     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	secretLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
)

// newID makes an identifier of 20 characters: the prefix and 80 random bits.
func newID(prefix string) string { return prefix + random(16, idLetters) }

// newSecret makes a secret access key of 40 characters, 240 random bits.
func newSecret() Secret { return Secret(random(40, secretLetters)) }

// random draws from an alphabet whose size divides 256, so that no letter is
// likelier than another.
func random(n int, letters string) string {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}
