package identity

import (
	"errors"
	"fmt"
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
	// ErrRevoked says that the session was revoked, or lost its role, its user or their key.
	ErrRevoked = errors.New("session was revoked")
)

// Session limits, as AWS STS has them.
const (
	MinSession         = 15 * time.Minute
	MaxSession         = 12 * time.Hour // of a role
	MaxChainedSession  = time.Hour      // of a role that was assumed with a role's session
	MaxUserSession     = 36 * time.Hour // of GetSessionToken and GetFederationToken
	DefaultSession     = time.Hour      // of a role
	DefaultUserSession = 12 * time.Hour
)

// A Session is what STS answers about one that has begun.
type Session struct {
	Credentials
	ARN            string
	UserID         string
	SourceIdentity string
	PackedSize     int // of policies and tags, in percent of what is allowed
}

// Codes of a [RequestError], as STS and IAM have them.
const (
	CodeValidation      = "ValidationError"
	CodeMalformedPolicy = "MalformedPolicyDocument"
	CodePackedTooLarge  = "PackedPolicyTooLarge"
	CodeAccessDenied    = "AccessDenied"
	CodePasswordPolicy  = "PasswordPolicyViolation"
)

// A RequestError says what is wrong with what was asked for.
type RequestError struct{ Code, Message string }

func (e *RequestError) Error() string { return e.Code + ": " + e.Message }

func validation(format string, args ...any) error {
	return &RequestError{CodeValidation, fmt.Sprintf(format, args...)}
}

// A DeniedError says that policies do not allow the caller something.
type DeniedError struct {
	Caller, Action, Resource string
	Decision                 policy.Decision
	Context                  policy.Context
}

// Error says what STS tells the caller, who is not told why.
func (e *DeniedError) Error() string {
	return "User: " + e.Caller + " is not authorized to perform: " + e.Action + " on resource: " + e.Resource
}

// session is the principal of a token. The caller holds the lock.
func (d *Directory) session(accessKeyID, token string) (*Principal, Secret, error) {
	c, err := d.openToken(accessKeyID, token)
	switch {
	case err != nil:
		return nil, "", err
	case !d.now().Before(time.UnixMilli(c.Expires)):
		return nil, "", ErrExpired
	case c.Account != d.account.ID || d.ended(c):
		return nil, "", ErrRevoked
	}
	p := d.principalOf(c)
	if p == nil {
		return nil, "", ErrRevoked
	}
	return p, Secret(c.Secret), nil
}

// principalOf is whom a session stands for; nil when its role or user is gone,
// also when there is another one of the name.
func (d *Directory) principalOf(c *claims) *Principal {
	p := &Principal{
		Kind: c.Kind, Account: c.Account, SourceIdentity: c.SourceIdentity, AccessKeyID: c.AccessKeyID, Tags: c.Tags,
		Issued: time.UnixMilli(c.Issued), Expires: time.UnixMilli(c.Expires), session: c,
	}
	if c.Kind == RolePrincipal {
		role := d.roles[c.Role]
		if role == nil || role.ID != c.RoleID {
			return nil
		}
		p.Name, p.UserID = role.Name, role.ID+":"+c.Session
		p.ARN = "arn:aws:sts::" + c.Account + ":assumed-role/" + role.Name + "/" + c.Session
		p.parent = d.roleARN(&role.Role)
		p.Tags = mergeTags(role.Tags, c.Tags)
		return p
	}
	user := d.users[c.User]
	if user == nil || user.ID != c.UserID {
		return nil
	}
	p.Tags = mergeTags(user.Tags, c.Tags)
	switch c.Kind {
	case UserPrincipal:
		p.Name, p.UserID, p.ARN = user.Name, user.ID, d.userARN(&user.User)
	case FederatedPrincipal:
		p.Name, p.UserID = c.Session, c.Account+":"+c.Session
		p.ARN, p.parent = d.federatedARN(c.Session), d.userARN(&user.User)
	default:
		return nil
	}
	return p
}

func (d *Directory) roleARN(r *Role) string {
	return "arn:aws:iam::" + d.account.ID + ":role" + r.Path + r.Name
}

func (d *Directory) userARN(u *User) string {
	return "arn:aws:iam::" + d.account.ID + ":user" + u.Path + u.Name
}

func (d *Directory) federatedARN(name string) string {
	return "arn:aws:sts::" + d.account.ID + ":federated-user/" + name
}

// barred says why credentials of the principal's kind are never good for an
// action, whatever its policies say; "" when they can be.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_sts-comparison.html
func (p *Principal) barred(service, operation string) string {
	if p.session == nil || operation == "getcalleridentity" && service == "sts" {
		return ""
	}
	cannot := func(yes bool, what string) string {
		if yes {
			return "credentials of " + what + " are never good for this operation"
		}
		return ""
	}
	switch p.Kind {
	case UserPrincipal:
		return cannot(service == "iam" || service == "sts" && operation != "assumerole", "GetSessionToken")
	case FederatedPrincipal:
		return cannot(service == "iam" || service == "sts", "GetFederationToken")
	default: // RolePrincipal
		return cannot(service == "sts" && (operation == "getsessiontoken" || operation == "getfederationtoken"), "an assumed role")
	}
}

// HasAccessKey is whether the key is one of a user.
func (d *Directory) HasAccessKey(id string) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, ok := d.keys[id]
	return ok
}
