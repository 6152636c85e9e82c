package awsapi

import (
	"crypto/sha256"
	"encoding/hex"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"rehost/identity"
)

// A crafted request is well signed, by somebody who has the secret, in every
// way that a form allows: what is wrong with it is not the signature.
type crafted struct {
	uri, body             string
	header                http.Header
	signed                []string
	region, service, date string
	time                  time.Time
	hash                  string              // what is signed; "" is that of the body
	after                 func(*http.Request) // changes it once it is signed
	presigned             bool                // the signature is in the query
	expires               string              // X-Amz-Expires of a presigned one; "" leaves it out
}

func (c *crafted) request(v *tested) *http.Request {
	r := httptest.NewRequest("POST", "/", nil)
	r.RequestURI, r.Host, r.Header = c.uri, "rehost.example:8443", c.header
	stamp := c.time.UTC().Format(amzTime)
	r.Header.Set("X-Amz-Date", stamp)
	if c.hash == "" {
		digest := sha256.Sum256([]byte(c.body))
		c.hash = hex.EncodeToString(digest[:])
	}
	if c.date == "" {
		c.date = stamp[:8]
	}
	in := scope{c.date, c.region, c.service}
	if c.presigned {
		c.presign(r, v, in, stamp)
		return r
	}
	path, _, _ := strings.Cut(c.uri, "?")
	canonical := canonicalRequest(r, path, "", c.signed, c.hash)
	r.Header.Set("Authorization", algorithm+" Credential="+v.key.AccessKeyID+"/"+in.String()+
		", SignedHeaders="+strings.Join(c.signed, ";")+", Signature="+signature(string(v.key.SecretAccessKey), in, stamp, canonical))
	if c.after != nil {
		c.after(r)
	}
	return r
}

// presign puts what makes a presigned URL into the query.
func (c *crafted) presign(r *http.Request, v *tested, in scope, stamp string) {
	r.Header.Del("X-Amz-Date")
	query := url.Values{"X-Amz-Algorithm": {algorithm}, "X-Amz-Credential": {v.key.AccessKeyID + "/" + in.String()}, "X-Amz-Date": {stamp}, "X-Amz-SignedHeaders": {"host"}}
	if c.expires != "" {
		query.Set("X-Amz-Expires", c.expires)
	}
	canonical := canonicalRequest(r, c.uri, canonicalQuery(query), []string{"host"}, c.hash)
	query.Set("X-Amz-Signature", signature(string(v.key.SecretAccessKey), in, stamp, canonical))
	r.RequestURI = c.uri + "?" + canonicalQuery(query)
}

// old makes a presigned URL of a service that was signed so long ago.
func (c *crafted) old(service string, age time.Duration, expires string) {
	c.presigned, c.service, c.expires, c.time = true, service, expires, c.time.Add(-age)
}

// sign adds a header and signs it too.
func (c *crafted) sign(name, value string) {
	c.header.Set(name, value)
	c.signed = append(c.signed, strings.ToLower(name))
	slices.Sort(c.signed)
}

// An attack is one thing wrong, which one check is there for.
type attack struct {
	name, check string
	change      func(*crafted)
	want        string // name of the error, "" if it is none
	text        string // in the error
}

// attacks are mistakes of others, by name, and one for each check at least.
var attacks = []attack{
	{"Honest", "", func(*crafted) {}, "", ""},
	{"HonestHash", "", func(c *crafted) { c.sign("X-Amz-Content-Sha256", hashOf(c.body)) }, "", ""},
	{"HonestTypeAndTarget", "", func(c *crafted) { c.sign("Content-Type", "application/json"); c.sign("X-Amz-Target", "x") }, "", ""},
	{"UnsignedHeaderOfOthers", "", func(c *crafted) { c.header.Set("User-Agent", "x"); c.header.Set("X-Forwarded-For", "10.0.0.1") }, "", ""},

	{"EmptySegment", "path", func(c *crafted) { c.uri = "//StartTest" }, Validation, "empty segment"},
	{"DotSegment", "path", func(c *crafted) { c.uri = "/./StartTest" }, Validation, "relative"},
	{"DotDotSegment", "path", func(c *crafted) { c.uri = "/x/../StartTest" }, Validation, "relative"},
	{"DotDotAtEnd", "path", func(c *crafted) { c.uri = "/StartTest/.." }, Validation, "relative"},
	{"SignatureInUpperCase", "signature form", func(c *crafted) {
		c.after = func(r *http.Request) {
			head, tail, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
			r.Header.Set("Authorization", head+"Signature="+strings.ToUpper(tail))
		}
	}, IncompleteSignature, "lower case"},
	{"SeaweedFS-9910-EmptyHeaderName", "header names", func(c *crafted) { c.signed = append([]string{""}, c.signed...) }, IncompleteSignature, "none of them empty"},
	{"HeaderNameInUpperCase", "header names", func(c *crafted) { c.signed = append([]string{"HOST"}, c.signed...) }, IncompleteSignature, "lower case"},
	{"HeaderNameWithNewline", "header names", func(c *crafted) { c.signed = append([]string{"a\nb"}, c.signed...) }, IncompleteSignature, "lower case"},
	{"HeadersUnsorted", "header order", func(c *crafted) { slices.Reverse(c.signed) }, IncompleteSignature, "sorted"},
	{"HeaderSignedTwice", "header order", func(c *crafted) { c.signed = append([]string{"host"}, c.signed...) }, IncompleteSignature, "each name once"},
	{"HeaderSignedButAbsent", "header present", func(c *crafted) { c.signed = append([]string{"accept"}, c.signed...) }, IncompleteSignature, "accept is not in the request"},
	{"S3Orchestrator-107-HostNotSigned", "host signed", func(c *crafted) { c.signed = []string{"x-amz-date"} }, InvalidSignature, "'Host'"},
	{"SeaweedFS-9121-AmzHeaderNotSigned", "x-amz headers signed", func(c *crafted) { c.header.Set("X-Amz-Target", "x") }, InvalidSignature, "'X-Amz-Target' must"},
	{"TokenAddedAfterSigning", "x-amz headers signed", func(c *crafted) {
		c.after = func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "AAAA") }
	}, InvalidSignature, "'X-Amz-Security-Token' must"},
	{"DateNotSigned", "x-amz headers signed", func(c *crafted) { c.signed = []string{"host"} }, InvalidSignature, "'X-Amz-Date' must"},
	{"ContentTypeNotSigned", "content-type signed", func(c *crafted) { c.header.Set("Content-Type", "application/json") }, InvalidSignature, "'Content-Type' must"},
	{"UnsignedPayload", "payload mode", func(c *crafted) { c.payload("UNSIGNED-PAYLOAD") }, InvalidSignature, "not supported"},
	{"MinIO-CVE-2025-31489-UnsignedTrailer", "payload mode", func(c *crafted) {
		c.payload("STREAMING-UNSIGNED-PAYLOAD-TRAILER")
		c.after = func(r *http.Request) { // the signature was not even looked at
			head, _, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
			r.Header.Set("Authorization", head+"Signature="+strings.Repeat("0", 64))
		}
	}, InvalidSignature, "not supported"},
	{"MinIO-CVE-2026-40344-UnsignedTrailer", "payload mode", func(c *crafted) {
		c.payload("STREAMING-UNSIGNED-PAYLOAD-TRAILER")
		c.sign("X-Amz-Trailer", "x-amz-checksum-crc32")
	}, InvalidSignature, "not supported"},
	{"StreamingSigned", "payload mode", func(c *crafted) { c.payload("STREAMING-AWS4-HMAC-SHA256-PAYLOAD") }, InvalidSignature, "not supported"},
	{"StreamingSignedTrailer", "payload mode", func(c *crafted) { c.payload("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER") }, InvalidSignature, "not supported"},
	{"BodyInChunks", "payload mode", func(c *crafted) { c.header.Set("Content-Encoding", "aws-chunked") }, InvalidSignature, "in pieces"},
	{"OtherRegion", "region", func(c *crafted) { c.region = "eu-west-2" }, InvalidSignature, "valid region, which is 'eu-west-1'"},
	{"GlobalRegionOfRegional", "region", func(c *crafted) { c.region = "us-east-1" }, InvalidSignature, "valid region"},
	{"GlobalRegionOfSts", "", func(c *crafted) { c.region, c.service = "us-east-1", "sts" }, "", ""},
	{"OwnRegionOfIam", "", func(c *crafted) { c.service = "iam" }, "", ""},
	{"OtherRegionOfIam", "region", func(c *crafted) { c.region, c.service = "eu-west-2", "iam" }, InvalidSignature, "valid region"},
	{"OtherService", "service", func(c *crafted) { c.service = "ec2" }, InvalidSignature, "correct service"},
	{"ScopeOfYesterday", "date of scope", func(c *crafted) { c.date = "20250101" }, InvalidSignature, "Date in Credential scope"},
	{"S3s-616-Replayed", "not expired", func(c *crafted) { c.time = c.time.Add(-maxSkew - 2*time.Second) }, InvalidSignature, "Signature expired: "},
	{"AlmostExpired", "", func(c *crafted) { c.time = c.time.Add(-maxSkew + 2*time.Second) }, "", ""},
	{"PresignedAlmostExpired", "", func(c *crafted) { c.old("mgn", 58*time.Second, "60") }, "", ""},
	{"PresignedExpired", "not expired", func(c *crafted) { c.old("mgn", 62*time.Second, "60") }, InvalidSignature, "Signature expired: "},
	{"PresignedWithoutEnd", "", func(c *crafted) { c.old("mgn", 0, "") }, IncompleteSignature, "X-Amz-Expires once"},
	{"PresignedWithoutEndOfIam", "", func(c *crafted) { c.old("iam", 0, "") }, IncompleteSignature, "X-Amz-Expires once"},
	{"PresignedForTooLong", "", func(c *crafted) { c.old("mgn", 0, "604801") }, IncompleteSignature, "1 to 604800"},
	{"PresignedForEver", "", func(c *crafted) { c.old("mgn", 0, "9223372036854775807") }, IncompleteSignature, "1 to 604800"},
	{"PresignedForNothing", "", func(c *crafted) { c.old("mgn", 0, "0") }, IncompleteSignature, "1 to 604800"},
	{"PresignedTokenOfEKS", "", func(c *crafted) { c.old("sts", 14*time.Minute, "60") }, "", ""},
	{"PresignedTokenWithoutEnd", "", func(c *crafted) { c.old("sts", presignedSTS-2*time.Second, "") }, "", ""},
	{"PresignedTokenWithoutEndTooOld", "not expired", func(c *crafted) { c.old("sts", presignedSTS+2*time.Second, "") }, InvalidSignature, "Signature expired: "},
	{"PresignedTokenOfAWeek", "not expired", func(c *crafted) { c.old("sts", presignedSTS+2*time.Second, "604800") }, InvalidSignature, "Signature expired: "},
	{"PresignedTokenOfNoNumber", "", func(c *crafted) { c.old("sts", 0, "x") }, IncompleteSignature, "1 to 604800"},
	{"PresignedTokenFromTheFuture", "not from the future", func(c *crafted) { c.old("sts", -maxSkew-2*time.Second, "") }, InvalidSignature, "Signature not yet current: "},
	{"FromTheFuture", "not from the future", func(c *crafted) { c.time = c.time.Add(maxSkew + 2*time.Second) }, InvalidSignature, "Signature not yet current: "},
	{"AlmostFromTheFuture", "", func(c *crafted) { c.time = c.time.Add(maxSkew - 2*time.Second) }, "", ""},
	{"HashOfAnotherBody", "claimed body hash", func(c *crafted) { c.sign("X-Amz-Content-Sha256", hashOf("another")) }, InvalidSignature, "is not that of its body"},
	{"HashSignedOfAnotherBody", "signature", func(c *crafted) { c.hash = hashOf("another") }, InvalidSignature, "does not match"},
	{"SeaweedFS-10284-ForwardedHost", "signature", func(c *crafted) {
		c.after = func(r *http.Request) {
			r.Header.Set("X-Forwarded-Host", r.Host)
			r.Header.Set("Forwarded", "host="+r.Host)
			r.Host = "elsewhere.example"
		}
	}, InvalidSignature, "does not match"},
	{"SignatureOfNothing", "signature", func(c *crafted) {
		c.after = func(r *http.Request) {
			head, _, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
			r.Header.Set("Authorization", head+"Signature="+strings.Repeat("0", 64))
		}
	}, InvalidSignature, "does not match"},
}

// payload signs a request in one of the forms of S3, as S3 would have it.
func (c *crafted) payload(mode string) {
	c.sign("X-Amz-Content-Sha256", mode)
	c.hash = mode
}

func hashOf(body string) string {
	digest := sha256.Sum256([]byte(body))
	return hex.EncodeToString(digest[:])
}

// try is whether the verifier answers the attack as it must, and how it did.
func (a attack) try(v *tested) (error, bool) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	c := &crafted{uri: "/StartTest", body: "{}", header: http.Header{}, signed: []string{"host", "x-amz-date"}, region: "eu-west-1", service: "mgn", time: now}
	a.change(c)
	err := v.check(c.request(v), []byte(c.body), now)
	if err == nil || a.want == "" {
		return err, err == nil && a.want == ""
	}
	return err, strings.HasPrefix(err.Error(), a.want+": ") && strings.Contains(err.Error(), a.text)
}

func TestVerify_Attacks(t *testing.T) {
	v := newTested(t)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			if err, ok := a.try(v); !ok {
				t.Errorf("got %v, want %q with %q", err, a.want, a.text)
			}
		})
	}
}

// TestVerify_ChecksAreMissed leaves out each check in turn. The attacks on it
// must then go another way, or they would not notice that it is gone; and those
// that the signature itself does not stop must get in.
func TestVerify_ChecksAreMissed(t *testing.T) {
	opens := []string{"path", "header order", "host signed", "x-amz headers signed", "content-type signed", "region", "service",
		"date of scope", "not from the future", "not expired", "claimed body hash", "signature"}
	for _, check := range slices.Concat(earlyChecks, lateChecks) {
		v := newTested(t)
		v.early, v.late = without(earlyChecks, check.name), without(lateChecks, check.name)
		tried, entered := 0, 0
		for _, a := range attacks {
			if a.check != check.name {
				continue
			}
			tried++
			err, ok := a.try(v)
			if ok {
				t.Errorf("%s does not miss the check %q", a.name, check.name)
			}
			if err == nil {
				entered++
			}
		}
		if tried == 0 {
			t.Errorf("no attack is on the check %q", check.name)
		}
		if slices.Contains(opens, check.name) && entered == 0 {
			t.Errorf("nothing gets in without the check %q", check.name)
		}
	}
}

func without(checks []check, name string) []check {
	return slices.DeleteFunc(slices.Clone(checks), func(c check) bool { return c.name == name })
}

// TestVerify_TokenOfAnotherKey signs well with a temporary key and shows the
// token of another session, or none.
func TestVerify_TokenOfAnotherKey(t *testing.T) {
	v := newTested(t)
	mine, other := v.session(t), v.session(t)
	for name, test := range map[string]struct{ token, want string }{
		"Own": {string(mine.key.SessionToken), ""}, "Other": {string(other.key.SessionToken), UnrecognizedClient}, "None": {"", UnrecognizedClient},
	} {
		for _, presign := range []bool{false, true} {
			r, err := http.NewRequest("POST", "https://rehost.example:8443/StartTest", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			thief := *mine
			thief.key.SessionToken = identity.Secret(test.token)
			err = v.check(thief.sign(t, r, []byte("{}"), presign), []byte("{}"), time.Now())
			if got := nameOf(err); got != test.want {
				t.Errorf("%s, presigned %v: got %v, want %q", name, presign, err, test.want)
			}
		}
	}
}

func nameOf(err error) string {
	if err == nil {
		return ""
	}
	name, _, _ := strings.Cut(err.Error(), ":")
	return name
}

// TestVerify_RepeatedQueryValues (SeaweedFS 10031): values of one name are signed
// in sorted order. Whoever reads the query gets them so as well, because nothing
// says in which order they were sent.
func TestVerify_RepeatedQueryValues(t *testing.T) {
	v := newTested(t)
	r, err := http.NewRequest("DELETE", "https://rehost.example:8443/tags/x?tagKeys=b&tagKeys=a%3Ab&tagKeys=a1&tagKeys=a", nil)
	if err != nil {
		t.Fatal(err)
	}
	in := v.sign(t, r, nil, false)
	var got []string
	for _, uri := range []string{in.RequestURI, "/tags/x?tagKeys=a&tagKeys=a1&tagKeys=b&tagKeys=a%3Ab"} {
		in.RequestURI = uri
		if err := v.check(in, nil, time.Now()); err != nil {
			t.Fatal(err)
		}
		s, err := readSignature(in)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.Join(s.query["tagKeys"], " "))
	}
	if got[0] != got[1] || got[0] != "a a1 a:b b" {
		t.Errorf("the order of the values tells requests apart that are signed alike: %q", got)
	}
	in.RequestURI = "/tags/x?tagKeys=a&tagKeys=a1&tagKeys=b&tagKeys=b"
	if err := v.check(in, nil, time.Now()); err == nil {
		t.Error("another value was accepted")
	}
}

// TestVerify_ConstantTime (MinIO 5334): nothing but hmac.Equal may look at a
// signature, as == tells by its time how much of a guess is right.
func TestVerify_ConstantTime(t *testing.T) {
	files := token.NewFileSet()
	compared := 0
	for _, name := range []string{"verify.go", "checks.go", "canonical.go"} {
		file, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr:
				for _, side := range []ast.Expr{n.X, n.Y} {
					if s, ok := side.(*ast.SelectorExpr); ok && (s.Sel.Name == "signature" || s.Sel.Name == "secret") {
						t.Errorf("%v: compared with %v", files.Position(n.Pos()), n.Op)
					}
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "hmac" && n.Sel.Name == "Equal" {
					compared++
				}
			}
			return true
		})
	}
	if compared != 1 {
		t.Errorf("hmac.Equal is used %d times, want once", compared)
	}
}
