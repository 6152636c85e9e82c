package awsapi

import (
	"context"
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

const (
	// maxPresigned is the longest that a presigned URL may live.
	maxPresigned = 7 * 24 * time.Hour
	// presignedSTS is how long one of sts lives, always. STS does not ask for
	// X-Amz-Expires and does not look at it, and those who make tokens of such URLs
	// rely on that: they leave it out, or write 60 and go on for 14 minutes.
	// https://github.com/kubernetes-sigs/aws-iam-authenticator/blob/master/pkg/token/token.go
	presignedSTS = 15 * time.Minute
)

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

	secret   identity.Secret // of keyID, once it is known
	bodyHash string          // of what came, never what the request says of it
}

// readSignature finds the signature in the Authorization header or in the
// query. All that is wrong with it is an [*Error].
func readSignature(r *http.Request) (*signedRequest, error) {
	s := &signedRequest{Request: r}
	path, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	query, err := url.ParseQuery(rawQuery)
	if err != nil || !strings.HasPrefix(path, "/") {
		return nil, unparsable("The request line cannot be parsed")
	}
	for _, values := range query {
		slices.Sort(values) // the signature says nothing of their order, so it may not mean anything
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
	return s, nil
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
	missing := ""
	for _, name := range []string{"Credential", "Signature", "SignedHeaders"} {
		if fields[name] == "" {
			missing += "Authorization header requires '" + name + "' parameter. "
		}
	}
	switch {
	case missing != "":
		return incomplete("%s", strings.TrimSpace(missing))
	case len(fields) != 3:
		return incomplete("The Authorization header has more than Credential, SignedHeaders and Signature")
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
	for _, name := range []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature"} {
		value, err := get(name)
		if err != nil {
			return err
		}
		fields[name] = value
	}
	if fields["X-Amz-Algorithm"] != algorithm {
		return incomplete("X-Amz-Algorithm is not %s", algorithm)
	}
	if err := s.readCredential(fields["X-Amz-Credential"]); err != nil {
		return err
	}
	if err := s.readExpires(); err != nil {
		return err
	}
	if s.Header["X-Amz-Security-Token"] != nil {
		return incomplete("The X-Amz-Security-Token of a presigned URL belongs into its query")
	}
	if s.query["X-Amz-Security-Token"] != nil {
		var err error
		if s.token, err = get("X-Amz-Security-Token"); err != nil {
			return err
		}
	}
	s.time, s.signature = fields["X-Amz-Date"], fields["X-Amz-Signature"]
	s.headers = strings.Split(fields["X-Amz-SignedHeaders"], ";")
	delete(s.query, "X-Amz-Signature")
	return nil
}

// readExpires reads how long a presigned URL lives, which it has to say unless it is of sts.
func (s *signedRequest) readExpires() error {
	sts := s.scope.service == "sts"
	if sts && s.query["X-Amz-Expires"] == nil {
		s.expires = presignedSTS
		return nil
	}
	text, err := one(s.query["X-Amz-Expires"], "X-Amz-Expires")
	if err != nil {
		return err
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds <= 0 || seconds > int(maxPresigned.Seconds()) {
		return incomplete("X-Amz-Expires must be 1 to %d seconds", int(maxPresigned.Seconds()))
	}
	s.expires = time.Duration(seconds) * time.Second
	if sts {
		s.expires = presignedSTS
	}
	return nil
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

// A keyring says whom an access key and a session token stand for, and with
// which secret they sign; [identity.Directory] is one, and has the errors.
type keyring interface {
	Authenticate(ctx context.Context, accessKeyID, sessionToken string) (*identity.Principal, identity.Secret, error)
}

// A verifier finds out who signed a request.
type verifier struct {
	keys        keyring
	region      string
	serves      func(service string) bool
	now         func() time.Time
	early, late []check // checks.go
}

// verify takes the request through all checks. Its body is read only if the
// key is known, so that strangers cannot make us hold it.
func (v *verifier) verify(ctx context.Context, s *signedRequest, readBody func() ([]byte, error)) (*identity.Principal, error) {
	for _, c := range v.early {
		if err := c.do(v, s); err != nil {
			return nil, err
		}
	}
	who, secret, err := v.keys.Authenticate(ctx, s.keyID, s.token)
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
	s.secret, s.bodyHash = secret, hex.EncodeToString(digest[:])
	for _, c := range v.late {
		if err := c.do(v, s); err != nil {
			return nil, err
		}
	}
	return who, nil
}

// A reasonedError tells the client one thing and the audit log more.
type reasonedError struct {
	answer error
	reason string
}

// WithReason is an answer of which the audit log is told more than the client.
func WithReason(answer error, reason string) error { return &reasonedError{answer, reason} }

func (e *reasonedError) Error() string { return e.answer.Error() + ": " + e.reason }
func (e *reasonedError) Unwrap() error { return e.answer }
