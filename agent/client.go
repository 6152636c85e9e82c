package agent

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"rehost/awsapi"
	"rehost/ca"
)

const (
	defaultPort = "8443"
	callTimeout = 20 * time.Second
)

// A dialer makes connections; nil is [net.Dialer]'s.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newClient makes a client that believes only the service under that
// endpoint's root. The agent's own loops repeat what is worth it.
func newClient(endpoint, region string, end ca.Endpoint, credentials aws.CredentialsProvider, attempts int, dial dialer) *awsapi.Client {
	return awsapi.NewClient(awsapi.ClientOptions{
		Endpoint: endpoint, Region: region, Credentials: credentials,
		TLS:       end.ClientConfig(ca.Name{Role: ca.Service}),
		UserAgent: "rehost-agent/" + Version, Timeout: callTimeout, Attempts: attempts, DialContext: dial,
	})
}

// ask makes a call with the agent's session, once more with a new one if the
// service does not take the one there is.
func ask[In, Out any](ctx context.Context, id *identity, op *awsapi.Op[In, Out], in *In) (*Out, error) {
	out, err := awsapi.Call(ctx, id.client, op, in)
	if awsapi.IsStale(err, op.Name) {
		id.forget()
		return awsapi.Call(ctx, id.client, op, in)
	}
	return out, err
}

// ParseEndpoint accepts a host name, host:port or https URL and returns the
// address of the API, on port 8443 unless it says otherwise.
func ParseEndpoint(text string) (string, error) {
	raw := text
	if u, err := url.Parse(raw); err != nil || u.Scheme == "" || u.Host == "" {
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
