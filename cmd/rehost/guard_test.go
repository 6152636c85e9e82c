package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/ca"
)

// ec2 makes a call to the API of security groups, by the administrator.
func (r *running) ec2(action string, pairs ...string) string {
	r.t.Helper()
	form := url.Values{"Action": {action}, "Version": {"2016-11-15"}}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	body := []byte(form.Encode())
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.api+"/", bytes.NewReader(body))
	r.must(err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	who, err := r.admin.Retrieve(r.t.Context())
	r.must(err)
	digest := sha256.Sum256(body)
	r.must(v4.NewSigner().SignHTTP(r.t.Context(), who, request, hex.EncodeToString(digest[:]), "ec2", "us-east-1", time.Now()))
	transport := &http.Transport{TLSClientConfig: ca.Endpoint{Root: r.root}.ClientConfig(ca.Name{Role: ca.Service})}
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(request)
	r.must(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	r.must(err)
	if answer.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s", action, text)
	}
	return string(text)
}

// group is the id of the first group in an answer.
func groupIn(text string) string {
	_, rest, _ := strings.Cut(text, "<groupId>")
	id, _, _ := strings.Cut(rest, "</groupId>")
	return id
}

// secured is whether TLS comes about with the API, on a connection from an address
// of loopback on which something is said before.
func (r *running) secured(from, before string) bool {
	r.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 20 * time.Second}
	c, err := d.Dial("tcp", strings.TrimPrefix(r.api, "https://"))
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(c, before)
	return tls.Client(c, ca.Endpoint{Root: r.root}.ClientConfig(ca.Name{Role: ca.Service})).Handshake() == nil
}

// TestServe_Groups: the address of an agent comes from a file of prefix lists. Taken
// out of it, its session is cut while it runs; and behind a proxy the API goes by the
// address that the proxy says.
func TestServe_Groups(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	lists := filepath.Join(t.TempDir(), "lists")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(lists+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(lists+".new", lists); err != nil {
			t.Fatal(err)
		}
	}
	const with, without = "[pl-0123456789abcdef0 agents]\n127.0.0.0/8 this machine\n", "[pl-0123456789abcdef0 agents]\n"
	write(with)
	r := serve(t, filepath.Join(t.TempDir(), "data"), "--prefix-lists", lists, "--proxy-protocol-from", "127.0.0.9")
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	group := groupIn(r.ec2("CreateSecurityGroup", "GroupName", "agents", "GroupDescription", "agents"))
	r.ec2("AuthorizeSecurityGroupIngress", "GroupId", group, "IpPermissions.1.IpProtocol", "tcp", "IpPermissions.1.FromPort", "1500", "IpPermissions.1.ToPort", "1500",
		"IpPermissions.1.PrefixListIds.1.PrefixListId", "pl-0123456789abcdef0")
	_, err = r.mgn.UpdateReplicationConfiguration(t.Context(), &mgn.UpdateReplicationConfigurationInput{SourceServerID: &a.id, AssociateDefaultSecurityGroup: aws.Bool(false),
		ReplicationServersSecurityGroupsIDs: []string{group}})
	r.must(err)
	s := a.connect()
	a.commit(s, 'x')
	write("[pl-0123456789abcdef0 agents]\nnonsense\n")
	r.until("a file that is no good to be noticed", func() bool { return strings.Contains(r.said(), "the lists before it stay") })
	a.commit(s, 'y')
	write(without)
	changed := time.Now()
	select {
	case <-s.Done():
		t.Logf("cut %v after the file was changed", time.Since(changed).Round(time.Millisecond))
	case <-time.After(30 * time.Second):
		t.Error("the session goes on though its address is not allowed any more")
	}
	s.Close() // it has failed
	write(with)
	r.until("the list to be there again", func() bool {
		_, since, _ := strings.Cut(r.said(), "prefixes=0")
		return strings.Contains(since, "prefixes=1")
	})
	s = a.connect()
	a.commit(s, 'z')
	r.must(s.Close())

	api := groupIn(r.ec2("DescribeSecurityGroups", "GroupName.1", "rehost-api"))
	r.ec2("AuthorizeSecurityGroupIngress", "GroupId", api, "IpProtocol", "tcp", "FromPort", "8443", "ToPort", "8443", "CidrIp", "192.0.2.0/24")
	r.ec2("RevokeSecurityGroupIngress", "GroupId", api, "IpProtocol", "tcp", "FromPort", "8443", "ToPort", "8443", "CidrIp", "0.0.0.0/0")
	header := func(from string) string { return fmt.Sprintf("PROXY TCP4 %s 127.0.0.1 1 8443\r\n", from) }
	r.until("a stranger behind the proxy to be kept out", func() bool { return !r.secured("127.0.0.9", header("198.51.100.1")) })
	if !r.secured("127.0.0.9", header("192.0.2.1")) {
		t.Error("who is allowed is not, behind the proxy")
	}
	if !r.secured("127.0.0.1", "") {
		t.Error("this machine itself is locked out")
	}
	if r.secured("127.0.0.1", header("192.0.2.1")) || r.secured("127.0.0.9", "") || r.secured("127.0.0.9", header("127.0.0.1")) {
		t.Error("a header counts from anyone, or is not needed, or makes somebody local")
	}
}

// said is what the service has said until now.
func (r *running) said() string { return r.stderr.String() }

// TestFenceFlags: proxies that would shut out the machine's own programs, and files that
// are no lists, stop the start.
func TestFenceFlags(t *testing.T) {
	for text, want := range map[string]bool{"127.0.0.1": false, "127.0.0.0/8": false, "::1": false, "10.0.0.1": false, "127.0.0.9": true, "10.0.0.0/29": false, "10.0.0.8/29": true} {
		var p peers
		if err := p.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := apart([]netip.Prefix{p.Prefix}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8443}); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"", "proxy.example.com", "10.0.0.1/33", "fe80::1%eth0"} {
		if err := new(peers).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	bad := filepath.Join(t.TempDir(), "lists")
	if err := os.WriteFile(bad, []byte("192.0.2.0/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--prefix-lists", bad}, {"--prefix-lists", bad + ".none"}, {"--proxy-protocol-from", "127.0.0.1"}} {
		var stderr bytes.Buffer
		status := Run(t.Context(), append([]string{"serve", "--data", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0", "--replication-listen", "127.0.0.1:0"}, args...), io.Discard, &stderr)
		if status == statusDone || !strings.Contains(stderr.String(), "error:") {
			t.Errorf("%v: status %d: %s", args, status, stderr.String())
		}
	}
}
