package api_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/iam"
	"rehost/awsapi/mgn"
	"rehost/awsapi/sts"
	"rehost/control"
	"rehost/identity"
	"rehost/identity/api"
	"rehost/identity/oidc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const region = "eu-west-1"

// A site is a whole service over a database on disk.
type site struct {
	*httptest.Server
	t         *testing.T
	file      string
	key       *identity.SealingKey
	db        *control.Database
	directory *identity.Directory
	api       *awsapi.Server
	admin     identity.Credentials
	now       time.Time
	tick      func()         // whenever the service looks at the clock; nil: nothing
	log       io.Writer      // of the service
	audit     awsapi.Auditor // nil: none
}

func newSite(t *testing.T) *site {
	raw := make([]byte, 32)
	rand.Read(raw)
	key, err := identity.NewSealingKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, key: key, file: filepath.Join(t.TempDir(), "control.db"), now: time.Now(), log: io.Discard}
	s.open()
	if s.admin, err = s.directory.Bootstrap(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

func (s *site) open() {
	var err error
	if s.db, err = control.OpenDatabase(context.Background(), s.file); err != nil {
		s.t.Fatal(err)
	}
	clock := func() time.Time {
		if s.tick != nil {
			s.tick()
		}
		return s.now
	}
	if s.directory, err = identity.Open(context.Background(), identity.Options{Store: s.db.Identities(), Key: s.key, Now: clock}); err != nil {
		s.t.Fatal(err)
	}
	s.api = awsapi.New(awsapi.Options{Identity: s.directory, Region: region, Now: clock, Audit: s.audit,
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, mgn.Service, formgn.Service, iam.Service, sts.Service)
	api.Register(s.api, s.directory, oidc.New(nil))
	s.Server = httptest.NewTLSServer(s.api)
}

func (s *site) stop() {
	s.Close()
	if err := s.db.Close(); err != nil {
		s.t.Error(err)
	}
}

// restart is the process beginning anew on the same disk.
func (s *site) restart() { s.stop(); s.open() }

func (s *site) iam(c identity.Credentials) *sdk.Client {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return sdk.New(sdk.Options{BaseEndpoint: aws.String(s.URL), Region: region, RetryMaxAttempts: 1,
		HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: string(c.SecretAccessKey), SessionToken: string(c.SessionToken)}, nil
		})})
}

// code is an error's code, "" of none.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

// want checks how a call ended.
func want(t *testing.T, what string, err error, expected string) {
	t.Helper()
	if expected == "" && err != nil || expected != "" && code(err) != expected {
		t.Errorf("%s: got %v, want %q", what, err, expected)
	}
}

const allow = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:GetUser","Resource":"*"}]}`

// TestIAM tells the life of a user: made, put into a group, given keys and
// policies, renamed, and not deleted before all that is gone.
func TestIAM(t *testing.T) {
	s := newSite(t)
	ctx, c := context.Background(), s.iam(s.admin)
	bob, ops := aws.String("bob"), aws.String("ops")
	_, err := c.CreateUser(ctx, &sdk.CreateUserInput{UserName: bob, Path: aws.String("/staff/"), Tags: []types.Tag{{Key: aws.String("team"), Value: aws.String("x")}}})
	want(t, "create user", err, "")
	_, err = c.CreateUser(ctx, &sdk.CreateUserInput{UserName: aws.String("BOB")})
	want(t, "create user again", err, "EntityAlreadyExists")
	var keys []identity.Credentials
	for range 2 {
		k, err := c.CreateAccessKey(ctx, &sdk.CreateAccessKeyInput{UserName: bob})
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, identity.Credentials{AccessKeyID: *k.AccessKey.AccessKeyId, SecretAccessKey: identity.Secret(*k.AccessKey.SecretAccessKey)})
	}
	_, err = c.CreateAccessKey(ctx, &sdk.CreateAccessKeyInput{UserName: bob})
	want(t, "third key", err, "LimitExceeded")
	own := s.iam(keys[0])
	_, err = own.GetUser(ctx, &sdk.GetUserInput{})
	want(t, "without a policy", err, "AccessDenied")

	// The rights of a group hold at once, and end at once.
	_, err = c.CreateGroup(ctx, &sdk.CreateGroupInput{GroupName: ops})
	want(t, "create group", err, "")
	_, err = c.PutGroupPolicy(ctx, &sdk.PutGroupPolicyInput{GroupName: ops, PolicyName: aws.String("p"), PolicyDocument: aws.String(allow)})
	want(t, "put group policy", err, "")
	_, err = c.AddUserToGroup(ctx, &sdk.AddUserToGroupInput{GroupName: ops, UserName: bob})
	want(t, "add to group", err, "")
	got, err := own.GetUser(ctx, &sdk.GetUserInput{})
	if err != nil || *got.User.UserName != "bob" || !strings.HasSuffix(*got.User.Arn, ":user/staff/bob") || len(got.User.Tags) != 1 {
		t.Errorf("get own user: %+v, %v", got, err)
	}
	_, err = c.DeleteGroup(ctx, &sdk.DeleteGroupInput{GroupName: ops})
	want(t, "delete group with a policy", err, "DeleteConflict")

	// A policy with versions, attached.
	made, err := c.CreatePolicy(ctx, &sdk.CreatePolicyInput{PolicyName: aws.String("look"), PolicyDocument: aws.String(allow)})
	if err != nil {
		t.Fatal(err)
	}
	arn := made.Policy.Arn
	_, err = c.AttachUserPolicy(ctx, &sdk.AttachUserPolicyInput{UserName: bob, PolicyArn: arn})
	want(t, "attach", err, "")
	_, err = c.DeletePolicy(ctx, &sdk.DeletePolicyInput{PolicyArn: arn})
	want(t, "delete attached policy", err, "DeleteConflict")
	for range 4 {
		_, err = c.CreatePolicyVersion(ctx, &sdk.CreatePolicyVersionInput{PolicyArn: arn, PolicyDocument: aws.String(strings.Replace(allow, "GetUser", "ListUsers", 1)), SetAsDefault: true})
		want(t, "create version", err, "")
	}
	_, err = c.CreatePolicyVersion(ctx, &sdk.CreatePolicyVersionInput{PolicyArn: arn, PolicyDocument: aws.String(allow)})
	want(t, "sixth version", err, "LimitExceeded")
	_, err = own.ListUsers(ctx, &sdk.ListUsersInput{})
	want(t, "by the new version", err, "")
	_, err = c.DeletePolicyVersion(ctx, &sdk.DeletePolicyVersionInput{PolicyArn: arn, VersionId: aws.String("v5")})
	want(t, "delete default version", err, "DeleteConflict")
	_, err = c.SetDefaultPolicyVersion(ctx, &sdk.SetDefaultPolicyVersionInput{PolicyArn: arn, VersionId: aws.String("v1")})
	want(t, "set default", err, "")
	_, err = own.ListUsers(ctx, &sdk.ListUsersInput{})
	want(t, "by the old version", err, "AccessDenied")
	v, err := c.GetPolicyVersion(ctx, &sdk.GetPolicyVersionInput{PolicyArn: arn, VersionId: aws.String("v1")})
	if text, _ := url.QueryUnescape(*v.PolicyVersion.Document); err != nil || text != allow || strings.ContainsAny(*v.PolicyVersion.Document, ` "{+`) {
		t.Errorf("get version: %v, %v", *v.PolicyVersion.Document, err)
	}
	for _, bad := range []string{`{`, `{"Version":"2012-10-17","Statement":[{"Effect":"Maybe","Action":"*","Resource":"*"}]}`} {
		_, err = c.PutUserPolicy(ctx, &sdk.PutUserPolicyInput{UserName: bob, PolicyName: aws.String("p"), PolicyDocument: &bad})
		want(t, bad, err, "MalformedPolicyDocument")
	}

	// Everything is there after a restart, under a new name.
	_, err = c.UpdateUser(ctx, &sdk.UpdateUserInput{UserName: bob, NewUserName: aws.String("robert")})
	want(t, "rename", err, "")
	s.restart()
	c, own, bob = s.iam(s.admin), s.iam(keys[0]), aws.String("robert")
	got, err = own.GetUser(ctx, &sdk.GetUserInput{})
	if err != nil || *got.User.UserName != "robert" {
		t.Errorf("after restart: %+v, %v", got, err)
	}
	used, err := c.GetAccessKeyLastUsed(ctx, &sdk.GetAccessKeyLastUsedInput{AccessKeyId: &keys[0].AccessKeyID})
	if err != nil || *used.UserName != "robert" || *used.AccessKeyLastUsed.ServiceName != "iam" {
		t.Errorf("last used: %+v, %v", used, err)
	}

	// An inactive key is out at once; another user's key is not to be had by its id.
	_, err = c.UpdateAccessKey(ctx, &sdk.UpdateAccessKeyInput{UserName: bob, AccessKeyId: &keys[0].AccessKeyID, Status: types.StatusTypeInactive})
	want(t, "deactivate", err, "")
	_, err = own.GetUser(ctx, &sdk.GetUserInput{})
	want(t, "inactive key", err, "InvalidClientTokenId")
	_, err = c.DeleteAccessKey(ctx, &sdk.DeleteAccessKeyInput{AccessKeyId: &keys[0].AccessKeyID})
	want(t, "another's key", err, "NoSuchEntity")

	// Deleting goes in the order that IAM asks for.
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"detach", func() error {
			_, err := c.DetachUserPolicy(ctx, &sdk.DetachUserPolicyInput{UserName: bob, PolicyArn: arn})
			return err
		}},
		{"first key", func() error {
			_, err := c.DeleteAccessKey(ctx, &sdk.DeleteAccessKeyInput{UserName: bob, AccessKeyId: &keys[0].AccessKeyID})
			return err
		}},
		{"second key", func() error {
			_, err := c.DeleteAccessKey(ctx, &sdk.DeleteAccessKeyInput{UserName: bob, AccessKeyId: &keys[1].AccessKeyID})
			return err
		}},
		{"leave group", func() error {
			_, err := c.RemoveUserFromGroup(ctx, &sdk.RemoveUserFromGroupInput{UserName: bob, GroupName: ops})
			return err
		}},
	} {
		_, err = c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: bob})
		want(t, "delete user before "+step.name, err, "DeleteConflict")
		want(t, step.name, step.do(), "")
	}
	_, err = c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: bob})
	want(t, "delete user", err, "")
	_, err = c.GetUser(ctx, &sdk.GetUserInput{UserName: bob})
	want(t, "get deleted user", err, "NoSuchEntity")
}

// TestIAM_Managed shows that the built-in policies are there and stay as they are.
func TestIAM_Managed(t *testing.T) {
	s := newSite(t)
	ctx, c := context.Background(), s.iam(s.admin)
	list, err := c.ListPolicies(ctx, &sdk.ListPoliciesInput{Scope: types.PolicyScopeTypeAws, PathPrefix: aws.String("/service-role/")})
	if err != nil || len(list.Policies) < 2 {
		t.Fatalf("list: %+v, %v", list, err)
	}
	for _, p := range list.Policies {
		_, err := c.CreatePolicyVersion(ctx, &sdk.CreatePolicyVersionInput{PolicyArn: p.Arn, PolicyDocument: aws.String(allow), SetAsDefault: true})
		want(t, "change "+*p.Arn, err, "AccessDenied")
		_, err = c.DeletePolicy(ctx, &sdk.DeletePolicyInput{PolicyArn: p.Arn})
		want(t, "delete "+*p.Arn, err, "AccessDenied")
	}
}

// TestIAM_Boundary lets one create users only within a boundary, and not free
// them of it.
func TestIAM_Boundary(t *testing.T) {
	s := newSite(t)
	ctx, c := context.Background(), s.iam(s.admin)
	made, err := c.CreatePolicy(ctx, &sdk.CreatePolicyInput{PolicyName: aws.String("bound"), PolicyDocument: aws.String(allow)})
	if err != nil {
		t.Fatal(err)
	}
	text := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:CreateUser","iam:AttachUserPolicy","iam:DeleteUserPermissionsBoundary"],"Resource":"*",` +
		`"Condition":{"StringEquals":{"iam:PermissionsBoundary":"` + *made.Policy.Arn + `"}}},{"Effect":"Deny","Action":"iam:DeleteUserPermissionsBoundary","Resource":"*"}]}`
	if err := s.directory.CreateUser(ctx, identity.User{Name: "delegate", Inline: map[string]string{"p": text}}); err != nil {
		t.Fatal(err)
	}
	key, err := s.directory.CreateAccessKey(ctx, "delegate")
	if err != nil {
		t.Fatal(err)
	}
	d := s.iam(key)
	admin := aws.String(identity.ManagedPolicy("AdministratorAccess"))
	_, err = d.CreateUser(ctx, &sdk.CreateUserInput{UserName: aws.String("free")})
	want(t, "create without boundary", err, "AccessDenied")
	_, err = d.CreateUser(ctx, &sdk.CreateUserInput{UserName: aws.String("bound"), PermissionsBoundary: made.Policy.Arn})
	want(t, "create with boundary", err, "")
	_, err = d.CreateUser(ctx, &sdk.CreateUserInput{UserName: aws.String("tagged"), PermissionsBoundary: made.Policy.Arn, Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("b")}}})
	want(t, "create with tags", err, "AccessDenied")
	_, err = d.AttachUserPolicy(ctx, &sdk.AttachUserPolicyInput{UserName: aws.String("bound"), PolicyArn: admin})
	want(t, "attach to a bounded user", err, "")
	_, err = d.AttachUserPolicy(ctx, &sdk.AttachUserPolicyInput{UserName: aws.String("delegate"), PolicyArn: admin})
	want(t, "attach to itself", err, "AccessDenied")
	_, err = d.DeleteUserPermissionsBoundary(ctx, &sdk.DeleteUserPermissionsBoundaryInput{UserName: aws.String("bound")})
	want(t, "free of the boundary", err, "AccessDenied")
}

// TestRoles_NothingElse tries every action of every service with the sessions
// that agents and replication servers get: what their policies do not name is denied.
func TestRoles_NothingElse(t *testing.T) {
	s := newSite(t)
	const id = "s-00000000000000001"
	for _, test := range []struct {
		role, policy string
		built        bool // some call that it is for
	}{
		{identity.AgentRole, "AWSApplicationMigrationAgentPolicy_v2", true},
		{identity.ReplicationServerRole, "AWSApplicationMigrationReplicationServerPolicy", true},
		{identity.ConversionServerRole, "AWSApplicationMigrationConversionServerPolicy", false},
	} {
		c, err := s.directory.AssumeRoleAsService(context.Background(), identity.ServiceName, identity.AssumeRole{Role: test.role, Session: id, SourceIdentity: id})
		if err != nil {
			t.Fatal(err)
		}
		who, _, err := s.directory.Authenticate(context.Background(), c.AccessKeyID, string(c.SessionToken))
		if err != nil {
			t.Fatal(err)
		}
		var document string
		_ = s.directory.Read(func(tx *identity.Tx) error {
			p, _ := tx.Policies.Get(identity.ManagedPolicy(test.policy))
			document = p.Document
			return nil
		})
		allowed, denied := 0, 0
		for _, service := range []*awsapi.Service{mgn.Service, formgn.Service, iam.Service, sts.Service} {
			for _, op := range service.Operations {
				action := service.SigningName + ":" + op.Name
				may := false
				for _, resource := range []string{"*", "arn:aws:mgn:" + region + ":" + who.Account + ":source-server/" + id, "arn:aws:mgn:" + region + ":" + who.Account + ":replication-server/" + id, "arn:aws:iam::" + who.Account + ":role/service-role/" + test.role} {
					may = may || s.directory.Authorize(who, action, resource, nil).Allowed
				}
				if named := strings.Contains(document, `"`+action+`"`); may != named {
					t.Errorf("%s: %s is allowed: %v, its policy names it: %v", test.role, action, may, named)
				}
				if may {
					allowed++
				} else {
					denied++
				}
			}
		}
		if allowed > 0 != test.built || denied < 250 {
			t.Errorf("%s: %d allowed, %d denied", test.role, allowed, denied)
		}
	}
}

// TestCLI drives the aws command through what an administrator does.
func TestCLI(t *testing.T) {
	if _, err := exec.LookPath("aws"); err != nil {
		t.Skip("SKIPPED: the aws command is not installed, so its behaviour was not tested here")
	}
	s := newSite(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command("aws", append([]string{"--endpoint-url", s.URL, "--region", region, "--output", "json", "iam"}, args...)...)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+s.admin.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+string(s.admin.SecretAccessKey),
			"AWS_CA_BUNDLE="+ca, "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_PAGER=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("aws iam %v: %v: %s", args, err, out)
		}
		return out
	}
	installer := identity.ManagedPolicy("AWSApplicationMigrationAgentInstallationPolicy")
	run("create-user", "--user-name", "installer")
	run("create-access-key", "--user-name", "installer")
	run("attach-user-policy", "--user-name", "installer", "--policy-arn", installer)
	var simulated struct {
		EvaluationResults []struct {
			EvalActionName, EvalDecision string
			MatchedStatements            []struct{ SourcePolicyId string }
		}
	}
	out := run("simulate-principal-policy", "--policy-source-arn", "arn:aws:iam::"+s.directory.Account().ID+":user/installer", "--action-names", "mgn:RegisterAgentForMgn", "mgn:StartCutover")
	if err := json.Unmarshal(out, &simulated); err != nil || len(simulated.EvaluationResults) != 2 {
		t.Fatalf("simulate: %v: %s", err, out)
	}
	if r := simulated.EvaluationResults; r[0].EvalDecision != "allowed" || len(r[0].MatchedStatements) == 0 || r[1].EvalDecision != "implicitDeny" {
		t.Errorf("simulate: %s", out)
	}
	var details struct {
		UserDetailList []struct {
			UserName                string
			AttachedManagedPolicies []struct{ PolicyArn string }
		}
		RoleDetailList []struct {
			RoleName                 string
			AssumeRolePolicyDocument struct{ Version string } // the command unescapes it
		}
		Policies []struct{ Arn string }
	}
	out = run("get-account-authorization-details", "--page-size", "2")
	if err := json.Unmarshal(out, &details); err != nil || len(details.UserDetailList) != 2 || details.UserDetailList[1].AttachedManagedPolicies[0].PolicyArn != installer ||
		len(details.RoleDetailList) != 3 || details.RoleDetailList[0].AssumeRolePolicyDocument.Version != "2012-10-17" || len(details.Policies) < 6 {
		t.Errorf("details: %v: %s", err, out)
	}
	run("update-account-password-policy", "--minimum-password-length", "14", "--allow-users-to-change-password")
	run("create-login-profile", "--user-name", "installer", "--password", "Not4n-installer", "--password-reset-required")
	var granting struct {
		PoliciesGrantingServiceAccess []struct {
			ServiceNamespace string
			Policies         []struct{ PolicyArn string }
		}
	}
	out = run("list-policies-granting-service-access", "--arn", "arn:aws:iam::"+s.directory.Account().ID+":user/installer", "--service-namespaces", "mgn", "s3")
	if err := json.Unmarshal(out, &granting); err != nil || len(granting.PoliciesGrantingServiceAccess) != 2 || granting.PoliciesGrantingServiceAccess[0].Policies[0].PolicyArn != installer ||
		len(granting.PoliciesGrantingServiceAccess[1].Policies) != 0 {
		t.Errorf("granting: %v: %s", err, out)
	}
	run("generate-credential-report")
	if out := run("get-credential-report", "--query", "Content", "--output", "text"); len(out) == 0 {
		t.Error("no credential report")
	}
}
