package e2e

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/ca"
	"rehost/e2e/site"
	"rehost/wire"
)

// TestIdentity is the life of the keys and of those who have them, told with the
// stock aws command and SDK: an installation key under a boundary that ends, a
// developer's role that may test what is tagged for development, sessions that
// may less, an agent that reaches no server but its own, and one that is
// disconnected and is out at once.
func TestIdentity(t *testing.T) {
	need(t, "aws", "unshare", "mount")
	s := &identities{world: newWorld(t, 4*time.Minute, t.TempDir())}
	s.admin = s.administrator()
	s.installWithKeyThatEnds()
	a, b := s.agents[0], s.agents[1]
	s.developer(a, b)
	s.noOtherServer(a, b)
	s.disconnect(a, b)
}

type identities struct {
	*world
	admin  []string // environment with the administrator's key
	agents []*installedAgent
}

// installWithKeyThatEnds: an administrator makes a user who may install agents
// under a boundary with aws:CurrentTime; two agents are installed with its key;
// the time passes, and the key is refused.
func (s *identities) installWithKeyThatEnds() {
	t := s.t
	boundary := func(until time.Time) string {
		return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},
			{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":%q}}}]}`, until.UTC().Format(time.RFC3339))
	}
	var policy struct{ Policy struct{ Arn string } }
	s.aws(s.admin, &policy, "iam", "create-policy", "--policy-name", "until", "--policy-document", boundary(time.Now().Add(24*time.Hour)))
	s.aws(s.admin, nil, "iam", "create-user", "--user-name", "rollout", "--permissions-boundary", policy.Policy.Arn)
	s.aws(s.admin, nil, "iam", "attach-user-policy", "--user-name", "rollout", "--policy-arn", "arn:aws:iam::aws:policy/AWSApplicationMigrationAgentInstallationPolicy")
	key := s.accessKey("rollout")
	for n := range 2 {
		s.installAs(key, fmt.Sprintf("%032x", n+1))
	}
	s.denied(key, "AccessDeniedException", "mgn", "describe-source-servers")

	until := time.Now().Add(2 * time.Second)
	s.aws(s.admin, nil, "iam", "create-policy-version", "--policy-arn", policy.Policy.Arn, "--set-as-default", "--policy-document", boundary(until))
	time.Sleep(time.Until(until.Add(time.Second))) // the boundary knows seconds
	state := filepath.Join(t.TempDir(), "late")
	out, err := s.installed(state, key, s.agents[0].disk.Path, "--ca-fingerprint", s.fingerprint())
	if exitStatus(err) != 1 || !strings.Contains(out, "AccessDeniedException") || !strings.Contains(out, "permissions boundary") || !strings.Contains(out, "the time of this access key is over") {
		t.Errorf("an installation with a key that has ended: %v: %s", err, out)
	}
	var used struct{ AccessKeyLastUsed struct{ LastUsedDate string } }
	s.aws(s.admin, &used, "iam", "get-access-key-last-used", "--access-key-id", strings.TrimPrefix(key[0], "AWS_ACCESS_KEY_ID="))
	if used.AccessKeyLastUsed.LastUsedDate == "" {
		t.Error("the key has never been used")
	}
	for _, a := range s.agents {
		s.until(a, "a point, though the key that installed the agent has ended", func(server types.SourceServer) bool {
			return server.LifeCycle.State == types.LifeCycleStateReadyForTest
		})
	}
}

// developer: a role may start tests of servers that are tagged for development,
// and a session of it less where its own policy says so.
func (s *identities) developer(a, b *installedAgent) {
	t := s.t
	var who struct{ Account string }
	s.aws(s.admin, &who, "sts", "get-caller-identity")
	for agent, env := range map[*installedAgent]string{a: "dev", b: "prod"} {
		s.aws(s.admin, nil, "mgn", "tag-resource", "--resource-arn", agent.arn, "--tags", "env="+env)
	}
	s.aws(s.admin, nil, "iam", "create-user", "--user-name", "dev")
	var role struct{ Role struct{ Arn string } }
	s.aws(s.admin, &role, "iam", "create-role", "--role-name", "developer", "--assume-role-policy-document", fmt.Sprintf(
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::%s:user/dev"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"sts:ExternalId":"rollout"}}}}`, who.Account))
	s.aws(s.admin, nil, "iam", "put-role-policy", "--role-name", "developer", "--policy-name", "test", "--policy-document",
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"mgn:Describe*","Resource":"*"},
		{"Effect":"Allow","Action":"mgn:StartTest","Resource":"arn:aws:mgn:*:*:source-server/*","Condition":{"StringEquals":{"aws:ResourceTag/env":"dev"}}}]}`)
	dev := s.accessKey("dev")
	assume := []string{"sts", "assume-role", "--role-arn", role.Role.Arn, "--role-session-name", "me"}
	s.denied(dev, "AccessDenied", assume...) // no external id
	assume = append(assume, "--external-id", "rollout")

	full := s.session(dev, assume...)
	s.denied(full, "AccessDeniedException", "mgn", "start-test", "--source-server-ids", b.id)
	s.denied(full, "AccessDeniedException", "mgn", "start-test", "--source-server-ids", a.id, b.id)
	s.denied(full, "AccessDeniedException", "mgn", "tag-resource", "--resource-arn", b.arn, "--tags", "env=dev") // no way around it
	s.denied(full, "AccessDeniedException", "mgn", "start-cutover", "--source-server-ids", a.id)
	narrow := s.session(dev, append(assume, "--policy", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:Describe*","Resource":"*"}}`)...)
	s.denied(narrow, "AccessDeniedException", "mgn", "start-test", "--source-server-ids", a.id)
	s.aws(narrow, nil, "mgn", "describe-source-servers")

	// The SDK says the same, and may.
	tokens := sts.New(sts.Options{Region: site.Region, BaseEndpoint: &s.service.Endpoint, HTTPClient: s.http(), Credentials: provider(dev)})
	out, err := tokens.AssumeRole(s.ctx, &sts.AssumeRoleInput{RoleArn: &role.Role.Arn, RoleSessionName: aws.String("sdk"), ExternalId: aws.String("rollout")})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Credentials
	api := s.client(credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken))
	if _, err := api.StartTest(s.ctx, &mgn.StartTestInput{SourceServerIDs: []string{b.id}}); code(err) != "AccessDeniedException" {
		t.Errorf("a test of a production server: %v", err)
	}
	job, err := api.StartTest(s.ctx, &mgn.StartTestInput{SourceServerIDs: []string{a.id}})
	if err != nil || job.Job == nil || !strings.Contains(aws.ToString(job.Job.JobID), "mgnjob-") {
		t.Errorf("a test of a development server: %v", err)
	}
	// What the role may no more, its sessions may no more.
	users := iam.New(iam.Options{Region: site.Region, BaseEndpoint: &s.service.Endpoint, HTTPClient: s.http(), Credentials: provider(s.admin)})
	if _, err := users.DeleteRolePolicy(s.ctx, &iam.DeleteRolePolicyInput{RoleName: aws.String("developer"), PolicyName: aws.String("test")}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.DescribeSourceServers(s.ctx, &mgn.DescribeSourceServersInput{}); code(err) != "AccessDeniedException" {
		t.Errorf("a session whose role has lost its policy: %v", err)
	}
}

// noOtherServer: with all that the agent of a has, nothing of b can be read or
// changed, and nothing be said in b's name.
func (s *identities) noOtherServer(a, b *installedAgent) {
	t := s.t
	client := s.agentClient(a)
	if _, err := awsapi.Call(s.ctx, client, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: a.id}); err != nil {
		t.Fatalf("its own: %v", err)
	}
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	request := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	for name, err := range map[string]error{
		"command":     refused(s, client, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: b.id}),
		"info":        refused(s, client, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: b.id}),
		"certificate": refused(s, client, formgn.IssueClientCertificateForMgn, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: b.id, CertificateSigningRequest: request}),
		"backlog":     refused(s, client, formgn.UpdateAgentBacklogForMgn, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: b.id, State: "CONTINUOUS", Disks: []formgn.DiskProgress{}}),
		"logs":        refused(s, client, formgn.SendAgentLogsForMgn, &formgn.SendAgentLogsForMgnRequest{SourceServerID: b.id, Lines: []formgn.LogLine{{DateTime: awsapi.DateTime(time.Now()), Message: "x"}}}),
		"metrics":     refused(s, client, formgn.SendAgentMetricsForMgn, &formgn.SendAgentMetricsForMgnRequest{SourceServerID: b.id, Metrics: []formgn.Metric{{Name: "x"}}}),
		"disks":       refused(s, client, formgn.UpdateAgentReplicationInfoForMgn, &formgn.UpdateAgentReplicationInfoForMgnRequest{SourceServerID: b.id, Disks: []formgn.ReplicationDisk{{DeviceName: "/dev/sda", Bytes: 24 << 20}}}),
	} {
		if !awsapi.IsError(err, "AccessDeniedException") {
			t.Errorf("the %s of another server: %v", name, err)
		}
	}
	api := s.client(s.agentSession(a))
	for name, call := range map[string]func() error{
		"list": func() error {
			_, err := api.DescribeSourceServers(s.ctx, &mgn.DescribeSourceServersInput{})
			return err
		},
		"disconnect": func() error {
			_, err := api.DisconnectFromService(s.ctx, &mgn.DisconnectFromServiceInput{SourceServerID: &b.id})
			return err
		},
		"its own": func() error {
			_, err := api.StartCutover(s.ctx, &mgn.StartCutoverInput{SourceServerIDs: []string{a.id}})
			return err
		},
	} {
		if err := call(); code(err) != "AccessDeniedException" {
			t.Errorf("%s: %v", name, err)
		}
	}
	var no *wire.RefusedError
	if err := s.replicate(s.pair(a), s.replicator(a), b.id); !errors.As(err, &no) {
		t.Errorf("a session on the replication port in another's name: %v", err)
	}
}

// disconnect: the moment that the call has been answered, the server's next
// signed call, next session and next handshake are refused, and its agent
// removes itself; the other one does not notice.
func (s *identities) disconnect(a, b *installedAgent) {
	t := s.t
	client, session := s.agentClient(a), s.agentSession(a)
	ask := func() error {
		return refused(s, client, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: a.id})
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	pair, replicator := s.pair(a), s.replicator(a)
	admin := s.client(provider(s.admin))
	eventually(t, s.ctx, "its jobs to end", func() bool { // the developer's test
		jobs, err := admin.DescribeJobs(s.ctx, &mgn.DescribeJobsInput{})
		return err == nil && !slices.ContainsFunc(jobs.Items, func(j types.Job) bool { return j.Status != types.JobStatusCompleted })
	})
	s.aws(s.admin, nil, "mgn", "disconnect-from-service", "--source-server-id", a.id)
	since := time.Now()
	err := ask()
	if !awsapi.IsError(err, "AccessDeniedException") && !awsapi.IsError(err, "ExpiredTokenException") && !awsapi.IsError(err, "UnrecognizedClientException") && !awsapi.IsError(err, "InvalidClientTokenId") {
		t.Errorf("a signed call after the server was disconnected: %v", err)
	}
	if _, err := s.client(session).DescribeSourceServers(s.ctx, &mgn.DescribeSourceServersInput{}); err == nil {
		t.Error("the session of a disconnected server works")
	}
	if err := s.replicate(pair, replicator, a.id); err == nil {
		t.Error("a disconnected server begins a replication session")
	}
	t.Logf("a disconnected agent was found to be out %v after the call was answered", time.Since(since).Round(time.Millisecond))
	eventually(t, s.ctx, "the open session to end", func() bool {
		return strings.Contains(s.log.text(), `cause="refused (REVOKED)`)
	})
	t.Logf("its open session had ended after %v", time.Since(since).Round(time.Millisecond))
	select {
	case <-a.process.Done():
	case <-s.ctx.Done():
		t.Fatal("the agent of a disconnected server still runs")
	}
	if _, err := os.Stat(filepath.Join(a.state, "client.pem")); !os.IsNotExist(err) {
		t.Errorf("the key of a disconnected server is left: %v", err)
	}
	s.until(b, "a point of the other server", func(server types.SourceServer) bool {
		at, err := awsapi.ParseDateTime(aws.ToString(server.DataReplicationInfo.LastSnapshotDateTime))
		return err == nil && at.After(since)
	})
	if out, err := s.command(nil, "rehost", "audit", "verify", "--data", s.config.Data); err != nil {
		t.Errorf("the audit log: %v: %s", err, out)
	}
	if strings.Contains(s.log.text(), s.secret()) {
		t.Error("the administrator's secret access key stands in a log")
	}
}
