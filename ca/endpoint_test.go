package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"rehost/ca"
)

var (
	replicator = ca.Name{Role: ca.ReplicationServer, ID: serverID}
	service    = ca.Name{Role: ca.Service}
)

func agent(t *testing.T, a *ca.Authority, id string) tls.Certificate {
	t.Helper()
	key := must(ca.NewKey())
	return must(ca.Certificate(must(a.IssueAgent(must(ca.NewRequest(key)), id)), key))
}

// handshake connects the two over loopback and has a byte go each way, since in
// TLS 1.3 a client is through before the server has looked at its certificate.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, state tls.ConnectionState) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	done := make(chan error)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		done <- exchange(tls.Server(raw, server))
	}()
	raw := must(net.Dial("tcp", l.Addr().String()))
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, client)
	clientErr = exchange(c)
	raw.Close()
	return <-done, clientErr, c.ConnectionState()
}

func exchange(c *tls.Conn) error {
	if err := c.Handshake(); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

func TestEndpoint_WhoIsBelieved(t *testing.T) {
	now := time.Now()
	a := authority(t, ca.Options{AgentLifetime: time.Hour})
	foreign := authority(t, ca.Options{})
	var revoked ca.Revocations
	lost := agent(t, a, agentID)
	revoked.Add(ca.Serial(lost.Leaf))

	good := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(agent(t, a, agentID))}
	on1500 := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(must(a.IssueReplicationServer(serverID))), Revoked: &revoked}
	with := func(e ca.Endpoint, change func(e *ca.Endpoint)) ca.Endpoint { change(&e); return e }
	in := func(d time.Duration) func() time.Time { return func() time.Time { return now.Add(d) } }

	for name, c := range map[string]struct {
		server, client ca.Endpoint
		want           ca.Name // what the client looks for
		serverSays     string  // "" is yes
		clientSays     string
	}{
		"both as they should be": {server: on1500, client: good, want: replicator},
		"agent of a foreign authority": {on1500, with(good, func(e *ca.Endpoint) { e.Certificate = ca.Fixed(agent(t, foreign, agentID)) }),
			replicator, "unknown authority", "*"},
		"agent without certificate": {on1500, with(good, func(e *ca.Endpoint) { e.Certificate = nil }),
			replicator, "didn't provide a certificate", "*"},
		"agent's certificate has ended": {with(on1500, func(e *ca.Endpoint) { e.Time = in(61 * time.Minute) }), good,
			replicator, "expired", "*"},
		"agent's certificate is to come": {with(on1500, func(e *ca.Endpoint) { e.Time = in(-6 * time.Minute) }), good,
			replicator, "not yet valid", "*"},
		"revoked agent": {on1500, with(good, func(e *ca.Endpoint) { e.Certificate = ca.Fixed(lost) }),
			replicator, "revoked", "*"},
		"replication server as agent": {on1500, with(good, func(e *ca.Endpoint) { e.Certificate = on1500.Certificate }),
			replicator, "may not connect here", "*"},
		"service as agent": {on1500, with(good, func(e *ca.Endpoint) { e.Certificate = ca.Fixed(must(a.IssueService(nil, nil))) }),
			replicator, "incompatible key usage", "*"},
		"server of a foreign authority": {with(on1500, func(e *ca.Endpoint) { e.Certificate = ca.Fixed(must(foreign.IssueReplicationServer(serverID))) }), good,
			replicator, "*", "unknown authority"},
		"another replication server": {on1500, good, ca.Name{Role: ca.ReplicationServer, ID: "i-0123456789abcdef1"}, "*", "want urn:rehost:replication-server:i-0123456789abcdef1"},
		"service instead of replication server": {with(on1500, func(e *ca.Endpoint) { e.Certificate = ca.Fixed(must(a.IssueService(nil, nil))) }), good,
			replicator, "*", "want urn:rehost:replication-server"},
		"agent as server": {with(on1500, func(e *ca.Endpoint) { e.Certificate = ca.Fixed(agent(t, a, agentID)) }), good,
			ca.Name{Role: ca.SourceServer, ID: agentID}, "*", "incompatible key usage"},
		"server's certificate has ended": {on1500, with(good, func(e *ca.Endpoint) { e.Time = in(91 * 24 * time.Hour) }),
			replicator, "*", "expired"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			serverErr, clientErr, _ := handshake(t, c.server.ServerConfig(ca.SourceServer), c.client.ClientConfig(c.want))
			check(t, "server", serverErr, c.serverSays)
			check(t, "client", clientErr, c.clientSays)
		})
	}
}

// check wants no error, any error ("*"), or one that says something.
func check(t *testing.T, side string, err error, says string) {
	t.Helper()
	switch {
	case says == "" && err != nil:
		t.Errorf("%s: %v", side, err)
	case says != "" && err == nil:
		t.Errorf("%s: no error, want one that says %q", side, says)
	case says != "" && says != "*" && !strings.Contains(err.Error(), says):
		t.Errorf("%s: got %v, want it to say %q", side, err, says)
	}
}

// TestEndpoint_OptionalConfig is the API endpoint: clients without certificate
// get through, and those with one must hold a good one.
func TestEndpoint_OptionalConfig(t *testing.T) {
	a, foreign := authority(t, ca.Options{}), authority(t, ca.Options{})
	server := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(must(a.IssueService([]string{"rehost.example"}, nil)))}
	config := server.OptionalConfig(ca.SourceServer, ca.ReplicationServer)
	for name, c := range map[string]struct {
		certificate func() (*tls.Certificate, error)
		says        string
	}{
		"none":               {nil, ""},
		"agent":              {ca.Fixed(agent(t, a, agentID)), ""},
		"replication server": {ca.Fixed(must(a.IssueReplicationServer(serverID))), ""},
		"foreign agent":      {ca.Fixed(agent(t, foreign, agentID)), "unknown authority"},
	} {
		serverErr, _, _ := handshake(t, config, ca.Endpoint{Root: a.Root(), Certificate: c.certificate}.ClientConfig(service))
		check(t, name, serverErr, c.says)
	}
	// Whoever knows only the root and a host name, as the aws command does.
	pool := x509.NewCertPool()
	pool.AddCert(a.Root())
	serverErr, clientErr, _ := handshake(t, config, &tls.Config{RootCAs: pool, ServerName: "rehost.example"})
	check(t, "server", serverErr, "")
	check(t, "ordinary client", clientErr, "")
}

// TestEndpoint_NothingIsResumed: a resumed session would not show its certificate again.
func TestEndpoint_NothingIsResumed(t *testing.T) {
	a := authority(t, ca.Options{})
	var revoked ca.Revocations
	cert := agent(t, a, agentID)
	server := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(must(a.IssueReplicationServer(serverID))), Revoked: &revoked}.ServerConfig(ca.SourceServer)
	client := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(cert)}.ClientConfig(replicator)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8) // a client that would
	client.ServerName = "x"
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client.MaxVersion = version
		for range 3 {
			serverErr, clientErr, state := handshake(t, server, client)
			if serverErr != nil || clientErr != nil || state.DidResume || state.Version != version {
				t.Fatalf("got %v, %v, resumed %v, version %x", serverErr, clientErr, state.DidResume, state.Version)
			}
		}
	}
	revoked.Add(ca.Serial(cert.Leaf))
	if serverErr, _, _ := handshake(t, server, client); !errors.Is(serverErr, ca.ErrRevoked) {
		t.Errorf("got %v, want %v", serverErr, ca.ErrRevoked)
	}
}

func TestEndpoint_Policy(t *testing.T) {
	a := authority(t, ca.Options{})
	server := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(must(a.IssueReplicationServer(serverID)))}.ServerConfig(ca.SourceServer)
	if server.MinVersion != tls.VersionTLS12 { // its ciphers forbid older versions too: belt and braces
		t.Errorf("oldest version is %x", server.MinVersion)
	}
	client := func(min, max uint16, suites ...uint16) error {
		c := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(agent(t, a, agentID))}.ClientConfig(replicator)
		c.MinVersion, c.MaxVersion, c.CipherSuites = min, max, suites
		serverErr, clientErr, _ := handshake(t, server, c)
		return errors.Join(serverErr, clientErr)
	}
	for name, err := range map[string]error{
		"TLS 1.0":          client(tls.VersionTLS10, tls.VersionTLS10),
		"TLS 1.1":          client(tls.VersionTLS11, tls.VersionTLS11),
		"CBC":              client(tls.VersionTLS12, tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA),
		"RSA key exchange": client(tls.VersionTLS12, tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384),
		"RC4, 3DES":        client(tls.VersionTLS12, tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for name, err := range map[string]error{
		"TLS 1.3": client(tls.VersionTLS13, tls.VersionTLS13),
		"TLS 1.2": client(tls.VersionTLS12, tls.VersionTLS12),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// greeter shakes hands with whoever comes, until the test ends.
func greeter(t *testing.T, config *tls.Config) (address string) {
	l := must(tls.Listen("tcp", "127.0.0.1:0", config))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// TestEndpoint_OpenSSL asks a foreign implementation the same.
func TestEndpoint_OpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: the policy was tested with crypto/tls only")
	}
	a := authority(t, ca.Options{})
	config := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(must(a.IssueService(nil, nil)))}.OptionalConfig()
	address := greeter(t, config)
	for _, c := range []struct {
		args string
		ok   bool
	}{
		{"-tls1_3", true},
		{"-tls1_2", true},
		{"-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", true},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", false},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0", false},
		{"-tls1_2 -cipher AES128-GCM-SHA256:@SECLEVEL=0", false},
		{"-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0", false},
		{"-tls1_1 -cipher ALL:@SECLEVEL=0", false},
		{"-tls1 -cipher ALL:@SECLEVEL=0", false},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		cmd := exec.CommandContext(ctx, openssl, append([]string{"s_client", "-connect", address}, strings.Fields(c.args)...)...)
		out, _ := cmd.CombinedOutput()
		cancel()
		if ok := strings.Contains(string(out), "Cipher is ") && !strings.Contains(string(out), "Cipher is (NONE)"); ok != c.ok {
			t.Errorf("openssl s_client %s: connected %v, want %v\n%s", c.args, ok, c.ok, out)
		}
	}
}

func TestFetchRoot(t *testing.T) {
	a, foreign := authority(t, ca.Options{}), authority(t, ca.Options{})
	serve := func(cert tls.Certificate) (address string) {
		return greeter(t, ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(cert)}.OptionalConfig())
	}
	good := serve(must(a.IssueService(nil, nil)))
	for _, print := range []string{a.Fingerprint(), strings.ToUpper(a.Fingerprint()), a.Fingerprint()[:2] + ":" + a.Fingerprint()[2:]} {
		if root, err := ca.FetchRoot(t.Context(), good, print, nil); err != nil || !root.Equal(a.Root()) {
			t.Errorf("%s: got %v, %v", print, root, err)
		}
	}
	if root, err := ca.FetchRoot(t.Context(), good, foreign.Fingerprint(), nil); !errors.Is(err, ca.ErrFingerprint) || root != nil {
		t.Errorf("wrong fingerprint: got %v, %v", root, err)
	}
	if _, err := ca.FetchRoot(t.Context(), good, "abc", nil); err == nil {
		t.Error("a malformed fingerprint was taken")
	}
	// The right root in the chain proves nothing if the leaf is not of it.
	impostor := must(foreign.IssueService(nil, nil))
	impostor.Certificate[1] = a.Root().Raw
	if root, err := ca.FetchRoot(t.Context(), serve(impostor), a.Fingerprint(), nil); err == nil || root != nil {
		t.Errorf("impostor with the genuine root appended: got %v, %v", root, err)
	}
	if root, err := ca.FetchRoot(t.Context(), serve(must(a.IssueReplicationServer(serverID))), a.Fingerprint(), nil); !errors.Is(err, ca.ErrName) || root != nil {
		t.Errorf("replication server instead of the service: got %v, %v", root, err)
	}
}

// TestEndpoint_TwoNames: a certificate of the genuine root that carries two
// names has none.
func TestEndpoint_TwoNames(t *testing.T) {
	dir := t.TempDir()
	root := legacyRoot(t, dir)
	a := must(ca.Open(dir, ca.Options{}))
	key := must(ca.NewKey())
	der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{must(url.Parse("urn:rehost:source-server:" + agentID)), must(url.Parse("urn:rehost:source-server:" + otherID))},
	}, root.Leaf, key.Public(), root.PrivateKey.(*ecdsa.PrivateKey)))
	server := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(must(a.IssueReplicationServer(serverID)))}
	client := ca.Endpoint{Root: a.Root(), Certificate: ca.Fixed(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})}
	if serverErr, _, _ := handshake(t, server.ServerConfig(ca.SourceServer), client.ClientConfig(replicator)); !errors.Is(serverErr, ca.ErrName) {
		t.Errorf("got %v, want %v", serverErr, ca.ErrName)
	}
}
