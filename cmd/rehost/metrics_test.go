package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

// TestServe_Metrics: what an agent sends is on the page, which is for this machine
// and for no page of a browser on it.
func TestServe_Metrics(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	r := serve(t, filepath.Join(t.TempDir(), "data"), "--metrics", address)
	_, err = r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	_, err = awsapi.Call(t.Context(), a.client, formgn.SendAgentMetricsForMgn, &formgn.SendAgentMetricsForMgnRequest{SourceServerID: a.id,
		Metrics: []formgn.Metric{{Name: formgn.MetricConflicts, Value: 42}}})
	r.must(err)
	get := func(method, host, path string) (int, string) {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
		r.must(err)
		q.Host = host
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		answer, err := client.Do(q)
		r.must(err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		r.must(err)
		return answer.StatusCode, string(text)
	}
	status, page := get("GET", address, "/metrics")
	if want := `rehost_agent_conflicts_total{source_server="` + a.id + `"} 42`; status != 200 || !strings.Contains(page, want+"\n") {
		t.Errorf("status %d, no line %q in\n%s", status, want, page)
	}
	for _, c := range []struct {
		method, host, path string
		want               int
	}{
		{"GET", "localhost:9464", "/metrics", 200},
		{"GET", "[::1]:9464", "/metrics", 200},
		{"GET", "rebound.example.com", "/metrics", http.StatusMisdirectedRequest},
		{"GET", "127.0.0.1.example.com", "/metrics", http.StatusMisdirectedRequest},
		{"GET", address, "/", http.StatusNotFound},
		{"POST", address, "/metrics", http.StatusMethodNotAllowed},
	} {
		if got, _ := get(c.method, c.host, c.path); got != c.want {
			t.Errorf("%s %s as %s: %d, want %d", c.method, c.path, c.host, got, c.want)
		}
	}
	if status := r.stop(); status != statusDone {
		t.Errorf("stopped with status %d", status)
	}
}

// TestListenMetrics_Elsewhere: an address that others can reach is refused.
func TestListenMetrics_Elsewhere(t *testing.T) {
	for _, address := range []string{":0", "0.0.0.0:0", "[::]:0"} {
		if l, err := listenMetrics(address); !errors.Is(err, errNotLoopback) {
			t.Errorf("%s: listens on %v, %v", address, l, err)
		}
	}
	var stderr bytes.Buffer
	if status := Run(t.Context(), []string{"serve", "--data", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0", "--metrics", ":0"}, io.Discard, &stderr); status == statusDone || !strings.Contains(stderr.String(), "loopback only") {
		t.Errorf("status %d: %s", status, stderr.String())
	}
}
