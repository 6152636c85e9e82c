package awsapi_test

import (
	"strings"
	"testing"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/identity"
)

// TestServer_Because: who is refused is told by which kind of policy, in the words of AWS.
func TestServer_Because(t *testing.T) {
	e := newEndpoint(t)
	serveAgent(e)
	const all = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`
	const none = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"mgn:ListWaves","Resource":"*"}}`
	const never = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"mgn:*","Resource":"*"}]}`
	bounded := func(name, document string) identity.Credentials {
		t.Helper()
		boundary, err := e.directory.CreatePolicy(t.Context(), identity.Policy{Name: name, Document: document})
		if err == nil {
			err = e.directory.CreateUser(t.Context(), identity.User{Name: name, Inline: map[string]string{"p": all}, Boundary: boundary})
		}
		if err != nil {
			t.Fatal(err)
		}
		key, err := e.directory.CreateAccessKey(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	ended := strings.Replace(none, `"mgn:ListWaves","Resource":"*"`, `"*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"`+time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)+`"}}`, 1)
	over := strings.Replace(never, `"mgn:*","Resource":"*"`, `"*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"`+time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)+`"}}`, 1)
	for name, c := range map[string]struct {
		key  identity.Credentials
		want string
	}{
		"no policy":           {e.user(t, "a", none), "because no identity-based policy allows the mgn:RegisterAgentForMgn action"},
		"denied":              {e.user(t, "b", never), "with an explicit deny in an identity-based policy"},
		"outside a boundary":  {bounded("c", none), "because no permissions boundary allows the mgn:RegisterAgentForMgn action"},
		"denied by boundary":  {bounded("d", never), "with an explicit deny in a permissions boundary"},
		"boundary that ended": {bounded("e", ended), "because no permissions boundary allows the mgn:RegisterAgentForMgn action"},
		"boundary that began": {bounded("f", over), "with an explicit deny in a permissions boundary"},
	} {
		_, err := call(e.client(t, c.key), formgn.RegisterAgentForMgn, &formgn.RegisterAgentForMgnRequest{SourceProperties: &formgn.SourceProperties{}})
		if !awsapi.IsError(err, awsapi.AccessDenied) || !strings.Contains(err.Error(), " is not authorized to perform: mgn:RegisterAgentForMgn on resource: * "+c.want+".") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
