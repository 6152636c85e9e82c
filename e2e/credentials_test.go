package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"
	"github.com/aws/smithy-go"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/ca"
	"rehost/e2e/site"
	"rehost/internal/fault"
	"rehost/wire"
)

// administrator is the environment with the key of the first start.
func (s *identities) administrator() []string {
	s.t.Helper()
	id, secret, err := site.ReadCredentials(filepath.Join(s.config.Data, "credentials"))
	if err != nil {
		s.t.Fatal(err)
	}
	return []string{"AWS_ACCESS_KEY_ID=" + id, "AWS_SECRET_ACCESS_KEY=" + secret}
}

func (s *identities) secret() string {
	return strings.TrimPrefix(s.admin[1], "AWS_SECRET_ACCESS_KEY=")
}

// cli runs the stock aws command as whoever has the keys in env.
func (s *identities) cli(env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(s.ctx, "aws", append([]string{"--endpoint-url", s.service.Endpoint, "--region", site.Region, "--output", "json"}, args...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(append(cmd.Env, "AWS_CA_BUNDLE="+filepath.Join(s.config.Data, "ca.pem"), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true"), env...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return out, err
}

// aws runs the stock command, which must succeed; into is what it prints, or nil.
func (s *identities) aws(env []string, into any, args ...string) {
	s.t.Helper()
	out, err := s.cli(env, args...)
	if err == nil && into != nil {
		err = json.Unmarshal(out, into)
	}
	if err != nil {
		s.t.Fatalf("aws %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// denied runs the stock command, which must be refused with that error.
func (s *identities) denied(env []string, with string, args ...string) {
	s.t.Helper()
	if out, err := s.cli(env, args...); err == nil || !strings.Contains(err.Error(), "("+with+")") {
		s.t.Errorf("aws %s: want %s, got %v: %s", strings.Join(args, " "), with, err, out)
	}
}

// accessKey makes one for a user.
func (s *identities) accessKey(user string) []string {
	s.t.Helper()
	var made struct {
		AccessKey struct{ AccessKeyId, SecretAccessKey string }
	}
	s.aws(s.admin, &made, "iam", "create-access-key", "--user-name", user)
	return []string{"AWS_ACCESS_KEY_ID=" + made.AccessKey.AccessKeyId, "AWS_SECRET_ACCESS_KEY=" + made.AccessKey.SecretAccessKey}
}

// session asks for temporary credentials with a command of sts.
func (s *identities) session(env []string, args ...string) []string {
	s.t.Helper()
	var made struct {
		Credentials struct{ AccessKeyId, SecretAccessKey, SessionToken string }
	}
	s.aws(env, &made, args...)
	c := made.Credentials
	return []string{"AWS_ACCESS_KEY_ID=" + c.AccessKeyId, "AWS_SECRET_ACCESS_KEY=" + c.SecretAccessKey, "AWS_SESSION_TOKEN=" + c.SessionToken}
}

// provider is what the SDK reads a key of an environment by.
func provider(env []string) aws.CredentialsProvider {
	values := map[string]string{}
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		values[name] = value
	}
	return credentials.NewStaticCredentialsProvider(values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"], values["AWS_SESSION_TOKEN"])
}

// http believes the service, and shows no certificate.
func (s *identities) http() *http.Client {
	s.t.Helper()
	roots, err := s.service.Roots()
	if err != nil {
		s.t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// client is the stock SDK as whoever has the keys.
func (s *identities) client(keys aws.CredentialsProvider) *mgn.Client {
	s.t.Helper()
	c, err := s.service.Client(keys)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// code is the error's name as the SDK tells it.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

// An installedAgent is one that runs as on a machine of its own.
type installedAgent struct {
	id, arn string // of the source server
	state   string // directory
	disk    *fault.Disk
	process *site.Process
}

// installAs installs and starts an agent with a key, where the machine's own
// identity is another.
func (s *identities) installAs(key []string, machine string) {
	t := s.t
	t.Helper()
	// What the agent knows a machine by is replaced in a mount namespace of its own.
	at, text := "/etc/machine-id", machine
	if _, err := os.Stat("/sys/class/dmi/id/product_uuid"); err == nil {
		at, text = "/sys/class/dmi/id/product_uuid", machine[:8]+"-"+machine[8:12]+"-"+machine[12:16]+"-"+machine[16:20]+"-"+machine[20:]
	}
	identity := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(identity, []byte(text+"\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	elsewhere := []string{"--mount", "--propagation", "private", "sh", "-c", `mount --bind "$0" "$1" && shift && exec "$@"`, identity, at, filepath.Join(s.bin, "rehost-agent")}
	a := &installedAgent{state: filepath.Join(t.TempDir(), "agent"), disk: fault.Loop(t, 24<<20)}
	fill(t, a.disk.Path, rand.New(rand.NewPCG(1, uint64(len(s.agents)))))
	cmd := exec.CommandContext(s.ctx, "unshare", append(elsewhere, "install", "--as-root", "--state-dir", a.state, "--bpffs", s.bpffs, "--endpoint", s.service.Endpoint, "--region", site.Region,
		"--no-prompt", "--no-service", "--force-volumes", "--devices", a.disk.Path, "--ca-fingerprint", s.fingerprint())...)
	cmd.Env = append(os.Environ(), key...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
	var err error
	if a.process, err = site.Start(s.ctx, s.log, "agent started", "unshare", append(elsewhere, "run", "--state-dir", a.state)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.process.Kill() })
	known := map[string]bool{}
	for _, other := range s.agents {
		known[other.id] = true
	}
	for _, server := range s.servers() {
		if id := aws.ToString(server.SourceServerID); !known[id] {
			a.id, a.arn = id, aws.ToString(server.Arn)
		}
	}
	if a.id == "" {
		t.Fatal("the agent was installed and there is no source server more")
	}
	s.agents = append(s.agents, a)
}

func (s *identities) servers() []types.SourceServer {
	s.t.Helper()
	out, err := s.service.API.DescribeSourceServers(s.ctx, &mgn.DescribeSourceServersInput{Filters: &types.DescribeSourceServersRequestFilters{}})
	if err != nil {
		s.t.Fatal(err)
	}
	return out.Items
}

// until waits for something of an agent's source server.
func (s *identities) until(a *installedAgent, what string, f func(types.SourceServer) bool) {
	s.t.Helper()
	eventually(s.t, s.ctx, what, func() bool {
		for _, server := range s.servers() {
			if aws.ToString(server.SourceServerID) == a.id {
				return f(server)
			}
		}
		return false
	})
}

// replicator is the replication server that an agent is paired with.
func (s *identities) replicator(a *installedAgent) (id string) {
	s.t.Helper()
	s.until(a, "a replication server", func(server types.SourceServer) bool {
		id = aws.ToString(server.DataReplicationInfo.ReplicatorId)
		return id != ""
	})
	return id
}

// pair is the certificate of an agent with its key, as its state directory has it.
func (s *identities) pair(a *installedAgent) tls.Certificate {
	s.t.Helper()
	pair, err := ca.LoadPair(filepath.Join(a.state, "client.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	return pair
}

func (s *identities) end(pair tls.Certificate) ca.Endpoint {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.config.Data, "ca.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	certs, err := ca.DecodeCertificates(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return ca.Endpoint{Root: certs[0], Certificate: ca.Fixed(pair)}
}

// agentSession is a session of an agent's, as whoever has read its state
// directory could ask for one.
func (s *identities) agentSession(a *installedAgent) aws.CredentialsProvider {
	s.t.Helper()
	unsigned := awsapi.NewClient(awsapi.ClientOptions{Endpoint: s.service.Endpoint, Region: site.Region, TLS: s.end(s.pair(a)).ClientConfig(ca.Name{Role: ca.Service})})
	defer unsigned.Close()
	out, err := awsapi.Call(s.ctx, unsigned, formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return credentials.NewStaticCredentialsProvider(out.AccessKeyId, string(out.SecretAccessKey), string(out.SessionToken))
}

// agentClient makes calls with all that an agent has.
func (s *identities) agentClient(a *installedAgent) *awsapi.Client {
	s.t.Helper()
	c := awsapi.NewClient(awsapi.ClientOptions{Endpoint: s.service.Endpoint, Region: site.Region, Credentials: s.agentSession(a), Attempts: 1,
		TLS: s.end(s.pair(a)).ClientConfig(ca.Name{Role: ca.Service})})
	s.t.Cleanup(c.Close)
	return c
}

// refused is the error of a call.
func refused[In, Out any](s *identities, c *awsapi.Client, op *awsapi.Op[In, Out], in *In) error {
	_, err := awsapi.Call(s.ctx, c, op, in)
	return err
}

// replicate begins a session with the replication server in the name of a
// source server, and ends it.
func (s *identities) replicate(pair tls.Certificate, replicator, server string) error {
	session, err := wire.Dial(s.ctx, wire.Config{Address: fmt.Sprintf("127.0.0.1:%d", s.config.ReplicationPort), Server: server, Connections: 1,
		Disks: []block.Disk{{Name: "/dev/sda", Size: 24 << 20}}, TLS: s.end(pair).ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: replicator})})
	if err != nil {
		return err
	}
	return errors.Join(context.Cause(s.ctx), session.Close())
}
