package awsapi

import (
	"crypto/hmac"
	"regexp"
	"slices"
	"strings"
	"time"
)

// maxSkew is how far the clocks of client and server may be apart.
const maxSkew = 5 * time.Minute

// A check is one thing without which a signature is not believed. They stand
// in tables so that a test can leave out each of them, and see that it is missed.
type check struct {
	name string
	do   func(*verifier, *signedRequest) error
}

// earlyChecks cost little and need no key.
var earlyChecks = []check{
	{"path", checkPath},
	{"signature form", checkSignatureForm},
	{"header names", checkHeaderNames},
	{"header order", checkHeaderOrder},
	{"header present", checkHeadersPresent},
	{"host signed", checkHost},
	{"x-amz headers signed", checkAmzHeaders},
	{"content-type signed", checkContentType},
	{"payload mode", checkPayloadMode},
	{"region", checkRegion},
	{"service", checkService},
	{"date of scope", checkScopeDate},
	{"not from the future", checkNotYetCurrent},
	{"not expired", checkExpired},
}

// lateChecks need secret and body.
var lateChecks = []check{
	{"claimed body hash", checkClaimedHash},
	{"signature", checkSignature},
}

func invalidSignature(format string, args ...any) error {
	return Errorf(InvalidSignature, format, args...)
}

// checkPath refuses what AWS normalises before it signs: empty segments and
// those of dots. No operation has such a path, and where the signature covers
// another path than the one that is routed, one can be made to stand for the other.
func checkPath(_ *verifier, s *signedRequest) error {
	if strings.Contains(s.path, "//") {
		return unparsable("The path has an empty segment")
	}
	for segment := range strings.SplitSeq(s.path, "/") {
		if segment == "." || segment == ".." {
			return unparsable("The path is relative")
		}
	}
	return nil
}

var (
	signatureForm  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	headerNameForm = regexp.MustCompile("^[a-z0-9!#$%&'*+.^_`|~-]+$")
)

func checkSignatureForm(_ *verifier, s *signedRequest) error {
	if !signatureForm.MatchString(s.signature) {
		return incomplete("The Signature is not 64 hexadecimal digits in lower case")
	}
	return nil
}

func checkHeaderNames(_ *verifier, s *signedRequest) error {
	for _, name := range s.headers {
		if !headerNameForm.MatchString(name) {
			return incomplete("SignedHeaders must be names in lower case, none of them empty")
		}
	}
	return nil
}

func checkHeaderOrder(_ *verifier, s *signedRequest) error {
	for i, name := range s.headers {
		if i > 0 && s.headers[i-1] >= name {
			return incomplete("SignedHeaders must be sorted, each name once")
		}
	}
	return nil
}

func checkHeadersPresent(_ *verifier, s *signedRequest) error {
	for _, name := range s.headers {
		if len(headerValues(s.Request, name)) == 0 {
			return incomplete("The signed header %s is not in the request", name)
		}
	}
	return nil
}

func checkHost(_ *verifier, s *signedRequest) error {
	if strings.ContainsAny(s.Host, " \t") { // which its canonical form would hide
		return unparsable("The Host is malformed")
	}
	if !slices.Contains(s.headers, "host") {
		return invalidSignature("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return nil
}

// checkAmzHeaders: what a service goes by is in these, so nobody may add one.
func checkAmzHeaders(_ *verifier, s *signedRequest) error {
	for name := range s.Header {
		if low := strings.ToLower(name); strings.HasPrefix(low, "x-amz-") && !slices.Contains(s.headers, low) {
			return invalidSignature("'%s' must be a 'SignedHeader' in the AWS Authorization.", name)
		}
	}
	return nil
}

// checkContentType: it says how the body is read.
func checkContentType(_ *verifier, s *signedRequest) error {
	if s.Header["Content-Type"] != nil && !slices.Contains(s.headers, "content-type") {
		return invalidSignature("'Content-Type' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return nil
}

// checkPayloadMode refuses the ways in which S3 lets a body, or its trailer,
// come without a signature or in signed pieces. No other service has them.
func checkPayloadMode(_ *verifier, s *signedRequest) error {
	for _, claimed := range slices.Concat(s.Header["X-Amz-Content-Sha256"], s.query["X-Amz-Content-Sha256"]) {
		if strings.HasPrefix(claimed, "STREAMING-") || strings.HasPrefix(claimed, "UNSIGNED-") {
			return invalidSignature("The payload %.64s is not supported: the whole body has to be signed", claimed)
		}
	}
	if s.Header["X-Amz-Trailer"] != nil || slices.Contains(s.Header["Content-Encoding"], "aws-chunked") {
		return invalidSignature("A body in pieces is not supported: the whole body has to be signed")
	}
	return nil
}

// globalRegion is what clients of iam and sts may sign for wherever they call:
// these services are the same everywhere.
const globalRegion = "us-east-1"

func checkRegion(v *verifier, s *signedRequest) error {
	global := s.scope.service == "iam" || s.scope.service == "sts"
	if s.scope.region != v.region && !(global && s.scope.region == globalRegion) {
		return invalidSignature("Credential should be scoped to a valid region, which is '%s'.", v.region)
	}
	return nil
}

func checkService(v *verifier, s *signedRequest) error {
	if !v.serves(s.scope.service) {
		return invalidSignature("Credential should be scoped to correct service.") // not which: it may be a secret in the wrong place
	}
	return nil
}

func checkScopeDate(_ *verifier, s *signedRequest) error {
	if day, _, _ := strings.Cut(s.time, "T"); s.scope.date != day {
		return invalidSignature("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%.16s' != '%.16s'.", s.scope.date, day)
	}
	return nil
}

// signedAt is the time of the request.
func (s *signedRequest) signedAt() (time.Time, error) {
	t, err := time.Parse(amzTime, s.time)
	if err != nil || len(s.time) != len(amzTime) {
		return t, incomplete("Date must be in ISO-8601 'basic format', %s.", amzTime)
	}
	return t, nil
}

func checkNotYetCurrent(v *verifier, s *signedRequest) error {
	signed, err := s.signedAt()
	if err != nil {
		return err
	}
	now := v.now().UTC()
	if latest := now.Add(maxSkew); signed.After(latest) {
		return invalidSignature("Signature not yet current: %s is still later than %s (%s + 5 min.); is the clock of this machine right?", s.time, latest.Format(amzTime), now.Format(amzTime))
	}
	return nil
}

// checkExpired: a presigned URL lives as long as it says, one of sts 15 minutes, all
// else five.
func checkExpired(v *verifier, s *signedRequest) error {
	signed, err := s.signedAt()
	if err != nil {
		return err
	}
	valid, text := maxSkew, "5 min."
	if s.expires > 0 {
		valid, text = s.expires, s.expires.String()
	}
	now := v.now().UTC()
	if earliest := now.Add(-valid); signed.Before(earliest) {
		return invalidSignature("Signature expired: %s is now earlier than %s (%s - %s); is the clock of this machine right?", s.time, earliest.Format(amzTime), now.Format(amzTime), text)
	}
	return nil
}

// checkClaimedHash: the signature covers the hash of what came in any case;
// a request that claims another one is not what its signer meant.
func checkClaimedHash(_ *verifier, s *signedRequest) error {
	for _, claimed := range slices.Concat(s.Header["X-Amz-Content-Sha256"], s.query["X-Amz-Content-Sha256"]) {
		if claimed != s.bodyHash {
			return invalidSignature("The x-amz-content-sha256 of the request is not that of its body")
		}
	}
	return nil
}

func checkSignature(_ *verifier, s *signedRequest) error {
	if s.signedWith(canonicalQuery(s.query)) || len(s.query) > 0 && s.signedWith(plainOrderQuery(s.query)) {
		return nil
	}
	return invalidSignature("The request signature we calculated does not match the signature you provided. " +
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
}

func (s *signedRequest) signedWith(query string) bool {
	want := signature(string(s.secret), s.scope, s.time, canonicalRequest(s.Request, s.path, query, s.headers, s.bodyHash))
	return hmac.Equal([]byte(want), []byte(s.signature))
}
