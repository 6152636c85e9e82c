package policy

import (
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// managedDocument reads one of the policies that the product brings along.
func managedDocument(t testing.TB, name string) *Document {
	t.Helper()
	text, err := os.ReadFile("../policies/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	d, err := Parse(Identity, name, string(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// typical are the requests that the service sees all day.
func typical(t testing.TB) map[string]*Request {
	const account = "111122223333"
	until := parse(t, statementOf(`"Sid":"UntilThen","Effect":"Allow","Action":"*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"2026-12-01T00:00:00Z"}}`))
	environment := parse(t, statementOf(`"Effect":"Allow","Action":["mgn:StartTest","mgn:StartCutover"],"Resource":"arn:aws:mgn:*:*:source-server/*","Condition":{"StringEquals":{"aws:ResourceTag/env":"dev","aws:RequestedRegion":["eu-west-1","eu-west-2"]},"Bool":{"aws:SecureTransport":"true"}}`))
	c := Context{}
	c.Set("aws:SourceIdentity", "s-1")
	c.Set("aws:CurrentTime", "2026-11-25T12:00:00Z")
	c.Set("aws:EpochTime", "1795000000")
	c.Set("aws:SourceIp", "203.0.113.7")
	c.Set("aws:SecureTransport", "true")
	c.Set("aws:RequestedRegion", "eu-west-1")
	c.Set("aws:ResourceTag/env", "dev")
	c.Set("aws:PrincipalAccount", account)
	c.Set("aws:PrincipalArn", "arn:aws:iam::"+account+":role/service-role/AWSApplicationMigrationAgentRole")
	c.Set("aws:userid", "AROAAAAAAAAAAAAAAAAA:s-1")
	session := Principal{Kind: "AWS", Value: "arn:aws:sts::" + account + ":assumed-role/AWSApplicationMigrationAgentRole/s-1", Parent: "arn:aws:iam::" + account + ":role/service-role/AWSApplicationMigrationAgentRole"}
	user := Principal{Kind: "AWS", Value: "arn:aws:iam::" + account + ":user/admin"}
	request := func(p Principal, action string, policies Policies) *Request {
		return &Request{Principal: p, Action: action, Resource: server, Context: c, Policies: policies}
	}
	agent := managedDocument(t, "AWSApplicationMigrationAgentPolicy_v2")
	full := managedDocument(t, "AWSApplicationMigrationFullAccess")
	look := managedDocument(t, "AWSApplicationMigrationReadOnlyAccess")
	return map[string]*Request{
		"Agent":            request(session, "mgn:UpdateAgentReplicationInfoForMgn", Policies{Identity: []*Document{agent}}),
		"FullWithBoundary": request(user, "mgn:StartTest", Policies{Identity: []*Document{full}, Boundary: until}),
		"ReadOnlyLast":     request(user, "mgn:ListWaves", Policies{Identity: []*Document{look}}),
		"Tagged":           request(user, "mgn:StartCutover", Policies{Identity: []*Document{environment}}),
		"Session":          request(session, "mgn:StartTest", Policies{Identity: []*Document{full}, Boundary: until, Session: []*Document{environment}}),
	}
}

// TestEvaluate_Allocates nothing for the requests of every day.
func TestEvaluate_Allocates(t *testing.T) {
	for name, r := range typical(t) {
		if d := Evaluate(r); !d.Allowed {
			t.Errorf("%s: %s", name, d.Reason())
		}
		if n := testing.AllocsPerRun(100, func() { Evaluate(r) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkEvaluate reports the time of the processor besides that of the
// clock: on a machine that others use only the former says anything.
func BenchmarkEvaluate(b *testing.B) {
	for name, r := range typical(b) {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				Evaluate(r)
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is what this thread has used.
func processorTime(b *testing.B) time.Duration {
	const ofThread = 1 // RUSAGE_THREAD of getrusage(2)
	var u syscall.Rusage
	if err := syscall.Getrusage(ofThread, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkParse(b *testing.B) {
	text := managedDocument(b, "AWSApplicationMigrationReadOnlyAccess").Text()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse(Identity, "x", text); err != nil {
			b.Fatal(err)
		}
	}
}
