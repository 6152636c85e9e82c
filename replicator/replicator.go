package replicator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/ca"
	"rehost/fence"
	"rehost/receive"
	"rehost/store"
)

// Config says what a replication server stands on. All but Inside, Logger and Poll must be set.
type Config struct {
	Endpoint string // of the service: https://host:8443
	Region   string
	ID       string // i- and 17 hexadecimal digits, as on the certificate
	Address  string // host:port that agents are told to connect to

	Bundle      *ca.Bundle // follows what the service says
	Certificate func() (*tls.Certificate, error)

	Store    *store.Store
	Listener net.Listener // on port 1500; closed by Run
	Inside   net.Listener // the same of a tunnel; nil without

	// Fence says how it is decided who may connect; the service says who may. Its
	// Logger is this one's.
	Fence fence.Options

	Logger *slog.Logger
	Poll   time.Duration // between questions for the associations; 0 means 2 s
}

// A replicator is one run.
type replicator struct {
	config  Config
	log     *slog.Logger
	revoked *ca.Revocations
	client  *awsapi.Client
	session *aws.CredentialsCache

	fence    *fence.Listener
	revision *int64 // of the last answer to associate; of poll alone
	allowed  string // digest of who may connect; of poll alone
	unwalled string // why the firewall is not as it should be; of poll alone

	mu      sync.Mutex
	pending map[string]*formgn.NotifyAgentReplicationProgressForMgnRequest // guarded by mu: not delivered yet, by source server
}

// Run serves until ctx ends, which is no error, or the listener fails.
func Run(ctx context.Context, config Config) error {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Poll == 0 {
		config.Poll = 2 * time.Second
	}
	r := &replicator{config: config, log: config.Logger, revoked: &ca.Revocations{}, pending: map[string]*formgn.NotifyAgentReplicationProgressForMgnRequest{}}
	toService := ca.Endpoint{Bundle: config.Bundle, Certificate: config.Certificate}.ClientConfig(ca.Name{Role: ca.Service})
	unsigned := awsapi.NewClient(awsapi.ClientOptions{Endpoint: config.Endpoint, Region: config.Region, TLS: toService})
	defer unsigned.Close()
	r.session = aws.NewCredentialsCache(sessions{unsigned}, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 5 * time.Minute })
	r.client = awsapi.NewClient(awsapi.ClientOptions{Endpoint: config.Endpoint, Region: config.Region, TLS: toService, UserAgent: "rehost-replicator",
		Credentials: r.session})
	defer r.client.Close()

	server := receive.New(receive.Config{Endpoint: ca.Endpoint{Bundle: config.Bundle, Certificate: config.Certificate, Revoked: r.revoked},
		Store: receive.Replicas(config.Store, nil), Controller: controller{r}, Logger: config.Logger})
	config.Fence.Logger = config.Logger
	r.fence = fence.New(config.Listener, config.Fence)
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	all.Go(func() {
		<-ctx.Done()
		server.Close()
	})
	all.Go(func() { r.poll(ctx) })
	var inside error
	if config.Inside != nil {
		all.Go(func() {
			if inside = server.Serve(config.Inside); inside != nil {
				server.Close()
			}
		})
	}
	err := server.Serve(r.fence)
	cancel()
	all.Wait()
	err = errors.Join(err, inside)
	r.deliver(context.WithoutCancel(ctx)) // what the last commits of closing sessions left
	if err != nil {
		return fmt.Errorf("replication server %s: %w", config.ID, err)
	}
	return nil
}

// sessions exchanges the certificate for credentials.
type sessions struct{ client *awsapi.Client }

// Retrieve implements [aws.CredentialsProvider].
func (s sessions) Retrieve(ctx context.Context) (aws.Credentials, error) {
	out, err := awsapi.Call(ctx, s.client, formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
	if err != nil {
		return aws.Credentials{}, err
	}
	expires, err := awsapi.ParseDateTime(out.Expiration)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("session: %w", err)
	}
	return aws.Credentials{AccessKeyID: out.AccessKeyId, SecretAccessKey: string(out.SecretAccessKey), SessionToken: string(out.SessionToken),
		CanExpire: true, Expires: expires, Source: "CreateSessionForMgn"}, nil
}

// breath is the least time between two questions, whatever goes on.
const breath = 50 * time.Millisecond

// poll asks which source servers are to be served, and so says that this
// replication server is there. The service answers when there is something new,
// at the latest after the poll's time, so that what is revoked is refused at
// once. It logs when the service goes and comes.
func (r *replicator) poll(ctx context.Context) {
	var trouble error
	for {
		asked := time.Now()
		err := r.associate(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && (trouble == nil || trouble.Error() != err.Error()):
			r.log.Warn("the service cannot be asked", "err", err)
		case err == nil && trouble != nil:
			r.log.Info("the service answers")
		}
		trouble = err
		pause := r.config.Poll - time.Since(asked)
		if err == nil {
			r.deliver(ctx)
			if r.revision != nil && r.config.Poll >= time.Second {
				pause = breath // the service will wait
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// call makes a call with the session, once more with a new one if the service
// does not take the one there is: it ends before its time when a certificate of
// this replication server is revoked.
func call[In, Out any](ctx context.Context, r *replicator, op *awsapi.Op[In, Out], in *In) (*Out, error) {
	out, err := awsapi.Call(ctx, r.client, op, in)
	if awsapi.IsStale(err, op.Name) {
		r.session.Invalidate()
		return awsapi.Call(ctx, r.client, op, in)
	}
	return out, err
}

// longestWait is how many seconds the service can be asked to wait.
const longestWait = 20

func (r *replicator) associate(ctx context.Context) error {
	digest, wait := r.config.Bundle.Digest(), int32(min(r.config.Poll/time.Second, longestWait))
	out, err := call(ctx, r, formgn.DescribeReplicationServerAssociationsForMgn,
		&formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: r.config.ID, Address: &r.config.Address, TrustDigest: &digest,
			AllowedDigest: &r.allowed, Revision: r.revision, WaitSeconds: &wait})
	if err != nil {
		r.revision = nil
		return err
	}
	if out.TrustBundle != "" && out.TrustBundle != r.config.Bundle.Text() {
		if err := r.config.Bundle.Replace(out.TrustBundle); err != nil {
			return err
		}
		r.log.Info("the service says whom to believe", "roots", len(r.config.Bundle.Roots()), "bundle", r.config.Bundle.Digest())
	}
	for _, a := range out.Associations {
		r.revoked.Add(a.RevokedCertificateSerials...)
	}
	if err := r.guard(out.AllowedDigest, out.AllowedAddresses); err != nil {
		return err
	}
	r.revision = out.Revision
	return nil
}

// errNoFence: whom an older service does not name is not let in.
var errNoFence = errors.New("the service does not say who may connect, so nobody may: it is older than this replication server")

// guard puts in force who may connect, if that is another than before.
func (r *replicator) guard(digest string, addresses []string) error {
	if digest == "" {
		return errNoFence
	}
	if digest == r.allowed {
		return nil
	}
	prefixes := make([]netip.Prefix, 0, len(addresses))
	for _, text := range addresses {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("who may connect: %w", err)
		}
		prefixes = append(prefixes, p)
	}
	if err := r.fence.Use(fence.NewRules(prefixes)); err != nil {
		if text := err.Error(); text != r.unwalled {
			r.unwalled = text
			r.log.Error("the firewall is not as the security groups say; the listener is", "err", err)
		}
		return nil // and it is tried again with the next answer
	}
	r.allowed, r.unwalled = digest, ""
	r.log.Info("security groups: who may connect", "prefixes", len(prefixes))
	return nil
}

// deliver repeats progress that the service has not taken.
func (r *replicator) deliver(ctx context.Context) {
	r.mu.Lock()
	waiting := make([]*formgn.NotifyAgentReplicationProgressForMgnRequest, 0, len(r.pending))
	for _, p := range r.pending {
		waiting = append(waiting, p)
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, p := range waiting {
		r.send(ctx, p)
	}
}

// send tells progress. It stays pending while nobody answers, or the service
// has no time for it; any other answer settles it.
func (r *replicator) send(ctx context.Context, p *formgn.NotifyAgentReplicationProgressForMgnRequest) {
	_, err := call(ctx, r, formgn.NotifyAgentReplicationProgressForMgn, p)
	answer := new(awsapi.CallError)
	if err != nil && (!errors.As(err, &answer) || answer.Status >= 500 || answer.Status == http.StatusTooManyRequests) {
		r.log.Warn("progress is not delivered yet", "server", p.SourceServerID, "err", err)
		return
	}
	if err != nil {
		r.log.Warn("progress is not accepted", "server", p.SourceServerID, "err", err)
	}
	r.mu.Lock()
	if r.pending[p.SourceServerID] == p {
		delete(r.pending, p.SourceServerID)
	}
	r.mu.Unlock()
}
