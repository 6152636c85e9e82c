package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

// TestKeys_Installer makes a key for one source server, and installs two.
func TestKeys_Installer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	data := filepath.Join(t.TempDir(), "data")
	serve(t, data).stop()
	var out, stderr bytes.Buffer
	if status := Run(t.Context(), []string{"keys", "create-installer", "--data", data, "--server-limit", "-1"}, &out, &stderr); status != statusUsage {
		t.Errorf("a negative limit: status %d", status)
	}
	if status := Run(t.Context(), []string{"keys", "create-installer", "--data", data, "--server-limit", "1", "--expires", "1h"}, &out, &stderr); status != statusDone {
		t.Fatalf("status %d: %s", status, &stderr)
	}
	m := regexp.MustCompile(`^export AWS_ACCESS_KEY_ID=(\S+)\nexport AWS_SECRET_ACCESS_KEY=(\S+)\n$`).FindStringSubmatch(out.String())
	if m == nil {
		t.Fatal("it printed no key")
	}
	r := serve(t, data)
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	installer := r.signedBy(credentials.NewStaticCredentialsProvider(m[1], m[2], ""))
	_, err = awsapi.Call(t.Context(), installer, formgn.RegisterAgentForMgn, registration("machine-a"))
	r.must(err)
	if _, err = awsapi.Call(t.Context(), installer, formgn.RegisterAgentForMgn, registration("machine-b")); !awsapi.IsError(err, "AccessDeniedException") {
		t.Errorf("the second source server of a key for one: %v", err)
	}
	_, err = awsapi.Call(t.Context(), r.install, formgn.RegisterAgentForMgn, registration("machine-b"))
	r.must(err)
}

// signedBy is a client of the service as somebody else.
func (r *running) signedBy(c aws.CredentialsProvider) *awsapi.Client {
	pool := x509.NewCertPool()
	pool.AddCert(r.root)
	out := awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", Credentials: c, TLS: &tls.Config{RootCAs: pool}})
	r.t.Cleanup(out.Close)
	return out
}
