package api

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdkcredentials "github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/awsapi/sts"
	"rehost/identity"
	"rehost/identity/oidc"
)

const region = "eu-central-1"

// A stage is a directory behind a real server, as others reach it. Its calls
// are of now; what the directory takes for now can be later.
type stage struct {
	*httptest.Server
	t     *testing.T
	dir   *identity.Directory
	admin identity.Credentials
	audit *bytes.Buffer
	later time.Duration
	lock  *sync.Mutex
}

// lockedWriter is written by the server's goroutines and read by the test.
type lockedWriter struct {
	*bytes.Buffer
	*sync.Mutex
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.Lock()
	defer w.Unlock()
	return w.Buffer.Write(p)
}

func newStage(t *testing.T) *stage {
	t.Helper()
	ctx := context.Background()
	key, err := identity.NewSealingKey(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, audit: new(bytes.Buffer), lock: new(sync.Mutex)}
	now := func() time.Time {
		s.lock.Lock()
		defer s.lock.Unlock()
		return time.Now().Add(s.later)
	}
	if s.dir, err = identity.Open(ctx, identity.Options{Store: identity.NewMemoryStore(), Key: key, Now: now}); err != nil {
		t.Fatal(err)
	}
	if s.admin, err = s.dir.Bootstrap(ctx); err != nil {
		t.Fatal(err)
	}
	server := awsapi.New(awsapi.Options{Identity: s.dir, Region: region,
		Log: slog.New(slog.NewJSONHandler(lockedWriter{s.audit, s.lock}, nil))}, sts.Service, iam.Service)
	Register(server, s.dir, oidc.New(now))
	s.Server = httptest.NewTLSServer(server)
	t.Cleanup(s.Close)
	return s
}

func (s *stage) wait(d time.Duration) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.later += d
}

// client is the official one; without credentials it signs nothing.
func (s *stage) client(c identity.Credentials) *sdk.Client {
	o := sdk.Options{BaseEndpoint: aws.String(s.URL), Region: region, HTTPClient: s.http(), RetryMaxAttempts: 1}
	if c.AccessKeyID != "" {
		o.Credentials = sdkcredentials.NewStaticCredentialsProvider(c.AccessKeyID, string(c.SecretAccessKey), string(c.SessionToken))
	}
	return sdk.New(o)
}

func (s *stage) http() *http.Client {
	c := s.Client()
	c.Transport.(*http.Transport).DisableKeepAlives = true
	return c
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) user(name string, statements ...string) identity.Credentials {
	s.t.Helper()
	u := identity.User{Name: name}
	if len(statements) > 0 {
		u.Inline = map[string]string{"own": document(statements...)}
	}
	s.must(s.dir.CreateUser(context.Background(), u))
	c, err := s.dir.CreateAccessKey(context.Background(), name)
	s.must(err)
	return c
}

func (s *stage) role(name, trust string, statements ...string) string {
	s.t.Helper()
	r := identity.Role{Name: name, Trust: document(trust)}
	if len(statements) > 0 {
		r.Inline = map[string]string{"own": document(statements...)}
	}
	s.must(s.dir.CreateRole(context.Background(), r))
	return s.arn("role/" + name)
}

func (s *stage) arn(name string) string { return "arn:aws:iam::" + s.dir.Account().ID + ":" + name }

func document(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

func statement(effect, action string) string {
	return `{"Effect":"` + effect + `","Action":"` + action + `","Resource":"*"}`
}

func trusting(principal string) string {
	return `{"Effect":"Allow","Principal":{"AWS":"` + principal + `"},"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"]}`
}

// temporary takes over credentials from an answer.
func temporary(c *types.Credentials) identity.Credentials {
	return identity.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: identity.Secret(*c.SecretAccessKey), SessionToken: identity.Secret(*c.SessionToken)}
}

func (s *stage) wantError(err error, code, text string) string {
	s.t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != code || !strings.Contains(e.ErrorMessage(), text) {
		s.t.Errorf("got %v, want %s with %q", err, code, text)
		return ""
	}
	return e.ErrorMessage()
}

// TestSTS_AssumeRole narrows a session with a policy, by the official client.
func TestSTS_AssumeRole(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	dev := s.user("dev")
	role := s.role("helper", trusting(s.arn("user/dev")), statement("Allow", "sts:GetAccessKeyInfo"), statement("Allow", "sts:DecodeAuthorizationMessage"))
	out, err := s.client(dev).AssumeRole(ctx, &sdk.AssumeRoleInput{RoleArn: &role, RoleSessionName: aws.String("night"), Policy: aws.String(document(statement("Allow", "sts:GetAccessKeyInfo"))),
		DurationSeconds: aws.Int32(900), SourceIdentity: aws.String("alice"), Tags: []types.Tag{{Key: aws.String("env"), Value: aws.String("dev é")}}, TransitiveTagKeys: []string{"env"}})
	s.must(err)
	if want := "arn:aws:sts::" + s.dir.Account().ID + ":assumed-role/helper/night"; *out.AssumedRoleUser.Arn != want || *out.SourceIdentity != "alice" ||
		aws.ToInt32(out.PackedPolicySize) < 1 || !regexp.MustCompile(`^AROA[A-Z2-7]{16}:night$`).MatchString(*out.AssumedRoleUser.AssumedRoleId) {
		t.Errorf("got %+v", out)
	}
	if left := time.Until(*out.Credentials.Expiration); left > 15*time.Minute || left < 14*time.Minute {
		t.Errorf("it ends in %v", left)
	}
	session := s.client(temporary(out.Credentials))
	who, err := session.GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
	s.must(err)
	if *who.Arn != *out.AssumedRoleUser.Arn || *who.UserId != *out.AssumedRoleUser.AssumedRoleId || *who.Account != s.dir.Account().ID {
		t.Errorf("the session is %+v", who)
	}
	_, err = session.GetAccessKeyInfo(ctx, &sdk.GetAccessKeyInfoInput{AccessKeyId: &dev.AccessKeyID})
	s.must(err)
	_, err = session.DecodeAuthorizationMessage(ctx, &sdk.DecodeAuthorizationMessageInput{EncodedMessage: aws.String("x")})
	s.wantError(err, "AccessDenied", "sts:DecodeAuthorizationMessage")
	whole, err := s.client(dev).AssumeRole(ctx, &sdk.AssumeRoleInput{RoleArn: &role, RoleSessionName: aws.String("day")})
	s.must(err)
	_, err = s.client(temporary(whole.Credentials)).DecodeAuthorizationMessage(ctx, &sdk.DecodeAuthorizationMessageInput{EncodedMessage: aws.String("x")})
	s.wantError(err, "InvalidAuthorizationMessageException", "not valid")
	if whole.PackedPolicySize != nil {
		t.Errorf("nothing was packed: %d%%", *whole.PackedPolicySize)
	}
	s.wait(16 * time.Minute)
	_, err = session.GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
	s.wantError(err, "ExpiredToken", "expired")
}

// TestSTS_Errors compares names and texts with those of AWS.
func TestSTS_Errors(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	dev := s.client(s.user("dev", statement("Allow", "sts:AssumeRole")))
	s.user("other")
	mine := s.role("mine", trusting(s.arn("user/dev")))
	theirs := s.role("theirs", trusting(s.arn("user/other")))
	for name, test := range map[string]struct {
		in         sdk.AssumeRoleInput
		code, text string
	}{
		"NotTrusted": {sdk.AssumeRoleInput{RoleArn: &theirs}, "AccessDenied", "User: " + s.arn("user/dev") + " is not authorized to perform: sts:AssumeRole on resource: " + theirs},
		"NoRole":     {sdk.AssumeRoleInput{RoleArn: aws.String(theirs + "x")}, "AccessDenied", "User: " + s.arn("user/dev") + " is not authorized to perform: sts:AssumeRole on resource: " + theirs + "x"},
		"Long":       {sdk.AssumeRoleInput{DurationSeconds: aws.Int32(3601)}, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."},
		"Short":      {sdk.AssumeRoleInput{DurationSeconds: aws.Int32(899)}, "ValidationError", "greater than or equal to 900"},
		"Name":       {sdk.AssumeRoleInput{RoleSessionName: aws.String("a b")}, "ValidationError", "RoleSessionName"},
		"ExternalID": {sdk.AssumeRoleInput{ExternalId: aws.String("*")}, "ValidationError", "ExternalId"},
		"Policy":     {sdk.AssumeRoleInput{Policy: aws.String(`{"Version":"2012-10-17"}`)}, "MalformedPolicyDocument", "statement"},
		"PolicyLong": {sdk.AssumeRoleInput{Policy: aws.String(strings.Repeat(" ", 2049))}, "ValidationError", "2048"},
		"MFA":        {sdk.AssumeRoleInput{SerialNumber: aws.String("arn:aws:iam::1:mfa/x"), TokenCode: aws.String("123456")}, "ValidationError", "MFA"},
		"TagTwice":   {sdk.AssumeRoleInput{Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("1")}, {Key: aws.String("A"), Value: aws.String("2")}}}, "ValidationError", "differ in more than case"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.in.RoleArn == nil {
				test.in.RoleArn = &mine
			}
			if test.in.RoleSessionName == nil {
				test.in.RoleSessionName = aws.String("test")
			}
			_, err := dev.AssumeRole(ctx, &test.in)
			own := *s
			own.t = t
			own.wantError(err, test.code, test.text)
		})
	}
	_, err := dev.AssumeRoleWithSAML(ctx, &sdk.AssumeRoleWithSAMLInput{PrincipalArn: &mine, RoleArn: &mine, SAMLAssertion: aws.String("AAAA")})
	s.wantError(err, "NotImplemented", "not built")
}

// TestSTS_CallerIdentity is for everyone who can sign, also for those to whom
// everything is forbidden.
func TestSTS_CallerIdentity(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	for name, c := range map[string]identity.Credentials{"admin": s.admin, "bare": s.user("bare"), "barred": s.user("barred", statement("Deny", "*"))} {
		who, err := s.client(c).GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
		if err != nil || *who.Arn != s.arn("user/"+name) {
			t.Errorf("%s: %+v, %v", name, who, err)
		}
	}
	_, err := s.client(identity.Credentials{AccessKeyID: "AKIAAAAAAAAAAAAAAAAA", SecretAccessKey: "x"}).GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
	s.wantError(err, "InvalidClientTokenId", "invalid")
}

func TestSTS_SessionToken(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	out, err := s.client(s.admin).GetSessionToken(ctx, &sdk.GetSessionTokenInput{DurationSeconds: aws.Int32(129600)})
	s.must(err)
	session := s.client(temporary(out.Credentials))
	who, err := session.GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
	if s.must(err); *who.Arn != s.arn("user/admin") {
		t.Errorf("got %s", *who.Arn)
	}
	_, err = session.GetSessionToken(ctx, &sdk.GetSessionTokenInput{})
	s.wantError(err, "AccessDenied", "Cannot call GetSessionToken with session credentials")
	_, err = session.GetFederationToken(ctx, &sdk.GetFederationTokenInput{Name: aws.String("bob")})
	s.wantError(err, "AccessDenied", "Cannot call GetFederationToken with session credentials")
	_, err = session.GetAccessKeyInfo(ctx, &sdk.GetAccessKeyInfoInput{AccessKeyId: &s.admin.AccessKeyID})
	s.wantError(err, "AccessDenied", "sts:GetAccessKeyInfo")
	_, err = s.client(s.admin).GetSessionToken(ctx, &sdk.GetSessionTokenInput{SerialNumber: aws.String("GAHT12345678")})
	s.wantError(err, "ValidationError", "MFA")
	s.must(s.dir.RevokeUser(ctx, "admin"))
	_, err = session.GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
	s.wantError(err, "InvalidClientTokenId", "invalid")
}

func TestSTS_FederationToken(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	out, err := s.client(s.admin).GetFederationToken(ctx, &sdk.GetFederationTokenInput{Name: aws.String("bob"), Policy: aws.String(document(statement("Allow", "iam:*")))})
	s.must(err)
	if want := "arn:aws:sts::" + s.dir.Account().ID + ":federated-user/bob"; *out.FederatedUser.Arn != want || *out.FederatedUser.FederatedUserId != s.dir.Account().ID+":bob" {
		t.Errorf("got %+v", out.FederatedUser)
	}
	session := s.client(temporary(out.Credentials))
	who, err := session.GetCallerIdentity(ctx, &sdk.GetCallerIdentityInput{})
	if s.must(err); *who.Arn != *out.FederatedUser.Arn {
		t.Errorf("got %s", *who.Arn)
	}
	_, err = session.AssumeRole(ctx, &sdk.AssumeRoleInput{RoleArn: aws.String(s.role("any", trusting(s.arn("root")), statement("Allow", "*"))), RoleSessionName: aws.String("x2")})
	s.wantError(err, "AccessDenied", "sts:AssumeRole")
	_, err = s.client(s.user("bare")).GetFederationToken(ctx, &sdk.GetFederationTokenInput{Name: aws.String("bob")})
	s.wantError(err, "AccessDenied", "sts:GetFederationToken on resource: arn:aws:sts::"+s.dir.Account().ID+":federated-user/bob")
}

// TestSTS_Decode takes the message of a refusal to somebody who may read it.
func TestSTS_Decode(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	barred := s.user("barred", `{"Sid":"Never","Effect":"Deny","Action":"sts:GetAccessKeyInfo","Resource":"*"}`)
	_, err := s.client(barred).GetAccessKeyInfo(ctx, &sdk.GetAccessKeyInfoInput{AccessKeyId: &barred.AccessKeyID})
	text := s.wantError(err, "AccessDenied", "with an explicit deny")
	_, message, _ := strings.Cut(text, "Encoded authorization failure message: ")
	if message == "" || strings.Contains(text, "Never") {
		t.Fatalf("got %q", text)
	}
	out, err := s.client(s.admin).DecodeAuthorizationMessage(ctx, &sdk.DecodeAuthorizationMessageInput{EncodedMessage: &message})
	s.must(err)
	var got identity.Refusal
	s.must(json.Unmarshal([]byte(*out.DecodedMessage), &got))
	if got.Allowed || !got.ExplicitDeny || got.Context.Principal.ARN != s.arn("user/barred") || got.Context.Action != "sts:GetAccessKeyInfo" || !strings.Contains(got.Reason, "Never") ||
		!strings.Contains(*out.DecodedMessage, `{"key":"aws:sourceip","values":{"items":[{"value":"127.0.0.1"}]}}`) {
		t.Errorf("got %s", *out.DecodedMessage)
	}
	s.user("other")
	role := s.role("closed", trusting(s.arn("user/other")))
	_, err = s.client(barred).AssumeRole(ctx, &sdk.AssumeRoleInput{RoleArn: &role, RoleSessionName: aws.String("x2")})
	_, message, _ = strings.Cut(s.wantError(err, "AccessDenied", "sts:AssumeRole"), "Encoded authorization failure message: ")
	_, err = s.client(s.admin).DecodeAuthorizationMessage(ctx, &sdk.DecodeAuthorizationMessageInput{EncodedMessage: &message})
	s.must(err)
	_, err = s.client(barred).DecodeAuthorizationMessage(ctx, &sdk.DecodeAuthorizationMessageInput{EncodedMessage: &message})
	s.wantError(err, "AccessDenied", "sts:DecodeAuthorizationMessage")
	_, err = s.client(s.admin).DecodeAuthorizationMessage(ctx, &sdk.DecodeAuthorizationMessageInput{EncodedMessage: aws.String(message[:len(message)-2] + "AA")})
	s.wantError(err, "InvalidAuthorizationMessageException", "not valid")
}

// TestSTS_Audit: what was refused is in the audit log as denied, with the
// reason; no secret is.
func TestSTS_Audit(t *testing.T) {
	s := newStage(t)
	ctx := context.Background()
	dev := s.user("dev")
	role := s.role("mine", trusting(s.arn("user/dev")))
	out, err := s.client(dev).AssumeRole(ctx, &sdk.AssumeRoleInput{RoleArn: &role, RoleSessionName: aws.String("test")})
	s.must(err)
	_, err = s.client(dev).AssumeRole(ctx, &sdk.AssumeRoleInput{RoleArn: aws.String(role + "x"), RoleSessionName: aws.String("test")})
	s.wantError(err, "AccessDenied", "")
	s.Close() // the last line is written after its answer
	s.lock.Lock()
	defer s.lock.Unlock()
	lines := strings.Split(strings.TrimSpace(s.audit.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"decision":"allowed"`) || !strings.Contains(lines[1], `"decision":"denied"`) || !strings.Contains(lines[1], "there is no such role") {
		t.Errorf("got %s", s.audit)
	}
	for what, secret := range map[string]string{"secret": *out.Credentials.SecretAccessKey, "token": *out.Credentials.SessionToken, "user's secret": string(dev.SecretAccessKey)} {
		if strings.Contains(s.audit.String(), secret) {
			t.Errorf("the %s is in the audit log", what)
		}
	}
}

// TestSTS_CLI goes the same way with the stock command.
func TestSTS_CLI(t *testing.T) {
	command, err := exec.LookPath("aws")
	if err != nil {
		t.Skip("the aws CLI is not installed")
	}
	s := newStage(t)
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	s.must(os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	run := func(c identity.Credentials, args ...string) (string, error) {
		cmd := exec.Command(command, append([]string{"--output", "json", "--endpoint-url", s.URL}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "AWS_CA_BUNDLE=" + bundle, "AWS_DEFAULT_REGION=" + region, "AWS_EC2_METADATA_DISABLED=true",
			"AWS_ACCESS_KEY_ID=" + c.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + string(c.SecretAccessKey), "AWS_MAX_ATTEMPTS=1"}
		if c.SessionToken != "" {
			cmd.Env = append(cmd.Env, "AWS_SESSION_TOKEN="+string(c.SessionToken))
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	role := s.role("helper", trusting(s.arn("user/admin")), statement("Allow", "sts:*"))
	out, err := run(s.admin, "sts", "assume-role", "--role-arn", role, "--role-session-name", "night", "--policy", document(statement("Allow", "sts:GetAccessKeyInfo")),
		"--tags", "Key=env,Value=dev", "Key=team,Value=a b", "--transitive-tag-keys", "env", "--source-identity", "alice")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var answer struct {
		Credentials struct{ AccessKeyId, SecretAccessKey, SessionToken string }
	}
	s.must(json.Unmarshal([]byte(out), &answer))
	session := identity.Credentials{AccessKeyID: answer.Credentials.AccessKeyId, SecretAccessKey: identity.Secret(answer.Credentials.SecretAccessKey), SessionToken: identity.Secret(answer.Credentials.SessionToken)}
	if out, err = run(session, "sts", "get-caller-identity"); err != nil || !strings.Contains(out, ":assumed-role/helper/night") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = run(session, "sts", "decode-authorization-message", "--encoded-message", "x")
	if err == nil || !strings.Contains(out, "(AccessDenied) when calling the DecodeAuthorizationMessage operation") {
		t.Fatalf("%v: %s", err, out)
	}
	_, message, _ := strings.Cut(strings.TrimSpace(out), "Encoded authorization failure message: ")
	if out, err = run(s.admin, "sts", "decode-authorization-message", "--encoded-message", message); err != nil || !strings.Contains(out, "session policies") {
		t.Errorf("%v: %s", err, out)
	}
}
