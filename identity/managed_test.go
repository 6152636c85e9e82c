package identity

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"rehost/identity/policy"
)

const server = "arn:aws:mgn:eu-west-1:111122223333:source-server/s-1"

func allows(d *policy.Document, action, resource string, c policy.Context) bool {
	if c == nil {
		c = policy.Context{}
	}
	return policy.Evaluate(&policy.Request{
		Action: action, Resource: resource, Context: c, Policies: policy.Policies{Identity: []*policy.Document{d}},
	}).Allowed
}

// operationNames reads a model's operations, so that policies and models stay together.
func operationNames(t *testing.T, path string, keep func(name string, readOnly bool) bool) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var model struct {
		Operations map[string]struct{ ReadOnly bool }
	}
	if err := json.Unmarshal(text, &model); err != nil || len(model.Operations) == 0 {
		t.Fatalf("%s: %d operations, %v", path, len(model.Operations), err)
	}
	out := map[string]bool{}
	for name, op := range model.Operations {
		if keep(name, op.ReadOnly) {
			out[name] = true
		}
	}
	return out
}

// TestManaged_Agent tries every operation on the agent's own server and on
// another: it may do what is listed on its own, and nothing else anywhere.
func TestManaged_Agent(t *testing.T) {
	every := func(string, bool) bool { return true }
	operations := operationNames(t, "../awsapi/mgn/model.json", every)
	for name := range operationNames(t, "../awsapi/formgn/model.json", every) {
		operations[name] = true
	}
	own := map[string]bool{
		"IssueClientCertificateForMgn": true, "UpdateAgentSourcePropertiesForMgn": true, "GetAgentReplicationInfoForMgn": true,
		"UpdateAgentReplicationInfoForMgn": true, "GetAgentCommandForMgn": true, "UpdateAgentBacklogForMgn": true,
		"SendAgentLogsForMgn": true, "SendAgentMetricsForMgn": true, "SendSupportBundleForRehost": true, "UpdateAgentTaskForRehost": true,
	}
	document := managed()[ManagedPolicy("AWSApplicationMigrationAgentPolicy_v2")]
	c := policy.Context{}
	c.Set("aws:SourceIdentity", "s-1")
	for name := range operations {
		if got := allows(document, "mgn:"+name, server, c); got != own[name] {
			t.Errorf("%s on its own server: got %v, want %v", name, got, own[name])
		}
		for _, other := range []string{server + "2", strings.Replace(server, "s-1", "s-2", 1), strings.Replace(server, "source-server", "job", 1), "*", strings.Replace(server, "s-1", "*", 1)} {
			if allows(document, "mgn:"+name, other, c) {
				t.Errorf("%s on %s is allowed", name, other)
			}
		}
		if allows(document, "mgn:"+name, server, policy.Context{}) || allows(document, "mgn:"+name, strings.Replace(server, "s-1", "", 1), policy.Context{}) {
			t.Errorf("%s is allowed without a source identity", name)
		}
	}
	for name := range own {
		if !operations[name] {
			t.Errorf("there is no operation %s", name)
		}
	}
}

// TestManaged_ReadOnly holds the policy and the model together.
func TestManaged_ReadOnly(t *testing.T) {
	document := managed()[ManagedPolicy("AWSApplicationMigrationReadOnlyAccess")]
	looks := 0
	for name := range operationNames(t, "../awsapi/mgn/model.json", func(_ string, readOnly bool) bool { return readOnly }) {
		looks++
		if !allows(document, "mgn:"+name, server, nil) {
			t.Errorf("%s is not allowed", name)
		}
	}
	if looks != 34 {
		t.Errorf("%d operations only look, want 34", looks)
	}
	for name := range operationNames(t, "../awsapi/mgn/model.json", func(_ string, readOnly bool) bool { return !readOnly }) {
		if allows(document, "mgn:"+name, server, nil) {
			t.Errorf("%s is allowed", name)
		}
	}
}

// statementOf makes a document of one statement's members.
func statementOf(members string) string {
	return `{"Version":"2012-10-17","Statement":[{` + members + `}]}`
}
