package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"rehost/audit"
)

// TestAudit_Commands: a person can list what is in the log, and learns whether it is
// what was written, by the exit status too.
func TestAudit_Commands(t *testing.T) {
	data := t.TempDir()
	run := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		status := Run(t.Context(), append([]string{"audit"}, args...), &out, &errs)
		return status, out.String(), errs.String()
	}
	if status, _, errs := run("verify", "--data", data); status != statusNotFound {
		t.Errorf("no log: status %d, %s", status, errs)
	}
	log, err := openAudit(data, "", audit.Options{Account: "123456789012", Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	call := func(name, arn, decision, failure string, age time.Duration) {
		t.Helper()
		if err := log.Append(audit.Record{EventName: name, EventSource: "mgn.amazonaws.com", EventTime: time.Now().Add(-age), ErrorCode: failure,
			UserIdentity: audit.UserIdentity{Type: "IAMUser", ARN: arn}, AdditionalEventData: &audit.AdditionalEventData{Decision: decision}}); err != nil {
			t.Fatal(err)
		}
	}
	call("StartTest", "arn:aws:iam::123456789012:user/ann", "allowed", "", 48*time.Hour)
	call("StartTest", "arn:aws:iam::123456789012:user/bob", "denied", "AccessDeniedException", time.Minute)
	call("StartCutover", "arn:aws:iam::123456789012:user/ann", "allowed", "", time.Minute)
	agent := audit.Record{EventName: "GetAgentCommandForMgn", EventSource: "mgn.amazonaws.com", EventType: audit.APICall, UserIdentity: audit.UserIdentity{PrincipalID: "AROAX:s-1"},
		AdditionalEventData: &audit.AdditionalEventData{Decision: "allowed"}}
	for range 5 {
		if err := log.Repeat(agent); err != nil {
			t.Fatal(err)
		}
	}
	call("Evil\x1b[2J\n9 forged", "", "refused", "", 0)
	if err := log.Close(); err != nil { // with the record of what was repeated
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		rows string // events of the records
	}{
		{"", "AuditFileBegun StartTest StartTest StartCutover GetAgentCommandForMgn Evil\\x1b[2J\\n9 GetAgentCommandForMgn"},
		{"--since 24h", "AuditFileBegun StartTest StartCutover GetAgentCommandForMgn Evil\\x1b[2J\\n9 GetAgentCommandForMgn"},
		{"--principal user/ann", "StartTest StartCutover"},
		{"--event starttest", "StartTest StartTest"},
		{"--denied", "StartTest Evil\\x1b[2J\\n9"},
		{"--denied --principal ann", ""},
	} {
		status, out, errs := run(append([]string{"ls", "--data", data}, strings.Fields(c.args)...)...)
		var events []string
		for _, row := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
			events = append(events, strings.Fields(row)[2])
		}
		if got := strings.Join(events, " "); status != statusDone || got != c.rows {
			t.Errorf("ls %s: status %d, %q, want %q; %s", c.args, status, got, c.rows, errs)
		}
	}
	if _, out, _ := run("ls", "--data", data, "--principal", "AROAX"); strings.Count(out, "allowed") != 2 || strings.Count(out, "allowed 4 times since 2") != 1 {
		t.Errorf("repeated calls: %s", out)
	}
	files, err := audit.Files(filepath.Join(data, auditDir))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, out, _ := run("ls", "--json", "--data", data); out != string(text) {
		t.Errorf("ls --json: %s", out)
	}

	status, out, errs := run("verify", "--data", data)
	note := regexp.MustCompile(`^7 records in 1 files are as they were written, from 1 to (7:[0-9a-f]{64})\n$`).FindStringSubmatch(out)
	if status != statusDone || note == nil {
		t.Fatalf("verify: status %d, %q, %s", status, out, errs)
	}
	if status, _, errs := run("verify", "--data", data, "--expect", note[1]); status != statusDone {
		t.Errorf("what was expected: status %d, %s", status, errs)
	}
	if status, _, _ := run("verify", "--data", data, "--expect", "8"+note[1][1:]); status != statusDamaged {
		t.Errorf("what is not there was expected: status %d", status)
	}
	if status, _, _ := run("verify", "--data", data, "--expect", "7"); status != statusUsage {
		t.Errorf("half an expectation: status %d", status)
	}
	elsewhere := filepath.Join(t.TempDir(), filepath.Base(files[0]))
	if err := os.WriteFile(elsewhere, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := run("verify", "--data", t.TempDir(), elsewhere); status != statusDone || !strings.Contains(out, "without the key") {
		t.Errorf("a copy: status %d, %s %s", status, out, errs)
	}
	if err := os.WriteFile(files[0], bytes.Replace(text, []byte("user/bob"), []byte("user/ann"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, errs := run("verify", "--data", data); status != statusDamaged || !strings.Contains(errs, "line 3, record 3: changed") {
		t.Errorf("a changed log: status %d, %s", status, errs)
	}
}

// BenchmarkLs is how long a full file takes to list.
func BenchmarkLs(b *testing.B) {
	data := b.TempDir()
	log, err := openAudit(data, "", audit.Options{})
	if err != nil {
		b.Fatal(err)
	}
	for i := range 20_000 {
		if err := log.Append(audit.Record{EventName: "StartTest", RequestID: fmt.Sprint(i)}); err != nil {
			b.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := (&AuditLsCmd{Data: data}).Run(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
