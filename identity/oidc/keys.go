package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"rehost/identity"
)

// Keys are fetched when a token comes that no kept key fits, and when the kept
// ones have grown old: a key that a provider takes away is believed no longer
// than keyLife. Strangers can send such tokens as often as they like, so
// between two fetches of one provider there is a pause.
const (
	keyLife    = 10 * time.Minute
	fetchPause = 15 * time.Second
	fetchLimit = 10 * time.Second // for each of the two requests of a fetch
	maxAnswer  = 256 << 10        // bytes of an answer
	maxKeys    = 64
	maxRSABits = 8192 // larger keys cost whoever verifies
	minRSABits = 2048
)

// A source is the keys of one provider.
type source struct {
	provider identity.Provider
	client   *http.Client
	now      func() time.Time
	turn     chan struct{} // who holds the token fetches and may touch the rest

	keys    []jose.JSONWebKey
	fetched time.Time // when the keys were fetched
	tried   time.Time // when they were last asked for
	err     error     // what came of that
}

// source is the one of the provider as it is now: when its clients or
// thumbprints were changed, nothing of before is kept.
func (v *Verifier) source(p identity.Provider) *source {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sources[p.ARN]
	if s == nil || s.provider.URL != p.URL || !s.provider.Created.Equal(p.Created) || !slices.Equal(s.provider.Thumbprints, p.Thumbprints) {
		s = &source{provider: p, client: newClient(p), now: v.now, turn: make(chan struct{}, 1)}
		v.sources[p.ARN] = s
	}
	return s
}

// An attempt is one verification; it remembers when it was the keys that failed.
type attempt struct {
	*source
	failed error
}

var errSignature = errors.New("no key of the provider fits the signature")

// VerifySignature implements [gooidc.KeySet].
func (a *attempt) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
	if err != nil {
		return nil, err
	}
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		a.failed = fmt.Errorf("%w: %w", ErrUnreachable, ctx.Err())
		return nil, a.failed
	}
	if a.now().Sub(a.fetched) < keyLife {
		if payload, ok := a.verify(signed); ok {
			return payload, nil
		}
	}
	if a.now().Sub(a.tried) >= fetchPause {
		a.fetch(ctx)
	}
	if a.err != nil {
		a.failed = a.err
		return nil, a.failed
	}
	if payload, ok := a.verify(signed); ok {
		return payload, nil
	}
	return nil, errSignature
}

func (s *source) verify(signed *jose.JSONWebSignature) ([]byte, bool) {
	id := signed.Signatures[0].Header.KeyID
	for i := range s.keys {
		if k := &s.keys[i]; id == "" || k.KeyID == id {
			if payload, err := signed.Verify(k); err == nil {
				return payload, true
			}
		}
	}
	return nil, false
}

// fetch asks the provider for its keys. When it cannot, those that there were
// are not kept for longer: whoever has taken a key away may be the one who is
// not to be reached.
func (s *source) fetch(ctx context.Context) {
	keys, err := s.ask(ctx)
	s.tried = s.now()
	if s.err = err; err != nil {
		s.err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		return
	}
	s.keys, s.fetched = keys, s.now()
}

func (s *source) ask(ctx context.Context) ([]jose.JSONWebKey, error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), 2*fetchLimit)
	defer stop() // whoever asked first may go away; the others still want the answer
	discovered, err := gooidc.NewProvider(gooidc.ClientContext(ctx, s.client), s.provider.URL)
	if err != nil {
		return nil, fmt.Errorf("discover %s: %.300s", s.provider.URL, err.Error())
	}
	var found struct {
		Keys string `json:"jwks_uri"`
	}
	if err := discovered.Claims(&found); err != nil {
		return nil, fmt.Errorf("discover %s: %w", s.provider.URL, err)
	}
	if u, err := url.Parse(found.Keys); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("discover %s: its jwks_uri is not an https address", s.provider.URL)
	}
	return s.get(ctx, found.Keys)
}

func (s *source) get(ctx context.Context, address string) ([]jose.JSONWebKey, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch keys from %.200s: HTTP %d", address, answer.StatusCode)
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil || len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("fetch keys from %.200s: not a set of at most %d keys", address, maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, text := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(text, &k) == nil && usable(&k) { // a set may have kinds that we do not know
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// usable is whether a key can have signed a token that we take.
func usable(k *jose.JSONWebKey) bool {
	if !k.Valid() || k.Use != "" && k.Use != "sig" {
		return false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSABits && key.N.BitLen() <= maxRSABits
	case *ecdsa.PublicKey:
		return key.Curve == elliptic.P256()
	}
	return false
}
