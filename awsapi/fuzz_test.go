package awsapi

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// fuzzTime is when the requests of the fuzzer were signed.
var fuzzTime = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// A fuzzed is a signed request as it goes over the wire.
type fuzzed struct {
	raw      []byte
	verifier *verifier
	lifetime time.Duration
	meaning  string
}

// fuzzRequests are signed by the official signer: in header and query, with
// and without a token, with parameters that repeat, and headers with folds.
func fuzzRequests(t testing.TB) (out []fuzzed) {
	t.Helper()
	for i := range 4 {
		presigned, token := i&1 != 0, []string{"", "FQoGZXIvYXdzEA//+="}[i>>1]
		body := []byte(`{"sourceServerIDs":["s-00000000000000001"]}`)
		r, err := http.NewRequest("POST", "https://rehost.example:8443/tags/arn%3Aaws%3Amgn?tagKeys=b&tagKeys=a%3Ab&x=%C3%A9~", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Content-Type": {"application/json"}, "X-Amz-Meta-A": {"a  b", "c"}}
		c := aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "secret", SessionToken: token}
		f := fuzzed{lifetime: maxSkew}
		if presigned {
			f.lifetime = time.Minute
			r.URL.RawQuery += "&X-Amz-Expires=60"
			target, header, err := v4.NewSigner().PresignHTTP(context.Background(), c, r, hashOf(string(body)), "mgn", "eu-west-1", fuzzTime)
			if err != nil {
				t.Fatal(err)
			}
			r.Header = header
			if r.URL, err = url.Parse(target); err != nil {
				t.Fatal(err)
			}
		} else if err := v4.NewSigner().SignHTTP(context.Background(), c, r, hashOf(string(body)), "mgn", "eu-west-1", fuzzTime); err != nil {
			t.Fatal(err)
		}
		var wire bytes.Buffer
		if err := r.Write(&wire); err != nil {
			t.Fatal(err)
		}
		f.raw = wire.Bytes()
		f.verifier = &verifier{keys: oneKey{"AKIDEXAMPLE", "secret", token}, region: "eu-west-1", early: earlyChecks, late: lateChecks,
			serves: func(service string) bool { return service == "mgn" }}
		in, read, err := parse(f.raw)
		if err != nil {
			t.Fatal(err)
		}
		f.meaning = meaningOf(in, read)
		if err := f.verifier.check(in, read, fuzzTime); err != nil {
			t.Fatalf("request %d, unchanged: %v\n%s", i, err, f.raw)
		}
		out = append(out, f)
	}
	return out
}

// FuzzVerify puts other bytes in the place of some of a signed request, wherever
// that is, and moves the clock. What then still verifies has to mean the same to
// whoever reads it, canonicalise to the same bytes, and be of its time.
func FuzzVerify(f *testing.F) {
	requests := fuzzRequests(f)
	for i, r := range requests {
		for _, part := range []string{"POST", "/tags/", "tagKeys=b", "Host", "8443", "X-Amz-Meta-A", "a  b", "X-Amz-Date", "20260601", "Signature=", "s-0000", "host"} {
			if at := bytes.Index(r.raw, []byte(part)); at >= 0 {
				f.Add(uint8(i), uint16(at), uint8(len(part)), []byte("x"), int32(0))
				f.Add(uint8(i), uint16(at), uint8(0), []byte(part+"\r\n"), int32(0))
				f.Add(uint8(i), uint16(at), uint8(1), []byte(" "), int32(i))
			}
		}
		f.Add(uint8(i), uint16(0), uint8(0), []byte{}, int32(-301))
		f.Add(uint8(i), uint16(0), uint8(0), []byte{}, int32(61))
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, length uint8, with []byte, seconds int32) {
		r := requests[int(which)%len(requests)]
		from := int(at) % len(r.raw)
		to := min(len(r.raw), from+int(length))
		raw := bytes.Join([][]byte{r.raw[:from], with, r.raw[to:]}, nil)
		in, body, err := parse(raw)
		if err != nil {
			return // net/http refuses it
		}
		skew := time.Duration(seconds) * time.Second
		err = r.verifier.check(in, body, fuzzTime.Add(skew))
		inTime := skew >= -maxSkew && skew <= r.lifetime
		switch {
		case err == nil && !inTime:
			t.Fatalf("verifies %v later", skew)
		case err == nil && meaningOf(in, body) != r.meaning:
			t.Fatalf("verifies, and means something else:\n%s", raw)
		case err != nil && bytes.Equal(raw, r.raw) && inTime:
			t.Fatalf("unchanged: %v", err)
		}
		if err != nil {
			return
		}
		same, sameBody, err := parse(r.raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := canonicalOf(t, in, body), canonicalOf(t, same, sameBody); got != want {
			t.Fatalf("verifies, and is signed as something else:\n%s\n\n%s", got, want)
		}
	})
}

// canonicalOf is the canonical request, with parameters in the order of the rule.
func canonicalOf(t *testing.T, r *http.Request, body []byte) string {
	t.Helper()
	s, err := readSignature(r)
	if err != nil {
		t.Fatal(err)
	}
	return canonicalRequest(r, s.path, canonicalQuery(s.query), s.headers, hashOf(string(body)))
}
