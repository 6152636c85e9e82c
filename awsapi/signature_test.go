package awsapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"rehost/identity"
)

// A tested is a verifier of a directory, with one of its keys.
type tested struct {
	*verifier
	directory *identity.Directory
	key       identity.Credentials
}

func newTested(t testing.TB) *tested {
	t.Helper()
	key, err := identity.NewSealingKey(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	d, err := identity.Open(context.Background(), identity.Options{Store: identity.NewMemoryStore(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Bootstrap(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	v := &verifier{keys: d, region: "eu-west-1", now: time.Now, early: earlyChecks, late: lateChecks,
		serves: func(service string) bool { return service == "mgn" || service == "sts" || service == "iam" }}
	return &tested{v, d, c}
}

// session swaps the key for a temporary one.
func (v *tested) session(t testing.TB) *tested {
	t.Helper()
	c, err := v.directory.AssumeRoleAsService(context.Background(), identity.ServiceName, identity.AssumeRole{Role: identity.AgentRole, Session: "s-00000000000000001", SourceIdentity: "s-00000000000000001"})
	if err != nil {
		t.Fatal(err)
	}
	return &tested{v.verifier, v.directory, c}
}

func fixedBody(body []byte) func() ([]byte, error) {
	return func() ([]byte, error) { return body, nil }
}

// check reads and verifies a request as the server does.
func (v *verifier) check(r *http.Request, body []byte, now time.Time) error {
	s, err := readSignature(r)
	if err != nil {
		return err
	}
	at := *v
	at.now = func() time.Time { return now }
	_, err = at.verify(r.Context(), s, fixedBody(body))
	return err
}

// randomRequest makes a request of the kinds that clients send, and odder ones.
func randomRequest(rnd *rand.Rand) (r *http.Request, body []byte) {
	text := func(letters string, n int) string {
		b := make([]rune, rnd.IntN(n))
		for i := range b {
			b[i] = []rune(letters)[rnd.IntN(len([]rune(letters)))]
		}
		return string(b)
	}
	const odd = "abcXYZ019-_.~ !*'();:@&=+$,/?#[]%é漢\""
	path := "/tags/" + url.PathEscape("a"+text(odd, 20))
	query := url.Values{}
	for range rnd.IntN(5) {
		name := "k" + text(odd, 6)
		for range 1 + rnd.IntN(3) {
			query.Add(name, text(odd, 10))
		}
	}
	body = []byte(text(odd, 50))
	target := "https://rehost.example:8443" + path
	if len(query) > 0 {
		target += "?" + strings.ReplaceAll(query.Encode(), "+", "%20")
	}
	method := []string{"GET", "POST", "DELETE"}[rnd.IntN(3)]
	r, err := http.NewRequest(method, target, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	for range rnd.IntN(4) {
		r.Header.Add("X-Amz-Meta-"+string(rune('a'+rnd.IntN(3))), text("ab  c,=", 9))
	}
	return r, body
}

// received is the request as a server has it after it went over the wire.
func received(t testing.TB, r *http.Request) *http.Request {
	t.Helper()
	in := httptest.NewRequest(r.Method, r.URL.RequestURI(), nil)
	in.Host = r.URL.Host
	in.Header = r.Header.Clone()
	in.ContentLength = r.ContentLength
	return in
}

// TestVerify_OfficialSigner checks random requests, signed by the signer of the
// official SDK in the header and in the query.
func TestVerify_OfficialSigner(t *testing.T) {
	v := newTested(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	session := v.session(t)
	for i := range 800 {
		r, body := randomRequest(rnd)
		in := []*tested{v, session}[i/2%2].sign(t, r, body, i%2 == 1)
		if err := v.check(in, body, time.Now()); err != nil {
			t.Fatalf("request %d: %v: %s %s %v", i, err, in.Method, in.RequestURI, in.Header)
		}
	}
}

func (v *tested) sign(t testing.TB, r *http.Request, body []byte, presign bool) *http.Request {
	t.Helper()
	c := aws.Credentials{AccessKeyID: v.key.AccessKeyID, SecretAccessKey: string(v.key.SecretAccessKey), SessionToken: string(v.key.SessionToken)}
	digest := sha256.Sum256(body)
	hash := hex.EncodeToString(digest[:])
	if !presign {
		if err := v4.NewSigner().SignHTTP(context.Background(), c, r, hash, "mgn", "eu-west-1", time.Now()); err != nil {
			t.Fatal(err)
		}
		return received(t, r)
	}
	query := r.URL.Query()
	query.Set("X-Amz-Expires", "60")
	r.URL.RawQuery = query.Encode()
	target, header, err := v4.NewSigner().PresignHTTP(context.Background(), c, r, hash, "mgn", "eu-west-1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if r.URL, err = url.Parse(target); err != nil {
		t.Fatal(err)
	}
	r.Header = header
	return received(t, r)
}

// TestVerify_Mutated changes signed requests in one place each. Whatever means
// something else must be refused.
func TestVerify_Mutated(t *testing.T) {
	v := newTested(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	tried := map[string]int{}
	for i := range 900 {
		r, body := randomRequest(rnd)
		in := v.sign(t, r, body, i%2 == 1)
		what, now := "", time.Now()
		in, body, now, what = mutate(rnd, in, body, now)
		if what == "" {
			continue
		}
		tried[what]++
		if err := v.check(in, body, now); err == nil {
			t.Errorf("request %d was accepted after a change of its %s: %s %s %v", i, what, in.Method, in.RequestURI, in.Header)
		}
	}
	for _, what := range []string{"method", "path", "query", "header", "unsigned header", "body", "time", "date", "scope", "signature", "host", "key"} {
		if tried[what] == 0 {
			t.Errorf("no change of the %s was tried", what)
		}
	}
	t.Log(tried)
}

// mutate changes one thing and names it, or "" if this request has none such.
func mutate(rnd *rand.Rand, r *http.Request, body []byte, now time.Time) (*http.Request, []byte, time.Time, string) {
	authorization := r.Header.Get("Authorization")
	replace := func(old, with string) bool {
		if authorization != "" {
			changed := strings.Replace(authorization, old, with, 1)
			r.Header.Set("Authorization", changed)
			return changed != authorization
		}
		old, with = url.QueryEscape(old), url.QueryEscape(with)
		changed := strings.Replace(r.RequestURI, old, with, 1)
		done := changed != r.RequestURI
		r.RequestURI = changed
		return done
	}
	path, query, _ := strings.Cut(r.RequestURI, "?")
	switch rnd.IntN(12) {
	case 0:
		r.Method = map[string]string{"GET": "POST", "POST": "DELETE", "DELETE": "GET"}[r.Method]
		return r, body, now, "method"
	case 1:
		at := 1 + rnd.IntN(len(path)-1)
		r.RequestURI = path[:at] + "q" + path[at:] + "?" + query
		return r, body, now, "path"
	case 2:
		r.RequestURI = path + "?" + query + "&added=1"
		return r, body, now, "query"
	case 3:
		for name, values := range r.Header {
			if strings.HasPrefix(name, "X-Amz-Meta") {
				r.Header[name] = append(values[:len(values):len(values)], "more")
				return r, body, now, "header"
			}
		}
		return r, body, now, ""
	case 4:
		r.Header.Set("X-Amz-Added", "1")
		return r, body, now, "unsigned header"
	case 5:
		return r, append(bytes.Clone(body), 'x'), now, "body"
	case 6:
		late := []time.Duration{-maxSkew - 2*time.Second, 61*time.Second + maxSkew}[rnd.IntN(2)]
		return r, body, now.Add(late), "time"
	case 7:
		if r.Header.Get("X-Amz-Date") == "" {
			return r, body, now, ""
		}
		r.Header.Set("X-Amz-Date", now.Add(time.Second*time.Duration(2+rnd.IntN(60))).UTC().Format(amzTime))
		return r, body, now, "date"
	case 8:
		if replace("/eu-west-1/mgn/", "/eu-west-2/mgn/") {
			return r, body, now, "scope"
		}
	case 9:
		_, hexadecimal, _ := strings.Cut(authorization+"&"+query, "Signature=")
		first, other := hexadecimal[:1], "0"
		if first == "0" {
			other = "1"
		}
		r.Header.Set("Authorization", strings.Replace(authorization, "Signature="+first, "Signature="+other, 1))
		if authorization == "" {
			delete(r.Header, "Authorization")
			r.RequestURI = strings.Replace(r.RequestURI, "Signature="+first, "Signature="+other, 1)
		}
		return r, body, now, "signature"
	case 10:
		r.Host = "elsewhere.example:8443"
		return r, body, now, "host"
	case 11:
		if replace("AKIA", "AKIB") {
			return r, body, now, "key"
		}
	}
	return r, body, now, ""
}

// TestVerify_Refused walks through what a stranger may try, one by one, each a
// mistake that somebody shipped.
func TestVerify_Refused(t *testing.T) {
	v := newTested(t)
	for _, test := range []struct {
		name   string
		change func(r *http.Request)
		want   string
	}{
		{"Nothing", func(*http.Request) {}, ""},
		{"NotSigned", func(r *http.Request) { r.Header.Del("Authorization") }, MissingAuthentication},
		{"OtherAlgorithm", func(r *http.Request) { edit(r, "HMAC-SHA256", "HMAC-SHA1") }, IncompleteSignature},
		{"Twice", func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }, IncompleteSignature},
		{"HeaderAndQuery", func(r *http.Request) { r.RequestURI += "?X-Amz-Signature=00" }, IncompleteSignature},
		{"QueryInLowerCase", func(r *http.Request) { r.RequestURI += "?x-amz-signature=00" }, IncompleteSignature},
		{"EmptyHeaderName", func(r *http.Request) { edit(r, "SignedHeaders=", "SignedHeaders=;") }, IncompleteSignature},
		{"HostNotSigned", func(r *http.Request) { edit(r, ";host", "") }, InvalidSignature},
		{"AmzHeaderNotSigned", func(r *http.Request) { r.Header.Set("X-Amz-Target", "x") }, InvalidSignature},
		{"SignedHeaderAbsent", func(r *http.Request) { edit(r, ";host", ";forwarded;host") }, IncompleteSignature},
		{"SignedHeaderRepeated", func(r *http.Request) { edit(r, ";host", ";host;host") }, IncompleteSignature},
		{"DateTwice", func(r *http.Request) { r.Header.Add("X-Amz-Date", r.Header.Get("X-Amz-Date")) }, IncompleteSignature},
		{"UnknownKey", func(r *http.Request) { edit(r, "=AKIA", "=AKIB") }, UnrecognizedClient},
		{"NoCredential", func(r *http.Request) { edit(r, "Credential=", "Credentials=") }, IncompleteSignature},
		{"OneFieldMore", func(r *http.Request) { edit(r, "Signature=", "Extra=1, Signature=") }, IncompleteSignature},
		{"CredentialTwice", func(r *http.Request) { edit(r, "SignedHeaders=", "Credential=x, SignedHeaders=") }, IncompleteSignature},
		{"TokenOfNobody", func(r *http.Request) {
			r.Header.Set("X-Amz-Security-Token", "AAAA")
			edit(r, "x-amz-date", "x-amz-date;x-amz-security-token")
		}, UnrecognizedClient},
		{"SignatureInUpperCase", func(r *http.Request) {
			head, tail, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
			r.Header.Set("Authorization", head+"Signature="+strings.ToUpper(tail))
		}, IncompleteSignature},
		{"SignatureEmpty", func(r *http.Request) {
			head, _, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
			r.Header.Set("Authorization", head+"Signature=")
		}, IncompleteSignature},
		{"AbsoluteForm", func(r *http.Request) { r.RequestURI = "https://rehost.example:8443" + r.RequestURI }, Validation},
		{"SemicolonInQuery", func(r *http.Request) { r.RequestURI += "?a=1;b=2" }, Validation},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := http.NewRequest("POST", "https://rehost.example:8443/StartTest", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			in := v.sign(t, r, []byte("{}"), false)
			test.change(in)
			err = v.check(in, []byte("{}"), time.Now())
			got := ""
			if err != nil {
				got, _, _ = strings.Cut(err.Error(), ":")
			}
			if got != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func edit(r *http.Request, old, with string) {
	text := r.Header.Get("Authorization")
	changed := strings.Replace(text, old, with, 1)
	if changed == text {
		panic("nothing to change: " + text)
	}
	r.Header.Set("Authorization", changed)
}

func TestClockHint(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for skew, want := range map[time.Duration]string{0: "", time.Minute: "", 6 * time.Minute: "6m0s ahead", -time.Hour: "1h0m0s behind"} {
		got := clockHint(now.Format(http.TimeFormat), now.Add(skew))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%v: got %q, want %q", skew, got, want)
		}
	}
}

// BenchmarkVerify is what a signed call costs before its handler: reading the
// signature, finding the key, verifying, authorizing.
func BenchmarkVerify(b *testing.B) {
	v := newTested(b)
	body := []byte(`{"sourceServerID":"s-00000000000000001"}`)
	for _, test := range []struct {
		name    string
		session bool
	}{{"User", false}, {"Session", true}} {
		b.Run(test.name, func(b *testing.B) {
			key := v.key
			if test.session {
				key = v.session(b).key
			}
			r, err := http.NewRequest("POST", "https://rehost.example:8443/GetAgentCommandForMgn", bytes.NewReader(body))
			if err != nil {
				b.Fatal(err)
			}
			digest := sha256.Sum256(body)
			c := aws.Credentials{AccessKeyID: key.AccessKeyID, SecretAccessKey: string(key.SecretAccessKey), SessionToken: string(key.SessionToken)}
			if err := v4.NewSigner().SignHTTP(context.Background(), c, r, hex.EncodeToString(digest[:]), "mgn", "eu-west-1", time.Now()); err != nil {
				b.Fatal(err)
			}
			in := received(b, r)
			b.ReportAllocs()
			for b.Loop() {
				s, err := readSignature(in)
				if err != nil {
					b.Fatal(err)
				}
				who, err := v.verify(context.Background(), s, fixedBody(body))
				if err != nil {
					b.Fatal(err)
				}
				arn := "arn:aws:mgn:eu-west-1:" + who.Account + ":source-server/s-00000000000000001"
				if d := v.directory.Authorize(who, "mgn:GetAgentCommandForMgn", arn, nil); !d.Allowed {
					b.Fatal(d.Reason())
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		})
	}
}
