package awsapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/identity"
)

// TestAudit_Routine: an agent that polls leaves two records of what it always calls, and every
// call that is not what it always does leaves one: another server's, that of somebody
// else, one that fails. The handler calls all of them routine.
func TestAudit_Routine(t *testing.T) {
	clock := time.Now()
	e, log, records := audited(t, func(o *awsapi.Options) {
		o.Log = slog.New(slog.DiscardHandler)
		o.Now = func() time.Time { return clock }
	})
	var failure error
	awsapi.Handle(e.api, formgn.GetAgentCommandForMgn, func(ctx context.Context, _ *formgn.GetAgentCommandForMgnRequest) (*formgn.GetAgentCommandForMgnResponse, error) {
		awsapi.Routine(ctx)
		return &formgn.GetAgentCommandForMgnResponse{Command: formgn.AgentCommandNone}, failure
	})
	awsapi.Handle(e.api, mgn.ListWaves, func(ctx context.Context, _ *mgn.ListWavesRequest) (*mgn.ListWavesResponse, error) {
		awsapi.Routine(ctx)
		return &mgn.ListWavesResponse{}, nil
	})
	session, err := e.directory.AssumeRoleAsService(t.Context(), identity.ServiceName,
		identity.AssumeRole{Role: identity.AgentRole, Session: serverID(1), SourceIdentity: serverID(1)})
	if err != nil {
		t.Fatal(err)
	}
	agent, admin := e.client(t, session), e.client(t, e.admin)
	poll := func(c *awsapi.Client, server int) {
		clock = clock.Add(time.Second)
		_, _ = call(c, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: serverID(server)})
	}
	for range 40 {
		poll(agent, 1)
	}
	poll(agent, 2)
	poll(agent, 2)
	for range 20 {
		poll(agent, 1)
	}
	failure = awsapi.Errorf(awsapi.Validation, "no")
	poll(agent, 1)
	failure = nil
	for range 2 {
		poll(admin, 1)
		_, _ = call(admin, mgn.ListWaves, &mgn.ListWavesRequest{})
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, r := range records() {
		what := r.ErrorCode
		if r.AdditionalEventData.Repeated != nil {
			what = fmt.Sprint(r.AdditionalEventData.Repeated.Calls)
		}
		got += fmt.Sprintf(" %s %s %s,", r.UserIdentity.Type, r.EventName, what)
	}
	const polls = " AssumedRole GetAgentCommandForMgn "
	want := polls + "," + polls + "39," + polls + "AccessDeniedException," + polls + "AccessDeniedException," + polls + "," + polls + "19," + polls + "ValidationException," +
		" IAMUser GetAgentCommandForMgn , IAMUser ListWaves , IAMUser GetAgentCommandForMgn , IAMUser ListWaves ,"
	if got != want {
		t.Errorf("the log has\n%s, want\n%s", got, want)
	}
}
