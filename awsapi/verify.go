package awsapi

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"rehost/identity"
)

// maxSkew is how far the clocks of client and server may be apart.
const maxSkew = 5 * time.Minute

// maxPresigned is the longest that a presigned URL may live.
const maxPresigned = 7 * 24 * time.Hour

// A signedRequest is a request whose signature was read but not yet verified.
type signedRequest struct {
	*http.Request
	path  string     // escaped, as it came
	query url.Values // without the signature

	keyID, token string
	scope        scope
	headers      []string // signed ones, in lower case, sorted
	signature    string
	time         string
	expires      time.Duration // of a presigned URL, else 0
}

// readSignature finds the signature in the Authorization header or in the
// query and checks its form. All that is wrong with it is an [*Error].
func readSignature(r *http.Request) (*signedRequest, error) {
	s := &signedRequest{Request: r}
	path, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	query, err := url.ParseQuery(rawQuery)
	if err != nil || !strings.HasPrefix(path, "/") || strings.Contains(path, "//") {
		return nil, unparsable("The request line cannot be parsed")
	}
	s.path, s.query = path, query
	authorization := r.Header["Authorization"]
	presigned := false
	for name := range query {
		presigned = presigned || strings.EqualFold(name, "X-Amz-Algorithm") || strings.EqualFold(name, "X-Amz-Signature")
	}
	switch {
	case len(authorization) == 0 && !presigned:
		return nil, Errorf(MissingAuthentication, "Missing Authentication Token: the request is not signed")
	case len(authorization) > 1 || len(authorization) == 1 && presigned:
		return nil, Errorf(IncompleteSignature, "The request is signed more than once")
	case presigned:
		err = s.readPresigned()
	default:
		err = s.readHeader(authorization[0])
	}
	if err != nil {
		return nil, err
	}
	return s, s.checkForm()
}

func incomplete(format string, args ...any) error {
	return Errorf(IncompleteSignature, format, args...)
}

// readHeader reads "AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…".
func (s *signedRequest) readHeader(authorization string) error {
	rest, ok := strings.CutPrefix(authorization, algorithm+" ")
	if !ok {
		return incomplete("The Authorization header does not begin with %s", algorithm)
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if _, twice := fields[name]; !ok || twice {
			return incomplete("The Authorization header is malformed")
		}
		fields[name] = value
	}
	if len(fields) != 3 {
		return incomplete("The Authorization header needs Credential, SignedHeaders and Signature")
	}
	var err error
	if s.time, err = one(s.Header["X-Amz-Date"], "X-Amz-Date"); err != nil {
		return err
	}
	if s.Header["X-Amz-Security-Token"] != nil {
		if s.token, err = one(s.Header["X-Amz-Security-Token"], "X-Amz-Security-Token"); err != nil {
			return err
		}
	}
	s.signature = fields["Signature"]
	s.headers = strings.Split(fields["SignedHeaders"], ";")
	return s.readCredential(fields["Credential"])
}

// readPresigned reads the X-Amz-… parameters of a presigned URL.
func (s *signedRequest) readPresigned() error {
	get := func(name string) (value string, err error) { return one(s.query[name], name) }
	fields := map[string]string{}
	for _, name := range []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature"} {
		value, err := get(name)
		if err != nil {
			return err
		}
		fields[name] = value
	}
	if fields["X-Amz-Algorithm"] != algorithm {
		return incomplete("X-Amz-Algorithm is not %s", algorithm)
	}
	seconds, err := strconv.Atoi(fields["X-Amz-Expires"])
	s.expires = time.Duration(seconds) * time.Second
	if err != nil || seconds <= 0 || s.expires > maxPresigned {
		return incomplete("X-Amz-Expires must be 1 to %d seconds", int(maxPresigned.Seconds()))
	}
	if s.query["X-Amz-Security-Token"] != nil {
		if s.token, err = get("X-Amz-Security-Token"); err != nil {
			return err
		}
	}
	s.time, s.signature = fields["X-Amz-Date"], fields["X-Amz-Signature"]
	s.headers = strings.Split(fields["X-Amz-SignedHeaders"], ";")
	delete(s.query, "X-Amz-Signature")
	return s.readCredential(fields["X-Amz-Credential"])
}

// one insists on exactly one value.
func one(values []string, name string) (string, error) {
	if len(values) != 1 || values[0] == "" {
		return "", incomplete("The request needs %s once", name)
	}
	return values[0], nil
}

var keyIDForm = regexp.MustCompile(`^[A-Z0-9]{4,128}$`)

func (s *signedRequest) readCredential(text string) error {
	parts := strings.Split(text, "/")
	if len(parts) != 5 || parts[4] != terminator || !keyIDForm.MatchString(parts[0]) {
		return incomplete("The Credential is not of the form key/date/region/service/%s", terminator)
	}
	s.keyID, s.scope = parts[0], scope{parts[1], parts[2], parts[3]}
	return nil
}

var (
	signatureForm  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	headerNameForm = regexp.MustCompile("^[a-z0-9!#$%&'*+.^_`|~-]+$")
)

// checkForm checks what header and query have in common, above all that
// everything that matters is covered by the signature.
func (s *signedRequest) checkForm() error {
	if !signatureForm.MatchString(s.signature) {
		return incomplete("The Signature is not 64 hexadecimal digits in lower case")
	}
	for i, name := range s.headers {
		if !headerNameForm.MatchString(name) || i > 0 && s.headers[i-1] >= name {
			return incomplete("SignedHeaders must be names in lower case, sorted, each once")
		}
		if len(headerValues(s.Request, name)) == 0 {
			return incomplete("The signed header %s is not in the request", name)
		}
	}
	if !slices.Contains(s.headers, "host") {
		return Errorf(InvalidSignature, "The header host must be signed")
	}
	for name := range s.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-") && !slices.Contains(s.headers, name) {
			return Errorf(InvalidSignature, "The header %s must be signed", name)
		}
	}
	return nil
}

// checkScope checks region, service and date of the credential.
func (s *signedRequest) checkScope(region string) error {
	if s.scope.region != region {
		return Errorf(InvalidSignature, "Credential should be scoped to a valid region, which is '%s'", region)
	}
	if !strings.HasPrefix(s.time, s.scope.date+"T") {
		return Errorf(InvalidSignature, "Date in Credential scope does not match the date of the request")
	}
	return nil
}

// checkTime checks that the signature is of now.
func (s *signedRequest) checkTime(now time.Time) error {
	signed, err := time.Parse(amzTime, s.time)
	if err != nil || len(s.time) != len(amzTime) {
		return incomplete("X-Amz-Date must be of the form %s", amzTime)
	}
	valid := maxSkew
	if s.expires > 0 {
		valid = s.expires
	}
	say := func(format string) error {
		return Errorf(InvalidSignature, format+"; is the clock of this machine right?", s.time, now.UTC().Format(amzTime))
	}
	switch {
	case signed.After(now.Add(maxSkew)):
		return say("Signature not yet current: %s is later than %s plus 5 minutes")
	case now.After(signed.Add(valid)):
		return say("Signature expired: %s is too early for %s")
	}
	return nil
}

// verify finds out who signed the request. Its body is read only if the key is
// known, so that strangers cannot make us hold it.
func (s *signedRequest) verify(ctx context.Context, d *identity.Directory, readBody func() ([]byte, error)) (*identity.Principal, error) {
	who, secret, err := d.Authenticate(ctx, s.keyID, s.token)
	switch {
	case errors.Is(err, identity.ErrExpired):
		return nil, Errorf(ExpiredToken, "The security token included in the request is expired")
	case errors.Is(err, identity.ErrUnknownKey), errors.Is(err, identity.ErrBadToken), errors.Is(err, identity.ErrRevoked):
		return nil, &reasonedError{Errorf(UnrecognizedClient, "The security token included in the request is invalid."), err.Error()}
	case err != nil:
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	body, err := readBody()
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(body)
	hash := hex.EncodeToString(digest[:])
	for _, claimed := range slices.Concat(s.Header["X-Amz-Content-Sha256"], s.query["X-Amz-Content-Sha256"]) {
		if claimed != hash {
			return nil, Errorf(InvalidSignature, "The x-amz-content-sha256 of the request is not that of its body")
		}
	}
	if !s.signedWith(secret, canonicalQuery(s.query), hash) &&
		(len(s.query) == 0 || !s.signedWith(secret, plainOrderQuery(s.query), hash)) {
		return nil, Errorf(InvalidSignature, "The request signature we calculated does not match the signature you provided. "+
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return who, nil
}

func (s *signedRequest) signedWith(secret identity.Secret, query, hash string) bool {
	want := signature(string(secret), s.scope, s.time, canonicalRequest(s.Request, s.path, query, s.headers, hash))
	return hmac.Equal([]byte(want), []byte(s.signature))
}

// A reasonedError tells the client one thing and the audit log more.
type reasonedError struct {
	answer *Error
	reason string
}

func (e *reasonedError) Error() string { return e.answer.Error() + ": " + e.reason }
func (e *reasonedError) Unwrap() error { return e.answer }
