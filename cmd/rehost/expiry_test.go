package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"

	installer "rehost/agent"
	"rehost/audit"
	"rehost/awsapi"
)

// An aging is a service whose clock the test moves on, and calls that are signed by
// that clock.
type aging struct {
	t     *testing.T
	data  string
	api   string
	http  *http.Client
	later atomic.Int64 // nanoseconds
}

var apiLine = regexp.MustCompile(`rehost: ready: API on (https://\S+),`)

func (a *aging) now() time.Time { return time.Now().Add(time.Duration(a.later.Load())) }

func (a *aging) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func newAging(t *testing.T) *aging {
	t.Helper()
	a := &aging{t: t, data: filepath.Join(t.TempDir(), "data")}
	cmd := &ServeCmd{Data: a.data, Listen: "127.0.0.1:0", Region: "us-east-1", Advertise: []string{"127.0.0.1"}, NoReplicator: true,
		AuditFileSize: audit.DefaultFileSize, AuditFiles: audit.DefaultFiles, LogLevel: "error", RateFlags: RateFlags{StrangerConnections: 100}, now: a.now}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	reader, writer := io.Pipe()
	go func() {
		err := cmd.Run(ctx, io.Discard, &logOutput{writer})
		writer.Close()
		ended <- err
	}()
	ready := make(chan string, 1)
	go func() {
		defer close(ready)
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			if m := apiLine.FindStringSubmatch(lines.Text()); m != nil {
				ready <- m[1]
			} else {
				t.Log(lines.Text())
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for range ready { // until the last line was logged
		}
	})
	a.api = <-ready
	if a.api == "" {
		t.Fatal("the service does not serve")
	}
	text, err := os.ReadFile(filepath.Join(a.data, "ca.pem"))
	a.must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	a.http = &http.Client{Transport: transport}
	return a
}

// call makes an operation's call with an empty input, signed at the service's time.
func (a *aging) call(key aws.CredentialsProvider, operation string) error {
	a.t.Helper()
	body := []byte("{}")
	r, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.api+"/"+operation, bytes.NewReader(body))
	a.must(err)
	r.Header.Set("Content-Type", "application/json")
	c, err := key.Retrieve(a.t.Context())
	a.must(err)
	digest := sha256.Sum256(body)
	a.must(v4.NewSigner().SignHTTP(a.t.Context(), c, r, hex.EncodeToString(digest[:]), "mgn", "us-east-1", a.now()))
	answer, err := a.http.Do(r)
	a.must(err)
	defer answer.Body.Close()
	if answer.StatusCode/100 == 2 {
		return nil
	}
	e := &awsapi.CallError{Operation: operation, Status: answer.StatusCode, Name: answer.Header.Get("X-Amzn-Errortype")}
	a.must(json.NewDecoder(answer.Body).Decode(e))
	return e
}

// keyOf is the key in a credentials file of the directory.
func (a *aging) keyOf(file string) aws.CredentialsProvider {
	a.t.Helper()
	text, err := os.ReadFile(filepath.Join(a.data, file))
	a.must(err)
	have := profileOf(text, profile)
	return credentials.NewStaticCredentialsProvider(have["aws_access_key_id"], have["aws_secret_access_key"], "")
}

// TestKeys_End: an installation key works until its time and not a moment longer, is
// then refused as AWS refuses what a boundary does not allow, and the installer says
// what to do. Other keys go on.
func TestKeys_End(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	noEnvironment(t)
	a := newAging(t)
	admin, first := a.keyOf(adminFile), a.keyOf(installerFile)
	a.must(a.call(admin, "InitializeService"))
	day, status, errs := createKey(t, a.data)
	if status != statusDone {
		t.Fatal(errs)
	}
	for _, c := range []struct {
		later      time.Duration
		first, day bool // works
	}{
		{0, true, true},
		{24*time.Hour - time.Minute, true, true},
		{24*time.Hour + time.Minute, true, false},
		{installerLife - time.Minute, true, false},
		{installerLife + time.Minute, false, false},
		{10 * 365 * 24 * time.Hour, false, false},
	} {
		a.later.Store(int64(c.later))
		for name, key := range map[string]struct {
			key   aws.CredentialsProvider
			works bool
		}{"the key of the first start": {first, c.first}, "the key of a day": {day, c.day}, "the administrator's": {admin, true}} {
			err := a.call(key.key, "VerifyClientRoleForMgn")
			if key.works {
				if err != nil {
					t.Errorf("%s after %v: %v", name, c.later, err)
				}
				continue
			}
			if e := (*awsapi.CallError)(nil); !awsapi.IsError(err, "AccessDeniedException") || !errors.As(err, &e) || e.Status != http.StatusForbidden ||
				!strings.Contains(err.Error(), ":user/installer-") || !strings.Contains(err.Error(), "is not authorized to perform: mgn:VerifyClientRoleForMgn on resource: * because no permissions boundary allows the mgn:VerifyClientRoleForMgn action") {
				t.Errorf("%s after %v: %v", name, c.later, err)
			}
			if hint := installer.Hint(err); !strings.Contains(hint, "rehost keys create-installer") {
				t.Errorf("the installer says %q", hint)
			}
		}
	}
}
