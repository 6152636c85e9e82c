package awsapi_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"go.uber.org/goleak"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/iam"
	"rehost/awsapi/mgn"
	"rehost/awsapi/sts"
	"rehost/identity"
	"rehost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testRegion = "eu-west-1"

// An endpoint is a whole service on loopback with one account.
type endpoint struct {
	*httptest.Server
	api       *awsapi.Server
	directory *identity.Directory
	admin     identity.Credentials
	authority *authority
	log       *fault.Log
	now       func() time.Time
}

func newEndpoint(t testing.TB, change ...func(*awsapi.Options)) *endpoint {
	t.Helper()
	raw := make([]byte, 32)
	rand.Read(raw)
	key, err := identity.NewSealingKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	e := &endpoint{log: new(fault.Log), now: time.Now, authority: newAuthority(t)}
	clock := func() time.Time { return e.now() }
	e.directory, err = identity.Open(context.Background(), identity.Options{Store: identity.NewMemoryStore(), Key: key, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	if e.admin, err = e.directory.Bootstrap(context.Background()); err != nil {
		t.Fatal(err)
	}
	o := awsapi.Options{Identity: e.directory, Region: testRegion, Now: clock, Log: slog.New(slog.NewJSONHandler(e.log, nil))}
	for _, f := range change {
		f(&o)
	}
	e.api = awsapi.New(o, mgn.Service, formgn.Service, iam.Service, sts.Service)
	e.Server = httptest.NewUnstartedServer(e.api)
	e.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(e.log, nil), slog.LevelInfo)
	clients := x509.NewCertPool()
	clients.AddCert(e.authority.certificate)
	e.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients}
	e.StartTLS()
	t.Cleanup(e.Close)
	return e
}

// roots is what a client must trust.
func (e *endpoint) roots() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(e.Certificate())
	return &tls.Config{RootCAs: pool}
}

// ca writes the certificate as a file for programs.
func (e *endpoint) ca(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func credentials(c identity.Credentials) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: string(c.SecretAccessKey), SessionToken: string(c.SessionToken)}, nil
	})
}

func (e *endpoint) client(t testing.TB, c identity.Credentials) *awsapi.Client {
	client := awsapi.NewClient(awsapi.ClientOptions{Endpoint: e.URL, Region: testRegion, Credentials: credentials(c), TLS: e.roots(), Attempts: 1})
	t.Cleanup(client.Close)
	return client
}

// user makes a user with one inline policy and a key.
func (e *endpoint) user(t testing.TB, name, policy string) identity.Credentials {
	t.Helper()
	ctx := context.Background()
	if err := e.directory.CreateUser(ctx, identity.User{Name: name, Inline: map[string]string{"p": policy}}); err != nil {
		t.Fatal(err)
	}
	c, err := e.directory.CreateAccessKey(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serverID is a source server's id, made of a number.
func serverID(n int) string { return fmt.Sprintf("s-%017d", n) }

func (e *endpoint) arn(kind, id string) string {
	return strings.Join([]string{"arn:aws:mgn", testRegion, e.directory.Account().ID, kind + "/" + id}, ":")
}
