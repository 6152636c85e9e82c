package awsapi_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/mgn"
)

// TestAudit_OwnLog: the audit log gets every call, the other one only those that
// were not allowed.
func TestAudit_OwnLog(t *testing.T) {
	audit := new(lockedBuffer)
	e := newEndpoint(t, func(o *awsapi.Options) { o.Audit = slog.New(slog.NewJSONHandler(audit, nil)) })
	serveSample(e)
	c := e.client(t, e.user(t, "tester", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:StartTest","Resource":"*"}}`))
	_, _ = call(c, mgn.StartTest, &mgn.StartTestRequest{SourceServerIDs: []string{serverID(1)}})
	_, _ = call(c, mgn.InitializeService, &mgn.InitializeServiceRequest{})
	for name, want := range map[string]int{"StartTest": 0, "InitializeService": 1} {
		if n := strings.Count(audit.String(), `"operation":"`+name+`"`); n != 1 {
			t.Errorf("%d lines of %s in the audit log", n, name)
		}
		if n := strings.Count(e.log.String(), `"operation":"`+name+`"`); n != want {
			t.Errorf("%d lines of %s in the other log, want %d", n, name, want)
		}
	}
}

// TestAudit_Flood: strangers cannot fill the disk with refused calls, and what
// was left out is counted.
func TestAudit_Flood(t *testing.T) {
	clock := time.Now()
	audit := new(lockedBuffer)
	quiet := slog.New(slog.DiscardHandler)
	e := newEndpoint(t, func(o *awsapi.Options) {
		o.Audit, o.Log = slog.New(slog.NewJSONHandler(audit, nil)), quiet
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
	if n, size := strings.Count(audit.String(), "\n"), len(audit.String()); n != 200 || size > 200*1024 {
		t.Errorf("500 refused calls made %d lines, %d bytes", n, size)
	}
	clock = clock.Add(time.Second)
	knock()
	lines := strings.Split(strings.TrimSpace(audit.String()), "\n")
	var last map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last["refusedAndNotLogged"] != 300.0 {
		t.Errorf("the line after a flood is %v, %v", last, err)
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
