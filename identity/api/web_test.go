package api

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdkcredentials "github.com/aws/aws-sdk-go-v2/credentials"
	sdkiam "github.com/aws/aws-sdk-go-v2/service/iam"
	sdk "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/go-jose/go-jose/v4"
)

// An issuer is an identity provider on loopback, over TLS.
type issuer struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, i.URL, i.URL+"/keys")
		case "/keys":
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) token(t *testing.T, subject string, life time.Duration) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: i.key}, (&jose.SignerOptions{}).WithHeader("kid", "k1"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"iss": i.URL, "sub": subject, "aud": "rehost", "iat": time.Now().Unix(), "exp": time.Now().Add(life).Unix(),
		"https://aws.amazon.com/source_identity": "alice",
		"https://aws.amazon.com/tags":            map[string]any{"principal_tags": map[string][]string{"team": {"blue"}}}})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSTS_WebIdentity sets a provider up through IAM, and has its users assume
// a role without a key of their own.
func TestSTS_WebIdentity(t *testing.T) {
	s := newStage(t)
	i := newIssuer(t)
	ctx := context.Background()
	admin := sdkiam.New(sdkiam.Options{BaseEndpoint: &s.URL, Region: region, HTTPClient: s.http(), RetryMaxAttempts: 1,
		Credentials: sdkcredentials.NewStaticCredentialsProvider(s.admin.AccessKeyID, string(s.admin.SecretAccessKey), "")})
	sum := sha1.Sum(i.Certificate().Raw)
	nobody := s.client(s.user("bare")) // the client signs nothing for this call
	assume := func(role, token string) (*sdk.AssumeRoleWithWebIdentityOutput, error) {
		return nobody.AssumeRoleWithWebIdentity(ctx, &sdk.AssumeRoleWithWebIdentityInput{RoleArn: &role, RoleSessionName: aws.String("build"), WebIdentityToken: &token})
	}
	role := s.arn("role/deploy")
	_, err := assume(role, i.token(t, "repo:acme/app", time.Hour))
	s.wantError(err, "InvalidIdentityToken", "No OpenIDConnect provider found")

	created, err := admin.CreateOpenIDConnectProvider(ctx, &sdkiam.CreateOpenIDConnectProviderInput{Url: &i.URL, ClientIDList: []string{"other"}, ThumbprintList: []string{hex.EncodeToString(sum[:])}})
	s.must(err)
	host := strings.TrimPrefix(i.URL, "https://")
	if want := s.arn("oidc-provider/" + host); *created.OpenIDConnectProviderArn != want {
		t.Errorf("got %s, want %s", *created.OpenIDConnectProviderArn, want)
	}
	_, err = admin.CreateOpenIDConnectProvider(ctx, &sdkiam.CreateOpenIDConnectProviderInput{Url: &i.URL})
	s.wantError(err, "EntityAlreadyExists", "")
	_, err = admin.CreateOpenIDConnectProvider(ctx, &sdkiam.CreateOpenIDConnectProviderInput{Url: aws.String("http://127.0.0.1/")})
	s.wantError(err, "InvalidInput", "https")
	got := s.role("deploy", fmt.Sprintf(`{"Effect":"Allow","Principal":{"Federated":%q},"Action":["sts:AssumeRoleWithWebIdentity","sts:TagSession","sts:SetSourceIdentity"],
		"Condition":{"StringEquals":{"%[2]s:aud":"rehost"},"StringLike":{"%[2]s:sub":"repo:acme/*"}}}`, *created.OpenIDConnectProviderArn, host),
		fmt.Sprintf(`{"Effect":"Allow","Action":"sts:GetAccessKeyInfo","Resource":"*","Condition":{"StringEquals":{"%s:sub":"repo:acme/app","aws:PrincipalTag/team":"blue"}}}`, host))
	if got != role {
		t.Fatal(got)
	}
	_, err = assume(role, i.token(t, "repo:acme/app", time.Hour))
	s.wantError(err, "IDPRejectedClaim", "client id")
	_, err = admin.AddClientIDToOpenIDConnectProvider(ctx, &sdkiam.AddClientIDToOpenIDConnectProviderInput{OpenIDConnectProviderArn: created.OpenIDConnectProviderArn, ClientID: aws.String("rehost")})
	s.must(err)
	out, err := assume(role, i.token(t, "repo:acme/app", time.Hour))
	s.must(err)
	if *out.SubjectFromWebIdentityToken != "repo:acme/app" || *out.Audience != "rehost" || *out.Provider != host || *out.SourceIdentity != "alice" || *out.AssumedRoleUser.Arn != "arn:aws:sts::"+s.dir.Account().ID+":assumed-role/deploy/build" {
		t.Errorf("got %+v", out)
	}
	session := s.client(temporary(out.Credentials))
	_, err = session.GetAccessKeyInfo(ctx, &sdk.GetAccessKeyInfoInput{AccessKeyId: &s.admin.AccessKeyID}) // a policy asks who it was
	s.must(err)
	_, err = assume(role, i.token(t, "repo:evil/app", time.Hour))
	s.wantError(err, "AccessDenied", "sts:AssumeRoleWithWebIdentity")
	_, err = assume(role+"x", i.token(t, "repo:acme/app", time.Hour))
	s.wantError(err, "AccessDenied", "sts:AssumeRoleWithWebIdentity")
	_, err = assume(role, i.token(t, "repo:acme/app", -time.Hour))
	s.wantError(err, "ExpiredTokenException", "expired")
	_, err = assume(role, newIssuerLike(t, i).token(t, "repo:acme/app", time.Hour))
	s.wantError(err, "InvalidIdentityToken", "not signed by its issuer")
	// Its sessions end with the provider.
	_, err = admin.DeleteOpenIDConnectProvider(ctx, &sdkiam.DeleteOpenIDConnectProviderInput{OpenIDConnectProviderArn: created.OpenIDConnectProviderArn})
	s.must(err)
	_, err = session.GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
	s.wantError(err, "InvalidClientTokenId", "")
}

// newIssuerLike says it is the other one, and has another key.
func newIssuerLike(t *testing.T, other *issuer) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{Server: other.Server, key: key}
}

// TestProviders goes through what can be changed.
func TestProviders(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	client := func(c ...string) *sdkiam.Client {
		return sdkiam.New(sdkiam.Options{BaseEndpoint: &s.URL, Region: region, HTTPClient: s.http(), RetryMaxAttempts: 1, Credentials: sdkcredentials.NewStaticCredentialsProvider(c[0], c[1], "")})
	}
	admin := client(s.admin.AccessKeyID, string(s.admin.SecretAccessKey))
	created, err := admin.CreateOpenIDConnectProvider(ctx, &sdkiam.CreateOpenIDConnectProviderInput{Url: aws.String("https://idp.example.com/realm"), ClientIDList: []string{"a"}})
	s.must(err)
	arn := created.OpenIDConnectProviderArn
	thumbprint := strings.Repeat("ab", 20)
	_, err = admin.UpdateOpenIDConnectProviderThumbprint(ctx, &sdkiam.UpdateOpenIDConnectProviderThumbprintInput{OpenIDConnectProviderArn: arn, ThumbprintList: []string{thumbprint}})
	s.must(err)
	_, err = admin.RemoveClientIDFromOpenIDConnectProvider(ctx, &sdkiam.RemoveClientIDFromOpenIDConnectProviderInput{OpenIDConnectProviderArn: arn, ClientID: aws.String("a")})
	s.must(err)
	got, err := admin.GetOpenIDConnectProvider(ctx, &sdkiam.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: arn})
	s.must(err)
	if *got.Url != "idp.example.com/realm" || len(got.ClientIDList) != 0 || len(got.ThumbprintList) != 1 || got.ThumbprintList[0] != thumbprint {
		t.Errorf("got %+v", got)
	}
	list, err := admin.ListOpenIDConnectProviders(ctx, &sdkiam.ListOpenIDConnectProvidersInput{})
	if s.must(err); len(list.OpenIDConnectProviderList) != 1 || *list.OpenIDConnectProviderList[0].Arn != *arn {
		t.Errorf("got %+v", list)
	}
	_, err = admin.GetOpenIDConnectProvider(ctx, &sdkiam.GetOpenIDConnectProviderInput{OpenIDConnectProviderArn: aws.String(*arn + "x")})
	s.wantError(err, "NoSuchEntity", "")
	bare := s.user("bare")
	_, err = client(bare.AccessKeyID, string(bare.SecretAccessKey)).ListOpenIDConnectProviders(ctx, &sdkiam.ListOpenIDConnectProvidersInput{})
	s.wantError(err, "AccessDenied", "iam:ListOpenIDConnectProviders")
}
