package awsapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/awsapi/sts"
	"rehost/identity"
)

// limited is an endpoint of small limits, whose clock stands still.
func limited(t *testing.T, l awsapi.Limits) (e *endpoint, pass func(time.Duration)) {
	t.Helper()
	clock := time.Now()
	e = newEndpoint(t, func(o *awsapi.Options) {
		o.Limits = l
		o.VerifyPeer = func(_ context.Context, leaf *x509.Certificate) (string, error) { return leaf.Subject.CommonName, nil }
	})
	e.now = func() time.Time { return clock }
	serveSample(e)
	serveAgent(e)
	return e, func(d time.Duration) { clock = clock.Add(d) }
}

// knock sends one call and returns the error's name and Retry-After.
func (e *endpoint) knock(t *testing.T, authorization string, certificates ...tls.Certificate) (name, after string) {
	t.Helper()
	config := e.roots()
	config.Certificates = certificates
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	r, err := http.NewRequest("POST", e.URL+"/InitializeService", nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
		r.Header.Set("X-Amz-Date", e.now().UTC().Format("20060102T150405Z"))
	}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if name = answer.Header.Get("X-Amzn-Errortype"); name == awsapi.Throttling && answer.StatusCode != http.StatusTooManyRequests {
		t.Errorf("throttled with status %d", answer.StatusCode)
	}
	return name, answer.Header.Get("Retry-After")
}

// probe is an Authorization with a key that nobody has, or a signature that is wrong.
func (e *endpoint) probe(key string) string {
	return "AWS4-HMAC-SHA256 Credential=" + key + "/" + e.now().UTC().Format("20060102") + "/" + testRegion +
		"/mgn/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + strings.Repeat("0", 64)
}

// TestLimits_Principal: who calls too often is told how long to wait, and
// nobody else is.
func TestLimits_Principal(t *testing.T) {
	e, pass := limited(t, awsapi.Limits{PrincipalRate: 0.5, PrincipalBurst: 3})
	busy, other := e.client(t, e.user(t, "busy", everything)), e.client(t, e.user(t, "other", everything))
	initialize := func(c *awsapi.Client) error {
		_, err := call(c, mgn.InitializeService, &mgn.InitializeServiceRequest{})
		return err
	}
	for range 3 {
		if err := initialize(busy); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 { // what is refused costs nothing more
		if err := initialize(busy); !awsapi.IsError(err, awsapi.Throttling) {
			t.Fatalf("the fourth call at once: %v", err)
		}
	}
	if err := initialize(other); err != nil {
		t.Errorf("another user: %v", err)
	}
	pass(1900 * time.Millisecond)
	if err := initialize(busy); !awsapi.IsError(err, awsapi.Throttling) {
		t.Errorf("too early: %v", err)
	}
	pass(100 * time.Millisecond)
	if err := initialize(busy); err != nil {
		t.Errorf("two seconds later: %v", err)
	}
	if !strings.Contains(e.log.String(), "too many calls of this principal") {
		t.Error("the audit line does not say why")
	}
}

// TestLimits_Probing: trying keys costs more than a mistake, is slowed, and the
// answer does not tell a known key from an unknown one any more.
func TestLimits_Probing(t *testing.T) {
	e, pass := limited(t, awsapi.Limits{SourceRate: 1, SourceBurst: 20})
	for i, want := range []string{awsapi.UnrecognizedClient, awsapi.UnrecognizedClient, awsapi.UnrecognizedClient, awsapi.UnrecognizedClient, awsapi.Throttling} {
		if got, _ := e.knock(t, e.probe("AKIASTRANGERSTRANGER")); got != want {
			t.Errorf("guess %d: got %s, want %s", i, got, want)
		}
	}
	if got, after := e.knock(t, e.probe(e.admin.AccessKeyID)); got != awsapi.Throttling || after != "1" {
		t.Errorf("a key that exists: got %s, Retry-After %s", got, after)
	}
	pass(time.Second)
	if got, _ := e.knock(t, e.probe(e.admin.AccessKeyID)); got != awsapi.InvalidSignature {
		t.Errorf("a second later: got %s", got)
	}
	if got, after := e.knock(t, ""); got != awsapi.Throttling || after != "5" {
		t.Errorf("after that: got %s, Retry-After %s, want 5", got, after)
	}
	pass(time.Hour)
	for i := range 21 {
		want := awsapi.MissingAuthentication
		if i == 20 {
			want = awsapi.Throttling
		}
		if got, _ := e.knock(t, ""); got != want {
			t.Errorf("unsigned call %d: got %s, want %s", i, got, want)
		}
	}
}

// TestLimits_SharedAddress: whatever strangers do, agents behind the same
// address go on, each with a certificate; and calls that are signed well never
// count against the address.
func TestLimits_SharedAddress(t *testing.T) {
	e, _ := limited(t, awsapi.Limits{PrincipalRate: 1, PrincipalBurst: 10, SourceRate: 1, SourceBurst: 5})
	agent := func(n int) *awsapi.Client {
		session, err := e.directory.AssumeRoleAsService(context.Background(), identity.ServiceName,
			identity.AssumeRole{Role: identity.AgentRole, Session: serverID(n), SourceIdentity: serverID(n)})
		if err != nil {
			t.Fatal(err)
		}
		config := e.roots()
		config.Certificates = []tls.Certificate{e.authority.certify(t, serverID(n))}
		c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: e.URL, Region: testRegion, Credentials: credentials(session), TLS: config, Attempts: 1})
		t.Cleanup(c.Close)
		return c
	}
	ask := func(n int, c *awsapi.Client) {
		t.Helper()
		if _, err := call(c, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: serverID(n)}); err != nil {
			t.Errorf("agent %d: %v", n, err)
		}
	}
	var agents []*awsapi.Client
	for n := range 20 {
		agents = append(agents, agent(n))
	}
	for range 10 {
		for n, c := range agents {
			ask(n, c)
		}
	}
	if _, err := call(e.client(t, e.admin), mgn.InitializeService, &mgn.InitializeServiceRequest{}); err != nil {
		t.Errorf("200 calls of agents have used up their address: %v", err)
	}
	unknown := mgn.StartTest.Operation
	unknown.URI = "/StartNothing"
	for range 6 { // a mistake of somebody known is no stranger's
		if _, err := call(e.client(t, e.admin), &awsapi.Op[struct{}, struct{}]{Operation: unknown}, &struct{}{}); !awsapi.IsError(err, awsapi.UnknownOperation) {
			t.Errorf("an unknown operation: %v", err)
		}
	}
	e.knock(t, e.probe("AKIASTRANGERSTRANGER"))
	if got, _ := e.knock(t, ""); got != awsapi.Throttling {
		t.Fatalf("the stranger is not slowed: %s", got)
	}
	ask(20, agent(20))
	bad := e.authority.certify(t, serverID(21))
	e.knock(t, e.probe("AKIASTRANGERSTRANGER"), bad)
	if got, _ := e.knock(t, "", bad); got != awsapi.Throttling {
		t.Errorf("an agent that tries keys is not slowed: %s", got)
	}
}

// TestLimits_Unlimited: a replication server reports for many agents.
func TestLimits_Unlimited(t *testing.T) {
	e, _ := limited(t, awsapi.Limits{PrincipalRate: 1, PrincipalBurst: 2, Unlimited: func(c *awsapi.Caller) bool { return c.Peer == "replicator" }})
	config := e.roots()
	config.Certificates = []tls.Certificate{e.authority.certify(t, "replicator")}
	c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: e.URL, Region: testRegion, Credentials: credentials(e.admin), TLS: config, Attempts: 1})
	t.Cleanup(c.Close)
	for range 20 {
		if _, err := call(c, mgn.InitializeService, &mgn.InitializeServiceRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLimits_Default: regular traffic of 10,000 agents behind one address, and
// of an administrator's scripts, is far below what is limited.
func TestLimits_Default(t *testing.T) {
	l := awsapi.DefaultLimits
	const agentCalls = 1.0/3 + 1.0/2 + 1.0/5 // commands, reports and log lines a second
	if l.PrincipalRate < 20*agentCalls || l.PrincipalBurst < 10*l.PrincipalRate {
		t.Errorf("an agent makes %.2f calls a second; allowed are %v", agentCalls, l.PrincipalRate)
	}
}

// TestLimits_Unsigned: who calls what nobody signs is a stranger, and uses up
// what strangers of its address have, not what everyone has.
func TestLimits_Unsigned(t *testing.T) {
	e, _ := limited(t, awsapi.Limits{PrincipalRate: 0.001, PrincipalBurst: 1, SourceRate: 0.001, SourceBurst: 3})
	serveQuery(e)
	form := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {sts.Service.Version},
		"RoleArn": {"arn:aws:iam::123456789012:role/x"}, "RoleSessionName": {"me"}, "WebIdentityToken": {"token"}}
	for i := range 5 {
		answer := e.post(t, form)
		if got, want := strings.Contains(answer, "<Code>Throttling</Code>"), i >= 3; got != want {
			t.Errorf("call %d: throttled %v, want %v: %s", i+1, got, want, answer)
		}
	}
}

// TestLimits_Strangers: what everyone may have is limited with what else a source
// does that proves nothing, and for that source only.
func TestLimits_Strangers(t *testing.T) {
	e, pass := limited(t, awsapi.Limits{SourceRate: 1, SourceBurst: 3})
	h := e.api.Strangers(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	get := func(from string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", "/install.sh", nil)
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	for i := range 3 {
		if w := get("[2001:db8::1]:5"); w.Code != http.StatusNoContent {
			t.Errorf("%d: status %d", i, w.Code)
		}
	}
	if w := get("[2001:db8::2]:6"); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
		t.Errorf("of the same /64: status %d, %v", w.Code, w.Header())
	}
	if w := get("192.0.2.1:5"); w.Code != http.StatusNoContent {
		t.Errorf("somebody else: status %d", w.Code)
	}
	pass(time.Second)
	if w := get("[2001:db8::1]:7"); w.Code != http.StatusNoContent {
		t.Errorf("a second later: status %d", w.Code)
	}
}
