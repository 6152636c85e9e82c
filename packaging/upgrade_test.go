package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"golang.org/x/sys/unix"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/e2e/site"
)

// TestUpgrade replaces a running agent by the next release: tracking goes on and
// nothing is copied anew; what is not signed, older, broken or cut off leaves the
// version that runs.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	w.disk.Overwrite(t, 0, []byte("before"))
	if out, err := w.sh(w.curl(w.installArgs())); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first := w.until("replication", continuous)
	if out, err := w.agentRun("upgrade"); err != nil || !strings.Contains(out, "of version 0.1.0 already") {
		t.Fatalf("to the same version: %v: %s", err, out)
	}

	same := func(name string) {
		t.Helper()
		s := w.status()
		if s.PID != first.PID || s.Version != "0.1.0" || !s.Running {
			t.Errorf("%s: it is another agent: %+v", name, s)
		}
		w.clean(name)
	}
	refused := func(name string, words ...string) {
		t.Helper()
		out, err := w.agentRun("upgrade")
		if err == nil {
			t.Errorf("%s: it is taken: %s", name, out)
		}
		for _, word := range words {
			if !strings.Contains(out, word) {
				t.Errorf("%s: it does not say %q: %s", name, word, out)
			}
		}
	}
	// A service in the hands of somebody else, who has no key: here one that checks nothing.
	good, err := os.ReadFile(filepath.Join(w.agent[1], "rehost-agent-linux-amd64"))
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.believesAll()
	w.offer("0.2.0", string(good), stranger)
	refused("Stranger", "not signed by a key that is believed", "hint:")
	same("Stranger")
	w.serve(w.agent[1])
	changed := append([]byte(nil), good...)
	changed[len(changed)-1] ^= 1
	if err := os.WriteFile(filepath.Join(w.serving, "rehost-agent-linux-amd64"), changed, 0o755); err != nil {
		t.Fatal(err)
	}
	refused("Tampered", "hint:")
	same("Tampered")

	w.offer("0.0.9", "#!/bin/sh\necho 0.0.9\n", w.secret())
	refused("Older", "older version", "--downgrade")
	same("Older")
	w.offer("0.2.0", "#!/bin/sh\necho 0.1.5\n", w.secret())
	refused("Mislabelled", "says that it is 0.1.5")
	same("Mislabelled")
	w.offer("0.2.0", "this is no program", w.secret())
	refused("NoProgram", "exec format error")
	same("NoProgram")

	// One that starts and does not live: the version before is back.
	w.offer("0.3.0", "#!/bin/sh\ncase $1 in --version) echo 0.3.0 ;; restart) exec "+filepath.Join(w.agent[1], "rehost-agent-linux-amd64")+" \"$@\" ;; *) exit 1 ;; esac\n", w.secret())
	refused("Broken", "has not proven itself", "the version before runs again")
	s := w.until("the version before", continuous)
	if s.Version != "0.1.0" || !strings.HasPrefix(s.Keeps, "went on while no agent ran") {
		t.Errorf("after a bad upgrade: %+v", s)
	}
	w.clean("Broken")

	// A good one that is cut off before it is known to be: the next call finishes it.
	w.serve(w.agent[1])
	cmd := exec.Command(w.program(), "upgrade", "--state-dir", w.state)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.until("the next version", func(s status) bool { return s.Version == "0.2.0" && s.Running })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := os.Stat(w.program() + ".previous"); err != nil {
		t.Fatalf("the version before is not kept: %v", err)
	}
	if out, _ := w.agentRun("doctor"); !strings.Contains(out, "one was interrupted") {
		t.Errorf("doctor does not tell: %s", out)
	}
	w.disk.Overwrite(t, 8<<20, []byte("written meanwhile"))
	if out, err := w.agentRun("upgrade"); err != nil || !strings.Contains(out, "of version 0.2.0 already") {
		t.Fatalf("%v: %s", err, out)
	}
	s = w.until("replication", continuous)
	if s.Version != "0.2.0" || !strings.HasPrefix(s.Keeps, "went on while no agent ran") {
		t.Errorf("after the upgrade: %+v", s)
	}
	w.clean("upgraded")

	// Back again, when somebody says so.
	w.serve(w.agent[0])
	if out, err := w.agentRun("upgrade", "--downgrade"); err != nil || !strings.Contains(out, "of version 0.1.0 now, was of 0.2.0") {
		t.Fatalf("%v: %s", err, out)
	}
	w.clean("downgraded")
}

// TestUpgrade_VPN: an agent that has nothing but the service's VPN takes the next
// release through it, and doctor looks through it, while the agent replicates.
func TestUpgrade_VPN(t *testing.T) {
	w := newWorld(t)
	if err := w.service.Stop(); err != nil {
		t.Fatal(err)
	}
	c := w.service.Config
	c.Args = append(c.Args, "--vpn", "127.0.0.1:0")
	w.again(c)
	invitation := filepath.Join(t.TempDir(), "invitation")
	if out, err := w.sh("env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY " + w.rehost + " vpn --data " + w.service.Data + " invite > " + invitation); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program := filepath.Join(w.agent[0], "rehost-agent-linux-amd64")
	args := w.installArgs("--vpn-invitation", invitation, "--endpoint", "rehost.invalid", "--region", site.Region, "--ca", filepath.Join(w.service.Data, "ca.pem"))
	if out, err := w.sh(program + " doctor --vpn-invitation " + invitation + " --endpoint rehost.invalid --ca " + filepath.Join(w.service.Data, "ca.pem")); !strings.Contains(out, "chain and name of the service are right") {
		t.Errorf("before the installation: %v: %s", err, out)
	}
	if out, err := w.sh(program + " install " + args); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.until("replication", continuous)
	w.serve(w.agent[1])
	if out, err := w.agentRun("upgrade"); err != nil || !strings.Contains(out, "of version 0.2.0 now, was of 0.1.0") {
		t.Fatalf("%v: %s", err, out)
	}
	s := w.until("replication", continuous)
	if s.Version != "0.2.0" || !strings.HasPrefix(s.Keeps, "went on while no agent ran") {
		t.Errorf("after the upgrade: %+v", s)
	}
	w.clean("upgraded")
	if out, _ := w.agentRun("doctor"); !strings.Contains(out, "through the running agent's tunnel") || !strings.Contains(out, "rehost.invalid:8443 answers") {
		t.Errorf("doctor does not look through the agent's tunnel: %s", out)
	}
}

// believesAll has the service serve whatever is there.
func (w *world) believesAll() {
	w.t.Helper()
	if err := w.service.Stop(); err != nil {
		w.t.Fatal(err)
	}
	c := w.service.Config
	c.Program = filepath.Join(w.t.TempDir(), "rehost")
	if out, err := exec.Command("go", "build", "-o", c.Program, "./cmd/rehost").CombinedOutput(); err != nil { // without keys
		w.t.Fatalf("%v: %s", err, out)
	}
	w.again(c)
}

// clean wants nothing of an upgrade to be left beside the state.
func (w *world) clean(name string) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var left []string
		err := filepath.WalkDir(w.state, func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".previous") || strings.HasSuffix(path, ".next") {
				left = append(left, path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			w.t.Errorf("%s: left behind: %v, %v", name, left, err)
			return
		}
	}
}

// TestUpgrade_Asked: the service tells an agent, which has a user of its own, to go on as
// the next release. What another has signed it does not take; and who is killed on the
// way, agent or root's part, is made up for.
func TestUpgrade_Asked(t *testing.T) {
	r := newRoot(t, "chroot")
	if err := copyFile(filepath.Join(r.dir, "usr/bin/rehost-agent"), filepath.Join(r.agent[0], "rehost-agent-linux-amd64")); err != nil {
		t.Fatal(err)
	}
	// A service that believes somebody whom agents do not.
	made := command{Version: "0.1.0", Out: t.TempDir(), Arch: []string{"amd64"}, Key: filepath.Join(t.TempDir(), "stranger.key"), Believe: []string{r.key.String()}, Only: []string{"rehost"}}
	if err := made.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.service.Stop(); err != nil {
		t.Fatal(err)
	}
	c := r.service.Config
	c.Program = filepath.Join(made.Out, "rehost-linux-amd64")
	r.again(c)
	r.install()
	first := r.status()
	id := *r.servers()[0].SourceServerID
	ask := func(wait string) (out string, err error) {
		for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
			text, e := exec.Command(c.Program, "agents", "--data", c.Data, "upgrade", "--wait", wait, id).CombinedOutput()
			if out, err = string(text), e; !strings.Contains(out, "less than 1m") { // between two there is a minute
				break
			}
		}
		return out, err
	}
	if out, err := ask("2m"); err != nil || !strings.Contains(out, "of this version already") {
		t.Errorf("to the same version: %v: %s", err, out)
	}
	good, err := os.ReadFile(filepath.Join(r.agent[1], "rehost-agent-linux-amd64"))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := loadKey(made.Key, "")
	if err != nil {
		t.Fatal(err)
	}
	r.offer("0.0.9", string(good), r.secret())
	if out, err := ask("2m"); err == nil || !strings.Contains(out, "agents take only newer ones") {
		t.Errorf("to an older version: %v: %s", err, out)
	}
	r.offer("0.2.0", string(good), stranger)
	if out, err := ask("2m"); err == nil || !strings.Contains(out, "FAILED") || !strings.Contains(out, "not signed by a key that is believed") {
		t.Errorf("of a stranger's: %v: %s", err, out)
	}
	if s := r.status(); s.PID != first.PID || s.Version != "0.1.0" {
		t.Errorf("it is another agent: %+v", s)
	}

	r.serve(r.agent[1])
	if out, err := ask("0s"); err != nil || !strings.Contains(out, "0.2.0") {
		t.Fatalf("%v: %s", err, out)
	}
	outcome := filepath.Join(r.dir, "usr/local/lib/rehost-agent/upgrade.json")
	for _, until := range []struct {
		what string
		ok   func() bool
	}{
		{"what was laid down", func() bool { _, err := os.Stat(filepath.Join(r.state, "upgrade.json")); return err == nil }},
		{"the upgrade to be under way", func() bool { text, _ := os.ReadFile(outcome); return strings.Contains(string(text), "underWay") }},
		{"the next version to run", func() bool { s := r.status(); return s.Running && s.Version == "0.2.0" }},
	} {
		r.kill(until.what, until.ok)
		if _, err := r.agentRun("restart"); err != nil { // as the machine's init does
			t.Logf("started again once %s: %v", until.what, err)
		}
	}
	var out string
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end) && !strings.Contains(out, "SUCCEEDED"); time.Sleep(time.Second) {
		text, err := exec.Command(c.Program, "agents", "--data", c.Data, "upgrade", "--wait", "1s", id).CombinedOutput()
		out = string(text)
		if err != nil && !r.status().Running {
			_, _ = r.agentRun("restart")
		}
	}
	if !strings.Contains(out, "SUCCEEDED") {
		t.Errorf("in the end: %s", out)
	}
	if s := r.until("replication", continuous); s.Version != "0.2.0" || !strings.HasPrefix(s.Keeps, "went on while no agent ran") {
		t.Errorf("after the upgrade: %+v", s)
	}
	r.clean("upgraded")
	for _, name := range []string{"upgrade.json", "upgrade.program"} {
		if _, err := os.Stat(filepath.Join(r.state, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
}

// TestUpgrade_Unanswered: of one agent the service does not tell how its upgrade went. That
// is said, the others are told of all the same, and the command fails.
func TestUpgrade_Unanswered(t *testing.T) {
	w := newWorld(t)
	id, secret, err := site.ReadCredentials(filepath.Join(w.service.Data, "credentials"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := w.service.Roots()
	if err != nil {
		t.Fatal(err)
	}
	admin, config := credentials.NewStaticCredentialsProvider(id, secret, ""), &tls.Config{RootCAs: roots}
	client := awsapi.NewClient(awsapi.ClientOptions{Endpoint: w.service.Endpoint, Region: site.Region, Credentials: admin, TLS: config})
	defer client.Close()
	var servers []string
	for _, machine := range []string{"one", "two", "three"} { // all of them of the release that is offered
		version, boot := "0.1.0", true
		registered, err := awsapi.Call(t.Context(), client, formgn.RegisterAgentForMgn, &formgn.RegisterAgentForMgnRequest{AgentVersion: &version, SourceProperties: &formgn.SourceProperties{
			MachineID: &machine, Hostname: &machine, Disks: []formgn.Disk{{DeviceName: "/dev/vda", Bytes: 1 << 20, IsBootDisk: &boot}}}})
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, registered.SourceServerID)
	}

	// Somebody who may ask all of them, and hear of all but the second.
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	people := iam.New(iam.Options{Region: "us-east-1", BaseEndpoint: &w.service.Endpoint, Credentials: admin, HTTPClient: &http.Client{Transport: transport}})
	name, policy := "operator", fmt.Sprintf(`{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "mgn:*", "Resource": "*"},
		{"Effect": "Deny", "Action": "mgn:DescribeAgentTasksForRehost", "Resource": "arn:aws:mgn:*:*:source-server/%s"}]}`, servers[1])
	_, err = people.CreateUser(t.Context(), &iam.CreateUserInput{UserName: &name})
	if err == nil {
		_, err = people.PutUserPolicy(t.Context(), &iam.PutUserPolicyInput{UserName: &name, PolicyName: &name, PolicyDocument: &policy})
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := people.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: &name})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(w.rehost, append([]string{"agents", "--data", w.service.Data, "upgrade"}, servers...)...)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+*key.AccessKey.AccessKeyId, "AWS_SECRET_ACCESS_KEY="+*key.AccessKey.SecretAccessKey)
	out, err := cmd.CombinedOutput()
	for i, want := range []string{"SUCCEEDED", "not known: ", "SUCCEEDED"} {
		if !regexp.MustCompile(servers[i] + ` .*` + want).Match(out) {
			t.Errorf("of server %d it does not say %q", i+1, want)
		}
	}
	if err == nil || !strings.Contains(string(out), "AccessDeniedException") || !strings.Contains(string(out), "1 of 3 agents") {
		t.Errorf("it ends with %v: %s", err, out)
	}
}

// kill waits for something, and then kills root's part of an upgrade and the agent.
func (r *root) kill(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("waited too long for %s", what)
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/root")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, link := range links {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		to, e := os.Readlink(link)
		if err == nil && e == nil && to == r.dir { // all that runs there is this test's
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				r.t.Fatal(err)
			}
		}
	}
}
