package identity

import (
	"maps"
	"strings"
	"time"

	"rehost/identity/policy"
)

// A PrincipalKind is what a principal is.
type PrincipalKind string

// The kinds of principal, as the context key aws:PrincipalType has them. A
// session that a user has begun with GetSessionToken is the user.
const (
	UserPrincipal      PrincipalKind = "User"
	RolePrincipal      PrincipalKind = "AssumedRole"
	FederatedPrincipal PrincipalKind = "FederatedUser"
)

// A Principal is who signed a request.
type Principal struct {
	Kind           PrincipalKind
	Account        string
	ARN            string            // arn:aws:iam::…:user/…, arn:aws:sts::…:assumed-role/…/…, …:federated-user/…
	UserID         string            // AIDA…, AROA…:session, account:name
	Name           string            // of the user, the role or the federated user
	SourceIdentity string            // of the session: the source server's id, for an agent
	AccessKeyID    string            // that signed
	Tags           map[string]string // of the user or role, replaced by those of the session
	Issued         time.Time         // start of the session; zero of a user's key
	Expires        time.Time         // end of the session; zero of a user's key

	parent  string  // ARN of the role of a session, or of the user of a federated one
	session *claims // nil of a user's key
}

// Temporary is whether the principal's credentials expire.
func (p *Principal) Temporary() bool { return !p.Expires.IsZero() }

// RoleARN is the role that a session is of; "" of a user.
func (p *Principal) RoleARN() string {
	if p.Kind != RolePrincipal {
		return ""
	}
	return p.parent
}

// OfService is whether it is an agent or a replication server: a session of one
// of their roles.
func (p *Principal) OfService() bool {
	return p.Kind == RolePrincipal && (p.Name == AgentRole || p.Name == ReplicationServerRole)
}

// asNamed is the principal as policies of resources may name it.
func (p *Principal) asNamed() policy.Principal {
	return policy.Principal{Kind: "AWS", Value: p.ARN, Parent: p.parent, ID: p.UserID}
}

// origin is the access key of a user that it all began with, or "".
func (p *Principal) origin() string {
	if p.session != nil {
		return p.session.Origin
	}
	return p.AccessKeyID
}

// context puts what is known of the principal. What was there under the names
// of such keys is a word of the caller and goes.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html
func (p *Principal) context(c policy.Context) {
	for key := range c {
		if key == "aws:username" || key == "aws:sourceidentity" || key == "aws:tokenissuetime" || key == "aws:federatedprovider" ||
			key == "aws:multifactorauthpresent" || strings.HasPrefix(key, "aws:principal") {
			delete(c, key)
		}
	}
	c.Set("aws:PrincipalArn", p.ARN)
	if p.Kind == RolePrincipal {
		c.Set("aws:PrincipalArn", p.parent)
	}
	c.Set("aws:PrincipalAccount", p.Account)
	c.Set("aws:PrincipalType", string(p.Kind))
	c.Set("aws:userid", p.UserID)
	if p.Kind == UserPrincipal {
		c.Set("aws:username", p.Name)
	}
	if p.SourceIdentity != "" {
		c.Set("aws:SourceIdentity", p.SourceIdentity)
	}
	if p.Temporary() {
		c.Set("aws:TokenIssueTime", p.Issued.UTC().Format(time.RFC3339))
		c.Set("aws:MultiFactorAuthPresent", "false")
	}
	for key, value := range p.Tags {
		c.Set("aws:PrincipalTag/"+key, value)
	}
	if p.session != nil && p.session.Web != nil {
		p.session.Web.context(c)
	}
}

// mergeTags lays those of a session over those of its role or user. Keys are
// compared without case.
func mergeTags(own, session map[string]string) map[string]string {
	if len(session) == 0 {
		return own
	}
	out := maps.Clone(session)
	for key, value := range own {
		if !taken(session, key) {
			out[key] = value
		}
	}
	return out
}
