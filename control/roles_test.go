package control

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"rehost/audit"
	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/identity"
)

// A model is what the API's model says of inputs.
type model struct {
	Operations map[string]struct {
		Input struct{ Shape string }
	}
	Shapes map[string]struct {
		Type     string
		Required []string
		Members  map[string]struct{ Shape, Location, LocationName string }
		Member   struct{ Shape string }
		Value    struct{ Shape string }
		Key      struct{ Shape string }
		Enum     []string
		Pattern  string
		Min      float64
	}
}

func readModel(t *testing.T, file string) *model {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := new(model)
	if err := json.Unmarshal(text, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// An inputs makes the smallest valid input of every operation, about these ids where a
// pattern lets them.
type inputs struct {
	*model
	texts []string // that are tried, in this order
}

var (
	idPattern = regexp.MustCompile(`^([a-z]+-)[\[(]`)
	manyTimes = regexp.MustCompile(`\{1,[0-9]{4,}\}`)
)

func (in inputs) text(pattern string, least int) string {
	// Go has no lookahead, and does not count beyond 1,000; nothing that these exclude is tried.
	p := regexp.MustCompile("^(?:" + manyTimes.ReplaceAllString(strings.Replace(pattern, "(?!aws:)", "", 1), "+") + ")$")
	tried := slices.Clone(in.texts)
	if m := idPattern.FindStringSubmatch(pattern); m != nil {
		tried = append(tried, m[1]+strings.Repeat("0", 17))
	}
	for _, text := range tried {
		if len(text) >= least && (pattern == "" || p.MatchString(text)) {
			return text
		}
	}
	return "no text of " + pattern
}

func (in inputs) value(shape string) any {
	s := in.Shapes[shape]
	switch s.Type {
	case "structure":
		out := map[string]any{}
		for _, name := range s.Required {
			out[name] = in.value(s.Members[name].Shape)
		}
		return out
	case "list":
		out := []any{}
		for range max(int(s.Min), 1) {
			out = append(out, in.value(s.Member.Shape))
		}
		return out
	case "map":
		return map[string]any{"key": in.value(s.Value.Shape)}
	case "boolean":
		return true
	case "integer", "long", "double", "float":
		return max(s.Min, 1)
	case "timestamp":
		return 0
	case "blob":
		return []byte{1}
	}
	if len(s.Enum) > 0 {
		return s.Enum[0]
	}
	return in.text(s.Pattern, int(s.Min))
}

// request is the operation's call: what the model puts into the path and the query is there.
func (in inputs) request(t *testing.T, op *awsapi.Operation, endpoint string) (*http.Request, []byte) {
	t.Helper()
	shape := in.Operations[op.Name].Input.Shape
	body, _ := in.value(shape).(map[string]any)
	path, query := op.URI, url.Values{}
	for name, m := range in.Shapes[shape].Members {
		value, there := body[name]
		if !there || m.Location == "" {
			continue
		}
		delete(body, name)
		text, _ := value.(string)
		if list, ok := value.([]any); ok {
			text, _ = list[0].(string)
		}
		if m.Location == "uri" {
			path = strings.ReplaceAll(path, "{"+m.LocationName+"}", url.PathEscape(text))
		} else {
			query.Set(m.LocationName, text)
		}
	}
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if !op.HasBody {
		text = nil
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	r, err := http.NewRequestWithContext(t.Context(), op.Method, endpoint+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if text != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return r, text
}

// decided makes a call and gives its record.
func (a *apiWorld) decided(c identity.Credentials, r *http.Request, body []byte) audit.Record {
	a.t.Helper()
	digest := sha256.Sum256(body)
	who := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: string(c.SecretAccessKey), SessionToken: string(c.SessionToken)}
	a.must(v4.NewSigner().SignHTTP(a.t.Context(), who, r, hex.EncodeToString(digest[:]), "mgn", "us-east-1", time.Now()))
	answer, err := a.server.Client().Do(r)
	a.must(err)
	_, err = io.Copy(io.Discard, answer.Body)
	a.must(err)
	a.must(answer.Body.Close())
	a.audit.mu.Lock()
	defer a.audit.mu.Unlock()
	return a.audit.record
}

// What is documented of each role: docs/threat-model.md.
var (
	agentMay = []string{"GetAgentCommandForMgn", "GetAgentReplicationInfoForMgn", "IssueClientCertificateForMgn", "SendAgentLogsForMgn", "SendAgentMetricsForMgn",
		"UpdateAgentBacklogForMgn", "UpdateAgentReplicationInfoForMgn", "UpdateAgentSourcePropertiesForMgn",
		"SendSupportBundleForRehost", "UpdateAgentTaskForRehost"}
	replicatorMay = []string{"DescribeReplicationServerAssociationsForMgn", "NotifyAgentAuthenticationForMgn", "NotifyAgentConnectedForMgn", "NotifyAgentDisconnectedForMgn",
		"NotifyAgentReplicationProgressForMgn", "UpdateAgentReplicationProcessStateForMgn"}
)

// TestRoles makes every call of the API with a session of each of the service's roles, about
// itself and about another: what is documented is allowed and nothing else, whatever
// the operation. The mutation is the administrator, whom the same calls are allowed.
func TestRoles(t *testing.T) {
	a := newAPIWorld(t)
	own, other := a.register("01"), a.register("02")
	const otherReplicator = "i-00000000000000002"
	admin, err := a.directory.CreateAccessKey(t.Context(), identity.AdminUser)
	a.must(err)
	session := func(role, id string) identity.Credentials {
		t.Helper()
		c, err := a.directory.AssumeRoleAsService(t.Context(), identity.ServiceName, identity.AssumeRole{Role: role, Session: id, SourceIdentity: id})
		a.must(err)
		return c
	}
	arn := func(id string) string { return a.arn("source-server", id) }
	for _, c := range []struct {
		who                string
		credentials        identity.Credentials
		server, replicator string // that the calls are about
		may                []string
	}{
		{"agent, itself", session(identity.AgentRole, own), own, replicatorID, agentMay},
		{"agent, another", session(identity.AgentRole, own), other, replicatorID, nil},
		{"replication server, itself", session(identity.ReplicationServerRole, replicatorID), own, replicatorID, replicatorMay},
		{"replication server, another", session(identity.ReplicationServerRole, replicatorID), own, otherReplicator, nil},
		{"conversion server", session(identity.ConversionServerRole, "i-00000000000000003"), own, replicatorID, nil}, // no call of its is built
		{"administrator", admin, own, replicatorID, []string{"*"}},
	} {
		t.Run(c.who, func(t *testing.T) {
			allowed, built := 0, 0
			for service, file := range map[*awsapi.Service]string{mgn.Service: "../awsapi/mgn/model.json", formgn.Service: "../awsapi/formgn/model.json"} {
				in := inputs{readModel(t, file), []string{c.server, c.replicator, arn(c.server), "x", "x.y", "1", "12345678-1234-1234-1234-123456789012", "123456789012", "2026-01-01T00:00:00Z", strings.Repeat("x", 64), strings.Repeat("0", 64), strings.Repeat("x", 43) + "="}}
				for _, op := range service.Operations {
					r, body := in.request(t, op, a.server.URL)
					got := a.decided(c.credentials, r, body)
					if op.MutualTLS { // no signature counts there
						if got.ErrorCode != awsapi.MissingAuthentication {
							t.Errorf("%s: %s %s", op.Name, got.ErrorCode, got.ErrorMessage)
						}
						continue
					}
					if got.EventName != op.Name {
						t.Errorf("%s was taken for %s: %s %s", op.Name, got.EventName, got.ErrorCode, got.ErrorMessage)
						continue
					}
					if !a.api.Handles(op) {
						if got.ErrorCode != awsapi.NotImplemented {
							t.Errorf("%s, which nobody does: %s %s", op.Name, got.ErrorCode, got.ErrorMessage)
						}
						continue
					}
					built++
					want := "denied"
					if slices.Contains(c.may, op.Name) || slices.Contains(c.may, "*") {
						want = "allowed"
						allowed++
					}
					if d := got.AdditionalEventData.Decision; d != want || want == "denied" && got.ErrorCode != awsapi.AccessDenied {
						t.Errorf("%s: %s, want %s: %s %s", op.Name, d, want, got.ErrorCode, got.ErrorMessage)
					}
				}
			}
			t.Logf("%d operations are built, %d of them allowed", built, allowed)
			if want := map[bool]int{true: built, false: len(c.may)}[slices.Contains(c.may, "*")]; built == 0 || allowed != want {
				t.Errorf("%d operations are allowed, want %d", allowed, want)
			}
		})
	}
}
