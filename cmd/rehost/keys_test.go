package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/control"
	"rehost/identity"
)

// createKey is `rehost keys create-installer`.
func createKey(t *testing.T, data string, more ...string) (key aws.CredentialsProvider, status int, errs string) {
	t.Helper()
	var out, stderr bytes.Buffer
	status = Run(t.Context(), append([]string{"keys", "create-installer", "--data", data}, more...), &out, &stderr)
	m := regexp.MustCompile(`^export AWS_ACCESS_KEY_ID=(\S+)\nexport AWS_SECRET_ACCESS_KEY=(\S+)\n$`).FindStringSubmatch(out.String())
	if (m != nil) != (status == statusDone) {
		t.Fatalf("status %d, and it printed a key: %v", status, m != nil)
	}
	if m == nil {
		return nil, status, stderr.String()
	}
	return credentials.NewStaticCredentialsProvider(m[1], m[2], ""), status, stderr.String()
}

// noEnvironment takes away what the machine's own environment says of AWS.
func noEnvironment(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
}

// TestKeys_Installer makes a key for one source server, while the service is stopped
// and while it runs, and installs two with each.
func TestKeys_Installer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	noEnvironment(t)
	data := filepath.Join(t.TempDir(), "data")
	serve(t, data).stop()
	if _, status, _ := createKey(t, data, "--server-limit", "-1"); status != statusUsage {
		t.Errorf("a negative limit: status %d", status)
	}
	alone, status, errs := createKey(t, data, "--server-limit", "1", "--expires", "1h")
	if status != statusDone {
		t.Fatalf("status %d: %s", status, errs)
	}
	r := serve(t, data)
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	beside, status, errs := createKey(t, data, "--server-limit", "1", "--expires", "1h")
	if status != statusDone {
		t.Fatalf("beside the service: status %d: %s", status, errs)
	}
	for i, key := range []aws.CredentialsProvider{alone, beside} {
		installer := r.signedBy(key)
		first, second := fmt.Sprint("machine-a", i), fmt.Sprint("machine-b", i)
		_, err = awsapi.Call(t.Context(), installer, formgn.RegisterAgentForMgn, registration(first))
		r.must(err)
		if _, err = awsapi.Call(t.Context(), installer, formgn.RegisterAgentForMgn, registration(second)); !awsapi.IsError(err, "AccessDeniedException") {
			t.Errorf("the second source server of a key for one: %v", err)
		}
		_, err = awsapi.Call(t.Context(), r.install, formgn.RegisterAgentForMgn, registration(second))
		r.must(err)
	}
	same := func(field func(identity.KeyState) any) {
		t.Helper()
		a, b := keyState(t, data, alone), keyState(t, data, beside)
		if fmt.Sprint(field(a)) != fmt.Sprint(field(b)) {
			t.Errorf("the keys differ: %v alone, %v beside", field(a), field(b))
		}
	}
	same(func(k identity.KeyState) any { return k.Active })
	same(func(k identity.KeyState) any { return k.Ends.Sub(k.Created).Round(time.Minute) })
}

// keyState is what `rehost keys ls` knows of a key, beside the service.
func keyState(t *testing.T, data string, key aws.CredentialsProvider) identity.KeyState {
	t.Helper()
	have, err := key.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	db, err := control.OpenDatabase(t.Context(), filepath.Join(data, "control.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all, err := identity.KeyStates(t.Context(), db.Identities())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(k identity.KeyState) bool { return k.ID == have.AccessKeyID })
	if i < 0 {
		t.Fatalf("%s is not listed", have.AccessKeyID)
	}
	return all[i]
}

// TestKeys_Beside: beside a service, with a certificate from elsewhere too, the key is
// made as who is named in the environment, and only if he may; the audit log says by whom.
func TestKeys_Beside(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	noEnvironment(t)
	data := filepath.Join(t.TempDir(), "data")
	e := newElsewhere(t)
	cert, key := e.write(server("localhost"), e.between, e.root)
	r := serveWith(t, data, "--advertise", "localhost", "--tls-certificate", cert, "--tls-key", key)
	installer, status, errs := createKey(t, data)
	if status != statusDone {
		t.Fatalf("as the administrator of the directory: status %d, %s", status, errs)
	}
	if _, status, errs := createKey(t, data, "--endpoint-url", r.api); status != statusDone {
		t.Errorf("at an address: status %d, %s", status, errs)
	}
	have, err := installer.Retrieve(t.Context())
	r.must(err)
	t.Setenv("AWS_ACCESS_KEY_ID", have.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", have.SecretAccessKey)
	if _, status, errs := createKey(t, data); status != statusError || !strings.Contains(errs, "AccessDenied") || !strings.Contains(errs, "iam:CreatePolicy") {
		t.Errorf("a key that can install makes another: status %d, %s", status, errs)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_PROFILE", "nobody")
	if _, status, errs := createKey(t, data); status != statusError || !strings.Contains(errs, `no profile "nobody"`) || !strings.Contains(errs, "hint: export AWS_ACCESS_KEY_ID") {
		t.Errorf("a profile that is not there: status %d, %s", status, errs)
	}
	file := filepath.Join(t.TempDir(), "keys")
	admin, err := r.admin.Retrieve(t.Context())
	r.must(err)
	r.must(os.WriteFile(file, fmt.Appendf(nil, "[default]\naws_access_key_id = AKIAX\n# [me]\n\n[ me ]\n; aws_access_key_id = AKIAX\nAWS_ACCESS_KEY_ID=%s\n aws_secret_access_key =%s \n[you]\naws_access_key_id=AKIAY\n",
		admin.AccessKeyID, admin.SecretAccessKey), 0o600))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_PROFILE", "me")
	if _, status, errs := createKey(t, data); status != statusDone {
		t.Errorf("as a profile: status %d, %s", status, errs)
	}
	var out, stderr bytes.Buffer
	if Run(t.Context(), []string{"audit", "ls", "--data", data, "--event", "CreateAccessKey"}, &out, &stderr); strings.Count(out.String(), ":user/"+identity.AdminUser) != 3 {
		t.Errorf("the audit log has %s%s", &out, &stderr)
	}
	// Nobody else is believed, whatever answers at the address.
	another := httptest.NewTLSServer(http.NotFoundHandler())
	defer another.Close()
	if _, status, errs := createKey(t, data, "--endpoint-url", another.URL); status != statusError || !strings.Contains(errs, "verify peer") {
		t.Errorf("another server: status %d, %s", status, errs)
	}
}

// signedBy is a client of the service as somebody else.
func (r *running) signedBy(c aws.CredentialsProvider) *awsapi.Client {
	pool := x509.NewCertPool()
	pool.AddCert(r.root)
	out := awsapi.NewClient(awsapi.ClientOptions{Endpoint: r.api, Region: "us-east-1", Credentials: c, TLS: &tls.Config{RootCAs: pool}})
	r.t.Cleanup(out.Close)
	return out
}
