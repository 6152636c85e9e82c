package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/e2e/site"
	"rehost/internal/fault"
)

// helloTLS begins a handshake and does not end it.
func helloTLS(c net.Conn) { _ = tls.Client(c, &tls.Config{ServerName: "x"}).Handshake() }

const (
	apiAt         = innerAddress + ":8443"
	replicationAt = innerAddress + ":1500"
)

// A fenced is a service in the middle of a network, and its administrator, who is inside.
type fenced struct {
	*network
	ctx     context.Context
	world   *world
	process *site.Process
	keys    aws.Credentials
	http    *http.Client
}

func newFenced(t *testing.T, args ...string) *fenced {
	t.Helper()
	fault.Alone(t) // before time begins to run
	built.Store(true)
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	f := &fenced{network: newNetwork(t), ctx: ctx}
	f.world = &world{t: t, ctx: ctx, bin: bin, state: filepath.Join(t.TempDir(), "agent"), bpffs: fault.BPF(t), log: newLogFile(t)}
	fault.Passage(t, filepath.Dir(f.world.state), f.world.bpffs)
	t.Cleanup(f.world.removeUser)
	data := t.TempDir()
	f.process, err = site.Start(ctx, f.world.log, "ready", "ip", in(f.service, filepath.Join(bin, "rehost"), append([]string{"serve", "--data", data, "--region", site.Region,
		"--listen", ":8443", "--replication-listen", ":1500", "--advertise", innerAddress}, args...)...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.process.Kill() })
	f.world.config.Data = data
	f.world.service = &site.Service{Process: f.process, Config: site.Config{Data: data}, Endpoint: "https://" + apiAt}
	id, secret, err := site.ReadCredentials(filepath.Join(data, "credentials"))
	if err != nil {
		t.Fatal(err)
	}
	f.keys = aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}
	roots, err := f.world.service.Roots()
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: dialer(f.inside), TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	f.http = &http.Client{Transport: transport}
	f.world.service.API, err = f.world.service.Client(credentials.StaticCredentialsProvider{Value: f.keys}, func(o *mgn.Options) { o.HTTPClient = f.http })
	if err != nil {
		t.Fatal(err)
	}
	if err := f.world.service.SetUp(ctx); err != nil {
		t.Fatal(err)
	}
	return f
}

// aws runs the stock command inside.
func (f *fenced) aws(into any, args ...string) {
	f.t.Helper()
	cmd := exec.CommandContext(f.ctx, "ip", in(f.inside, "aws", append([]string{"--endpoint-url", f.world.service.Endpoint, "--region", site.Region, "--output", "json"}, args...)...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "AWS_CA_BUNDLE="+filepath.Join(f.world.config.Data, "ca.pem"), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true", "AWS_ACCESS_KEY_ID="+f.keys.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+f.keys.SecretAccessKey)
	out, err := cmd.Output()
	if err == nil && into != nil {
		err = json.Unmarshal(out, into)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		f.t.Fatalf("aws %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// ec2 makes a call as that command does, in a hundredth of its time.
func (f *fenced) ec2(action string, pairs ...string) (answered string) {
	f.t.Helper()
	form := url.Values{"Action": {action}, "Version": {"2016-11-15"}}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	body := []byte(form.Encode())
	r, err := http.NewRequestWithContext(f.ctx, http.MethodPost, f.world.service.Endpoint+"/", bytes.NewReader(body))
	if err == nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		digest := sha256.Sum256(body)
		err = v4.NewSigner().SignHTTP(f.ctx, f.keys, r, hex.EncodeToString(digest[:]), "ec2", site.Region, time.Now())
	}
	if err != nil {
		f.t.Fatal(err)
	}
	answer, err := f.http.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		f.t.Fatalf("%s %v: %v: %s", action, pairs, err, text)
	}
	return string(text)
}

// named is the id of a group.
func (f *fenced) named(name string) string {
	f.t.Helper()
	_, rest, _ := strings.Cut(f.ec2("DescribeSecurityGroups", "GroupName.1", name), "<groupId>")
	id, _, _ := strings.Cut(rest, "</groupId>")
	return id
}

// rule makes a call about a rule for one CIDR.
func (f *fenced) rule(action, group, port, cidr string) {
	f.t.Helper()
	f.ec2(action, "GroupId", group, "IpProtocol", "tcp", "FromPort", port, "ToPort", port, "CidrIp", cidr)
}

// sees waits until somebody sees a port so, and says how long that took.
func (f *fenced) sees(ns, address, want string) {
	f.t.Helper()
	began, got := time.Now(), ""
	for got = scan(ns, address); got != want && time.Since(began) < 30*time.Second; got = scan(ns, address) {
		time.Sleep(10 * time.Millisecond)
	}
	if got != want {
		f.t.Fatalf("%s sees %s as %q, want %q", ns, address, got, want)
	}
	f.t.Logf("%s is %q after %v", address, want, time.Since(began).Round(time.Millisecond))
}

// doctor holds what the service lets others reach against the rules, on the service's
// machine, and checks what it warns of. It must not find a fault.
func (f *fenced) doctor(warnings ...string) {
	f.t.Helper()
	out, err := exec.CommandContext(f.ctx, "ip", in(f.service, filepath.Join(f.world.bin, "rehost"), "doctor", "--exposure", "--json", "--data", f.world.config.Data)...).Output()
	var found struct {
		Ports []struct {
			Address, Purpose string
			Warnings         []string
		}
	}
	if decode := json.Unmarshal(out, &found); err != nil || decode != nil {
		f.t.Fatalf("doctor: %v, %v: %s", err, decode, out)
	}
	got := []string{}
	for _, p := range found.Ports {
		for _, w := range p.Warnings {
			if _, everyone, ok := strings.Cut(w, "lets in everyone "); ok {
				w = everyone
			}
			got = append(got, p.Purpose+" "+w)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, append([]string{}, warnings...)) {
		f.t.Errorf("doctor warns of %q, want %q", got, warnings)
	}
}

// TestFence is the life of a group, told with the stock aws command: who is in it
// replicates, who is not gets no byte of TLS, who is taken out is cut at once, and
// comes back when it may again.
func TestFence(t *testing.T) {
	need(t, "aws", "openssl")
	f := newFenced(t)
	f.sees(f.outside, replicationAt, portTLS) // the default group
	f.sees(f.outside, apiAt, portTLS)
	f.doctor("replication from 0.0.0.0/0", "replication from ::/0", "the API from 0.0.0.0/0", "the API from ::/0")

	var made struct{ GroupId string }
	f.aws(&made, "ec2", "create-security-group", "--group-name", "office", "--description", "An office", "--tag-specifications", "ResourceType=security-group,Tags=[{Key=env,Value=dev}]")
	var allowed struct {
		SecurityGroupRules []struct{ SecurityGroupRuleId, CidrIpv4 string }
	}
	f.aws(&allowed, "ec2", "authorize-security-group-ingress", "--group-id", made.GroupId, "--protocol", "tcp", "--port", "1500", "--cidr", "10.77.1.0/24")
	if len(allowed.SecurityGroupRules) != 1 || allowed.SecurityGroupRules[0].CidrIpv4 != "10.77.1.0/24" {
		t.Fatalf("allowed: %+v", allowed)
	}
	var groups struct {
		SecurityGroups []struct {
			GroupName     string
			IpPermissions []struct {
				IpProtocol string
				FromPort   int
				IpRanges   []struct{ CidrIp string }
			}
			Tags []struct{ Key, Value string }
		}
	}
	f.aws(&groups, "ec2", "describe-security-groups", "--filters", "Name=tag:env,Values=dev")
	if g := groups.SecurityGroups; len(g) != 1 || g[0].GroupName != "office" || len(g[0].IpPermissions) != 1 || g[0].IpPermissions[0].FromPort != 1500 || g[0].IpPermissions[0].IpRanges[0].CidrIp != "10.77.1.0/24" || g[0].Tags[0].Value != "dev" {
		t.Errorf("described: %+v", groups)
	}

	w := f.world
	disks := []*fault.Disk{fault.Loop(t, 24<<20)}
	inside := func(program string, args ...string) []string {
		return in(f.inside, filepath.Join(w.bin, program), args...)
	}
	install := exec.CommandContext(f.ctx, "ip", inside("rehost-agent", "install", "--state-dir", w.state, "--bpffs", w.bpffs, "--endpoint", w.service.Endpoint, "--region", site.Region,
		"--no-prompt", "--no-service", "--force-volumes", "--devices", disks[0].Path, "--ca-fingerprint", w.fingerprint())...)
	install.Env = append(os.Environ(), w.installer()...)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
	agent, err := site.Start(f.ctx, w.log, "agent started", "ip", inside("rehost-agent", "run", "--state-dir", w.state)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Kill() })
	o := newObserver(w)
	stop := scribble(t, disks, 1)
	defer stop()
	point := func(what string) {
		t.Helper()
		now := time.Now()
		o.until(what, func() bool { return o.last.After(now) })
	}
	point("the first point")

	_, err = w.service.API.UpdateReplicationConfiguration(f.ctx, &mgn.UpdateReplicationConfigurationInput{SourceServerID: &o.id, AssociateDefaultSecurityGroup: aws.Bool(false),
		ReplicationServersSecurityGroupsIDs: []string{made.GroupId}})
	if err != nil {
		t.Fatal(err)
	}
	f.sees(f.outside, replicationAt, portReset)
	f.sees(f.inside, replicationAt, portTLS)
	f.sees(f.outside, apiAt, portTLS) // another group's
	point("a point after the group was put around the replication server")

	f.rule("RevokeSecurityGroupIngress", made.GroupId, "1500", "10.77.1.0/24")
	f.sees(f.inside, replicationAt, portReset)
	cut := time.Now()
	eventually(t, f.ctx, "the agent's session cut", func() bool { return strings.Contains(w.log.text(), "cut connections that are not allowed any more") })
	t.Logf("cut %v after it was seen", time.Since(cut).Round(time.Millisecond))
	f.rule("AuthorizeSecurityGroupIngress", made.GroupId, "1500", "10.77.1.2/32")
	point("a point after the agent may connect again")

	// Who is not allowed to reach the API any more is in the middle of a connection to it.
	api := f.named("rehost-api")
	f.rule("AuthorizeSecurityGroupIngress", api, "8443", "10.77.1.0/24")
	f.rule("RevokeSecurityGroupIngress", api, "8443", "0.0.0.0/0")
	f.sees(f.outside, apiAt, portReset)
	f.sees(f.inside, apiAt, portTLS)
	f.sees(f.service, "127.0.0.1:8443", portTLS) // nobody locks this machine out
	point("a point with both ports guarded")
	f.doctor("the API from ::/0")

	// What those see who may connect, and have no certificate.
	shows(t, f.inside, apiAt, "alert unexpected message", "Verify return code")
	shows(t, f.inside, replicationAt, "alert handshake failure", "alert certificate required")
	for _, say := range []string{"", "SSH-2.0-x\r\n", strings.Repeat("\x00", 64)} {
		if api, replication := hears(t, f.inside, apiAt, say), hears(t, f.inside, replicationAt, say); api+replication != "" {
			t.Errorf("told %q, the API says %q, the replication server %q", say, api, replication)
		}
	}
	if got := hears(t, f.inside, replicationAt, "GET / HTTP/1.0\r\n\r\n"); got != "" {
		t.Errorf("without TLS the replication server says %q", got)
	}
	// It is net/http that says this to whoever forgets the s of https. It is nothing of the service.
	if got := hears(t, f.inside, apiAt, "GET / HTTP/1.0\r\n\r\n"); got != "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n" {
		t.Errorf("without TLS the API says %q", got)
	}
}

// TestFence_Nftables: with the kernel's help a stranger hears nothing at all, and when
// the service is gone its rules are, too.
func TestFence_Nftables(t *testing.T) {
	need(t, "nmap")
	f := newFenced(t, "--firewall", "nftables")
	f.sees(f.outside, replicationAt, portTLS)
	api := f.named("rehost-api")
	f.rule("AuthorizeSecurityGroupIngress", api, "8443", "10.77.1.0/24")
	f.rule("RevokeSecurityGroupIngress", api, "8443", "0.0.0.0/0")
	f.sees(f.outside, apiAt, portSilent)
	f.sees(f.inside, apiAt, portTLS)
	f.sees(f.service, "127.0.0.1:8443", portTLS)
	f.sees(f.outside, "["+outer6+"]:8443", portTLS) // that of IPv6 is a rule of its own
	six := []string{"GroupId", api, "IpPermissions.1.IpProtocol", "tcp", "IpPermissions.1.FromPort", "8443", "IpPermissions.1.ToPort", "8443", "IpPermissions.1.Ipv6Ranges.1.CidrIpv6"}
	f.ec2("RevokeSecurityGroupIngress", append(six, "::/0")...)
	f.sees(f.outside, "["+outer6+"]:8443", portSilent)
	f.ec2("AuthorizeSecurityGroupIngress", append(six, outside6+"/128")...)
	f.sees(f.outside, "["+outer6+"]:8443", portTLS)
	f.sees(f.outside, innerAddress+":22", portRefused) // other ports are nobody's business here
	f.rule("AuthorizeSecurityGroupIngress", api, "8443", outsideAddress+"/32")
	f.sees(f.outside, apiAt, portTLS)
	f.rule("RevokeSecurityGroupIngress", api, "8443", outsideAddress+"/32")
	f.sees(f.outside, apiAt, portSilent)
	f.ec2("RevokeSecurityGroupIngress", append(six, outside6+"/128")...)
	_, rest, _ := strings.Cut(f.ec2("CreateSecurityGroup", "GroupName", "office", "GroupDescription", "An office"), "<groupId>")
	office, _, _ := strings.Cut(rest, "</groupId>")
	f.rule("AuthorizeSecurityGroupIngress", office, "1500", "10.77.1.0/24")
	templates, err := f.world.service.API.DescribeReplicationConfigurationTemplates(f.ctx, &mgn.DescribeReplicationConfigurationTemplatesInput{})
	if err != nil || len(templates.Items) != 1 {
		t.Fatalf("%d templates, %v", len(templates.Items), err)
	}
	_, err = f.world.service.API.UpdateReplicationConfigurationTemplate(f.ctx, &mgn.UpdateReplicationConfigurationTemplateInput{
		ReplicationConfigurationTemplateID: templates.Items[0].ReplicationConfigurationTemplateID,
		AssociateDefaultSecurityGroup:      aws.Bool(false), ReplicationServersSecurityGroupsIDs: []string{office}})
	if err != nil {
		t.Fatal(err)
	}
	f.sees(f.outside, replicationAt, portSilent)

	// The whole machine, from either side.
	for _, address := range []string{outerAddress, innerAddress, outer6} {
		if open := openPorts(t, f.outside, address); len(open) > 0 {
			t.Errorf("from outside %v are open at %s", open, address)
		}
	}
	if open := openPorts(t, f.inside, innerAddress); !slices.Equal(open, []string{"1500", "8443"}) {
		t.Errorf("from inside %v are open", open)
	}
	f.doctor()
	if err := f.process.Stop(); err != nil {
		t.Errorf("the service ended with %v", err)
	}
	f.sees(f.outside, apiAt, portRefused)
}
