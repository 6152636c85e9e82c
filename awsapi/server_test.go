package awsapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/identity"
)

const everything = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:*","Resource":"*"}}`

// serveAgent registers what agents call, answering nothing.
func serveAgent(e *endpoint) {
	awsapi.Handle(e.api, formgn.GetAgentCommandForMgn, func(ctx context.Context, in *formgn.GetAgentCommandForMgnRequest) (*formgn.GetAgentCommandForMgnResponse, error) {
		return &formgn.GetAgentCommandForMgnResponse{Command: formgn.AgentCommandNone, CommandID: awsapi.CallerOf(ctx).Principal.SourceIdentity}, nil
	})
	awsapi.Handle(e.api, formgn.RegisterAgentForMgn, func(context.Context, *formgn.RegisterAgentForMgnRequest) (*formgn.RegisterAgentForMgnResponse, error) {
		return &formgn.RegisterAgentForMgnResponse{SourceServerID: serverID(1), Arn: e.arn("source-server", serverID(1))}, nil
	})
}

func call[In, Out any](c *awsapi.Client, op *awsapi.Op[In, Out], in *In) (*Out, error) {
	return awsapi.Call(context.Background(), c, op, in)
}

// TestServer_Agent takes a session through the API: its own server, and no other.
func TestServer_Agent(t *testing.T) {
	e := newEndpoint(t)
	serveAgent(e)
	serveSample(e)
	session, err := e.directory.AssumeRoleAsService(context.Background(), identity.ServiceName,
		identity.AssumeRole{Role: identity.AgentRole, Session: serverID(1), SourceIdentity: serverID(1)})
	if err != nil {
		t.Fatal(err)
	}
	c := e.client(t, session)
	out, err := call(c, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: serverID(1)})
	if err != nil || out.CommandID != serverID(1) {
		t.Errorf("own server: %+v, %v", out, err)
	}
	if _, err := call(c, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: serverID(2)}); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("another server: %v", err)
	}
	if _, err := call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}}); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("another operation: %v", err)
	}
	if err := e.directory.RevokeSource(context.Background(), serverID(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := call(c, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: serverID(1)}); !awsapi.IsError(err, awsapi.UnrecognizedClient) {
		t.Errorf("after revocation: %v", err)
	}
	if !strings.Contains(e.log.String(), "session was revoked") {
		t.Error("the log does not say why")
	}
}

// TestServer_Lists shows that every server of a list must be allowed, and that
// an account that is not ours is refused.
func TestServer_Lists(t *testing.T) {
	e := newEndpoint(t)
	serveSample(e)
	c := e.client(t, e.user(t, "tester", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:StartTest","Resource":"arn:aws:mgn:*:*:source-server/`+serverID(1)+`"}}`))
	if _, err := call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}}); !awsapi.IsError(err, awsapi.Conflict) {
		t.Errorf("its own: %v", err)
	}
	if _, err := call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1), serverID(2)}}); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("its own and another: %v", err)
	}
	other := "999999999999"
	if _, err := call(e.client(t, e.admin), mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}, AccountID: &other}); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("another account: %v", err)
	}
}

// TestServer_TagOnCreate shows that who may register may tag only while
// registering, and that conditions see the tags.
func TestServer_TagOnCreate(t *testing.T) {
	e := newEndpoint(t)
	serveAgent(e)
	serveSample(e)
	ctx := context.Background()
	if err := e.directory.CreateUser(ctx, identity.User{Name: "installer", Attached: []string{identity.ManagedPolicy("AWSApplicationMigrationAgentInstallationPolicy")}}); err != nil {
		t.Fatal(err)
	}
	key, err := e.directory.CreateAccessKey(ctx, "installer")
	if err != nil {
		t.Fatal(err)
	}
	register := &formgn.RegisterAgentForMgnRequest{SourceProperties: &formgn.SourceProperties{}, Tags: formgn.TagsMap{"team": "x"}}
	if _, err := call(e.client(t, key), formgn.RegisterAgentForMgn, register); err != nil {
		t.Errorf("installer: %v", err)
	}
	if _, err := call(e.client(t, key), mgn.TagResource, &mgn.TagResourceRequest{ResourceArn: e.arn("source-server", serverID(1)), Tags: mgn.TagsMap{"team": "x"}}); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("installer tags later: %v", err)
	}
	noTags := e.user(t, "notags", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:RegisterAgentForMgn","Resource":"*"}}`)
	if _, err := call(e.client(t, noTags), formgn.RegisterAgentForMgn, register); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("without the right to tag: %v", err)
	}
	teams := e.user(t, "teams", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"mgn:*","Resource":"*"},
		{"Effect":"Deny","Action":"mgn:*","Resource":"*","Condition":{"ForAnyValue:StringNotEquals":{"aws:TagKeys":["team"]}}},
		{"Effect":"Deny","Action":"mgn:*","Resource":"*","Condition":{"StringNotEqualsIfExists":{"aws:RequestTag/team":"x"}}}]}`)
	for _, test := range []struct {
		tags formgn.TagsMap
		want string
	}{
		{formgn.TagsMap{"team": "x"}, ""},
		{formgn.TagsMap{"team": "y"}, awsapi.AccessDenied},
		{formgn.TagsMap{"team": "x", "env": "z"}, awsapi.AccessDenied},
		{formgn.TagsMap{"team": "x", "Team": "y"}, awsapi.Validation},
	} {
		_, err := call(e.client(t, teams), formgn.RegisterAgentForMgn, &formgn.RegisterAgentForMgnRequest{SourceProperties: &formgn.SourceProperties{}, Tags: test.tags})
		if test.want == "" && err != nil || test.want != "" && !awsapi.IsError(err, test.want) {
			t.Errorf("%v: got %v, want %s", map[string]string(test.tags), err, test.want)
		}
	}
}

// TestServer_ResourceTags asks for the tags of what a call is about.
func TestServer_ResourceTags(t *testing.T) {
	e := newEndpoint(t, func(o *awsapi.Options) {
		o.ResourceTags = func(_ context.Context, arn string) map[string]string {
			if strings.HasSuffix(arn, serverID(1)) {
				return map[string]string{"Team": "x"}
			}
			return nil
		}
	})
	serveSample(e)
	c := e.client(t, e.user(t, "x", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:*","Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/team":"x"}}}}`))
	if _, err := call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}}); !awsapi.IsError(err, awsapi.Conflict) {
		t.Errorf("with the tag: %v", err)
	}
	if _, err := call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1), serverID(2)}}); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("one without the tag: %v", err)
	}
}

// rawInput sends a body as it is.
type rawInput struct{ json.RawMessage }

// TestServer_Decode sends bodies that no client of ours would.
func TestServer_Decode(t *testing.T) {
	e := newEndpoint(t)
	serveSample(e)
	serveAgent(e)
	c := e.client(t, e.admin)
	for _, test := range []struct {
		name string
		op   awsapi.Operation
		body string
		want string
	}{
		{"Array", mgn.StartTest.Operation, `[]`, "not a JSON object"},
		{"Type", mgn.StartTest.Operation, `{"sourceServerIDs":"x"}`, "sourceServerIDs must not be a JSON string"},
		{"Missing", mgn.StartTest.Operation, `{}`, "'sourceServerIDs' failed to satisfy constraint: Member must not be null"},
		{"Empty", mgn.StartTest.Operation, `{"sourceServerIDs":[]}`, "length greater than or equal to 1"},
		{"Pattern", mgn.StartTest.Operation, `{"sourceServerIDs":["x-0123456789abcdef0"]}`, "regular expression pattern: s-"},
		{"Enum", formgn.RegisterAgentForMgn.Operation, `{"sourceProperties":{"bootMode":"BIOS"}}`, "enum value set: [LEGACY_BIOS UEFI]"},
		{"Range", formgn.RegisterAgentForMgn.Operation, `{"sourceProperties":{"ramBytes":-1}}`, "value greater than or equal to 0"},
		{"NumberMissing", formgn.RegisterAgentForMgn.Operation, `{"sourceProperties":{"disks":[{"deviceName":"a","bytes":0},{"deviceName":"b"}]}}`, "'sourceProperties.disks.1.bytes' failed to satisfy constraint: Member must not be null"},
		{"Fraction", formgn.RegisterAgentForMgn.Operation, `{"sourceProperties":{"ramBytes":1.5}}`, "must not be a JSON number"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := call(c, &awsapi.Op[rawInput, struct{}]{Operation: test.op}, &rawInput{json.RawMessage(test.body)})
			if !awsapi.IsError(err, awsapi.Validation) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	t.Run("TooLarge", func(t *testing.T) {
		body := `{"x":"` + strings.Repeat("x", awsapi.DefaultMaxBody) + `"}`
		_, err := call(c, &awsapi.Op[rawInput, struct{}]{Operation: mgn.StartTest.Operation}, &rawInput{json.RawMessage(body)})
		if !awsapi.IsError(err, awsapi.TooLarge) {
			t.Errorf("got %.200v", err)
		}
	})
}

// TestServer_UnknownOperation shows that only who signed learns what is there.
func TestServer_UnknownOperation(t *testing.T) {
	e := newEndpoint(t)
	serveSample(e)
	unknown := mgn.StartTest.Operation
	unknown.URI = "/StartNothing"
	op := &awsapi.Op[struct{}, struct{}]{Operation: unknown}
	if _, err := call(e.client(t, e.admin), op, &struct{}{}); !awsapi.IsError(err, awsapi.UnknownOperation) {
		t.Errorf("got %v", err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: e.roots(), DisableKeepAlives: true}}
	for _, path := range []string{"/StartNothing", "/StartTest"} {
		r, err := c.Post(e.URL+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if got := r.Header.Get("X-Amzn-Errortype"); r.StatusCode != 403 || got != awsapi.MissingAuthentication || r.Header.Get("X-Amzn-Requestid") == "" {
			t.Errorf("%s: got %d %s", path, r.StatusCode, got)
		}
	}
}

// An authority signs client certificates that the endpoint trusts.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{ca, key}
}

func (a *authority) certify(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestServer_Certificate exchanges a client certificate for a session.
func TestServer_Certificate(t *testing.T) {
	e := newEndpoint(t, func(o *awsapi.Options) {
		o.VerifyPeer = func(_ context.Context, leaf *x509.Certificate) (string, error) {
			if leaf.Subject.CommonName == "revoked" {
				return "", errors.New("certificate 2 was revoked")
			}
			return leaf.Subject.CommonName, nil
		}
	})
	serveSample(e)
	awsapi.Handle(e.api, formgn.CreateSessionForMgn, func(ctx context.Context, _ *formgn.CreateSessionForMgnRequest) (*formgn.CreateSessionForMgnResponse, error) {
		peer := awsapi.CallerOf(ctx).Peer
		c, err := e.directory.AssumeRoleAsService(ctx, identity.ServiceName, identity.AssumeRole{Role: identity.AgentRole, Session: peer, SourceIdentity: peer})
		return &formgn.CreateSessionForMgnResponse{AccessKeyId: c.AccessKeyID, SecretAccessKey: formgn.Secret(c.SecretAccessKey), SessionToken: formgn.Secret(c.SessionToken), Expiration: awsapi.DateTime(c.Expires)}, err
	})
	client := func(certificates ...tls.Certificate) *awsapi.Client {
		config := e.roots()
		config.Certificates = certificates
		c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: e.URL, Region: testRegion, TLS: config, Attempts: 1})
		t.Cleanup(c.Close)
		return c
	}
	if _, err := call(client(), formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{}); !awsapi.IsError(err, awsapi.MissingAuthentication) {
		t.Errorf("without a certificate: %v", err)
	}
	out, err := call(client(e.authority.certify(t, serverID(1))), formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if p, _, err := e.directory.Authenticate(context.Background(), out.AccessKeyId, string(out.SessionToken)); err != nil || p.SourceIdentity != serverID(1) {
		t.Errorf("got %+v, %v", p, err)
	}
	certified := client(e.authority.certify(t, serverID(1)))
	if _, err := call(certified, mgn.InitializeService, &mgn.InitializeServiceRequest{}); err == nil {
		t.Error("a certificate alone was enough for another operation")
	}
	unsigned := &awsapi.Op[mgn.InitializeServiceRequest, mgn.InitializeServiceResponse]{Operation: mgn.InitializeService.Operation}
	unsigned.MutualTLS = true // the client's word must not matter
	if _, err := call(certified, unsigned, &mgn.InitializeServiceRequest{}); !awsapi.IsError(err, awsapi.MissingAuthentication) {
		t.Errorf("an operation that must be signed: %v", err)
	}
	if _, err := call(client(e.authority.certify(t, "revoked")), formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{}); !awsapi.IsError(err, awsapi.UnrecognizedClient) || strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: %v", err)
	}
	for _, secret := range []string{string(out.SecretAccessKey), string(out.SessionToken), string(e.admin.SecretAccessKey)} {
		if strings.Contains(e.log.String(), secret) {
			t.Error("a secret is in the log")
		}
	}
	if !strings.Contains(e.log.String(), "certificate 2 was revoked") {
		t.Error("the log does not say why the certificate was refused")
	}
}

// TestServer_Audit reads the lines back.
func TestServer_Audit(t *testing.T) {
	e := newEndpoint(t)
	serveSample(e)
	c := e.client(t, e.user(t, "tester", `{"Version":"2012-10-17","Statement":{"Sid":"Tests","Effect":"Allow","Action":"mgn:StartTest","Resource":"*"}}`))
	_, _ = call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}, Tags: nil})
	_, _ = call(c, mgn.InitializeService, &mgn.InitializeServiceRequest{})
	var got []map[string]any
	for line := range strings.Lines(e.log.String()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == "call" {
			got = append(got, entry)
		}
	}
	if len(got) != 2 {
		t.Fatalf("got %d lines: %v", len(got), got)
	}
	for i, want := range []map[string]any{
		{"decision": "allowed", "operation": "StartTest", "status": 409.0, "error": "ConflictException", "resources": e.arn("source-server", serverID(1)), "reason": "allowed by statement Tests of inline policy p (identity policies)"},
		{"decision": "denied", "operation": "InitializeService", "status": 403.0, "error": "AccessDeniedException", "principal": "arn:aws:iam::" + e.directory.Account().ID + ":user/tester"},
	} {
		for key, value := range want {
			if got[i][key] != value {
				t.Errorf("line %d: %s is %v, want %v", i, key, got[i][key], value)
			}
		}
	}
}

// TestClient_ClockHint sets the service's clock apart from ours.
func TestClient_ClockHint(t *testing.T) {
	e := newEndpoint(t)
	serveSample(e)
	for _, skew := range []time.Duration{-4 * time.Minute, 4 * time.Minute} {
		e.now = func() time.Time { return time.Now().Add(skew) }
		if _, err := call(e.client(t, e.admin), mgn.InitializeService, &mgn.InitializeServiceRequest{}); err != nil {
			t.Errorf("%v: %v", skew, err)
		}
	}
	for _, skew := range []time.Duration{-6 * time.Minute, 6 * time.Minute} {
		e.now = func() time.Time { return time.Now().Add(skew) }
		_, err := call(e.client(t, e.admin), mgn.InitializeService, &mgn.InitializeServiceRequest{})
		if !awsapi.IsError(err, awsapi.InvalidSignature) || !strings.Contains(err.Error(), "Signature expired: ") && !strings.Contains(err.Error(), "Signature not yet current: ") {
			t.Errorf("%v: %v", skew, err)
		}
	}
}

// TestClient_Repeats counts attempts: only what may be done twice is.
func TestClient_Repeats(t *testing.T) {
	e := newEndpoint(t)
	attempts := 0
	awsapi.Handle(e.api, mgn.ListWaves, func(context.Context, *mgn.ListWavesRequest) (*mgn.ListWavesResponse, error) {
		if attempts++; attempts < 3 {
			return nil, errors.New("not now")
		}
		return &mgn.ListWavesResponse{}, nil
	})
	awsapi.Handle(e.api, mgn.StartTest, func(context.Context, *mgn.StartTestRequest) (*mgn.StartTestResponse, error) {
		attempts++
		return nil, errors.New("not now")
	})
	c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: e.URL, Region: testRegion, Credentials: credentials(e.admin), TLS: e.roots()})
	t.Cleanup(c.Close)
	if _, err := call(c, mgn.ListWaves, &mgn.ListWavesRequest{}); err != nil || attempts != 3 {
		t.Errorf("reading: %d attempts, %v", attempts, err)
	}
	attempts = 0
	if _, err := call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}}); !awsapi.IsError(err, awsapi.InternalServer) || attempts != 1 {
		t.Errorf("writing: %d attempts, %v", attempts, err)
	}
}
