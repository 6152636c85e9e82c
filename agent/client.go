package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"rehost/awsapi"
	"rehost/ca"
)

const (
	defaultPort = "8443"
	callTimeout = 30 * time.Second
	maxAnswer   = 4 << 20
)

// A credentials answers with keys that are valid now.
type credentialsFunc func(context.Context) (aws.Credentials, error)

// A client calls the service. It is safe for concurrent use.
type client struct {
	endpoint, region string
	http             *http.Client
	signer           *v4.Signer
	credentials      credentialsFunc
	now              func() time.Time
}

// newClient makes a client that believes only the service under that endpoint's
// root. Close its idle connections when it is no longer used.
func newClient(endpoint, region string, end ca.Endpoint, credentials credentialsFunc) *client {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       end.ClientConfig(ca.Name{Role: ca.Service}),
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: callTimeout,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   2,
	}
	return &client{
		endpoint: endpoint, region: region, credentials: credentials, now: time.Now,
		http: &http.Client{
			Transport: transport,
			Timeout:   callTimeout,
			// a redirect would take a signed call to somewhere else
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		signer: v4.NewSigner(),
	}
}

// close ends idle connections, so that the next call shows the certificate of now.
func (c *client) close() { c.http.CloseIdleConnections() }

// An APIError is an answer of the service that is not success.
type APIError struct {
	Operation string
	Status    int    // of HTTP
	Name      string // AccessDeniedException, ...
	Code      string // within Name, where the service gives one
	Message   string
	Skew      time.Duration // the local clock is ahead of the service's by this
}

func (e *APIError) Error() string {
	name := e.Name
	if e.Code != "" {
		name += " (" + e.Code + ")"
	}
	return fmt.Sprintf("%s: %s: %s", e.Operation, name, e.Message)
}

// call makes one call of an operation.
func call[In, Out any](ctx context.Context, c *client, op *awsapi.Op[In, Out], in *In) (*Out, error) {
	out := new(Out)
	if err := c.do(ctx, &op.Operation, in, out); err != nil {
		return nil, err
	}
	return out, nil
}

func (c *client) do(ctx context.Context, op *awsapi.Operation, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("%s: encode: %w", op.Name, err)
	}
	r, err := http.NewRequestWithContext(ctx, op.Method, c.endpoint+op.URI, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", op.Name, err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "rehost-agent/"+Version)
	if !op.MutualTLS {
		keys, err := c.credentials(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", op.Name, err)
		}
		sum := sha256.Sum256(body)
		if err := c.signer.SignHTTP(ctx, keys, r, hex.EncodeToString(sum[:]), "mgn", c.region, c.now()); err != nil {
			return fmt.Errorf("%s: sign: %w", op.Name, err)
		}
	}
	answer, err := c.http.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the address is said below
		}
		return fmt.Errorf("%s: reach %s: %w", op.Name, c.endpoint, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s: read answer: %w", op.Name, err)
	}
	if answer.StatusCode/100 != 2 {
		return c.apiError(op, answer, text)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s: decode answer: %w", op.Name, err)
	}
	return nil
}

func (c *client) apiError(op *awsapi.Operation, answer *http.Response, text []byte) error {
	e := &APIError{Operation: op.Name, Status: answer.StatusCode, Name: answer.Header.Get("X-Amzn-Errortype")}
	var body struct{ Message, Code string }
	if json.Unmarshal(text, &body) == nil {
		e.Message, e.Code = body.Message, body.Code
	}
	if e.Name, _, _ = strings.Cut(e.Name, ":"); e.Name == "" {
		e.Name = "HTTP " + answer.Status
	}
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		e.Skew = c.now().Sub(date).Round(time.Second)
	}
	return e
}

// ParseEndpoint accepts a host name, host:port or https URL and returns the
// address of the API, on port 8443 unless it says otherwise.
func ParseEndpoint(text string) (string, error) {
	raw := text
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "":
		return "", fmt.Errorf("endpoint %q is neither a host name nor a URL", text)
	case u.Scheme != "https":
		return "", fmt.Errorf("endpoint %q: the service is only spoken to by https", text)
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil:
		return "", fmt.Errorf("endpoint %q has more than a host and a port", text)
	}
	if u.Port() == "" {
		u.Host += ":" + defaultPort
	}
	return "https://" + u.Host, nil
}
