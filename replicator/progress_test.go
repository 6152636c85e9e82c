package replicator

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

// TestSend: progress is given up only when the service has refused it for good.
func TestSend(t *testing.T) {
	for name, test := range map[string]struct {
		status  int
		pending bool
	}{
		awsapi.Throttling:     {http.StatusTooManyRequests, true},
		awsapi.InternalServer: {http.StatusInternalServerError, true},
		awsapi.AccessDenied:   {http.StatusForbidden, false},
	} {
		t.Run(name, func(t *testing.T) {
			service := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Amzn-Errortype", name)
				w.WriteHeader(test.status)
				w.Write([]byte("{}"))
			}))
			defer service.Close()
			roots := x509.NewCertPool()
			roots.AddCert(service.Certificate())
			client := awsapi.NewClient(awsapi.ClientOptions{Endpoint: service.URL, Region: "us-east-1", Attempts: 1, TLS: &tls.Config{RootCAs: roots},
				Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "secret", "")})
			defer client.Close()
			p := &formgn.NotifyAgentReplicationProgressForMgnRequest{SourceServerID: "s-00000000000000001", ReplicatorID: "i-00000000000000001", Generation: 1}
			r := &replicator{log: slog.New(slog.DiscardHandler), client: client,
				pending: map[string]*formgn.NotifyAgentReplicationProgressForMgnRequest{p.SourceServerID: p}}
			r.send(t.Context(), p)
			if got := r.pending[p.SourceServerID] != nil; got != test.pending {
				t.Errorf("pending %v, want %v", got, test.pending)
			}
		})
	}
}
