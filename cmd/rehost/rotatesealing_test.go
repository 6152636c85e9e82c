package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"rehost/ca"
	"rehost/control"
	"rehost/identity"
)

// What the process that is killed is told.
const (
	rotateIn = "REHOST_TEST_ROTATE"      // a data directory
	rotateTo = "REHOST_TEST_ROTATE_STEP" // after which step it kills itself
)

// TestMain is that process, too.
func TestMain(m *testing.M) {
	if data := os.Getenv(rotateIn); data != "" {
		os.Exit(rotateAndDie(data, os.Getenv(rotateTo)))
	}
	os.Exit(m.Run())
}

func rotateAndDie(data, last string) int {
	cmd := &KeysRotateSealingCmd{Retire: true, at: func(step string) {
		if step == last {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}}
	if err := cmd.Run(context.Background(), io.Discard, &CLI{Keys: KeysCmd{Data: data}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// keysIn are the names of the sealing keys of a directory.
func keysIn(t *testing.T, data string) []string {
	t.Helper()
	k, err := identity.LoadSealingKey(filepath.Join(data, sealingKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return k.Names()
}

// stillThere: the service starts, knows its administrator and its authority, and the audit
// log is what was written.
func stillThere(t *testing.T, data, fingerprint string) {
	t.Helper()
	r := serve(t, data)
	if _, err := r.mgn.DescribeSourceServers(t.Context(), &mgn.DescribeSourceServersInput{}); err != nil {
		t.Errorf("the administrator: %v", err)
	}
	if got := ca.Fingerprint(r.root); got != fingerprint {
		t.Errorf("the authority is another: %s", got)
	}
	if status := r.stop(); status != statusDone {
		t.Errorf("the service ended with %d", status)
	}
	var out, errs bytes.Buffer
	if status := Run(t.Context(), []string{"audit", "verify", "--data", data}, &out, &errs); status != statusDone || strings.Contains(out.String(), "Damaged") {
		t.Errorf("audit verify: status %d, %s%s", status, &out, &errs)
	}
}

// TestKeys_RotateSealing kills the rotation after each of its steps. The service must start
// as it is, and the command go on to the end, after which nothing needs the old key.
func TestKeys_RotateSealing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	noEnvironment(t)
	first := filepath.Join(t.TempDir(), "data")
	r := serve(t, first)
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	fingerprint := ca.Fingerprint(r.root)
	var out, errs bytes.Buffer
	if status := Run(t.Context(), []string{"keys", "rotate-sealing", "--data", first}, &out, &errs); status != statusInUse {
		t.Errorf("beside a service: status %d, %s", status, &errs)
	}
	r.stop()
	old := keysIn(t, first)
	for _, step := range []string{"add", "secrets", "authority", "audit", "retire", "none"} {
		t.Run(step, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data")
			copyTree(t, first, data)
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), rotateIn+"="+data, rotateTo+"="+step)
			text, err := child.CombinedOutput()
			exit := new(exec.ExitError)
			if killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; killed != (step != "none") {
				t.Fatalf("the rotation ended with %v: %s", err, text)
			}
			names := keysIn(t, data)
			if want := map[bool]int{false: 2, true: 1}[step == "retire" || step == "none"]; len(names) != want || names[0] == old[0] {
				t.Errorf("the sealing keys are %v, they were %v", names, old)
			}
			stillThere(t, data, fingerprint)
			var out, errs bytes.Buffer
			if step != "retire" && step != "none" {
				if status := Run(t.Context(), []string{"keys", "rotate-sealing", "--data", data, "--retire"}, &out, &errs); status != statusDone {
					t.Fatalf("it does not go on: status %d, %s", status, &errs)
				}
				if got := keysIn(t, data); len(got) != 1 || got[0] != names[0] {
					t.Errorf("the sealing keys are %v, want %v", got, names[:1])
				}
				stillThere(t, data, fingerprint)
			}
			out.Reset()
			if Run(t.Context(), []string{"audit", "ls", "--data", data}, &out, &errs); !strings.Contains(out.String(), "InitializeService") || !strings.Contains(out.String(), "SealingKeysRetired") {
				t.Errorf("the audit log has %s%s", &out, &errs)
			}
		})
	}
}

// TestKeys_RotateSealing_TwoSteps: between the two runs sessions from before go on, and
// the second one is what ends them; a root's key that was exported goes along.
func TestKeys_RotateSealing_TwoSteps(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	noEnvironment(t)
	dir := t.TempDir()
	data, exported := filepath.Join(dir, "data"), filepath.Join(dir, "root.pem")
	run := func(args ...string) (int, string) {
		t.Helper()
		var out, errs bytes.Buffer
		status := Run(t.Context(), append(args, "--data", data), &out, &errs)
		return status, out.String() + errs.String()
	}
	r := serve(t, data)
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	session := r.sessionOf(t)
	r.stop()
	if status, text := run("ca", "export-root", "--to", exported); status != statusDone {
		t.Fatal(text)
	}
	if status, text := run("keys", "rotate-sealing"); status != statusDone || !strings.Contains(text, "--retire") {
		t.Fatalf("status %d, %s", status, text)
	}
	again := keysIn(t, data)
	if status, text := run("keys", "rotate-sealing"); status != statusDone || strings.Join(keysIn(t, data), " ") != strings.Join(again, " ") {
		t.Errorf("a second time: status %d, %s, %v", status, text, keysIn(t, data))
	}
	r = serve(t, data)
	if err := r.worksFor(session); err != nil {
		t.Errorf("a session from before: %v", err)
	}
	r.stop()
	if status, text := run("keys", "rotate-sealing", "--retire"); status != statusError || !strings.Contains(text, "--root-key") || len(keysIn(t, data)) != 2 {
		t.Errorf("without the root's key: status %d, %s", status, text)
	}
	if status, text := run("keys", "rotate-sealing", "--retire", "--root-key", exported); status != statusDone {
		t.Fatalf("status %d, %s", status, text)
	}
	r = serve(t, data)
	if err := r.worksFor(session); err == nil {
		t.Error("a session that a retired key has sealed is taken")
	}
	r.stop()
	if status, text := run("ca", "rotate", "--root-key", exported); status != statusDone {
		t.Errorf("the exported root's key: %s", text)
	}
}

// TestKeys_RotateSealing_StillNeeded: a rotation that would leave anything behind is
// refused: that is what keeps a mistake in sealing again from locking everyone out.
func TestKeys_RotateSealing_StillNeeded(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	noEnvironment(t)
	data := filepath.Join(t.TempDir(), "data")
	serve(t, data).stop()
	key, err := identity.AddSealingKey(filepath.Join(data, sealingKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	cmd := new(KeysRotateSealingCmd)
	if err := cmd.needless(t.Context(), data, key); !errors.Is(err, errStillNeeded) || !strings.Contains(err.Error(), "2 access keys") {
		t.Errorf("with the secrets as they were: %v", err)
	}
	db, err := control.OpenDatabase(t.Context(), filepath.Join(data, "control.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = openDirectory(t.Context(), db, key, nil)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.needless(t.Context(), data, key); !errors.Is(err, errStillNeeded) || !errors.Is(err, ca.ErrSealed) {
		t.Errorf("with the authority as it was: %v", err)
	}
	// Without being asked, the old key is gone and so is the authority.
	if err := identity.RetireSealingKeys(filepath.Join(data, sealingKeyFile)); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if status := Run(t.Context(), []string{"ca", "ls", "--data", data}, &out, &errs); status != statusError {
		t.Errorf("a rotation that skips sealing again is not noticed: status %d, %s", status, &out)
	}
}

// sts is a client as somebody.
func (r *running) sts(who aws.CredentialsProvider) *sts.Client {
	pool := x509.NewCertPool()
	pool.AddCert(r.root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	return sts.New(sts.Options{Region: "us-east-1", BaseEndpoint: &r.api, Credentials: who, HTTPClient: &http.Client{Transport: transport}, RetryMaxAttempts: 1})
}

// sessionOf is a session of the administrator.
func (r *running) sessionOf(t *testing.T) aws.CredentialsProvider {
	t.Helper()
	out, err := r.sts(r.admin).GetSessionToken(t.Context(), &sts.GetSessionTokenInput{})
	r.must(err)
	return credentials.NewStaticCredentialsProvider(*out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken)
}

func (r *running) worksFor(who aws.CredentialsProvider) error {
	_, err := r.sts(who).GetCallerIdentity(r.t.Context(), &sts.GetCallerIdentityInput{})
	return err
}

// copyTree copies a directory without its sockets.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if text, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
