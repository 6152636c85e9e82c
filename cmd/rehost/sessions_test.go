package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/ca"
	"rehost/control"
	"rehost/identity"
	"rehost/wire"
)

// withDirectory changes who there is while the service is stopped.
func withDirectory(t *testing.T, data string, change func(ctx context.Context, d *identity.Directory) error) {
	t.Helper()
	ctx := context.Background()
	db, err := control.OpenDatabase(ctx, filepath.Join(data, "control.db"))
	if err != nil {
		t.Fatal(err)
	}
	directory, err := openSealed(ctx, data, "", db)
	if err == nil {
		err = change(ctx, directory)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func codeOf(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

// TestServe_Roles: a developer's role may start tests of source servers that
// are tagged for development, and a session of it less where it says so.
func TestServe_Roles(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data)
	r.stop()
	var dev identity.Credentials
	var role string
	withDirectory(t, data, func(ctx context.Context, d *identity.Directory) (err error) {
		role = "arn:aws:iam::" + d.Account().ID + ":role/developer"
		trust := fmt.Sprintf(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::%s:user/dev"},"Action":"sts:AssumeRole"}}`, d.Account().ID)
		own := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"mgn:Describe*","Resource":"*"},
			{"Effect":"Allow","Action":"mgn:StartTest","Resource":"arn:aws:mgn:*:*:source-server/*","Condition":{"StringEquals":{"aws:ResourceTag/env":"dev"}}}]}`
		if err := errors.Join(d.CreateUser(ctx, identity.User{Name: "dev"}), d.CreateRole(ctx, identity.Role{Name: "developer", Trust: trust, Inline: map[string]string{"own": own}})); err != nil {
			return err
		}
		dev, err = d.CreateAccessKey(ctx, "dev")
		return err
	})
	r = serve(t, data)
	ctx := t.Context()
	_, err := r.mgn.InitializeService(ctx, &mgn.InitializeServiceInput{})
	r.must(err)
	a, b := r.newAgent("machine-a"), r.newAgent("machine-b")
	for id, env := range map[string]string{a.id: "dev", b.id: "prod"} {
		_, err := r.mgn.TagResource(ctx, &mgn.TagResourceInput{ResourceArn: r.describe(id).Arn, Tags: map[string]string{"env": env}})
		r.must(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(r.root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	tokens := sts.New(sts.Options{Region: "us-east-1", BaseEndpoint: &r.api, HTTPClient: client, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(dev.AccessKeyID, string(dev.SecretAccessKey), "")})
	assume := func(policy *string) *mgn.Client {
		t.Helper()
		out, err := tokens.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: &role, RoleSessionName: aws.String("test"), Policy: policy})
		r.must(err)
		c := out.Credentials
		return mgn.New(mgn.Options{Region: "us-east-1", BaseEndpoint: &r.api, HTTPClient: client, RetryMaxAttempts: 1,
			Credentials: credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)})
	}
	developer := assume(nil)
	test := func(c *mgn.Client, ids ...string) error {
		_, err := c.StartTest(ctx, &mgn.StartTestInput{SourceServerIDs: ids})
		return err
	}
	for name, ids := range map[string][]string{"Prod": {b.id}, "Both": {a.id, b.id}} {
		if err := test(developer, ids...); codeOf(err) != "AccessDeniedException" {
			t.Errorf("%s: %v", name, err)
		}
	}
	narrowed := assume(aws.String(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:Describe*","Resource":"*"}}`))
	if err := test(narrowed, a.id); codeOf(err) != "AccessDeniedException" {
		t.Errorf("a session that may only look: %v", err)
	}
	if _, err := narrowed.DescribeSourceServers(ctx, &mgn.DescribeSourceServersInput{}); err != nil {
		t.Errorf("a session that may look: %v", err)
	}
	// It is allowed, and then refused for having nothing to start yet.
	if err := test(developer, a.id); codeOf(err) != "ConflictException" {
		t.Errorf("a source server for development: %v", err)
	}
}

// TestServe_DisconnectedIsOut: after a disconnect the first signed call that
// the agent makes is refused, and so is its first connection to the replication
// server: nothing has to be waited for. What it had open ends by itself.
func TestServe_DisconnectedIsOut(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	r := serve(t, filepath.Join(t.TempDir(), "data"))
	ctx := t.Context()
	_, err := r.mgn.InitializeService(ctx, &mgn.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	open := a.connect()
	info, err := awsapi.Call(ctx, a.client, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: a.id})
	r.must(err)
	metrics := func() error {
		_, err := awsapi.Call(ctx, a.client, formgn.UpdateAgentBacklogForMgn, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: a.id, State: "CONTINUOUS", Disks: []formgn.DiskProgress{}})
		return err
	}
	r.must(metrics())
	if _, err := r.mgn.DisconnectFromService(ctx, &mgn.DisconnectFromServiceInput{SourceServerID: &a.id}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := metrics(); !awsapi.IsError(err, "AccessDeniedException") && !awsapi.IsError(err, "UnrecognizedClientException") {
		t.Errorf("the next signed call: %v", err)
	}
	config := ca.Endpoint{Root: a.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: info.ReplicatorID})
	again, err := wire.Dial(ctx, wire.Config{Address: info.ReplicatorAddress, TLS: config, Server: a.id, Disks: a.disks, Connections: 1})
	if err == nil {
		t.Errorf("the next session was begun")
		again.Close()
	}
	t.Logf("both were refused %v after the disconnect: %v", time.Since(begin), err)
	select {
	case <-open.Done():
	case <-time.After(20 * time.Second):
		t.Error("the session that was open goes on")
	}
	r.must(open.Close())
}
