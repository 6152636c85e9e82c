package awsapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"rehost/audit"
	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/identity"
)

// audited is an endpoint with a real audit log, and what reads that back.
func audited(t *testing.T, change ...func(*awsapi.Options)) (e *endpoint, log *audit.Log, records func() []audit.Entry) {
	t.Helper()
	dir := t.TempDir()
	log, err := audit.Open(dir, audit.Options{Keys: audit.Keys{make([]byte, 32)}, Region: testRegion})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	e = newEndpoint(t, append(change, func(o *awsapi.Options) { o.Audit = log })...)
	return e, log, func() (out []audit.Entry) {
		t.Helper()
		files, err := audit.Files(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Read(files, func(e *audit.Entry, _ []byte) error {
			if e.EventType == audit.APICall {
				out = append(out, *e)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// TestAudit_Record: every call has a record that says who, what, and which statement
// decided; the other log has those that were not allowed.
func TestAudit_Record(t *testing.T) {
	e, _, records := audited(t)
	serveSample(e)
	serveAgent(e)
	c := e.client(t, e.user(t, "tester", `{"Version":"2012-10-17","Statement":{"Sid":"Tests","Effect":"Allow","Action":"mgn:StartTest","Resource":"*"}}`))
	_, _ = call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}})
	_, _ = call(c, mgn.InitializeService, &mgn.InitializeServiceRequest{})
	session, err := e.directory.AssumeRoleAsService(t.Context(), identity.ServiceName,
		identity.AssumeRole{Role: identity.AgentRole, Session: serverID(1), SourceIdentity: serverID(1)})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = call(e.client(t, session), formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: serverID(1)})
	wrong := e.admin
	wrong.SecretAccessKey = "not it"
	_, _ = call(e.client(t, wrong), mgn.InitializeService, &mgn.InitializeServiceRequest{})
	got := records()
	if len(got) != 4 {
		t.Fatalf("%d records of 4 calls", len(got))
	}
	account := e.directory.Account().ID
	for i, want := range []struct{ name, decision, identity, arn, failure, reason string }{
		{"StartTest", "allowed", "IAMUser", "arn:aws:iam::" + account + ":user/tester", "ConflictException", "allowed by statement Tests of inline policy p"},
		{"InitializeService", "denied", "IAMUser", "arn:aws:iam::" + account + ":user/tester", "AccessDeniedException", ""},
		{"GetAgentCommandForMgn", "allowed", "AssumedRole", "arn:aws:sts::" + account + ":assumed-role/", "", ""},
		{"Unknown", "refused", "Unknown", "", "InvalidSignatureException", ""},
	} {
		r := got[i]
		if r.EventName != want.name || r.AdditionalEventData.Decision != want.decision || r.UserIdentity.Type != want.identity || !strings.HasPrefix(r.UserIdentity.ARN, want.arn) ||
			r.ErrorCode != want.failure || !strings.Contains(r.AdditionalEventData.Reason, want.reason) || r.AdditionalEventData.Reason == "" || len(r.RequestID) != 36 {
			t.Errorf("record %d is %+v of %+v with %+v, want %+v", i, r.Record, r.UserIdentity, r.AdditionalEventData, want)
		}
		if r.AWSRegion != testRegion || r.SourceIPAddress != "127.0.0.1" || r.TLSDetails == nil || !strings.HasPrefix(r.TLSDetails.TLSVersion, "TLSv1.") {
			t.Errorf("record %d: %+v, %+v", i, r.Record, r.TLSDetails)
		}
		wantLines := 1
		if want.decision == "allowed" {
			wantLines = 0
		}
		if n := strings.Count(e.log.String(), r.RequestID); n != wantLines {
			t.Errorf("%d lines of %s in the other log, want %d", n, want.name, wantLines)
		}
	}
	if r := got[0]; len(r.Resources) != 1 || r.Resources[0].ARN != e.arn("source-server", serverID(1)) || r.Resources[0].Type != "AWS::MGN::SourceServer" || r.ReadOnly || r.EventSource != "mgn.amazonaws.com" {
		t.Errorf("%+v", r.Record)
	}
	if p, _ := got[0].RequestParameters.(map[string]any); fmt.Sprint(p["sourceServerIDs"]) != "["+serverID(1)+"]" {
		t.Errorf("request parameters %v", got[0].RequestParameters)
	}
	if s := got[2].UserIdentity.SessionContext; s == nil || s.SourceIdentity != serverID(1) || s.SessionIssuer.UserName != identity.AgentRole || !strings.Contains(s.SessionIssuer.ARN, ":role/") || s.Attributes.CreationDate.IsZero() {
		t.Errorf("session context %+v", s)
	}
	if got[3].UserIdentity.AccessKeyID != e.admin.AccessKeyID {
		t.Errorf("whose key was misused: %+v", got[3].UserIdentity)
	}
}

// TestAudit_Unwritable: what changes something is refused before it is done while it
// cannot be recorded, and a call that was done and not recorded did not succeed.
func TestAudit_Unwritable(t *testing.T) {
	e, log, _ := audited(t)
	done := 0
	awsapi.Handle(e.api, mgn.InitializeService, func(context.Context, *mgn.InitializeServiceRequest) (*mgn.InitializeServiceResponse, error) {
		done++
		return nil, log.Close() // between the question and the record
	})
	awsapi.Handle(e.api, mgn.ListWaves, func(context.Context, *mgn.ListWavesRequest) (*mgn.ListWavesResponse, error) {
		return &mgn.ListWavesResponse{}, nil
	})
	c := e.client(t, e.admin)
	if _, err := call(c, mgn.InitializeService, &mgn.InitializeServiceRequest{}); done != 1 || !awsapi.IsError(err, awsapi.InternalServer) || !strings.Contains(err.Error(), "was carried out") {
		t.Errorf("not recorded: done %d times, answered %v", done, err)
	}
	if _, err := call(c, mgn.InitializeService, &mgn.InitializeServiceRequest{}); done != 1 || !awsapi.IsError(err, awsapi.InternalServer) || !strings.Contains(err.Error(), "nothing may be changed") {
		t.Errorf("not to be recorded: done %d times, answered %v", done, err)
	}
	if _, err := call(c, mgn.ListWaves, &mgn.ListWavesRequest{}); err != nil {
		t.Errorf("reading: %v", err)
	}
}

// TestAudit_Flood: strangers cannot fill the disk with refused calls, and what
// was left out is counted.
func TestAudit_Flood(t *testing.T) {
	clock := time.Now()
	e, _, records := audited(t, func(o *awsapi.Options) {
		o.Log = slog.New(slog.DiscardHandler)
		o.Now = func() time.Time { return clock }
	})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: e.roots()}}
	defer client.CloseIdleConnections()
	knock := func() {
		t.Helper()
		r, err := http.NewRequest("POST", e.URL+"/StartTest", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("User-Agent", strings.Repeat("A", 20_000))
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
	}
	for range 500 {
		knock()
	}
	if n := len(records()); n != 200 {
		t.Errorf("500 refused calls made %d records", n)
	}
	clock = clock.Add(time.Second)
	knock()
	got := records()
	if last := got[len(got)-1]; last.AdditionalEventData.NotRecorded != 300 || len(last.UserAgent) > 300 {
		t.Errorf("the record after a flood is %+v", last.AdditionalEventData)
	}
}

// BenchmarkCall is what the record costs a call, side by side: the whole call over
// TLS on loopback, with the same client.
func BenchmarkCall(b *testing.B) {
	for _, with := range []bool{false, true, false, true} {
		b.Run(fmt.Sprintf("audited=%v", with), func(b *testing.B) {
			e := newEndpoint(b, func(o *awsapi.Options) {
				o.Log = slog.New(slog.DiscardHandler)
				if with {
					log, err := audit.Open(b.TempDir(), audit.Options{Keys: audit.Keys{make([]byte, 32)}})
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { log.Close() })
					o.Audit = log
				}
			})
			serveAgent(e)
			c := e.client(b, e.admin)
			in := &formgn.RegisterAgentForMgnRequest{SourceProperties: &formgn.SourceProperties{}, Tags: formgn.TagsMap{"team": "x"}}
			for b.Loop() {
				if _, err := call(c, formgn.RegisterAgentForMgn, in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestVerify_BodyOfStrangers: without a key that exists, no body is read.
func TestVerify_BodyOfStrangers(t *testing.T) {
	e := newEndpoint(t)
	serveSample(e)
	r, err := http.NewRequest("POST", e.URL+"/StartTest", strings.NewReader(strings.Repeat(" ", 2<<20)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	r.Header.Set("X-Amz-Date", now.Format("20060102T150405Z"))
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIASTRANGERSTRANGER/"+now.Format("20060102")+"/"+testRegion+
		"/mgn/aws4_request, SignedHeaders=host;x-amz-date, Signature="+strings.Repeat("0", 64))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: e.roots()}}
	defer client.CloseIdleConnections()
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if got := answer.Header.Get("X-Amzn-Errortype"); got != "UnrecognizedClientException" {
		t.Errorf("a body that is too large, of a stranger: %s", got)
	}
}
