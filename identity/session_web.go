package identity

import (
	"context"
	"maps"
	"time"

	"rehost/identity/policy"
)

// A WebIdentity is what a verified token of an identity provider says.
type WebIdentity struct {
	Provider       string // ARN
	Subject        string
	Audience       string   // the one of the provider's clients that the token is for
	Client         string   // azp: the one that it was issued to, or ""
	Methods        []string // amr: how the person was authenticated
	SourceIdentity string
	Tags           []Tag
	Transitive     []string
	Expires        time.Time
}

// context puts what policies can ask, as long as the session lives.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_iam-condition-keys.html
func (w *webClaims) context(c policy.Context) {
	at := issuer(w.Provider) + ":"
	c.Set("aws:FederatedProvider", w.Provider)
	c.Set(at+"sub", w.Subject)
	c.Set(at+"aud", w.Audience)
	if w.Client != "" { // then AWS calls the client the audience
		c.Set(at+"aud", w.Client)
		c.Set(at+"oaud", w.Audience)
	}
}

// AssumeRoleWithWebIdentity starts a session for whom a verified token names.
// The trust policy alone decides, since there is no other principal. Tags and
// source identity are those of the token. The error is a [*DeniedError] or a
// [*RequestError].
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
func (d *Directory) AssumeRoleWithWebIdentity(_ context.Context, w WebIdentity, a AssumeRole, c policy.Context) (Session, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	a.SourceIdentity, a.Tags, a.Transitive = w.SourceIdentity, w.Tags, w.Transitive
	claims, err := d.roleClaims(nil, a)
	if err != nil {
		return Session{}, err
	}
	claims.Web = &webClaims{Provider: w.Provider, Subject: w.Subject, Audience: w.Audience, Client: w.Client}
	role := d.findRole(a.Role)
	const action = "sts:AssumeRoleWithWebIdentity"
	if role == nil || d.providers[w.Provider] == nil {
		return Session{}, &DeniedError{Caller: w.Subject, Action: action, Resource: a.Role, Decision: policy.Refuse("there is no such role or provider"), Context: c}
	}
	circumstances := policy.Context{}
	maps.Copy(circumstances, c)
	claims.Web.context(circumstances)
	circumstances.Set(issuer(w.Provider)+":amr", w.Methods...)
	circumstances = d.assumeContext(nil, role, a, circumstances)
	if err := d.trusted(policy.Principal{Kind: "Federated", Value: w.Provider}, role, action, claims, circumstances); err != nil {
		return Session{}, err
	}
	return d.begin(role, claims, a, false)
}
