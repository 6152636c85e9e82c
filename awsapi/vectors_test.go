package awsapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rehost/identity"
)

// A vector is one case of testdata/vectors.
type vector struct {
	name, refused         string // "" where it has to verify
	key, secret, token    string
	region, service       string
	now                   time.Time
	path, canonicalSHA256 string
	signature             string
	raw                   []byte // the request as it comes
}

// readVectors fails when there are none: a test of nothing would pass.
func readVectors(t testing.TB) []vector {
	t.Helper()
	files, err := filepath.Glob("testdata/vectors/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	var out []vector
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, part := range strings.Split(string(text), "\n== ") {
			if i == 0 {
				continue // the comment
			}
			v, err := readVector(part)
			if err != nil {
				t.Fatalf("%s: %s: %v", file, v.name, err)
			}
			v.name = strings.TrimSuffix(filepath.Base(file), ".txt") + "/" + v.name
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		t.Fatal("no vectors")
	}
	return out
}

func readVector(text string) (v vector, err error) {
	head, request, ok := strings.Cut(text, "\n\n")
	name, head, _ := strings.Cut(head, "\n")
	v.name = name
	if !ok {
		return v, fmt.Errorf("no request")
	}
	fields := map[string]string{}
	for line := range strings.SplitSeq(head, "\n") {
		name, value, _ := strings.Cut(line, ": ")
		fields[name] = value
	}
	if v.now, err = time.Parse(time.RFC3339, fields["now"]); err != nil {
		return v, err
	}
	v.key, v.secret, v.token = fields["key"], fields["secret"], fields["token"]
	v.path, v.canonicalSHA256, v.signature = fields["path"], fields["canonical-sha256"], fields["signature"]
	v.region, v.service, _ = strings.Cut(fields["scope"], "/")
	switch expect := fields["expect"]; {
	case expect == "success":
	case strings.HasPrefix(expect, "refused: "):
		v.refused = strings.TrimPrefix(expect, "refused: ")
	default:
		return v, fmt.Errorf("expect %q", expect)
	}
	header, body, _ := strings.Cut(strings.TrimRight(request, "\n"), "\n\n")
	v.raw = []byte(strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\n" + body)
	return v, nil
}

// oneKey is a keyring with one key.
type oneKey struct{ id, secret, token string }

func (k oneKey) Authenticate(_ context.Context, id, token string) (*identity.Principal, identity.Secret, error) {
	switch {
	case id != k.id:
		return nil, "", identity.ErrUnknownKey
	case token != k.token:
		return nil, "", identity.ErrBadToken
	}
	return &identity.Principal{AccessKeyID: id}, identity.Secret(k.secret), nil
}

func (v *vector) verifier() *verifier {
	return &verifier{keys: oneKey{v.key, v.secret, v.token}, region: v.region, early: earlyChecks, late: lateChecks,
		serves: func(service string) bool { return service == v.service }}
}

// parse reads a request as net/http's server does.
func parse(raw []byte) (*http.Request, []byte, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(r.Body)
	return r, body, err
}

// TestVectors verifies what AWS publishes, and sees that each request is
// refused when any one thing of it is another.
func TestVectors(t *testing.T) {
	verified := 0
	for _, v := range readVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			r, body, err := parse(v.raw)
			if v.refused == "a space in the path is no HTTP" {
				if err == nil {
					t.Error("net/http took it")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			v.compareCanonical(t, r, body)
			err = v.verifier().check(r, body, v.now)
			if v.refused != "" {
				if err == nil {
					t.Errorf("verified, although %s", v.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			verified++
			v.change(t)
		})
	}
	if verified != 46 { // of 76; the others say why not
		t.Errorf("%d vectors verify", verified)
	}
}

// compareCanonical compares the canonical request and the signature, also of
// what is refused. It is given the path that the vector has normalised.
func (v *vector) compareCanonical(t *testing.T, r *http.Request, body []byte) {
	t.Helper()
	s, err := readSignature(r)
	if err != nil {
		t.Fatal(err)
	}
	if v.refused == "the token is not signed" {
		s.query.Del("X-Amz-Security-Token")
	}
	digest := sha256.Sum256(body)
	canonical := canonicalRequest(r, v.path, canonicalQuery(s.query), s.headers, hex.EncodeToString(digest[:]))
	digest = sha256.Sum256([]byte(canonical))
	if got := hex.EncodeToString(digest[:]); got != v.canonicalSHA256 {
		t.Errorf("the canonical request is another one:\n%s", canonical)
	}
	if got := signature(v.secret, s.scope, s.time, canonical); got != v.signature {
		t.Errorf("got signature %s, want %s", got, v.signature)
	}
}

// change alters one thing at a time: every byte of the request line and of the
// signed headers' values, and the body. What still verifies has to mean the same.
func (v *vector) change(t *testing.T) {
	original, body, err := parse(v.raw)
	if err != nil {
		t.Fatal(err)
	}
	want, tried := meaningOf(original, body), 0
	for at := range v.raw {
		for _, c := range []byte{'x', ' ', '&', v.raw[at] ^ 0x20} {
			raw := bytes.Clone(v.raw)
			if raw[at] == c {
				continue
			}
			raw[at] = c
			r, body, err := parse(raw)
			if err != nil {
				continue
			}
			tried++
			if err := v.verifier().check(r, body, v.now); err == nil && meaningOf(r, body) != want {
				t.Errorf("verifies with byte %d as %q:\n%s", at, c, raw)
			}
		}
	}
	if tried < 100 {
		t.Errorf("only %d changes were tried", tried)
	}
}

// meaningOf is all that a service may go by, written without the code under
// test. Order of parameters and of headers, runs of spaces in headers, and
// headers that nobody has signed and that are none of AWS's, mean nothing.
func meaningOf(r *http.Request, body []byte) string {
	var b strings.Builder
	path, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	fmt.Fprintf(&b, "%s %q %q\n", r.Method, r.Host, path)
	query, _ := url.ParseQuery(rawQuery)
	for _, values := range query {
		slices.Sort(values)
	}
	fmt.Fprintf(&b, "%q\n", query) // a map is printed sorted by its keys
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if strings.HasPrefix(name, "X-Amz-") || strings.HasPrefix(name, "My-") || name == "Content-Type" {
			for _, value := range r.Header[name] {
				fmt.Fprintf(&b, "%s:%s,", name, strings.Join(strings.Fields(value), " "))
			}
		}
	}
	fmt.Fprintf(&b, "\n%q", body)
	return b.String()
}
