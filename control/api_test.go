package control

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"
	"github.com/aws/smithy-go/middleware"

	sdk "github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/identity"
)

// TestAPI makes every call that is built once, with the official SDK, over TLS,
// through the real handler and policies.
func TestAPI(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	key, err := identity.NewSealingKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	directory, err := identity.Open(ctx, identity.Options{Store: w.db.Identities(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	admin, err := directory.Bootstrap(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.opts.Account = directory.Account().ID // what is of another account is not theirs to touch
	handler := awsapi.New(awsapi.Options{Identity: directory, Region: "us-east-1", VerifyPeer: VerifyPeer, ResourceTags: w.ResourceTags, Log: w.log}, mgn.Service, formgn.Service)
	w.Register(handler)
	server := httptest.NewTLSServer(handler)
	defer server.Close()
	var called []string
	note := middleware.InitializeMiddlewareFunc("note", func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
		called = append(called, awsmiddleware.GetOperationName(ctx))
		return next.HandleInitialize(ctx, in)
	})
	client := sdk.New(sdk.Options{Region: "us-east-1", BaseEndpoint: &server.URL, HTTPClient: server.Client(), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(admin.AccessKeyID, string(admin.SecretAccessKey), ""),
		APIOptions:  []func(*middleware.Stack) error{func(s *middleware.Stack) error { return s.Initialize.Add(note, middleware.After) }}})
	defer server.Client().Transport.(*http.Transport).CloseIdleConnections()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err = client.InitializeService(ctx, &sdk.InitializeServiceInput{})
	ok(err)

	rct, err := client.CreateReplicationConfigurationTemplate(ctx, &sdk.CreateReplicationConfigurationTemplateInput{AssociateDefaultSecurityGroup: aws.Bool(true), BandwidthThrottling: 5,
		CreatePublicIP: aws.Bool(false), DataPlaneRouting: "PRIVATE_IP", DefaultLargeStagingDiskType: "GP3", EbsEncryption: "DEFAULT", ReplicationServerInstanceType: aws.String("t3.small"),
		ReplicationServersSecurityGroupsIDs: []string{}, StagingAreaSubnetId: aws.String("subnet-12345678"), StagingAreaTags: map[string]string{}, UseDedicatedReplicationServer: aws.Bool(false)})
	ok(err)
	rctID := rct.ReplicationConfigurationTemplateID
	_, err = client.UpdateReplicationConfigurationTemplate(ctx, &sdk.UpdateReplicationConfigurationTemplateInput{ReplicationConfigurationTemplateID: rctID, BandwidthThrottling: 6})
	ok(err)
	rcts, err := client.DescribeReplicationConfigurationTemplates(ctx, &sdk.DescribeReplicationConfigurationTemplatesInput{})
	if ok(err); len(rcts.Items) != 1 || rcts.Items[0].BandwidthThrottling != 6 {
		t.Fatalf("%+v", rcts.Items)
	}
	_, err = client.DeleteReplicationConfigurationTemplate(ctx, &sdk.DeleteReplicationConfigurationTemplateInput{ReplicationConfigurationTemplateID: rctID})
	ok(err)
	lct, err := client.CreateLaunchConfigurationTemplate(ctx, &sdk.CreateLaunchConfigurationTemplateInput{})
	ok(err)
	_, err = client.UpdateLaunchConfigurationTemplate(ctx, &sdk.UpdateLaunchConfigurationTemplateInput{LaunchConfigurationTemplateID: lct.LaunchConfigurationTemplateID, CopyPrivateIp: aws.Bool(true)})
	ok(err)
	_, err = client.DescribeLaunchConfigurationTemplates(ctx, &sdk.DescribeLaunchConfigurationTemplatesInput{LaunchConfigurationTemplateIDs: []string{*lct.LaunchConfigurationTemplateID}})
	ok(err)
	_, err = client.DeleteLaunchConfigurationTemplate(ctx, &sdk.DeleteLaunchConfigurationTemplateInput{LaunchConfigurationTemplateID: lct.LaunchConfigurationTemplateID})
	ok(err)

	id := aws.String(w.register("01"))
	w.replicate(*id)
	_, err = client.GetReplicationConfiguration(ctx, &sdk.GetReplicationConfigurationInput{SourceServerID: id})
	ok(err)
	_, err = client.UpdateReplicationConfiguration(ctx, &sdk.UpdateReplicationConfigurationInput{SourceServerID: id, BandwidthThrottling: 9})
	ok(err)
	_, err = client.GetLaunchConfiguration(ctx, &sdk.GetLaunchConfigurationInput{SourceServerID: id})
	ok(err)
	_, err = client.UpdateLaunchConfiguration(ctx, &sdk.UpdateLaunchConfigurationInput{SourceServerID: id, BootMode: "UEFI"})
	ok(err)
	_, err = client.PauseReplication(ctx, &sdk.PauseReplicationInput{SourceServerID: id})
	ok(err)
	_, err = client.ResumeReplication(ctx, &sdk.ResumeReplicationInput{SourceServerID: id})
	ok(err)
	_, err = client.StopReplication(ctx, &sdk.StopReplicationInput{SourceServerID: id})
	ok(err)
	w.clock.advance(time.Minute)
	ok(w.watch(ctx))
	_, err = client.StartReplication(ctx, &sdk.StartReplicationInput{SourceServerID: id})
	ok(err)
	w.replicate(*id)
	_, err = client.UpdateSourceServer(ctx, &sdk.UpdateSourceServerInput{SourceServerID: id})
	ok(err)
	w.clock.advance(time.Hour)
	ok(w.watch(ctx))
	_, err = client.RetryDataReplication(ctx, &sdk.RetryDataReplicationInput{SourceServerID: id})
	ok(err)
	w.replicate(*id)

	ids := []string{*id}
	test, err := client.StartTest(ctx, &sdk.StartTestInput{SourceServerIDs: ids, Tags: map[string]string{"why": "test"}})
	ok(err)
	w.runJobs()
	log, err := client.DescribeJobLogItems(ctx, &sdk.DescribeJobLogItemsInput{JobID: test.Job.JobID})
	if ok(err); len(log.Items) == 0 || log.Items[0].Event != types.JobLogEventJobStart {
		t.Fatalf("%+v", log.Items)
	}
	jobs, err := client.DescribeJobs(ctx, &sdk.DescribeJobsInput{})
	if ok(err); len(jobs.Items) != 1 || jobs.Items[0].Status != types.JobStatusCompleted || jobs.Items[0].Tags["why"] != "test" {
		t.Fatalf("%+v", jobs.Items)
	}
	change := func(state types.ChangeServerLifeCycleStateSourceServerLifecycleState) {
		t.Helper()
		_, err := client.ChangeServerLifeCycleState(ctx, &sdk.ChangeServerLifeCycleStateInput{SourceServerID: id, LifeCycle: &types.ChangeServerLifeCycleStateSourceServerLifecycle{State: state}})
		ok(err)
	}
	change("READY_FOR_TEST")
	_, err = client.TerminateTargetInstances(ctx, &sdk.TerminateTargetInstancesInput{SourceServerIDs: ids})
	ok(err)
	w.runJobs()
	_, err = client.StartTest(ctx, &sdk.StartTestInput{SourceServerIDs: ids})
	ok(err)
	w.runJobs()
	change("READY_FOR_CUTOVER")
	_, err = client.StartCutover(ctx, &sdk.StartCutoverInput{SourceServerIDs: ids})
	ok(err)
	w.runJobs()
	final, err := client.FinalizeCutover(ctx, &sdk.FinalizeCutoverInput{SourceServerID: id})
	if ok(err); final.LifeCycle.State != types.LifeCycleStateCutover || final.LifeCycle.LastCutover.Finalized == nil || final.LifeCycle.LastTest.Finalized == nil {
		t.Fatalf("%+v", final.LifeCycle)
	}
	_, err = client.DeleteJob(ctx, &sdk.DeleteJobInput{JobID: test.Job.JobID})
	ok(err)

	_, err = client.TagResource(ctx, &sdk.TagResourceInput{ResourceArn: final.Arn, Tags: map[string]string{"a/b": "c d", "x": "y"}})
	ok(err)
	_, err = client.UntagResource(ctx, &sdk.UntagResourceInput{ResourceArn: final.Arn, TagKeys: []string{"x"}})
	ok(err)
	tags, err := client.ListTagsForResource(ctx, &sdk.ListTagsForResourceInput{ResourceArn: final.Arn})
	if ok(err); len(tags.Tags) != 1 || tags.Tags["a/b"] != "c d" {
		t.Fatalf("%v", tags.Tags)
	}
	_, err = client.DisconnectFromService(ctx, &sdk.DisconnectFromServiceInput{SourceServerID: id})
	ok(err)
	_, err = client.MarkAsArchived(ctx, &sdk.MarkAsArchivedInput{SourceServerID: id})
	ok(err)
	w.target.hydrated = true
	ok(w.observeAll(ctx))
	_, err = client.DeleteSourceServer(ctx, &sdk.DeleteSourceServerInput{SourceServerID: id})
	ok(err)
	_, err = client.DescribeSourceServers(ctx, &sdk.DescribeSourceServersInput{})
	ok(err)

	slices.Sort(called)
	if called = slices.Compact(called); len(called) != 34 {
		t.Errorf("%d operations were called, 34 are registered: %v", len(called), called)
	}
}
