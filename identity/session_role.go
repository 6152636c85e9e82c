package identity

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"rehost/identity/policy"
)

// An AssumeRole asks for a session of a role.
type AssumeRole struct {
	Role           string        // name or ARN
	Session        string        // name of the session: [\w+=,.@-]{2,64}
	SourceIdentity string        // likewise, or "": then it stays that of the caller
	ExternalID     string        // what the caller and the role's owner have agreed on, or ""
	Duration       time.Duration // 0 is DefaultSession, cut to the role's maximum
	Policies       []string      // session policies: the session may do what these and the role's allow
	PolicyARNs     []string      // managed policies, as session policies
	Tags           []Tag         // of the session
	Transitive     []string      // keys of those tags that go on to the next role of a chain
}

// A Tag is one of a session; a list of them can have a key twice, which is refused.
type Tag struct{ Key, Value string }

var sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)

// AssumeRole starts a session of a role for the caller, whose name the trust
// policy has to hold; c is the circumstances of the request. The caller's own
// policies must allow it, too, unless the trust policy names the caller and not
// only its account. Whoever brings tags or has a source identity needs the
// right to sts:TagSession and sts:SetSourceIdentity in the same way.
// The error is a [*DeniedError] or a [*RequestError].
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
func (d *Directory) AssumeRole(_ context.Context, caller *Principal, a AssumeRole, c policy.Context) (Session, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	claims, err := d.roleClaims(caller, a)
	if err != nil {
		return Session{}, err
	}
	role := d.findRole(a.Role)
	for _, action := range neededFor("sts:AssumeRole", claims) {
		circumstances := d.assumeContext(caller, role, a, c)
		decision := policy.Refuse("there is no such role")
		if why := caller.barred("sts", "assumerole"); why != "" {
			decision = policy.Refuse("%s", why)
		} else if role != nil {
			decision = d.mayAssume(caller, role, action, circumstances)
		}
		if !decision.Allowed {
			return Session{}, &DeniedError{Caller: caller.ARN, Action: action, Resource: d.roleName(a.Role), Decision: decision, Context: circumstances}
		}
	}
	if caller.SourceIdentity != "" && claims.SourceIdentity != caller.SourceIdentity {
		return Session{}, &RequestError{CodeAccessDenied, "The source identity of the calling session is set and cannot be changed"}
	}
	return d.begin(role, claims, a, caller.Kind == RolePrincipal)
}

// AssumeRoleAsService starts a session on behalf of a service, "mgn.amazonaws.com"
// for example, which has authenticated the other side in a way of its own: by
// its client certificate. The role's trust policy must name the service.
// The errors are those of [Directory.AssumeRole].
func (d *Directory) AssumeRoleAsService(_ context.Context, service string, a AssumeRole) (Credentials, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	role := d.findRole(a.Role)
	if role == nil {
		return Credentials{}, fmt.Errorf("assume role %s: %w", a.Role, ErrNotFound)
	}
	claims, err := d.roleClaims(nil, a)
	if err != nil {
		return Credentials{}, fmt.Errorf("assume role %s: %w", a.Role, err)
	}
	if err := d.trusted(policy.Principal{Kind: "Service", Value: service}, role, "sts:AssumeRole", claims, d.assumeContext(nil, role, a, nil)); err != nil {
		return Credentials{}, fmt.Errorf("assume role %s: %w", a.Role, err)
	}
	s, err := d.begin(role, claims, a, false)
	return s.Credentials, err
}

// neededFor lists the actions that must be allowed for a session to begin.
func neededFor(action string, c *claims) []string {
	out := []string{action}
	if len(c.Tags) > 0 {
		out = append(out, "sts:TagSession")
	}
	if c.SourceIdentity != "" {
		out = append(out, "sts:SetSourceIdentity")
	}
	return out
}

// trusted asks the trust policy alone, for principals that have no policies.
func (d *Directory) trusted(p policy.Principal, role *heldRole, action string, claims *claims, c policy.Context) error {
	for _, action := range neededFor(action, claims) {
		if decision := role.trust.Trusts(p, action, c); !decision.Allowed {
			return &DeniedError{Caller: p.Value, Action: action, Resource: d.roleARN(&role.Role), Decision: decision, Context: c}
		}
	}
	return nil
}

// mayAssume asks the trust policy and the caller's own.
func (d *Directory) mayAssume(caller *Principal, role *heldRole, action string, c policy.Context) policy.Decision {
	policies, err := d.heldPolicies(caller)
	if err != nil {
		return policy.Refuse("%v", err)
	}
	policies.Resource = role.trust
	return policy.Evaluate(&policy.Request{Principal: caller.asNamed(), Action: action, Resource: d.roleARN(&role.Role), Context: c, Policies: policies})
}

// findRole finds a role by name or ARN; nil for none. The caller holds the lock.
func (d *Directory) findRole(name string) *heldRole {
	if !strings.HasPrefix(name, "arn:") {
		return d.roles[name]
	}
	role := d.roles[name[strings.LastIndexByte(name, '/')+1:]]
	if role == nil || d.roleARN(&role.Role) != name {
		return nil
	}
	return role
}

// roleName is the ARN of what was asked for, whether it is there or not.
func (d *Directory) roleName(name string) string {
	if role := d.findRole(name); role != nil {
		return d.roleARN(&role.Role)
	}
	return name
}

// assumeContext collects what trust policies can ask about the request.
func (d *Directory) assumeContext(caller *Principal, role *heldRole, a AssumeRole, c policy.Context) policy.Context {
	out := policy.Context{}
	maps.Copy(out, c)
	if caller != nil {
		caller.context(out)
	}
	d.timeContext(out)
	out.Set("sts:RoleSessionName", a.Session)
	if a.ExternalID != "" {
		out.Set("sts:ExternalId", a.ExternalID)
	}
	if a.SourceIdentity != "" {
		out.Set("sts:SourceIdentity", a.SourceIdentity)
	}
	var keys []string
	for _, t := range a.Tags {
		out.Set("aws:RequestTag/"+t.Key, t.Value)
		keys = append(keys, t.Key)
	}
	out.Set("aws:TagKeys", keys...)
	out.Set("sts:TransitiveTagKeys", a.Transitive...)
	if role != nil {
		for key, value := range role.Tags {
			out.Set("aws:ResourceTag/"+key, value)
			out.Set("iam:ResourceTag/"+key, value)
		}
	}
	return out
}

// roleClaims checks what can be checked without the role, and lays what the
// session inherits from the caller's over what is asked for.
func (d *Directory) roleClaims(caller *Principal, a AssumeRole) (*claims, error) {
	if !sessionName.MatchString(a.Session) {
		return nil, validation("session name %.64q: want 2 to 64 of letters, digits and +=,.@_-", a.Session)
	}
	if a.SourceIdentity != "" && !sessionName.MatchString(a.SourceIdentity) {
		return nil, validation("source identity %.64q: want 2 to 64 of letters, digits and +=,.@_-", a.SourceIdentity)
	}
	if a.Duration != 0 && (a.Duration < MinSession || a.Duration > MaxSession) {
		return nil, validation("1 validation error detected: Value at 'durationSeconds' failed to satisfy constraint: Member must have value between %d and %d",
			int(MinSession.Seconds()), int(MaxSession.Seconds()))
	}
	if caller != nil && caller.Kind == RolePrincipal && a.Duration > MaxChainedSession {
		return nil, validation("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	}
	c := &claims{Kind: RolePrincipal, Session: a.Session, SourceIdentity: a.SourceIdentity, Policies: a.Policies, PolicyARNs: a.PolicyARNs}
	var inherited *claims
	if caller != nil {
		c.Origin = caller.origin()
		inherited = caller.session
		if c.SourceIdentity == "" {
			c.SourceIdentity = caller.SourceIdentity
		}
	}
	if err := c.tag(a.Tags, a.Transitive, inherited); err != nil {
		return nil, err
	}
	return c, d.checkSession(c)
}

// begin makes the session, now that it is allowed.
func (d *Directory) begin(role *heldRole, c *claims, a AssumeRole, chained bool) (Session, error) {
	limit := min(role.MaxDuration, MaxSession)
	if a.Duration > limit {
		return Session{}, validation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	if chained {
		limit = min(limit, MaxChainedSession)
	}
	if a.Duration == 0 {
		a.Duration = min(DefaultSession, limit)
	}
	c.Role, c.RoleID = role.Name, role.ID
	return d.startSession(c, a.Duration)
}

// startSession issues the credentials of complete claims.
func (d *Directory) startSession(c *claims, life time.Duration) (Session, error) {
	credentials, err := d.issue(*c, life)
	if err != nil {
		return Session{}, err
	}
	c.Account = d.account.ID
	p := d.principalOf(c)
	return Session{Credentials: credentials, ARN: p.ARN, UserID: p.UserID, SourceIdentity: c.SourceIdentity, PackedSize: c.packedSize()}, nil
}

// Limits of what a session can be narrowed and tagged with.
const (
	maxSessionPolicy  = 2048 // characters of policies and ARNs together
	maxSessionARNs    = 10
	maxSessionTags    = 50
	maxSessionTagKey  = 128
	maxSessionTagText = 256
)

// checkSession checks policies and size of a session that is to begin.
func (d *Directory) checkSession(c *claims) error {
	characters := 0
	for _, text := range slices.Concat(c.Policies, c.PolicyARNs) {
		characters += len([]rune(text))
	}
	if characters > maxSessionPolicy {
		return validation("1 validation error detected: Value at 'policy' failed to satisfy constraint: Member must have length less than or equal to %d", maxSessionPolicy)
	}
	for _, text := range c.Policies {
		if _, err := policy.Parse(policy.Identity, "session policy", text); err != nil {
			return &RequestError{CodeMalformedPolicy, err.Error()}
		}
	}
	if len(c.PolicyARNs) > maxSessionARNs {
		return validation("1 validation error detected: Value at 'policyArns' failed to satisfy constraint: Member must have length less than or equal to %d", maxSessionARNs)
	}
	for _, arn := range c.PolicyARNs {
		if d.policies[arn] == nil {
			return &RequestError{CodeMalformedPolicy, fmt.Sprintf("Policy %.200s does not exist", arn)}
		}
	}
	if size := c.packedSize(); size > 100 {
		return &RequestError{CodePackedTooLarge, fmt.Sprintf("Packed size of session policies and tags is %d%% of what is allowed", size)}
	}
	return nil
}
