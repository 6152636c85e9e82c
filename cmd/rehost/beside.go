package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"rehost/awsapi"
	"rehost/ca"
	"rehost/identity"
)

// A command beside a running service does what it does by the service's API, like
// anyone: signed, allowed by a policy, and in the audit log. Being able to read the
// directory is how it comes to the address, the authority and, if nothing else is
// said, the administrator's key.

// endpointFile says where the service is reached from its own machine.
const endpointFile = "endpoint"

// errNoKey says that there is nothing to sign with.
var errNoKey = errors.New("no access key to call the service with")

// accounts are the calls of IAM with which an installation key is made:
// [identity.Directory] has them, and so does a service that runs.
type accounts interface {
	CreatePolicy(ctx context.Context, p identity.Policy) (arn string, err error)
	CreateUser(ctx context.Context, u identity.User) error
	CreateAccessKey(ctx context.Context, user string) (identity.Credentials, error)
}

// A beside is a service that runs, as its accounts.
type beside struct{ iam *iam.Client }

// openBeside finds the service that runs in a directory, or at an address if one is
// given. Its certificate must be of the directory's authority and name the service.
func openBeside(data, endpoint string) (s beside, done func(), err error) {
	endpoint, config, key, err := findBeside(data, endpoint)
	if err != nil {
		return s, nil, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, TLSClientConfig: config}
	return beside{iam.New(iam.Options{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: key, // iam is signed for it everywhere
		RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: transport, Timeout: time.Minute}})}, transport.CloseIdleConnections, nil
}

// besideMGN is the same for calls of MGN and of its agents. Close it.
func besideMGN(data, endpoint, region string) (*awsapi.Client, error) {
	endpoint, config, key, err := findBeside(data, endpoint)
	if err != nil {
		return nil, err
	}
	return awsapi.NewClient(awsapi.ClientOptions{Endpoint: endpoint, Region: region, Credentials: key, TLS: config, Attempts: 1}), nil
}

// findBeside is where the service is, whom it has to be, and the key to call it with.
func findBeside(data, endpoint string) (url string, config *tls.Config, key aws.CredentialsProvider, err error) {
	if endpoint == "" {
		text, err := os.ReadFile(filepath.Join(data, endpointFile))
		if err != nil {
			return "", nil, nil, fmt.Errorf("where the service is reached: %w (--endpoint-url says it, too)", err)
		}
		endpoint = strings.TrimSpace(string(text))
	}
	text, err := os.ReadFile(filepath.Join(data, "ca.pem"))
	if err != nil {
		return "", nil, nil, err
	}
	bundle, err := ca.ParseBundle(string(text))
	if err != nil {
		return "", nil, nil, fmt.Errorf("%s/ca.pem: %w", data, err)
	}
	if key, err = callerKey(data); err != nil {
		return "", nil, nil, err
	}
	return endpoint, ca.Endpoint{Bundle: bundle}.ClientConfig(ca.Name{Role: ca.Service}), key, nil
}

// CreatePolicy implements [accounts].
func (s beside) CreatePolicy(ctx context.Context, p identity.Policy) (arn string, err error) {
	out, err := s.iam.CreatePolicy(ctx, &iam.CreatePolicyInput{PolicyName: &p.Name, PolicyDocument: &p.Document})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Policy.Arn), nil
}

// CreateUser implements [accounts]: name, tags, boundary and attached policies.
func (s beside) CreateUser(ctx context.Context, u identity.User) error {
	in := &iam.CreateUserInput{UserName: &u.Name, PermissionsBoundary: &u.Boundary}
	for key, value := range u.Tags {
		in.Tags = append(in.Tags, types.Tag{Key: &key, Value: &value})
	}
	if _, err := s.iam.CreateUser(ctx, in); err != nil {
		return err
	}
	for _, policy := range u.Attached {
		if _, err := s.iam.AttachUserPolicy(ctx, &iam.AttachUserPolicyInput{UserName: &u.Name, PolicyArn: &policy}); err != nil {
			return err
		}
	}
	return nil
}

// CreateAccessKey implements [accounts].
func (s beside) CreateAccessKey(ctx context.Context, user string) (identity.Credentials, error) {
	out, err := s.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: &user})
	if err != nil {
		return identity.Credentials{}, err
	}
	return identity.Credentials{AccessKeyID: aws.ToString(out.AccessKey.AccessKeyId), SecretAccessKey: identity.Secret(aws.ToString(out.AccessKey.SecretAccessKey))}, nil
}

// callerKey is the key to call with, where AWS's own programs look for it, or else
// the administrator's in the directory. A profile in ~/.aws counts only if it is
// named: what is there is most often a key of AWS.
func callerKey(data string) (aws.CredentialsProvider, error) {
	if id, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"); id != "" && secret != "" {
		return credentials.NewStaticCredentialsProvider(id, secret, os.Getenv("AWS_SESSION_TOKEN")), nil
	}
	path, name := os.Getenv("AWS_SHARED_CREDENTIALS_FILE"), os.Getenv("AWS_PROFILE")
	switch {
	case path == "" && name == "":
		path, name = filepath.Join(data, adminFile), profile
	case path == "":
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, err
		}
		path = filepath.Join(home, ".aws", "credentials")
	case name == "":
		name = "default"
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	values := profileOf(text, name)
	if err != nil || values["aws_access_key_id"] == "" || values["aws_secret_access_key"] == "" {
		return nil, fmt.Errorf("%w: there is no profile %q with one in %s", errNoKey, name, path)
	}
	return credentials.NewStaticCredentialsProvider(values["aws_access_key_id"], values["aws_secret_access_key"], values["aws_session_token"]), nil
}

// profileOf is one profile of a credentials file.
// https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html
func profileOf(text []byte, name string) map[string]string {
	values, in := map[string]string{}, false
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			in = strings.TrimSpace(strings.Trim(line, "[]")) == name
		} else if key, value, ok := strings.Cut(line, "="); in && ok && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";") {
			values[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
		}
	}
	return values
}
