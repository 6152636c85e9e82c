package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/audit"
	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/ca"
	"rehost/tunnel"
	"rehost/wire"
)

func (r *running) tunnel(o tunnel.ClientOptions) *tunnel.Client {
	r.t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	c, err := tunnel.OpenClient(o)
	r.must(err)
	r.t.Cleanup(func() { c.Close() })
	return c
}

func through(c *tunnel.Client) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, tunnel.APIPort) }
}

// vpn runs rehost vpn and returns what it says, and how it ended.
func (r *running) vpn(args ...string) (out string, code int) {
	r.t.Helper()
	var text bytes.Buffer
	code = Run(r.t.Context(), append([]string{"vpn", "--data", r.data}, args...), &text, &text)
	return text.String(), code
}

// invite runs rehost vpn invite.
func (r *running) invite() tunnel.Invitation {
	r.t.Helper()
	out, code := r.vpn("invite", "--expires", "1h")
	if code != statusDone {
		r.t.Fatalf("vpn invite ended with %d: %s", code, out)
	}
	i, err := tunnel.ParseInvitation(out)
	r.must(err)
	return i
}

// listed is the line of rehost vpn ls that has a key, as its cells.
func (r *running) listed(key tunnel.PublicKey) []string {
	r.t.Helper()
	out, code := r.vpn("ls")
	if code != statusDone {
		r.t.Fatalf("vpn ls ended with %d: %s", code, out)
	}
	for line := range strings.Lines(out) {
		if cells := strings.Fields(line); slices.Contains(cells, key.String()) {
			return cells
		}
	}
	return nil
}

// TestVPN: with nothing but the UDP port, a machine is installed, replicates, and
// is cut off when its source server is disconnected.
func TestVPN(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data, "--vpn", "127.0.0.1:0")
	ctx := t.Context()
	_, err := r.mgn.InitializeService(ctx, &mgn.InitializeServiceInput{})
	r.must(err)
	if info, err := os.Stat(filepath.Join(data, vpnKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}

	// The invitation leads to the API, and no further.
	invitation := r.invite()
	invited := r.tunnel(tunnel.ClientOptions{Key: invitation.Key, Hub: invitation.Hub, Endpoint: invitation.Endpoint})
	config := ca.Endpoint{Root: r.root}.ClientConfig(ca.Name{Role: ca.Service})
	nowhere := "https://rehost.invalid:8443" // that nothing goes past the tunnel
	installer := awsapi.NewClient(awsapi.ClientOptions{Endpoint: nowhere, Region: "us-east-1", Credentials: r.admin, TLS: config, DialContext: through(invited)})
	t.Cleanup(installer.Close)
	role, err := awsapi.Call(ctx, installer, formgn.VerifyClientRoleForMgn, &formgn.VerifyClientRoleForMgnRequest{})
	r.must(err)
	if role.Tunnel == nil || role.Tunnel.PublicKey != invitation.Hub.String() || role.Tunnel.Endpoint != invitation.Endpoint {
		t.Errorf("the installer is told %+v", role.Tunnel)
	}
	if _, err := wire.Dial(ctx, wire.Config{Address: "inside", TLS: config, Server: "s-00000000000000000", Disks: []block.Disk{{Name: "a", Size: 1 << 20, Boot: true}},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return invited.Dial(ctx, tunnel.ReplicationPort)
		}}); err == nil || strings.Contains(err.Error(), "tls") {
		t.Errorf("an invitation reaches port 1500: %v", err)
	}

	// It is listed, and so is another, until that is taken back.
	unused := r.invite()
	for _, i := range []tunnel.Invitation{invitation, unused} {
		if line := r.listed(i.Key.Public()); len(line) < 5 || line[0] != "invitation" || line[2] != i.Key.Public().Address().String() || line[4] != "8443" {
			t.Errorf("an invitation is listed as %q", line)
		}
	}
	if line := strings.Join(r.listed(unused.Key.Public()), " "); !strings.Contains(line, " never 0 0 -") {
		t.Errorf("an invitation that nobody has used is listed as %q", line)
	}
	if out, code := r.vpn("revoke", unused.Key.Public().Address().String()); code != statusDone || !strings.Contains(out, "opens nothing any more") {
		t.Errorf("vpn revoke ended with %d: %s", code, out)
	}
	if out, code := r.vpn("revoke", unused.Key.Public().String()); code != statusNotFound || !strings.Contains(out, "hint: rehost vpn ls") {
		t.Errorf("vpn revoke again ended with %d: %s", code, out)
	}
	taken := r.tunnel(tunnel.ClientOptions{Key: unused.Key, Hub: unused.Hub, Endpoint: unused.Endpoint})
	if c, err := taken.Dial(ctx, tunnel.APIPort); !errors.As(err, new(*tunnel.HandshakeError)) {
		t.Errorf("an invitation that was taken back: %v, %v", c, err)
	}
	if line := r.listed(unused.Key.Public()); line != nil {
		t.Errorf("an invitation that was taken back is listed: %q", line)
	}

	// Installed through it, the agent has a key of its own.
	a := &agent{running: r}
	registered, err := awsapi.Call(ctx, installer, formgn.RegisterAgentForMgn, registration("machine-a"))
	r.must(err)
	a.id = registered.SourceServerID
	for _, d := range registered.Disks {
		a.disks = append(a.disks, block.Disk{ID: block.DiskID(d.DiskID), Name: d.DeviceName, Size: d.Bytes, Boot: *d.IsBootDisk})
	}
	own := a.enter(installer, invitation)
	pairedTo := func() *formgn.GetAgentReplicationInfoForMgnResponse {
		info, err := awsapi.Call(ctx, a.client, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: a.id})
		r.must(err)
		return info
	}
	r.until("a replication server", func() bool { return pairedTo().ReplicatorAddress != "" })
	info := pairedTo()
	if want := net.JoinHostPort(invitation.Hub.Address().String(), "1500"); info.ReplicatorAddress != want {
		t.Errorf("replicates to %s, want %s", info.ReplicatorAddress, want)
	}
	s, err := wire.Dial(ctx, wire.Config{Address: info.ReplicatorAddress, TLS: ca.Endpoint{Root: r.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.ReplicationServer, ID: info.ReplicatorID}),
		Server: a.id, Disks: a.disks, Connections: 2, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return own.Dial(ctx, tunnel.ReplicationPort) }})
	r.must(err)
	defer s.Close()
	a.commit(s, 'a')
	r.until("a first point", func() bool { return r.describe(a.id).LifeCycle.State == "READY_FOR_TEST" })

	// It is listed as what it is, and not to be mistaken for an invitation.
	if line := r.listed(own.PublicKey); len(line) < 11 || line[0] != a.id || line[4] != "8443,1500" || line[7] != "ago" || line[8] == "0" || !strings.HasPrefix(line[10], "127.0.0.1:") {
		t.Errorf("the agent is listed as %q", line)
	}
	if out, code := r.vpn("revoke", own.String()); code != statusNotFound || !strings.Contains(out, "disconnect-from-service") {
		t.Errorf("vpn revoke of an agent ended with %d: %s", code, out)
	}
	if out, code := r.vpn("ls", "--json"); code != statusDone || !strings.Contains(out, `"sourceServerID":"`+a.id+`"`) || strings.Contains(out, invitation.Key.Secret()) {
		t.Errorf("vpn ls --json ended with %d: %s", code, out)
	}

	// The audit log knows who came that way.
	files, err := audit.Files(filepath.Join(data, auditDir))
	r.must(err)
	var records []byte
	for _, f := range files {
		text, err := os.ReadFile(f)
		r.must(err)
		records = append(records, text...)
	}
	if !bytes.Contains(records, []byte(own.Address().String())) {
		t.Error("the audit log does not show the address inside")
	}

	// Disconnected, it is cut off where data goes, at once, and hears why.
	_, err = r.mgn.DisconnectFromService(ctx, &mgn.DisconnectFromServiceInput{SourceServerID: &a.id})
	r.must(err)
	select {
	case <-s.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the session goes on")
	}
	if c, err := a.command(); err != nil || c != formgn.AgentCommandUninstall {
		t.Errorf("the last command: %s, %v", c, err)
	}
	_, err = awsapi.Call(ctx, a.client, formgn.UpdateAgentBacklogForMgn, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: a.id, State: "DISCONNECTED", Disks: []formgn.DiskProgress{}})
	r.must(err)
	r.until("the end of the key", func() bool {
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		c, err := own.Dial(short, tunnel.APIPort)
		if err == nil {
			c.Close()
		}
		return errors.As(err, new(*tunnel.HandshakeError))
	})

	// The service is found again by the same key after a restart.
	if code := r.stop(); code != statusDone {
		t.Fatal("ended with", code)
	}
	if log := r.stderr.String(); !regexp.MustCompile(`VPN on 127\.0\.0\.1:\d+`).MatchString(log) || strings.Contains(log, invitation.Key.Secret()) {
		t.Error("the start does not say where the VPN is, or the log shows a key")
	}
	again := serve(t, data, "--vpn", ":0")
	if other := again.invite(); other.Hub != invitation.Hub || !strings.HasPrefix(other.Endpoint, "127.0.0.1:") {
		t.Errorf("after a restart the service is %v at %s", other.Hub, other.Endpoint)
	}
}

// enter has a certificate issued with a key of the tunnel and makes calls with
// both from then on.
func (a *agent) enter(installer *awsapi.Client, to tunnel.Invitation) *insider {
	a.t.Helper()
	key, err := ca.NewKey()
	a.must(err)
	der, err := ca.NewRequest(key)
	a.must(err)
	secret := tunnel.NewKey()
	public := secret.Public().String()
	issued, err := awsapi.Call(a.t.Context(), installer, formgn.IssueClientCertificateForMgn, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: a.id, TunnelKey: &public,
		CertificateSigningRequest: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	a.must(err)
	certs, err := ca.DecodeCertificates([]byte(issued.Certificate))
	a.must(err)
	a.pair, err = ca.Certificate(certs, key)
	a.must(err)
	own := &insider{a.tunnel(tunnel.ClientOptions{Key: secret, Hub: to.Hub, Endpoint: issued.Tunnel.Endpoint}), secret.Public()}
	o := awsapi.ClientOptions{Endpoint: "https://rehost.invalid:8443", Region: "us-east-1", DialContext: through(own.Client),
		TLS: ca.Endpoint{Root: a.root, Certificate: ca.Fixed(a.pair)}.ClientConfig(ca.Name{Role: ca.Service})}
	unsigned := awsapi.NewClient(o)
	a.t.Cleanup(unsigned.Close)
	o.Credentials = fetched(func(ctx context.Context) (aws.Credentials, error) {
		out, err := awsapi.Call(ctx, unsigned, formgn.CreateSessionForMgn, &formgn.CreateSessionForMgnRequest{})
		if err != nil {
			return aws.Credentials{}, err
		}
		return aws.Credentials{AccessKeyID: out.AccessKeyId, SecretAccessKey: string(out.SecretAccessKey), SessionToken: string(out.SessionToken)}, nil
	})
	a.client = awsapi.NewClient(o)
	a.t.Cleanup(a.client.Close)
	return own
}

// An insider is a tunnel and the key that it is of.
type insider struct {
	*tunnel.Client
	tunnel.PublicKey
}

// TestVPN_WrongUse: what cannot be is said before anything is opened.
func TestVPN_WrongUse(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no port":          {[]string{"serve", "--data", data, "--vpn", "rehost.example.com"}, "--vpn rehost.example.com"},
		"nobody runs":      {[]string{"vpn", "--data", data, "invite"}, "where the service is reached"},
		"nobody to list":   {[]string{"vpn", "--data", data, "ls"}, "would have to be asked"},
		"for a moment":     {[]string{"vpn", "--data", data, "invite", "--expires", "1s"}, "between a minute and 30 days"},
		"port of somebody": {[]string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--replication-listen", "127.0.0.1:0", "--vpn", ":" + taken(t)}, "address already in use"},
	} {
		var out, trouble bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		code := Run(ctx, test.args, &out, &trouble)
		cancel()
		if code == statusDone || !strings.Contains(trouble.String(), test.want) {
			t.Errorf("%s: %d, %s", name, code, &trouble)
		}
	}
}

// taken is a UDP port that somebody has.
func taken(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_, port, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestVPN_Carry: beside a replication server that is a process of its own, what
// comes to port 1500 inside is passed on to where that is, as it is.
func TestVPN_Carry(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	v, err := openVPN(t.TempDir(), "127.0.0.1:0", hosts{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.hub.Close() })
	key := tunnel.NewKey()
	if err := v.hub.SetPeers([]tunnel.Peer{{Key: key.Public()}}); err != nil {
		t.Fatal(err)
	}
	c, err := tunnel.OpenClient(tunnel.ClientOptions{Key: key, Hub: v.hub.Key(), Endpoint: v.endpoint, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	beside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	go func() {
		for {
			c, err := beside.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	var address atomic.Value
	address.Store("")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.carry(ctx, func() string { return address.Load().(string) }, quiet)
	}()
	connect := func() net.Conn {
		t.Helper()
		conn, err := c.Dial(t.Context(), tunnel.ReplicationPort)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(time.Minute))
		return conn
	}
	if n, err := connect().Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("while nobody is there: %d, %v", n, err)
	}
	address.Store(beside.Addr().String())
	conn := connect()
	text := bytes.Repeat([]byte("replicate "), 10000)
	go conn.Write(text)
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, text) {
		t.Errorf("what is passed on comes back otherwise: %v", err)
	}
	cancel() // while a connection is open
	<-done
	if _, err := conn.Read(got); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("after the end: %v", err)
	}
}
