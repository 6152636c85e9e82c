package awsapi_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdkiam "github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/awsapi/sts"
	"rehost/identity"
	"rehost/identity/policy"
)

var created = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

// difficult is a text that XML and forms each have their trouble with.
const difficult = "a b&c=<d>+\"é\"%2F;'~"

// serveQuery registers operations of the kinds that differ in the query
// protocol: lists, maps, structures, times, blobs, numbers, no output, errors.
func serveQuery(e *endpoint) {
	awsapi.Handle(e.api, iam.CreateUser, func(ctx context.Context, in *iam.CreateUserRequest) (*iam.CreateUserResponse, error) {
		if in.UserName == "taken" {
			return nil, iam.EntityAlreadyExistsException.Errorf("User with name %s already exists.", in.UserName)
		}
		return &iam.CreateUserResponse{User: &iam.User{UserName: in.UserName, Path: awsapi.Value(in.Path), UserId: "AIDA", Arn: "arn",
			CreateDate: awsapi.Timestamp{Time: created}, Tags: in.Tags}}, nil
	})
	awsapi.Handle(e.api, iam.ListUsers, func(ctx context.Context, in *iam.ListUsersRequest) (*iam.ListUsersResponse, error) {
		if in.Marker == nil {
			return &iam.ListUsersResponse{Users: []iam.User{{UserName: fmt.Sprint(*in.MaxItems)}}, IsTruncated: aws.Bool(true), Marker: difficult}, nil
		}
		return &iam.ListUsersResponse{Users: []iam.User{{UserName: *in.Marker}}, IsTruncated: aws.Bool(false)}, nil
	})
	awsapi.Handle(e.api, iam.ListGroups, func(context.Context, *iam.ListGroupsRequest) (*iam.ListGroupsResponse, error) {
		return &iam.ListGroupsResponse{Groups: []iam.Group{}}, nil
	})
	awsapi.Handle(e.api, iam.GetAccountSummary, func(context.Context, *iam.GetAccountSummaryRequest) (*iam.GetAccountSummaryResponse, error) {
		return &iam.GetAccountSummaryResponse{SummaryMap: map[iam.SummaryKeyType]int32{iam.SummaryKeyTypeUsers: 3, iam.SummaryKeyTypeRoles: 0}}, nil
	})
	awsapi.Handle(e.api, iam.GetCredentialReport, func(context.Context, *iam.GetCredentialReportRequest) (*iam.GetCredentialReportResponse, error) {
		return &iam.GetCredentialReportResponse{Content: []byte("user,arn\n\x00\xff"), GeneratedTime: &awsapi.Timestamp{Time: created}}, nil
	})
	awsapi.Handle(e.api, iam.DeleteUser, func(context.Context, *iam.DeleteUserRequest) (*iam.DeleteUserResponse, error) { return nil, nil })
	awsapi.Handle(e.api, iam.GetUser, func(context.Context, *iam.GetUserRequest) (*iam.GetUserResponse, error) {
		return nil, errors.New("open database: secret path")
	})
	awsapi.Handle(e.api, iam.SimulateCustomPolicy, func(ctx context.Context, in *iam.SimulateCustomPolicyRequest) (*iam.SimulatePolicyResponse, error) {
		var out iam.SimulatePolicyResponse
		for _, entry := range in.ContextEntries {
			out.EvaluationResults = append(out.EvaluationResults, iam.EvaluationResult{EvalActionName: awsapi.Value(entry.ContextKeyName), EvalDecision: iam.PolicyEvaluationDecisionTypeAllowed,
				MissingContextValues: entry.ContextKeyValues, EvalDecisionDetails: map[string]iam.PolicyEvaluationDecisionType{in.PolicyInputList[0]: iam.PolicyEvaluationDecisionTypeExplicitDeny}})
		}
		return &out, nil
	})
	awsapi.Handle(e.api, sts.GetCallerIdentity, func(ctx context.Context, in *sts.GetCallerIdentityRequest) (*sts.GetCallerIdentityResponse, error) {
		p := awsapi.CallerOf(ctx).Principal
		return &sts.GetCallerIdentityResponse{Account: p.Account, Arn: p.ARN, UserId: p.UserID}, nil
	})
	awsapi.Handle(e.api, sts.AssumeRoleWithWebIdentity, func(ctx context.Context, in *sts.AssumeRoleWithWebIdentityRequest) (*sts.AssumeRoleWithWebIdentityResponse, error) {
		if awsapi.CallerOf(ctx).Principal != nil {
			return nil, errors.New("somebody signed")
		}
		return &sts.AssumeRoleWithWebIdentityResponse{SubjectFromWebIdentityToken: in.RoleSessionName}, nil
	})
}

func (e *endpoint) iam(c identity.Credentials, change ...func(*sdkiam.Options)) *sdkiam.Client {
	return sdkiam.New(sdkiam.Options{BaseEndpoint: aws.String(e.URL), Region: testRegion, Credentials: credentials(c), HTTPClient: e.plain()}, change...)
}

func (e *endpoint) sts(c identity.Credentials, change ...func(*sdksts.Options)) *sdksts.Client {
	return sdksts.New(sdksts.Options{BaseEndpoint: aws.String(e.URL), Region: testRegion, Credentials: credentials(c), HTTPClient: e.plain()}, change...)
}

// plain is a client that trusts the endpoint and keeps no connection.
func (e *endpoint) plain() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: e.roots(), DisableKeepAlives: true}}
}

// TestQuery_SDK takes every kind of value through the official client.
func TestQuery_SDK(t *testing.T) {
	e := newEndpoint(t)
	serveQuery(e)
	ctx, client := context.Background(), e.iam(e.admin)

	t.Run("Structures", func(t *testing.T) {
		tags := []iamtypes.Tag{{Key: aws.String("team"), Value: aws.String("é /=+-@_.:")}, {Key: aws.String("empty"), Value: aws.String("")}}
		for n := range 9 { // so that the order of the numbers is not that of the texts
			tags = append(tags, iamtypes.Tag{Key: aws.String(fmt.Sprint("k", n)), Value: aws.String("")})
		}
		got, err := client.CreateUser(ctx, &sdkiam.CreateUserInput{UserName: aws.String("bob"), Path: aws.String("/a/b/"), Tags: tags})
		if err != nil {
			t.Fatal(err)
		}
		want := &iamtypes.User{UserName: aws.String("bob"), Path: aws.String("/a/b/"), UserId: aws.String("AIDA"), Arn: aws.String("arn"), CreateDate: &created, Tags: tags}
		if diff := cmp.Diff(want, got.User, cmp.AllowUnexported(iamtypes.User{}, iamtypes.Tag{}), ignoreDocument); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("Pages", func(t *testing.T) {
		pages := sdkiam.NewListUsersPaginator(client, &sdkiam.ListUsersInput{MaxItems: aws.Int32(7)})
		var got []string
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range page.Users {
				got = append(got, *u.UserName)
			}
		}
		if diff := cmp.Diff([]string{"7", difficult}, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("Map", func(t *testing.T) {
		got, err := client.GetAccountSummary(ctx, &sdkiam.GetAccountSummaryInput{})
		if err != nil || len(got.SummaryMap) != 2 || got.SummaryMap["Users"] != 3 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("Blob", func(t *testing.T) {
		got, err := client.GetCredentialReport(ctx, &sdkiam.GetCredentialReportInput{})
		if err != nil || string(got.Content) != "user,arn\n\x00\xff" || !got.GeneratedTime.Equal(created) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("Nested", func(t *testing.T) {
		got, err := client.SimulateCustomPolicy(ctx, &sdkiam.SimulateCustomPolicyInput{ActionNames: []string{"mgn:*"}, PolicyInputList: []string{difficult},
			ContextEntries: []iamtypes.ContextEntry{{ContextKeyName: aws.String("aws:x"), ContextKeyValues: []string{"1", difficult}, ContextKeyType: "string"}}})
		if err != nil {
			t.Fatal(err)
		}
		if r := got.EvaluationResults; len(r) != 1 || *r[0].EvalActionName != "aws:x" || !cmp.Equal(r[0].MissingContextValues, []string{"1", difficult}) ||
			r[0].EvalDecisionDetails[difficult] != iamtypes.PolicyEvaluationDecisionTypeExplicitDeny {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("NoOutput", func(t *testing.T) {
		if _, err := client.DeleteUser(ctx, &sdkiam.DeleteUserInput{UserName: aws.String("bob")}); err != nil {
			t.Error(err)
		}
	})
	t.Run("Modelled", func(t *testing.T) {
		_, err := client.CreateUser(ctx, &sdkiam.CreateUserInput{UserName: aws.String("taken")})
		var got *iamtypes.EntityAlreadyExistsException
		if !errors.As(err, &got) || *got.Message != "User with name taken already exists." {
			t.Errorf("got %v", err)
		}
	})
	t.Run("Invalid", func(t *testing.T) {
		_, err := client.CreateUser(ctx, &sdkiam.CreateUserInput{UserName: aws.String("a/b"), Tags: []iamtypes.Tag{{Key: aws.String(""), Value: aws.String("x")}}})
		if code(err) != "ValidationError" || !strings.Contains(err.Error(), "2 validation errors detected: Value at 'Tags.0.Key'") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("Internal", func(t *testing.T) {
		_, err := client.GetUser(ctx, &sdkiam.GetUserInput{}, func(o *sdkiam.Options) { o.RetryMaxAttempts = 1 })
		if code(err) != "InternalFailure" || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("NotBuilt", func(t *testing.T) {
		_, err := client.ListSAMLProviders(ctx, &sdkiam.ListSAMLProvidersInput{})
		if code(err) != "NotImplemented" || !strings.Contains(err.Error(), "ListSAMLProviders is not built yet") || strings.Contains(err.Error(), "exceeded maximum") {
			t.Errorf("got %v", err)
		}
	})
}

// ignoreDocument leaves out the marker that smithy puts on every structure.
var ignoreDocument = cmp.FilterPath(func(p cmp.Path) bool { return strings.Contains(p.Last().String(), "noSmithyDocumentSerde") }, cmp.Ignore())

// TestQuery_Signature shows who is let in, and by what name the others are
// turned away.
func TestQuery_Signature(t *testing.T) {
	e := newEndpoint(t)
	serveQuery(e)
	ctx := context.Background()
	wrong, unknown := e.admin, e.admin
	wrong.SecretAccessKey += "x"
	unknown.AccessKeyID = "AKIAUNKNOWN"
	nobody := e.user(t, "nobody", `{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}`)
	for _, test := range []struct {
		name, region string
		who          identity.Credentials
		want         string
	}{
		{"its region", testRegion, e.admin, ""},
		{"the region of global services", "us-east-1", e.admin, ""},
		{"another region", "eu-central-1", e.admin, "SignatureDoesNotMatch"},
		{"wrong secret", testRegion, wrong, "SignatureDoesNotMatch"},
		{"unknown key", testRegion, unknown, "InvalidClientTokenId"},
		{"no permission", testRegion, nobody, "AccessDenied"},
	} {
		_, err := e.iam(test.who, func(o *sdkiam.Options) { o.Region = test.region }).ListGroups(ctx, &sdkiam.ListGroupsInput{})
		if code(err) != test.want {
			t.Errorf("iam with %s: got %v, want %s", test.name, err, test.want)
		}
		if test.name == "no permission" {
			test.want = "" // for that, nobody needs any
		}
		got, err := e.sts(test.who, func(o *sdksts.Options) { o.Region = test.region }).GetCallerIdentity(ctx, &sdksts.GetCallerIdentityInput{})
		if code(err) != test.want || err == nil && *got.Account != e.directory.Account().ID {
			t.Errorf("sts with %s: got %v, want %s", test.name, err, test.want)
		}
	}
	// mgn is not global: its signatures are good for one region.
	client := awsapi.NewClient(awsapi.ClientOptions{Endpoint: e.URL, Region: "us-east-1", Credentials: credentials(e.admin), TLS: e.roots(), Attempts: 1})
	defer client.Close()
	serveSample(e)
	if _, err := awsapi.Call(ctx, client, &awsapi.Op[struct{}, struct{}]{Operation: awsapi.Operation{SigningName: "mgn", Name: "ListWaves", Method: "POST", URI: "/ListWaves", Success: 200, HasBody: true}}, &struct{}{}); !awsapi.IsError(err, awsapi.InvalidSignature) {
		t.Errorf("mgn for us-east-1: got %v", err)
	}
}

// TestQuery_Unsigned sends what nobody has signed: only the two operations that
// the model says so of come through.
func TestQuery_Unsigned(t *testing.T) {
	e := newEndpoint(t)
	serveQuery(e)
	out, err := e.sts(identity.Credentials{}).AssumeRoleWithWebIdentity(context.Background(),
		&sdksts.AssumeRoleWithWebIdentityInput{RoleArn: aws.String("arn:aws:iam::123456789012:role/x"), RoleSessionName: aws.String("me"), WebIdentityToken: aws.String("token")})
	if err != nil || *out.SubjectFromWebIdentityToken != "me" {
		t.Errorf("AssumeRoleWithWebIdentity: got %+v, %v", out, err)
	}
	var open []string
	for _, service := range []*awsapi.Service{iam.Service, sts.Service} {
		for _, op := range service.Operations {
			answer := e.post(t, url.Values{"Action": {op.Name}, "Version": {service.Version}})
			if strings.Contains(answer, "<Code>MissingAuthenticationToken</Code>") != !op.Unsigned {
				t.Errorf("%s: %s", op.Name, answer)
			}
			if op.Unsigned {
				open = append(open, op.Name)
			}
		}
	}
	if diff := cmp.Diff([]string{"AssumeRoleWithSAML", "AssumeRoleWithWebIdentity"}, open); diff != "" {
		t.Errorf("operations that are not signed: %s", diff)
	}
	big := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {sts.Service.Version}, "WebIdentityToken": {strings.Repeat("x", 70_000)}}
	if answer := e.post(t, big); !strings.Contains(answer, "RequestEntityTooLarge") {
		t.Errorf("a large body: %s", answer)
	}
}

func (e *endpoint) post(t *testing.T, form url.Values) string {
	t.Helper()
	answer, err := e.plain().PostForm(e.URL, form)
	if err != nil {
		t.Fatal(err)
	}
	return bodyOf(t, answer)
}

func bodyOf(t *testing.T, answer *http.Response) string {
	t.Helper()
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// signedForm posts a form as it stands, signed by the administrator.
func (e *endpoint) signedForm(t *testing.T, service, target, form string) string {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, e.URL+target, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	who := aws.Credentials{AccessKeyID: e.admin.AccessKeyID, SecretAccessKey: string(e.admin.SecretAccessKey)}
	digest := sha256.Sum256([]byte(form))
	if err := v4.NewSigner().SignHTTP(context.Background(), who, r, hex.EncodeToString(digest[:]), service, testRegion, time.Now()); err != nil {
		t.Fatal(err)
	}
	answer, err := e.plain().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return bodyOf(t, answer)
}

// TestQuery_Form sends forms that no client writes.
func TestQuery_Form(t *testing.T) {
	e := newEndpoint(t)
	serveQuery(e)
	const createUser, listUsers = "Action=CreateUser&Version=2010-05-08&", "Action=ListUsers&Version=2010-05-08&"
	for _, test := range []struct{ service, target, form, want string }{
		{"iam", "/", createUser + "UserName=x", "<UserName>x</UserName>"},
		{"iam", "/?Version=2010-05-08", "Action=CreateUser&UserName=x", "<UserName>x</UserName>"},
		{"iam", "/?Version=2010-05-08", createUser + "UserName=x", "Version is given twice"},
		{"iam", "/", createUser + "UserName=x&UserName=y", "UserName is given twice"},
		{"iam", "/", createUser, "Value at 'UserName' failed to satisfy constraint: Member must not be null"},
		{"iam", "/", createUser + "UserName=x&Tags.member.1.Key=k", "Value at 'Tags.0.Value' failed to satisfy constraint: Member must not be null"},
		{"iam", "/", createUser + "UserName=x&Tags.member.0.Key=k&Tags.member.0.Value=", "Member must be numbered from 1"},
		{"iam", "/", createUser + "UserName=x&Tags.member.1.Key=k&Tags.member.1.Value=&Tags.member.01.Key=k", "each element once"},
		{"iam", "/", createUser + "UserName=x&Tags.member.9.Key=k9&Tags.member.9.Value=&Tags.member.10.Key=k10&Tags.member.10.Value=", "<Tags><member><Key>k9</Key><Value></Value></member><member><Key>k10</Key>"},
		{"iam", "/", createUser + "UserName=x&Tags=", "<Tags></Tags>"},
		{"iam", "/", createUser + "UserName=x&Unknown.member.1=x", "<UserName>x</UserName>"},
		{"iam", "/", createUser + "UserName=x&" + strings.Repeat("a.", 12) + "a=x", "too many parts"},
		{"iam", "/", createUser + "UserName=x" + strings.Repeat("&", 10_000), "more than 10000 parameters"},
		{"iam", "/", listUsers + "MaxItems=many", "Value at 'MaxItems' failed to satisfy constraint: Member must be an integer"},
		{"iam", "/", listUsers + "MaxItems=4294967297", "Member must be an integer"},
		{"iam", "/", "Action=Nothing&Version=2010-05-08", "<Code>InvalidAction</Code><Message>Could not find operation Nothing for version 2010-05-08</Message>"},
		{"iam", "/", "Action=ListUsers", "Could not find operation ListUsers for version NO_VERSION_SPECIFIED"},
		{"iam", "/ListUsers", "Version=2010-05-08", "<Code>InvalidAction</Code>"},
		{"iam", "/x", listUsers, "<Code>InvalidAction</Code>"},
		{"sts", "/", listUsers, "<Code>InvalidAction</Code>"},
		{"iam", "/", "%zz", "not a form"},
		{"mgn", "/", listUsers, "There is no operation with this method and path"},
	} {
		if got := html.UnescapeString(e.signedForm(t, test.service, test.target, test.form)); !strings.Contains(got, test.want) {
			t.Errorf("%s to %s%s: got %s, want %s", test.form[:min(len(test.form), 120)], test.service, test.target, got, test.want)
		}
	}
}

// TestQuery_Presigned asks by a URL alone, as those do who prove to a third
// party who they are.
func TestQuery_Presigned(t *testing.T) {
	e := newEndpoint(t)
	serveQuery(e)
	who := aws.Credentials{AccessKeyID: e.admin.AccessKeyID, SecretAccessKey: string(e.admin.SecretAccessKey)}
	digest := sha256.Sum256(nil)
	url := func(query string, age time.Duration) string {
		t.Helper()
		request, err := http.NewRequest(http.MethodGet, e.URL+"/?Action=GetCallerIdentity&Version=2011-06-15"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-K8s-Aws-Id", "cluster") // as aws eks get-token has it
		out, _, err := v4.NewSigner().PresignHTTP(context.Background(), who, request, hex.EncodeToString(digest[:]), "sts", testRegion, time.Now().Add(-age))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	presigned := url("&X-Amz-Expires=60", 0)
	account := "<Account>" + e.directory.Account().ID + "</Account>"
	for _, test := range []struct{ method, url, want string }{
		{http.MethodGet, presigned, account},
		{http.MethodGet, url("&X-Amz-Expires=60", 13*time.Minute), account}, // STS looks at the date only
		{http.MethodGet, url("", 13*time.Minute), account},
		{http.MethodGet, url("", 16*time.Minute), "Signature expired"},
		{http.MethodGet, url("&X-Amz-Expires=86400", 16*time.Minute), "Signature expired"},
		{http.MethodGet, strings.Replace(presigned, "GetCallerIdentity", "GetSessionToken", 1), "<Code>SignatureDoesNotMatch</Code>"},
		{http.MethodPut, presigned, "<Code>SignatureDoesNotMatch</Code>"},
	} {
		request, err := http.NewRequest(test.method, test.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-K8s-Aws-Id", "cluster")
		answer, err := e.plain().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if got := bodyOf(t, answer); !strings.Contains(got, test.want) {
			t.Errorf("%s: got %s, want %s", test.method, got, test.want)
		}
	}
}

// TestQuery_AllOperations sends the name of every operation and sees that all
// are routed, and none done.
func TestQuery_AllOperations(t *testing.T) {
	e := newEndpoint(t)
	for _, test := range []struct {
		service *awsapi.Service
		want    int
	}{{iam.Service, 176}, {sts.Service, 11}} {
		if n := len(test.service.Operations); n != test.want {
			t.Errorf("%s has %d operations, want %d", test.service.Name, n, test.want)
		}
		for _, op := range test.service.Operations {
			got := e.signedForm(t, test.service.SigningName, "/", "Action="+op.Name+"&Version="+test.service.Version)
			if !strings.Contains(got, "<Type>Receiver</Type><Code>NotImplemented</Code><Message>"+op.Name+" is not built yet") {
				t.Errorf("%s: got %s", op.Name, got)
			}
		}
	}
}

// TestServer_Describe lets a service name its resources itself, and a handler
// ask for more than its own action.
func TestServer_Describe(t *testing.T) {
	e := newEndpoint(t)
	e.api.Describe(iam.Service, func(caller *awsapi.Caller, in any, r awsapi.Resource) (string, policy.Context) {
		keys := policy.Context{}
		keys.Set("iam:PolicyARN", "arn:of:"+r.ID)
		return "arn:aws:iam::1:" + r.Type + "/path/" + r.ID, keys
	})
	awsapi.Handle(e.api, iam.DeleteUser, func(ctx context.Context, in *iam.DeleteUserRequest) (*iam.DeleteUserResponse, error) {
		keys := policy.Context{}
		keys.Set("iam:PassedToService", in.UserName)
		return nil, awsapi.Allowed(ctx, "iam:PassRole", "arn:aws:iam::1:role/r", keys)
	})
	who := e.iam(e.user(t, "x", `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":"iam:DeleteUser","Resource":"arn:aws:iam::1:user/path/*","Condition":{"StringLike":{"iam:PolicyARN":"arn:of:?"}}},
		{"Effect":"Allow","Action":"iam:PassRole","Resource":"arn:aws:iam::1:role/r","Condition":{"StringEquals":{"iam:PassedToService":"a","aws:SecureTransport":"true"}}}]}`))
	for _, test := range []struct{ user, want string }{{"a", ""}, {"b", "iam:PassRole"}, {"long", "iam:DeleteUser"}} {
		_, err := who.DeleteUser(context.Background(), &sdkiam.DeleteUserInput{UserName: &test.user})
		if test.want == "" && err != nil || test.want != "" && (code(err) != "AccessDenied" || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %s", test.user, err, test.want)
		}
	}
}

// TestQuery_CLI drives the aws command.
func TestQuery_CLI(t *testing.T) {
	if _, err := exec.LookPath("aws"); err != nil {
		t.Skip("SKIPPED: the aws command is not installed, so its behaviour was not tested here")
	}
	e := newEndpoint(t)
	serveQuery(e)
	ca := e.ca(t)
	run := func(args ...string) (string, error) {
		cmd := exec.Command("aws", append([]string{"--endpoint-url", e.URL, "--region", testRegion, "--output", "json"}, args...)...)
		cmd.Env = append(os.Environ(),
			"AWS_ACCESS_KEY_ID="+e.admin.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+string(e.admin.SecretAccessKey),
			"AWS_CA_BUNDLE="+ca, "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_PAGER=")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	var user struct {
		User struct{ UserName, CreateDate string }
	}
	out, err := run("iam", "create-user", "--user-name", "bob", "--tags", "Key=a,Value=b")
	if err != nil || json.Unmarshal([]byte(out), &user) != nil || user.User.UserName != "bob" || !strings.HasPrefix(user.User.CreateDate, "2026-02-03T04:05:06") {
		t.Errorf("create-user: %v: %s", err, out)
	}
	if out, err := run("iam", "list-groups"); err != nil || strings.Join(strings.Fields(out), "") != `{"Groups":[]}` {
		t.Errorf("list-groups: %v: %s", err, out)
	}
	if out, err := run("iam", "create-user", "--user-name", "taken"); err == nil || !strings.Contains(out, "(EntityAlreadyExists)") {
		t.Errorf("create-user taken: %v: %s", err, out)
	}
	if out, err := run("sts", "get-caller-identity", "--query", "Account", "--output", "text"); err != nil || strings.TrimSpace(out) != e.directory.Account().ID {
		t.Errorf("get-caller-identity: %v: %s", err, out)
	}
	if out, err := run("iam", "list-saml-providers"); err == nil || !strings.Contains(out, "(NotImplemented)") {
		t.Errorf("list-saml-providers: %v: %s", err, out)
	}
}
