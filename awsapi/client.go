package awsapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// A Client makes calls to one endpoint. It is safe for concurrent use.
type Client struct {
	o    ClientOptions
	http *http.Client
}

// ClientOptions says where a client calls, and as whom.
type ClientOptions struct {
	Endpoint    string                  // required: https://host:8443
	Region      string                  // required
	Credentials aws.CredentialsProvider // nil: only operations that the client certificate authenticates
	TLS         *tls.Config             // the service's CA, and the client certificate if there is one
	UserAgent   string
	Timeout     time.Duration // of one attempt; 0 is 30 s
	Attempts    int           // 0 is 4; those after the first only where nothing is done twice

	// DialContext makes the TCP connections, whatever the address is; no proxy is
	// asked then. Nil is [net.Dialer], and the proxy that the environment names.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// NewClient makes a client. Close it.
func NewClient(o ClientOptions) *Client {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Attempts == 0 {
		o.Attempts = 4
	}
	if o.UserAgent == "" {
		o.UserAgent = "rehost"
	}
	o.Endpoint = strings.TrimSuffix(o.Endpoint, "/")
	proxy := http.ProxyFromEnvironment
	if o.DialContext != nil {
		proxy = nil
	}
	return &Client{o: o, http: &http.Client{
		Timeout: o.Timeout,
		// A signature is good for one host: nobody is to be sent elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:               proxy,
			DialContext:         o.DialContext,
			TLSClientConfig:     o.TLS,
			TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout:     90 * time.Second,
			MaxIdleConnsPerHost: 4,
		},
	}}
}

// Close ends idle connections. Calls that are under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// A CallError is the service's answer to a call that it did not do.
type CallError struct {
	Operation string
	Status    int    // of HTTP
	Name      string // "ConflictException"
	Message   string
	RequestID string
	Reason    string       // of a ValidationException
	Fields    []FieldError // of a ValidationException
	Hint      string       // what to do about it, or ""

	retryAfter time.Duration
}

func (e *CallError) Error() string {
	text := fmt.Sprintf("%s: %s (HTTP %d): %s", e.Operation, e.Name, e.Status, e.Message)
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// IsError is whether err is the service's answer of that name.
func IsError(err error, name string) bool {
	var e *CallError
	return errors.As(err, &e) && e.Name == name
}

// Call does an operation. It repeats what failed on the way, after a growing
// and random pause, if the operation may be repeated or the service did
// nothing. The error is a [*CallError] when the service answered one. It speaks
// [RestJSON] only.
func Call[In, Out any](ctx context.Context, c *Client, op *Op[In, Out], in *In) (*Out, error) {
	request, err := encode(&op.Operation, in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op.Name, err)
	}
	for attempt := 1; ; attempt++ {
		out := new(Out)
		err := c.once(ctx, &op.Operation, request, out)
		if err == nil {
			return out, nil
		}
		if attempt == c.o.Attempts || ctx.Err() != nil || !repeatable(&op.Operation, err) {
			return nil, err
		}
		if err := pause(ctx, attempt, err); err != nil {
			return nil, err
		}
	}
}

// repeatable is whether a call that failed so may be sent again.
func repeatable(op *Operation, err error) bool {
	if e := (*CallError)(nil); errors.As(err, &e) {
		if e.Status == http.StatusTooManyRequests {
			return true // refused before anything was done
		}
		if e.Status < 500 || e.Status == http.StatusNotImplemented {
			return false
		}
	}
	if e := (*credentialsError)(nil); errors.As(err, &e) {
		return false
	}
	return op.ReadOnly || op.Idempotent
}

// pause waits up to 200 ms, 400 ms, … 10 s, or as long as the service asked.
func pause(ctx context.Context, attempt int, err error) error {
	limit := min(100*time.Millisecond<<attempt, 10*time.Second)
	wait := time.Duration(rand.Int64N(int64(limit)))
	if e := (*CallError)(nil); errors.As(err, &e) && e.retryAfter > 0 {
		wait = min(e.retryAfter, 30*time.Second) + wait/4
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return errors.Join(ctx.Err(), err)
	case <-timer.C:
		return nil
	}
}

// encoded is a call as HTTP has it, before it is signed.
type encoded struct {
	path string // escaped, with the query
	body []byte
}

func encode(op *Operation, in any) (encoded, error) {
	if v, ok := in.(interface{ Validate() []FieldError }); ok {
		if fields := v.Validate(); len(fields) > 0 {
			return encoded{}, invalid(fields)
		}
	}
	params := Params{Labels: map[string]string{}, Query: url.Values{}}
	if w, ok := in.(ParamWriter); ok {
		w.WriteParams(params)
	}
	out := encoded{path: op.URI}
	for name, value := range params.Labels {
		out.path = strings.Replace(out.path, "{"+name+"}", escape(value), 1)
	}
	if len(params.Query) > 0 {
		out.path += "?" + canonicalQuery(params.Query)
	}
	if op.HasBody {
		var err error
		if out.body, err = json.Marshal(in); err != nil {
			return encoded{}, fmt.Errorf("encode: %w", err)
		}
	}
	return out, nil
}

// A credentialsError says that there is nothing to sign with.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

func (c *Client) once(ctx context.Context, op *Operation, call encoded, out any) error {
	r, err := http.NewRequestWithContext(ctx, op.Method, c.o.Endpoint+call.path, bytes.NewReader(call.body))
	if err != nil {
		return fmt.Errorf("%s: %w", op.Name, err)
	}
	r.Header.Set("User-Agent", c.o.UserAgent)
	if op.HasBody {
		r.Header.Set("Content-Type", "application/json")
	}
	if !op.MutualTLS {
		if err := c.sign(ctx, r, op.SigningName, call.body); err != nil {
			return fmt.Errorf("%s: %w", op.Name, err)
		}
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("%s: %w", op.Name, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: read answer: %w", op.Name, err)
	case len(text) > maxAnswer:
		return fmt.Errorf("%s: answer is larger than %d bytes", op.Name, maxAnswer)
	case answer.StatusCode != op.Success:
		return callError(op, answer, text)
	case len(text) == 0:
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s: decode answer: %w", op.Name, err)
	}
	return nil
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 32 << 20

func (c *Client) sign(ctx context.Context, r *http.Request, service string, body []byte) error {
	if c.o.Credentials == nil {
		return &credentialsError{errors.New("the client has none")}
	}
	credentials, err := c.o.Credentials.Retrieve(ctx)
	if err != nil {
		return &credentialsError{err}
	}
	digest := sha256.Sum256(body)
	return v4.NewSigner().SignHTTP(ctx, credentials, r, hex.EncodeToString(digest[:]), service, c.o.Region, time.Now())
}

func callError(op *Operation, answer *http.Response, text []byte) error {
	e := &CallError{Operation: op.Name, Status: answer.StatusCode, Name: answer.Header.Get("X-Amzn-Errortype"), RequestID: answer.Header.Get("X-Amzn-Requestid")}
	var body struct {
		Message string       `json:"message"`
		Reason  string       `json:"reason"`
		Fields  []FieldError `json:"fieldList"`
	}
	if e.Name == "" || json.Unmarshal(text, &body) != nil {
		return fmt.Errorf("%s: HTTP %s is not an answer of this service: is the endpoint right?", op.Name, answer.Status)
	}
	e.Message, e.Reason, e.Fields = body.Message, body.Reason, body.Fields
	if seconds, err := time.ParseDuration(answer.Header.Get("Retry-After") + "s"); err == nil {
		e.retryAfter = seconds
	}
	if e.Name == InvalidSignature {
		e.Hint = clockHint(answer.Header.Get("Date"), time.Now())
	}
	return e
}

// clockHint compares the service's clock with ours, because a signature that
// is refused for its time looks like a wrong key.
func clockHint(date string, now time.Time) string {
	theirs, err := http.ParseTime(date)
	if err != nil {
		return ""
	}
	skew := now.Sub(theirs).Round(time.Second)
	switch {
	case skew > maxSkew/2:
		return fmt.Sprintf("this machine's clock is %v ahead of the service's: set it right", skew)
	case skew < -maxSkew/2:
		return fmt.Sprintf("this machine's clock is %v behind the service's: set it right", -skew)
	}
	return ""
}
