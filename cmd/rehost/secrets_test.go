package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/audit"
	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/ca"
	"rehost/identity"
)

// forms are the ways in which a secret could stand in a text.
func forms(secret string) map[string]string {
	quoted, _ := json.Marshal(secret)
	out := map[string]string{"as it is": secret, "in JSON": strings.Trim(string(quoted), `"`), "in hexadecimal": hex.EncodeToString([]byte(secret)),
		"in a query": url.QueryEscape(secret), "in a path": url.PathEscape(secret), "quoted": strings.Trim(fmt.Sprintf("%q", secret), `"`)}
	for name, encoding := range map[string]*base64.Encoding{"in base64": base64.RawStdEncoding, "in base64 of URLs": base64.RawURLEncoding} {
		for shift := range 3 { // whatever stands before it in the same text
			whole := encoding.EncodeToString(append(make([]byte, shift), secret...))
			out[fmt.Sprintf("%s, shifted by %d", name, shift)] = whole[(shift*8+5)/6 : (shift+len(secret))*8/6]
		}
	}
	return out
}

// leaks says which secrets are in which texts.
func leaks(texts map[string]string, secrets map[string]string) (found []string) {
	for where, text := range texts {
		lower := strings.ToLower(text)
		for what, secret := range secrets {
			for how, form := range forms(secret) {
				if strings.Contains(text, form) || how == "in hexadecimal" && strings.Contains(lower, form) {
					found = append(found, fmt.Sprintf("%s has the secret of %s %s", where, what, how))
				}
			}
		}
	}
	slices.Sort(found)
	return found
}

// A spill makes calls with secrets in wrong places, and keeps what is answered.
type spill struct {
	*running
	client  *http.Client
	secrets map[string]string
	answers strings.Builder
}

// secret makes one that is known again, with all that encodings change.
func (s *spill) secret(place string) string {
	b := make([]byte, 12)
	rand.Read(b)
	s.secrets[place] = "Sp1ll/+" + hex.EncodeToString(b) + "%=x"
	return s.secrets[place]
}

// upper is a secret that has the form of an access key id.
func (s *spill) upper(place string) string {
	b := make([]byte, 20)
	rand.Read(b)
	s.secrets[place] = strings.ToUpper(hex.EncodeToString(b))
	return s.secrets[place]
}

// token is a secret that has no character which a header or a query escapes.
func (s *spill) token(place string) string {
	s.upper(place)
	s.secrets[place] = strings.ToLower(s.secrets[place]) + "Zz"
	return s.secrets[place]
}

func (s *spill) request(method, target, body string) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.api+target, strings.NewReader(body))
	s.must(err)
	return r
}

func (s *spill) do(r *http.Request) {
	s.t.Helper()
	answer, err := s.client.Do(r)
	if err != nil {
		fmt.Fprintln(&s.answers, strings.ReplaceAll(err.Error(), r.URL.String(), "")) // ours, not the service's
		return
	}
	text, err := io.ReadAll(answer.Body)
	s.must(errors.Join(err, answer.Body.Close()))
	fmt.Fprintln(&s.answers, answer.StatusCode, answer.Header, string(text))
}

// signed signs with the administrator's key.
func (s *spill) signed(r *http.Request, body string) {
	s.t.Helper()
	c, err := s.admin.Retrieve(s.t.Context())
	s.must(err)
	s.signedWith(c, r, body)
}

func (s *spill) signedWith(c aws.Credentials, r *http.Request, body string) {
	s.t.Helper()
	sum := sha256.Sum256([]byte(body))
	s.must(v4.NewSigner().SignHTTP(s.t.Context(), c, r, hex.EncodeToString(sum[:]), "mgn", "us-east-1", time.Now()))
	s.do(r)
}

// strangers puts secrets where who has no key could put them.
func (s *spill) strangers() {
	day, now := time.Now().UTC().Format("20060102"), time.Now().UTC().Format("20060102T150405Z")
	signature := strings.Repeat("0", 64)
	credential := func(key, region, service, headers, signature string) string {
		return "AWS4-HMAC-SHA256 Credential=" + key + "/" + day + "/" + region + "/" + service + "/aws4_request, SignedHeaders=" + headers + ", Signature=" + signature
	}
	const key, headers = "AKIASTRANGERSTRANGER", "host;x-amz-date"
	for _, authorization := range []string{
		"Basic " + s.secret("Basic"),
		"Bearer " + s.token("Bearer"),
		s.token("a scheme"),
		credential(s.upper("the key id"), "us-east-1", "mgn", headers, signature),
		credential(s.token("an unusual key id"), "us-east-1", "mgn", headers, signature),
		credential(key, s.token("the region"), "mgn", headers, signature),
		credential(key, "us-east-1", s.token("the service"), headers, signature),
		credential(key, "us-east-1", "mgn", "host;"+s.token("the signed headers"), signature),
		credential(key, "us-east-1", "mgn", headers, s.token("the signature")),
		credential(key, "us-east-1", "mgn", headers, signature) + ", Secret=" + s.token("another field"),
	} {
		r := s.request("POST", "/InitializeService", "{}")
		r.Header.Set("X-Amz-Date", now)
		r.Header.Set("Authorization", authorization)
		s.do(r)
	}
	for _, name := range []string{"X-Amz-Security-Token", "X-Amz-Date", "X-Amz-Content-Sha256", "Cookie", "X-Api-Key", "Proxy-Authorization"} {
		r := s.request("POST", "/InitializeService", "{}")
		r.Header.Set("X-Amz-Date", now)
		r.Header.Set("Authorization", credential(key, "us-east-1", "mgn", headers, signature))
		r.Header.Set(name, s.token("the header "+name))
		s.do(r)
	}
	s.do(s.request("GET", "/"+s.token("the path of a stranger"), ""))
	s.do(s.request("GET", "/agent/"+s.token("the path of a download"), ""))
	presigned := url.Values{"X-Amz-Algorithm": {"AWS4-HMAC-SHA256"}, "X-Amz-Credential": {key + "/" + day + "/us-east-1/mgn/aws4_request"}, "X-Amz-Date": {now},
		"X-Amz-Expires": {"60"}, "X-Amz-SignedHeaders": {"host"}, "X-Amz-Signature": {signature}}
	for name := range presigned {
		q, secret := url.Values{}, s.secret("the parameter "+name)
		for n, v := range presigned {
			q[n] = v
		}
		q.Set(name, secret)
		s.do(s.request("GET", "/ListWaves?"+q.Encode(), ""))
	}
	presigned.Set("X-Amz-Security-Token", s.secret("a token in the query"))
	s.do(s.request("GET", "/ListWaves?"+presigned.Encode(), s.secret("the body of a stranger")))
	s.do(s.request("GET", "/?SecretAccessKey="+url.QueryEscape(s.secret("a parameter"))+"&x=%zz", ""))
}

// owner puts secrets where who has a key could put them by mistake.
func (s *spill) owner() {
	for place, body := range map[string]string{
		"an unknown member": `{"password":%q,"sourceServerIDs":["s-00000000000000001"]}`,
		"a wrong type":      `{"sourceServerIDs":%q}`,
		"a key of a map":    `{"sourceServerIDs":["s-00000000000000001"],"tags":{%q:5}}`,
		"a tag":             `{"sourceServerIDs":["s-00000000000000001"],"tags":{"secret":%q}}`,
		"an id":             `{"sourceServerIDs":[%q]}`,
		"an account":        `{"sourceServerIDs":["s-00000000000000001"],"accountID":%q}`,
		"no JSON":           `%s`,
		"half of JSON":      `{"sourceServerIDs":[%q`,
		"after the JSON":    `{"sourceServerIDs":["s-00000000000000001"]} %q`,
	} {
		body = fmt.Sprintf(body, s.secret(place))
		s.signed(s.request("POST", "/StartTest", body), body)
	}
	for place, body := range map[string]string{
		"a page token":  `{"nextToken":%q}`,
		"a private key": `{"sourceServerID":"s-00000000000000001","certificateSigningRequest":"-----BEGIN EC PRIVATE KEY-----\n%s\n-----END EC PRIVATE KEY-----"}`,
		"a key in PEM":  `{"sourceServerID":"s-00000000000000001","certificateSigningRequest":"-----BEGIN PRIVATE KEY-----\n%s"}`,
	} {
		path := "/DescribeSourceServers"
		if strings.Contains(body, "Signing") {
			path = formgn.IssueClientCertificateForMgn.URI
		}
		body = fmt.Sprintf(body, s.token(place))
		s.signed(s.request("POST", path, body), body)
	}
	s.signed(s.request("POST", "/"+s.token("the path"), "{}"), "{}")
	s.signed(s.request("POST", "/StartTest?SecretAccessKey="+s.token("the query"), "{}"), "{}")
	r := s.request("POST", "/StartTest", "{}")
	r.Header.Set("X-Amz-Secret", s.token("a signed header"))
	s.signed(r, "{}")
	c, err := s.admin.Retrieve(s.t.Context())
	s.must(err)
	c.SessionToken = s.token("a token that is none")
	s.signedWith(c, s.request("POST", "/StartTest", "{}"), "{}")
	c.SessionToken, c.SecretAccessKey = "", s.token("a wrong secret")
	s.signedWith(c, s.request("POST", "/StartTest", "{}"), "{}")
}

// TestSecrets_NotLogged: whatever clients do with secrets, their own or the service's,
// none is in what the service writes, in any form. TestSecrets_Mutation shows that
// it would be found.
func TestSecrets_NotLogged(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data, "--log-level", "debug", "--audit-stdout")
	s := &spill{running: r, secrets: map[string]string{}}
	pool := x509.NewCertPool()
	pool.AddCert(r.root)
	s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer s.client.CloseIdleConnections()
	for _, file := range []string{adminFile, installerFile} {
		text, err := os.ReadFile(filepath.Join(data, file))
		r.must(err)
		s.secrets[file] = string(regexp.MustCompile(`aws_secret_access_key = (\S+)`).FindSubmatch(text)[1])
	}
	_, err := r.mgn.InitializeService(t.Context(), &sdk.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	config := ca.Endpoint{Root: r.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.Service})
	unsigned := awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", TLS: config})
	defer unsigned.Close()
	session, err := awsapi.Call(t.Context(), unsigned, formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
	r.must(err)
	s.secrets["the agent's session"], s.secrets["the agent's token"] = string(session.SecretAccessKey), string(session.SessionToken)
	if _, err := a.command(); err != nil {
		t.Fatal(err)
	}
	used := credentials.NewStaticCredentialsProvider(session.AccessKeyId, string(session.SecretAccessKey), string(session.SessionToken))
	c, err := used.Retrieve(t.Context())
	r.must(err)
	s.signedWith(c, s.request("POST", "/StartTest", `{"sourceServerIDs":["s-00000000000000001"]}`), `{"sourceServerIDs":["s-00000000000000001"]}`)
	s.owner()
	s.strangers()
	if status := r.stop(); status != statusDone {
		t.Fatal(status)
	}
	texts := map[string]string{"an answer": s.answers.String(), "stderr": r.stderr.String(), "stdout": r.stdout.String()}
	files, err := audit.Files(filepath.Join(data, auditDir))
	r.must(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		r.must(err)
		texts[filepath.Base(file)] = string(text)
	}
	for _, leak := range leaks(texts, s.secrets) {
		t.Error(leak)
	}
	// It was said, and by all of them.
	for where, text := range texts {
		if want := map[bool]int{true: 40, false: 20}[where == "an answer"]; strings.Count(text, "\n") < want {
			t.Errorf("%s has only %d lines", where, strings.Count(text, "\n"))
		}
	}
	for _, want := range []string{`"decision":"refused"`, `"decision":"allowed"`, `"eventName":"CreateSessionForMgn"`, `"eventName":"ServiceStarted"`, `"eventName":"AgentRegistered"`, `"eventName":"CertificateIssued"`, `"eventName":"ServiceStopped"`} {
		if !strings.Contains(texts[filepath.Base(files[0])], want) || !strings.Contains(texts["stdout"], want) {
			t.Errorf("the audit log or its copy has no %s", want)
		}
	}
	if len(s.secrets) < 45 {
		t.Errorf("only %d secrets", len(s.secrets))
	}
	verdict := new(bytes.Buffer)
	if status := Run(t.Context(), []string{"audit", "verify", "--data", data}, verdict, verdict); status != statusDone {
		t.Errorf("verify: %d, %s", status, verdict)
	}
}

// TestSecrets_Mutation: a handler that leaks, in whatever way, is caught by the same
// search.
func TestSecrets_Mutation(t *testing.T) {
	const secret = "Sp1ll/+0123456789abcdef%=x"
	secrets := map[string]string{"the mutation": secret}
	key, err := identity.NewSealingKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	directory, err := identity.Open(t.Context(), identity.Options{Store: identity.NewMemoryStore(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	admin, err := directory.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, leak := range map[string]func(*slog.Logger) error{
		"logs it":         func(l *slog.Logger) error { l.Info("got it", "key", secret); return nil },
		"logs it in JSON": func(l *slog.Logger) error { l.Info("got it", "in", map[string]string{"key": secret}); return nil },
		"logs its bytes":  func(l *slog.Logger) error { l.Info(fmt.Sprintf("got %x", secret)); return nil },
		"logs a header": func(l *slog.Logger) error {
			l.Info("Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+secret)))
			return nil
		},
		"logs a URL":           func(l *slog.Logger) error { l.Info("/?x=" + url.QueryEscape(secret)); return nil },
		"fails with it":        func(*slog.Logger) error { return fmt.Errorf("the key %s is wrong", secret) },
		"answers with it":      func(*slog.Logger) error { return awsapi.Errorf(awsapi.Conflict, "the key %s is wrong", secret) },
		"does nothing with it": func(*slog.Logger) error { return nil },
	} {
		out, dir := new(bytes.Buffer), t.TempDir()
		log := slog.New(slog.NewTextHandler(out, nil))
		trail, err := audit.Open(dir, audit.Options{Keys: key.AuditKeys()})
		if err != nil {
			t.Fatal(err)
		}
		api := awsapi.New(awsapi.Options{Identity: directory, Region: "us-east-1", Log: log, Audit: trail}, mgn.Service)
		awsapi.Handle(api, mgn.InitializeService, func(context.Context, *mgn.InitializeServiceRequest) (*mgn.InitializeServiceResponse, error) {
			return nil, leak(log)
		})
		server := httptest.NewServer(api)
		client := awsapi.NewClient(awsapi.ClientOptions{Endpoint: server.URL, Region: "us-east-1", Attempts: 1,
			Credentials: credentials.NewStaticCredentialsProvider(admin.AccessKeyID, string(admin.SecretAccessKey), "")})
		_, _ = awsapi.Call(t.Context(), client, mgn.InitializeService, &mgn.InitializeServiceRequest{})
		client.Close()
		server.Close()
		if err := trail.Close(); err != nil {
			t.Fatal(err)
		}
		texts := map[string]string{"stderr": out.String()}
		files, err := audit.Files(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts["the audit log"] += string(text)
		}
		if found := leaks(texts, secrets); (len(found) > 0) != (what != "does nothing with it") {
			t.Errorf("a handler that %s: found %v", what, found)
		}
	}
}
