package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

// TestEnded: a service that is restarted while somebody waits for a task is asked again, one
// that refuses is not, and in the end it is said that nothing is known.
func TestEnded(t *testing.T) {
	const running, over = `{"tasks": [{"taskID": "t", "sourceServerID": "s-0123456789abcdef0", "state": "DELIVERED"}]}`, `{"tasks": [{"taskID": "t", "sourceServerID": "s-0123456789abcdef0", "state": "SUCCEEDED", "endedDateTime": "now"}]}`
	for name, c := range map[string]struct {
		answers []string // "503" is a status; the last one again and again
		wait    time.Duration
		calls   int
		state   formgn.AgentTaskState
		fails   bool
	}{
		"restarted":    {answers: []string{"503", running, over}, wait: time.Minute, calls: 3, state: formgn.AgentTaskStateSucceeded},
		"refuses":      {answers: []string{"403"}, wait: time.Minute, calls: 1, fails: true},
		"stays away":   {answers: []string{"503"}, wait: time.Second, calls: 2, fails: true},
		"not at all":   {answers: []string{running}, calls: 1, state: formgn.AgentTaskStateDelivered},
		"knows nobody": {answers: []string{`{"tasks": []}`}, wait: time.Minute, calls: 1, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			service := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				answer := c.answers[min(calls, len(c.answers)-1)]
				calls++
				if status := 0; len(answer) == 3 {
					fmt.Sscan(answer, &status)
					w.Header().Set("X-Amzn-ErrorType", "SomeException")
					w.WriteHeader(status)
					answer = "{}"
				}
				fmt.Fprint(w, answer)
			}))
			defer service.Close()
			client := awsapi.NewClient(awsapi.ClientOptions{Endpoint: service.URL, Region: "us-east-1", Attempts: 1,
				Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""), TLS: service.Client().Transport.(*http.Transport).TLSClientConfig})
			defer client.Close()
			task, err := ended(t.Context(), client, formgn.AgentTask{TaskID: "t", SourceServerID: "s-0123456789abcdef0"}, time.Now().Add(c.wait))
			if calls != c.calls || task.State != c.state || (err != nil) != c.fails {
				t.Errorf("%d calls, %q, %v; want %d, %q, an error: %v", calls, task.State, err, c.calls, c.state, c.fails)
			}
		})
	}
}
