package oidc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"rehost/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// An issuer is an identity provider on loopback, over TLS, that signs tokens
// and does whatever the test makes it do.
type issuer struct {
	*httptest.Server
	asked atomic.Int64 // requests that came

	lock      sync.Mutex
	keys      []jose.JSONWebKey // public ones, as published
	discovery func(w http.ResponseWriter, r *http.Request) bool
	jwks      func(w http.ResponseWriter, r *http.Request) bool
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, r *http.Request, instead func(http.ResponseWriter, *http.Request) bool, v any) {
		i.asked.Add(1)
		if instead != nil && instead(w, r) {
			return
		}
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/realm/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		i.lock.Lock()
		defer i.lock.Unlock()
		answer(w, r, i.discovery, map[string]any{"issuer": i.url(), "jwks_uri": i.url() + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "none", "HS256"}})
	})
	mux.HandleFunc("/realm/keys", func(w http.ResponseWriter, r *http.Request) {
		i.lock.Lock()
		defer i.lock.Unlock()
		answer(w, r, i.jwks, jose.JSONWebKeySet{Keys: i.keys})
	})
	i.Server = httptest.NewTLSServer(mux)
	i.Config.ErrorLog = nil
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) url() string { return i.URL + "/realm" }

// provider is the issuer as IAM knows it.
func (i *issuer) provider() identity.Provider {
	sum := sha1.Sum(i.Certificate().Raw)
	return identity.Provider{ARN: "arn:aws:iam::111122223333:oidc-provider/" + strings.TrimPrefix(i.url(), "https://"), URL: i.url(),
		Clients: []string{"rehost", "rehost-cli"}, Thumbprints: []string{strings.ToUpper(hex.EncodeToString(sum[:]))}}
}

// A signer signs tokens with a key of one kid.
type signer struct {
	key any
	alg jose.SignatureAlgorithm
	kid string
}

func (s signer) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.key.(crypto.Signer).Public(), KeyID: s.kid, Algorithm: string(s.alg), Use: "sig"}
}

func (s signer) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signing, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, (&jose.SignerOptions{}).WithHeader("kid", s.kid))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signing.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func rsaSigner(t *testing.T, kid string, bits int) signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, jose.RS256, kid}
}

// A scene is an issuer with two keys, and a verifier with a clock set by hand.
type scene struct {
	*issuer
	*Verifier
	rsa, ec signer
	clock   time.Time
}

func newScene(t *testing.T) *scene {
	t.Helper()
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{issuer: newIssuer(t), rsa: rsaSigner(t, "r1", 2048), ec: signer{ecKey, jose.ES256, "e1"}, clock: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	s.keys = []jose.JSONWebKey{s.rsa.public(), s.ec.public()}
	s.Verifier = New(func() time.Time { return s.clock })
	return s
}

// claims are those of a good token, changed.
func (s *scene) claims(changes map[string]any) map[string]any {
	out := map[string]any{"iss": s.url(), "sub": "repo:acme/app", "aud": "rehost", "iat": s.clock.Unix(), "exp": s.clock.Add(time.Hour).Unix()}
	maps.Copy(out, changes)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

func (s *scene) verify(token string) (identity.WebIdentity, error) {
	return s.Verify(context.Background(), s.provider(), token)
}

func TestVerify(t *testing.T) {
	s := newScene(t)
	for _, key := range []signer{s.rsa, s.ec} {
		got, err := s.verify(key.sign(t, s.claims(map[string]any{"aud": []string{"other", "rehost"}, "azp": "rehost-cli", "amr": []string{"pwd", "otp"},
			"https://aws.amazon.com/source_identity": "alice",
			"https://aws.amazon.com/tags":            map[string]any{"principal_tags": map[string][]string{"team": {"blue"}}, "transitive_tag_keys": []string{"team"}}})))
		if err != nil {
			t.Fatalf("%s: %v", key.alg, err)
		}
		if got.Subject != "repo:acme/app" || got.Audience != "rehost" || got.Client != "rehost-cli" || !slices.Equal(got.Methods, []string{"pwd", "otp"}) ||
			got.SourceIdentity != "alice" || !slices.Equal(got.Tags, []identity.Tag{{Key: "team", Value: "blue"}}) || !slices.Equal(got.Transitive, []string{"team"}) {
			t.Errorf("%s: got %+v", key.alg, got)
		}
	}
	if n := s.asked.Load(); n != 2 {
		t.Errorf("the provider was asked %d times, want once for its configuration and once for its keys", n)
	}
	if iss, err := Issuer(s.rsa.sign(t, s.claims(nil))); err != nil || iss != s.url() {
		t.Errorf("issuer %q, %v", iss, err)
	}
}

// TestVerify_Refused goes through tokens that people and attackers make.
func TestVerify_Refused(t *testing.T) {
	s := newScene(t)
	stranger := rsaSigner(t, "r1", 2048)
	spki, err := x509.MarshalPKIXPublicKey(s.rsa.public().Key)
	if err != nil {
		t.Fatal(err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	encode := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	good := s.rsa.sign(t, s.claims(nil))
	parts := strings.Split(good, ".")
	with := func(key string, value any) string { return s.rsa.sign(t, s.claims(map[string]any{key: value})) }
	for name, test := range map[string]struct {
		token string
		want  error
	}{
		"None":            {encode(map[string]string{"alg": "none"}) + "." + parts[1] + ".", ErrToken},
		"NoneCapital":     {encode(map[string]string{"alg": "None", "kid": "r1"}) + "." + parts[1] + "." + parts[2], ErrToken},
		"PublicKeyAsHMAC": {signer{pemKey, jose.HS256, "r1"}.sign(t, s.claims(nil)), ErrToken},
		"PublicDERAsHMAC": {signer{spki, jose.HS256, "r1"}.sign(t, s.claims(nil)), ErrToken},
		"OtherAlgorithm":  {signer{s.rsa.key, jose.RS512, "r1"}.sign(t, s.claims(nil)), ErrToken},
		"Stranger":        {stranger.sign(t, s.claims(nil)), ErrToken},
		"UnknownKey":      {signer{s.rsa.key, jose.RS256, "r9"}.sign(t, s.claims(nil)), ErrToken},
		"KeyOfOtherKind":  {signer{s.rsa.key, jose.RS256, "e1"}.sign(t, s.claims(nil)), ErrToken},
		"Changed":         {parts[0] + "." + encode(s.claims(map[string]any{"sub": "admin"})) + "." + parts[2], ErrToken},
		"Cut":             {parts[0] + "." + parts[1], ErrToken},
		"Noise":           {"a.b.c", ErrToken},
		"Empty":           {"", ErrToken},
		"Large":           {good + strings.Repeat("A", maxTokenSize), ErrToken},
		"OtherIssuer":     {with("iss", "https://issuer.example.com"), ErrToken},
		"IssuerWithSlash": {with("iss", s.url()+"/"), ErrToken},
		"Expired":         {with("exp", s.clock.Add(-time.Second).Unix()), ErrExpired},
		"NoExpiry":        {with("exp", nil), ErrExpired},
		"NotYet":          {with("nbf", s.clock.Add(maxSkew+time.Second).Unix()), ErrToken},
		"IssuedLater":     {with("iat", s.clock.Add(maxSkew+time.Second).Unix()), ErrRejected},
		"NoIssueTime":     {with("iat", nil), ErrRejected},
		"OtherAudience":   {with("aud", "another"), ErrRejected},
		"NoAudience":      {with("aud", nil), ErrRejected},
		"OtherParty":      {with("azp", "another"), ErrRejected},
		"NoSubject":       {with("sub", nil), ErrRejected},
		"LongSubject":     {with("sub", strings.Repeat("a", 256)), ErrRejected},
		"TagOfTwoValues":  {with("https://aws.amazon.com/tags", map[string]any{"principal_tags": map[string][]string{"a": {"b", "c"}}}), ErrRejected},
		"TagsForm":        {with("https://aws.amazon.com/tags", "x"), ErrRejected},
		"Methods":         {with("amr", 7), ErrRejected},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := s.verify(test.token); !errors.Is(err, test.want) {
				t.Errorf("got %+v, %v, want %v", got, err, test.want)
			}
		})
	}
	for name, token := range map[string]string{
		"TheOneThatTheOthersDifferFrom": good, "AlmostExpired": with("exp", s.clock.Unix()), "SkewedClock": with("iat", s.clock.Add(maxSkew).Unix()),
		"MethodAsString": with("amr", "pwd"), "NoKeyID": signer{s.rsa.key, jose.RS256, ""}.sign(t, s.claims(nil)),
	} {
		if _, err := s.verify(token); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := s.asked.Load(); n > 4 {
		t.Errorf("with %d requests strangers have made us ask the provider", n)
	}
}

// TestVerify_Rotation: a new key is learned when a token comes with it, a
// replaced one of the same id too, and one that was taken away is forgotten.
func TestVerify_Rotation(t *testing.T) {
	s := newScene(t)
	check := func(what string, key signer, want error) {
		t.Helper()
		if _, err := s.verify(key.sign(t, s.claims(nil))); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	publish := func(keys ...signer) {
		s.lock.Lock()
		defer s.lock.Unlock()
		s.keys = nil
		for _, k := range keys {
			s.keys = append(s.keys, k.public())
		}
	}
	old, next, replaced := s.rsa, rsaSigner(t, "r2", 2048), rsaSigner(t, "r1", 2048)
	check("the first key", old, nil)
	publish(old, next)
	check("a new key, right after a fetch", next, ErrToken)
	s.clock = s.clock.Add(fetchPause)
	check("a new key, later", next, nil)
	publish(replaced, next)
	s.clock = s.clock.Add(fetchPause)
	check("another key of the same id", replaced, nil)
	check("the key that had this id", old, ErrToken)
	publish(next)
	check("a key that was taken away, while it is kept", replaced, nil)
	s.clock = s.clock.Add(keyLife)
	check("a key that was taken away, then", replaced, ErrToken)
	check("the key that is left", next, nil)
	s.lock.Lock()
	s.jwks = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }
	s.lock.Unlock()
	check("while its keys are kept", next, nil)
	s.clock = s.clock.Add(keyLife)
	check("an issuer that cannot be asked any more", next, ErrUnreachable)
	s.lock.Lock()
	s.jwks = nil
	s.lock.Unlock()
	s.clock = s.clock.Add(fetchPause)
	check("and again", next, nil)
}

// TestVerify_Hostile is an issuer that wants to be a way into the network, or
// to use us up.
func TestVerify_Hostile(t *testing.T) {
	inside := 0
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside++ }))
	defer elsewhere.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside++ }))
	defer plain.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(elsewhere.URL, "https://"), ":")
	keysAt := func(address string) func(s *scene) {
		return func(s *scene) {
			s.discovery = func(w http.ResponseWriter, _ *http.Request) bool {
				fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, s.url(), address)
				return true
			}
		}
	}
	redirect := func(to string) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, to, http.StatusFound)
			return true
		}
	}
	endless := func(w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(w, `{"keys":[`)
		for range maxAnswer / 64 {
			fmt.Fprint(w, strings.Repeat(" ", 128))
		}
		fmt.Fprint(w, `]}`)
		return true
	}
	for name, test := range map[string]struct {
		do   func(s *scene)
		want error
	}{
		"RedirectsToHTTP":      {func(s *scene) { s.discovery = redirect(plain.URL) }, ErrUnreachable},
		"KeysRedirect":         {func(s *scene) { s.jwks = redirect(elsewhere.URL) }, ErrUnreachable},
		"KeysOverHTTP":         {keysAt(plain.URL + "/keys"), ErrUnreachable},
		"KeysInTheNetwork":     {keysAt("https://localhost:" + port + "/keys"), ErrUnreachable},
		"KeysOfTheCloud":       {keysAt("https://169.254.169.254/latest/meta-data/"), ErrUnreachable},
		"KeysOfTheCloudMapped": {keysAt("https://[::ffff:169.254.169.254]/latest/"), ErrUnreachable},
		"KeysAsFile":           {keysAt("file:///etc/passwd"), ErrUnreachable},
		"KeysWithPassword":     {keysAt("https://a:b@127.0.0.1/"), ErrUnreachable},
		"Endless":              {func(s *scene) { s.jwks = endless }, ErrUnreachable},
		"EndlessConfiguration": {func(s *scene) { s.discovery = endless }, ErrUnreachable},
		"OtherIssuer": {func(s *scene) {
			s.discovery = func(w http.ResponseWriter, _ *http.Request) bool {
				fmt.Fprintf(w, `{"issuer":"https://issuer.example.com","jwks_uri":%q}`, s.url()+"/keys")
				return true
			}
		}, ErrUnreachable},
		"NotJSON": {func(s *scene) {
			s.jwks = func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true }
		}, ErrUnreachable},
		"ManyKeys": {func(s *scene) {
			s.keys = slices.Repeat(s.keys[:1], maxKeys+1)
		}, ErrUnreachable},
		"WeakKey": {func(s *scene) {
			s.rsa = rsaSigner(t, "r1", 1024)
			s.keys = []jose.JSONWebKey{s.rsa.public()}
		}, ErrToken},
		"KeyForEncryption": {func(s *scene) {
			k := s.rsa.public()
			k.Use = "enc"
			s.keys = []jose.JSONWebKey{k}
		}, ErrToken},
		"SymmetricKey": {func(s *scene) {
			s.keys = []jose.JSONWebKey{{Key: []byte("secret of all who read this set.."), KeyID: "r1"}}
		}, ErrToken},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.lock.Lock()
			test.do(s)
			s.lock.Unlock()
			if _, err := s.verify(s.rsa.sign(t, s.claims(nil))); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	if inside > 0 {
		t.Errorf("an issuer has sent us elsewhere %d times", inside)
	}
}

// TestVerify_Slow: whoever asks gives up when the caller does, and strangers
// behind it do not pile up for longer.
func TestVerify_Slow(t *testing.T) {
	s := newScene(t)
	release := make(chan struct{})
	s.jwks = func(http.ResponseWriter, *http.Request) bool { <-release; return false }
	token := s.rsa.sign(t, s.claims(nil))
	first := make(chan error)
	go func() { _, err := s.verify(token); first <- err }()
	for s.asked.Load() < 2 {
		time.Sleep(time.Millisecond) // until the first one holds the turn
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if _, err := s.Verify(ctx, s.provider(), token); !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who went away: got %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the first caller: %v", err)
	}
}

// TestVerify_TLS: without a thumbprint the test's authority is a stranger, and a
// thumbprint of another certificate, or another name, is none.
func TestVerify_TLS(t *testing.T) {
	s := newScene(t)
	token := s.rsa.sign(t, s.claims(nil))
	p := s.provider()
	for name, thumbprints := range map[string][]string{"None": nil, "Another": {strings.Repeat("00", 20)}} {
		p.Thumbprints = thumbprints
		if _, err := s.Verify(context.Background(), p, token); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	p = s.provider()
	p.URL = strings.Replace(p.URL, "127.0.0.1", "localhost", 1) // not on the certificate
	if _, err := s.Verify(context.Background(), p, token); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "x509: certificate is valid for") {
		t.Errorf("another name: got %v", err)
	}
}

func TestReachable(t *testing.T) {
	for address, want := range map[string][2]bool{ // own host, another one
		"93.184.216.34": {true, true}, "2606:2800:220:1::1": {true, true}, "127.0.0.1": {true, false}, "10.1.2.3": {true, false}, "192.168.1.1": {true, false},
		"::1": {true, false}, "fd00:ec2::254": {true, false}, "169.254.169.254": {false, false}, "fe80::1": {false, false}, "0.0.0.0": {false, false},
		"224.0.0.1": {false, false}, "255.255.255.255": {true, false},
	} {
		for i, own := range []bool{true, false} {
			if err := reachable(netip.MustParseAddr(address), own); (err == nil) != want[i] {
				t.Errorf("%s, own host %v: %v", address, own, err)
			}
		}
	}
}

func FuzzIssuer(f *testing.F) {
	f.Add("eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2EifQ.")
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		if iss, err := Issuer(token); (iss == "") != (err != nil) {
			t.Errorf("%q, %v", iss, err)
		}
	})
}
