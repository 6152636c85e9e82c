package oidc

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"

	"rehost/identity"
)

// Why a token is not taken.
var (
	// ErrToken says that it is malformed, or not signed by the provider.
	ErrToken = errors.New("the token is not valid")
	// ErrExpired says that its time is over.
	ErrExpired = errors.New("the token is expired")
	// ErrRejected says that its claims are not for here.
	ErrRejected = errors.New("the token's claims are refused")
	// ErrUnreachable says that the provider's keys could not be had.
	ErrUnreachable = errors.New("the provider cannot be asked for its keys")
)

const (
	maxTokenSize = 20000           // bytes, as STS has it
	maxSkew      = 5 * time.Minute // of the provider's clock
	maxClaim     = 255             // characters of subject, audience and client
)

// algorithms are the only ones taken. Whatever a provider or token names besides
// is refused, above all "none" and those whose key is the same on both sides.
var algorithms = []string{gooidc.RS256, gooidc.ES256}

// A Verifier verifies tokens and keeps the keys of their providers. It is safe
// for concurrent use. There is nothing to close.
type Verifier struct {
	now func() time.Time

	mu      sync.Mutex
	sources map[string]*source // by ARN
}

// New makes a verifier; now nil is time.Now.
func New(now func() time.Time) *Verifier {
	if now == nil {
		now = time.Now
	}
	return &Verifier{now: now, sources: map[string]*source{}}
}

// Issuer reads who a token says it is from, which proves nothing. It is for
// finding the provider to verify the token with. The error wraps [ErrToken].
func Issuer(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(token) > maxTokenSize || len(parts) != 3 {
		return "", fmt.Errorf("%w: not a signed JWT", ErrToken)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c struct {
		Issuer string `json:"iss"`
	}
	if err != nil || json.Unmarshal(text, &c) != nil || c.Issuer == "" {
		return "", fmt.Errorf("%w: it names no issuer", ErrToken)
	}
	return c.Issuer, nil
}

// claims are those of a token that matter here.
type claims struct {
	Party          string          `json:"azp"`
	Methods        json.RawMessage `json:"amr"`
	SourceIdentity string          `json:"https://aws.amazon.com/source_identity"`
	Tags           struct {
		Principal  map[string][]string `json:"principal_tags"`
		Transitive []string            `json:"transitive_tag_keys"`
	} `json:"https://aws.amazon.com/tags"`
}

// Verify checks a token of the provider: signature, issuer, times, and that it
// is for one of the provider's clients, and was issued to one if it says to
// whom. The error wraps one of the above.
func (v *Verifier) Verify(ctx context.Context, p identity.Provider, token string) (identity.WebIdentity, error) {
	if len(token) > maxTokenSize {
		return identity.WebIdentity{}, fmt.Errorf("%w: larger than %d bytes", ErrToken, maxTokenSize)
	}
	keys := &attempt{source: v.source(p)}
	verified, err := gooidc.NewVerifier(p.URL, keys, &gooidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: algorithms, Now: v.now}).Verify(ctx, token)
	if expired := (*gooidc.TokenExpiredError)(nil); errors.As(err, &expired) {
		return identity.WebIdentity{}, fmt.Errorf("%w: its time was over at %s", ErrExpired, expired.Expiry.UTC().Format(time.RFC3339))
	}
	if keys.failed != nil {
		return identity.WebIdentity{}, keys.failed
	}
	if err != nil {
		return identity.WebIdentity{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	var c claims
	if err := verified.Claims(&c); err != nil {
		return identity.WebIdentity{}, fmt.Errorf("%w: its claims are not of the form that they should have", ErrRejected)
	}
	return v.accept(p, verified, &c)
}

// accept turns verified claims into an identity.
func (v *Verifier) accept(p identity.Provider, t *gooidc.IDToken, c *claims) (out identity.WebIdentity, err error) {
	rejected := func(format string, args ...any) (identity.WebIdentity, error) {
		return identity.WebIdentity{}, fmt.Errorf("%w: %s", ErrRejected, fmt.Sprintf(format, args...))
	}
	at := slices.IndexFunc(t.Audience, func(a string) bool { return slices.Contains(p.Clients, a) })
	switch {
	case t.Subject == "" || len(t.Subject) > maxClaim:
		return rejected("it has no subject, or a long one")
	case t.IssuedAt.IsZero() || t.IssuedAt.After(v.now().Add(maxSkew)):
		return rejected("it says nothing of when it was issued, or a time to come")
	case at < 0:
		return rejected("it is not for a client id of the provider")
	case c.Party != "" && !slices.Contains(p.Clients, c.Party):
		return rejected("it was issued to a client that is not one of the provider's here")
	}
	out = identity.WebIdentity{Provider: p.ARN, Subject: t.Subject, Audience: t.Audience[at], Client: c.Party,
		SourceIdentity: c.SourceIdentity, Transitive: c.Tags.Transitive, Expires: t.Expiry}
	if out.Methods, err = methods(c.Methods); err != nil {
		return rejected("amr is neither a string nor a list of strings")
	}
	for key, values := range c.Tags.Principal {
		if len(values) != 1 {
			return rejected("a principal tag must have one value")
		}
		out.Tags = append(out.Tags, identity.Tag{Key: key, Value: values[0]})
	}
	return out, nil
}

// methods reads amr, which some providers write as one string.
func methods(text json.RawMessage) (list []string, err error) {
	if len(text) == 0 || string(text) == "null" {
		return nil, nil
	}
	if text[0] == '"' {
		list = make([]string, 1)
		return list, json.Unmarshal(text, &list[0])
	}
	return list, json.Unmarshal(text, &list)
}
