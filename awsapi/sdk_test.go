package awsapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"rehost/awsapi"
	"rehost/awsapi/mgn"
	"rehost/identity"
)

// serveSample registers a few operations over a small memory, of the kinds
// that differ on the wire: body, path, query, pages, no answer, errors.
func serveSample(e *endpoint) {
	var mu sync.Mutex
	tags := map[string]map[string]string{}
	awsapi.Handle(e.api, mgn.DescribeSourceServers, func(ctx context.Context, in *mgn.DescribeSourceServersRequest) (*mgn.DescribeSourceServersResponse, error) {
		first := 0
		if in.NextToken != nil {
			var err error
			if first, err = strconv.Atoi(*in.NextToken); err != nil {
				return nil, awsapi.Errorf(awsapi.Validation, "nextToken is not one of ours")
			}
		}
		out := &mgn.DescribeSourceServersResponse{Items: []mgn.SourceServer{}}
		for n := first; n < first+int(*in.MaxResults) && n < 25; n++ {
			out.Items = append(out.Items, mgn.SourceServer{SourceServerID: serverID(n), IsArchived: new(bool), Tags: mgn.TagsMap{"n": fmt.Sprint(n)}})
		}
		if first+int(*in.MaxResults) < 25 {
			out.NextToken = fmt.Sprint(first + int(*in.MaxResults))
		}
		return out, nil
	})
	awsapi.Handle(e.api, mgn.StartTest, func(ctx context.Context, in *mgn.StartTestRequest) (*mgn.StartTestResponse, error) {
		var details []mgn.ErrorDetails
		for _, id := range in.SourceServerIDs {
			details = append(details, mgn.ErrorDetails{ResourceId: id, ResourceType: "source-server", Message: "is not launchable"})
		}
		return nil, &mgn.ConflictException{Message: "not ready", Code: "NotReady", Errors: details}
	})
	awsapi.Handle(e.api, mgn.InitializeService, func(context.Context, *mgn.InitializeServiceRequest) (*mgn.InitializeServiceResponse, error) {
		return nil, nil
	})
	awsapi.Handle(e.api, mgn.FinalizeCutover, func(context.Context, *mgn.FinalizeCutoverRequest) (*mgn.SourceServer, error) {
		return nil, errors.New("open database: secret path")
	})
	awsapi.Handle(e.api, mgn.MarkAsArchived, func(context.Context, *mgn.MarkAsArchivedRequest) (*mgn.SourceServer, error) {
		panic("on purpose")
	})
	awsapi.Handle(e.api, mgn.DescribeVcenterClients, func(ctx context.Context, in *mgn.DescribeVcenterClientsRequest) (*mgn.DescribeVcenterClientsResponse, error) {
		return &mgn.DescribeVcenterClientsResponse{NextToken: fmt.Sprintf("%d %s", *in.MaxResults, *in.NextToken)}, nil
	})
	awsapi.Handle(e.api, mgn.TagResource, func(ctx context.Context, in *mgn.TagResourceRequest) (*mgn.TagResourceResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		if tags[in.ResourceArn] == nil {
			tags[in.ResourceArn] = map[string]string{}
		}
		maps.Copy(tags[in.ResourceArn], in.Tags)
		return nil, nil
	})
	awsapi.Handle(e.api, mgn.UntagResource, func(ctx context.Context, in *mgn.UntagResourceRequest) (*mgn.UntagResourceResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		for _, key := range in.TagKeys {
			delete(tags[in.ResourceArn], key)
		}
		return nil, nil
	})
	awsapi.Handle(e.api, mgn.ListTagsForResource, func(ctx context.Context, in *mgn.ListTagsForResourceRequest) (*mgn.ListTagsForResourceResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		if tags[in.ResourceArn] == nil {
			return nil, &mgn.ResourceNotFoundException{Message: "no such resource", ResourceId: in.ResourceArn}
		}
		return &mgn.ListTagsForResourceResponse{Tags: maps.Clone(tags[in.ResourceArn])}, nil
	})
}

func (e *endpoint) sdk(c identity.Credentials) *sdk.Client {
	return sdk.New(sdk.Options{
		BaseEndpoint: aws.String(e.URL),
		Region:       testRegion,
		Credentials:  credentials(c),
		HTTPClient:   &http.Client{Transport: &http.Transport{TLSClientConfig: e.roots(), DisableKeepAlives: true}},
	})
}

func TestSDK(t *testing.T) {
	e := newEndpoint(t)
	serveSample(e)
	ctx, client := context.Background(), e.sdk(e.admin)

	t.Run("Pages", func(t *testing.T) {
		pages := sdk.NewDescribeSourceServersPaginator(client, &sdk.DescribeSourceServersInput{MaxResults: aws.Int32(10)})
		var got []string
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range page.Items {
				got = append(got, *s.SourceServerID)
			}
		}
		if len(got) != 25 || got[24] != serverID(24) {
			t.Errorf("got %d servers: %v", len(got), got)
		}
	})
	t.Run("Tags", func(t *testing.T) {
		arn := e.arn("source-server", serverID(1))
		want := map[string]string{"team": "a b", "a:b": "é/=+%", "a1": "", "x y": "1"}
		if _, err := client.TagResource(ctx, &sdk.TagResourceInput{ResourceArn: &arn, Tags: want}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.UntagResource(ctx, &sdk.UntagResourceInput{ResourceArn: &arn, TagKeys: []string{"x y", "a1", "a:b"}}); err != nil {
			t.Fatal(err)
		}
		got, err := client.ListTagsForResource(ctx, &sdk.ListTagsForResourceInput{ResourceArn: &arn})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{"team": "a b"}, got.Tags); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("Query", func(t *testing.T) {
		got, err := client.DescribeVcenterClients(ctx, &sdk.DescribeVcenterClientsInput{MaxResults: aws.Int32(7), NextToken: aws.String("a+b/c=")})
		if err != nil || *got.NextToken != "7 a+b/c=" {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("NoContent", func(t *testing.T) {
		if _, err := client.InitializeService(ctx, &sdk.InitializeServiceInput{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("Conflict", func(t *testing.T) {
		_, err := client.StartTest(ctx, &sdk.StartTestInput{SourceServerIDs: []string{serverID(1), serverID(2)}})
		var got *types.ConflictException
		if !errors.As(err, &got) {
			t.Fatalf("got %v", err)
		}
		if *got.Message != "not ready" || *got.Code != "NotReady" || len(got.Errors) != 2 || *got.Errors[1].ResourceId != serverID(2) {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("NotFound", func(t *testing.T) {
		arn := e.arn("source-server", serverID(99))
		_, err := client.ListTagsForResource(ctx, &sdk.ListTagsForResourceInput{ResourceArn: &arn})
		if got := (*types.ResourceNotFoundException)(nil); !errors.As(err, &got) || *got.ResourceId != arn {
			t.Errorf("got %v", err)
		}
	})
	t.Run("Fields", func(t *testing.T) {
		_, err := client.StartTest(ctx, &sdk.StartTestInput{SourceServerIDs: []string{serverID(1), "s-x"}})
		var got *types.ValidationException
		if !errors.As(err, &got) || got.Reason != types.ValidationExceptionReasonFieldValidationFailed || len(got.FieldList) != 1 || *got.FieldList[0].Name != "sourceServerIDs.1" {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("Internal", func(t *testing.T) {
		for name, call := range map[string]func() error{
			"error": func() error {
				_, err := client.FinalizeCutover(ctx, &sdk.FinalizeCutoverInput{SourceServerID: aws.String(serverID(1))}, once)
				return err
			},
			"panic": func() error {
				_, err := client.MarkAsArchived(ctx, &sdk.MarkAsArchivedInput{SourceServerID: aws.String(serverID(1))}, once)
				return err
			},
		} {
			err := call()
			if code(err) != awsapi.InternalServer || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "purpose") {
				t.Errorf("%s: got %v", name, err)
			}
		}
		for _, want := range []string{"open database: secret path", "on purpose"} {
			if !strings.Contains(e.log.String(), want) {
				t.Errorf("the log has no %q", want)
			}
		}
	})
	t.Run("NotBuilt", func(t *testing.T) {
		start := time.Now()
		_, err := client.ListWaves(ctx, &sdk.ListWavesInput{})
		if code(err) != awsapi.NotImplemented || !strings.Contains(err.Error(), "ListWaves is not built yet") {
			t.Errorf("got %v", err)
		}
		if strings.Contains(err.Error(), "exceeded maximum number of attempts") {
			t.Errorf("the SDK repeated the call for %v: %v", time.Since(start), err)
		}
	})
	t.Run("WrongSecret", func(t *testing.T) {
		wrong := e.admin
		wrong.SecretAccessKey += "x"
		_, err := e.sdk(wrong).InitializeService(ctx, &sdk.InitializeServiceInput{})
		if code(err) != awsapi.InvalidSignature {
			t.Errorf("got %v", err)
		}
	})
}

func once(o *sdk.Options) { o.RetryMaxAttempts = 1 }

// code is the error name that the SDK understood.
func code(err error) string {
	var e smithy.APIError
	if !errors.As(err, &e) {
		return ""
	}
	return e.ErrorCode()
}

// TestSDK_AllOperations sends every operation that takes no input, or little,
// and sees that all 95 are routed and none is unknown.
func TestSDK_AllOperations(t *testing.T) {
	if n := len(mgn.Service.Operations); n != 95 {
		t.Fatalf("the model has %d operations, want 95", n)
	}
	e := newEndpoint(t)
	client := e.client(t, e.admin)
	for _, op := range mgn.Service.Operations {
		if strings.Contains(op.URI, "{") {
			continue
		}
		call := &awsapi.Op[struct{}, struct{}]{Operation: *op}
		_, err := awsapi.Call(context.Background(), client, call, &struct{}{})
		if !awsapi.IsError(err, awsapi.NotImplemented) {
			t.Errorf("%s: got %v", op.Name, err)
		}
	}
}

// TestCLI drives the aws command, the client that people will use.
func TestCLI(t *testing.T) {
	if _, err := exec.LookPath("aws"); err != nil {
		t.Skip("SKIPPED: the aws command is not installed, so its behaviour was not tested here")
	}
	e := newEndpoint(t)
	serveSample(e)
	ca := e.ca(t)
	run := func(args ...string) (string, error) {
		cmd := exec.Command("aws", append([]string{"mgn", "--endpoint-url", e.URL, "--region", testRegion, "--output", "json"}, args...)...)
		cmd.Env = append(os.Environ(),
			"AWS_ACCESS_KEY_ID="+e.admin.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+string(e.admin.SecretAccessKey),
			"AWS_CA_BUNDLE="+ca, "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_PAGER=")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("describe-source-servers", "--page-size", "10", "--query", "items[].sourceServerID")
	var ids []string
	if err != nil || json.Unmarshal([]byte(out), &ids) != nil || len(ids) != 25 {
		t.Errorf("describe-source-servers: %v: %s", err, out)
	}
	arn := e.arn("source-server", serverID(3))
	if out, err := run("tag-resource", "--resource-arn", arn, "--tags", "a:b=1,a1=2,keep=3"); err != nil {
		t.Errorf("tag-resource: %v: %s", err, out)
	}
	if out, err := run("untag-resource", "--resource-arn", arn, "--tag-keys", "a1", "a:b"); err != nil {
		t.Errorf("untag-resource: %v: %s", err, out)
	}
	if out, err := run("list-tags-for-resource", "--resource-arn", arn, "--query", "tags"); err != nil || strings.Join(strings.Fields(out), "") != `{"keep":"3"}` {
		t.Errorf("list-tags-for-resource: %v: %s", err, out)
	}
	if out, err := run("initialize-service"); err != nil {
		t.Errorf("initialize-service: %v: %s", err, out)
	}
	if out, err := run("start-test", "--source-server-ids", serverID(1)); err == nil || !strings.Contains(out, "(ConflictException)") {
		t.Errorf("start-test: %v: %s", err, out)
	}
	if out, err := run("list-waves"); err == nil || !strings.Contains(out, "(NotImplementedException)") {
		t.Errorf("list-waves: %v: %s", err, out)
	}
}

// TestErrors_HaveModelNames holds the common errors and the model together.
func TestErrors_HaveModelNames(t *testing.T) {
	for _, e := range []awsapi.Exception{
		&mgn.AccessDeniedException{}, &mgn.ConflictException{}, &mgn.InternalServerException{}, &mgn.ResourceNotFoundException{},
		&mgn.ServiceQuotaExceededException{}, &mgn.ThrottlingException{}, &mgn.UninitializedAccountException{}, &mgn.ValidationException{},
	} {
		if got := awsapi.Errorf(e.ErrorName(), "").HTTPStatus(); got != e.HTTPStatus() {
			t.Errorf("%s: status %d, the model has %d", e.ErrorName(), got, e.HTTPStatus())
		}
	}
	if !slices.Contains(mgn.StartTest.Errors, awsapi.Conflict) || mgn.RetryDataReplication.Models(awsapi.Conflict) {
		t.Error("the operations' errors are not those of the model")
	}
}
