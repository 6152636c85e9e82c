package identity

import (
	"context"
	"regexp"
	"time"

	"rehost/identity/policy"
)

// GetSessionToken starts a session of the user who calls with a key of their
// own. It can do what the user can, except for IAM and most of STS. A life of 0
// is DefaultUserSession. Like at AWS nothing has to allow it; here, a Deny still
// counts. The error is a [*DeniedError] or a [*RequestError].
// https://docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html
func (d *Directory) GetSessionToken(_ context.Context, caller *Principal, life time.Duration, c policy.Context) (Session, error) {
	if err := d.userCalls(caller, "GetSessionToken", &life); err != nil {
		return Session{}, err
	}
	if decision := d.Authorize(caller, "sts:GetSessionToken", "*", c); decision.Explicit {
		return Session{}, &DeniedError{Caller: caller.ARN, Action: "sts:GetSessionToken", Resource: "*", Decision: decision, Context: c}
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.startUserSession(&claims{Kind: UserPrincipal}, caller, life)
}

// A Federation asks for a session of somebody whom the caller vouches for.
type Federation struct {
	Name       string        // [\w+=,.@-]{2,32}
	Duration   time.Duration // 0 is DefaultUserSession
	Policies   []string      // without any, the session may do nothing
	PolicyARNs []string
	Tags       []Tag
}

var federatedName = regexp.MustCompile(`^[\w+=,.@-]{2,32}$`)

// GetFederationToken starts a session of a name that the caller, a user with a
// key of their own, has given to somebody. It can do what both the user's
// policies and those of the session allow. The error is a [*DeniedError] or a
// [*RequestError].
// https://docs.aws.amazon.com/STS/latest/APIReference/API_GetFederationToken.html
func (d *Directory) GetFederationToken(_ context.Context, caller *Principal, f Federation, c policy.Context) (Session, error) {
	if !federatedName.MatchString(f.Name) {
		return Session{}, validation("name %.64q: want 2 to 32 of letters, digits and +=,.@_-", f.Name)
	}
	if err := d.userCalls(caller, "GetFederationToken", &f.Duration); err != nil {
		return Session{}, err
	}
	if c == nil {
		c = policy.Context{}
	}
	var keys []string
	for _, t := range f.Tags {
		c.Set("aws:RequestTag/"+t.Key, t.Value)
		keys = append(keys, t.Key)
	}
	c.Set("aws:TagKeys", keys...)
	claims := &claims{Kind: FederatedPrincipal, Session: f.Name, Policies: f.Policies, PolicyARNs: f.PolicyARNs}
	if err := claims.tag(f.Tags, nil, nil); err != nil {
		return Session{}, err
	}
	arn := "arn:aws:sts::" + caller.Account + ":federated-user/" + f.Name
	for _, action := range neededFor("sts:GetFederationToken", claims) {
		if decision := d.Authorize(caller, action, arn, c); !decision.Allowed {
			return Session{}, &DeniedError{Caller: caller.ARN, Action: action, Resource: arn, Decision: decision, Context: c}
		}
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.checkSession(claims); err != nil {
		return Session{}, err
	}
	return d.startUserSession(claims, caller, f.Duration)
}

// userCalls checks that it is a user with a key of their own who calls, and
// for how long.
func (d *Directory) userCalls(caller *Principal, operation string, life *time.Duration) error {
	if caller.Kind != UserPrincipal || caller.Temporary() {
		return &RequestError{CodeAccessDenied, "Cannot call " + operation + " with session credentials"}
	}
	if *life == 0 {
		*life = DefaultUserSession
	}
	if *life < MinSession || *life > MaxUserSession {
		return validation("1 validation error detected: Value at 'durationSeconds' failed to satisfy constraint: Member must have value between %d and %d",
			int(MinSession.Seconds()), int(MaxUserSession.Seconds()))
	}
	return nil
}

// startUserSession makes a session that stands on the caller's user and key.
func (d *Directory) startUserSession(c *claims, caller *Principal, life time.Duration) (Session, error) {
	user := d.users[caller.Name]
	if user == nil || user.ID != caller.UserID {
		return Session{}, ErrUnknownKey // deleted meanwhile
	}
	c.User, c.UserID, c.Origin = user.Name, user.ID, caller.AccessKeyID
	return d.startSession(c, life)
}
