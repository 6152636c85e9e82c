package control

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"rehost/audit"
	"rehost/awsapi"
	"rehost/awsapi/ec2"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/block"
	"rehost/identity"
)

// An auditor notes how calls ask to be recorded.
type auditor struct {
	mu     sync.Mutex
	last   string       // guarded by mu: "each" or "counted"
	record audit.Record // guarded by mu: the last one
}

func (a *auditor) note(how string, r audit.Record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last, a.record = how, r
	return nil
}

func (a *auditor) how() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

func (a *auditor) Ready() error                { return nil }
func (a *auditor) Append(r audit.Record) error { return a.note("each", r) }
func (a *auditor) Repeat(r audit.Record) error { return a.note("counted", r) }

// An apiWorld is a world behind its API, with real signatures and policies.
type apiWorld struct {
	*world
	directory *identity.Directory
	api       *awsapi.Server
	server    *httptest.Server
	audit     *auditor
}

func newAPIWorld(t *testing.T) *apiWorld {
	t.Helper()
	a := &apiWorld{world: newWorld(t), audit: new(auditor)}
	key, err := identity.NewSealingKey(make([]byte, 32))
	a.must(err)
	a.directory, err = identity.Open(t.Context(), identity.Options{Store: a.db.Identities(), Key: key})
	a.must(err)
	_, err = a.directory.Bootstrap(t.Context())
	a.must(err)
	a.opts.Account = a.directory.Account().ID
	a.api = awsapi.New(awsapi.Options{Identity: a.directory, Region: "us-east-1", VerifyPeer: VerifyPeer, ResourceTags: a.ResourceTags, Log: a.log, Audit: a.audit}, mgn.Service, formgn.Service, ec2.Service)
	a.Register(a.api)
	a.RegisterGroups(a.api)
	a.server = httptest.NewTLSServer(a.api)
	t.Cleanup(a.server.Close)
	return a
}

// session is a client with the credentials of a service role.
func (a *apiWorld) session(role, id string) *awsapi.Client {
	a.t.Helper()
	c, err := a.directory.AssumeRoleAsService(a.t.Context(), identity.ServiceName, identity.AssumeRole{Role: role, Session: id, SourceIdentity: id})
	a.must(err)
	return a.client(credentials.NewStaticCredentialsProvider(c.AccessKeyID, string(c.SecretAccessKey), string(c.SessionToken)))
}

func (a *apiWorld) client(c aws.CredentialsProvider) *awsapi.Client {
	client := awsapi.NewClient(awsapi.ClientOptions{Endpoint: a.server.URL, Region: "us-east-1", Credentials: c, Attempts: 1,
		TLS: a.server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()})
	a.t.Cleanup(client.Close)
	return client
}

// TestRoutine: of what agents and replication servers repeat the audit log may count
// what changed nothing, and has each call that changed something.
func TestRoutine(t *testing.T) {
	a := newAPIWorld(t)
	id := a.register("01")
	agent, replicator := a.session(identity.AgentRole, id), a.session(identity.ReplicationServerRole, replicatorID)
	type calling func(ctx context.Context) error
	command := func(version string) calling {
		return func(ctx context.Context) error {
			_, err := awsapi.Call(ctx, agent, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id, AgentVersion: p(version)})
			return err
		}
	}
	info := func(ctx context.Context) error {
		_, err := awsapi.Call(ctx, agent, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: id})
		return err
	}
	associations := func(address string) calling {
		return func(ctx context.Context) error {
			_, err := awsapi.Call(ctx, replicator, formgn.DescribeReplicationServerAssociationsForMgn,
				&formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: replicatorID, Address: p(address)})
			return err
		}
	}
	var generation int64
	connected := func(ctx context.Context) error {
		out, err := awsapi.Call(ctx, replicator, formgn.NotifyAgentConnectedForMgn, &formgn.NotifyAgentConnectedForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id})
		if err == nil {
			generation = out.Generation
		}
		return err
	}
	progress := func(seq block.Seq) calling {
		return func(ctx context.Context) error {
			in := &formgn.NotifyAgentReplicationProgressForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, Generation: generation, ReceivedBytes: p(int64(seq)), InitialSyncDone: p(true)}
			if seq > 0 {
				in.PointSeq, in.PointDateTime, in.Consistent = p(seq.String()), p(stamp(a.clock.Now())), p(true)
			}
			_, err := awsapi.Call(ctx, replicator, formgn.NotifyAgentReplicationProgressForMgn, in)
			return err
		}
	}
	state := func(healthy bool) calling {
		return func(ctx context.Context) error {
			_, err := awsapi.Call(ctx, replicator, formgn.UpdateAgentReplicationProcessStateForMgn,
				&formgn.UpdateAgentReplicationProcessStateForMgnRequest{ReplicatorID: replicatorID, SourceServerID: id, Healthy: healthy})
			return err
		}
	}
	backlog := func(change func(*formgn.UpdateAgentBacklogForMgnRequest)) calling {
		return func(ctx context.Context) error {
			in := &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: "CONTINUOUS", LagMilliseconds: p(int64(5)), Disks: []formgn.DiskProgress{}}
			change(in)
			_, err := awsapi.Call(ctx, agent, formgn.UpdateAgentBacklogForMgn, in)
			return err
		}
	}
	calm := func(*formgn.UpdateAgentBacklogForMgnRequest) {}
	metrics := func(ctx context.Context) error {
		_, err := awsapi.Call(ctx, agent, formgn.SendAgentMetricsForMgn, &formgn.SendAgentMetricsForMgnRequest{SourceServerID: id, Metrics: []formgn.Metric{{Name: "x", Value: 1}}})
		return err
	}
	logs := func(ctx context.Context) error {
		_, err := awsapi.Call(ctx, agent, formgn.SendAgentLogsForMgn, &formgn.SendAgentLogsForMgnRequest{SourceServerID: id, Lines: []formgn.LogLine{{DateTime: stamp(a.clock.Now()), Message: "x"}}})
		return err
	}
	for _, step := range []struct {
		what string
		do   calling
		want string
	}{
		{"a replication server appears", associations("127.0.0.1:1500"), "each"},
		{"it asks for its work", associations("127.0.0.1:1500"), "counted"},
		{"it has another address", associations("127.0.0.1:1501"), "each"},
		{"an agent appears", command("1"), "each"},
		{"it asks for its command", command("1"), "counted"},
		{"it is of another version", command("2"), "each"},
		{"it is paired", info, "each"},
		{"it asks where to", info, "counted"},
		{"it connects", connected, "each"},
		{"the first point", progress(1), "each"},
		{"another point", progress(2), "counted"},
		{"points are withdrawn", progress(0), "each"},
		{"the agent replicates", backlog(calm), "counted"},
		{"it tracks otherwise", backlog(func(in *formgn.UpdateAgentBacklogForMgnRequest) { in.TrackingReason = p("why") }), "each"},
		{"it tracks as before", backlog(calm), "each"},
		{"it rescans", backlog(func(in *formgn.UpdateAgentBacklogForMgnRequest) { in.State = "RESCAN" }), "each"},
		{"it has a fault", backlog(func(in *formgn.UpdateAgentBacklogForMgnRequest) {
			in.State, in.Error = "RESCAN", formgn.ReplicationErrorSnapshotsFailure
		}), "each"},
		{"it has that still", backlog(func(in *formgn.UpdateAgentBacklogForMgnRequest) {
			in.State, in.Error = "RESCAN", formgn.ReplicationErrorSnapshotsFailure
		}), "counted"},
		{"it measures", metrics, "counted"},
		{"it logs", logs, "each"},
		{"the replication server is well", state(true), "counted"},
		{"it is not", state(false), "each"},
		{"it is not, still", state(false), "counted"},
		{"it is again", state(true), "each"},
	} {
		if err := step.do(t.Context()); err != nil || a.audit.how() != step.want {
			t.Errorf("%s: the audit log was asked to have %s, want %s, %v", step.what, a.audit.how(), step.want, err)
		}
	}
	fresh, err := a.directory.CreateAccessKey(t.Context(), identity.AdminUser)
	a.must(err)
	person := a.client(credentials.NewStaticCredentialsProvider(fresh.AccessKeyID, string(fresh.SecretAccessKey), ""))
	for range 3 {
		_, err := awsapi.Call(t.Context(), person, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: id})
		if err != nil || a.audit.how() != "each" {
			t.Errorf("a person's call: %s, %v", a.audit.how(), err)
		}
	}
}
